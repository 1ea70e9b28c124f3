"""`kvmlet man`: the manual page, made of the help of each command."""

from kvmlet.cli._parser import Parser
from kvmlet.cli._text import show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmlet.cli._words import Option


def main(words: list[str]) -> int:
    """Print the page; the exit status."""
    parser().parse_args(words)
    return show(page())


def parser() -> Parser:
    """The options of the command."""
    return Parser(
        prog="kvmlet man",
        usage="kvmlet man",
        description="Print the manual page. To read it: kvmlet man | man -l -",
    )


def _text(text: str) -> str:
    """Text as roff reads it: no character of it is a request or an escape."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")


def _paragraphs(text: str) -> list[str]:
    """Text with the line breaks of the help: indented lines stay as they are."""
    lines: list[str] = []
    for line in text.strip("\n").split("\n"):
        if not line.strip():
            lines.append(".PP")
        elif line.startswith(" "):
            # A dot at the start of a line would be a request.
            lines += [".nf", "\\&" + _text(line), ".fi"]
        else:
            lines.append("\\&" + _text(line.strip()))
    return lines


def _item(option: "Option") -> list[str]:
    names = []
    for name in option.names:
        value = ""
        if option.metavar:
            joint = "=" if name.startswith("--") else " "
            value = f"{joint}\\fI{_text(option.metavar)}\\fR"
            value = f"[{value}]" if option.is_optional else value
        names.append(f"\\fB{_text(name)}\\fR{value}")
    return [".TP", ", ".join(names), "\\&" + _text(option.help)]


def page() -> str:
    """The page in the man macros of roff: section 1."""
    import kvmlet
    from kvmlet.cli._words import DESCRIPTIONS, PARSERS, WITH_PROGRAM, options

    lines = [
        f'.TH KVMLET 1 "" "kvmlet {kvmlet.__version__}" "User Commands"',
        ".SH NAME",
        "kvmlet \\- run an unmodified Linux program in its own virtual machine",
        ".SH SYNOPSIS",
    ]
    for name in PARSERS:
        program = " [\\-\\-] \\fICMD ARG\\fR..." if name in WITH_PROGRAM else ""
        lines += [f"\\fBkvmlet {name}\\fR [options]{program}", ".br"]
    lines += [".SH COMMANDS"]
    for name in PARSERS:
        lines += [".TP", f"\\fB{name}\\fR", "\\&" + _text(DESCRIPTIONS[name])]
    for name, make in PARSERS.items():
        parser = make()
        lines += [f".SH KVMLET {name.upper()}", *_paragraphs(parser.description or "")]
        for title, found in options(parser):
            lines += [
                f'.SS "{_text(title)}"',
                *(line for option in found for line in _item(option)),
            ]
        if parser.epilog:
            lines += [".PP", *_paragraphs(parser.epilog)]
    return "\n".join(lines) + "\n"
