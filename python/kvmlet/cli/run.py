"""`kvmlet run`: a program in a VM, its standard streams passed through.

Everything imported here is paid for on every run: tests/unit/test_imports.py holds the list. After
`harden` nothing more may be imported at all, because Python's own files may lie outside the guest's
view of the file system.
"""

import os
from os import environ, fsdecode

from kvmlet import _native
from kvmlet._disk import note_of_full, open_disk
from kvmlet._launch import Start, guest_argv
from kvmlet._refusals import lines as refusal_lines
from kvmlet._values import (
    DEFAULT_DISK_BYTES,
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    MOST_MAX_FILES,
    OUTPUT_LIMIT_BYTES,
    format_duration,
    format_size,
    parse_calls,
    parse_count,
    parse_disk,
    parse_duration,
    parse_files,
    parse_size,
)
from kvmlet.cli import _changes, _descriptors, _ends, _status_of
from kvmlet.cli._ends import (
    SIGINT,
    SIGPIPE,
    STATUS_CPU_TIME,
    STATUS_INTERRUPTED,
    STATUS_MEMORY,
    STATUS_OK,
    STATUS_OUTPUT,
    STATUS_TIMEOUT,
    signal_name,
    status_of_signal,
)
from kvmlet.cli._run_options import (
    TRACE_TO_STDERR,
    by_policies,
    environment,
    imply_profiles,
    named_by,
    read,
    split_command,
)
from kvmlet.cli._text import say_by, show, warn
from kvmlet.errors import InternalError, UsageError, from_native, named_by_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from kvmlet.cli._keeper import Keeper
    from kvmlet.cli._writer import File, Writer
    from kvmlet.policy import Policy

# More would bury the program's own output.
_MAX_LINES = 5


def main(words: list[str]) -> int:
    """Run the program in `words`; the exit status."""
    own, program = split_command(words)
    try:
        return run(read(own), program)
    except UsageError as error:
        raise named_by_options(error) from None


