"""Writing to people: one line of standard error, or a page of standard output."""

import os

from kvmlet.cli._ends import STATUS_OK, STATUS_OWN_ERROR, STATUS_READER_GONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# At most one: what writes to standard error instead of os.write.
_says: "list[Callable[[bytes], None]]" = []


def say_by(say: "Callable[[bytes], None]") -> None:
    """Have standard error written by `say`, which a terminal that nobody reads does not hold up."""
    _says[:] = [say]


def printable(text: str) -> str:
    """`text` as one line without control characters.

    Names come from the guest: they must not move the cursor, or forge lines of ours.
    """
    if text.isprintable():
        return text
    # By number, not by codec: that would be a late import (see kvmlet.cli.run).
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def warn(text: str) -> None:
    """One line to standard error, marked as ours."""
    write_stderr(f"kvmlet: {printable(text)}\n")


def write_stderr(text: str) -> None:
    """`text` to descriptor 2. A closed or full standard error loses it: there is nowhere else."""
    data = text.encode("utf-8", "backslashreplace")
    for say in _says:
        say(data)
        return
    try:
        while data:
            data = data[os.write(2, data) :]
    except OSError:
        pass


def show(text: str) -> int:
    """`text` to standard output; the exit status, not STATUS_OK if it cannot be written."""
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        return STATUS_READER_GONE
    except OSError as error:
        warn(f"cannot write to standard output: {error.strerror}")
        return STATUS_OWN_ERROR
    return STATUS_OK
