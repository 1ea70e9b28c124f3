"""Each example of these pages says what the page says."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from e2e.oracle import HANG_S, HW, KVMLET, NO_RUNTIMES

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

DOCS = pathlib.Path(__file__).parents[2] / "docs"
PAGES = {page: (DOCS / page).read_text() for page in ("first-five-minutes.md", "recipes.md")}
SECTIONS = {
    (page, title): re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    for page, whole in PAGES.items()
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", whole, re.MULTILINE | re.DOTALL)
}
ENV = {**os.environ, "PATH": f"{pathlib.Path(KVMLET).parent}:{os.environ['PATH']}"}


def same(said: str, expected: str) -> bool:
    """True if a text is what is expected, where "..." stands for anything."""
    parts = [re.escape(part) for part in expected.strip().split("...")]
    return re.fullmatch(r".*".join(parts), said.strip(), re.DOTALL) is not None


def said(argv: list[str], directory: pathlib.Path) -> str:
    done = subprocess.run(
        argv,
        cwd=directory,
        env=ENV,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    return done.stdout


def test_all_of_the_pages_is_found() -> None:
    assert len(SECTIONS) > 7
    assert all(SECTIONS.values())
    fences = sum(page.count("```") for page in PAGES.values())
    assert fences == 2 * sum(map(len, SECTIONS.values()))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section[1])
def test_recipe(tmp_path: pathlib.Path, section: tuple[str, str]) -> None:
    last = ""
    for kind, text in SECTIONS[section]:
        if kind == "console":
            for command, expected in re.findall(
                r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE
            ):
                last = said(["bash", "-c", command], tmp_path)
                assert same(last, expected), (command, last)
        elif kind == "python":
            (tmp_path / "recipe.py").write_text(text)
            last = said([sys.executable, "recipe.py"], tmp_path)
        else:
            assert kind == "text"
            assert same(last, text), last
