"""One program in a VM of its own, from its start to its end."""

from __future__ import annotations

import codecs
import os
import warnings
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Literal, overload

from kvmlet import _log, _native
from kvmlet._calls import calls_mode
from kvmlet._changes.result import now_ns
from kvmlet._disk import open_disk
from kvmlet._extension import result_of, translated
from kvmlet._launch import Start, guest_argv, input_bytes, named_of
from kvmlet._result import Denial, Result
from kvmlet._stopping import stop_of_this_thread
from kvmlet.errors import UsageError
from kvmlet.policy import policy_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Final, TypeAlias

    from kvmlet.policy import Limits, Policy

    Word: TypeAlias = str | bytes | os.PathLike[str]


class _Inherit(Enum):
    INHERIT = "INHERIT"

    def __repr__(self) -> str:
        return "kvmlet.INHERIT"


INHERIT: Final = _Inherit.INHERIT
"""For `stdout` and `stderr` of `run`: output goes where this process's own goes."""


@overload
def run(
    argv: Sequence[Word] | str,
    *,
    shell: bool = False,
    input: bytes | str | None = None,
    text: Literal[False] = False,
    encoding: str = "utf-8",
    errors: str = "replace",
    check: bool = False,
    timeout: float | str | None = None,
    cpu_time: float | str | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    max_procs: int | None = None,
    max_output: int | str | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    read: Sequence[str | os.PathLike[str]] = (),
    write: Sequence[str | os.PathLike[str]] = (),
    net: Sequence[str] = (),
    publish: Sequence[str] = (),
    unix: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdout: Callable[[bytes], object] | _Inherit | None = None,
    stderr: Callable[[bytes], object] | _Inherit | None = None,
    calls: str | None = None,
    changes: str = "discard",
    keep_protected: Sequence[str | os.PathLike[str]] = (),
    on_denial: Callable[[Denial], object] | None = None,
) -> Result[bytes]: ...
@overload
def run(
    argv: Sequence[Word] | str,
    *,
    shell: bool = False,
    input: bytes | str | None = None,
    text: Literal[True],
    encoding: str = "utf-8",
    errors: str = "replace",
    check: bool = False,
    timeout: float | str | None = None,
    cpu_time: float | str | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    max_procs: int | None = None,
    max_output: int | str | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    read: Sequence[str | os.PathLike[str]] = (),
    write: Sequence[str | os.PathLike[str]] = (),
    net: Sequence[str] = (),
    publish: Sequence[str] = (),
    unix: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdout: Callable[[str], object] | _Inherit | None = None,
    stderr: Callable[[str], object] | _Inherit | None = None,
    calls: str | None = None,
    changes: str = "discard",
    keep_protected: Sequence[str | os.PathLike[str]] = (),
    on_denial: Callable[[Denial], object] | None = None,
) -> Result[str]: ...
def run(
    argv: Sequence[Word] | str,
    *,
    shell: bool = False,
    input: bytes | str | None = None,
    text: bool = False,
    encoding: str = "utf-8",
    errors: str = "replace",
    check: bool = False,
    timeout: float | str | None = None,
    cpu_time: float | str | None = None,
    memory: int | str | None = None,
    disk: int | str | None = None,
    max_procs: int | None = None,
    max_output: int | str | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
    read: Sequence[str | os.PathLike[str]] = (),
    write: Sequence[str | os.PathLike[str]] = (),
    net: Sequence[str] = (),
    publish: Sequence[str] = (),
    unix: Sequence[str | os.PathLike[str]] = (),
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    stdout: Callable[[bytes], object] | Callable[[str], object] | _Inherit | None = None,
    stderr: Callable[[bytes], object] | Callable[[str], object] | _Inherit | None = None,
    calls: str | None = None,
    changes: str = "discard",
    keep_protected: Sequence[str | os.PathLike[str]] = (),
    on_denial: Callable[[Denial], object] | None = None,
) -> Result[bytes] | Result[str]:
    """Run `argv` in a VM of its own until it ends.

    argv: the program and its arguments; a name without "/" is looked up in PATH as a shell would.
        The installation that it belongs to is readable, as are a script's interpreter and the
        script that an interpreter is given.
    shell: `argv` is one string for the guest's /bin/sh. No shell of the host ever sees it.
    input: its standard input (a str is sent in `encoding`); empty if None.
    text: output is str, decoded by `encoding` and `errors`, and callables get whole lines.
    check: raise ExitError unless the program exits with status 0.
    timeout: wall time in seconds, or "500ms", "2m"; None for no limit.
    cpu_time: the same for the CPU time that it uses; sleeping does not count.
    memory: most memory the program may use, in bytes, or "64m", "1g": 4 MiB to 1 TiB; 512 MiB if
        not given.
    disk: most room for its files in /tmp and in trees that it changes in memory, as `memory`; 2 GiB
        if not given. Files past a quarter of the memory lie in /var/tmp or $KVMLET_TMPDIR, without
        a name. A file that finds no room gets ENOSPC.
    max_procs: most processes it may have, with those that it has not waited for: 1 to 1,024; 256 if
        not given.
    max_output: most output that is captured, of both streams together, as `memory`; more ends it.
        16 MiB if not given.
    policy: limits, files and variables as one value; what is given beside it wins, or adds to it.
    limits: limits alone as one value. They win over those of `policy`; what is given beside them
        wins over both.
    read: files and directories that it may read beside those of every program.
    write: the same to change, on the host itself and at once: nothing undoes that. Names that other
        programs act on or log in with (.git/config, .git/hooks, .vscode, .ssh and the like) stay
        read-only, unless they are named themselves.
    net: the hosts that it may connect to, as `--net` has them: "api.example.com:443", "*.NAME", an
        address, "10.0.0.0/8:5432", "public", "host.kvmlet.internal:8000". None by default.
    publish: ports of this machine that lead to its own, as "8080:80": at 127.0.0.1 unless another
        address comes first. They are open as long as it runs.
    unix: sockets of this machine (unix(7)) that it may connect to, by their paths: each gives it
        all that the server behind it gives. No descriptors are passed.
    env: variables beside PATH, HOME, TMPDIR and those of language, time zone and terminal.
    cwd: the directory it runs in; the current one if None. It may change the tree of that
        directory, or of the git work tree around it. The host's files stay as they are.
    stdout, stderr: None captures; INHERIT passes through; a callable is given output as it comes:
        chunks of bytes, or lines with their ends if `text`. The program waits while it runs; an
        exception that it raises ends the run.
    calls: how its system calls reach kvmlet. "exit": each leaves the VM. "poll": a thread on
        another CPU looks out for them. "auto": whichever is faster. None: as the environment
        variable KVMLET_CALLS says, else "auto".
    changes: what becomes of its changes of that tree. "discard": only their names stay. "list":
        `result.changes` holds the contents too, in memory. "keep": the same, and they are made on
        the host, unless a limit ended the run; `result.changes.kept` says what came of it.
        "dir:PATH": the changed files are written to PATH, an empty directory.
    keep_protected: files whose changes are kept although programs of yours obey them.
    on_denial: called with each thing that the policy refuses, once, within a twentieth of a second
        or so. The program waits while it runs; an exception that it raises ends the run.

    The program ending badly, or at a limit, is a result (see `Result.check`), not an exception.
    A signal handler that raises, as Ctrl-C's does, ends the
    VM first.

    Raises UsageError, ExitError, ProgramNotFound, ProgramNotExecutable, KvmUnavailable, HostError,
    InternalError.

        >>> result = kvmlet.run(["sort"], input="b\\na\\n", text=True, timeout=5)
        >>> result.stdout, result.returncode
        ('a\\nb\\n', 0)
    """
    words = shell_words(argv) if shell else guest_argv(argv)
    data = input_bytes(input, encoding)
    given = policy_of(
        policy,
        limits=limits,
        read=read,
        write=write,
        net=net,
        publish=publish,
        unix=unix,
        env=env,
        timeout=timeout,
        cpu_time=cpu_time,
        memory=memory,
        disk=disk,
        max_procs=max_procs,
        max_output=max_output,
    )
    numbers = given.limits.in_full()
    mode = calls_mode(calls, stacklevel=3)
    check_codec(encoding, errors)
    codec = (encoding, errors) if text else None
    sinks = (sink_of(stdout, 1, codec), sink_of(stderr, 2, codec))
    teller = teller_of(on_denial)
    kind, target = changes_mode(changes)
    room = open_disk(numbers.disk_bytes, "disk")
    start = translated(Start, words, given.env, cwd, named_of(given), view="overlay")
    if start.note:
        warnings.warn(start.note, stacklevel=2)
    if kind not in ("discard", "list") and start.overlay is None:
        raise UsageError(
            f"changes: {changes!r}: the program starts in /tmp, where nothing is kept",
            remedy="name a project's directory by cwd",
        )
    who = named(words)
    _log.say(_log.DEBUG, "start", "%s starts", who, memory_bytes=numbers.memory_bytes)
    held = None if kind == "discard" or start.overlay is None else _native.Changes()
    since_ns = now_ns()
    outcome = translated(
        _native.run,
        start.argv,
        env=start.env,
        policy=start.policy,
        input=data,
        streams=None,
        timeout_s=numbers.timeout_s,
        cpu_time_s=numbers.cpu_time_s,
        memory_bytes=numbers.memory_bytes,
        disk=room,
        processes_max=numbers.processes_max,
        files_max=numbers.files_max,
        output_limit_bytes=numbers.output_bytes,
        trace=False,
        calls=mode,
        on_stdout=None if sinks[0] is None else sinks[0].take,
        on_stderr=None if sinks[1] is None else sinks[1].take,
        on_denial=None if teller is None else teller.take_new,
        stop=stop_of_this_thread(),
        changes=held,
    )
    result = result_of(outcome, [argv] if isinstance(argv, str) else argv)
    if teller is not None:
        teller.finish(result.denials)
    _log.say_end(who, result.reason, result.exit_code, result.signal)
    _log.say_denials(who, result.denials, int(result.stats.get("denials_not_kept", 0)))
    captured = []
    for sink, data in zip(sinks, (outcome.stdout, outcome.stderr), strict=True):
        captured.append(b"" if sink else data)
        if sink:
            sink.end(data)
    result = replace(result, stdout=captured[0], stderr=captured[1])
    if held is not None and start.overlay is not None:
        result.changes.hold(held, start.overlay, since_ns)
    if kind == "keep" and result.reason in ("exited", "signal"):
        result.changes.apply(keep_protected)
    elif kind == "dir":
        result.changes.write_to(target)
    if not text:
        return result.check() if check else result
    said = as_text(result, encoding, errors)
    return said.check() if check else said


