"""Sizes, durations and modes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlet._values import (
    MAX_MEMORY_BYTES,
    MAX_TIMEOUT_S,
    MIN_MEMORY_BYTES,
    format_duration,
    format_size,
    parse_calls,
    parse_count,
    parse_duration,
    parse_size,
)
from kvmlet.errors import UsageError

SIZES = st.integers(MIN_MEMORY_BYTES, MAX_MEMORY_BYTES)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64m", 64 << 20),
        ("512M", 512 << 20),
        ("1g", 1 << 30),
        ("4194304", 4 << 20),
        ("8192KiB", 8 << 20),
        ("8192kb", 8 << 20),
        ("64MiB", 64 << 20),
        ("64 MB", 64 << 20),
        ("1.5g", 3 << 29),
        ("4194305b", (4 << 20) + 1),
        ("1t", 1 << 40),
    ],
)
def test_sizes_people_write(text: str, size_bytes: int) -> None:
    assert parse_size(text, "--memory") == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "m",
        "-1m",
        "+64m",
        "64q",
        "64i",
        "64mm",
        "1e9",
        "0x100000",
        "1_000_000",
        "1..5g",
        "1.5.5g",
        "nan",
        "inf",
        "\u0661\u0662m",
        "9" * 5000,
        "64m\0",
        "64m 1",
    ],
)
def test_what_is_not_a_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_size(text, "--memory")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [0, 1, -5, "0", "1", "4095k", "3.9m", (4 << 20) - 1])
def test_too_small(value: int | str) -> None:
    with pytest.raises(UsageError, match=r"^memory: .* is too small; the least is 4m$"):
        parse_size(value, "memory")


@pytest.mark.parametrize("value", [(1 << 40) + 1, 1 << 70, "1025g", "9" * 30, "9" * 30 + "t"])
def test_too_large(value: int | str) -> None:
    with pytest.raises(UsageError, match=r"^memory: .* is too large; the most is 1t$"):
        parse_size(value, "memory")


@pytest.mark.parametrize(("value", "count"), [(1, 1), ("256", 256), (1024, 1024)])
def test_numbers_of_processes(value: int | str, count: int) -> None:
    assert parse_count(value, "--max-procs") == count


@pytest.mark.parametrize("value", [0, -1, 1025, "0", "-1", "1e3", "", "many", "9" * 40, True, 1.5])
def test_what_is_no_number_of_processes(value: object) -> None:
    with pytest.raises(UsageError, match=r"--max-procs: .*; give a number from 1 to 1024"):
        parse_count(value, "--max-procs")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [True, 1.5, None, b"64m", ["64m"]])
def test_size_of_the_wrong_type(value: object) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(value, "memory")  # type: ignore[arg-type]


@given(SIZES)
def test_size_reads_back(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes), "memory") == size_bytes
    assert parse_size(str(size_bytes), "memory") == size_bytes
    assert parse_size(size_bytes, "memory") == size_bytes


@given(st.one_of(st.text(), st.from_regex(r"[0-9.]{0,40}[a-zA-Z]{0,4}", fullmatch=True)))
def test_any_text_is_a_size_in_range_or_refused(text: str) -> None:
    try:
        size_bytes = parse_size(text, "--memory")
    except UsageError as error:
        assert str(error).startswith("--memory: ")
        assert "; " in str(error)
    else:
        assert MIN_MEMORY_BYTES <= size_bytes <= MAX_MEMORY_BYTES


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("500ms", 0.5),
        ("2m", 120),
        ("1h", 3600),
        ("30", 30),
        ("1.5", 1.5),
        (".5s", 0.5),
        ("5.", 5),
        ("250us", 0.00025),
        ("10 S", 10),
        (2, 2),
        (0.25, 0.25),
    ],
)
def test_durations_people_write(text: float | str, seconds: float) -> None:
    assert math.isclose(parse_duration(text, "--timeout"), seconds)


@pytest.mark.parametrize(
    "value", ["", "s", "-1", "-1s", "5x", "1d2h", "1m30s", "1e3", "nan", "inf", "1,5", "0x10", True]
)
def test_what_is_not_a_duration(value: float | str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(value, "--timeout")


@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, "0", "0ms", "0.000", -math.inf])
def test_duration_must_be_positive(value: float | str) -> None:
    with pytest.raises(UsageError, match="not more than zero"):
        parse_duration(value, "timeout")


@pytest.mark.parametrize("value", [math.inf, 1e300, MAX_TIMEOUT_S * 2, "9999999h", "9" * 32])
def test_duration_too_long(value: float | str) -> None:
    with pytest.raises(UsageError, match="too long"):
        parse_duration(value, "timeout")


def test_duration_not_a_number() -> None:
    with pytest.raises(UsageError, match="nan is not a duration"):
        parse_duration(math.nan, "timeout")


@given(st.floats(min_value=1e-6, max_value=MAX_TIMEOUT_S))
def test_seconds_are_kept(seconds: float) -> None:
    assert parse_duration(seconds, "timeout") == seconds


@given(st.integers(1, 10_000_000))
def test_duration_reads_back(milliseconds: int) -> None:
    seconds = milliseconds / 1e3
    assert math.isclose(parse_duration(format_duration(seconds), "timeout"), seconds)


@given(st.one_of(st.text(), st.from_regex(r"[0-9.]{0,40}[a-zA-Z]{0,4}", fullmatch=True)))
def test_any_text_is_a_duration_in_range_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text, "--timeout")
    except UsageError as error:
        assert str(error).startswith("--timeout: ")
        assert "; " in str(error)
    else:
        assert 0 < seconds <= MAX_TIMEOUT_S


def test_how_calls_travel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVMLET_CALLS", raising=False)
    assert parse_calls(None, "calls") == "auto"
    monkeypatch.setenv("KVMLET_CALLS", "")
    assert parse_calls(None, "calls") == "auto"
    monkeypatch.setenv("KVMLET_CALLS", "poll")
    assert parse_calls(None, "calls") == "poll"
    for mode in ("auto", "exit", "poll"):
        assert parse_calls(mode, "calls") == mode


@pytest.mark.parametrize("text", ["", "Poll", " exit", "x" * 1000, "a\nb"])
def test_what_is_no_way_for_calls(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_calls(text, "--calls")
    assert str(caught.value).startswith("--calls: ")
    assert str(caught.value).endswith("; write auto, exit or poll")
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)
