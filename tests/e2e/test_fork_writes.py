"""Memory of a fork that kvmlet has written for the program: nothing is left after a reset."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW
from e2e.service import native_answers

if TYPE_CHECKING:
    import pathlib

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]

LIMIT_S = 400 if HW else 60
REQUESTS = [b"read", b"signal", b"futex", b"robust", b"thread", b"answers"]
"""Calls that read and that answer in memory, signal frames, futex words, robust lists."""


def test_what_is_written_for_the_program_goes_with_a_reset(guests: pathlib.Path) -> None:
    argv = ["./ownwrites"]
    native = {request: native_answers(argv, cwd=guests, messages=[request]) for request in REQUESTS}
    (clean,) = native_answers(argv, cwd=guests, messages=[b"look"])
    order = REQUESTS * 3
    random.Random(13).shuffle(order)
    frozen = kvmlet.Sandbox(argv, cwd=guests).until_ready(timeout=LIMIT_S).freeze()
    with frozen as snapshot, snapshot.fork() as fork, snapshot.fork() as other:
        for request in order:
            assert fork.request(b"look", timeout=LIMIT_S) == clean, request
            # With the page written ahead by the program, and without.
            assert [fork.request(request, timeout=LIMIT_S)] == native[request]
            assert fork.request(b"look", timeout=LIMIT_S) != clean, request
            fork.reset()
        assert other.request(b"look", timeout=LIMIT_S) == clean


def test_memory_that_is_written_in_sequence(guests: pathlib.Path) -> None:
    """The pages behind one are copied with it: the count of exits shows it, and nothing else."""
    frozen = kvmlet.Sandbox(["./silicon"], cwd=guests).until_ready(timeout=LIMIT_S).freeze()
    with frozen as snapshot, snapshot.fork() as fork:
        assert fork.call("write_pages", 0, 64, timeout=LIMIT_S) == 64
        exits = fork.stats()["exits"]
        assert exits <= 24, "a fault for each page"
        # Each has what was written there, and those behind the last one what was frozen.
        assert fork.call("write_pages", 0, 96, timeout=LIMIT_S) == sum(range(2, 66)) + 32
        fork.reset()
        assert fork.call("write_pages", 0, 1024, timeout=LIMIT_S) == 1024
