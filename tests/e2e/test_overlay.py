"""The current directory can be changed as on the host, and the host's stays as it is."""

from __future__ import annotations

import hashlib
import os
import pathlib
import random
import shutil
import socket
import subprocess

import pytest

from e2e.oracle import ENV, HW, NO_RUNTIMES, command, in_vm, kvmlet_argv, repeated

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

OPERATIONS = pathlib.Path(__file__).parent / "overlay_ops.py"


def fill(directory: pathlib.Path, depth: int, chance: random.Random) -> None:
    directory.mkdir(exist_ok=True)
    for number in range(4):
        size = chance.choice([0, 5, 4096, 5000, 30_000, 80_000])
        (directory / f"f{number}").write_bytes(chance.randbytes(size))
    (directory / "ln").symlink_to("f0")
    os.link(directory / "f1", directory / "hard")
    with (directory / "sparse").open("wb") as file:
        file.truncate(200_000)
    for name in ("a", "b", "c") if depth else ():
        fill(directory / name, depth - 1, chance)


def state(tree: pathlib.Path) -> list[object]:
    """All that is in a tree, times and numbers included."""
    found: list[object] = []
    for path, directories, files in os.walk(tree):
        for name in [".", *sorted(directories + files)]:
            full = os.path.join(path, name)
            there = os.lstat(full)
            told: list[object] = [full, there.st_mode, there.st_ino, there.st_nlink]
            told += [there.st_size, there.st_mtime_ns, there.st_ctime_ns]
            if os.path.islink(full):
                told.append(os.readlink(full))
            elif os.path.isfile(full):
                with open(full, "rb") as file:
                    told.append(file.read(1 << 20))
            told += os.listxattr(full, follow_symlinks=False)
            found.append(told)
    return found


