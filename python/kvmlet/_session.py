"""The host's side of an interpreter in a box: requests, answers, and the output in between.

The guest's side is kvmlet_session. The code in a box chooses every byte of an answer, and the time
that it comes at, if ever. So lengths and times are bounded here, and content is read as data alone.
"""

from __future__ import annotations

import contextlib
import signal as signals
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from kvmlet._extension import translated
from kvmlet._stopping import stop_of_this_thread
from kvmlet.errors import BoxFileError, ResultError, SandboxClosed, SandboxEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet import _native
    from kvmlet._run import Sink

ANSWER_MAX_BYTES = 64 << 20
"""Most bytes of one answer."""
# Of a request piece by piece, and of output at once.
_PIECE_BYTES = 64 << 10
_PIPE_MAX_BYTES = 1 << 20
_LENGTH_BYTES = 4
# From the end of its answers to its own.
_ENDING_S = 1.0
# A cell that does not give up at once is told again.
_INTERRUPT_AGAIN_S = 0.2


class Facts(NamedTuple):
    """A session as any fork of its box has it."""

    pid: int
    command: int
    streams: tuple[int, int, int, int]


class Told(NamedTuple):
    """The outcome of a request."""

    answer: bytes | None
    """None if the session has ended."""
    reason: str
    """"ok", "timeout", "exited", "signal" or "memory"."""
    status: int | None
    """Exit status if it has exited, number of the signal if a signal has ended it."""
    stdout: bytes
    stderr: bytes
    truncated: bool


class Session:
    """The interpreter's process. One thread at a time."""

    def __init__(
        self, vm: Callable[[], _native.Box], epoch: int, facts: Facts, output_max_bytes: int
    ) -> None:
        self.facts = facts
        self.ended = ""
        """The reason of its end, "" while it goes on."""
        self._vm = vm
        self._epoch = epoch
        self._output_max_bytes = output_max_bytes

    def ask(
        self,
        request: bytes,
        timeout_s: float | None,
        grace_s: float,
        sinks: tuple[Sink | None, Sink | None] = (None, None),
    ) -> Told:
        """Send a request and wait for its answer. At the time limit the cell is interrupted.

        One that has not given up after `grace_s` ends with the whole session.

        Raises what a sink or a signal handler raises, or Interrupted; the cell is stopped first.
        """
        exchange = _Exchange(self, request, sinks)
        try:
            return exchange.finish(timeout_s, grace_s)
        except (SandboxClosed, SandboxEnded):
            raise
        except BaseException:
            exchange.give_up(grace_s)
            raise

    def interrupt(self) -> None:
        """Stop the cell that runs, if one does."""
        # Its process may just have ended.
        with contextlib.suppress(BoxFileError):
            translated(self._vm().signal, self._epoch, self.facts.pid, int(signals.SIGINT))

    def end(self) -> None:
        """Kill it with all that it has started."""
        translated(self._vm().end_command, self._epoch, self.facts.command)

    def nonsense(self, what: str) -> ResultError:
        """End it: what it says cannot be an answer. The exception for that."""
        self.end()
        self.ended = "nonsense"
        return ResultError(f"the interpreter makes no sense: {what}", remedy="reset() it")

    def exchange(
        self,
        read: list[int],
        write: tuple[int, bytes] | None,
        child: int | None,
        timeout_s: float | None,
        stop: _native.Stop | None,
    ) -> tuple[list[tuple[int, bytes]], int | None, tuple[int | None, int | None] | None] | None:
        """Move bytes; None if the time is over."""
        return translated(
            self._vm().exchange,
            self._epoch,
            read=read,
            max_bytes=_PIPE_MAX_BYTES,
            write=write,
            child=child,
            timeout_s=timeout_s,
            stop=stop,
        )

    def reason_of_end(self, signo: int | None) -> str:
        """Why it has ended by itself."""
        vm = self._vm()
        killed = translated(vm.was_out_of_memory, self._epoch, self.facts.command) and signo == 9
        return "memory" if killed else "exited" if signo is None else "signal"


