"""Changes of a box's files as they happen, by inotify(7) in the box."""

from __future__ import annotations

import contextlib
import errno as errnos
import os
import struct
import time
import weakref
from typing import TYPE_CHECKING, Literal, NamedTuple

from kvmlet import _native
from kvmlet._extension import translated
from kvmlet._stopping import stop_of_this_thread
from kvmlet._values import parse_duration
from kvmlet.errors import BoxFileError, KvmletError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self, TypeAlias

    from kvmlet._box_files import Files

    Kind: TypeAlias = Literal["created", "modified", "closed", "removed", "attributes", "lost"]

# include/uapi/linux/inotify.h
_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
_Q_OVERFLOW, _IGNORED, _ISDIR = 0x4000, 0x8000, 0x4000_0000
_ONLYDIR, _DONT_FOLLOW = 0x100_0000, 0x200_0000
_MASK = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_EVENT = struct.Struct("=iIII")  # wd, mask, cookie, length of the name

_KINDS: tuple[tuple[int, Kind], ...] = (
    (_CREATE | _MOVED_TO, "created"),
    (_MODIFY, "modified"),
    (_CLOSE_WRITE, "closed"),
    (_DELETE | _MOVED_FROM | _DELETE_SELF | _MOVE_SELF, "removed"),
    (_ATTRIB, "attributes"),
)
_PIECE_BYTES = 64 << 10
# As many changes as are kept until somebody reads them (max_queued_events).
_TOLD_MAX = 16_384


class FileChange(NamedTuple):
    """Something that has happened to a file of a box.

    >>> with kvmlet.Box() as box, box.files.watch() as watch:
    ...     box.files.mkdir("new")
    ...     [change] = watch.read(timeout=5)
    ...     change.kind, change.path
    ('created', './new')
    """

    kind: Kind
    """"created" or "removed", also by a rename; "modified" for its content, "closed" once whoever
    wrote it has closed it; "attributes". "lost": more has happened than was kept; look at all."""
    path: str
    """The file's path, which begins with that of the watch; "" if changes were lost."""


