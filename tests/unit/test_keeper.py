"""The process that makes changes on the host believes nothing of what it is sent."""

from __future__ import annotations

import io
import os
import stat
import time
from typing import TYPE_CHECKING

import pytest

from kvmlet._changes.entry import Entry
from kvmlet._changes.host_tree import HostTree
from kvmlet.cli._keeper import _Job

if TYPE_CHECKING:
    import pathlib


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    root = tmp_path / "tree"
    root.mkdir()
    return root


def work(tree: pathlib.Path, orders: bytes, mode: str = "keep") -> list[str]:
    """The lines that the keeper says, and its status last."""
    answers, answer = os.pipe()
    root = HostTree(os.fsencode(tree))
    _Job(mode, root, time.time_ns(), [], None).work(io.BytesIO(orders), answer)
    root.close()
    os.close(answer)
    with os.fdopen(answers, "rb") as file:
        lines = file.read().decode().splitlines()
    words = [line.split(" ", 1) for line in lines]
    return [rest if word == "status" else bytes.fromhex(rest).decode() for word, rest in words]


def line(kind: str, path: str, size: int = 0, number: int = 0, same_as: int | None = None) -> bytes:
    mode = stat.S_IFREG | 0o644
    entry = Entry(kind, path.encode(), mode, 0, 0, size, number=number, same_as=same_as)
    if kind == "symlink":
        entry.target = b"/etc"
    return entry.line()


def test_a_set(tree: pathlib.Path) -> None:
    orders = b"apply\n" + line("file", "a", 3) + b"+ 0 2\nab+ 2 1\nc.\nend\n"
    assert work(tree, orders) == ["1 change kept", "0"]
    assert (tree / "a").read_text() == "abc"
    assert os.listdir(tree) == ["a"]


NOTHING = {
    "nothing at all": b"",
    "cut off": b"apply\n" + line("file", "a", 3) + b"+ 0 2\nab",
    "cut off after an entry": b"apply\n" + line("file", "a") + b".\n",
    "out of the tree": b"apply\n" + line("file", "../a") + b".\nend\n",
    "absolute": b"apply\n" + line("directory", "/tmp/x") + b"end\n",
    "too many bytes": b"apply\n" + line("file", "a", 1) + b"+ 0 2\nab.\nend\n",
    "bytes beyond its end": b"apply\n" + line("file", "a", 1) + b"+ 9 1\na.\nend\n",
    "bytes before its start": b"apply\n" + line("file", "a", 9) + b"+ -4 1\na.\nend\n",
    "a piece without end": b"apply\n" + line("file", "a", 1 << 40) + b"+ 0 1099511627776\nab",
    "a number twice": b"apply\n" + line("file", "a") + b".\n" + line("file", "b") + b".\nend\n",
    "a file that is too large": b"apply\n" + line("file", "a", 1 << 62) + b".\nend\n",
    "another name of nothing": b"apply\n" + line("file", "a", same_as=7) + b"end\n",
    "no entry": b"apply\nfile ../../x\nend\n",
    "no order": b"rm -rf\n",
    "an order without end": b"x" * 100_000,
    "failed": b"apply\n" + line("file", "a") + b".\nfailed 6f6f7073\n",
    "too many": b"cut\n",
}


@pytest.mark.parametrize("orders", NOTHING.values(), ids=NOTHING.keys())
def test_what_is_no_set_changes_nothing(
    tree: pathlib.Path, tmp_path: pathlib.Path, orders: bytes
) -> None:
    said = work(tree, orders)
    assert sorted(os.listdir(tmp_path)) == ["tree"]
    assert os.listdir(tree) == []
    assert said == [] if orders == b"" else said[-1] == "125"


def test_a_path_through_a_link_of_the_set_is_a_conflict(tree: pathlib.Path) -> None:
    second = line("file", "l/a", number=1) + b".\n"
    said = work(tree, b"apply\n" + line("symlink", "l") + second + b"end\n")
    assert said[-2:] == ["1 change kept", "125"]
    assert os.readlink(tree / "l") == "/etc"


def test_sparse_files_stay_so(tree: pathlib.Path) -> None:
    orders = b"apply\n" + line("file", "a", 1 << 32) + b"+ 2147483648 1\nx.\nend\n"
    assert work(tree, orders) == ["1 change kept", "0"]
    assert (tree / "a").stat().st_size == 1 << 32
    assert (tree / "a").stat().st_blocks < 100


def test_a_file_of_which_the_host_has_changed_a_part(tree: pathlib.Path) -> None:
    orders = (
        b"apply\n"
        + line("file", "a", 5)
        + b"+ 0 1\nx!\n"
        + line("file", "b", same_as=0, number=1)
        + line("file", "c", number=2)
        + b".\nend\n"
    )
    said = work(tree, orders)
    assert said == [
        "a is left as it is: it has changed",
        "b is left as it is: it has changed",
        "1 change kept",
        "125",
    ]
    assert os.listdir(tree) == ["c"]
    assert work(tree, b"apply\n" + line("file", "a", 5) + b"!\nend\n")[-1] == "125"
    assert os.listdir(tree) == ["c"]
