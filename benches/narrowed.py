"""The process whose threads are all forced onto one CPU while a poller answers its guest's calls.

    narrowed.py MODE MILLISECONDS

It is started by calls.py. Prints how long the guest's calls take from then on.
"""

from __future__ import annotations

import os
import sys
import threading
import time

import kvmlet

BEFORE_S = 0.5
"""With all CPUs. The guest does not look at its calls until some time after."""
SETTLED_S = 0.5


def main() -> None:
    """Run the guest, take its CPUs away meanwhile, and print what it measured."""
    mode, milliseconds = sys.argv[1], sys.argv[2]
    skipped_ms = str(int((BEFORE_S + SETTLED_S) * 1000))
    results: list[kvmlet.Result[bytes]] = []

    def work() -> None:
        results.append(kvmlet.run(["./latency", skipped_ms, milliseconds], calls=mode).check())

    guest = threading.Thread(target=work)
    guest.start()
    time.sleep(BEFORE_S)
    cpu = min(os.sched_getaffinity(0))
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {cpu})
    guest.join()
    if not results:
        sys.exit("the guest did not end well")
    sys.stdout.write(results[0].stdout.decode())
    for name in ("exits", "calls_polled"):
        print(f"{name} {results[0].stats[name]}")


if __name__ == "__main__":
    main()
