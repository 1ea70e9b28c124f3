"""Descriptor tables and directories that processes share (clone(2), unshare(2))."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import kvmlet

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = pytest.mark.poll


@pytest.mark.hw
def test_shared_tables(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./shares"], cwd=guests)


SERVER = """
import ctypes, os, kvmlet_guest

libc = ctypes.CDLL(None, use_errno=True)
CLONE_FILES, CLONE_FS, SIGCHLD = 0x400, 0x200, 17

def branch(flags):
    return libc.syscall(56, ctypes.c_ulong(flags | SIGCHLD), 0, 0, 0, 0)

to_child, orders = os.pipe()
answers, from_child = os.pipe()
if branch(CLONE_FILES | CLONE_FS) == 0:
    while order := os.read(to_child, 100):
        os.chdir(order)
        number = os.open("name", os.O_RDWR | os.O_CREAT)
        os.write(number, order)
        os.write(from_child, b"%d" % number)
    os._exit(0)

def count():
    return len(os.listdir("/proc/self/fd"))

while True:
    order = kvmlet_guest.receive()
    if order == b"count":
        kvmlet_guest.send(b"%d %s" % (count(), os.getcwdb()))
        continue
    if order == b"alone":
        libc.unshare(CLONE_FILES | CLONE_FS)
    os.makedirs(b"/tmp/" + order, exist_ok=True)
    os.write(orders, b"/tmp/" + order)
    number = int(os.read(answers, 100))
    try:
        text = os.pread(number, 100, 0)
    except OSError as error:
        text = error.strerror.encode()
    if order == b"end":
        os.close(orders)
        os.close(to_child)
    kvmlet_guest.send(b"%d %s %s" % (number, text, os.getcwdb()))
"""


@pytest.mark.parametrize("order", [b"one", b"alone", b"end"])
def test_they_are_frozen_and_come_back_with_a_reset(tmp_path: pathlib.Path, order: bytes) -> None:
    program = ["/usr/bin/python3", "-c", SERVER]
    sandbox = kvmlet.Sandbox(program, cwd=tmp_path).until_ready()
    with sandbox.freeze() as snapshot, snapshot.fork() as one, snapshot.fork() as other:
        before = one.request(b"count", timeout=20)
        assert before.endswith(b" %s" % str(tmp_path).encode()), before
        answers = set()
        for fork in (one, other, one):
            answers.add(fork.request(order, timeout=20))
            fork.reset()
            assert fork.request(b"count", timeout=20) == before
        (answer,) = answers
        number, text, directory = answer.rsplit(b" ", 2) if order != b"alone" else (b"", b"", b"")
        if order == b"alone":
            assert answer.endswith(b" Bad file descriptor %s" % str(tmp_path).encode()), answer
        else:
            assert int(number) > 2
            assert text == directory == b"/tmp/" + order
