"""Fixtures of the hostile guests."""

from __future__ import annotations

import pathlib

import pytest

from conftest import built
from e2e.conftest import native_only, oracle, tmp_name, vm

__all__ = ["hostile", "native_only", "oracle", "tmp_name", "vm"]

GUESTS = pathlib.Path(__file__).parent / "guests"


@pytest.fixture(scope="session")
def hostile() -> pathlib.Path:
    """The directory of the built hostile programs."""
    return built(GUESTS)
