"""A Python session in a box: cells of code that share their names.

with kvmlet.Interpreter(preload=["json"]) as py:
    py.run("x = 40")
    py.run("x + 2").value  # 42
    py.run("print(x)").stdout  # "40\\n"
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kvmlet import _log
from kvmlet._box_files import Files
from kvmlet._extension import translated
from kvmlet._isolated import module_names
from kvmlet._isolated.codec import DataError, TooLarge, UnknownDataclass
from kvmlet._isolated.exceptions import TEXT_MAX_CHARS, guest_error, one_line, printable
from kvmlet._isolated.reader import decode
from kvmlet._python_view import libraries
from kvmlet._run import check_codec, sink_of
from kvmlet._session import ANSWER_MAX_BYTES, Facts, Session, Told
from kvmlet._stopping import stop_of_this_thread
from kvmlet._values import parse_calls, parse_duration
from kvmlet.box import Box, BoxSnapshot
from kvmlet.errors import (
    CannotSend,
    DeadlineExceeded,
    ResultError,
    SandboxBusy,
    SandboxEnded,
    StaleSnapshot,
    UsageError,
    from_native,
)
from kvmlet.policy import Policy, policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from kvmlet._run import _Inherit
    from kvmlet.policy import Limits

__all__ = ["Cell", "CellError", "Interpreter", "InterpreterSnapshot"]

_MODULE = "kvmlet_session"
# Importing everything takes seconds at most, also on the slowest machine.
_WARM_UP_S = 120.0
# Warmed sessions that are kept for others with the same modules and limits.
_WARM_MAX = 8
_SPARE_BYTES = 8 << 20
# The code in the box chooses the time that its answer takes to read, within its size.
_READING_MAX_S = 60.0
_DECODED_MAX_BYTES = 400 << 20
_SHOWN_MAX = 60
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class CellError:
    """The exception that ended a cell. The code of the cell chose every character.

    >>> with kvmlet.Interpreter() as py:
    ...     error = py.run("1 / 0").error
    >>> error.type, error.message
    ('ZeroDivisionError', 'division by zero')
    """

    type: str
    """Module and name of its type, the name alone of a builtin one: "ZeroDivisionError"."""
    message: str
    """`str()` of it."""
    traceback: str
    """Its traceback as Python prints it. Control characters are shown as escapes."""


@dataclass(frozen=True, slots=True, repr=False)
class Cell:
    """The outcome of a cell.

    >>> with kvmlet.Interpreter() as py:
    ...     py.run("print('out'); {'a': [1, 2]}")
    Cell(reason='ok', value={'a': [1, 2]}, stdout='out\\n')
    """

    value: Any = None
    """The value of its last line, if that is an expression.

    Plain data as isolated functions return it; of anything else its repr, a str."""
    is_data: bool = True
    """False if `value` is only the repr."""
    stdout: str = ""
    """The output since the last cell, of subprocesses too."""
    stderr: str = ""
    error: CellError | None = None
    """The exception that ended it, None if there was none."""
    html: str | None = None
    """The value's `_repr_html_()`, if it has one. The code chose it: do not trust it."""
    images: list[bytes] = field(default_factory=list)
    """PNG files: the value's `_repr_png_()`, and the figures of matplotlib that it left open."""
    reason: str = "ok"
    """"ok", "error", "timeout" for a cell that was interrupted at its time limit; "exited",
    "signal" or "memory" if the interpreter has ended."""
    truncated: bool = False
    """True if it wrote more than is captured: the rest is lost."""

    @property
    def ok(self) -> bool:
        """True if no exception and no limit ended it."""
        return self.reason == "ok"

    def check(self) -> Self:
        """This outcome if the cell has ended well.

        Raises GuestError as an isolated function does, DeadlineExceeded, SandboxEnded.
        """
        if self.reason == "timeout":
            raise DeadlineExceeded(
                "the cell was interrupted at its time limit", remedy="allow more with timeout="
            )
        if self.error is not None:
            raise guest_error(self.error.type, self.error.message, self.error.traceback, None)
        if self.reason != "ok":
            raise _ended(self.reason)
        return self

    def __repr__(self) -> str:
        """Its fields, without those that say nothing."""
        shown = [("value", self.value), ("error", self.error and self.error.type)]
        shown += [("stdout", self.stdout), ("stderr", self.stderr)]
        # A value may have no truth, and no equality of the usual kind.
        said = [each for each in shown if each[1] is not None and not _is_empty(each[1])]
        parts = [f"{name}={_shortened(value)}" for name, value in said]
        parts += ["html=..."] if self.html else []
        parts += [f"images={len(self.images)}"] if self.images else []
        return f"Cell({', '.join([f'reason={self.reason!r}', *parts])})"