class _Exchange:
    """A request, and all that comes until it is answered."""

    def __init__(
        self,
        session: Session,
        request: bytes,
        sinks: tuple[Sink | None, Sink | None],
    ) -> None:
        self._session = session
        self._stop = stop_of_this_thread()
        self._stdin, stdout, stderr, self._answers = session.facts.streams
        self._outputs = {stdout: 0, stderr: 1}
        self._open = [stdout, stderr, self._answers]
        self._rest = memoryview(len(request).to_bytes(_LENGTH_BYTES, "little") + request)
        self._sinks: tuple[Sink | None, Sink | None] = sinks
        self._captured: tuple[list[bytes], list[bytes]] = ([], [])
        self._left_bytes = session._output_max_bytes
        self._truncated = False
        self._answer = bytearray()
        self._length: int | None = None
        self._status: tuple[int | None, int | None] | None = None
        self._reason = "ok"

    def finish(self, timeout_s: float | None, grace_s: float) -> Told:
        end_s = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._is_over():
            if self._answers not in self._open:
                self._look_for_end()
                break
            if end_s is not None and time.monotonic() >= end_s:
                self._reason = "timeout"
                self._interrupt(grace_s)
                break
            self._move(None if end_s is None else max(end_s - time.monotonic(), 0.0), self._stop)
        # All that it has written before its answer is in the pipes.
        self._answered_twice()
        self._move_output()
        for sink in self._sinks:
            if sink:
                sink.end(b"")
        return self._told()

    def _look_for_end(self) -> None:
        """It answers no more: it is about to end, or its code has closed the descriptor."""
        end_s = time.monotonic() + _ENDING_S
        while self._status is None and (left_s := end_s - time.monotonic()) > 0:
            self._move(left_s)
        if self._status is None:
            self._nonsense("it has closed the descriptor for answers")

    def _told(self) -> Told:
        status = None
        if self._status is not None:
            code, status = self._status
            reason = self._session.reason_of_end(status)
            if self._reason == "ok":
                self._reason = reason
                status = code if status is None else status
            self._session.ended = self._reason
        stdout, stderr = (b"".join(pieces) for pieces in self._captured)
        answer = None if self._status is not None else bytes(self._answer)
        return Told(answer, self._reason, status, stdout, stderr, self._truncated)

    def give_up(self, grace_s: float) -> None:
        """Stops the cell; nobody wants its answer."""
        self._sinks, self._left_bytes = (None, None), 0
        with contextlib.suppress(SandboxClosed, SandboxEnded, ResultError):
            if not self._is_over():
                self._interrupt(grace_s)
        if self._status is not None:
            self._session.ended = "signal"

    def _is_over(self) -> bool:
        if self._status is not None:
            return True
        return self._length is not None and len(self._answer) >= self._length

    def _interrupt(self, grace_s: float) -> None:
        """Has the cell stop, or else the session."""
        end_s = time.monotonic() + grace_s
        while not self._is_over() and (left_s := end_s - time.monotonic()) > 0:
            self._session.interrupt()
            again_s = time.monotonic() + min(left_s, _INTERRUPT_AGAIN_S)
            # It may write all the time.
            while not self._is_over() and (wait_s := again_s - time.monotonic()) > 0:
                self._move(wait_s)
        if not self._is_over():
            self._session.end()
            while self._status is None:
                self._move(None)

    def _move(self, timeout_s: float | None, stop: _native.Stop | None = None) -> None:
        write = (self._stdin, bytes(self._rest[:_PIECE_BYTES])) if self._rest else None
        child = self._session.facts.pid if self._status is None else None
        got = self._session.exchange(self._open, write, child, timeout_s, stop)
        if got is None:
            return
        read, written, status = got
        if written is not None:
            # -1: nobody reads them any more.
            self._rest = self._rest[written:] if written >= 0 else memoryview(b"")
        if status is not None:
            self._status = status
        for pipe, data in read:
            self._took(pipe, data)

    def _took(self, pipe: int, data: bytes) -> None:
        if not data:  # closed by the code in the box
            self._open.remove(pipe)
        elif pipe == self._answers:
            self._answer += data
            self._look_at_length()
        else:
            self._take(self._outputs[pipe], data)

    def _look_at_length(self) -> None:
        if self._length is None and len(self._answer) >= _LENGTH_BYTES:
            self._length = int.from_bytes(self._answer[:_LENGTH_BYTES], "little")
            del self._answer[:_LENGTH_BYTES]
        if self._length is not None and max(self._length, len(self._answer)) > ANSWER_MAX_BYTES:
            self._nonsense("its answer is too long")
        self._answered_twice()

    def _answered_twice(self) -> None:
        if self._length is not None and len(self._answer) > self._length:
            self._nonsense("it has answered twice")

    def _nonsense(self, what: str) -> NoReturn:
        self._length = None
        self._answer.clear()
        raise self._session.nonsense(what)

    def _move_output(self) -> None:
        pipes = [pipe for pipe in self._open if pipe != self._answers]
        got = self._session.exchange(pipes, None, None, 0.0, None) if pipes else None
        for pipe, data in got[0] if got else ():
            self._took(pipe, data)

    def _take(self, index: int, data: bytes) -> None:
        sink = self._sinks[index]
        if sink is not None:
            sink.take(data)
            return
        kept = data[: self._left_bytes]
        self._truncated = self._truncated or len(kept) < len(data)
        self._left_bytes -= len(kept)
        if kept:
            self._captured[index].append(kept)
