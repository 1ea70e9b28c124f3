"""The start of a guest: its arguments, environment, directory, view and input, as bytes."""

import os
import stat

from kvmlet import _native, _program, _tree
from kvmlet.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from kvmlet.policy import Policy

# The guest inherits these from the caller: how to speak to the person at the terminal.
_INHERITED = (b"TERM", b"COLORTERM", b"LANG", b"LANGUAGE", b"TZ", b"NO_COLOR")

# Most bytes of a path in an address (sun_path in unix(7)).
_SOCKET_PATH_MAX_BYTES = 108


class Start:
    """A program with what it starts with: `argv`, `env` as pairs, and its `policy`."""

    def __init__(
        self,
        argv: list[bytes],
        env: "Mapping[str, str] | None" = None,
        cwd: "str | bytes | os.PathLike[str] | None" = None,
        named: "Named | None" = None,
        modules: bytes | None = None,
        view: 'Literal["read-only", "overlay", "learning"]' = "read-only",
    ) -> None:
        """`argv` in `cwd` (None: the current directory), which it may read.

        In the view "overlay" it may change the tree of that directory, or of the git work tree
        around it (`overlay`), for itself alone. Home directories, what lies above them and the
        system's directories are never shown so: it starts in /tmp then, and `note` says so.

        The view "learning" is that, and all of the host to be read and changed in memory, but for
        what is protected; it reaches nothing. `base` is its policy without that.

        It may also read what it needs to start (`_program`), and use the files, trees and hosts
        that are `named`. The ports that are named to be published are open from now on. `env` is
        added to what guests have, and the directory `modules` to its PYTHONPATH. Raises UsageError,
        HostError, and _native.NativeError for what must not be visible.
        """
        added = pairs(env or {})
        named = named or Named()
        read, write = list(named.read), named.write
        if modules is not None:
            search = added.get(b"PYTHONPATH")
            added[b"PYTHONPATH"] = search + b":" + modules if search else modules
            read.append(modules)
        directory = guest_cwd(cwd)
        path = _program.search_path(added)
        self.overlay: bytes | None = None
        self.note: str | None = None
        self._named = named
        shown = start = directory
        if view != "read-only":
            self.overlay = _tree.overlay_of(directory)
            shown = self.overlay or directory
        start = self._start(directory, cwd is not None)
        if start != directory:
            shown = start
            argv = [os.path.join(directory, argv[0]) if b"/" in argv[0] else argv[0], *argv[1:]]
        needed, variables = _program.needs(argv, directory, path, shown)
        self.argv = argv
        if self.overlay and any(_tree.beneath(tree, self.overlay) for tree in write):
            self.overlay = None
        self._needed = self._suitable(needed, start)
        self._first = start
        trees = [*read, *self._needed]
        self.policy = _native.Policy(start, trees, self.overlay, write)
        for place, option in named.places:
            self._check_place(place, option)
        rest = (named.bound, named.memory, named.net, named.publish, named.sockets)
        if any(rest):
            self.policy = _native.Policy(start, trees, self.overlay, write, *rest)
        self.base, self.writable = self.policy, write
        if view == "learning":
            self.policy = self.base.learning(_tree.home())
        own = {b"PATH": self._visible_path(path), b"HOME": b"/tmp", b"TMPDIR": b"/tmp"}
        self.env = list({**own, **_inherited(), **variables, **added}.items())

    @property
    def volumes(self) -> list[tuple[str, str]]:
        """Trees of the host that -v shows: (path on the host, path that the program sees)."""
        return [(os.fsdecode(host), os.fsdecode(path)) for host, path, _ in self._named.bound]

    def shown_by(self, tree: bytes) -> str:
        """The option that shows the tree that begins at `tree`, or what else does, in words."""
        places = dict(self._named.places)
        if tree in places:
            return places[tree]
        if tree == self.overlay:
            return "the current directory, or the work tree around it"
        if tree in self._named.options:
            return self._named.options[tree]
        if tree in self._needed:
            return "the program needs it to start"
        return "the directory that it starts in" if tree == self._first else "every program has it"

    def _start(self, directory: bytes, named: bool) -> bytes:
        # A system directory that is visible anyway may be asked for by name.
        written = any(_tree.beneath(tree, directory) for tree in self._named.write)
        why = None if self.overlay or written else _tree.unsuitable(directory)
        named = named and why == "a system directory"
        if why is None or (named and _native.Policy(_tree.TMP, []).shows(directory)):
            return directory
        self.note = (
            f"{os.fsdecode(directory)} is {why}, which programs do not get: starting in /tmp; "
            "change to a project's directory, or show files by --read"
        )
        return _tree.TMP

    def _check_place(self, path: bytes, name: str) -> None:
        """Raises UsageError if no tree can be shown at `path`."""
        above = os.path.dirname(path)
        if os.path.realpath(above) != above:
            raise UsageError(
                f"{name}: {os.fsdecode(path)} leads through a symbolic link",
                remedy=f"write {os.fsdecode(os.path.realpath(path))}",
            )
        if self.policy.shows_host(above) and not os.path.lexists(path):
            raise UsageError(
                f"{name}: {os.fsdecode(above)} is the host's and has no {os.fsdecode(path)}",
                remedy="make it on the host, or choose a path that the host does not have",
            )

    @classmethod
    def of_box(cls, env: "Mapping[str, str] | None", named: "Named") -> "Start":
        """The start of every command of a box, without the command: `argv` is empty.

        The commands may use the system's trees and what is `named` to be read or changed. Raises
        as `Start`.
        """
        start = cls.__new__(cls)
        start.argv = []
        start.overlay = start.note = None
        start.policy = _native.Policy.of_box(
            named.read, named.write, named.net, named.publish, named.sockets
        )
        added = pairs(env or {})
        path = start._visible_path(_program.search_path(added))
        own = {b"PATH": path, b"HOME": b"/work", b"TMPDIR": b"/tmp"}
        start.env = list({**own, **_inherited(), **added}.items())
        return start

    @staticmethod
    def _suitable(needed: list[bytes], directory: bytes) -> list[bytes]:
        # The needs of a program are a guess of ours, which never makes a run fail.
        kept = []
        for tree in needed:
            try:
                _native.Policy(directory, [tree])
            except _native.NativeError:
                continue
            kept.append(tree)
        return kept

    def _visible_path(self, path: list[bytes]) -> bytes:
        return b":".join(entry for entry in path if self.policy.shows(os.path.realpath(entry)))


