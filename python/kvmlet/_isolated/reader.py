"""Bytes of a guest as plain data, in the format of kvmlet._isolated.codec: the host's side of it.

No byte is trusted. Time and memory are looked at all along, and nothing is made before it is
counted.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import importlib
import re
from typing import TYPE_CHECKING, Any

from kvmlet._isolated.codec import (
    ARRAY,
    ARRAY_KINDS,
    COMPLEX,
    COUNTER,
    DATE,
    DELTA,
    DOUBLE,
    FRAME,
    MAX_DECIMAL_CHARS,
    MAX_DEPTH,
    MAX_INT_BYTES,
    MEMBER,
    MEMORY,
    NAMED,
    ORDERED,
    PATH,
    RANGE,
    SERIES,
    TABLE,
    TIME,
    U32,
    UUID,
    DataError,
    TooLarge,
    UnknownDataclass,
)
from kvmlet._isolated.registry import is_namedtuple, registered

if TYPE_CHECKING:
    import struct
    from collections.abc import Callable

# Most memory for what decoding makes, unless its caller says.
_MAX_MEMORY_BYTES = 400 << 20
# So much is made between two looks at the time: a millisecond or two.
_LOOK_BYTES = 64 << 10
# A key beside its value, while its set or dict is filled: hashes, sizes and the table itself.
_HASHED_BYTES = 200
_FIELDS_BYTES = 256
# Of each byte of a str that is not ASCII: a single character may make all of them four bytes wide.
_WIDE_BYTES = 4
# An int in a key may be compared with others of its hash, and Decimals, any number of times.
_MAX_KEY_INT_BYTES = 1 << 10
# Numbers that hash alike are easily made, and a table full of them takes forever to fill.
_MAX_SAME_HASH = 64
# Keys of one hash are compared, an int with a Decimal slowly: so many bytes of them in one message.
_MAX_COMPARED_BYTES = 1 << 20
_UUID_BYTES = 16
# A view of the answer takes more than other values of its size.
_VIEW_BYTES = 320
# As numpy has them: dimensions, and a length that no product of two overflows 64 bits with.
_MAX_DIMENSIONS = 32
_MAX_LENGTH = 1 << 31
_DTYPE = re.compile(rf"[<>|][{ARRAY_KINDS}][0-9]{{1,9}}(\[[0-9]{{0,9}}[A-Za-z]{{1,2}}\])?")


def decode(
    data: bytes | memoryview,
    memory_bytes: int = _MAX_MEMORY_BYTES,
    look: Callable[[], None] = lambda: None,
) -> Any:
    """The value that `encode` made `data` of. Raises DataError for anything else.

    data: bytes, or memory that nobody else has: a large array of numpy stays there.
    memory_bytes: what its objects may take; more raises TooLarge before it is made.
    look: called every few milliseconds; what it raises ends the decoding.
    """
    kind = _Reader if isinstance(data, bytes) else _InPlace
    reader = kind(data, memory_bytes, look)
    try:
        value = reader.value(0, False)
    except RecursionError:
        raise DataError("nested too deep for this stack") from None
    if reader.at != len(data):
        raise DataError("bytes left over")
    return value


class _Reader:
    def __init__(self, data: Any, memory_bytes: int, look: Callable[[], None]) -> None:
        self.data = data
        self.at = 0
        self.left_bytes = memory_bytes
        self.look = look
        self.look_at_bytes = memory_bytes
        self.compared_bytes = 0
        # The place of the memory of the array that is read: it is copied once, into the array.
        self.memory_depth = 0

    def charge(self, made_bytes: int) -> None:
        """Count what is about to be made, and look at the time now and then."""
        self.left_bytes -= made_bytes
        if self.left_bytes < self.look_at_bytes:
            if self.left_bytes < 0:
                raise TooLarge("its objects take more memory than there is")
            self.look()
            self.look_at_bytes = max(0, self.left_bytes - _LOOK_BYTES)

    def take(self, length: int) -> bytes | memoryview:
        end = self.at + length
        if end > len(self.data):
            raise DataError("too short")
        taken: bytes | memoryview = self.data[self.at : end]
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
        return self.content(start, end)

    def content(self, start: int, end: int) -> bytes:
        """A copy of a part of the data."""
        part: bytes = self.data[start:end]
        return part

    def raw(self, depth: int, in_key: bool) -> bytes | memoryview:
        if in_key or depth != self.memory_depth:
            return self.sized()
        (length,) = self.unpack(U32)
        return self.view(length)

    def memory(self, depth: int, in_key: bool) -> memoryview:
        if in_key or depth != self.memory_depth:
            raise DataError("an array's memory without an array")
        length, skipped = self.unpack(MEMORY)
        self.take(skipped)
        return self.view(length)

    def view(self, length: int) -> memoryview:
        """The next bytes where they lie."""
        start, end = self.at, self.at + length
        if end > len(self.data):
            raise DataError("too short")
        self.charge(_VIEW_BYTES)
        self.at = end
        return memoryview(self.data)[start:end]

    def count(self, least_bytes: int) -> int:
        """The count of values that follow, of at least `least_bytes` each."""
        (count,) = self.unpack(U32)
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
        content = self.sized(_MAX_KEY_INT_BYTES if in_key else MAX_INT_BYTES)
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
            return decimal.Decimal(self.sized(MAX_DECIMAL_CHARS).decode("ascii"))
        except (decimal.InvalidOperation, UnicodeDecodeError, ValueError):
            raise DataError("not a Decimal") from None

    def date(self, _depth: int, _in_key: bool) -> datetime.date:
        try:
            return datetime.date.fromordinal(*self.unpack(DATE))
        except (ValueError, OverflowError):
            raise DataError("not a date") from None

    def time(self, depth: int, _in_key: bool) -> datetime.time:
        hour, minute, second, microsecond, fold = self.unpack(TIME)
        zone = self.zone(depth)
        try:
            return datetime.time(hour, minute, second, microsecond, zone, fold=fold)
        except (ValueError, OverflowError):
            raise DataError("not a time") from None

    def moment(self, depth: int, in_key: bool) -> datetime.datetime:
        return datetime.datetime.combine(self.date(depth, in_key), self.time(depth, in_key))

    def delta(self, _depth: int, _in_key: bool) -> datetime.timedelta:
        days, seconds, microseconds = self.unpack(DELTA)
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
        cls: Any = registered.get(name)
        if cls is None:
            raise UnknownDataclass(name)
        if issubclass(cls, (enum.Enum, tuple)):
            raise DataError("not a dataclass")
        self.charge(_FIELDS_BYTES * len(fields))
        wanted = {field.name for field in dataclasses.fields(cls) if field.init}
        if fields.keys() != wanted:
            raise DataError(f"{name} with other fields than the host's")
        try:
            return cls(**fields)
        except Exception as error:
            raise DataError(f"{name} cannot be made: {error}") from error

    def extended(self, depth: int, in_key: bool) -> Any:
        word = self.value(depth, False)
        make = _EXTENDED.get(word) if isinstance(word, str) else None
        is_array = make is not None and word == ARRAY
        # Nothing but the items of the array's own tuple: no other code meets memory of the answer.
        before, self.memory_depth = self.memory_depth, depth + 2 if is_array else 0
        content = self.value(depth, in_key and not is_array)
        self.memory_depth = before
        if make is None:
            raise DataError("an unknown kind of value")
        return make(self, content)

    def may_keep(self, _data: memoryview) -> bool:
        """True if an array's memory may be a part of the data."""
        return False

    def array(self, content: Any) -> Any:
        """An array or a scalar of numpy."""
        match content:
            case (str(dtype), None | tuple(), data) if _DTYPE.fullmatch(dtype) and isinstance(
                data, memoryview
            ):
                shape = content[1]
            case _:
                raise DataError("not an array")
        try:
            np: Any = importlib.import_module("numpy")
        except ImportError:
            raise UnknownDataclass("an array of numpy") from None
        lengths = () if shape is None else shape
        if len(lengths) > _MAX_DIMENSIONS or not all(
            type(length) is int and 0 <= length <= _MAX_LENGTH for length in lengths
        ):
            raise DataError("not a shape")
        self.charge(_FIELDS_BYTES)
        stays = self.may_keep(data)
        if not stays:
            # The array has a copy, which can be changed.
            self.charge(len(data))
        try:
            made = np.ndarray(lengths, np.dtype(dtype), data if stays else bytearray(data))
        except (TypeError, ValueError, OverflowError, MemoryError):
            raise DataError("not an array") from None
        if made.nbytes != len(data):
            raise DataError("an array of another size")
        if not made.flags.aligned:
            self.charge(len(data))
            made = made.copy()
        if made.dtype.kind == "b":  # other bytes than 0 and 1 are no bool
            made = made.view("u1") != 0
        elif made.dtype.kind == "U" and data:
            _check_characters(dtype, data)
        return made[()] if shape is None else made


