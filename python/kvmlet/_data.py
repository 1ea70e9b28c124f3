"""Values as bytes: how results of isolated functions leave the guest.

Unlike a pickle this is data and nothing else: reading it calls no code that the guest could choose.
The guest writes it (kvmlet._runner), the host reads it, and trusts no byte of it: lengths, depth,
amount and hashes are bounded.

A value is a tag byte and its content; all numbers are little-endian:

    N T F           None, True, False
    i               int: u32 length, two's complement
    f c             float, complex: one or two IEEE doubles
    s b a           str (UTF-8, surrogates allowed), bytes, bytearray: u32 length, content
    l t S Z         list, tuple, set, frozenset: u32 count, values
    d               dict: u32 count, keys and values in turn
    D               Decimal: u32 length, its text
    y h x e         date, time, datetime, timedelta
    R               dataclass: its name and its fields, as two values: str and dict
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import inspect
import struct
from typing import TYPE_CHECKING, Any, TypeVar

from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DataError", "NotData", "decode", "encode", "register_result", "type_name"]

T = TypeVar("T")

MAX_DEPTH = 100
# What decoding may make unless its caller says.
_MAX_MEMORY_BYTES = 400 << 20
# What is made between two looks at the time: a millisecond or two.
_LOOK_BYTES = 64 << 10
# A key beside its value, while its set or dict is filled: hashes, sizes and the table itself.
_HASHED_BYTES = 200
_FIELDS_BYTES = 256
# Of each byte of a str that is not ASCII: a single character may make all of them four bytes wide.
_WIDE_BYTES = 4
# Quadratic arithmetic on an int of this size still takes no time to speak of.
_MAX_INT_BYTES = 128 << 10
# An int in a key may be compared with others of its hash, and Decimals, any number of times.
_MAX_KEY_INT_BYTES = 1 << 10
# Numbers that hash alike are easily made, and a table full of them takes forever to fill.
_MAX_SAME_HASH = 64
# Keys of one hash are compared, an int with a Decimal slowly: so many bytes of them in one message.
_MAX_COMPARED_BYTES = 1 << 20
_MAX_DECIMAL_CHARS = 64 << 10

_U32 = struct.Struct("<I")
_DOUBLE = struct.Struct("<d")
_COMPLEX = struct.Struct("<dd")
_DATE = struct.Struct("<I")  # proleptic ordinal
_TIME = struct.Struct("<BBBIB")  # hour, minute, second, microsecond, fold
_DELTA = struct.Struct("<iII")  # days, seconds, microseconds

_registered: dict[str, type] = {}


class NotData(TypeError):
    """A value is not plain data; the message says which and where."""


class DataError(ValueError):
    """Bytes are not what `encode` makes, or more than is let in."""


class TooLarge(DataError):
    """A value takes more memory than it may."""


class UnknownDataclass(DataError):
    """A dataclass that was not registered."""


def register_result(cls: type[T]) -> type[T]:
    """Let isolated functions return instances of the dataclass `cls`. May decorate it.

    The host makes the instance by calling `cls` with the fields that the guest sent, of whatever
    types those are: what matters, `__post_init__` must check. A class that is not registered is
    never made.

    Raises UsageError for what is no dataclass, or one not made by its fields alone.
    """
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise UsageError(f"{cls!r} is not a dataclass", remedy="decorate it with @dataclass first")
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    if set(inspect.signature(cls).parameters) != fields:
        raise UsageError(
            f"{type_name(cls)} is not made by its fields alone",
            remedy="return a plain dataclass without InitVar or an __init__ of its own",
        )
    _registered[type_name(cls)] = cls
    return cls


def type_name(cls: type) -> str:
    """ "module.qualname" of a class; of a builtin its name alone."""
    module = cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"


# ---- writing ----


def encode(value: object) -> bytes:
    """`value` as bytes. Raises NotData."""
    out = bytearray()
    _write(value, out, 0)
    return bytes(out)


def _write(value: Any, out: bytearray, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotData(f"it is nested more than {MAX_DEPTH} deep, or contains itself")
    kind = type(value)
    if value is None or value is True or value is False:
        out += b"N" if value is None else b"T" if value else b"F"
    elif kind is int:
        length = value.bit_length() // 8 + 1
        if length > _MAX_INT_BYTES:
            raise NotData(f"it contains an int of {length} bytes, and the most is {_MAX_INT_BYTES}")
        _write_sized(b"i", value.to_bytes(length, "little", signed=True), out)
    elif kind is str:
        _write_sized(b"s", value.encode("utf-8", "surrogatepass"), out)
    elif kind is float:
        out += b"f" + _DOUBLE.pack(value)
    elif kind in _SIZED:
        _write_sized(_SIZED[kind], value, out)
    elif kind in _COUNTED:
        out += _COUNTED[kind] + _U32.pack(len(value))
        for item in value:
            _write(item, out, depth + 1)
    elif kind is dict:
        out += b"d" + _U32.pack(len(value))
        for key, item in value.items():
            _write(key, out, depth + 1)
            _write(item, out, depth + 1)
    elif kind is complex:
        out += b"c" + _COMPLEX.pack(value.real, value.imag)
    elif kind is decimal.Decimal:
        text = str(value).encode("ascii")
        if len(text) > _MAX_DECIMAL_CHARS:
            raise NotData(f"it contains a Decimal of more than {_MAX_DECIMAL_CHARS} characters")
        _write_sized(b"D", text, out)
    elif kind is datetime.date:
        out += b"y" + _DATE.pack(value.toordinal())
    elif kind is datetime.time:
        out += b"h" + _time_bytes(value)
        _write(_zone_data(value), out, depth + 1)
    elif kind is datetime.datetime:
        out += b"x" + _DATE.pack(value.toordinal()) + _time_bytes(value)
        _write(_zone_data(value), out, depth + 1)
    elif kind is datetime.timedelta:
        out += b"e" + _delta_bytes(value)
    elif dataclasses.is_dataclass(kind):
        fields = [field.name for field in dataclasses.fields(kind) if field.init]
        out += b"R"
        _write(type_name(kind), out, depth + 1)
        _write({name: getattr(value, name) for name in fields}, out, depth + 1)
    else:
        raise NotData(f"it contains {type_name(kind)}")


_SIZED: dict[type, bytes] = {bytes: b"b", bytearray: b"a"}
_COUNTED: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}


def _write_sized(tag: bytes, content: bytes | bytearray, out: bytearray) -> None:
    try:
        out += tag + _U32.pack(len(content))
    except struct.error:
        raise NotData(f"it contains {len(content)} bytes in one piece") from None
    out += content


def _time_bytes(value: datetime.time | datetime.datetime) -> bytes:
    return _TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold)


def _delta_bytes(value: datetime.timedelta) -> bytes:
    return _DELTA.pack(value.days, value.seconds, value.microseconds)


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


# ---- reading ----


def decode(
    data: bytes,
    memory_bytes: int = _MAX_MEMORY_BYTES,
    look: Callable[[], None] = lambda: None,
) -> Any:
    """The value that `encode` made `data` of. Raises DataError for anything else.

    memory_bytes: what its objects may take; more raises TooLarge before it is made.
    look: called every few milliseconds; what it raises ends the decoding.
    """
    reader = _Reader(data, memory_bytes, look)
    try:
        value = reader.value(0, False)
    except RecursionError:
        raise DataError("nested too deep for this stack") from None
    if reader.at != len(data):
        raise DataError("bytes left over")
    return value


class _Reader:
    def __init__(self, data: bytes, memory_bytes: int, look: Callable[[], None]) -> None:
        self.data = data
        self.at = 0
        self.left_bytes = memory_bytes
        self.look = look
        self.look_at_bytes = memory_bytes
        self.compared_bytes = 0

    def charge(self, made_bytes: int) -> None:
        """Count what is about to be made, and look at the time now and then."""
        self.left_bytes -= made_bytes
        if self.left_bytes < self.look_at_bytes:
            if self.left_bytes < 0:
                raise TooLarge("its objects take more memory than there is")
            self.look()
            self.look_at_bytes = max(0, self.left_bytes - _LOOK_BYTES)

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise DataError("too short")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self.take(form.size))

    def sized(self, limit: int = 0xFFFF_FFFF) -> bytes:
        start = self.at + 4
        end = start + int.from_bytes(self.data[self.at : start], "little")
        if end > len(self.data) or end - start > limit:
            raise DataError("too short, or too long")
        self.left_bytes -= end - start
        if self.left_bytes < self.look_at_bytes:
            self.charge(0)
        self.at = end
        return self.data[start:end]

    def count(self, least_bytes: int) -> int:
        """How many values follow, of at least `least_bytes` each."""
        (count,) = self.unpack(_U32)
        if count * least_bytes > len(self.data) - self.at:
            raise DataError("too short")
        return int(count)

    def value(self, depth: int, in_key: bool) -> Any:
        """The next value. `in_key`: it will be hashed, and compared with others."""
        try:
            tag = self.data[self.at]
        except IndexError:
            raise DataError("too short") from None
        self.at += 1
        if depth > MAX_DEPTH:
            raise DataError("nested too deep")
        known = _READERS.get(tag)
        if known is None:
            raise DataError(f"unknown tag {tag}")
        read, made_bytes = known
        self.left_bytes -= made_bytes
        if self.left_bytes < self.look_at_bytes:
            self.charge(0)
        return read(self, depth + 1, in_key)

    def items(self, depth: int, in_key: bool) -> list[Any]:
        value = self.value
        return [value(depth, in_key) for _ in range(self.count(1))]

    def integer(self, _depth: int, in_key: bool) -> int:
        content = self.sized(_MAX_KEY_INT_BYTES if in_key else _MAX_INT_BYTES)
        return int.from_bytes(content, "little", signed=True)

    def text(self, _depth: int, _in_key: bool) -> str:
        content = self.sized()
        if not content.isascii():
            self.charge((_WIDE_BYTES - 1) * len(content))
        try:
            return content.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise DataError("not UTF-8") from None

    def set(self, depth: int, _in_key: bool) -> set[Any]:
        return set(self.members(depth))

    def frozenset(self, depth: int, _in_key: bool) -> frozenset[Any]:
        return frozenset(self.members(depth))

    def members(self, depth: int) -> list[Any]:
        keys: list[Any] = []
        sizes: list[int] = []
        for _ in range(self.count(1)):
            start = self.at
            self.charge(_HASHED_BYTES)
            keys.append(self.value(depth, True))
            sizes.append(self.at - start)
        return self.hashed(keys, sizes)

    def dict(self, depth: int, in_key: bool) -> dict[Any, Any]:
        keys: list[Any] = []
        sizes: list[int] = []
        values: list[Any] = []
        for _ in range(self.count(2)):
            start = self.at
            self.charge(_HASHED_BYTES)
            keys.append(self.value(depth, True))
            sizes.append(self.at - start)
            values.append(self.value(depth, in_key))
        return dict(zip(self.hashed(keys, sizes), values, strict=True))

    def hashed(self, keys: list[Any], sizes: list[int]) -> list[Any]:
        """`keys` of `sizes` bytes, all different, and not slow to put into a table."""
        try:
            hashes = list(map(hash, keys))
            if len(set(hashes)) == len(keys):
                return keys
            same: dict[int, list[int]] = {}
            for found, size in zip(hashes, sizes, strict=True):
                earlier = same.setdefault(found, [])
                self.compared_bytes += sum(earlier) + len(earlier) * size
                earlier.append(size)
                if len(earlier) > _MAX_SAME_HASH or self.compared_bytes > _MAX_COMPARED_BYTES:
                    raise DataError("too many keys of one hash")
            if len(set(keys)) != len(keys):
                raise DataError("a key comes twice")
        except (TypeError, ArithmeticError):
            raise DataError("a key that cannot be hashed") from None
        return keys

    def decimal(self, _depth: int, _in_key: bool) -> decimal.Decimal:
        try:
            return decimal.Decimal(self.sized(_MAX_DECIMAL_CHARS).decode("ascii"))
        except (decimal.InvalidOperation, UnicodeDecodeError, ValueError):
            raise DataError("not a Decimal") from None

    def date(self, _depth: int, _in_key: bool) -> datetime.date:
        try:
            return datetime.date.fromordinal(*self.unpack(_DATE))
        except (ValueError, OverflowError):
            raise DataError("not a date") from None

    def time(self, depth: int, _in_key: bool) -> datetime.time:
        hour, minute, second, microsecond, fold = self.unpack(_TIME)
        zone = self.zone(depth)
        try:
            return datetime.time(hour, minute, second, microsecond, zone, fold=fold)
        except (ValueError, OverflowError):
            raise DataError("not a time") from None

    def moment(self, depth: int, in_key: bool) -> datetime.datetime:
        return datetime.datetime.combine(self.date(depth, in_key), self.time(depth, in_key))

    def delta(self, _depth: int, _in_key: bool) -> datetime.timedelta:
        days, seconds, microseconds = self.unpack(_DELTA)
        try:
            return datetime.timedelta(days, seconds, microseconds)
        except OverflowError:
            raise DataError("not a timedelta") from None

    def zone(self, depth: int) -> datetime.timezone | None:
        data = self.value(depth, False)
        if data is None:
            return None
        if not (
            isinstance(data, tuple)
            and 1 <= len(data) <= 2
            and isinstance(data[0], datetime.timedelta)
            and all(isinstance(name, str) for name in data[1:])
        ):
            raise DataError("not a time zone")
        try:
            return datetime.timezone(*data)
        except (ValueError, OverflowError):
            raise DataError("not a time zone") from None

    def dataclass(self, depth: int, in_key: bool) -> Any:
        name = self.value(depth, False)
        fields = self.value(depth, in_key)
        if not isinstance(name, str) or not isinstance(fields, dict):
            raise DataError("not a dataclass")
        cls: Any = _registered.get(name)
        if cls is None:
            raise UnknownDataclass(name)
        self.charge(_FIELDS_BYTES * len(fields))
        wanted = {field.name for field in dataclasses.fields(cls) if field.init}
        if fields.keys() != wanted:
            raise DataError(f"{name} with other fields than the host's")
        try:
            return cls(**fields)
        except Exception as error:
            raise DataError(f"{name} cannot be made: {error}") from error


# How a tag's value is read, and what it takes in bytes, beside its content, with a place in a list.
_READERS: dict[int, tuple[Any, int]] = {
    ord("N"): (lambda _reader, _depth, _in_key: None, 16),
    ord("T"): (lambda _reader, _depth, _in_key: True, 16),
    ord("F"): (lambda _reader, _depth, _in_key: False, 16),
    ord("i"): (_Reader.integer, 48),
    ord("f"): (lambda reader, _depth, _in_key: reader.unpack(_DOUBLE)[0], 48),
    ord("c"): (lambda reader, _depth, _in_key: complex(*reader.unpack(_COMPLEX)), 48),
    ord("s"): (_Reader.text, 80),
    ord("b"): (lambda reader, _depth, _in_key: reader.sized(), 64),
    ord("a"): (lambda reader, _depth, _in_key: bytearray(reader.sized()), 112),
    ord("l"): (lambda reader, depth, in_key: reader.items(depth, in_key), 96),
    ord("t"): (lambda reader, depth, in_key: tuple(reader.items(depth, in_key)), 80),
    ord("S"): (_Reader.set, 256),
    ord("Z"): (_Reader.frozenset, 256),
    ord("d"): (_Reader.dict, 256),
    ord("D"): (_Reader.decimal, 144),
    ord("y"): (_Reader.date, 48),
    ord("h"): (_Reader.time, 80),
    ord("x"): (_Reader.moment, 80),
    ord("e"): (_Reader.delta, 64),
    ord("R"): (_Reader.dataclass, 96),
}