@pytest.fixture
def room(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "room"
    fill(directory, 2, random.Random(5))
    return directory


@pytest.mark.parametrize("seed", range(1, 1 + repeated(5, 1, short=1)))
def test_random_changes_end_as_on_the_host(room: pathlib.Path, seed: int) -> None:
    native = room.parent / "native"
    subprocess.run(["cp", "-a", room, native], check=True)
    before = state(room)
    words = ["/usr/bin/python3", os.fspath(OPERATIONS), str(seed), "5000"]
    inside = in_vm(words, cwd=room)
    outside = command(words, cwd=native)
    assert (inside.status, outside.status) == (0, 0), (inside.stderr, outside.stderr)
    ours, theirs = inside.stdout.splitlines(), outside.stdout.splitlines()
    differ = [pair for pair in zip(ours, theirs, strict=False) if pair[0] != pair[1]]
    assert not differ, differ[0]
    assert len(ours) == len(theirs)
    assert state(room) == before


# As unionmount-testsuite and xfstests (overlay/) have them, each on names that the host has.
CASES = """
import ctypes, mmap, os, shutil
libc = ctypes.CDLL(None, use_errno=True)
def renameat2(old, new, flags):
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")
NOREPLACE, EXCHANGE = 1, 2
def tried(what, *args):
    try: return what(*args)
    except OSError as error: return error.errno
def text(path): return tried(lambda: open(path).read())
def tree(top):
    found = []
    for path, dirs, files in os.walk(top):
        dirs.sort()
        found += [(os.path.relpath(os.path.join(path, name), top), text(os.path.join(path, name)))
            for name in sorted(dirs + files)]
    return found
for name in ("d/sub/deep", "e/sub", "empty"):
    os.path.isdir(name) or print("no", name)
# whiteouts, and what comes in their place
os.unlink("d/f"); print(sorted(os.listdir("d")), text("d/f"), tried(os.unlink, "d/f"))
open("d/f", "x").write("anew"); print(text("d/f"), sorted(os.listdir("d")))
os.unlink("d/f"); os.mkdir("d/f"); print(os.listdir("d/f")); os.rmdir("d/f")
os.symlink("g", "d/f"); print(text("d/f")); os.unlink("d/f"); print(tried(os.lstat, "d/f"))
print(tried(os.rmdir, "d")); os.rmdir("empty"); os.mkdir("empty"); print(os.listdir("empty"))
# opaque directories: nothing of the host's shows in what is made anew
shutil.rmtree("d/sub"); os.mkdir("d/sub"); print(os.listdir("d/sub"), tried(os.stat, "d/sub/deep"))
open("d/sub/own", "w").close(); os.mkdir("d/sub/deep"); print(tree("d"))
# renames of directories, over each other, and back
os.rename("e", "moved"); print(tree("moved"), tried(os.stat, "e")); os.mkdir("e"); print(tree("e"))
os.rename("moved/sub", "e/sub"); print(tree("e"), tree("moved"))
print(tried(os.rename, "moved", "e")); os.rmdir("empty"); os.mkdir("empty")
os.rename("moved", "empty"); print(tree("empty"), tried(os.rename, "empty", "empty/x"))
os.rename("empty", "moved"); os.rename("moved", "e2"); print(tree("e2"))
print(tried(os.rename, "f0", "e2"), tried(os.rename, "e2", "f0"))
# renameat2: an exchange of what is the host's with what is not
open("new", "w").write("new"); renameat2("new", "f0", EXCHANGE); print(text("new"), text("f0"))
renameat2("d", "e2", EXCHANGE); print(tree("d"), tree("e2")); renameat2("d", "f0", EXCHANGE)
print(text("d"), tree("f0")); renameat2("d", "f0", EXCHANGE)
print(tried(renameat2, "f0", "f1", NOREPLACE), tried(renameat2, "f1", "f9", NOREPLACE), text("f9"))
# links: names of one file of the host's
print(os.stat("one").st_nlink, os.path.samefile("one", "two"))
open("two", "a").write("+"); print(text("one"), os.path.samefile("one", "two"))
os.link("one", "three"); os.unlink("one"); print(os.stat("two").st_nlink, text("three"))
os.rename("three", "two"); print(text("two"), os.path.lexists("three"))
os.link("g", "g2"); open("g2", "w").write("by its other name"); print(text("g"))
# listings while names come and go
names = [f"many/{n}" for n in range(50)]; seen = []
with os.scandir("many") as entries:
    for at, entry in enumerate(entries):
        seen.append(entry.name)
        if at == 0:
            for name in names[::2]: tried(os.unlink, name)
            open("many/late", "w").close()
kept = {str(n) for n in range(1, 50, 2)}; print(kept <= set(seen), len(seen) == len(set(seen)))
print(sorted(os.listdir("many")) == sorted([*kept, "late"]))
# mappings and descriptors from before the first change
fd = os.open("mapped", os.O_RDONLY)
private = mmap.mmap(fd, 8192, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
private[0:3] = b"own"
with open("mapped", "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8192); shared[4096:4099] = b"new"; shared.flush()
    file.write(b"by"); file.flush(); print(shared[0:3], os.pread(fd, 3, 0), os.pread(fd, 3, 4096))
print(private[0:3]); os.rename("mapped", "renamed"); print(os.pread(fd, 2, 0), text("renamed")[:3])
os.unlink("renamed"); print(os.fstat(fd).st_nlink, os.pread(fd, 2, 0), shared[4096:4099])
os.truncate("f1" if os.path.exists("f1") else "f9", 1); print(text("f9"))
# attributes of what has not changed otherwise
before = os.stat("kept"); os.utime("kept", ns=(1, 2)); os.chmod("kept", 0o600)
after = os.stat("kept")
print(before.st_ino == after.st_ino, after.st_mtime_ns, oct(after.st_mode), text("kept"))
"""


def test_the_cases_of_overlayfs(room: pathlib.Path) -> None:
    tree = room.parent / "cases"
    for name in ("d/sub/deep", "e/sub", "empty", "many"):
        (tree / name).mkdir(parents=True)
    for name in ("d/f", "d/g", "d/sub/deep/x", "e/sub/y", "e/z", "f0", "f1", "g", "one", "kept"):
        (tree / name).write_text(f"of {name}")
    for number in range(50):
        (tree / "many" / str(number)).touch()
    os.link(tree / "one", tree / "two")
    (tree / "mapped").write_bytes(b"old" * 4096)
    native = room.parent / "native"
    subprocess.run(["cp", "-a", tree, native], check=True)
    before = state(tree)
    words = ["/usr/bin/python3", "-c", CASES]
    outside, inside = command(words, cwd=native), in_vm(words, cwd=tree)
    assert (outside.status, outside.stderr) == (0, b"")
    assert (inside.status, inside.guest_stderr) == (0, b"")
    assert inside.stdout.decode().splitlines() == outside.stdout.decode().splitlines()
    assert state(tree) == before


def in_shell(room: pathlib.Path, script: str, options: list[str] | None = None) -> str:
    """The output of a script; the host's tree is the same before and after."""
    before = state(room)
    words = kvmlet_argv(["/bin/sh", "-ec", script], options or [])
    run = command(words, cwd=room, env=ENV)
    assert run.status == 0, run
    assert state(room) == before
    return run.stdout.decode()


def test_the_tools_of_every_day(room: pathlib.Path) -> None:
    (room / "hello.c").write_text('#include <stdio.h>\nint main(void) { puts("hi"); }\n')
    (room / "Makefile").write_text("hello: hello.c\n\tgcc -o hello hello.c\n")
    script = """
        make -s && ./hello
        sed -i s/hi/ho/ hello.c && sleep 0.01 && make -s && ./hello
        mkdir copy && cp -a a copy/ && diff -r a copy/a
        tar cf a.tar a && rm -rf a && tar xf a.tar && diff -r a copy/a
        mv b copy/b && test ! -e b && ls copy/b/c
        echo 'def f(): return 1' > m.py
        python3 -c 'import m; print(m.f())' && ls __pycache__/m.*.pyc
        rm -rf copy && test ! -e copy && mkdir b && ls -A b
    """
    lines = in_shell(room, script).split("\n")
    assert lines[:2] == ["hi", "ho"]
    assert "1" in lines


def test_git_in_a_subfolder_of_a_work_tree(room: pathlib.Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    git = ["git", "-c", "user.name=n", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], cwd=room, check=True, env=ENV)
    before = state(room)
    script = """
        git config user.name n; git config user.email a@b
        echo more >> f0; rm f1; echo new > new
        git status --short; git add -A .; git commit -qm two; git log --format=%s; git fsck
    """
    run = command(kvmlet_argv(["/bin/sh", "-ec", script]), cwd=room / "a", env=ENV)
    assert (run.status, run.stdout) == (0, b" M f0\n D f1\n?? new\ntwo\none\n"), run
    assert state(room) == before


def test_open_files_see_what_is_changed_later(room: pathlib.Path) -> None:
    (room / "file").write_bytes(b"old")
    code = (
        "import os\n"
        "fd = os.open('file', os.O_RDONLY)\n"
        "number = os.fstat(fd).st_ino\n"
        "open('file', 'a').write(' and new')\n"
        "print(os.pread(fd, 99, 0), os.stat('file').st_ino == number)\n"
        "os.unlink('file'); print(os.fstat(fd).st_nlink, os.pread(fd, 3, 0))\n"
        "print(os.readlink(f'/proc/self/fd/{fd}').endswith('file (deleted)'))\n"
    )
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room)
    assert run.stdout == b"b'old and new' True\n0 b'old'\nTrue\n", run


