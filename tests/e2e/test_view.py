"""Programs are found and start wherever they lie; what is not needed for that stays hidden."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import venv

import pytest

import kvmlet
from e2e.oracle import ENV, HW, NO_RUNTIMES, command, in_vm, kvmlet_argv

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A home directory with a project's environment and a secret in it."""
    home = tmp_path_factory.mktemp("home")
    (home / "secret").write_text("hidden\n")
    (home / "project").mkdir()
    (home / "project" / ".env").write_text("hidden\n")
    venv.create(home / "project" / ".venv", symlinks=True)
    (home / "elsewhere").mkdir()
    (home / "link").symlink_to("project")
    return home


PREFIXES = "import sys; print(sys.prefix, sys.base_prefix, sys.executable)"


@pytest.mark.parametrize("where", ["{home}/project/.venv", "{home}/link/.venv", "../link/.venv"])
def test_a_virtual_environment_from_anywhere(home: pathlib.Path, where: str) -> None:
    python = f"{where.format(home=home)}/bin/python"
    cwd = home / "elsewhere"
    native = subprocess.run([python, "-c", PREFIXES], cwd=cwd, capture_output=True, check=True)
    run = in_vm([python, "-c", PREFIXES], cwd=cwd)
    assert (run.status, run.stdout, run.stderr) == (0, native.stdout, b"")


def test_an_activated_environment(home: pathlib.Path) -> None:
    prefix = home / "project" / ".venv"
    env = {**ENV, "PATH": f"{prefix}/bin:{ENV['PATH']}", "HOME": str(home)}
    cwd = home / "elsewhere"
    direct = command(
        kvmlet_argv(["python", "-c", "import sys; print(sys.prefix)"]), cwd=cwd, env=env
    )
    assert (direct.status, direct.stdout.decode().strip()) == (0, str(prefix))
    by_shell = command(kvmlet_argv(["sh", "-c", "command -v python; echo $HOME"]), cwd=cwd, env=env)
    assert by_shell.stdout.decode().split() == [f"{prefix}/bin/python", "/tmp"]
    # Neither the project around it nor the home directory.
    secrets = [str(home / "project" / ".env"), str(home / "secret")]
    hidden = command(kvmlet_argv(["cat", *secrets]), cwd=cwd, env=env)
    assert hidden.status == 1
    assert hidden.stdout == b""
    assert hidden.guest_stderr.count(b"No such file") == len(secrets)


def test_tools_of_a_project_are_found_by_what_starts_them(home: pathlib.Path) -> None:
    project = home / "project"
    (project / "Makefile").write_text(f"all:\n\t@.venv/bin/python -c '{PREFIXES}'\n")
    native = subprocess.run(["make"], cwd=project, capture_output=True, check=True)
    run = in_vm(["make"], cwd=project)
    assert (run.status, run.stdout, run.stderr) == (0, native.stdout, b"")


def test_only_what_is_there_is_told_as_refused(home: pathlib.Path) -> None:
    """Programs look for settings, sockets and modules that are nowhere."""
    cwd = home / "elsewhere"
    # The host's /tmp is another one.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as hidden:
        there = pathlib.Path(hidden, "there")
        there.touch()
        script = f"id -un >/dev/null; cat {hidden}/nowhere {there}; exit 3"
        run = in_vm(["bash", "-c", script], cwd=cwd)
        told = f"kvmlet: denied: open {there} (ENOENT); it is not visible; "
        assert (run.status, run.own_lines) == (3, [f"{told}allow it with --read {there}"])
        bound = f"{hidden}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(bound)
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({bound!r})"
            run = in_vm(["/usr/bin/python3", "-c", connect], cwd=cwd)
        told = f"kvmlet: denied: connect {bound} (ENOENT); allow it with --unix {bound}"
        assert (run.status, run.own_lines) == (1, [told])


