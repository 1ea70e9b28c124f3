"""The process that holds several busy VMs: their calls per second, and the CPU time of each call.

    many.py MODE VMS MILLISECONDS

It is started by calls.py.
"""

from __future__ import annotations

import resource
import sys
import threading

import kvmlet


def main() -> None:
    """Run the VMs at once and print what they did."""
    mode, vms, milliseconds = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    results: list[kvmlet.Result[bytes]] = []

    def work() -> None:
        results.append(kvmlet.run(["./busy", milliseconds], calls=mode).check())

    threads = [threading.Thread(target=work) for _ in range(vms)]
    before = resource.getrusage(resource.RUSAGE_SELF)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = resource.getrusage(resource.RUSAGE_SELF)
    if len(results) != vms:
        sys.exit("not every VM ran to its end")
    calls = rate = 0.0
    for result in results:
        values = dict(line.split() for line in result.stdout.decode().splitlines())
        calls += float(values["calls"])
        rate += float(values["calls"]) / float(values["took_ns"]) * 1e9
    cpu_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(f"calls_per_s {rate}")
    print(f"cpu_ns {cpu_s * 1e9 / calls}")
    for name in ("exits", "calls_polled"):
        print(f"{name} {sum(result.stats[name] for result in results) / calls}")


if __name__ == "__main__":
    main()