def run(options: "Namespace", program: list[str]) -> int:
    """Run `program` with these options; the exit status."""
    timeout_s = None if options.timeout is None else parse_duration(options.timeout, "--timeout")
    cpu_time_s = (
        None if options.cpu_time is None else parse_duration(options.cpu_time, "--cpu-time")
    )
    memory_bytes = None if options.memory is None else parse_size(options.memory, "--memory")
    disk_bytes = None if options.disk is None else parse_disk(options.disk, "--disk")
    processes_max = (
        None if options.max_procs is None else parse_count(options.max_procs, "--max-procs")
    )
    files_max = None if options.max_files is None else parse_files(options.max_files, "--max-files")
    calls = parse_calls(options.calls, "--calls")
    changes, target = _changes.parse_mode(options.changes)
    if not program and not options.print_policy:
        raise UsageError(
            "no program given", remedy="name it after the options: kvmlet run -- CMD ARG..."
        )
    env = environment(options.env_file, options.env)
    if options.allow_all:
        env = {**_all_variables(options, changes), **env}
    imply_profiles(options, program)
    learned = _learned_file(options)
    policy: Policy | None = None
    if options.policy or options.profile or options.print_policy or learned:
        policy = by_policies(
            options,
            env,
            timeout=timeout_s,
            cpu_time=cpu_time_s,
            memory=memory_bytes,
            disk=disk_bytes,
            max_procs=processes_max,
            max_files=files_max,
        )
        if options.print_policy:
            return show(policy.to_toml())
        env = dict(policy.env)
        given = policy.limits.in_full()
        timeout_s, cpu_time_s, memory_bytes, disk_bytes, processes_max, files_max, _ = given
    memory_bytes = memory_bytes or DEFAULT_MEMORY_BYTES
    processes_max = processes_max or DEFAULT_MAX_PROCS
    files_max = files_max or MOST_MAX_FILES
    argv = guest_argv(program)
    if options.user is not None:
        from kvmlet.cli._user import become

        become(options.user)
    named = named_by(options)
    report = None
    if options.stats is not None:
        from kvmlet.cli._stats import reporter

        report = reporter(options.stats)
    if calls == "poll":
        from kvmlet._calls import polling_is_slow

        slow = polling_is_slow()
        if slow:
            warn(slow)
    try:
        left_open, by_name = _descriptors.take(options.fd)
        streams = _native.Inherited(left_open, by_name)
    except _native.NativeError as error:
        raise from_native(*error.args) from None
    say_by(streams.say)
    if options.allow_all:
        warn(_ALL)
    if options.verbose and (left_open or by_name):
        numbers = sorted(number for number, _ in left_open + by_name)
        warn(f"passing descriptors {', '.join(map(str, numbers))}")
    keeper: Keeper | None = None
    held: _native.Changes | None = None
    told = _Told(options, program)
    try:
        start = Start(argv, env, options.workdir, named, view="learning" if learned else "overlay")
        if (named.net or named.sockets) and not learned:
            from kvmlet.cli._names import start_processes

            start_processes(start.policy)
        keeper = _keeper(changes, start.overlay, target, options.keep_protected)
        if start.note and not options.quiet:
            warn(start.note)
        if not options.quiet:
            _changes.note_unfinished(start.overlay)
        held = _native.Changes() if keeper else None
        told.volumes = start.volumes
        told.limits = {
            "timeout_s": timeout_s,
            "cpu_time_s": cpu_time_s,
            "memory_bytes": memory_bytes,
            "disk_bytes": disk_bytes or DEFAULT_DISK_BYTES,
            "max_procs": processes_max,
            "max_files": files_max,
        }
        told.begin(learned, policy, start)
        # The processes that are forked before have no descriptor of it.
        room = open_disk(disk_bytes, "--disk")
        trace_to = _trace_file(options.trace)
        walls, missing = _native.harden(start.policy)
        if missing:
            warn(f"running with a part of the second wall only: {'; '.join(missing)}")
        if options.trace is not None:
            warn(f"second wall: {', '.join(walls)}")
        outcome = _native.run(
            start.argv,
            env=start.env,
            policy=start.policy,
            input=None,
            streams=streams,
            timeout_s=timeout_s,
            cpu_time_s=cpu_time_s,
            memory_bytes=memory_bytes,
            disk=room,
            processes_max=processes_max,
            files_max=files_max,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            trace=options.trace is not None,
            trace_to=trace_to,
            calls=calls,
            changes=held,
        )
    except _ends.SignalReceived as received:
        # The program's work until then is not lost.
        if keeper and held is not None and held.is_held:
            keeper.finish(held, cut_short=True, quiet=options.quiet)
        told.fail(status_of_signal(received.signum), "interrupted")
        raise
    except _native.NativeError as failure:
        refusal = named_by_options(from_native(*failure.args))
        told.fail(_status_of(refusal), "not-started", str(refusal))
        raise refusal from None
    status = status_of(outcome)
    if not options.quiet:
        _explain(outcome, timeout_s, memory_bytes)
    # A limit that ended the run is the whole story; a failure may be due to what was refused.
    failed = status and outcome.reason in ("exited", "signal")
    full = note_of_full(outcome.stats, format_size(disk_bytes or DEFAULT_DISK_BYTES))
    if full and (options.verbose or (failed and not options.quiet)):
        warn(full)
    if options.verbose or (failed and not options.quiet):
        _show_refusals(outcome, told.volumes)
    if keeper and held is not None:
        limits = ("timeout", "cpu-time", "memory", "output", "interrupted")
        cut_short = outcome.reason in limits
        kept = keeper.finish(held, cut_short=cut_short, quiet=options.quiet)
        status = status or kept
    elif not learned and (changes == "list" or not options.quiet):
        _changes.report(outcome.changes, changes, start.overlay, cut=outcome.changes_are_cut)
    written = told.end(outcome, status, changes)
    status = status or written
    if report:
        report(outcome)
    return status


_ALL = (
    "-A: it may change your home directory and the current one, read your keys, and has all of "
    "your variables; protected names (.bashrc, .ssh, .git/hooks and the like) stay as they are"
)


def _all_variables(options: "Namespace", changes: str) -> dict[str, str]:
    """The caller's variables, for -A. Raises UsageError for what makes no sense beside it."""
    beside = {
        "--learn": options.learn,
        "--print-policy": options.print_policy,
        f"--changes {changes}": changes != "discard",
    }
    for other in (name for name, given in beside.items() if given):
        raise UsageError(
            f"-A and {other}: with -A the host's own files are changed, which no policy says",
            remedy="leave one of them out",
        )
    return dict(environ)


def _learned_file(options: "Namespace") -> "File | None":
    """The file of --learn, whose rules hold for the run if it is there. Raises UsageError."""
    if options.learn is None:
        return None
    if options.changes != "discard":
        raise UsageError(
            f"--learn and --changes {options.changes}: changes of a run that is learned are "
            "thrown away",
            remedy="leave --changes out",
        )
    from kvmlet.cli._writer import File

    file = File(options.learn, "--learn")
    try:
        if file.read() is not None:
            options.policy.append(options.learn)
    except (OSError, UnicodeDecodeError):
        # Reading it as a policy says what is wrong.
        options.policy.append(options.learn)
    return file


