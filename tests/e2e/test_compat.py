"""The compatibility page is what the table says."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

pytestmark = pytest.mark.default_mode

ROOT = pathlib.Path(__file__).parents[2]


def test_the_page_is_up_to_date() -> None:
    command = [str(ROOT / ".venv/bin/kvmlet"), "syscalls", "--markdown"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    page = (ROOT / "docs/syscalls.md").read_text()
    assert page == printed.stdout, "run: .venv/bin/kvmlet syscalls --markdown > docs/syscalls.md"
