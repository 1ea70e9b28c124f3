"""Commands in an overlay over a directory of the host, against the same natively."""

from __future__ import annotations

import os
import shutil
from functools import partial
from typing import TYPE_CHECKING

from measure import BUILD, Spread, interleave, kvmlet, native
from report import Promise, Row, compare

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from measure import Run

_COUNTS = ("exits", "exits_fault", "exits_syscall")


def _in(where: Path, arm: Callable[[], Run]) -> Run:
    """A run in another directory."""
    os.chdir(where)
    try:
        return arm()
    finally:
        os.chdir(BUILD)


def rows_of_command(
    what: str, where: Path, argv: list[str], pairs: int, *, most: float, remove: str = ""
) -> list[Row]:
    """The rows of a command that starts in `where`, promised to take at most `most` x native.

    `remove` is what it leaves there natively. "The whole command" has the start of kvmlet in it;
    "from VM creation to exit" has not. Raises BenchError.
    """

    def plainly() -> Run:
        try:
            return native(argv)
        finally:
            if remove:
                shutil.rmtree(where / remove, ignore_errors=True)

    arms = [partial(_in, where, plainly), partial(_in, where, partial(kvmlet, argv))]
    done = interleave(pairs, *arms)
    plain_ns = [runs[0].wall_ns for runs in done]
    whole_ns = [runs[1].wall_ns for runs in done]
    inside_ns = [runs[1].stat("wall_us") * 1e3 for runs in done]
    counts = {name: Spread.of([runs[1].stat(name) for runs in done]).median for name in _COUNTS}
    return [
        compare(
            f"{what}, from VM creation to exit",
            inside_ns,
            plain_ns,
            Promise("<=", most, "native"),
            counts=counts,
            shown=_COUNTS,
        ),
        compare(f"{what}, the whole command", whole_ns, plain_ns),
    ]
