"""`make bench`: what kvmlet costs, as ratios to what it is compared with.

Each ratio is the median over interleaved pairs, its quartiles beside it, so that a loaded machine
shows. Absolute times belong to the machine; the promises (SPECIFICATION.md) are on ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

from cases import CASES, Case, Row, shown_counts
from measure import BUILD, KVMLET, BenchError, build

LEAST_PAIRS = 15


def main() -> int:
    """Run the bench; the exit status."""
    options = _options()
    chosen = [case for case in CASES if not options.only or case.name in options.only]
    try:
        pairs = _pairs()
        if not KVMLET.exists():
            raise BenchError(f"{KVMLET} is missing: run `make bench`")
        build()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    os.chdir(BUILD)
    print(_machine(pairs), flush=True)
    started = time.monotonic()
    failures: dict[str, str] = {}
    rows: list[Row] = []
    for case in chosen:
        rows += _measured(case, pairs, failures)
    _summary(rows, failures, time.monotonic() - started)
    if options.json is not None:
        options.json.write_text(json.dumps(_document(pairs, rows, failures), indent=2) + "\n")
    missed = failures or any(_verdict(row) == "open" for row in rows)
    return 1 if options.check and missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/run.py", description=__doc__)
    parser.add_argument("--json", type=_absolute, metavar="FILE", help="write the figures to FILE")
    parser.add_argument(
        "--check", action="store_true", help="exit with status 1 unless every promise holds"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=[case.name for case in CASES],
        help="measure only this group; may be repeated",
    )
    return parser.parse_args()


def _absolute(name: str) -> Path:
    # The bench changes its directory before it writes.
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
        if row.counts and case.name == "start":
            print(_breakdown(row), flush=True)
    return rows


def _line(row: Row) -> str:
    ratio = f"{row.ratio.median:.3f} [{row.ratio.low:.3f}, {row.ratio.high:.3f}]"
    promise = f"{row.promise}: {_verdict(row)}" if row.promise else ""
    counts = shown_counts(row.counts)
    text = (
        f"  {row.what:<58} {_time(row.ours_ns):>10} /{_time(row.theirs_ns):>10}"
        f"  {ratio:<24} {promise:<22} {counts}"
    )
    return text.rstrip()


def _breakdown(row: Row) -> str:
    """All counters of a row's median run."""
    lines = [f"  counters of {row.what}:"]
    for name, value in row.counts.items():
        shown = _time(value * 1e3) if name.endswith("_us") else f"{value:,.0f}"
        lines.append(f"    {name:<32} {shown:>12}")
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    if row.promise is None:
        return ""
    return "holds" if row.promise.holds(row.ratio.median) else "open"


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if ns >= size:
            return f"{ns / size:.2f} {unit}"
    return f"{ns:.1f} ns"


def _summary(rows: list[Row], failures: dict[str, str], seconds: float) -> None:
    verdicts = [_verdict(row) for row in rows if row.promise]
    print(
        f"\n{verdicts.count('holds')} promises hold, {verdicts.count('open')} are open, "
        f"{len(failures)} groups failed; {seconds:.0f} s"
    )


def _document(pairs: int, rows: list[Row], failures: dict[str, str]) -> dict[str, object]:
    return {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "pairs": pairs,
        "rows": [{**asdict(row), "verdict": _verdict(row)} for row in rows],
        "failures": failures,
    }


if __name__ == "__main__":
    sys.exit(main())
