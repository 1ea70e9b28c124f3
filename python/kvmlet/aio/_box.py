"""Boxes for coroutines."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, Any, AnyStr, Generic, Literal, TypedDict, overload

from kvmlet import box as sync
from kvmlet._box_files import Files as SyncFiles
from kvmlet._box_files import ProgramFiles as SyncProgramFiles
from kvmlet._box_watch import Watch as SyncWatch
from kvmlet._offload import in_loop, offload, until_stopped
from kvmlet._run import check_codec
from kvmlet.aio._connection import Connection, running_loop, streams
from kvmlet.aio._twin import Closing, Starting, Twin, short, stoppable
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    import os
    from asyncio import StreamReader, StreamWriter
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self, TypeAlias, Unpack

    from kvmlet._box_process import TerminalSize
    from kvmlet._box_watch import FileChange
    from kvmlet._result import Denial, Result
    from kvmlet._run import _Inherit
    from kvmlet.policy import Limits, Policy

    Word: TypeAlias = str | bytes | os.PathLike[str]
    Entries: TypeAlias = tuple[str, list[str], list[str]]

_PIECE_BYTES = 64 << 10
# A longer line is given in pieces: the program chooses its length.
_LINE_MAX = 16 << 20
_PIPE = -1


class ProgramFiles(Twin[SyncProgramFiles]):
    """The files of a sandbox, as `kvmlet.Sandbox.files` has them.

    Cancelling ends a copy between two pieces of it: what has been copied stays.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Sandbox(program) as sandbox:
    ...         await sandbox.files.write("/tmp/a", "text")
    ...         return await sandbox.files.read_text("/tmp/a")
    >>> asyncio.run(main())
    'text'
    """

    def __init__(self, files: SyncProgramFiles) -> None:
        self._sync = files

    read = stoppable(SyncProgramFiles.read)
    read_text = stoppable(SyncProgramFiles.read_text)
    write = stoppable(SyncProgramFiles.write)

    async def walk(self, path: str | bytes | os.PathLike[str] = ".") -> AsyncIterator[Entries]:
        """Each directory from `path` on, as `kvmlet.Box.files.walk` gives them."""
        entries = self._sync.walk(path)
        while (entry := await until_stopped(lambda: next(entries, None))) is not None:
            yield entry

    list = stoppable(SyncProgramFiles.list)
    stat = stoppable(SyncProgramFiles.stat)
    exists = stoppable(SyncProgramFiles.exists)
    mkdir = stoppable(SyncProgramFiles.mkdir)
    remove = stoppable(SyncProgramFiles.remove)
    rename = stoppable(SyncProgramFiles.rename)
    upload = stoppable(SyncProgramFiles.upload)
    download = stoppable(SyncProgramFiles.download)


class Files(ProgramFiles):
    """The files of a box, as `kvmlet.Box.files` has them.

    Cancelling ends a copy between two pieces of it: what has been copied stays.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Box() as box:
    ...         await box.files.write("a/b", "text", parents=True)
    ...         return await box.files.list("a"), await box.files.read_text("a/b")
    >>> asyncio.run(main())
    (['b'], 'text')
    """

    _sync: SyncFiles

    def __init__(self, files: SyncFiles) -> None:
        super().__init__(files)

    async def watch(
        self, path: str | bytes | os.PathLike[str] = ".", *, recursive: bool = False
    ) -> Watch:
        """Watch files from now on, as `kvmlet.Box.files.watch` does."""
        return Watch._of(await offload(lambda: self._sync.watch(path, recursive=recursive)))


class Watch(Closing[SyncWatch]):
    """Tells what happens to files of a box. Made by `Files.watch`.

    A cancelled wait loses nothing: the next one gets it.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Box() as box, await box.files.watch() as watch:
        ...         await box.files.mkdir("new")
        ...         async for change in watch:
        ...             return change
        >>> asyncio.run(main())
        FileChange(kind='created', path='./new')
    """

    def __init__(self) -> None:
        raise UsageError("a watch cannot be made directly", remedy="call Box.files.watch()")

    @classmethod
    def _of(cls, watch: SyncWatch) -> Self:
        made = cls.__new__(cls)
        made._sync = watch
        made._arrived = []
        return made

    # Nobody has had them: who waited for them was cancelled meanwhile.
    _arrived: list[FileChange]

    async def __aiter__(self) -> AsyncIterator[FileChange]:
        while not self.closed:
            for change in await self.read():
                yield change

    async def read(self, timeout: float | str | None = None) -> list[FileChange]:
        """The changes since the last time, as `kvmlet.box.Watch.read` gives them."""

        def wait() -> None:
            self._arrived += self._sync.read(timeout)

        if not self._arrived:
            await until_stopped(wait)
        arrived, self._arrived = self._arrived, []
        return arrived

    close = short(SyncWatch.close)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._sync.closed


class Reader(Generic[AnyStr]):
    """The output of a process. One coroutine at a time reads it.

    A cancelled read loses nothing: the next one gets it.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Box() as box:
        ...         process = await box.spawn(["seq", "3"], text=True)
        ...         return [line async for line in process.stdout]
        >>> asyncio.run(main())
        ['1\\n', '2\\n', '3\\n']
    """

    def __init__(self, stream: Any, codec: tuple[str, str] | None) -> None:
        self._raw: io.RawIOBase = stream.raw
        self._decoder: Any = None
        if codec is not None:
            decoder = codecs.getincrementaldecoder(codec[0])(codec[1])
            self._decoder = io.IncrementalNewlineDecoder(decoder, translate=True)
        self._empty: Any = b"" if codec is None else ""
        self._end: Any = b"\n" if codec is None else "\n"
        self._held: Any = self._empty
        # A piece that nobody has had: who waited for it was cancelled meanwhile.
        self._arrived: bytes | None = None
        self._is_over = False

    async def read1(self, size: int = _PIECE_BYTES) -> AnyStr:
        """All that is there, at most `size` bytes or characters. Empty at the end."""
        while not self._held and not self._is_over:
            await self._more()
        return self._taken(size)

    async def read(self, size: int = -1) -> AnyStr:
        """`size` bytes or characters, fewer at the end; all that comes if it is negative."""
        while (size < 0 or len(self._held) < size) and not self._is_over:
            await self._more()
        return self._taken(len(self._held) if size < 0 else size)

    async def readline(self) -> AnyStr:
        """The next line with its end; a piece of one that has 16 MiB. Empty at the end."""
        start = 0
        while (at := self._held.find(self._end, start)) < 0 and not self._is_over:
            start = len(self._held)
            if start >= _LINE_MAX:
                break
            await self._more()
        return self._taken(len(self._held) if at < 0 else at + 1)

    def __aiter__(self) -> AsyncIterator[AnyStr]:
        return self

    async def __anext__(self) -> AnyStr:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    async def close(self) -> None:
        """Close it; who writes gets EPIPE."""
        await offload(self._raw.close)

    def _taken(self, size: int) -> AnyStr:
        taken: AnyStr = self._held[:size]
        self._held = self._held[size:]
        return taken

    async def _more(self) -> None:
        if self._arrived is None:
            await until_stopped(self._read_piece)
        piece, self._arrived = self._arrived or b"", None
        self._is_over = not piece
        data: Any = piece
        if self._decoder is not None:
            data = self._decoder.decode(data, final=not piece)
        self._held += data

    def _read_piece(self) -> None:
        self._arrived = self._raw.read(_PIECE_BYTES)


class Writer(Generic[AnyStr]):
    """The standard input of a process.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Box() as box:
    ...         process = await box.spawn(["tr", "a-z", "A-Z"], text=True)
    ...         await process.stdin.write("hello")
    ...         await process.stdin.close()
    ...         return await process.stdout.read()
    >>> asyncio.run(main())
    'HELLO'
    """

    def __init__(self, stream: Any, codec: tuple[str, str] | None) -> None:
        self._raw: io.RawIOBase = stream
        self._codec = codec

    async def write(self, data: AnyStr) -> None:
        """Write all of it; waits until there is room. Raises BrokenPipeError.

        A cancelled write may have written a part.
        """
        content = data.encode(*self._codec) if isinstance(data, str) and self._codec else data
        await until_stopped(lambda: self._raw.write(content))  # type: ignore[arg-type]

    async def close(self) -> None:
        """Close it: the process reads the end of its input."""
        await offload(self._raw.close)


class Process(Twin[sync.Process], Generic[AnyStr]):
    """A process of a box, with the words of `asyncio.subprocess.Process`. Made by `Box.spawn`.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Box() as box:
    ...         async with await box.spawn(["echo", "hello"], text=True) as process:
    ...             line = await process.stdout.readline()
    ...         return line, process.returncode
    >>> asyncio.run(main())
    ('hello\\n', 0)
    """

    stdin: Writer[AnyStr] | None
    """Its standard input."""
    stdout: Reader[AnyStr] | None
    """Its standard output."""
    stderr: Reader[AnyStr] | None
    """Its standard error."""

    def __init__(self) -> None:
        raise UsageError("a process cannot be made directly", remedy="call Box.spawn()")

    @classmethod
    def _of(cls, process: sync.Process, codec: tuple[str, str] | None) -> Self:
        made = cls.__new__(cls)
        made._sync = process
        made.stdin = None if process.stdin is None else Writer(process.stdin, codec)
        made.stdout = None if process.stdout is None else Reader(process.stdout, codec)
        made.stderr = None if process.stderr is None else Reader(process.stderr, codec)
        return made

    def __repr__(self) -> str:
        return repr(self._sync).replace("kvmlet.", "kvmlet.aio.", 1)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes its streams and waits for it; kills it first if there is an exception."""
        await until_stopped(lambda: self._sync.__exit__(kind, error, traceback))

    @property
    def pid(self) -> int:
        """Its number in the box."""
        return self._sync.pid

    @property
    def args(self) -> list[str | bytes | os.PathLike[str]]:
        """The program and its arguments."""
        return self._sync.args

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus a signal's number; None while nobody has seen its end."""
        return self._sync.returncode

    @property
    def timed_out(self) -> bool:
        """True once the time limit of `Box.spawn` has ended it."""
        return self._sync.timed_out

    poll = short(sync.Process.poll)
    wait = stoppable(sync.Process.wait)
    send_signal = short(sync.Process.send_signal)
    terminate = short(sync.Process.terminate)
    kill = short(sync.Process.kill)
    kill_all = short(sync.Process.kill_all)
    resize = short(sync.Process.resize)


