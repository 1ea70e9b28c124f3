"""A program's own limits (getrlimit(2)): it gets what Linux gives it at each of them."""

from __future__ import annotations

import pathlib
import subprocess
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import ENV, HANG_S, HW, NO_RUNTIMES, in_vm, kvmlet_argv, native_argv

if TYPE_CHECKING:
    from e2e.oracle import Oracle

ENDS = {
    "errors": 0,
    "inherit": 0,
    "fsize": 153,
    "as": 0,
    "as-exec": 139,
    "data": 0,
    "nofile": 0,
    "memlock": 0,
    "cpu-default": 152,
}


@pytest.mark.parametrize("mode", ENDS)
def test_limits_of_its_own(oracle: Oracle, guests: pathlib.Path, mode: str) -> None:
    oracle.compare(["./rlimits", mode], cwd=guests, expect_status=ENDS[mode])


@pytest.mark.hw
def test_the_stack_grows_to_its_limit(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./rlimits", "stack"], cwd=guests)


@pytest.mark.hw
@pytest.mark.poll
def test_cpu_time_of_all_threads(oracle: Oracle, guests: pathlib.Path) -> None:
    """Threads that only compute are stopped; SIGKILL at the hard limit, whatever they handle."""
    oracle.compare(["./rlimits", "cpu"], cwd=guests, expect_status=137)


# Natively other processes of the same user count.
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("mode", ["nproc", "sigpending"])
def test_limits_of_its_user(guests: pathlib.Path, mode: str) -> None:
    run = in_vm(["./rlimits", mode], cwd=guests)
    assert (run.status, run.stderr) == (0, b"")
    assert run.stdout
    assert b"FAIL" not in run.stdout, run.stdout.decode()


@pytest.mark.usefixtures("vm")
def test_standard_output_that_is_a_file(guests: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def run(argv: list[str], name: str, *, append: bool) -> tuple[int, bytes, bytes]:
        path = tmp_path / name
        with path.open("ab" if append else "wb") as out:
            ended = subprocess.run(
                argv, cwd=guests, env=ENV, stdout=out, stderr=subprocess.PIPE, timeout=HANG_S
            )
        return ended.returncode, ended.stderr, path.read_bytes()

    argv = ["./rlimits", "fsize-stdout"]
    for append in (False, True):
        expected = run(native_argv(argv), f"native-{append}", append=append)
        assert expected[1].startswith(b"1000 bytes, 1 EFBIG, "), expected
        assert run(kvmlet_argv(argv), f"kvmlet-{append}", append=append) == expected


def overcommits_by_guess() -> bool:
    return pathlib.Path("/proc/sys/vm/overcommit_memory").read_text() == "0\n"


@pytest.mark.skipif(not overcommits_by_guess(), reason="the machine overcommits in another way")
def test_more_memory_than_there_is(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./rlimits", "overcommit"], cwd=guests)


@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize(
    "code",
    [
        "bytearray(8 << 30)",
        "x = bytearray(100 << 20)\nx *= 10",
    ],
    ids=["at-once", "grown"],
)
def test_a_python_object_beyond_the_limit(guests: pathlib.Path, code: str) -> None:
    """An exception, which the program can handle, and not the end of the run."""
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=guests, options=["--memory", "512m"])
    assert run.status == 1, run
    assert run.guest_stderr.startswith(b"Traceback "), run.stderr
    assert run.guest_stderr.endswith(b"\nMemoryError\n"), run.stderr


@pytest.mark.default_mode
@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_a_limit_on_open_files(vm: None, tmp_path: pathlib.Path) -> None:
    code = "files = [open('f', 'w') for _ in range(100)]"
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=tmp_path, options=["--max-files", "40"])
    assert run.status == 1
    assert b"Too many open files" in run.stderr
    policy = kvmlet.Policy.of(max_files=40)
    result = kvmlet.run("ulimit -n; ulimit -Hn", shell=True, text=True, policy=policy)
    assert result.stdout == "40\n40\n"
    with kvmlet.Box(policy=policy) as box:
        assert box.run("ulimit -n", shell=True, text=True).stdout == "40\n"
