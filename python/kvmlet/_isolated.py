"""Functions of this program that run in a VM.

    @kvmlet.isolated(timeout=5)
    def parse(text):
        return json.loads(text)

The VM runs this very interpreter, warmed once with what the function needs, and put back after each
call. Arguments go there as pickles; results come back as plain data (kvmlet._data), because the
host must not believe what a guest says: it never unpickles.

This module is also imported in the guest, by modules that use the decorator. What only the host
needs is imported when the first function is called.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import os
import pickle
import sys
import threading
import time
import types
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from kvmlet._values import DEFAULT_MEMORY_BYTES, parse_calls, parse_duration, parse_size
from kvmlet.errors import (
    CannotSend,
    DeadlineExceeded,
    GuestError,
    KvmletError,
    ResultError,
    SandboxEnded,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from kvmlet.pool import Pool
    from kvmlet.sandbox import Sandbox, Snapshot

__all__ = ["Isolated", "isolated"]

P = ParamSpec("P")
R = TypeVar("R")

_Key = tuple[tuple[str, ...], int, int | None, str | None]
"""What makes one warmed interpreter differ from another: modules, bytes, calls at once, `calls`."""

_WARM_UP_S = 120.0
"""Importing everything takes seconds at most, also on the slowest machine."""

_SPARE_BYTES = 8 << 20
"""What a result's objects may take beyond the memory that the function has left."""

_PLAIN = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, \
date, time, datetime, timedelta, Decimal, or dataclasses given to kvmlet.register_result"
)


