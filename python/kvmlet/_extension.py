"""Asking the extension: its errors as exceptions of ours, its outcomes as results."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeVar

from kvmlet import _native
from kvmlet._changes.result import Changes
from kvmlet._result import Denial, Event, Result
from kvmlet.errors import from_native

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from typing import ParamSpec

    P = ParamSpec("P")

T = TypeVar("T")


def translated(ask: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """`ask(...)` with the extension's errors as exceptions of ours: a KvmletError."""
    try:
        return ask(*args, **keywords)
    except _native.NativeError as error:
        raise from_native(*error.args) from None


def result_of(
    outcome: _native.Outcome, args: Sequence[str | bytes | os.PathLike[str]] = ()
) -> Result[bytes]:
    """The extension's `outcome` as callers get it."""
    return Result(
        stdout=outcome.stdout,
        stderr=outcome.stderr,
        exit_code=outcome.exit_code,
        signal=outcome.signal,
        reason=outcome.reason,
        denials=[Denial(*denial) for denial in outcome.denials],
        events=[Event(*event) for event in outcome.events],
        changes=Changes([(kind, os.fsdecode(path)) for kind, path in outcome.changes]),
        changes_are_cut=outcome.changes_are_cut,
        stats=outcome.stats,
        args=list(args),
    )