def _inherited() -> dict[bytes, bytes]:
    env = os.environb
    kept = {name: env[name] for name in env if name in _INHERITED or name.startswith(b"LC_")}
    # Python itself puts this name there if no locale is set (PEP 538).
    if kept.get(b"LANG", b"C") == b"C" and kept.get(b"LC_CTYPE") == b"C.UTF-8":
        del kept[b"LC_CTYPE"]
    return kept


def pairs(env: "Mapping[str, str]") -> dict[bytes, bytes]:
    pairs = {}
    for key, value in env.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(
                f"env: {key!r}={value!r} is not a pair of strings", remedy="pass str for both"
            )
        name, data = os.fsencode(key), os.fsencode(value)
        if not name or b"=" in name or b"\0" in name or b"\0" in data:
            raise UsageError(
                f"env: {key!r}={value!r} cannot be an environment variable",
                remedy="names are not empty and have no '='; neither part has a null byte",
            )
        pairs[name] = data
    return pairs


def guest_modules() -> str:
    """The directory of the Python modules that guests may import: `kvmlet_guest` and the like."""
    package = os.path.realpath(os.path.dirname(__file__))
    return os.path.join(package, "guest", "python")


def guest_node_module() -> str:
    """A file that programs of Node which are served read first."""
    package = os.path.realpath(os.path.dirname(__file__))
    return os.path.join(package, "guest", "node", "kvmlet_node.cjs")


def readable_path(path: "str | bytes | os.PathLike[str]", name: str) -> list[bytes]:
    """The paths that make `path` readable: its own and those of links to it.

    Raises UsageError, which names the option or argument `name`, if nothing is there.
    """
    data = os.path.abspath(os.fsencode(path))
    if not os.path.exists(data):
        raise UsageError(
            f"{name}: {os.fsdecode(path)} is not there", remedy="name an existing file or directory"
        )
    links, real = _program.resolve(data)
    return [*links, real]


