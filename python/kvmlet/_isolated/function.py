"""A function that runs in a VM: how a call of it becomes a message."""

from __future__ import annotations

import functools
import importlib
import inspect
import io
import pickle
import sys
import types
import warnings
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from kvmlet._isolated.call import Call, ask, ask_in_full
from kvmlet._isolated.interpreter import Key, Warm, inside_guest, warm_for
from kvmlet._isolated.request import Aside, packed
from kvmlet.errors import CannotSend, GuestError, KvmletError, PoolClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from kvmlet._isolated.pieces import Part
    from kvmlet.policy import Policy
    from kvmlet.sandbox import Sandbox

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Isolated(Generic[P, R]):
    """A function that runs in a VM when called. Made by `isolated`.

    `__wrapped__` is the function itself, which runs here when called.

        >>> double = kvmlet.isolated(lambda number: 2 * number)
        >>> double(4), double.submit(5).result(), list(double.map([1, 2, 3]))
        (8, 10, [2, 4, 6])
    """

    kvmlet_isolated = True
    __qualname__: str

    def __init__(
        self,
        function: Callable[P, R],
        preload: tuple[str, ...],
        policy: Policy,
        size: int | None,
        calls: str | None,
        cwd: str | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = (preload, policy, size, calls, cwd)
        self._timeout_s = policy.limits.in_full().timeout_s
        self._reference: tuple[str, str] | None = None
        self._key: Key | None = None
        self._has_told = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it in a VM, unless this is one, and return its result. Raises as `isolated` says."""
        if inside_guest():
            return self.__wrapped__(*args, **kwargs)
        message = self._prepared(args, kwargs)
        future: Future[R] = self._submit(lambda sandbox: ask(sandbox, message, self._tell))
        return _awaited(future)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Call it: the value together with what it wrote and what it was refused.

        Nothing is printed here, unless it raises. In a VM, where isolated functions run as they
        are, there is the value alone. Raises as `isolated` says.
        """
        if inside_guest():
            return Call(self.__wrapped__(*args, **kwargs))
        message = self._prepared(args, kwargs)
        return _awaited(self._submit(lambda sandbox: ask_in_full(sandbox, message, self._tell)))

    async def aio(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it from a coroutine, on asyncio or trio. Cancelling it stops the guest.

        Raises as `isolated` says.
        """
        from kvmlet._offload import offload, result_of

        if inside_guest():
            return self.__wrapped__(*args, **kwargs)
        if not self._warmed().is_started:
            await offload(self.warm_up)
        return await result_of(self.submit(*args, **kwargs))

    def submit(self, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Call it without waiting: the future result. Cancelling that stops the guest.

        Raises CannotSend, and what keeps the interpreter from starting (see `warm_up`).
        """
        message = _kept(self._prepared(args, kwargs))
        return self._submit(lambda sandbox: ask(sandbox, message, self._tell))

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[R]:
        """The results for each item, in order, as `concurrent.futures.Executor.map` has it.

        timeout: for all results together, in seconds; None for no limit.

        Raises what `submit` raises, and each result's exception in its place.
        """
        warm = self._warmed()
        messages = (_kept(self._message(items, {})) for items in zip(*iterables, strict=False))
        works = (functools.partial(ask, message=message, tell=self._tell) for message in messages)
        return warm.pool()._map(works, self._timeout_s, timeout)

    def warm_up(self) -> None:
        """Start and warm the interpreter now instead of at the first call.

        Raises what `Sandbox` raises, and GuestError for a module that cannot be imported.
        """
        self._warmed().pool()

    def close(self) -> None:
        """End the interpreter, once the calls under way have their results; it may be repeated.

        Functions of the same modules and options share it. The next call of one starts another.
        """
        self._warmed().close()

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str | tuple[object, ...]:
        # By its name, as functions are: pools of processes take it along.
        return self.__qualname__ if _has_name(self) else self._by_value()

    def _by_value(self) -> tuple[object, ...]:
        return (Isolated, (self.__wrapped__, *self._options))

    def __repr__(self) -> str:
        return f"<isolated {self.__wrapped__!r}>"

    def _tell(self, package: str) -> None:
        """Says once that each call imports a package: the next one would do it again."""
        if self._has_told:
            return
        self._has_told = True
        code = getattr(self.__wrapped__, "__code__", None)
        warnings.warn_explicit(
            f"{self.__wrapped__.__qualname__} imports {package} in every call; "
            f"@isolated(preload=[{package!r}]) imports it once",
            RuntimeWarning,
            getattr(code, "co_filename", "<unknown>"),
            getattr(code, "co_firstlineno", 1),
        )

    def _warmed(self) -> Warm:
        if self._key is None:
            preload, policy, size, calls, cwd = self._options
            self._reference = _reference(self, self.__wrapped__)
            if self._reference is not None:
                preload = (*preload, self._reference[0])
            # Calls that differ in their time alone share an interpreter.
            policy = policy.replace(timeout=None)
            self._key = (tuple(dict.fromkeys(preload)), policy, size, calls, cwd)
        return warm_for(self._key)

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Part]:
        self._warmed()  # says by which name the guest finds the function
        return self._message(args, kwargs)

    def _submit(self, work: Callable[[Sandbox], T]) -> Future[T]:
        warm = self._warmed()
        try:
            return warm.pool()._submit(work, self._timeout_s)
        except PoolClosed:  # `close` came in between: there is another one
            return warm.pool()._submit(work, self._timeout_s)

    def _message(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Part]:
        function = self.__wrapped__ if self._reference is None else self._reference
        try:
            aside = Aside()
            if self._reference is not None:
                data = pickle.dumps((function, args, kwargs), 5, buffer_callback=aside)
                # Anything of the main program has another name in the guest.
                if b"__main__" not in data:
                    return packed(data, aside.buffers)
                aside = Aside()
            code = getattr(self.__wrapped__, "__code__", None)
            call = (function, args, kwargs, getattr(code, "co_filename", ""))
            file = io.BytesIO()
            _pickler()(file, 5, buffer_callback=aside).dump(call)
            return packed(file.getvalue(), aside.buffers)
        except KvmletError:
            raise
        except Exception as error:
            raise CannotSend(
                f"{self.__wrapped__.__qualname__}: the call cannot be pickled: {error}",
                remedy="pass plain data, and keep locks, files and the like out of the function",
            ) from error


def _kept(parts: list[Part]) -> list[Part]:
    """The message in memory of its own: the caller may change an array before it is sent."""
    return parts if len(parts) == 1 else [b"".join(parts)]


def _awaited(future: Future[T]) -> T:
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


def _has_name(wrapper: Isolated[..., Any]) -> bool:
    """True for one that is found by its name, as pickle looks for it."""
    found: Any = sys.modules.get(wrapper.__module__)
    try:
        for name in wrapper.__qualname__.split("."):
            found = getattr(found, name)
    except AttributeError:
        return False
    return found is wrapper


@functools.cache
def _pickler() -> Any:
    """The pickler for functions that the guest cannot import, and for what is with them."""
    try:
        base: Any = importlib.import_module("cloudpickle").CloudPickler
    except ImportError:
        raise CannotSend(
            "the function cannot be imported by name, and cloudpickle is not installed",
            remedy="pip install cloudpickle, or move the function into a module",
        ) from None

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, value: Any) -> Any:
            if isinstance(value, Isolated) and value.__module__ == "__main__":
                return value._by_value()  # the guest's main program is another one
            return super().reducer_override(value)

    return Pickler
