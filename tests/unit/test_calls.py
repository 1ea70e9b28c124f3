"""A CPU of its own for polling, or none."""

import os
import pathlib

import pytest

from kvmlet import _calls


def write(root: pathlib.Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {}, None),
        ("", {"cpu.max": "100000 100000\n"}, None),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        # Seen from inside a container, the path leads nowhere and the root is our own group.
        ("0::/x/y\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("0::/\n", {"cpu.max": "lots\n"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        (
            "3:cpu,cpuacct:/job\n0::/\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1.0,
        ),
        ("3:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1\n"}, None),
    ],
)
def test_quota(
    tmp_path: pathlib.Path, groups: str, files: dict[str, str], cpus: float | None
) -> None:
    for name, text in files.items():
        write(tmp_path, name, text)
    assert _calls.cpu_quota(groups, os.fspath(tmp_path)) == cpus


def test_what_makes_polling_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    monkeypatch.setattr(_calls, "cpu_quota", lambda _: None)
    assert _calls.polling_is_slow() == ""
    monkeypatch.setattr(_calls, "cpu_quota", lambda _: 2.0)
    assert _calls.polling_is_slow() == ""
    monkeypatch.setattr(_calls, "cpu_quota", lambda _: 1.5)
    assert "1.5 of a CPU's time" in _calls.polling_is_slow()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert "one CPU only" in _calls.polling_is_slow()
