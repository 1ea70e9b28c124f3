"""Run an unmodified Linux program in its own KVM virtual machine, with no guest operating system.

    >>> import kvmlet
    >>> kvmlet.run(["python3", "-c", "print(6 * 7)"], timeout=5).stdout
    b'42\\n'

Names are loaded when first used: the command line imports this package on every run and needs
almost none of it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmlet import aio
    from kvmlet._changes.result import Changes, Kept
    from kvmlet._connection import Connection
    from kvmlet._isolated import Call, Isolated, isolated, register_result
    from kvmlet._result import Denial, Event, Result
    from kvmlet._run import INHERIT, run
    from kvmlet.box import Box, BoxSnapshot, Process, TerminalSize
    from kvmlet.errors import (
        BoxFileError,
        BoxFileExists,
        BoxFileNotFound,
        BoxFull,
        BoxIsADirectory,
        BoxNotADirectory,
        BoxPermissionDenied,
        BoxWasReset,
        CallLost,
        CannotSend,
        ConnectionBroken,
        ConnectionFailed,
        ConnectionRefused,
        ConnectionReset,
        ConnectionsOpen,
        DeadlineExceeded,
        ExitError,
        ForkedProcess,
        FrozenTooOften,
        GuestError,
        HostError,
        InboxFull,
        InternalError,
        Interrupted,
        KvmletError,
        KvmUnavailable,
        LaunchError,
        MessageTooLong,
        NotAFork,
        NotListening,
        NotReady,
        PoolClosed,
        PoolError,
        ProgramNotExecutable,
        ProgramNotFound,
        QueueFull,
        ResultError,
        SandboxBusy,
        SandboxClosed,
        SandboxEnded,
        SandboxError,
        ServerNotStarted,
        StaleSnapshot,
        TooFewDescriptors,
        TooFewMappings,
        UnknownSymbol,
        UsageError,
    )
    from kvmlet.gateway import AsgiApp, WsgiApp, asgi, wsgi
    from kvmlet.interpreter import Cell, CellError, Interpreter, InterpreterSnapshot
    from kvmlet.policy import Limits, Mount, Policy
    from kvmlet.pool import Pool, PoolStats
    from kvmlet.sandbox import Output, Sandbox, Snapshot
    from kvmlet.server import Server, ServerStats, serve

    __version__: str

__all__ = [
    "INHERIT",
    "AsgiApp",
    "Box",
    "BoxFileError",
    "BoxFileExists",
    "BoxFileNotFound",
    "BoxFull",
    "BoxIsADirectory",
    "BoxNotADirectory",
    "BoxPermissionDenied",
    "BoxSnapshot",
    "BoxWasReset",
    "Call",
    "CallLost",
    "CannotSend",
    "Cell",
    "CellError",
    "Changes",
    "Connection",
    "ConnectionBroken",
    "ConnectionFailed",
    "ConnectionRefused",
    "ConnectionReset",
    "ConnectionsOpen",
    "DeadlineExceeded",
    "Denial",
    "Event",
    "ExitError",
    "ForkedProcess",
    "FrozenTooOften",
    "GuestError",
    "HostError",
    "InboxFull",
    "InternalError",
    "Interpreter",
    "InterpreterSnapshot",
    "Interrupted",
    "Isolated",
    "Kept",
    "KvmUnavailable",
    "KvmletError",
    "LaunchError",
    "Limits",
    "MessageTooLong",
    "Mount",
    "NotAFork",
    "NotListening",
    "NotReady",
    "Output",
    "Policy",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolStats",
    "Process",
    "ProgramNotExecutable",
    "ProgramNotFound",
    "QueueFull",
    "Result",
    "ResultError",
    "Sandbox",
    "SandboxBusy",
    "SandboxClosed",
    "SandboxEnded",
    "SandboxError",
    "Server",
    "ServerNotStarted",
    "ServerStats",
    "Snapshot",
    "StaleSnapshot",
    "TerminalSize",
    "TooFewDescriptors",
    "TooFewMappings",
    "UnknownSymbol",
    "UsageError",
    "WsgiApp",
    "__version__",
    "aio",
    "asgi",
    "get_include",
    "isolated",
    "register_result",
    "run",
    "serve",
    "wsgi",
]

# The modules of names that are not in kvmlet.errors.
_MODULES = {
    "INHERIT": "_run",
    "AsgiApp": "gateway",
    "Box": "box",
    "BoxSnapshot": "box",
    "Call": "_isolated",
    "Cell": "interpreter",
    "CellError": "interpreter",
    "Connection": "_connection",
    "Changes": "_changes.result",
    "Denial": "_result",
    "Event": "_result",
    "Interpreter": "interpreter",
    "InterpreterSnapshot": "interpreter",
    "Isolated": "_isolated",
    "Limits": "policy",
    "Mount": "policy",
    "Kept": "_changes.result",
    "Output": "sandbox",
    "Policy": "policy",
    "Pool": "pool",
    "PoolStats": "pool",
    "Process": "box",
    "Result": "_result",
    "Sandbox": "sandbox",
    "Server": "server",
    "ServerStats": "server",
    "Snapshot": "sandbox",
    "TerminalSize": "box",
    "WsgiApp": "gateway",
    "asgi": "gateway",
    "isolated": "_isolated",
    "register_result": "_isolated",
    "run": "_run",
    "serve": "server",
    "wsgi": "gateway",
}


def get_include() -> str:
    """The absolute path of the directory of `kvmlet.h`, for C programs that take messages.

    Give it to the compiler: `cc -I"$(...)" program.c`.

        >>> import os
        >>> os.listdir(kvmlet.get_include())
        ['kvmlet.h']
    """
    import os

    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest", "include")


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("kvmlet")
    except metadata.PackageNotFoundError:  # a source tree that was never built
        return "0+unknown"


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        value = _version()
    elif name == "aio":
        value = __import__("kvmlet.aio", None, None, ["run"])
    elif name in __all__:
        module = "kvmlet." + _MODULES.get(name, "errors")
        # `__import__` with a from-list: what the `from` statement does, without `importlib`.
        value = getattr(__import__(module, None, None, [name]), name)
    else:
        raise AttributeError(f"module 'kvmlet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
