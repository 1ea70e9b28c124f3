"""The ways of system calls: by exit, polled, or by whichever pays."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import ENV, HANG_S, HW, KVMLET, LONG, ROOT, repeated, sized

if TYPE_CHECKING:
    import pathlib

pytestmark = [
    pytest.mark.hw,
    pytest.mark.hw_modes,
    # Each test names its own modes.
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
]

ONCE = ["./once", "100", "50000"] if HW else ["./once", "3000"]
CPUS = len(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(CPUS < 2, reason="a poller takes a second CPU")


def once(calls: str, cwd: pathlib.Path) -> kvmlet.Result[bytes]:
    return kvmlet.run(ONCE, cwd=cwd, calls=calls, timeout=HANG_S).check()


def until_polled(calls: str, cwd: pathlib.Path) -> kvmlet.Result[bytes]:
    """The first of a few runs that was polled: on a busy machine a run can end sooner than its
    poller gets a CPU.
    """
    for _ in range(20):
        result = once(calls, cwd)
        if result.stats["calls_polled"] > 0:
            return result
    pytest.fail(f"no call of 20 runs was polled by {calls}: {result.stats}")


@needs_two
@pytest.mark.parametrize("calls", ["poll", "auto"])
def test_polled_calls_take_no_exit(guests: pathlib.Path, calls: str) -> None:
    by_exit, polled = once("exit", guests), until_polled(calls, guests)
    assert by_exit.stdout == polled.stdout
    assert by_exit.stats["calls_polled"] == 0
    assert by_exit.stats["exits_syscall"] >= by_exit.stats["syscalls"]
    stats = polled.stats
    assert stats["calls_polled"] + stats["calls_exit"] == stats["syscalls"]
    # Each call by exit has one; one that was claimed and then left has one, too.
    assert stats["exits_syscall"] < stats["syscalls"]


@pytest.mark.slow
@needs_two
@pytest.mark.skipif(not (LONG or HW), reason="a poller needs a CPU of its own: in make test-long")
@pytest.mark.parametrize("guest", ["./trampoline", "./once-dynamic"])
def test_hot_calls_jump_where_syscall_is_slow(guests: pathlib.Path, guest: str) -> None:
    """On software KVM only, and only where calls are polled."""
    argv = [guest, *(["20", "50000"] if HW else ["2000"])]

    def sites(calls: str) -> int | float:
        result = kvmlet.run(argv, cwd=guests, calls=calls, timeout=HANG_S).check()
        return result.stats["trampolines"]

    assert sites("exit") == 0
    if HW:
        assert sites("poll") == 0
    else:
        # read, write, getpgid and syscall of the C library; on a busy machine not in each run.
        assert any(sites("poll") >= 3 for _ in range(10))


@pytest.mark.slow
@needs_two
def test_forks_inherit_the_way(guests: pathlib.Path) -> None:
    for calls in ("exit", "poll"):
        sandbox = kvmlet.Sandbox(["./warm"], cwd=guests, memory="96m", calls=calls)
        with sandbox.until_ready(timeout=HANG_S).freeze() as snapshot, snapshot.fork() as fork:
            answers = set()
            for _ in range(repeated(200, 5)):
                answers.add(fork.request(b"see", timeout=HANG_S))
                fork.reset()
            assert len(answers) == 1
            polled = fork.stats()["calls_polled"]
            if calls == "exit":
                assert polled == 0
            elif not HW:  # there a request has ended before its poller is awake
                assert polled > 0


@needs_two
@pytest.mark.skipif(HW, reason="a request has ended before its poller is awake")
def test_a_fork_that_is_built_anew_is_polled_again(guests: pathlib.Path) -> None:
    sandbox = kvmlet.Sandbox(["./warm"], cwd=guests, memory="96m", calls="poll")
    with sandbox.until_ready(timeout=HANG_S).freeze() as snapshot, snapshot.fork() as fork:
        for request in (b"see", b"crash"):
            with contextlib.suppress(kvmlet.SandboxEnded):
                fork.request(request, timeout=HANG_S)
            fork.reset()
            before = fork.stats()["calls_polled"]
            for _ in range(1000):
                fork.request(b"see", timeout=HANG_S)
                if fork.stats()["calls_polled"] > before:
                    break
            else:
                pytest.fail(f"no call was polled after {request!r}: {fork.stats()}")


@needs_two
def test_forks_keep_what_jumps(guests: pathlib.Path) -> None:
    """Text that was changed before the freeze is a fork's too, and no fork changes more."""
    for calls in ("exit", "poll"):
        with kvmlet.Sandbox(["./warm"], cwd=guests, memory="96m", calls=calls) as sandbox:
            sandbox.until_ready(timeout=HANG_S)
            for _ in range(sized(10, 2)):
                sandbox.request(b"see", timeout=HANG_S)
            sites = sandbox.stats()["trampolines"]
            if calls == "exit" or HW:
                assert sites == 0
            else:
                assert sites >= 3
            with sandbox.freeze() as snapshot, snapshot.fork() as fork:
                answers = set()
                for _ in range(sized(30, 2)):
                    answers.add(fork.request(b"see", timeout=HANG_S))
                    fork.reset()
                assert len(answers) == 1
                assert fork.stats()["trampolines"] == 0


