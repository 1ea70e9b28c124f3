"""The map names files and functions that exist."""

from __future__ import annotations

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = ["docs/architecture.md", "docs/adding-a-syscall.md"]
TOP = ("crates/", "python/", "tests/", "benches/", "docs/")


def spans(page: str) -> list[str]:
    """The code spans of a page, but for those that are marked as new."""
    text = (ROOT / page).read_text()
    return re.findall(r"`([^`\n]+)`(?! \(\*new\*\))", text)


@pytest.mark.parametrize("page", PAGES)
def test_files_exist(page: str) -> None:
    named = [span for span in spans(page) if span.startswith(TOP) and not re.search(r"[ {]", span)]
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_functions_exist(page: str) -> None:
    sources = [path.read_text() for path in (ROOT / "crates").rglob("src/**/*.rs")]
    function, field, variant = r"\bfn (\w+)", r"\bpub (\w+):", r"^\s+([A-Z]\w*)[,({]"
    found = re.findall(f"{function}|{field}|{variant}", "\n".join(sources), re.MULTILINE)
    names = {name for groups in found for name in groups}
    named = [span for span in spans(page) if re.fullmatch(r"\w+::\w+(::\w+)?", span)]
    assert named
    assert [span for span in named if span.split("::")[-1] not in names] == []


def test_the_site_has_each_page() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    named = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", settings, re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
