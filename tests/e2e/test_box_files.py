"""Files of boxes: read, written and listed, and whole folders in and out."""

from __future__ import annotations

import hashlib
import inspect
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

import kvmlet
import kvmlet.box
from e2e.oracle import LONG
from kvmlet import _native

pytestmark = pytest.mark.usefixtures("vm")


def sh(box: kvmlet.Box, command: str, **keywords: Any) -> str:
    said: str = box.run(command, shell=True, text=True, check=True, **keywords).stdout
    return said


def test_files_piece_by_piece(box: kvmlet.Box) -> None:
    data = os.urandom(3_000_000)
    with box.files.open("data", "wb") as file:
        for at in range(0, len(data), 100_000):
            file.write(data[at : at + 100_000])
    assert box.files.read("data") == data
    with box.files.open("data", "rb") as file:
        assert file.read(10) == data[:10]
        assert file.read() == data[10:]
    with box.files.open("lines", "w") as file:
        file.write("grüße\nzwei\n")
    with box.files.open("lines", "a") as file:
        file.write("drei")
    with box.files.open("lines") as file:
        assert list(file) == ["grüße\n", "zwei\n", "drei"]
    with pytest.raises(kvmlet.BoxFileExists):
        box.files.open("lines", "x")
    with pytest.raises(kvmlet.BoxIsADirectory):
        box.files.open("/usr", "rb")
    with pytest.raises(kvmlet.BoxFileNotFound):
        box.files.open("missing")
    sh(box, "mkfifo pipe")
    with pytest.raises(kvmlet.BoxFileError):
        box.files.open("pipe")
    wrongs: list[Any] = ["", "rw", "r+", "bt", "rbb+", 5]
    for wrong in wrongs:
        with pytest.raises(kvmlet.UsageError, match="mode"):
            box.files.open("lines", wrong)
    kept = box.files.open("lines", "rb")
    box.reset()
    with pytest.raises(kvmlet.BoxWasReset):
        kept.read()
    kept.close()


@pytest.mark.skipif(not LONG, reason="writes 3 GiB: tried in make test-long")
def test_a_gigabyte_in_and_out(tmp_path: pathlib.Path) -> None:
    piece = os.urandom(1 << 20)
    source, back = tmp_path / "source", tmp_path / "back"
    expected = hashlib.sha256()
    with source.open("wb") as file:
        for number in range(1024):
            changed = number.to_bytes(8) + piece[8:]
            file.write(changed)
            expected.update(changed)
    # Most of it lies on the host's disk, as memory has no room for it.
    with kvmlet.Box(memory="256m") as box:
        box.files.upload(source, "data")
        assert sh(box, "sha256sum < data", timeout=120).split()[0] == expected.hexdigest()
        source.unlink()
        box.files.download("data", back)
        assert box.stats()["memory_bytes"] < 256 << 20
        box.files.remove("data")
    with back.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == expected.digest()


def test_a_walk(box: kvmlet.Box) -> None:
    sh(box, "mkdir -p top/b/c top/a; touch top/x top/b/y top/b/c/z; ln -s . top/link")
    assert list(box.files.walk("top")) == [
        ("top", ["a", "b"], ["link", "x"]),
        ("top/a", [], []),
        ("top/b", ["c"], ["y"]),
        ("top/b/c", [], ["z"]),
    ]
    seen = []
    for directory, inner, _ in box.files.walk("top"):
        seen.append(directory)
        inner[:] = [name for name in inner if name != "b"]
    assert seen == ["top", "top/a"]
    with pytest.raises(kvmlet.BoxFileNotFound):
        next(box.files.walk("missing"))
    # Commands choose the depth.
    deep = "import os\nfor _ in range(200): os.mkdir('d'); os.chdir('d')"
    box.run(["python3", "-c", deep], check=True)
    assert [directory for directory, _, _ in box.files.walk("d")][-1] == "/".join("d" * 200)


def test_files(box: kvmlet.Box) -> None:
    files = box.files
    name = "a name\nwith a line end and \udcff"
    data = os.urandom(3_000_000)
    files.write(name, data)
    assert files.read(name) == data
    assert files.list() == [name]
    assert files.stat(name).size == len(data)
    assert files.stat(name).is_file
    files.write("text", "häh")
    assert files.read_text("text") == "häh"
    files.write("text", b"")
    assert files.read("text") == b""
    files.mkdir("d/e/f", parents=True)
    files.mkdir("d/e/f", parents=True, exist_ok=True)
    with pytest.raises(kvmlet.BoxFileError):
        files.mkdir("d")
    files.rename("text", "d/moved")
    assert not files.exists("text")
    assert files.list("d") == ["e", "moved"]
    with pytest.raises(OSError, match="not empty"):
        files.remove("d")
    files.remove("d", recursive=True)
    with pytest.raises(FileNotFoundError) as info:
        files.read("d/moved")
    assert info.value.filename == "d/moved"
    assert isinstance(info.value, kvmlet.KvmletError)
    with pytest.raises(OSError, match="directory"):
        files.read("/work")
    with pytest.raises(OSError, match=r"[Rr]ead-only"):
        files.write("/usr/x", b"")
    wrongs: list[Any] = ["", "a\0b", 3]
    for wrong in wrongs:
        with pytest.raises(kvmlet.UsageError):
            files.read(wrong)


