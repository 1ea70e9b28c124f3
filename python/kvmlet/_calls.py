"""The ways for calls to travel, and a look at the CPUs: polling takes one for the guest, one more.

The CPUs are looked at only if polling is asked for. The engine finds out for itself if it pays.
"""

import os
import warnings

from kvmlet._values import parse_calls

_CGROUPS = "/sys/fs/cgroup"


def calls_mode(calls: str | None, stacklevel: int) -> str:
    """The way for calls to travel, as `parse_calls` has it. Raises UsageError.

    Warns of polling that will be slow here, on behalf of the function `stacklevel` calls above.
    """
    mode = parse_calls(calls, "calls")
    if mode == "poll":
        slow = polling_is_slow()
        if slow:
            warnings.warn(slow, RuntimeWarning, stacklevel=stacklevel)
    return mode


def polling_is_slow() -> str:
    """The reason why polled calls will be slow in this process, "" if there is none."""
    allowed = len(os.sched_getaffinity(0))
    if allowed < 2:
        return _why("it may run on one CPU only")
    quota = cpu_quota(_read("/proc/self/cgroup"))
    if quota is not None and quota < 2:
        return _why(f"its control group may use {quota:g} of a CPU's time")
    return ""


def _why(shortage: str) -> str:
    return (
        f"polled calls will be slow in this process: {shortage}, and the guest and the poller "
        "need one CPU each; use auto or exit"
    )


def cpu_quota(groups: str, root: str = _CGROUPS) -> float | None:
    """CPUs' worth of time that the control groups allow, None if they do not limit it.

    `groups` is what /proc/self/cgroup says. A limit of any group above counts as well.
    """
    quotas: list[float] = []
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for group in _upwards(path):
                quotas += _quotient(*_read(f"{root}{group}/cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):
            for group in _upwards(path):
                directory = f"{root}/{controllers}{group}"
                quotas += _quotient(
                    _read(f"{directory}/cpu.cfs_quota_us"), _read(f"{directory}/cpu.cfs_period_us")
                )
    return min(quotas, default=None)


def _upwards(path: str) -> list[str]:
    """ "/a/b", "/a", "": the last is the root, which is our own group in a container."""
    parts = [part for part in path.split("/") if part]
    return ["".join(f"/{part}" for part in parts[:end]) for end in range(len(parts), -1, -1)]


def _quotient(quota: str = "", period: str = "") -> list[float]:
    """Of "150000" and "100000" [1.5]; [] for "max", -1 or nothing."""
    try:
        share = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return []
    return [share] if share > 0 else []


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
