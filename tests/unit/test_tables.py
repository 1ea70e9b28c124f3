"""Tables of Arrow and pandas as bytes of a guest: both ways, and hostile ones."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pytest

from kvmlet._isolated.codec import DataError, NotData, TooLarge
from kvmlet._isolated.reader import decode
from kvmlet._isolated.writer import encode

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is of `make test-long`")
pd: Any = pytest.importorskip("pandas", reason="pandas is of `make test-long`")


def columns() -> dict[str, Any]:
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5)
    return {
        "null": pa.nulls(3),
        "bool": pa.array([True, None, False]),
        "int": pa.array([1, None, -3], pa.int64()),
        "small": pa.array([1, 2, 3], pa.uint8()),
        "float": pa.array([1.5, None, float("inf")]),
        "half": pa.array([1.5, 2.5, None], pa.float16()),
        "text": pa.array(["a", None, "grüße"]),
        "large": pa.array(["a", "", None], pa.large_string()),
        "bytes": pa.array([b"\xff", None, b""]),
        "date": pa.array([datetime.date(2024, 1, 1), None, datetime.date(1, 1, 1)]),
        "moment": pa.array([moment, None, moment], pa.timestamp("us", tz="UTC")),
        "span": pa.array([datetime.timedelta(1), None, None], pa.duration("ms")),
        "time": pa.array([datetime.time(1, 2), None, None], pa.time64("us")),
        "money": pa.array([decimal.Decimal("1.50"), None, None], pa.decimal128(10, 2)),
        "kind": pa.array(["a", None, "a"]).dictionary_encode(),
        "list": pa.array([[1, 2], None, []], pa.list_(pa.int32())),
        "lists": pa.array([[["a"], []], None, [None]], pa.list_(pa.list_(pa.string()))),
    }


@pytest.mark.parametrize("name", columns())
def test_each_type_both_ways(name: str) -> None:
    table = pa.table({name: columns()[name]})
    again = decode(encode({"t": table}))["t"]
    assert again.equals(table)
    assert again.schema.equals(table.schema)


def test_tables_both_ways() -> None:
    table = pa.table(columns())
    assert decode(encode(table)).equals(table)
    # Of slices no more than is seen goes along.
    big = pa.table({"x": list(range(100_000)), "y": ["text"] * 100_000})
    part = big.slice(1000, 7)
    assert decode(encode(part)).equals(part)
    assert len(encode(part)) < 2000
    chunks = pa.concat_tables([part, big.slice(5, 3)])
    assert decode(encode(chunks)).equals(chunks)
    for empty in (big.slice(0, 0), pa.table({})):
        assert decode(encode(empty)).equals(empty)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    assert decode(encode(twice)).equals(twice)
    with pytest.raises(NotData, match="type"):
        encode(pa.table({"x": pa.array([{"a": 1}])}))


def frames() -> dict[str, Any]:
    days = pd.date_range("2024-01-01", periods=3)
    numbers = {"x": [1, 2, 3], "y": [0.5, None, 2.5]}
    pairs = pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["k", "n"])
    return {
        "plain": pd.DataFrame(numbers),
        "texts": pd.DataFrame({"a": ["x", None, "z"], "b": pd.Categorical(["u", "v", "u"])}),
        "times": pd.DataFrame({"t": days.tz_localize("UTC")}),
        "labels": pd.DataFrame([[1, 2], [3, 4]], columns=[0, "b"]),
        "same labels": pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]),
        "index": pd.DataFrame(numbers, index=pd.Index([10, 20, 30], name="i")),
        "text index": pd.DataFrame(numbers, index=["a", "b", "c"]),
        "times as index": pd.DataFrame(numbers, index=pd.DatetimeIndex(list(days))),
        "levels": pd.DataFrame(numbers, index=pairs),
        "range": pd.DataFrame(numbers).iloc[::-1],
        "empty": pd.DataFrame({"x": pd.Series([], dtype="int64")}),
        "no columns": pd.DataFrame(index=range(3)),
    }


@pytest.mark.parametrize("name", frames())
def test_frames_both_ways(name: str) -> None:
    frame = frames()[name]
    again = decode(encode([frame]))[0]
    pd.testing.assert_frame_equal(again, frame, check_freq=False, check_column_type=False)


def test_series_both_ways() -> None:
    for series in (
        pd.Series([1, 2, 3], name="x"),
        pd.Series(["a", None], index=["u", "v"]),
        pd.Series([1.5], name=("a", 1)),
    ):
        again = decode(encode(series))
        pd.testing.assert_series_equal(again, series)
    with pytest.raises(NotData, match="Arrow"):
        encode(pd.DataFrame({"x": [object()]}))


def tagged(word: str, content: object) -> bytes:
    return b"E" + encode(word) + encode(content)


INT, TEXT = "int64", "string"
EIGHT = bytes(8)


@pytest.mark.parametrize(
    "content",
    [
        5,
        (),
        (1, 2),
        (-1, []),
        (1 << 40, []),
        (1, [5]),
        (1, [("x", INT, 5)]),
        (1, [(5, INT, (1, [None, EIGHT], []))]),
        # Lengths and sizes that lie.
        (2, [("x", INT, (2, [None, EIGHT], []))]),
        (1, [("x", INT, (2, [None, EIGHT * 2], []))]),
        (1, [("x", INT, (-1, [None, EIGHT], []))]),
        (9, [("x", INT, (9, [b"\1", EIGHT * 9], []))]),
        (1, [("x", INT, (1, [None, None], []))]),
        (1, [("x", INT, (1, [None], []))]),
        (1, [("x", INT, (1, [None, EIGHT, EIGHT], []))]),
        (1, [("x", INT, (1, [None, "text"], []))]),
        # Offsets that lead out, run backwards or are negative.
        (1, [("x", TEXT, (1, [None, b"\0\0\0\0\xff\0\0\0", b"abc"], []))]),
        (1, [("x", TEXT, (1, [None, b"\2\0\0\0\0\0\0\0", b"abc"], []))]),
        (1, [("x", TEXT, (1, [None, b"\xff\xff\xff\xff\2\0\0\0", b"abc"], []))]),
        (1, [("x", TEXT, (1, [None, b"\0\0\0\0", b"abc"], []))]),
        (1, [("x", TEXT, (1, [None, b"\0\0\0\0\2\0\0\0", b"\xff\xff"], []))]),
        (1, [("x", TEXT, (1, [None, b"\0\0\0\0\2\0\0\0", None], []))]),
        (1, [("x", ("list", INT), (1, [None, b"\0\0\0\0\5\0\0\0"], [(1, [None, EIGHT], [])]))]),
        (1, [("x", ("list", INT), (1, [None, b"\0\0\0\0\1\0\0\0"], []))]),
        # Dictionaries.
        (1, [("x", ("dictionary", "int8", INT, False), (1, [], []))]),
        (
            1,
            [
                (
                    "x",
                    ("dictionary", "int8", INT, False),
                    (1, [], [(1, [None, b"\5"], []), (1, [None, EIGHT], [])]),
                )
            ],
        ),
        # Types that are none.
        (1, [("x", "py_extension", (1, [None, EIGHT], []))]),
        (1, [("x", "__import__", (1, [None, EIGHT], []))]),
        (1, [("x", ("timestamp", "years"), (1, [None, EIGHT], []))]),
        (1, [("x", ("timestamp", [1]), (1, [None, EIGHT], []))]),
        (1, [("x", ("decimal128", 500, 2), (1, [None, EIGHT * 2], []))]),
        (1, [("x", ("struct", INT), (1, [None], []))]),
        (0, [("x", ("list", ("list",) * 2), (0, [], []))]),
    ],
)
def test_hostile_tables(content: object) -> None:
    with pytest.raises(DataError):
        decode(tagged("table", content))
    with pytest.raises(DataError):
        decode(tagged("frame", (content, ["x"], ("range", (0, 1, 1), None))))


FINE: Any = (1, [("x", INT, (1, [None, EIGHT], []))])


@pytest.mark.parametrize(
    "content",
    [
        5,
        FINE,
        (FINE, [], ("range", (0, 1, 1), None)),
        (FINE, ["x", "y"], ("range", (0, 1, 1), None)),
        (FINE, ["x"], ("range", (0, 5, 1), None)),
        (FINE, ["x"], ("range", (0, 1, 0), None)),
        (FINE, ["x"], ("columns", 1, ["i"])),
        (FINE, ["x"], ("columns", 0, [])),
        (FINE, ["x"], ("columns", 5, ["i"])),
        (FINE, ["x"], ("names", 1)),
        (FINE, [["x"]], ("range", (0, 1, 1), ["x"])),
    ],
)
def test_hostile_frames(content: object) -> None:
    with pytest.raises(DataError):
        decode(tagged("frame", content))
    with pytest.raises(DataError):
        decode(tagged("series", (content, "x")))


def test_tables_are_charged() -> None:
    nulls: Any = (1 << 30, [("x", "null", (1 << 30, [None], []))])
    with pytest.raises(TooLarge):
        decode(tagged("table", nulls), 64 << 20)
    texts = encode(pd.DataFrame({"x": [""] * 100_000}))
    with pytest.raises(TooLarge):
        decode(texts, 4 << 20)
    assert decode(texts, 64 << 20).shape == (100_000, 1)
