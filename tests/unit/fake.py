"""A stand-in for the extension module: it records how it was called and ends as it is told."""

from __future__ import annotations

import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

HEALTHY: dict[str, object] = {
    "kvm": "ok",
    "kvm_error": None,
    "api_version": 12,
    "world": "hardware",
    "vm_ran": True,
    "x_us": 1.25,
    "landlock": 3,
    "huge_pages": "madvise",
    "nested": False,
    "container": None,
    "group": "kvm",
    "caps": {"sync_regs": True, "readonly_mem": True, "xsave2": False, "nr_memslots": 32764},
}


class NativeError(Exception):
    """As the extension's: args are (kind, message)."""


@dataclass
class Outcome:
    exit_code: int | None = 0
    signal: int | None = None
    reason: str = "exited"
    stdout: bytes = b""
    stderr: bytes = b""
    denials: list[tuple[str, str, str]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    stats: dict[str, int | float] = field(default_factory=dict)


class FakeNative(types.ModuleType):
    NativeError = NativeError

    def __init__(self) -> None:
        super().__init__("kvmlet._native")
        self.outcome = Outcome()
        self.error: BaseException | None = None
        self.during_run: Callable[[], None] | None = None
        self.calls: list[dict[str, Any]] = []
        self.hardened: list[bytes] = []
        self.findings: dict[str, object] = dict(HEALTHY)
        self.rows: list[tuple[int, str, str, str]] = []

    def run(self, argv: list[bytes], **arguments: Any) -> Outcome:
        self.calls.append({"argv": argv, **arguments})
        if self.during_run is not None:
            self.during_run()
        if self.error is not None:
            raise self.error
        return self.outcome

    def harden(self, cwd: bytes) -> list[str]:
        self.hardened.append(cwd)
        return ["Landlock is off"]

    def probe(self) -> dict[str, object]:
        return self.findings

    def syscalls(self) -> list[tuple[int, str, str, str]]:
        return self.rows
