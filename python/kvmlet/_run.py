"""One program in a VM of its own, from its start to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmlet import _native
from kvmlet._calls import calls_mode
from kvmlet._extension import result_of, translated
from kvmlet._launch import guest_argv, guest_cwd, guest_env, input_bytes
from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    OUTPUT_LIMIT_BYTES,
    parse_count,
    parse_duration,
    parse_size,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from kvmlet._result import Result


def run(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    input: bytes | str | None = None,
    timeout: float | str | None = None,
    memory: int | str = DEFAULT_MEMORY_BYTES,
    max_procs: int = DEFAULT_MAX_PROCS,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    calls: str | None = None,
) -> Result:
    """Run `argv` in a VM of its own until it ends.

    argv: the program and its arguments; a name without "/" is looked up in the guest's PATH.
    input: its standard input (a str is sent as UTF-8); empty if None.
    timeout: wall time in seconds, or "500ms", "2m"; None for no limit.
    memory: most memory the program may use, in bytes, or "64m", "1g": 4 MiB to 1 TiB.
    max_procs: most processes it may have, with those that it has not waited for: 1 to 1,024.
    env: variables beside PATH, HOME, TMPDIR, LANG and TERM.
    cwd: the directory it runs in, which it may read; the current one if None.
    calls: how its system calls reach kvmlet. "exit": each leaves the VM. "poll": a thread on
        another CPU looks out for them. "auto": whichever is faster. None: as the environment
        variable KVMLET_CALLS says, else "auto".

    The program ending badly, or at a limit, is a result (see `Result.check`), not an exception.
    Captured output has a limit of 16 MiB. A signal handler that raises, as Ctrl-C's does, ends the
    VM first.

    Raises UsageError, ProgramNotFound, ProgramNotExecutable, KvmUnavailable, HostError,
    InternalError.
    """
    words = guest_argv(argv)
    data = input_bytes(input)
    timeout_s = None if timeout is None else parse_duration(timeout, "timeout")
    memory_bytes = parse_size(memory, "memory")
    processes_max = parse_count(max_procs, "max_procs")
    mode = calls_mode(calls, stacklevel=3)
    guest_environment = guest_env(env)
    policy = translated(_native.Policy, guest_cwd(cwd))
    outcome = translated(
        _native.run,
        words,
        env=guest_environment,
        policy=policy,
        input=data,
        streams=None,
        timeout_s=timeout_s,
        memory_bytes=memory_bytes,
        processes_max=processes_max,
        output_limit_bytes=OUTPUT_LIMIT_BYTES,
        trace=False,
        calls=mode,
    )
    return result_of(outcome)