def test_one_file_system_before_and_after_a_change(room: pathlib.Path) -> None:
    code = (
        "import os\n"
        "def told():\n"
        "    return os.statvfs('f0').f_flag, os.stat('f0').st_dev, os.access('f0', os.W_OK)\n"
        "before = told(); open('f0', 'a').write('x'); print(before == told(), before[0] & 1)\n"
        "os.symlink('f0', 'link'); fd = os.open('link', os.O_PATH | os.O_NOFOLLOW)\n"
        "try: os.open(f'/proc/self/fd/{fd}', os.O_RDONLY)\n"
        "except OSError as error: print(error.errno)\n"
    )
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room)
    assert run.stdout == b"True 0\n40\n", run


def test_a_big_file_costs_what_is_written(room: pathlib.Path) -> None:
    with (room / "big").open("wb") as file:
        file.truncate(1 << 40)
    script = """
        chmod 600 big; mv big bigger; ln bigger other
        printf x | dd of=bigger bs=1 seek=500000000000 conv=notrunc status=none
        dd if=other bs=1 skip=500000000000 count=1 status=none; stat -c %s bigger
    """
    assert in_shell(room, script, ["--memory", "32m"]) == f"x{1 << 40}\n"


def test_holes_in_a_file_of_the_host(room: pathlib.Path) -> None:
    bytes_before = random.Random(3).randbytes(20 << 20)
    (room / "big").write_bytes(bytes_before)
    holes = [(5000, 20_000), (8_000_000, 4_000_000), (100, 50), ((20 << 20) - 9000, 1 << 30)]
    script = "".join(f"fallocate -p -o {at} -l {length} big\n" for at, length in holes)
    expected = bytearray(bytes_before)
    for at, length in holes:
        end = min(at + length, len(expected))
        expected[at:end] = bytes(end - at)
    native = room.parent / "native"
    shutil.copytree(room, native, symlinks=True)
    subprocess.run(["sh", "-ec", script], cwd=native, check=True)
    assert (native / "big").read_bytes() == expected
    told = in_shell(room, script + "sha256sum big")
    assert told.split()[0] == hashlib.sha256(expected).hexdigest()


