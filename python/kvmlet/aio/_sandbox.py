"""Warmed programs, their forks and pools for coroutines."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypedDict, TypeVar

from kvmlet import pool as sync_pool
from kvmlet import sandbox as sync
from kvmlet._offload import halted_by, in_loop, offload, result_of
from kvmlet.aio._box import ProgramFiles
from kvmlet.aio._connection import Connection
from kvmlet.aio._twin import Closing, Starting, Twin, short
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from kvmlet._result import Result
    from kvmlet.policy import Limits, Policy
    from kvmlet.sandbox import Told

P = ParamSpec("P")
T = TypeVar("T")


def _running(
    method: Callable[Concatenate[sync.Sandbox, P], T],
) -> Callable[Concatenate[Sandbox, P], Coroutine[Any, Any, T]]:
    """The twin of a method that runs the program; a cancellation interrupts that."""

    async def call(self: Sandbox, /, *args: P.args, **keywords: P.kwargs) -> T:
        it = self._sync
        return await halted_by(lambda: method(it, *args, **keywords), it.interrupt)

    functools.update_wrapper(call, method)
    return call


class SandboxOptions(TypedDict, total=False):
    """Keywords of `kvmlet.Sandbox`."""

    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    memory: int | str | None
    max_procs: int | None
    read: Sequence[str | os.PathLike[str]]
    write: Sequence[str | os.PathLike[str]]
    net: Sequence[str]
    publish: Sequence[str]
    unix: Sequence[str | os.PathLike[str]]
    policy: Policy | None
    limits: Limits | None
    input: bytes | str | None
    stdout: Told
    stderr: Told
    calls: str | None


class Sandbox(Starting[sync.Sandbox]):
    """A program in a VM of its own, as `kvmlet.Sandbox` has it.

    `async with kvmlet.aio.Sandbox(argv) as sandbox:`, or `await kvmlet.aio.Sandbox(argv)`.
    One coroutine at a time: another one gets SandboxBusy. Cancelling interrupts the program, which
    `reset` alone takes back. Callables for `stdout` and `stderr` are called in the event loop, and
    may be coroutines.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Sandbox(program) as sandbox:
        ...         await sandbox.until_ready(timeout=30)
        ...         return await sandbox.request(b"question", timeout=5)
        >>> asyncio.run(main())
        b'noitseuq'
    """

    def __init__(
        self, argv: Sequence[str | bytes | os.PathLike[str]], **options: Unpack[SandboxOptions]
    ) -> None:
        """Prepare a sandbox, which is made when it is entered or awaited."""
        self._prepare({"argv": argv, **options})
        self._told = {name: options.get(name) for name in ("stdout", "stderr")}

    files: ProgramFiles
    """Reads and writes files as the program, which does not run meanwhile."""

    @classmethod
    def _of(cls, sandbox: sync.Sandbox) -> Self:
        made = cls.__new__(cls)
        made._prepare(None)
        made._adopt(sandbox)
        return made

    def _adopt(self, sandbox: sync.Sandbox) -> None:
        self._sync = sandbox
        self.files = ProgramFiles(sandbox.files)

    async def _start(self) -> Self:
        if self._options is not None:
            # In the loop that it is started in, whichever it was made in.
            told = {name: in_loop(tell) for name, tell in self._told.items()}
            self._options = {**self._options, **told}
        return await super()._start()

    def _make(self, options: Mapping[str, Any]) -> None:
        self._adopt(sync.Sandbox(**options))

    async def until_ready(self, timeout: float | str | None = None) -> Self:
        """Let the program run until it asks for a message; this sandbox."""
        await _until_ready(self, timeout)
        return self

    async def until_listening(
        self, port: int | None = None, timeout: float | str | None = None
    ) -> Self:
        """Let an unmodified server run until it waits for connections; this sandbox."""
        await _until_listening(self, port, timeout)
        return self

    @property
    def port(self) -> int | None:
        """The port that the server was found to wait on, in its snapshot too; None before."""
        return self._sync.port

    async def run_for(self, duration: float | str) -> Self:
        """Let the program run for a time; this sandbox."""
        await _run_for(self, duration)
        return self

    async def connect(
        self, port: int | None = None, *, peer: tuple[str, int] | None = None
    ) -> Connection:
        """Connect to a server inside, on `port` or the one of `until_listening`.

        The program runs when something waits for it: one coroutine at a time, whatever it uses.
        """
        it = self._sync

        async def waits(call: Callable[[], T]) -> T:
            return await halted_by(call, it.interrupt)

        return Connection._of(await offload(lambda: it.connect(port, peer=peer)), waits)

    wait = _running(sync.Sandbox.wait)
    send = short(sync.Sandbox.send)
    recv = _running(sync.Sandbox.recv)
    request = _running(sync.Sandbox.request)

    async def call(
        self,
        name: str,
        *args: float | bytes | bytearray | memoryview | None,
        returns: Any = int,
        timeout: float | str | None = None,
    ) -> Any:
        """Call the program's function `name`, as `kvmlet.Sandbox.call` does."""
        it = self._sync
        work = functools.partial(it.call, name, *args, returns=returns, timeout=timeout)
        return await halted_by(work, it.interrupt)

    def interrupt(self) -> None:
        """Stop the program: what waits for it raises Interrupted. Only `reset` takes it back."""
        self._sync.interrupt()

    async def freeze(self, *, connections: Literal["refuse", "drop"] = "refuse") -> Snapshot:
        """Keep the program as it is now, to be forked any number of times; closes this sandbox."""
        it = self._sync
        return Snapshot._of(await offload(lambda: it.freeze(connections=connections)))

    reset = short(sync.Sandbox.reset)
    output = short(sync.Sandbox.output)
    stats = short(sync.Sandbox.stats)

    async def close(self) -> None:
        """Give up the VM and all it holds. May be repeated."""
        if self._options is None:
            await offload(self._sync.close)

    @property
    def closed(self) -> bool:
        """True once `close` or `freeze` was called."""
        return self._options is None and self._sync.closed

    @property
    def result(self) -> Result[bytes] | None:
        """The end of the program and its output since `output` was last called, None before."""
        return self._sync.result

    @property
    def generation(self) -> int:
        """0 in a program that was started; differs in every fork and after every reset."""
        return self._sync.generation


