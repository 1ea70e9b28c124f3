"""One process runs hostile guests one after another and stays as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HANG_S, HW
from e2e.service import TASKS
from escape.layout import PAGES

if TYPE_CHECKING:
    import pathlib

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]

DRIVER = (
    TASKS
    + """
import ctypes, json, os, sys
import kvmlet

libc = ctypes.CDLL(None)

def state():
    # What the allocator keeps for later is no leak.
    libc.malloc_trim(0)
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * 4096
    return {"fds": len(os.listdir("/proc/self/fd")), "threads": len(tasks()), "resident": resident}

def check():
    run = kvmlet.run(["/bin/echo", "fine"], timeout=60)
    assert run.ok and run.stdout == b"fine\\n", run

check()
before = state()
ends = []
for argv, memory, timeout in json.load(sys.stdin):
    try:
        run = kvmlet.run(argv, memory=memory, timeout=timeout)
        ends.append((argv, run.reason, run.exit_code, run.signal))
    except kvmlet.KvmletError as error:
        ends.append((argv, "error", type(error).__name__, str(error)))
    check()
json.dump({"before": before, "after": state(), "ends": ends}, sys.stdout)
"""
)

GUESTS: list[tuple[list[str], str, int]] = [
    (["./fuzz", "101", "3000"], "64m", 20),
    (["./hog", "threads"], "64m", 2),
    (["./hog", "areas"], "64m", 2),
    (["./hog", "sparse-2mib"], "64m", 2),
    (["./hog", "descriptors", "/usr/bin/env"], "64m", 2),
    (["./hog", "descriptors", "/usr/bin/env"], "64m", 2),
    (["./hog", "names", "s"], "64m", 2),
    (["./hog", "pipes"], "64m", 2),
    (["./hog", "spinning-threads"], "64m", 2),
    (["./hog", "robust"], "64m", 2),
    (["./sigframe", "loose"], "64m", 20),
    (["./privileged", "loose"], "64m", 20),
    (["./vmmpages", "area"], "64m", 20),
    (["./stubjump", hex(PAGES["SYSCALL_CODE"]), "0", "256", "1"], "64m", 20),
    (["./canon"], "64m", 20),
]


@pytest.mark.slow
def test_the_next_run_works_and_nothing_is_left(hostile: pathlib.Path) -> None:
    # Every third on the emulated machine.
    guests = GUESTS[::3] if HW else GUESTS
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=hostile,
        input=json.dumps(guests),
        capture_output=True,
        text=True,
        timeout=HANG_S * 3,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    for argv, reason, code, detail in said["ends"]:
        assert reason in ("exited", "signal", "timeout", "memory"), (argv, reason, code, detail)
    before, after = said["before"], said["after"]
    assert after["fds"] == before["fds"]
    assert after["threads"] == before["threads"]
    assert after["resident"] <= before["resident"] + (16 << 20), (before, after)
