"""argparse with our manners: errors are one line and a UsageError, and building it is cheap."""

import argparse
import os

from kvmlet.cli._text import printable, show
from kvmlet.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from _typeshed import SupportsWrite

# argparse sends its own words through gettext, which imports `locale` and looks for catalogues
# on every start. There are none to find.
setattr(argparse, "_", str)  # noqa: B010 - no type checker knows the private name


# argparse's words for options that no parser knows.
_UNKNOWN = "unrecognized arguments: "


def nearest(word: str, known: list[str]) -> str | None:
    """The one of `known` that `word` was probably meant to be."""
    # Only a mistake needs it.
    from difflib import get_close_matches

    found = get_close_matches(word, known, 1, 0.65)
    return found[0] if found else None


class Formatter(argparse.HelpFormatter):
    """argparse makes one for every option, and its default width imports `shutil`."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


class VerbatimFormatter(Formatter, argparse.RawDescriptionHelpFormatter):
    """The same, with the description's own line breaks."""


class Parser(argparse.ArgumentParser):
    """A parser without abbreviations whose errors are UsageErrors."""

    def __init__(self, prog: str, usage: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=VerbatimFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> "NoReturn":
        unknown = message.partition(_UNKNOWN)[2].split(" ")[0]
        if unknown.startswith("-"):
            name = unknown.partition("=")[0]
            near = nearest(name, list(self._option_string_actions))
            raise UsageError(
                f"unknown option {printable(name)}",
                remedy=f"did you mean {near}?" if near else f"see '{self.prog} --help'",
            )
        raise UsageError(message, remedy=f"see '{self.prog} --help'")

    def _print_message(self, message: str, file: "SupportsWrite[str] | None" = None) -> None:  # noqa: ARG002
        # Only help comes here, for standard output: errors are raised.
        status = show(message)
        if status:
            os._exit(status)
