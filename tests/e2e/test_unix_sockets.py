"""Sockets of the host that `--unix` names: reached as natively, and nothing beside them."""

from __future__ import annotations

import array
import contextlib
import ctypes
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


@pytest.fixture
def room() -> Iterator[pathlib.Path]:
    """A directory of the host that no program sees, with a path that is short enough."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield pathlib.Path(directory)


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

PACKETS = """
import errno, select, socket, sys
packets, datagrams, other, gone = sys.argv[1:5]

def said(call, *args):
    try: return call(*args)
    except OSError as error: return errno.errorcode[error.errno]

with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
    s.settimeout(30)
    s.connect(packets)
    print(s.getpeername() == packets, repr(s.getsockname()), said(s.connect, packets))
    for data in (b'one', b'', b'x' * 70000, b'last'):
        print(s.send(data))
        back, _, flags, _ = s.recvmsg(80000)
        print(back == data, flags)
    s.send(b'cut off')
    print(s.recvmsg(3)[0], s.recvmsg(3, 0, 0)[2] if False else '')
    print(said(s.send, bytes(1 << 20)))
    s.send(b'empty')
    print([s.recv(9) for _ in range(3)])
    s.send(b'close')
    print(s.recv(9), s.recv(9))
    poll = select.poll()
    poll.register(s, 0)
    print([mask for _, mask in poll.poll(10000)])
    print(said(s.send, b'x'))
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as s:
    s.connect(packets)
    s.send(b'flood')
    s.shutdown(socket.SHUT_WR)
    print(sum(len(s.recv(9000)) for _ in range(300)), s.recv(1), said(s.send, b'x'))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    s.settimeout(30)
    print([s.sendto(bytes(n), datagrams) for n in (3, 0, 60000)])
    print(s.sendto(b'to another', other))
    print(said(s.getpeername), said(s.send, b'nobody'))
    s.connect(datagrams)
    print(s.getpeername() == datagrams, s.send(b'connected'), said(s.send, bytes(1 << 20)))
    s.connect(other)
    print(s.send(b'another'), s.getpeername() == other)
    print(said(s.sendto, b'x', packets), said(s.sendto, b'x', gone), said(s.connect, gone))
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
    s.settimeout(30)
    s.bind('')
    s.sendto(b'answer', datagrams)
    data, name = s.recvfrom(99)
    print(data, name == datagrams)
    s.connect(datagrams)
    s.setblocking(False)
    print(said(s.recv, 9))
    s.send(b'answer')
    epoll = select.epoll()
    epoll.register(s, select.EPOLLIN | select.EPOLLET)
    print([mask & select.EPOLLIN for _, mask in epoll.poll(10)], s.recv(9))
