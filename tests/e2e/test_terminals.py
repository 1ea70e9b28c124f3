"""A terminal, pipe or socket of the caller's neither blocks kvmlet nor is left changed."""

from __future__ import annotations

import fcntl
import os
import pathlib
import re
import shlex
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest

from e2e.oracle import ENV, HANG_S, HW, KVMLET, kvmlet_argv, native_argv
from e2e.terminal import Terminal

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


@pytest.mark.poll
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


@pytest.mark.parametrize("use", ["read", "set"])
def test_a_job_in_the_background(vm: None, guests: pathlib.Path, use: str) -> None:
    """With a terminal of the caller's. Natively it is stopped. A limit would not end it then."""
    words = kvmlet_argv(["./jobcontrol", use], LIMIT)
    with open(os.devnull, "wb") as nowhere:
        stdout = nowhere.fileno()
        terminal = Terminal(words, guests, background=True, tostop=True, stdout=stdout)
    assert terminal.finish(SLACK_S) == TIMEOUT


def is_running(pid: str) -> bool:
    """True for a process that has not ended. One that nobody has waited for has."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_a_console_that_goes_away(vm: None, guests: pathlib.Path) -> None:
    """In the background, where no key is waited for. The program gets SIGHUP."""
    words = kvmlet_argv(["./jobcontrol", "read"])
    terminal = Terminal(words, guests, background=True)
    time.sleep(1)
    # The shell that would send SIGHUP is killed first; the job is its only child.
    (job,) = pathlib.Path(f"/proc/{terminal.pid}/task/{terminal.pid}/children").read_text().split()
    os.kill(terminal.pid, signal.SIGKILL)
    os.waitpid(terminal.pid, 0)
    os.close(terminal.slave)
    os.close(terminal.master)
    until = time.monotonic() + HANG_S
    while is_running(job):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize(("use", "status"), [("read", TIMEOUT), ("write", TIMEOUT), ("set", 0)])
def test_a_console_in_the_background(vm: None, guests: pathlib.Path, use: str, status: int) -> None:
    """The program's own terminal is none of the caller's: only its keys and its output wait."""
    words = kvmlet_argv(["./jobcontrol", use], LIMIT)
    terminal = Terminal(words, guests, background=True, tostop=True)
    assert terminal.finish(SLACK_S) == status


@pytest.mark.poll
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
        reader, writer = os.pipe()
        terminal = Terminal(words, guests, background=True, tostop=True, stdout=writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            seen.append((pipe.read(), terminal.finish()))
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


def as_typed(words: list[str]) -> bytes:
    return shlex.join(words).encode() + b"\n"


def host_shell(cwd: pathlib.Path) -> Terminal:
    """An interactive shell of the host's, whose jobs are runs of kvmlet."""
    words = ["/usr/bin/env", "PS1=host> ", "HISTFILE=", "bash", "--norc", "--noprofile", "-i"]
    terminal = Terminal(words, cwd)
    terminal.read_until(b"host> ")
    return terminal


def until_settings(terminal: Terminal, *, raw: bool) -> None:
    """Wait until keys come as they are typed, or the terminal is as programs expect it."""
    until = time.monotonic() + HANG_S
    while bool(termios.tcgetattr(terminal.slave)[1] & termios.OPOST) is raw:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.poll
def test_the_keys_are_the_programs(guests: pathlib.Path, native_only: bool) -> None:
    """Line editing, Ctrl-C, Ctrl-Z, Ctrl-\\, Ctrl-D and sizes in a shell in the sandbox."""
    seen = []
    for argv in (native_argv, kvmlet_argv):
        shell = ["env", "PS1=ready> ", "HISTFILE=", "bash", "--norc", "--noediting", "-i"]
        terminal = Terminal(["/usr/bin/env", *argv(shell)], guests)
        shown = terminal.read_until(b"ready> ")
        for line, keys in [(b"sleep 90", b"\x03"), (b"sleep 91", b"\x1c"), (b"sleep 92", b"\x1a")]:
            terminal.type(line + b"\n")
            shown += terminal.read_until(line + b"\r\n")
            # The job gets to run.
            time.sleep(0.5)
            terminal.type(keys)
            shown += terminal.read_until(b"ready> ")
        size = struct.pack("HHHH", 40, 90, 0, 0)
        fcntl.ioctl(terminal.slave, termios.TIOCSWINSZ, size)
        time.sleep(0.5)
        for line in (b"jobs", b"kill -9 %1; sleep 0.2", b"stty size", b"eco\x7fho edited"):
            terminal.type(line + b"\n")
            shown += terminal.read_until(b"ready> ")
        terminal.type(b"\x04")
        seen.append((shown, terminal.finish()))
        if native_only:
            pytest.skip("native side only")
    assert b"edited" in seen[0][0]
    assert b"40 90" in seen[0][0]
    assert seen[0] == seen[1]


