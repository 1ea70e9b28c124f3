"""kvmlet for coroutines: the same names and words, on asyncio, and on trio with anyio installed.

    >>> import asyncio
    >>> async def main():
    ...     async with kvmlet.aio.Box() as box:
    ...         return (await box.run(["echo", "hello"], text=True, timeout=5)).stdout
    >>> asyncio.run(main())
    'hello\\n'

Each guest runs in a thread of its own, so that nothing holds the event loop up. Cancelling a
coroutine stops the guest that it waits for, and returns when that has stopped.
"""

from kvmlet.aio._box import (
    Box,
    BoxSnapshot,
    Files,
    Process,
    ProgramFiles,
    Reader,
    Watch,
    Writer,
)
from kvmlet.aio._connection import Connection
from kvmlet.aio._interpreter import Interpreter, InterpreterSnapshot
from kvmlet.aio._run import run
from kvmlet.aio._sandbox import Pool, Sandbox, Snapshot
from kvmlet.aio._server import Server, serve

__all__ = [
    "Box",
    "BoxSnapshot",
    "Connection",
    "Files",
    "Interpreter",
    "InterpreterSnapshot",
    "Pool",
    "Process",
    "ProgramFiles",
    "Reader",
    "Sandbox",
    "Server",
    "Snapshot",
    "Watch",
    "Writer",
    "run",
    "serve",
]
