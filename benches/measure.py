"""Running programs natively, in kvmlet and under bubblewrap, and comparing them in pairs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import resource
    from collections.abc import Callable, Sequence
    from types import FrameType

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
KVMLET = Path(sys.executable).parent / "kvmlet"

ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
"""The environment of every run: that of a guest whose caller has this LANG and TERM."""

BUBBLEWRAP = (
    "bwrap",
    "--unshare-all",
    "--die-with-parent",
    *("--ro-bind", "/", "/"),
    *("--dev", "/dev"),
    *("--proc", "/proc"),
    *("--tmpfs", "/tmp"),
)

RUNSC = ("runsc", "--platform=ptrace", "--network=none", "do")
"""gVisor as Debian has it; of its platforms, ptrace runs on software KVM too."""

PEER = BUILD / "peer.so"
"""What a measuring process loads ahead of everything else (preload/peer.c)."""

_GUEST = HERE.parent / "python" / "kvmlet" / "guest"
_CC = ("gcc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{_GUEST / 'include'}")
_HANG_S = 120


class BenchError(Exception):
    """A program that was to be measured did not run as it should."""


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one run of a program."""

    wall_ns: float
    """From its start to its end, as the caller sees it."""
    values: dict[str, float]
    """The "name value" lines of its standard output."""
    stats: dict[str, float]
    """Counters of `kvmlet run --stats=json`; for other runs, what the kernel counted."""
    cpu_ns: float = 0
    """CPU time of the process and those that it has waited for."""

    def value(self, name: str) -> float:
        """A value that the program printed. Raises BenchError."""
        return _item(self.values, name, "the program printed")

    def stat(self, name: str) -> float:
        """A counter. Raises BenchError."""
        return _item(self.stats, name, "the statistics have")


def _item(items: dict[str, float], name: str, where: str) -> float:
    if name not in items:
        raise BenchError(f"{where} no {name}")
    return items[name]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        if len(numbers) == 1:
            return cls(numbers[0], numbers[0], numbers[0])
        low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
        return cls(median, low, high)


def build() -> None:
    """Compile and copy every program that is older than its sources. Raises BenchError."""
    BUILD.mkdir(exist_ok=True)
    headers = [*HERE.glob("*/*.h"), *_GUEST.glob("include/*.h")]
    newest_header = max(header.stat().st_mtime for header in headers)
    for source in sorted(HERE.glob("*/*.c")):
        shared = source.parent.name == "preload"
        program = BUILD / (source.with_suffix(".so").name if shared else source.stem)
        newest = max(source.stat().st_mtime, newest_header)
        if program.exists() and program.stat().st_mtime > newest:
            continue
        link = ("-shared", "-fPIC", "-pthread") if shared else ("-static",)
        done = subprocess.run([*_CC, *link, "-o", str(program), str(source)], capture_output=True)
        if done.returncode:
            raise BenchError(f"{source.name}: {done.stderr.decode(errors='replace').strip()}")
    # A guest may read the directory that it runs in.
    scripts = [script for kind in ("py", "js", "ts") for script in HERE.glob(f"guests/*.{kind}")]
    for script in (*scripts, *_GUEST.glob("python/*.py")):
        shutil.copy(script, BUILD)


def native(argv: Sequence[str]) -> Run:
    """Run `argv` as a plain child process. Raises BenchError."""
    return _run(argv)


def bubblewrap(argv: Sequence[str]) -> Run:
    """Run `argv` in namespaces of its own, with a read-only root. Raises BenchError."""
    return _run([*BUBBLEWRAP, "--", *argv])


def runsc(argv: Sequence[str]) -> Run:
    """Run `argv` in gVisor, its calls caught by ptrace. Raises BenchError."""
    return _run([*RUNSC, *argv])


def kvmlet(
    argv: Sequence[str],
    *,
    calls: str = "auto",
    options: Sequence[str] = (),
    command: Path = KVMLET,
) -> Run:
    """Run `argv` by `kvmlet run`, with its counters. Raises BenchError."""
    words = ["run", "--calls", calls, *options, "--stats=json", "--", *argv]
    run, stderr = _spawn([str(command), *words])
    lines = stderr.strip().splitlines()
    try:
        stats: object = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise BenchError(f"{argv[0]}: no statistics on standard error") from None
    if not isinstance(stats, dict):
        raise BenchError(f"{argv[0]}: the statistics are not an object")
    counters = {
        str(name): float(value)
        for name, value in stats.items()
        if isinstance(value, (int, float)) and name not in ("exit_code", "signal")
    }
    return Run(run.wall_ns, run.values, counters, run.cpu_ns)


