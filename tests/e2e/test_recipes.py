"""Each example of docs/recipes.md says what the page says."""

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

PAGE = (pathlib.Path(__file__).parents[2] / "docs/recipes.md").read_text()
SECTIONS = {
    title: re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
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


def test_all_of_the_page_is_found() -> None:
    assert len(SECTIONS) > 4
    assert all(SECTIONS.values())
    assert PAGE.count("```") == 2 * sum(map(len, SECTIONS.values()))


@pytest.mark.parametrize("title", SECTIONS)
def test_recipe(tmp_path: pathlib.Path, title: str) -> None:
    last = ""
    for kind, text in SECTIONS[title]:
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