class CommandOptions(TypedDict, total=False):
    """Keywords of `kvmlet.Box.run`."""

    shell: bool
    input: bytes | str | None
    encoding: str
    errors: str
    check: bool
    timeout: float | str | None
    max_output: int | str | None
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None


class SpawnOptions(TypedDict, total=False):
    """Keywords of `kvmlet.Box.spawn`."""

    shell: bool
    stdin: int
    stdout: int
    stderr: int
    terminal: TerminalSize | None
    timeout: float | str | None
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None


class BoxOptions(TypedDict, total=False):
    """Keywords of `kvmlet.Box`."""

    memory: int | str | None
    disk: int | str | None
    max_procs: int | None
    policy: Policy | None
    limits: Limits | None
    env: Mapping[str, str] | None
    read: Sequence[str | os.PathLike[str]]
    write: Sequence[str | os.PathLike[str]]
    net: Sequence[str]
    publish: Sequence[str]
    unix: Sequence[str | os.PathLike[str]]
    calls: str | None


class Box(Starting[sync.Box]):
    """A sandbox that keeps its files and processes from one command to the next.

    `async with kvmlet.aio.Box() as box:`, or `box = await kvmlet.aio.Box()` and
    `await box.close()`. The arguments and methods are those of `kvmlet.Box`. Any number of
    coroutines may use it at once.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Box() as box:
        ...         await box.files.write("name", "you")
        ...         results = [box.run(["cat", "name"], text=True) for _ in range(3)]
        ...         return [result.stdout for result in await asyncio.gather(*results)]
        >>> asyncio.run(main())
        ['you', 'you', 'you']
    """

    files: Files
    """Reads and writes its files."""

    def __init__(self, **options: Unpack[BoxOptions]) -> None:
        """Prepare a box, which starts when it is entered or awaited."""
        self._prepare(options)

    @classmethod
    def _of(cls, box: sync.Box) -> Self:
        made = cls.__new__(cls)
        made._prepare(None)
        made._adopt(box)
        return made

    def _adopt(self, box: sync.Box) -> None:
        self._sync = box
        self.files = Files(box.files)

    def _make(self, options: Mapping[str, Any]) -> None:
        self._adopt(sync.Box(**options))

    def __repr__(self) -> str:
        state = "not started" if self._options is not None else "closed" if self.closed else "open"
        return f"<kvmlet.aio.Box ({state})>"

    @overload
    async def run(
        self,
        argv: Sequence[Word] | str,
        *,
        text: Literal[False] = False,
        stdout: Callable[[bytes], object] | _Inherit | None = None,
        stderr: Callable[[bytes], object] | _Inherit | int | None = None,
        on_denial: Callable[[Denial], object] | None = None,
        **options: Unpack[CommandOptions],
    ) -> Result[bytes]: ...
    @overload
    async def run(
        self,
        argv: Sequence[Word] | str,
        *,
        text: Literal[True],
        stdout: Callable[[str], object] | _Inherit | None = None,
        stderr: Callable[[str], object] | _Inherit | int | None = None,
        on_denial: Callable[[Denial], object] | None = None,
        **options: Unpack[CommandOptions],
    ) -> Result[str]: ...
    async def run(
        self,
        argv: Sequence[Word] | str,
        *,
        text: bool = False,
        stdout: Any = None,
        stderr: Any = None,
        on_denial: Any = None,
        **options: Any,
    ) -> Result[bytes] | Result[str]:
        """Run `argv` in the box until it ends, as `kvmlet.Box.run` does.

        Callables for `stdout`, `stderr` and `on_denial` are called in the event loop, and may be
        coroutines.
        Cancelling kills the command with everything that it has started.
        """
        told = {"stdout": stdout, "stderr": stderr, "on_denial": on_denial}
        told = {name: in_loop(tell) for name, tell in told.items()}
        run: Callable[..., Any] = self._sync.run
        return await until_stopped(lambda: run(argv, text=text, **told, **options))

    @overload
    async def spawn(
        self,
        argv: Sequence[Word] | str,
        *,
        text: Literal[False] = False,
        encoding: str = "utf-8",
        errors: str = "replace",
        **options: Unpack[SpawnOptions],
    ) -> Process[bytes]: ...
    @overload
    async def spawn(
        self,
        argv: Sequence[Word] | str,
        *,
        text: Literal[True],
        encoding: str = "utf-8",
        errors: str = "replace",
        **options: Unpack[SpawnOptions],
    ) -> Process[str]: ...
    async def spawn(
        self,
        argv: Sequence[Word] | str,
        *,
        text: bool = False,
        encoding: str = "utf-8",
        errors: str = "replace",
        **options: Any,
    ) -> Process[bytes] | Process[str]:
        """Start `argv` in the box and return at once, as `kvmlet.Box.spawn` does.

        It goes on when the coroutine is cancelled that waits for it, and ends with the box.
        """
        check_codec(encoding, errors)
        process = await offload(lambda: self._sync.spawn(argv, **options))
        if text:
            return Process[str]._of(process, (encoding, errors))
        return Process[bytes]._of(process, None)

    @property
    def processes(self) -> list[Process[bytes]]:
        """The processes that `spawn` started and that have not been seen to end."""
        return [Process[bytes]._of(process, None) for process in self._sync.processes]

    async def connect(self, port: int, *, peer: tuple[str, int] | None = None) -> Connection:
        """Connect to a server in the box, on a TCP port. No port of this machine is used.

        peer: address and port that the server is shown as the client's, ("192.0.2.1", 40000).
        """
        it = self._sync
        return Connection._of(await offload(lambda: it.connect(port, peer=peer)), until_stopped)

    async def open_connection(
        self, port: int, *, peer: tuple[str, int] | None = None
    ) -> tuple[StreamReader, StreamWriter]:
        """Connect as `connect` does, with streams as `asyncio.open_connection` has them.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Box() as box:
        ...         server = await box.spawn(["python3", "-m", "http.server", "80"])
        ...         await box.wait_listening(80, timeout=30)
        ...         reader, writer = await box.open_connection(80)
        ...         writer.write(b"GET / HTTP/1.0\\r\\n\\r\\n")
        ...         line = await reader.readline()
        ...         writer.close()
        ...         await writer.wait_closed()
        ...         return line
        >>> asyncio.run(main())
        b'HTTP/1.0 200 OK\\r\\n'
        """
        running_loop()
        it = self._sync
        return streams(await offload(lambda: it.connect(port, peer=peer)))

    wait_listening = stoppable(sync.Box.wait_listening)

    async def snapshot(self, *, connections: Literal["refuse", "drop"] = "refuse") -> BoxSnapshot:
        """Keep files, memory and processes as they are now. The box goes on."""
        it = self._sync
        return BoxSnapshot._of(await offload(lambda: it.snapshot(connections=connections)))

    async def fork(
        self, count: int = 1, *, connections: Literal["refuse", "drop"] = "refuse"
    ) -> list[Box]:
        """`count` boxes that go on as this one is now; it goes on itself."""
        it = self._sync
        boxes = await offload(lambda: it.fork(count, connections=connections))
        return [Box._of(box) for box in boxes]

    reset = short(sync.Box.reset)
    stats = short(sync.Box.stats)

    async def close(self) -> None:
        """End everything in it and give the VM up. May be repeated."""
        if self._options is None:
            await offload(self._sync.close)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._options is None and self._sync.closed


class BoxSnapshot(Closing[sync.BoxSnapshot]):
    """A box as it was, to be forked any number of times. Made by `Box.snapshot`.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Box() as box, await box.snapshot() as snapshot:
    ...         [fork] = await snapshot.fork()
    ...         async with fork:
    ...             return (await fork.run(["echo", "hello"], text=True)).stdout
    >>> asyncio.run(main())
    'hello\\n'
    """

    def __init__(self) -> None:
        raise UsageError("a snapshot cannot be made directly", remedy="call Box.snapshot()")

    @classmethod
    def _of(cls, snapshot: sync.BoxSnapshot) -> Self:
        made = cls.__new__(cls)
        made._sync = snapshot
        return made

    async def fork(self, count: int = 1) -> list[Box]:
        """`count` boxes that go on from the snapshot."""
        return [Box._of(box) for box in await offload(lambda: self._sync.fork(count))]

    close = short(sync.BoxSnapshot.close)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._sync.closed
