"""Exceptions of the guest, raised in the host: the guest describes them, and chooses every byte."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from kvmlet.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Callable

_error_types: dict[str, type[GuestError]] = {}

TEXT_MAX_CHARS = 64 << 10
"""As much of a text as guests send, if they are what they should be."""

_LINE_MAX_CHARS = 400
_PIECE_CHARS = 16 << 10


def guest_error(name: str, text: str, trace: str, arguments: object) -> GuestError:
    """The exception that the guest describes; what it describes wrongly is a plain GuestError."""
    text, trace = text[-TEXT_MAX_CHARS:], trace[-TEXT_MAX_CHARS:]
    cls = error_type(name)
    name = one_line(name)
    if cls is GuestError:
        message = f"{name}: {text}" if text else name
        error = cls(message)
    else:
        message = text
        make = cast("Callable[..., GuestError]", cls)
        error = make(*_arguments(cls, arguments, text))
    error.message = printable(message)
    error.remedy = ""
    error.type_name = name
    error.guest_traceback = printable(trace)
    if trace:
        error.add_note("In the guest:\n" + error.guest_traceback.rstrip())
    return error


def error_type(name: str) -> type[GuestError]:
    """GuestError, or for the name of a builtin exception a class that is both."""
    import builtins

    builtin = getattr(builtins, name, None) if name.isidentifier() else None
    if (
        not isinstance(builtin, type)
        or not issubclass(builtin, Exception)
        # `SystemExit` and its like end whole programs; a group has parts. These two end loops and
        # tasks of ours: only our own may.
        or issubclass(builtin, (BaseExceptionGroup, StopIteration, StopAsyncIteration))
        or builtin.__name__ != name
    ):
        return GuestError
    cls = _error_types.get(name)
    if cls is None:
        body = {"__module__": "kvmlet", "__init__": _initialiser(builtin), "__reduce__": _reduce}
        cls = _error_types.setdefault(name, type(f"Guest{name}", (GuestError, builtin), body))
    return cls


def _initialiser(builtin: type[Exception]) -> Callable[..., None]:
    # `type.__call__` makes the instance: some builtins refuse `__new__` for a class like this.
    initialise = vars(builtin)["__init__"]

    def init(self: GuestError, *args: object) -> None:
        # The builtin's own fields: errno, encoding, value. Arguments that do not fit leave them.
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            initialise(self, *args)

    return init


def _reduce(error: GuestError) -> tuple[object, ...]:
    # The class has no module to be found in.
    return _again, (error.type_name, error.args, error.__dict__)


def _again(name: str, args: tuple[object, ...], state: dict[str, object]) -> GuestError:
    error = guest_error(name, "", "", args)
    error.__dict__.update(state)
    return error


def _arguments(cls: type[GuestError], arguments: object, text: str) -> tuple[object, ...]:
    """The arguments that the exception is made with: simple values only."""
    simple = (type(None), bool, int, float, str, bytes)
    if (
        not isinstance(arguments, tuple)
        or not all(isinstance(argument, simple) for argument in arguments)
        # Its details steer how it is printed.
        or issubclass(cls, SyntaxError)
    ):
        return (text,)
    return arguments


def one_line(text: str) -> str:
    """The start of `text`, for a message of ours: it comes from the guest."""
    start = text[:_LINE_MAX_CHARS]
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in start)
    return shown if start == text else f"{shown}..."


def printable(text: str) -> str:
    """`text` with lines and tabs, but no other control characters: it comes from the guest."""
    # Piece by piece: a list of all characters would take eight times their memory.
    pieces = (text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS))
    return "".join(piece if piece.isprintable() else _shown(piece) for piece in pieces)


def _shown(piece: str) -> str:
    return "".join(
        char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in piece
    )