class Interpreter:
    """This very interpreter in a box, as a session: names last from one cell to the next.

    Cells see the interpreter's libraries and the system's trees, and an empty /work to write in;
    the caller's files and environment they do not. One with the same arguments as one before
    starts as a fork of it, as that was with its modules imported, and shares its memory.

    One thread at a time: another one gets SandboxBusy. One that has been closed raises
    SandboxClosed, one of a parent process ForkedProcess. Once its process has ended, `run` raises
    SandboxEnded until a `reset`.

        >>> with kvmlet.Interpreter(preload=["math"]) as py:
        ...     cell = py.run("import math; x = math.factorial(5)")
        ...     py.run("x + y", {"y": 3}).value
        123
    """

    files: Files
    """Reads and writes its files."""

    def __init__(
        self,
        *,
        preload: Iterable[str] = (),
        memory: int | str | None = None,
        disk: int | str | None = None,
        max_procs: int | None = None,
        env: Mapping[str, str] | None = None,
        read: Sequence[str | os.PathLike[str]] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        calls: str | None = None,
    ) -> None:
        """Start a session.

        preload: modules to import before the first cell. Those that are installed nowhere, as
            neighbours of a script, can be imported too: their own files are visible then.

        The other arguments are those of `Box`. Raises what `Box` raises, and GuestError for a
        module that cannot be imported.
        """
        given = policy_of(
            policy,
            limits=limits,
            read=read,
            env=env,
            memory=memory,
            disk=disk,
            max_procs=max_procs,
        )
        key = _Key(module_names(preload), given, parse_calls(calls, "calls"))
        self._adopt(*_forked(key))

    def _adopt(self, box: Box, facts: Facts) -> None:
        self._box = box
        self._facts = facts
        self._lock = threading.Lock()
        self.files = box.files
        self._renew()

    def _renew(self) -> None:
        """The session is that of the snapshot."""
        epoch = translated(self._box._vm().epoch)
        self._session = Session(self._box._vm, epoch, self._facts, self._box._limits.output_bytes)
        self._number = 0
        self._seed = os.urandom(16)

    @classmethod
    def _of(cls, box: Box, facts: Facts) -> Self:
        interpreter = cls.__new__(cls)
        interpreter._adopt(box, facts)
        return interpreter

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "ended" if self._session.ended else "open"
        return f"<kvmlet.Interpreter ({state})>"

    # ---- cells ----

    def run(
        self,
        source: str,
        variables: Mapping[str, object] | None = None,
        *,
        timeout: float | str | None = None,
        grace: float | str = 1.0,
        stdout: Callable[[str], object] | _Inherit | None = None,
        stderr: Callable[[str], object] | _Inherit | None = None,
        check: bool = False,
    ) -> Cell:
        """Run a cell of code in the session. It may await; tasks go on while later cells await.

        variables: names that it has beside its own; the values are pickled.
        timeout: in seconds, or "500ms", "2m"; at the end the cell is interrupted, as by Ctrl-C, and
            the session goes on; None for no limit.
        grace: the time that it has to give up then. What has not given up ends with its session.
        stdout, stderr: None captures, at most 16 MiB; a callable gets each line as it comes;
            INHERIT passes through.
        check: raise what `Cell.check` raises.

        Ctrl-C and exceptions of callables stop the cell as a timeout does.

        Raises UsageError, CannotSend, ResultError for answers that make no sense, SandboxBusy,
        SandboxEnded, SandboxClosed.
        """
        if not isinstance(source, str):
            raise UsageError(f"a cell is str, not {type(source).__name__}", remedy="pass its text")
        timeout_s = self._box._limits.timeout_s
        if timeout is not None:
            timeout_s = parse_duration(timeout, "timeout")
        grace_s = parse_duration(grace, "grace")
        codec = ("utf-8", "replace")
        check_codec(*codec)
        sinks = (sink_of(stdout, 1, codec), sink_of(stderr, 2, codec))
        with self._turn():
            self._number += 1
            request = _pickled(self._number, source, dict(variables or {}), self._seed)
            told = self._session.ask(request, timeout_s, grace_s, sinks)
            self._seed = b""
            if told.reason != "ok":
                who = f"box {self._box._number}: a cell"
                _log.say_end(who, told.reason, told.status, told.status)
            self._box._say_denials()
            cell = self._cell(told, _Reading(timeout_s, grace_s).look)
        return cell.check() if check else cell

    def _cell(self, told: Told, look: Callable[[], None]) -> Cell:
        stdout = told.stdout.decode("utf-8", "replace")
        stderr = told.stderr.decode("utf-8", "replace")
        outcome: dict[str, Any] = {}
        if told.answer is not None:
            stats = self._box.stats()
            left_bytes = int(stats["memory_limit_bytes"]) - int(stats["memory_bytes"])
            memory_bytes = min(max(left_bytes, 0) + _SPARE_BYTES, _DECODED_MAX_BYTES)
            try:
                outcome = read_answer(told.answer, self._number, memory_bytes, look)
            except DataError as error:
                # Its answers may be those to other requests now.
                raise self._session.nonsense(one_line(str(error))) from None
        reason = told.reason
        if reason == "ok" and outcome.get("error") is not None:
            reason = "error"
        return Cell(
            **outcome, stdout=stdout, stderr=stderr, reason=reason, truncated=told.truncated
        )

    def interrupt(self) -> None:
        """Interrupt the cell that runs, from any thread, as Ctrl-C would; else nothing.

        Raises SandboxClosed, SandboxEnded.
        """
        if not self._session.ended:
            self._session.interrupt()

    @property
    def box(self) -> Box:
        """The box that it runs in, for commands beside it: `py.box.run(["ls"])`.

        They share its files, memory and processes. Reset, fork and close the session itself: a
        reset of the box alone leaves it without its process, until its own `reset`.
        """
        return self._box

    # ---- its state ----

    def snapshot(self) -> InterpreterSnapshot:
        """Keep names, memory and files as they are now. The session goes on.

        Raises SandboxBusy, SandboxClosed, SandboxEnded, HostError.
        """
        with self._turn():
            return InterpreterSnapshot._taken(self._box.snapshot(), self._facts)

    def fork(self, count: int = 1) -> list[Interpreter]:
        """`count` sessions that go on as this one is now; it goes on itself.

        The generators of `random`, `numpy.random` and `ssl` give other values in each of them.

        Raises UsageError, SandboxBusy, SandboxClosed, SandboxEnded, TooFewDescriptors, HostError.
        """
        with self.snapshot() as snapshot:
            return snapshot.fork(count)

    def reset(self) -> None:
        """Back to the last snapshot, or to the one that it is a fork of, else to the start.

        Also one whose process has ended. Raises SandboxBusy, SandboxClosed, HostError.
        """
        with self._turn(ended=True):
            self._box.reset()
            self._renew()

    def stats(self) -> dict[str, int | float]:
        """Counters by name, as `Box.stats`."""
        return self._box.stats()

    def close(self) -> None:
        """End it and give the VM up. May be repeated."""
        self._box.close()

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._box.closed

    @contextlib.contextmanager
    def _turn(self, *, ended: bool = False) -> Any:
        # In a forked process nobody gives the lock back: that is told here.
        translated(self._box._vm().epoch)
        if not self._lock.acquire(blocking=False):
            raise SandboxBusy(
                "the session is being used by another thread",
                remedy="give each thread a fork of its own",
            )
        try:
            if self._session.ended and not ended:
                raise _ended(self._session.ended)
            yield
        finally:
            self._lock.release()