class Isolated(Generic[P, R]):
    """A function that runs in a VM when called. Made by `isolated`.

    `__wrapped__` is the function itself, which runs here when called.
    """

    kvmlet_isolated = True

    def __init__(
        self,
        function: Callable[P, R],
        preload: tuple[str, ...],
        timeout_s: float | None,
        memory_bytes: int,
        size: int | None,
        calls: str | None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = (preload, timeout_s, memory_bytes, size, calls)
        self._timeout_s = timeout_s
        self._reference: tuple[str, str] | None = None
        self._key: _Key | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result; in a VM unless this is one. Raises as `isolated` says."""
        if _inside():
            return self.__wrapped__(*args, **kwargs)
        future = self.submit(*args, **kwargs)
        try:
            return future.result()
        except GuestError as error:
            # Our own frames tell nothing of what happened in the guest.
            raise error.with_traceback(None) from error.__cause__
        except BaseException:
            # Ctrl-C, say: nobody waits for the guest any more.
            future.cancel()
            raise
        finally:
            del future  # its exception has this frame in its traceback

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it without waiting: the future result. Cancelling that stops the guest."""
        warm = self._warmed()
        work = self._work(args, kwargs)
        return warm.pool()._submit(work, self._timeout_s)

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[R]:
        """The results for each item, in order, as `concurrent.futures.Executor.map` has it."""
        warm = self._warmed()
        works = (self._work(items, {}) for items in zip(*iterables, strict=False))
        return warm.pool()._map(works, self._timeout_s, timeout)

    def warm_up(self) -> None:
        """Start and warm the interpreter now instead of at the first call."""
        self._warmed().pool()

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple[object, ...]:
        return (Isolated, (self.__wrapped__, *self._options))

    def __repr__(self) -> str:
        return f"<isolated {self.__wrapped__!r}>"

    def _warmed(self) -> _Warm:
        if self._key is None:
            preload, _, memory_bytes, size, calls = self._options
            self._reference = _reference(self, self.__wrapped__)
            if self._reference is not None:
                preload = (*preload, self._reference[0])
            self._key = (tuple(dict.fromkeys(preload)), memory_bytes, size, calls)
        with _lock:
            warm = _warms.get(self._key)
            if warm is None:
                warm = _warms[self._key] = _Warm(*self._key)
            return warm

    def _work(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Sandbox], R]:
        message = self._message(args, kwargs)
        return lambda sandbox: _ask(sandbox, message)

    def _message(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        function = self.__wrapped__ if self._reference is None else self._reference
        try:
            if self._reference is not None:
                data = pickle.dumps((function, args, kwargs), 5)
                # What stands in the main program has another name in the guest.
                if b"__main__" not in data:
                    return data
            code = getattr(self.__wrapped__, "__code__", None)
            call = (function, args, kwargs, getattr(code, "co_filename", ""))
            return _cloudpickle().dumps(call, 5)  # type: ignore[no-any-return]
        except KvmletError:
            raise
        except Exception as error:
            raise CannotSend(
                f"{self.__wrapped__.__qualname__}: the call cannot be pickled: {error}",
                remedy="pass plain data, and keep locks, files and the like out of the function",
            ) from error


@overload
def isolated(function: Callable[P, R], /) -> Isolated[P, R]: ...
@overload
def isolated(
    *,
    preload: Iterable[str] = (),
    timeout: float | str | None = None,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    size: int | None = None,
    calls: str | None = None,
) -> Callable[[Callable[P, R]], Isolated[P, R]]: ...
def isolated(
    function: Callable[P, R] | None = None,
    /,
    *,
    preload: Iterable[str] = (),
    timeout: float | str | None = None,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    size: int | None = None,
    calls: str | None = None,
) -> Isolated[P, R] | Callable[[Callable[P, R]], Isolated[P, R]]:
    """Decorate a function so that each call runs in a VM of its own, with nothing left afterwards.

    The VM runs this interpreter. It may read the interpreter's files and the directories of
    `sys.path`, has no network, and sees nothing of this process but the arguments: no globals that
    were set since import, no open files. What it prints is printed here.

    preload: modules to import before the first call; the function's own module is, too.
    timeout: how long each call may run, in seconds or as "500ms", "2m"; None for no limit.
    memory: most memory it may use, in bytes or as "64m", "1g".
    size: most calls at once; by default as many as there are processors to use.
    calls: how its system calls reach kvmlet, as `run` has it.

    Arguments and, unless it can be imported by name, the function are pickled (with cloudpickle
    where pickle cannot). Results must be plain data: None, bool, int, float, complex, str, bytes,
    bytearray, list, tuple, dict, set, frozenset, date, time, datetime, timedelta, Decimal, and
    dataclasses that `register_result` knows.

    A call raises GuestError if the function did; if that was a builtin exception, then also that.
    What steers a program is GuestError alone: StopIteration, StopAsyncIteration, CancelledError,
    and whatever is no Exception, as SystemExit.
    DeadlineExceeded, SandboxEnded (it crashed, exited or ran out of memory), ResultError,
    CannotSend, MessageTooLong, and what `Sandbox` raises.
    """
    names = _module_names(preload)
    timeout_s = None if timeout is None else parse_duration(timeout, "timeout")
    memory_bytes = parse_size(memory, "memory")
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise UsageError(f"size: {size!r} is not a number of calls", remedy="pass 1 or more")

    if calls is not None:
        parse_calls(calls, "calls")

    def decorate(function: Callable[P, R]) -> Isolated[P, R]:
        if not callable(function) or isinstance(function, (type, staticmethod, classmethod)):
            raise UsageError(f"{function!r} is not a function", remedy="decorate a plain function")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise UsageError(
                f"{function.__qualname__} gives its results bit by bit",
                remedy="isolate a plain function that calls it: asyncio.run(f()), list(f())",
            )
        return Isolated(function, names, timeout_s, memory_bytes, size, calls)

    return decorate if function is None else decorate(function)


def _module_names(preload: Iterable[str]) -> tuple[str, ...]:
    if isinstance(preload, (str, bytes)):
        raise UsageError("preload is a single name, not a list", remedy=f"pass [{preload!r}]")
    names = tuple(preload)
    for name in names:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise UsageError(f"preload: {name!r} is not the name of a module")
    return names


def _reference(wrapper: object, function: Any) -> tuple[str, str] | None:
    """(module, qualified name) by which the guest finds `function`; None if it cannot."""
    module = getattr(function, "__module__", None)
    qualname = getattr(function, "__qualname__", None)
    if not module or not qualname or module == "__main__" or module not in sys.modules:
        return None
    found: Any = sys.modules[module]
    spec = getattr(found, "__spec__", None)
    if spec is None or spec.origin is None:  # made at run time: the guest has no file of it
        return None
    for name in qualname.split("."):
        found = inspect.getattr_static(found, name, None)
    return (module, qualname) if found is wrapper or found is function else None


def _cloudpickle() -> Any:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        raise CannotSend(
            "the function cannot be imported by name, and cloudpickle is not installed",
            remedy="pip install cloudpickle, or move the function into a module",
        ) from None


# ---- the warmed interpreter ----


class _Warm:
    """The pool of one warmed interpreter, made when first asked for."""

    def __init__(
        self, preload: tuple[str, ...], memory_bytes: int, size: int | None, calls: str | None
    ) -> None:
        self._preload = preload
        self._memory_bytes = memory_bytes
        self._size = size
        self._calls = calls
        self._lock = threading.Lock()
        self._pool: Pool | None = None

    def pool(self) -> Pool:
        """Its pool. Raises what keeps the interpreter from starting or a module from importing."""
        with self._lock:
            if self._pool is None:
                from kvmlet.pool import Pool

                snapshot = _warm_snapshot(self._preload, self._memory_bytes, self._calls)
                self._pool = Pool(snapshot, self._size)
            return self._pool


_lock = threading.Lock()
_warms: dict[_Key, _Warm] = {}


def _forget() -> None:
    # The parent's VMs are dead here, and a thread that is not here may have held the lock.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _warms.clear()


os.register_at_fork(after_in_child=_forget)


def _warm_snapshot(preload: tuple[str, ...], memory_bytes: int, calls: str | None) -> Snapshot:
    from kvmlet.sandbox import Sandbox

    if not sys.executable:
        raise UsageError("this program's interpreter is unknown (sys.executable is empty)")
    package = os.path.dirname(os.path.abspath(__file__))
    path = _search_path(os.path.dirname(package))
    boot = "import sys; sys.path[:] = sys.argv[1:]; from kvmlet._runner import main; main()"
    sandbox = Sandbox._with_readable(
        [sys.executable, "-I", "-B", "-c", boot, *path],
        env={},
        cwd=package,
        memory=memory_bytes,
        readable=_readable(path),
        calls=calls,
    )
    with sandbox:
        sandbox._set_deadline(time.monotonic() + _WARM_UP_S)
        _data_of(sandbox, pickle.dumps((path, preload), 5))
        return sandbox.until_ready(_WARM_UP_S).freeze()


def _search_path(package_parent: str) -> list[str]:
    """sys.path for the guest: what is there, in full, and where kvmlet itself is."""
    entries = [os.path.realpath(entry or os.curdir) for entry in sys.path if isinstance(entry, str)]
    return list(dict.fromkeys([*filter(os.path.exists, entries), os.path.realpath(package_parent)]))


def _readable(path: list[str]) -> list[bytes]:
    """The directories that the interpreter needs, without those inside of others."""
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    wanted = {os.path.realpath(entry) for entry in (*prefixes, *path)}
    kept: list[str] = []
    for entry in sorted(wanted):
        inside = kept and (entry + os.sep).startswith(kept[-1].rstrip(os.sep) + os.sep)
        if os.path.isdir(entry) and not inside:
            kept.append(entry)
    return [os.fsencode(entry) for entry in kept]


# ---- one call ----


def _inside() -> bool:
    """Whether this is the guest: what is isolated already runs where it is called."""
    return bool(getattr(sys.modules.get("kvmlet._runner"), "serving", False))


def _ask(sandbox: Sandbox, message: bytes) -> Any:
    try:
        return _data_of(sandbox, message)
    except DeadlineExceeded as error:
        error.remedy = "allow more with @isolated(timeout=...)"
        raise
    except SandboxEnded as error:
        reason = "" if error.result is None else error.result.reason
        error.remedy = "allow more with @isolated(memory=...)" if reason == "memory" else ""
        raise


def _data_of(sandbox: Sandbox, message: bytes) -> Any:
    """The value that the guest answers `message` with. Raises what it says it raised.

    Reading the answer is part of the call: it ends at the call's deadline, and what it makes counts
    against the call's memory.
    """
    try:
        answer = sandbox.request(message)
    finally:
        _print(sandbox)
    return _result(answer, sandbox._memory_left() + _SPARE_BYTES, sandbox._check)


def _print(sandbox: Sandbox) -> None:
    """What the function printed, to our own streams."""
    try:
        output = sandbox.output()
        if sandbox.result is not None:
            output = output._replace(
                stdout=output.stdout + sandbox.result.stdout,
                stderr=output.stderr + sandbox.result.stderr,
            )
    except KvmletError:
        return
    for data, stream in ((output.stdout, sys.stdout), (output.stderr, sys.stderr)):
        if data and stream is not None:
            # A closed one loses it: the result matters more.
            with contextlib.suppress(OSError, ValueError):
                stream.write(data.decode("utf-8", "backslashreplace"))


def _result(answer: bytes, memory_bytes: int, look: Callable[[], None]) -> Any:
    from kvmlet._data import DataError, TooLarge, UnknownDataclass, decode

    try:
        content = decode(answer, memory_bytes, look)
    except UnknownDataclass as error:
        raise ResultError(
            f"the result contains {error}, which is not registered here",
            remedy="decorate it with kvmlet.register_result",
        ) from None
    except TooLarge as error:
        raise ResultError(
            f"the result cannot be read: {error}",
            remedy="return less, or allow more with @isolated(memory=...)",
        ) from None
    except DataError as error:
        raise ResultError(f"the guest's answer makes no sense: {error}") from None
    match content:
        case ("ok", value):
            return value
        case ("unfit", str(why)):
            raise ResultError(f"the result is not plain data: {why}", remedy=f"return {_PLAIN}")
        case ("error", str(name), str(text), str(trace), arguments):
            raise _guest_error(name, text, trace, arguments)
    raise ResultError("the guest's answer makes no sense")


# ---- exceptions ----

_error_types: dict[str, type[GuestError]] = {}


def _guest_error(name: str, text: str, trace: str, arguments: object) -> GuestError:
    """The exception that the guest describes; what it describes wrongly is a plain GuestError."""
    cls = _error_type(name)
    if cls is GuestError:
        message = f"{name}: {text}" if text else name
        error = cls(message)
    else:
        message = text
        make = cast("Callable[..., GuestError]", cls)
        error = make(*_arguments(cls, arguments, text))
    error.message = _printable(message)
    error.remedy = ""
    error.type_name = name
    error.guest_traceback = _printable(trace)
    if trace:
        error.add_note("In the guest:\n" + error.guest_traceback.rstrip())
    return error


def _error_type(name: str) -> type[GuestError]:
    """GuestError, or for the name of a builtin exception a class that is both."""
    import builtins

    builtin = getattr(builtins, name, None) if name.isidentifier() else None
    if (
        not isinstance(builtin, type)
        or not issubclass(builtin, Exception)
        # `SystemExit` and its like end whole programs; a group has parts. These two end loops and
        # tasks of ours: only our own may.
        or issubclass(builtin, (BaseExceptionGroup, StopIteration, StopAsyncIteration))
        or builtin.__name__ != name
    ):
        return GuestError
    cls = _error_types.get(name)
    if cls is None:
        body = {"__module__": "kvmlet", "__init__": _initialiser(builtin), "__reduce__": _reduce}
        cls = _error_types.setdefault(name, type(f"Guest{name}", (GuestError, builtin), body))
    return cls


def _initialiser(builtin: type[Exception]) -> Callable[..., None]:
    # `type.__call__` makes the instance: some builtins refuse `__new__` for a class like this.
    initialise = vars(builtin)["__init__"]

    def init(self: GuestError, *args: object) -> None:
        # The builtin's own fields: errno, encoding, value. Arguments that do not fit leave them.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            initialise(self, *args)

    return init


def _reduce(error: GuestError) -> tuple[object, ...]:
    # The class has no module to be found in.
    return _again, (error.type_name, error.args, error.__dict__)


def _again(name: str, args: tuple[object, ...], state: dict[str, object]) -> GuestError:
    error = _guest_error(name, "", "", args)
    error.__dict__.update(state)
    return error


def _arguments(cls: type[GuestError], arguments: object, text: str) -> tuple[object, ...]:
    """What the exception is made with: simple values only."""
    simple = (type(None), bool, int, float, str, bytes)
    if (
        not isinstance(arguments, tuple)
        or not all(isinstance(argument, simple) for argument in arguments)
        # Its details steer how it is printed.
        or issubclass(cls, SyntaxError)
    ):
        return (text,)
    return arguments


def _printable(text: str) -> str:
    """`text` with lines and tabs, but no other control characters: it comes from the guest."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text
    )