def test_what_is_no_file_can_be_moved_and_removed(room: pathlib.Path) -> None:
    os.mkfifo(room / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        previous = os.getcwd()
        os.chdir(room)
        try:
            listener.bind("socket")
        finally:
            os.chdir(previous)
    script = """
        mv socket s && test -S s && rm s && (cat fifo & echo through > fifo; wait)
        mv fifo f && test -p f && rm f
    """
    assert in_shell(room, script) == "through\n"


def test_trees_without_end_and_names_of_all_kinds(room: pathlib.Path) -> None:
    (room / "out").symlink_to("/etc/shadow")
    (room / "up").symlink_to("../..")
    code = (
        "import os\n"
        "for number in range(3000):\n"
        "    open(f'{number}\\n\\x1b[31m', 'w').close(); os.unlink(f'{number}\\n\\x1b[31m')\n"
        "for number in range(300):\n"
        "    os.mkdir('deep'); os.chdir('deep')\n"
        "print(len(os.getcwd()))\n"
        "for action in (lambda: open('/proc/self/cwd/../../out', 'a'),\n"
        "               lambda: os.rename('..', 'x'), lambda: os.rename('../../deep', 'x')):\n"
        "    try: action()\n"
        "    except OSError as error: print(type(error).__name__)\n"
    )
    before = state(room)
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room, options=["--memory", "64m"])
    assert run.status == 0, run
    assert run.stdout.splitlines()[0] == str(len(os.fspath(room)) + 300 * 5).encode()
    for path in ("out", "up/../usr/x", "/usr/x"):
        run = in_vm(["/bin/sh", "-c", f"echo x > {path}"], cwd=room)
        assert run.status == 2, (path, run)
    assert state(room) == before


