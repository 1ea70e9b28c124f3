"""Saved change sets: private directories of the tree that the changes are of.

A set is a directory `.kvmlet-changes-*`, mode 700. Its file `manifest` has a line for each entry.
The bytes of entry N are in a file, or a symbolic link, named N. The manifest comes last, when all
else is on the disk: without it a set is not whole, and nothing of it is ever applied. Whoever
writes or applies a set holds a lock on its directory.
"""

import contextlib

# Never later: by then the tree, which Python may look for modules in, has files of the program's.
import ctypes
import errno
import fcntl
import os
import stat as _stat

from kvmlet._changes import protected
from kvmlet._changes.entry import LINE_MAX, BadEntry, Entry, HostChanged, parse
from kvmlet._changes.host_tree import HostTree, read_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_MANIFEST = "manifest"
_UNFINISHED = "manifest.new"
_HEADER = b"kvmlet changes 1 "
# More entries than a run gives.
_ENTRIES_MAX = 250_000
# Above this many, the whole file system is written back instead of each file.
_SYNC_EACH_MAX = 64
_DROPPED = _stat.S_ISUID | _stat.S_ISGID | _stat.S_ISVTX


class Busy(Exception):
    """Another process is writing or applying the set."""


class NotSaved(Exception):
    """The set could not be saved, and nothing of it is left. The text says why."""


class Left:
    """The part of a change set that is not applied, by reason: lists of paths in the tree."""

    def __init__(self) -> None:
        self.stale: list[Entry] = []
        """Files that share bytes with the host's which are not there any more."""
        self.protected: list[bytes] = []
        """Protected names."""
        self.special: list[bytes] = []
        """Named pipes, sockets and devices."""
        self.bits: list[bytes] = []
        """Files that lost set-user-ID, set-group-ID and sticky bits."""
        self.links_out: list[bytes] = []
        """Symbolic links, which are made, that lead out of the tree."""


