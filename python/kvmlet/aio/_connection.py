"""Connections to servers in a sandbox, for coroutines."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kvmlet import _connection as sync
from kvmlet._offload import offload, until_stopped
from kvmlet.aio._twin import Closing, short
from kvmlet.errors import KvmletError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable
    from typing import Self

T = TypeVar("T")

_PIECE_BYTES = 64 << 10
# As asyncio has them: a writer pauses above the first, and goes on below the second.
_PAUSE_BYTES = 64 << 10
_RESUME_BYTES = 16 << 10


class Waits(Protocol):
    """Has a thread do what waits for the server; a cancellation ends the wait."""

    def __call__(self, call: Callable[[], T], /) -> Coroutine[Any, Any, T]: ...


class Connection(Closing[sync.Connection]):
    """A connection to a server, made by `Box.connect` or `Sandbox.connect`.

    It has what `kvmlet.Connection` has, as coroutines, on asyncio and on trio. One coroutine may
    send while another one receives. A cancelled `recv` loses nothing, but interrupts
    a `Sandbox`, which goes on after a reset only; a cancelled `sendall` may have sent a part.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Box() as box:
        ...         server = await box.spawn(["python3", "-m", "http.server", "80"])
        ...         await box.wait_listening(80, timeout=30)
        ...         async with await box.connect(80) as connection:
        ...             await connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        ...             return await connection.recv(8)
        >>> asyncio.run(main())
        b'HTTP/1.0'
    """

    def __init__(self) -> None:
        raise UsageError("a connection cannot be made directly", remedy="call connect()")

    _waits: Waits
    # Nobody has had it: who waited for it was cancelled meanwhile. None while there is nothing.
    _arrived: bytes | None

    @classmethod
    def _of(cls, connection: sync.Connection, waits: Waits) -> Self:
        made = cls.__new__(cls)
        made._sync = connection
        made._waits = waits
        made._arrived = None
        return made

    def __repr__(self) -> str:
        return repr(self._sync).replace("kvmlet.", "kvmlet.aio.", 1)

    async def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send some bytes: how many, at most all. Raises as `kvmlet.Connection.send`."""
        it = self._sync
        return await self._waits(lambda: it.send(data))

    async def sendall(self, data: bytes | bytearray | memoryview) -> None:
        """Send all bytes. Raises the same."""
        it = self._sync
        await self._waits(lambda: it.sendall(data))

    async def recv(self, bufsize: int) -> bytes:
        """Receive some bytes, at most `bufsize`: b"" once the server will send no more."""

        def receive() -> None:
            self._arrived = self._sync.recv(bufsize)

        if bufsize <= 0:
            return await self._waits(lambda: self._sync.recv(bufsize))
        if self._arrived is None:
            await self._waits(receive)
        data, self._arrived = self._arrived or b"", None
        if len(data) > bufsize:
            data, self._arrived = data[:bufsize], data[bufsize:]
        return data

    shutdown = short(sync.Connection.shutdown)
    close = short(sync.Connection.close)

    def settimeout(self, value: float | str | None) -> None:
        """Let each coroutine wait so long at most: seconds, or "500ms"; None for no limit."""
        self._sync.settimeout(value)

    def gettimeout(self) -> float | None:
        """The limit in seconds."""
        return self._sync.gettimeout()

    def getpeername(self) -> tuple[str, int]:
        """The server's address inside."""
        return self._sync.getpeername()


def streams(connection: sync.Connection) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection as streams of the loop that runs."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport = _Transport(connection, protocol, loop)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def running_loop() -> asyncio.AbstractEventLoop:
    """The loop of asyncio that runs. Raises UsageError on another one."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise UsageError(
            "streams of asyncio need its loop", remedy="call connect() on trio"
        ) from None


class _Transport(asyncio.Transport):
    """A connection into a box for the protocols of asyncio: a task for each direction."""

    def __init__(
        self,
        connection: sync.Connection,
        protocol: asyncio.Protocol,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__({"peername": connection.getpeername()})
        self._connection = connection
        self._protocol: Any = protocol
        self._loop = loop
        self._held = bytearray()
        self._ends = False
        self._closing = False
        self._lost = False
        self._losing: asyncio.Task[None] | None = None
        self._is_paused = False
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._has_work = asyncio.Event()
        protocol.connection_made(self)
        self._reading = loop.create_task(self._guarded(self._read))
        self._writing = loop.create_task(self._guarded(self._write))

    # ---- what protocols call ----

    def get_protocol(self) -> asyncio.BaseProtocol:
        found: asyncio.BaseProtocol = self._protocol
        return found

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Ends it once all that was written has been sent."""
        if not self._closing:
            self._closing = True
            self._reading.cancel()
            self._has_work.set()

    def abort(self) -> None:
        self._closing = True
        self._losing = self._loop.create_task(self._lose(None))

    def is_reading(self) -> bool:
        return self._may_read.is_set() and not self._closing

    def pause_reading(self) -> None:
        self._may_read.clear()

    def resume_reading(self) -> None:
        self._may_read.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ends:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._lost:
            return
        self._held += data
        self._has_work.set()
        if len(self._held) > _PAUSE_BYTES and not self._is_paused:
            self._is_paused = True
            self._protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._ends = True
        self._has_work.set()

    def get_write_buffer_size(self) -> int:
        return len(self._held)

    # ---- the tasks ----

    async def _guarded(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except (KvmletError, OSError) as error:
            await self._lose(error)
        except Exception as error:  # noqa: BLE001
            # The protocol's own fault, as asyncio tells of it.
            told = {"message": "a protocol has failed", "exception": error, "transport": self}
            self._loop.call_exception_handler(told)
            await self._lose(error)

    async def _read(self) -> None:
        while True:
            await self._may_read.wait()
            data = await until_stopped(lambda: self._connection.recv(_PIECE_BYTES))
            if not data:
                if not self._protocol.eof_received():
                    self.close()
                return
            self._protocol.data_received(data)

    async def _write(self) -> None:
        has_ended = False
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            while self._held:
                piece = bytes(self._held[:_PIECE_BYTES])
                count = await until_stopped(lambda: self._connection.send(piece))  # noqa: B023
                del self._held[:count]
                if self._is_paused and len(self._held) <= _RESUME_BYTES:
                    self._is_paused = False
                    self._protocol.resume_writing()
            if self._ends and not has_ended:
                has_ended = True
                await offload(lambda: self._connection.shutdown(socket.SHUT_WR))
            if self._closing:
                await self._lose(None)
                return

    async def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._held.clear()
        current = asyncio.current_task()
        for task in (self._reading, self._writing):
            if task is not current:
                task.cancel()
        try:
            await offload(self._connection.close)
        except KvmletError as failed:
            error = error or failed
        finally:
            self._loop.call_soon(self._protocol.connection_lost, error)
