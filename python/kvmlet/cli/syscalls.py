"""`kvmlet syscalls`: the system call table, from the dispatcher itself."""

import json

from kvmlet import _native
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import show

Row = tuple[int, str, str, str]

_LEVELS = ("full", "partial", "refused", "none")


def main(words: list[str]) -> int:
    """Print the table; the exit status."""
    options = parser().parse_args(words)
    rows = sorted(_native.syscalls())
    if options.json:
        return show(as_json(rows))
    return show(as_markdown(rows) if options.markdown else as_text(rows))


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet syscalls",
        usage="kvmlet syscalls [--json | --markdown]",
        description="List the Linux system calls and how far each is supported.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the table as JSON")
    form.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser


def as_json(rows: list[Row]) -> str:
    """A list of objects with number, name, support and note."""
    names = ("number", "name", "support", "note")
    return json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2) + "\n"


def as_markdown(rows: list[Row]) -> str:
    """The compatibility table of the documentation."""
    lines = ["| Number | Call | Support | Note |", "|---:|---|---|---|"]
    for number, name, support, note in rows:
        cell = note.replace("|", "\\|")
        lines.append(f"| {number} | `{name}` | {support} | {cell} |")
    return "\n".join(lines) + "\n"


def as_text(rows: list[Row]) -> str:
    """Aligned columns, then how many there are of each level."""
    width = max((len(name) for _, name, _, _ in rows), default=0)
    lines = [
        f"{number:>4}  {name:<{width}}  {support:<7}  {note}".rstrip()
        for number, name, support, note in rows
    ]
    levels = [support for _, _, support, _ in rows]
    counts = ", ".join(f"{levels.count(level)} {level}" for level in _LEVELS)
    return "\n".join([*lines, f"{len(rows)} calls: {counts}"]) + "\n"
