"""Files of trees that are changed on the host: mappings, locks, attributes, unnamed files."""

from __future__ import annotations

import fcntl
import os
import pathlib
import sqlite3
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import ENV, HANG_S, HW, LONG, NO_RUNTIMES, command, in_vm, kvmlet_argv, native

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

PYTHON = "/usr/bin/python3"
HERE = ["--write", "."]


@pytest.fixture
def room(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "room"
    directory.mkdir()
    return directory


PARTS = ["mappings", "locks", "unnamed", "attributes"]
# In an overlay and in memory these are values, whose mappings and locks have tests of their own.
PLACES = [("host", part) for part in [*PARTS, "rights"]]
PLACES += [(where, part) for where in ("overlay", "memory") for part in PARTS[0 if LONG else 2 :]]


@pytest.mark.parametrize(("where", "part"), PLACES)
def test_as_on_the_host(guests: pathlib.Path, room: pathlib.Path, part: str, where: str) -> None:
    outside = room.parent / "outside"
    outside.mkdir()
    expected = native([guests / "hostfiles", part], cwd=outside)
    assert expected.status == 0
    assert b"FAIL" not in expected.stdout, expected.stdout.decode()
    shown = ["--read", os.fspath(guests)]  # it may lie in the host's /tmp
    options = {"host": HERE, "overlay": [], "memory": ["-w", "/tmp", *shown]}[where]
    got = in_vm([guests / "hostfiles", part], cwd=room, options=[*options, "-q"])
    assert got.stdout.decode() == expected.stdout.decode()
    assert (got.status, got.own_lines) == (0, [])
    assert bool(os.listdir(room)) == (where == "host")


def started(room: pathlib.Path, code: str, *options: str) -> subprocess.Popen[bytes]:
    """A Python program in a VM that may change `room`; its first line of output has come."""
    words = kvmlet_argv([PYTHON, "-c", code], [*HERE, *options])
    run = subprocess.Popen(words, cwd=room, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"ready\n"
    return run


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


MAPS = """
import mmap, sys, time
file = open("data", "r+b")
m = mmap.mmap(file.fileno(), 8192)
m[0] = 1
print("ready", flush=True)
while m[4096] != 2:
    pass
m[1] = 3
sys.stdin.readline()
for _ in range(1000):
    m[4097] = 4
    time.sleep(0.01)
"""


def test_a_mapping_and_the_host(room: pathlib.Path) -> None:
    """Each sees what the other writes; cutting the file off is a signal to the program alone."""
    data = room / "data"
    data.write_bytes(bytes(8192))
    run = started(room, MAPS)
    assert data.read_bytes()[0] == 1
    with data.open("r+b") as file:
        file.seek(4096)
        file.write(b"\2")
        file.flush()
        eventually(lambda: data.read_bytes()[1] == 3)
        file.truncate(4096)
    assert run.stdin is not None
    run.stdin.write(b"\n")
    run.stdin.close()
    assert run.wait(HANG_S) == 128 + 7
    assert (data.stat().st_size, data.read_bytes()[:2]) == (4096, b"\1\3")


def test_a_word_that_the_host_changes_all_the_time(
    guests: pathlib.Path, room: pathlib.Path
) -> None:
    (room / "word").write_bytes(bytes(4096))
    with subprocess.Popen([guests / "hostfiles", "churn", "word"], cwd=room) as churn:
        try:
            limit = ["--timeout", "2s"]
            run = in_vm([guests / "hostfiles", "count", "word"], cwd=room, options=[*HERE, *limit])
        finally:
            churn.kill()
    assert run.status == 124, run.own_lines


def test_attributes_that_the_host_goes_by(room: pathlib.Path) -> None:
    (room / "file").touch()
    code = (
        "import errno, os\n"
        "for name in ('overlay.redirect', 'containers.override_stat', 'fuseoverlayfs.uid',\n"
        "             'virtfs.mode', 'rsync.%stat'):\n"
        "    try: os.setxattr('file', 'user.' + name, b'x')\n"
        "    except OSError as error: print(error.errno == errno.EPERM)\n"
    )
    run = in_vm([PYTHON, "-c", code], cwd=room, options=HERE)
    assert (run.status, run.stdout) == (0, b"True\n" * 5), run.own_lines
    assert os.listxattr(room / "file") == []


LEASES = """
import errno, fcntl, os, signal, sys
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open(sys.argv[1], os.O_RDONLY)
fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
for path in (sys.argv[1], f"/proc/self/fd/{fd}"):
    os.close(os.open(path, os.O_RDONLY))
    try: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except OSError as error: print(errno.errorcode[error.errno])
    print(fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
"""


def test_leases_of_files_of_the_host(room: pathlib.Path) -> None:
    """Each way of opening a file to write breaks them, but not one that is refused."""
    (room / "file").touch()
    words = [PYTHON, "-c", LEASES, "file"]
    expected = native(words, cwd=room)
    assert expected.stdout == b"EAGAIN\nTrue\n" * 2, expected
    assert in_vm(words, cwd=room, options=HERE).stdout == expected.stdout
    outside = room.parent / "read-only"
    outside.mkdir()
    (outside / "file").touch()
    words[-1] = os.fspath(outside / "file")
    run = in_vm(words, cwd=room, options=[*HERE, "--read", os.fspath(outside)])
    assert run.stdout == b"EROFS\nFalse\n" * 2, run.own_lines


LOCKS = """
import errno, fcntl, os, struct, sys
fd = os.open("lock", os.O_RDWR)
whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
ways = {
    "flock": lambda wait: fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)),
    "lockf": lambda wait: fcntl.lockf(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)),
    "ofd": lambda wait: fcntl.fcntl(fd, 38 if wait else 37, whole),
}
def tries():
    try:
        ways[sys.argv[1]](False)
        return True
    except OSError as error:
        assert error.errno in (errno.EAGAIN, errno.EACCES), error
        return False
assert not tries()
if sys.argv[1] != "flock":
    met = struct.unpack("hhqqi4x", fcntl.fcntl(fd, fcntl.F_GETLK, whole))
    assert met[0] == fcntl.F_WRLCK and met[4] <= 0, met
print("ready", flush=True)
ways[sys.argv[1]](True)
print("held", flush=True)
sys.stdin.readline()
"""
OFD_SETLK = 37
WHOLE = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)
WAYS: dict[str, Callable[[int], object]] = {
    "flock": lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    "lockf": lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
    "ofd": lambda fd: fcntl.fcntl(fd, OFD_SETLK, WHOLE),
}


def can_lock(path: pathlib.Path, way: str) -> bool:
    fd = os.open(path, os.O_RDWR)
    try:
        WAYS[way](fd)
    except (BlockingIOError, PermissionError):
        return False
    finally:
        os.close(fd)
    return True


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_of_the_host(room: pathlib.Path, way: str) -> None:
    """It keeps the program waiting, which then has it against the host, until its end."""
    lock = room / "lock"
    lock.touch()
    held = os.open(lock, os.O_RDWR)
    WAYS[way](held)
    words = kvmlet_argv([PYTHON, "-c", LOCKS, way], HERE)
    run = subprocess.Popen(words, cwd=room, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdin is not None
    assert run.stdout.readline() == b"ready\n"
    time.sleep(0.1)
    assert run.poll() is None
    os.close(held)
    assert run.stdout.readline() == b"held\n"
    assert not can_lock(lock, way)
    run.stdin.close()
    assert run.wait(HANG_S) == 0
    assert can_lock(lock, way)


def test_waiting_for_a_lock_ends_at_the_deadline(room: pathlib.Path) -> None:
    (room / "lock").touch()
    with (room / "lock").open("r+b") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        words = ["/bin/sh", "-c", f'exec {PYTHON} -c "$0" lockf']
        run = command(kvmlet_argv([*words, LOCKS], [*HERE, "--timeout", "2s"]), cwd=room, env=ENV)
    assert (run.status, run.stdout) == (124, b"ready\n"), run


COUNT = """
import sqlite3, sys
base = sqlite3.connect("base", timeout=60, isolation_level=None)
print(base.execute("PRAGMA journal_mode").fetchone(), flush=True)
for _ in range(int(sys.argv[1])):
    base.execute("BEGIN IMMEDIATE")
    (count,) = base.execute("SELECT n FROM counter").fetchone()
    base.execute("UPDATE counter SET n = ?", (count + 1,))
    base.execute("COMMIT")
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_that_both_sides_change(room: pathlib.Path, mode: str) -> None:
    """Two programs inside and one on the host: no step of any is lost."""
    base = sqlite3.connect(room / "base", isolation_level=None)
    base.execute(f"PRAGMA journal_mode={mode}")
    base.execute("CREATE TABLE counter (n)")
    base.execute("INSERT INTO counter VALUES (0)")
    argv = [PYTHON, "-c", COUNT, "40"]
    runs = [
        subprocess.Popen(words, cwd=room, env=ENV, stdout=subprocess.PIPE)
        for words in (kvmlet_argv(argv, HERE), kvmlet_argv(argv, HERE), argv)
    ]
    for run in runs:
        assert run.wait(HANG_S) == 0
        assert run.stdout is not None
        assert run.stdout.read() == f"('{mode}',)\n".encode()
    assert base.execute("SELECT n FROM counter").fetchone() == (120,)
    assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    base.close()


SERVER = """
import fcntl, http.server, mmap, os, sys
file = open("data", "r+b")
m = mmap.mmap(file.fileno(), 4096)
lock = open("lock", "r+b")
fcntl.flock(lock, fcntl.LOCK_EX)
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass
    def do_GET(self):
        global count
        count += 1
        m[0] += 1
        try:
            with open("other", "r+b") as other:
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
                told = "held"
        except OSError:
            told = "busy"
        body = f"{count} {m[0]} {told}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
m[1] = 9
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""


def test_a_frozen_program(room: pathlib.Path) -> None:
    """Resets take back what it has in memory, never what it has done to a file."""
    data = room / "data"
    data.write_bytes(bytes(4096))
    for name in ("lock", "other"):
        (room / name).touch()

    def asked(box: kvmlet.Box) -> str:
        with box.connect(8000) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            answer: bytes = connection.makefile("rb").read()
            return answer.partition(b"\r\n\r\n")[2].decode()

    with kvmlet.Box(write=[room]) as box:
        # Without it the program would have no standard error.
        _server = box.spawn([PYTHON, "-c", SERVER], cwd=room)
        box.wait_listening(8000)
        assert asked(box) == "1 1 held"
        assert not can_lock(room / "lock", "flock")
        (fork,) = box.fork(1)
        # What was locked before a freeze is the host's to lock.
        assert can_lock(room / "lock", "flock")
        with fork:
            assert (asked(fork), asked(box), asked(fork)) == ("2 2 held", "2 3 held", "3 4 held")
            assert data.read_bytes()[:2] == bytes([4, 9])
            fork.reset()
            # The host writes, and the next request sees it.
            with data.open("r+b") as file:
                file.write(b"\x64")
            assert asked(fork) == "2 101 held"
            with (room / "other").open("r+b") as other:
                fcntl.lockf(other, fcntl.LOCK_EX)
                assert asked(fork) == "3 102 busy"
            assert asked(fork) == "4 103 held"
        box.reset()
        assert asked(box) == "2 104 held"


def attributes_of(path: pathlib.Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in sorted(os.listxattr(path))}


def test_attributes_by_tools(room: pathlib.Path) -> None:
    """Copies and archives have them, in memory and in changes that are kept."""
    (room / "tree").mkdir()
    for name in ("file", "same", "gone"):
        (room / "tree" / name).write_text(name)
        os.setxattr(room / "tree" / name, "user.origin", name.encode())
    os.setxattr(room / "tree", "user.origin", b"directory")
    script = """
        python3 -c 'import os; os.setxattr("tree/file", "user.new", b"n")'
        echo more >> tree/same; python3 -c 'import os; os.removexattr("tree/gone", "user.origin")'
        cp -a tree copy; tar --xattrs -cf archive tree; mkdir out; tar --xattrs -xf archive -C out
        cp -a tree /tmp/away; cp -a /tmp/away back; mv tree/same moved
    """
    words = kvmlet_argv(["/bin/sh", "-ec", script], ["--changes", "keep"])
    run = command(words, cwd=room, env=ENV)
    assert run.status == 0, run
    file = {"user.new": b"n", "user.origin": b"file"}
    for place in ("tree", "copy", "out/tree", "back"):
        assert attributes_of(room / place / "file") == file, place
        assert attributes_of(room / place / "gone") == {}, place
        if place != "tree":
            assert attributes_of(room / place / "same") == {"user.origin": b"same"}
    assert attributes_of(room / "moved") == {"user.origin": b"same"}
    assert (room / "moved").read_text() == "samemore\n"


def test_attributes_of_others_stay_as_they_are(room: pathlib.Path) -> None:
    """Of readable trees they are read, and what is refused is told."""
    other = room.parent / "other"
    other.mkdir()
    (other / "file").write_text("x")
    os.setxattr(other / "file", "user.origin", b"outside")
    code = (
        "import os, sys\n"
        "path = sys.argv[1]\n"
        "print(os.listxattr(path), os.getxattr(path, 'user.origin'))\n"
        "try: os.setxattr(path, 'user.evil', b'x')\n"
        "except OSError as error: sys.exit(error.strerror)\n"
    )
    argv = [PYTHON, "-c", code, os.fspath(other / "file")]
    run = command(kvmlet_argv(argv, ["--read", os.fspath(other)]), cwd=room, env=ENV)
    assert run.stdout == b"['user.origin'] b'outside'\n", run
    assert run.guest_stderr == b"Read-only file system\n"
    assert f"allow it with --write {other}" in run.own_lines[0]
    assert attributes_of(other / "file") == {"user.origin": b"outside"}
