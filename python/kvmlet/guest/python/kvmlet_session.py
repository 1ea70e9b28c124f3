"""The guest's side of `kvmlet.Interpreter`: the program that runs cells of code.

Descriptor 0 brings requests, descriptor 3 takes answers: each a length as four bytes, least
significant first, then content. A request is a pickle of the host's. An answer is plain data
(kvmlet._isolated.codec), which the host reads and trusts no byte of.
"""

from __future__ import annotations

import ast
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import io
import linecache
import os
import pickle
import resource
import signal
import sys
import traceback
import types
from typing import TYPE_CHECKING, Any

from kvmlet_reseed import reseed

from kvmlet._isolated.codec import NotData, type_name
from kvmlet._isolated.writer import encode, encoded

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

# Cells may await, as in notebooks.
_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
# Longer texts are cut to their end, which says what happened.
_MAX_TEXT_CHARS = 64 << 10
_MAX_HTML_BYTES = 8 << 20
_MAX_IMAGES = 20
# Sources that are kept for tracebacks.
_MAX_SOURCES = 200
# Out of the way of what cells open.
_FIRST_DESCRIPTOR = 200
_PIPE_BYTES = 1 << 20
_F_SETPIPE_SZ = 1031

_process = os.getpid()
_is_interruptible = False


def main() -> None:
    """Take requests until the end."""
    requests = _moved(0, os.O_RDONLY)
    answers = _moved(3, None)
    with contextlib.suppress(OSError):
        fcntl.fcntl(answers, _F_SETPIPE_SZ, _PIPE_BYTES)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    signal.signal(signal.SIGINT, _on_interrupt)
    session = _Session()
    preload, limit_bytes = pickle.loads(_take(requests))
    answer = _warm(session, preload)
    # Nothing that is there now is looked at again: a collection would write to every object.
    gc.collect()
    gc.freeze()
    while True:
        _put(answers, answer)
        request = _take(requests)
        number, source, variables, seed = pickle.loads(request)
        if seed:  # a new copy of the session
            reseed(seed)
        signal.signal(signal.SIGINT, _on_interrupt)
        answer = session.answer(number, source, variables, limit_bytes)
        _flush()
        if os.getpid() != _process:  # a cell has forked
            os._exit(0)


def _moved(number: int, mode: int | None) -> int:
    """Another descriptor for `number`, out of the way; /dev/null or nothing in its place."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Two are moved.
    first = max(min(_FIRST_DESCRIPTOR, most - 2), 4)
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, first)
    os.close(number)
    if mode is not None:
        os.open(os.devnull, mode)  # the lowest that is free
    return moved


def _take(requests: int) -> bytes:
    length = int.from_bytes(_exactly(requests, 4), "little")
    return _exactly(requests, length)


def _exactly(requests: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(requests, min(length, 1 << 20))
        if not part:
            os._exit(0)
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _put(answers: int, answer: bytes) -> None:
    for part in (len(answer).to_bytes(4, "little"), answer):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(answers, rest) :]


def _on_interrupt(_signal: int, _frame: object) -> None:
    if _is_interruptible:
        raise KeyboardInterrupt


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    with contextlib.suppress(BaseException):
        ctypes.CDLL(None).fflush(None)


def _warm(session: _Session, preload: tuple[str, ...]) -> bytes:
    try:
        for name in preload:
            importlib.import_module(name)
        # A first time for all that a cell goes through.
        reseed(os.urandom(16))
        session.answer(0, "import sys\n[1]", {}, 1 << 20)
        session.answer(0, "1 / 0", {}, 1 << 20)
        session.forget()
    except BaseException as error:  # noqa: BLE001 - the host is told
        return encode((0, None, "", None, [], _described(error)))
    return encode((0, encode(None), "", None, [], None))


class _Session:
    """The names that cells share, and their sources."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Start with an empty `__main__`."""
        self.main = types.ModuleType("__main__")
        self.main.__dict__["__builtins__"] = sys.modules["builtins"]
        sys.modules["__main__"] = self.main
        self.count = 0
        self.loop: asyncio.AbstractEventLoop | None = None

    def answer(
        self, number: int, source: str, variables: dict[str, Any], limit_bytes: int
    ) -> bytes:
        """Run a cell: (number, value or None, its repr, html or None, images, error or None).

        The value is encoded apart. One that is no plain data is None, and its repr says why.
        """
        global _is_interruptible  # noqa: PLW0603
        data: bytes | None = None
        shown, html, images, error = "", None, [], None
        try:
            try:
                _is_interruptible = True
                value = self._run(source, variables)
                html = _html(value)
                images = _images(value)
                data, shown = _data(value, limit_bytes // 2)
            finally:
                _is_interruptible = False
        except BaseException as raised:  # noqa: BLE001 - the host is told, and decides
            _is_interruptible = False
            data, shown, html, images = None, "", None, []
            error = _described(raised)
        answer = encode((number, data, shown, html, images, error))
        if len(answer) > limit_bytes:
            images = []
            shown = shown or f"<a value and images of {len(answer)} bytes, too many to be told>"
            answer = encode((number, None, shown, None, images, error))
        return answer

    def _run(self, source: str, variables: dict[str, Any]) -> object:
        names = self.main.__dict__
        names.update(variables)
        self.count += 1
        file = f"<cell {self.count}>"
        lines = source.splitlines(keepends=True)
        linecache.cache[file] = (len(source), None, lines, file)
        linecache.cache.pop(f"<cell {self.count - _MAX_SOURCES}>", None)
        tree = compile(source, file, "exec", ast.PyCF_ONLY_AST | _AWAIT, dont_inherit=True)
        assert isinstance(tree, ast.Module)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        if tree.body:
            self._evaluate(compile(tree, file, "exec", _AWAIT, dont_inherit=True))
        if last is None:
            return None
        assert isinstance(last, ast.Expr)
        expression = ast.Expression(last.value)
        value = self._evaluate(compile(expression, file, "eval", _AWAIT, dont_inherit=True))
        if value is not None:
            names["_"] = value
        return value

    def _evaluate(self, code: types.CodeType) -> object:
        value = eval(code, self.main.__dict__)
        return self._finished(value) if code.co_flags & inspect.CO_COROUTINE else value

    def _finished(self, coroutine: Coroutine[Any, Any, object]) -> object:
        """The value of code that awaits. Tasks that it leaves go on in the next such cell."""
        import asyncio  # only few cells need it

        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self.loop)
        task = self.loop.create_task(coroutine)
        try:
            return self.loop.run_until_complete(task)
        except KeyboardInterrupt:
            if not task.done():
                # Its `finally` blocks run, as with asyncio.run.
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    self.loop.run_until_complete(task)
            raise


