"""Trees that programs may change on the host itself: `--write` and `write=`."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import ENV, HANG_S, HW, NO_RUNTIMES, command, in_vm, kvmlet_argv, native, repeated
from e2e.test_overlay import OPERATIONS, fill, state

if TYPE_CHECKING:
    from e2e.oracle import Ended

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]


def shape(tree: pathlib.Path) -> list[object]:
    """All that two trees can have in common."""
    found: list[object] = []
    groups: dict[int, str] = {}
    for path, directories, files in os.walk(tree):
        directories.sort()
        for name in [".", *sorted(directories + files)]:
            full = os.path.join(path, name)
            there = os.lstat(full)
            own = os.path.relpath(full, tree)
            told: list[object] = [own, there.st_mode, there.st_uid, there.st_gid]
            if stat.S_ISLNK(there.st_mode):
                told.append(os.readlink(full))
            elif stat.S_ISREG(there.st_mode):
                with open(full, "rb") as file:
                    told += [there.st_nlink, groups.setdefault(there.st_ino, own), file.read()]
            found.append(told)
    return found


def written(room: pathlib.Path, script: str, *options: str, cwd: str = ".") -> Ended:
    """A shell script that may change `room`."""
    words = kvmlet_argv(["/bin/sh", "-ec", script], ["--write", os.fspath(room), *options])
    return command(words, cwd=room / cwd, env=ENV)


@pytest.fixture
def room(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "room"
    directory.mkdir()
    return directory


def test_each_call_as_on_the_host(guests: pathlib.Path, room: pathlib.Path) -> None:
    outside = room.parent / "outside"
    outside.mkdir()
    expected = native([guests / "writes"], cwd=outside)
    assert expected.status == 0
    assert b"FAIL" not in expected.stdout
    got = in_vm([guests / "writes"], cwd=room, options=["--write", "."])
    assert (got.stdout, got.status, got.own_lines) == (expected.stdout, 0, [])
    assert shape(room) == shape(outside)


@pytest.mark.parametrize("seed", range(1, 1 + repeated(10, 1, short=1)))
def test_random_changes_end_as_on_the_host(room: pathlib.Path, seed: int) -> None:
    fill(room, 2, random.Random(5))
    outside = room.parent / "outside"
    subprocess.run(["cp", "-a", room, outside], check=True)
    words = ["/usr/bin/python3", os.fspath(OPERATIONS), str(seed), "1200", "host"]
    inside = in_vm(words, cwd=room, options=["--write", ".", "--read", os.fspath(OPERATIONS)])
    expected = native(words, cwd=outside)
    assert (inside.status, expected.status) == (0, 0), (inside.stderr, expected.stderr)
    pairs = zip(inside.stdout.splitlines(), expected.stdout.splitlines(), strict=True)
    differ = [pair for pair in pairs if pair[0] != pair[1]]
    assert not differ, differ[0]
    assert shape(room) == shape(outside)


def test_the_tools_of_every_day(room: pathlib.Path) -> None:
    (room / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hi"); }\n')
    (room / "Makefile").write_text("hello: hello.c\n\tgcc -o hello hello.c\n")
    script = """
        make -s && ./hello && sed -i s/hi/ho/ hello.c && sleep 0.01 && make -s && ./hello
        mkdir a && echo x > a/x && ln -s x a/l && cp -a a b && diff -r a b
        tar cf a.tar a && rm -rf a && tar xf a.tar && diff -r a b && mv b a/
        python3 - <<'END'
import sqlite3
base = sqlite3.connect("base")
base.execute("create table t (n)")
with base:
    base.executemany("insert into t values (?)", ((n,) for n in range(2000)))
with base:
    base.execute("delete from t where n > 99")
