"""The program of a run, found as the caller's shell finds it, and the files that it needs to start.

A program outside the system's trees shows no more than its installation: the tree of a virtual
environment, of one interpreter's version, of a toolchain. It never shows a home directory as a
whole, nor the folder that a lone file happens to lie in.
"""

import os

from kvmlet import _tree

_DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"

# Enough for a script whose interpreter is a link to another script; a loop ends here.
_MAX_INTERPRETERS = 4
# As the kernel's own limit (path_resolution(7)).
_MAX_LINKS = 40
_SHEBANG_BYTES = 256

_SYSTEM = (b"/usr/", b"/bin/", b"/sbin/", b"/lib/", b"/lib64/")

# Below these directories each entry is an installation that any user may read.
_SHARED_INSTALLATIONS = (b"/opt", b"/nix/store", b"/snap", b"/home/linuxbrew")

# Tools below the caller's home directory: the programs' directory, the trees that they need, and
# the variables that tell them where those are, since the guest's HOME is another one.
_HOME_TOOLS = (
    (b".cargo/bin", (b".cargo/bin", b".rustup"), ((b"RUSTUP_HOME", b".rustup"),)),
    (b".pyenv/shims", (b".pyenv",), ((b"PYENV_ROOT", b".pyenv"),)),
    (b".pyenv/bin", (b".pyenv",), ((b"PYENV_ROOT", b".pyenv"),)),
    (b".deno/bin", (b".deno/bin",), ()),
    (b".bun/bin", (b".bun/bin",), ()),
)

# A file that marks what lies two levels above a program as one installation, and its parts.
_INSTALLATIONS = (
    (b"pyvenv.cfg", (b"",)),
    (b"conda-meta", (b"",)),
    (b"src/runtime/runtime.go", (b"",)),
    (b"lib/modules", (b"",)),
    (b"lib/rustlib", (b"",)),
    (b"lib/node_modules", (b"bin", b"lib", b"include", b"share")),
)
_PYTHON_PARTS = (b"bin", b"lib", b"include", b"share")
# Virtual environments of a project, by their usual names.
_ENVIRONMENTS = (b".venv", b"venv", b"env")

# Interpreters whose first argument that is no option names a script, and the options that take
# the script's place.
_INTERPRETERS = {
    b"python": (b"-c", b"-m"),
    b"pypy": (b"-c", b"-m"),
    b"node": (b"-e", b"-p", b"--eval", b"--print"),
    b"ruby": (b"-e",),
    b"perl": (b"-e", b"-E"),
    b"php": (b"-r",),
    b"lua": (b"-e",),
    b"Rscript": (b"-e",),
    b"sh": (b"-c",),
    b"dash": (b"-c",),
    b"bash": (b"-c",),
    b"zsh": (b"-c",),
    b"fish": (b"-c",),
    b"guile": (b"-c",),
    b"tclsh": (),
}

# A file that is named on a command line is readable, unless it lies in such a folder.
_PRIVATE_FOLDERS = frozenset(
    (b".ssh", b".gnupg", b".aws", b".azure", b".kube", b".docker", b".password-store")
)


def search_path(env: dict[bytes, bytes]) -> list[bytes]:
    """The directories that programs are looked up in: PATH in `env`, or else the caller's.

    A relative entry is left out: it would mean another program in another directory.
    """
    path = env.get(b"PATH", os.environb.get(b"PATH", b""))
    entries = [entry for entry in path.split(b":") if entry.startswith(b"/")]
    entries = entries or _DEFAULT_PATH.split(b":")
    return list(dict.fromkeys(os.path.normpath(entry) for entry in entries))


def find(word: bytes, path: list[bytes]) -> bytes | None:
    """The file that execvp(3) would run for `word`."""
    if b"/" in word:
        return word
    for directory in path:
        found = directory + b"/" + word
        if os.access(found, os.X_OK) and os.path.isfile(found):
            return found
    return None


def needs(
    argv: list[bytes], cwd: bytes, path: list[bytes], shown: bytes | None = None
) -> tuple[list[bytes], dict[bytes, bytes]]:
    """(what `argv` needs to be readable beyond the system's trees and `shown`, variables to set).

    It is started in `cwd`, whose tree is `shown` unless another one is named.

    `path` is that of `search_path`. What is not there needs nothing.
    """
    wanted = _Wanted(cwd, cwd if shown is None else shown)
    for directory in path:
        # Whatever is run may start tools by their names, as make and shells do.
        wanted.installation(directory + b"/program")
    for directory in dict.fromkeys((cwd, wanted.shown)):
        for name in _ENVIRONMENTS:
            wanted.environment(directory + b"/" + name)
    program = find(argv[0], path)
    if program is not None:
        wanted.program(program, path)
        script = _script(program, argv)
        if script is not None:
            wanted.add(script)
    return wanted.readable, wanted.variables


def is_run_by(names: tuple[bytes, ...], argv: list[bytes], cwd: bytes, path: list[bytes]) -> bool:
    """True if the program, or the interpreter that its first line names, has one of `names`."""
    program = find(argv[0], path)
    for _ in range(_MAX_INTERPRETERS):
        if program is None:
            return False
        if os.path.basename(program) in names:
            return True
        program = _interpreter(os.path.join(cwd, program), path)
    return False


