"""`-A`: the caller's files and variables, but for protected names, and no network."""

from __future__ import annotations

import os
import pathlib

import pytest

from e2e.oracle import ENV, HW, KVMLET, NO_RUNTIMES, Ended, command, kvmlet_argv
from e2e.test_overlay import state

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

WARNING = (
    "kvmlet: -A: it may change your home directory and the current one, read your keys, and has "
    "all of your variables; protected names (.bashrc, .ssh, .git/hooks and the like) stay as they "
    "are"
)


@pytest.fixture
def home(tmp_path: pathlib.Path) -> pathlib.Path:
    home = tmp_path / "home"
    (home / "project").mkdir(parents=True)
    (home / ".ssh").mkdir()
    (home / ".ssh" / "config").write_text("mine")
    (home / ".bashrc").write_text("mine")
    (home / "notes").write_text("old")
    return home


def run(
    script: str, cwd: pathlib.Path, home: pathlib.Path, options: tuple[str, ...] = ("-A",)
) -> Ended:
    env = {**ENV, "HOME": os.fspath(home), "MINE": "my own"}
    return command(kvmlet_argv(["/bin/sh", "-c", script], options), cwd=cwd, env=env)


def test_files_and_variables(home: pathlib.Path) -> None:
    script = """
        pwd; echo "$HOME" "$MINE"
        echo new > made; echo new > ../notes; mkdir -p "$HOME/a/b"
        for name in .bashrc .ssh/config .ssh/new .profile; do
            (echo evil >> "$HOME/$name") 2> /dev/null && echo "FAIL $name"
        done
        mv "$HOME/.ssh" "$HOME/taken" 2> /dev/null && echo FAIL
        reach="import socket; socket.create_connection(('192.0.2.1', 80))"
        python3 -c "$reach" 2> /dev/null && echo FAIL
        true
    """
    ended = run(script, home / "project", home)
    said = f"{home / 'project'}\n{home} my own\n"
    assert (ended.status, ended.stdout.decode()) == (0, said), ended
    assert ended.own_lines == [WARNING]
    assert (home / "project" / "made").read_text() == "new\n"
    assert (home / "notes").read_text() == "new\n"
    assert (home / "a" / "b").is_dir()
    assert (home / ".bashrc").read_text() == (home / ".ssh" / "config").read_text() == "mine"
    assert os.listdir(home / ".ssh") == ["config"]


def test_from_the_home_directory_itself(home: pathlib.Path) -> None:
    ended = run("pwd; echo x > here", home, home)
    assert (ended.status, ended.stdout.decode(), ended.own_lines) == (0, f"{home}\n", [WARNING])
    assert (home / "here").read_text() == "x\n"


def test_from_a_directory_elsewhere(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    other, hidden = tmp_path / "other", tmp_path / "hidden"
    other.mkdir()
    hidden.mkdir()
    before = state(hidden)
    script = f"echo x > here; echo x > {home}/there; echo x > {hidden}/no 2> /dev/null"
    ended = run(script, other, home)
    assert ended.status == 2, ended
    assert (other / "here").exists()
    assert (home / "there").exists()
    assert state(hidden) == before
    ended = run("pwd", pathlib.Path("/usr"), home)
    assert ended.stdout.decode() == "/tmp\n"


def test_a_variable_of_ones_own_wins(home: pathlib.Path) -> None:
    ended = run('echo "$MINE"', home, home, ("-A", "-e", "MINE=other"))
    assert ended.stdout == b"other\n"


@pytest.mark.parametrize("other", ["--learn=x.toml", "--print-policy", "--changes=keep"])
def test_what_makes_no_sense_beside_it(home: pathlib.Path, other: str) -> None:
    ended = run("true", home / "project", home, ("-A", other))
    assert ended.status == 125
    assert ended.stderr.startswith(b"kvmlet: -A and --")
    assert ended.stderr.endswith(b"; leave one of them out\n")


def test_why_knows_it(home: pathlib.Path) -> None:
    env = {**ENV, "HOME": os.fspath(home)}
    ended = command([KVMLET, "why", "-A", "notes"], cwd=home, env=env)
    assert ended.status == 0, ended
    assert b"-A" in ended.stdout
