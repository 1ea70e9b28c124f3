"""Descriptors above 2 that the caller of `kvmlet run` passes to the program.

Python and kvmlet open everything close-on-exec. What is not has been open before this process was.
"""

import os
from stat import S_ISFIFO, S_ISREG

from kvmlet.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    # Numbers, each with a duplicate for the program to have.
    Taken: TypeAlias = list[tuple[int, int]]


def take(words: list[str]) -> "tuple[Taken, Taken]":
    """(pipes and regular files that the caller has left open, those that --fd names).

    This process has them no more: when the program closes one, it is closed. Raises UsageError,
    HostError.
    """
    named = list(dict.fromkeys(_number(word) for word in words))
    left_open = [number for number in _inherited() if number not in named]
    for number in named:
        if not _is_inherited(number):
            raise UsageError(
                f"--fd {number}: it is not open", remedy=f"open it: CMD ARG... {number}<FILE"
            )
    return _taken(filter(_is_passed, left_open)), _taken(named)


def _number(word: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 9:
        raise UsageError(f"--fd: '{word}' is no descriptor", remedy="write its number: --fd 3")
    if int(word) < 3:
        raise UsageError(
            f"--fd {word}: the standard streams are passed anyway", remedy="leave it out"
        )
    return int(word)


def _inherited() -> list[int]:
    try:
        numbers = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError:
        # Nobody can tell without /proc; --fd names them.
        return []
    return [number for number in numbers if number > 2 and _is_inherited(number)]


def _is_inherited(number: int) -> bool:
    try:
        return os.get_inheritable(number)
    except OSError:
        return False


def _is_passed(number: int) -> bool:
    mode = os.fstat(number).st_mode
    return S_ISREG(mode) or S_ISFIFO(mode)


def _taken(numbers: "Iterable[int]") -> "Taken":
    taken = []
    for number in numbers:
        try:
            taken.append((number, os.dup(number)))
        except OSError as error:
            raise HostError(
                f"descriptor {number} cannot be passed: {error.strerror}",
                remedy="pass fewer, or raise the limit on open files (ulimit -n)",
            ) from None
        os.close(number)
    return taken