class Named:
    """Files and trees that options or arguments name, to be read and to be changed, and hosts."""

    def __init__(self, read: "Iterable[bytes]" = ()) -> None:
        """Nothing but `read`, canonical paths."""
        self.read = list(read)
        self.write: list[bytes] = []
        self.bound: list[tuple[bytes, bytes, str]] = []
        self.memory: list[bytes] = []
        # The paths of the last two, and who named each.
        self.places: list[tuple[bytes, str]] = []
        self._named: dict[bytes, str] = {}
        # Who named each of `read` and `write`.
        self.options: dict[bytes, str] = {}
        # Rules on the hosts that may be reached, and ports of this machine that lead inside.
        self.net: list[str] = []
        self.publish: list[str] = []
        # Sockets of this machine that may be connected to: canonical paths.
        self.sockets: list[bytes] = []

    def add_read(self, path: "str | bytes | os.PathLike[str]", name: str) -> None:
        """Adds `path`, which may be read, and links to it. Raises UsageError, which has `name`."""
        *links, real = readable_path(path, name)
        self._once(real, name, path)
        self.read += [*links, real]
        self.options |= dict.fromkeys((*links, real), name)

    def add_write(self, path: "str | bytes | os.PathLike[str]", name: str) -> None:
        """Adds `path`, which may be changed. Raises UsageError, which has `name`."""
        new = os.path.realpath(os.fsencode(path))
        if not os.path.lexists(new) and any(_tree.beneath(tree, new) for tree in self.write):
            # A protected name that is to be made in a tree that may be changed.
            self.write.append(new)
            self.options[new] = name
            return
        *links, real = readable_path(path, name)
        self._check_writable(real, path, name)
        self._once(real, name, path)
        self.read += links
        self.options |= dict.fromkeys((*links, real), name)
        if real not in self.write:
            self.write.append(real)

    def add_all(self, directory: bytes) -> None:
        """Adds the caller's home directory and `directory`, to be changed as they are: -A.

        A home directory is refused to `add_write`: here the caller has asked for all of it.
        """
        for tree in (_tree.home(), directory):
            of_system = _tree.unsuitable(tree) == "a system directory" and tree != _tree.home()
            if tree in (b"", b"/", _tree.TMP) or of_system or not os.path.isdir(tree):
                continue
            if tree not in self.write:
                self.write.append(tree)
            self.options[tree] = "-A"

    def _check_writable(
        self, real: bytes, path: "str | bytes | os.PathLike[str]", name: str
    ) -> None:
        why = "the sandbox's own" if real == _tree.TMP else _tree.unsuitable(real)
        if why:
            raise UsageError(
                f"{name}: {os.fsdecode(path)} is {why}, which programs do not get to change",
                remedy="name a directory of your own in it",
            )

    def add_volume(self, words: str, name: str) -> None:
        """Adds HOST:GUEST[:MODE], which shows HOST at GUEST. Raises UsageError."""
        host, colon, rest = words.partition(":")
        guest, _, mode = rest.partition(":")
        if not (host and colon and guest):
            raise UsageError(
                f"{name}: '{words}' is not HOST:GUEST", remedy="write -v ./data:/data:ro"
            )
        mode = mode or "rw"
        if mode not in ("ro", "rw", "overlay"):
            raise UsageError(f"{name}: '{mode}' is no mode", remedy="write ro, rw or overlay")
        *_, real = readable_path(host, name)
        if mode != "ro":
            self._check_writable(real, host, name)
        self.bound.append((real, self._place(guest, name), mode))

    def add_memory(self, path: str, name: str) -> None:
        """Adds `path`, at which there is an empty tree in memory. Raises UsageError."""
        self.memory.append(self._place(path, name))

    def add_network(self, net: "Iterable[str]", publish: "Iterable[str]") -> None:
        """Adds rules on hosts, and ports of this machine that lead inside. Raises UsageError."""
        for name, given, to in (("net", net, self.net), ("publish", publish, self.publish)):
            for word in given:
                if any("\ud800" <= char <= "\udfff" for char in word):
                    raise UsageError(f"{name}: {word!r} is no text", remedy="write it in UTF-8")
                to.append(word)

    def add_socket(self, path: "str | os.PathLike[str]", name: str) -> None:
        """Adds `path`, a socket that may be connected to, and links to it. Raises UsageError."""
        if len(os.path.abspath(os.fsencode(path))) > _SOCKET_PATH_MAX_BYTES:
            raise UsageError(
                f"{name}: {os.fspath(path)} is longer than {_SOCKET_PATH_MAX_BYTES} bytes, which "
                "no program can connect to",
                remedy="name a symbolic link to it with a shorter path",
            )
        *links, real = readable_path(path, name)
        if not stat.S_ISSOCK(os.stat(real).st_mode):
            raise UsageError(
                f"{name}: {os.fspath(path)} is no socket",
                remedy="name one that a server listens on; --read shows files",
            )
        self.read += links
        self.options |= dict.fromkeys((*links, real), name)
        if real not in self.sockets:
            self.sockets.append(real)

    def _place(self, path: str, name: str) -> bytes:
        guest = os.fsencode(path)
        guest = guest.rstrip(b"/") or b"/"
        if not guest.startswith(b"/") or os.path.normpath(guest) != guest:
            raise UsageError(
                f"{name}: {path} is not absolute", remedy="write it from / on, without .."
            )
        for other, by in self.places:
            if other == guest:
                raise UsageError(f"{by} and {name} both make {path}", remedy="name it once")
        self.places.append((guest, name))
        return guest

    def _once(self, real: bytes, name: str, path: "str | bytes | os.PathLike[str]") -> None:
        other = self._named.setdefault(real, name)
        if ("read" in other) != ("read" in name):
            raise UsageError(
                f"{other} and {name} both name {os.fsdecode(path)}",
                remedy="what may be changed may be read: name it once",
            )


