"""/proc as ps, top, free, vmstat, pmap and psutil read it."""

from __future__ import annotations

import pathlib
import re
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HW, NO_RUNTIMES, in_vm, native

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.skipif(HW, reason=NO_RUNTIMES)

PYTHON = "/usr/bin/python3"


def shape(text: bytes) -> str:
    """A text with its numbers all alike, and without spaces: a number may leave none."""
    words = re.sub(r"\d+([.,:]\d+)*", "N ", text.decode())
    return re.sub(r"[ \t]+", "", words)


def both(argv: Sequence[str], tmp_path: pathlib.Path, native_only: bool) -> tuple[str, str]:
    """Its output natively and in a VM; it must succeed and complain of nothing."""
    runs = [native(argv, cwd=tmp_path)]
    if native_only:
        pytest.skip("native side only")
    runs.append(in_vm(argv, cwd=tmp_path))
    for run in runs:
        assert (run.status, run.guest_stderr) == (0, b"")
    return runs[0].stdout.decode(), runs[1].stdout.decode()


@pytest.mark.parametrize(
    "argv", [["free"], ["free", "-w"], ["vmstat"], ["vmstat", "-s"], ["uptime", "-p"]]
)
def test_tools_of_the_system(argv: list[str], tmp_path: pathlib.Path, native_only: bool) -> None:
    expected, found = both(argv, tmp_path, native_only)
    if argv[0] == "uptime":
        assert found.startswith("up ")
        return
    assert shape(found.encode()) == shape(expected.encode())


def test_top(tmp_path: pathlib.Path, native_only: bool) -> None:
    expected, found = both(["top", "-b", "-n", "1", "-w", "120"], tmp_path, native_only)
    heads = [shape("\n".join(text.splitlines()[1:7]).encode()) for text in (expected, found)]
    assert heads[0] == heads[1]
    rows = [line.split() for line in found.splitlines()[7:]]
    assert {row[-1] for row in rows} >= {"kvmlet", "top"}
    (own,) = (row for row in rows if row[-1] == "top")
    # VIRT, RES and SHR, in KiB.
    assert int(own[4]) >= int(own[5]) >= int(own[6]) > 0


PS = "sleep 60 & sh -c 'ps aux; ps -eo pid,ppid,rss,vsz,stat,comm; kill $1' sh $!"


def test_ps(tmp_path: pathlib.Path, native_only: bool) -> None:
    expected, found = both(["sh", "-c", PS], tmp_path, native_only)
    lines, native_lines = found.splitlines(), expected.splitlines()
    assert lines[0] == native_lines[0]
    assert [line for line in lines if line.split()[0] == "PID"] == [
        line for line in native_lines if line.split()[0] == "PID"
    ]
    rows = [line.split(None, 10) for line in lines if " sleep 60" in line and "ps aux" not in line]
    (row,) = rows
    assert len(row) == 11
    # The memory of each is its own.
    rss = {
        line.split()[5]: int(line.split()[2])
        for line in lines
        if re.fullmatch(r" *\d+ +\d+ +\d+ +\d+ +\S+ +\S+", line)
    }
    assert 0 < rss["sleep"] < 20_000
    assert 0 < rss["ps"] < 20_000


def test_pmap(tmp_path: pathlib.Path, native_only: bool) -> None:
    code = "sleep 60 & pmap -x $!; pmap -X $! | head -n 2 | tail -n 1; pmap -d $!; kill $!"
    expected, found = both(["sh", "-c", code], tmp_path, native_only)
    lines, native_lines = found.splitlines(), expected.splitlines()
    assert lines[0].split(":")[1] == native_lines[0].split(":")[1]
    assert lines[1] == native_lines[1]
    total = next(line.split() for line in lines if line.startswith("total kB"))
    assert int(total[2]) >= int(total[3]) >= int(total[4]) > 0
    columns = next(line.split() for line in lines if "Pss" in line)
    for name in ("Address", "Perm", "Size", "Rss", "Pss", "Referenced", "Anonymous", "Swap"):
        assert name in columns
    assert shape(lines[-1].encode()) == shape(native_lines[-1].encode())