def named(words: list[bytes]) -> str:
    """The program of a command, for records: its arguments may be secrets."""
    return repr(os.fsdecode(words[0]))


def as_text(result: Result[bytes], encoding: str, errors: str) -> Result[str]:
    fields = {each.name: getattr(result, each.name) for each in dataclass_fields(result)}
    fields["stdout"] = result.stdout.decode(encoding, errors)
    fields["stderr"] = result.stderr.decode(encoding, errors)
    return Result(**fields)


def changes_mode(text: object) -> tuple[str, str]:
    """The kind of mode that `changes` names, and the directory of the kind "dir"."""
    if isinstance(text, str):
        kind, _, target = text.partition(":")
        if kind == "dir" and target:
            return kind, target
        if text in ("discard", "list", "keep"):
            return text, ""
    raise UsageError(
        f"changes: {text!r} is none of 'discard', 'list', 'keep' and 'dir:PATH'",
        remedy="'ask' is for the command, which has a terminal",
    )


def shell_words(command: object) -> list[bytes]:
    if not isinstance(command, str):
        raise UsageError(
            f"shell=True takes one string, not {type(command).__name__}",
            remedy="join the words with shlex.join(), or leave shell=True out",
        )
    return guest_argv(["/bin/sh", "-c", command])


def check_codec(encoding: str, errors: str) -> None:
    try:
        codecs.lookup_error(errors)
        codecs.lookup(encoding)
    except (LookupError, TypeError) as error:
        raise UsageError(f"encoding: {error}", remedy='name a codec such as "utf-8"') from None


