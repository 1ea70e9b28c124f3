"""The files of a box or a sandbox: bytes and whole folders, in and out."""

from __future__ import annotations

import contextlib
import errno as errnos
import io
import os
import stat as modes
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

from kvmlet import _native
from kvmlet._box_watch import Watch
from kvmlet._stopping import stop_of_this_thread
from kvmlet.errors import (
    BoxFileError,
    BoxFileExists,
    BoxFileNotFound,
    BoxIsADirectory,
    BoxNotADirectory,
    BoxPermissionDenied,
    SandboxClosed,
    SandboxEnded,
    UsageError,
    from_native,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import ParamSpec, TypeAlias

    P = ParamSpec("P")
    Names: TypeAlias = list[bytes]
    Entries: TypeAlias = tuple[str, list[str], list[str]]
    Path: TypeAlias = str | bytes | os.PathLike[str]

T = TypeVar("T")

__all__ = ["FileStat", "Files", "ProgramFiles"]

_PIECE_BYTES = 1 << 20
_READ_MAX_BYTES = 256 << 20
_DOWNLOAD_MAX_BYTES = 4 << 30
# Counted for each file or directory of a folder: the commands of a box choose how many there are.
_ENTRY_BYTES = 4096


class FileStat(NamedTuple):
    """The attributes of a file in a box.

    >>> with kvmlet.Box() as box:
    ...     box.files.write("data", bytes(10))
    ...     box.files.stat("data").size, oct(box.files.stat("data").mode)
    (10, '0o100644')
    """

    mode: int
    """Type and permissions, as in os.stat_result.st_mode."""
    size: int
    """In bytes."""
    mtime_ns: int
    """Last modification, in nanoseconds since 1970."""

    @property
    def is_dir(self) -> bool:
        """True for a directory."""
        return modes.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """True for a regular file."""
        return modes.S_ISREG(self.mode)


class ProgramFiles:
    """The files of a `Sandbox`, as its program sees them: its user, and its directory for relative
    paths.

    Each method raises BoxFileError, an OSError that names the path, where the call inside fails. It
    is also the exception that Python has for its errno: BoxFileNotFound is a FileNotFoundError,
    BoxPermissionDenied a PermissionError. SandboxClosed, SandboxBusy and SandboxEnded as all of a
    sandbox. A file that is copied is open in the program meanwhile, and counts for its limits.

        >>> with snapshot.fork() as sandbox:
        ...     sandbox.files.write("/tmp/logs/today", "text", parents=True)
        ...     sandbox.files.read("/tmp/logs/today"), sandbox.files.stat("/tmp/logs").is_dir
        (b'text', True)
    """

    def __init__(self, native: Callable[[], _native.Files]) -> None:
        self._native = native

    def read(self, path: Path, *, limit_bytes: int = _READ_MAX_BYTES) -> bytes:
        """All bytes of a regular file. A file larger than `limit_bytes` is refused.

        The commands of a box choose the size, also that of a file with holes.
        """
        most = _limit(limit_bytes)
        pieces: list[bytes] = []
        self._read(path, pieces.append, most)
        return b"".join(pieces)

    def read_text(
        self,
        path: Path,
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        limit_bytes: int = _READ_MAX_BYTES,
    ) -> str:
        """The same as text."""
        return self.read(path, limit_bytes=limit_bytes).decode(encoding, errors)

    def write(
        self, path: Path, data: bytes | str, *, encoding: str = "utf-8", parents: bool = False
    ) -> None:
        """Make `data` the content of the file, which is made if it is not there.

        parents: make the directories that it lies in as well.
        """
        if isinstance(data, str):
            data = data.encode(encoding)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise UsageError(f"data is {type(data).__name__}, not bytes or str", remedy="encode it")
        above = os.path.dirname(_bytes(path)) if parents else b""
        if above:
            self.mkdir(above, parents=True, exist_ok=True)
        rest = memoryview(data)
        self._write(path, lambda size: bytes(rest[size : size + _PIECE_BYTES]), 0o666)

    def walk(self, path: Path = ".") -> Iterator[Entries]:
        """Each directory from `path` on, with the names of directories and of others in it.

        As os.walk has it, top down: names that are taken out of the first list are not entered, nor
        are links. What is removed meanwhile is left out.
        """
        start = os.fsdecode(_bytes(path))
        left = [start]
        while left:
            directory = left.pop()
            try:
                names = sorted(os.fsdecode(name) for name in self._names(directory))
            except (BoxFileNotFound, BoxNotADirectory):
                if directory == start:
                    raise
                continue
            inner: list[str] = []
            others: list[str] = []
            for name in names:
                with contextlib.suppress(BoxFileNotFound):
                    status = self.stat(os.path.join(directory, name), follow_symlinks=False)
                    (inner if status.is_dir else others).append(name)
            yield directory, inner, others
            left += [os.path.join(directory, name) for name in reversed(inner)]

    def list(self, path: Path = ".") -> list[str]:
        """The names in a directory, sorted, without "." and ".."."""
        return sorted(os.fsdecode(name) for name in self._names(path))

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> FileStat:
        """Type, permissions, size and time of a file."""
        return FileStat(*self._ask(path, self._native().stat, _bytes(path), follow_symlinks))

    def exists(self, path: Path) -> bool:
        """True if there is a file or directory of this name."""
        try:
            self.stat(path)
        except BoxFileError as error:
            if error.errno in (errnos.ENOENT, errnos.ENOTDIR, errnos.EACCES, errnos.ELOOP):
                return False
            raise
        return True

    def mkdir(self, path: Path, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory, with `parents` also those that it lies in."""
        data = _bytes(path)
        missing: list[bytes] = []
        above = os.path.dirname(data.rstrip(b"/"))
        while parents and above and not self.exists(above):
            missing.append(above)
            above = os.path.dirname(above.rstrip(b"/"))
        for each in reversed(missing):
            self._mkdir(each, exist_ok=True)
        self._mkdir(path, exist_ok=exist_ok)

    def remove(self, path: Path, *, recursive: bool = False) -> None:
        """Remove a file or an empty directory; with `recursive` one with all that is in it."""
        # Directories come twice, the second time without entries. Commands choose the depth.
        left = [(_bytes(path), not recursive)]
        while left:
            each, is_empty = left.pop()
            if is_empty or not self.stat(each, follow_symlinks=False).is_dir:
                self._ask(each, self._native().remove, each)
                continue
            left.append((each, True))
            left += [(os.path.join(each, name), False) for name in self._names(each)]

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or directory another name; a file of that name is replaced."""
        self._ask(source, self._native().rename, _bytes(source), _bytes(target))

    def upload(self, source: Path, target: Path) -> None:
        """Copy a file or folder of this machine into the box, as `target`.

        Permissions come along. Links in a folder are followed, other things left out. Raises
        OSError for what cannot be read here.
        """
        path, inside = os.fsencode(source), _bytes(target)
        if not os.path.isdir(path):
            self._upload(path, inside)
            return
        for directory, _, names in os.walk(path):
            below = os.path.relpath(directory, path)
            into = inside if below == b"." else os.path.join(inside, below)
            self.mkdir(into, parents=True, exist_ok=True)
            for name in names:
                each = os.path.join(directory, name)
                if os.path.isfile(each):
                    self._upload(each, os.path.join(into, name))

    def download(
        self, source: Path, target: Path, *, limit_bytes: int = _DOWNLOAD_MAX_BYTES
    ) -> None:
        """Copy a file or folder of the box to this machine, as `target`, which must not be there.

        Only regular files and directories of a folder are copied: no link leads anywhere. More
        than `limit_bytes` in all are refused; each entry of a folder counts as 4,096 bytes beside
        its content. Raises OSError for what cannot be written here.
        """
        self._download(_bytes(source), os.fsencode(target), _limit(limit_bytes))

    # ---- for the package's own use ----

    def _mkdir(self, path: Path, *, exist_ok: bool) -> None:
        try:
            self._ask(path, self._native().mkdir, _bytes(path))
        except BoxFileError as error:
            # A mount point cannot be made either.
            if not (exist_ok and error.errno in (errnos.EEXIST, errnos.EROFS)):
                raise
            if not self.stat(path).is_dir:
                raise

    def _download(self, source: bytes, target: bytes, left: int) -> None:
        """Copies what is at `source`, not more than is `left` of the limit."""
        size, names = self._copy(source, target, self.stat(source), left)
        left -= size
        # Commands choose the depth.
        below = [(source, target, name) for name in names]
        while below:
            source, target, name = below.pop()
            left -= _ENTRY_BYTES
            if left < 0:
                raise _error(source, "EFBIG")
            inside, outside = os.path.join(source, name), os.path.join(target, name)
            try:
                status = self.stat(inside, follow_symlinks=False)
                if not (status.is_dir or status.is_file):
                    continue
                size, names = self._copy(inside, outside, status, left)
            except BoxFileNotFound:  # removed meanwhile
                continue
            left -= size
            below += [(inside, outside, name) for name in names]

    def _copy(self, source: bytes, target: bytes, status: FileStat, most: int) -> tuple[int, Names]:
        """Copies a file, or makes a directory: the size, and the names in it."""
        if status.is_dir:
            os.mkdir(target, 0o755)
            return 0, self._names(source)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(target, flags, 0o600 | status.mode & 0o111), "wb") as file:
            return self._read(source, file.write, most), []

    def _upload(self, source: bytes, target: bytes) -> None:
        # To open a pipe would wait for somebody who writes.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(source, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not modes.S_ISREG(status.st_mode):
                name = os.fsdecode(source)
                raise OSError(errnos.EINVAL, "it is neither a file nor a folder", name)
            mode = status.st_mode & 0o777

            def piece(at: int) -> bytes:
                file.seek(at)
                return file.read(_PIECE_BYTES)

            self._write(target, piece, mode)
        self._ask(target, self._native().chmod, target, mode)

    def _names(self, path: Path) -> Names:
        return self._ask(path, self._native().names, _bytes(path))

    def _read(self, path: Path, take: Callable[[bytes], object], most: int) -> int:
        """Reads a regular file piece by piece; the number of bytes."""
        vm = self._native()
        file = self._ask(path, vm.open, _bytes(path), os.O_RDONLY, 0)
        try:
            status = FileStat(*self._ask(path, vm.stat_file, *file))
            if not status.is_file:
                raise _error(path, "EISDIR" if status.is_dir else "EINVAL")
            size = 0
            while piece := self._ask(path, vm.read, *file, _PIECE_BYTES):
                size += len(piece)
                if size > most:
                    raise _error(path, "EFBIG")
                take(piece)
            return size
        finally:
            _close(vm, file)

    def _write(self, path: Path, piece: Callable[[int], bytes], mode: int) -> None:
        """Writes what `piece` gives for each offset, until that is nothing."""
        vm = self._native()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        file = self._ask(path, vm.open, _bytes(path), flags, mode)
        try:
            size = 0
            while data := piece(size):
                size += self._ask(path, vm.write, *file, data)
        finally:
            _close(vm, file)

    def _ask(self, path: Path, ask: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
        # Each call is short. Copies and walks are many of them, and end in between.
        _check_stop()
        try:
            return ask(*args, **keywords)
        except _native.NativeError as error:
            kind, message = error.args
        raise _error(path, message) if kind == "file" else from_native(kind, message)


class Files(ProgramFiles):
    """The files of a box, as its commands see them. Relative paths start in /work.

    Each method raises BoxFileError, an OSError that names the path, where the call in the box
    fails. It is also the exception that Python has for its errno: BoxFileNotFound is a
    FileNotFoundError, BoxPermissionDenied a PermissionError. SandboxClosed and SandboxEnded as all
    of a box.

        >>> with kvmlet.Box() as box:
        ...     box.files.write("logs/today", "text", parents=True)
        ...     box.files.read("logs/today"), box.files.stat("logs").is_dir
        (b'text', True)
    """

    def __init__(self, vm: Callable[[], _native.Box]) -> None:
        super().__init__(lambda: vm().files())
        self._vm = vm

    def open(
        self, path: Path, mode: str = "r", *, encoding: str = "utf-8", errors: str = "strict"
    ) -> IO[Any]:
        """A file to be read or written piece by piece, from its start to its end.

        mode: "r" to read, "w" to write anew, "a" to go on at its end, "x" for a new file only. With
            "b" it is one of bytes, else of text.

        It cannot seek. Its methods raise as those here do, and BoxWasReset after a reset.
        """
        flags = _OPEN_FLAGS.get(mode.replace("t", "").replace("b", "") if _is_mode(mode) else "")
        if flags is None:
            raise UsageError(f"mode: {mode!r} is none", remedy='pass "r", "rb", "w", "a" or "x"')
        raw = _BoxFile(self, path, flags)
        if flags == os.O_RDONLY:
            reader = io.BufferedReader(raw, _PIECE_BYTES)
            return reader if "b" in mode else io.TextIOWrapper(reader, encoding, errors)
        writer = io.BufferedWriter(raw, _PIECE_BYTES)
        return writer if "b" in mode else io.TextIOWrapper(writer, encoding, errors)

    def watch(self, path: Path = ".", *, recursive: bool = False) -> Watch:
        """Watch a file, or a directory with the names in it, from now on.

        recursive: in the directories below it too, those made later among them. A box has at most
            8,192 watches, one for each directory.

        As inotify(7), it is not told of what others change on this machine, nor of writes through
        mappings.
        """
        return Watch._begun(self, _bytes(path), self._vm, recursive=recursive)


class _BoxFile(io.RawIOBase):
    """An open file of a box: its bytes in order."""

    def __init__(self, files: Files, path: Path, flags: int) -> None:
        super().__init__()
        self._files = files
        self._path = path
        self._reads = flags == os.O_RDONLY
        self._file = (0, -1)  # none yet
        vm = files._native()
        self._file = files._ask(path, vm.open, _bytes(path), flags, 0o666)
        if self._reads:
            status = FileStat(*files._ask(path, vm.stat_file, *self._file))
            if not status.is_file:
                self.close()
                raise _error(path, "EISDIR" if status.is_dir else "EINVAL")

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return not self._reads

    def readinto(self, buffer: Any) -> int:
        into = memoryview(buffer).cast("B")
        most = min(len(into), _PIECE_BYTES)
        data = self._files._ask(self._path, self._files._native().read, *self._file, most)
        into[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        piece = bytes(memoryview(data).cast("B")[:_PIECE_BYTES])
        return self._files._ask(self._path, self._files._native().write, *self._file, piece)

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        # It is gone if the box is closed.
        with contextlib.suppress(SandboxClosed, SandboxEnded):
            if self._file[1] >= 0:
                _close(self._files._native(), self._file)


_OPEN_FLAGS = {
    "r": os.O_RDONLY,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
}


def _is_mode(mode: object) -> bool:
    return isinstance(mode, str) and not (set(mode) - set("rwaxbt") or {"b", "t"} <= set(mode))


def _close(vm: _native.Files, file: tuple[int, int]) -> None:
    # It is gone if the box is closed or was reset.
    with contextlib.suppress(_native.NativeError):
        vm.close(*file)


_ERRORS: dict[int, type[BoxFileError]] = {
    errnos.EACCES: BoxPermissionDenied,
    errnos.EEXIST: BoxFileExists,
    errnos.EISDIR: BoxIsADirectory,
    errnos.ENOENT: BoxFileNotFound,
    errnos.ENOTDIR: BoxNotADirectory,
    errnos.EPERM: BoxPermissionDenied,
}
_REMEDIES = {
    "EFBIG": "allow more with limit_bytes=",
    "ENOENT": "list() the directory",
    "ENOSPC": "remove files, or make the box with more memory",
    "EMFILE": "close some that are open",
    "EROFS": "write below /work or /tmp",
    "EACCES": "write below /work or /tmp, or make more readable with read=",
    "EISDIR": "name a file in it",
    "EINVAL": "name a regular file",
}


def _error(path: Path, name: str) -> BoxFileError:
    number = getattr(errnos, name, errnos.EIO)
    shown = os.fsdecode(path)
    kind = _ERRORS.get(number, BoxFileError)
    said = os.strerror(number)
    return kind(f"{shown!r}: {said}", errno=number, filename=shown, remedy=_REMEDIES.get(name, ""))


def _check_stop() -> None:
    """Raises Interrupted if another thread wants this one to stop."""
    stop = stop_of_this_thread()
    if stop is not None and stop.is_set():
        raise from_native("interrupted", "nobody waits for the files any more")


def _limit(limit_bytes: object) -> int:
    if isinstance(limit_bytes, bool) or not isinstance(limit_bytes, int) or limit_bytes < 0:
        raise UsageError(
            f"limit_bytes: {limit_bytes!r} is not a size", remedy="pass a number of bytes"
        )
    return limit_bytes


def _bytes(path: Path) -> bytes:
    try:
        data = os.fsencode(path)
    except TypeError:
        raise UsageError(
            f"a path is str, bytes or a path, not {type(path).__name__}", remedy="convert it"
        ) from None
    if not data or b"\0" in data:
        raise UsageError(f"{path!r} is not a path", remedy="name a file without null bytes")
    return data