"""


@contextlib.contextmanager
def packet_servers(room: pathlib.Path) -> Iterator[tuple[list[str], list[tuple[str, int]]]]:
    """Servers of packets and of datagrams, and a name where nobody is; what came as datagrams."""
    came: list[tuple[str, int]] = []
    names = [os.fspath(room / name) for name in ("packets", "datagrams", "other", "gone")]
    with contextlib.ExitStack() as stack:

        def bound(name: str, kind: int) -> socket.socket:
            server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            server.bind(name)
            return server

        bound(names[3], socket.SOCK_DGRAM).close()

        def packets(connection: socket.socket) -> None:
            turn = 0
            while True:
                data = connection.recv(100_000)
                turn += 1
                if data == b"close" or (data == b"" and turn != 2):
                    break
                if data == b"empty":
                    data = b""
                    connection.send(b"before")
                    connection.send(data)
                    data = b"after"
                if data == b"flood":
                    for _ in range(300):
                        connection.send(bytes(1000))
                    break
                connection.send(data)

        def serve(listener: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        packets(connection)

        def take(server: socket.socket, place: str) -> None:
            with contextlib.suppress(OSError):
                while True:
                    data, name = server.recvfrom(100_000)
                    if data == b"over":
                        return
                    came.append((place, len(data)))
                    if data == b"answer" and name:
                        server.sendto(b"answered", name)

        listener = bound(names[0], socket.SOCK_SEQPACKET)
        listener.listen(8)
        threads = [threading.Thread(target=serve, args=(listener,), daemon=True)]
        for name, place in ((names[1], "first"), (names[2], "second")):
            taker = bound(name, socket.SOCK_DGRAM)
            threads.append(threading.Thread(target=take, args=(taker, place), daemon=True))
        for thread in threads:
            thread.start()
        yield names, came
        listener.shutdown(socket.SHUT_RDWR)
        for name in names[1:3]:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
                last.sendto(b"over", name)
        for thread in threads:
            thread.join(10)


def test_packets_and_datagrams_as_natively(room: pathlib.Path, vm: None) -> None:
    outcomes = []
    for inside in (False, True):
        place = room / str(inside)
        place.mkdir()
        with packet_servers(place) as (names, came):
            words = [PYTHON, "-c", PACKETS, *names]
            options = [word for name in names for word in ("--unix", name)]
            run = in_vm(words, cwd="/usr", options=options) if inside else native(words, cwd=room)
        outcomes.append((run.stdout.decode().splitlines(), sorted(came)))
        assert run.status == 0, run
        assert (run.guest_stderr if inside else run.stderr) == b"", run
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][1]) == 8, outcomes


def test_datagrams_wait_for_room(room: pathlib.Path, vm: None) -> None:
    """A server that takes none for a while loses none, also of a program that ends at once."""
    received: list[int] = []
    path = room / "slow"
    code = (
        "import select, socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(sys.argv[1])\n"
        "for n in range(200): s.send(bytes(1000 + n))\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(os.fspath(path))
        server.settimeout(LIMIT_S)

        def read_slowly() -> None:
            threading.Event().wait(0.5)
            received.extend(len(server.recv(4000)) for _ in range(200))

        thread = threading.Thread(target=read_slowly)
        thread.start()
        options = ["--unix", os.fspath(path)]
        run = in_vm([PYTHON, "-c", code, os.fspath(path)], cwd="/usr", options=options)
        thread.join(LIMIT_S)
    assert (run.status, received) == (0, list(range(1000, 1200))), run


SENDS = """
import errno, socket, sys
connected, free = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
def connect(): connected.connect(sys.argv[1])
connect()
for line in sys.stdin:
    for name, send in (('connected', lambda: connected.send(b'one')),
                       ('free', lambda: free.sendto(b'two', sys.argv[1])),
                       ('again', lambda: (connect(), connected.send(b'three'))[1])):
        try: print(name, send(), flush=True)
        except OSError as error: print(name, errno.errorcode[error.errno], flush=True)
"""


def test_datagrams_to_a_server_that_starts_again(room: pathlib.Path, vm: None) -> None:
    """By name it is found, a connected socket is told once; natively alike."""
    path = room / "log"
    options = ["--unix", os.fspath(path)]
    told = []
    for inside in (False, True):
        words = [PYTHON, "-uc", SENDS, os.fspath(path)]
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            server.bind(os.fspath(path))
            run = stack.enter_context(
                subprocess.Popen(
                    kvmlet_argv(words, options) if inside else words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert run.stdin is not None
            assert run.stdout is not None
            lines: list[bytes] = []
            for turn in range(2):
                run.stdin.write(b"\n")
                run.stdin.flush()
                lines += [run.stdout.readline() for _ in range(3)]
                if turn == 0:
                    server.close()
                    path.unlink()
                    server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
                    server.bind(os.fspath(path))
            server.settimeout(LIMIT_S)
            came = [server.recv(9) for _ in range(2)]
            run.stdin.close()
            assert run.wait(LIMIT_S) == 0
        path.unlink()
        told.append((lines, came))
    assert told[0] == told[1]
    assert told[1][0][3] == b"connected ECONNREFUSED\n", told


def test_packets_refuse_a_freeze_and_datagrams_do_not(room: pathlib.Path, vm: None) -> None:
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "print(s.sendto(b'before', sys.argv[1]), flush=True)\n"
        "for line in sys.stdin:\n"
        "    if line == 'packets\\n':\n"
        "        p = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); p.connect(sys.argv[2])\n"
        "    print(s.sendto(line.encode(), sys.argv[1]), flush=True)\n"
    )
    with packet_servers(room) as (names, came), kvmlet.Box(unix=names[:2]) as box:
        words = ["python3", "-c", code, names[1], names[0]]
        process = box.spawn(words, text=True, stdin=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "6\n"
        with box.snapshot() as snapshot:
            (fork,) = snapshot.fork()
            with fork:
                (theirs,) = fork.processes
                for one in (process, theirs):
                    assert one.stdin is not None
                    assert one.stdout is not None
                    one.stdin.write("after\n")
                    one.stdin.flush()
                    assert one.stdout.readline() == "6\n"
                assert theirs.stdin is not None
                assert theirs.stdout is not None
                theirs.stdin.write("packets\n")
                theirs.stdin.flush()
                assert theirs.stdout.readline() == "8\n"
                with pytest.raises(kvmlet.ConnectionsOpen, match=names[0]):
                    fork.snapshot()
    assert [place for place, _ in came].count("first") == 4


def interactive(code: str, path: pathlib.Path, *, inside: bool) -> subprocess.Popen[str]:
    """A program that answers each line by one, natively or in a VM that may connect to `path`."""
    words = [PYTHON, "-uc", code, os.fspath(path)]
    return subprocess.Popen(
        kvmlet_argv(words, ["--unix", os.fspath(path)]) if inside else words,
        cwd="/usr",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def say(run: subprocess.Popen[str], line: str) -> str:
    assert run.stdin is not None
    assert run.stdout is not None
    run.stdin.write(f"{line}\n")
    run.stdin.flush()
    return run.stdout.readline().strip()


NAMED = """
import errno, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.setblocking(False)
for line in sys.stdin:
    try: print(s.sendto(line.strip().encode(), sys.argv[1]))
    except OSError as error: print(errno.errorcode[error.errno])
