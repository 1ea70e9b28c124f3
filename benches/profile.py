"""`make bench-profile`: where the time of some programs goes, as a table and as a picture.

Each program runs natively and by `kvmlet run`, its calls travelling each way. Its wall time, as the
caller sees it, is divided. X is the cost of one bare exit and re-entry, measured beside each run;
"leaving" is X times as many as there were. What software KVM does to fill the shadow of our page
tables cannot be told from guest code, nor can the hand-over of a call to the poller.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import HERE, KVMLET, BenchError, Run, interleave, kvmlet, native, program
from report import Case, Row, amount, compare, parser, run

if TYPE_CHECKING:
    from collections.abc import Callable

MODES = ("exit", "auto")
PARTS = {
    "python": "start and end of Python",
    "ours": "our own modules, options, process",
    "setup": "building the VM, loading",
    "guest": "guest code",
    "leaving_calls": "leaving for calls",
    "leaving_faults": "leaving for page faults",
    "polled": "calls answered by the poller",
    "calls": "calls answered after leaving",
    "faults": "page faults answered",
    "other": "other work between guest code",
    "idle": "waiting with nothing to run",
}
FILES = 5000
ROWS = 100_000
FUNCTIONS = 300
SHOWN_CALLS = 6

_MODULES = (
    "argparse, asyncio, decimal, email, hashlib, http.client, json, logging, sqlite3, unittest"
)
_OUT = "/tmp/kvmlet-profile"


@dataclass(frozen=True, slots=True)
class Profile:
    """One run's wall time, divided. All times in nanoseconds."""

    name: str
    native_ns: float
    wall_ns: float
    parts: dict[str, float]
    """By the keys of `PARTS`."""
    calls: list[tuple[str, float, float]]
    """Name, how many, time outside of guest code; the longest first."""


def divide(name: str, guest: Run, native_ns: float, x_ns: float, python_ns: float) -> Profile:
    """Divide the time of a run of `kvmlet run`. Raises BenchError."""

    def ns(counter: str) -> float:
        return guest.stat(f"{counter}_us") * 1e3

    def spent_ns(work: str) -> float:
        # Only what was done has a counter.
        return guest.stats.get(f"{work}_us", 0) * 1e3

    counts = {
        counter.removeprefix("call_"): count
        for counter, count in guest.stats.items()
        if counter.startswith("call_")
    }
    calls = sorted(
        ((call, count, spent_ns(f"time_{call}")) for call, count in counts.items()),
        key=lambda call: (-call[2], -call[1]),
    )
    own_ns = guest.wall_ns - guest.stat("wall_us") * 1e3
    leaving_calls, leaving_faults = (
        guest.stat(f"exits_{cause}") * x_ns for cause in ("syscall", "fault")
    )
    polled, faults = ns("poller_useful"), spent_ns("fault")
    answered = max(sum(time_ns for _, _, time_ns in calls) - polled, 0)
    parts = {
        "python": min(python_ns, own_ns),
        "ours": max(own_ns - python_ns, 0),
        "setup": ns("setup"),
        # On a busy machine an exit may have taken less now than when X was measured.
        "guest": max(ns("guest") - leaving_calls - leaving_faults - polled, 0),
        "leaving_calls": leaving_calls,
        "leaving_faults": leaving_faults,
        "polled": polled,
        "calls": answered,
        "faults": faults,
        "other": max(ns("personality") - answered - faults, 0),
        "idle": ns("idle"),
    }
    return Profile(name, native_ns, guest.wall_ns, parts, calls)


# ---- the programs ----


def _python(code: str) -> list[str]:
    return ["/usr/bin/python3", "-c", code]


def _sqlite() -> list[str]:
    # Natively the file is there from the run before.
    statements = f"""
        PRAGMA synchronous = OFF;
        DROP TABLE IF EXISTS item;
        CREATE TABLE item(id INTEGER PRIMARY KEY, price INTEGER, name TEXT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ROWS})
        INSERT INTO item SELECT i, i * 7919 % 1000, hex(i) FROM n;
        CREATE INDEX by_price ON item(price);
        SELECT price, count(*), max(name) FROM item GROUP BY price;
    """
    return ["sqlite3", f"{_OUT}.db", statements]


