"""`kvmlet run`: a program in a VM, its standard streams passed through.

Everything imported here is paid for on every run: tests/unit/test_imports.py holds the list. After
`harden` nothing more may be imported at all, because Python's own files may lie outside the guest's
view of the file system.
"""

from kvmlet import _native
from kvmlet._launch import guest_argv, guest_cwd, guest_env
from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    OUTPUT_LIMIT_BYTES,
    format_duration,
    format_size,
    parse_calls,
    parse_count,
    parse_duration,
    parse_size,
)
from kvmlet.cli._ends import (
    SIGINT,
    SIGPIPE,
    STATUS_INTERRUPTED,
    STATUS_MEMORY,
    STATUS_NOT_EXECUTABLE,
    STATUS_NOT_FOUND,
    STATUS_OUTPUT,
    STATUS_OWN_ERROR,
    STATUS_TIMEOUT,
    signal_name,
    status_of_signal,
)
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import say_by, warn, write_stderr
from kvmlet.errors import InternalError, UsageError, from_native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# More would bury the program's own output.
_MAX_LINES = 5

_OPTIONS_WITH_VALUE = ("--timeout", "--memory", "--max-procs", "--calls")

_DESCRIPTION = """\
Run CMD in a virtual machine of its own. It may read /usr, /bin, /sbin, /lib*, the current
directory and a few files of /etc; it may write /tmp, which is in memory and empty at the start;
it has no network. Everything after CMD belongs to CMD.
"""

_EPILOG = f"""\
exit status: CMD's own; {STATUS_TIMEOUT} time limit, \
{STATUS_OWN_ERROR} an error of kvmlet's or in its options, {STATUS_NOT_EXECUTABLE} CMD cannot
be executed, {STATUS_NOT_FOUND} CMD not found, 128+n ended by signal n, \
{STATUS_MEMORY} memory limit.
"""


def main(words: list[str]) -> int:
    """Run the program in `words`; the exit status."""
    own, program = split_command(words)
    options = _parser().parse_args(own)
    timeout_s = None if options.timeout is None else parse_duration(options.timeout, "--timeout")
    memory_bytes = (
        DEFAULT_MEMORY_BYTES if options.memory is None else parse_size(options.memory, "--memory")
    )
    processes_max = parse_count(options.max_procs, "--max-procs")
    calls = parse_calls(options.calls, "--calls")
    if not program:
        raise UsageError(
            "no program given", remedy="name it after the options: kvmlet run -- CMD ARG..."
        )
    argv = guest_argv(program)
    env = guest_env()
    cwd = guest_cwd()
    report = _reporter(options.stats)
    if calls == "poll":
        from kvmlet._calls import polling_is_slow

        slow = polling_is_slow()
        if slow:
            warn(slow)
    streams = _native.Inherited()
    say_by(streams.say)
    try:
        policy = _native.Policy(cwd)
        walls, missing = _native.harden(policy)
        if missing:
            warn(f"running with a part of the second wall only: {'; '.join(missing)}")
        if options.trace:
            warn(f"second wall: {', '.join(walls)}")
        outcome = _native.run(
            argv,
            env=env,
            policy=policy,
            input=None,
            streams=streams,
            timeout_s=timeout_s,
            memory_bytes=memory_bytes,
            processes_max=processes_max,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            trace=options.trace,
            calls=calls,
        )
    except _native.NativeError as error:
        raise from_native(*error.args) from None
    status = status_of(outcome)
    _explain(outcome, timeout_s, memory_bytes)
    # A limit that ended the run is the whole story; a failure may be due to what was refused.
    if status and outcome.reason in ("exited", "signal"):
        _show_refusals(outcome)
    if report:
        report(outcome)
    return status


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """(our options, the program and its arguments); "--" between them may be left out.

    argparse cannot do this: it looks for options after positional arguments too.
    """
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return words[:position], words[position + 1 :]
        if not word.startswith("-") or word == "-":
            break
        position += 2 if word in _OPTIONS_WITH_VALUE else 1
    return words[:position], words[position:]


def _parser() -> Parser:
    parser = Parser(
        prog="kvmlet run",
        usage="kvmlet run [--timeout 30s] [--memory 512m] [--max-procs 256] [--calls auto] "
        "[--trace] [--stats[=json]] [--] CMD ARG...",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "--timeout", metavar="TIME", help="end the run after TIME: 30s, 500ms, 2m, 1h or seconds"
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help=f"most memory CMD may use: 64m, 1g or bytes (default {DEFAULT_MEMORY_BYTES >> 20}m)",
    )
    parser.add_argument(
        "--max-procs",
        metavar="N",
        default=DEFAULT_MAX_PROCS,
        help=f"most processes CMD may have (default {DEFAULT_MAX_PROCS})",
    )
    parser.add_argument(
        "--calls",
        metavar="MODE",
        help="how CMD's system calls reach kvmlet: exit (each leaves the VM), poll (a thread on "
        "another CPU looks out for them) or auto, whichever is faster (default $KVMLET_CALLS or "
        "auto)",
    )
    parser.add_argument(
        "--trace", action="store_true", help="write CMD's system calls to standard error"
    )
    parser.add_argument(
        "--stats",
        nargs="?",
        const="table",
        choices=("table", "json"),
        metavar="json",
        help="write counters and times to standard error at the end",
    )
    return parser


