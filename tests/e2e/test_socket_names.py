"""Names of sockets in trees of the host: as natively inside, and nobody comes in by them."""

from __future__ import annotations

import os
import pathlib
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import ENV, HW, NO_RUNTIMES, in_vm, kvmlet_argv, native

if TYPE_CHECKING:
    pass

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

PYTHON = "/usr/bin/python3"
LIMIT_S = 60
HERE = ["--write", "."]


def fails_to_connect(path: pathlib.Path, kind: int = socket.SOCK_STREAM) -> str:
    """The error that a program of the host gets at `path`, "" if it is connected."""
    with socket.socket(socket.AF_UNIX, kind) as client:
        try:
            client.connect(os.fspath(path))
        except OSError as error:
            return type(error).__name__
    return ""


@pytest.mark.parametrize("where", ["host", "overlay"])
def test_as_natively(guests: pathlib.Path, room: pathlib.Path, where: str) -> None:
    inside, outside = room / "inside", room / "outside"
    inside.mkdir()
    outside.mkdir()
    words = [os.fspath(guests / "unixnames"), "."]
    expected = native(words, cwd=outside)
    assert (expected.status, expected.stderr) == (0, b"")
    assert b"FAIL" not in expected.stdout, expected.stdout.decode()
    options = {"host": HERE, "overlay": []}[where]
    got = in_vm(words, cwd=inside, options=[*options, "-q"])
    assert got.stdout.decode() == expected.stdout.decode()
    assert (got.status, got.own_lines) == (0, [])
    assert os.listdir(inside) == os.listdir(outside)


SERVER = """
import os, socket, sys, threading
os.umask(0o077)
server = socket.socket(socket.AF_UNIX)
server.bind("sock")
os.chmod("sock", 0o666)
server.listen()
datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
datagrams.bind("log")
def ask():
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.path.join(os.getcwd(), "sock"))
        client.sendall(b"from inside")
        return client.recv(99)
def serve():
    connection, _ = server.accept()
    with connection:
        connection.sendall(connection.recv(99).upper())
thread = threading.Thread(target=serve)
thread.start()
print(ask().decode(), oct(os.stat("sock").st_mode), flush=True)
thread.join()
sys.stdin.readline()
server.settimeout(0.3)
datagrams.settimeout(0.3)
for receive in (server.accept, lambda: datagrams.recv(9)):
    try: print(receive())
    except TimeoutError: print("nobody")
"""


