"""`make bench-processes`: what processes cost, against native ones.

As in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it. X is
the cost of one bare exit from a VM and re-entry. Beside each row stand the counts of one operation:
exits, flushes that were made, page faults that left the VM. `pf_fixed` is the number of entries
that KVM has filled in tables of its own, where it has such and counts them.

Builds are of the machine's own gcc, make and shell, in an overlay over a directory of the host.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from builds import make_configure, make_lua
from commands import rows_of_command
from measure import (
    KVMLET,
    Spread,
    interleave,
    kvm_counters,
    kvmlet,
    native,
    program,
    runsc,
    why_not,
)
from report import Case, Promise, Row, compare, parser, run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from measure import Run

    Build = Callable[[int], list[Row]]

KINDS = {
    "fork": ("fork, exit and wait", 200, Promise("<=", 2, "native")),
    "heap": ("the same with 100 MiB of heap", 40, Promise("<=", 1, "native")),
    "vfork-exec": ("vfork, exec of /bin/true and wait", 60, Promise("<=", 3, "native")),
    "fork-exec": ("fork, exec of /bin/true and wait", 60, Promise("<=", 3, "native")),
    "pipe": ("a hand-over by a pipe", 100, None),
    "switch": ("a switch in a ring of 64 processes", 40, None),
}
"""Words for each kind, how often it is done in a run, and the promise against native."""
_OF_RING = {"pipe": 2 * 20, "switch": 64 * 20}
"""Hand-overs in each time that it is done (guests/processes.c)."""
HAND_OVER = Promise("<=", 1.2, "X")
_COUNTS = ("exits", "flushes", "exits_fault")


def _fills(kind: str) -> dict[str, float]:
    """KVM's fills for one operation: a longer run's beyond a shorter one's. Raises BenchError."""
    rounds = KINDS[kind][1]
    shorter, longer = (
        kvm_counters([program("processes"), kind, str(times)]).get("pf_fixed")
        for times in (rounds, 2 * rounds)
    )
    if shorter is None or longer is None:
        return {}
    return {"pf_fixed": (longer - shorter) / (rounds * _OF_RING.get(kind, 1))}


def _rows(kind: str, peer: Callable[[Sequence[str]], Run] | None, pairs: int) -> list[Row]:
    """The rows of one kind of operation. Raises BenchError."""
    words, rounds, promise = KINDS[kind]
    argv = [program("processes"), kind, str(rounds)]
    floor = [program("kvm_floor"), "exit"]
    arms = [partial(native, floor), partial(native, argv), partial(kvmlet, argv)]
    if peer is not None:
        arms.append(partial(peer, argv))
    done = interleave(pairs, *arms)
    x_ns = [runs[0].value("x_ns") for runs in done]
    plain_ns = [runs[1].value("operation_ns") for runs in done]
    guests = [runs[2] for runs in done]
    guest_ns = [guest.value("operation_ns") for guest in guests]
    counts = {
        name: Spread.of([run.stat(name) / run.value("operations") for run in guests]).median
        for name in _COUNTS
    }
    counts |= _fills(kind)
    rows = [
        compare(f"{words}, against native", guest_ns, plain_ns, promise),
        compare(
            words,
            guest_ns,
            x_ns,
            HAND_OVER if kind == "pipe" else None,
            counts=counts,
            shown=(*_COUNTS, "pf_fixed"),
        ),
    ]
    if peer is not None:
        peer_ns = [runs[3].value("operation_ns") for runs in done]
        rows.append(compare(f"{words}, runsc --platform=ptrace, against native", peer_ns, plain_ns))
    return rows


def _of_build(what: str, make: Callable[[Path], None], script: str, most: float) -> Build:
    """The rows of a shell script that runs in a copy of what `make` makes."""

    def rows(pairs: int) -> list[Row]:
        with tempfile.TemporaryDirectory(prefix="kvmlet-bench-") as name:
            make(Path(name))
            argv = ["/bin/sh", "-ec", f"cp -r source out; cd out; {script}"]
            return rows_of_command(what, Path(name), argv, pairs, most=most, remove="out")

    return rows


BUILDS = {
    "make-lua": _of_build(
        "make of Lua, one job",
        make_lua,
        "exec make -s -j1",
        1.25,
    ),
    "configure": _of_build(
        "a configure script of 500 lines",
        make_configure,
        "exec /bin/sh ./configure",
        2.5,
    ),
}


def main() -> int:
    """Run the bench; the exit status."""
    names = [*KINDS, *BUILDS]
    options = parser("processes.py", __doc__, names).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-processes`", file=sys.stderr)
        return 2
    reason = why_not(runsc)
    if reason:
        print(f"not compared with runsc --platform=ptrace: {reason}")
    peer = None if reason else runsc
    cases = {kind: partial(_rows, kind, peer) for kind in KINDS} | BUILDS
    return run([Case(name, cases[name]) for name in options.only or names], options)


if __name__ == "__main__":
    sys.exit(main())
