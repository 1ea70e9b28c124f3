"""Plain English: docstrings and comments name the thing first, and their sentences are short."""

from __future__ import annotations

import ast
import inspect
import pathlib
import re
import tokenize
from typing import TYPE_CHECKING

import pytest

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = pathlib.Path(kvmlet.__file__).parent
FILES = sorted(path for kind in ("*.py", "*.pyi") for path in SOURCE.rglob(kind))

QUESTIONS = ("What", "Whether", "How", "Where")
MOST_WORDS = 25


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every string that stands by itself: those behind attributes, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            text = node.value.value
            if isinstance(text, str):
                yield node.lineno, inspect.cleandoc(text)


def comments(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Line and text of the first line of every comment."""
    last = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                if token.start[0] != last + 1:
                    yield token.start[0], token.string.lstrip("#: ")
                last = token.start[0]


def sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        lines = paragraph.splitlines()
        # Examples and tables are indented; what is after a name and a colon is about that name.
        if not (paragraph.startswith(">>>") or all(line.startswith("    ") for line in lines)):
            joined = re.sub(r"\n(?=\w+: )", ". ", paragraph)
            yield from re.split(r"(?<=[.?!])\s+", " ".join(joined.split()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_plain_english(path: pathlib.Path) -> None:
    found = list(docstrings(ast.parse(path.read_text())))
    for line, text in [*found, *comments(path)]:
        assert not text.startswith(tuple(f"{word} " for word in QUESTIONS)), f"line {line}: {text}"
    for line, text in found:
        for sentence in sentences(text):
            assert len(sentence.split()) <= MOST_WORDS, f"line {line}: {sentence}"
