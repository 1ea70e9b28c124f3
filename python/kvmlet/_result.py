"""The end of a program: its status, its output, and the things that it was refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvmlet.errors import ExitError

__all__ = ["Denial", "Event", "Result"]


@dataclass(frozen=True, slots=True)
class Denial:
    """One thing the policy refused."""

    what: str
    """The call and its object: "open /etc/shadow"."""
    errno: str
    """Name of the error that the guest got: "EACCES"."""
    remedy: str
    """A change that would allow it, "" if none does."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the guest met that kvmlet does not support; it got the error Linux would give."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a run, and its output."""

    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    exit_code: int | None
    """Exit status 0..255, None if the program did not exit by itself."""
    signal: int | None
    """Number of the signal that ended the program, else None."""
    reason: str
    """"exited", "signal", "timeout", "memory", "output" or "interrupted"."""
    denials: list[Denial] = field(default_factory=list)
    """The policy's refusals, each once: 1,000 at most; `stats["denials_not_kept"]` counts more."""
    events: list[Event] = field(default_factory=list)
    stats: dict[str, int | float] = field(default_factory=dict, repr=False)
    """Counters; times have names ending in _us and are in microseconds."""

    @property
    def ok(self) -> bool:
        """True if the program exited by itself with status 0."""
        return self.reason == "exited" and self.exit_code == 0

    def check(self) -> Result:
        """This result if the program exited with status 0. Raises ExitError otherwise."""
        if self.ok:
            return self
        raise ExitError(ending_text(self), result=self)


_QUOTED_MAX_CHARS = 200


def ending_text(result: Result) -> str:
    """The end of the program in one line, with the last line that it wrote to standard error."""
    if result.reason == "exited":
        text = f"the program exited with status {result.exit_code}"
    elif result.reason == "signal":
        text = f"the program was ended by signal {result.signal}"
    elif result.reason == "interrupted":
        text = "the run was interrupted"
    else:
        limit = {"timeout": "time", "memory": "memory", "output": "output"}
        text = f"the program reached its {limit.get(result.reason, result.reason)} limit"
    # The program chose these bytes: not too many, and none that a terminal would obey.
    last = result.stderr[-4096:].decode("utf-8", "replace").strip().splitlines()[-1:]
    if not last:
        return text
    line = "".join(char if char.isprintable() else "\ufffd" for char in last[0])
    if len(line) > _QUOTED_MAX_CHARS:
        line = line[:_QUOTED_MAX_CHARS] + "..."
    return f"{text}, its last error line: {line}"
