"""Trees that a guest may change: nothing outside is changed, whatever it and the host do there."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import stat
import tempfile
import threading
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, command, kvmlet_argv, repeated
from e2e.test_overlay import state
from escape.bounded import bounded
from escape.protected_names import KEPT, LEFT_OUT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.default_mode, pytest.mark.usefixtures("vm")]


@pytest.fixture
def top() -> Iterator[pathlib.Path]:
    """A directory outside of /tmp, where names beside a tree would be the sandbox's own."""
    with tempfile.TemporaryDirectory(prefix="kvmlet-writes-", dir="/var/tmp") as name:
        yield pathlib.Path(name)


@pytest.fixture
def places(top: pathlib.Path, hostile: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """A tree that a guest may change, with special files in it, and one that it may not."""
    inside, outside = top / "inside", top / "outside"
    inside.mkdir()
    outside.mkdir()
    outside.chmod(0o777)
    (outside / "file").write_text("what-no-guest-may-change")
    (outside / "file").chmod(0o666)
    os.mkfifo(inside / "its-fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(inside / "its-socket"))
    shutil.copy(hostile / "writeout", top)
    return inside, outside


def swap(inside: pathlib.Path, outside: pathlib.Path, over: threading.Event) -> None:
    """Has names of the tree lead out for a moment each, as another process of the host's may."""
    while not over.is_set():
        try:
            os.rename(inside / "dir", inside / "kept")
            os.symlink(outside, inside / "dir")
            os.unlink(inside / "dir")
            os.rename(inside / "kept", inside / "dir")
        except OSError:
            # The guest does the same.
            shutil.rmtree(inside / "kept", ignore_errors=True)


@pytest.mark.parametrize("shown", ["hidden", "readable", "swapped"])
def test_nothing_else_is_changed(places: tuple[pathlib.Path, pathlib.Path], shown: str) -> None:
    inside, outside = places
    before = state(outside)
    above = sorted(os.listdir(inside.parent))
    options = ["--write", "."]
    if shown == "readable":
        options += ["--read", os.fspath(outside)]
    over = threading.Event()
    swapping = threading.Thread(target=swap, args=(inside, outside, over))
    if shown == "swapped":
        swapping.start()
    try:
        rounds = str(repeated(3000, 20, short=150))
        guest = inside.parent / "writeout"
        run = bounded([guest, outside / "file", rounds], cwd=inside, options=options)
    finally:
        over.set()
        if shown == "swapped":
            swapping.join()
    assert run.status == 0, run.said
    assert run.stdout.endswith(b" attempts\n"), run.said
    if shown != "swapped":
        assert b"FAIL" not in run.stdout, run.said
    assert state(outside) == before
    assert sorted(os.listdir(inside.parent)) == above
    special = [path for path in inside.rglob("*") if not path.is_symlink()]
    special = [path for path in special if not (path.is_file() or path.is_dir())]
    assert sorted(path.name for path in special) == ["its-fifo", "its-socket", "socket"]
    # A name that leads nobody to the guest, while it runs or later.
    made = inside / "socket"
    assert stat.S_ISSOCK(made.lstat().st_mode)
    assert made.lstat().st_mode & 0o7000 == 0


def test_protected_names_by_every_way(tmp_path: pathlib.Path) -> None:
    tree = tmp_path / "tree"
    (tree / ".git" / "hooks").mkdir(parents=True)
    (tree / ".git" / "config").write_text("mine")
    (tree / ".vscode").mkdir()
    (tree / ".vscode" / "tasks.json").write_text("mine")
    (tree / ".envrc").write_text("mine")
    before = state(tree)
    script = r"""
        tried() { if "$@" 2> /dev/null; then echo "FAIL $*"; fi; }
        t=$PWD
        tried sh -c 'echo x >> .envrc'; tried sh -c 'echo x > .git/../.envrc'
        tried ln .envrc e; tried mv .envrc e; tried rm -f .envrc; tried chmod 777 .envrc
        tried touch .envrc; tried truncate -s 0 .envrc; tried cp /usr/bin/env .EnvRC
        tried ln -s x .ENVRC; tried mkdir .Idea; tried touch .vscode/new; tried rmdir .vscode
        tried mv .git g; tried mv .git/hooks h; tried ln -s x .git/hooks/post-merge
        tried sh -c 'echo x > .git/hooks/pre-commit'; tried cp /usr/bin/env .git/Config
        tried sh -c 'cd .git; echo x >> config'
        tried sh -c 'exec 3< .git/config; echo x > /proc/self/fd/3'
        mkdir a; mkdir a/hooks; touch a/hooks/pre-commit
        tried mv a/hooks/pre-commit .git/hooks/; tried mv a .git/hooks; tried mv a .git/hooks/x
        mkdir -p b/c; tried mv -T b .git; mv b/c b/d; tried mv -T b/d b/.git
        tried ln -s ../a/hooks b/.git; rm -r a b
        python3 - <<'END'
import os
libc = __import__("ctypes").CDLL(None)
fd = os.open(".git", os.O_RDONLY)
def tried(call, *args, **names):
    try: call(*args, **names)
    except OSError: return
    print("FAIL", call, args)
tried(os.open, "config", os.O_WRONLY, dir_fd=fd)
tried(os.unlink, "config", dir_fd=fd)
tried(os.rename, "config", "x", src_dir_fd=fd, dst_dir_fd=fd)
tried(os.link, "config", "x", src_dir_fd=fd, dst_dir_fd=fd)
tried(os.utime, "config", dir_fd=fd)
tried(os.fchmod, os.open("config", os.O_RDONLY, dir_fd=fd), 0o777)
os.mkdir("x"); os.mkdir("x/y")
if libc.renameat2(-100, b"x", -100, b".git", 2) == 0: print("FAIL exchange")
if libc.renameat2(-100, b"x/y", -100, b".git/hooks", 2) == 0: print("FAIL exchange")
os.rmdir("x/y"); os.rmdir("x")
END
    """
    words = kvmlet_argv(["/bin/sh", "-ec", script], ["--write", "."])
    run = command(words, cwd=tree, env=ENV)
    assert (run.status, run.stdout) == (0, b""), run
    times = [(path.name, path.read_text()) for path in tree.rglob("*") if path.is_file()]
    assert sorted(times) == [(".envrc", "mine"), ("config", "mine"), ("tasks.json", "mine")]
    names = sorted(os.fspath(path.relative_to(tree)) for path in tree.rglob("*"))
    assert names == [".envrc", ".git", ".git/config", ".git/hooks", ".vscode", ".vscode/tasks.json"]
    after = {told[0]: told[:-1] for told in state(tree)}
    for told in before:
        if told[0].endswith((".envrc", "config", "tasks.json")):
            assert after[told[0]] == told[:-1]


def test_the_names_are_those_of_kept_changes(tmp_path: pathlib.Path) -> None:
    code = """
import os, sys
for path in sys.argv[1:]:
    try:
        os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except OSError:
        continue
    print(path)
"""
    words = kvmlet_argv(["python3", "-c", code, *LEFT_OUT, *KEPT], ["--write", "."])
    run = command(words, cwd=tmp_path, env=ENV)
    assert (run.status, run.stdout.decode().splitlines()) == (0, KEPT), run
    made = {os.fspath(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert made == set(KEPT)


def test_repositories_of_any_name(tmp_path: pathlib.Path) -> None:
    """Git obeys what is in a directory with HEAD, objects and refs, and what a file .git names."""
    tree = tmp_path / "tree"
    for name in (
        "own.git/hooks",
        "own.git/objects",
        "own.git/refs",
        "lib",
        "most/hooks",
        "most/refs",
    ):
        (tree / name).mkdir(parents=True)
    for name in ("own.git/HEAD", "own.git/config", "lib/.git", "most/HEAD", "most/config"):
        (tree / name).write_text("mine")
    (tree / ".git" / "modules" / "lib").mkdir(parents=True)
    before = {str(told[0]) for told in state(tree)}
    script = r"""
        tried() { if "$@" 2> /dev/null; then echo "FAIL $*"; fi; }
        tried sh -c 'echo x > own.git/config'; tried touch own.git/hooks/update
        tried rm own.git/HEAD; tried mv own.git/objects o; tried ln -s /tmp own.git/hooks/d
        tried mv own.git/hooks h; tried sh -c 'echo x > lib/.git'; tried rm lib/.git
        tried mv lib/.git x; tried truncate -s 0 lib/.git; tried touch lib/.git
        tried mkdir most/objects; tried ln -s /tmp most/objects; tried mkdir most/Objects
        tried touch most/commondir; tried ln -s /tmp .git/modules/own; tried mv .git/modules m
        tried mv .git/modules/lib l; mkdir evil; tried mv evil .git/modules/evil
        mkdir evil/hooks; echo x > evil/hooks/post-checkout; echo x > evil/config
        tried mv -T evil .git; tried mv -T evil/hooks own.git/hooks; tried mv evil .git/modules/
        mkdir evil/o; tried mv evil/o most/objects; touch evil/HEAD; tried mv -T evil/o evil/objects
        tried mkdir evil/objects; tried cp -r evil/o evil/objects; rm evil/HEAD
        mkdir evil/objects; tried touch evil/HEAD; tried ln -s x evil/HEAD
        tried ln evil/config evil/HEAD; tried mv evil/config evil/HEAD
        python3 - <<'END'
import ctypes
libc = ctypes.CDLL(None)
if libc.renameat2(-100, b"evil", -100, b".git/modules/lib", 2) == 0: print("FAIL exchange")
END
        rm -r evil; mkdir bare bare/objects bare/refs; touch bare/HEAD bare/HEAD.lock
        mv bare/HEAD.lock bare/HEAD; mkdir bare/hooks; touch bare/hooks/update.sample
        tried touch bare/config; tried touch bare/hooks/update; touch bare/refs/hooks
    """
    words = kvmlet_argv(["/bin/sh", "-c", script], ["--write", "."])
    run = command(words, cwd=tree, env=ENV)
    assert (run.status, run.stdout) == (0, b""), run
    shutil.rmtree(tree / "bare")
    assert {str(told[0]) for told in state(tree)} == before
    for name in ("own.git/HEAD", "own.git/config", "lib/.git", "most/HEAD", "most/config"):
        assert (tree / name).read_text() == "mine"


def test_a_repository_behind_the_back_of_a_descriptor(tmp_path: pathlib.Path) -> None:
    """A descriptor of its directory keeps an old path when it moves in another view of the tree."""
    data, here = tmp_path / "data", tmp_path / "here"
    here.mkdir()
    for name in ("own.git/hooks", "own.git/objects"):
        (data / name).mkdir(parents=True)
    for name in ("own.git/HEAD", "own.git/config"):
        (data / name).write_text("mine")
    code = """
import os
fd, hooks = os.open('/b/own.git', os.O_RDONLY), os.open('/b/own.git/hooks', os.O_RDONLY)
os.rename('/a/own.git', '/a/other'); os.makedirs('/a/own.git/hooks')
for name, at in (('config', fd), ('new', hooks)):
    try: os.write(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=at), b'evil')
    except OSError: continue
    print('FAIL', name)
try: os.rename('HEAD', 'x', src_dir_fd=fd, dst_dir_fd=fd); print('FAIL HEAD')
except OSError: pass
"""
    options = ["-v", f"{data}:/a", "-v", f"{data}:/b"]
    run = command(kvmlet_argv(["python3", "-c", code], options), cwd=here, env=ENV)
    assert (run.status, run.stdout) == (0, b""), run
    assert (data / "other" / "config").read_text() == "mine"
    assert os.listdir(data / "other" / "hooks") == []


def test_no_set_id_bits(tmp_path: pathlib.Path) -> None:
    """By them another user of the host would act as the caller."""
    (tmp_path / "own").write_text("old")
    (tmp_path / "own").chmod(0o4755)
    code = """
import os
def tried(call, *words):
    try: call(*words)
    except PermissionError: return
    print('FAIL', call, words)
open('file', 'w').close()
tried(os.chmod, 'file', 0o4755)
tried(os.chmod, 'file', 0o2755)
tried(os.fchmod, os.open('file', os.O_RDONLY), 0o6755)
tried(os.open, 'new', os.O_CREAT | os.O_WRONLY, 0o4755)
tried(os.mknod, 'node', 0o104755)
os.mkdir('directory'); os.chmod('directory', 0o2775)
os.chmod('own', 0o4700)
with open('own', 'r+') as file: file.write('new')
"""
    words = kvmlet_argv(["python3", "-c", code], ["--write", "."])
    run = command(words, cwd=tmp_path, env=ENV)
    assert (run.status, run.stdout) == (0, b""), run
    assert sorted(os.listdir(tmp_path)) == ["directory", "file", "own"]
    assert (tmp_path / "own").read_text() == "new"
    modes = [os.lstat(tmp_path / name).st_mode & 0o6777 for name in ("directory", "file", "own")]
    assert modes == [0o2775, 0o644, 0o700]
    run = command(kvmlet_argv(["chmod", "4755", "file"], ["--write", "."]), cwd=tmp_path, env=ENV)
    assert run.status == 1
    assert "no set-user-ID" in run.own_lines[0]
