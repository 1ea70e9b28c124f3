"""A pseudo-terminal, and commands that have it as theirs."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from typing import TYPE_CHECKING

from e2e.oracle import ENV, HANG_S

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Sequence

LEADER_SAW_A_STOP = 121
"""What the leader of a session exits with when its job has been stopped."""


class Terminal:
    """A command on a pseudo-terminal of 33 rows and 101 columns."""

    def __init__(
        self,
        argv: Sequence[str],
        cwd: pathlib.Path,
        *,
        background: bool = False,
        tostop: bool = False,
        stdout: int | None = None,
    ) -> None:
        self.master, slave = pty.openpty()
        self.path = os.ttyname(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 0, 0))
        if tostop:
            settings = termios.tcgetattr(slave)
            settings[3] |= termios.TOSTOP
            termios.tcsetattr(slave, termios.TCSANOW, settings)
        self.before = termios.tcgetattr(slave)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.master)
                os.login_tty(slave)
                os.chdir(cwd)
                if stdout is not None:
                    os.dup2(stdout, 1)
                if background:
                    os._exit(_lead(argv))
                os.execve(argv[0], list(argv), ENV)
            finally:
                os._exit(120)
        self._shown = b""
        # Kept open: its settings outlive the command.
        self.slave = slave

    def settings(self) -> object:
        """termios(3) as it is now."""
        return termios.tcgetattr(self.slave)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, end: bytes) -> bytes:
        """The text that is shown up to and with `end`."""
        while end not in self._shown:
            ready, _, _ = select.select([self.master], [], [], HANG_S)
            assert ready, f"nothing more after {self._shown!r}"
            self._shown += os.read(self.master, 65536)
        at = self._shown.index(end) + len(end)
        seen, self._shown = self._shown[:at], self._shown[at:]
        return seen

    def finish(self, within_s: float = HANG_S) -> int:
        """The status as a shell shows it. Nothing that hangs survives."""
        end = time.monotonic() + within_s
        try:
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > end:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    raise AssertionError(f"still running after {within_s} s")
                time.sleep(0.01)
        finally:
            # What is left of the session hangs up.
            os.close(self.slave)
            os.close(self.master)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def _lead(argv: Sequence[str]) -> int:
    """Run `argv` as a job in the background, as a shell does; its status.

    SIGUSR1 gives it the terminal.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGCHLD])
    job = os.fork()
    if job == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1, signal.SIGCHLD])
        os.setpgid(0, 0)
        os.execve(argv[0], list(argv), ENV)
    while True:
        if signal.sigwait([signal.SIGUSR1, signal.SIGCHLD]) == signal.SIGUSR1:
            os.tcsetpgrp(0, job)
            continue
        _, status = os.waitpid(job, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            os.killpg(job, signal.SIGKILL)
            return LEADER_SAW_A_STOP
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code
