"""`kvmlet.run` from Python."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, native, sized
from e2e.service import TASKS

pytestmark = pytest.mark.usefixtures("vm")


@pytest.mark.hw
def test_a_result(guests: pathlib.Path) -> None:
    result = kvmlet.run([guests / "hello-static", "one", b"two"], cwd=guests)
    assert result.stdout == b"hello, world (3)\none\ntwo\n"
    assert (result.stderr, result.exit_code, result.signal) == (b"", 0, None)
    assert result.reason == "exited"
    assert result.denials == []
    assert result.ok
    assert result.stats["syscalls"] > 0
    assert result.stats["exits"] > 0


@pytest.mark.parametrize("size", [0, 1, 65537, 3_000_000])
def test_input_and_outputs(guests: pathlib.Path, size: int) -> None:
    data = bytes(i % 253 for i in range(size))
    expected = native(["./echo"], cwd=guests, input=data)
    result = kvmlet.run(["./echo"], cwd=guests, input=data)
    assert (result.stdout, result.stderr, result.exit_code) == (data, expected.stderr, 0)


def test_no_input_is_empty_input(guests: pathlib.Path) -> None:
    result = kvmlet.run(["./echo"], cwd=guests)
    assert result.stdout == b""
    assert result.stderr.startswith(b"total 0 ")


@pytest.mark.hw
def test_endings(guests: pathlib.Path) -> None:
    result = kvmlet.run(["./exits", "quick", "7"], cwd=guests)
    assert (result.exit_code, result.signal, result.reason) == (7, None, "exited")
    result = kvmlet.run(["./exits", "null"], cwd=guests)
    assert (result.exit_code, result.signal, result.reason) == (None, 11, "signal")
    result = kvmlet.run(["./exits", "raise", "15"], cwd=guests)
    assert (result.exit_code, result.signal, result.reason) == (None, 15, "signal")
    with pytest.raises(kvmlet.ExitError):
        result.check()


def test_output_before_the_end_is_kept(guests: pathlib.Path) -> None:
    result = kvmlet.run(["./spin"], cwd=guests, timeout=0.5)
    assert (result.stdout, result.exit_code, result.reason) == (b"ready\n", None, "timeout")
    result = kvmlet.run(["./bomb"], cwd=guests, memory="48m", timeout=60)
    assert (result.stdout, result.exit_code, result.reason) == (b"ready\n", None, "memory")


@pytest.mark.parametrize("fd", [1, 2])
def test_output_limit(guests: pathlib.Path, fd: int) -> None:
    result = kvmlet.run(["./flood", str(fd)], cwd=guests, timeout=HANG_S)
    assert (result.exit_code, result.reason) == (None, "output")
    assert len(result.stdout) + len(result.stderr) <= 16 << 20


def test_output_up_to_the_limit(guests: pathlib.Path) -> None:
    size = 15 << 20
    result = kvmlet.run(["./flood", "1", str(size)], cwd=guests)
    assert (result.reason, result.exit_code, len(result.stdout)) == ("exited", 0, size)


def test_denials(guests: pathlib.Path) -> None:
    attempts = ["read", "/etc/shadow", "create", "/usr/new", "connect", "192.0.2.1"]
    result = kvmlet.run(["./policy", *attempts], cwd=guests)
    assert result.exit_code == 0
    found = {(denial.what.partition(" ")[2], denial.errno) for denial in result.denials}
    assert any(what.startswith("/etc/shadow") and errno == "ENOENT" for what, errno in found), found
    assert any(what.startswith("/usr/new") and errno == "EROFS" for what, errno in found), found
    assert ("192.0.2.1:80", "ENETUNREACH") in found, found


def test_errors_are_typed(tmp_path: pathlib.Path) -> None:
    with pytest.raises(kvmlet.ProgramNotFound):
        kvmlet.run(["no-such-program"], cwd=tmp_path)
    with pytest.raises(kvmlet.ProgramNotExecutable):
        kvmlet.run(["/usr/bin"], cwd=tmp_path)
    with pytest.raises(kvmlet.UsageError):
        kvmlet.run("true")
    with pytest.raises(kvmlet.UsageError):
        kvmlet.run(["true"], memory="lots")
    for start in (kvmlet.run, kvmlet.Sandbox):
        with pytest.raises(kvmlet.UsageError, match="'1m' is too small; the least is 4m"):
            start(["true"], memory="1m")


def test_the_environment(guests: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Toolchains in PATH have variables of their own.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    result = kvmlet.run(["/usr/bin/env"], cwd=guests, env={"EXTRA": "value"})
    names = {line.partition(b"=")[0] for line in result.stdout.splitlines()}
    assert b"EXTRA" in names
    assert names <= {b"PATH", b"HOME", b"TMPDIR", b"LANG", b"TERM", b"EXTRA"}


def test_other_threads_run_meanwhile(guests: pathlib.Path) -> None:
    """The interpreter's lock is released: a thread of the host works while the guest runs."""
    turns = 0
    stop = threading.Event()

    def work() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        before = turns
        kvmlet.run(["./spin"], cwd=guests, timeout=0.5)
        assert turns > before + 3
    finally:
        stop.set()
        thread.join()