print(base.execute("select sum(n) from t").fetchone())
END
    """
    run = written(room, script)
    assert (run.status, run.stdout) == (0, b"hi\nho\n(4950,)\n"), run
    assert subprocess.run([room / "hello"], stdout=subprocess.PIPE).stdout == b"ho\n"
    there = sorted(path.name for path in room.iterdir())
    assert there == ["Makefile", "a", "a.tar", "base", "hello", "hello.c"]
    assert os.readlink(room / "a" / "b" / "l") == "x"


def test_a_virtual_environment(room: pathlib.Path) -> None:
    run = written(room, "python3 -m venv --without-pip env && env/bin/python -c 'print(6 * 7)'")
    assert (run.status, run.stdout) == (0, b"42\n"), run
    out = subprocess.run([room / "env/bin/python", "-c", "print(43)"], stdout=subprocess.PIPE)
    assert out.stdout == b"43\n"


def test_a_commit_and_what_git_would_run(room: pathlib.Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    git = ["git", "-c", "user.name=n", "-c", "user.email=a@b"]
    (room / "file").write_text("one\n")
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=room, check=True, env=ENV)
    before = (room / ".git" / "config").read_bytes()
    script = """
        echo two >> file; git -c user.name=n -c user.email=a@b commit -qam two
        git log --format=%s; git fsck
        ! git config core.fsmonitor 'touch /tmp/x' 2> /dev/null
        ! ln -s /tmp/x .git/hooks/pre-commit 2> /dev/null
        ! mv .git other 2> /dev/null
        ! ln .git/config other 2> /dev/null
        ! mkdir .vscode 2> /dev/null
        mkdir sub; mkdir sub/.git; ! touch sub/.git/config 2> /dev/null
        ! ln -s /tmp sub2 || mv sub2 ln; ! mv ln .git/hooks/post-commit 2> /dev/null; exit 7
    """
    run = written(room, script)
    assert (run.status, run.stdout) == (7, b"two\none\n"), run
    assert any("allow it with --write" in line and ".git" in line for line in run.own_lines)
    assert (room / ".git" / "config").read_bytes() == before
    hooks = [path.name for path in (room / ".git" / "hooks").iterdir()]
    assert all(name.endswith(".sample") for name in hooks)
    log = subprocess.run([*git, "log", "--format=%s"], cwd=room, stdout=subprocess.PIPE)
    assert log.stdout == b"two\none\n"
    run = written(room, "git config x.y z", "--write", os.fspath(room / ".git" / "config"))
    assert (run.status, b"y = z" in (room / ".git" / "config").read_bytes()) == (0, True), run


def test_a_tree_inside_of_the_overlay(room: pathlib.Path) -> None:
    """Its changes stay, those around it do not, and it stays where it is."""
    (room / "in" / "out").mkdir(parents=True)
    script = """
        echo kept > in/out/file; echo lost > in/file; cat in/out/file in/file
        ls in; stat -c %F in/out
        ! mv in/out moved 2> /dev/null; ! rmdir in/out 2> /dev/null; ! mv in moved 2> /dev/null
        ! ln in/out/file in/hard 2> /dev/null
        mv in/out/file in/file; ls -A in/out; echo again > in/out/again
        cd in/out; mkdir deep; cd deep; cd ../../..; pwd
    """
    words = kvmlet_argv(["/bin/sh", "-ec", script], ["--changes", "list", "--write", "in/out"])
    run = command(words, cwd=room, env=ENV)
    assert run.status == 0, run
    assert run.stdout.decode().split("\n")[:5] == ["kept", "lost", "file", "out", "directory"]
    assert run.stdout.endswith(f"\n{room}\n".encode())
    # Both changes of the overlay are told, none of the other tree.
    assert b"in/file" in run.stderr
    assert b"in/out" not in run.stderr
    there = sorted(os.fspath(path.relative_to(room)) for path in room.rglob("*"))
    assert there == ["in", "in/out", "in/out/again", "in/out/deep"]


def test_a_single_file(room: pathlib.Path) -> None:
    (room / "out").write_text("old")
    (room / "other").write_text("old")
    script = "echo new > out; echo new > other; cat other; ! rm out 2> /dev/null; chmod 600 out"
    run = command(kvmlet_argv(["/bin/sh", "-ec", script], ["--write", "out"]), cwd=room, env=ENV)
    assert (run.status, run.stdout) == (0, b"new\n"), run
    assert ((room / "out").read_text(), (room / "other").read_text()) == ("new\n", "old")
    assert stat.S_IMODE((room / "out").stat().st_mode) == 0o600


def test_links_lead_to_what_the_program_sees(room: pathlib.Path) -> None:
    """By a link in the tree nothing is reached that could not be reached without it."""
    secret = room.parent / "secret"
    secret.write_text("secret")
    (room / "out").symlink_to(secret)
    (room / "tmp").symlink_to("/tmp/made")
    before = state(secret.parent)
    script = "! cat out 2> /dev/null; ! echo x > out; echo in memory > tmp; cat /tmp/made; exit 3"
    run = written(room, script)
    assert (run.status, run.stdout) == (3, b"in memory\n"), run
    assert state(secret.parent) == before


def test_what_is_refused_names_the_option(room: pathlib.Path) -> None:
    other = room.parent / "other"
    other.mkdir()
    run = written(room, f"echo x > {other}/file", "--read", os.fspath(other))
    assert run.status == 2
    assert f"allow it with --write {other}" in run.own_lines[0]
    run = written(room, "mkfifo fifo")
    assert "EPERM" in run.own_lines[0]
    assert "regular files and directories" in run.own_lines[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--write", "/nosuch"], "--write: /nosuch is not there"),
        (["--write", "/"], "--write: / is a directory above your home directory"),
        (["--write", "/usr/lib"], "--write: /usr/lib is a system directory"),
        (["--write", "/tmp"], "--write: /tmp is the sandbox's own"),
        (["--write", "$HOME"], "is your home directory"),
        (["--read", ".", "--write", "."], "--read and --write both name ."),
        (["--allow-write", ".,/nosuch"], "--allow-write: /nosuch is not there"),
        (["--writ", "."], "did you mean --write?"),
        (["-v", "."], "-v: '.' is not HOST:GUEST"),
        (["-v", ".:/x:rx"], "-v: 'rx' is no mode"),
        (["-v", ".:x"], "-v: x is not absolute"),
        (["-v", "/nosuch:/x"], "-v: /nosuch is not there"),
        (["-v", "/usr:/x"], "-v: /usr is a system directory"),
        (["-v", ".:/usr/x:ro"], "-v: /usr is the host's and has no /usr/x"),
        (["-v", ".:/x", "--tmpfs", "/x"], "-v and --tmpfs both make /x"),
        (["--tmpfs", "/proc/x"], "cannot be made visible"),
    ],
)
def test_mistakes_are_one_line(room: pathlib.Path, options: list[str], says: str) -> None:
    home = room.parent / "home"
    home.mkdir()
    env = {**ENV, "HOME": os.fspath(home)}
    words = [word.replace("$HOME", os.fspath(home)) for word in options]
    run = command(kvmlet_argv(["true"], words), cwd=room, env=env)
    assert run.status == 125
    assert says in run.stderr.decode()
    assert run.stderr.count(b"\n") == 1


def test_a_full_disk_and_an_endless_write(room: pathlib.Path) -> None:
    script = "exec timeout 3 head -c 40G /dev/zero > big; exit 1"
    limited = ["prlimit", "--fsize=3000000", *kvmlet_argv(["sh", "-c", script], ["--write", "."])]
    run = command(limited, cwd=room, env=ENV)
    assert run.status != 0
    assert b"File too large" in run.stderr
    assert (room / "big").stat().st_size == 3_000_000
    words = kvmlet_argv(["sh", "-c", "yes > big"], ["--write", ".", "--timeout", "1s"])
    run = command(words, cwd=room, env=ENV)
    assert run.status == 124
    (room / "big").unlink()


def test_trees_at_other_places(room: pathlib.Path) -> None:
    data = room.parent / "data"
    data.mkdir()
    (data / "file").write_text("data\n")
    (data / ".envrc").write_text("mine\n")
    (room / "sub").mkdir()
    script = """
        cat /data/ro/file /one; ! touch /data/ro/new 2> /dev/null
        echo over > /data/ov/new; cat /data/ov/new; rm /data/ov/file; mv /data/ov/new /data/ov/n2
        echo kept > /data/rw/new; ! touch /data/rw/.envrc 2> /dev/null; mkdir /data/rw/d
        ! mv /data/rw/new /data/ov/ln 2> /dev/null || test ! -e /data/rw/new
        ls / | grep -x -e data -e one -e scratch; ls /data; ls -A /data/rw; ls /data/ov
        echo x > /scratch/a/x; cat /scratch/a/x; touch sub/gone; ls sub; ls -A /tmp/in
        cd /data/rw/d; pwd; cat ../../ro/file; ! rmdir /scratch/a 2> /dev/null
        ! mv sub other 2> /dev/null
    """
    d = os.fspath(data)
    options = ["-v", f"{d}:/data/ro:ro", "-v", f"{d}:/data/ov:overlay", "-v", f"{d}:/data/rw"]
    options += ["-v", f"{d}/file:/one:ro", "--tmpfs", "/scratch/a", "--tmpfs", f"{room}/sub"]
    options += ["-v", f"{d}:/tmp/in:ro"]
    run = command(kvmlet_argv(["/bin/sh", "-ec", script], options), cwd=room, env=ENV)
    expected = [
        *["data", "data", "over", "data", "one", "scratch", "ov", "ro", "rw"],
        *[".envrc", "d", "file", "d", "ln", "n2", "x", "gone", ".envrc", "d", "file"],
        *["/data/rw/d", "data"],
    ]
    assert (run.status, run.stdout.decode().split()) == (0, expected), run
    assert sorted(os.listdir(data)) == [".envrc", "d", "file"]
    assert os.listdir(room / "sub") == []


SERVICE = """
import kvmlet_guest as guest
log = open("log", "a")
count = 0
while True:
    guest.receive()
    count += 1
    print(count, file=log, flush=True)
    open(f"made-{count}", "w").close()
    guest.send(b"%d" % count)