def test_a_file_of_a_command_cannot_fill_the_host(box: kvmlet.Box) -> None:
    sh(box, "truncate -s 100G sparse; mkfifo pipe; ln -s /dev/zero zero; ln -s loop loop")
    with pytest.raises(OSError, match="too large"):
        box.files.read("sparse", limit_bytes=1 << 20)
    for name in ("pipe", "zero", "loop"):
        with pytest.raises(kvmlet.BoxFileError):
            box.files.read(name)


def test_folders_in_and_out(box: kvmlet.Box, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "empty").mkdir(parents=True)
    (source / "deep" / "data").write_bytes(os.urandom(100_000))
    (source / "tool").write_text("#!/bin/sh\necho tool\n")
    (source / "tool").chmod(0o755)
    box.files.upload(source, "copy")
    assert sh(box, "copy/tool") == "tool\n"
    sh(box, "ln -s /etc/passwd copy/link; ln -s . copy/circle; mkfifo copy/fifo")
    box.files.download("copy", tmp_path / "back")
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["deep", "tool"]
    data = "deep/data"
    assert (tmp_path / "back" / data).read_bytes() == (source / data).read_bytes()
    with pytest.raises(FileExistsError):
        box.files.download("copy/tool", tmp_path / "back" / "tool")
    # Nobody writes to it.
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a file nor a folder"):
        box.files.upload(tmp_path / "fifo", "fifo")


def test_deep_and_many_files(box: kvmlet.Box, tmp_path: pathlib.Path) -> None:
    deep = "import os\nfor _ in range(150): os.mkdir('d'); os.chdir('d')"
    box.run(["python3", "-c", deep], check=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        box.files.download("d", tmp_path / "deep")
        box.files.remove("d", recursive=True)
    finally:
        sys.setrecursionlimit(limit)
    assert (tmp_path / "deep" / "/".join("d" * 149)).is_dir()
    sh(box, "mkdir many; cd many; touch $(seq 100)")
    with pytest.raises(kvmlet.BoxFileError, match="limit_bytes"):
        box.files.download("many", tmp_path / "few", limit_bytes=50 * 4096)
    box.files.download("many", tmp_path / "all", limit_bytes=100 * 4096)
    assert len(list((tmp_path / "all").iterdir())) == 100


def test_a_file_of_before_a_reset(box: kvmlet.Box) -> None:
    vm = box._vm().files()
    file = vm.open(b"a", os.O_RDWR | os.O_CREAT, 0o600)
    assert vm.write(*file, b"data") == 4
    box.reset()
    for ask in (
        lambda: vm.read(*file, 10),
        lambda: vm.write(*file, b"x"),
        lambda: vm.stat_file(*file),
        lambda: vm.close(*file),
    ):
        with pytest.raises(_native.NativeError, match="box_reset"):
            ask()


def test_errors_of_files_are_those_that_python_has() -> None:
    with kvmlet.Box() as box:
        box.files.mkdir("folder")
        box.files.write("file", "x")
        tries: list[tuple[type[OSError], str, Callable[[], object]]] = [
            (FileExistsError, "BoxFileExists", lambda: box.files.mkdir("folder")),
            (FileNotFoundError, "BoxFileNotFound", lambda: box.files.read("nothing")),
            (IsADirectoryError, "BoxIsADirectory", lambda: box.files.read("folder")),
            (IsADirectoryError, "BoxIsADirectory", lambda: box.files.write("folder", "x")),
            (NotADirectoryError, "BoxNotADirectory", lambda: box.files.list("file/x")),
            (PermissionError, "BoxPermissionDenied", lambda: box.files.write("/proc/version", "x")),
        ]
        for kind, name, call in tries:
            with pytest.raises(kind) as caught:
                call()
            assert isinstance(caught.value, kvmlet.BoxFileError)
            assert type(caught.value).__name__ == name


def test_directories_on_the_way_are_made() -> None:
    with kvmlet.Box() as box:
        box.files.write("a/b/c", "x", parents=True)
        box.files.write("/work/a/b/d", "y", parents=True)
        box.files.write("e", "z", parents=True)
        assert box.run("cat a/b/c a/b/d e", shell=True, text=True).stdout == "xyz"
        with pytest.raises(kvmlet.BoxFileNotFound):
            box.files.write("f/g", "x")
        with pytest.raises(kvmlet.BoxFileExists):
            box.files.write("e/f", "x", parents=True)


def test_a_download_counts_the_bytes_of_all_files(box: kvmlet.Box, tmp_path: pathlib.Path) -> None:
    sh(box, "mkdir heavy; cd heavy; for i in 1 2 3; do head -c 300000 /dev/zero > $i; done")
    entries = 3 * 4096
    with pytest.raises(kvmlet.BoxFileError, match="limit_bytes"):
        box.files.download("heavy", tmp_path / "few", limit_bytes=899_999 + entries)
    box.files.download("heavy", tmp_path / "all", limit_bytes=900_000 + entries)
