"""Programs in VMs: warm one up, freeze it, and fork it per request.

    snapshot = kvmlet.Sandbox(["./server"]).until_ready().freeze()
    with snapshot.fork() as sandbox:
        answer = sandbox.request(b"question", timeout=1)
        sandbox.reset()

`Sandbox` and `Snapshot` make each other, so they live together.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar, overload

from kvmlet import _log, _native, _process
from kvmlet._box_files import ProgramFiles
from kvmlet._call_values import argument_value, return_kind
from kvmlet._calls import calls_mode
from kvmlet._connection import connected, port_number
from kvmlet._disk import open_disk
from kvmlet._extension import result_of, translated
from kvmlet._launch import Start, guest_argv, guest_modules, input_bytes, named_of
from kvmlet._result import Denial, Event, Result, ending_text
from kvmlet._run import run, sink_of
from kvmlet._values import parse_duration
from kvmlet.errors import (
    KvmletError,
    SandboxBusy,
    SandboxClosed,
    SandboxEnded,
    UsageError,
    from_native,
)
from kvmlet.policy import policy_of

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import ParamSpec, Self, TypeAlias

    from kvmlet._connection import Connection
    from kvmlet._run import _Inherit
    from kvmlet.policy import Limits, Policy

    P = ParamSpec("P")

    Argument: TypeAlias = int | float | bytes | bytearray | memoryview | None
    Told: TypeAlias = Callable[[bytes], object] | _Inherit | None

T = TypeVar("T")

__all__ = ["Denial", "Event", "Output", "ProgramFiles", "Result", "Sandbox", "Snapshot", "run"]

# At the end of the interpreter, the time that a stopped guest has to return.
_LAST_WAIT_S = 5.0


class Output(NamedTuple):
    """The bytes that a program wrote to its standard streams.

    >>> with kvmlet.Sandbox(["sh", "-c", "echo out; echo err >&2; exec sleep 60"]) as sandbox:
    ...     sandbox.run_for("500ms").output()
    Output(stdout=b'out\\n', stderr=b'err\\n')
    """

    stdout: bytes
    stderr: bytes


class Sandbox:
    """A program in a VM of its own, which runs only while one of these methods waits for it.

    One thread at a time may use a sandbox: a second one gets SandboxBusy. `interrupt` is for any
    thread. After DeadlineExceeded or a signal the program stands still where it was: ask again to
    let it go on, or `reset` a fork.

    Every `timeout` is in seconds, or "500ms", "2m"; None is no limit. Once the program has ended,
    whatever would run it raises SandboxEnded, and `result` says how. `wait` lets it run until then.

        >>> with kvmlet.Sandbox(program) as sandbox:
        ...     sandbox.until_ready(timeout=30)
        ...     sandbox.request(b"question", timeout=5)
        <kvmlet.Sandbox python3 (open)>
        b'noitseuq'
    """

    _vm: _native.Sandbox
    _name: str
    _closed: bool = False
    _result: Result[bytes] | None = None
    _deadline_s: float | None = None
    _interrupted: bool = False
    _port: int | None = None

    def __init__(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        memory: int | str | None = None,
        max_procs: int | None = None,
        read: Sequence[str | os.PathLike[str]] = (),
        write: Sequence[str | os.PathLike[str]] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        input: bytes | str | None = None,
        net: Sequence[str] = (),
        publish: Sequence[str] = (),
        unix: Sequence[str | os.PathLike[str]] = (),
        stdout: Told = None,
        stderr: Told = None,
        calls: str | None = None,
    ) -> None:
        """Load `argv`; nothing of it has run when this returns. The arguments are those of `run`.

        Forks of it inherit `calls`.

        write: files and directories that it may change, on the host itself. Its forks share them,
            and no reset undoes what is done there.
        stdout, stderr: None captures for `output`; INHERIT passes through; a callable gets the
            bytes as they come. It is called by the method that lets the program run, which raises
            what it raises. To it the sandbox is busy.

        Python programs find the module `kvmlet_guest`, by PYTHONPATH; for others `get_include()`
        has the header `kvmlet.h`. Either lets a program take messages.

        Raises UsageError, ProgramNotFound, ProgramNotExecutable, KvmUnavailable, HostError,
        InternalError.
        """
        given = policy_of(
            policy,
            limits=limits,
            read=read,
            write=write,
            net=net,
            publish=publish,
            unix=unix,
            env=env,
            memory=memory,
            max_procs=max_procs,
        )
        told = _sinks(stdout, stderr)
        self._start(argv, given, cwd=cwd, input=input, readable=[], calls=calls)
        if told != (None, None):
            self._vm.tell(*told)

    def _start(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        policy: Policy,
        *,
        cwd: str | os.PathLike[str] | None,
        input: bytes | str | None,
        readable: list[bytes],
        calls: str | None,
    ) -> None:
        words = guest_argv(argv)
        data = input_bytes(input)
        limits = policy.limits.in_full()
        if limits.timeout_s is not None or limits.cpu_time_s is not None:
            raise UsageError(
                "timeout, cpu_time: a sandbox has no such limit of its own",
                remedy="give its requests a timeout",
            )
        mode = calls_mode(calls, stacklevel=4)
        modules = os.fsencode(guest_modules())
        start = translated(Start, words, policy.env, cwd, named_of(policy, readable), modules)
        if start.note:
            warnings.warn(start.note, stacklevel=3)
        vm = translated(
            _native.Sandbox.start,
            start.argv,
            env=start.env,
            policy=start.policy,
            input=data or b"",
            memory_bytes=limits.memory_bytes,
            # Unless a limit is named, what is to be frozen lies in memory.
            disk=None if limits.disk_bytes is None else open_disk(limits.disk_bytes, "disk"),
            processes_max=limits.processes_max,
            files_max=limits.files_max,
            output_limit_bytes=limits.output_bytes,
            calls=mode,
        )
        self._adopt(vm, words[0].decode("utf-8", "backslashreplace"))
        _log.say(_log.DEBUG, "start", "sandbox of %r: loaded", self._name)

    def _adopt(self, vm: _native.Sandbox, name: str) -> None:
        self._vm = vm
        self._name = name
        _process.track(self)

    @classmethod
    def _with_readable(
        cls,
        argv: Sequence[str | bytes | os.PathLike[str]],
        policy: Policy,
        *,
        cwd: str,
        readable: list[bytes],
        calls: str | None,
    ) -> Self:
        """A sandbox whose program may also read the directories `readable` (canonical paths)."""
        sandbox = cls.__new__(cls)
        sandbox._start(argv, policy, cwd=cwd, input=None, readable=readable, calls=calls)
        return sandbox

    @classmethod
    def _forked(cls, vm: _native.Sandbox, name: str, port: int | None) -> Self:
        sandbox = cls.__new__(cls)
        sandbox._adopt(vm, name)
        sandbox._port = port
        return sandbox

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
        state = "closed" if self._closed else "ended" if self._result is not None else "open"
        return f"<kvmlet.Sandbox {self._name} ({state})>"

    # ---- running it ----

    def until_ready(self, timeout: float | str | None = None) -> Self:
        """Let the program run until it asks for a message; this sandbox.

        Raises NotReady, DeadlineExceeded, SandboxEnded, SandboxClosed, SandboxBusy, Interrupted.
        """
        self._ask(self._vm.until_ready, self._limit_s(timeout))
        return self

    def until_listening(self, port: int | None = None, timeout: float | str | None = None) -> Self:
        """Let an unmodified server run until it waits for connections; this sandbox.

        One of its threads then waits for a connection, in accept, poll, select or epoll_wait. It
        comes over TCP, or over a UNIX socket if it waits on no port. Every other thread of every
        process waits too. Threads may wake by timers, if they go back to waiting. `port` says
        where it listens.

        port: the one that is meant, for a program that waits on several.

        Raises UsageError, NotListening, DeadlineExceeded (which names the thread that kept it
        busy), SandboxEnded, SandboxClosed, SandboxBusy, Interrupted.
        """
        wanted = None if port is None else port_number(port, "port")
        try:
            self._port = self._ask(self._vm.until_listening, wanted, self._limit_s(timeout))
        except SandboxEnded as error:
            denials = [] if error.result is None else error.result.denials
            error.message += ", before it waited for connections"
            if denials:
                error.message += f"; denied: {denials[0].what}"
            raise
        return self

    @property
    def port(self) -> int | None:
        """The port that the server was found to wait on, in its snapshot too; None before.

        It is None, too, for one that waits on a UNIX socket only, which `connect()` leads to.
        """
        return self._port or None

    def connect(
        self, port: int | None = None, *, peer: tuple[str, int] | None = None
    ) -> Connection:
        """Connect to a server inside, on `port` or where `until_listening` has found it.

        The connection waits in the server's backlog; the program runs when something waits for it.

        peer: address and port that the server is shown as the client's, ("192.0.2.1", 40000). One
            of IPv6 is shown to a server of IPv4 with 127.0.0.1.

        Raises UsageError, ConnectionRefused, ConnectionFailed, SandboxEnded, SandboxClosed,
        SandboxBusy.
        """
        number = self._port if port is None else port_number(port, "port")
        if number is None:
            raise UsageError("no port is known", remedy="pass one, or call until_listening() first")
        return connected(
            _Ends(self), lambda *args: self._ask(self._vm.connect, *args), number, peer
        )

    def run_for(self, duration: float | str) -> Self:
        """Let the program run for a time: to warm up one that never asks; this sandbox.

        Raises DeadlineExceeded (of a pool's job), SandboxEnded, SandboxClosed, SandboxBusy,
        Interrupted.
        """
        wanted_s = parse_duration(duration, "duration")
        allowed_s = self._limit_s(None)
        if allowed_s is not None and allowed_s < wanted_s:
            self._ask(self._vm.run_for, allowed_s)
            raise from_native("timeout", "the time limit passed")
        self._ask(self._vm.run_for, wanted_s)
        return self

    def wait(self, timeout: float | str | None = None) -> Result[bytes]:
        """Let the program run to its end; `result`, which has the output since `output` was called.

        One that waits for messages, or for whoever connects, does so until the time limit.

        Raises DeadlineExceeded, SandboxClosed, SandboxBusy, Interrupted, InternalError.
        """
        if self.result is None:
            self._ask(self._vm.wait, self._limit_s(timeout))
        result = self.result
        if result is None:
            raise from_native("closed", "the sandbox is closed")
        return result

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Queue a message for the program; it does not run before something waits for it.

        Raises MessageTooLong, InboxFull, SandboxEnded, SandboxClosed, SandboxBusy.
        """
        self._ask(self._vm.send, message_bytes(data))

    def recv(self, timeout: float | str | None = None) -> bytes:
        """The next message of the program, which runs until it has sent one.

        Raises NotReady, DeadlineExceeded, SandboxEnded, SandboxClosed, SandboxBusy, Interrupted.
        """
        return self._ask(self._vm.recv, self._limit_s(timeout))

    def request(
        self, data: bytes | bytearray | memoryview, timeout: float | str | None = None
    ) -> bytes:
        """`send`, then `recv`.

        Raises MessageTooLong, InboxFull, NotReady, DeadlineExceeded, SandboxEnded, SandboxClosed,
        SandboxBusy, Interrupted.
        """
        # The way of most requests: each step between here and the extension would be felt.
        message = data if type(data) is bytes else message_bytes(data)
        unlimited = timeout is None and self._deadline_s is None
        limit_s = None if unlimited else self._limit_s(timeout)
        try:
            return self._vm.request(message, limit_s)
        except _native.NativeError as error:
            kind, message = error.args
        raise self._raised(kind, message)

    @overload
    def call(
        self,
        name: str,
        *args: Argument,
        returns: type[int] = int,
        timeout: float | str | None = None,
    ) -> int: ...
    @overload
    def call(
        self,
        name: str,
        *args: Argument,
        returns: type[float],
        timeout: float | str | None = None,
    ) -> float: ...
    @overload
    def call(
        self,
        name: str,
        *args: Argument,
        returns: type[bytes],
        timeout: float | str | None = None,
    ) -> bytes: ...
    @overload
    def call(
        self,
        name: str,
        *args: Argument,
        returns: None,
        timeout: float | str | None = None,
    ) -> None: ...
    @overload
    def call(
        self,
        name: str,
        *args: Argument,
        returns: type[ctypes._SimpleCData[T]],
        timeout: float | str | None = None,
    ) -> T: ...
    def call(
        self,
        name: str,
        *args: Argument,
        returns: object = int,
        timeout: float | str | None = None,
    ) -> object:
        """Call the program's function `name`, of its executable or one of its libraries.

        args: an int of 64 bits, signed or not; a float (a C double); None for a null pointer.
            bytes pass a pointer to a copy with a null byte after it. A bytearray or writable
            memoryview passes a pointer to a copy that is copied back.
        returns: int for a 64-bit integer (long); float for a double; None for nothing (void).
            bytes for the string that a `char *` points to. A narrower integer leaves the rest of
            its register undefined: say which with ctypes, as in `returns=ctypes.c_int`.

        Raises UnknownSymbol, UsageError, MessageTooLong, NotReady, CallLost, DeadlineExceeded,
        SandboxEnded, SandboxClosed, SandboxBusy, Interrupted.
        """
        unlimited = timeout is None and self._deadline_s is None
        limit_s = None if unlimited else self._limit_s(timeout)
        try:
            return self._vm.call_plain(name, args, returns, limit_s)
        except _native.NotPlain:
            failure = None
        except _native.NativeError as error:
            failure = error.args
        if failure is None:
            return self._call(name, args, returns, timeout)
        raise self._raised(*failure)

    def _call(
        self,
        name: str,
        args: tuple[Argument, ...],
        returns: object,
        timeout: float | str | None,
    ) -> object:
        """As `call`, of arguments and values that are not plain, or are wrong."""
        if not isinstance(name, str) or not name or "\0" in name:
            raise UsageError(f"{name!r} is not the name of a function", remedy="pass a str")
        passed = [argument_value(argument, position) for position, argument in enumerate(args, 1)]
        kind, convert = return_kind(returns)
        limit_s = self._limit_s(timeout)
        value, buffers = self._ask(self._vm.call, name, passed, kind, limit_s)
        if buffers:
            updated = [
                argument
                for argument, taken in zip(args, passed, strict=True)
                if isinstance(taken, bytearray)
            ]
            for target, content in zip(updated, buffers, strict=True):
                memoryview(target).cast("B")[:] = content  # type: ignore[arg-type]
        return convert(value)

    def interrupt(self) -> None:
        """Stop the program, from any thread: what waits for it raises Interrupted.

        If nothing does, what comes next will. Only `reset` takes it back.
        """
        self._interrupted = True
        self._vm.interrupt()

    # ---- freezing, resetting, closing ----

    def freeze(self, *, connections: Literal["refuse", "drop"] = "refuse") -> Snapshot:
        """Keep the program as it is now, to be forked any number of times; closes this sandbox.

        A fork can be frozen too. Its snapshot is one of its own: a reset goes back to it. Its forks
        may use the memory that it has left.

        connections: open ones to other machines cannot be kept. "refuse" raises ConnectionsOpen,
            which names one; "drop" ends them, as if each other side had reset them. Those that
            this process has to servers inside are always refused.

        Raises ConnectionsOpen, FrozenTooOften, SandboxEnded, SandboxClosed, SandboxBusy, HostError.
        """
        vm = self._ask(self._vm.freeze, connections)
        self._closed = True
        _log.say(_log.DEBUG, "snapshot", "sandbox of %r: frozen", self._name)
        return Snapshot._frozen(vm, self._name, self._port)

    def reset(self) -> None:
        """Put a fork back to the state in which it was frozen; also one whose program has ended.

        Raises NotAFork, SandboxClosed, SandboxBusy, HostError.
        """
        try:
            self._vm.reset()
        except _native.NativeError as error:
            kind, message = error.args
        else:
            self._interrupted = False
            self._result = None
            return
        raise self._raised(kind, message)

    def close(self) -> None:
        """Give up the VM and all it holds. May be repeated.

        Raises SandboxBusy while another thread uses it: `interrupt` it first.
        """
        self._ask(self._vm.close)
        self._closed = True

    # ---- looking at it ----

    @property
    def files(self) -> ProgramFiles:
        """Reads and writes files as the program, which does not run meanwhile."""
        # Not by way of this sandbox: nobody need close it who does not keep it.
        return ProgramFiles(self._vm.files)

    @property
    def closed(self) -> bool:
        """True once `close` or `freeze` was called."""
        return self._closed

    @property
    def result(self) -> Result[bytes] | None:
        """The end of the program and its output since `output` was last called, None before.

        Raises SandboxBusy.
        """
        if self._result is None and not self._closed:
            outcome = translated(self._vm.outcome)
            if outcome is not None:
                self._result = result = result_of(outcome)
                who = f"sandbox of {self._name!r}"
                _log.say_end(who, result.reason, result.exit_code, result.signal)
                _log.say_denials(who, result.denials)
        return self._result

    @property
    def generation(self) -> int:
        """0 in a program that was started; differs in every fork and after every reset.

        Raises SandboxClosed, SandboxBusy.
        """
        return self._ask(self._vm.generation)

    def output(self) -> Output:
        """The program's standard output and error since this was last called.

        Raises SandboxClosed, SandboxBusy.
        """
        return Output(*self._ask(self._vm.take_output))

    def denials(self) -> list[Denial]:
        """The policy's refusals since this was last called, or the last reset, each once.

        Raises SandboxClosed, SandboxBusy.
        """
        refused, _events = self._ask(self._vm.take_report)
        return [Denial(*each) for each in refused]

    def stats(self) -> dict[str, int | float]:
        """Counters by name; times have names ending in _us and are in microseconds.

        Raises SandboxClosed, SandboxBusy.
        """
        return self._ask(self._vm.stats)

    # ---- for the package's own use ----

    def _ask(self, ask: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
        """`ask(...)` with the extension's errors as exceptions of ours."""
        try:
            return ask(*args, **keywords)
        except _native.NativeError as error:
            kind, message = error.args
        raise self._raised(kind, message)

    def _raised(self, kind: str, message: str) -> KvmletError:
        """The extension's error as an exception of ours."""
        raised = from_native(kind, message)
        if isinstance(raised, SandboxEnded):
            raised.result = self._result_or_none()
            if raised.result is not None:
                raised.message = ending_text(raised.result)
        return raised

    def _result_or_none(self) -> Result[bytes] | None:
        try:
            return self.result
        except KvmletError:  # closed by another thread meanwhile
            return None

    def _limit_s(self, timeout: float | str | None) -> float | None:
        """Seconds that an operation may take, by its own limit and that of the job it is in."""
        limit_s = None if timeout is None else parse_duration(timeout, "timeout")
        if self._deadline_s is None:
            return limit_s
        left_s = self._deadline_s - time.monotonic()
        if left_s <= 0:
            raise from_native("timeout", "the time limit passed")
        return left_s if limit_s is None else min(limit_s, left_s)

    def _check(self) -> None:
        """Raise DeadlineExceeded or Interrupted if what works for this sandbox must stop."""
        if self._interrupted:
            raise from_native("interrupted", "the program was interrupted")
        if self._deadline_s is not None and time.monotonic() >= self._deadline_s:
            raise from_native("timeout", "the time limit passed")

    def _send_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """As `send`, of one message in parts."""
        self._ask(self._vm.send_parts, parts)

    def _request_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> bytes:
        """As `request`, of one message in parts."""
        return self._ask(self._vm.request_parts, parts, self._limit_s(None))

    def _recv_into(self, room: bytearray, at: int) -> int:
        """As `recv`, to `at` in `room`: the message's length. One that does not fit is lost."""
        return self._ask(self._vm.recv_into, room, at, self._limit_s(None))

    @staticmethod
    def _room(len_bytes: int) -> bytearray:
        """Memory that is not cleared, and takes none before it is written. Raises MemoryError."""
        return _native.room(len_bytes)

    def _memory_left(self) -> int:
        """The rest of the program's memory limit, in bytes."""
        return self._ask(self._vm.memory_left)

    def _memory_limit(self) -> int:
        """The program's memory limit, in bytes."""
        return self._ask(self._vm.memory_limit)

    def _set_deadline(self, deadline_s: float | None) -> None:
        """Let nothing wait beyond `deadline_s` (on time.monotonic), whatever its own limit."""
        self._deadline_s = deadline_s

    def _abandon(self) -> None:
        self._closed = True
        self._vm.abandon()

    def _stop(self) -> None:
        end_s = time.monotonic() + _LAST_WAIT_S
        while not self._closed and time.monotonic() < end_s:
            self._vm.interrupt()
            try:
                self.close()
            except SandboxBusy:
                time.sleep(0.001)


class _Ends:
    """The sandbox that a connection leads into."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def send_to(self, connection: _native.Connection, data: bytes, timeout_s: float | None) -> int:
        sandbox = self._sandbox
        return sandbox._ask(sandbox._vm.send_to, connection, data, self._limit_s(timeout_s))

    def receive_from(
        self, connection: _native.Connection, max_bytes: int, timeout_s: float | None
    ) -> bytes:
        sandbox = self._sandbox
        limit_s = self._limit_s(timeout_s)
        return sandbox._ask(sandbox._vm.receive_from, connection, max_bytes, limit_s)

    def _limit_s(self, timeout_s: float | None) -> float | None:
        # No time at all is a look.
        return 0.0 if timeout_s == 0 else self._sandbox._limit_s(timeout_s)

    def shut_down(self, connection: _native.Connection, how: int) -> None:
        self._sandbox._ask(self._sandbox._vm.shut_down, connection, how)

    def hang_up(self, connection: _native.Connection) -> None:
        with contextlib.suppress(SandboxClosed):
            self._sandbox._ask(self._sandbox._vm.hang_up, connection)


class Snapshot:
    """A frozen program, forked any number of times, from any thread. Made by `Sandbox.freeze`.

    Forks share what they do not change. They live on when the snapshot is closed.

        >>> with kvmlet.Sandbox(program).until_ready(timeout=30).freeze() as frozen:
        ...     with frozen.fork() as one, frozen.fork() as other:
        ...         one.request(b"ab"), other.request(b"cd"), one.reset()
        (b'ba', b'dc', None)
    """

    _vm: _native.Snapshot
    _name: str
    _closed: bool
    _port: int | None

    def __init__(self) -> None:
        raise UsageError("a snapshot cannot be made directly", remedy="call Sandbox.freeze()")

    @classmethod
    def _frozen(cls, vm: _native.Snapshot, name: str, port: int | None) -> Self:
        snapshot = cls.__new__(cls)
        snapshot._vm = vm
        snapshot._name = name
        snapshot._closed = False
        snapshot._port = port
        _process.track(snapshot)
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

    def __repr__(self) -> str:
        return f"<kvmlet.Snapshot {self._name} ({'closed' if self._closed else 'open'})>"

    def fork(self, *, stdout: Told = None, stderr: Told = None) -> Sandbox:
        """A sandbox that goes on from the frozen state.

        stdout, stderr: as for `Sandbox`. A fork has none of those of what was frozen.

        Raises UsageError, StaleSnapshot, SandboxClosed, TooFewDescriptors, HostError.
        """
        is_told = stdout is not None or stderr is not None
        told = _sinks(stdout, stderr) if is_told else (None, None)
        vm = translated(self._vm.fork)
        if told != (None, None):
            vm.tell(*told)
        return Sandbox._forked(vm, self._name, self._port)

    def prepare(
        self,
        count: int,
        *,
        request: bytes | None = None,
        timeout: float | str | None = None,
    ) -> None:
        """Have VMs for `count` forks ready, so that forking takes next to no time.

        request: a message that each of them answers before it is put back. The first real request
            then finds every page of memory in place.
        timeout: how long each answer may take, in seconds or as "500ms", "2m"; None for no limit.

        Raises UsageError, SandboxClosed, TooFewDescriptors, HostError, and with `request` what
        `Sandbox.request` raises.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise UsageError(f"count: {count!r} is not a number of forks", remedy="pass 1 or more")
        translated(self._vm.prepare, count)
        if request is None:
            return
        with contextlib.ExitStack() as forks:
            # All at once: a fork that is given up is the next one's VM.
            for _ in range(count):
                forks.enter_context(self.fork()).request(request, timeout=timeout)

    def close(self) -> None:
        """Give up the frozen state; nothing more can be forked. May be repeated."""
        translated(self._vm.close)
        self._closed = True

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    def stats(self) -> dict[str, int | float]:
        """Counters by name; times have names ending in _us and are in microseconds.

        Raises SandboxClosed.
        """
        return translated(self._vm.stats)

    def _abandon(self) -> None:
        self._closed = True
        self._vm.abandon()

    def _stop(self) -> None:
        pass


def _sinks(
    stdout: Told, stderr: Told
) -> tuple[Callable[[bytes], object] | None, Callable[[bytes], object] | None]:
    sinks = (sink_of(stdout, 1, None), sink_of(stderr, 2, None))
    told = [None if sink is None else sink.take for sink in sinks]
    return told[0], told[1]


def message_bytes(data: object) -> bytes:
    """A message as bytes. Raises UsageError."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    remedy = "encode it: text.encode()" if isinstance(data, str) else ""
    raise UsageError(f"a message is bytes, not {type(data).__name__}", remedy=remedy)
