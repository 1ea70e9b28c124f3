"""The command that `Box.run` waits for."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from kvmlet._extension import translated
from kvmlet._result import Denial, Event, Result
from kvmlet._stopping import stop_of_this_thread
from kvmlet.errors import SandboxClosed, SandboxEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet import _native
    from kvmlet._run import DenialTeller, Sink

_PIECE_BYTES = 64 << 10
# The most that a pipe holds, after F_SETPIPE_SZ.
_PIPE_MAX_BYTES = 1 << 20
# Refusals are looked for so often, if somebody wants to be told of them.
_LOOK_S = 0.05
# As many as the engine lists at once.
_DENIALS_MAX = 1000


class Command:
    """A command, its input and output, and what becomes of it."""

    def __init__(
        self,
        vm: Callable[[], _native.Box],
        spawned: tuple[int, int, int, list[int | None]],
        data: bytes,
        sinks: tuple[Sink | None, Sink | None],
        output_max_bytes: int,
        teller: DenialTeller | None,
    ) -> None:
        self._teller = teller
        self._denials: dict[tuple[str, str, str], Denial] = {}
        self._events: dict[Event, None] = {}
        self._output_max_bytes = output_max_bytes
        self._vm = vm
        self._epoch, self._pid, self._command, streams = spawned
        self._stdin = streams[0]
        self._rest = memoryview(data)
        self._sinks = sinks
        # The stream of each pipe, 0 for standard output.
        self._open = {pipe: index for index, pipe in enumerate(streams[1:3]) if pipe is not None}
        self._captured: tuple[list[bytes], list[bytes]] = ([], [])
        self._captured_bytes = 0
        self._status: tuple[int | None, int | None] | None = None
        self._stop = stop_of_this_thread()

    def finish(self, timeout_s: float | None) -> Result[bytes]:
        """Moves input and output until it ends, or a limit ends it."""
        start_s = time.monotonic()
        reason = ""
        while self._status is None:
            end_s = None if timeout_s is None or reason else start_s + timeout_s
            is_over = self._wait(end_s)
            if not reason and (is_over or self._captured_bytes > self._output_max_bytes):
                reason = "timeout" if is_over else "output"
                translated(self._vm().end_command, self._epoch, self._command)
        # All that it has written is in the pipes.
        self._exchange(0.0, _PIPE_MAX_BYTES)
        self._close()
        vm = self._vm()
        status, signo = self._status
        if not reason and self._captured_bytes > self._output_max_bytes:
            reason = "output"
        if not reason:
            killed = translated(vm.was_out_of_memory, self._epoch, self._command) and signo == 9
            reason = "memory" if killed else "exited" if signo is None else "signal"
        if reason not in ("exited", "signal"):
            status = signo = None
        captured = [b"".join(pieces) for pieces in self._captured]
        for sink in self._sinks:
            if sink:
                sink.end(b"")
        self._look_at_report()
        limited = self._limited(captured)
        return Result(
            stdout=limited[0],
            stderr=limited[1],
            exit_code=status,
            signal=signo,
            reason=reason,
            denials=list(self._denials.values()),
            events=list(self._events),
            stats={"wall_us": (time.monotonic() - start_s) * 1e6},
        )

    def _wait(self, end_s: float | None) -> bool:
        """Moves what can be moved; True at the end of the time."""
        left_s = None if end_s is None else max(end_s - time.monotonic(), 0.0)
        if self._teller is None:
            return not self._exchange(left_s)
        wait_s = _LOOK_S if left_s is None else min(left_s, _LOOK_S)
        has_moved = self._exchange(wait_s)
        self._look_at_report()
        return not has_moved and left_s is not None and left_s <= wait_s

    def _look_at_report(self) -> None:
        """Takes what the policy has refused since the last time, and tells of it."""
        denials, events = translated(self._vm().take_report)
        self._events.update(dict.fromkeys(Event(*event) for event in events))
        for denial in (Denial(*each) for each in denials):
            key = (denial.what, denial.errno, denial.kind)
            known = self._denials.get(key)
            if known is not None:
                self._denials[key] = replace(known, count=known.count + denial.count)
            elif len(self._denials) < _DENIALS_MAX:
                self._denials[key] = denial
                if self._teller is not None:
                    self._teller.take(denial)

    def _limited(self, captured: list[bytes]) -> list[bytes]:
        stdout = captured[0][: self._output_max_bytes]
        return [stdout, captured[1][: self._output_max_bytes - len(stdout)]]

    def _exchange(self, timeout_s: float | None, max_bytes: int = _PIECE_BYTES) -> bool:
        """Moves what can be moved; False if the time is over."""
        write = None
        if self._stdin is not None and self._rest:
            write = (self._stdin, bytes(self._rest[:_PIECE_BYTES]))
        got = translated(
            self._vm().exchange,
            self._epoch,
            read=list(self._open),
            max_bytes=max_bytes,
            write=write,
            child=self._pid if self._status is None else None,
            timeout_s=timeout_s,
            stop=self._stop,
        )
        if got is None:
            return False
        read, written, status = got
        for pipe, data in read:
            if data:
                self._take(self._open[pipe], data)
            else:
                del self._open[pipe]
                self._close_stream(pipe)
        if written is not None and self._stdin is not None:
            self._rest = self._rest[max(written, 0) :]
            if written < 0 or not self._rest:
                pipe, self._stdin = self._stdin, None
                self._close_stream(pipe)
        if status is not None:
            self._status = status
        return True

    def _take(self, index: int, data: bytes) -> None:
        sink = self._sinks[index]
        if sink is not None:
            sink.take(data)
        else:
            self._captured[index].append(data)
            self._captured_bytes += len(data)

    def _close_stream(self, pipe: int) -> None:
        translated(self._vm().close_stream, self._epoch, pipe)

    def _close(self) -> None:
        for pipe in (*self._open, *([] if self._stdin is None else [self._stdin])):
            self._close_stream(pipe)
        self._open, self._stdin = {}, None

    def give_up(self) -> None:
        """Kills the command and leaves nothing of it, if the box is still there."""
        self._stop = None
        with contextlib.suppress(SandboxClosed, SandboxEnded):
            translated(self._vm().end_command, self._epoch, self._command)
            self._close()
            while self._status is None:
                self._exchange(None)
