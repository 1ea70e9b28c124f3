"""The dataclasses that answers of guests may contain."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TypeVar

from kvmlet._isolated.codec import type_name
from kvmlet.errors import UsageError

T = TypeVar("T")

registered: dict[str, type] = {}
"""Each class by its `type_name`."""


def register_result(cls: type[T]) -> type[T]:
    """Let isolated functions return instances of the dataclass `cls`. May decorate it.

    The host makes the instance by calling `cls` with the fields that the guest sent, of whatever
    types those are: what matters, `__post_init__` must check. A class that is not registered is
    never made.

    Raises UsageError for what is no dataclass, or one not made by its fields alone.
    """
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise UsageError(f"{cls!r} is not a dataclass", remedy="decorate it with @dataclass first")
    fields = {field.name for field in dataclasses.fields(cls) if field.init}
    if set(inspect.signature(cls).parameters) != fields:
        raise UsageError(
            f"{type_name(cls)} is not made by its fields alone",
            remedy="return a plain dataclass without InitVar or an __init__ of its own",
        )
    registered[type_name(cls)] = cls
    return cls
