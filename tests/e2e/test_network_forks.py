"""Connections and ports of programs that are frozen, forked and reset."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading

import pytest

import kvmlet
from e2e.oracle import HW
from e2e.peers import CALLER, LIMIT_S, PYTHON, echo, serving

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")

HOLDS = """
import socket, sys
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('open', flush=True)
try: print(s.recv(1))
except OSError as error: print(type(error).__name__, flush=True)
s = socket.create_connection((sys.argv[1], int(sys.argv[2])))
print('again', flush=True)
print(s.recv(1))
"""


def test_a_connection_refuses_a_freeze_or_is_dropped(vm: None) -> None:
    ended = threading.Semaphore(0)

    def hold(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.recv(1)
        ended.release()

    with serving(hold) as port, kvmlet.Box(net=[f"{CALLER}:{port}"]) as box:
        process = box.spawn(["python3", "-c", HOLDS, CALLER, str(port)], text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(kvmlet.ConnectionsOpen, match=f"{CALLER}:{port}"):
            box.snapshot()
        snapshot = box.snapshot(connections="drop")
        assert ended.acquire(timeout=20)
        # The box, and each fork, finds it reset, and can make others.
        (fork,) = snapshot.fork()
        with fork:
            (theirs,) = fork.processes
            for stdout in (process.stdout, theirs.stdout):
                assert stdout is not None
                assert stdout.readline() == "ConnectionResetError\n"
                assert stdout.readline() == "again\n"
            # What was opened since the snapshot is closed.
            box.reset()
            assert ended.acquire(timeout=20)
        assert ended.acquire(timeout=20)
        snapshot.close()


def ask(process: kvmlet.Process, line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert isinstance(answer, str)
    return answer.strip()


def test_datagram_sockets_go_on_in_forks(vm: None) -> None:
    """Connected and not: a fork's have ports of their own, and lose nothing by a reset."""
    code = (
        "import socket, sys\n"
        "free, bound = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))\n"
        "to = ('127.0.0.54', int(sys.argv[1])); bound.connect(to)\n"
        "for s in (free, bound): s.settimeout(30)\n"
        "for line in sys.stdin:\n"
        "    free.sendto(line.encode(), to); bound.send(line.encode())\n"
        "    print((free.recv(99) + bound.recv(99)).decode().replace('\\n', ' '), flush=True)\n"
    )
    senders = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

        def serve() -> None:
            while True:
                data, sender = server.recvfrom(99)
                if data == b"over":
                    return
                senders.add(sender)
                server.sendto(data, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        with kvmlet.Box(net=[f"{CALLER}:{port}"]) as box:
            process = box.spawn(
                ["python3", "-c", code, str(port)], text=True, stdin=subprocess.PIPE
            )
            assert ask(process, "before") == "before before"
            with box.snapshot() as snapshot:
                for fork in snapshot.fork(2):
                    with fork:
                        for word in ("one", "two"):
                            assert ask(fork.processes[0], word) == f"{word} {word}"
                        fork.reset()
                        assert ask(fork.processes[0], "three") == "three three"
                assert ask(process, "after") == "after after"
        server.sendto(b"over", server.getsockname())
        thread.join()
    # Two of the box before and two after, and of each fork twice two.
    assert len(senders) == 12


def test_a_published_port_in_forks(vm: None) -> None:
    """They share it: who is there takes the next connection."""
    code = (
        "import socket\n"
        "with socket.create_server(('', 80)) as server:\n"
        "    while True:\n"
        "        connection, _ = server.accept()\n"
        "        with connection: connection.sendall(connection.recv(99))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def answers() -> bool:
        with socket.create_connection(("127.0.0.1", port), LIMIT_S) as client:
            client.sendall(b"asked")
            return client.recv(99) == b"asked"

    box = kvmlet.Box(publish=[f"{port}:80"])
    with box:
        box.spawn(["python3", "-c", code])
        box.wait_listening(80)
        assert answers()
        snapshot = box.snapshot(connections="drop")
        one, other = snapshot.fork(2)
        assert all(answers() for _ in range(5))
    with snapshot, other:
        with one:
            assert all(answers() for _ in range(5))
        other.reset()
        assert all(answers() for _ in range(3))


def test_a_freeze_that_is_refused_leaves_the_sandbox_as_it_is(vm: None) -> None:
    with serving(echo) as port:
        code = (
            "import kvmlet_guest, socket\n"
            f"s = socket.create_connection(('127.0.0.54', {port}))\n"
            "while True: s.sendall(kvmlet_guest.receive()); kvmlet_guest.send(s.recv(99))\n"
        )
        with kvmlet.Sandbox([PYTHON, "-c", code], net=[f"{CALLER}:{port}"]) as sandbox:
            sandbox.until_ready(LIMIT_S)
            with pytest.raises(kvmlet.ConnectionsOpen):
                sandbox.freeze()
            assert sandbox.request(b"still there", timeout=LIMIT_S) == b"still there"


def test_a_thousand_resets(vm: None) -> None:
    """Each request has a connection of its own, and leaves nothing open."""
    with serving(echo) as port:
        code = (
            "import kvmlet_guest, socket\n"
            "while True:\n"
            "    data = kvmlet_guest.receive()\n"
            f"    s = socket.create_connection(('127.0.0.54', {port}))\n"
            "    s.sendall(data); kvmlet_guest.send(s.recv(99))\n"
        )
        sandbox = kvmlet.Sandbox([PYTHON, "-c", code], net=[f"{CALLER}:{port}"])
        count = 1000 if os.environ.get("KVMLET_LONG") else 30
        with sandbox.until_ready().freeze() as snapshot, snapshot.fork() as fork:
            before = len(os.listdir("/proc/self/fd"))
            for number in range(count):
                assert fork.request(b"%d" % number, timeout=20) == b"%d" % number
                fork.reset()
            # Connections of the server's own end a moment later.
            assert len(os.listdir("/proc/self/fd")) <= before + 8
