"""Exit statuses, and one line for every mistake: never a traceback, never a hang."""

from __future__ import annotations

import json
import keyword
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import pytest

from e2e.oracle import ENV, KVMLET, Ended, command, in_vm, kvmlet_argv

# Nearly all of it is about what happens before a program runs, or instead.
pytestmark = [pytest.mark.default_mode, pytest.mark.usefixtures("vm")]


def one_line(run: Ended, status: int | tuple[int, ...], *words: str) -> None:
    """The run failed with `status` and said so in one line that has all of `words`."""
    wanted = (status,) if isinstance(status, int) else status
    assert run.status in wanted, run
    assert run.stdout == b"", run
    text = run.stderr.decode()
    assert text.startswith("kvmlet: "), run
    assert text.count("\n") == 1, run
    assert text.endswith("\n"), run
    assert "Traceback" not in text
    for word in words:
        assert word in text, run


@pytest.mark.parametrize("status", [0, 1, 2, 123, 124, 125, 126, 127, 128, 200, 255])
def test_the_status_passes_through(guests: pathlib.Path, status: int) -> None:
    run = in_vm(["./exits", "quick", str(status)], cwd=guests)
    assert (run.status, run.guest_stderr) == (status, b"")


def test_no_dashes_are_needed_and_options_after_the_program_are_its_own(
    guests: pathlib.Path,
) -> None:
    run = command([KVMLET, "run", "./hello-static", "--timeout", "x", "--", "-h"], cwd=guests)
    assert (run.stdout, run.status) == (b"hello, world (5)\n--timeout\nx\n--\n-h\n", 0)


