"""A terminal, pipe or socket of the caller's neither blocks kvmlet nor is left changed."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, HANG_S, HW, KVMLET, kvmlet_argv, native_argv
from e2e.terminal import Terminal

if TYPE_CHECKING:
    import pathlib

pytestmark = [pytest.mark.poll]

TIMEOUT = 124
"""The status of a run that its limit has ended."""

SLACK_S = 60 if HW else 3
"""A limit of a second takes effect within this."""

LIMIT = ("--timeout", "20s" if HW else "1s")


@pytest.mark.parametrize("mode", ["exit", "poll", "auto"])
def test_a_flood_to_an_unread_terminal(vm: None, guests: pathlib.Path, mode: str) -> None:
    """poll(2) tells of room for a byte only."""
    argv = [str(KVMLET), "run", "--calls", mode, *LIMIT, "--", "./flood"]
    assert Terminal(argv, guests).finish(SLACK_S) == TIMEOUT


def test_a_read_that_waits_for_more_than_is_typed(vm: None, guests: pathlib.Path) -> None:
    """VTIME of 25.5 seconds after a byte, in a thread that no signal reaches."""
    argv = [str(KVMLET), "run", "--calls", "poll", *LIMIT, "--", "./ttymode", "min", "255", "255"]
    terminal = Terminal(argv, guests)
    terminal.read_until(b"ready")
    terminal.type(b"x")
    assert terminal.finish(SLACK_S) == TIMEOUT


TYPED = {
    ("3", "0"): [[b"ab", b"cde"], [b"abcd"], [b"a", b"bc"], [b"ab"]],
    ("0", "2"): [[], [b"ab"], [b"a"], [b"abc"]],
    ("3", "2"): [[b"a"], [b"a", b"bcd"], [b"abcd"], [b"ab"]],
    ("0", "0"): [[], [b"ab"], [b"a"], [b"abc"]],
}
"""What is typed during each of four reads, by VMIN and VTIME."""


@pytest.mark.parametrize("wanted", TYPED, ids="-".join)
def test_reads_with_min_and_time(
    guests: pathlib.Path, native_only: bool, wanted: tuple[str, str]
) -> None:
    seen = []
    for argv in (native_argv, kvmlet_argv):
        words = argv(["./ttymode", "min", *wanted])
        terminal = Terminal(["/usr/bin/env", *words], guests)
        text = b""
        for pieces in TYPED[wanted]:
            text += terminal.read_until(b"ready\n")
            for piece in pieces:
                terminal.type(piece)
                # Less than VTIME.
                time.sleep(0.05)
            text += terminal.read_until(b"\n")
        seen.append((text, terminal.finish()))
        if native_only:
            pytest.skip("native side only")
    assert seen[0][1] == 0
    assert seen[0] == seen[1]


@pytest.mark.parametrize("use", ["read", "write", "set"])
def test_a_job_in_the_background(vm: None, guests: pathlib.Path, use: str) -> None:
    """Natively it is stopped. A limit would not end it then."""
    words = kvmlet_argv(["./jobcontrol", use], LIMIT)
    terminal = Terminal(words, guests, background=True, tostop=True)
    assert terminal.finish(SLACK_S) == TIMEOUT


def test_a_job_that_comes_to_the_foreground(vm: None, guests: pathlib.Path) -> None:
    words = kvmlet_argv(["./jobcontrol", "read"])
    terminal = Terminal(words, guests, background=True)
    time.sleep(0.5)
    os.kill(terminal.pid, signal.SIGUSR1)
    terminal.type(b"x\n")
    assert terminal.finish() == 0


def test_a_job_that_ignores_the_signals(guests: pathlib.Path, native_only: bool) -> None:
    seen = []
    for argv in (native_argv, kvmlet_argv):
        words = ["/usr/bin/env", *argv(["./jobcontrol", "ignore"])]
        terminal = Terminal(words, guests, background=True, tostop=True)
        shown = terminal.read_until(b"EIO") + terminal.read_until(b"EIO")
        seen.append((shown, terminal.finish()))
        if native_only:
            pytest.skip("native side only")
    assert seen[0][1] == 0
    assert seen[0] == seen[1]


def test_jobs_in_the_sandbox(guests: pathlib.Path, native_only: bool) -> None:
    seen = []
    for argv in (native_argv, kvmlet_argv):
        terminal = Terminal(["/usr/bin/env", *argv(["./jobcontrol", "jobs"])], guests)
        shown = b""
        for _ in range(2):
            shown += terminal.read_until(b"type\r\n")
            # The job that waits has the terminal soon.
            time.sleep(0.3)
            terminal.type(b"x\n")
        shown += terminal.read_until(b"done")
        seen.append((shown, terminal.finish()))
        if native_only:
            pytest.skip("native side only")
    assert seen[0][1] == 0
    assert seen[0] == seen[1]


def test_a_shell_controls_jobs(vm: None, guests: pathlib.Path) -> None:
    words = kvmlet_argv(["env", "PS1=ready> ", "bash", "--norc", "--noprofile", "-i"])
    terminal = Terminal(words, guests)
    shown = terminal.read_until(b"ready> ")
    terminal.type(b"./jobcontrol read & sleep 0.3; jobs; fg\n")
    shown += terminal.read_until(b"Stopped") + terminal.read_until(b"jobcontrol read\r\n")
    time.sleep(0.3)
    terminal.type(b"x\n")
    shown += terminal.read_until(b"ready> ")
    terminal.type(b"echo $?; exit 3\n")
    shown += terminal.read_until(b"0\r\n")
    assert b"no job control" not in shown
    assert terminal.finish() == 3


@pytest.mark.parametrize(
    "end",
    ["exit", "kill", "limit", "^C", signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT],
    ids=lambda end: str(getattr(end, "name", end)),
)
def test_settings_are_put_back(vm: None, guests: pathlib.Path, end: str | signal.Signals) -> None:
    way = end if end in ("exit", "kill") else "sleep"
    options = LIMIT if end == "limit" else ()
    terminal = Terminal(kvmlet_argv(["./ttymode", "end", str(way)], options), guests)
    terminal.read_until(b"ready\n")
    if way == "sleep":
        assert terminal.settings() != terminal.before
    if end == "^C":
        terminal.type(b"\x03")
    elif isinstance(end, signal.Signals):
        os.kill(terminal.pid, end)
    os.set_blocking(terminal.master, False)
    # The slave is open here: its settings can be asked for until `finish` closes it.
    pid, status = 0, 0
    until = time.monotonic() + HANG_S
    while not pid:
        assert time.monotonic() < until
        pid, status = os.waitpid(terminal.pid, os.WNOHANG)
        time.sleep(0.01)
    after = terminal.settings()
    os.close(terminal.slave)
    os.close(terminal.master)
    expected = {"exit": 3, "kill": 137, "limit": TIMEOUT, "^C": 130}
    signals = 128 + end if isinstance(end, signal.Signals) else expected[end]
    assert os.waitstatus_to_exitcode(status) == signals
    assert after == terminal.before


def test_floods_end_at_their_limit(vm: None, guests: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """To a pipe, a FIFO and sockets that nobody reads; the caller's descriptors stay blocking."""
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDWR)
    pipe = os.pipe()
    stream = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    datagram = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    outputs = [
        os.open(tmp_path / "fifo", os.O_WRONLY),
        pipe[1],
        stream[0].fileno(),
        datagram[0].fileno(),
    ]
    began = time.monotonic()
    runs = [
        subprocess.Popen(
            kvmlet_argv(["./flood"], LIMIT),
            cwd=guests,
            env=ENV,
            stdout=out,
            stderr=subprocess.DEVNULL,
        )
        for out in outputs
    ]
    try:
        while any(run.poll() is None for run in runs):
            # Several at once.
            assert time.monotonic() - began < 2 * SLACK_S
            for out in outputs:
                assert not fcntl.fcntl(out, fcntl.F_GETFL) & os.O_NONBLOCK
            time.sleep(0.02)
        assert [run.returncode for run in runs] == [TIMEOUT] * len(runs)
    finally:
        for run in runs:
            run.kill()
            run.wait()
        for fd in (fifo, outputs[0], *pipe):
            os.close(fd)
        for end in (*stream, *datagram):
            end.close()
