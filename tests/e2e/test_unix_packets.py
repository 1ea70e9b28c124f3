"""Sockets of the host that `--unix` names: sequenced packets and datagrams, as natively."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, in_vm, kvmlet_argv, native

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = "/usr/bin/python3"
LIMIT_S = 60
SO_SNDBUFFORCE = 32

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")


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
