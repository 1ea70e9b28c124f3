"""A word for a thread that waits for a guest: another thread stops it.

The functions that wait are the same for all callers. So the word belongs to the thread and is no
argument of each.
"""

from __future__ import annotations

import _thread
import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmlet._native import Stop


class _Local(_thread._local):
    stop: Stop | None = None


_local = _Local()


def stop_of_this_thread() -> Stop | None:
    """The word that ends a wait of this thread, None if there is none."""
    return _local.stop


@contextlib.contextmanager
def stopped_by(stop: Stop) -> Iterator[None]:
    """Waits of this thread end when `stop` is set: they raise Interrupted, or say so."""
    before, _local.stop = _local.stop, stop
    try:
        yield
    finally:
        _local.stop = before
