"""Fixtures of the hostile guests."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from e2e.conftest import native_only, oracle, tmp_name, vm

__all__ = ["hostile", "native_only", "oracle", "tmp_name", "vm"]

GUESTS = pathlib.Path(__file__).parent / "guests"


@pytest.fixture(scope="session")
def hostile() -> pathlib.Path:
    """The directory of the built hostile programs.

    Nothing is written when they are up to date: the file system may be read-only.
    """
    question = subprocess.run(["make", "--question", "--silent", "-C", GUESTS], capture_output=True)
    if question.returncode != 0:
        build = subprocess.run(
            ["make", "--silent", "-j2", "-C", GUESTS], capture_output=True, text=True
        )
        assert build.returncode == 0, f"the hostile programs do not build:\n{build.stderr}"
    return GUESTS / "build"
