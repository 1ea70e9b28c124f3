"""`benches/versions.py OLDER`: this build beside another one, in pairs of one run.

OLDER is a checkout in which `make develop-release` was run. Each row is the time of this build
divided by the time of the other: the median over interleaved pairs, its quartiles beside it. A row
holds if its median is at most 1.03, or if 1 lies between its quartiles.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import (
    BUILD,
    HERE,
    KVMLET,
    BenchError,
    Spread,
    build,
    interleave,
    kvmlet,
    native,
    program,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from measure import Run

BOUND = 1.03
LEAST_PAIRS = 31
_PAGES = (0, 16, 581)


def _calls(older: Path, calls: str) -> list[Callable[[], Run]]:
    argv = [program("calls")]
    return [partial(kvmlet, argv, calls=calls, command=at / "kvmlet") for at in _both(older)]


def _python(older: Path) -> list[Callable[[], Run]]:
    argv = ["/usr/bin/python3", "-c", "pass"]
    return [partial(kvmlet, argv, command=at / "kvmlet") for at in _both(older)]


def _resets(older: Path, pages: int) -> list[Callable[[], Run]]:
    argv = [str(HERE / "version_reset.py"), str(pages)]
    return [partial(native, [str(at / "python"), *argv]) for at in _both(older)]


def _both(older: Path) -> tuple[Path, Path]:
    return KVMLET.parent, older / ".venv" / "bin"


def _row(
    what: str,
    arms: list[Callable[[], Run]],
    value: Callable[[Run], float],
    pairs: int,
) -> bool:
    """Measure and print one row; true if it holds. Raises BenchError."""
    rounds = interleave(pairs, *arms)
    ours, theirs = ([value(run) for run in side] for side in zip(*rounds, strict=True))
    ratio = Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
    holds = ratio.median <= BOUND or ratio.low <= 1 <= ratio.high
    print(
        f"{what:45} {Spread.of(ours).median:12,.0f} / {Spread.of(theirs).median:12,.0f} ns  "
        f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]  {'holds' if holds else 'open'}",
        flush=True,
    )
    return holds


def main() -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser(prog="versions.py", description=__doc__)
    parser.add_argument("older", type=Path, help="a checkout of the other build")
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS, help="at least 31 by the rule")
    options = parser.parse_args()
    for at in _both(options.older):
        if not (at / "kvmlet").exists():
            print(f"bench: {at}/kvmlet is missing: run `make develop-release` there")
            return 2
    older, pairs = options.older.resolve(), options.pairs
    try:
        build()
        os.chdir(BUILD)
        held = [
            _row("getpgrp by exit", _calls(older, "exit"), lambda r: r.value("getpgrp_ns"), pairs),
            _row("getpgrp, polled", _calls(older, "poll"), lambda r: r.value("getpgrp_ns"), pairs),
            _row("python3 -c pass, VM creation to exit", _python(older), _wall_ns, pairs),
            *(
                _row(
                    f"a request that writes {pages} pages, and reset",
                    _resets(older, pages),
                    lambda run: run.value("request_ns"),
                    pairs,
                )
                for pages in _PAGES
            ),
        ]
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print(f"{sum(held)} of {len(held)} rows hold")
    return 0


def _wall_ns(run: Run) -> float:
    return run.stat("wall_us") * 1e3


if __name__ == "__main__":
    sys.exit(main())