_until_ready = _running(sync.Sandbox.until_ready)
_until_listening = _running(sync.Sandbox.until_listening)
_run_for = _running(sync.Sandbox.run_for)


class Snapshot(Closing[sync.Snapshot]):
    """A frozen program. Made by `Sandbox.freeze`.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Sandbox(program) as sandbox:
    ...         frozen = await (await sandbox.until_ready(timeout=30)).freeze()
    ...     async with frozen, await frozen.fork() as fork:
    ...         return await fork.request(b"question")
    >>> asyncio.run(main())
    b'noitseuq'
    """

    def __init__(self) -> None:
        raise UsageError("a snapshot cannot be made directly", remedy="call Sandbox.freeze()")

    @classmethod
    def _of(cls, snapshot: sync.Snapshot) -> Self:
        made = cls.__new__(cls)
        made._sync = snapshot
        return made

    async def fork(self, *, stdout: Told = None, stderr: Told = None) -> Sandbox:
        """A sandbox in the frozen state."""
        told = {"stdout": in_loop(stdout), "stderr": in_loop(stderr)}
        return Sandbox._of(await offload(lambda: self._sync.fork(**told)))

    prepare = short(sync.Snapshot.prepare)
    stats = short(sync.Snapshot.stats)
    close = short(sync.Snapshot.close)


class Pool(Twin[sync_pool.Pool]):
    """Forks of a snapshot for many requests at once, as `kvmlet.Pool` has them.

    Cancelling a request stops its guest.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Pool(snapshot, size=2) as pool:
        ...         return await asyncio.gather(pool.request(b"ab"), pool.request(b"cd"))
        >>> asyncio.run(main())
        [b'ba', b'dc']
    """

    def __init__(
        self,
        snapshot: Snapshot | sync.Snapshot,
        size: int | None = None,
        *,
        timeout: float | str | None = None,
        queue: int | None = None,
    ) -> None:
        """Make a pool of at most `size` forks; the arguments are those of `kvmlet.Pool`."""
        frozen = snapshot._sync if isinstance(snapshot, Snapshot) else snapshot
        self._sync = sync_pool.Pool(frozen, size, timeout=timeout, queue=queue)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def request(
        self, data: bytes | bytearray | memoryview, timeout: float | str | None = None
    ) -> bytes:
        """Send `data` to a clean fork; its answer. Raises what `kvmlet.Pool.request` raises."""
        return await result_of(self._sync.request(data, timeout))

    async def run(
        self,
        fn: Callable[Concatenate[sync.Sandbox, P], T],
        /,
        *args: P.args,
        **keywords: P.kwargs,
    ) -> T:
        """Have `fn(sandbox, ...)` called with a clean fork, in a thread; what it returns.

        It gets the blocking `kvmlet.Sandbox`.
        """
        return await result_of(self._sync.submit(fn, *args, **keywords))

    warm_up = short(sync_pool.Pool.warm_up)

    def stats(self) -> sync_pool.PoolStats:
        """Counts at this moment."""
        return self._sync.stats()

    async def shutdown(self, *, cancel_futures: bool = False) -> None:
        """Take no more requests, and return when all have ended."""
        await offload(lambda: self._sync.shutdown(cancel_futures=cancel_futures))
