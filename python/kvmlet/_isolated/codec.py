"""Values as bytes: how results of isolated functions leave the guest.

Unlike a pickle this is data and nothing else: reading it calls no code that the guest could choose.
The guest writes it (kvmlet_runner), the host reads it, and trusts no byte of it: lengths, depth,
amount and hashes are bounded.

A value is a tag byte and its content; all numbers are little-endian:

    N T F           None, True, False
    i               int: u32 length, two's complement
    f c             float, complex: one or two IEEE doubles
    s b a           str (UTF-8, surrogates allowed), bytes, bytearray: u32 length, content
    m               memory of an array: u32 length, u8 count of bytes to skip, these, content
    l t S Z         list, tuple, set, frozenset: u32 count, values
    d               dict: u32 count, keys and values in turn
    D               Decimal: u32 length, its text
    y h x e         date, time, datetime, timedelta
    R               dataclass: its name and its fields, as two values: str and dict
    E               one of the kinds below: its word and its content, as two values
"""

from __future__ import annotations

import struct

MAX_DEPTH = 100
# Quadratic arithmetic on an int of this size still takes no time to speak of.
MAX_INT_BYTES = 128 << 10
MAX_DECIMAL_CHARS = 64 << 10

U32 = struct.Struct("<I")
DOUBLE = struct.Struct("<d")
COMPLEX = struct.Struct("<dd")
DATE = struct.Struct("<I")  # proleptic ordinal
TIME = struct.Struct("<BBBIB")  # hour, minute, second, microsecond, fold
DELTA = struct.Struct("<iII")  # days, seconds, microseconds


# Kinds of the tag E, with their content.
RANGE = "range"  # (start, stop, step)
UUID = "uuid"  # its 16 bytes
PATH = "path"  # str
ORDERED = "OrderedDict"  # dict
COUNTER = "Counter"  # dict
MEMBER = "enum"  # (name of the registered class, name of the member)
NAMED = "namedtuple"  # (name of the registered class, values)
ARRAY = "array"  # numpy: (dtype, shape, bytes); a scalar has None for its shape
TABLE = "table"  # pyarrow.Table: (rows, columns), as kvmlet._isolated.tables has them
FRAME = "frame"  # pandas.DataFrame: (table, labels, index)
SERIES = "series"  # pandas.Series: (frame of one column, name)

MEMORY = struct.Struct("<IB")
# The content of a tag m begins at a multiple of this, as arrays do in memory.
ALIGNED_BYTES = 64

# Kinds of numpy's types that are plain numbers, times and texts.
ARRAY_KINDS = "biufcSUmM"


class NotData(TypeError):
    """A value is not plain data; the message says which and where."""


class DataError(ValueError):
    """Bytes are not what `encode` makes, or more than is let in."""


class TooLarge(DataError):
    """A value takes more memory than it may."""


class UnknownDataclass(DataError):
    """A dataclass that was not registered."""


def type_name(cls: type) -> str:
    """ "module.qualname" of a class; of a builtin its name alone."""
    # A class that was made by hand may have none.
    module = getattr(cls, "__module__", "builtins")
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"
