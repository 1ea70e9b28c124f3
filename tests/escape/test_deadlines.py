"""Guests that give the host long work: a time limit and signals end each of them all the same."""

from __future__ import annotations

import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, HANG_S, kvmlet_argv

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.usefixtures("vm")

BATCHES = {
    "transfers": (["pairs", "1"], ["pairs", "8"], ["pairs", "100"], ["read", "/dev/urandom"]),
    "watched": (["pairs", "8", "epolls"], ["pairs", "8", "polls"], ["counters"], ["datagrams"]),
    "kernel": (["frames"], ["closing"], ["timers"], ["memory", "resident"], ["ending"]),
    "files": (["file", "write"], ["file", "copy"], ["file", "fallocate"], ["file", "send"]),
    "memory": (
        ["memory", "populate"],
        ["memory", "mlock"],
        ["memory", "advise"],
        ["memory", "sparse"],
    ),
    "sockets": (["./sockets", "chains"], ["./sockets", "storm"], ["./sockets", "headers"]),
}
"""What runs side by side."""

WORKING_S = 0.2
"""How long a guest is at its work before it is stopped."""
LATE_S = 2
"""What a signal may take: 0.1 s, and what a busy machine and the end of the process add."""
LATE_LIMIT_S = 3
"""What a run with a limit of one second may take."""


def started(program: list[str], *options: str) -> subprocess.Popen[bytes]:
    words = program if program[0].startswith("./") else ["./endless", *program]
    return subprocess.Popen(
        kvmlet_argv(words, ["--memory", "1g", *options]),
        env=ENV,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> float:
    """Seconds from now to a run's end."""
    start = time.monotonic()
    try:
        process.wait(HANG_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return time.monotonic() - start


@pytest.mark.parametrize(
    ("batch", "signo"),
    list(zip(BATCHES, cycle([signal.SIGINT, signal.SIGTERM]), strict=False)),
)
def test_a_signal_ends_it(
    hostile: pathlib.Path, monkeypatch: pytest.MonkeyPatch, batch: str, signo: signal.Signals
) -> None:
    monkeypatch.chdir(hostile)

    def stop(program: list[str]) -> tuple[list[str], bytes, int, float]:
        with started(program) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            time.sleep(WORKING_S)
            process.send_signal(signo)
            late_s = ended(process)
            return program, line, process.returncode, late_s

    with ThreadPoolExecutor(len(BATCHES[batch])) as pool:
        for program, line, status, late_s in pool.map(stop, BATCHES[batch]):
            assert (line, status) == (b"ready\n", 128 + signo), program
            assert late_s < LATE_S, f"{program}: {late_s:.1f} s after the signal"


def test_a_limit_of_time_ends_it(hostile: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(hostile)

    def run(program: list[str]) -> tuple[list[str], int, float]:
        with started(program, "--timeout", "1s") as process:
            took_s = ended(process)
            return program, process.returncode, took_s

    programs = BATCHES["transfers"]
    with ThreadPoolExecutor(len(programs)) as pool:
        for program, status, took_s in pool.map(run, programs):
            assert status == 124, program
            assert took_s < LATE_LIMIT_S, f"{program}: {took_s:.1f} s with a limit of 1 s"
