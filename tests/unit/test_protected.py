"""Names that programs of the host obey: which changes of them are left out."""

from __future__ import annotations

import os
import pathlib

import pytest

from escape.protected_names import KEPT, LEFT_OUT
from kvmlet import _native
from kvmlet._changes import gitconfig, protected
from kvmlet._changes.protected import Protection


def holds(path: str, kind: str = "file", **texts: bytes) -> bool:
    def read(name: str) -> bytes | None:
        return texts.get(name)

    return Protection().holds(path.encode(), kind, lambda _: read("new"), lambda _: read("old"))


@pytest.mark.parametrize("path", LEFT_OUT)
def test_left_out(path: str) -> None:
    assert holds(path)
    assert holds(path, "symlink")


@pytest.mark.parametrize("path", KEPT)
def test_kept(path: str) -> None:
    assert not holds(path)


def test_what_is_named_is_let_through_but_never_a_saved_set() -> None:
    protection = Protection([b".git/hooks", b".kvmlet-changes-a"])

    def nothing(_: int) -> None:
        return None

    assert not protection.holds(b".git/hooks/x", "file", nothing, nothing)
    assert protection.holds(b".envrc", "file", nothing, nothing)
    assert protection.holds(b".kvmlet-changes-a/1", "file", nothing, nothing)


def test_directories_of_git_itself() -> None:
    assert not holds(".git", "directory")
    assert not holds(".git/hooks", "directory")
    assert not holds(".git/hooks", "removed")
    assert holds(".git/hooks/pre-push", "removed")


def nothing(_: int) -> None:
    return None


@pytest.mark.parametrize("path", [".config", ".git/modules/lib"])
def test_links_on_the_way(path: str) -> None:
    assert holds(path, "symlink")
    assert not holds(path, "directory")


def test_a_bare_repository() -> None:
    there = {b"x/HEAD", b"x/objects"}
    protection = Protection((), there.__contains__)
    text = b"[core]\n\tfsmonitor = ./evil\n"
    for path in (b"x/hooks/update", b"x/config"):
        assert protection.holds(path, "file", lambda _: text, nothing), path
    assert protection.holds(b"x/hooks", "symlink", nothing, nothing)
    assert not protection.holds(b"x/hooks", "directory", nothing, nothing)
    assert not protection.holds(b"x/hooks/x.sample", "file", nothing, nothing)
    assert not protection.holds(b"y/config", "file", lambda _: b"[core", nothing)


def test_what_would_make_a_repository_of_settings() -> None:
    on_host = {b"x/hooks", b"y/config", b"y/HEAD", b"y/objects"}
    made = {b"x/HEAD", b"x/objects", b"z/hooks", b"z/objects"}
    exists = (on_host | made).__contains__
    protection = Protection((), exists, on_host.__contains__)
    for path in (b"x/HEAD", b"x/objects"):
        assert protection.holds(path, "file", nothing, nothing)
        assert not protection.holds(path, "removed", nothing, nothing)
    # It is one already, or its hooks have just been looked at.
    for path in (b"y/HEAD", b"z/HEAD", b"x/other"):
        assert not protection.holds(path, "file", nothing, nothing)


def test_a_tree_in_a_protected_directory(tmp_path: pathlib.Path) -> None:
    for tree, path in (("/h/.config/fish", b"config.fish"), ("/p/.git/hooks", b"pre-push")):
        protection = Protection(tree=tree.encode())
        assert protection.holds(path, "file", nothing, nothing)
        assert protection.holds(path + b"/x", "file", nothing, nothing)
        named = protected.named_in(tree.encode(), [tree])
        assert named == [b""]
        assert not Protection(named, tree=tree.encode()).holds(path, "file", nothing, nothing)
    # Elsewhere such a word lets nothing through.
    here = os.fsencode(tmp_path)
    assert protected.named_in(here, [os.fspath(tmp_path), "/"]) == []
    bare = tmp_path / "bare"
    (bare / "objects").mkdir(parents=True)
    (bare / "HEAD").touch()
    (bare / "hooks").mkdir()
    inside = Protection(tree=os.fsencode(bare / "hooks"))
    assert inside.holds(b"update", "file", nothing, nothing)