GROWS = """
import mmap, os, re, resource
def kib(name, file="status"):
    text = open(f"/proc/self/{file}").read()
    return sum(int(number) for number in re.findall(rf"^{name}:\\s+(\\d+) kB$", text, re.M))
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4
def near(one, other):
    return abs(one - other) < 2000
before = [kib("VmRSS"), rss(), kib("Rss", "smaps"), kib("Rss", "smaps_rollup")]
print(all(near(each, before[0]) for each in before), before[0] > 4000)
page = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE)
print(near(kib("VmRSS"), before[0]))
page.write(b"x" * (32 << 20))
after = [kib("VmRSS"), rss(), kib("Rss", "smaps"), kib("Rss", "smaps_rollup")]
print([near(new - old, 32 << 10) for old, new in zip(before, after)])
print(near(kib("Private_Dirty", "smaps"), kib("RssAnon")))
shared = mmap.mmap(-1, 8 << 20, mmap.MAP_SHARED)
shared.write(b"x" * (8 << 20))
print(near(kib("RssShmem"), 8 << 10), near(kib("Pss_Shmem", "smaps_rollup"), 8 << 10))
print(kib("VmRSS") == kib("RssAnon") + kib("RssFile") + kib("RssShmem"))
page.close()
print(near(kib("VmRSS"), before[0] + (8 << 10)))
text = open("/proc/self/smaps").read()
headers = re.findall(r"^[0-9a-f]+-[0-9a-f]+ .*$", text, re.M)
print(len(headers) == len(open("/proc/self/maps").read().splitlines()))
print(len(re.findall("^VmFlags: rd", text, re.M)) > 5)
# By parts, from anywhere.
with open("/proc/self/smaps", "rb", buffering=0) as file:
    parts = b""
    while part := file.read(777):
        parts += part
    file.seek(3000)
    print(len(parts) > 10000, parts[3000:3100] == file.read(100))
pid = os.fork()
if not pid:
    os.execv("/bin/sleep", ["sleep", "60"])
while b"sleep" not in open(f"/proc/{pid}/cmdline", "rb").read():
    pass
other = int(open(f"/proc/{pid}/statm").read().split()[1]) * 4
print(0 < other < 8000)
os.kill(pid, 9)
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
print(open(f"/proc/{pid}/smaps").read() == "")
"""


def test_memory_of_a_process(tmp_path: pathlib.Path, native_only: bool) -> None:
    expected, found = both([PYTHON, "-c", GROWS], tmp_path, native_only)
    assert "False" not in expected
    assert found == expected


def test_the_kernels_stack_is_not_shown(tmp_path: pathlib.Path) -> None:
    # Natively it can be opened, and not read.
    code = "cat /proc/self/stack 2>&1 | grep -o 'Operation not permitted'; test -e /proc/self/stack"
    run = in_vm(["sh", "-c", code], cwd=tmp_path)
    assert (run.status, run.stdout) == (0, b"Operation not permitted\n")


BUSY = """
import os, pathlib, sys, threading, time
def busy():
    before = time.thread_time()
    while time.thread_time() < before + 0.1:
        pass
def total():
    with open("/proc/stat") as stat:
        user, nice, system, _, _, _, _, stolen = map(int, stat.readline().split()[1:9])
    return user + nice + system + stolen
def in_cgroup():
    lines = pathlib.Path("/sys/fs/cgroup/cpu.stat").read_text().splitlines()
    return int(lines[0].removeprefix("usage_usec "))
before = total()
thread = threading.Thread(target=busy)
thread.start()
thread.join()
if not (child := os.fork()):
    busy()
    os._exit(0)
os.waitpid(child, 0)
inside = "inside" in sys.argv
# Natively it is counted by whom a tick meets: that may be much less.
print(total() - before >= (15 if inside else 1))
if inside:
    print(in_cgroup() >= 200_000)
"""


def test_the_time_of_those_that_have_ended(tmp_path: pathlib.Path, native_only: bool) -> None:
    """It counts in /proc/stat, as natively, and in the control group."""
    argv = [PYTHON, "-c", BUSY]
    assert native(argv, cwd=tmp_path).stdout == b"True\n"
    if not native_only:
        assert in_vm([*argv, "inside"], cwd=tmp_path).stdout == b"True\nTrue\n"


PSUTIL = """
import json, psutil, sys
ours = psutil.Process()
child = psutil.Popen(["sleep", "60"])
found = {}
for name, process in (("self", ours), ("child", child)):
    for attribute in sorted(process.as_dict()):
        if attribute == "terminal":
            continue
        value = process.as_dict([attribute])[attribute]
        found[f"{name} {attribute}"] = type(value).__name__
found["children"] = [each.name() for each in ours.children()]
full = ours.memory_full_info()
found["memory"] = [full.rss >= full.uss > 0, full.vms > full.rss, full.pss > 0]
found["maps"] = len(ours.memory_maps(grouped=False)) > 10
found["files"] = ours.open_files()
found["status"] = child.status() in ("sleeping", "running")
for name in ("cpu_times", "virtual_memory", "swap_memory", "cpu_stats"):
    found[name] = list(getattr(psutil, name)()._fields)
found["pids"] = [ours.pid in psutil.pids(), child.pid in psutil.pids(), 1 in psutil.pids()]
found["disks"] = isinstance(psutil.disk_io_counters(perdisk=True), dict)
found["net"] = "lo" in psutil.net_io_counters(pernic=True)
found["boot"] = psutil.boot_time() > 1e9
child.kill()
child.wait()
print(json.dumps(found, indent=1))
"""


def test_psutil(tmp_path: pathlib.Path, native_only: bool) -> None:
    expected, found = both([PYTHON, "-c", PSUTIL], tmp_path, native_only)
    assert found == expected


def test_the_processor_is_that_of_the_host(tmp_path: pathlib.Path) -> None:
    """Behind the second wall too, which has closed the file."""
    wanted = ("vendor_id", "model name", "flags")

    def lines(text: str) -> list[str]:
        first = text.partition("\n\n")[0].splitlines()
        return [line for line in first if line.startswith(wanted)]

    run = in_vm(["cat", "/proc/cpuinfo"], cwd=tmp_path, options=["-q"])
    assert lines(run.stdout.decode()) == lines(pathlib.Path("/proc/cpuinfo").read_text())
    assert run.stdout.count(b"processor") == 1
