"""`--report`: the end of a run as JSON, whatever that end was."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

KVMLET = [sys.executable, "-m", "kvmlet", "run"]

KEYS = {
    "schema",
    "command",
    "status",
    "reason",
    "exit_code",
    "signal",
    "limits",
    "peaks",
    "denials",
    "denials_not_kept",
    "unsupported",
    "changes",
    "stats",
}


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    path = pathlib.Path(os.path.realpath(tempfile.mkdtemp(dir="/var/tmp")))
    (path / "work").mkdir()
    yield path
    shutil.rmtree(path)


def run(place: pathlib.Path, *words: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [*KVMLET, "--report", str(place / "report.json"), *words],
        cwd=place / "work",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    report = json.loads((place / "report.json").read_text())
    assert report["status"] == done.returncode
    return done.returncode, report, done.stderr


def test_an_ordinary_end(place: pathlib.Path) -> None:
    (place / "hidden").write_text("x")
    script = f"cat {place}/hidden; echo x > made; exit 3"
    status, report, _ = run(place, "--memory", "64m", "--timeout", "1m", "sh", "-c", script)
    assert status == 3
    assert set(report) == KEYS
    assert report["schema"] == 1
    assert report["command"] == ["sh", "-c", script]
    assert (report["reason"], report["exit_code"], report["signal"]) == ("exited", 3, None)
    limits = {
        "timeout_s": 60,
        "cpu_time_s": None,
        "memory_bytes": 64 << 20,
        "disk_bytes": 2 << 30,
        "max_procs": 256,
        "max_files": 1024,
    }
    assert report["limits"] == limits
    assert 0 < report["peaks"]["memory_bytes"] <= 64 << 20
    assert report["peaks"]["wall_s"] > 0
    refused = {
        "kind": "hidden",
        "operation": "open",
        "path": f"{place}/hidden",
        "what": f"open {place}/hidden",
        "error": "ENOENT",
        "flag": f"--read {place}/hidden",
        "count": 1,
    }
    assert refused in report["denials"]
    made = {"kind": "A", "path": f"{place}/work/made"}
    assert report["changes"] == {"mode": "discard", "is_cut": False, "names": [made]}
    assert report["stats"]["syscalls"] > 0


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        (["--timeout", "1s", "sleep", "60"], 124, "timeout"),
        (["--cpu-time", "500ms", "sh", "-c", "while :; do :; done"], 152, "cpu-time"),
        (["--memory", "32m", "tail", "/dev/zero"], 137, "memory"),
        (["sh", "-c", "kill -SEGV $$"], 139, "signal"),
        (["no-such-program-anywhere"], 127, "not-started"),
    ],
)
def test_other_ends(place: pathlib.Path, words: list[str], status: int, reason: str) -> None:
    got, report, _ = run(place, *words)
    assert (got, report["reason"]) == (status, reason)
    assert set(report) >= KEYS


def test_a_signal_to_kvmlet_itself(place: pathlib.Path) -> None:
    process = subprocess.Popen(
        [*KVMLET, "--report", "../report.json", "sh", "-c", "echo up; sleep 60"],
        cwd=place / "work",
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    process.stdout.close()
    report = json.loads((place / "report.json").read_text())
    assert (report["status"], report["reason"]) == (143, "interrupted")


def test_a_killed_run_leaves_the_old_report(place: pathlib.Path) -> None:
    (place / "report.json").write_text("old")
    process = subprocess.Popen(
        [*KVMLET, "--report", "../report.json", "sh", "-c", "echo up; sleep 60"],
        cwd=place / "work",
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.wait(30)
    process.stdout.close()
    time.sleep(0.2)
    assert (place / "report.json").read_text() == "old"
    assert sorted(os.listdir(place)) == ["report.json", "work"]


def test_no_link_of_the_program_leads_the_report_elsewhere(place: pathlib.Path) -> None:
    victim = place / "victim"
    (victim / "sub").mkdir(parents=True)
    (victim / "file").write_text("mine")
    work = place / "work"
    words = [*KVMLET, "--write", ".", "--report", "sub/report.json", "sh", "-c"]

    def attempt(script: str) -> subprocess.CompletedProcess[str]:
        (work / "sub").mkdir()
        done = subprocess.run(
            [*words, script], cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        shutil.rmtree(work / "sub", ignore_errors=True)
        if (work / "sub").is_symlink():
            (work / "sub").unlink()
        return done

    # Its name becomes a link: that is replaced.
    done = attempt("ln -s ../../victim/file sub/report.json")
    assert (done.returncode, done.stderr) == (0, "")
    # Its directory becomes a link: the report stays in the directory that there was, which is gone.
    done = attempt("rmdir sub; ln -s ../victim/sub sub")
    assert done.returncode == 125
    assert "sub/report.json is not written: No such file or directory" in done.stderr
    # A directory has its name.
    done = attempt("mkdir -p sub/report.json/x")
    assert done.returncode == 125
    assert "sub/report.json is not written" in done.stderr
    assert (victim / "file").read_text() == "mine"
    assert os.listdir(victim / "sub") == []


def test_refusals_in_what_is_shown_elsewhere_name_the_hosts_path(place: pathlib.Path) -> None:
    (place / "ro").mkdir()
    (place / "rw").mkdir()
    (place / "rw" / ".envrc").write_text("mine")
    volumes = ["-v", f"{place}/ro:/data:ro", "-v", f"{place}/rw:/data/rw"]
    script = "echo x > /data/a; echo x > /data/rw/.envrc"
    status, report, said = run(place, *volumes, "sh", "-c", script)
    assert status != 0
    flags = {each["path"]: each["flag"] for each in report["denials"]}
    wanted = {
        "/data/a": f"-v {place}/ro:/data:rw",
        "/data/rw/.envrc": f"--write {place}/rw/.envrc",
    }
    assert flags == wanted
    for flag in wanted.values():
        assert flag in said
        allowed = run(place, *volumes[2:], *flag.split(), "sh", "-c", script)
        assert [each["flag"] for each in allowed[1]["denials"]].count(flag) == 0
    assert (place / "ro" / "a").read_text() == (place / "rw" / ".envrc").read_text() == "x\n"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (".", "it is no regular file"),
        ("/dev/null", "it is no regular file"),
        ("missing/r.json", "No such file or directory"),
    ],
)
def test_bad_places(place: pathlib.Path, path: str, said: str) -> None:
    done = subprocess.run(
        [*KVMLET, "--report", path, "true"], cwd=place / "work", capture_output=True, text=True
    )
    assert done.returncode == 125
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
