"""Fixtures of the end-to-end tests."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
import uuid
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import GUESTS, HW, KVMLET, NO_RUNTIMES, ROOT, Oracle
from e2e.warmed import PYTHON, Warmed, freeze

if TYPE_CHECKING:
    from collections.abc import Iterator

MOMENT = 1_700_000_000
"""Modification time of every fixture file: listings and archives come out the same."""


@pytest.fixture
def native_only(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--native-only"))


@pytest.fixture
def oracle(native_only: bool) -> Oracle:
    return Oracle(native_only=native_only)


@pytest.fixture
def vm(native_only: bool) -> None:
    """Asked for by a test that runs VMs itself."""
    if native_only:
        pytest.skip("native side only")
    assert KVMLET.exists(), f"{KVMLET} is not there: run `make develop`"


@pytest.fixture
def box(vm: None) -> Iterator[kvmlet.Box]:
    with kvmlet.Box() as made:
        yield made


@pytest.fixture
def room() -> Iterator[pathlib.Path]:
    """A directory that no program sees, with a path that is short enough for a socket's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield pathlib.Path(directory)


@pytest.fixture
def tmp_name() -> Iterator[str]:
    """A path under /tmp, where a guest may write; removed after the native run used it."""
    path = pathlib.Path("/tmp") / f"kvmlet-test-{uuid.uuid4().hex}"
    yield str(path)
    if path.is_dir():
        shutil.rmtree(path)
    for leftover in path.parent.glob(f"{path.name}*"):
        leftover.unlink()


def settle(top: pathlib.Path) -> None:
    """Give everything below `top` one modification time and plain modes."""
    for directory, names, files in os.walk(top, topdown=False):
        for name in [*names, *files]:
            path = pathlib.Path(directory) / name
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            os.utime(path, (MOMENT, MOMENT), follow_symlinks=False)
    os.utime(top, (MOMENT, MOMENT))


@pytest.fixture
def small_tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """The directory that tests/guests/files.c expects."""
    (tmp_path / "text").write_bytes(b"the quick brown fox jumps over")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "inner").write_bytes(b"inner")
    (tmp_path / "link").symlink_to("text")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dirlink").symlink_to("sub")
    (tmp_path / "script").write_bytes(b"#!/bin/sh\n")
    (tmp_path / "script").chmod(0o755)
    settle(tmp_path)
    return tmp_path


@pytest.fixture
def work_tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A directory with files of many kinds and sizes for the tools."""
    top = tmp_path / "tree"
    for number in range(12):
        directory = top / f"dir{number % 4}" / f"deep{number}"
        directory.mkdir(parents=True)
        (directory / "data.bin").write_bytes(
            bytes(i * (number + 3) % 256 for i in range(700 * number))
        )
        lines = [
            f"{i} {(i * 7919 + number * 31) % 1000} word{i % 17}\n" for i in range(50 * number)
        ]
        (directory / "table.txt").write_text("".join(lines))
    (top / "empty").write_bytes(b"")
    (top / "with space").write_text("spaced\n")
    (top / "link").symlink_to("dir0/deep0")
    (top / "run.sh").write_text("#!/bin/sh\necho run\n")
    (top / "run.sh").chmod(0o755)
    settle(top)
    return top


@pytest.fixture
def pattern_file(tmp_path: pathlib.Path) -> pathlib.Path:
    """The file that tests/guests/mmapfile.c expects."""
    path = tmp_path / "pattern"
    path.write_bytes(bytes(i * 7 % 251 for i in range(20000)))
    return path


@pytest.fixture(scope="module")
def c_program(guests: pathlib.Path) -> Iterator[Warmed]:
    warmed = freeze(["./warm"], guests, memory="96m")
    yield warmed
    warmed.snapshot.close()


@pytest.fixture(scope="module")
def python_warmed() -> Iterator[Warmed]:
    if HW:
        pytest.skip(NO_RUNTIMES)
    warmed = freeze(PYTHON, GUESTS)
    yield warmed
    warmed.snapshot.close()


@pytest.fixture(scope="session")
def package() -> Iterator[pathlib.Path]:
    """A directory with a copy of the Python package, which every user may read."""
    with tempfile.TemporaryDirectory(prefix="kvmlet-package-", dir="/var/tmp") as name:
        top = pathlib.Path(name)
        top.chmod(0o755)
        shutil.copytree(ROOT / "python" / "kvmlet", top / "kvmlet")
        yield top


@pytest.fixture
def fork(c_program: Warmed) -> Iterator[kvmlet.Sandbox]:
    with c_program.snapshot.fork() as sandbox:
        yield sandbox