@pytest.mark.parametrize("inside", [".", "project"])
def test_the_home_directory_is_never_shown(tmp_path: pathlib.Path, inside: str) -> None:
    (tmp_path / "project" / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_text("hidden")
    (tmp_path / ".git").mkdir()
    script = f"pwd; cat {tmp_path}/secret; touch new; ls"
    env = {**ENV, "HOME": os.fspath(tmp_path)}
    run = command(kvmlet_argv(["/bin/sh", "-c", script]), cwd=tmp_path / inside, env=env)
    assert b"hidden" not in run.stdout
    if inside == ".":
        assert run.stdout == b"/tmp\nnew\n"
        assert "your home directory" in run.own_lines[0], run
    else:
        assert run.stdout == f"{tmp_path}/project\ndeep\nnew\n".encode()
    assert not list(tmp_path.glob("**/new"))


def test_a_work_tree_is_shown_as_a_whole(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tree" / ".git").mkdir(parents=True)
    (tmp_path / "tree" / "sub").mkdir()
    (tmp_path / "beside").write_text("hidden")
    run = in_vm(["/bin/sh", "-c", "ls -A ..; ls ../.."], cwd=tmp_path / "tree" / "sub")
    assert run.stdout == b".git\nsub\ntree\n", run


def test_changes_are_counted_or_named(room: pathlib.Path) -> None:
    (room / "gone").mkdir()
    script = """
        echo more >> f0; chmod 600 f1; rm f2; rmdir gone; mkdir new; touch new/a; mv a moved
        echo x > "$(printf 'b/\\033[31m\\nx')"; cat f3 > /tmp/f3; cat /tmp/f3 > f3; touch ln
        cat b/f1 >/dev/null; chmod 644 b/f0; ls -R b > /dev/null; exec 3>>b/f2
        mkdir __pycache__; echo > __pycache__/m.pyc
    """
    run = in_vm(["/bin/sh", "-ec", script], cwd=room, options=["--changes", "list"])
    assert run.stderr.decode().splitlines() == [
        " A __pycache__/",
        " D a",
        " A b/\\x1b[31m\\x0ax",
        " M f0",
        " M f1",
        " D f2",
        " D gone",
        " A moved/",
        " A new/",
    ]
    run = in_vm(["/bin/sh", "-ec", script], cwd=room)
    assert b"8 changes are not kept" in run.stderr, run
    run = in_vm(["/bin/sh", "-ec", script], cwd=room, options=["-q"])
    assert run.stderr == b""
    run = in_vm(["/bin/sh", "-c", "mkdir __pycache__; touch /tmp/x"], cwd=room)
    assert run.stderr == b""
    run = in_vm(["true"], cwd=room, options=["--changes", "kept"])
    assert (run.status, b"'kept' is not one of" in run.stderr) == (125, True)


def test_a_file_that_is_only_cut_off_has_changed(room: pathlib.Path) -> None:
    (room / "long").write_bytes(bytes(8192))
    run = in_vm(["truncate", "-s", "4096", "long"], cwd=room, options=["--changes", "list"])
    assert (run.status, run.stderr) == (0, b" M long\n")


def test_a_great_many_changes_are_cut(room: pathlib.Path) -> None:
    """The program has ended by then: its limits do not count any more."""
    deep = "/".join(["d" * 200] * 15)
    (room / deep).mkdir(parents=True)
    code = f"import os\nos.chdir({deep!r})\nfor i in range(3000): os.mknod(f'{{i:0240}}')"
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room, options=["--timeout", "60s"])
    assert run.status == 0
    assert b"more than" in run.stderr, run
    assert b"changes are not kept" in run.stderr, run


def test_truncated_files_are_closed_again(room: pathlib.Path) -> None:
    for number in range(300):
        (room / f"t{number}").write_text("text\n")
    code = "import os\nfor i in range(300): os.truncate(f't{i}', 2)\nprint(open('t299').read())"
    run = command(
        ["prlimit", "--nofile=256:256", *kvmlet_argv(["/usr/bin/python3", "-c", code])], cwd=room
    )
    assert (run.status, run.stdout) == (0, b"te\n"), run


def test_a_changed_file_shows_no_bytes_of_another(room: pathlib.Path) -> None:
    """The host may give its name to another file, whose bytes the program has never seen."""
    (room / "file").write_bytes(b"mine")
    (room / "other").write_bytes(b"theirs")
    code = (
        "import os\n"
        "os.chmod('file', 0o600); print('changed', flush=True); input()\n"
        "try: print(open('file').read())\n"
        "except OSError as error: print(os.strerror(error.errno))\n"
    )
    with subprocess.Popen(
        kvmlet_argv(["/usr/bin/python3", "-c", code]),
        cwd=room,
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "changed\n"
        (room / "other").replace(room / "file")
        assert running.communicate("\n", timeout=60)[0] == "Stale file handle\n"


def test_a_rename_cannot_lengthen_paths_for_nothing(room: pathlib.Path) -> None:
    """Each open description remembers its path, which is charged as it grows."""
    code = """
import errno, os
os.mkdir("/tmp/a")
open("/tmp/a/f", "w").close()
held = [os.open("/tmp/a/f", os.O_RDONLY) for _ in range(1000)]
os.chdir("/tmp")
for _ in range(240):
    os.mkdir("d" * 250)
    os.chdir("d" * 250)
try:
    os.rename("/tmp/a", "x")
except OSError as error:
    print(errno.errorcode[error.errno])
print(os.path.exists("/tmp/a/f"))
for fd in held[10:]:
    os.close(fd)
os.rename("/tmp/a", "x")
print(os.stat(held[0]).st_nlink, os.path.exists("x/f"))
os.rename("x", "/tmp/a")
"""
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room, options=["-m", "48m"])
    assert run.stdout.decode().split() == ["ENOMEM", "True", "1", "True"], run


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_over_files_of_others(tmp_path: pathlib.Path, vm: None) -> None:
    """It changes the tree as natively, and reads no more of the host than the mode bits allow."""
    room = tmp_path / "room"
    (room / "closed").mkdir(parents=True)
    for name in ("f", "secret", "closed/inside"):
        (room / name).write_text("old\n")
    (room / "secret").chmod(0o600)
    (room / "closed").chmod(0o700)
    for name in ("", "f", "secret", "closed", "closed/inside"):
        os.chown(room / name, 1000, 1000)
    script = """
        echo new > new; echo more >> f; chown 2000:3000 f; chmod 600 f
        cat f; stat -c %a,%u,%g f new
        for path in secret closed/inside; do cat $path; chmod 666 $path; chown 0 $path; done 2>&1
        cat secret closed/inside 2>&1; ls closed 2>&1; chmod 777 closed 2>&1; echo own > secret
    """
    run = in_vm(["bash", "-c", script], cwd=room)
    lines = run.stdout.decode().splitlines()
    assert lines[:4] == ["old", "more", "600,2000,3000", "644,0,0"]
    assert len(lines) == 14
    for line in lines[4:]:
        assert "Permission denied" in line or "Operation not permitted" in line, line
    assert b"secret: Permission denied" in run.stderr
    assert (room / "f").read_text() == "old\n"
