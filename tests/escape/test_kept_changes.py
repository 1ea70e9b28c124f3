"""Attempts to reach the host through changes that are kept: none leads out of the tree."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import stat
import subprocess

import pytest

from e2e.oracle import ENV, HW, NO_RUNTIMES, in_vm, kvmlet_argv

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

KEEP = ["--changes", "keep"]


def contents(tree: pathlib.Path) -> dict[str, object]:
    """All that is in a tree, numbers and times included."""
    found: dict[str, object] = {}
    for path, directories, files in os.walk(tree):
        for name in [".", *directories, *files]:
            full = os.path.join(path, name)
            there = os.lstat(full)
            told: list[object] = [there.st_mode, there.st_ino, there.st_uid, there.st_mtime_ns]
            if stat.S_ISLNK(there.st_mode):
                told.append(os.readlink(full))
            elif stat.S_ISREG(there.st_mode):
                told.append(pathlib.Path(full).read_bytes())
            found[full] = told
    return found


@pytest.fixture
def outside(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    for name in ("file", "x", "deep/x"):
        (directory / name).write_text("safe\n")
    return directory


@pytest.fixture
def room(tmp_path: pathlib.Path, outside: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "room"
    (directory / "sub" / "deep").mkdir(parents=True)
    (directory / "sub" / "x").write_text("old\n")
    (directory / "out").symlink_to(outside)
    (directory / "up").symlink_to("..")
    os.link(outside / "file", directory / "hard")
    os.mkfifo(directory / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        # A path of a socket is short.
        with_cwd = os.getcwd()
        os.chdir(directory)
        unix.bind("socket")
        os.chdir(with_cwd)
    return directory


ATTEMPTS = r"""
import os, socket, stat

def attempt(work):
    try:
        work()
    except OSError:
        pass

def write(path, text='evil\n'):
    with open(path, 'w') as file:
        file.write(text)

OUT = '{outside}'
attempt(lambda: write('out/file'))
attempt(lambda: write('out/deep/new'))
attempt(lambda: write('up/outside/x'))
attempt(lambda: write('../outside/x'))
attempt(lambda: write(OUT + '/x'))
attempt(lambda: os.remove('out/x'))
attempt(lambda: write('hard'))
attempt(lambda: os.chmod('hard', 0o777))
# A directory becomes a link that leads out, after files were made in it.
os.mkdir('swapped'); write('swapped/x'); os.rename('swapped', 'kept'); os.symlink(OUT, 'swapped')
os.rename('sub', 'was'); os.symlink(OUT, 'sub')
os.remove('out'); os.mkdir('out'); write('out/x', 'inside\n')
os.symlink('../../../../../../etc', 'many'); os.symlink('/proc/self/root', 'magic')
os.symlink(OUT + '/new', 'dangling'); attempt(lambda: write('dangling'))
for name in ('a\nkvmlet: b', 'c\x1b[31m', '..x', '...', ' ', '-rf', 'a\\', '\u202e', 'x' * 255):
    write(name)
os.mkdir('..\n'); write('..\n/x')
attempt(lambda: os.mknod('device', 0o666 | stat.S_IFCHR, os.makedev(1, 3)))
attempt(lambda: os.mknod('disk', 0o666 | stat.S_IFBLK, os.makedev(8, 0)))
os.mkfifo('fifo'); attempt(lambda: socket.socket(socket.AF_UNIX).bind('unix'))
os.remove('pipe'); os.remove('socket'); write('pipe')
write('suid'); os.chmod('suid', 0o6755); os.mkdir('sticky'); os.chmod('sticky', 0o1777)
os.link('suid', 'suid2'); os.mkdir('.kvmlet-changes-0', 0o700)
write('.kvmlet-changes-0/manifest', 'kvmlet changes 1 0\n'); write('.KVMLET-CHANGES-1')
os.mkdir('.git'); os.mkdir('.git/hooks'); write('.git/hooks/post-checkout'); os.mkdir('.gIt')
write('.gIt/config', '[core]\nfsmonitor = ./x\n'); write('.bashrc'); os.symlink('was', '.ssh')
os.symlink('kept', '.config'); os.mkdir('.git/modules'); os.symlink('/tmp', '.git/modules/lib')
os.mkdir('.git/modules/a'); os.mkdir('.git/modules/a/b'); write('.git/modules/a/b/commondir')
os.mkdir('bare'); os.mkdir('bare/objects'); write('bare/HEAD'); os.mkdir('bare/hooks')
write('bare/hooks/post-checkout'); write('bare/config', '[core]\nfsmonitor = ./x\n')
path = 'd'
for _ in range(300):
    os.mkdir(path); path += '/d'
