"""The table of errors: complete, and as the engine and the documentation have it."""

from __future__ import annotations

import pathlib
import re

import pytest

import kvmlet
from kvmlet import errors

ROOT = pathlib.Path(__file__).parents[2]


def kinds_of_the_engine() -> set[str]:
    kinds: set[str] = set()
    for path in (ROOT / "crates" / "engine" / "src").rglob("*.rs"):
        for body in re.findall(
            r"pub fn kind\(&self\) -> &'static str \{(.*?)\n    \}", path.read_text(), re.DOTALL
        ):
            kinds.update(re.findall(r'=> "(\w+)"', body))
    return kinds


def test_every_kind_of_the_engine_has_its_exception() -> None:
    kinds = kinds_of_the_engine()
    assert {"not_found", "internal"} <= kinds
    # The others are the extension's own: it refuses before it asks the engine.
    own = {kind for kind in errors._KINDS if kind.removeprefix("serve_") not in kinds}
    assert own == {"busy", "forked", "warmup"}
    assert kinds - set(errors._KINDS) == set()


@pytest.mark.parametrize("kind", errors._KINDS)
def test_each_error_is_one_line(kind: str) -> None:
    error = errors.from_native(kind, "it happened")
    assert type(error) is errors._KINDS[kind][0]
    assert str(error) == f"it happened; {error.remedy}".removesuffix("; ")


def test_an_unknown_kind_is_a_fault_of_ours() -> None:
    assert type(errors.from_native("no such kind", "x")) is kvmlet.InternalError


def test_every_error_is_public_and_in_the_picture() -> None:
    picture = errors.__doc__ or ""
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.KvmletError):
            assert name in kvmlet.__all__
            assert re.search(rf"(^|── | {{4}}){name}\b", picture, re.MULTILINE), name
