"""A reset restores pages that only kvmlet has written, in the program's name.

On hardware KVM the CPU says which pages the program itself has written, and a reset passes the
others over. Every way in which kvmlet writes to a program's memory must be found all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from e2e.warmed import LIMIT_S, freeze

if TYPE_CHECKING:
    import pathlib

    import kvmlet

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]

PLACES = (
    *("read(2)", "getrandom(2)", "uname(2)", "a signal's frame", "a futex operation"),
    *("a robust list", "the id of a thread that ends", "a message", "process_vm_readv(2)"),
)


def ask(fork: kvmlet.Sandbox, request: str) -> str:
    answer = fork.request(request.encode(), timeout=LIMIT_S).decode()
    assert fork.output().stdout == b""
    return answer


def changed(fork: kvmlet.Sandbox) -> list[str]:
    """The places that are not as they were when the program was frozen."""
    return [PLACES[int(number)] for number in ask(fork, "look").split()]


def write_by_kvmlet(fork: kvmlet.Sandbox) -> None:
    fork.send(b"kernel")
    assert fork.request(b"the message", timeout=LIMIT_S) == b""


def test_what_kvmlet_alone_has_written_is_restored(guests: pathlib.Path) -> None:
    with freeze(["./hostwrites"], guests).snapshot as snapshot, snapshot.fork() as fork:
        for round_ in range(4):
            # Copies of the pages, which the next reset finds written by the program.
            ask(fork, "touch")
            assert changed(fork) == list(PLACES)
            fork.reset()
            # Nothing, which leaves the copies as they are.
            assert changed(fork) == [], round_
            fork.reset()
            for _ in range(2):
                write_by_kvmlet(fork)
                assert changed(fork) == list(PLACES), "each way is one that writes"
                fork.reset()
                assert changed(fork) == [], round_
                fork.reset()
