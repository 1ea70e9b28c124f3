"""`make bench-calls`: what a system call costs by the way that it travels.

As in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it. X is
the cost of one bare exit from a VM and re-entry. All runs share two CPUs: one for the guest, one
for the thread that polls. The rows "over the host's own work" take a call's native time off first.

getpgrp stands for calls that the host answers at once: it has no arguments, changes nothing, and
waits for nothing. Unlike getppid it is not answered by the stub inside the VM.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from typing import TYPE_CHECKING

from measure import (
    HERE,
    KVMLET,
    BenchError,
    Run,
    Spread,
    bubblewrap,
    interleave,
    kvmlet,
    native,
    program,
    runsc,
    why_not,
)
from report import Case, Promise, Row, compare, parser, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MODES = ("exit", "poll", "auto")
KINDS = {
    "getpgrp": "getpgrp",
    "pread": "pread of 4 KiB",
    "fstat": "fstat",
    "open": "openat or close",
    "pipe": "write of a byte to a pipe",
    "getppid": "getppid, in the stub",
}
PROMISES = {"exit": Promise("<=", 1.2, "X"), "poll": Promise("<=", 0.1, "X"), "auto": None}
IN_STUB = Promise("<=", 0.1, "X")
FEW = Promise("<=", 3, "X")
PEERS = {"runsc --platform=ptrace": runsc, "bubblewrap": bubblewrap}
CPUS = 2
VMS = (1, 2, 4, 8)
BUSY_MS = 3000
QUIET_S = 5
NARROWED_MS = 1000
GROUPS = (*KINDS, "quiet", "busy", "narrowed")


def main() -> int:
    """Run the bench; the exit status."""
    options = parser("calls.py", __doc__, GROUPS).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-calls`", file=sys.stderr)
        return 2
    cpus = sorted(os.sched_getaffinity(0))[:CPUS]
    if len(cpus) < CPUS:
        print("bench: one CPU only: a poller needs another than its guest", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, cpus)
    usable: dict[str, Callable[[Sequence[str]], Run]] = {}
    for name, runner in PEERS.items():
        reason = why_not(runner)
        if reason:
            print(f"not compared with {name}: {reason}")
        else:
            usable[name] = runner
    cases = [Case(kind, partial(_kind, kind, usable)) for kind in KINDS]
    cases += [Case("quiet", _quiet), Case("busy", _busy), Case("narrowed", _narrowed)]
    return run([case for case in cases if not options.only or case.name in options.only], options)


def _median(numbers: list[float]) -> float:
    return Spread.of(numbers).median


def _kind(kind: str, peers: dict[str, Callable[[Sequence[str]], Run]], pairs: int) -> list[Row]:
    """One kind of call, by each way and as others do it."""
    argv = [program("syscalls"), kind]
    floor = [program("kvm_floor"), "exit"]
    arms = [
        partial(native, floor),
        partial(native, argv),
        *(partial(kvmlet, argv, calls=mode) for mode in MODES),
        *(partial(runner, argv) for runner in peers.values()),
    ]
    rounds = interleave(pairs, *arms)
    x_ns = [runs[0].value("x_ns") for runs in rounds]
    native_ns = [runs[1].value("call_ns") for runs in rounds]
    rows = []
    for arm, mode in enumerate(MODES, start=2):
        guests = [runs[arm] for runs in rounds]
        call_ns = [guest.value("call_ns") for guest in guests]
        counts = {
            "ns": _median(call_ns),
            "X": _median([a / b for a, b in zip(call_ns, x_ns, strict=True)]),
            "native": _median([a / b for a, b in zip(call_ns, native_ns, strict=True)]),
            "exits": _median([guest.stat("exits") / guest.value("calls") for guest in guests]),
            "polled": _median(
                [guest.stat("calls_polled") / guest.value("calls") for guest in guests]
            ),
        }
        rows.append(
            compare(
                f"{KINDS[kind]}, {mode}: over the host's own work",
                [max(a - b, 0) for a, b in zip(call_ns, native_ns, strict=True)],
                x_ns,
                IN_STUB if kind == "getppid" else PROMISES[mode],
                counts=counts,
                shown=tuple(counts),
            )
        )
    for arm, name in enumerate(peers, start=2 + len(MODES)):
        call_ns = [runs[arm].value("call_ns") for runs in rounds]
        rows.append(compare(f"{KINDS[kind]}, {name}, against native", call_ns, native_ns))
    return rows


def _quiet(pairs: int) -> list[Row]:
    """What the poller takes of a CPU while the guest makes no calls."""
    rows = []
    for what in ("compute", "sleep"):
        for mode in ("poll", "auto"):
            argv = [program("quiet"), what, str(QUIET_S)]
            runs = [kvmlet(argv, calls=mode) for _ in range(max(1, pairs // 5))]
            cpu_us = [guest.stat("poller_cpu_us") for guest in runs]
            wall_us = [guest.stat("wall_us") for guest in runs]
            rows.append(
                compare(
                    f"a guest that does nothing but {what}, {mode}: the poller's CPU time",
                    [us * 1e3 for us in cpu_us],
                    [us * 1e3 for us in wall_us],
                    Promise("<=", 0.01, "CPU"),
                )
            )
    return rows


def _busy(pairs: int) -> list[Row]:
    """Calls per second and CPU time of a call, of several VMs at once in one process."""
    many = [sys.executable, str(HERE / "many.py")]
    rows = []
    for vms in VMS:
        arms = [partial(native, [*many, mode, str(vms), str(BUSY_MS)]) for mode in MODES]
        # A run takes seconds and makes some ten thousand calls: fewer runs tell as much.
        rounds = interleave(max(1, pairs // 3), *arms)
        by_mode = dict(zip(MODES, zip(*rounds, strict=True), strict=True))
        rates = {mode: [r.value("calls_per_s") for r in runs] for mode, runs in by_mode.items()}
        best = max(("exit", "poll"), key=lambda mode: _median(rates[mode]))
        for mode, runs in by_mode.items():
            against = best if mode == "auto" else "exit"
            ratios = [a / b for a, b in zip(rates[mode], rates[against], strict=True)]
            counts = {
                "ns of CPU": _median([r.value("cpu_ns") for r in runs]),
                "exits": _median([r.value("exits") for r in runs]),
                "polled": _median([r.value("calls_polled") for r in runs]),
            }
            rows.append(
                Row(
                    f"{vms} busy VMs, {mode} against {against}: calls per second",
                    _median(rates[mode]),
                    _median(rates[against]),
                    Spread.of(ratios),
                    Promise(">=", 0.95, "the best") if mode == "auto" else None,
                    counts,
                    tuple(counts),
                    unit="",
                )
            )
        cpu_ns = {mode: [r.value("cpu_ns") for r in runs] for mode, runs in by_mode.items()}
        best = min(("exit", "poll"), key=lambda mode: _median(cpu_ns[mode]))
        rows.append(
            compare(
                f"{vms} busy VMs, auto against {best}: CPU time of a call",
                cpu_ns["auto"],
                cpu_ns[best],
                Promise("<=", round(1 / 0.95, 3), "the best"),
            )
        )
    return rows


def _narrowed(pairs: int) -> list[Row]:
    """What a call takes after all threads were forced onto one CPU, the poller's included."""
    narrowed = [sys.executable, str(HERE / "narrowed.py")]
    floor = [program("kvm_floor"), "exit"]
    arms = [partial(native, [*narrowed, mode, str(NARROWED_MS)]) for mode in MODES]
    rounds = interleave(max(1, pairs // 3), partial(native, floor), *arms)
    x_ns = [runs[0].value("x_ns") for runs in rounds]
    by_mode = {mode: [runs[arm] for runs in rounds] for arm, mode in enumerate(MODES, start=1)}
    slow_ns = {mode: [run.value("p999_ns") for run in runs] for mode, runs in by_mode.items()}
    rows = []
    for mode, runs in by_mode.items():
        counts = {
            name: _median([run.value(name) for run in runs])
            for name in ("median_ns", "p999_ns", "max_ns", "calls", "calls_polled")
        }
        what = f"all threads forced onto one CPU, {mode}"
        median_ns = [run.value("median_ns") for run in runs]
        rows.append(
            compare(f"{what}: a call", median_ns, x_ns, FEW, counts=counts, shown=tuple(counts))
        )
        if mode != "exit":
            rows.append(
                compare(
                    f"{what}: 999 of 1,000 calls take at most, against exit",
                    slow_ns[mode],
                    slow_ns["exit"],
                    Promise("<=", 1.2, "exit"),
                )
            )
    return rows


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