def named_of(policy: "Policy", readable: "Iterable[bytes]" = ()) -> Named:
    """All that `policy` names, beside the files `readable`. Raises UsageError."""
    named = Named(readable)
    for path in policy.paths("read"):
        named.add_read(path, "read")
    for path in policy.paths("write"):
        named.add_write(path, "write")
    named.add_network(policy.net, policy.publish)
    for path in policy.unix:
        named.add_socket(path, "unix")
    return named


def guest_cwd(directory: "str | bytes | os.PathLike[str] | None" = None) -> bytes:
    """The absolute path of `directory`, by default else the current one.

    Raises UsageError, HostError.
    """
    if directory is None:
        try:
            return os.getcwdb()
        except OSError as error:
            raise HostError(
                f"the current directory cannot be read: {error.strerror}",
                remedy="change to another directory",
            ) from None
    try:
        path = os.path.realpath(os.fsencode(directory))
        is_directory = os.path.isdir(path)
    except (TypeError, ValueError, OSError):
        is_directory, path = False, b""
    if not is_directory:
        raise UsageError(f"cwd: {directory!r} is not a directory", remedy="name one that is there")
    return path


def guest_argv(argv: object) -> list[bytes]:
    """`argv` (a sequence of str, bytes or os.PathLike) as bytes. Raises UsageError."""
    remedy = 'pass a list with the program first: ["python3", "-c", "print(1)"]'
    if isinstance(argv, (str, bytes, bytearray, os.PathLike)):
        raise UsageError(f"argv is a single {type(argv).__name__}, not a list", remedy=remedy)
    try:
        words: list[object] = list(argv)  # type: ignore[call-overload]
    except TypeError:
        raise UsageError(f"argv is {type(argv).__name__}, not a list", remedy=remedy) from None
    if not words:
        raise UsageError("argv is empty", remedy=remedy)
    encoded: list[bytes] = []
    for position, word in enumerate(words):
        if not isinstance(word, (str, bytes, os.PathLike)):
            raise UsageError(
                f"argv[{position}] is {type(word).__name__}, not str, bytes or a path",
                remedy="convert it with str()",
            )
        data = os.fsencode(word)
        if b"\0" in data:
            raise UsageError(
                f"argv[{position}] contains a null byte", remedy="no program can be given one"
            )
        encoded.append(data)
    return encoded


def input_bytes(data: object, encoding: str = "utf-8") -> bytes | None:
    """Standard input as bytes, a str in `encoding`; None for none. Raises UsageError."""
    if isinstance(data, str):
        try:
            return data.encode(encoding)
        except (UnicodeEncodeError, LookupError) as error:
            raise UsageError(f"input cannot be encoded: {error}", remedy="pass bytes") from None
    if data is None or isinstance(data, (bytes, bytearray, memoryview)):
        return None if data is None else bytes(data)
    raise UsageError(f"input is {type(data).__name__}, not bytes or str", remedy="encode it")