def test_what_the_hosts_own_tmp_has_is_told(home: pathlib.Path) -> None:
    """In the sandbox's own a name is missing only if the program has not made it."""
    cwd = home / "elsewhere"
    with tempfile.TemporaryDirectory(dir="/tmp") as hidden:
        for name in ("data.csv", "made"):
            pathlib.Path(hidden, name).write_text("a,b\n")
        script = (
            f"test -e {hidden}/made; mkdir -p {hidden}; echo > {hidden}/made; cat {hidden}/none"
        )
        run = in_vm(["sh", "-c", f"{script} {hidden}/data.csv"], cwd=cwd)
        told = f"kvmlet: denied: open {hidden}/data.csv (ENOENT); it is not visible; "
        option = f"--read {hidden}/data.csv"
        assert (run.status, run.own_lines) == (1, [f"{told}allow it with {option}"])
        run = in_vm(["cat", f"{hidden}/data.csv"], cwd=cwd, options=option.split())
        assert (run.status, run.stdout) == (0, b"a,b\n"), run
        bound = f"{hidden}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(bound)
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({bound!r})"
            run = in_vm(["/usr/bin/python3", "-c", connect], cwd=cwd)
        assert f"allow it with --unix {bound}" in run.own_lines[0]


def test_a_script_wherever_it_lies(home: pathlib.Path) -> None:
    folder = home / "scripts"
    folder.mkdir()
    (folder / "sibling").write_text("hidden\n")
    script = folder / "script.py"
    script.write_text(f"import os; print(os.path.exists({str(folder / 'sibling')!r}))\n")
    cwd = home / "elsewhere"
    run = in_vm([sys.executable, script], cwd=cwd)
    assert (run.status, run.stdout, run.stderr) == (0, b"False\n", b"")
    script.write_text(f"#!{sys.executable}\nprint('own')\n")
    script.chmod(0o755)
    run = in_vm([script], cwd=cwd)
    assert (run.status, run.stdout, run.stderr) == (0, b"own\n", b"")


def test_read_and_environment_options(home: pathlib.Path) -> None:
    cwd = home / "elsewhere"
    own = [
        "--read",
        str(home / "secret"),
        "-e",
        "GIVEN=1",
        "-e",
        "CALLERS",
        "-w",
        str(home / "link"),
    ]
    env = {**ENV, "CALLERS": "2", "OTHER": "3"}
    script = f"pwd; echo $GIVEN$CALLERS$OTHER; cat {home}/secret .env; ls {home}"
    run = command(kvmlet_argv(["sh", "-c", script], own), cwd=cwd, env=env)
    assert run.stdout.decode().split() == [
        str(home / "project"),
        "12",
        "hidden",
        "hidden",
        "project",
        "secret",
    ]
    assert (run.status, run.stderr) == (0, b"")


def test_a_link_that_is_shown_opens_no_more(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A link among what is readable leads where the view allows it and nowhere else."""
    tool = home / "project" / "tool"
    tool.write_text("#!/bin/sh\ncat $(dirname $0)/.env || ls $(dirname $0)\n")
    tool.chmod(0o755)
    run = in_vm([home / "link" / "tool"], cwd=tmp_path)
    assert run.status == 0
    assert run.stdout == b"tool\n"
    assert b"hidden" not in run.stdout
    assert os.readlink(home / "link") == "project"


def test_a_sandbox_does_not_get_a_home_directory(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    with pytest.warns(UserWarning, match="is your home directory"):
        sandbox = kvmlet.Sandbox(["cat", str(home / "secret")], cwd=home)
    with sandbox, pytest.raises(kvmlet.SandboxEnded) as caught:
        sandbox.until_ready(60)
    assert caught.value.result is not None
    assert (caught.value.result.exit_code, caught.value.result.stdout) == (1, b"")


def test_an_overlay_within_what_may_be_read(home: pathlib.Path) -> None:
    """Relative names from a directory above it lead into the overlay, not to the host's files."""
    project = home / "readable" / "project"
    project.mkdir(parents=True)
    (project / "kept").write_text("old\n")
    code = (
        "import os\n"
        f"above = os.open({str(project.parent)!r}, os.O_RDONLY)\n"
        "open('kept', 'w').write('new')\n"
        "open('made', 'w').close()\n"
        "there = os.open('project', os.O_RDONLY, dir_fd=above)\n"
        "print(sorted(os.listdir(there)), os.read(os.open('kept', 0, dir_fd=there), 9))\n"
        "os.mkdir('more', dir_fd=there)\n"
        "print(sorted(os.listdir('.')))\n"
    )
    own = ["--read", str(project.parent)]
    run = command(kvmlet_argv(["/usr/bin/python3", "-c", code], own), cwd=project, env=ENV)
    assert run.stdout.decode().splitlines() == [
        "['kept', 'made'] b'new'",
        "['kept', 'made', 'more']",
    ], run
    assert sorted(os.listdir(project)) == ["kept"]