@pytest.mark.hw
def test_runs_in_several_threads(guests: pathlib.Path) -> None:
    turns = sized(10, 2)
    outputs: dict[str, bytes] = {}

    def work(number: int) -> None:
        for turn in range(turns):
            word = f"{number}-{turn}"
            outputs[word] = kvmlet.run(["./hello-static", word], cwd=guests).stdout

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = [f"{number}-{turn}" for number in range(4) for turn in range(turns)]
    assert outputs == {word: f"hello, world (2)\n{word}\n".encode() for word in words}


def test_a_timeout_beside_another_run(guests: pathlib.Path) -> None:
    """Ending one VM does not disturb another in the same process."""
    ended: list[str] = []

    def spin() -> None:
        ended.append(kvmlet.run(["./spin"], cwd=guests, timeout=0.3).reason)

    threads = [threading.Thread(target=spin) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        assert kvmlet.run(["./threads", "2", "2"], cwd=guests).exit_code == 0
    for thread in threads:
        thread.join()
    assert ended == ["timeout"] * 3


INTERRUPTED = (
    TASKS
    + """
import os, signal, sys, threading, time
import kvmlet

def state():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    return len([l for l in links if "kvm-v" in l]), len(tasks())

def settles():
    # A thread that has just begun has no name of its own yet.
    end_s = time.monotonic() + 10
    while state() != before and time.monotonic() < end_s:
        time.sleep(0.05)
    return state() == before

assert kvmlet.run(["./hello-static"]).exit_code == 0
time.sleep(0.1)
before = state()
print("waiting", flush=True)
try:
    kvmlet.run(sys.argv[1:])
except KeyboardInterrupt:
    print("KeyboardInterrupt", settles(), flush=True)
assert kvmlet.run(["./hello-static"]).exit_code == 0
print("again")
"""
)


@pytest.mark.parametrize("argv", [["./spin"], ["./sleeper"], ["./sleeper", "threads"]])
def test_keyboard_interrupt(guests: pathlib.Path, argv: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *argv],
        cwd=guests,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"waiting\n"
        _wait_for_vm(process.pid)
        time.sleep(2 if HW else 0.3)
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        said = process.stderr.read()
        assert process.wait(HANG_S) == 0, said
    assert rest == b"KeyboardInterrupt True\nagain\n", said


def _wait_for_vm(pid: int) -> None:
    """Until the process has a virtual processor open."""
    end = time.monotonic() + HANG_S
    while time.monotonic() < end:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                if "kvm-vcpu" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                    return
            except OSError:
                pass
        time.sleep(0.005)
    pytest.fail("no VM was made")


def test_a_handler_that_returns_does_not_end_the_run(guests: pathlib.Path) -> None:
    seen = []
    previous = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        result = kvmlet.run(
            ["/usr/bin/python3", "-c", "import time; time.sleep(0.4); print('whole')"],
            cwd=guests,
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert (result.stdout, result.exit_code) == (b"whole\n", 0)
    assert seen


def test_a_handler_that_raises_ends_the_run(guests: pathlib.Path) -> None:
    class Stop(Exception):
        pass

    def stop(number: int, frame: object) -> None:
        raise Stop

    previous = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Stop):
            kvmlet.run(["./spin"], cwd=guests, timeout=HANG_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert kvmlet.run(["./hello-static"], cwd=guests).exit_code == 0
