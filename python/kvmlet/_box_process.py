"""A process in a box, with the words of `subprocess.Popen`."""

from __future__ import annotations

import contextlib
import io
import os
import signal as signals
import threading
import time
import weakref
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from kvmlet._extension import translated
from kvmlet._stopping import stop_of_this_thread
from kvmlet._values import parse_duration
from kvmlet.errors import (
    BoxFileError,
    BoxWasReset,
    SandboxClosed,
    SandboxEnded,
    UsageError,
    from_native,
)

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from kvmlet import _native
    from kvmlet.box import Box

_PIECE_BYTES = 64 << 10
# A thread that can be stopped looks so often.
_LOOK_S = 0.05
# struct winsize has 16 bits for each side (ioctl_tty(2)).
_SIDE_MAX = 65_535


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """The size of a terminal, in characters.

    >>> with kvmlet.Box() as box:
    ...     size = kvmlet.TerminalSize(columns=100, rows=30)
    ...     with box.spawn(["stty", "size"], terminal=size, text=True) as process:
    ...         process.stdout.read()
    '30 100\\n'
    """

    columns: int = 80
    """Characters of a line: 1 to 65,535, as `rows`. Raises UsageError."""
    rows: int = 24
    """Lines."""

    def __post_init__(self) -> None:
        for name, value in (("columns", self.columns), ("rows", self.rows)):
            is_size = isinstance(value, int) and not isinstance(value, bool)
            if not is_size or not 1 <= value <= _SIDE_MAX:
                raise UsageError(
                    f"{name}: {value!r} is no size of a terminal",
                    remedy=f"pass a number from 1 to {_SIDE_MAX:,}",
                )


def checked_size(size: object) -> TerminalSize:
    """`size`, if it is one. Raises UsageError."""
    if not isinstance(size, TerminalSize):
        raise UsageError(
            f"{size!r} is no size of a terminal", remedy="pass kvmlet.TerminalSize(80, 24)"
        )
    return size


