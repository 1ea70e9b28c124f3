"""`-u USER[:GROUP]`: the program is that user, inside and for the host's files."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, HW, NO_RUNTIMES, ROOT, Ended, command, kvmlet_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

NOBODY = 65534


@pytest.fixture
def room(package: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory of nobody's, with files of his, of root's and of everybody's."""
    with tempfile.TemporaryDirectory(dir=package) as name:
        room = pathlib.Path(name)
        for file, mode in (("theirs", 0o600), ("shared", 0o644), ("secret", 0o600)):
            (room / file).write_text(f"{file}\n")
            (room / file).chmod(mode)
        os.chown(room, NOBODY, NOBODY)
        os.chown(room / "theirs", NOBODY, NOBODY)
        yield room


def run(package: pathlib.Path, room: pathlib.Path, script: str, *options: str) -> Ended:
    words = ["/usr/bin/python3", "-m", "kvmlet", "run", *options, "--", "/bin/sh", "-c", script]
    return command(words, cwd=room, env={**ENV, "PYTHONPATH": os.fspath(package)})


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@only_root
def test_who_it_is_and_what_it_may(package: pathlib.Path, room: pathlib.Path) -> None:
    script = """
        id -u; id -g; id -G
        cat theirs shared; cat secret || echo refused
        echo x > made; stat -c %u made /tmp
        touch /proc/self/comm 2> /dev/null; chown 0 made 2> /dev/null || echo refused
    """
    ended = run(package, room, script, "-u", "nobody", "--write", ".")
    wanted = "65534 65534 65534 theirs shared refused 65534 0 refused"
    assert ended.stdout.decode().split() == wanted.split(), ended
    assert (room / "made").stat().st_uid == NOBODY
    assert (room / "secret").read_text() == "secret\n"


@only_root
@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ("65534:0", "65534 0 0"),
        ("nobody:nogroup", "65534 65534 65534"),
        ("12345", "12345 12345 12345"),
        ("12345:54321", "12345 54321 54321"),
        ("root", None),
    ],
)
def test_users_and_groups(
    package: pathlib.Path, room: pathlib.Path, words: str, ids: str | None
) -> None:
    script = "echo $(id -u) $(id -g) $(id -G)"
    ended = run(package, room, script, "-u", words)
    wanted = ids or command(["/bin/sh", "-c", script], cwd=room).stdout.decode().strip()
    assert ended.stdout.decode().strip() == wanted, ended


@only_root
def test_changes_that_are_kept_are_that_users(package: pathlib.Path, room: pathlib.Path) -> None:
    ended = run(package, room, "echo x > made; rm theirs", "-u", "nobody", "--changes", "keep")
    assert ended.status == 0, ended
    assert (room / "made").stat().st_uid == NOBODY
    assert not (room / "theirs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("no-such-user", "there is no user 'no-such-user'; name one of /etc/passwd, or a number"),
        (
            "0:no-such-group",
            "there is no group 'no-such-group'; name one of /etc/group, or a number",
        ),
        ("4294967295", "there is no user '4294967295'; name one of /etc/passwd, or a number"),
        ("", "there is no user ''; name one of /etc/passwd, or a number"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, words: str, said: str) -> None:
    ended = command(kvmlet_argv(["/bin/true"], ["-u", words]), cwd=tmp_path)
    assert (ended.status, ended.stderr.decode()) == (125, f"kvmlet: -u {words}: {said}\n")


@only_root
def test_who_may_become_nobody_else(package: pathlib.Path, room: pathlib.Path) -> None:
    """Also not by being root inside."""
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    words += ["/usr/bin/python3", "-m", "kvmlet", "run"]
    env = {**ENV, "PYTHONPATH": os.fspath(package)}
    for user in ("root", "12345", "65534:0"):
        ended = command([*words, "-u", user, "--", "/bin/true"], cwd=room, env=env)
        assert ended.status == 125, ended
        assert b"kvmlet: " in ended.stderr
        if b"/dev/kvm" not in ended.stderr:
            assert b"you may not become that user; run kvmlet as root" in ended.stderr


@only_root
def test_files_of_kvmlet_that_the_user_may_not_read(tmp_path: pathlib.Path) -> None:
    closed = tmp_path / "closed"
    shutil.copytree(ROOT / "python" / "kvmlet", closed / "kvmlet")
    closed.chmod(0o700)
    words = ["/usr/bin/python3", "-m", "kvmlet", "run", "-u", "nobody", "--", "/bin/true"]
    ended = command(words, cwd="/", env={**ENV, "PYTHONPATH": os.fspath(closed)})
    assert ended.status == 125
    assert b"that user may not read kvmlet's own files in" in ended.stderr