"""


def test_a_hostile_program(room: pathlib.Path, outside: pathlib.Path) -> None:
    before = contents(outside)
    others = set(os.listdir(room.parent))
    code = ATTEMPTS.replace("{outside}", os.fspath(outside))
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room, options=KEEP)
    # What lies too deep is a conflict.
    assert run.status == 125, run
    assert run.guest_stderr == b""
    assert contents(outside) == before
    assert set(os.listdir(room.parent)) == others
    for path, directories, files in os.walk(room):
        for name in directories + files:
            there = os.lstat(os.path.join(path, name))
            known = name in ("pipe", "socket") and path == os.fspath(room)
            assert known or stat.S_IFMT(there.st_mode) in (
                stat.S_IFREG,
                stat.S_IFDIR,
                stat.S_IFLNK,
            ), name
            assert not there.st_mode & 0o7000, name
    made = set(os.listdir(room))
    assert {"kept", "was", "suid", "suid2", "a\nkvmlet: b", "c\x1b[31m", "..\n", "...", "d"} <= made
    assert not made & {".bashrc", ".ssh", ".KVMLET-CHANGES-1", "fifo", "unix", "device", "disk"}
    # A new directory of that name was left out as well.
    assert [name for name in made if name.startswith(".kvmlet")] == []
    for name in (".git/hooks/post-checkout", ".gIt/config", "bare/hooks/post-checkout"):
        assert not (room / name).exists(), name
    for name in (".config", ".git/modules/lib", ".git/modules/a/b/commondir"):
        assert not os.path.lexists(room / name), name
    assert not (room / "bare" / "config").exists()
    assert (room / "out" / "x").read_text() == "inside\n"
    assert (room / "hard").read_text() == "evil\n"
    assert (room / "pipe").is_fifo()
    assert all(line.isprintable() for line in run.stderr.decode().splitlines())


def test_a_repository_made_in_two_runs(room: pathlib.Path) -> None:
    """None of the two makes one of hooks."""
    first = "mkdir bare bare/hooks; echo evil > bare/hooks/post-checkout; echo evil > bare/config"
    run = in_vm(["/bin/sh", "-ec", first], cwd=room, options=KEEP)
    assert run.status == 0, run
    second = "mkdir bare/objects bare/refs; echo 'ref: refs/heads/main' > bare/HEAD; echo y > y"
    run = in_vm(["/bin/sh", "-ec", second], cwd=room, options=KEEP)
    assert run.status == 0, run
    assert b"bare/HEAD" in run.stderr
    assert not (room / "bare" / "HEAD").exists()
    assert not (room / "bare" / "objects").exists()
    assert (room / "y").read_text() == "y\n"


def test_a_tree_in_a_protected_directory(tmp_path: pathlib.Path) -> None:
    tree = tmp_path / ".config" / "fish"
    tree.mkdir(parents=True)
    run = in_vm(["/bin/sh", "-c", "echo evil > config.fish"], cwd=tree, options=KEEP)
    assert b"not kept" in run.stderr
    assert os.listdir(tree) == []
    options = [*KEEP, "--keep-protected", "."]
    run = in_vm(["/bin/sh", "-c", "echo mine > config.fish"], cwd=tree, options=options)
    assert (tree / "config.fish").read_text() == "mine\n", run


PLACES = 8


def test_a_tree_that_is_swapped_while_the_program_runs(
    tmp_path: pathlib.Path, outside: pathlib.Path
) -> None:
    """As an accomplice on the host could."""
    room = tmp_path / "room"
    for number in range(PLACES):
        (room / f"s{number}" / "deep").mkdir(parents=True)
        for name in ("x", "file", "deep/x"):
            (room / f"s{number}" / name).write_text("old\n")
    script = f"""
        for i in $(seq 0 {PLACES - 1}); do
            echo evil > s$i/x; echo evil > s$i/new; rm s$i/file; mkdir s$i/dir
            echo evil > s$i/dir/x; chmod 777 s$i/deep; echo evil > s$i/deep/x; ln -s y s$i/deep/l
        done; echo ok; read end
    """
    running = subprocess.Popen(
        kvmlet_argv(["/bin/sh", "-ec", script], KEEP),
        cwd=room,
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout
    assert running.stdout.readline() == b"ok\n"
    mounted = None
    for number in range(PLACES - 1):
        os.rename(room / f"s{number}", tmp_path / f"was{number}")
    (room / "s0").symlink_to(outside)
    (room / "s1").write_text("a file")
    os.mkfifo(room / "s2")
    os.link(outside / "x", room / "s3")
    (room / "s4").mkdir()
    (room / "s4" / "deep").symlink_to(outside / "deep")
    (room / "s4" / "x").symlink_to(outside / "x")
    os.link(outside / "file", room / "s4" / "file")
    (room / "s5").mkdir()
    if os.geteuid() == 0 and shutil.which("mount"):
        # Of the same file system: its number does not tell.
        words = ["mount", "--bind", os.fspath(outside), os.fspath(room / "s5")]
        if subprocess.run(words, check=False, stderr=subprocess.DEVNULL).returncode == 0:
            mounted = room / "s5"
    # s6 is gone; s7 is as it was.
    before = contents(outside)
    was = [contents(tmp_path / f"was{number}") for number in range(PLACES - 1)]
    try:
        said = running.communicate(b"\n")[1]
        assert contents(outside) == before, said
        after = [contents(tmp_path / f"was{number}") for number in range(PLACES - 1)]
        assert after == was
    finally:
        if mounted:
            subprocess.run(["umount", mounted], check=True)
    assert running.returncode == 125, said
    assert b"s0/deep is left as it is" in said
    assert b" more are left as they are\n" in said
    assert (room / "s4" / "x").is_symlink()
    assert (room / "s7" / "deep" / "x").read_text() == "evil\n"
    assert (room / "s1").read_text() == "a file"
    assert not mounted or os.listdir(room / "s5") == []
