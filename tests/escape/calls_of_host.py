"""The system calls that kvmlet's own process makes once its second wall stands, by strace(1)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pathlib

    # Place of the argument, bits looked at, their value or None for the process's id.
    Condition = tuple[int, int, int | None]

# An id, a name, arguments as numbers; where another thread's call is between, no result yet.
_LINE = re.compile(r"^(\d+) +(\w+)\(([^)<]*)")


@dataclass(frozen=True, slots=True)
class HostCall:
    """A call, with its arguments as numbers."""

    name: str
    arguments: tuple[int, ...]

    def fits(self, name: str, conditions: list[Condition]) -> bool:
        """True if it is one that a rule for `name` means."""
        return self.name == name and all(
            value is None or self.arguments[place] & mask == value & mask
            for place, mask, value in conditions
        )


def strace_argv(log: pathlib.Path, argv: list[str]) -> list[str]:
    """The command that runs `argv` and writes the calls of all its threads to `log`."""
    options = ["-f", "-qq", "-X", "raw", "-e", "raw=all", "-e", "signal=none"]
    return ["strace", *options, "-o", str(log), "--", *argv]


def calls_after_wall(log: pathlib.Path) -> list[HostCall]:
    """The calls after the last seccomp(2); the last one is what a kill by SIGSYS was for.

    Processes beside the confined one, which have sessions of their own, are left out.
    """
    calls: list[HostCall] = []
    made = [_LINE.match(line) for line in log.read_text().splitlines()]
    beside = {match[1] for match in made if match and match[2] == "setsid"}
    for match in made:
        if match is None or match[1] in beside:
            continue
        _, name, arguments = match.groups()
        if name == "seccomp":
            calls.clear()
            continue
        words = [word.strip() for word in arguments.split(",") if word.strip()]
        calls.append(HostCall(name, tuple(int(word, 0) for word in words)))
    return calls