class Process:
    """A process that `Box.spawn` started. It runs while nobody waits for it.

    Its attributes are those of subprocess.Popen: `args`, `pid` (in the box), `stdin`, `stdout`,
    `stderr`, `returncode`. Output that nobody reads makes it wait once 64 KiB are in a pipe.

    One with a terminal types what is written to `stdin`, and reads what it shows from `stdout`.
    That has the echo of its keys and "\\r\\n" at the end of each line; `stderr` is None. Keys are
    characters: "\\x03" is Ctrl-C, "\\x04" the end of its input. It is hung up once both are closed.

        >>> with kvmlet.Box() as box, box.spawn(["cat"], text=True) as process:
        ...     print("hello", file=process.stdin)
        ...     process.stdout.readline(), process.poll()
        ...     process.stdin.close()
        ...     process.wait(timeout=5)
        ('hello\\n', None)
        0
    """

    args: list[str | bytes | os.PathLike[str]]
    """The program and its arguments."""
    pid: int
    """Its number in the box."""
    returncode: int | None
    """The exit status, or minus a signal's number; None while nobody has seen its end."""
    timed_out: bool
    """True once the time limit of `Box.spawn` has ended it."""
    stdin: IO[Any] | None
    """Its standard input, a writer: what is written is there at once. `close` ends it."""
    stdout: IO[Any] | None
    """Its standard output: iterable by lines, with read1 and read."""
    stderr: IO[Any] | None
    """Its standard error."""

    def __init__(self) -> None:
        raise UsageError("a process cannot be made directly", remedy="call Box.spawn()")

    @classmethod
    def _spawned(
        cls,
        vm: Callable[[], _native.Box],
        args: Sequence[str | bytes | os.PathLike[str]],
        spawned: tuple[int, int, int, list[int | None]],
        codec: tuple[str, str] | None,
        dropped: deque[tuple[int, int]],
        has_terminal: bool,
    ) -> Self:
        process = cls.__new__(cls)
        process.args = list(args)
        process.returncode = None
        process.timed_out = False
        process._vm = vm
        process._codec = codec
        process._has_terminal = has_terminal
        process._spawn = spawned
        process._epoch, process.pid, process._command, streams = spawned
        # Whoever starts a process next waits for one that is dropped.
        facts = (process._epoch, process.pid)
        process._dropping = weakref.finalize(process, dropped.append, facts)
        process._dropping.atexit = False
        process._waiting = threading.Lock()
        stdin, stdout, stderr, _ = streams
        process.stdin = process._writer(stdin)
        process.stdout = process._reader(stdout)
        process.stderr = process._reader(stderr)
        return process

    _vm: Callable[[], _native.Box]
    _codec: tuple[str, str] | None
    _has_terminal: bool
    _spawn: tuple[int, int, int, list[int | None]]
    _epoch: int
    _command: int
    _dropping: weakref.finalize[..., Process]
    # Held by the thread that waits: only one learns of the end.
    _waiting: threading.Lock

    def _kept(self) -> Kept:
        """Its facts for a snapshot."""
        _, pid, command, streams = self._spawn
        open_streams = [
            None if stream is None or stream.closed else number
            for stream, number in zip((self.stdin, self.stdout, self.stderr), streams, strict=False)
        ]
        return Kept(self.args, pid, command, [*open_streams, None], self._codec, self._has_terminal)

    def _writer(self, number: int | None) -> IO[Any] | None:
        if number is None:
            return None
        raw = _PipeWriter(self._vm, self._epoch, number)
        if self._codec is None:
            return raw  # type: ignore[return-value]
        encoding, errors = self._codec
        # The pipe takes all of each write, as a buffered writer does.
        return io.TextIOWrapper(raw, encoding, errors, newline="", write_through=True)  # type: ignore[type-var]

    def _reader(self, number: int | None) -> IO[Any] | None:
        if number is None:
            return None
        buffered = io.BufferedReader(_PipeReader(self._vm, self._epoch, number), _PIECE_BYTES)
        if self._codec is None:
            return buffered
        return io.TextIOWrapper(buffered, self._codec[0], self._codec[1])

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"returncode={self.returncode}"
        return f"<kvmlet.Process {self.pid} {self.args!r} ({state})>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes its streams and waits for it; kills it first if there is an exception."""
        if kind is not None:
            self.kill_all()
        self._close_streams()
        self.wait()

    def poll(self) -> int | None:
        """`returncode`, without waiting; None also while another thread is waiting.

        Raises BoxWasReset, SandboxClosed, SandboxEnded.
        """
        self._look(0.0)
        return self.returncode

    def wait(self, timeout: float | str | None = None) -> int:
        """Wait until it has ended; `returncode`.

        Raises DeadlineExceeded, BoxWasReset, SandboxClosed, SandboxEnded.
        """
        limit_s = None if timeout is None else parse_duration(timeout, "timeout")
        self._look(limit_s)
        if self.returncode is None:
            raise from_native("timeout", f"process {self.pid} has not ended in time")
        return self.returncode

    def send_signal(self, signal: int) -> None:
        """Send a signal to it; nothing if its end has been seen.

        Raises UsageError, BoxWasReset, SandboxClosed, SandboxEnded.
        """
        if isinstance(signal, bool) or not isinstance(signal, int) or not 1 <= signal <= 64:
            raise UsageError(f"{signal!r} is not a signal", remedy="pass one of signal.Signals")
        if self.poll() is None:
            try:
                translated(self._vm().signal, self._epoch, self.pid, int(signal))
            except BoxFileError as error:
                # Another thread has just seen its end.
                if error.message != "ESRCH":
                    raise

    def terminate(self) -> None:
        """Send SIGTERM to it."""
        self.send_signal(signals.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to it. What it has started goes on: see `kill_all`."""
        self.send_signal(signals.SIGKILL)

    def kill_all(self) -> None:
        """Kill it and everything that it has started, in whatever session.

        Raises BoxWasReset, SandboxClosed, SandboxEnded.
        """
        translated(self._vm().end_command, self._epoch, self._command)

    def resize(self, size: TerminalSize) -> None:
        """Give its terminal another size. The foreground of it gets SIGWINCH.

        Raises UsageError for one that has no terminal, or whose streams are closed; BoxWasReset,
        SandboxClosed, SandboxEnded.
        """
        checked_size(size)
        _, _, _, streams = self._spawn
        ends = zip((self.stdin, self.stdout), streams[:2], strict=True)
        for stream, number in ends if self._has_terminal else ():
            if stream is not None and number is not None and not stream.closed:
                sides = (size.columns, size.rows)
                translated(self._vm().resize, self._epoch, number, sides)
                return
        raise UsageError(
            "it has no terminal" if not self._has_terminal else "its terminal is closed",
            remedy="spawn() it with terminal=kvmlet.TerminalSize(80, 24)",
        )

    def _look(self, timeout_s: float | None) -> None:
        if self.returncode is not None:
            return
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._waiting.acquire(blocking=False):
            # In a forked process nobody gives the lock back: that is told here.
            translated(self._vm().epoch)
            if not self._acquire(end_s):
                return
        try:
            self._look_alone(None if end_s is None else max(end_s - time.monotonic(), 0.0))
        finally:
            self._waiting.release()

    def _acquire(self, end_s: float | None) -> bool:
        """Waits until nobody else does; False if the time is over."""
        stop = stop_of_this_thread()
        while True:
            left_s = threading.TIMEOUT_MAX if end_s is None else end_s - time.monotonic()
            if stop is not None:
                left_s = min(left_s, _LOOK_S)
            if self._waiting.acquire(timeout=max(left_s, 0.0)):
                return True
            if end_s is not None and time.monotonic() >= end_s:
                return False
            if stop is not None and stop.is_set():
                raise from_native("interrupted", "the wait was interrupted")

    def _look_alone(self, timeout_s: float | None) -> None:
        if self.returncode is not None:
            return
        got = translated(
            self._vm().exchange,
            self._epoch,
            read=[],
            max_bytes=0,
            write=None,
            child=self.pid,
            timeout_s=timeout_s,
            stop=stop_of_this_thread(),
        )
        if got is not None and got[2] is not None:
            status, signo = got[2]
            self.returncode = status if status is not None else -(signo or 0)
            self._dropping.detach()

    def _close_streams(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()


def ending(
    box: weakref.ref[Box], process: weakref.ref[Process], epoch: int, command: int
) -> Callable[[], None]:
    """Ends a command at its time limit, also one that nobody has any more."""

    def end() -> None:
        known, owner = process(), box()
        if known is not None and known.poll() is None:
            known.timed_out = True
        if owner is not None:
            translated(owner._vm().end_command, epoch, command)

    return end


class Kept(NamedTuple):
    """A process as a snapshot has it."""

    args: list[str | bytes | os.PathLike[str]]
    pid: int
    command: int
    streams: list[int | None]
    codec: tuple[str, str] | None
    has_terminal: bool

    def process(
        self, vm: Callable[[], _native.Box], epoch: int, dropped: deque[tuple[int, int]]
    ) -> Process:
        """The process in a box that is as the snapshot, since its reset number `epoch`."""
        spawned = (epoch, self.pid, self.command, self.streams)
        return Process._spawned(vm, self.args, spawned, self.codec, dropped, self.has_terminal)


class _Pipe(io.RawIOBase):
    """Our end of a pipe of a box."""

    def __init__(self, vm: Callable[[], _native.Box], epoch: int, number: int) -> None:
        self._vm = vm
        self._epoch = epoch
        self._number = number

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        # It may be gone with its box.
        with contextlib.suppress(BoxWasReset, SandboxClosed, SandboxEnded):
            translated(self._vm().close_stream, self._epoch, self._number)


class _PipeReader(_Pipe):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        got = translated(
            self._vm().exchange,
            self._epoch,
            read=[self._number],
            max_bytes=min(len(view), _PIECE_BYTES),
            write=None,
            child=None,
            timeout_s=None,
            stop=stop_of_this_thread(),
        )
        data = got[0][0][1] if got else b""
        view[: len(data)] = data
        return len(data)


class _PipeWriter(_Pipe):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.closed:
            raise ValueError("write to closed file")
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            got = translated(
                self._vm().exchange,
                self._epoch,
                read=[],
                max_bytes=0,
                write=(self._number, bytes(rest[:_PIECE_BYTES])),
                child=None,
                timeout_s=None,
                stop=stop_of_this_thread(),
            )
            count = got[1] if got else None
            if count == -1:
                raise BrokenPipeError(32, "nobody reads the standard input any more")
            rest = rest[count or 0 :]
        return size


__all__ = ["Kept", "Process", "TerminalSize", "checked_size", "ending"]
