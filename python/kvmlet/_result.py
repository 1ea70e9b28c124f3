"""The end of a program: its status, its output, and the things that it was refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, AnyStr, Generic

from kvmlet._changes.result import Changes
from kvmlet._refusals import flag_of, path_of, remedy_of
from kvmlet.errors import ExitError

if TYPE_CHECKING:
    import os

__all__ = ["Denial", "Event", "Result"]


@dataclass(frozen=True, slots=True)
class Denial:
    """One thing the policy refused.

    >>> [denial] = kvmlet.run(["cat", "/etc/shadow"]).denials
    >>> denial.operation, denial.path, denial.errno, denial.remedy
    ('open', '/etc/shadow', 'ENOENT', 'it is not visible, and no option shows it')
    """

    what: str
    """The call and its object: "open /etc/shadow"."""
    errno: str
    """Name of the error that the guest got: "EACCES"."""
    kind: str
    """The rule that refused it: "hidden", "read-only", "special-file", "kernel-file", "address",
    "network", "host-socket", "replaceable-socket", "terminal", "descriptors", "mappings" or
    "rate"."""
    count: int = 1
    """The times that it was refused."""

    @property
    def operation(self) -> str:
        """The call: "open"."""
        return self.what.partition(" ")[0]

    @property
    def path(self) -> str:
        """The absolute path, "" if it was about no file."""
        return path_of(self.what)

    @property
    def flag(self) -> str:
        """The option of `kvmlet run` that would allow it, "" if none does."""
        return flag_of(self.what, self.kind)

    @property
    def remedy(self) -> str:
        """The change that would allow it, or the reason why nothing does, in words."""
        return remedy_of(self.what, self.kind)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the guest met that kvmlet does not support; it got the error Linux would give.

    >>> isinstance(kvmlet.run(["true"]).events, list)  # most programs meet none
    True
    """

    name: str
    detail: str


@dataclass(frozen=True, slots=True, repr=False)
class Result(Generic[AnyStr]):
    """The end of a run, and its output: bytes, or str from `run(..., text=True)`.

    >>> result = kvmlet.run("echo out; echo err >&2; exit 3", shell=True, text=True)
    >>> result.stdout, result.stderr, result.returncode, result.reason, result.ok
    ('out\\n', 'err\\n', 3, 'exited', False)
    """

    stdout: AnyStr
    """The captured output; empty for a stream that went elsewhere."""
    stderr: AnyStr
    exit_code: int | None
    """Exit status 0..255, None if the program did not exit by itself."""
    signal: int | None
    """Number of the signal that ended the program, else None."""
    reason: str
    """"exited", "signal", "timeout", "cpu-time", "memory", "output" or "interrupted"."""
    denials: list[Denial] = field(default_factory=list)
    """The policy's refusals, each once: 1,000 at most; `stats["denials_not_kept"]` counts more."""
    changes: Changes = field(default_factory=Changes)
    """Names changed in the current directory's tree, in memory: ("A", "M" or "D", path).

    `run(..., changes="list")` holds the contents too: see its `read` and `apply`.

    A new directory stands for its contents; its path ends in "/". Of a great many, the first."""
    changes_are_cut: bool = False
    """True if there are more changes than `changes` has."""
    events: list[Event] = field(default_factory=list)
    stats: dict[str, int | float] = field(default_factory=dict)
    """Counters; times have names ending in _us and are in microseconds."""
    args: list[str | bytes | os.PathLike[str]] = field(default_factory=list)
    """The program and its arguments."""

    @property
    def returncode(self) -> int:
        """As `subprocess.CompletedProcess` has it: the exit status, or minus the signal's number.

        -9 after a limit, which ends a program as SIGKILL does.
        """
        if self.exit_code is not None:
            return self.exit_code
        return -(self.signal or _SIGKILL)

    @property
    def shell_status(self) -> int:
        """As a shell has it: the exit status, or 128 and the number of the signal.

        137 after a limit, which ends a program as SIGKILL does.
        """
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    @property
    def truncated(self) -> bool:
        """True if the program wrote more than is captured, which ended it."""
        return self.reason == "output"

    @property
    def ok(self) -> bool:
        """True if the program exited by itself with status 0."""
        return self.reason == "exited" and self.exit_code == 0

    def check(self) -> Result[AnyStr]:
        """This result if the program exited with status 0. Raises ExitError otherwise."""
        if self.ok:
            return self
        raise ExitError(ending_text(self), result=self)

    def __bool__(self) -> bool:
        """Raises TypeError: `if result:` would be true for a failure as well."""
        raise TypeError("a Result has no truth value: ask for .ok or call .check()")

    def __repr__(self) -> str:
        """The end of the program first, then the start of what it wrote."""
        parts = [f"reason={self.reason!r}", f"returncode={self.returncode}"]
        if self.args:
            parts.insert(0, f"args={self.args!r}")
        parts += [
            f"{name}={_shortened(value)}"
            for name, value in (("stdout", self.stdout), ("stderr", self.stderr))
            if value
        ]
        if self.denials:
            parts.append(f"denials={len(self.denials)}")
        return f"Result({', '.join(parts)})"


_SIGKILL = 9
_SHOWN_MAX = 60


def _shortened(value: str | bytes) -> str:
    if len(value) <= _SHOWN_MAX:
        return repr(value)
    return f"{value[:_SHOWN_MAX]!r}... ({len(value):,} in all)"


_QUOTED_MAX_CHARS = 200


def ending_text(result: Result[Any]) -> str:
    """The end of the program in one line, with the last line that it wrote to standard error."""
    if result.reason == "exited":
        text = f"the program exited with status {result.exit_code}"
    elif result.reason == "signal":
        text = f"the program was ended by signal {result.signal}"
    elif result.reason == "interrupted":
        text = "the run was interrupted"
    else:
        limit = {"timeout": "time", "cpu-time": "CPU time"}
        text = f"the program reached its {limit.get(result.reason, result.reason)} limit"
    # The program chose these bytes: not too many, and none that a terminal would obey.
    tail = result.stderr[-4096:]
    said = tail if isinstance(tail, str) else tail.decode("utf-8", "replace")
    last = said.strip().splitlines()[-1:]
    if not last:
        return text
    line = "".join(char if char.isprintable() else "\ufffd" for char in last[0])
    if len(line) > _QUOTED_MAX_CHARS:
        line = line[:_QUOTED_MAX_CHARS] + "..."
    return f"{text}, its last error line: {line}"
