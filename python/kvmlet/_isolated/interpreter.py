"""The warmed interpreter: this very one, in a VM, frozen with modules imported, forked per call."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from typing import TYPE_CHECKING

from kvmlet._isolated.call import data_of
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from kvmlet.pool import Pool
    from kvmlet.sandbox import Snapshot

Key = tuple[tuple[str, ...], int, int | None, str | None]
"""One warmed interpreter differs from another by these: modules, bytes, calls at once, `calls`."""

_RUNNER = "kvmlet_runner"
"""The program of the guest, a module beside `kvmlet_guest`."""

_WARM_UP_S = 120.0
"""Importing everything takes seconds at most, also on the slowest machine."""


class Warm:
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


def _warm_snapshot(preload: tuple[str, ...], memory_bytes: int, calls: str | None) -> Snapshot:
    from kvmlet._launch import guest_modules
    from kvmlet.sandbox import Sandbox

    if not sys.executable:
        raise UsageError("this program's interpreter is unknown (sys.executable is empty)")
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = _search_path(os.path.dirname(package))
    boot = f"import sys; sys.path[:] = sys.argv[1:]; from {_RUNNER} import main; main()"
    sandbox = Sandbox._with_readable(
        [sys.executable, "-I", "-B", "-c", boot, guest_modules(), *path],
        env={},
        cwd=package,
        memory=memory_bytes,
        readable=_readable(path),
        calls=calls,
    )
    with sandbox:
        sandbox._set_deadline(time.monotonic() + _WARM_UP_S)
        data_of(sandbox, pickle.dumps((path, preload), 5))
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
