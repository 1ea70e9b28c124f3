"""One call: a message for the guest, and the value or the exception that its answer stands for."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from kvmlet._isolated.exceptions import guest_error
from kvmlet.errors import DeadlineExceeded, KvmletError, ResultError, SandboxEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet.sandbox import Sandbox

_SPARE_BYTES = 8 << 20
"""Memory for a result's objects, beyond what the function has left of its own."""

_PLAIN = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, \
date, time, datetime, timedelta, Decimal, or dataclasses given to kvmlet.register_result"
)


def ask(sandbox: Sandbox, message: bytes) -> Any:
    """`data_of`, with what a caller of an isolated function can do about its limits."""
    try:
        return data_of(sandbox, message)
    except DeadlineExceeded as error:
        error.remedy = "allow more with @isolated(timeout=...)"
        raise
    except SandboxEnded as error:
        reason = "" if error.result is None else error.result.reason
        error.remedy = "allow more with @isolated(memory=...)" if reason == "memory" else ""
        raise


def data_of(sandbox: Sandbox, message: bytes) -> Any:
    """The value that the guest answers `message` with. Raises what it says it raised.

    Reading the answer is part of the call: it ends at the call's deadline, and what it makes counts
    against the call's memory.
    """
    try:
        answer = sandbox.request(message)
    finally:
        _print(sandbox)
    return value_of(answer, sandbox._memory_left() + _SPARE_BYTES, sandbox._check)


def _print(sandbox: Sandbox) -> None:
    """Write the output of the function to our own streams."""
    try:
        output = sandbox.output()
        if sandbox.result is not None:
            output = output._replace(
                stdout=output.stdout + sandbox.result.stdout,
                stderr=output.stderr + sandbox.result.stderr,
            )
    except KvmletError:
        return
    for data, stream in ((output.stdout, sys.stdout), (output.stderr, sys.stderr)):
        if data and stream is not None:
            # A closed one loses it: the result matters more.
            with contextlib.suppress(OSError, ValueError):
                stream.write(data.decode("utf-8", "backslashreplace"))


def value_of(answer: bytes, memory_bytes: int, look: Callable[[], None]) -> Any:
    """The value in the guest's `answer`. Raises ResultError, and GuestError for one that raised.

    memory_bytes, look: as `decode` has them.
    """
    from kvmlet._isolated.codec import DataError, TooLarge, UnknownDataclass
    from kvmlet._isolated.reader import decode

    try:
        content = decode(answer, memory_bytes, look)
    except UnknownDataclass as error:
        raise ResultError(
            f"the result contains {error}, which is not registered here",
            remedy="decorate it with kvmlet.register_result",
        ) from None
    except TooLarge as error:
        raise ResultError(
            f"the result cannot be read: {error}",
            remedy="return less, or allow more with @isolated(memory=...)",
        ) from None
    except DataError as error:
        raise ResultError(f"the guest's answer makes no sense: {error}") from None
    match content:
        case ("ok", value):
            return value
        case ("unfit", str(why)):
            raise ResultError(f"the result is not plain data: {why}", remedy=f"return {_PLAIN}")
        case ("error", str(name), str(text), str(trace), arguments):
            raise guest_error(name, text, trace, arguments)
    raise ResultError("the guest's answer makes no sense")
