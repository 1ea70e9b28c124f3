"""Hostile answers of guests: errors of ours, in bounded time and memory, and fit for a terminal."""

from __future__ import annotations

import os
import pickle
import struct
import time
import traceback
import tracemalloc
from typing import Any

import pytest

import kvmlet
from kvmlet._isolated.call import _answer_to, value_of
from kvmlet._isolated.codec import DataError
from kvmlet._isolated.pieces import answers, pieces_max, total_of
from kvmlet._isolated.writer import encode
from kvmlet.interpreter import read_answer
from unit.hostile_answers import HOSTILE

BUDGET_BYTES = 8 << 20
# Beside the budget: copies of parts of the answer, and what errors say.
SPARE_BYTES = 24 << 20
# Of a busy machine; each takes milliseconds.
MOST_CPU_S = 5


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 40


def fit_for_a_terminal(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in-pieces"])
@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_to_a_call(name: str, in_pieces: bool) -> None:
    # An answer in pieces is memory of the host's that can be written.
    answer = memoryview(bytearray(HOSTILE[name])) if in_pieces else HOSTILE[name]
    tracemalloc.start()
    started_s = time.process_time()
    try:
        with pytest.raises((kvmlet.ResultError, kvmlet.GuestError)) as caught:
            value_of(answer, BUDGET_BYTES, lambda: None)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - started_s < MOST_CPU_S
    assert peak_bytes < BUDGET_BYTES + SPARE_BYTES
    error: Any = caught.value
    assert fit_for_a_terminal(str(error))
    assert fit_for_a_terminal("".join(traceback.format_exception_only(error)))
    assert pickle.loads(pickle.dumps(error)).message == error.message
    if isinstance(error, kvmlet.ResultError):
        assert "\n" not in str(error)
        assert len(str(error)) < 1500
        assert error.remedy
    else:
        assert fit_for_a_terminal(error.type_name + error.guest_traceback)
        # A control character is four when it is shown.
        assert len(str(error)) < 5 * (64 << 10)
        assert not isinstance(error, (StopIteration, StopAsyncIteration, BaseExceptionGroup))


class Liar:
    """A sandbox whose program says that a long answer comes."""

    def __init__(self, total_bytes: int, pieces: list[bytes]) -> None:
        self.answers = [struct.pack("<cQ", b"M", total_bytes), *pieces]

    def _request_parts(self, _parts: list[bytes]) -> bytes:
        return self.answers.pop(0)

    _room = staticmethod(kvmlet.Sandbox._room)

    def _recv_into(self, room: bytearray, at: int) -> int:
        if not self.answers:
            raise kvmlet.NotReady("it has sent nothing")
        answer = self.answers.pop(0)
        if len(answer) <= len(room) - at:
            room[at : at + len(answer)] = answer
        return len(answer)

    def _memory_limit(self) -> int:
        return 64 << 20


@pytest.mark.parametrize(
    ("total_bytes", "pieces"),
    [
        ((64 << 20) + 1, []),
        (2**64 - 1, []),
        (10, [b""]),
        (10, [b"12345", b"", b"67890"]),
        (10, [b"12345678901"]),
        (10, [b"123", b"12345678"]),
        (1 << 20, [b"1"] * 2000),
    ],
)
def test_an_answer_in_pieces_that_lies(total_bytes: int, pieces: list[bytes]) -> None:
    liar: Any = Liar(total_bytes, pieces)
    with pytest.raises(kvmlet.ResultError, match="makes no sense"):
        _answer_to(liar, [b"call"])


def test_an_answer_in_pieces() -> None:
    true: Any = Liar(10, [b"123", b"4567890"])
    assert _answer_to(true, [b"call"]) == b"1234567890"
    nothing: Any = Liar(0, [])
    assert _answer_to(nothing, [b"call"]) == b""
    short: Any = Liar(10, [b"123"])
    with pytest.raises(kvmlet.NotReady):
        _answer_to(short, [b"call"])


def test_pieces_are_no_more_than_an_honest_answer_comes_in() -> None:
    large, small = bytes(1 << 20), bytes(100_000)
    for parts in (
        [large] * 40,
        [small, large] * 40,
        [small] * 200,
        [b"x", bytes(40 << 20), b"x"],
        [bytes((16 << 20) + 1)],
    ):
        sent = [*answers(parts)]
        total = sum(map(len, parts))
        assert total_of(bytes(sent[0])) == total
        assert b"".join(sent[1:]) == b"".join(parts)
        assert len(sent) - 1 <= pieces_max(total)


def test_a_claim_alone_takes_no_memory() -> None:
    liar: Any = Liar(64 << 20, [b"1"])
    before = _resident_bytes()
    with pytest.raises(kvmlet.NotReady):
        _answer_to(liar, [b"call"])
    assert _resident_bytes() - before < SPARE_BYTES
    # One that comes is there once, and what is made of it is counted beside it.
    answer = encode(("ok", ["x" * (60 << 20)]))
    pieces = [answer[at : at + (16 << 20)] for at in range(0, len(answer), 16 << 20)]
    long: Any = Liar(len(answer), pieces)
    whole = _answer_to(long, [b"call"])
    with pytest.raises(kvmlet.ResultError, match="more memory"):
        value_of(whole, BUDGET_BYTES, lambda: None)
    assert value_of(whole, 64 << 20, lambda: None) == ["x" * (60 << 20)]


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", HOSTILE)
def test_an_answer_to_a_cell(name: str) -> None:
    """As the whole answer of a session, and as the value in one."""
    answer = HOSTILE[name]
    for said in (answer, encode((1, answer, "", None, [], None))):
        started_s = time.process_time()
        try:
            fields = read_answer(said, 1, BUDGET_BYTES)
        except (DataError, kvmlet.ResultError) as error:
            if isinstance(error, kvmlet.ResultError):
                assert str(error).isprintable()
                assert len(str(error)) < 1500
        else:
            # A tuple that says "error" is a value like any other here.
            assert said is not answer
            assert fields["value"][0] in ("ok", "error", "unfit", "call") or fields["value"] == "ok"
        assert time.process_time() - started_s < MOST_CPU_S


def test_what_a_cell_says_of_its_error() -> None:
    long = "\x1b[2J" * (1 << 20)
    for error in ((long, long, long), ("a", "b\x1b", "c\u202e")):
        made = read_answer(encode((1, None, "", None, [], error)), 1, 64 << 20)["error"]
        for text in (made.type, made.message, made.traceback):
            assert fit_for_a_terminal(text)
            assert len(text) < 5 * (64 << 10)
    shown = read_answer(encode((1, None, long, None, [], None)), 1, 64 << 20)
    assert shown["is_data"] is False
    assert len(shown["value"]) < 5 * (64 << 10)
