"""Arguments and values of `Sandbox.call`: those of C, as the extension takes and gives them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

# Of ctypes' types, the codes of those that fit the register in which an integer is returned.
_CTYPES_INTEGERS = "?bBhHiIlLqQ"


_PLAIN: dict[object, str] = {int: "int", float: "float", bytes: "bytes", None: "none"}


def argument_value(value: object, position: int) -> int | float | bytes | bytearray:
    """Argument `position` (from 1) of a call, as the extension takes it. Raises UsageError."""
    if isinstance(value, (float, bytes, bytearray)):
        return value
    if value is None:
        return 0
    if isinstance(value, int):
        if -(1 << 63) <= value < 1 << 64:
            return int(value)
        raise UsageError(
            f"argument {position} does not fit in 64 bits", remedy="pass it in a buffer"
        )
    if isinstance(value, memoryview):
        if value.readonly:
            return bytes(value)
        if value.c_contiguous:
            return bytearray(value)
        raise UsageError(f"argument {position} is a memoryview with gaps", remedy="copy it first")
    remedy = (
        "encode it: text.encode()"
        if isinstance(value, str)
        else "pass int, float, bytes, bytearray or None"
    )
    raise UsageError(f"argument {position} is {type(value).__name__}", remedy=remedy)


def _as_it_is(value: object) -> object:
    return value


def return_kind(kind: object) -> tuple[str, Callable[[object], object]]:
    """The extension's word for `returns=kind`, and a function that makes the value of its answer.

    Raises UsageError.
    """
    if kind is None or isinstance(kind, type):
        name = _PLAIN.get(kind)
        if name is not None:
            return name, _as_it_is
    code = getattr(kind, "_type_", None)
    if isinstance(kind, type) and isinstance(code, str) and code in _CTYPES_INTEGERS:
        bits = 8 * sys.modules["ctypes"].sizeof(kind)
        return "int", lambda value: kind(value & (1 << bits) - 1).value
    raise UsageError(
        f"returns={kind!r} is not a kind of value",
        remedy="pass int, float, bytes, None or an integer type of ctypes",
    )
