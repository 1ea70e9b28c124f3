"""`--disk`: files past memory's share lie on the host's disk, without a name, up to a limit."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess

import pytest

import kvmlet
from e2e.oracle import (
    ENV,
    HANG_S,
    HW,
    LONG,
    NO_RUNTIMES,
    ONLY_ROOT_SEES,
    command,
    kvmlet_argv,
)

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

MIB = 1 << 20


@pytest.fixture
def spill(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The directory that files past memory's share lie in."""
    directory = tmp_path / "spill"
    directory.mkdir()
    monkeypatch.setenv("KVMLET_TMPDIR", os.fspath(directory))
    return directory


@pytest.fixture
def room(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "room"
    directory.mkdir()
    return directory


def sh(script: str, room: pathlib.Path, *options: str, spill: pathlib.Path) -> tuple[int, str, str]:
    """The status, output and errors of a script in the command."""
    env = {**ENV, "KVMLET_TMPDIR": os.fspath(spill)}
    run = command(kvmlet_argv(["/bin/sh", "-ec", script], options), cwd=room, env=env)
    return run.status, run.stdout.decode(), run.stderr.decode()


def test_an_archive_larger_than_memory(room: pathlib.Path, spill: pathlib.Path) -> None:
    """300 MiB in 128 MiB, or a third of both."""
    blocks, memory = (95, "128m") if LONG else (30, "48m")
    # Bytes that repeat after 1 MiB and a bit, so that a page in the wrong place is seen.
    block = os.urandom(MIB + 12_345)
    source = room / "source"
    source.mkdir()
    for number in range(3):
        with (source / f"big{number}").open("wb") as file:
            for _ in range(blocks):
                file.write(block)
    for number in range(200):
        (source / f"small{number}").write_bytes(block[: number * 50])
    script = """
        tar cf - source | tar xf - -C /tmp
        du -sm /tmp/source | cut -f1
        cd /tmp/source && cat big0 big1 big2 small* | sha256sum
        rm -r /tmp/source && df --output=used /tmp | tail -n 1
    """
    status, said, errors = sh(script, room, "-m", memory, spill=spill)
    assert status == 0, errors
    size, digest, left = said.split("\n")[:3]
    assert int(size) >= 3 * blocks
    names = sorted(path.name for path in source.iterdir() if path.name.startswith("small"))
    cat = subprocess.run(
        ["sha256sum"],
        input=b"".join((source / name).read_bytes() for name in ["big0", "big1", "big2", *names]),
        capture_output=True,
    )
    assert digest == cat.stdout.decode().strip()
    assert int(left) == 0
    assert list(spill.iterdir()) == []


FULL = f"""
import errno, os
fd = os.open("big", os.O_RDWR | os.O_CREAT)
total = 0
try:
    while True: total += os.write(fd, b"x" * {MIB})
except OSError as error:
    assert error.errno == errno.ENOSPC, error
there = os.statvfs(".")
print(total // {MIB}, there.f_blocks * there.f_frsize // {MIB}, there.f_bavail)
os.ftruncate(fd, {10 * MIB})
there = os.statvfs("/tmp")
print(there.f_bavail * there.f_frsize // {MIB})
with open("/tmp/other", "wb") as other: other.write(b"y" * {20 * MIB})
with open("/tmp/other", "rb") as other: assert other.read() == b"y" * {20 * MIB}
assert os.pread(fd, 3, {10 * MIB} - 2) == b"xx"
try: os.posix_fallocate(fd, 0, {30 * MIB})
except OSError as error: print(errno.errorcode[error.errno])
import mmap
os.ftruncate(fd, {40 * MIB})
shown = mmap.mmap(fd, {40 * MIB})
for at in range(0, {10 * MIB}, 4096): shown[at] = 1
"""


def test_a_full_disk_is_told_and_can_be_cleared(room: pathlib.Path, spill: pathlib.Path) -> None:
    words = kvmlet_argv(["/usr/bin/python3", "-c", FULL], ["--disk", "32m", "-m", "64m"])
    run = command(words, cwd=room, env={**ENV, "KVMLET_TMPDIR": os.fspath(spill)})
    assert (run.status, run.guest_stderr) == (0, b""), run
    assert run.stdout.decode().split() == ["32", "32", "0", "22", "ENOSPC"]


def test_a_failure_for_want_of_room_names_the_option(
    room: pathlib.Path, spill: pathlib.Path
) -> None:
    script = "head -c 10M /dev/zero > big"
    status, _, errors = sh(script, room, "--disk", "4m", spill=spill)
    assert status == 1
    assert "kvmlet: its files had no more room than 4m; --disk raises it\n" in errors
    assert sh(script, room, "--disk", "16m", spill=spill)[0] == 0


def test_a_page_that_a_mapping_finds_no_room_for_is_a_bus_error(
    room: pathlib.Path, spill: pathlib.Path
) -> None:
    code = (
        "import mmap, os\n"
        "fd = os.open('big', os.O_RDWR | os.O_CREAT)\n"
        f"os.ftruncate(fd, {8 * MIB})\n"
        f"shown = mmap.mmap(fd, {8 * MIB})\n"
        f"for at in range(0, {8 * MIB}, 4096): shown[at] = 1\n"
    )
    words = kvmlet_argv(["/usr/bin/python3", "-c", code], ["--disk", "4m"])
    run = command(words, cwd=room, env={**ENV, "KVMLET_TMPDIR": os.fspath(spill)})
    assert run.status == 128 + signal.SIGBUS, run


def test_programs_run_and_map_what_lies_on_the_disk(
    room: pathlib.Path, spill: pathlib.Path
) -> None:
    """Past memory's share: an executable, a library and a data base."""
    script = """
        head -c 40M /dev/urandom > filler
        cp /bin/sed sed && echo a | ./sed s/a/b/
        python3 - <<'end'
import mmap, os, sqlite3
base = sqlite3.connect("base")
base.execute("create table t (a, b)")
base.executemany("insert into t values (?, ?)", ((n, "x" * 50) for n in range(20000)))
base.commit()
print(base.execute("select count(*), sum(a) from t").fetchone())
with open("data", "w+b") as file:
    file.write(bytes(range(256)) * 4000)
    file.flush()
    with mmap.mmap(file.fileno(), 0) as shown, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as own:
        assert shown[300_000] == own[300_000] == 300_000 % 256
        shown[300_000] = 7
        own[400_000] = 9
        file.seek(300_000); assert file.read(1) == bytes([7])
        file.seek(400_000); assert file.read(1) == bytes([400_000 % 256])
        file.seek(500_000); file.write(b"seen"); file.flush()
        assert shown[500_000:500_004] == b"seen"
        file.truncate(100_000)
        file.truncate(600_000)
        file.seek(99_990)
        assert file.read(20) == bytes((99_990 + n) % 256 for n in range(10)) + bytes(10)
end
    """
    status, said, errors = sh(script, room, "-m", "96m", spill=spill)
    assert status == 0, errors
    assert said == "b\n(20000, 199990000)\n"


def test_changes_that_lie_on_the_disk_are_kept(room: pathlib.Path, spill: pathlib.Path) -> None:
    (room / "old").write_bytes(b"old" * 5_000_000)
    script = """
        head -c 30M /dev/zero | tr '\\0' x > new
        printf mark | dd of=old bs=1 seek=9000000 conv=notrunc 2>/dev/null
        truncate -s 100M hole
    """
    status, _, errors = sh(script, room, "-m", "32m", "--changes", "keep", spill=spill)
    assert status == 0, errors
    assert (room / "new").read_bytes() == b"x" * (30 * MIB)
    wanted = bytearray(b"old" * 5_000_000)
    wanted[9_000_000:9_000_004] = b"mark"
    assert (room / "old").read_bytes() == wanted
    assert (room / "hole").stat().st_size == 100 * MIB


def spilled(process: subprocess.Popen[bytes], spill: pathlib.Path) -> list[os.stat_result]:
    """The files under `spill` that a process has open."""
    files = []
    for link in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
        # It may be closed at any moment.
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(link).startswith(os.fspath(spill)):
                files.append(link.stat())
    return files


@ONLY_ROOT_SEES
def test_no_file_is_left_however_kvmlet_ends(room: pathlib.Path, spill: pathlib.Path) -> None:
    script = "head -c 64M /dev/zero > /tmp/big; echo ready; exec sleep 60"
    process = subprocess.Popen(
        kvmlet_argv(["/bin/sh", "-ec", script], ["-m", "32m"]),
        cwd=room,
        env={**ENV, "KVMLET_TMPDIR": os.fspath(spill)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    # Open, without a name, and nobody's but the caller's.
    (there,) = spilled(process, spill)
    assert (there.st_mode & 0o777, there.st_nlink) == (0o600, 0)
    assert there.st_blocks * 512 >= 50 * MIB
    process.kill()
    process.wait(HANG_S)
    process.stdout.close()
    assert list(spill.iterdir()) == []


@ONLY_ROOT_SEES
def test_what_is_removed_goes_back_to_the_disk(room: pathlib.Path, spill: pathlib.Path) -> None:
    script = """
        head -c 64M /dev/zero > /tmp/big; echo full; read line
        rm /tmp/big; echo removed; read line
    """
    process = subprocess.Popen(
        kvmlet_argv(["/bin/sh", "-ec", script], ["-m", "32m"]),
        cwd=room,
        env={**ENV, "KVMLET_TMPDIR": os.fspath(spill)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None

    def taken() -> int:
        (there,) = spilled(process, spill)
        return there.st_blocks * 512

    assert process.stdout.readline() == b"full\n"
    assert taken() >= 50 * MIB
    process.stdin.write(b"\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"removed\n"
    assert taken() <= MIB
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.wait(HANG_S) == 0
    process.stdout.close()


@pytest.mark.parametrize(
    ("directory", "said"),
    [
        (
            "nowhere",
            "kvmlet: KVMLET_TMPDIR: 'nowhere' is not an absolute path; "
            "name a directory, as /var/tmp\n",
        ),
        (
            "/proc/nowhere",
            "kvmlet: KVMLET_TMPDIR: no file can be made in /proc/nowhere (ENOENT); "
            "name another directory by KVMLET_TMPDIR\n",
        ),
    ],
)
def test_a_directory_that_takes_no_file_is_an_error_if_it_is_named(
    room: pathlib.Path, directory: str, said: str
) -> None:
    words = kvmlet_argv(["/bin/true"])
    run = command(words, cwd=room, env={**ENV, "KVMLET_TMPDIR": directory})
    assert (run.status, run.stderr.decode()) == (125, said)


# ---- in Python ----


def test_run_and_its_policy(room: pathlib.Path, spill: pathlib.Path) -> None:
    script = "head -c 8M /dev/zero > /tmp/a"
    full = kvmlet.run(script, shell=True, cwd=room, disk="4m")
    assert (full.exit_code, full.stats["files_bytes"]) == (1, 4 * MIB)
    assert full.stats["files_refused"] >= 1
    policy = kvmlet.Policy.of(disk="16m")
    assert 'disk = "16m"' in policy.to_toml()
    assert kvmlet.Policy.from_toml(policy.to_toml()) == policy
    assert kvmlet.run(script, shell=True, cwd=room, policy=policy).exit_code == 0
    with pytest.raises(kvmlet.UsageError, match="disk: '1k' is too small; the least is 1m"):
        kvmlet.run(script, shell=True, disk="1k")
    with pytest.raises(kvmlet.UsageError, match="lie in memory"):
        kvmlet.Server(["/bin/true"], policy=policy)


def test_forks_and_resets_of_a_box_have_the_disk_in_common(spill: pathlib.Path) -> None:
    block = os.urandom(1_000_003)

    def digest(box: kvmlet.Box, name: str = "data") -> str:
        ran = box.run(["sha256sum", name], text=True, timeout=HANG_S)
        return ran.check().stdout.split()[0]

    def taken() -> int:
        """Bytes of the host's disk: of the one file that is open in the directory."""
        links = pathlib.Path("/proc/self/fd").iterdir()
        found = [link for link in links if os.path.realpath(link).startswith(os.fspath(spill))]
        return sum(link.stat().st_blocks * 512 for link in found)

    with kvmlet.Box(memory="64m", disk="200m") as box:
        box.files.write("block", block)
        box.run("for n in $(seq 80); do cat block; done > data", shell=True).check()
        before = digest(box)
        used = taken()
        assert used >= 60 * MIB
        one, two = box.fork(2)
        with one, two:
            # What they have in common takes no more.
            assert taken() <= used + MIB
            assert digest(one) == digest(two) == before
            one.run("printf one | dd of=data bs=1 seek=50000000 conv=notrunc", shell=True).check()
            two.run(["truncate", "-s", "30000000", "data"]).check()
            two.run("head -c 20M /dev/urandom > more", shell=True).check()
            assert digest(box) == before
            changed = bytearray(block * 80)
            changed[50_000_000:50_000_003] = b"one"
            assert one.files.read("data") == changed
            assert two.files.read("data") == (block * 80)[:30_000_000]
            assert taken() >= used + 15 * MIB
            one.reset()
            two.reset()
            assert digest(one) == digest(two) == before
            two.run("true", shell=True).check()
        assert digest(box) == before
        box.run("rm data; echo small > other", shell=True).check()
        assert box.files.read("other") == b"small\n"


def test_a_sandbox_that_is_frozen_may_have_a_disk(spill: pathlib.Path) -> None:
    code = (
        "import kvmlet_guest\n"
        "open('/tmp/big', 'wb').write(bytes(range(256)) * 200_000)\n"
        "def answer(message):\n"
        "    with open('/tmp/big', 'r+b') as file:\n"
        "        file.seek(20_000_000)\n"
        "        old = file.read(2)\n"
        "        file.seek(20_000_000)\n"
        "        file.write(message)\n"
        "    return old\n"
        "kvmlet_guest.serve(answer)\n"
    )
    policy = kvmlet.Policy.of(disk="100m", memory="64m")
    sandbox = kvmlet.Sandbox(["/usr/bin/python3", "-c", code], policy=policy)
    with sandbox.until_ready().freeze() as snapshot, snapshot.fork() as fork:
        first = 20_000_000 % 256
        for message in (b"ab", b"cd"):
            assert fork.request(message, timeout=HANG_S) == bytes([first, first + 1])
            assert fork.request(b"..", timeout=HANG_S) == message
            fork.reset()


def test_a_limit_that_is_none_of_a_sandbox_leaves_its_files_in_memory(
    spill: pathlib.Path,
) -> None:
    links = {os.path.realpath(link) for link in pathlib.Path("/proc/self/fd").iterdir()}
    with kvmlet.Sandbox(["/bin/sleep", "60"]):
        now = {os.path.realpath(link) for link in pathlib.Path("/proc/self/fd").iterdir()}
        assert not [path for path in now - links if path.startswith(os.fspath(spill))]


def test_a_host_without_room_leaves_the_memory(tmp_path: pathlib.Path) -> None:
    """The limit on the size of a file stands for a disk that is full."""
    room = tmp_path / "room"
    room.mkdir()
    script = "head -c 24M /dev/zero > /tmp/a && cmp -n 25165824 /tmp/a /dev/zero"
    words = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh"]
    run = command(
        [*words, *kvmlet_argv(["/bin/sh", "-ec", script], ["-m", "64m"])], cwd=room, env=ENV
    )
    assert run.status == 0, run
    full = command(
        [*words, *kvmlet_argv(["/bin/sh", "-ec", script], ["-m", "16m"])], cwd=room, env=ENV
    )
    assert full.status == 1, full
    assert b"the host had no more room in /var/tmp for its files" in full.stderr
