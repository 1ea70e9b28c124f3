"""A saved change set is moved into place: conflicts, crashes, and hostile sets."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import stat
import time
from typing import TYPE_CHECKING

import pytest

from kvmlet._changes import apply as apply_module
from kvmlet._changes import keep, protected
from kvmlet._changes import saved as saved_module
from kvmlet._changes.apply import Applied, apply
from kvmlet._changes.entry import BadEntry, Entry, Seen, check, parse
from kvmlet._changes.host_tree import HostTree
from kvmlet._changes.saved import Busy, SavedSet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LONG = os.environ.get("KVMLET_LONG") == "1"
# Of the steps of a kill, every seventh is tried unless there is time.
STRIDE = 7 if LONG else 1
MTIME_NS = 1_700_000_000_123_456_789

Made = tuple[Entry, list[tuple[int, bytes]]]


def seen(path: pathlib.Path) -> Seen:
    found = os.lstat(path)
    return Seen(
        (
            found.st_dev,
            found.st_ino,
            found.st_mode,
            found.st_nlink,
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
        )
    )


class Changes:
    """A change set of `tree` in the making."""

    def __init__(self, tree: pathlib.Path) -> None:
        self.tree = tree
        self.rows: list[Made] = []
        self.since_ns = time.time_ns()

    def add(
        self,
        kind: str,
        path: str,
        data: bytes = b"",
        *,
        mode: int | None = None,
        target: bytes = b"",
        same_as: int | None = None,
        late: bool = False,
    ) -> Changes:
        there = self.tree / path
        known = seen(there) if os.path.lexists(there) else None
        if mode is None:
            mode = stat.S_IFDIR | 0o755 if kind == "directory" else stat.S_IFREG | 0o644
        number = len(self.rows)
        entry = Entry(
            kind,
            os.fsencode(path),
            mode,
            MTIME_NS,
            number,
            len(data),
            target,
            known,
            late,
            same_as,
            number,
        )
        self.rows.append((entry, [(0, data)] if data else []))
        return self

    def save(self) -> SavedSet:
        self.since_ns = time.time_ns()
        return keep.save(HostTree(os.fsencode(self.tree)), self.rows, self.since_ns)

    def apply(self) -> Applied:
        return apply(self.save())


def contents(tree: pathlib.Path) -> dict[str, object]:
    """All that is in a tree but saved sets: bytes, targets and modes."""
    found: dict[str, object] = {}
    for path, directories, files in os.walk(tree):
        directories[:] = [each for each in directories if not each.startswith(".kvmlet-changes-")]
        for name in directories + files:
            full = pathlib.Path(path, name)
            told: object
            if full.is_symlink():
                told = os.readlink(full)
            elif full.is_dir():
                told = "directory"
            elif full.is_file():
                told = (full.read_bytes(), full.stat().st_mode)
            else:
                told = stat.S_IFMT(full.stat().st_mode)
            found[str(full.relative_to(tree))] = told
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test looks at the disk itself."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "tree"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "old").write_text("old\n")
    (root / "gone").write_text("gone\n")
    (root / "sub" / "a").write_text("a\n")
    (root / "sub" / "deep" / "b").write_text("b\n")
    (root / "link").symlink_to("old")
    (root / "many").mkdir()
    for number in range(3):
        (root / "many" / str(number)).write_text("x")
    # What a program changes was there for a while.
    time.sleep(0.02)
    return root


def large(tree: pathlib.Path) -> Changes:
    """Changes of every kind, also of a file to a directory and the other way round."""
    return (
        Changes(tree)
        .add("file", "old", b"new\n", mode=stat.S_IFREG | 0o755)
        .add("removed", "gone")
        .add("directory", "made")
        .add("directory", "made/in")
        .add("file", "made/in/x", b"x" * 10_000)
        .add("symlink", "link", target=b"sub/a")
        .add("symlink", "made/l", target=b"in/x")
        .add("directory", "sub/a")
        .add("file", "sub/a/now", b"a directory\n")
        .add("file", "many", b"a file\n")
        .add("removed", "many/0")
        .add("removed", "many/1")
        .add("removed", "many/2")
        .add("removed", "sub/deep/b")
        .add("removed", "sub/deep")
        .add("file", "made/one", b"linked")
        .add("file", "made/two", same_as=15)
    )


WANTED: dict[str, object] = {
    "old": (b"new\n", stat.S_IFREG | 0o755),
    "made": "directory",
    "made/in": "directory",
    "made/in/x": (b"x" * 10_000, stat.S_IFREG | 0o644),
    "made/l": "in/x",
    "made/one": (b"linked", stat.S_IFREG | 0o644),
    "made/two": (b"linked", stat.S_IFREG | 0o644),
    "link": "sub/a",
    "sub": "directory",
    "sub/a": "directory",
    "sub/a/now": (b"a directory\n", stat.S_IFREG | 0o644),
    "many": (b"a file\n", stat.S_IFREG | 0o644),
}


def test_all_kinds_of_changes(tree: pathlib.Path) -> None:
    applied = large(tree).apply()
    assert (applied.count, applied.conflicts) == (17, [])
    assert contents(tree) == WANTED
    assert os.stat(tree / "made/in/x").st_mtime_ns == MTIME_NS
    assert os.lstat(tree / "link").st_mtime_ns == MTIME_NS
    assert os.stat(tree / "made/in").st_mtime_ns == MTIME_NS
    assert os.path.samefile(tree / "made/one", tree / "made/two")
    assert not [name for name in os.listdir(tree) if name.startswith(".kvmlet")]


CALLS = ("rename", "link", "unlink", "mkdir", "rmdir", "chmod", "utime", "fsync", "open")


def killed_after(count: int, work: Callable[[], object]) -> bool:
    """True if `work` made more than `count` calls that matter: the next one kills it."""
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert status in (0, signal.SIGKILL), status
        return status == signal.SIGKILL
    left = count

    def counted(real: Callable[..., object]) -> Callable[..., object]:
        def call(*words: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*words, **named)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


def reopened(tree: pathlib.Path) -> Iterator[SavedSet | None]:
    root = HostTree(os.fsencode(tree))
    for name in saved_module.find(root):
        yield SavedSet.open(root, name)


def unlock(saved: SavedSet) -> None:
    """As a kill does."""
    with contextlib.suppress(OSError):
        os.close(saved.fd)
    saved.tree.close()


@pytest.mark.parametrize("first", range(STRIDE))
def test_a_kill_at_every_step_of_applying(tmp_path: pathlib.Path, first: int) -> None:
    for step in range(first, 10_000, 7):
        root = tmp_path / str(step)
        tree_at(root)
        before = contents(root)
        saved = large(root).save()
        cut = killed_after(step, lambda: apply(saved))  # noqa: B023 - used at once
        unlock(saved)
        for path, told in contents(root).items():
            assert (
                told in (before.get(path), WANTED.get(path))
                or (told == "directory" and path in WANTED)
                or isinstance(told, tuple)
            ), (step, path, told)
        for path in ("old", "link"):
            assert contents(root)[path] in (before[path], WANTED[path]), (step, path)
        for again in reopened(root):
            if again is not None:
                assert apply(again).conflicts == [], step
                unlock(again)
        assert contents(root) == WANTED, step
        if not cut:
            assert step > 60
            return


def tree_at(root: pathlib.Path) -> None:
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "old").write_text("old\n")
    (root / "gone").write_text("gone\n")
    (root / "sub" / "a").write_text("a\n")
    (root / "sub" / "deep" / "b").write_text("b\n")
    (root / "link").symlink_to("old")
    (root / "many").mkdir()
    for number in range(3):
        (root / "many" / str(number)).write_text("x")
    time.sleep(0.01)


def test_a_kill_while_saving_changes_nothing(tmp_path: pathlib.Path) -> None:
    for step in range(0, 10_000, 5):
        root = tmp_path / str(step)
        tree_at(root)
        before = contents(root)
        changes = large(root)
        cut = killed_after(step, changes.save)
        assert contents(root) == before, step
        if not cut:
            return
        for again in reopened(root):
            assert again is None or contents(root) == before
            if again is not None:
                unlock(again)


def test_conflicts_are_left_and_can_be_tried_again(tree: pathlib.Path) -> None:
    changes = (
        Changes(tree)
        .add("file", "old", b"ours")
        .add("file", "new", b"ours")
        .add("removed", "gone")
        .add("file", "sub/a", b"ours")
        .add("mode", "sub/deep/b", mode=stat.S_IFREG | 0o700)
    )
    saved = changes.save()
    (tree / "old").write_text("theirs")
    (tree / "new").write_text("theirs")
    (tree / "gone").write_text("back")
    (tree / "sub" / "deep" / "b").write_text("theirs")
    applied = apply(saved)
    assert sorted((entry.path, why) for entry, why in applied.conflicts) == [
        (b"gone", "it has changed"),
        (b"new", "something has this name now"),
        (b"old", "it has changed"),
        (b"sub/deep/b", "it has changed"),
    ]
    assert (applied.count, (tree / "old").read_text()) == (1, "theirs")
    assert (tree / "sub" / "a").read_text() == "ours"
    saved.close()
    (again,) = reopened(tree)
    assert again is not None
    assert [entry.path for entry in again.entries] == [b"old", b"new"]
    os.unlink(tree / "new")
    assert [entry.path for entry, _ in apply(again).conflicts] == [b"old"]
    assert (tree / "new").read_text() == "ours"


def test_changes_of_the_host_since_the_start_win(tree: pathlib.Path) -> None:
    changes = Changes(tree)
    since_ns = time.time_ns()
    time.sleep(0.02)
    (tree / "old").write_text("theirs")
    # The program looked later only.
    changes.add("file", "old", b"ours").add("removed", "gone", late=True)
    saved = keep.save(HostTree(os.fsencode(tree)), changes.rows, since_ns)
    ((entry, why),) = apply(saved).conflicts
    assert (entry.path, why) == (b"old", "it has changed since the program started")


def test_names_of_one_file(tree: pathlib.Path) -> None:
    os.link(tree / "old", tree / "other")
    os.link(tree / "old", tree / "third")
    time.sleep(0.02)
    changes = Changes(tree).add("file", "old", b"new").add("file", "other", same_as=0)
    applied = changes.add("removed", "third").apply()
    assert applied.conflicts == []
    assert os.path.samefile(tree / "old", tree / "other")
    assert not (tree / "third").exists()


def test_a_file_elsewhere_that_has_a_name_in_the_tree_is_not_written(
    tree: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "outside").write_text("safe")
    os.link(tmp_path / "outside", tree / "inside")
    time.sleep(0.02)
    assert Changes(tree).add("file", "inside", b"new").apply().conflicts == []
    assert (tmp_path / "outside").read_text() == "safe"


def test_special_bits_and_files(tree: pathlib.Path) -> None:
    os.mkfifo(tree / "fifo")
    time.sleep(0.02)
    changes = (
        Changes(tree)
        .add("file", "suid", b"x", mode=stat.S_IFREG | 0o6755)
        .add("special", "null", mode=stat.S_IFCHR | 0o666)
        .add("removed", "fifo")
        .add("symlink", "sub/out", target=b"../../x")
        .add("symlink", "sub/in", target=b"../old")
        .add("directory", "d", mode=stat.S_IFDIR | 0o7777)
    )
    saved = changes.save()
    assert saved.left.bits == [b"suid"]
    assert saved.left.special == [b"null", b"fifo"]
    assert saved.left.links_out == [b"sub/out"]
    assert apply(saved).conflicts == []
    assert stat.S_IMODE(os.stat(tree / "suid").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tree / "d").st_mode) == 0o777
    assert not (tree / "null").exists()
    assert stat.S_ISFIFO(os.stat(tree / "fifo").st_mode)


def test_a_directory_keeps_what_the_host_has_put_there(tree: pathlib.Path) -> None:
    changes = Changes(tree).add("removed", "sub/deep").add("removed", "sub/deep/b")
    saved = changes.save()
    (tree / "sub" / "deep" / "theirs").write_text("theirs")
    ((entry, why),) = apply(saved).conflicts
    assert (entry.path, why) == (b"sub/deep", "something is in it still")
    assert os.listdir(tree / "sub" / "deep") == ["theirs"]


def test_the_manifest_comes_last(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    saved = Changes(tree).add("file", "old", b"new").add("file", "made", b"new").save()
    names = [os.path.basename(path) for path in synced]
    assert names == [".gitignore", "0", "1", "manifest.new", saved.name.decode(), "tree"]


BAD_PATHS = ["..", "../x", "a/../../x", "/etc/x", "a//b", "", "a/", "./a", "a\0b", "x" * 256]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_paths_that_lead_out_are_no_entries(path: str, tree: pathlib.Path) -> None:
    entry = Entry("file", os.fsencode(path), 0o644, 0, 0)
    with pytest.raises(BadEntry):
        check(entry)
    with pytest.raises(BadEntry):
        parse(entry.line())
    root = HostTree(os.fsencode(tree))
    with pytest.raises((OSError, ValueError)):
        os.stat(root.parent(os.fsencode(path))[1], dir_fd=root.fd)
    root.close()


@pytest.mark.parametrize("line", [b"", b"x\n", b"file 0 0 0 0 0 0 - - zz -\n", b"\xff" * 40])
def test_lines_that_are_no_entries(line: bytes) -> None:
    with pytest.raises(BadEntry):
        parse(line)


def test_an_entry_survives_its_text() -> None:
    name = b"a\n\x1b/\xff"
    entry = Entry(
        "symlink", name, 0o777, -5, 7, 0, b"\xfe", Seen(range(7)), late=True, same_as=3, number=9
    )
    again = parse(entry.line())
    for field in Entry.__slots__:
        if field != "seen":
            assert getattr(again, field) == getattr(entry, field), field
    assert again.seen is not None
    assert again.seen.row() == tuple(range(7))


def swap(tree: pathlib.Path, name: str, outside: pathlib.Path) -> None:
    """A directory of the tree is a link that leads out, from now on."""
    os.rename(tree / name, tree / "moved")
    (tree / name).symlink_to(outside)


@pytest.fixture
def outside(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "outside"
    (directory / "deep").mkdir(parents=True)
    (directory / "a").write_text("safe")
    (directory / "deep" / "b").write_text("safe")
    return directory


def test_links_swapped_in_before_applying(tree: pathlib.Path, outside: pathlib.Path) -> None:
    changes = (
        Changes(tree)
        .add("file", "sub/a", b"evil")
        .add("file", "sub/deep/new", b"evil")
        .add("removed", "sub/deep/b")
        .add("directory", "sub/deep/d")
        .add("mode", "sub/a", mode=stat.S_IFREG | 0o777)
        .add("symlink", "sub/l", target=b"x")
    )
    changes.rows.pop(4)
    before = contents(outside)
    saved = changes.save()
    swap(tree, "sub", outside)
    apply(saved)
    assert contents(outside) == before


@pytest.mark.parametrize("moment", range(12))
def test_links_swapped_in_during_applying(
    tree: pathlib.Path,
    outside: pathlib.Path,
    moment: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = (
        Changes(tree)
        .add("file", "sub/a", b"evil")
        .add("file", "sub/deep/new", b"evil")
        .add("removed", "sub/deep/b")
        .add("directory", "sub/deep/d")
        .add("file", "sub/deep/d/x", b"evil")
    )
    before = contents(outside)
    saved = changes.save()
    left = moment
    real = HostTree.parent

    def parent(self: HostTree, path: bytes) -> tuple[int, bytes]:
        nonlocal left
        left -= 1
        if left == 0:
            swap(tree, "sub", outside)
        return real(self, path)

    monkeypatch.setattr(HostTree, "parent", parent)
    apply(saved)
    assert contents(outside) == before


def test_a_set_of_a_stranger(tree: pathlib.Path) -> None:
    """As a clone of a repository may bring one along."""
    directory = tree / ".kvmlet-changes-evil"
    directory.mkdir(mode=0o700)
    hook = Entry("file", b".git/hooks/pre-commit", 0o755, 0, 0, size=4, number=0)
    (directory / "0").write_text("evil")
    (directory / "manifest").write_bytes(b"kvmlet changes 1 0\n" + hook.line())
    (again,) = reopened(tree)
    assert again is not None
    again.check(())
    assert again.left.protected == [b".git/hooks/pre-commit"]
    assert apply(again).count == 0
    assert not (tree / ".git").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"kvmlet changes 2 0\n",
        b"kvmlet changes 1 x\n",
        b"kvmlet changes 1 0\n" + Entry("file", b"../x", 0, 0, 0).line(),
        b"kvmlet changes 1 0\n" + 2 * Entry("file", b"x", 0, 0, 0).line(),
        b"kvmlet changes 1 0\n" + Entry("evil", b"x", 0, 0, 0).line(),
    ],
)
def test_manifests_that_are_none(tree: pathlib.Path, manifest: bytes) -> None:
    directory = tree / ".kvmlet-changes-evil"
    directory.mkdir(mode=0o700)
    (directory / "manifest").write_bytes(manifest)
    with pytest.raises(BadEntry):
        list(reopened(tree))


def test_what_may_be_no_set(tree: pathlib.Path, outside: pathlib.Path) -> None:
    root = HostTree(os.fsencode(tree))
    (tree / ".kvmlet-changes-open").mkdir(mode=0o755)
    with pytest.raises(BadEntry):
        SavedSet.open(root, b".kvmlet-changes-open")
    (tree / ".kvmlet-changes-link").symlink_to(outside)
    with pytest.raises(OSError, match="directory"):
        SavedSet.open(root, b".kvmlet-changes-link")
    # Its files are what they should be, or none.
    directory = tree / ".kvmlet-changes-evil"
    directory.mkdir(mode=0o700)
    entry = Entry("file", b"x", 0o644, 0, 0)
    (directory / "manifest").write_bytes(b"kvmlet changes 1 0\n" + entry.line())
    (directory / "0").symlink_to(outside / "a")
    saved = SavedSet.open(root, b".kvmlet-changes-evil")
    assert saved is not None
    with pytest.raises(BadEntry):
        apply(saved)
    (directory / "0").unlink()
    (directory / "0").touch()
    (directory / "0").chmod(0o4755)
    with pytest.raises(BadEntry, match="bits"):
        apply(saved)


def test_one_process_at_a_time(tree: pathlib.Path) -> None:
    saved = Changes(tree).add("file", "old", b"new").save()
    with pytest.raises(Busy):
        list(reopened(tree))
    saved.close()
    (again,) = reopened(tree)
    assert again is not None


def test_a_great_depth_is_a_conflict(tree: pathlib.Path) -> None:
    changes = Changes(tree)
    path = "d"
    for _ in range(300):
        changes.add("directory", path)
        path += "/d"
    applied = changes.apply()
    assert {why for _, why in applied.conflicts} == {"it lies too deep"}


def test_a_failure_of_saving_leaves_nothing(tree: pathlib.Path) -> None:
    def entries() -> Iterator[Made]:
        yield Changes(tree).add("file", "old", b"new").rows[0]
        raise BadEntry("enough")

    before = os.listdir(tree)
    with pytest.raises(BadEntry):
        keep.save(HostTree(os.fsencode(tree)), entries(), 0)
    assert os.listdir(tree) == before


def test_a_full_disk_leaves_the_set(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = large(tree).save()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as here:
        here.setattr(os, "mkdir", full)
        with pytest.raises(OSError, match="space"):
            apply(saved)
    saved.close()
    (again,) = reopened(tree)
    assert again is not None
    assert apply(again).conflicts == []
    assert contents(tree) == WANTED


def test_the_prefix_is_one() -> None:
    from kvmlet.cli import _changes

    assert _changes._SAVED == protected.PREFIX


def test_without_hard_links(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Changes(tree).add("file", "new", b"new").save()

    def none(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    assert apply(saved).conflicts == []
    assert (tree / "new").read_bytes() == b"new"
    assert apply_module.__doc__