def _script(program: bytes, argv: list[bytes]) -> bytes | None:
    name = os.path.basename(program).rstrip(b"0123456789.")
    instead = _INTERPRETERS.get(name)
    if instead is None:
        return None
    for word in argv[1:]:
        if word.startswith(instead) or word == b"-":
            return None
        if not word.startswith(b"-"):
            return word
    return None


class _Wanted:
    """Collects what has to be readable. Links on the way to it are visible as links."""

    def __init__(self, cwd: bytes, shown: bytes) -> None:
        self.readable: list[bytes] = []
        self.variables: dict[bytes, bytes] = {}
        self._cwd = cwd
        self.shown = shown
        self._home = _tree.home()

    def add(self, path: bytes) -> bytes:
        """Adds `path` and the links on the way to it; where it really lies.

        A home directory and what lies above it are never added, whatever leads there.
        """
        links, real = resolve(os.path.join(self._cwd, path))
        for each in (*links, real):
            private = _PRIVATE_FOLDERS.intersection(each.split(b"/")) or _tree.is_private(each)
            if self._is_hidden(each) and not private:
                self.readable.append(each)
        return real

    def environment(self, prefix: bytes) -> None:
        """Adds the Python that a virtual environment is of, and nothing else that it leads to."""
        if not _exists(prefix, b"pyvenv.cfg"):
            return
        links, real = resolve(prefix + b"/bin/python")
        base = os.path.dirname(os.path.dirname(real))
        if real.startswith(_SYSTEM) or not _has_python(base):
            return
        for link in links:
            self.add(link)
        self._parts(base, _PYTHON_PARTS)

    def program(self, path: bytes, search: list[bytes], depth: int = 0) -> None:
        """Adds a program, its installation, and its interpreter, if it is a script."""
        if depth == _MAX_INTERPRETERS or not os.path.isfile(os.path.join(self._cwd, path)):
            return
        path = os.path.join(self._cwd, path)
        real = self.add(path)
        for each in dict.fromkeys((path, real)):
            self.installation(each)
        interpreter = _interpreter(real, search)
        if interpreter is not None:
            self.program(interpreter, search, depth + 1)

    def installation(self, program: bytes) -> None:
        """Adds the tree that a program is part of, outside of the system's trees."""
        if program.startswith(_SYSTEM):
            return
        directory = os.path.dirname(os.path.normpath(program))
        for shared in _SHARED_INSTALLATIONS:
            if program.startswith(shared + b"/"):
                below = program[len(shared) + 1 :].split(b"/")[0]
                self.add(shared if shared == b"/nix/store" else shared + b"/" + below)
                return
        for programs, trees, variables in _HOME_TOOLS:
            if self._home and directory == self._home + b"/" + programs:
                for tree in trees:
                    self.add(self._home + b"/" + tree)
                for name, tree in variables:
                    self.variables[name] = os.environb.get(name, self._home + b"/" + tree)
                return
        prefix = os.path.dirname(directory)
        if _tree.is_private(prefix):
            return
        for mark, parts in _INSTALLATIONS:
            if _exists(prefix, mark):
                self._parts(prefix, parts)
                return
        if _has_python(prefix):
            self._parts(prefix, _PYTHON_PARTS)

    def _parts(self, prefix: bytes, parts: tuple[bytes, ...]) -> None:
        for part in parts:
            tree = os.path.normpath(os.path.join(prefix, part))
            if os.path.lexists(tree):
                self.add(tree)

    def _is_hidden(self, path: bytes) -> bool:
        if (path + b"/").startswith(_SYSTEM) or path in self.readable:
            return False
        return not (self.shown != b"/" and (path + b"/").startswith(self.shown + b"/"))


def _exists(prefix: bytes, name: bytes) -> bool:
    return os.path.lexists(os.path.join(prefix, name))


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _has_python(prefix: bytes) -> bool:
    if _tree.is_private(prefix):
        return False
    return any(_is_python(prefix, name) for name in _names(prefix + b"/lib"))


def _is_python(prefix: bytes, name: bytes) -> bool:
    return name.startswith((b"python3", b"pypy3")) and _exists(prefix, b"lib/" + name + b"/os.py")


def resolve(path: bytes) -> tuple[list[bytes], bytes]:
    """(the symbolic links on the way to an absolute `path`, where it really lies)."""
    links: list[bytes] = []
    real = b"/"
    names = path.split(b"/")[::-1]
    while names:
        name = names.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            real = os.path.dirname(real)
            continue
        here = os.path.join(real, name)
        try:
            target = os.readlink(here)
        except OSError:
            real = here
            continue
        links.append(here)
        if len(links) > _MAX_LINKS:
            return [], os.path.normpath(path)
        if target.startswith(b"/"):
            real = b"/"
        names += target.split(b"/")[::-1]
    return links, real


def _interpreter(program: bytes, search: list[bytes]) -> bytes | None:
    """The interpreter that a script's first line names (execve(2)); env(1) is looked through."""
    try:
        with open(program, "rb", buffering=0) as file:
            line = file.read(_SHEBANG_BYTES)
    except OSError:
        return None
    if not line.startswith(b"#!"):
        return None
    words = line[2:].split(b"\n")[0].split()
    if words and os.path.basename(words[0]) == b"env":
        rest = [word for word in words[1:] if not word.startswith(b"-") and b"=" not in word]
        return find(rest[0], search) if rest else words[0]
    return words[0] if words else None
