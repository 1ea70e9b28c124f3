"""`version_reset.py PAGES`: prints what a request that writes PAGES pages takes with its reset.

It runs by the interpreter of whichever build is measured, and uses only what every build has.
"""

from __future__ import annotations

import struct
import sys
import time

import kvmlet

_DIRTY = 1
_TIMES = 200


def main() -> None:
    """Print `request_ns`, the median of many, in a VM used before."""
    message = struct.pack("<4I", _DIRTY, 0, int(sys.argv[1]), 7)
    sandbox = kvmlet.Sandbox(["./dirty"], memory="512m")
    snapshot = sandbox.until_ready(timeout=60).freeze()
    fork = snapshot.fork()
    times_ns = []
    for _ in range(_TIMES):
        start = time.perf_counter_ns()
        fork.request(message, timeout=60)
        fork.reset()
        times_ns.append(time.perf_counter_ns() - start)
    print("request_ns", sorted(times_ns)[len(times_ns) // 2])


if __name__ == "__main__":
    main()
