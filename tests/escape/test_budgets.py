"""Guests that take all the descriptors and mappings that they can get: the host keeps its half."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import pytest

from e2e.oracle import HANG_S

pytestmark = pytest.mark.usefixtures("vm")

FILES = 300


@pytest.fixture(scope="module")
def ground(hostile: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A directory with the greedy program and many files."""
    ground = tmp_path_factory.mktemp("ground")
    shutil.copy(hostile / "greedy", ground)
    files = ground / "files"
    files.mkdir()
    for number in range(FILES):
        (files / str(number)).write_bytes(b"x")
    return ground


OURS = ("pipes", "sockets", "memfds", "shared memory", "epolls", "counters", "timers", "threads")
"""What takes nothing of the host's."""

REMEDIES = {
    ("ENFILE", "raise its limit (ulimit -n)"),
    ("ENOMEM", "raise vm.max_map_count"),
}


def counts(said: str) -> dict[str, tuple[int, str]]:
    """The amount of each thing that a guest got, and why no more."""
    found = {}
    for line in said.splitlines():
        what, _, rest = line.partition(": ")
        if rest:
            count, _, why = rest.partition(", ")
            found[what] = (int(count), why)
    return found


DRIVER = """
import json, mmap, os, resource, sys, threading, time
import kvmlet

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), min(1024, hard)))

def held():
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum(1 for _ in maps)

def use_the_rest():
    # What an application does meanwhile: half of everything is its own.
    files = [open(sys.executable, "rb") for _ in range(480)]
    maps = [mmap.mmap(-1, mmap.PAGESIZE) for _ in range(2000)]
    blocks = [bytearray(1 << 20) for _ in range(20)]
    go = threading.Event()
    threads = [threading.Thread(target=go.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    go.set()
    for thread in threads:
        thread.join()
    for one in files + maps:
        one.close()
    return held()

assert kvmlet.run(["/bin/true"]).ok
before = held()
count = 9
said = [b""] * count
boxes = [kvmlet.Sandbox(["./greedy", "files"]) for _ in range(count)]
full = threading.Barrier(count + 1)

def drive(number):
    box = boxes[number]
    while b"has all" not in said[number]:
        box.run_for(0.05)
        said[number] += box.output().stdout
    full.wait()
    try:
        box.run_for(60)
    except kvmlet.Interrupted:
        pass

threads = [threading.Thread(target=drive, args=(number,), daemon=True) for number in range(count)]
for thread in threads:
    thread.start()
use_the_rest()
full.wait()
most = use_the_rest()
start = time.monotonic()
for box in boxes:
    box.interrupt()
for thread in threads:
    thread.join()
stopped_s = time.monotonic() - start
for box in boxes:
    box.close()
del box, boxes
after = held()

# What the nine had is there again, in a child of fork(2) too.
child = os.fork()
if child == 0:
    os._exit(0 if kvmlet.run(["/bin/true"]).ok else 1)
child = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
run = kvmlet.run(["./greedy", "files", "leave"])
denials = [(denial.what, denial.errno, denial.remedy) for denial in run.denials]

json.dump({
    "before": before, "most": most, "after": after, "stopped_s": stopped_s,
    "said": [text.decode() for text in said],
    "child": child, "one": [run.exit_code, run.stdout.decode(), denials],
}, sys.stdout)
"""


@pytest.fixture(scope="module")
def seen(ground: pathlib.Path) -> dict[str, Any]:
    """Greedy guests as an application with the usual limits sees them: nine, then another."""
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        cwd=ground,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def test_nine_at_once_leave_the_host_its_half(seen: dict[str, Any]) -> None:
    # Each got something, and an error that Linux has for what it did not get.
    for said in seen["said"]:
        reached = counts(said)
        # Whether descriptors or mappings end first depends on how far the other eight have come.
        assert reached["maps of files"][1] in ("ENFILE", "ENOMEM"), said
        assert reached["holes"][1] in ("ENOMEM", "EBADF"), said
        assert {reached[what] for what in OURS} == {(40, "stopped")}, said
    # Two sandboxes have what all together may have; what a program is made of is not refused.
    assert max(counts(said)["holes"][0] for said in seen["said"]) > 1000
    descriptors, mappings = seen["most"]
    limit = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text())
    assert descriptors <= seen["before"][0] + 512
    assert mappings <= seen["before"][1] + limit // 2
    # Deadlines and such are another matter; this only is not for ever.
    assert seen["stopped_s"] < 3
    assert seen["after"][0] <= seen["before"][0]
    # What the allocator keeps for threads is no leak.
    assert seen["after"][1] <= seen["before"][1] + 250


def test_another_has_its_part_and_is_told(seen: dict[str, Any]) -> None:
    assert seen["child"] == 0
    status, said, denials = seen["one"]
    assert status == 0
    reached = counts(said)
    # One file takes one descriptor, however often it is opened and mapped.
    assert reached["opened and mapped"] == (400, "stopped"), said
    # A quarter of the limit, less what the program itself has open.
    assert reached["maps of files"][1] == "ENFILE", said
    assert 240 < reached["maps of files"][0] < 256, said
    most = int(pathlib.Path("/proc/sys/vm/max_map_count").read_text()) // 4
    if most < 40_000:
        assert most // 2 - 1000 < reached["holes"][0] <= most // 2, said
        assert reached["holes"][1] == "ENOMEM", said
        # Text that was kept for others is given up first.
        assert reached["maps"][0] <= 2, said
        assert reached["maps"][1] == "ENOMEM", said
        assert reached["longer maps"] == (0, "ENOMEM"), said
    assert reached["rights"] == reached["an end"] == (1, "stopped"), said
    assert {reached[what] for what in OURS} == {(40, "stopped")}, said
    # Each once, with what can be done about it.
    assert len(denials) == len({what for what, _, _ in denials})
    for what, errno, remedy in denials:
        assert (errno, remedy.rpartition(": ")[2]) in REMEDIES, (what, errno, remedy)
    assert {errno for _, errno, _ in denials} >= {"ENFILE"}
