"""Results as data: what goes in comes out, and no bytes at all do harm."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import math
import struct
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kvmlet
from kvmlet._isolated.codec import MAX_DEPTH, DataError, NotData, TooLarge, UnknownDataclass
from kvmlet._isolated.reader import decode
from kvmlet._isolated.writer import encode

zones = st.builds(
    datetime.timezone,
    st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)),
)
named_zones = st.builds(
    datetime.timezone,
    st.timedeltas(-datetime.timedelta(1) / 2, datetime.timedelta(1) / 2),
    st.text(),
)
keys = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.complex_numbers(allow_nan=False),
        st.text(),
        st.binary(),
        st.dates(),
        st.timedeltas(),
        st.decimals(allow_nan=False),
    ),
    lambda inner: st.one_of(st.tuples(inner, inner), st.frozensets(inner, max_size=3)),
    max_leaves=4,
)
scalars = st.one_of(
    keys,
    st.text(st.characters()),
    st.builds(bytearray, st.binary()),
    st.times(timezones=st.none() | zones | named_zones),
    st.datetimes(timezones=st.none() | zones | named_zones),
    st.integers(-(1 << 3000), 1 << 3000),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.sets(keys),
        st.dictionaries(keys, inner),
    ),
    max_leaves=20,
)


def same(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    return bool(one == other) and (isinstance(one, (set, frozenset)) or repr(one) == repr(other))


@given(values)
@example("\ud800")
@example(datetime.datetime(2024, 10, 27, 2, 30, fold=1))
@example(decimal.Decimal("-0.00"))
@example(decimal.Decimal("Infinity"))
@example([-0.0, math.inf, 1 << 63, -(1 << 63), -128, 127, 128, 255, 256])
def test_round_trip(value: object) -> None:
    assert same(decode(encode(value)), value)


def test_what_is_not_equal_to_itself() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode(decimal.Decimal("sNaN12"))).is_snan()
    assert len(decode(encode({float("nan"), float("nan")}))) == 2


class Text(str):
    pass


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "object"),
        (Text("x"), "unit.test_data.Text"),
        (len, "builtin_function_or_method"),
        ([1, {"x": (2, {3}, memoryview(b"x"))}], "memoryview"),
        (ValueError("x"), "ValueError"),
        (int, "type"),
        (memoryview(b"x"), "memoryview"),
    ],
)
def test_anything_else_is_named(value: object, name: str) -> None:
    with pytest.raises(NotData, match=name + "$"):
        encode(value)


def test_limits_of_writing() -> None:
    loop: list[object] = []
    loop.append(loop)
    deep: object = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    for value in (loop, deep):
        with pytest.raises(NotData, match="deep"):
            encode(value)
    fits: Any = deep
    assert same(decode(encode(fits[0])), fits[0])
    with pytest.raises(NotData, match="int of"):
        encode(1 << (8 * (128 << 10)))
    with pytest.raises(NotData, match="Decimal"):
        encode(decimal.Decimal("1" * 70_000))
    zone = datetime.datetime.now().astimezone().tzinfo
    assert decode(encode(datetime.datetime(2024, 1, 1, tzinfo=zone))).tzinfo == zone

    class Zone(datetime.tzinfo):
        def utcoffset(self, _when: object) -> datetime.timedelta:
            return datetime.timedelta()

        def dst(self, _when: object) -> None:
            return None

        def tzname(self, _when: object) -> None:
            return None

    with pytest.raises(NotData, match="Zone: convert it to UTC"):
        encode(datetime.datetime(2024, 1, 1, tzinfo=Zone()))


# ---- dataclasses ----


@kvmlet.register_result
@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: list[int] = dataclasses.field(default_factory=list)
    made: bool = dataclasses.field(init=False, default=True)


@dataclasses.dataclass
class Unregistered:
    x: int


@kvmlet.register_result
@dataclasses.dataclass
class Checked:
    x: int

    def __post_init__(self) -> None:
        if not isinstance(self.x, int):
            raise TypeError("x is no int")


def test_dataclasses() -> None:
    assert decode(encode([Point(1, [2]), Checked(3)])) == [Point(1, [2]), Checked(3)]
    with pytest.raises(UnknownDataclass, match=r"unit\.test_data\.Unregistered"):
        decode(encode(Unregistered(1)))
    for fields in ({"x": 1}, {"x": 1, "y": [], "made": False}, {"x": 1, "y": [], 5: 6}, [1, []]):
        data = b"R" + encode("unit.test_data.Point") + encode(fields)
        with pytest.raises(DataError):
            decode(data)
    with pytest.raises(DataError, match="x is no int"):
        decode(encode(Checked(1)).replace(encode(1), encode(None)))


def test_registering() -> None:
    @dataclasses.dataclass
    class WithInitVar:
        x: dataclasses.InitVar[int]

    @dataclasses.dataclass(init=False)
    class OwnInit:
        x: int

        def __init__(self, **_fields: int) -> None:
            self.x = 1

    for wrong in (int, Unregistered(1), WithInitVar, OwnInit, "Point", None):
        with pytest.raises(kvmlet.UsageError, match="dataclass"):
            kvmlet.register_result(wrong)  # type: ignore[arg-type]


# ---- bytes from a hostile guest ----


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


@given(st.binary(max_size=200))
@settings(max_examples=2000)
def test_any_bytes(data: bytes) -> None:
    try:
        value = decode(data)
    except DataError:
        return
    repr(value)


@given(values.map(encode), st.data())
def test_changed_bytes(encoded: bytes, data: st.DataObject) -> None:
    changed = bytearray(encoded)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(changed)))
    for tried in (bytes(changed), bytes(changed[:cut]), bytes(changed) + b"N"):
        with contextlib.suppress(DataError):
            decode(tried)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"?",
        b"NN",
        b"i" + u32(5) + b"abc",
        b"s" + u32(0xFFFF_FFFF),
        b"s" + u32(1) + b"\xff",
        b"l" + u32(0xFFFF_FFFF) + b"N" * 100,
        b"d" + u32(60) + b"N" * 100,
        b"S" + u32(2) + b"NN",
        b"S" + u32(1) + b"l" + u32(0),
        b"d" + u32(1) + b"d" + u32(0) + b"N",
        b"S" + u32(1) + b"D" + u32(4) + b"sNaN",
        b"D" + u32(3) + b"abc",
        b"D" + u32(1) + b"\xb2",
        b"D" + u32(22) + b"1e99999999999999999999",
        b"y" + u32(0),
        b"y" + u32(0xFFFF_FFFF),
        b"h" + bytes([25, 0, 0, 0, 0, 0, 0, 0]) + b"N",
        b"h" + bytes([1, 0, 0, 0, 0, 0, 0, 2]) + b"N",
        b"h" + bytes(8) + encode("UTC"),
        b"h" + bytes(8) + encode((datetime.timedelta(2),)),
        b"h" + bytes(8) + encode((datetime.timedelta(0), 5)),
        b"e" + struct.pack("<iII", 0x7FFF_FFFF, 0, 0),
        b"R" + encode("builtins.eval") + encode({"source": "1"}),
        b"R" + encode("os.system") + encode({}),
        b"R" + encode(["x"]) + encode({}),
        b"l\x01\x00\x00\x00" * 5000 + b"N",
        b"t\x01\x00\x00\x00" * 101 + b"N",
        b"R" * 5000,
        b"i" + u32(200_000) + bytes(200_000),
        b"S" + u32(1) + b"i" + u32(2000) + bytes(2000),
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(data)


EXPENSIVE = {
    "none": b"N",
    "int": b"i" + u32(2) + b"xy",
    "float": b"f" + bytes(8),
    "complex": b"c" + bytes(16),
    "str": b"s" + u32(2) + b"ab",
    "wide str": b"s" + u32(1003) + b"a" * 1000 + "☃".encode(),
    "bytes": b"b" + u32(2) + b"ab",
    "bytearray": b"a" + u32(1) + b"a",
    "list": b"l" + u32(0),
    "list of one": b"l" + u32(1) + b"N",
    "tuple": b"t" + u32(1) + b"N",
    "set": b"S" + u32(0),
    "set of one": b"S" + u32(1) + b"N",
    "frozenset": b"Z" + u32(1) + b"N",
    "dict": b"d" + u32(0),
    "dict of one": b"d" + u32(1) + b"NN",
    "Decimal": b"D" + u32(1) + b"1",
    "date": b"y" + u32(1),
    "time": b"h" + bytes(8) + b"N",
    "datetime": b"x" + u32(1) + bytes(8) + encode((datetime.timedelta(hours=1),)),
    "timedelta": b"e" + bytes(12),
    "dataclass": encode(Checked(5)),
}


@pytest.mark.parametrize(
    "name", [*EXPENSIVE, "one set", "one dict", "set that fits", "dict that fits"]
)
def test_memory_is_charged_before_it_is_used(name: str) -> None:
    """A message of 16 MiB cannot be made into gigabytes."""
    budget_bytes = 1 << 20
    # Without their table, so many keys and values fit.
    count = 12_000 if "fits" in name else 40_000
    if name in EXPENSIVE:
        item = EXPENSIVE[name]
        data = b"l" + u32(count) + item * count
    else:
        pairs = "dict" in name
        keys = (encode(number) + b"N" * pairs for number in range(count))
        data = (b"d" if pairs else b"S") + u32(count) + b"".join(keys)
    del name
    tracemalloc.start()
    try:
        value = None
        with contextlib.suppress(TooLarge):
            value = decode(data, budget_bytes)
        assert value is None or len(value) == count
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes <= budget_bytes + (64 << 10)


def test_time_is_looked_at() -> None:
    """Whatever is read, the caller can end it within a few milliseconds of work."""

    class Enough(Exception):
        pass

    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 10:
            raise Enough

    for item in EXPENSIVE.values():
        looks = 0
        with pytest.raises(Enough):
            decode(b"l" + u32(50_000) + item * 50_000, look=look)
    looks = 0
    assert decode(encode([bytes(1 << 20)] * 5), look=look) == [bytes(1 << 20)] * 5
    assert 5 <= looks < 10


def test_keys_that_are_slow_to_compare() -> None:
    """Comparing an int with a Decimal converts the int, and a table compares thousands."""
    modulus = (1 << 61) - 1
    number = (1 << 8183) - 12345
    with decimal.localcontext(prec=3000):
        slow = (encode(number), encode(decimal.Decimal(number)))
    keys = [
        b"t" + u32(101) + slow[index % 2] * 100 + encode(5 + index * modulus) for index in range(64)
    ]
    started = time.process_time()
    for data in (b"S" + u32(64) + b"".join(keys), b"d" + u32(64) + b"N".join(keys) + b"N"):
        with pytest.raises(DataError, match="one hash"):
            decode(data)
    assert time.process_time() - started < 2
    few = {(-1, -1), (-1, -2), (-2, -1), (-2, -2)}  # -1 and -2 have one hash
    assert decode(encode(few)) == few
    assert decode(encode(dict.fromkeys(few, 1))) == dict.fromkeys(few, 1)


def test_keys_that_hash_alike() -> None:
    modulus = (1 << 61) - 1  # that of hash(int)
    colliding = b"".join(encode(number * modulus) for number in range(1, 100_000))
    started = time.process_time()
    with pytest.raises(DataError, match="one hash"):
        decode(b"S" + u32(99_999) + colliding)
    pairs = b"".join(encode(number * modulus) + b"N" for number in range(1, 100_000))
    with pytest.raises(DataError, match="one hash"):
        decode(b"d" + u32(99_999) + pairs)
    # Filling the tables would take minutes.
    assert time.process_time() - started < 20
    many = {number * 7919: str(number) for number in range(100_000)}
    assert decode(encode(many)) == many


def test_a_time_beyond_a_c_int() -> None:
    encoded = bytearray(encode([datetime.time(0, 0)]))
    for at in range(len(encoded)):
        for byte in (0x7F, 0x80, 0xFF):
            tried = bytes(encoded[:at]) + bytes([byte]) + bytes(encoded[at + 1 :])
            with contextlib.suppress(DataError):
                decode(tried)
