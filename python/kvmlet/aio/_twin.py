"""Methods that are those of a blocking class, in threads."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from kvmlet._offload import offload, until_stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")


class Twin(Generic[S]):
    """An object whose methods are coroutines, and the blocking one that does the work."""

    _sync: S


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