class InterpreterSnapshot:
    """A session as it was, to be forked any number of times. Made by `Interpreter.snapshot`.

    Forks share what they do not change, and live on when the snapshot is closed.

        >>> with kvmlet.Interpreter() as py:
        ...     cell = py.run("x = 1")
        ...     with py.snapshot() as snapshot:
        ...         cell = py.run("x = 2")
        ...         [fork] = snapshot.fork()
        ...         with fork:
        ...             fork.run("x").value, py.run("x").value
        (1, 2)
    """

    _box: BoxSnapshot
    _facts: Facts

    def __init__(self) -> None:
        raise UsageError("a snapshot cannot be made directly", remedy="call Interpreter.snapshot()")

    @classmethod
    def _taken(cls, box: BoxSnapshot, facts: Facts) -> Self:
        snapshot = cls.__new__(cls)
        snapshot._box, snapshot._facts = box, facts
        return snapshot

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def fork(self, count: int = 1) -> list[Interpreter]:
        """`count` sessions that go on from the snapshot.

        Raises UsageError, StaleSnapshot, SandboxClosed, TooFewDescriptors, HostError.
        """
        return [Interpreter._of(box, self._facts) for box in self._box.fork(count)]

    def close(self) -> None:
        """Give up the kept state; nothing more can be forked. May be repeated."""
        self._box.close()

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._box.closed


