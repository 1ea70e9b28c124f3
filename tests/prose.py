"""Checks plain English in documents, doc comments of public Rust items and public docstrings.

Two rules: no such text starts with What, Whether, How or Where, and no sentence has more than 25
words. A code span is one word. Headings, code blocks and pictures are left out. Each entry of a
list and each cell of a table is a text of its own.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent

# Rooms whose comments keep the rules.
CHECKED = (
    "crates/abi",
    "crates/budget",
    "crates/elf",
    "crates/engine",
    "crates/hostfs",
    "crates/hv",
    "crates/jail",
    "crates/linux",
    "crates/mem",
    "crates/policy",
    "crates/py",
    "crates/serve",
    "crates/stub",
    "python",
    "benches",
    "tests",
)

# Documents that are written by hand. Decisions (docs/adr) stay as they were made.
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md")

# Written by `kvmlet syscalls`, and figures as they were measured.
# The reference is written from docstrings, which are checked where they stand.
NOT_PROSE = ("docs/syscalls.md", "docs/measurements.md", "docs/reference.md")

WORDS_MAX = 25

_OPENING = re.compile(r"(?:What|Whether|How|Where)\b")
# The full stops of "e.g." and "vol." end nothing.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\.[a-z]\.)(?<!vol\.)[\")*_]*\s+")
_BULLET = re.compile(r"^\s*(?:[-*+]|\d+\.)\s+")
_PUBLIC = re.compile(r"\s*pub (?!\(|use\b)")


def texts_of_markdown(source: str) -> Iterator[tuple[int, str]]:
    """Yields paragraphs, list entries and table cells of a document, each with its first line."""
    start, held = 0, list[str]()
    in_code = False
    for number, line in enumerate(source.splitlines(), 1):
        text = line.strip()
        is_fence = text.startswith("```")
        is_new = not held and line.startswith("    ") and not _BULLET.match(line)
        if is_fence or in_code or is_new or not text or text[0] in "#|<" or _BULLET.match(line):
            if held:
                yield start, " ".join(held)
            held = []
        in_code ^= is_fence
        if is_fence or in_code or is_new or not text or text[0] in "#<":
            continue
        if text.startswith("|"):
            cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", text.strip("|")))
            yield from ((number, cell) for cell in cells)
            continue
        if not held:
            start = number
        held.append(_BULLET.sub("", line, count=1).strip())
    if held:
        yield start, " ".join(held)


def texts_of_rust(source: str) -> Iterator[tuple[int, str]]:
    """Yields the texts of `//!`, and of `///` before an item that begins with `pub`."""
    start, held = 0, list[str]()
    marker = ""
    for number, line in enumerate([*source.splitlines(), ""], 1):
        text = line.strip()
        found = text[:3] if text.startswith(("//!", "///")) else ""
        if found and found == (marker or found):
            start, marker = (start if held else number), found
            held.append(text[3:].removeprefix(" "))
            continue
        if marker == "///" and text.startswith(("#[", "#![")):
            continue
        if held and (marker == "//!" or _PUBLIC.match(line)):
            yield from _shifted(start, "\n".join(held))
        held, marker = [], ""


def texts_of_python(source: str) -> Iterator[tuple[int, str]]:
    """Yields the docstrings of a module, of its public classes and of public functions."""
    nodes: list[ast.AST] = [ast.parse(source)]
    for node in nodes:
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if getattr(node, "name", "").startswith("_"):
            continue
        text = ast.get_docstring(node)
        if text is not None:
            # An example behind a text of one line is not seen to be indented.
            told = text.partition("\n\n>>> ")[0]
            yield from _shifted(node.body[0].lineno, told)
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes.extend(node.body)


def _shifted(start: int, text: str) -> Iterator[tuple[int, str]]:
    return ((start + number - 1, found) for number, found in texts_of_markdown(text))


def faults(text: str) -> Iterator[str]:
    """Yields the rules that one paragraph, list entry or cell breaks."""
    plain = re.sub(r"``[^`]+``|`[^`]+`", "code", text)
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    opening = _OPENING.match(plain)
    if opening:
        yield f'starts with "{opening[0]}"'
    for sentence in _SENTENCE_END.split(plain):
        words = [word for word in sentence.split() if re.search(r"\w", word)]
        if len(words) > WORDS_MAX:
            yield f'has a sentence of {len(words)} words: "{" ".join(words[:6])} ..."'


def check(path: Path) -> list[tuple[int, str]]:
    """Returns the faults of a file, each with its line."""
    readers = {".md": texts_of_markdown, ".rs": texts_of_rust, ".py": texts_of_python}
    texts = readers[path.suffix](path.read_text(encoding="utf-8"))
    return [(line, fault) for line, text in texts for fault in faults(text)]


def files() -> Iterator[Path]:
    """Yields the files of the documents and of the checked rooms."""
    for pattern in DOCUMENTS:
        for path in sorted(ROOT.glob(pattern)):
            if str(path.relative_to(ROOT)) not in NOT_PROSE:
                yield path
    for room in CHECKED:
        # Guest programs are run and compared, and nobody calls what they define.
        for path in sorted((ROOT / room).rglob("*.*")):
            if path.suffix in {".rs", ".py"} and not {"build", "guests", "target"} & set(
                path.parts
            ):
                yield path


def main() -> int:
    """Prints each fault as `file:line: rule`; the exit status is 1 if there is one."""
    found = [(path, *fault) for path in files() for fault in check(path)]
    for path, line, fault in found:
        print(f"{path.relative_to(ROOT)}:{line}: {fault}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
