"""Changes of the current directory that are kept, asked about, or written elsewhere."""

from __future__ import annotations

import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import time

import pytest

import kvmlet
from e2e.oracle import (
    ENV,
    HW,
    KVMLET,
    LONG,
    NO_RUNTIMES,
    ONLY_ROOT_SEES,
    command,
    in_vm,
    kvmlet_argv,
    repeated,
)
from e2e.terminal import Terminal
from kvmlet._changes.apply import apply
from kvmlet._changes.entry import Seen, parse
from kvmlet._changes.host_tree import HostTree
from kvmlet._changes.saved import SavedSet, remove_unfinished

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

OPERATIONS = pathlib.Path(__file__).parent / "overlay_ops.py"
KEEP = ["--changes", "keep"]


def contents(tree: pathlib.Path) -> dict[str, object]:
    """All that is in a tree: modes, bytes, targets."""
    found: dict[str, object] = {}
    for path, directories, files in os.walk(tree):
        for name in directories + files:
            full = os.path.join(path, name)
            there = os.lstat(full)
            told: list[object] = [there.st_mode]
            if stat.S_ISLNK(there.st_mode):
                told.append(os.readlink(full))
            elif stat.S_ISREG(there.st_mode):
                told += [there.st_size, pathlib.Path(full).read_bytes()]
            found[os.path.relpath(full, tree)] = told
    return found


def saved_in(tree: pathlib.Path) -> list[str]:
    return [name for name in os.listdir(tree) if name.startswith(".kvmlet-changes-")]


@pytest.fixture
def room(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "room"
    (directory / "sub").mkdir(parents=True)
    (directory / "data.csv").write_text("a,1\nb,2\n")
    (directory / "sub" / "old").write_text("old\n")
    return directory


def git(tree: pathlib.Path, *words: str) -> str:
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    own = ["git", "-c", "user.name=n", "-c", "user.email=a@b", *words]
    done = subprocess.run(own, cwd=tree, check=True, env=ENV, stdout=subprocess.PIPE, text=True)
    return done.stdout


def test_a_result_is_written_beside_its_data(room: pathlib.Path) -> None:
    script = room / "sum.py"
    script.write_text(
        "rows = [line.split(',') for line in open('data.csv')]\n"
        "open('sums.csv', 'w').write(f'{sum(int(row[1]) for row in rows)}\\n')\n"
    )
    run = in_vm(["/usr/bin/python3", "sum.py"], cwd=room, options=KEEP)
    assert (run.status, run.own_lines) == (0, ["kvmlet: 1 change kept"])
    assert (room / "sums.csv").read_text() == "3\n"
    assert sorted(os.listdir(room)) == ["data.csv", "sub", "sum.py", "sums.csv"]
    run = in_vm(["rm", "sums.csv"], cwd=room)
    assert "--changes keep keeps it" in run.own_lines[0]
    assert in_vm(["true"], cwd=room, options=KEEP).stderr == b""


def test_git_in_a_subfolder(room: pathlib.Path) -> None:
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "one"]):
        git(room, *words)
    git(room, "config", "core.hooksPath", "mine")
    script = """
        git config user.name n; git config user.email a@b
        echo more >> old; echo new > new; git add -A .; git commit -qm two
        git checkout -q -b topic
        git config branch.topic.remote .; git config branch.topic.merge refs/heads/master
        git mv new moved; git commit -qm three; mkdir dir; mv moved dir
    """
    run = in_vm(["/bin/sh", "-ec", script], cwd=room / "sub", options=[*KEEP, "-q"])
    assert (run.status, run.stderr) == (0, b"")
    assert git(room, "log", "--format=%s") == "three\ntwo\none\n"
    assert git(room, "status", "--short") == " D sub/moved\n?? sub/dir/\n"
    git(room, "fsck", "--strict")
    assert git(room, "config", "branch.topic.merge") == "refs/heads/master\n"


