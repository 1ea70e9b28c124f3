"""Linux is the oracle: a program runs natively first, then in kvmlet, and both must agree.

Both runs get the same arguments, directory, standard input and environment. A native run as root
drops all capabilities, which a guest never has.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

Word = str | os.PathLike[str]

HW = os.environ.get("KVMLET_HW") == "1"
"""On the emulated machine of `make test-hw`: everything is some 20 times slower there."""

CALLS = os.environ.get("KVMLET_CALLS", "")
"""How the calls of guests travel in this run of the tests, "" for kvmlet's default.

What kvmlet does in this very process reads the variable itself."""

LONG = os.environ.get("KVMLET_LONG") == "1"
"""In `make test-long`: what is repeated to find what is rare is repeated in full."""

ROOT = pathlib.Path(__file__).resolve().parents[2]
GUESTS = ROOT / "tests" / "guests"
SCRIPTS = GUESTS / "scripts"
KVMLET = pathlib.Path(sys.executable).parent / "kvmlet"
if not KVMLET.exists():
    KVMLET = ROOT / ".venv" / "bin" / "kvmlet"

ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
"""The environment of a guest whose caller has this LANG and TERM."""

ONLY_ROOT_SEES = pytest.mark.skipif(
    os.geteuid() != 0, reason="what kvmlet has open is shown to root only: it cannot be dumped"
)
NO_RUNTIMES = "no compilers, databases or language runtimes on the emulated machine"

HANG_S = 400 if HW or LONG else 100
"""A run that takes longer hangs."""

# What the command itself says about a run's end has no native counterpart.
_OWN_LINE = re.compile(rb"^kvmlet: .*\n", re.MULTILINE)
_FAIL_LINE = re.compile(rb"^FAIL .*$", re.MULTILINE)


def sized(here: int, on_hw: int) -> int:
    """An amount of something: `here`, or less on the emulated machine."""
    return on_hw if HW else here


def repeated(
    whole: int, on_hw: int, *, short: int | None = None, whole_in: Collection[str] = ("auto",)
) -> int:
    """Number of times that the same is repeated to find what is rare.

    `whole` is for `make test-long`. Elsewhere `short`, or a tenth, finds what goes wrong at once.
    Modes of calls other than `whole_in` take a tenth of that.
    """
    if HW:
        turns = on_hw
    elif LONG:
        turns = whole
    else:
        turns = max(1, whole // 10) if short is None else short
    return turns if (CALLS or "auto") in whole_in else max(1, turns // 10)


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a run: its outputs, and its status as a shell shows it (128+n for signal n)."""

    stdout: bytes
    stderr: bytes
    status: int

    @property
    def own_lines(self) -> list[str]:
        """Lines that the command itself wrote to standard error."""
        return [line.decode().rstrip("\n") for line in _OWN_LINE.findall(self.stderr)]

    @property
    def guest_stderr(self) -> bytes:
        """Standard error without the command's own lines."""
        return _OWN_LINE.sub(b"", self.stderr)


def _words(argv: Sequence[Word]) -> list[str]:
    return [os.fspath(word) for word in argv]


def _ended(process: subprocess.CompletedProcess[bytes]) -> Ended:
    status = process.returncode if process.returncode >= 0 else 128 - process.returncode
    return Ended(process.stdout, process.stderr, status)


def native_argv(argv: Sequence[Word]) -> list[str]:
    """The command that runs `argv` natively, without capabilities."""
    words = _words(argv)
    if os.geteuid() == 0 and shutil.which("setpriv"):
        return ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *words]
    return words


def native(argv: Sequence[Word], *, cwd: Word, input: bytes = b"") -> Ended:
    """Run `argv` natively."""
    return _ended(
        subprocess.run(
            native_argv(argv), cwd=cwd, env=ENV, input=input, capture_output=True, timeout=HANG_S
        )
    )


def kvmlet_argv(argv: Sequence[Word], options: Sequence[str] = ()) -> list[str]:
    """The command that runs `argv` in a VM, its calls travelling as CALLS says."""
    mode = ["--calls", CALLS] if CALLS else []
    return [str(KVMLET), "run", *mode, *options, "--", *_words(argv)]


