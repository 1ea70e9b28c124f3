"""A TCP connection to a server in a sandbox, with the words of `socket.socket`."""

from __future__ import annotations

import contextlib
import errno as errnos
import io
import os
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from kvmlet._values import parse_duration
from kvmlet.errors import (
    ConnectionBroken,
    ConnectionFailed,
    ConnectionRefused,
    ConnectionReset,
    DeadlineExceeded,
    KvmletError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import ParamSpec, Self, TypeAlias

    from kvmlet import _native

    P = ParamSpec("P")
    Data: TypeAlias = bytes | bytearray | memoryview

T = TypeVar("T")

_PIECE_BYTES = 256 << 10

_KINDS: dict[str, type[ConnectionFailed]] = {
    "ECONNREFUSED": ConnectionRefused,
    "ECONNRESET": ConnectionReset,
    "EPIPE": ConnectionBroken,
}
_REMEDIES = {
    "ECONNREFUSED": "run the program until it listens on that port",
    "EBADF": "connect() again: its sandbox has been reset since",
    "ENOMEM": "give the program more memory",
}


class Ends(Protocol):
    """The sandbox or box that a connection leads into."""

    def send_to(
        self, connection: _native.Connection, data: bytes, timeout_s: float | None
    ) -> int: ...
    def receive_from(
        self, connection: _native.Connection, max_bytes: int, timeout_s: float | None
    ) -> bytes: ...
    def shut_down(self, connection: _native.Connection, how: int) -> None: ...
    def hang_up(self, connection: _native.Connection) -> None: ...


class Connection:
    """A connection to a server, made by `Sandbox.connect` or `Box.connect`.

    Its methods are those of `socket.socket`, so that `http.client` and others can use it. There is
    no descriptor: `select` and `ssl` cannot. The program of a Sandbox runs while a method waits.

        >>> with kvmlet.Box() as box:
        ...     server = box.spawn(["python3", "-m", "http.server", "80"])
        ...     box.wait_listening(80, timeout=30)
        ...     with box.connect(80) as connection:
        ...         connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        ...         connection.recv(8)
        b'HTTP/1.0'
    """

    def __init__(self) -> None:
        raise UsageError("a connection cannot be made directly", remedy="call connect()")

    _ends: Ends
    _end: _native.Connection
    _address: tuple[str, int]
    _timeout_s: float | None
    _closed: bool
    # Files of `makefile` that are open: the last one closes a connection that is to be closed.
    _files: int

    @classmethod
    def _opened(cls, ends: Ends, end: _native.Connection, port: int) -> Self:
        connection = cls.__new__(cls)
        connection._ends = ends
        connection._end = end
        connection._address = ("127.0.0.1", port)
        connection._timeout_s = None
        connection._closed = False
        connection._files = 0
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<kvmlet.Connection to port {self._address[1]} ({state})>"

    def __del__(self) -> None:
        # One whose sandbox is being used stays open until that is reset or closed.
        is_open = not getattr(self, "_closed", True)
        if is_open or getattr(self, "_files", None):
            with contextlib.suppress(KvmletError):
                self._ends.hang_up(self._end)

    def send(self, data: Data, flags: int = 0) -> int:
        """Send some bytes: how many, at most all.

        Raises ConnectionFailed, DeadlineExceeded, NotReady, SandboxEnded, SandboxClosed,
        SandboxBusy, Interrupted.
        """
        piece = memoryview(data).cast("B")[:_PIECE_BYTES]
        return self._wait(flags, self._ends.send_to, self._end, bytes(piece))

    def sendall(self, data: Data, flags: int = 0) -> None:
        """Send all bytes. Raises the same."""
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[self.send(rest, flags) :]

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Receive some bytes, at most `bufsize`: b"" once the server will send no more.

        Raises the same.
        """
        if isinstance(bufsize, bool) or not isinstance(bufsize, int) or bufsize < 0:
            raise UsageError(
                f"bufsize: {bufsize!r} is not a number of bytes", remedy="pass 1 or more"
            )
        if bufsize == 0:
            return b""
        return self._wait(flags, self._ends.receive_from, self._end, bufsize)

    def recv_into(self, buffer: bytearray | memoryview, nbytes: int = 0, flags: int = 0) -> int:
        """Receive bytes into a buffer: how many. Raises the same."""
        into = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(into), flags)
        into[: len(data)] = data
        return len(data)

    def shutdown(self, how: int) -> None:
        """Say that no more will be sent (socket.SHUT_WR), or received (SHUT_RD), or both.

        Raises ConnectionFailed, SandboxClosed, SandboxBusy.
        """
        if how not in (0, 1, 2):
            raise UsageError(f"how: {how!r} is not a direction", remedy="pass socket.SHUT_WR")
        self._check()
        _named(self._ends.shut_down, self._end, how)

    def close(self) -> None:
        """End the connection, once the files of `makefile` are closed too. May be repeated.

        The server learns of it when it runs next. Raises SandboxBusy.
        """
        if not self._closed:
            self._closed = True
            self._hang_up()

    def settimeout(self, value: float | str | None) -> None:
        """Let each method wait so long at most: seconds, or "500ms"; None for no limit.

        0 makes each raise BlockingIOError instead of waiting.
        """
        self._timeout_s = (
            0.0 if value == 0 else None if value is None else parse_duration(value, "timeout")
        )

    def gettimeout(self) -> float | None:
        """The limit in seconds."""
        return self._timeout_s

    def setsockopt(self, *_: object) -> None:
        """Nothing: for clients that set TCP_NODELAY, which there is no need for."""

    def getpeername(self) -> tuple[str, int]:
        """The server's address inside."""
        return self._address

    def makefile(
        self,
        mode: str = "r",
        buffering: int | None = None,
        *,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A file over the connection, as that of `socket.socket`."""
        if not set(mode) <= set("rwb"):
            raise UsageError(f"mode: {mode!r} is not made of r, w and b", remedy='pass "rb"')
        self._check()
        reads, writes = "r" in mode or "w" not in mode, "w" in mode
        raw = _Raw(self, reads, writes)
        self._files += 1
        size = io.DEFAULT_BUFFER_SIZE if buffering is None or buffering < 0 else buffering
        if size == 0:
            if "b" not in mode:
                raise UsageError("text needs a buffer", remedy="leave buffering out")
            return raw  # type: ignore[return-value]
        buffered: io.BufferedRWPair | io.BufferedReader | io.BufferedWriter
        if reads and writes:
            buffered = io.BufferedRWPair(raw, raw, size)
        elif reads:
            buffered = io.BufferedReader(raw, size)
        else:
            buffered = io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffered  # type: ignore[return-value]
        return io.TextIOWrapper(buffered, encoding, errors, newline)  # type: ignore[type-var]

    # ---- for the package's own use ----

    def _check(self) -> None:
        if self._closed:
            raise _failed("EBADF", "the connection is closed")

    def _wait(self, flags: int, ask: Callable[..., T], *args: object) -> T:
        if flags:
            raise UsageError("flags are not supported here", remedy="leave them out")
        # A closed one lives on in its files.
        if self._files == 0:
            self._check()
        try:
            return _named(ask, *args, self._timeout_s)
        except DeadlineExceeded:
            if self._timeout_s == 0:
                raise BlockingIOError(errnos.EAGAIN, os.strerror(errnos.EAGAIN)) from None
            raise

    def _file_closed(self) -> None:
        self._files -= 1
        self._hang_up()

    def _hang_up(self) -> None:
        if self._closed and self._files == 0:
            self._ends.hang_up(self._end)


class _Raw(io.RawIOBase):
    """The bytes of a connection as a file."""

    def __init__(self, connection: Connection, reads: bool, writes: bool) -> None:
        super().__init__()
        self._connection = connection
        self._reads = reads
        self._writes = writes

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return self._writes

    def readinto(self, buffer: Any) -> int | None:
        try:
            return self._connection.recv_into(buffer)
        except BlockingIOError:
            return None

    def write(self, data: Any) -> int | None:
        try:
            return self._connection.send(data)
        except BlockingIOError:
            return None

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._connection._file_closed()


def _named(ask: Callable[..., T], *args: Any) -> T:
    """`ask(...)` with each error of a connection as the exception that sockets raise."""
    try:
        return ask(*args)
    except ConnectionFailed as error:
        name = error.message
    raise _failed(name, "")


def _failed(name: str, message: str) -> ConnectionFailed:
    number = getattr(errnos, name, errnos.EIO)
    kind = _KINDS.get(name, ConnectionFailed)
    said = message or os.strerror(number)
    return kind(said, errno=number, remedy=_REMEDIES.get(name, ""))


def connected(
    ends: Ends,
    connect: Callable[[int, tuple[str, int] | None], _native.Connection],
    port: int,
    peer: tuple[str, int] | None,
) -> Connection:
    """A connection that `connect` opens at a port that was checked.

    Raises UsageError, ConnectionRefused, ConnectionFailed.
    """
    if peer is not None:
        try:
            host, number = peer
        except (TypeError, ValueError):
            host, number = None, 0
        if not isinstance(host, str):
            raise UsageError(f"peer: {peer!r} is no address", remedy='pass ("192.0.2.1", 40000)')
        peer = (host, port_number(number, "peer"))
    return Connection._opened(ends, _named(connect, port, peer), port)


def port_number(port: object, name: str) -> int:
    """A TCP port. Raises UsageError."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 1 << 16:
        raise UsageError(f"{name}: {port!r} is not a port", remedy="pass a number from 1 to 65535")
    return port
