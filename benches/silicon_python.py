"""The rows of bench-silicon that go through Python, run in the emulated machine by silicon.py.

Prints a line of JSON for each. Argument: the guest program.
"""

from __future__ import annotations

import gc
import json
import statistics
import struct
import sys
import time
from typing import TYPE_CHECKING

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable

_WARM_ROUNDS, _ROUNDS = 8, 15


def main() -> None:
    """Measure and print the rows."""
    guest = sys.argv[1]
    gc.disable()
    _steady("call_reset_0", guest, lambda fork: fork.call("write_pages", 0, 0))
    _steady("call_reset_16", guest, lambda fork: fork.call("write_pages", 0, 16))
    nothing = struct.pack("2q", 0, 0)
    _steady("request_reset_0", guest, lambda fork: fork.request(nothing))
    snapshot = _frozen(guest)
    snapshot.prepare(_ROUNDS)
    forks: list[kvmlet.Sandbox] = []
    _print("fork_bound", [_spent_ns(lambda: forks.append(snapshot.fork())) for _ in range(_ROUNDS)])


def _frozen(guest: str) -> kvmlet.Snapshot:
    return kvmlet.Sandbox([guest], calls="exit").until_ready().freeze()


def _steady(row: str, guest: str, work: Callable[[kvmlet.Sandbox], object]) -> None:
    """Requests with their resets, all alike."""
    fork = _frozen(guest).fork()

    def once() -> None:
        work(fork)
        fork.reset()

    for _ in range(_WARM_ROUNDS):
        once()
    _print(row, [_spent_ns(once) for _ in range(_ROUNDS)])


def _spent_ns(action: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    action()
    return time.perf_counter_ns() - start


def _print(row: str, counts: list[int]) -> None:
    print(json.dumps({"row": row, "instructions": statistics.median(counts)}))


if __name__ == "__main__":
    main()
