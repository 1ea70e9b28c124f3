"""A function that runs in a VM: how a call of it becomes a message."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
import sys
import types
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from kvmlet._isolated.call import Call, ask, ask_in_full
from kvmlet._isolated.interpreter import Key, Warm, inside_guest, warm_for
from kvmlet.errors import CannotSend, GuestError, KvmletError, PoolClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from kvmlet.policy import Policy
    from kvmlet.sandbox import Sandbox

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Isolated(Generic[P, R]):
    """A function that runs in a VM when called. Made by `isolated`.

    `__wrapped__` is the function itself, which runs here when called.
    """

    kvmlet_isolated = True

    def __init__(
        self,
        function: Callable[P, R],
        preload: tuple[str, ...],
        policy: Policy,
        size: int | None,
        calls: str | None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.__wrapped__ = function
        self._options = (preload, policy, size, calls)
        self._timeout_s = policy.limits.in_full().timeout_s
        self._reference: tuple[str, str] | None = None
        self._key: Key | None = None

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call it in a VM, unless this is one, and return its result. Raises as `isolated` says."""
        if inside_guest():
            return self.__wrapped__(*args, **kwargs)
        return _awaited(self.submit(*args, **kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Call it: the value together with what it wrote and what it was refused.

        Nothing is printed here, unless it raises. In a VM, where isolated functions run as they
        are, there is the value alone. Raises as `isolated` says.
        """
        if inside_guest():
            return Call(self.__wrapped__(*args, **kwargs))
        message = self._prepared(args, kwargs)
        return _awaited(self._submit(lambda sandbox: ask_in_full(sandbox, message)))

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
        message = self._prepared(args, kwargs)
        return self._submit(lambda sandbox: ask(sandbox, message))

    def map(self, *iterables: Iterable[Any], timeout: float | None = None) -> Iterator[R]:
        """The results for each item, in order, as `concurrent.futures.Executor.map` has it.

        timeout: for all results together, in seconds; None for no limit.

        Raises what `submit` raises, and each result's exception in its place.
        """
        warm = self._warmed()
        messages = (self._message(items, {}) for items in zip(*iterables, strict=False))
        works = (functools.partial(ask, message=message) for message in messages)
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

    def __reduce__(self) -> tuple[object, ...]:
        return (Isolated, (self.__wrapped__, *self._options))

    def __repr__(self) -> str:
        return f"<isolated {self.__wrapped__!r}>"

    def _warmed(self) -> Warm:
        if self._key is None:
            preload, policy, size, calls = self._options
            self._reference = _reference(self, self.__wrapped__)
            if self._reference is not None:
                preload = (*preload, self._reference[0])
            # Calls that differ in their time alone share an interpreter.
            policy = policy.replace(timeout=None)
            self._key = (tuple(dict.fromkeys(preload)), policy, size, calls)
        return warm_for(self._key)

    def _prepared(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        self._warmed()  # says by which name the guest finds the function
        return self._message(args, kwargs)

    def _submit(self, work: Callable[[Sandbox], T]) -> Future[T]:
        warm = self._warmed()
        try:
            return warm.pool()._submit(work, self._timeout_s)
        except PoolClosed:  # `close` came in between: there is another one
            return warm.pool()._submit(work, self._timeout_s)

    def _message(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        function = self.__wrapped__ if self._reference is None else self._reference
        try:
            if self._reference is not None:
                data = pickle.dumps((function, args, kwargs), 5)
                # Anything of the main program has another name in the guest.
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


def _cloudpickle() -> Any:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        raise CannotSend(
            "the function cannot be imported by name, and cloudpickle is not installed",
            remedy="pip install cloudpickle, or move the function into a module",
        ) from None
