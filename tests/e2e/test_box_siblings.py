"""Forks of a box that copy ahead what their siblings have written."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

import kvmlet

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.hw]


def told(fork: kvmlet.Box, order: str) -> str:
    """The answer of the only process of a fork."""
    (process,) = fork.processes
    stdin: Any = process.stdin
    stdout: Any = process.stdout
    stdin.write(order + "\n")
    line: str = stdout.readline()
    return line.strip()


def test_what_a_fork_has_protected_meanwhile_stays_so(guests: pathlib.Path) -> None:
    with kvmlet.Box() as box:
        box.files.write("guarded", (guests / "guarded").read_bytes())
        box.run(["chmod", "+x", "guarded"], check=True)
        process: Any = box.spawn(["./guarded"], text=True)
        assert process.stdout.readline() == "ready\n"
        with box.snapshot() as snapshot:
            writes, protects, follows = snapshot.fork(3)
        with writes, protects, follows:
            assert told(protects, "protect") == "protected"
            assert told(writes, "write") == "0 faults"
            assert told(protects, "write") == "32 faults"
            assert told(follows, "write") == "0 faults"
            assert told(follows, "protect") == "protected"
            assert told(follows, "write") == "32 faults"