def test_protected_names_are_left_out_and_listed(room: pathlib.Path) -> None:
    git(room, "init", "-q")
    before = contents(room)
    script = """
        echo evil > .git/hooks/pre-commit; echo x > .git/hooks/x.sample; echo x > .envrc
        git config core.fsmonitor ./evil; mkdir .vscode .GIT; echo x > .vscode/tasks.json
        mkdir .GIT/hooks; echo evil > .GIT/hooks/post-checkout; mkdir .kvmlet-changes-1
        mkdir .ssh; ln -s /etc/passwd .ssh/config; echo fine > fine; rm -f .git/description
    """
    run = in_vm(["/bin/sh", "-ec", script], cwd=room, options=KEEP)
    assert run.status == 0, run
    assert run.own_lines[0].startswith(
        "kvmlet: not kept, as programs of yours obey them: .GIT/hooks/post-checkout, .envrc, "
    )
    after = contents(room)
    made = {name for name in after if after[name] != before.get(name)} - {".git", ".git/hooks"}
    assert made == {".GIT", ".GIT/hooks", ".git/hooks/x.sample", "fine"}
    assert set(before) - set(after) == {".git/description"}
    named = ["--keep-protected", ".envrc", "--keep-protected", ".git/hooks"]
    script = "echo x > .envrc; echo x > .git/hooks/pre-commit; echo x > .mcp.json"
    run = in_vm(["/bin/sh", "-c", script], cwd=room, options=[*KEEP, *named])
    assert (room / ".envrc").exists()
    assert (room / ".git" / "hooks" / "pre-commit").exists()
    assert not (room / ".mcp.json").exists()
    run = in_vm(["true"], cwd=room, options=["--keep-protected", "x"])
    assert (run.status, b"no changes are kept" in run.stderr) == (125, True)


def test_changed_files_written_elsewhere(room: pathlib.Path, tmp_path: pathlib.Path) -> None:
    before = contents(room)
    script = "echo 3 >> data.csv; rm sub/old; mkdir -p a/b; echo x > a/b/x; ln -s x a/b/l; mkfifo f"
    words = ["/bin/sh", "-ec", script]
    run = in_vm(words, cwd=room, options=["--changes", f"dir:{tmp_path / 'out'}"])
    assert run.status == 0, run
    assert contents(room) == before
    out = contents(tmp_path / "out")
    assert sorted(out) == ["a", "a/b", "a/b/l", "a/b/x", "data.csv"]
    assert (tmp_path / "out" / "data.csv").read_text() == "a,1\nb,2\n3\n"
    run = in_vm(words, cwd=room, options=["--changes", f"dir:{tmp_path / 'out'}"])
    assert (run.status, b"name an empty directory" in run.stderr) == (125, True)


@pytest.mark.parametrize("answer", [b"n", b"d", b"\x04", b"\x03"])
def test_asking_on_the_terminal(room: pathlib.Path, answer: bytes) -> None:
    before = contents(room)
    script = r"echo 3,c >> data.csv; rm sub/old; echo > $(printf 'a\033[31m'); stty -echo raw"
    words = kvmlet_argv(["/bin/sh", "-c", script], ["--changes", "ask"])
    terminal = Terminal(words, room)
    shown = terminal.read_until(b"[d]iff: ")
    summary = [line.strip() for line in shown.decode().splitlines()]
    assert summary[-4:-1] == ["A a\\x1b[31m", "M data.csv", "D sub/old"]
    assert summary[-1].startswith("Keep 3 changes? [y]es")
    if answer == b"d":
        terminal.type(b"d\n")
        assert b"+3,c\r\n" in terminal.read_until(b"[d]iff: ")
        answer = b"y"
    terminal.type(answer + (b"\n" if answer.isalpha() else b""))
    status = terminal.finish()
    assert status == (130 if answer == b"\x03" else 0)
    if answer == b"y":
        assert (room / "data.csv").read_text() == "a,1\nb,2\n3,c\n"
        assert not (room / "sub" / "old").exists()
    else:
        end = time.monotonic() + 10
        while saved_in(room) and time.monotonic() < end:
            time.sleep(0.02)
        assert contents(room) == before
    assert not saved_in(room)


