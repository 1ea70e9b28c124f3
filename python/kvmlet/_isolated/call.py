"""One call: a message for the guest, and the value or the exception that its answer stands for."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvmlet._isolated.exceptions import guest_error
from kvmlet.errors import DeadlineExceeded, KvmletError, ResultError, SandboxEnded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kvmlet._result import Denial
    from kvmlet.sandbox import Sandbox

R = TypeVar("R")

_SPARE_BYTES = 8 << 20
"""Memory for a result's objects, beyond what the function has left of its own."""

_PLAIN = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, \
date, time, datetime, timedelta, Decimal, range, UUID, Path, OrderedDict, Counter, \
arrays and scalars of numpy, or dataclasses, enumerations and named tuples given to \
kvmlet.register_result"
)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A call of an isolated function that has returned: its value, and what it did besides."""

    value: R
    """The function's result."""
    stdout: str = ""
    """Its output, which is not printed here. Its code chose every character."""
    stderr: str = ""
    denials: list[Denial] = field(default_factory=list)
    """The policy's refusals, each once."""
    stats: dict[str, int | float] = field(default_factory=dict)
    """`wall_us`: microseconds from the request to the value."""


def ask(sandbox: Sandbox, message: bytes) -> Any:
    """`data_of`, with what a caller of an isolated function can do about its limits."""
    with _remedies():
        return data_of(sandbox, message)


def ask_in_full(sandbox: Sandbox, message: bytes) -> Call[Any]:
    """As `ask`, with what it wrote and was refused. What raises has its output printed."""
    start_s = time.monotonic()
    with _remedies():
        try:
            value = _value(sandbox, sandbox.request(message))
        except BaseException:
            _print(sandbox)
            raise
    wall_us = (time.monotonic() - start_s) * 1e6
    stdout, stderr = map(_text, sandbox.output())
    return Call(value, stdout, stderr, sandbox.denials(), {"wall_us": wall_us})


@contextlib.contextmanager
def _remedies() -> Iterator[None]:
    try:
        yield
    except DeadlineExceeded as error:
        error.remedy = "allow more with @isolated(timeout=...)"
        raise
    except SandboxEnded as error:
        reason = "" if error.result is None else error.result.reason
        error.remedy = "allow more with @isolated(memory=...)" if reason == "memory" else ""
        raise


def data_of(sandbox: Sandbox, message: bytes) -> Any:
    """The value that the guest answers `message` with. Raises what it says it raised."""
    try:
        answer = sandbox.request(message)
    finally:
        _print(sandbox)
    return _value(sandbox, answer)


def _value(sandbox: Sandbox, answer: bytes) -> Any:
    # Reading the answer is part of the call: it ends at the call's deadline, and what it makes
    # counts against the call's memory.
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
                stream.write(_text(data))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


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