"""


def test_an_error_is_told_of_its_own_message(room: pathlib.Path, vm: None) -> None:
    """One that waits for room may be lost later. The next one is sent or fails by itself."""
    path = room / "log"
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other,
        interactive(NAMED, path, inside=True) as run,
    ):
        server.bind(os.fspath(path))
        server.settimeout(LIMIT_S)
        other.bind(os.fspath(room / "other"))
        # As many as the host queues, and one that waits.
        for number in range(12):
            assert say(run, f"{number:02}") == "2"
        # It takes datagrams from another one only.
        server.connect(os.fspath(room / "other"))
        assert say(run, "refused") == "EPERM"
        assert say(run, "refused too") == "EPERM"
        # From anyone again; what was queued is gone.
        assert libc.connect(server.fileno(), bytes(16), 16) == 0
        assert say(run, "last") == "4"
        assert server.recv(99) == b"last"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(99)
        assert run.stdin is not None
        run.stdin.close()
        assert run.wait(LIMIT_S) == 0


LONG_MESSAGES = """
import errno, socket, sys
kind = getattr(socket, sys.argv[2])
with socket.socket(socket.AF_UNIX, kind) as s:
    s.settimeout(60)
    s.bind('')
    s.connect(sys.argv[1])
    def send(size):
        try: return s.send((b'%d' % size).ljust(size, b'.'))
        except OSError as error: return errno.errorcode[error.errno]
    print(send(212_960), send(212_961))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 30)
    print(s.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))
    for size in (425_951, 425_952, 425_953, 425_984, 425_985):
        print(size, send(size))
    for _ in range(3): print(len(s.recv(1 << 20)))
    # One that only a privileged sender can make is not carried.
    try: print(len(s.recv(1 << 20)))
    except OSError as error: print(errno.errorcode[error.errno])
    print(s.recv(9))
