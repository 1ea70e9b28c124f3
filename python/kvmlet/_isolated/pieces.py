"""Calls and answers as messages. What is too long for one has a head with its length, and pieces.

Either is given as parts, which are not put together first: a large array is copied once less. The
host checks each length that the guest claims (kvmlet._isolated.call).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Sequence

Part: TypeAlias = "bytes | bytearray | memoryview"

PIECE_BYTES = 16 << 20
"""As long as a message may be."""
ALONE_BYTES = 1 << 20
"""A part of an answer from this length on is a piece by itself, sent from where it lies."""

# Neither a pickle, nor a call with arrays beside it, nor plain data begins with this.
_HEAD = struct.Struct("<cQ")
_MARK = b"M"


def calls(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """The messages that carry a call: all parts, or a head and pieces as long as can be."""
    total = sum(map(len, parts))
    if total <= PIECE_BYTES:
        yield [*parts]
        return
    yield [_HEAD.pack(_MARK, total)]
    piece: list[Part] = []
    room = PIECE_BYTES
    for part in parts:
        for taken in _cut(memoryview(part), room):
            piece.append(taken)
            room -= len(taken)
            if room == 0:
                yield piece
                piece, room = [], PIECE_BYTES
    if piece:
        yield piece


def answers(parts: Sequence[Part]) -> Iterator[Part]:
    """The messages that carry an answer: all of it, or a head and pieces."""
    total = sum(map(len, parts))
    if total < ALONE_BYTES:
        yield parts[0] if len(parts) == 1 else b"".join(parts)
        return
    yield _HEAD.pack(_MARK, total)
    piece = bytearray()
    for part in parts:
        if len(part) < ALONE_BYTES:
            piece += part
        if piece and (len(part) >= ALONE_BYTES or len(piece) >= ALONE_BYTES):
            yield bytes(piece)
            piece.clear()
        if len(part) >= ALONE_BYTES:
            # A bytes object needs no view, which could not be sent from where it lies.
            yield from [part] if len(part) <= PIECE_BYTES else _cut(memoryview(part), PIECE_BYTES)
    if piece:
        yield bytes(piece)


def pieces_max(total_bytes: int) -> int:
    """Most pieces that an honest answer of this length comes in."""
    return 2 + 2 * (total_bytes // ALONE_BYTES)


def _cut(view: memoryview, first: int) -> Iterator[memoryview]:
    """Pieces of at most PIECE_BYTES, the first of at most `first`."""
    at = 0
    while at < len(view):
        yield view[at : at + first]
        at, first = at + first, PIECE_BYTES


def total_of(message: bytes | mmap.mmap) -> int | None:
    """The length that a head tells of; None for a message that is none."""
    if len(message) != _HEAD.size or message[:1] != _MARK:
        return None
    total: int = _HEAD.unpack(message)[1]
    return total
