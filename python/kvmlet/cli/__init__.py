"""The `kvmlet` command. Each command is a module with `main(words) -> exit status`."""

import os
import sys

from kvmlet.cli import _ends
from kvmlet.cli._text import printable, warn
from kvmlet.errors import KvmletError, LaunchError, ProgramNotFound, ServerNotStarted, UsageError

COMMANDS = (
    "run",
    "shell",
    "why",
    "profile",
    "serve",
    "apply",
    "doctor",
    "syscalls",
    "completion",
    "man",
)

DESCRIPTION = """\
Run an unmodified Linux program in its own KVM virtual machine, with no guest operating system.

commands:
  run CMD ARG...   run a program
  shell [SHELL]    run an interactive shell
  why PATH         say if a program may read and change PATH, and which option would allow it
  profile [NAME]   print a profile for --profile, or a line about each
  serve CMD ARG... serve requests of HTTP by forks of a server
  apply [DIR]      make changes that a run has saved and not made
  doctor           show whether this machine can run programs in KVM, and what to do if not
  syscalls         list the Linux system calls and how far each is supported
  completion       print a script that completes kvmlet's words in bash, zsh or fish
  man              print the manual page

'kvmlet COMMAND --help' says more.
"""


def main(words: list[str] | None = None) -> int:
    """Run the command in `words` (by default the process's arguments); the exit status."""
    if words is None:
        words = sys.argv[1:]
    previous = _ends.catch()
    try:
        return _dispatch(words)
    except _ends.SignalReceived as received:
        # Whoever sent it knows why the run ended: no message.
        return _ends.status_of_signal(received.signum)
    except KeyboardInterrupt:
        return _ends.STATUS_INTERRUPTED
    except KvmletError as error:
        if _debugging():
            sys.excepthook(type(error), error, error.__traceback__)
        warn(str(error))
        return _status_of(error)
    except Exception as error:  # noqa: BLE001 - the last resort: a line instead of a traceback
        if _debugging():
            sys.excepthook(type(error), error, error.__traceback__)
        warn(
            f"internal error: {type(error).__name__}: {error}; "
            "please report it with what KVMLET_DEBUG=1 shows"
        )
        return _ends.STATUS_OWN_ERROR
    finally:
        _ends.restore(previous)


def _debugging() -> bool:
    return os.environ.get("KVMLET_DEBUG", "") not in ("", "0")


def _status_of(error: KvmletError) -> int:
    if isinstance(error, ProgramNotFound):
        return _ends.STATUS_NOT_FOUND
    if isinstance(error, ServerNotStarted):
        return _ends.STATUS_OWN_ERROR
    if isinstance(error, LaunchError):
        return _ends.STATUS_NOT_EXECUTABLE
    return _ends.STATUS_OWN_ERROR


def _dispatch(words: list[str]) -> int:
    command = words[0] if words else ""
    if command == "run":
        from kvmlet.cli import run

        return run.main(words[1:])
    if command == "shell":
        from kvmlet.cli import shell

        return shell.main(words[1:])
    if command == "why":
        from kvmlet.cli import why

        return why.main(words[1:])
    if command == "profile":
        from kvmlet.cli import profile

        return profile.main(words[1:])
    if command == "serve":
        from kvmlet.cli import serve

        return serve.main(words[1:])
    if command == "apply":
        from kvmlet.cli import apply

        return apply.main(words[1:])
    if command == "doctor":
        from kvmlet.cli import doctor

        return doctor.main(words[1:])
    if command == "syscalls":
        from kvmlet.cli import syscalls

        return syscalls.main(words[1:])
    if command == "completion":
        from kvmlet.cli import completion

        return completion.main(words[1:])
    if command == "man":
        from kvmlet.cli import man

        return man.main(words[1:])
    return _top_level(words)


def _top_level(words: list[str]) -> int:
    """Options without a command: --help, --version or a mistake. The exit status."""
    from kvmlet.cli._parser import Parser

    if not words:
        raise UsageError(
            "no command given", remedy="try 'kvmlet run -- CMD ARG...' or 'kvmlet --help'"
        )
    if not words[0].startswith("-"):
        from kvmlet.cli._parser import nearest

        near = nearest(words[0], list(COMMANDS))
        program = f"to run a program: kvmlet run {printable(words[0])} ..."
        raise UsageError(
            f"unknown command '{printable(words[0])}'",
            remedy=f"did you mean 'kvmlet {near}'?" if near else program,
        )
    parser = Parser(prog="kvmlet", usage="kvmlet [--version] COMMAND ...", description=DESCRIPTION)
    parser.add_argument("--version", action="store_true", help="show kvmlet's version and exit")
    # Only the options before the command: the rest is the command's own.
    own: list[str] = []
    for word in words:
        if not word.startswith("-"):
            break
        own.append(word)
    parser.parse_args(own)
    if "--version" not in own:
        raise UsageError("no command given", remedy="see 'kvmlet --help'")
    import kvmlet
    from kvmlet.cli._text import show

    return show(f"kvmlet {kvmlet.__version__}\n")