@needs_two
@pytest.mark.skipif(HW, reason="a VM that runs while its process forks may shut down there; open")
def test_a_process_that_forks_while_a_poller_works(guests: pathlib.Path) -> None:
    """The child has no poller, and makes one of its own. While the parent's works it may find no
    CPU for it, and then its calls exit.
    """
    parents_end, ended = os.pipe()
    with kvmlet.Sandbox(["./spin"], cwd=guests, calls="poll") as sandbox:
        thread = threading.Thread(target=sandbox.run_for, args=(sized(2, 20),))
        thread.start()
        time.sleep(0.2)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(ended)
                once("poll", guests)
                os.read(parents_end, 1)
                until_polled("poll", guests)
                status = 0
            except BaseException as error:
                print(error, file=sys.stderr)
            finally:
                os._exit(status)
        thread.join()
    os.close(ended)
    os.close(parents_end)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_one_cpu_has_no_poller(guests: pathlib.Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    run = subprocess.run(
        [KVMLET, "run", "--calls", "poll", "--stats=json", "--", *ONCE],
        cwd=guests,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )
    assert run.returncode == 0, run.stderr
    *warning, stats = run.stderr.splitlines()
    assert len(warning) == 1
    assert "CPU" in warning[0]
    assert json.loads(stats)["calls_polled"] == 0


@needs_two
@pytest.mark.skipif(HW, reason="a time share of an emulated CPU says nothing")
@pytest.mark.parametrize("calls", ["auto", "poll"])
@pytest.mark.parametrize("guest", ["./spin", "./sleeper"])
def test_a_quiet_guest_has_no_poller(guests: pathlib.Path, guest: str, calls: str) -> None:
    """After its start; benches/calls.py measures the share."""
    with kvmlet.Sandbox([guest], cwd=guests, calls=calls) as sandbox:
        sandbox.run_for(0.5)
        before = sandbox.stats()["poller_cpu_us"]
        # One that served the start has left while the guest ran.
        assert before < 0.1 * 0.5e6
        sandbox.run_for(2)
        assert sandbox.stats()["poller_cpu_us"] - before < 0.01 * 2e6


POLLERS_END = """
import pathlib, sys, time
import kvmlet

def threads():
    return sum(1 for _ in pathlib.Path("/proc/self/task").iterdir())

kvmlet.run(["./hello-static"], calls="exit").check()
before = threads()
for _ in range(int(sys.argv[1])):
    kvmlet.run(["./hello-static"], calls="poll").check()
    assert threads() <= before + max(1, len(__import__("os").sched_getaffinity(0)) - 1)
deadline = time.monotonic() + 60
while threads() > before and time.monotonic() < deadline:
    time.sleep(0.1)
print(threads() - before)
"""


def test_pollers_are_few_and_end(guests: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", POLLERS_END, str(sized(100, 3))],
        cwd=guests,
        env={**ENV, "PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert (run.returncode, run.stdout) == (0, "0\n"), run.stderr