def test_what_is_there_cannot_be_told() -> None:
    def fails(_: bytes) -> bool:
        raise ValueError("it cannot be told")

    with pytest.raises(ValueError, match="told"):
        Protection((), fails).holds(b"x/config", "file", nothing, nothing)
    assert not Protection((), fails).holds(b"x/y", "file", nothing, nothing)


def test_letters_that_are_compared_as_others() -> None:
    """As Unicode folds case, which file systems that ignore it do."""
    for code in range(0x80, 0x110000):
        if not chr(code).casefold().isascii() or 0xD800 <= code < 0xE000:
            continue
        for name in (".ssh", ".profile", ".bash_profile", ".config/fish", ".git/hooks/x"):
            other = name.replace(chr(code).casefold(), chr(code), 1)
            if other != name:
                assert holds(other), other


def test_saved_sets_have_one_prefix() -> None:
    assert _native.is_saved_set(b"x/" + protected.PREFIX + b"0")
    assert not _native.is_saved_set(protected.PREFIX[:-1])


PLAIN = b'[core]\n\tbare = false\n[user]\n\tname = n\n[remote "o"]\n\turl = https://x/y\n'


@pytest.mark.parametrize(
    "added",
    [
        b"",
        b'[branch "topic"]\n\tremote = origin\n\tmerge = refs/heads/main\n',
        b"[color]\n\tui = always\n# [core] fsmonitor = x\n",
        b'[remote "p"]\n\turl = git@host:x.git\n\tfetch = +refs/heads/*:refs/remotes/p/*\n',
    ],
)
def test_settings_that_act_on_nothing(added: bytes) -> None:
    assert not holds(".git/config", old=PLAIN, new=PLAIN + added)
    own = PLAIN + b"[core]\n\thooksPath = mine\n"
    assert not holds(".git/config", old=own, new=own + added)


@pytest.mark.parametrize(
    "added",
    [
        b"[core]\n\tfsmonitor = ./x\n",
        b"[CORE]\n\thookspath = x\n",
        b"[core] sshCommand = x\n",
        b"[core]\n\teditor = x\n",
        b"[core]\n\tpager = x\n",
        b'[alias]\n\tst = "!x"\n',
        b'[filter "a"]\n\tsmudge = x\n',
        b'[diff "a"]\n\tcommand = x\n',
        b'[merge "a"]\n\tdriver = x\n',
        b"[credential]\n\thelper = x\n",
        b"[gpg]\n\tprogram = x\n",
        b"[include]\n\tpath = x\n",
        b'[includeIf "gitdir:/"]\n\tpath = x\n',
        b"[core]\n\tbare = \\\nfalse\n",
        b'[remote "o"]\n\turl = ext::sh -c x\n',
        b'[remote "o"]\n\turl = -x\n',
        b'[remote "o"]\n\tuploadpack = x\n',
        b'[branch "b"]\n\tremote = ext::x\n',
        b"[core\n\tx = y\n",
        b"\xef\xbb\xbf[core]\n\tbare = true\n",
        b"[new]\n\tsetting = x\n",
    ],
)
def test_settings_that_name_a_program(added: bytes) -> None:
    assert holds(".git/config", old=PLAIN, new=PLAIN + added)
    assert holds(".git/config", old=PLAIN + added, new=PLAIN)
    assert holds(".git/modules/m/config", old=PLAIN, new=PLAIN + added)


def test_settings_that_are_too_long_or_links() -> None:
    assert holds(".git/config", old=PLAIN, new=b"#" * ((1 << 20) + 1))
    assert holds(".git/config", "symlink")


def test_the_order_of_settings_counts() -> None:
    one, two = b"[core]\n\teditor = a\n", b"[core]\n\teditor = b\n"
    assert gitconfig.that_act(one + two) != gitconfig.that_act(two + one)