def test_the_module_leaves_the_current_directory_alone(tmp_path: pathlib.Path) -> None:
    for name in ("argparse", "difflib", "json", "_native", "tomllib"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    words = [sys.executable, "-m", "kvmlet", "run", "--", "echo", "hello"]
    run = command(words, cwd=tmp_path)
    assert (run.stdout, run.status) == (b"hello\n", 0), run
    # Python itself imports this one, before any line of ours.
    own = pathlib.Path(keyword.__file__)
    (tmp_path / "keyword.py").write_text(own.read_text())
    one_line(command(words, cwd=tmp_path), 125, "keyword.py", "python -P -m kvmlet")
    words.insert(1, "-P")
    assert command(words, cwd=tmp_path).stdout == b"hello\n"


# ---- programs that cannot be run ----


@pytest.mark.parametrize("name", ["no-such-program", "./no-such-file", "/usr/no/such/path"])
def test_missing_program(tmp_path: pathlib.Path, name: str) -> None:
    one_line(in_vm([name], cwd=tmp_path), 127, name)


def test_empty_name(tmp_path: pathlib.Path) -> None:
    one_line(in_vm([""], cwd=tmp_path), (125, 127))


@pytest.mark.parametrize("name", ["/usr/bin", ".", "./"])
def test_directory(tmp_path: pathlib.Path, name: str) -> None:
    one_line(in_vm([name], cwd=tmp_path), 126, "director")


def test_file_as_a_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    one_line(in_vm(["./file/x"], cwd=tmp_path), (126, 127))


def test_not_executable(tmp_path: pathlib.Path) -> None:
    shutil.copy("/bin/true", tmp_path / "plain")
    (tmp_path / "plain").chmod(0o644)
    one_line(in_vm(["./plain"], cwd=tmp_path), 126, "plain")


def test_outside_what_may_be_read(tmp_path: pathlib.Path) -> None:
    """A program that is named may be run, wherever it lies; one below /etc may not."""
    room = tmp_path / "room"
    room.mkdir()
    shutil.copy("/bin/true", tmp_path / "program")
    assert in_vm(["../program"], cwd=room).status == 0
    assert in_vm([tmp_path / "program"], cwd=room).status == 0
    (room / "link").symlink_to("../program")
    assert in_vm(["./link"], cwd=room).status == 0
    (room / "away").symlink_to("/etc/init.d/none")
    one_line(in_vm(["./away"], cwd=room), (126, 127), "away")
    one_line(in_vm(["/etc/shadow"], cwd=room), (126, 127), "shadow")


ELF = pathlib.Path("/bin/true").read_bytes()


def _patched(offset: int, data: bytes) -> bytes:
    return ELF[:offset] + data + ELF[offset + len(data) :]


BAD_FILES = {
    "empty": b"",
    "text": b"just some text\n",
    "one-byte": b"\x7f",
    "magic-only": b"\x7fELF",
    "half-a-header": ELF[:40],
    "header-only": ELF[:64],
    "cut-in-program-headers": ELF[:200],
    "cut-in-segments": ELF[:5000],
    "arm": _patched(18, struct.pack("<H", 183)),
    "32-bit": _patched(4, b"\x01"),
    "big-endian": _patched(5, b"\x02"),
    "object-file": _patched(16, struct.pack("<H", 1)),
    "no-program-headers": _patched(56, struct.pack("<H", 0)),
    "program-headers-past-the-end": _patched(32, struct.pack("<Q", 1 << 40)),
    "program-headers-overflow": _patched(32, struct.pack("<Q", (1 << 64) - 8)),
    "many-program-headers": _patched(56, struct.pack("<H", 65535)),
    "odd-program-header-size": _patched(54, struct.pack("<H", 1)),
    "interpreter-line-empty": b"#!\n",
    "interpreter-line-missing-file": b"#!/no/such/interpreter\n",
    "interpreter-line-directory": b"#!/usr/bin\n",
    "interpreter-line-unreadable": b"#!/etc/shadow\n",
    "interpreter-line-out-of-reach": b"#!/root/bin/interpreter\n",
    "interpreter-line-itself": b"#!./program\n",
    "interpreter-line-nul": b"#!/bin/\0sh\n",
    "random": bytes(i * 7 % 256 for i in range(5000)),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "program").write_bytes(BAD_FILES[name])
    (tmp_path / "program").chmod(0o755)
    run = in_vm(["./program"], cwd=tmp_path)
    # A missing interpreter is not found, whichever file names it; all else cannot be executed.
    one_line(run, (126, 127) if "interpreter" in name else 126)


def test_missing_dynamic_loader(tmp_path: pathlib.Path, guests: pathlib.Path) -> None:
    shutil.copy(guests / "badinterp", tmp_path)
    one_line(in_vm(["./badinterp"], cwd=tmp_path), (126, 127), "no-such-ld.so")


def test_unreadable_dynamic_loader(tmp_path: pathlib.Path, guests: pathlib.Path) -> None:
    data = (guests / "badinterp").read_bytes()
    old = b"/usr/lib/no-such-ld.so\0"
    assert old in data
    (tmp_path / "program").write_bytes(data.replace(old, b"/etc/shadow".ljust(len(old), b"\0")))
    (tmp_path / "program").chmod(0o755)
    one_line(in_vm(["./program"], cwd=tmp_path), (126, 127), "/etc/shadow")


def test_special_file(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o755)
    one_line(in_vm(["./fifo"], cwd=tmp_path), 126, "fifo")


def test_too_many_arguments(tmp_path: pathlib.Path) -> None:
    """Linux refuses a single argument of 128 KiB or more (execve(2))."""
    code = (
        "import kvmlet\n"
        "try:\n"
        "    print(kvmlet.run(['true', 'x' * (200 << 10)]).exit_code)\n"
        "except kvmlet.KvmletError as error:\n"
        "    print(type(error).__name__)\n"
    )
    run = command([sys.executable, "-c", code], cwd=tmp_path)
    assert run.status == 0, run
    assert run.stdout.strip() != b"0"
    assert b"Traceback" not in run.stderr


# ---- bad options ----


@pytest.mark.parametrize(
    "options",
    [
        ["--memory", "lots"],
        ["--memory", ""],
        ["--memory", "-1"],
        ["--memory", "0"],
        ["--memory", "1x"],
        ["--memory", "99999999999g"],
        ["--timeout", "soon"],
        ["--timeout", ""],
        ["--timeout", "-1s"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
        ["--timeout", "1parsec"],
        ["--timeout", "99999999999999999999h"],
        ["--calls", "fast"],
        ["--calls", ""],
        ["--calls", "EXIT"],
        ["--stats=xml"],
        ["--no-such-option"],
        ["--memory"],
        ["--calls"],
    ],
    ids="=".join,
)
def test_bad_option(tmp_path: pathlib.Path, options: list[str]) -> None:
    program = [] if options in (["--memory"], ["--calls"]) else ["--", "true"]
    run = command([KVMLET, "run", *options, *program], cwd=tmp_path)
    one_line(run, 125)


def test_bad_environment(tmp_path: pathlib.Path) -> None:
    env = {**ENV, "KVMLET_CALLS": "fast"}
    run = command([KVMLET, "run", "--", "true"], cwd=tmp_path, env=env)
    one_line(run, 125, "KVMLET_CALLS", "auto", "exit", "poll")


# ---- how calls travel ----


@pytest.mark.parametrize("mode", ["auto", "exit", "poll"])
def test_calls(guests: pathlib.Path, mode: str) -> None:
    run = in_vm(["./hello-static"], cwd=guests, options=["--calls", mode])
    assert (run.stdout, run.status) == (b"hello, world (1)\n", 0)
    assert run.guest_stderr == b""
    if mode != "poll":
        assert run.own_lines == []


def test_polling_on_one_cpu_is_warned_of(guests: pathlib.Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    pinned = ["taskset", "-c", str(cpu), *kvmlet_argv(["./hello-static"], ["--calls", "poll"])]
    run = command(pinned, cwd=guests)
    assert (run.stdout, run.status) == (b"hello, world (1)\n", 0)
    (line,) = run.own_lines
    assert "one CPU only" in line
    assert run.guest_stderr == b""


def test_too_little_memory(tmp_path: pathlib.Path) -> None:
    for size in ("4k", "1m", "4095k"):
        run = command([KVMLET, "run", "--memory", size, "--", "true"], cwd=tmp_path)
        one_line(run, 125, f"--memory: '{size}' is too small; the least is 4m")


def test_no_program(tmp_path: pathlib.Path) -> None:
    one_line(command([KVMLET, "run"], cwd=tmp_path), 125)
    one_line(command([KVMLET, "run", "--"], cwd=tmp_path), 125)
    one_line(command([KVMLET, "nonsense"], cwd=tmp_path), 125)


def test_a_directory_that_is_gone(tmp_path: pathlib.Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"cd {gone} && rmdir {gone} && exec {KVMLET} run -- true"
    one_line(command(["/bin/sh", "-c", script], cwd=tmp_path), 125)


# ---- no usable KVM ----


def _without_kvm(tmp_path: pathlib.Path, set_up: str, words: list[str]) -> Ended:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("hiding /dev/kvm takes root and unshare")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("mount namespaces are not allowed here")
    script = f'set -e; {set_up}; exec "$@"'
    return command(["unshare", "-m", "/bin/sh", "-c", script, "sh", *words], cwd=tmp_path)


NO_KVM = {
    "missing": "mount -t tmpfs none /dev",
    "not-kvm": "mount --bind /dev/null /dev/kvm",
    "a-file": "touch not-kvm && mount --bind not-kvm /dev/kvm",
}


@pytest.mark.parametrize("name", NO_KVM)
def test_without_kvm(tmp_path: pathlib.Path, name: str) -> None:
    run = _without_kvm(tmp_path, NO_KVM[name], kvmlet_argv(["true"]))
    one_line(run, 125, "kvm")


@pytest.mark.parametrize("name", NO_KVM)
def test_doctor_without_kvm(tmp_path: pathlib.Path, name: str) -> None:
    run = _without_kvm(tmp_path, NO_KVM[name], [str(KVMLET), "doctor"])
    assert run.status == 1, run
    assert b"Traceback" not in run.stderr
    assert b"to do" in run.stdout
    run = _without_kvm(tmp_path, NO_KVM[name], [str(KVMLET), "doctor", "--json"])
    assert run.status == 1
    assert json.loads(run.stdout)["vm_ran"] is False


def test_without_permission_for_kvm(tmp_path: pathlib.Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    started = subprocess.run([*nobody, KVMLET, "--version"], cwd="/", env=ENV, capture_output=True)
    if os.geteuid() != 0 or started.returncode != 0:
        pytest.skip("another user cannot start kvmlet from where it is installed")
    # A directory that is nobody's home, and that they may be in.
    set_up = "mknod kvm c 10 232 && chmod 600 kvm && mount --bind kvm /dev/kvm"
    set_up += " && mount -t tmpfs none /mnt && mkdir -m 755 /mnt/work && cd /mnt/work"
    run = _without_kvm(tmp_path, set_up, [*nobody, *kvmlet_argv(["true"])])
    one_line(run, 125, "/dev/kvm")


# ---- the other commands ----


def test_doctor(tmp_path: pathlib.Path) -> None:
    run = command([KVMLET, "doctor"], cwd=tmp_path)
    assert run.status == 0, run
    run = command([KVMLET, "doctor", "--json"], cwd=tmp_path)
    assert run.status == 0, run
    found = json.loads(run.stdout)
    assert found["kvm"] == "ok"
    assert found["vm_ran"] is True
    assert found["kvm_kind"] in ("hardware", "software")


@pytest.mark.hw
@pytest.mark.skipif(os.environ.get("KVMLET_HW") != "1", reason="this machine's KVM may be either")
def test_doctor_knows_hardware(tmp_path: pathlib.Path) -> None:
    run = command([KVMLET, "doctor", "--json"], cwd=tmp_path)
    assert json.loads(run.stdout)["kvm_kind"] == "hardware"


def test_syscalls_lists_the_table(tmp_path: pathlib.Path) -> None:
    run = command([KVMLET, "syscalls", "--json"], cwd=tmp_path)
    assert run.status == 0, run
    text = run.stdout.decode()
    for name in ("read", "mmap", "futex", "clock_gettime", "rt_sigaction"):
        assert f'"{name}"' in text


def test_version(tmp_path: pathlib.Path) -> None:
    run = command([KVMLET, "--version"], cwd=tmp_path)
    assert run.status == 0
    assert run.stdout.startswith(b"kvmlet ")


def test_stats(guests: pathlib.Path) -> None:
    run = in_vm(["./hello-static"], cwd=guests, options=["--stats=json"])
    assert (run.stdout, run.status) == (b"hello, world (1)\n", 0)
    lines = run.stderr.decode().splitlines()
    assert len(lines) == 1
    text = json.dumps(json.loads(lines[0]))
    assert '"syscalls"' in text
    assert '"exits"' in text
    run = in_vm(["./hello-static"], cwd=guests, options=["--stats"])
    assert b"exits" in run.stderr
    assert run.stdout == b"hello, world (1)\n"


def test_trace(guests: pathlib.Path) -> None:
    run = in_vm(["./hello-static"], cwd=guests, options=["--trace"])
    assert (run.stdout, run.status) == (b"hello, world (1)\n", 0)
    assert b"write(1, " in run.stderr
    assert b"exit_group(0" in run.stderr


def test_a_trace_in_a_file(tmp_path: pathlib.Path) -> None:
    code = "open('f', 'w').close(); import mmap; mmap.mmap(-1, 4096)"
    argv = ["/usr/bin/python3", "-c", code]
    run = in_vm(argv, cwd=tmp_path, options=["--trace=calls", "-q"])
    assert (run.status, b"openat" in run.stderr) == (0, False), run
    text = (tmp_path / "calls").read_text()
    assert '"f", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0o666) = ' in text
    assert "PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS" in text
    run = in_vm(argv, cwd=tmp_path, options=["--trace=no/where"])
    assert run.status == 125
    assert run.own_lines[0].startswith("kvmlet: --trace=no/where: No such file or directory")
    run = in_vm(argv, cwd=tmp_path, options=["--trace="])
    assert run.status == 125
    assert run.own_lines[0].startswith("kvmlet: --trace=: no file is named")


def test_cpu_time(tmp_path: pathlib.Path) -> None:
    run = in_vm(["sh", "-c", "while :; do :; done"], cwd=tmp_path, options=["--cpu-time", "300ms"])
    assert run.status == 152
    assert run.own_lines == ["kvmlet: ended by the limit on CPU time; --cpu-time raises it"]


def run_kvmlet(*words: str, cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([KVMLET, *words], cwd=cwd, capture_output=True, text=True, env=ENV)


def test_a_policy_from_a_file(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a").write_text("content\n")
    work = tmp_path / "work"
    work.mkdir()
    file = tmp_path / "policy.toml"
    file.write_text('read = ["data"]\n[env]\nA = "b"\n[limits]\nmemory = "64m"\ntimeout = "1m"\n')
    command = f"cat {data}/a; echo $A $B"
    done = run_kvmlet(
        "run", "--policy", str(file), "-e", "B=c", "--", "sh", "-c", command, cwd=work
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "content\nb c\n", "")
    shown = run_kvmlet("run", "--policy", str(file), "--memory", "1g", "--print-policy", cwd=work)
    assert shown.returncode == 0
    assert shown.stdout == (
        f'read = ["{data}"]\n\n[env]\nA = "b"\n\n[limits]\ntimeout = "60s"\nmemory = "1g"\n'
    )
    file.write_text("[limits]\nspeed = 1\n")
    wrong = run_kvmlet("run", "--policy", str(file), "--", "true", cwd=work)
    assert wrong.returncode == 125
    assert wrong.stderr.startswith(f"kvmlet: {file}:2:1: no limit 'speed'")
    assert wrong.stderr.count("\n") == 1