def in_vm(
    argv: Sequence[Word], *, cwd: Word, input: bytes = b"", options: Sequence[str] = ()
) -> Ended:
    """Run `argv` in a VM by the `kvmlet run` command.

    On the emulated machine by the library where no option is given: starting an interpreter for the
    command takes longer there than most guests do.
    """
    if HW and not options:
        return _by_library(argv, cwd=cwd, input=input)
    return command(kvmlet_argv(argv, options), cwd=cwd, input=input)


def _by_library(argv: Sequence[Word], *, cwd: Word, input: bytes) -> Ended:
    import kvmlet

    env = {"PATH": ENV["PATH"]}
    result = kvmlet.run(_words(argv), cwd=os.fspath(cwd), input=input, timeout=HANG_S, env=env)
    code = 128 + (result.signal or 0) if result.exit_code is None else result.exit_code
    return Ended(result.stdout, result.stderr, code)


def command(
    argv: Sequence[Word], *, cwd: Word, input: bytes = b"", env: dict[str, str] | None = None
) -> Ended:
    """Run a command on the host, as a caller of kvmlet would."""
    return _ended(
        subprocess.run(
            _words(argv),
            cwd=cwd,
            env=ENV if env is None else env,
            input=input,
            capture_output=True,
            timeout=HANG_S,
        )
    )


def both_ways(
    argv: list[str],
    line: Callable[[str], str],
    cwd: pathlib.Path,
    native_only: bool,
    options: Sequence[str] = (),
) -> bytes:
    """The output of a shell line around a command: natively and with the command in a VM.

    Both must agree. `options` are kvmlet's.
    """
    runs = []
    for words in (native_argv(argv), kvmlet_argv(argv, options)):
        script = line(shlex.join(words))
        runs.append(command(["/bin/bash", "-c", script], cwd=cwd))
        if native_only:
            pytest.skip("native side only")
    assert runs[0].stdout == runs[1].stdout
    assert runs[0].stderr == runs[1].guest_stderr
    assert runs[0].status == runs[1].status
    return runs[1].stdout


def _differences(name: str, expected: bytes, found: bytes) -> str:
    lines = difflib.unified_diff(
        expected.decode(errors="backslashreplace").splitlines(),
        found.decode(errors="backslashreplace").splitlines(),
        f"{name}, native",
        f"{name}, kvmlet",
        lineterm="",
        n=2,
    )
    return "\n".join(line[:300] for line in list(lines)[:80])


class Oracle:
    """Compares runs. The fixture `oracle` hands it out."""

    def __init__(self, *, native_only: bool) -> None:
        self.native_only = native_only

    def compare(
        self,
        argv: Sequence[Word],
        *,
        cwd: Word,
        input: bytes = b"",
        options: Sequence[str] = (),
        expect_status: int = 0,
    ) -> Ended:
        """Run `argv` natively and in a VM; the VM's end if both agree, else the test fails.

        The native run must end with `expect_status` and report no failed check of its own, so
        that a broken test program cannot agree with itself.
        """
        expected = native(argv, cwd=cwd, input=input)
        failed = _FAIL_LINE.findall(expected.stdout)
        assert not failed, f"natively: {failed[:5]}"
        assert expected.status == expect_status, (
            f"natively: status {expected.status}, {expected.stderr[-2000:]!r}"
        )
        if self.native_only:
            pytest.skip("native side only")
        found = in_vm(argv, cwd=cwd, input=input, options=options)
        problems = []
        if found.stdout != expected.stdout:
            problems.append(_differences("stdout", expected.stdout, found.stdout))
        if found.guest_stderr != expected.stderr:
            problems.append(_differences("stderr", expected.stderr, found.guest_stderr))
        if found.status != expected.status:
            problems.append(f"status {expected.status} natively, {found.status} in kvmlet")
        if problems:
            said = "\n".join(found.own_lines[:10])
            pytest.fail("\n".join([f"{_words(argv)[:6]}", *problems, said]), pytrace=False)
        return found
