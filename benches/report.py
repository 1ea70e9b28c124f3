"""Cases, the rows that they give, and how a bench shows them and judges its promises."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from measure import BUILD, BenchError, Spread, build

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LEAST_PAIRS = 15
_CPUINFO = Path("/proc/cpuinfo")

_UNITS = {
    "ns": (("s", 1e9), ("ms", 1e6), ("us", 1e3), ("ns", 1)),
    "bytes": (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)),
}


@dataclass(frozen=True, slots=True)
class Promise:
    """A bound on a ratio."""

    sense: str
    """"<=" or ">="."""
    bound: float
    unit: str
    """What the ratio counts: "X", "native"."""

    def holds(self, ratio: float) -> bool:
        """True if `ratio` keeps the promise."""
        return ratio <= self.bound if self.sense == "<=" else ratio >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: medians of both sides, and the spread of the ratio of each pair."""

    what: str
    ours: float
    theirs: float
    ratio: Spread
    promise: Promise | None
    counts: dict[str, float] = field(default_factory=dict)
    """kvmlet's counters, each a median over the runs."""
    shown: tuple[str, ...] = ()
    """The counters that explain the row, of those above."""
    unit: str = "ns"
    """Of both sides: "ns", "bytes" or "" for counts."""

    @property
    def verdict(self) -> str:
        """ "holds" or "open", or nothing where nothing is promised."""
        if self.promise is None:
            return ""
        return "holds" if self.promise.holds(self.ratio.median) else "open"


@dataclass(frozen=True, slots=True)
class Case:
    """A group of rows that come from the same runs."""

    name: str
    rows: Callable[[int], list[Row]]
    """Given the number of pairs. Raises BenchError."""
    breakdown: bool = False
    """Whether every counter is shown below the rows."""


def compare(
    what: str,
    ours: list[float],
    theirs: list[float],
    promise: Promise | None = None,
    *,
    counts: dict[str, float] | None = None,
    shown: tuple[str, ...] = (),
    unit: str = "ns",
) -> Row:
    """A row of paired measurements. A promise of ">=" compares speeds, else what was measured."""
    faster = promise is not None and promise.sense == ">="
    ratios = [b / a if faster else a / b for a, b in zip(ours, theirs, strict=True)]
    return Row(
        what,
        Spread.of(ours).median,
        Spread.of(theirs).median,
        Spread.of(ratios),
        promise,
        counts or {},
        shown,
        unit,
    )


def parser(name: str, description: str | None, cases: Sequence[str]) -> argparse.ArgumentParser:
    """The options that every bench has; `cases` are the names that it knows."""
    options = argparse.ArgumentParser(prog=f"benches/{name}", description=description)
    options.add_argument("--json", type=_absolute, metavar="FILE", help="write the figures to FILE")
    options.add_argument(
        "--check", action="store_true", help="exit with status 1 unless every promise holds"
    )
    options.add_argument(
        "--only",
        action="append",
        choices=list(cases),
        help="measure only this group; may be repeated",
    )
    options.add_argument(
        "--write",
        type=_absolute,
        metavar="PAGE",
        help="replace this bench's section of PAGE by the figures (docs/measurements.md)",
    )
    options.set_defaults(bench=f"benches/{name}")
    return options


def run(cases: Sequence[Case], options: argparse.Namespace) -> int:
    """Measure, show and judge `cases`; the exit status."""
    try:
        pairs = _pairs()
        if options.write is not None:
            _check_write(options, pairs)
        build()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    os.chdir(BUILD)
    print(_machine(pairs), flush=True)
    started = time.monotonic()
    failures: dict[str, str] = {}
    groups: dict[str, list[Row]] = {}
    for case in cases:
        groups[case.name] = _measured(case, pairs, failures)
    rows = [row for group in groups.values() for row in group]
    _summary(rows, failures, time.monotonic() - started)
    if options.json is not None:
        options.json.write_text(json.dumps(_document(pairs, groups, failures), indent=2) + "\n")
    if options.write is not None:
        body = section(groups, failures, _conditions(pairs))
        page = options.write.read_text(encoding="utf-8")
        options.write.write_text(with_section(page, options.bench, body), encoding="utf-8")
    missed = failures or any(row.verdict == "open" for row in rows)
    return 1 if options.check and missed else 0


def amount(value: float, unit: str) -> str:
    """A time in nanoseconds, a size in bytes, or a plain number, for people."""
    for name, size in _UNITS.get(unit, ()):
        if value >= size:
            return f"{value / size:.{1 if size == 1 else 2}f} {name}"
    return f"{value:,.1f} {unit}".rstrip()


def section(
    groups: dict[str, list[Row]], failures: dict[str, str], conditions: Sequence[str]
) -> str:
    """A bench's figures as a part of a page: under which conditions, and a table of the rows."""
    lines = [
        *(f"- {condition}" for condition in conditions),
        "",
        "| Group | What | kvmlet | Compared with | Ratio [quartiles] | Promise | State |",
        "|---|---|---:|---:|---|---|---|",
    ]
    for name, rows in groups.items():
        lines += [_cells(name, row) for row in rows]
    lines += [
        f"| {_plain(name)} | failed: {_plain(why)} | | | | | |" for name, why in failures.items()
    ]
    return "\n".join(lines)


