"""`make bench-profile`: where the time of some programs goes, as a table and as a picture.

Each program runs natively and by `kvmlet run`, its calls travelling each way. Its wall time, as the
caller sees it, is divided. X is the cost of one bare exit and re-entry, measured beside each run;
"leaving" is X times as many as there were. The work of software KVM to fill the shadow of our
page tables cannot be told from guest code. Nor can the hand-over of a call to the poller.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from measure import BUILD, HERE, KVMLET, interleave, kvmlet, native
from programs import installed
from report import Case, Row, amount, compare, parser, run

if TYPE_CHECKING:
    from measure import Run
    from programs import Program

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
SHOWN_CALLS = 6


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


# ---- measuring and showing ----


def main() -> int:
    """Run the bench; the exit status."""
    programs = {program.name: program for program in installed()}
    options = parser("profile.py", __doc__, list(programs)).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-profile`", file=sys.stderr)
        return 2
    profiles: list[Profile] = []
    wanted = options.only or list(programs)
    status = run(
        [Case(name, partial(_measured, programs[name], profiles)) for name in wanted], options
    )
    for profile in profiles:
        print(_table(profile))
    if profiles:
        from plot import plot_profiles

        path = HERE / "out" / "profile.png"
        path.parent.mkdir(exist_ok=True)
        plot_profiles(profiles, PARTS, path)
        print(f"\n{os.path.relpath(path, HERE.parent)} shows the same")
    return status


def _measured(program: Program, profiles: list[Profile], pairs: int) -> list[Row]:
    """Rows of wall times against native; the profile of each median run goes to `profiles`."""
    name, argv = program.name, list(program.argv)
    with program.in_its_directory():
        rounds = interleave(
            pairs,
            partial(native, [str(BUILD / "kvm_floor"), "exit"]),
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
