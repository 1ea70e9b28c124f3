"""The guest's clocks beside the host's."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, LONG, kvmlet_argv, native_argv

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Callable

DURATION_S = 30 if LONG else 4
TOLERANCE_NS = 50_000


def measure(argv: list[str], cwd: pathlib.Path, duration_s: float) -> tuple[int, list[int], int]:
    """Ask the guest for its clocks over and over; (rounds, worst deviations in ns, steps back).

    The host reads its own clock before it asks and after it is answered. A guest clock outside
    that bracket deviates by at least its distance from it. So a slow answer cannot fail the test.
    Deviations: monotonic clock by vDSO, by call, real time by vDSO.
    """
    monotonic, real = time.CLOCK_MONOTONIC, time.CLOCK_REALTIME
    worst = [0, 0, 0]
    back = rounds = 0
    newest = 0
    with subprocess.Popen(
        argv, cwd=cwd, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            real_before = time.clock_gettime_ns(real)
            before = time.clock_gettime_ns(monotonic)
            process.stdin.write(b"?")
            line = process.stdout.readline()
            after = time.clock_gettime_ns(monotonic)
            real_after = time.clock_gettime_ns(real)
            first, called, second, wall = map(int, line.split())
            back += not newest <= first <= called <= second
            newest = second
            for i, (value, low, high) in enumerate(
                (
                    (first, before, after),
                    (called, before, after),
                    (wall, real_before, real_after),
                )
            ):
                worst[i] = max(worst[i], low - value, value - high)
            rounds += 1
            # Short and long pauses: the guest also runs on data that has not been refreshed.
            time.sleep((0, 0.001, 0.01, 0.3)[rounds % 4 if rounds % 50 else 3])
        process.stdin.close()
        assert process.wait(30) == 0
    return rounds, worst, back


@pytest.mark.slow
@pytest.mark.default_mode  # no call tells the time
def test_clocks_stay_with_the_host(
    guests: pathlib.Path, native_only: bool, record_property: Callable[[str, object], None]
) -> None:
    rounds, worst, back = measure(native_argv(["./clockping"]), guests, 1.0)
    assert (worst, back) == ([0, 0, 0], 0)
    assert rounds > 3
    if native_only:
        pytest.skip("native side only")
    rounds, worst, back = measure(kvmlet_argv(["./clockping"]), guests, DURATION_S)
    record_property("deviations_ns", worst)
    assert rounds > 10
    assert back == 0, "the guest's clock ran backwards"
    assert max(worst) <= TOLERANCE_NS, f"{worst} ns off after {DURATION_S} s"
