"""Plain data as bytes, in the format of kvmlet._isolated.codec: the guest's side of it."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import struct
import sys
from typing import TYPE_CHECKING, Any

from kvmlet._isolated.codec import (
    ALIGNED_BYTES,
    ARRAY,
    ARRAY_KINDS,
    COMPLEX,
    COUNTER,
    DATE,
    DELTA,
    DOUBLE,
    MAX_DECIMAL_CHARS,
    MAX_DEPTH,
    MAX_INT_BYTES,
    MEMBER,
    MEMORY,
    NAMED,
    ORDERED,
    PATH,
    RANGE,
    TIME,
    U32,
    UUID,
    NotData,
    type_name,
)
from kvmlet._isolated.registry import is_namedtuple

if TYPE_CHECKING:
    from kvmlet._isolated.pieces import Part

# Content from here on is a piece of its own: appended, it would be copied again and again.
_LARGE_BYTES = 64 << 10


class _Out(bytearray):
    """Bytes that are written; `pieces` come before them."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[Part] = []
        self.pieces_bytes = 0
        self.has_classes = False

    def piece(self, content: Part) -> None:
        """Adds large content, which must not change."""
        self.pieces += [bytes(self), content]
        self.pieces_bytes += len(self) + len(content)
        self.clear()

    def parts(self) -> list[Part]:
        return [*self.pieces, bytes(self)] if self.pieces else [bytes(self)]


class _Raw:
    """The memory of an array."""

    def __init__(self, view: memoryview) -> None:
        self.view = view


def encode(value: object) -> bytes:
    """`value` as bytes. Raises NotData."""
    return encoded(value)[0]


def encoded(value: object) -> tuple[bytes, bool]:
    """`value` as bytes; True if it has classes, which its reader must know. Raises NotData."""
    parts, has_classes = _written(value)
    return b"".join(parts), has_classes


def encoded_in_parts(value: object) -> list[Part]:
    """`value` as bytes in parts: large ones are the value's own memory. Raises NotData."""
    return _written(value)[0]


def _written(value: object) -> tuple[list[Part], bool]:
    out = _Out()
    _write(value, out, 0)
    return out.parts(), out.has_classes


