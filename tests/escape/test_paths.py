"""Names, links, climbs and descriptors: nothing outside the readable trees is opened."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile
from typing import TYPE_CHECKING

import pytest

from escape.bounded import bounded

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("vm")

CONTENT = "what-no-guest-may-read"


@pytest.fixture
def secret() -> Iterator[pathlib.Path]:
    """A readable host file that is in none of the guest's trees."""
    parent = "/var/tmp" if os.access("/var/tmp", os.W_OK) else "/run"
    with tempfile.TemporaryDirectory(prefix="kvmlet-secret-", dir=parent) as top:
        os.chmod(top, 0o755)
        path = pathlib.Path(top) / "file"
        path.write_text(CONTENT)
        yield path


def test_a_secret_stays_one(
    hostile: pathlib.Path, secret: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    # The working directory, which is readable, holds a way out.
    (tmp_path / "out").symlink_to(secret)
    (tmp_path / "up").symlink_to(secret.parent)
    (tmp_path / "slash").symlink_to("/")
    guest = shutil.copy(hostile / "paths", tmp_path)
    names = [str(secret), f"{tmp_path}/out", f"{tmp_path}/up/file", f"{tmp_path}/slash{secret}"]
    for name in names:
        run = bounded([guest, name, CONTENT], cwd=tmp_path)
        assert b"FAIL" not in run.stdout, run.said
        assert run.stdout.endswith(b"0 opened\n"), run.said
        assert run.status == 0, run.said
    assert secret.read_text() == CONTENT
    assert sorted(os.listdir(tmp_path)) == ["out", "paths", "slash", "up"]
    assert os.listdir(secret.parent) == ["file"]


def test_loops_lengths_and_depths(hostile: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """As path_resolution(7) and symlink(7) say."""
    guest = shutil.copy(hostile / "paths", tmp_path)
    run = bounded([guest, "/var/nowhere", CONTENT], cwd=tmp_path)
    said = run.stdout.decode()
    for line in [
        "loop: ELOOP",
        "a chain of 60: ELOOP",
        "a chain of 45: ELOOP",
        "a chain of 40: opened",
        "a chain of 5: opened",
        "one name, 255 in all: ENOENT",
        "one name, 1000 in all: ENAMETOOLONG",
        "one name, 4096 in all: ENAMETOOLONG",
        "dots, 4095 in all: found",
        "dots, 4096 in all: ENAMETOOLONG",
        "a link of 4095: made",
        "a link of 4096: ENAMETOOLONG",
        "2000 deep",
        "getcwd in little room: ERANGE",
        "a directory under itself: EINVAL",
        "getcwd of nothing: ENOENT",
        "create in nothing: ENOENT",
    ]:
        assert line in said.splitlines(), (line, said)
