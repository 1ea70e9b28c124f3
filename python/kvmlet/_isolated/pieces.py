"""Calls and answers that are longer than one message may be: a head with the length, and pieces.

The host checks each length that the guest claims (kvmlet._isolated.call).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

PIECE_BYTES = 16 << 20
"""As long as a message may be."""

# Neither a pickle, nor a call with arrays beside it, nor plain data begins with this.
_HEAD = struct.Struct("<cQ")
_MARK = b"M"


def pieces(content: bytes) -> Iterator[bytes | memoryview]:
    """The messages that carry `content`: itself, or a head and its pieces in order."""
    if len(content) <= PIECE_BYTES:
        yield content
        return
    yield _HEAD.pack(_MARK, len(content))
    view = memoryview(content)
    for at in range(0, len(content), PIECE_BYTES):
        yield view[at : at + PIECE_BYTES]


def total_of(message: bytes | mmap.mmap) -> int | None:
    """The length that a head tells of; None for a message that is none."""
    if len(message) != _HEAD.size or message[:1] != _MARK:
        return None
    total: int = _HEAD.unpack(message)[1]
    return total