class _InPlace(_Reader):
    """The same of a memoryview, whose memory a large array may keep."""

    def content(self, start: int, end: int) -> bytes:
        return bytes(self.data[start:end])

    def may_keep(self, data: memoryview) -> bool:
        # With it all other memory of the answer stays: that is to be no more than the array itself.
        return not data.readonly and 2 * len(data) >= len(self.data)


def _check_characters(dtype: str, data: memoryview) -> None:
    try:
        str(data, "utf-32-be" if dtype[0] == ">" else "utf-32-le")
    except UnicodeDecodeError:
        raise DataError("an array of no characters") from None


def _range(_reader: _Reader, content: Any) -> range:
    match content:
        case (int(start), int(stop), int(step)) if step:
            return range(start, stop, step)
    raise DataError("not a range")


def _uuid(_reader: _Reader, content: Any) -> Any:
    import uuid

    if not isinstance(content, bytes) or len(content) != _UUID_BYTES:
        raise DataError("not a UUID")
    return uuid.UUID(bytes=content)


def _path(_reader: _Reader, content: Any) -> Any:
    import pathlib

    if not isinstance(content, str):
        raise DataError("not a path")
    return pathlib.Path(content)


def _ordered(reader: _Reader, content: Any) -> Any:
    if not isinstance(content, dict):
        raise DataError("not an OrderedDict")
    reader.charge(_HASHED_BYTES * len(content))
    return collections.OrderedDict(content)


