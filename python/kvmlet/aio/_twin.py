"""Methods that are those of a blocking class, in threads."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from kvmlet._offload import offload, until_stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator, Mapping
    from types import TracebackType
    from typing import Self

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Twin(Generic[S]):
    """An object whose methods are coroutines, and the blocking one that does the work."""

    _sync: S


class _Closes(Protocol):
    def close(self) -> Coroutine[Any, Any, None]: ...


class Closing(Twin[S]):
    """A twin that is closed at the end of the block that it is entered for."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self: _Closes,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class Starting(Closing[S]):
    """A twin that is made at once, and starts when it is entered or awaited.

    Any number of coroutines may await it: one of them starts it. After an error the next one tries
    again.
    """

    _options: Mapping[str, Any] | None
    _turn: threading.Lock

    @property
    def started(self) -> bool:
        """True once it has been entered or awaited."""
        return self._options is None

    def _prepare(self, options: Mapping[str, Any] | None) -> None:
        """`options` are those that it starts with; None for one that has started."""
        self._options = options
        self._turn = threading.Lock()

    def _make(self, options: Mapping[str, Any]) -> None:
        """Makes the blocking object, in a thread."""
        raise NotImplementedError

    def _start_once(self) -> None:
        with self._turn:
            if self._options is not None:
                self._make(self._options)
                self._options = None

    async def _start(self) -> Self:
        if self._options is not None:
            await offload(self._start_once)
        return self

    def __await__(self) -> Generator[Any, Any, Self]:
        return self._start().__await__()

    async def __aenter__(self) -> Self:
        return await self._start()


def short(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[Twin[S], P], Coroutine[Any, Any, T]]:
    """The twin of a method that returns soon; a cancellation waits for it."""

    async def call(self: Twin[S], /, *args: P.args, **keywords: P.kwargs) -> T:
        return await offload(lambda: method(self._sync, *args, **keywords))

    functools.update_wrapper(call, method)
    return call


def stoppable(
    method: Callable[Concatenate[S, P], T],
) -> Callable[Concatenate[Twin[S], P], Coroutine[Any, Any, T]]:
    """The twin of a method that waits for a guest; a cancellation ends the wait."""

    async def call(self: Twin[S], /, *args: P.args, **keywords: P.kwargs) -> T:
        return await until_stopped(lambda: method(self._sync, *args, **keywords))

    functools.update_wrapper(call, method)
    return call