class Watch:
    """Tells what happens to files of a box. Made by `Files.watch`; one thread at a time.

    Iterating waits for changes, until the watch is closed. A reset of the box ends it, with
    BoxWasReset.

        >>> with kvmlet.Box() as box, box.files.watch(recursive=True) as watch:
        ...     box.run("mkdir a; echo text > a/b", shell=True, check=True)
        ...     changes = watch.read(timeout=5)
        ...     [change.path for change in changes if change.kind == "created"]
        Result(...reason='exited', returncode=0)
        ['./a', './a/b']
    """

    def __init__(self) -> None:
        raise UsageError("a watch cannot be made directly", remedy="call Box.files.watch()")

    _files: Files
    _file: tuple[int, int]
    _recursive: bool
    _paths: dict[int, bytes]
    # Files that a `read` may still tell of that it finds in new directories.
    _left: int
    _closing: weakref.finalize[..., Watch]

    @classmethod
    def _begun(
        cls, files: Files, path: bytes, vm: Callable[[], _native.Box], *, recursive: bool
    ) -> Self:
        watch = cls.__new__(cls)
        watch._files = files
        watch._file = translated(vm().files().open_watch)
        watch._closing = weakref.finalize(watch, _close, vm, watch._file)
        watch._closing.atexit = False
        watch._recursive = recursive
        watch._paths = {}
        watch._left = _TOLD_MAX
        own = _DELETE_SELF | _MOVE_SELF
        try:
            watch._add(path, own)
        except BaseException:
            watch.close()
            raise
        return watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, timeout: float | str | None = None) -> list[FileChange]:
        """The changes since the last time; waits for one if there is none yet.

        timeout: how long it waits, in seconds or as "500ms"; then the list is empty. None for no
            limit.

        Raises UsageError once it is closed, BoxWasReset, SandboxClosed, SandboxEnded.
        """
        limit_s = None if timeout is None else parse_duration(timeout, "timeout")
        end_s = None if limit_s is None else time.monotonic() + limit_s
        while True:
            left_s = None if end_s is None else max(end_s - time.monotonic(), 0.0)
            data = self._events(left_s)
            # Commands choose how many there are, and how often they are moved.
            self._left = _TOLD_MAX
            changes = [] if data is None else list(self._changes(data))
            # Some events are of no change, as the end of a watch.
            if changes or data is None:
                return changes

    def __iter__(self) -> Iterator[FileChange]:
        while not self.closed:
            try:
                changes = self.read()
            except UsageError:
                return
            yield from changes

    def close(self) -> None:
        """End it. May be repeated."""
        self._closing()

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return not self._closing.alive

    def _events(self, timeout_s: float | None) -> bytes | None:
        if self.closed:
            raise UsageError("the watch is closed", remedy="call watch() again")
        epoch, number = self._file
        try:
            got = translated(
                self._files._vm().exchange,
                epoch,
                read=[number],
                max_bytes=_PIECE_BYTES,
                write=None,
                child=None,
                timeout_s=timeout_s,
                stop=stop_of_this_thread(),
            )
        except BoxFileError:
            if not self.closed:
                raise
            raise UsageError("the watch is closed", remedy="call watch() again") from None
        return None if got is None else got[0][0][1]

    def _changes(self, data: bytes) -> Iterator[FileChange]:
        at = 0
        while at + _EVENT.size <= len(data):
            number, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + length].rstrip(b"\0")
            at += length
            if mask & _Q_OVERFLOW:
                yield FileChange("lost", "")
            elif mask & _IGNORED:
                self._paths.pop(number, None)
            elif (path := self._paths.get(number)) is not None:
                yield from self._change(os.path.join(path, name) if name else path, mask)

    def _change(self, path: bytes, mask: int) -> Iterator[FileChange]:
        for bits, kind in _KINDS:
            if mask & bits:
                yield FileChange(kind, os.fsdecode(path))
        if not (self._recursive and mask & _ISDIR):
            return
        if mask & _MOVED_FROM:
            self._forget(path)
        elif mask & (_CREATE | _MOVED_TO):
            yield from self._entered(path)

    def _entered(self, path: bytes) -> Iterator[FileChange]:
        """Watches a directory that is new here, and tells of what is in it already."""
        left = [path]
        # Once too much has happened, that was said.
        while left and self._left >= 0:
            each = left.pop()
            try:
                entries = self._add_one(each, _ONLYDIR | _DONT_FOLLOW)
                self._left -= len(entries)
            except BoxFileError as error:
                if _is_full(error):
                    yield FileChange("lost", "")
                    return
                continue  # gone again
            if self._left < 0:
                yield FileChange("lost", "")
                return
            for name, is_directory in sorted(entries):
                inside = os.path.join(each, name)
                yield FileChange("created", os.fsdecode(inside))
                if is_directory:
                    left.append(inside)

    def _add(self, path: bytes, more: int) -> None:
        """Watches a path, and all directories below it if it is recursive."""
        left = [(path, more)]
        while left:
            each, flags = left.pop()
            try:
                entries = self._add_one(each, flags)
            except BoxFileError as error:
                if _is_full(error):
                    error.remedy = "watch fewer directories, or give the box more memory"
                if each == path or _is_full(error):
                    raise
                continue  # removed meanwhile, or not to be read
            if self._recursive:
                below = (os.path.join(each, name) for name, is_directory in entries if is_directory)
                left += [(inside, _ONLYDIR | _DONT_FOLLOW) for inside in below]

    def _add_one(self, path: bytes, flags: int) -> list[tuple[bytes, bool]]:
        files = self._files
        number, entries = files._ask(
            path, files._native().add_watch, *self._file, path, _MASK | flags
        )
        self._paths[number] = path
        return entries

    def _forget(self, path: bytes) -> None:
        """A directory has gone elsewhere: what is in it has another path."""
        below = path + b"/"
        for number, known in list(self._paths.items()):
            if known == path or known.startswith(below):
                del self._paths[number]
                with contextlib.suppress(_native.NativeError):
                    self._files._native().remove_watch(*self._file, number)


def _is_full(error: BoxFileError) -> bool:
    """No more watches, or no memory for one."""
    return error.errno in (errnos.ENOSPC, errnos.ENOMEM)


def _close(vm: Callable[[], _native.Box], file: tuple[int, int]) -> None:
    # It may be gone with its box.
    with contextlib.suppress(_native.NativeError, KvmletError):
        vm().close_stream(*file)


__all__ = ["FileChange", "Watch"]
