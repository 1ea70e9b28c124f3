"""The example of each public name says what its docstring says."""

from __future__ import annotations

import doctest
import pathlib
from collections.abc import Iterator
from typing import Any

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, LONG, NO_RUNTIMES
from unit.test_reference import NAMES, reference

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]


@pytest.fixture(scope="module")
def names() -> Iterator[dict[str, Any]]:
    """The names that examples begin with, as the head of the page makes them."""
    program = list(reference.PROGRAM)
    with kvmlet.Sandbox(program).until_ready(timeout=HANG_S).freeze() as snapshot:
        yield {"kvmlet": kvmlet, "program": program, "snapshot": snapshot}


# Those that start a program of Python's, which takes a second: one of each kind is run always.
SLOW = {
    name
    for name, text in reference.examples()
    if "http.server" in text or "Sandbox(program)" in text or "python3" in text
} - {"serve", "Sandbox", "Connection"}


@pytest.mark.parametrize("name", [name for name in NAMES if LONG or name not in SLOW])
def test_example(
    names: dict[str, Any], name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    parser = doctest.DocTestParser()
    test = parser.get_doctest(
        reference.text_of(name), {**names, "__name__": "__main__"}, name, None, None
    )
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    failed, tried = runner.run(test, out=said.append)
    assert tried
    assert not failed, "".join(said)