def _write(value: Any, out: _Out, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotData(f"it is nested more than {MAX_DEPTH} deep, or contains itself")
    kind = type(value)
    if value is None or value is True or value is False:
        out += b"N" if value is None else b"T" if value else b"F"
    elif kind is int:
        length = value.bit_length() // 8 + 1
        if length > MAX_INT_BYTES:
            raise NotData(f"it contains an int of {length} bytes, and the most is {MAX_INT_BYTES}")
        _write_sized(b"i", value.to_bytes(length, "little", signed=True), out)
    elif kind is str:
        _write_sized(b"s", value.encode("utf-8", "surrogatepass"), out)
    elif kind is float:
        out += b"f" + DOUBLE.pack(value)
    elif kind in _SIZED:
        _write_sized(_SIZED[kind], value, out)
    elif kind in _COUNTED:
        out += _COUNTED[kind] + U32.pack(len(value))
        for item in value:
            _write(item, out, depth + 1)
    elif kind is dict:
        out += b"d" + U32.pack(len(value))
        for key, item in value.items():
            _write(key, out, depth + 1)
            _write(item, out, depth + 1)
    elif kind is complex:
        out += b"c" + COMPLEX.pack(value.real, value.imag)
    elif kind is decimal.Decimal:
        text = str(value).encode("ascii")
        if len(text) > MAX_DECIMAL_CHARS:
            raise NotData(f"it contains a Decimal of more than {MAX_DECIMAL_CHARS} characters")
        _write_sized(b"D", text, out)
    elif kind is datetime.date:
        out += b"y" + DATE.pack(value.toordinal())
    elif kind is datetime.time:
        out += b"h" + _time_bytes(value)
        _write(_zone_data(value), out, depth + 1)
    elif kind is datetime.datetime:
        out += b"x" + DATE.pack(value.toordinal()) + _time_bytes(value)
        _write(_zone_data(value), out, depth + 1)
    elif kind is datetime.timedelta:
        out += b"e" + _delta_bytes(value)
    elif kind is _Raw:
        _write_memory(value.view, out)
    elif (extended := _extended(kind, value)) is not None:
        out += b"E"
        out.has_classes = out.has_classes or extended[0] in (NAMED, MEMBER)
        _write(extended[0], out, depth + 1)
        _write(extended[1], out, depth + 1)
    elif dataclasses.is_dataclass(kind):
        fields = [field.name for field in dataclasses.fields(kind) if field.init]
        out += b"R"
        out.has_classes = True
        _write(type_name(kind), out, depth + 1)
        _write({name: getattr(value, name) for name in fields}, out, depth + 1)
    else:
        raise NotData(f"it contains {type_name(kind)}")


def _extended(kind: type, value: Any) -> tuple[str, object] | None:
    """(word, content) of a value that has the tag E."""
    if kind is range:
        return RANGE, (value.start, value.stop, value.step)
    if kind is collections.OrderedDict:
        return ORDERED, dict(value)
    if kind is collections.Counter:
        return COUNTER, dict(value)
    # The reader says if it knows the class: here it may not be registered, as that of a script.
    if is_namedtuple(kind):
        return NAMED, (type_name(kind), tuple(value))
    if issubclass(kind, enum.Enum) and value.name is not None:
        return MEMBER, (type_name(kind), value.name)
    # Whoever has one of these has the module.
    if (uuid := sys.modules.get("uuid")) and kind is uuid.UUID:
        return UUID, value.bytes
    if (pathlib := sys.modules.get("pathlib")) and kind is pathlib.PosixPath:
        return PATH, str(value)
    if (numpy := sys.modules.get("numpy")) and (array := _numpy(numpy, kind, value)):
        return array
    if "pyarrow" in sys.modules or "pandas" in sys.modules:
        from kvmlet._isolated.tables import data_of_table

        return data_of_table(kind, value)
    return None


def _numpy(numpy: Any, kind: type, value: Any) -> tuple[str, object] | None:
    if kind is numpy.ndarray or isinstance(value, numpy.generic):
        dtype = value.dtype.str
        if dtype[1] not in ARRAY_KINDS:
            raise NotData(f"it contains numpy values of dtype {value.dtype}")
        shape = value.shape if kind is numpy.ndarray else None
        if shape is None or value.nbytes < _LARGE_BYTES:
            return ARRAY, (dtype, shape, value.tobytes())
        whole = numpy.ascontiguousarray(value).reshape(-1).view("u1")
        return ARRAY, (dtype, shape, _Raw(memoryview(whole)))
    return None


_SIZED: dict[type, bytes] = {bytes: b"b", bytearray: b"a"}
_COUNTED: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}


def _write_sized(tag: bytes, content: bytes | bytearray | memoryview, out: _Out) -> None:
    try:
        out += tag + U32.pack(len(content))
    except struct.error:
        raise NotData(f"it contains {len(content)} bytes in one piece") from None
    if len(content) < _LARGE_BYTES:
        out += content
    else:
        out.piece(content)


def _write_memory(view: memoryview, out: _Out) -> None:
    """Memory of an array, so that its reader may use it where it lies."""
    start = out.pieces_bytes + len(out) + 1 + MEMORY.size
    skipped = -start % ALIGNED_BYTES
    try:
        out += b"m" + MEMORY.pack(len(view), skipped) + bytes(skipped)
    except struct.error:
        raise NotData(f"it contains {len(view)} bytes in one piece") from None
    out.piece(view)


def _time_bytes(value: datetime.time | datetime.datetime) -> bytes:
    return TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold)


def _delta_bytes(value: datetime.timedelta) -> bytes:
    return DELTA.pack(value.days, value.seconds, value.microseconds)


def _zone_data(value: datetime.time | datetime.datetime) -> object:
    """None, (offset,) or (offset, name)."""
    zone = value.tzinfo
    if zone is None:
        return None
    if type(zone) is not datetime.timezone:
        raise NotData(
            f"it contains a time with tzinfo {type_name(type(zone))}: convert it to UTC, "
            "or use datetime.timezone"
        )
    offset = zone.utcoffset(None)
    name = zone.tzname(None)
    return (offset,) if datetime.timezone(offset).tzname(None) == name else (offset, name)