def kvm_counters(argv: Sequence[str]) -> dict[str, float]:
    """The counts of KVM over one run in a VM, as far as it counts. Raises BenchError."""
    child = [sys.executable, str(HERE / "faults_kvm.py"), *argv]
    environment = {**os.environ, "LD_PRELOAD": str(PEER)}
    done = subprocess.run(child, env=environment, capture_output=True, text=True, timeout=_HANG_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BenchError(f"counting KVM's faults of {argv[0]}: {lines[-1]}")
    return {str(name): float(value) for name, value in json.loads(done.stdout).items()}


def kvmlet_plain(argv: Sequence[str]) -> Run:
    """Run `argv` by `kvmlet run` as a person would, without statistics. Raises BenchError."""
    return _run([str(KVMLET), "run", "--", *argv])


def program(name: str) -> str:
    """A program of ours, as named from the directory that every run starts in."""
    return f"./{name}"


def have_bubblewrap() -> bool:
    """True if bubblewrap is installed and may be used here."""
    return not why_not(bubblewrap)


def why_not(runner: Callable[[Sequence[str]], Run]) -> str:
    """Why nothing can be run by `runner` here, "" if it can."""
    try:
        runner(["/bin/true"])
    except BenchError as error:
        return str(error)
    return ""


def interleave(pairs: int, *arms: Callable[[], Run]) -> list[tuple[Run, ...]]:
    """Run all arms once per round, for `pairs` rounds, each round starting with the next arm.

    Drift of the machine then weighs on all arms alike. A first round is not counted.
    """
    rounds: list[tuple[Run, ...]] = []
    for number in range(pairs + 1):
        done: dict[int, Run] = {}
        for step in range(len(arms)):
            arm = (number + step) % len(arms)
            done[arm] = arms[arm]()
        if number:
            rounds.append(tuple(done[arm] for arm in range(len(arms))))
    return rounds


def _run(argv: Sequence[str]) -> Run:
    run, _ = _spawn(argv)
    return run


def _spawn(argv: Sequence[str]) -> tuple[Run, str]:
    # Outputs go to unnamed files: nothing has to be read while the program runs, so that its wall
    # time holds no switching to and fro.
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        open(os.devnull, "rb") as nothing,
    ):
        streams = [
            (os.POSIX_SPAWN_DUP2, file.fileno(), target)
            for target, file in enumerate((nothing, out, err))
        ]
        before = time.perf_counter_ns()
        try:
            pid = os.posix_spawnp(argv[0], list(argv), ENV, file_actions=streams)
        except OSError as error:
            raise BenchError(f"{argv[0]}: {error.strerror}") from None
        status, usage = _wait(pid, argv)
        wall_ns = float(time.perf_counter_ns() - before)
        out.seek(0)
        err.seek(0)
        stdout = out.read().decode(errors="replace")
        stderr = err.read().decode(errors="replace")
    if status:
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        raise BenchError(f"{' '.join(argv)}: status {status}: {last}")
    stats = {"faults": float(usage.ru_minflt + usage.ru_majflt), "user_us": usage.ru_utime * 1e6}
    cpu_ns = (usage.ru_utime + usage.ru_stime) * 1e9
    return Run(wall_ns, _values(stdout), stats, cpu_ns), stderr


def _wait(pid: int, argv: Sequence[str]) -> tuple[int, resource.struct_rusage]:
    """The status (negative for a signal) and the use of resources of a child."""

    def hung(_signum: int, _frame: FrameType | None) -> None:
        raise BenchError(f"{' '.join(argv)}: still running after {_HANG_S} s")

    previous = signal.signal(signal.SIGALRM, hung)
    signal.alarm(_HANG_S)
    try:
        _, status, usage = os.wait4(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    return os.waitstatus_to_exitcode(status), usage


def _values(stdout: str) -> dict[str, float]:
    values: dict[str, float] = {}
    for line in stdout.splitlines():
        name, _, number = line.partition(" ")
        try:
            values[name] = float(number)
        except ValueError:
            continue
    return values
