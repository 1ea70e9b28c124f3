"""Runs of hostile guests: each ends in time, in a documented way, and within bounded memory."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from e2e.oracle import ENV, HW, Ended, Word, kvmlet_argv

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 120 if HW else 20
"""Limit of a run."""
SLACK_S = 120 if HW else 15
"""What starting, ending and a busy machine may add."""
MEMORY_MIB = 128
"""Memory limit of a run."""
OVERHEAD_MIB = 32
"""What the host process may use beside the guest's memory and what it had before the guest ran."""

OUTPUT_LEN = 1 << 20
"""Bytes of its output that are looked at."""

BAD_WORDS = (b"internal error", b"panicked", b"Traceback", b"RUST_BACKTRACE", b"is a bug")


@dataclass(frozen=True, slots=True)
class Run(Ended):
    """The end of a run, and the most memory its process ever had."""

    resident_mib: float

    @property
    def said(self) -> str:
        """Its last words, for messages."""
        return f"status {self.status}, {self.stdout[-600:]!r}, {self.stderr[-600:]!r}"


def check_end(run: Ended) -> None:
    """A guest may do what it likes: kvmlet ends the run in one of the documented ways."""
    for word in BAD_WORDS:
        assert word not in run.stderr, run.stderr[-3000:]
    documented = run.status < 124 or run.status in (124, 137) or 128 < run.status <= 128 + 64
    assert documented, f"status {run.status}: {run.stderr[-2000:]!r}"


def resident_mib(pid: int) -> float:
    """A process's resident memory without pages of files: RssAnon and RssShmem (proc(5)).

    The figure is not the new program's while the command line is still ours. A child of vfork(2)
    shares our memory, and some kernels let us go on a moment before it is replaced.
    """
    process = pathlib.Path(f"/proc/{pid}")
    try:
        if (process / "cmdline").read_bytes() == pathlib.Path("/proc/self/cmdline").read_bytes():
            return 0
        status = (process / "status").read_text()
    except OSError:
        return 0
    kib = [
        int(line.split()[1])
        for line in status.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    ]
    return sum(kib) / 1024


@functools.cache
def start_mib() -> float:
    """Resident memory of a process whose guest does nothing: where the promise starts from."""
    hoard = pathlib.Path(__file__).parent / "guests" / "build" / "hoard"
    return _run([hoard, "start"], cwd=hoard.parent, options=[], timeout_s=TIMEOUT_S).resident_mib


def bounded(
    argv: Sequence[Word],
    *,
    cwd: Word,
    memory_mib: int = MEMORY_MIB,
    timeout_s: int = TIMEOUT_S,
    calls: str | None = None,
    options: Sequence[str] = (),
) -> Run:
    """Run `argv` in a VM under limits, and check what holds for every guest."""
    options = ["--memory", f"{memory_mib}m", *options]
    if calls is not None:
        options += ["--calls", calls]
    run = _run(argv, cwd=cwd, options=options, timeout_s=timeout_s)
    check_end(run)
    allowed_mib = start_mib() + memory_mib + OVERHEAD_MIB
    assert run.resident_mib <= allowed_mib, (
        f"{run.resident_mib} MiB resident, and {allowed_mib} are allowed: {run.said}"
    )
    return run


def _run(argv: Sequence[Word], *, cwd: Word, options: list[str], timeout_s: int) -> Run:
    options = ["--timeout", f"{timeout_s}s", *options]
    start = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            kvmlet_argv(argv, options),
            cwd=cwd,
            env=ENV,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        last = start + timeout_s + SLACK_S
        peak_mib = 0.0
        while True:
            peak_mib = max(peak_mib, resident_mib(process.pid))
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > last:
                process.kill()
                os.wait4(process.pid, 0)
                err.seek(0)
                said = err.read()[-2000:]
                raise AssertionError(f"{argv}: still running after its time limit: {said!r}")
            time.sleep(0.005)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        # A guest may make holes in the files it was given.
        run = Run(out.read(OUTPUT_LEN), err.read(OUTPUT_LEN), code, peak_mib)
    assert process.returncode >= 0, f"the command itself was killed: {run.said}"
    return run
