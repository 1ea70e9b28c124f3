"""Users and groups: root becomes others inside, and reaches no more of the host by it."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess

import pytest

import kvmlet
from e2e.oracle import HW, NO_RUNTIMES, in_vm

pytestmark = [
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user"),
]

PYTHON = "/usr/bin/python3"
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
DROP = """\
import os, sys
os.setgroups([7, 5])
os.setgid(65534)
os.setuid(65534)
"""


def compared(argv: list[str], cwd: pathlib.Path | str = "/tmp") -> str:
    """The output of a command, natively as root with its capabilities and in a VM."""
    native = subprocess.run(argv, cwd=cwd, capture_output=True, check=True)
    run = in_vm(argv, cwd=cwd)
    assert (run.stdout.decode(), run.status) == (native.stdout.decode(), 0), run.stderr
    return run.stdout.decode()


@pytest.mark.hw
@pytest.mark.poll
def test_credentials_of_threads(guests: pathlib.Path) -> None:
    compared(["./creds"], guests)


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_setpriv_becomes_another_user() -> None:
    assert compared([*NOBODY, "id"]).startswith("uid=65534(nobody) gid=65534(nogroup)")
    script = "touch /tmp/kvmlet-creds && stat -c %u:%g /tmp/kvmlet-creds && rm /tmp/kvmlet-creds"
    assert compared([*NOBODY, "sh", "-c", script]) == "65534:65534\n"


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_python_becomes_another_user() -> None:
    script = f"""{DROP}
print(os.getresuid(), os.getresgid(), os.getgroups())
for change in (lambda: os.setuid(0), lambda: os.setgroups([0]), lambda: os.kill(os.getppid(), 0)):
    try:
        print(change())
    except PermissionError as error:
        print(error)
wanted = ("Uid", "Gid", "Groups", "CapEff")
print([line for line in open("/proc/self/status") if line.startswith(wanted)])
"""
    compared([PYTHON, "-c", script])


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """Files of root and of another user, each open to everybody and to its owner only."""
    tmp_path.chmod(0o755)
    for name, owner in (("root", 0), ("other", 65534)):
        for mode in (0o644, 0o600):
            path = tmp_path / f"{name}-{mode:o}"
            path.write_text(name)
            path.chmod(mode)
            os.chown(path, owner, owner)
    (tmp_path / "closed").mkdir(mode=0o700)
    (tmp_path / "closed" / "file").write_text("closed")
    return tmp_path


READ = """
for name in sorted(os.listdir(".")) + ["closed/file"]:
    try:
        print(name, open(name).read())
    except OSError as error:
        print(name, error.strerror)
"""


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
@pytest.mark.parametrize("mode", ["overlay", "ro", "rw"])
def test_no_more_of_the_host_is_reached(tree: pathlib.Path, mode: str) -> None:
    """Another user inside has what the mode bits give to it and to the caller."""
    options = ["-v", f"{tree}:{tree}:{mode}"]
    as_root = in_vm([PYTHON, "-c", f"import os{READ}"], cwd=tree, options=options)
    denied = "Permission denied"
    assert as_root.stdout.decode().splitlines() == [
        "closed Is a directory",
        f"other-600 {denied}",
        "other-644 other",
        "root-600 root",
        "root-644 root",
        "closed/file closed",
    ]
    as_other = in_vm([PYTHON, "-c", DROP + READ], cwd=tree, options=options)
    assert as_other.stdout.decode().splitlines() == [
        f"closed {denied}",
        f"other-600 {denied}",
        "other-644 other",
        f"root-600 {denied}",
        "root-644 root",
        f"closed/file {denied}",
    ]


CHANGES = """
def attempt(name, change):
    try:
        change()
        print(name, "done")
    except OSError as error:
        print(name, error.strerror)
attempt("write", lambda: open("root-644", "w").write("changed"))
attempt("write own", lambda: open("other-644", "w").write("changed"))
attempt("chmod own", lambda: os.chmod("other-600", 0o666))
attempt("read own", lambda: print(open("other-600").read()))
attempt("give", lambda: os.chown("other-644", 0, 0))
attempt("remove", lambda: os.unlink("root-600"))
"""


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_changes_by_another_user(tree: pathlib.Path) -> None:
    """In memory its own files are its own, but what the caller could not read stays unread."""
    overlay = in_vm([PYTHON, "-c", DROP + CHANGES], cwd=tree)
    denied = "Permission denied"
    assert overlay.stdout.decode().splitlines() == [
        f"write {denied}",
        "write own done",
        "chmod own done",
        f"read own {denied}",
        "give Operation not permitted",
        f"remove {denied}",
    ]
    # On the host it is the caller who changes, and nothing is the other user's.
    written = in_vm([PYTHON, "-c", DROP + CHANGES], cwd=tree, options=["--write", "."])
    assert [line.rsplit(" ", 1)[-1] for line in written.stdout.decode().splitlines()] == [
        "denied",
        "denied",
        "permitted",
        "denied",
        "permitted",
        "denied",
    ]
    assert (tree / "other-644").read_text() == "other"
    assert stat.S_IMODE((tree / "other-600").stat().st_mode) == 0o600


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_forks_and_resets_have_the_users_that_were_frozen(box: kvmlet.Box) -> None:
    nobody = " ".join(NOBODY)
    box.spawn(f"{nobody} sh -c 'echo $$ > /tmp/pid; while sleep 1000; do :; done'", shell=True)
    there = "while ! [ -s /tmp/pid ]; do sleep 0.01; done"
    who = f"{there}; grep -E '^(Uid|CapEff)' /proc/$(cat /tmp/pid)/status"
    before = box.run(who, shell=True, text=True, check=True).stdout
    assert before.splitlines()[0].split() == ["Uid:"] + ["65534"] * 4
    [fork] = box.fork()
    with fork:
        assert fork.run(who, shell=True, text=True, check=True).stdout == before
        fork.run(f"{nobody} kill $(cat /tmp/pid); id -u", shell=True, check=True)
        fork.reset()
        assert fork.run(who, shell=True, text=True, check=True).stdout == before
        assert fork.run(["id", "-u"], text=True).stdout == "0\n"
