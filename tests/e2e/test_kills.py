"""kvmlet is killed at random moments: no process is left, and no half-written file."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import subprocess
import time

import pytest

from e2e.oracle import ENV, HANG_S, HW, KVMLET, NO_RUNTIMES, command, kvmlet_argv, repeated
from e2e.test_kept_changes import saved_in

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

FILES = 20
OLD, NEW = "old {}\n" * 100, "new {}\n" * 2000
# In the tree that is kept as a program would write it; in the one of --write by renames.
PROGRAM = f"""
import os, sys
new = {NEW!r}
for number in range({FILES}):
    open(f"f{{number}}", "w").write(new.replace("{{}}", str(number)))
    os.mkdir(f"d{{number}}")
    open(f"d{{number}}/x", "w").write("x" * 70_000)
for number in range({FILES}):
    name = f"{{sys.argv[1]}}/f{{number}}"
    open(name + "~", "w").write(new.replace("{{}}", str(number)))
    os.rename(name + "~", name)
open("/tmp/big", "wb").write(bytes(20 << 20))
"""


def text(pattern: str, number: int) -> str:
    return pattern.replace("{}", str(number))


def processes_in(*places: pathlib.Path) -> list[str]:
    """Processes whose working directory is one of these."""
    found = []
    for each in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(each / "cwd") in map(os.fspath, places):
                found.append((each / "cmdline").read_text())
        except OSError:
            continue
    return found


def none_is_left(*places: pathlib.Path) -> None:
    end = time.monotonic() + 10
    while (left := processes_in(*places)) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []


def test_kills_at_random_moments(tmp_path: pathlib.Path) -> None:
    first = tmp_path / "first"
    first.mkdir()
    for number in range(FILES):
        (first / f"f{number}").write_text(text(OLD, number))
    spill = tmp_path / "spill"
    spill.mkdir()
    env = {**ENV, "KVMLET_TMPDIR": os.fspath(spill)}
    chance = random.Random(11)
    seen = {"whole": 0, "old": 0, "saved": 0}

    def start(kept: pathlib.Path, written: pathlib.Path) -> subprocess.Popen[bytes]:
        options = ["--changes", "keep", "-q", "-m", "64m", "--write", os.fspath(written)]
        words = ["/usr/bin/python3", "-c", PROGRAM, os.fspath(written)]
        return subprocess.Popen(kvmlet_argv(words, options), cwd=kept, env=env)

    def trees(name: str) -> tuple[pathlib.Path, pathlib.Path]:
        both = tmp_path / f"kept{name}", tmp_path / f"written{name}"
        for tree in both:
            shutil.copytree(first, tree)
        return both

    began = time.monotonic()
    whole = start(*trees("-whole"))
    assert whole.wait(HANG_S) == 0
    took_s = time.monotonic() - began
    for turn in range(repeated(200, 1, short=4)):
        kept, written = trees(f"{turn}")
        running = start(kept, written)
        time.sleep(chance.random() * took_s * 1.05)
        running.send_signal(signal.SIGKILL)
        running.wait(HANG_S)
        none_is_left(kept, written)
        assert list(spill.iterdir()) == [], turn
        for tree in (kept, written):
            for number in range(FILES):
                found = (tree / f"f{number}").read_text()
                assert found in (text(OLD, number), text(NEW, number)), (turn, tree, number)
        for path in kept.glob("d*/x"):
            assert path.stat().st_size == 70_000, (turn, path)
        # A set that was saved in part is never made; one that is whole can be.
        for name in saved_in(kept):
            seen["saved"] += 1
            whole_set = (kept / name / "manifest").exists()
            done = command([str(KVMLET), "apply", name], cwd=kept)
            assert done.status == 0, (turn, done)
            assert not whole_set or (kept / "f0").read_text() == text(NEW, 0)
        assert saved_in(kept) == []
        seen["whole" if (kept / "d0").exists() else "old"] += 1
        shutil.rmtree(kept)
        shutil.rmtree(written)
    assert sum(seen.values()) > 0
