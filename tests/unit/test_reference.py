"""docs/reference.md has every public name, each with an example, and is up to date."""

from __future__ import annotations

import doctest
import importlib.util
import pathlib
import sys
from typing import Any

import pytest

import kvmlet


def script() -> Any:
    path = pathlib.Path(__file__).parents[2] / "docs/reference.py"
    spec = importlib.util.spec_from_file_location("kvmlet_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


reference = script()
NAMES = [name for name, _ in reference.examples()]


def test_every_public_name_has_its_place() -> None:
    assert len(NAMES) == len(set(NAMES))
    public = {*kvmlet.__all__, *(f"aio.{name}" for name in kvmlet.aio.__all__)}
    assert set(NAMES) - public == {
        "FileChange",
        "FileStat",
        "Files",
        "ProgramFiles",
        "Watch",
    }
    assert public - set(NAMES) == set()


@pytest.mark.parametrize("name", NAMES)
def test_each_name_has_an_example(name: str) -> None:
    text = reference.text_of(name)
    assert len(text.partition(">>>")[0]) > 10, f"{name}: no text before its example"
    examples = doctest.DocTestParser().get_examples(text, name)
    assert examples, f"{name}: its docstring has no example (>>>)"
    mentioned = name.rpartition(".")[2]
    code = "".join(each.source + each.want for each in examples)
    # A value may be shown by the call that gives it.
    shown = mentioned in code or any(each.want or each.exc_msg for each in examples)
    assert shown, f"{name}: its example shows nothing of it"


def test_the_page_is_up_to_date() -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    assert page == reference.page(), "docs/reference.md: run `make reference`"


def test_links_lead_to_sections() -> None:
    page = reference.PAGE.read_text(encoding="utf-8")
    headings = {
        line.lstrip("# ").lower() for line in page.splitlines() if line.startswith(("## ", "### "))
    }
    links = {each.partition(")")[0] for each in page.split("](#")[1:]}
    assert links - headings == set()
    assert page.count("```") % 2 == 0


def test_docstrings_become_markdown() -> None:
    text = """It does.

size: bytes of it,
    at most all.
timeout: in seconds.

Raises UsageError, Other.

    >>> it()
    1
"""
    expected = """It does.

- `size`: bytes of it, at most all.
- `timeout`: in seconds.

Raises [UsageError](#usageerror), Other.

```pycon
>>> it()
1
```"""
    assert reference.markdown(text, "it") == expected
    assert reference.markdown("UsageError is `UsageError`", "UsageError") == (
        "UsageError is `UsageError`"
    )