class SavedSet:
    """A saved change set, open and locked."""

    def __init__(self, tree: HostTree, name: bytes, fd: int) -> None:
        self.tree = tree
        self.name = name
        self.fd = fd
        self.since_ns = 0
        """When the run began: what has changed since then, the host has changed."""
        self.entries: list[Entry] = []
        self.left = Left()

    @property
    def path(self) -> bytes:
        """The absolute path of its directory."""
        return os.path.join(self.tree.path, self.name)

    # ---- writing ---------------------------------------------------------------------------

    @classmethod
    def create(cls, tree: HostTree) -> "SavedSet":
        """A new set in `tree`, empty. Raises OSError."""
        name = protected.PREFIX + os.urandom(6).hex().encode()
        os.mkdir(name, 0o700, dir_fd=tree.fd)
        saved = cls(tree, name, _open(tree, name))
        # It is nobody's to commit.
        saved._write(".gitignore", [b"*\n"])
        return saved

    def fill(
        self,
        entries: "Iterable[tuple[Entry, Iterable[tuple[int, bytes]]]]",
        named: "Iterable[bytes]" = (),
    ) -> None:
        """Save `entries` but for what is never applied, and protected names that are not `named`.

        Raises OSError, and whatever `entries` does.
        """
        kept: list[Entry] = []
        stale: set[int | None] = set()
        for entry, pieces in entries:
            if len(kept) >= _ENTRIES_MAX:
                raise BadEntry("there are too many changes")
            try:
                self._save(entry, pieces)
            except HostChanged:
                self.forget(entry)
                stale.add(entry.number)
            if entry.number in stale or entry.same_as in stale:
                stale.add(entry.number)
                self.left.stale.append(entry)
            else:
                kept.append(entry)
        self.entries = self._without_protected(kept, named)
        self._without_special()
        for entry in self.entries:
            if entry.kind in ("file", "mode") and entry.mode & _DROPPED:
                self.left.bits.append(entry.path)
            if entry.kind == "symlink" and _leads_out(entry):
                self.left.links_out.append(entry.path)
        wanted = {str(entry.number) for entry in self.entries if entry.has_data}
        for entry in kept:
            if entry.has_data and str(entry.number) not in wanted:
                self.forget(entry)

    def _save(self, entry: Entry, pieces: "Iterable[tuple[int, bytes]]") -> None:
        name = str(entry.number)
        if entry.kind == "symlink":
            os.symlink(entry.target, name, dir_fd=self.fd)
        elif entry.kind == "file" and entry.same_as is not None:
            # Without the other name's bytes there are none.
            with contextlib.suppress(FileNotFoundError):
                os.link(str(entry.same_as), name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return
        elif entry.kind == "file":
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=self.fd)
            try:
                for offset, piece in pieces:
                    _write_at(fd, piece, offset)
                os.ftruncate(fd, entry.size)
                for attribute, value in entry.attributes:
                    _set_attribute(fd, attribute, value)
                os.fchmod(fd, entry.mode & 0o777)
            finally:
                os.close(fd)
        else:
            return
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(name, ns=times, dir_fd=self.fd, follow_symlinks=False)

    def _without_protected(self, entries: list[Entry], named: "Iterable[bytes]") -> list[Entry]:
        # As file systems have them that ignore case.
        made = {entry.path.lower() for entry in entries if entry.kind not in ("removed", "special")}
        gone = {entry.path for entry in entries if entry.kind == "removed"}

        def on_host(path: bytes) -> bool:
            try:
                return self.tree.stat(path) is not None
            except OSError:
                return False

        def exists(path: bytes) -> bool:
            return path.lower() in made or (path not in gone and on_host(path))

        protection = protected.Protection(named, exists, on_host, tree=self.tree.path)
        kept = []
        for entry in entries:
            if protection.holds(
                entry.path,
                entry.kind,
                lambda most, entry=entry: self.read(entry, most),  # type: ignore[misc]
                lambda most, entry=entry: self._host(entry, most),  # type: ignore[misc]
            ):
                self.left.protected.append(entry.path)
            else:
                kept.append(entry)
        return kept

    def _without_special(self) -> None:
        def is_special(entry: Entry) -> bool:
            seen = entry.seen
            was_special = seen is not None and not _is_plain(seen.mode)
            return entry.kind == "special" or was_special

        self.left.special = [entry.path for entry in self.entries if is_special(entry)]
        self.entries = [entry for entry in self.entries if not is_special(entry)]

    def commit(self) -> None:
        """Have all of it reach the disk: it is a whole set from then on. Raises OSError."""
        self._sync()
        lines = [_HEADER + str(self.since_ns).encode() + b"\n"]
        self._write(_UNFINISHED, [*lines, *(entry.line() for entry in self.entries)])
        os.rename(_UNFINISHED, _MANIFEST, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.fsync(self.fd)
        os.fsync(self.tree.fd)

    def _sync(self) -> None:
        files = [entry for entry in self.entries if entry.kind == "file"]
        if len(files) > _SYNC_EACH_MAX:
            sync_all(self.fd)
            return
        for entry in files:
            # A file without the right to read it is opened for writing, or not at all: root's.
            for flags in (os.O_RDONLY, os.O_WRONLY):
                try:
                    fd = os.open(
                        str(entry.number), flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd
                    )
                except PermissionError:
                    continue
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
                break
            else:
                sync_all(self.fd)
                return

    def _write(self, name: str, parts: "Iterable[bytes]") -> None:
        fd = os.open(name, _NEW_FILE & ~os.O_EXCL | os.O_TRUNC, 0o600, dir_fd=self.fd)
        with os.fdopen(fd, "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    # ---- reading ---------------------------------------------------------------------------

    @classmethod
    def open(cls, tree: HostTree, name: bytes) -> "SavedSet | None":
        """The set `name` of `tree`; None if it is not whole. Raises Busy, BadEntry, OSError."""
        saved = cls(tree, name, _open(tree, name))
        try:
            try:
                fd = os.open(_MANIFEST, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=saved.fd)
            except FileNotFoundError:
                os.close(saved.fd)
                return None
            with os.fdopen(fd, "rb") as file:
                saved._parse(file)
        except BaseException:
            os.close(saved.fd)
            raise
        return saved

    def _parse(self, file: "Iterable[bytes]") -> None:
        lines = iter(_lines(file))
        header = next(lines, b"")
        if not header.startswith(_HEADER) or not header[len(_HEADER) :].strip().isdigit():
            raise BadEntry("its manifest is none that this version writes")
        self.since_ns = int(header[len(_HEADER) :][:20])
        for line in lines:
            if len(self.entries) >= _ENTRIES_MAX:
                raise BadEntry("its manifest is too long")
            self.entries.append(parse(line))
        if len({entry.path for entry in self.entries}) != len(self.entries):
            raise BadEntry("its manifest names a path twice")
        if len({entry.number for entry in self.entries}) != len(self.entries):
            raise BadEntry("its manifest uses a number twice")

    def check(self, named: "Iterable[bytes]") -> None:
        """Leave out what `fill` would have: whoever wrote the set may be a stranger."""
        self.entries = self._without_protected(self.entries, named)
        self._without_special()

    def stat(self, entry: Entry) -> os.stat_result | None:
        """The attributes of an entry's saved bytes; None if they are in place by now."""
        try:
            found = os.stat(str(entry.number), dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        kind = _stat.S_ISLNK if entry.kind == "symlink" else _stat.S_ISREG
        if not kind(found.st_mode):
            raise BadEntry(f"its file {entry.number} is of another kind")
        if found.st_mode & _DROPPED and entry.kind == "file":
            raise BadEntry(f"its file {entry.number} has bits that are never kept")
        return found

    def read(self, entry: Entry, most: int) -> bytes | None:
        """The start of an entry's saved bytes; None if there are none."""
        if entry.kind != "file":
            return None
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return read_start(os.open(str(entry.number), flags, dir_fd=self.fd), most)
        except FileNotFoundError:
            return None
        except PermissionError:
            # It cannot be looked at: longer than anything that is let through.
            return b"\0" * most

    def _host(self, entry: Entry, most: int) -> bytes | None:
        try:
            return self.tree.read(entry.path, most)
        except OSError:
            return None

    # ---- the end ---------------------------------------------------------------------------

    def forget(self, entry: Entry) -> None:
        """Remove an entry's saved bytes."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(entry.number), dir_fd=self.fd)

    def keep_only(self, entries: list[Entry]) -> None:
        """Make it a set of `entries`, of which it has the bytes. Raises OSError."""
        self.entries = entries
        self.commit()

    def remove(self) -> None:
        """Remove it. Raises OSError."""
        for name in (_MANIFEST, _UNFINISHED):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.fd)
        remove_directory(self.tree, self.name, self.fd)

    def close(self) -> None:
        """Close it, which unlocks it."""
        os.close(self.fd)


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def find(tree: HostTree) -> list[bytes]:
    """The names of the saved sets in `tree`, whole or not."""
    with os.scandir(tree.fd) as names:
        found = [
            os.fsencode(each.name)
            for each in names
            if os.fsencode(each.name).startswith(protected.PREFIX)
        ]
    return sorted(found)


def remove_unfinished(tree: HostTree, name: bytes) -> None:
    """Remove a set that is not whole. Raises Busy, OSError."""
    fd = _open(tree, name)
    try:
        remove_directory(tree, name, fd)
    finally:
        os.close(fd)


def remove_directory(tree: HostTree, name: bytes, fd: int) -> None:
    """Remove the directory `name` of `tree`, open as `fd`, with the files in it."""
    with os.scandir(fd) as names:
        files = [each.name for each in names]
    for each in files:
        os.unlink(each, dir_fd=fd)
    os.rmdir(name, dir_fd=tree.fd)


def _open(tree: HostTree, name: bytes) -> int:
    """A descriptor of the set `name`, locked. Raises Busy, BadEntry, OSError."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, dir_fd=tree.fd)
    try:
        _must_be_private(os.fstat(fd), os.fstat(tree.fd))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Busy("another process is at it") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _must_be_private(found: os.stat_result, tree: os.stat_result) -> None:
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or found.st_dev != tree.st_dev:
        raise BadEntry("it is not a private directory of yours")


def _lines(file: "Iterable[bytes]") -> "Iterator[bytes]":
    while line := file.readline(LINE_MAX):  # type: ignore[attr-defined]
        yield line


def _write_at(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        count = os.pwrite(fd, rest, offset)
        rest, offset = rest[count:], offset + count


# Programs of the host go by these: what another path shows, whose a file is. As in
# crates/hostfs/src/xattr.rs.
_OBEYED = (
    b"user.overlay.",
    b"user.fuseoverlayfs.",
    b"user.containers.",
    b"user.virtfs.",
    b"user.rsync.%",
)


def _set_attribute(fd: int, name: bytes, value: bytes) -> None:
    if name.startswith(_OBEYED):
        return
    try:
        os.setxattr(fd, name, value)
    except OSError as error:
        # A file system without them.
        if error.errno != errno.EOPNOTSUPP:
            raise


def _is_plain(mode: int) -> bool:
    return _stat.S_ISREG(mode) or _stat.S_ISDIR(mode) or _stat.S_ISLNK(mode)


def _leads_out(entry: Entry) -> bool:
    """True if a symbolic link leads out of the tree as far as its own text says."""
    if entry.target.startswith(b"/"):
        return True
    depth = entry.path.count(b"/")
    for name in entry.target.split(b"/"):
        depth += 0 if name in (b"", b".") else -1 if name == b".." else 1
        if depth < 0:
            return True
    return False


def sync_all(fd: int) -> None:
    """Have all of the file system that `fd` is on reach the disk. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number) if number else errno.errorcode[errno.EIO])
