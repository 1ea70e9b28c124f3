"""The dataclasses that answers of guests may contain."""

from __future__ import annotations

import dataclasses
import enum
import inspect
from typing import TypeVar

from kvmlet._isolated.codec import type_name
from kvmlet.errors import UsageError

T = TypeVar("T")

registered: dict[str, type] = {}
"""Each class by its `type_name`."""


def is_namedtuple(cls: type) -> bool:
    """True for a class that collections.namedtuple or typing.NamedTuple has made."""
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def register_result(cls: type[T]) -> type[T]:
    """Let isolated functions return instances of `cls`. May decorate it.

    It is a dataclass, an enumeration or a named tuple.

    The host makes the instance by calling `cls` with the fields that the guest sent, of whatever
    types those are: what matters, `__post_init__` must check. A class that is not registered is
    never made.

    Raises UsageError for what is none of these, or a dataclass not made by its fields alone.

        >>> from typing import NamedTuple
        >>> @kvmlet.register_result
        ... class Size(NamedTuple):
        ...     width: int
        ...     height: int
        >>> kvmlet.isolated(lambda size: Size(size.height, size.width))(Size(3, 4))
        Size(width=4, height=3)
    """
    if isinstance(cls, type) and (issubclass(cls, enum.Enum) or is_namedtuple(cls)):
        registered[type_name(cls)] = cls
        return cls
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise UsageError(
            f"{cls!r} is no dataclass, enumeration or named tuple",
            remedy="decorate it with @dataclass first",
        )
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    if set(inspect.signature(cls).parameters) != fields:
        raise UsageError(
            f"{type_name(cls)} is not made by its fields alone",
            remedy="return a plain dataclass without InitVar or an __init__ of its own",
        )
    registered[type_name(cls)] = cls
    return cls
