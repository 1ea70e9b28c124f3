"""The check of plain English, on texts made for it."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

LONG = " ".join(["word"] * 26) + "."


def _script() -> Any:
    path = pathlib.Path(__file__).parents[1] / "prose.py"
    spec = importlib.util.spec_from_file_location("prose", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prose"] = module
    spec.loader.exec_module(module)
    return module


prose = _script()


def found(texts: Iterable[tuple[int, str]]) -> list[int]:
    return [line for line, text in texts for _ in prose.faults(text)]


@pytest.mark.parametrize("word", ["What", "Whether", "How", "Where"])
def test_no_text_starts_with_a_question_word(word: str) -> None:
    assert list(prose.faults(f"{word} it does.")) == [f'starts with "{word}"']
    assert not list(prose.faults(f"It says {word} it does."))
    assert not list(prose.faults(f"{word}ever it does."))


def test_a_sentence_has_at_most_25_words() -> None:
    assert list(prose.faults(LONG))
    assert not list(prose.faults(LONG.replace("word ", "", 1)))
    assert not list(prose.faults(LONG.replace("word word", "word. Word", 1)))
    assert list(prose.faults(LONG.replace("word word", "word; word", 1)))


def test_a_code_span_is_one_word() -> None:
    assert not list(prose.faults(f"`{LONG}` is code."))


def test_lists_tables_and_code_of_documents() -> None:
    document = "\n".join(
        [
            "# What a heading may say",
            "",
            "A paragraph of two lines, " + "word " * 10,
            "word " * 20,
            "",
            "- What a list says",
            "- fine",
            "  ```",
            "  " + LONG,
            "  ```",
            "",
            "| Where | fine |",
            "|---|---|",
            "",
            "    " + LONG,
        ]
    )
    assert found(prose.texts_of_markdown(document)) == [3, 6, 12]


def test_doc_comments_of_public_items_only() -> None:
    source = "\n".join(
        [
            "//! How it works.",
            "",
            "/// What it holds.",
            "#[derive(Debug)]",
            "pub struct Shown {",
            "    /// Where it lies.",
            "    pub place: u64,",
            "    /// Where it lies.",
            "    hidden: u64,",
            "}",
            "/// What it holds.",
            "pub(crate) struct Hidden;",
            "// What a plain comment says.",
            "pub struct Other;",
        ]
    )
    assert found(prose.texts_of_rust(source)) == [1, 3, 6]


def test_docstrings_of_public_names_only() -> None:
    source = "\n".join(
        [
            '"""What it is.',
            "",
            LONG,
            '"""',
            "class Shown:",
            '    """Whether it is."""',
            "    def shown(self):",
            '        """How it goes."""',
            "    def _hidden(self):",
            '        """How it goes."""',
            "def _hidden():",
            '    """What it does."""',
        ]
    )
    assert sorted(found(prose.texts_of_python(source))) == [1, 3, 6, 8]


def test_the_repository_keeps_the_rules() -> None:
    assert prose.main() == 0
