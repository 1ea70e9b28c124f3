"""`make bench-fork`: what freezing, forking and resetting cost, beside 1, 8 and 64 live VMs.

As in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it. X is
the cost of one bare exit from a VM and re-entry, measured in the same process. Every group runs in
a process of its own, which holds as many VMs as its name says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial

from measure import HERE, PEER, BenchError, Spread
from report import Case, Promise, Row, parser, run

LIVE = (1, 8, 64)
LARGE = 1000
GROUPS = ("fork", "reset", "calls", "serve", "memory", "python")
_HANG_S = 1200


def main() -> int:
    """Run the bench; the exit status."""
    arguments = parser("fork.py", __doc__, GROUPS)
    arguments.add_argument("--large", action="store_true", help=f"also beside {LARGE:,} live VMs")
    arguments.add_argument(
        "--live", type=int, action="append", metavar="N", help="beside N live VMs; may be repeated"
    )
    options = arguments.parse_args()
    counts = options.live or [*LIVE, *([LARGE] if options.large else [])]
    cases = [
        Case(f"{name}, {live:,} live", partial(_rows, name, live))
        for live in counts
        for name in GROUPS
        if not options.only or name in options.only
    ]
    return run(cases, options)


def _rows(name: str, live: int, pairs: int) -> list[Row]:
    """The rows of one group, measured in a process of its own. Raises BenchError."""
    argv = [sys.executable, str(HERE / "live.py"), name, str(live), str(pairs)]
    environment = {**os.environ, "LD_PRELOAD": str(PEER)}
    try:
        done = subprocess.run(
            argv, env=environment, capture_output=True, text=True, timeout=_HANG_S
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} took more than {_HANG_S} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BenchError(f"{name} beside {live} live VMs: {lines[-1]}")
    rows = [_row(fields) for fields in json.loads(done.stdout)]
    if name == "reset":
        _plot(rows, live)
    return rows


def _row(fields: dict[str, object]) -> Row:
    ratio, promise = fields["ratio"], fields["promise"]
    made = {
        **fields,
        "ratio": Spread(**ratio) if isinstance(ratio, dict) else ratio,
        "promise": Promise(**promise) if isinstance(promise, dict) else None,
        "shown": tuple(fields["shown"]) if isinstance(fields["shown"], list) else (),
    }
    return Row(**made)  # type: ignore[arg-type]


def _plot(rows: list[Row], live: int) -> None:
    from plot import plot_resets

    path = HERE / "out" / f"reset-{live}.png"
    path.parent.mkdir(exist_ok=True)
    plot_resets([row.counts for row in rows if "pages_dirtied" in row.counts], path, live)


if __name__ == "__main__":
    sys.exit(main())
