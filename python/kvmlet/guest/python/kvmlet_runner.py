"""The guest's side of isolated functions: the program of the warmed interpreter.

The host's side is kvmlet._isolated. The first message says where modules are and which to import;
each later one is a call. Its answer is plain data (kvmlet._isolated.codec): ("ok", value),
("ok", value, package) if it imported a large package, ("error", ...) or ("unfit", why).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import mmap
import os
import pickle
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

import kvmlet_guest

from kvmlet._isolated.codec import NotData, type_name
from kvmlet._isolated.pieces import answers, total_of
from kvmlet._isolated.request import unpacked
from kvmlet._isolated.writer import encode, encoded_in_parts

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet._isolated.pieces import Part

serving = False
"""True while this process is the guest: functions isolated in it run where they are called."""

# Longer texts are cut to their end, which says what happened.
_MAX_TEXT_CHARS = 64 << 10
# Importing a package of so many modules takes longer than most calls.
_MANY_MODULES = 20


def main() -> None:
    """Take messages until the end."""
    global serving  # noqa: PLW0603
    serving = True
    _send(_answer(_warm, kvmlet_guest.receive()))
    # Nothing that is there now is looked at again: a collection would write to every object.
    gc.collect()
    gc.freeze()
    while True:
        answer = _answer(_call, _receive())
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        try:
            _send(answer)
        except OSError as error:
            size = sum(map(len, answer))
            kvmlet_guest.send(encode(("unfit", f"{size} bytes of it: {error.strerror}")))


def _send(answer: list[Part]) -> None:
    for piece in answers(answer):
        kvmlet_guest.send(piece)


def _receive() -> Any:
    """The next call: bytes, or memory that can be written."""
    message = kvmlet_guest.receive_in_place()
    total = total_of(message)
    if total is None:
        return message
    whole = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    view = memoryview(whole)
    at = 0
    while at < total:
        # It lies in its place at once if it is large.
        piece = kvmlet_guest._receive(lambda length: view[at : at + length])  # noqa: B023
        if isinstance(piece, bytes):
            view[at : at + len(piece)] = piece
        at += len(piece)
    return whole


def _warm(message: bytes) -> None:
    path, preload = pickle.loads(message)
    sys.path[:] = path
    for name in preload:
        importlib.import_module(name)
    # A first time for all that a call goes through.
    kvmlet_guest.reseed(os.urandom(24))
    call: tuple[object, ...] = (("os.path", "basename"), (b"",), {})
    _answer(_call, pickle.dumps(call, 5))
    with contextlib.suppress(ImportError):
        # Functions that have no name to be imported by.
        cloudpickle = importlib.import_module("cloudpickle")
        _answer(_call, cloudpickle.dumps((lambda x: x, (1,), {}, __file__), 5))


def _call(message: Any) -> object:
    pickled, buffers = unpacked(message)
    function, args, kwargs, *source = pickle.loads(pickled, buffers=buffers)
    if isinstance(function, tuple):
        function = find(*function)
    elif source and isinstance(function, types.FunctionType):
        function.__code__ = _from_file(function.__code__, source[0])
    return function(*args, **kwargs)


def _from_file(code: types.CodeType, name: str) -> types.CodeType:
    """The code with its file's name, for tracebacks: cloudpickle from 3.1.3 on leaves it out."""
    constants = tuple(
        _from_file(constant, name) if isinstance(constant, types.CodeType) else constant
        for constant in code.co_consts
    )
    return code.replace(co_filename=name, co_consts=constants)


def find(module: str, qualname: str) -> Any:
    """The function of that name; of a decorated one what was decorated."""
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found.__wrapped__ if getattr(type(found), "kvmlet_isolated", False) else found


def _answer(work: Callable[[Any], object], message: Any) -> list[Part]:
    modules = len(sys.modules)
    try:
        value = work(message)
    except BaseException as error:  # noqa: BLE001 - the host is told, and decides
        return [_describe(error)]
    package = _imported_since(modules) if work is _call else None
    try:
        return encoded_in_parts(("ok", value) if package is None else ("ok", value, package))
    except NotData as error:
        return [encode(("unfit", str(error)))]
    except BaseException as error:  # noqa: BLE001 - a property of a dataclass, or a full memory
        return [_describe(error)]


def _imported_since(modules: int) -> str | None:
    """The first large package that was imported since there were so many modules."""
    if len(sys.modules) < modules + _MANY_MODULES:
        return None
    counts: dict[str, int] = {}
    for name in list(sys.modules)[modules:]:
        package = name.partition(".")[0]
        counts[package] = counts.get(package, 0) + 1
    return next((each for each in counts if counts[each] >= _MANY_MODULES), None)


def _describe(error: BaseException) -> bytes:
    """("error", type's name, text, traceback, arguments or None)."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - any code at all
        text = ""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next  # our own
        lines = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # noqa: BLE001 - any code at all
        lines = ""
    fixed = (type_name(type(error)), text[-_MAX_TEXT_CHARS:], lines[-_MAX_TEXT_CHARS:])
    try:
        # An OSError keeps its file name to itself, but for a pickle.
        plain = type(error).__module__ == "builtins"
        given = error.__reduce__()[1] if plain else error.args
        arguments = encode(("error", *fixed, given))
    except Exception:  # noqa: BLE001 - they are no plain data, or changed meanwhile
        return encode(("error", *fixed, None))
    return arguments if len(arguments) < 1 << 20 else encode(("error", *fixed, None))
