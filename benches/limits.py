"""`make bench-limits`: how soon a limit and a signal end guests that give the host long work.

Each try takes the next of the programs (tests/escape/guests/endless.c), with another hostile guest
beside it. Printed are the median, the value that 95 of 100 tries keep, and the slowest program.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from itertools import cycle, islice
from typing import TYPE_CHECKING, NamedTuple

from measure import ENV, HERE, KVMLET, BenchError, Spread

if TYPE_CHECKING:
    from collections.abc import Callable

GUESTS = HERE.parent / "tests" / "escape" / "guests" / "build"
PROGRAMS = (
    *(("pairs", "1"), ("pairs", "8"), ("pairs", "100"), ("read", "/dev/urandom")),
    *(("pairs", "8", "epolls"), ("pairs", "8", "polls"), ("counters",), ("datagrams",)),
    *(("frames",), ("closing",), ("timers",), ("memory", "resident"), ("memory", "populate")),
    *(("file", "write"), ("file", "copy"), ("file", "fallocate"), ("file", "send")),
    *(("memory", "mlock"), ("memory", "advise"), ("memory", "sparse")),
)
LIMIT_S, WORKING_S = 1.0, 0.3
PROMISED_S = {"--timeout 1s": 1.3, "SIGTERM": 0.3}
HANG_S = 60


class Try(NamedTuple):
    """One run that was ended."""

    took_s: float
    program: str


def started(program: tuple[str, ...], *options: str) -> subprocess.Popen[bytes]:
    """A run of `program`, at its work."""
    argv = [str(KVMLET), "run", "--memory", "1g", *options, "--", "./endless", *program]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(argv, cwd=GUESTS, env=ENV, stdin=null, stdout=pipe, stderr=null)


def by_limit(program: tuple[str, ...]) -> Try:
    """From the start of kvmlet to its end. Raises BenchError."""
    start = time.monotonic()
    with started(program, "--timeout", f"{LIMIT_S:g}s") as process:
        status = process.wait(HANG_S)
    took_s = time.monotonic() - start
    if status != 124:
        raise BenchError(f"{' '.join(program)}: status {status}, not 124")
    return Try(took_s, " ".join(program))


def by_signal(program: tuple[str, ...]) -> Try:
    """From the signal to kvmlet's end. Raises BenchError."""
    with started(program) as process:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise BenchError(f"{' '.join(program)} did not begin")
        time.sleep(WORKING_S)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(HANG_S)
    return Try(time.monotonic() - start, " ".join(program))


def measure(name: str, attempt: Callable[[tuple[str, ...]], Try], tries: int) -> bool:
    """Print a row; whether 95 of 100 tries keep the promise."""
    done = [attempt(program) for program in islice(cycle(PROGRAMS), tries)]
    took = sorted(one.took_s for one in done)
    most_s, promised_s = took[min(len(took) - 1, len(took) * 95 // 100)], PROMISED_S[name]
    worst = max(done)
    holds = most_s <= promised_s
    print(
        f"{name}: median {Spread.of(took).median:.3f} s, 95 of 100 within {most_s:.3f} s "
        f"(<= {promised_s:g} s: {'holds' if holds else 'open'}), slowest {worst.took_s:.3f} s "
        f"({worst.program})",
        flush=True,
    )
    return holds


def main() -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser("limits.py", description=__doc__)
    parser.add_argument("--tries", type=int, default=100, metavar="N")
    parser.add_argument("--check", action="store_true", help="status 1 unless both hold")
    options = parser.parse_args()
    if not (GUESTS / "endless").exists():
        print("bench: the guests are missing: run `make bench-limits`", file=sys.stderr)
        return 2
    with started(("read", "/dev/urandom")) as beside:
        try:
            kept = [
                measure("--timeout 1s", by_limit, options.tries),
                measure("SIGTERM", by_signal, options.tries),
            ]
        finally:
            beside.kill()
    return 1 if options.check and not all(kept) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BenchError as error:
        sys.exit(f"bench: {error}")