class _Told:
    """The files that tell of a run: those of --report and --learn."""

    def __init__(self, options: "Namespace", program: list[str]) -> None:
        """Raises UsageError."""
        self._quiet = options.quiet
        self._program = program
        self._writer: Writer | None = None
        self._report: File | None = None
        self._learns = False
        self.limits: dict[str, object] = {}
        # Trees that -v shows, for what was refused in them.
        self.volumes: list[tuple[str, str]] = []
        if options.report is not None:
            from kvmlet.cli import _writer

            self._report = _writer.File(options.report, "--report")

    def begin(self, learned: "File | None", policy: "Policy | None", start: Start) -> None:
        """Starts what writes them."""
        if learned is None and self._report is None:
            return
        # All of it is to be imported before the second wall.
        from kvmlet.cli import _report, _writer

        self._of = _report
        learner = None
        if learned is not None and policy is not None:
            from kvmlet.cli._learn import FIRST_LINE, Learner

            learner = Learner(learned, policy, start, start.argv)
            self._learns = True
            warn(FIRST_LINE + learned.shown)
        self._writer = _writer.start(self._report, learner)

    def end(self, outcome: "_native.Outcome", status: int, changes: str) -> int:
        """Has them written; STATUS_OK, or another."""
        if self._writer is None:
            return STATUS_OK
        orders: dict[str, object] = {}
        if self._report is not None:
            report = self._of.of_outcome(outcome, status, changes, self.volumes)
            orders["report"] = self._whole(report)
        if self._learns:
            uses = [(fsdecode(path), fsdecode(given), ways) for path, given, ways in outcome.uses]
            not_kept = outcome.uses_not_kept + outcome.stats.get("denials_not_kept", 0)
            orders["learn"] = {"uses": uses, "denials": outcome.denials, "not_kept": not_kept}
        return self._writer.finish(orders, quiet=self._quiet and not self._learns)

    def fail(self, status: int, reason: str, error: str = "") -> None:
        """The same where there is no outcome."""
        if self._writer is not None and self._report is not None:
            report = self._whole(self._of.of_failure(status, reason, error))
            self._writer.finish({"report": report}, quiet=self._quiet)

    def _whole(self, report: "dict[str, object]") -> "dict[str, object]":
        return {
            "schema": self._of.SCHEMA,
            "command": self._program,
            **report,
            "limits": self.limits,
        }


def _keeper(
    changes: str, tree: bytes | None, target: bytes | None, named: list[str]
) -> "Keeper | None":
    """The process that keeps the changes of `tree`, if the mode `changes` keeps any."""
    if changes not in ("keep", "ask", "dir"):
        if named:
            raise UsageError(
                "--keep-protected: no changes are kept", remedy="add --changes keep or ask"
            )
        return None
    if tree is None:
        raise UsageError(
            f"--changes {changes}: the program starts in /tmp, where nothing is kept",
            remedy="change to a project's directory, or name one by -w",
        )
    from kvmlet.cli import _keeper as keeper

    return keeper.start(changes, tree, target, named)


def _trace_file(path: str | None) -> int | None:
    """A descriptor of the file that the trace goes to. Raises UsageError."""
    if path is None or path == TRACE_TO_STDERR:
        return None
    if not path:
        raise UsageError("--trace=: no file is named", remedy="write --trace for standard error")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError(
            f"--trace={path}: {error.strerror}", remedy="name a file that you can write"
        ) from None


def status_of(outcome: "_native.Outcome") -> int:
    """The exit status that says how the guest ended. Raises InternalError."""
    reason = outcome.reason
    if reason == "exited" and outcome.exit_code is not None:
        return outcome.exit_code
    if reason == "signal" and outcome.signal is not None:
        return status_of_signal(outcome.signal)
    statuses = {
        "timeout": STATUS_TIMEOUT,
        "cpu-time": STATUS_CPU_TIME,
        "memory": STATUS_MEMORY,
        "output": STATUS_OUTPUT,
        "interrupted": STATUS_INTERRUPTED,
    }
    if reason not in statuses:
        raise InternalError(f"the run ended without a status ({reason})")
    return statuses[reason]


def _explain(outcome: "_native.Outcome", timeout_s: float | None, memory_bytes: int) -> None:
    """One line for an end that the program did not choose itself."""
    reason = outcome.reason
    if reason == "timeout":
        limit = "" if timeout_s is None else f" of {format_duration(timeout_s)}"
        warn(f"ended by the time limit{limit}; --timeout raises it")
    elif reason == "cpu-time":
        warn("ended by the limit on CPU time; --cpu-time raises it")
    elif reason == "memory":
        warn(f"ended by the memory limit of {format_size(memory_bytes)}; --memory raises it")
    elif reason == "output":
        warn(f"ended by the output limit of {format_size(OUTPUT_LIMIT_BYTES)}")
    # Ctrl-C and a reader that went away are how pipelines end: a shell is silent there as well.
    elif outcome.signal is not None and outcome.signal not in (SIGINT, SIGPIPE):
        warn(f"ended by {signal_name(outcome.signal)}")


def _show_refusals(outcome: "_native.Outcome", volumes: list[tuple[str, str]]) -> None:
    """A few lines on what the program was refused: the likely causes of its failure."""
    not_kept = int(outcome.stats.get("denials_not_kept", 0))
    for line in refusal_lines(outcome.denials, not_kept, outcome.events, _MAX_LINES, volumes):
        warn(line)