def _tar() -> list[str]:
    top = Path("profile-tree")
    if not (top / "done").exists():
        for number in range(FILES):
            directory = top / f"{number % 50:02}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"{number:04}").write_bytes(b"x" * (number * 37 % 8192))
        (top / "done").touch()
    return ["tar", "-c", "-f", f"{_OUT}.tar", str(top)]


def _compiler() -> list[str]:
    found = subprocess.run(
        ["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = ["typedef unsigned long u64;"]
    for number in range(FUNCTIONS):
        lines += [
            f"u64 f{number}(u64 a, u64 b)",
            "{",
            f"    for (u64 i = 0; i < {number % 9 + 2}; i++)",
            f"        a = a * {number + 3} + (b ^ i) % {number + 7};",
            f"    return a + {f'f{number - 1}(b, a)' if number else 'b'};",
            "}",
        ]
    # Not beside the measured programs: every source there is one of them.
    source = Path("profile-source/big.c")
    source.parent.mkdir(exist_ok=True)
    source.write_text("\n".join(lines) + "\n")
    return [found, "-quiet", "-O1", str(source), "-o", f"{_OUT}.s"]


PROGRAMS: dict[str, Callable[[], list[str]]] = {
    "python3 -c pass": partial(_python, "pass"),
    "ten imports": partial(_python, f"import {_MODULES}"),
    f"sqlite3, {ROWS:,} rows": _sqlite,
    f"tar of {FILES:,} files": _tar,
    "cc1 -O1": _compiler,
}


# ---- measuring and showing ----


def main() -> int:
    """Run the bench; the exit status."""
    options = parser("profile.py", __doc__, list(PROGRAMS)).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-profile`", file=sys.stderr)
        return 2
    profiles: list[Profile] = []
    cases = [
        Case(name, partial(_measured, name, profiles))
        for name in PROGRAMS
        if not options.only or name in options.only
    ]
    try:
        status = run(cases, options)
    finally:
        for suffix in (".db", ".tar", ".s"):
            Path(_OUT + suffix).unlink(missing_ok=True)
    for profile in profiles:
        print(_table(profile))
    if profiles:
        from plot import plot_profiles

        path = HERE / "out" / "profile.png"
        path.parent.mkdir(exist_ok=True)
        plot_profiles(profiles, PARTS, path)
        print(f"\n{os.path.relpath(path, HERE.parent)} shows the same")
    return status


def _measured(name: str, profiles: list[Profile], pairs: int) -> list[Row]:
    """Rows of wall times against native; the profile of each median run goes to `profiles`."""
    argv = PROGRAMS[name]()
    if shutil.which(argv[0]) is None:
        raise BenchError(f"{argv[0]} is not installed")
    rounds = interleave(
        pairs,
        partial(native, [program("kvm_floor"), "exit"]),
        partial(native, [sys.executable, "-c", "pass"]),
        partial(native, argv),
        *(partial(kvmlet, argv, calls=mode) for mode in MODES),
    )
    rows = []
    for arm, mode in enumerate(MODES, start=3):
        middle = sorted(rounds, key=lambda runs: runs[arm].wall_ns)[len(rounds) // 2]
        floor, python, plain, guest = *middle[:3], middle[arm]
        profile = divide(
            f"{name}, {mode}", guest, plain.wall_ns, floor.value("x_ns"), python.wall_ns
        )
        profiles.append(profile)
        row = compare(
            f"{name}, {mode}, against native",
            [runs[arm].wall_ns for runs in rounds],
            [runs[2].wall_ns for runs in rounds],
            counts={
                **guest.stats,
                **{f"part_{part}_ns": time_ns for part, time_ns in profile.parts.items()},
            },
            shown=("exits", "faults"),
        )
        rows.append(row)
    return rows


def _table(profile: Profile) -> str:
    wall, natively = amount(profile.wall_ns, "ns"), amount(profile.native_ns, "ns")
    lines = ["", f"{profile.name}: {wall}, natively {natively}"]
    for part, title in PARTS.items():
        time_ns = profile.parts[part]
        lines.append(f"  {title:<34} {amount(time_ns, 'ns'):>10} {time_ns / profile.wall_ns:7.1%}")
    for call, count, time_ns in profile.calls[:SHOWN_CALLS]:
        lines.append(f"    {call:<32} {amount(time_ns, 'ns'):>10} in {count:,.0f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
