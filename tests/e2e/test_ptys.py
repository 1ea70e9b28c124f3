"""Pseudo-terminals of the program's own: as natively."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, SCRIPTS

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = pytest.mark.skipif(HW, reason="the CPU has no part in it")

LIMIT_S = 60


@pytest.mark.parametrize(
    "section", ["lines", "modes", "raw", "output", "packet", "hangup", "jobs", "names"]
)
def test_pseudo_terminals(oracle: Oracle, guests: pathlib.Path, section: str) -> None:
    oracle.compare(["./pty", section], cwd=guests)


def test_bash_on_a_terminal(oracle: Oracle) -> None:
    """Line editing by the terminal, jobs, sizes, Ctrl-C, Ctrl-Z and Ctrl-D."""
    oracle.compare(["/usr/bin/python3", "drive_bash.py"], cwd=SCRIPTS)


COMMANDS = {
    "script": ["script", "-qec", "test -t 0 && tty | tr 0-9 N; stty size; exit 7", "/dev/null"],
    "spawn": ["python3", "-c", "import pty; print(pty.spawn(['sh', '-c', 'stty -a; exit 3']))"],
    "listing": ["script", "-qec", "ls /dev/pts | wc -l; ls -d /dev/ptmx /dev/pts", "/dev/null"],
}
STATUSES = {"script": 7}


@pytest.mark.parametrize("name", ["script", "spawn"])
def test_programs(oracle: Oracle, guests: pathlib.Path, name: str) -> None:
    oracle.compare(COMMANDS[name], cwd=guests, expect_status=STATUSES.get(name, 0))


@pytest.mark.usefixtures("vm")
def test_names_of_devices(guests: pathlib.Path) -> None:
    result = kvmlet.run(COMMANDS["listing"], cwd=guests)
    assert result.stdout == b"1\r\n/dev/ptmx  /dev/pts\r\n", result


@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("module", ["test_pty", "test_openpty"])
def test_suites_of_cpython(guests: pathlib.Path, module: str) -> None:
    if importlib.util.find_spec(f"test.{module}") is None:
        pytest.skip("libpython3.11-testsuite is not installed")
    result = kvmlet.run(["/usr/bin/python3", "-m", "unittest", f"test.{module}"], cwd=guests)
    assert result.exit_code == 0, result.stderr.decode()
    assert b"\nOK" in result.stderr, result.stderr.decode()


def ask(sandbox: kvmlet.Sandbox, request: str) -> str:
    return sandbox.request(request.encode(), timeout=LIMIT_S).decode()


@pytest.mark.usefixtures("vm")
def test_a_terminal_in_forks(guests: pathlib.Path) -> None:
    """Unread bytes, echoes and sizes are each fork's own."""
    sandbox = kvmlet.Sandbox(["./ptykept"], cwd=guests).until_ready(timeout=LIMIT_S)
    with sandbox.freeze() as snapshot, snapshot.fork() as one, snapshot.fork() as two:
        for _ in range(2):
            assert ask(one, "read") == "5 20 kept\n"
            assert ask(one, "shown") == "15 21 kept\r\nopenout\r\n"
            assert ask(one, "type  line\n") == "6"
            assert ask(one, "read") == "10 22 open line\n"
            assert ask(one, "number") == "another"
            one.reset()
        assert ask(two, "write more") == "4"
        assert ask(two, "shown") == "19 20 kept\r\nopenout\r\nmore"
        assert ask(two, "read") == "5 21 kept\n"