def _shown(value: object) -> str:
    try:
        return repr(value)[:_MAX_TEXT_CHARS]
    except Exception as error:  # noqa: BLE001 - any code at all
        return f"<{type_name(type(value))} whose repr raises {type_name(type(error))}>"


def _data(value: object, limit_bytes: int) -> tuple[bytes | None, str]:
    """(`value` as plain data or None, its repr if the host may have to do with that)."""
    try:
        data, has_classes = encoded(value)
    except NotData:
        return None, _shown(value)
    if len(data) > limit_bytes:
        return None, f"<a {type_name(type(value))} of {len(data)} bytes, too many to be told>"
    return data, _shown(value) if has_classes else ""


def _html(value: object) -> str | None:
    """The value as HTML, if it shows itself so."""
    html = _rich(value, "_repr_html_")
    return html if isinstance(html, str) and len(html) <= _MAX_HTML_BYTES else None


def _images(value: object) -> list[bytes]:
    """PNG images: of the value, and of the figures that the cell has left open."""
    images = []
    image = _rich(value, "_repr_png_")
    if isinstance(image, bytes):
        images.append(image)
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        for number in pyplot.get_fignums()[:_MAX_IMAGES]:
            file = io.BytesIO()
            pyplot.figure(number).savefig(file, format="png")
            images.append(file.getvalue())
        pyplot.close("all")
    return images


def _rich(value: object, name: str) -> object:
    """The result of a method for notebooks; a class has the method, but is no value of it."""
    if isinstance(value, type):
        return None
    try:
        show: Callable[[], object] | None = getattr(value, name, None)
        return show() if callable(show) else None
    except Exception:  # noqa: BLE001 - any code at all
        return None


def _is_around(file: str) -> bool:
    """True for code around the cell's: our own, and that of the event loop that runs it."""
    return file == __file__ or f"{os.sep}asyncio{os.sep}" in file


def _described(error: BaseException) -> tuple[str, str, str]:
    """(type's name, text, traceback) of an exception."""
    try:
        text = str(error)[-_MAX_TEXT_CHARS:]
    except Exception:  # noqa: BLE001 - any code at all
        text = ""
    try:
        frames = error.__traceback__
        while frames is not None and _is_around(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        at = frames
        while at is not None and at.tb_next is not None:
            if at.tb_next.tb_frame.f_code is _on_interrupt.__code__:
                at.tb_next = None
            at = at.tb_next
        lines = "".join(traceback.format_exception(type(error), error, frames))
    except Exception:  # noqa: BLE001 - any code at all
        lines = ""
    return type_name(type(error)), text, lines[-_MAX_TEXT_CHARS:]
