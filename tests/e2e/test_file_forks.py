"""Random changes of files with freezes, forks and resets between, against native runs."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import subprocess
import urllib.request

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, LONG, NO_RUNTIMES, command, repeated
from e2e.test_overlay import fill, state

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

OPERATIONS = pathlib.Path(__file__).parent / "overlay_ops.py"
# Each of four stretches of a turn: 10,000 operations in all in `make test-long`.
COUNT = repeated(500, 20, short=120)
TURNS = repeated(5, 1, short=1)


def native(tree: pathlib.Path, seed: int) -> list[bytes]:
    run = command(["/usr/bin/python3", os.fspath(OPERATIONS), str(seed), str(COUNT)], cwd=tree)
    assert run.status == 0, run.stderr
    return run.stdout.splitlines()


def copied(tree: pathlib.Path, name: str) -> pathlib.Path:
    copy = tree.parent / name
    shutil.rmtree(copy, ignore_errors=True)
    subprocess.run(["cp", "-a", tree, copy], check=True)
    return copy


def compare(found: list[bytes], wanted: list[bytes], where: str) -> None:
    differ = [pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]]
    assert not differ, (where, differ[0])
    assert len(found) == len(wanted), where


@pytest.mark.parametrize("memory", ["256m", "48m"] if LONG else ["48m"])
def test_a_box_its_forks_and_resets(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    """With 48 MiB most of it lies on the disk."""
    monkeypatch.setenv("KVMLET_TMPDIR", "/var/tmp")
    tree = tmp_path / "tree"
    tree.mkdir()
    chance = random.Random(3)

    def inside(box: kvmlet.Box, seed: int) -> list[bytes]:
        words = ["/usr/bin/python3", os.fspath(OPERATIONS), str(seed), str(COUNT)]
        return box.run(words, timeout=HANG_S).check().stdout.splitlines()

    with kvmlet.Box(memory=memory, read=[OPERATIONS]) as box:
        if memory == "48m":
            # Past memory's share from the start.
            box.run("head -c 16M /dev/zero > /tmp/filler", shell=True).check()
        for turn in range(TURNS):
            first, second, third = (chance.randrange(1 << 30) for _ in range(3))
            compare(inside(box, first), native(tree, first), f"{turn}: the box")
            (fork,) = box.fork(1)
            with fork:
                compare(inside(fork, second), native(copied(tree, "one"), second), f"{turn}: fork")
                fork.reset()
                compare(inside(fork, third), native(copied(tree, "two"), third), f"{turn}: reset")
            # What its fork did is not the box's.
            compare(inside(box, second), native(tree, second), f"{turn}: the box again")


SERVER = """
import http.server, subprocess, sys
operations, seed, count = sys.argv[1:4]
def run(seed):
    words = [sys.executable, operations, seed, count]
    return subprocess.run(words, capture_output=True, check=True).stdout
run(seed)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = run(self.path[1:])
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


def test_an_overlay_its_forks_and_resets(tmp_path: pathlib.Path) -> None:
    """Each request meets the tree as it was frozen, with changes in it."""
    tree = tmp_path / "tree"
    fill(tree, 1, random.Random(5))
    warm = copied(tree, "warm")
    native(warm, 1)
    before = state(tree)
    words = ["/usr/bin/python3", "-c", SERVER, os.fspath(OPERATIONS), "1", str(COUNT)]
    with kvmlet.serve(
        words, cwd=tree, forks=2, timeout=HANG_S, boot_timeout=HANG_S, read=[OPERATIONS]
    ) as server:
        for seed in range(2, 2 + repeated(16, 1, short=3)):
            with urllib.request.urlopen(f"{server.url}/{seed}", timeout=HANG_S) as answer:
                found = answer.read().splitlines()
            compare(found, native(copied(warm, "native"), seed), f"request {seed}")
    assert state(tree) == before
