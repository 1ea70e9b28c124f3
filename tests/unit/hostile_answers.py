"""Answers that no honest guest gives, by name: bytes for whoever reads them on the host."""

from __future__ import annotations

import datetime
import pickle
import struct
from typing import Any

from kvmlet._isolated.writer import encode


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def ok(content: bytes) -> bytes:
    """The answer ("ok", value) for a value as bytes."""
    return b"t" + u32(2) + encode("ok") + content


def kind(word: object, content: object) -> bytes:
    """A value of one of the kinds of the tag E."""
    return ok(b"E" + encode(word) + encode(content))


def kind_of_array(memory: bytes) -> bytes:
    """An array of one number whose memory is written so."""
    return ok(b"E" + encode("array") + b"t" + u32(3) + encode("<i8") + encode((1,)) + memory)


def error(name: str, text: str = "text", trace: str = "trace", arguments: Any = None) -> bytes:
    return encode(("error", name, text, trace, arguments))


class Bomb:
    """It would end the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os._exit, (66,)


def _cycle() -> list[object]:
    loop: list[object] = []
    loop.append(loop)
    return loop


_ALIKE = b"".join(encode(number * ((1 << 61) - 1)) for number in range(1, 30_000))
_ANSI = "\x1b[2J\x1b]0;title\x07\r\nall is well\u202e"
_MANY = 400_000
_LONG = 2 << 20

HOSTILE: dict[str, bytes] = {
    # Depth.
    "lists, 5,000 deep": ok((b"l" + u32(1)) * 5000 + b"N"),
    "tuples, 101 deep": ok((b"t" + u32(1)) * 101 + b"N"),
    "keys, 5,000 deep": ok((b"d" + u32(1)) * 5000 + b"NN"),
    "tags of kinds, one in the other": b"E" * 5000,
    "tags of classes, one in the other": b"R" * 5000,
    # Sizes and counts that lie.
    "nothing": b"",
    "one tag of none": b"?",
    "a list of 4 billion": ok(b"l" + u32(0xFFFF_FFFF) + b"N" * 100),
    "a text of 4 billion": ok(b"s" + u32(0xFFFF_FFFF)),
    "bytes, one more than there are": ok(b"b" + u32(5) + b"abcd"),
    "bytes, one fewer than there are": ok(b"b" + u32(3) + b"abcd"),
    "a dict of more pairs than there are": ok(b"d" + u32(60) + b"N" * 100),
    "an int of 200,000 bytes": ok(b"i" + u32(200_000) + bytes(200_000)),
    "a key of 2,000 bytes": ok(b"S" + u32(1) + b"i" + u32(2000) + b"\1" * 2000),
    "a Decimal of 70,000 digits": ok(b"D" + u32(70_000) + b"1" * 70_000),
    "a Decimal of no exponent": ok(b"D" + u32(22) + b"1e99999999999999999999"),
    "two answers": ok(b"N") * 2,
    # Memory and time.
    "empty lists without end": ok(b"l" + u32(_MANY) + (b"l" + u32(0)) * _MANY),
    "sets of one without end": ok(b"l" + u32(_MANY) + (b"S" + u32(1) + b"N") * _MANY),
    "a text that is four times as wide": ok(encode("a" * (4 << 20) + "\U0001f40c")),
    "keys of one hash": ok(b"S" + u32(29_999) + _ALIKE),
    "a key that comes twice": ok(b"S" + u32(2) + b"NN"),
    "a key that cannot be hashed": ok(b"S" + u32(1) + b"l" + u32(0)),
    # Pickles, and cycles, which the format cannot have.
    "a pickle that ends the process": pickle.dumps(("ok", Bomb()), 5),
    "a pickle of a cycle": pickle.dumps(("ok", _cycle()), 5),
    # Texts and times.
    "a text that is no UTF-8": ok(b"s" + u32(1) + b"\xff"),
    "the day 0": ok(b"y" + u32(0)),
    "an hour 25": ok(b"h" + bytes([25, 0, 0, 0, 0, 0, 0, 0]) + b"N"),
    "a time zone of two days": ok(b"h" + bytes(8) + encode((datetime.timedelta(2),))),
    "a timedelta beyond all": ok(b"e" + struct.pack("<iII", 0x7FFF_FFFF, 0, 0)),
    # Kinds with a class of their own.
    "a range of no step": kind("range", (1, 2, 0)),
    "a UUID of five bytes": kind("uuid", b"short"),
    "a path of bytes": kind("path", b"x"),
    "a kind that is none": kind("os.system", "true"),
    "an array larger than its bytes": kind("array", ("<i8", (1 << 20,), b"x" * 8)),
    "an array of 2^124": kind("array", ("<i8", (1 << 62, 1 << 62), b"")),
    "an array of 65 dimensions": kind("array", ("<i8", (1,) * 65, b"x" * 8)),
    "an array of pointers": kind("array", ("|O8", (1,), b"x" * 8)),
    "an array's memory that is too short": kind_of_array(b"m" + u32(9) + b"\0" + b"x" * 8),
    "an array's memory, skipped past the end": kind_of_array(b"m" + u32(1) + b"\xff" + b"x" * 8),
    "an array's memory without an array": ok(b"m" + u32(8) + b"\0" + b"x" * 8),
    "a set in the place of an array": kind("array", {b"x"}),
    "memory as a key": kind_of_array(b"S" + u32(1) + b"m" + u32(8) + b"\0" + b"x" * 8),
    "an array of records": kind("array", ("<i8,<i8", (1,), b"x" * 16)),
    # Names that shadow.
    "a class of builtins": ok(b"R" + encode("builtins.eval") + encode({"source": "1"})),
    "a class of the host's": ok(b"R" + encode("kvmlet.box.Box") + encode({})),
    "a named tuple of the system's": kind("namedtuple", ("os.stat_result", (1,))),
    "a member that is an attribute": kind("enum", ("unit.test_data_extended.Colour", "__class__")),
    "an error named as ours": error("kvmlet.errors.SandboxEnded"),
    "an error named as a function": error("__import__"),
    "an error named as a builtin function": error("exit"),
    # What would end loops, tasks and programs of the host.
    "StopIteration": error("StopIteration", arguments=(5,)),
    "GeneratorExit": error("GeneratorExit"),
    "KeyboardInterrupt": error("KeyboardInterrupt"),
    "SystemExit": error("SystemExit", arguments=(0,)),
    "a group of errors": error("BaseExceptionGroup", arguments=("x", [1])),
    "CancelledError": error("asyncio.exceptions.CancelledError"),
    # Arguments that do not fit.
    "OSError of nine numbers": error("OSError", arguments=(1.5,) * 9),
    "UnicodeDecodeError of a list": error("UnicodeDecodeError", arguments=([],)),
    "SyntaxError with a place": error("SyntaxError", arguments=("x", ("f", 1, -5, "t", 1, 10**9))),
    # Words for a terminal, and words without end.
    "ANSI in an error": error("ValueError", _ANSI, _ANSI, (_ANSI,)),
    "ANSI in an error's name": error(_ANSI, "x", "y"),
    "ANSI in the reason": encode(("unfit", _ANSI)),
    "ANSI in a class's name": ok(b"R" + encode(_ANSI) + encode({})),
    "an error of 2 MiB": error("ValueError", "x\x1b" * _LONG, "y\x1b" * _LONG),
    "an error's name of 2 MiB": error("x" * _LONG),
    "a reason of 2 MiB": encode(("unfit", "x" * _LONG)),
    "a class's name of 2 MiB": ok(b"R" + encode("x" * _LONG) + encode({})),
    "half of a pair of surrogates": error("ValueError", "\ud800", "\udfff"),
    # Other shapes.
    "no tuple": encode("ok"),
    "ok without a value": encode(("ok",)),
    "ok with two values": encode(("ok", 1, 2)),
    "ok with a package that is none": encode(("ok", 1, "os; import x")),
    "ok with a package without end": encode(("ok", 1, "x" * _LONG)),
    "an error without fields": encode(("error",)),
    "an error of numbers": encode(("error", 1, 2, 3, 4)),
    "an unknown word": encode(("call", 1)),
}
