"""`make bench-faults`: page faults that leave the VM, against those that Linux takes natively.

For each program: page-fault exits against the page faults of a plain child process (wait4). Beside
them wall time against its wall time, both over interleaved pairs. KVM's own faults (`pf_taken`, and
`pf_fixed` where it filled an entry) are those of one more run.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

import report
from cases import counters
from measure import KVMLET, interleave, kvm_counters, kvmlet, native
from programs import installed
from report import Case, Promise, Row, parser, run

if TYPE_CHECKING:
    from programs import Program

FAULTS = Promise("<=", 0.05, "native")
WALL = Promise("<=", 1.5, "native")
WALL_OF_PASS = Promise("<=", 2, "native")
_SHOWN = ("exits", "faults", "syscalls", "flushes", "pf_fixed", "pf_taken", "memory_peak_bytes")


def _rows(program: Program, pairs: int) -> list[Row]:
    """The rows of one program. Raises BenchError."""
    argv = list(program.argv)
    with program.in_its_directory():
        rounds = interleave(pairs, lambda: kvmlet(argv), lambda: native(argv))
        kvm = kvm_counters(argv)
    guests, plain = [guest for guest, _ in rounds], [run for _, run in rounds]
    counts = {**counters(guests), **kvm}
    made = report.compare(
        f"{program.name}: page-fault exits, against native faults",
        [guest.stat("exits_fault") for guest in guests],
        [run.stat("faults") for run in plain],
        FAULTS,
        counts=counts,
        shown=_SHOWN,
        unit="",
    )
    return [
        made,
        report.compare(
            f"{program.name}: wall time of the VM",
            [guest.stat("wall_us") * 1e3 for guest in guests],
            [run.wall_ns for run in plain],
            WALL_OF_PASS if program.name == "python-pass" else WALL,
            counts={name: counts[name] for name in ("guest_us", "personality_us")},
            shown=("guest_us", "personality_us"),
        ),
    ]


def main() -> int:
    """Run the bench; the exit status."""
    programs = {program.name: program for program in installed()}
    options = parser("faults.py", __doc__, list(programs)).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make develop`", file=sys.stderr)
        return 2
    wanted = options.only or list(programs)
    return run([Case(name, partial(_rows, programs[name])) for name in wanted], options)


if __name__ == "__main__":
    sys.exit(main())
