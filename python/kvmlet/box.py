"""A sandbox that keeps files and processes over many commands.

with kvmlet.Box() as box:
    box.files.write("hello.txt", "hello\\n")
    box.run(["cat", "hello.txt"]).check().stdout  # b"hello\\n"
    box.run("echo more >> hello.txt; wc -l < hello.txt", shell=True, text=True).stdout  # "2\\n"
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
import weakref
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar, overload

from kvmlet import _deadlines, _log, _native, _process
from kvmlet._box_command import Command
from kvmlet._box_files import Files, FileStat
from kvmlet._box_process import Kept, Process, TerminalSize, checked_size, ending
from kvmlet._box_watch import FileChange, Watch
from kvmlet._calls import calls_mode
from kvmlet._connection import connected, port_number
from kvmlet._disk import open_disk
from kvmlet._extension import translated
from kvmlet._launch import Start, guest_argv, input_bytes, named_of, pairs
from kvmlet._result import Denial, Result
from kvmlet._run import as_text, check_codec, named, shell_words, sink_of, teller_of
from kvmlet._stopping import stop_of_this_thread
from kvmlet._values import parse_bytes, parse_duration
from kvmlet.errors import (
    BoxFileError,
    BoxWasReset,
    SandboxClosed,
    UsageError,
    from_native,
)
from kvmlet.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType
    from typing import Self, TypeAlias

    from kvmlet._connection import Connection
    from kvmlet._run import _Inherit
    from kvmlet.policy import Limits, Numbers, Policy

    Word: TypeAlias = str | bytes | os.PathLike[str]

T = TypeVar("T")

__all__ = [
    "Box",
    "BoxSnapshot",
    "FileChange",
    "FileStat",
    "Files",
    "Process",
    "TerminalSize",
    "Watch",
]

_HOME = b"/work"
# The constants of subprocess, which is not imported for them.
_PIPE, _STDOUT, _DEVNULL = -1, -2, -3
# Boxes are numbered in records.
_numbers = itertools.count(1)


class Box:
    """A sandbox that keeps its files and processes from one command to the next.

    Commands start in /work, an empty directory that is also their HOME; it, /tmp and /dev/shm are
    memory and can be written. The system's programs and libraries can be read, the caller's files
    cannot. A box has one virtual CPU and runs in the background, on a thread of its own.

    Any thread may use it. A box that has been closed raises SandboxClosed, one of a parent process
    ForkedProcess, and one that a fault has ended SandboxEnded.

        >>> with kvmlet.Box(memory="64m") as box:
        ...     box.files.write("names", "b a")
        ...     box.run("tr ' ' '\\n' < names | sort > sorted; rm names", shell=True, check=True)
        ...     box.files.list(), box.files.read_text("sorted")
        Result(...reason='exited', returncode=0)
        (['sorted'], 'a\\nb\\n')
    """

    files: Files
    """Reads and writes its files."""

    def __init__(
        self,
        *,
        memory: int | str | None = None,
        disk: int | str | None = None,
        max_procs: int | None = None,
        env: Mapping[str, str] | None = None,
        read: Sequence[str | os.PathLike[str]] = (),
        write: Sequence[str | os.PathLike[str]] = (),
        net: Sequence[str] = (),
        publish: Sequence[str] = (),
        unix: Sequence[str | os.PathLike[str]] = (),
        policy: Policy | None = None,
        limits: Limits | None = None,
        calls: str | None = None,
    ) -> None:
        """Make a box in which nothing runs.

        memory: most memory that its processes and files may use, in bytes, or "64m", "1g"; 512 MiB
            if not given. At that limit a process that needs more is killed.
        disk: most room for its files, as `memory`; 2 GiB if not given. Past a quarter of the memory
            they lie in /var/tmp or $KVMLET_TMPDIR, without a name. Forks have that in common until
            they write, and each may have as much. A file that finds no room gets ENOSPC.
        max_procs: most processes, with those that nobody has waited for: 1 to 1,023; 256 if not
            given.
        env: variables of every command beside PATH, HOME, TMPDIR and those of language, time zone
            and terminal.
        read: files and directories that its commands may read beside the system's.
        write: the same to change, on the host itself (see `run`). A reset does not undo it.
        policy: these as one value; what is given beside it wins, or adds to it. Its timeout and
            limit on output are those of each `run` that names none.
        limits: limits alone as one value, likewise. They win over those of `policy`.
        net, publish, unix, calls: as for `run`.

        Raises UsageError, KvmUnavailable, HostError, InternalError.
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
            disk=disk,
            max_procs=max_procs,
        )
        self._start_box(given, [], calls_mode(calls, stacklevel=3))

    def _start_box(self, policy: Policy, readable: list[bytes], mode: str) -> None:
        limits = policy.limits.in_full()
        if limits.cpu_time_s is not None:
            raise UsageError(
                "cpu_time: a box has no limit on CPU time", remedy="give its commands a timeout"
            )
        memory_bytes = limits.memory_bytes
        # The box itself is one of the engine's processes.
        processes_max = min(limits.processes_max + 1, 1024)
        start = translated(Start.of_box, policy.env, named_of(policy, readable))
        vm = translated(
            _native.Box.start,
            policy=start.policy,
            memory_bytes=memory_bytes,
            disk=open_disk(limits.disk_bytes, "disk"),
            processes_max=processes_max,
            files_max=limits.files_max,
            calls=mode,
        )
        self._adopt(vm, dict(start.env), limits)
        self._say("box", "made", memory_bytes=memory_bytes, processes_max=processes_max)

    def _adopt(self, vm: _native.Box, env: dict[bytes, bytes], limits: Numbers) -> None:
        self._number = next(_numbers)
        self._limits = limits
        self._native: _native.Box | None = vm
        self._env = env
        self._closed = False
        self._processes: weakref.WeakSet[Process] = weakref.WeakSet()
        # Those that nobody has any more and whose end nobody has seen: (epoch, process id).
        self._dropped: deque[tuple[int, int]] = deque()
        # Of the snapshot that a reset goes back to.
        self._kept: list[Kept] = []
        # Of those it has, the ones that nobody has any more.
        self._kept_dropped: list[int] = []
        self._inherited: list[Process] = []
        # Those that end processes at their time limits.
        self._ends: weakref.WeakSet[Callable[[], None]] = weakref.WeakSet()
        self.files = Files(self._vm)
        _process.track(self)

    @classmethod
    def _with_readable(cls, policy: Policy, readable: list[bytes], calls: str) -> Self:
        """A box whose commands may also read the files `readable` (absolute, links apart)."""
        box = cls.__new__(cls)
        box._start_box(policy, readable, calls)
        return box

    @classmethod
    def _forked(cls, vm: _native.Box, snapshot: BoxSnapshot) -> Self:
        box = cls.__new__(cls)
        box._adopt(vm, snapshot._origin._env, snapshot._origin._limits)
        box._kept, box._kept_dropped = snapshot._kept, snapshot._kept_dropped
        box._inherit()
        box._say("fork", f"forked from box {snapshot._origin._number}")
        return box

    def _inherit(self) -> None:
        """The processes are those of the snapshot."""
        epoch = translated(self._vm().epoch)
        self._processes = weakref.WeakSet()
        # Nobody else holds them yet.
        self._inherited = [kept.process(self._vm, epoch, self._dropped) for kept in self._kept]
        self._dropped.extend((epoch, pid) for pid in self._kept_dropped)

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
        return f"<kvmlet.Box ({'closed' if self._closed else 'open'})>"

    # ---- commands ----

    @overload
    def run(
        self,
        argv: Sequence[Word] | str,
        *,
        shell: bool = False,
        input: bytes | str | None = None,
        text: Literal[False] = False,
        encoding: str = "utf-8",
        errors: str = "replace",
        check: bool = False,
        timeout: float | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        max_output: int | str | None = None,
        stdout: Callable[[bytes], object] | _Inherit | None = None,
        stderr: Callable[[bytes], object] | _Inherit | int | None = None,
        on_denial: Callable[[Denial], object] | None = None,
    ) -> Result[bytes]: ...
    @overload
    def run(
        self,
        argv: Sequence[Word] | str,
        *,
        shell: bool = False,
        input: bytes | str | None = None,
        text: Literal[True],
        encoding: str = "utf-8",
        errors: str = "replace",
        check: bool = False,
        timeout: float | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        max_output: int | str | None = None,
        stdout: Callable[[str], object] | _Inherit | None = None,
        stderr: Callable[[str], object] | _Inherit | int | None = None,
        on_denial: Callable[[Denial], object] | None = None,
    ) -> Result[str]: ...
    def run(
        self,
        argv: Sequence[Word] | str,
        *,
        shell: bool = False,
        input: bytes | str | None = None,
        text: bool = False,
        encoding: str = "utf-8",
        errors: str = "replace",
        check: bool = False,
        timeout: float | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        max_output: int | str | None = None,
        stdout: Callable[[bytes], object] | Callable[[str], object] | _Inherit | None = None,
        stderr: Callable[[bytes], object] | Callable[[str], object] | _Inherit | int | None = None,
        on_denial: Callable[[Denial], object] | None = None,
    ) -> Result[bytes] | Result[str]:
        """Run `argv` in the box until it ends. The arguments are those of `kvmlet.run`.

        `cwd` is a directory of the box, /work if None; `env` is added to that of the box. `stderr`
        may also be subprocess.STDOUT: it goes where standard output goes. `max_output` is the
        policy's limit if None. At a limit the command is killed with everything that it has
        started; the box lives on. `on_denial` is told of refusals of other commands too that run at
        the same time. What a command leaves running goes on after its end, but nothing reads its
        output any more. It gets SIGPIPE or EPIPE if it writes there; `spawn` keeps it.

        Raises UsageError, ExitError, ProgramNotFound, ProgramNotExecutable, BoxFull, SandboxClosed,
        SandboxEnded.
        """
        words = shell_words(argv) if shell else guest_argv(argv)
        data = input_bytes(input, encoding)
        timeout_s = self._limits.timeout_s
        if timeout is not None:
            timeout_s = parse_duration(timeout, "timeout")
        check_codec(encoding, errors)
        codec = (encoding, errors) if text else None
        is_joined = stderr == _STDOUT and not isinstance(stderr, bool)
        sinks = (sink_of(stdout, 1, codec), None if is_joined else sink_of(stderr, 2, codec))
        limit_bytes = self._limits.output_bytes
        if max_output is not None:
            limit_bytes = parse_bytes(max_output, "max_output")
        teller = teller_of(on_denial)
        stdio = ["pipe" if data else "null", "pipe", "stdout" if is_joined else "pipe", "absent"]
        spawned = self._start(words, env, cwd, stdio)
        command = Command(self._vm, spawned, data or b"", sinks, limit_bytes, teller)
        try:
            result = command.finish(timeout_s)
        except BaseException:
            command.give_up()
            raise
        who = f"box {self._number}: {named(words)}"
        _log.say_end(who, result.reason, result.exit_code, result.signal)
        _log.say_denials(who, result.denials)
        result = replace(result, args=[argv] if isinstance(argv, str) else list(argv))
        if not text:
            return result.check() if check else result
        said = as_text(result, encoding, errors)
        return said.check() if check else said

    def spawn(
        self,
        argv: Sequence[Word] | str,
        *,
        shell: bool = False,
        stdin: int = _PIPE,
        stdout: int = _PIPE,
        stderr: int = _PIPE,
        terminal: TerminalSize | None = None,
        text: bool = False,
        encoding: str = "utf-8",
        errors: str = "replace",
        timeout: float | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Process:
        """Start `argv` in the box and return at once.

        stdin, stdout, stderr: subprocess.PIPE or subprocess.DEVNULL; standard error may also be
            subprocess.STDOUT. The other arguments are those of `run`.
        terminal: the size of a terminal of its own, in the place of those three: see `Process`.
            TERM is xterm there unless the environment has another.
        timeout: in seconds, or "500ms", "2m": then it is killed with everything that it has
            started, and `timed_out` is true. None for no limit, as its copies in forks have.

        Raises UsageError, ProgramNotFound, ProgramNotExecutable, BoxFull, SandboxClosed,
        SandboxEnded.
        """
        words = shell_words(argv) if shell else guest_argv(argv)
        limit_s = None if timeout is None else parse_duration(timeout, "timeout")
        check_codec(encoding, errors)
        stdio = [
            _stdio(stdin, "stdin"),
            _stdio(stdout, "stdout"),
            _stdio(stderr, "stderr"),
            "absent",
        ]
        if terminal is not None:
            checked_size(terminal)
            if stdio[:3] != ["pipe"] * 3:
                raise UsageError(
                    "a terminal is standard input, output and error at once",
                    remedy="leave out stdin, stdout and stderr, or terminal",
                )
        spawned = self._start(words, env, cwd, stdio, terminal)
        args: Sequence[Word] = [argv] if isinstance(argv, str) else argv
        self._say("spawn", f"{named(words)} starts")
        codec = (encoding, errors) if text else None
        has_terminal = terminal is not None
        process = Process._spawned(self._vm, args, spawned, codec, self._dropped, has_terminal)
        self._processes.add(process)
        if limit_s is not None:
            epoch, _pid, command, _streams = spawned
            end = ending(weakref.ref(self), weakref.ref(process), epoch, command)
            self._ends.add(end)
            _deadlines.at(time.monotonic() + limit_s, end)
        return process

    def _start(
        self,
        words: list[bytes],
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        stdio: list[str],
        terminal: TerminalSize | None = None,
    ) -> tuple[int, int, int, list[int | None]]:
        try:
            directory = _HOME if cwd is None else os.path.join(_HOME, os.fsencode(cwd))
        except TypeError:
            raise UsageError(f"cwd: {cwd!r} is not a path", remedy="pass a str or a path") from None
        variables = self._env if env is None else {**self._env, **pairs(env)}
        size = None
        if terminal is not None:
            variables = {b"TERM": b"xterm", **variables}
            size = (terminal.columns, terminal.rows)
        self._reap_dropped()
        return translated(
            self._vm().spawn,
            words,
            env=list(variables.items()),
            cwd=directory,
            stdio=stdio,
            terminal=size,
        )

    def _reap_dropped(self) -> None:
        """Waits for processes that nobody can wait for any more, if they have ended."""
        for _ in range(len(self._dropped)):
            try:
                epoch, pid = self._dropped.popleft()
            except IndexError:  # another thread does it too
                return
            with contextlib.suppress(BoxWasReset, BoxFileError):
                got = translated(
                    self._vm().exchange,
                    epoch,
                    read=[],
                    max_bytes=0,
                    write=None,
                    child=pid,
                    timeout_s=0.0,
                )
                if got is None:
                    self._dropped.append((epoch, pid))

    @property
    def processes(self) -> list[Process]:
        """The processes that `spawn` started and that have not been seen to end.

        In a fork, and after a reset, these are its own copies of those that the snapshot has.
        """
        known = {*self._processes, *self._inherited}
        running = [process for process in known if process.returncode is None]
        return sorted(running, key=lambda process: process.pid)

    # ---- connections ----

    def connect(self, port: int, *, peer: tuple[str, int] | None = None) -> Connection:
        """Connect to a server in the box, on a TCP port. No port of this machine is used.

        peer: address and port that the server is shown as the client's, ("192.0.2.1", 40000).

        Raises UsageError, ConnectionRefused, ConnectionFailed, SandboxClosed, SandboxEnded.
        """
        number = port_number(port, "port")
        return connected(
            _Ends(self._vm), lambda *args: translated(self._vm().connect, *args), number, peer
        )

    def wait_listening(self, port: int, timeout: float | str | None = None) -> None:
        """Wait until a process in the box listens on a TCP port.

        Raises UsageError, DeadlineExceeded, SandboxClosed, SandboxEnded, BoxWasReset.
        """
        number = port_number(port, "port")
        timeout_s = None if timeout is None else parse_duration(timeout, "timeout")
        stop = stop_of_this_thread()
        if not translated(self._vm().wait_listening, number, timeout_s, stop):
            raise from_native("timeout", f"nothing listened on port {number} in time")

    # ---- its state ----

    def snapshot(self, *, connections: Literal["refuse", "drop"] = "refuse") -> BoxSnapshot:
        """Keep files, memory and processes as they are now. The box goes on.

        connections: open ones to other machines cannot be kept. "refuse" raises ConnectionsOpen,
            which names one; "drop" ends them, here too, as if each other side had reset them. Those
            that this process has to servers inside are always refused.

        Raises ConnectionsOpen, FrozenTooOften, SandboxClosed, SandboxEnded, HostError.
        """
        # As long as these are known, none of them is dropped.
        processes = self.processes
        kept = [process._kept() for process in processes]
        epoch = translated(self._vm().epoch)
        dropped = [pid for then, pid in list(self._dropped) if then == epoch]
        self._say_denials()
        snapshot = translated(self._vm().snapshot, connections)
        self._kept, self._kept_dropped = kept, dropped
        self._say("snapshot", "kept as it is")
        return BoxSnapshot._taken(snapshot, self)

    def fork(
        self, count: int = 1, *, connections: Literal["refuse", "drop"] = "refuse"
    ) -> list[Box]:
        """`count` boxes that go on as this one is now; it goes on itself.

        connections: as for `snapshot`.

        Raises UsageError, SandboxClosed, SandboxEnded, TooFewDescriptors, HostError.
        """
        with self.snapshot(connections=connections) as snapshot:
            return snapshot.fork(count)

    def reset(self) -> None:
        """Back to the last snapshot, or to the snapshot that it is a fork of, else to its creation.

        Each Process of before raises BoxWasReset then. `processes` has those of the snapshot.

        Raises SandboxClosed, HostError.
        """
        self._say_denials()
        translated(self._vm().reset)
        self._inherit()
        self._say("reset", "put back")

    def stats(self) -> dict[str, int | float]:
        """Counters by name.

        Of now: `processes`, `memory_bytes` and `memory_limit_bytes`. `files` counts those that were
        made, with directories; `files_bytes` is their room, `files_limit_bytes` its limit.

        Since its start, or that of the fork: `memory_peak_bytes`, `cpu_us` and more. Names ending
        in _us are of times, in microseconds. Raises SandboxClosed.
        """
        return translated(self._vm().stats)

    def close(self) -> None:
        """End everything in it and give the VM up. May be repeated."""
        if self._native is not None:
            self._say_denials()
        vm, self._native, self._closed = self._native, None, True
        if vm is not None:
            if self._ends:
                _deadlines.forget(self._ends)
            translated(vm.close)
            self._say("close", "closed")

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed

    # ---- for the package's own use ----

    def _vm(self) -> _native.Box:
        if self._native is None:
            raise from_native("closed", "the box is closed")
        return self._native

    def _say(self, event: str, message: str, **facts: object) -> None:
        """Makes a record about this box."""
        _log.say(_log.DEBUG, event, "box %d: %s", self._number, message, box=self._number, **facts)

    def _say_denials(self) -> None:
        """Makes records of refusals that no result has told of."""
        if _log.listens(_log.INFO):
            # It may have ended, or belong to another process.
            with contextlib.suppress(_native.NativeError):
                denials, _events = self._vm().take_report()
                _log.say_denials(f"box {self._number}", (Denial(*each) for each in denials))

    def _abandon(self) -> None:
        # The native object stays: it says that it belongs to another process.
        pass

    def _stop(self) -> None:
        self.close()


class BoxSnapshot:
    """A box as it was, to be forked any number of times. Made by `Box.snapshot`.

    Forks share what they do not change, and live on when the snapshot is closed.

        >>> with kvmlet.Box() as box, box.snapshot() as snapshot:
        ...     box.files.write("late", "x")
        ...     [fork] = snapshot.fork()
        ...     with fork:
        ...         box.files.list(), fork.files.list()
        (['late'], [])
    """

    _vm: _native.Snapshot
    _origin: Box
    _source: _native.Box
    _kept: list[Kept]
    _kept_dropped: list[int]
    _closed: bool

    def __init__(self) -> None:
        raise UsageError("a snapshot cannot be made directly", remedy="call Box.snapshot()")

    @classmethod
    def _taken(cls, vm: _native.Snapshot, origin: Box) -> Self:
        snapshot = cls.__new__(cls)
        snapshot._vm = vm
        snapshot._origin = origin
        snapshot._source = origin._vm()
        snapshot._kept, snapshot._kept_dropped = origin._kept, origin._kept_dropped
        snapshot._closed = False
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

    def fork(self, count: int = 1) -> list[Box]:
        """`count` boxes that go on from the snapshot.

        Raises UsageError, StaleSnapshot, SandboxClosed, TooFewDescriptors, HostError.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise UsageError(f"count: {count!r} is not a number of forks", remedy="pass 1 or more")
        with contextlib.ExitStack() as made:
            forks: list[Box] = []
            for _ in range(count):
                vm = translated(self._source.fork, self._vm)
                box = Box._forked(vm, self)
                forks.append(made.enter_context(box))
            made.pop_all()
            return forks

    def close(self) -> None:
        """Give up the kept state; nothing more can be forked. May be repeated."""
        translated(self._vm.close)
        self._closed = True

    @property
    def closed(self) -> bool:
        """True once `close` was called."""
        return self._closed


class _Ends:
    """The box that a connection leads into."""

    def __init__(self, vm: Callable[[], _native.Box]) -> None:
        self._vm = vm

    def send_to(self, connection: _native.Connection, data: bytes, timeout_s: float | None) -> int:
        stop = stop_of_this_thread()
        return _in_time(translated(self._vm().send_to, connection, data, timeout_s, stop))

    def receive_from(
        self, connection: _native.Connection, max_bytes: int, timeout_s: float | None
    ) -> bytes:
        ask = self._vm().receive_from
        stop = stop_of_this_thread()
        return _in_time(translated(ask, connection, max_bytes, timeout_s, stop))

    def shut_down(self, connection: _native.Connection, how: int) -> None:
        translated(self._vm().shut_down, connection, how)

    def hang_up(self, connection: _native.Connection) -> None:
        with contextlib.suppress(SandboxClosed):
            translated(self._vm().hang_up, connection)


def _in_time(value: T | None) -> T:
    if value is None:
        raise from_native("timeout", "the time limit passed")
    return value


def _stdio(value: object, name: str) -> str:
    if value == _PIPE:
        return "pipe"
    if value == _DEVNULL:
        return "null"
    if value == _STDOUT and name == "stderr":
        return "stdout"
    raise UsageError(
        f"{name}: {value!r} is no stream", remedy="pass subprocess.PIPE or subprocess.DEVNULL"
    )
