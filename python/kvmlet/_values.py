"""Sizes, durations and modes as people write them; parsed by hand, without any import."""

import os

from kvmlet.errors import UsageError

DEFAULT_MEMORY_BYTES = 512 << 20
OUTPUT_LIMIT_BYTES = 16 << 20
DEFAULT_DISK_BYTES = 2 << 30
DEFAULT_MAX_PROCS = 256
# The first is the default.
CALLS = ("auto", "exit", "poll")

# The engine's own bounds, checked here so that one line of error comes before anything starts:
# tests/e2e/test_limits.py compares the two.
MIN_MEMORY_BYTES = 4 << 20
MAX_MEMORY_BYTES = 1 << 40
# Less is hardly a directory.
MIN_DISK_BYTES = 1 << 20
MOST_MAX_PROCS = 1024
MOST_MAX_FILES = 1024
# Far beyond any run, and far below where nanoseconds overflow 64 bits.
MAX_TIMEOUT_S = 1e9

_SIZE_SHIFTS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_DURATION_UNITS_S = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
# Longer than any number in range, and short enough to quote in a one-line message.
_MAX_CHARS = 32


def _split(text: str) -> tuple[str, str] | None:
    """("12.5", "ms") from "12.5ms": plain ASCII digits with at most one point, then a unit."""
    text = text.strip()
    if len(text) > _MAX_CHARS or not text.isascii():
        return None
    end = 0
    while end < len(text) and (text[end].isdigit() or text[end] == "."):
        end += 1
    number = text[:end]
    if number.count(".") > 1 or not number.strip("."):
        return None
    return number, text[end:].strip().lower()


def _quote(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 2 * _MAX_CHARS else text[: 2 * _MAX_CHARS] + "..."


def parse_count(value: int | str, name: str) -> int:
    """A number of processes, from 1 to 1,024; `name` as in `parse_size`. Raises UsageError."""
    return _count(value, name, MOST_MAX_PROCS)


def parse_files(value: int | str, name: str) -> int:
    """A number of descriptors, from 1 to 1,024; `name` as in `parse_size`. Raises UsageError."""
    return _count(value, name, MOST_MAX_FILES)


def _count(value: int | str, name: str, most: int) -> int:
    remedy = f"give a number from 1 to {most}"
    if isinstance(value, str) and len(value) <= _MAX_CHARS and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}: {_quote(value)} is not a number", remedy=remedy)
    if not 1 <= value <= most:
        raise UsageError(f"{name}: {value} is out of range", remedy=remedy)
    return value


def parse_size(value: int | str, name: str) -> int:
    """A size of memory, as `parse_bytes` reads it: 4 MiB to 1 TiB. Raises UsageError."""
    return parse_bytes(value, name, least=MIN_MEMORY_BYTES)


def parse_disk(value: int | str, name: str) -> int:
    """Room for files, as `parse_bytes` reads it: 1 MiB to 1 TiB. Raises UsageError."""
    return parse_bytes(value, name, least=MIN_DISK_BYTES)


def parse_bytes(value: int | str, name: str, *, least: int = 0) -> int:
    """Bytes from 65536, "64m", "512M", "1.5g", "64MiB"; all units are powers of 1024.

    `name` is the argument as its user wrote it. Raises UsageError.
    """
    remedy = "write e.g. 64m, 512M, 1g, 512MiB or a number of bytes"
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise UsageError(f"{name}: {_quote(value)} is not a size", remedy=remedy)
    if isinstance(value, int):
        size_bytes = value
    else:
        parts = _split(value)
        unit = parts[1].removesuffix("b").removesuffix("i") if parts else ""
        # "i" alone is no unit: it takes a letter before it (MiB).
        if parts is None or unit not in _SIZE_SHIFTS or (not unit and parts[1] not in ("", "b")):
            raise UsageError(f"{name}: {_quote(value)} is not a size", remedy=remedy)
        number = parts[0]
        scale = 1 << _SIZE_SHIFTS[unit]
        # int for whole numbers: a float would round sizes beyond 2**53.
        size_bytes = int(float(number) * scale) if "." in number else int(number) * scale
    if size_bytes < least:
        remedy = f"the least is {format_size(least)}"
        raise UsageError(f"{name}: {_quote(value)} is too small", remedy=remedy)
    if size_bytes > MAX_MEMORY_BYTES:
        most = format_size(MAX_MEMORY_BYTES)
        raise UsageError(f"{name}: {_quote(value)} is too large", remedy=f"the most is {most}")
    return size_bytes


def parse_duration(value: float | str, name: str) -> float:
    """Seconds from 1.5, "30", "30s", "500ms", "2m", "1h".

    `name` is the argument as its user wrote it. Raises UsageError.
    """
    remedy = "write e.g. 30s, 500ms, 2m, 1h or a number of seconds"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UsageError(f"{name}: {_quote(value)} is not a duration", remedy=remedy)
    if isinstance(value, str):
        parts = _split(value)
        if parts is None or parts[1] not in _DURATION_UNITS_S:
            raise UsageError(f"{name}: {_quote(value)} is not a duration", remedy=remedy)
        seconds = float(parts[0]) * _DURATION_UNITS_S[parts[1]]
    elif value != value:  # not a number
        raise UsageError(f"{name}: nan is not a duration", remedy=remedy)
    else:
        seconds = value
    if seconds <= 0:
        raise UsageError(f"{name}: {_quote(value)} is not more than zero", remedy=remedy)
    if seconds > MAX_TIMEOUT_S:
        raise UsageError(
            f"{name}: {_quote(value)} is too long", remedy="leave it out for no time limit"
        )
    return float(seconds)


def parse_calls(value: str | None, name: str) -> str:
    """The way for calls to travel: "auto", "exit" or "poll".

    None stands for what the environment variable KVMLET_CALLS says, else "auto".

    `name` is the argument as its user wrote it. Raises UsageError.
    """
    if value is None:
        name = "KVMLET_CALLS"
        value = os.environ.get(name) or CALLS[0]
    if value not in CALLS:
        raise UsageError(
            f"{name}: {_quote(value)} is not a way for calls to travel",
            remedy=f"write {', '.join(CALLS[:-1])} or {CALLS[-1]}",
        )
    return value


def format_size(size_bytes: int) -> str:
    """The shortest exact form that `parse_size` reads back: 64m, 1g, 65537."""
    for unit, shift in (("t", 40), ("g", 30), ("m", 20), ("k", 10)):
        if size_bytes and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)


def format_duration(seconds: float) -> str:
    """A short form of a time limit: 30s, 500ms, 90s, 0.5ms."""
    if seconds < 1:
        return f"{seconds * 1e3:g}ms"
    return f"{seconds:.12g}s"
