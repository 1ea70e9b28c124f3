"""Programs that are warmed and frozen, and their answers natively."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass, field

import kvmlet
from e2e.oracle import HW
from e2e.service import native_answers

PYTHON = ["/usr/bin/python3", "warm.py"]
LIMIT_S = 400 if HW else 60
"""For what should take no time at all."""


@dataclass
class Warmed:
    """A frozen program and how to run it natively."""

    argv: list[str]
    cwd: pathlib.Path
    snapshot: kvmlet.Snapshot
    known: dict[bytes, bytes] = field(default_factory=dict)

    def native(self, request: bytes) -> bytes:
        """The program's native answer if this is its first request."""
        if request not in self.known:
            (self.known[request],) = native_answers(self.argv, cwd=self.cwd, messages=[request])
        return self.known[request]

    def check(self, sandbox: kvmlet.Sandbox, request: bytes) -> None:
        """`sandbox`, a clean fork, answers as the native program does."""
        assert sandbox.request(request, timeout=LIMIT_S) == self.native(request)


def freeze(argv: list[str], cwd: pathlib.Path, memory: str = "512m") -> Warmed:
    """Warm up a program and freeze it."""
    sandbox = kvmlet.Sandbox(argv, cwd=cwd, memory=memory)
    return Warmed(argv, cwd, sandbox.until_ready(timeout=LIMIT_S).freeze())


def ask(sandbox: kvmlet.Sandbox, request: str) -> str:
    """The answer as text."""
    return sandbox.request(request.encode(), timeout=LIMIT_S).decode()
