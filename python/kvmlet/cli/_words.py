"""Each command's options as data, for completion and the manual page."""

import argparse
from collections.abc import Callable, Iterator

from kvmlet._profiles import profile_names
from kvmlet._values import CALLS
from kvmlet.cli import (
    DESCRIPTION,
    _run_options,
    apply,
    completion,
    doctor,
    man,
    profile,
    serve,
    shell,
    syscalls,
    why,
)
from kvmlet.cli._changes import MODES
from kvmlet.cli._parser import Parser

# Those that take a program, which ends their own options.
WITH_PROGRAM = ("run", "shell", "serve")

PARSERS: dict[str, Callable[[], Parser]] = {
    "run": _run_options.parser,
    "shell": shell.parser,
    "why": why.parser,
    "profile": profile.parser,
    "serve": serve.parser,
    "apply": apply.parser,
    "doctor": doctor.parser,
    "syscalls": syscalls.parser,
    "completion": completion.parser,
    "man": man.parser,
}

# Their arguments, as the command's own help has them.
_ARGUMENTS = {
    "run": "CMD ARG...",
    "shell": "[SHELL]",
    "why": "PATH",
    "profile": "[NAME]",
    "serve": "CMD ARG...",
    "apply": "[DIR]",
}

# A line about each, of the command's own help.
DESCRIPTIONS: dict[str, str] = {
    name: line.removeprefix(f"  {name} ").removeprefix(_ARGUMENTS.get(name, "")).strip()
    for name in PARSERS
    for line in DESCRIPTION.splitlines()
    if line.startswith(f"  {name} ")
}

# Values by what stands for them in the help; else any text.
_FILES = ("PATH", "PATH,...", "FILE", "FILE.json", "FILE.toml", "HOST:GUEST[:MODE]")
_DIRECTORIES = ("DIR",)
_MODES = {
    "--calls": CALLS,
    "--changes": tuple(mode.removesuffix("PATH") for mode in MODES),
    "--profile": tuple(profile_names()),
}


class Option:
    """An option of a command."""

    def __init__(self, action: argparse.Action) -> None:
        # Its names, the long one last.
        self.names = tuple(action.option_strings)
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        takes_value = action.nargs != 0
        # The word for its value in the help; empty if it takes none.
        self.metavar = metavar if takes_value else ""
        self.help = (action.help or "") % {"prog": "kvmlet", "default": action.default}
        # Values to choose from.
        choices = action.choices or _MODES.get(self.names[-1], ())
        self.choices = tuple(str(choice) for choice in choices) if takes_value else ()
        # The value may be left out.
        self.is_optional = action.nargs == "?"

    @property
    def files(self) -> str:
        """The kind of files that its value names: "files", "directories" or none."""
        if self.metavar in _FILES:
            return "files"
        return "directories" if self.metavar in _DIRECTORIES else ""


def options(parser: Parser) -> Iterator[tuple[str, list[Option]]]:
    """The groups of options of a command, each with its title, without empty ones."""
    for group in parser._action_groups:
        found = [
            Option(action)
            for action in group._group_actions
            if action.option_strings and action.help != argparse.SUPPRESS
        ]
        if found:
            yield group.title or "options", found
