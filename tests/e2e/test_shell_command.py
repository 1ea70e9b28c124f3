"""`kvmlet shell`: an interactive shell in a sandbox."""

from __future__ import annotations

import os
import pathlib
import pty
import select
import subprocess
import sys
import time

KVMLET = [sys.executable, "-m", "kvmlet", "shell"]


def test_a_shell_takes_commands_and_options(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [*KVMLET, "-e", "A=b", "--memory", "64m"],
        input="echo $A $0; echo x > made; ls; exit 3\n",
        cwd=tmp_path,
        env={**os.environ, "SHELL": "/bin/sh"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (3, "b /bin/sh\nmade\n"), done.stderr
    assert os.listdir(tmp_path) == []


def test_the_shell_of_ones_choice(tmp_path: pathlib.Path) -> None:
    for words, said in (
        (["bash", "-c", "echo $BASH"], "/bash\n"),
        (["--", "sh", "-c", "echo s"], "s\n"),
    ):
        done = subprocess.run(
            [*KVMLET, *words],
            cwd=tmp_path,
            env={**os.environ, "SHELL": "/nowhere/shell"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0
        assert done.stdout.endswith(said)


def test_a_terminal_is_the_shells(tmp_path: pathlib.Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(KVMLET[0], [*KVMLET, "bash", "--norc"])
    try:
        seen = b""

        def wait_for(wanted: bytes) -> None:
            nonlocal seen
            end = time.monotonic() + 60
            while wanted not in seen:
                left = end - time.monotonic()
                assert left > 0, seen
                if select.select([terminal], [], [], left)[0]:
                    seen += os.read(terminal, 4096)
            seen = seen.partition(wanted)[2]

        wait_for(b"$ " if os.getuid() else b"# ")
        os.write(terminal, b"tty; echo $((40 + 2))\n")
        wait_for(b"/dev/pts/")
        wait_for(b"42")
        os.write(terminal, b"sleep 100\n")
        time.sleep(0.5)
        os.write(terminal, b"\x03")
        os.write(terminal, b"echo $? again\n")
        wait_for(b"130 again")
        os.write(terminal, b"exit 7\n")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    finally:
        os.close(terminal)
