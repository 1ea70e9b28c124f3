"""Values with a class of their own, as bytes of a guest: both ways, and hostile ones."""

from __future__ import annotations

import collections
import enum
import importlib
import pathlib
import uuid
from typing import Any, NamedTuple

import pytest

import kvmlet
from kvmlet._isolated.codec import DataError, NotData, TooLarge, UnknownDataclass
from kvmlet._isolated.reader import decode
from kvmlet._isolated.writer import encode, encoded_in_parts


@kvmlet.register_result
class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


@kvmlet.register_result
class Place(NamedTuple):
    x: int
    y: str = "y"


class Unknown(enum.Enum):
    A = 1


np: Any = importlib.import_module("numpy")

Old: Any = kvmlet.register_result(collections.namedtuple("Old", "a b"))
New: Any = collections.namedtuple("New", "a")


@pytest.mark.parametrize(
    "value",
    [
        range(0),
        range(10, -5, -3),
        range(10**30),
        uuid.UUID(int=5),
        pathlib.Path("/a/b"),
        collections.OrderedDict([("b", 1), ("a", 2)]),
        collections.Counter("abca"),
        Colour.RED,
        Place(1),
        Old(1, [2]),
        {Place(1, "a"): {Colour.BLUE: [range(3)]}, uuid.UUID(int=1): pathlib.Path("x")},
    ],
)
def test_both_ways(value: Any) -> None:
    again = decode(encode(value))
    assert again == value
    assert type(again) is type(value)
    assert repr(again) == repr(value)


def tagged(word: object, content: object) -> bytes:
    return b"E" + encode(word) + encode(content)


@pytest.mark.parametrize(
    "data",
    [
        tagged("no such kind", 1),
        tagged(["range"], 1),
        tagged("range", (1, 2, 0)),
        tagged("range", (1, 2)),
        tagged("range", ("a", 1, 1)),
        tagged("uuid", b"short"),
        tagged("uuid", "x" * 16),
        tagged("path", b"x"),
        tagged("OrderedDict", [1]),
        tagged("Counter", 5),
        tagged("enum", (f"{__name__}.Colour", "GREEN")),
        tagged("enum", (f"{__name__}.Colour", "__class__")),
        tagged("enum", (f"{__name__}.Place", "x")),
        tagged("enum", 5),
        tagged("namedtuple", (f"{__name__}.Place", (1,))),
        tagged("namedtuple", (f"{__name__}.Place", [1, 2])),
        tagged("namedtuple", (f"{__name__}.Colour", (1, 2))),
        b"R" + encode(f"{__name__}.Colour") + encode({}),
        b"E" * 1000,
        b"E",
    ],
)
def test_hostile(data: bytes) -> None:
    with pytest.raises(DataError):
        decode(data)


def test_unregistered_classes() -> None:
    with pytest.raises(UnknownDataclass):
        decode(tagged("enum", ("os.Thing", "A")))
    with pytest.raises(UnknownDataclass):
        decode(tagged("namedtuple", ("os.stat_result", (1,))))
    # The writer may be one of a class that came along with a function of a script.
    for value in (New(1), Unknown.A):
        with pytest.raises(UnknownDataclass, match=f"{__name__}.{type(value).__name__}"):
            decode(encode(value))


def test_numpy_both_ways() -> None:
    for value in (
        np.arange(6).reshape(2, 3),
        np.array([], dtype="<f4"),
        np.array([[True, False]]),
        np.array(["a", "äöü"]),
        np.array(["2024-01-01"], dtype="M8[D]"),
        np.array(5.5),
        np.arange(12).reshape(3, 4)[:, ::2],
    ):
        again = decode(encode({"a": value}))["a"]
        assert again.dtype == value.dtype
        assert again.shape == value.shape
        assert (again == value).all()
        assert again.flags.writeable
    for scalar in (np.int64(5), np.float32(1.5), np.bool_(True), np.datetime64("2024-01-01", "s")):
        again = decode(encode(scalar))
        assert again == scalar
        assert again.dtype == scalar.dtype
    for wrong in (np.array([object()]), np.zeros(1, dtype=[("a", "i4")])):
        with pytest.raises(NotData):
            encode(wrong)


@pytest.mark.parametrize(
    "content",
    [
        ("|O8", (1,), b"x" * 8),
        ("<i8", (2,), b"x" * 8),
        ("<i8", (-1,), b"x" * 8),
        ("<i8", (1 << 62, 1 << 62), b""),
        ("<i8", ((1 << 31) - 1,) * 32, b""),
        ("<i8", (True,), b"x" * 8),
        ("<i8", ("a",), b"x" * 8),
        ("<i8", (1,) * 65, b"x" * 8),
        ("<i7", (1,), b"x" * 7),
        ("<M8[zz]", (1,), b"x" * 8),
        ("<U1", (1,), b"\xff" * 4),
        ("<i8,<i8", (1,), b"x" * 16),
        ("<i8", None, b"x" * 16),
        ("<i8", 5, b""),
        5,
    ],
)
def test_hostile_arrays(content: object) -> None:
    with pytest.raises(DataError):
        decode(tagged("array", content))


def test_arrays_are_charged() -> None:
    data = encode(np.zeros(1 << 20, dtype="u1"))
    with pytest.raises(TooLarge):
        decode(data, 1 << 20)
    # Bytes that are no bool become one.
    again = decode(tagged("array", ("|b1", (2,), b"\x02\0")))
    assert again.view("u1").tolist() == [1, 0]


def test_large_content_is_whole_and_in_order() -> None:
    large = np.arange(30_000)
    value = [1, large, b"x" * 100_000, "y" * 100_000, [large[::2], bytearray(b"z" * 70_000)], 2]
    again = decode(encode(value))
    assert (again[0], again[2:4], again[5]) == (1, value[2:4], 2)
    assert (again[1] == large).all()
    assert (again[4][0] == large[::2]).all()
    assert again[4][1] == value[4][1]
    again[1][0] = 5  # it can be changed


def test_a_large_array_stays_where_it_lies() -> None:
    array = np.arange(200_000.0)
    data = bytearray(b"".join(encoded_in_parts(("ok", array))))
    memory = np.frombuffer(data, "u1")
    # Its memory is that of the answer, and is not counted again.
    _, read = decode(memoryview(data), 1 << 16)
    assert (read == array).all()
    assert np.shares_memory(read, memory)
    assert (read.flags.writeable, read.flags.aligned) == (True, True)
    with pytest.raises(TooLarge):
        decode(bytes(data), 1 << 16)
    # One that would keep more than itself is copied, as is one of memory that cannot be written.
    data = bytearray(encode([array, bytes(4 << 20)]))
    read, _ = decode(memoryview(data))
    assert not np.shares_memory(read, np.frombuffer(data, "u1"))
    read, _ = decode(memoryview(bytes(encode([array, b""]))))
    read[0] = 5
    # Nothing begins at a multiple of eight where the guest says so.
    head, tail = encode((array,)).split(b"m", 1)
    skipped = tail[4]
    moved = head + b"m" + tail[:4] + bytes([skipped + 1]) + b"\0" + tail[5:]
    (read,) = decode(memoryview(bytearray(moved)))
    assert read.flags.aligned
    assert (read == array).all()


def test_an_array_where_numpy_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DataError, match="numpy"):
        decode(tagged("array", ("<i8", (1,), b"x" * 8)))
