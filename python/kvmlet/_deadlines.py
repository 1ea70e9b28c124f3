"""Deadlines that nobody waits for: a thread of this process acts when they come.

The thread is there while there are deadlines to come.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import threading
import time
from typing import TYPE_CHECKING

from kvmlet.errors import KvmletError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class _Deadlines:
    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._left: list[tuple[float, int, Callable[[], object]]] = []
        self._thread: threading.Thread | None = None

    def add(self, end_s: float, act: Callable[[], object]) -> None:
        with self._changed:
            heapq.heappush(self._left, (end_s, next(self._numbers), act))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="kvmlet-deadlines", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def forget(self, acts: Collection[Callable[[], object]]) -> None:
        with self._changed:
            self._left = [each for each in self._left if each[2] not in acts]
            heapq.heapify(self._left)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._left:
                    self._thread = None
                    return
                left_s = self._left[0][0] - time.monotonic()
                if left_s > 0:
                    self._changed.wait(min(left_s, threading.TIMEOUT_MAX))
                    continue
                _, _, act = heapq.heappop(self._left)
            # Its box may be gone.
            with contextlib.suppress(KvmletError):
                act()
            del act


_deadlines = _Deadlines()


def _forget() -> None:
    # The parent's thread is not here, and may have held the lock.
    global _deadlines  # noqa: PLW0603
    _deadlines = _Deadlines()


os.register_at_fork(after_in_child=_forget)


def at(end_s: float, act: Callable[[], object]) -> None:
    """Has `act` called at a time of time.monotonic().

    It must not wait, and its KvmletErrors are lost.
    """
    _deadlines.add(end_s, act)


def forget(acts: Collection[Callable[[], object]]) -> None:
    """Has none of `acts` called any more."""
    _deadlines.forget(acts)
