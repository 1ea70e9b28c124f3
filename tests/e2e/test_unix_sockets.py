"""Sockets of the host that `--unix` names: reached as natively, and nothing beside them."""

from __future__ import annotations

import array
import contextlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, KVMLET, command, in_vm, kvmlet_argv, native
from e2e.peers import accepting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PYTHON = "/usr/bin/python3"
LIMIT_S = 60
SO_SNDBUFFORCE = 32

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")


@contextlib.contextmanager
def serving(path: pathlib.Path, answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server at `path` that calls `answer` with each connection; the path."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen(64)
        with accepting(server, answer):
            yield os.fspath(path)


def orders(connection: socket.socket) -> None:
    """A server that does what the first byte of a connection says."""
    order = connection.recv(1)
    if order == b"e":
        while data := connection.recv(65536):
            connection.sendall(data)
    elif order == b"b":
        # It says something, and reads nothing of what comes.
        connection.sendall(b"bye")
    elif order == b"h":
        connection.sendall(b"half")
        connection.shutdown(socket.SHUT_WR)
        threading.Event().wait(0.2)
        connection.recv(3)
    elif order == b"w":
        threading.Event().wait(0.3)
        connection.sendall(b"late")


CLIENT = """
import asyncio, errno, select, socket, sys
path, gone, absent = sys.argv[1:4]

def connected(order):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(30)
    s.connect(path)
    s.sendall(order)
    return s

with connected(b'e') as s:
    print(s.getpeername() == path, repr(s.getsockname()), s.type == socket.SOCK_STREAM)
    s.setblocking(True)
    data = bytes(range(256)) * 4096
    import threading
    sender = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
    sender.start()
    back = b''.join(iter(lambda: s.recv(65536), b''))
    sender.join()
    print(back == data)
with connected(b'h') as s:
    print(s.recv(4, socket.MSG_WAITALL), s.recv(1))
    poll = select.poll()
    poll.register(s, select.POLLIN | select.POLLOUT | select.POLLRDHUP)
    print([mask & (select.POLLRDHUP | select.POLLHUP | select.POLLIN | select.POLLOUT)
           for _, mask in poll.poll(0)])
    s.sendall(b'abc')
    poll.modify(s, 0)
    print([mask for _, mask in poll.poll(10000)])
    try: s.sendall(b'x')
    except OSError as error: print(errno.errorcode[error.errno])
with connected(b'w') as s:
    s.setblocking(False)
    try: s.recv(9)
    except BlockingIOError: print('nothing yet')
    epoll = select.epoll()
    epoll.register(s, select.EPOLLIN | select.EPOLLET)
    print([mask & select.EPOLLIN for _, mask in epoll.poll(10)], s.recv(9))
with connected(b'b') as s:
    print(s.recv(9), s.recv(9))
with socket.socket(socket.AF_UNIX) as s:
    s.setblocking(False)
    print(s.connect_ex(path))
    try: s.connect(path)
    except OSError as error: print(errno.errorcode[error.errno])
for name, kind in ((gone, socket.SOCK_STREAM), (absent, socket.SOCK_STREAM),
                   (path, socket.SOCK_DGRAM), (path, socket.SOCK_SEQPACKET)):
    with socket.socket(socket.AF_UNIX, kind) as s:
        print(errno.errorcode[s.connect_ex(name)])

async def main():
    async def one(n):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'e' + b'%d' % n * 1000)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data == b'%d' % n * 1000
    print(await asyncio.gather(*(one(n) for n in range(16))))
asyncio.run(main())
"""


def test_as_natively(room: pathlib.Path, vm: None) -> None:
    gone = room / "gone"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(gone))
    with serving(room / "server", orders) as path:
        words = [PYTHON, "-c", CLIENT, path, os.fspath(gone), os.fspath(room / "absent")]
        expected = native(words, cwd=room)
        assert (expected.status, expected.stderr) == (0, b""), expected
        options = ["--unix", path, "--unix", os.fspath(gone)]
        run = in_vm(words, cwd="/usr", options=options)
    assert run.stdout.decode().splitlines() == expected.stdout.decode().splitlines(), run
    assert (run.status, run.guest_stderr) == (0, b"")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(room: pathlib.Path, vm: None) -> None:
    """Also where the host's /tmp is, which no program sees, and by a symbolic link."""

    def answer(connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        path = request.split()[1]
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(path)
        connection.sendall(head + path)

    with (
        tempfile.TemporaryDirectory(dir="/tmp") as directory,
        serving(pathlib.Path(directory, "web.sock"), answer) as path,
    ):
        link = room / "link.sock"
        link.symlink_to(path)
        for name in (path, os.fspath(link)):
            words = ["curl", "-sS", "--unix-socket", name, "http://x/asked/for"]
            run = in_vm(words, cwd=room, options=["--unix", name])
            assert (run.stdout, run.stderr, run.status) == (b"/asked/for", b"", 0)


CONNECT = """
import errno, os, socket, stat, sys
for name in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as s:
        code = s.connect_ex(name)
    print(errno.errorcode.get(code, 'connected'))
"""


def test_that_path_and_no_other(room: pathlib.Path, vm: None) -> None:
    """Neither one beside it nor one that --read shows, and not by another name."""
    with (
        serving(room / "named", orders) as named,
        serving(room / "other", orders) as other,
    ):
        both = [named, other]
        result = kvmlet.run(
            [PYTHON, "-c", CONNECT, *both], unix=[named], text=True, timeout=LIMIT_S
        )
        assert result.stdout == "connected\nENOENT\n", result
        (denial,) = [each for each in result.denials if each.kind == "host-socket"]
        assert (denial.what, denial.errno) == (f"connect {other}", "ENOENT")
        assert denial.flag == f"--unix {other}"
        # A tree of the host's that may be read.
        result = kvmlet.run(
            [PYTHON, "-c", CONNECT, *both], read=[room], unix=[named], text=True, timeout=LIMIT_S
        )
        assert result.stdout == "connected\nEACCES\n", result
        run = in_vm([PYTHON, "-c", CONNECT, other], cwd=room, options=["--verbose"])
        assert run.stdout == b"EACCES\n"
        told = f"kvmlet: denied: connect {other} (EACCES); allow it with --unix {other}"
        assert told in run.own_lines
        # What the program makes in its place in memory is its own.
        code = (
            "import os, socket\n"
            f"os.unlink({other!r})\n"
            f"listener = socket.socket(socket.AF_UNIX); listener.bind({other!r})\n"
            "listener.listen()\n"
            f"socket.socket(socket.AF_UNIX).connect({other!r}); listener.accept()\n"
            f"try: os.rename({other!r}, {named!r}); os.link({named!r}, {other!r})\n"
            "except OSError: pass\n"
            f"socket.socket(socket.AF_UNIX).connect({named!r}); listener.accept()\n"
            "print('own')\n"
        )
        run = in_vm([PYTHON, "-c", code], cwd=room, options=["--unix", other])
        assert run.stdout == b"own\n", run


def test_no_descriptors_are_passed(room: pathlib.Path, vm: None) -> None:
    """In neither direction; and nobody's credentials are told."""
    came: list[object] = []
    secret = room / "secret"
    secret.write_text("secret")

    def answer(connection: socket.socket) -> None:
        fd = os.open(secret, os.O_RDONLY)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        connection.sendmsg([b"take"], rights)
        os.close(fd)
        data, ancillary, _, _ = connection.recvmsg(99, 999)
        came.append((data, ancillary))

    code = (
        "import array, errno, os, socket, struct, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(20)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)\n"
        "s.connect(sys.argv[1])\n"
        "print(struct.unpack('iII', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)))\n"
        "before = os.listdir('/proc/self/fd')\n"
        "data, ancillary, flags, _ = s.recvmsg(99, 999)\n"
        "print(data, [(kind, struct.unpack('iII', d)) for _, kind, d in ancillary], flags)\n"
        "print(os.listdir('/proc/self/fd') == before)\n"
        "fd = array.array('i', [0])\n"
        "try: s.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fd)])\n"
        "except OSError as error: print(error.errno == errno.EOPNOTSUPP)\n"
        "s.sendmsg([b'plain'], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS,\n"
        "    struct.pack('iII', os.getpid(), os.getuid(), os.getgid()))])\n"
    )
    with serving(room / "server", answer) as path:
        result = kvmlet.run([PYTHON, "-c", code, path], unix=[path], text=True, timeout=LIMIT_S)
    nobody = (0, 65534, 65534)
    assert result.stdout.splitlines() == [
        str(nobody),
        f"b'take' [(2, {nobody})] 0",
        "True",
        "True",
    ], result
    assert came == [(b"plain", [])]


def test_a_server_that_starts_again(room: pathlib.Path, vm: None) -> None:
    """It makes its socket anew, at the same path."""
    code = (
        "import socket, sys\n"
        "for line in sys.stdin:\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(b'w')\n"
        "    print(s.recv(9), flush=True)\n"
    )
    path = room / "server"
    words = kvmlet_argv([PYTHON, "-uc", code, path], ["--unix", os.fspath(path)])
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(contextlib.ExitStack())
        first.enter_context(serving(path, orders))
        run = stack.enter_context(
            subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert run.stdin is not None
        assert run.stdout is not None
        for turn in range(2):
            run.stdin.write(b"\n")
            run.stdin.flush()
            assert run.stdout.readline() == b"b'late'\n"
            if turn == 0:
                first.close()
                path.unlink()
                stack.enter_context(serving(path, orders))
        run.stdin.close()
        assert run.wait(LIMIT_S) == 0


HOLDS = """
import socket, sys
for _ in range(2):
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    print('open', flush=True)
    try: print(s.recv(1), flush=True)
    except OSError as error: print(type(error).__name__, flush=True)
"""


def test_a_connection_refuses_a_freeze_or_is_dropped(room: pathlib.Path, vm: None) -> None:
    ended = threading.Semaphore(0)

    def hold(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(1)
        ended.release()

    with serving(room / "server", hold) as path, kvmlet.Box(unix=[path]) as box:
        process = box.spawn(["python3", "-c", HOLDS, path], text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(kvmlet.ConnectionsOpen, match=path):
            box.snapshot()
        with box.snapshot(connections="drop") as snapshot:
            assert ended.acquire(timeout=20)
            (fork,) = snapshot.fork()
            with fork:
                (theirs,) = fork.processes
                for stdout in (process.stdout, theirs.stdout):
                    assert stdout is not None
                    assert stdout.readline() == "ConnectionResetError\n"
                    assert stdout.readline() == "open\n"
                # What was opened since the snapshot is closed.
                box.reset()
                assert ended.acquire(timeout=20)
            assert ended.acquire(timeout=20)


def test_bytes_leave_before_the_end(room: pathlib.Path, vm: None) -> None:
    """A program that writes and ends at once."""
    received: list[int] = []
    done = threading.Event()

    def read_slowly(connection: socket.socket) -> None:
        threading.Event().wait(0.2)
        received.append(sum(len(data) for data in iter(lambda: connection.recv(1 << 16), b"")))
        done.set()

    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(bytes(1 << 20))\n"
    )
    with serving(room / "server", read_slowly) as path:
        run = in_vm([PYTHON, "-c", code, path], cwd="/usr", options=["--unix", path])
        assert done.wait(20)
    assert (run.status, received) == (0, [1 << 20]), run


# ---- packets and datagrams ----


def test_what_is_no_socket(room: pathlib.Path) -> None:
    file = room / "file"
    file.touch()
    long = room / ("n" * 120)
    with serving(room / "tree.sock", orders) as path:
        for options, said in (
            (["--unix", os.fspath(room / "absent")], "is not there"),
            (["--unix", os.fspath(file)], "is no socket"),
            (["--unix", os.fspath(room)], "is no socket"),
            (["--unix", os.fspath(long)], "longer than 108 bytes"),
            (["--unix", ""], "no socket"),
            (["--unix", path, "--write", os.fspath(room)], "could put another socket there"),
        ):
            run = command([os.fspath(KVMLET), "run", *options, "--", "/bin/true"], cwd=room)
            assert (run.status, run.stdout) == (125, b""), (options, run)
            assert said in run.stderr.decode(), (options, run)
            assert len(run.stderr.splitlines()) <= 2, run
    with pytest.raises(kvmlet.UsageError, match="not a list of paths"):
        kvmlet.run(["true"], unix="/run/x.sock")
    with pytest.raises(kvmlet.UsageError, match="is not there"):
        kvmlet.run(["true"], unix=[room / "absent"])


def test_relative_paths_and_policies(room: pathlib.Path, vm: None) -> None:
    policy = room / "policy.toml"
    policy.write_text('unix = ["server"]\n')
    with serving(room / "server", orders) as path:
        words = [PYTHON, "-c", CONNECT, path]
        for options in (["--unix", "server"], ["--policy", "policy.toml"]):
            run = in_vm(words, cwd=room, options=options)
            assert (run.stdout, run.stderr) == (b"connected\n", b""), run
        with kvmlet.Box(policy=kvmlet.Policy.load(policy)) as box:
            assert box.run(["python3", "-c", CONNECT, path]).stdout == b"connected\n"


def why(cwd: pathlib.Path, *words: str) -> tuple[int, str]:
    run = command([os.fspath(KVMLET), "why", *words], cwd=cwd)
    assert run.stderr == b""
    return run.status, run.stdout.decode()


def test_why(room: pathlib.Path) -> None:
    with serving(room / "server", orders) as path:
        told = f"{path}: may not be connected to\n  allow it with --unix {path}\n"
        assert why(room, path) == (1, told)
        assert why(room, "--read", path, path) == (1, told)
        told = f"{path}: may be connected to (--unix)\n"
        assert why(room, "--unix", path, path) == (0, told)
        status, text = why(room, "--json", "--unix", path, "server")
        assert (status, json.loads(text)["connect"]["allowed"]) == (0, True)


def test_learn(room: pathlib.Path, vm: None) -> None:
    """One that is refused comes into the file, which lets it be reached."""
    file = room / "learned.toml"
    work = room / "work"
    work.mkdir()
    with serving(room / "server", orders) as path:
        words = [PYTHON, "-c", CONNECT, path]
        run = in_vm(words, cwd=work, options=["--learn", os.fspath(file)])
        assert run.stdout == b"EACCES\n", run
        assert kvmlet.Policy.load(file).unix == (path,)
        run = in_vm(words, cwd=work, options=["--policy", os.fspath(file)])
        assert (run.stdout, run.own_lines) == (b"connected\n", []), run
