"""Functions of this program that run in a VM.

    @kvmlet.isolated(timeout=5)
    def parse(text):
        return json.loads(text)

The VM runs this very interpreter, warmed once with what the function needs, and put back after each
call. Arguments go there as pickles; results come back as plain data (kvmlet._isolated.codec),
because the host must not believe what a guest says: it never unpickles.

This package is also imported in the guest, by modules that use the decorator. What only the host
needs is imported when the first function is called.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, ParamSpec, TypeVar, overload

from kvmlet._isolated.call import Call
from kvmlet._isolated.function import Isolated
from kvmlet._isolated.registry import register_result
from kvmlet._values import parse_calls
from kvmlet.errors import UsageError
from kvmlet.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kvmlet.policy import Limits, Policy

__all__ = ["Call", "Isolated", "isolated", "register_result"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def isolated(function: Callable[P, R], /) -> Isolated[P, R]: ...
@overload
def isolated(
    *,
    preload: Iterable[str] = (),
    timeout: float | str | None = None,
    memory: int | str | None = None,
    read: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    size: int | None = None,
    calls: str | None = None,
) -> Callable[[Callable[P, R]], Isolated[P, R]]: ...
def isolated(
    function: Callable[P, R] | None = None,
    /,
    *,
    preload: Iterable[str] = (),
    timeout: float | str | None = None,
    memory: int | str | None = None,
    read: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    size: int | None = None,
    calls: str | None = None,
) -> Isolated[P, R] | Callable[[Callable[P, R]], Isolated[P, R]]:
    """Decorate a function so that each call runs in a VM of its own, with nothing left afterwards.

    The VM runs this interpreter. It may read the interpreter's libraries, and in other directories
    of `sys.path` the files of modules, and has no network. Of this process it sees the arguments
    alone: no globals that were set since import, no open files. What it prints is printed here.

    preload: modules to import before the first call; the function's own module is, too. A call that
        imports a large package is told of once, by a RuntimeWarning.
    timeout: how long each call may run, in seconds or as "500ms", "2m"; None for no limit.
    memory: most memory it may use, in bytes or as "64m", "1g"; 512 MiB if not given.
    read: files and directories that it may read, beside libraries and modules.
    env: variables that it has, beside PATH, HOME, TMPDIR and those of language and time zone.
    cwd: the directory that it is called in, which it may read; kvmlet's own if None.
    policy: these as one value; what is given beside it wins, or adds to it.
    limits: limits alone as one value, likewise. They win over those of `policy`.
    size: most calls at once; by default as many as there are processors to use.
    calls: how its system calls reach kvmlet, as `run` has it.

    Arguments and, unless it can be imported by name, the function are pickled (with cloudpickle
    where pickle cannot). Results must be plain data: None, bool, int, float, complex, Decimal, str,
    bytes, bytearray, date, time, datetime, timedelta, range, UUID, Path. So are list, tuple, dict,
    set, frozenset, OrderedDict and Counter of these, and arrays and scalars of numpy. So are tables
    of Arrow, frames and series of pandas, and dataclasses, enumerations and named tuples that
    `register_result` knows. A frame comes back as Arrow has it: its index has no frequency.

    Decorating raises UsageError. A call raises GuestError if the function raised; of a builtin
    type, the exception is also of that type. What steers a program is a GuestError alone:
    StopIteration, StopAsyncIteration, CancelledError, and whatever is no Exception, as SystemExit.

    A call also raises DeadlineExceeded, SandboxEnded (it crashed, exited or ran out of memory),
    ResultError, CannotSend, and what `Sandbox` raises.

        >>> import json
        >>> @kvmlet.isolated(timeout=10)
        ... def total(text):
        ...     return sum(json.loads(text))
        >>> total("[1, 2, 3]")
        6
    """
    names = module_names(preload)
    given = policy_of(policy, limits=limits, read=read, env=env, timeout=timeout, memory=memory)
    if given.limits.cpu_time is not None:
        raise UsageError(
            "cpu_time: an isolated function has no limit on CPU time", remedy="give it a timeout"
        )
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UsageError(f"size: {size!r} is not a number of calls", remedy="pass 1 or more")

    if calls is not None:
        parse_calls(calls, "calls")
    if cwd is not None and (not isinstance(cwd, (str, os.PathLike)) or "\0" in os.fspath(cwd)):
        raise UsageError(f"cwd: {cwd!r} is not a path", remedy="pass a str or a path")
    folder = None if cwd is None else os.path.abspath(cwd)

    def decorate(function: Callable[P, R]) -> Isolated[P, R]:
        if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
            raise UsageError(f"{function!r} is not a function", remedy="decorate a plain function")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise UsageError(
                f"{function.__qualname__} gives its results bit by bit",
                remedy="isolate a plain function that calls it: asyncio.run(f()), list(f())",
            )
        return Isolated(function, names, given, size, calls, folder)

    return decorate if function is None else decorate(function)


def module_names(preload: Iterable[str]) -> tuple[str, ...]:
    """The names in `preload`. Raises UsageError."""
    if isinstance(preload, (str, bytes)):
        raise UsageError("preload is a single name, not a list", remedy=f"pass [{preload!r}]")
    names = tuple(preload)
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(
                f"preload: {name!r} is not the name of a module", remedy='pass ["json"]'
            )
    return names
