"""The groups that are measured: each case runs programs in interleaved pairs and gives rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import report
from measure import (
    BUILD,
    Run,
    Spread,
    bubblewrap,
    have_bubblewrap,
    interleave,
    kvmlet,
    kvmlet_plain,
    native,
    program,
)
from report import Case, Promise, Row

if TYPE_CHECKING:
    from collections.abc import Callable

PYTHON_PASS = ("/usr/bin/python3", "-c", "pass")
_COUNTS = ("exits", "syscalls", "faults", "ioctls")


def _median(numbers: list[float]) -> float:
    return Spread.of(numbers).median


def counters(runs: list[Run]) -> dict[str, float]:
    """The median of each counter that every run has."""
    if not runs:
        return {}
    names = [name for name in runs[0].stats if all(name in run.stats for run in runs)]
    return {name: _median([run.stats[name] for run in runs]) for name in names}


def compare(
    what: str, ours: list[float], theirs: list[float], promise: Promise | None, runs: list[Run]
) -> Row:
    """A row of times in nanoseconds, with the counters of `runs`."""
    return report.compare(what, ours, theirs, promise, counts=counters(runs), shown=_COUNTS)


def calls(pairs: int) -> list[Row]:
    """System calls against X, and the clock against the native vDSO."""
    argv = [program("calls")]
    floor = [program("kvm_floor"), "exit"]
    rounds = interleave(pairs, lambda: kvmlet(argv), lambda: native(floor), lambda: native(argv))
    guests = [guest for guest, _, _ in rounds]
    x_ns = [floor_run.value("x_ns") for _, floor_run, _ in rounds]

    def of_guest(name: str) -> list[float]:
        return [guest.value(name) for guest in guests]

    native_clock_ns = [run.value("clock_ns") for _, _, run in rounds]
    return [
        compare(
            "system call answered by the host (getpgrp)",
            of_guest("getpgrp_ns"),
            x_ns,
            Promise("<=", 1.3, "X"),
            guests,
        ),
        compare(
            "system call answered in the stub (getpid)",
            of_guest("getpid_ns"),
            x_ns,
            Promise("<=", 0.1, "X"),
            guests,
        ),
        compare(
            "clock_gettime, against the native vDSO",
            of_guest("clock_ns"),
            native_clock_ns,
            Promise("<=", 2.5, "native"),
            guests,
        ),
    ]


def _against_native(
    argv: list[str], values: dict[str, tuple[str, Promise]], pairs: int
) -> list[Row]:
    """A row for each value that the program prints: value name -> (what, promise)."""
    rounds = interleave(pairs, lambda: kvmlet(argv), lambda: native(argv))
    guests = [guest for guest, _ in rounds]
    return [
        compare(
            what,
            [guest.value(name) for guest in guests],
            [run.value(name) for _, run in rounds],
            promise,
            guests,
        )
        for name, (what, promise) in values.items()
    ]


def compute(pairs: int) -> list[Row]:
    """Code that makes no calls and stays in the cache."""
    return _against_native(
        [program("compute")],
        {
            "integer_ns": ("integer loop, speed", Promise(">=", 0.98, "native")),
            "float_ns": ("floating-point vector loop, speed", Promise(">=", 0.98, "native")),
        },
        pairs,
    )


def stream(pairs: int) -> list[Row]:
    """Filling and summing 256 MiB."""
    small, huge = [program("stream")], [program("stream"), "256", "3", "huge"]

    def settled(run: Callable[[list[str]], Run], argv: list[str]) -> Callable[[], Run]:
        def arm() -> Run:
            native([program("settle"), "320"])
            return run(argv)

        return arm

    rounds = interleave(
        pairs, settled(kvmlet, small), settled(native, small), settled(native, huge)
    )
    guests = [guest for guest, _, _ in rounds]
    first_ns = [guest.value("first_ns") for guest in guests]
    return [
        compare(
            "256 MiB fill and sum, first pass, time",
            first_ns,
            [run.value("first_ns") for _, run, _ in rounds],
            Promise("<=", 1.5, "native"),
            guests,
        ),
        compare(
            "the same, against native in huge pages",
            first_ns,
            [run.value("first_ns") for _, _, run in rounds],
            None,
            [],
        ),
        compare(
            "256 MiB fill and sum, later passes, speed",
            [guest.value("later_ns") for guest in guests],
            [run.value("later_ns") for _, run, _ in rounds],
            Promise(">=", 0.9, "native"),
            guests,
        ),
    ]


def start(pairs: int) -> list[Row]:
    """From VM creation to exit: a static hello against KVM's own part, and Python."""
    hello = [program("hello")]
    floor = [program("kvm_floor"), "create"]
    hello_rounds = interleave(pairs, lambda: kvmlet(hello), lambda: native(floor))
    python_rounds = interleave(pairs, lambda: kvmlet(PYTHON_PASS), lambda: native(PYTHON_PASS))
    creation_ns = [run.value("create_ns") for _, run in hello_rounds]
    return [
        compare(
            "static hello, VM work, against creating a VM and a vCPU",
            [guest.stat("wall_us") * 1e3 for guest, _ in hello_rounds],
            creation_ns,
            Promise("<=", 2, "creation"),
            [guest for guest, _ in hello_rounds],
        ),
        compare(
            "static hello, VM work until its first instruction, likewise",
            [guest.stat("setup_us") * 1e3 for guest, _ in hello_rounds],
            creation_ns,
            None,
            [],
        ),
        compare(
            "python3 -c pass, VM creation to exit",
            [guest.stat("wall_us") * 1e3 for guest, _ in python_rounds],
            [run.wall_ns for _, run in python_rounds],
            Promise("<=", 5, "native"),
            [guest for guest, _ in python_rounds],
        ),
    ]


def commands(pairs: int) -> list[Row]:
    """Whole commands as a caller sees them, each against a plain child process."""
    rows: list[Row] = []
    wraps = have_bubblewrap()
    for what, argv in (
        ("hello (static)", (str(BUILD / "hello"),)),
        ("true", ("/bin/true",)),
        ("python3 -c pass", PYTHON_PASS),
    ):

        def plainly(argv: tuple[str, ...] = argv) -> Run:
            return native(argv)

        def in_vm(argv: tuple[str, ...] = argv) -> Run:
            return kvmlet_plain(argv)

        def wrapped(argv: tuple[str, ...] = argv) -> Run:
            return bubblewrap(argv)

        arms = [plainly, in_vm, wrapped] if wraps else [plainly, in_vm]
        names = ["", "kvmlet run", "bubblewrap"]
        rounds = interleave(pairs, *arms)
        plain_ns = [runs[0].wall_ns for runs in rounds]
        for arm in range(1, len(arms)):
            ours = [runs[arm] for runs in rounds]
            rows.append(
                compare(
                    f"{what}: {names[arm]}, against a subprocess",
                    [run.wall_ns for run in ours],
                    plain_ns,
                    None,
                    [],
                )
            )
    return rows


CASES = (
    Case("calls", calls),
    Case("compute", compute),
    Case("stream", stream),
    Case("start", start, breakdown=True),
    Case("commands", commands),
)
