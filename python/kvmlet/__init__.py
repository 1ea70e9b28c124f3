"""Run an unmodified Linux program in its own KVM virtual machine, with no guest operating system.

    >>> import kvmlet
    >>> kvmlet.run(["python3", "-c", "print(6 * 7)"], timeout=5).stdout
    b'42\\n'

Names are loaded when first used: the command line imports this package on every run and needs
almost none of it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmlet.errors import (
        ExitError,
        HostError,
        InternalError,
        KvmletError,
        KvmUnavailable,
        LaunchError,
        ProgramNotExecutable,
        ProgramNotFound,
        UsageError,
    )
    from kvmlet.sandbox import Denial, Event, Result, run

    __version__: str

__all__ = [
    "Denial",
    "Event",
    "ExitError",
    "HostError",
    "InternalError",
    "KvmUnavailable",
    "KvmletError",
    "LaunchError",
    "ProgramNotExecutable",
    "ProgramNotFound",
    "Result",
    "UsageError",
    "__version__",
    "run",
]

_FROM_SANDBOX = ("Denial", "Event", "Result", "run")


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
    elif name in __all__:
        module = "kvmlet.sandbox" if name in _FROM_SANDBOX else "kvmlet.errors"
        # `__import__` with a from-list: what the `from` statement does, without `importlib`.
        value = getattr(__import__(module, None, None, [name]), name)
    else:
        raise AttributeError(f"module 'kvmlet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