def status_of(outcome: "_native.Outcome") -> int:
    """The exit status that says how the guest ended. Raises InternalError."""
    reason = outcome.reason
    if reason == "exited" and outcome.exit_code is not None:
        return outcome.exit_code
    if reason == "signal" and outcome.signal is not None:
        return status_of_signal(outcome.signal)
    statuses = {
        "timeout": STATUS_TIMEOUT,
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
    elif reason == "memory":
        warn(f"ended by the memory limit of {format_size(memory_bytes)}; --memory raises it")
    elif reason == "output":
        warn(f"ended by the output limit of {format_size(OUTPUT_LIMIT_BYTES)}")
    # Ctrl-C and a reader that went away are how pipelines end: a shell is silent there as well.
    elif outcome.signal is not None and outcome.signal not in (SIGINT, SIGPIPE):
        warn(f"ended by {signal_name(outcome.signal)}")


def _show_refusals(outcome: "_native.Outcome") -> None:
    """A few lines on what the program was refused: the likely causes of its failure."""
    denied = [
        f"denied: {what} ({errno})" + (f"; {remedy}" if remedy else "")
        for what, errno, remedy in outcome.denials
    ]
    unsupported = [
        f"not supported: {name}" + (f" ({detail})" if detail else "")
        for name, detail in outcome.events
    ]
    not_kept = int(outcome.stats.get("denials_not_kept", 0))
    for lines, kind, uncounted in (
        (denied, "denied", not_kept),
        (unsupported, "not supported", 0),
    ):
        distinct = list(dict.fromkeys(lines))
        for line in distinct[:_MAX_LINES]:
            warn(line)
        more = max(0, len(distinct) - _MAX_LINES) + uncounted
        if more:
            warn(f"{kind}: and {more} more")


def _reporter(form: str | None) -> "Callable[[_native.Outcome], None] | None":
    """A writer of the statistics, with everything it needs already imported."""
    if form is None:
        return None
    if form == "json":
        from json import dumps

        def report_json(outcome: "_native.Outcome") -> None:
            ending = {
                "reason": outcome.reason,
                "exit_code": outcome.exit_code,
                "signal": outcome.signal,
            }
            write_stderr(dumps({**ending, **outcome.stats}) + "\n")

        return report_json
    return lambda outcome: write_stderr(stats_table(outcome.stats))


# The parts of the wall time. "guest" is KVM_RUN: guest code and the cost of leaving it.
_PARTS = ("setup_us", "guest_us", "personality_us", "idle_us")

# Shown as a group of their own: what the counter is called, and of which sum its share is shown.
_TRANSPORTS = {
    "calls_polled": ("polled", "calls"),
    "calls_exit": ("by exit", "calls"),
    "calls_left": ("  that the poller had begun", "calls"),
    "polls_timed_out": ("polls given up", ""),
    "trampolines": ("places that jump", ""),
    "poller_cpu_us": ("poller's CPU time", ""),
    "poller_useful_us": ("of it useful", "poller"),
}


def stats_table(stats: dict[str, int | float]) -> str:
    """Counters, one a line: names to the left, numbers lined up to the right.

    Parts of the wall time have their share beside them; how calls travelled is a group of its own.
    """
    sums = {
        "calls": stats.get("calls_polled", 0) + stats.get("calls_exit", 0),
        "poller": stats.get("poller_cpu_us", 0),
        "wall": stats.get("wall_us", 0),
    }
    rows: list[tuple[str, str, str, str]] = []
    group: list[tuple[str, str, str, str]] = []
    for name, value in stats.items():
        shown, of = _TRANSPORTS.get(
            name, (name.removesuffix("_us"), "wall" if name in _PARTS else "")
        )
        share = f"{value / sums[of]:7.1%}" if of and sums[of] else ""
        unit = " ms" if name.endswith("_us") else ""
        number = f"{value / 1e3:,.3f}" if unit else f"{value:,}"
        if name in _TRANSPORTS:
            group.append((f"  {shown}", number, unit, share))
        else:
            rows.append((shown, number, unit, share))
    names = max((len(row[0]) for row in rows + group), default=0)
    numbers = max((len(row[1]) for row in rows + group), default=0)

    def lines(rows: list[tuple[str, str, str, str]]) -> str:
        return "".join(
            f"{name:<{names}}  {number:>{numbers}}{f'{unit:<3}{share}'.rstrip()}\n"
            for name, number, unit, share in rows
        )

    # The stub answers inside the VM, where nobody counts.
    header = "calls by transport, without those that the stub answered\n" if group else ""
    return lines(rows) + header + lines(group)
