"""`--stats`: counters and times of a run, as a table or as JSON."""

from kvmlet.cli._text import write_stderr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet import _native


def reporter(form: str) -> "Callable[[_native.Outcome], None]":
    """A writer of the statistics, with everything it needs already imported."""
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
