"""The warmed interpreter: this very one, in a VM, frozen with modules imported, forked per call."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from typing import TYPE_CHECKING, TypeAlias

from kvmlet._isolated.call import data_of

if TYPE_CHECKING:
    from kvmlet.policy import Policy
    from kvmlet.pool import Pool
    from kvmlet.sandbox import Snapshot

Key: TypeAlias = "tuple[tuple[str, ...], Policy, int | None, str | None, str | None]"
"""One warmed interpreter differs from another by these.

They are modules, policy, calls at once, `calls` and the directory that it starts in.
"""

_RUNNER = "kvmlet_runner"
"""The program of the guest, a module beside `kvmlet_guest`."""

_WARM_UP_S = 120.0
"""Importing everything takes seconds at most, also on the slowest machine."""


class Warm:
    """The pool of one warmed interpreter, made when first asked for."""

    def __init__(
        self,
        preload: tuple[str, ...],
        policy: Policy,
        size: int | None,
        calls: str | None,
        cwd: str | None,
    ) -> None:
        self._preload = preload
        self._policy = policy
        self._size = size
        self._calls = calls
        self._cwd = cwd
        self._lock = threading.Lock()
        self._pool: Pool | None = None
        self._snapshot: Snapshot | None = None

    @property
    def is_started(self) -> bool:
        """True from the first call on, until `close`."""
        return self._pool is not None

    def pool(self) -> Pool:
        """Its pool. Raises what keeps the interpreter from starting or a module from importing."""
        with self._lock:
            if self._pool is None:
                from kvmlet.pool import Pool

                self._snapshot = _warm_snapshot(self._preload, self._policy, self._calls, self._cwd)
                self._pool = Pool(self._snapshot, self._size)
            return self._pool

    def close(self) -> None:
        """Give it up, once all calls have ended; a later one starts it anew. May be repeated."""
        with self._lock:
            pool, snapshot = self._pool, self._snapshot
            self._pool = self._snapshot = None
        if pool is not None and snapshot is not None:
            pool.shutdown()
            snapshot.close()


_lock = threading.Lock()
_warms: dict[Key, Warm] = {}


def inside_guest() -> bool:
    """True in the guest: what is isolated already runs where it is called."""
    return bool(getattr(sys.modules.get(_RUNNER), "serving", False))


def warm_for(key: Key) -> Warm:
    """The warmed interpreter for `key`, one for all functions of that key; it is not started."""
    with _lock:
        warm = _warms.get(key)
        if warm is None:
            warm = _warms[key] = Warm(*key)
        return warm


def _forget() -> None:
    # The parent's VMs are dead here, and a thread that is not here may have held the lock.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _warms.clear()


os.register_at_fork(after_in_child=_forget)


def _warm_snapshot(
    preload: tuple[str, ...], policy: Policy, calls: str | None, cwd: str | None
) -> Snapshot:
    from kvmlet import _log
    from kvmlet._launch import guest_modules
    from kvmlet._python_view import everything_importable
    from kvmlet.sandbox import Sandbox

    view = everything_importable(preload)
    boot = f"import sys; sys.path[:] = sys.argv[1:]; from {_RUNNER} import main; main()"
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sandbox = Sandbox._with_readable(
        [view.executable, "-I", "-B", "-c", boot, guest_modules(), *view.path],
        policy,
        cwd=package if cwd is None else cwd,
        readable=view.readable,
        calls=calls,
    )
    with sandbox:
        sandbox._set_deadline(time.monotonic() + _WARM_UP_S)
        data_of(sandbox, [pickle.dumps((view.path, preload), 5)])
        snapshot = sandbox.until_ready(_WARM_UP_S).freeze()
    _log.say(_log.DEBUG, "warmed", "an interpreter is warmed", modules=list(preload))
    return snapshot
