"""Calls as messages: a pickle, and beside it the memory of large arrays, which is copied once.

The host writes them, the guest believes them. A message without large arrays is the pickle alone.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pickle
    from collections.abc import Sequence

    from kvmlet._isolated.pieces import Part

# A pickle begins with another byte.
_MARK = b"K"
_HEAD = struct.Struct("<cxxxII")  # mark, length of the pickle, number of buffers
_LENGTH = struct.Struct("<Q")
_ALIGNED_BYTES = 64
_LARGE_BYTES = 64 << 10


class Aside:
    """The `buffer_callback` of a pickle: keeps large buffers, and leaves small ones in it."""

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        """True for a buffer that stays in the pickle."""
        raw = buffer.raw()
        if raw.nbytes < _LARGE_BYTES:
            return True
        self.buffers.append(raw)
        return False


def packed(pickled: bytes, buffers: Sequence[memoryview]) -> list[Part]:
    """The parts of the message for a pickle and for buffers that belong to it."""
    if not buffers:
        return [pickled]
    parts: list[Part] = [_HEAD.pack(_MARK, len(pickled), len(buffers))]
    parts += [_LENGTH.pack(buffer.nbytes) for buffer in buffers]
    parts.append(pickled)
    at = sum(map(len, parts))
    for buffer in buffers:
        padding = -at % _ALIGNED_BYTES
        parts += [bytes(padding), buffer]
        at += padding + buffer.nbytes
    return parts


def unpacked(message: Any) -> tuple[memoryview, list[memoryview]]:
    """The pickle of a message, and the buffers, which are parts of it."""
    view = memoryview(message)
    if view[:1] != _MARK:
        return view, []
    _, pickled_bytes, count = _HEAD.unpack_from(view)
    at = _HEAD.size + count * _LENGTH.size
    lengths = [
        _LENGTH.unpack_from(view, _HEAD.size + number * _LENGTH.size)[0] for number in range(count)
    ]
    pickled = view[at : at + pickled_bytes]
    at += pickled_bytes
    buffers = []
    for length in lengths:
        at += -at % _ALIGNED_BYTES
        buffers.append(view[at : at + length])
        at += length
    return pickled, buffers
