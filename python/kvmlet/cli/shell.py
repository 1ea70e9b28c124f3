"""`kvmlet shell`: an interactive shell in a sandbox, with the options of `kvmlet run`."""

from os import X_OK, access, environ

from kvmlet.cli import _run_options, run
from kvmlet.cli._parser import Parser

_DESCRIPTION = """\
Run a shell in a sandbox: SHELL with its arguments, else the program that $SHELL names, else bash or
sh. It may do what a program under 'kvmlet run' with these options may. Its changes of the current
directory are made in memory; --changes ask shows them at the end and asks.
"""

_SHELLS = ("/bin/bash", "/bin/sh")


def main(words: list[str]) -> int:
    """Run a shell by `words`; its exit status."""
    own, program = _run_options.split_command(words)
    options = _run_options.read(own, parser)
    if not program and not options.print_policy:
        program = [_shell()]
    return run.run(options, program)


def parser() -> Parser:
    """The options of the command."""
    return _run_options.parser(
        prog="kvmlet shell",
        usage="kvmlet shell [options] [--] [SHELL ARG...]",
        description=_DESCRIPTION,
    )


def _shell() -> str:
    named = environ.get("SHELL", "")
    shells = (named, *_SHELLS) if named.startswith("/") else _SHELLS
    return next((shell for shell in shells if access(shell, X_OK)), _SHELLS[-1])
