"""Mistakes of a caller: one line that says what is wrong and what to do, and its status."""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import tomllib
from typing import TYPE_CHECKING, Any

import pytest

from e2e.oracle import ENV, HANG_S, HW, KVMLET, NO_RUNTIMES, kvmlet_argv

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

MISTAKES: list[dict[str, Any]] = tomllib.loads(
    pathlib.Path(__file__).with_name("messages.toml").read_text()
)["mistake"]


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def said_by(mistake: dict[str, Any], here: pathlib.Path, port: int) -> tuple[int, str, str]:
    """The status, the output and the errors of a mistake; PORT and HERE stand for what is there."""
    env = {**ENV, "PATH": f"{KVMLET.parent}:{ENV['PATH']}"}
    setup = f"{mistake.get('setup', '')}\n"
    words = mistake["words"].replace("PORT", str(port)).replace("HERE", os.fspath(here))
    run = subprocess.run(
        ["/bin/bash", "-c", setup + words],
        cwd=here,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    errors = run.stderr.replace(os.fspath(here), "HERE").replace(str(port), "PORT")
    return run.returncode, run.stdout, errors


@pytest.mark.parametrize("mistake", MISTAKES, ids=[each["words"] for each in MISTAKES])
def test_a_mistake(mistake: dict[str, Any], tmp_path: pathlib.Path, taken_port: int) -> None:
    status, output, errors = said_by(mistake, tmp_path, taken_port)
    assert (status, errors) == (mistake.get("status", 125), mistake["stderr"] + "\n")
    assert output == ""


def test_there_are_many_and_each_says_what_to_do() -> None:
    assert len(MISTAKES) >= 25
    for mistake in MISTAKES:
        line = mistake["stderr"]
        assert line.startswith("kvmlet: ")
        assert "\n" not in line
        # What went wrong outside of us has no remedy of ours.
        assert "; " in line or "standard output" in line, line
        assert len(line) < 300


# ---- mistakes that take more than words ----


NO_DEVICE = """
made=$(mktemp -d) && mount -t tmpfs none "$made"
for name in null zero random urandom tty full; do
    touch "$made/$name" && mount --bind "/dev/$name" "$made/$name"
done
mount --rbind "$made" /dev && exec "$@"
"""
OF_KVM = {
    NO_DEVICE: "/dev/kvm is missing: no KVM module is loaded, or the container does not pass the "
    "device in; load the kvm module, or pass the device in (docker run --device /dev/kvm); "
    "'kvmlet doctor' shows what was found",
    'mount --bind /dev/null /dev/kvm && exec "$@"': "/dev/kvm is not a KVM device: Inappropriate "
    "ioctl for device (os error 25); 'kvmlet doctor' shows what was found",
}


@pytest.mark.parametrize("mounts", OF_KVM, ids=["missing", "another device"])
def test_a_machine_without_kvm(mounts: str, tmp_path: pathlib.Path) -> None:
    unshare = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-ec"]
    if os.geteuid() != 0 or subprocess.run([*unshare, "mount -t tmpfs none /mnt"]).returncode != 0:
        pytest.skip("nothing can be mounted here")
    words = [*unshare, mounts, "sh", *kvmlet_argv(["/bin/true"])]
    run = subprocess.run(words, cwd=tmp_path, env=ENV, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (125, f"kvmlet: {OF_KVM[mounts]}\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_kvm_that_may_not_be_opened(package: pathlib.Path) -> None:
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    words += ["/usr/bin/python3", "-m", "kvmlet", "run", "--", "/bin/true"]
    env = {**ENV, "PYTHONPATH": os.fspath(package)}
    run = subprocess.run(words, cwd="/", env=env, capture_output=True, text=True)
    if run.returncode == 0:
        pytest.skip("here everybody may use /dev/kvm")
    assert run.returncode == 125
    # What is said of a start in / comes before.
    (line,) = [line for line in run.stderr.splitlines() if "/dev/kvm" in line]
    assert line.endswith(
        "; join the group that owns it (sudo usermod -aG kvm $USER) and log in again; "
        "'kvmlet doctor' shows what was found"
    )


def test_a_pipe_that_nobody_reads(tmp_path: pathlib.Path) -> None:
    """As in any pipeline: no message, and the status of SIGPIPE."""
    for words in ("syscalls", "run --help", "run -- yes"):
        run = subprocess.run(
            ["/bin/bash", "-c", f"kvmlet {words} | head -n 1 > head; echo ${{PIPESTATUS[0]}}"],
            cwd=tmp_path,
            env={**ENV, "PATH": f"{KVMLET.parent}:{ENV['PATH']}"},
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert (run.stdout.strip() in ("0", "141"), run.stderr) == (True, ""), (words, run)
        assert (tmp_path / "head").read_text() != ""


def test_a_full_disk_beneath_a_tree_of_the_hosts(tmp_path: pathlib.Path) -> None:
    """The program is told ENOSPC; the command adds nothing."""
    full = tmp_path / "full"
    full.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", os.fspath(full)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        script = "head -c 200000 /dev/zero > big; wc -c < big; rm big; echo x > small"
        words = kvmlet_argv(["/bin/sh", "-c", script], ["--write", "."])
        run = subprocess.run(
            words, cwd=full, env=ENV, capture_output=True, text=True, timeout=HANG_S
        )
        assert (run.returncode, run.stdout) == (0, "65536\n")
        assert "No space left on device" in run.stderr
        assert "kvmlet:" not in run.stderr
        assert (full / "small").read_text() == "x\n"
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", full], check=True)


def test_a_start_in_the_home_directory_is_told(tmp_path: pathlib.Path) -> None:
    run = subprocess.run(
        kvmlet_argv(["/bin/pwd"]),
        cwd=tmp_path,
        env={**ENV, "HOME": os.fspath(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert (run.returncode, run.stdout) == (0, "/tmp\n")
    assert run.stderr == (
        f"kvmlet: {tmp_path} is your home directory, which programs do not get: starting in /tmp; "
        "change to a project's directory, or show files by --read\n"
    )