def test_the_host_sees_a_name_that_nobody_listens_at(room: pathlib.Path) -> None:
    """While the server runs and afterwards; neither another sandbox nor the host gets in."""
    words = kvmlet_argv([PYTHON, "-c", SERVER], HERE)
    with subprocess.Popen(
        words, cwd=room, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "FROM INSIDE 0o140666\n"
        made = (room / "sock").lstat()
        # The mode that it was made with.
        assert stat.S_ISSOCK(made.st_mode)
        assert stat.S_IMODE(made.st_mode) == 0o700
        assert made.st_uid == os.geteuid()
        assert fails_to_connect(room / "sock") == "ConnectionRefusedError"
        assert fails_to_connect(room / "log", socket.SOCK_DGRAM) == "ConnectionRefusedError"
        # What /proc tells of the host's sockets has no such name.
        bound = pathlib.Path("/proc/net/unix").read_text()
        assert os.fspath(room) not in bound
        other = kvmlet.run([PYTHON, "-c", CONNECT], cwd=room, write=[room], text=True)
        assert other.stdout == "PermissionError\n", other
        (denial,) = other.denials
        assert (denial.what, denial.errno) == (f"connect {room}/sock", "EACCES")
        assert (denial.kind, denial.flag) == ("replaceable-socket", "")
        out, _ = run.communicate("\n", timeout=LIMIT_S)
        assert (out, run.returncode) == ("nobody\nnobody\n", 0)
    assert fails_to_connect(room / "sock") == "ConnectionRefusedError"


CONNECT = """
import socket
try: socket.socket(socket.AF_UNIX).connect("sock")
except OSError as error: print(type(error).__name__)
else: print("connected")
"""


def test_a_socket_of_the_host_in_its_place(room: pathlib.Path) -> None:
    """One that the host has put there is the host's, also if it has the number of the program's."""
    code = (
        "import os, socket, sys\n"
        "server = socket.socket(socket.AF_UNIX); server.bind('sock'); server.listen()\n"
        "print(os.stat('sock').st_ino, flush=True)\n"
        f"for line in sys.stdin:\n{''.join(f'    {line}' for line in CONNECT.splitlines(True))}\n"
        "    sys.stdout.flush()\n"
    )
    words = kvmlet_argv([PYTHON, "-c", code], [*HERE, "-q"])
    with (
        socket.socket(socket.AF_UNIX) as own,
        subprocess.Popen(
            words, cwd=room, env=ENV, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as run,
    ):
        assert run.stdin is not None
        assert run.stdout is not None
        run.stdout.readline()
        for expected in ("connected\n", "FileNotFoundError\n", "PermissionError\n"):
            if expected == "FileNotFoundError\n":
                (room / "sock").unlink()
            elif expected == "PermissionError\n":
                own.bind(os.fspath(room / "sock"))
            run.stdin.write("\n")
            run.stdin.flush()
            assert run.stdout.readline() == expected
        own.listen()
        own.settimeout(0.2)
        with pytest.raises(TimeoutError):
            own.accept()
        run.stdin.close()
        assert run.wait(LIMIT_S) == 0


def test_one_that_an_earlier_run_has_left(room: pathlib.Path) -> None:
    code = (
        "import errno, os, socket\n"
        "def bind():\n"
        "    with socket.socket(socket.AF_UNIX) as server:\n"
        "        try: server.bind('sock')\n"
        "        except OSError as error: return errno.errorcode[error.errno]\n"
        "        return os.path.exists('sock')\n"
        "print(bind())\n"
        "if bind() != 'EADDRINUSE': print('twice')\n"
    )
    for expected in (b"True\n", b"EADDRINUSE\n"):
        run = in_vm([PYTHON, "-c", code], cwd=room, options=[*HERE, "-q"])
        assert (run.stdout, run.own_lines) == (expected, [])
    again = f"import os; os.unlink('sock')\n{code}"
    run = in_vm([PYTHON, "-c", again], cwd=room, options=[*HERE, "-q"])
    assert (run.stdout, run.own_lines) == (b"True\n", [])


HOSTILE = """
import errno, os, socket
def bind(name):
    with socket.socket(socket.AF_UNIX) as server:
        try: server.bind(name)
        except OSError as error: return errno.errorcode[error.errno]
        return os.stat(name).st_ino == os.lstat(name).st_ino
os.makedirs('.git/hooks', exist_ok=True)
os.symlink('/var/tmp/nowhere', 'dangling'); os.symlink('/etc', 'out')
for name in (b'.envrc', b'.git/config', b'.git/hooks/post-merge', b'../beside', b'/usr/sock',
             b'out/sock', b'dangling', b'none/sock', b'file/sock', b'sock/', b'new\\nline',
             b'\\xff\\x1b[2J', b'a' * 107, b'-rf', b'.', b'/', b'ro/sock'):
    print(bind(name))
"""


def test_hostile_names(room: pathlib.Path) -> None:
    """Protected ones, links that lead out, bytes of any kind, which command no terminal."""
    tree = room / "tree"
    tree.mkdir()
    (tree / "file").touch()
    (tree / "ro").mkdir(mode=0o555)
    run = in_vm([PYTHON, "-c", HOSTILE], cwd=tree, options=[*HERE, "--verbose"])
    assert run.stdout.decode().split() == [
        *["EROFS"] * 5,
        "EROFS",
        "EADDRINUSE",
        "ENOENT",
        "ENOTDIR",
        "ENOENT",
        *["True"] * 4,
        *["EADDRINUSE"] * 2,
        "EACCES",
    ], run
    assert not any("\x1b" in line for line in run.own_lines)
    assert sorted(os.listdir(room)) == ["tree"]
    assert not pathlib.Path("/var/tmp/nowhere").exists()


NO_ROOM = """
mount -t tmpfs -o nr_inodes=4,size=64k none full && cd full && mkdir work && cd work && exec "$@"
"""


def test_a_full_disk(room: pathlib.Path) -> None:
    """ENOSPC, natively too; with room again it works."""
    (room / "full").mkdir()
    unshare = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", NO_ROOM, "sh"]
    if os.geteuid() != 0 or subprocess.run([*unshare, "/bin/true"], cwd=room).returncode != 0:
        pytest.skip("nothing can be mounted here")
    code = (
        "import errno, os, socket\n"
        "sockets = [socket.socket(socket.AF_UNIX) for _ in range(4)]\n"
        "for number, each in enumerate(sockets):\n"
        "    try: each.bind(str(number)); print('bound')\n"
        "    except OSError as error: print(errno.errorcode[error.errno]); last = each\n"
        # Natively it takes its place as long as it is open.
        "os.unlink('0'); sockets[0].close(); last.bind('again'); print(os.listdir())\n"
    )
    words = [PYTHON, "-c", code]
    told = []
    for run in (words, kvmlet_argv(words, HERE)):
        done = subprocess.run(
            [*unshare, *run], cwd=room, env=ENV, capture_output=True, timeout=LIMIT_S
        )
        told.append((done.stdout, done.stderr, done.returncode))
    assert told[0] == told[1]
    assert b"ENOSPC" in told[0][0], told


def test_forks_and_resets(room: pathlib.Path) -> None:
    """Each fork reaches its own server by the name that they share. A reset leaves names."""
    code = (
        "import os, socket, sys\n"
        "server = socket.socket(socket.AF_UNIX)\n"
        "server.bind('sock'); server.listen()\n"
        "print('ready', flush=True)\n"
        "number = 0\n"
        "for line in sys.stdin:\n"
        "    number += 1\n"
        "    with socket.socket(socket.AF_UNIX) as client:\n"
        "        client.connect('sock')\n"
        "        client.sendall(b'%d' % number)\n"
        "        connection, _ = server.accept()\n"
        "        with connection: print(connection.recv(9), flush=True)\n"
        "    more = socket.socket(socket.AF_UNIX)\n"
        "    try: more.bind(line.strip())\n"
        "    except OSError as error: print(type(error).__name__, error.errno, flush=True)\n"
        "    else: print('bound', flush=True)\n"
    )
    with kvmlet.Box(write=[room]) as box:
        process = box.spawn(
            ["python3", "-c", code], cwd=os.fspath(room), text=True, stdin=subprocess.PIPE
        )

        def ask(one: kvmlet.Process, line: str) -> list[str]:
            assert one.stdin is not None
            assert one.stdout is not None
            one.stdin.write(f"{line}\n")
            one.stdin.flush()
            return [one.stdout.readline().strip() for _ in range(2)]

        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert ask(process, "first") == ["b'1'", "bound"]
        with box.snapshot() as snapshot:
            forks = snapshot.fork(2)
            for fork in forks:
                (theirs,) = fork.processes
                name = f"of-{forks.index(fork)}"
                assert ask(theirs, name) == ["b'2'", "bound"]
                assert ask(theirs, name) == ["b'3'", "OSError 98"]
            one, other = forks
            # A name that another fork has made is none of its own.
            assert ask(other.processes[0], "of-0") == ["b'4'", "OSError 98"]
            one.close()
            other.reset()
            (theirs,) = other.processes
            assert ask(theirs, "of-1") == ["b'2'", "OSError 98"]
            assert ask(theirs, "after") == ["b'3'", "bound"]
            other.close()
        assert ask(process, "last") == ["b'2'", "bound"]
    assert sorted(os.listdir(room)) == ["after", "first", "last", "of-0", "of-1", "sock"]
    assert fails_to_connect(room / "sock") == "ConnectionRefusedError"
