"""Run one program in a VM of its own and collect what it wrote."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvmlet import _native
from kvmlet._launch import guest_argv, guest_cwd, guest_env
from kvmlet._values import (
    DEFAULT_MEMORY_BYTES,
    OUTPUT_LIMIT_BYTES,
    parse_duration,
    parse_size,
)
from kvmlet.errors import ExitError, UsageError, from_native

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

__all__ = ["Denial", "Event", "Result", "run"]


@dataclass(frozen=True, slots=True)
class Denial:
    """One thing the policy refused."""

    what: str
    """The call and its object: "open /etc/shadow"."""
    errno: str
    """Name of the error that the guest got: "EACCES"."""
    remedy: str
    """What would allow it, "" if nothing does."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the guest met that kvmlet does not support; it got the error Linux would give."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended, and what it wrote."""

    stdout: bytes = field(repr=False)
    stderr: bytes = field(repr=False)
    exit_code: int | None
    """Exit status 0..255, None if the program did not exit by itself."""
    signal: int | None
    """Number of the signal that ended the program, else None."""
    reason: str
    """"exited", "signal", "timeout", "memory", "output" or "interrupted"."""
    denials: list[Denial] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stats: dict[str, int | float] = field(default_factory=dict, repr=False)
    """Counters; times have names ending in _us and are in microseconds."""

    @property
    def ok(self) -> bool:
        """Whether the program exited by itself with status 0."""
        return self.reason == "exited" and self.exit_code == 0

    def check(self) -> Result:
        """This result if the program exited with status 0, else ExitError."""
        if self.ok:
            return self
        if self.reason == "exited":
            message = f"the program exited with status {self.exit_code}"
        elif self.reason == "signal":
            message = f"the program was ended by signal {self.signal}"
        elif self.reason == "interrupted":
            message = "the run was interrupted"
        else:
            limit = {"timeout": "time", "memory": "memory", "output": "output"}
            message = f"the program reached its {limit.get(self.reason, self.reason)} limit"
        last = self.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        if last:
            message += f", its last error line: {last[0]}"
        raise ExitError(message, result=self)


def run(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    input: bytes | str | None = None,
    timeout: float | str | None = None,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
) -> Result:
    """Run `argv` in a VM of its own until it ends.

    argv: the program and its arguments; a name without "/" is looked up in the guest's PATH.
    input: its standard input (a str is sent as UTF-8); empty if None.
    timeout: wall time in seconds, or "500ms", "2m"; None for no limit.
    memory: most memory the program may use, in bytes, or "64m", "1g".
    env: variables beside PATH, HOME, TMPDIR, LANG and TERM.
    cwd: the directory it runs in, which it may read; the current one if None.

    The program ending badly, or at a limit, is a result (see `Result.check`), not an exception.
    Captured output has a limit of 16 MiB. A signal handler that raises, as Ctrl-C's does, ends the
    VM first.

    Raises UsageError, ProgramNotFound, ProgramNotExecutable, KvmUnavailable, HostError,
    InternalError.
    """
    words = guest_argv(argv)
    if isinstance(input, str):
        try:
            data: bytes | None = input.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"input cannot be encoded: {error}", remedy="pass bytes") from None
    elif input is None or isinstance(input, (bytes, bytearray, memoryview)):
        data = None if input is None else bytes(input)
    else:
        raise UsageError(f"input is {type(input).__name__}, not bytes or str")
    timeout_s = None if timeout is None else parse_duration(timeout, "timeout")
    memory_bytes = parse_size(memory, "memory")
    guest_environment = guest_env(env)
    directory = guest_cwd(cwd)
    try:
        outcome = _native.run(
            words,
            env=guest_environment,
            cwd=directory,
            input=data,
            capture=True,
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            trace=False,
        )
    except _native.NativeError as error:
        raise from_native(*error.args) from None
    return Result(
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        reason=outcome.reason,
        denials=[Denial(*denial) for denial in outcome.denials],
        events=[Event(*event) for event in outcome.events],
        stats=outcome.stats,
    )