def _counter(reader: _Reader, content: Any) -> Any:
    if not isinstance(content, dict):
        raise DataError("not a Counter")
    reader.charge(_HASHED_BYTES * len(content))
    return collections.Counter(content)


def _member(_reader: _Reader, content: Any) -> Any:
    match content:
        case (str(name), str(member)):
            cls = registered.get(name)
            if cls is None:
                raise UnknownDataclass(name)
            if issubclass(cls, enum.Enum) and member in cls.__members__:
                return cls.__members__[member]
    raise DataError("not a member of an enumeration")


def _named(_reader: _Reader, content: Any) -> Any:
    match content:
        case (str(name), tuple(values)):
            cls: Any = registered.get(name)
            if cls is None:
                raise UnknownDataclass(name)
            if is_namedtuple(cls) and len(cls._fields) == len(values):
                return tuple.__new__(cls, values)
    raise DataError("not a named tuple")


def _tabular(word: str) -> Callable[[_Reader, Any], Any]:
    def read(reader: _Reader, content: Any) -> Any:
        from kvmlet._isolated import tables

        make = {TABLE: tables.table, FRAME: tables.frame, SERIES: tables.series}[word]
        return make(reader.charge, content)

    return read


_EXTENDED: dict[object, Callable[[_Reader, Any], Any]] = {
    RANGE: _range,
    UUID: _uuid,
    PATH: _path,
    ORDERED: _ordered,
    COUNTER: _counter,
    MEMBER: _member,
    NAMED: _named,
    ARRAY: _Reader.array,
    TABLE: _tabular(TABLE),
    FRAME: _tabular(FRAME),
    SERIES: _tabular(SERIES),
}

# A tag's reader, and the bytes that its value takes: beside its content, with a place in a list.
_READERS: dict[int, tuple[Any, int]] = {
    ord("N"): (lambda _reader, _depth, _in_key: None, 16),
    ord("T"): (lambda _reader, _depth, _in_key: True, 16),
    ord("F"): (lambda _reader, _depth, _in_key: False, 16),
    ord("i"): (_Reader.integer, 48),
    ord("f"): (lambda reader, _depth, _in_key: reader.unpack(DOUBLE)[0], 48),
    ord("c"): (lambda reader, _depth, _in_key: complex(*reader.unpack(COMPLEX)), 48),
    ord("s"): (_Reader.text, 80),
    ord("b"): (_Reader.raw, 64),
    ord("m"): (_Reader.memory, 64),
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
    ord("E"): (_Reader.extended, 256),
}