def test_asking_without_a_terminal(room: pathlib.Path) -> None:
    argv = kvmlet_argv(["touch", "/tmp/x"], ["--changes", "ask"])
    run = command(["setsid", "-w", *argv], cwd=room)
    assert (run.status, b"there is no terminal to ask on" in run.stderr) == (125, True)


def test_what_the_host_changes_meanwhile_stays(room: pathlib.Path) -> None:
    script = "echo ours >> data.csv; echo ours > new; echo x >> big; echo ok; read x; exit $x"
    words = ["/bin/sh", "-c", script]
    (room / "big").write_bytes(b"\n" * 100_000)
    for given, status in ((b"0\n", 125), (b"3\n", 3)):
        (room / "new").unlink(missing_ok=True)
        running = subprocess.Popen(
            kvmlet_argv(words, KEEP),
            cwd=room,
            env=ENV,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert running.stdout
        assert running.stdout.readline() == b"ok\n"
        (room / "data.csv").write_text("theirs\n")
        # Most of its bytes are the host's.
        (room / "big").write_bytes(b"\n" * 100_001)
        said = running.communicate(given)[1].decode()
        assert running.returncode == status, said
        assert "data.csv is left as it is: it has changed" in said
        assert "big is left as it is: it has changed" in said
        assert (room / "data.csv").read_text() == "theirs\n"
        assert (room / "new").read_text() == "ours\n"
        assert (room / "big").read_bytes() == b"\n" * 100_001
    # The program's own are in the saved sets.
    saved = saved_in(room)
    assert len(saved) == 2
    texts = [path.read_text() for name in saved for path in (room / name).glob("[0-9]*")]
    assert sorted(texts) == ["a,1\nb,2\nours\n", "theirs\nours\n"]


def test_after_a_limit_the_changes_are_saved(room: pathlib.Path) -> None:
    before = contents(room)
    words = ["/bin/sh", "-c", "echo x > new; rm sub/old; exec sleep 100"]
    run = in_vm(words, cwd=room, options=[*KEEP, "--timeout", "2s"])
    (name,) = saved_in(room)
    assert (run.status, run.own_lines[-1]) == (
        124,
        f"kvmlet: 2 changes saved in {room}/{name}; 'kvmlet apply {room}/{name}' makes them",
    )
    assert {path: told for path, told in contents(room).items() if name not in path} == before
    assert stat.S_IMODE((room / name).stat().st_mode) == 0o700
    (line,) = in_vm(["true"], cwd=room).own_lines
    assert line.endswith(f"'kvmlet apply {room}/{name}' finishes it")
    run = command([str(KVMLET), "apply"], cwd=room / "sub")
    assert (run.status, run.own_lines) == (
        125,
        [
            f"kvmlet: no changes are saved in {room}/sub; "
            "name the directory that a run said it saved them in"
        ],
    )
    run = command([str(KVMLET), "apply", str(room)], cwd=room)
    assert (run.status, run.own_lines) == (0, ["kvmlet: 2 changes kept"])
    assert ((room / "new").read_text(), (room / "sub" / "old").exists()) == ("x\n", False)
    assert not saved_in(room)


def test_a_signal_to_kvmlet_saves_them_too(room: pathlib.Path) -> None:
    words = ["/bin/sh", "-c", "echo x > new; echo ok; exec sleep 100"]
    running = subprocess.Popen(
        kvmlet_argv(words, KEEP), cwd=room, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert running.stdout
    assert running.stdout.readline() == b"ok\n"
    running.terminate()
    assert b"1 change saved" in running.communicate()[1]
    assert running.returncode == 143
    (name,) = saved_in(room)
    assert command([str(KVMLET), "apply", "--discard", name], cwd=room).status == 0
    assert not saved_in(room)


def processes_in(room: pathlib.Path) -> int:
    count = 0
    for each in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            count += os.readlink(each / "cwd") == os.fspath(room)
        except OSError:
            continue
    return count


@ONLY_ROOT_SEES
def test_a_kill_of_kvmlet_leaves_no_process(room: pathlib.Path) -> None:
    before = contents(room)
    words = ["/bin/sh", "-c", "echo x > new; echo ok; exec sleep 100"]
    with subprocess.Popen(
        kvmlet_argv(words, KEEP), cwd=room, env=ENV, stdout=subprocess.PIPE
    ) as running:
        assert running.stdout
        assert running.stdout.readline() == b"ok\n"
        assert processes_in(room) == 2
        running.kill()
    end = time.monotonic() + 10
    while processes_in(room) and time.monotonic() < end:
        time.sleep(0.02)
    assert processes_in(room) == 0
    assert contents(room) == before


FILES = 30
CHANGES = f"""
import os, time
for i in range({FILES}):
    open(f't{{i}}', 'w').write(f'new {{i}}\\n' * 50); os.rename(f't{{i}}', f'f{{i}}')
for i in range(10):
    os.makedirs(f'd{{i}}/e'); open(f'd{{i}}/e/x', 'w').write('x' * 5000)
os.remove('data.csv')
print('ok', flush=True)
time.sleep(100)
"""


def test_kills_of_apply_at_random_moments(room: pathlib.Path) -> None:
    """Each file is old or new, and another time finishes it."""
    chance = random.Random(7)
    for number in range(FILES):
        (room / f"f{number}").write_text(f"old {number}\n")
    argv = kvmlet_argv(["/usr/bin/python3", "-c", CHANGES], [*KEEP, "-q"])
    running = subprocess.Popen(argv, cwd=room, env=ENV, stdout=subprocess.PIPE)
    assert running.stdout
    assert running.stdout.readline() == b"ok\n"
    running.terminate()
    assert running.wait() == 143
    (name,) = saved_in(room)
    cut = 0
    for turn in range(repeated(200, 1, short=20)):
        copy = room.parent / f"copy{turn}"
        subprocess.run(["cp", "-a", room, copy], check=True)
        forget(copy / name / "manifest", copy)
        pid = applying(copy, name)
        time.sleep(chance.random() * 0.04)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        cut += bool(saved_in(copy)) and (copy / "d0").exists()
        for number in range(FILES):
            text = (copy / f"f{number}").read_text()
            assert text in (f"old {number}\n", f"new {number}\n" * 50), (turn, number)
        for path in copy.glob("d*/e/x"):
            assert path.read_text() == "x" * 5000
        if saved_in(copy):
            assert os.waitpid(applying(copy, name), 0)[1] == 0, turn
        assert (copy / f"f{FILES - 1}").read_text() == f"new {FILES - 1}\n" * 50
        assert len(list(copy.glob("d*/e/x"))) == 10
        assert not (copy / "data.csv").exists()
        assert not saved_in(copy)
        shutil.rmtree(copy)
    assert cut > 0


def applying(tree: pathlib.Path, name: str) -> int:
    """A process that applies a saved set."""
    pid = os.fork()
    if pid == 0:
        try:
            saved = SavedSet.open(HostTree(os.fsencode(tree)), os.fsencode(name))
            if saved is None:
                # All is in place but the end of the set, which `kvmlet apply` removes too.
                remove_unfinished(HostTree(os.fsencode(tree)), os.fsencode(name))
                os._exit(0)
            os._exit(bool(apply(saved).conflicts))
        finally:
            os._exit(3)
    return pid


def forget(manifest: pathlib.Path, tree: pathlib.Path) -> None:
    """Write a manifest anew for a copy of its tree, which has other numbers and times."""
    header, *lines = manifest.read_bytes().splitlines(keepends=True)
    entries = [parse(line) for line in lines]
    for entry in entries:
        if entry.seen:
            there = os.lstat(tree / os.fsdecode(entry.path))
            row = [there.st_dev, there.st_ino, there.st_mode, there.st_nlink, there.st_size]
            entry.seen = Seen([*row, there.st_mtime_ns, there.st_ctime_ns])
    header = b"kvmlet changes 1 %d\n" % time.time_ns()
    manifest.write_bytes(b"".join([header, *(entry.line() for entry in entries)]))


@pytest.mark.parametrize("seed", [1, 2, 3, 4] if LONG else [1])
def test_random_changes_are_kept_as_a_native_run_makes_them(room: pathlib.Path, seed: int) -> None:
    for number in range(4):
        (room / f"f{number}").write_bytes(random.Random(number).randbytes(number * 5000))
    for name in ("a", "a/b", "a/b/c", "b", "b/c"):
        (room / name).mkdir(exist_ok=True)
        for number in range(4):
            (room / name / f"f{number}").write_bytes(random.Random(number).randbytes(6000))
    os.link(room / "f1", room / "hard")
    (room / "ln").symlink_to("f0")
    native = room.parent / "native"
    subprocess.run(["cp", "-a", room, native], check=True)
    words = [
        "/usr/bin/python3",
        os.fspath(OPERATIONS),
        str(seed),
        str(repeated(3000, 1, short=250)),
    ]
    inside = in_vm(words, cwd=room, options=[*KEEP, "-q", "--read", os.fspath(OPERATIONS)])
    outside = command(words, cwd=native)
    assert (inside.status, outside.status) == (0, 0), (inside.stderr, outside.stderr)
    ours, theirs = contents(room), contents(native)
    special = {path for path, told in theirs.items() if not plain(told)}
    assert {path: ours.get(path) for path in theirs if path not in special} == {
        path: told for path, told in theirs.items() if path not in special
    }
    assert set(ours) - set(theirs) == set()


def plain(told: object) -> bool:
    assert isinstance(told, list)
    return stat.S_IFMT(told[0]) in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


def test_from_python(room: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def run(script: str, changes: str = "discard") -> kvmlet.Result[bytes]:
        return kvmlet.run(script, shell=True, cwd=room, timeout=60, changes=changes)

    before = contents(room)
    script = "echo 3 >> data.csv; rm sub/old; mkdir n; echo x > n/x; truncate -s 3G n/big"
    held = run(script, changes="list").changes
    assert held == run(script).changes
    assert contents(room) == before
    assert held.read("data.csv") == b"a,1\nb,2\n3\n"
    assert held.read(room / "n" / "x", offset=1) == b"\n"
    assert held.read("n/big", offset=1 << 31, size=2) == b"\0\0"
    with pytest.raises(kvmlet.UsageError, match="no changed file"):
        held.read("sub/old")
    with pytest.raises(kvmlet.UsageError, match="not held"):
        run("echo > x").changes.read("x")
    assert held.apply() == held.kept == kvmlet.Kept(5)
    assert (room / "data.csv").read_text() == "a,1\nb,2\n3\n"
    assert (room / "n" / "big").stat().st_blocks < 100
    kept = run("echo > .envrc; chmod 700 data.csv; exit 3", changes="keep").changes.kept
    assert kept == kvmlet.Kept(1, protected=[".envrc"])
    assert stat.S_IMODE((room / "data.csv").stat().st_mode) == 0o700
    run("echo > x", changes=f"dir:{tmp_path / 'out'}")
    assert os.listdir(tmp_path / "out") == ["x"]
    for mode in ("ask", "kept", "dir:"):
        with pytest.raises(kvmlet.UsageError, match="is none of"):
            run("true", changes=mode)


def test_bytes_of_the_host_are_read_as_long_as_they_are_the_same(room: pathlib.Path) -> None:
    run = kvmlet.run(["mv", "data.csv", "moved"], cwd=room, changes="list", timeout=60)
    assert run.changes.read("moved") == b"a,1\nb,2\n"
    (room / "data.csv").write_text("others")
    kept = run.changes.apply()
    assert kept.conflicts == [("moved", "it has changed"), ("data.csv", "it has changed")]
    assert sorted(os.listdir(room)) == ["data.csv", "sub"]
    with pytest.raises(kvmlet.HostError):
        run.changes.read("moved")