"""


@pytest.mark.parametrize("kind", ["SOCK_DGRAM", "SOCK_SEQPACKET"])
def test_the_longest_messages(room: pathlib.Path, kind: str, vm: None) -> None:
    """Up to the largest that SO_SNDBUF makes room for, in both directions, with Linux's limits."""
    path = room / "server"
    came: list[bytes] = []

    def answer(peer: socket.socket) -> None:
        peer.settimeout(LIMIT_S)
        # As much as the machine lets this user have.
        for option in (socket.SO_SNDBUF, SO_SNDBUFFORCE):
            with contextlib.suppress(PermissionError):
                peer.setsockopt(socket.SOL_SOCKET, option, 1 << 20)
        while len(came) < 3:
            data, name = peer.recvfrom(1 << 20)
            came.append(data)
            if len(came) == 1 and name:
                peer.connect(name)
        for size in (1, 425_951, 425_952):
            peer.send(bytes(size))
        try:
            peer.send(bytes(425_953))
        except OSError:
            peer.send(b"longest")
        peer.send(b"last")

    with socket.socket(socket.AF_UNIX, getattr(socket, kind)) as server:
        server.bind(os.fspath(path))
        server.settimeout(LIMIT_S)

        def serve() -> None:
            if kind == "SOCK_DGRAM":
                answer(server)
            else:
                with server.accept()[0] as peer:
                    answer(peer)

        if kind == "SOCK_SEQPACKET":
            server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        words = [PYTHON, "-c", LONG_MESSAGES, os.fspath(path), kind]
        run = in_vm(words, cwd="/usr", options=["--unix", os.fspath(path)])
        thread.join(LIMIT_S)
    lines = run.stdout.decode().splitlines()
    assert lines[:7] == [
        "212960 EMSGSIZE",
        "425984",
        "425951 425951",
        "425952 425952",
        "425953 EMSGSIZE",
        "425984 EMSGSIZE",
        "425985 EMSGSIZE",
    ], run
    assert lines[7:10] == ["1", "425951", "425952"], run
    assert lines[10:] in (["EMSGSIZE", "b'last'"], ["7", "b'last'"]), run
    sizes = (212_960, 425_951, 425_952)
    assert came == [(b"%d" % size).ljust(size, b".") for size in sizes]


def test_a_full_datagram_socket_in_a_fork(room: pathlib.Path, vm: None) -> None:
    """Who waits for room waits for the host's server, and sends nothing of before the freeze."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(sys.argv[1]); s.setblocking(False)\n"
        "try:\n"
        "    while True: s.send(b'full')\n"
        "except BlockingIOError: print('full', flush=True)\n"
        "s.setblocking(True); s.send(b'last'); print('sent', flush=True)\n"
    )
    path = room / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(os.fspath(path))
        server.settimeout(LIMIT_S)
        with kvmlet.Box(unix=[path]) as box:
            process = box.spawn(["python3", "-c", code, os.fspath(path)], text=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "full\n"
            with box.snapshot() as snapshot:
                (fork,) = snapshot.fork()
                with fork:
                    both = (process.stdout, fork.processes[0].stdout)
                    came: list[bytes] = []
                    while came.count(b"last") < 2:
                        came.append(server.recv(9))
                    for stdout in both:
                        assert stdout is not None
                        assert stdout.readline() == "sent\n"
    # The host's own queue had some; what waited inside is lost.
    assert len(came) < 100


def test_a_connected_datagram_socket_in_a_fork(room: pathlib.Path, vm: None) -> None:
    """It goes on as if nothing had been, also after a reset, and has answers of its own."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.settimeout(60); s.bind('/tmp/own'); s.connect(sys.argv[1])\n"
        "print(s.send(b'before'), flush=True)\n"
        "for line in sys.stdin:\n"
        "    s.send(line.strip().encode()); print(s.recv(99).decode(), flush=True)\n"
    )
    path = room / "log"
    came = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(os.fspath(path))
        server.settimeout(LIMIT_S)

        def serve() -> None:
            while True:
                data, name = server.recvfrom(99)
                if data == b"over":
                    return
                came.append(data)
                if data != b"before":
                    server.sendto(data.upper(), name)

        thread = threading.Thread(target=serve)
        thread.start()
        with kvmlet.Box(unix=[path]) as box:
            process = box.spawn(
                ["python3", "-c", code, os.fspath(path)], text=True, stdin=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stdout.readline() == "6\n"

            def ask(one: kvmlet.Process, line: str) -> str:
                assert one.stdin is not None
                assert one.stdout is not None
                one.stdin.write(f"{line}\n")
                one.stdin.flush()
                return str(one.stdout.readline())

            with box.snapshot() as snapshot:
                for fork in snapshot.fork(2):
                    with fork:
                        for word in ("one", "two"):
                            assert ask(fork.processes[0], word) == f"{word.upper()}\n"
                        fork.reset()
                        assert ask(fork.processes[0], "three") == "THREE\n"
                assert ask(process, "four") == "FOUR\n"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"over", os.fspath(path))
        thread.join(LIMIT_S)
    assert came == [b"before", *[b"one", b"two", b"three"] * 2, b"four"]


# ---- words ----


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
