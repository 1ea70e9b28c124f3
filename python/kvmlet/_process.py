"""Holders of virtual machines are told when their process forks or ends.

VM descriptors do not survive `os.fork()`: in the child what they belonged to is dead, and says so.
At the end of the interpreter every running guest is stopped first. A thread that comes back from
one while the interpreter is being torn down would take the process with it.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

from kvmlet import _native


class Holder(Protocol):
    """Something that holds virtual machines."""

    def _abandon(self) -> None:
        """The process has forked and this is the child: give up what cannot be used. No locks."""

    def _stop(self) -> None:
        """The interpreter is about to end: let nothing keep running."""


# Not a WeakSet, which can be changed while somebody goes through it: each new fork would feel it.
_holders: set[weakref.ref[Holder]] = set()


def track(holder: Holder) -> None:
    """Have `holder` told of forks and of the end, for as long as it lives."""
    _holders.add(weakref.ref(holder, _holders.discard))


def _living() -> list[Holder]:
    held = [reference() for reference in tuple(_holders)]
    return [holder for holder in held if holder is not None]


def _abandon_all() -> None:
    for holder in _living():
        holder._abandon()
    _holders.clear()
    _native.forget_vms()


def _stop_all() -> None:
    for holder in _living():
        holder._stop()


os.register_at_fork(after_in_child=_abandon_all)
atexit.register(_stop_all)
