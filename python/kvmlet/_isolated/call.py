"""One call: a message for the guest, and the value or the exception that its answer stands for."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kvmlet._isolated.exceptions import guest_error, one_line, printable
from kvmlet._isolated.pieces import calls, pieces_max, total_of
from kvmlet.errors import DeadlineExceeded, KvmletError, ResultError, SandboxEnded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kvmlet._isolated.pieces import Part
    from kvmlet._result import Denial
    from kvmlet.sandbox import Sandbox

R = TypeVar("R")

_SPARE_BYTES = 8 << 20
"""Memory for a result's objects, beyond what the function has left of its own."""

_NAME_MAX_CHARS = 100

_PLAIN = (
    "None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, \
date, time, datetime, timedelta, Decimal, range, UUID, Path, OrderedDict, Counter, \
arrays and scalars of numpy, tables of Arrow, frames and series of pandas, \
or dataclasses, enumerations and named tuples given to \
kvmlet.register_result"
)


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A call of an isolated function that has returned: its value, and what it did besides.

    >>> @kvmlet.isolated
    ... def look(path):
    ...     print("looking")
    ...     return open(path).readable() if path == "/etc/hosts" else None
    >>> call = look.call("/etc/hosts")
    >>> call.value, call.stdout, call.denials
    (True, 'looking\\n', [])
    """

    value: R
    """The function's result."""
    stdout: str = ""
    """Its output, which is not printed here. Its code chose every character."""
    stderr: str = ""
    denials: list[Denial] = field(default_factory=list)
    """The policy's refusals, each once."""
    stats: dict[str, int | float] = field(default_factory=dict)
    """`wall_us`: microseconds from the request to the value."""


def ask(sandbox: Sandbox, message: Sequence[Part], tell: Callable[[str], None]) -> Any:
    """`data_of`, with what a caller of an isolated function can do about its limits.

    tell: called with the name of a package that the call has imported.
    """
    with _remedies():
        return data_of(sandbox, message, tell)


def ask_in_full(
    sandbox: Sandbox, message: Sequence[Part], tell: Callable[[str], None]
) -> Call[Any]:
    """As `ask`, with what it wrote and was refused. What raises has its output printed."""
    start_s = time.monotonic()
    with _remedies():
        try:
            value = _value(sandbox, _answer_to(sandbox, message), tell)
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


def _nobody(_package: str) -> None:
    """Told of imports while an interpreter is warmed."""


def data_of(
    sandbox: Sandbox, message: Sequence[Part], tell: Callable[[str], None] = _nobody
) -> Any:
    """The value that the guest answers `message` with. Raises what it says it raised."""
    try:
        answer = _answer_to(sandbox, message)
    finally:
        _print(sandbox)
    return _value(sandbox, answer, tell)


def _answer_to(sandbox: Sandbox, message: Sequence[Part]) -> bytes | memoryview:
    """The guest's answer, however many messages it and the call take.

    A long one lies in memory that can be written, and is there once.
    """
    *first, last = calls(message)
    for piece in first:
        sandbox._send_parts(piece)
        # It has taken that one when it asks for the next.
        sandbox.until_ready()
    answer = sandbox._request_parts(last)
    total_bytes = total_of(answer)
    if total_bytes is None:
        return answer
    if total_bytes > sandbox._memory_limit():
        raise _nonsense(f"it is to have {total_bytes} bytes, more than its memory")
    try:
        room = sandbox._room(total_bytes)
    except MemoryError:
        raise ResultError(
            f"the result cannot be read: there is no memory for {total_bytes} bytes",
            remedy="return less",
        ) from None
    at = 0
    # Many short ones would each cost more here than they count for.
    for _ in range(pieces_max(total_bytes)):
        if at == total_bytes:
            break
        piece_bytes = sandbox._recv_into(room, at)
        at += piece_bytes
        if not piece_bytes or at > total_bytes:
            raise _nonsense("its pieces have another length than it said")
    if at != total_bytes:
        raise _nonsense("it comes in too many pieces")
    return memoryview(room)


def _value(sandbox: Sandbox, answer: bytes | memoryview, tell: Callable[[str], None]) -> Any:
    # Reading the answer is part of the call: it ends at the call's deadline, and what it makes
    # counts against the call's memory.
    return value_of(answer, sandbox._memory_left() + _SPARE_BYTES, sandbox._check, tell)


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
                text = _text(data)
                # A terminal would obey them, and the function chose them.
                stream.write(printable(text) if _is_terminal(stream) else text)


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except AttributeError:  # whatever somebody has put in its place
        return False


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def value_of(
    answer: bytes | memoryview,
    memory_bytes: int,
    look: Callable[[], None],
    tell: Callable[[str], None] = _nobody,
) -> Any:
    """The value in the guest's `answer`. Raises ResultError, and GuestError for one that raised.

    memory_bytes, look: as `decode` has them.
    tell: as `ask` has it.
    """
    from kvmlet._isolated.codec import DataError, TooLarge, UnknownDataclass
    from kvmlet._isolated.reader import decode

    try:
        content = decode(answer, memory_bytes, look)
    except UnknownDataclass as error:
        raise ResultError(
            f"the result contains {one_line(str(error))}, which is not registered here",
            remedy="decorate it with kvmlet.register_result",
        ) from None
    except TooLarge as error:
        raise ResultError(
            f"the result cannot be read: {one_line(str(error))}",
            remedy="return less, or allow more with @isolated(memory=...)",
        ) from None
    except DataError as error:
        raise _nonsense(one_line(str(error))) from None
    match content:
        case ("ok", value):
            return value
        case ("ok", value, str(package)) if _is_package(package):
            tell(package)
            return value
        case ("unfit", str(why)):
            what = f"the result is not plain data: {one_line(why)}"
            raise ResultError(what, remedy=f"return {_PLAIN}")
        case ("error", str(name), str(text), str(trace), arguments):
            raise guest_error(name, text, trace, arguments)
    raise _nonsense("it is none of those that the runner gives")


def _is_package(name: str) -> bool:
    return len(name) <= _NAME_MAX_CHARS and name.isascii() and name.isidentifier()


def _nonsense(why: str) -> ResultError:
    return ResultError(
        f"the guest's answer makes no sense: {why}",
        remedy="look for what the function's code does to the runner",
    )