# A longer line is told in pieces: the program chooses its length, and the host holds it.
_LINE_MAX_CHARS = 1 << 20


class Sink:
    """The place that a stream's bytes go to as they come."""

    def __init__(self, tell: Callable[[bytes], object]) -> None:
        self.take = tell

    def end(self, data: bytes) -> None:
        """Passes on what came last."""
        if data:
            self.take(data)


class TextSink(Sink):
    """The same for text, by whole lines."""

    def __init__(self, tell: Callable[[str], object], encoding: str, errors: str) -> None:
        super().__init__(self._take)
        self._tell = tell
        self._decoder = codecs.getincrementaldecoder(encoding)(errors)
        self._line = ""

    def _take(self, data: bytes) -> None:
        self._add(self._decoder.decode(data))

    def _add(self, text: str) -> None:
        *lines, rest = text.split("\n")
        for line in lines:
            whole, self._line = self._line + line + "\n", ""
            self._tell(whole)
        self._line += rest
        if len(self._line) > _LINE_MAX_CHARS:
            piece, self._line = self._line, ""
            self._tell(piece)

    def end(self, data: bytes) -> None:
        """Passes on what came last, and a line without an end."""
        self._add(self._decoder.decode(data, final=True))
        if self._line:
            self._tell(self._line)


class DenialTeller:
    """Tells a caller of each thing that the policy has refused."""

    def __init__(self, tell: Callable[[Denial], object]) -> None:
        self._tell = tell
        self._count = 0

    def take(self, denial: Denial) -> None:
        """Tells of one."""
        self._count += 1
        self._tell(denial)

    def take_new(self, what: str, errno: str, kind: str, count: int) -> None:
        """The same, of its fields."""
        self.take(Denial(what, errno, kind, count))

    def finish(self, denials: list[Denial]) -> None:
        """Tells of those that have not been told. `denials` are all of them, in order."""
        for denial in denials[self._count :]:
            self.take(denial)


def teller_of(on_denial: object) -> DenialTeller | None:
    """The teller for what a caller gave as `on_denial`."""
    if on_denial is None:
        return None
    if callable(on_denial):
        return DenialTeller(on_denial)
    raise UsageError(
        f"on_denial: {on_denial!r} is not a callable", remedy="pass a function that takes a Denial"
    )


def sink_of(stream: object, number: int, codec: tuple[str, str] | None) -> Sink | None:
    """The sink for what a caller gave as `stdout` (1) or `stderr` (2); text needs a codec."""
    if stream is None:
        return None
    if stream is INHERIT:
        return Sink(lambda data: _write_all(number, data))
    if callable(stream):
        return Sink(stream) if codec is None else TextSink(stream, *codec)
    raise UsageError(
        f"{'stdout' if number == 1 else 'stderr'}: {stream!r} is not a callable",
        remedy="pass a function that takes the output, kvmlet.INHERIT, or None to capture it",
    )


def _write_all(number: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(number, rest) :]
