"""Sessions of Python for coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

from kvmlet import interpreter as sync
from kvmlet._offload import in_loop, offload, until_stopped
from kvmlet.aio._box import Box, Files
from kvmlet.aio._twin import Closing, Starting, short
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Self, Unpack

    from kvmlet._run import _Inherit
    from kvmlet.policy import Limits, Policy


class InterpreterOptions(TypedDict, total=False):
    """Keywords of `kvmlet.Interpreter`."""

    preload: Iterable[str]
    memory: int | str | None
    disk: int | str | None
    max_procs: int | None
    policy: Policy | None
    limits: Limits | None
    env: Mapping[str, str] | None
    read: Sequence[str | os.PathLike[str]]
    calls: str | None


class Interpreter(Starting[sync.Interpreter]):
    """This very interpreter in a box, as a session: names last from one cell to the next.

    `async with kvmlet.aio.Interpreter() as py:`, or `py = await kvmlet.aio.Interpreter()` and
    `await py.close()`. The arguments and methods are those of `kvmlet.Interpreter`.

        >>> import asyncio
        >>> async def main():
        ...     async with kvmlet.aio.Interpreter() as py:
        ...         await py.run("x = 40")
        ...         return (await py.run("x + 2")).value
        >>> asyncio.run(main())
        42
    """

    files: Files
    """Reads and writes its files."""
    box: Box
    """The box that it runs in, for commands beside it, as `kvmlet.Interpreter.box`."""

    def __init__(self, **options: Unpack[InterpreterOptions]) -> None:
        """Prepare a session, which starts when it is entered or awaited."""
        self._prepare(options)

    @classmethod
    def _of(cls, interpreter: sync.Interpreter) -> Self:
        made = cls.__new__(cls)
        made._prepare(None)
        made._adopt(interpreter)
        return made

    def _adopt(self, interpreter: sync.Interpreter) -> None:
        self._sync = interpreter
        self.box = Box._of(interpreter.box)
        self.files = self.box.files

    def _make(self, options: Mapping[str, Any]) -> None:
        self._adopt(sync.Interpreter(**options))

    async def run(
        self,
        source: str,
        variables: Mapping[str, object] | None = None,
        *,
        timeout: float | str | None = None,
        grace: float | str = 1.0,
        stdout: Callable[[str], object] | _Inherit | None = None,
        stderr: Callable[[str], object] | _Inherit | None = None,
        check: bool = False,
    ) -> sync.Cell:
        """Run a cell of code in the session, as `kvmlet.Interpreter.run` does.

        Callables for `stdout` and `stderr` are called in the event loop, and may be coroutines.
        Cancelling interrupts the cell, as a timeout does.
        """
        told = {"stdout": in_loop(stdout), "stderr": in_loop(stderr)}
        limits: Any = {"timeout": timeout, "grace": grace, "check": check}
        return await until_stopped(lambda: self._sync.run(source, variables, **limits, **told))

    async def interrupt(self) -> None:
        """Interrupt the cell that runs, as Ctrl-C would; else nothing."""
        await offload(self._sync.interrupt)

    async def snapshot(self) -> InterpreterSnapshot:
        """Keep names, memory and files as they are now. The session goes on."""
        return InterpreterSnapshot._of(await offload(self._sync.snapshot))

    async def fork(self, count: int = 1) -> list[Interpreter]:
        """`count` sessions that go on as this one is now; it goes on itself."""
        return [Interpreter._of(fork) for fork in await offload(lambda: self._sync.fork(count))]

    reset = short(sync.Interpreter.reset)
    stats = short(sync.Interpreter.stats)

    async def close(self) -> None:
        """End it and give the VM up. May be repeated."""
        if self._options is None:
            await offload(self._sync.close)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._options is None and self._sync.closed


class InterpreterSnapshot(Closing[sync.InterpreterSnapshot]):
    """A session as it was, to be forked any number of times. Made by `Interpreter.snapshot`.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Interpreter() as py:
    ...         await py.run("x = 1")
    ...         async with await py.snapshot() as snapshot:
    ...             [fork] = await snapshot.fork()
    ...         async with fork:
    ...             return (await fork.run("x")).value
    >>> asyncio.run(main())
    1
    """

    def __init__(self) -> None:
        raise UsageError("a snapshot cannot be made directly", remedy="call Interpreter.snapshot()")

    @classmethod
    def _of(cls, snapshot: sync.InterpreterSnapshot) -> Self:
        made = cls.__new__(cls)
        made._sync = snapshot
        return made

    async def fork(self, count: int = 1) -> list[Interpreter]:
        """`count` sessions that go on from the snapshot."""
        return [Interpreter._of(fork) for fork in await offload(lambda: self._sync.fork(count))]

    close = short(sync.InterpreterSnapshot.close)

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._sync.closed