"""


def test_forks_of_a_frozen_program(room: pathlib.Path) -> None:
    """They share the tree, by descriptors from before the freeze too, and no reset undoes it."""
    (room / "service.py").write_text(SERVICE)
    argv = ["/usr/bin/python3", "service.py"]
    with (
        kvmlet.Sandbox(argv, cwd=room, write=[room]).until_ready(HANG_S).freeze() as snapshot,
        snapshot.fork() as one,
        snapshot.fork() as two,
    ):
        for fork in (one, two, one):
            assert fork.request(b"", timeout=HANG_S) == b"1"
            fork.reset()
        assert two.request(b"", timeout=HANG_S) == b"1"
        assert two.request(b"", timeout=HANG_S) == b"2"
    assert (room / "log").read_text() == "1\n" * 4 + "2\n"
    assert sorted(os.listdir(room)) == ["log", "made-1", "made-2", "service.py"]
    with pytest.raises(kvmlet.UsageError, match="which programs do not get to change"):
        kvmlet.Sandbox(argv, cwd=room, write=["/usr"])


def test_the_library_and_a_reset(room: pathlib.Path) -> None:
    result = kvmlet.run("echo run > run", shell=True, cwd=room, write=[room])
    assert (result.exit_code, (room / "run").read_text()) == (0, "run\n")
    with pytest.raises(kvmlet.UsageError, match="both name"):
        kvmlet.run(["true"], read=[room], write=[room])
    with kvmlet.Box(write=[room]) as box:
        appended = f"exec 3>> {room}/log; echo one >&3; sleep 100 & echo started"
        assert box.run(appended, shell=True, text=True).stdout == "started\n"
        left, right = box.fork(2)
        for fork in (left, right, box):
            fork.run(f"echo forked >> {room}/log", shell=True, check=True)
        box.run(f"mkdir {room}/new; echo x > {room}/new/x; touch /tmp/x", shell=True, check=True)
        box.reset()
        there = box.run(f"ls /tmp {room}; cat {room}/log", shell=True, text=True).stdout
        assert there.split()[there.split().index(f"{room}:") :] == [
            f"{room}:",
            "log",
            "new",
            "run",
            "one",
            *["forked"] * 3,
        ]
        left.close()
        right.close()
    assert (room / "new" / "x").read_text() == "x\n"