@pytest.mark.poll
def test_a_program_is_stopped_with_its_run(vm: None, guests: pathlib.Path) -> None:
    """Ctrl-Z stops the program and kvmlet, whose terminal is the shell's then; fg goes on."""
    terminal = host_shell(guests)
    terminal.type(as_typed(kvmlet_argv(["sh", "-c", "echo be gan; cat; echo en ded; exit 3"])))
    terminal.read_until(b"be gan\r\n")
    until_settings(terminal, raw=True)
    terminal.type(b"one\n")
    terminal.read_until(b"one\r\none\r\n")
    terminal.type(b"\x1a")
    terminal.read_until(b"Stopped")
    terminal.read_until(b"host> ")
    # The shell sees a terminal that makes two bytes of a newline.
    until_settings(terminal, raw=False)
    terminal.type(b"fg\n")
    until_settings(terminal, raw=True)
    terminal.type(b"two\n")
    terminal.read_until(b"two\r\ntwo\r\n")
    terminal.type(b"\x04")
    terminal.read_until(b"en ded\r\n")
    terminal.read_until(b"host> ")
    until_settings(terminal, raw=False)
    terminal.type(b"echo was $?; exit 5\n")
    terminal.read_until(b"was 3\r\n")
    assert terminal.finish() == 5


@pytest.mark.parametrize("signo", [signal.SIGTSTP, signal.SIGSTOP], ids=lambda one: one.name)
def test_a_run_is_stopped_from_outside(
    vm: None, guests: pathlib.Path, signo: signal.Signals
) -> None:
    terminal = host_shell(guests)
    # The number of the run's process is the shell's own, after exec.
    run = shlex.join(kvmlet_argv(["sh", "-c", "echo be gan; exec cat"]))
    terminal.type(b"sh -c " + shlex.quote(f"echo pid $$ end; exec {run}").encode() + b"\n")
    terminal.read_until(b"be gan; exec cat")
    pid = int(re.findall(rb"pid (\d+) end\r\n", terminal.read_until(b" end\r\n"))[0])
    terminal.read_until(b"be gan\r\n")
    until_settings(terminal, raw=True)
    os.kill(pid, signo)
    terminal.read_until(b"Stopped")
    terminal.read_until(b"host> ")
    if signo == signal.SIGTSTP:
        until_settings(terminal, raw=False)
    terminal.type(b"fg\n")
    until_settings(terminal, raw=True)
    terminal.type(b"two\n")
    terminal.read_until(b"two\r\ntwo\r\n")
    terminal.type(b"\x03")
    terminal.read_until(b"host> ")
    until_settings(terminal, raw=False)
    terminal.type(b"echo was $?; exit 5\n")
    terminal.read_until(b"was 130\r\n")
    assert terminal.finish() == 5


def test_ctrl_c_three_times_ends_what_ignores_it(vm: None, guests: pathlib.Path) -> None:
    script = "trap '' INT; echo ready; while :; do sleep 1; done"
    terminal = Terminal(kvmlet_argv(["sh", "-c", script]), guests)
    terminal.read_until(b"ready\r\n")
    for _ in range(2):
        terminal.type(b"\x03")
    time.sleep(1.5)
    for _ in range(2):
        terminal.type(b"\x03")
        time.sleep(0.1)
    assert os.waitpid(terminal.pid, os.WNOHANG) == (0, 0)
    time.sleep(1.2)
    for _ in range(3):
        terminal.type(b"\x03")
        time.sleep(0.1)
    assert terminal.finish(SLACK_S) == 130


@pytest.mark.parametrize(
    "script",
    [
        "trap 'echo heeded' INT; echo ready; while :; do sleep 0.1; done",
        "stty -isig; echo ready; cat",
    ],
    ids=["handler", "reader"],
)
def test_ctrl_c_that_is_heeded_ends_nothing(vm: None, guests: pathlib.Path, script: str) -> None:
    terminal = Terminal(kvmlet_argv(["sh", "-c", script]), guests)
    terminal.read_until(b"ready\r\n")
    for _ in range(6):
        # One each time: two that are pending at once are one signal, and one line.
        terminal.type(b"\x03" if "trap" in script else b"\x03\n")
        terminal.read_until(b"heeded\r\n" if "trap" in script else b"\r\n")
    assert os.waitpid(terminal.pid, os.WNOHANG) == (0, 0)
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.finish() == 128 + signal.SIGTERM


def test_output_is_shown_to_the_end(vm: None, guests: pathlib.Path) -> None:
    """A slow reader gets all of it, after the program has ended too."""
    terminal = Terminal(kvmlet_argv(["sh", "-c", "seq 3000; echo the end >&2"]), guests)
    time.sleep(0.5)
    shown = terminal.read_until(b"the end\r\n")
    assert shown == b"".join(b"%d\r\n" % number for number in range(1, 3001)) + b"the end\r\n"
    assert terminal.finish() == 0


def test_own_lines_on_a_raw_terminal(vm: None, guests: pathlib.Path) -> None:
    """Traced calls start at the left."""
    terminal = Terminal(kvmlet_argv(["true"], ["--trace"]), guests)
    shown = terminal.read_until(b"exit_group")
    assert shown.count(b"\n") == shown.count(b"\r\n") > 10
    assert terminal.finish() == 0


def test_only_a_whole_console_is_raw(vm: None, guests: pathlib.Path) -> None:
    """With its output elsewhere the program has the caller's terminal itself."""
    reader, writer = os.pipe()
    terminal = Terminal(kvmlet_argv(["sh", "-c", "stty -a; tty; cat"]), guests, stdout=writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert b"speed" in pipe.readline()
        assert terminal.settings() == terminal.before
        terminal.type(b"line\n\x04")
        assert pipe.read().endswith(b"line\n")
    assert terminal.finish() == 0