class _Reading:
    """The time that reading an answer may take."""

    def __init__(self, timeout_s: float | None, grace_s: float) -> None:
        self._stop = stop_of_this_thread()
        limit_s = _READING_MAX_S if timeout_s is None else timeout_s + grace_s
        self._end_s = time.monotonic() + min(limit_s, _READING_MAX_S)

    def look(self) -> None:
        if self._stop is not None and self._stop.is_set():
            raise from_native("interrupted", "the value is not wanted any more")
        if time.monotonic() >= self._end_s:
            raise ResultError(
                "the value takes too long to read", remedy="return less, or allow more time"
            )


def read_answer(
    answer: bytes, number: int, memory_bytes: int, look: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """The fields of a `Cell` in the guest's `answer` to request `number`.

    memory_bytes, look: as `decode` has them.

    Raises ResultError for a value that cannot be had, DataError for what is no answer at all.
    """
    try:
        return _fields(answer, number, memory_bytes, look)
    except UnknownDataclass as error:
        raise ResultError(
            f"the value contains {one_line(str(error))}, which is not registered here",
            remedy="decorate it with kvmlet.register_result",
        ) from None
    except TooLarge as error:
        raise ResultError(
            f"the value cannot be read: {error}",
            remedy="return less, or allow more with Interpreter(memory=...)",
        ) from None


def _fields(
    answer: bytes, number: int, memory_bytes: int, look: Callable[[], None]
) -> dict[str, Any]:
    match decode(answer, memory_bytes, look):
        case (int(echoed), data, str(shown), html, list(images), error) if echoed == number:
            pass
        case _:
            raise DataError("no answer to this cell")
    if not isinstance(data, bytes | None) or not isinstance(html, str | None):
        raise DataError("neither a value nor none")
    if not all(isinstance(image, bytes) and image.startswith(_PNG) for image in images):
        raise DataError("no images")
    fields: dict[str, Any] = {"html": html, "images": images}
    match error:
        case None if data is not None:
            try:
                return {**fields, "value": decode(data, memory_bytes, look)}
            except UnknownDataclass:
                # A class of the session's own, which its repr stands for.
                if not shown:
                    raise
                return {**fields, "value": printable(shown[:TEXT_MAX_CHARS]), "is_data": False}
        case None:
            return {**fields, "value": printable(shown[:TEXT_MAX_CHARS]), "is_data": False}
        case (str(kind), str(message), str(trace)):
            texts = (text[-TEXT_MAX_CHARS:] for text in (kind, message, trace))
            return {**fields, "error": CellError(*map(printable, texts))}
    raise DataError("no error")


def _is_empty(value: object) -> bool:
    return isinstance(value, str) and not value


def _shortened(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int of too many digits
        return "..."
    return text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}..."


def _pickled(*request: object) -> bytes:
    try:
        return pickle.dumps(request, 5)
    except Exception as error:
        raise CannotSend(
            f"the variables cannot be pickled: {error}", remedy="pass plain data"
        ) from error


def _ended(reason: str) -> SandboxEnded:
    limit = "at its memory limit" if reason == "memory" else f"({reason})"
    return SandboxEnded(f"the interpreter has ended {limit}", remedy="reset() it")


# ---- warmed sessions ----


class _Key(NamedTuple):
    """One warmed session differs from another by these."""

    preload: tuple[str, ...]
    policy: Policy
    calls: str


class _Warm:
    """A session with its modules imported, which others are forked from; made when first asked."""

    def __init__(self, key: _Key) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._snapshot: tuple[BoxSnapshot, Facts] | None = None

    def fork(self) -> tuple[Box, Facts]:
        with self._lock:
            if self._snapshot is not None:
                snapshot, facts = self._snapshot
                try:
                    return snapshot.fork(1)[0], facts
                except StaleSnapshot:  # a library was updated
                    self._snapshot = None
            self._snapshot = snapshot, facts = _warmed(self._key)
            return snapshot.fork(1)[0], facts


_lock = threading.Lock()
_warms: OrderedDict[_Key, _Warm] = OrderedDict()


def _forked(key: _Key) -> tuple[Box, Facts]:
    with _lock:
        warm = _warms.setdefault(key, _Warm(key))
        _warms.move_to_end(key)
        while len(_warms) > _WARM_MAX:
            _warms.popitem(last=False)
    return warm.fork()


def _forget() -> None:
    # The parent's VMs are dead here, and a thread that is not here may have held the lock.
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _warms.clear()


os.register_at_fork(after_in_child=_forget)


def _warmed(key: _Key) -> tuple[BoxSnapshot, Facts]:
    view = libraries(key.preload)
    boot = f"import sys; sys.path[:] = sys.argv[1:]; from {_MODULE} import main; main()"
    guest = os.path.join(os.path.dirname(os.path.realpath(__file__)), "guest", "python")
    words = [view.executable, "-I", "-B", "-c", boot, "/work", *view.path, guest]
    box = Box._with_readable(key.policy, view.readable, key.calls)
    with box:
        spawned = box._start(
            [os.fsencode(word) for word in words],
            {"MPLBACKEND": "agg", "MPLCONFIGDIR": "/tmp/matplotlib", **key.policy.env},
            None,
            ["pipe"] * 4,
        )
        epoch, pid, command, streams = spawned
        given = tuple(stream for stream in streams if stream is not None)
        assert len(given) == 4
        facts = Facts(pid, command, given)
        session = Session(box._vm, epoch, facts, box._limits.output_bytes)
        told = session.ask(pickle.dumps((key.preload, ANSWER_MAX_BYTES), 5), _WARM_UP_S, 1.0)
        if told.answer is None:
            raise _ended(told.reason)
        try:
            error = read_answer(told.answer, 0, _DECODED_MAX_BYTES).get("error")
        except DataError as nonsense:  # of a module that it has imported
            raise session.nonsense(one_line(str(nonsense))) from None
        if error is not None:
            raise guest_error(error.type, error.message, error.traceback, None)
        box._say("warmed", "an interpreter is warmed", modules=list(key.preload))
        return box.snapshot(), facts