def with_section(page: str, bench: str, body: str) -> str:
    """`page` with `body` between the markers of `bench`; they are added at its end if missing."""
    start, end = f"<!-- written by {bench} -->", f"<!-- end of {bench} -->"
    before, has_start, rest = page.partition(start)
    _, has_end, after = rest.partition(end)
    if has_start and has_end:
        return f"{before}{start}\n{body}\n{end}{after}"
    if has_start or end in page:
        raise BenchError(f"one of the markers of {bench} is missing")
    return f"{page.rstrip()}\n\n## {bench}\n\n{start}\n{body}\n{end}\n"


def _cells(group: str, row: Row) -> str:
    low, high = row.ratio.low, row.ratio.high
    cells = (
        _plain(group),
        _plain(row.what),
        amount(row.ours, row.unit),
        amount(row.theirs, row.unit),
        f"{row.ratio.median:.3f} [{low:.3f}, {high:.3f}]",
        str(row.promise or ""),
        row.verdict,
    )
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """`text` for a cell of a table."""
    return " ".join(text.replace("|", "\\|").split())


def _check_write(options: argparse.Namespace, pairs: int) -> None:
    """Refuses before anything is measured. Raises BenchError."""
    if options.only:
        raise BenchError("--write takes a whole run: leave --only out")
    if pairs < LEAST_PAIRS:
        raise BenchError(f"--write takes at least {LEAST_PAIRS} pairs")
    try:
        with_section(options.write.read_text(encoding="utf-8"), options.bench, "")
    except OSError as error:
        raise BenchError(f"--write: {error}") from None


def _conditions(pairs: int) -> list[str]:
    """The day, the machine and the run that figures belong to."""
    day = datetime.now(UTC).date().isoformat()
    return [
        f"Day: {day}",
        f"Kernel: Linux {platform.release()}",
        f"CPU: {cpu_model(_CPUINFO.read_text())}, {os.cpu_count()} CPUs",
        f"Pairs: {pairs}",
    ]


def cpu_model(cpuinfo: str) -> str:
    """The name of the first CPU in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "unknown"


def _absolute(name: str) -> Path:
    # A bench changes its directory before it writes.
    return Path(name).absolute()


def _pairs() -> int:
    """Pairs per ratio: KVMLET_BENCH_PAIRS, for a quick look also fewer. Raises BenchError."""
    text = os.environ.get("KVMLET_BENCH_PAIRS", str(LEAST_PAIRS))
    if not text.isdecimal() or int(text) < 1:
        raise BenchError(f"KVMLET_BENCH_PAIRS={text} is not a positive number")
    return int(text)


def _machine(pairs: int) -> str:
    load, _, _ = os.getloadavg()
    few = "" if pairs >= LEAST_PAIRS else f" (fewer than {LEAST_PAIRS}: no verdict to rely on)"
    return (
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {load:.1f}; "
        f"medians of {pairs} interleaved pairs{few}, quartiles in brackets"
    )


def _measured(case: Case, pairs: int, failures: dict[str, str]) -> list[Row]:
    """The case's rows, printed as they come; what went wrong goes to `failures`."""
    print(f"\n{case.name}", flush=True)
    try:
        rows = case.rows(pairs)
    except BenchError as error:
        failures[case.name] = str(error)
        print(f"  failed: {error}", flush=True)
        return []
    for row in rows:
        print(_line(row), flush=True)
    for row in rows:
        if row.counts and case.breakdown:
            print(_breakdown(row), flush=True)
    return rows


def _line(row: Row) -> str:
    ratio = f"{row.ratio.median:.3f} [{row.ratio.low:.3f}, {row.ratio.high:.3f}]"
    promise = f"{row.promise}: {row.verdict}" if row.promise else ""
    counts = ", ".join(f"{row.counts[n]:,.4g} {n}" for n in row.shown if n in row.counts)
    text = (
        f"  {row.what:<58} {amount(row.ours, row.unit):>10} /{amount(row.theirs, row.unit):>10}"
        f"  {ratio:<24} {promise:<22} {counts}"
    )
    return text.rstrip()


def _breakdown(row: Row) -> str:
    """All counters of a row's median run."""
    lines = [f"  counters of {row.what}:"]
    for name, value in row.counts.items():
        shown = amount(value * 1e3, "ns") if name.endswith("_us") else f"{value:,.0f}"
        lines.append(f"    {name:<32} {shown:>12}")
    return "\n".join(lines)


def _summary(rows: list[Row], failures: dict[str, str], seconds: float) -> None:
    verdicts = [row.verdict for row in rows if row.promise]
    print(
        f"\n{verdicts.count('holds')} promises hold, {verdicts.count('open')} are open, "
        f"{len(failures)} groups failed; {seconds:.0f} s"
    )


def _document(
    pairs: int, groups: dict[str, list[Row]], failures: dict[str, str]
) -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "pairs": pairs,
        "rows": [
            {"group": name, **asdict(row), "verdict": row.verdict}
            for name, rows in groups.items()
            for row in rows
        ],
        "failures": failures,
    }
