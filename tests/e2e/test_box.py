"""Boxes: files and processes that last over many commands."""

from __future__ import annotations

import gc
import os
import pathlib
import signal
import subprocess
import textwrap
import threading
import time
from typing import Any

import pytest

import kvmlet
import kvmlet.box
from e2e.oracle import LONG

pytestmark = pytest.mark.usefixtures("vm")

in_full = pytest.mark.skipif(not LONG, reason="repeated in full in make test-long")


def stdin(process: kvmlet.Process) -> Any:
    assert process.stdin is not None
    return process.stdin


def stdout(process: kvmlet.Process) -> Any:
    assert process.stdout is not None
    return process.stdout


def sh(box: kvmlet.Box, command: str, **keywords: Any) -> str:
    said: str = box.run(command, shell=True, text=True, check=True, **keywords).stdout
    return said


def test_a_hundred_commands_share_files(box: kvmlet.Box) -> None:
    for index in range(100):
        assert sh(box, f"echo {index} >> log; wc -l < log") == f"{index + 1}\n"
    assert box.files.read_text("log").split() == [str(index) for index in range(100)]
    assert box.stats()["processes"] == 0


def test_commands_see_the_system_and_not_the_caller(box: kvmlet.Box) -> None:
    assert sh(box, "pwd; echo $HOME; ls -A") == "/work\n/work\n"
    assert sh(box, "ls -d /usr/bin /work") == "/usr/bin\n/work\n"
    here = pathlib.Path(__file__)
    assert box.run(["cat", str(here)]).returncode == 1
    with kvmlet.Box(read=[here]) as other:
        assert other.run(["cat", str(here)]).check().stdout == here.read_bytes()


def test_run_has_the_words_of_kvmlet_run(box: kvmlet.Box) -> None:
    assert box.run(["cat"], input="abc").stdout == b"abc"
    assert box.run(["cat"]).stdout == b""
    big = os.urandom(1 << 20)
    assert box.run(["cat"], input=big).stdout == big
    result = box.run(["sh", "-c", "echo out; echo err >&2; exit 3"], text=True)
    assert (result.stdout, result.stderr, result.returncode) == ("out\n", "err\n", 3)
    assert (result.reason, result.args[0]) == ("exited", "sh")
    with pytest.raises(kvmlet.ExitError):
        box.run(["false"], check=True)
    killed = box.run(["sh", "-c", "kill -TERM $$"])
    assert (killed.returncode, killed.signal, killed.reason) == (-15, 15, "signal")
    lines: list[str] = []
    box.run("echo a; echo b", shell=True, text=True, stdout=lines.append)
    assert lines == ["a\n", "b\n"]
    assert box.run("cat >/dev/null", shell=True, input=b"x" * 200_000).ok
    assert box.run(["true"], input=b"x" * 200_000).ok


def test_environment_and_directory(box: kvmlet.Box) -> None:
    assert sh(box, "echo $A", env={"A": "b c"}) == "b c\n"
    assert sh(box, "echo -$A-") == "--\n"
    sh(box, "mkdir -p d/e")
    assert sh(box, "pwd", cwd="d/e") == "/work/d/e\n"
    assert sh(box, "pwd", cwd="/tmp") == "/tmp\n"
    assert sh(box, "pwd") == "/work\n"
    with pytest.raises(kvmlet.UsageError, match="cwd"):
        box.run(["true"], cwd="missing")
    with kvmlet.Box(env={"A": "1", "HOME": "/tmp"}) as other:
        assert sh(other, "echo $A $HOME $B", env={"B": "2"}) == "1 /tmp 2\n"


def test_stats() -> None:
    with kvmlet.Box(memory="64m", disk="32m") as box:
        start = box.stats()
        assert start["files"] == 0
        assert start["memory_limit_bytes"] == 64 << 20
        assert start["files_limit_bytes"] == 32 << 20
        sh(box, "mkdir d; head -c 1000000 /dev/zero > d/file; (sleep 1000 > /dev/null 2>&1 &)")
        now = box.stats()
        assert (now["files"], now["processes"]) == (2, 1)
        assert 1_000_000 <= now["files_bytes"] < 1_100_000
        assert now["memory_peak_bytes"] >= now["memory_bytes"] > start["memory_bytes"]
        assert now["cpu_us"] > start["cpu_us"]
        sh(box, "rm -r d")
        assert box.stats()["files"] == 0


def test_what_cannot_be_started(box: kvmlet.Box) -> None:
    with pytest.raises(kvmlet.ProgramNotFound):
        box.run(["no-such-program"])
    box.files.write("data", "x")
    with pytest.raises(kvmlet.ProgramNotExecutable):
        box.run(["./data"])
    wrongs: list[Any] = ["true", [], [1], ["a\0b"]]
    for wrong in wrongs:
        with pytest.raises(kvmlet.UsageError):
            box.run(wrong)
    with pytest.raises(kvmlet.UsageError):
        box.spawn(["true"], stdin=7)
    assert box.stats()["processes"] == 0
    assert box.run(["true"]).ok


def test_a_timeout_ends_the_command_with_its_children(box: kvmlet.Box) -> None:
    start = time.monotonic()
    command = "setsid sleep 1000 & (sleep 1000 &) ; echo started; sleep 1000"
    result = box.run(command, shell=True, text=True, timeout=0.5)
    assert (result.reason, result.stdout, result.returncode) == ("timeout", "started\n", -9)
    assert time.monotonic() - start < 10
    assert "sleep" not in sh(box, "ps ax -o args=")


def test_a_command_may_leave_a_process_behind(box: kvmlet.Box) -> None:
    sh(box, "sleep 1000 >/dev/null 2>&1 &")
    assert "sleep 1000" in sh(box, "ps ax -o args=")


def test_output_has_a_limit(box: kvmlet.Box) -> None:
    result = box.run(["cat", "/dev/zero"])
    assert (result.reason, len(result.stdout)) == ("output", 16 << 20)
    assert result.truncated
    assert box.run(["true"]).ok


# ---- processes ----


def test_a_process_streams(box: kvmlet.Box) -> None:
    process = box.spawn("for i in 1 2 3; do echo $i; sleep 0.3; done", shell=True, text=True)
    start = time.monotonic()
    assert next(iter(stdout(process))) == "1\n"
    assert time.monotonic() - start < 5
    assert process.poll() is None
    assert list(stdout(process)) == ["2\n", "3\n"]
    assert process.wait(10) == 0
    assert process.returncode == 0


def test_a_process_runs_while_nobody_waits(box: kvmlet.Box) -> None:
    process = box.spawn("sleep 0.2; echo done > part; mv part flag; sleep 1000", shell=True)
    end = time.monotonic() + 20
    while not box.files.exists("flag") and time.monotonic() < end:
        time.sleep(0.05)
    assert box.files.read("flag") == b"done\n"
    process.kill_all()
    assert process.wait(10) == -signal.SIGKILL


def test_a_server_on_pipes(box: kvmlet.Box) -> None:
    with box.spawn(["sed", "-u", "s/^/got /"], text=True) as server:
        for index in range(20):
            stdin(server).write(f"{index}\n")
            assert stdout(server).readline() == f"got {index}\n"
            assert sh(box, "echo between") == "between\n"
        stdin(server).close()
        assert server.wait(10) == 0


def test_bytes_of_a_process(box: kvmlet.Box) -> None:
    with box.spawn(["cat"]) as process:
        stdin(process).write(b"a\0\xffb")
        assert stdout(process).read1(100) == b"a\0\xffb"
    with box.spawn(["sh", "-c", "echo out; echo err >&2"], stderr=subprocess.STDOUT) as process:
        assert process.stderr is None
        assert stdout(process).read() == b"out\nerr\n"
    with box.spawn(["cat"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        assert (process.stdin, process.stdout) == (None, None)
        assert process.wait(10) == 0
    with box.spawn(["true"]) as process:
        process.wait(10)
        with pytest.raises(BrokenPipeError):
            stdin(process).write(b"x")


def test_signals(box: kvmlet.Box) -> None:
    process = box.spawn(["sleep", "1000"])
    with pytest.raises(kvmlet.DeadlineExceeded):
        process.wait(0.1)
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM
    process.kill()
    script = "trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
    process = box.spawn(script, shell=True, text=True)
    assert stdout(process).readline() == "ready\n"
    process.send_signal(signal.SIGUSR1)
    assert stdout(process).read() == "usr1\n"
    assert process.wait(10) == 7
    wrongs: list[Any] = [0, 65, "TERM", True]
    for wrong in wrongs:
        with pytest.raises(kvmlet.UsageError):
            process.send_signal(wrong)


def test_a_process_with_a_time_limit(box: kvmlet.Box) -> None:
    start = time.monotonic()
    process = box.spawn("setsid sleep 1000 & sleep 1000", shell=True, timeout=0.5)
    quick = box.spawn(["true"], timeout=60)
    assert quick.wait(20) == 0
    assert process.wait(20) == -signal.SIGKILL
    assert time.monotonic() - start < 10
    assert (process.timed_out, quick.timed_out) == (True, False)
    assert settled(box)
    # Nobody has it, and what it started outlives it.
    box.spawn("sleep 1000 & exit 0", shell=True, timeout="300ms").wait(20)
    gc.collect()
    assert settled(box)
    box.spawn(["sleep", "1000"], timeout=0.2)
    box.reset()
    time.sleep(0.3)
    assert box.run(["true"]).ok
    with pytest.raises(kvmlet.UsageError, match="timeout"):
        box.spawn(["true"], timeout=0)


def test_deadlines_need_one_thread() -> None:
    def threads() -> int:
        return sum(each.name == "kvmlet-deadlines" for each in threading.enumerate())

    with kvmlet.Box() as box:
        sleepers = [box.spawn(["sleep", "1000"], timeout=0.4) for _ in range(10)]
        assert threads() == 1
        assert [sleeper.wait(20) for sleeper in sleepers] == [-signal.SIGKILL] * 10
        # Its box is gone before its time.
        box.spawn(["sleep", "1000"], timeout=300)
    end_s = time.monotonic() + 20
    while threads() and time.monotonic() < end_s:
        time.sleep(0.02)
    assert threads() == 0


# ---- snapshots ----


def test_forks_go_on_apart(box: kvmlet.Box) -> None:
    box.files.write("seed", "common")
    counter = box.spawn(
        "n=0; while read line; do n=$((n+1)); echo $line $n; done", shell=True, text=True
    )
    stdin(counter).write("first\n")
    assert stdout(counter).readline() == "first 1\n"
    with box.snapshot() as snapshot:
        forks = snapshot.fork(3)
    for index, fork in enumerate(forks):
        fork.files.write("secret", f"secret {index}")
        (process,) = fork.processes
        stdin(process).write(f"fork{index}\n")
        assert stdout(process).readline() == f"fork{index} 2\n"
    for index, fork in enumerate(forks):
        assert sh(fork, "cat seed; ls; cat secret") == f"commonsecret\nseed\nsecret {index}"
        assert (
            fork.run(["grep", "-rq", f"secret {(index + 1) % 3}", "/work", "/tmp"]).exit_code == 1
        )
    assert box.files.list() == ["seed"]
    stdin(counter).write("here\n")
    assert stdout(counter).readline() == "here 2\n"
    (again,) = forks[0].fork()
    assert again.files.read("secret") == b"secret 0"
    for fork in (*forks, again):
        fork.close()


def test_reset(box: kvmlet.Box) -> None:
    old = box.spawn(["sleep", "1000"])
    box.files.write("x", "1")
    box.reset()
    assert box.files.list() == []
    assert "sleep" not in sh(box, "ps ax -o args=")
    with pytest.raises(kvmlet.BoxWasReset):
        old.poll()
    box.files.write("x", "kept")
    with box.spawn(["cat"]) as cat:
        box.snapshot().close()
        stdin(cat).write(b"lost")
    box.reset()
    (cat,) = box.processes
    stdin(cat).write(b"x")
    assert stdout(cat).read1(10) == b"x"
    for index in range(5):
        box.files.write("x", f"changed {index}")
        box.spawn(["sleep", "1000"])
        box.reset()
        assert sh(box, "cat x; ps ax -o args= | grep -c '^sleep' || true") == "kept0\n"


# ---- hostile commands ----


def test_the_box_outlives_hostile_commands() -> None:
    with kvmlet.Box(disk="100m") as box:
        outlives_hostile_commands(box)


def outlives_hostile_commands(box: kvmlet.Box) -> None:
    box.run("kill -9 -1; kill -9 2 1; kill -STOP 2; kill -9 -2", shell=True, timeout=10)
    assert sh(box, "echo alive") == "alive\n"
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    result = box.run(["python3", "-c", bomb], timeout=3)
    assert result.reason == "timeout"
    assert sh(box, "echo alive") == "alive\n"
    assert box.stats()["processes"] == 0
    full = box.run("cat /dev/zero > /tmp/full", shell=True, text=True, timeout=60)
    assert "No space left" in full.stderr
    box.files.remove("/tmp/full")
    assert sh(box, "echo alive") == "alive\n"
    sh(box, "prlimit --pid 2 --nofile=1:1 || true")
    assert sh(box, "echo alive") == "alive\n"


def test_a_hog_is_killed_and_the_box_lives(box: kvmlet.Box) -> None:
    server = box.spawn(["cat"])
    hog = "x = []\nwhile True: x.append(bytearray(b'x' * 1_000_000))"
    result = box.run(["python3", "-c", hog], timeout=60)
    # Its allocator or the limit: either way it is over.
    assert result.reason in ("memory", "exited")
    assert not result.ok
    stdin(server).write(b"x")
    assert stdout(server).read1(10) == b"x"
    assert box.run(["true"]).ok


def test_zombies_do_not_pile_up(box: kvmlet.Box) -> None:
    sh(box, "for i in $(seq 300); do (true &) ; done")
    assert box.stats()["processes"] == 0


def test_a_box_that_is_full_says_so() -> None:
    with kvmlet.Box(max_procs=3) as box:
        sleepers = [box.spawn(["sleep", "1000"]) for _ in range(3)]
        with pytest.raises(kvmlet.BoxFull, match="processes"):
            box.run(["true"])
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait(10)
        assert box.run(["true"]).ok


def settled(box: kvmlet.Box) -> bool:
    """True once nothing is left of its commands."""
    end_s = time.monotonic() + 20
    while box.stats()["processes"] and time.monotonic() < end_s:
        time.sleep(0.01)
    return box.stats()["processes"] == 0


def test_a_sibling_of_a_command_is_no_child_of_the_box() -> None:
    # clone(CLONE_PARENT | SIGCHLD)
    script = """
        import ctypes, os
        if ctypes.CDLL(None).syscall(56, 0x8000 | 17, 0, 0, 0, 0) == 0:
            os._exit(os.getppid() != 1)
    """
    with kvmlet.Box(max_procs=3) as box:
        for _ in range(5):
            box.run(["python3", "-c", textwrap.dedent(script)], check=True)
            assert settled(box)


def test_commands_cannot_look_into_the_holder(box: kvmlet.Box) -> None:
    script = """
        import ctypes, os, errno
        libc = ctypes.CDLL(None, use_errno=True)
        def refused(*args):
            args = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
            return libc.syscall(*args) == -1 and ctypes.get_errno() == errno.EPERM
        buffer = ctypes.create_string_buffer(8)
        own = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
        peer = (ctypes.c_size_t * 2)(0x102000, 8)
        assert refused(310, 2, own, 1, peer, 1, 0), "process_vm_readv"
        assert refused(311, 2, own, 1, peer, 1, 0), "process_vm_writev"
        assert refused(312, 2, os.getpid(), 0, 0, 0), "kcmp"
        pidfd = os.pidfd_open(2)
        for number in range(20):
            assert refused(438, pidfd, number, 0), "pidfd_getfd"
    """
    result = box.run(["python3", "-c", textwrap.dedent(script)], text=True)
    assert result.ok, result.stderr


def test_all_output_of_a_large_pipe(box: kvmlet.Box) -> None:
    script = """
        import fcntl, os
        for number in (1, 2):
            fcntl.fcntl(number, 1031, 1 << 20)  # F_SETPIPE_SZ
        for number in (1, 2):
            assert os.write(number, b"x" * (1 << 20)) == 1 << 20
    """
    for _ in range(5):
        result = box.run(["python3", "-c", textwrap.dedent(script)], check=True)
        assert (len(result.stdout), len(result.stderr)) == (1 << 20, 1 << 20)


def test_threads_wait_for_one_process(box: kvmlet.Box) -> None:
    for _ in range(20):
        process = box.spawn(["sleep", "0.02"])
        codes: list[int] = []

        def wait(process: kvmlet.Process = process, codes: list[int] = codes) -> None:
            codes.append(process.wait(20))

        def poll(process: kvmlet.Process = process, codes: list[int] = codes) -> None:
            while process.poll() is None:
                time.sleep(0.001)
            codes.append(process.wait())

        threads = [threading.Thread(target=each) for each in (wait, wait, poll, poll)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert codes == [0] * 4


def test_a_dropped_process_is_waited_for(box: kvmlet.Box) -> None:
    for _ in range(3):
        box.spawn(["true"])
    gc.collect()
    end_s = time.monotonic() + 20
    while box.stats()["processes"] and time.monotonic() < end_s:
        box.run(["true"])
    assert box.stats()["processes"] == 0


def test_the_host_reads_at_the_memory_limit() -> None:
    script = """
        import os, time
        file = os.open("/dev/shm/full", os.O_WRONLY | os.O_CREAT)
        try:
            while os.write(file, bytes(4096)):
                pass
        except OSError:
            os.write(1, b"full")
        time.sleep(1000)
    """
    with kvmlet.Box(memory="48m") as box:
        sh(box, "head -c 100000 /dev/zero > data")
        hog = box.spawn(["python3", "-c", textwrap.dedent(script)])
        assert stdout(hog).read1(10) == b"full"
        assert box.files.read("data") == bytes(100_000)


# ---- use ----


def test_after_close() -> None:
    box = kvmlet.Box()
    process = box.spawn(["cat"])
    box.close()
    box.close()
    assert box.closed
    for use in (
        lambda: box.run(["true"]),
        lambda: box.spawn(["true"]),
        box.files.list,
        box.snapshot,
        box.reset,
        box.stats,
        process.wait,
        lambda: stdin(process).write(b"x"),
        process.kill,
    ):
        with pytest.raises(kvmlet.SandboxClosed) as info:
            use()
        assert info.value.remedy
    stdout(process).close()


def test_a_close_ends_waits() -> None:
    box = kvmlet.Box()
    process = box.spawn(["sleep", "1000"])
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            process.wait()
        except kvmlet.KvmletError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.2)
    box.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(errors[0], kvmlet.SandboxClosed)


def test_in_a_forked_process() -> None:
    box = kvmlet.Box()
    box.spawn(["sleep", "1000"])
    child = os.fork()
    if child == 0:
        status = 1
        try:
            box.run(["true"])
        except kvmlet.ForkedProcess:
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert box.run(["true"]).ok
    box.close()


@in_full
def test_ten_boxes_in_threads_leak_nothing() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def threads_of_boxes() -> int:
        names = [path.read_text() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
        return names.count("kvmlet-box\n")

    def work(index: int, commands: int, failures: list[BaseException]) -> None:
        try:
            with kvmlet.Box(memory="64m") as box:
                for step in range(commands):
                    assert sh(box, f"echo {index} {step}") == f"{index} {step}\n"
        except BaseException as error:
            failures.append(error)

    def ten(commands: int) -> None:
        failures: list[BaseException] = []
        threads = [threading.Thread(target=work, args=(i, commands, failures)) for i in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures

    ten(commands=10)
    before = descriptors()
    ten(commands=100)
    assert descriptors() <= before
    assert threads_of_boxes() == 0


def test_many_spawns_leave_nothing(box: kvmlet.Box) -> None:
    for _ in range(100):
        with box.spawn(["true"]) as process:
            stdout(process).read()
        assert process.returncode == 0
    assert box.stats()["processes"] == 0
    first = box.stats()["memory_bytes"]
    for _ in range(100):
        box.run(["true"])
    assert box.stats()["memory_bytes"] <= first + 65536


def test_the_examples_run() -> None:
    of_module = textwrap.dedent((kvmlet.box.__doc__ or "").partition("\n\n")[2])
    for code, expected in ((of_module, 2),):
        checked = 0
        lines = []
        for line in code.splitlines():
            # A line that ends in a value says what its expression gives.
            body, _, said = line.partition("  # ")
            indent = body[: len(body) - len(body.lstrip())]
            if said.startswith(('"', 'b"')):
                lines.append(f"{indent}assert {body.strip()} == {said}")
                checked += 1
            else:
                lines.append(body)
        exec(compile("\n".join(lines), "example", "exec"), {"kvmlet": kvmlet})
        assert checked == expected


def test_a_dropped_process_is_no_zombie_of_forks(box: kvmlet.Box) -> None:
    box.spawn(["true"])
    gc.collect()
    with box.snapshot() as snapshot:
        [fork] = snapshot.fork()
    with fork:
        # Each start of a command waits for those that nobody has.
        for _ in range(20):
            if fork.stats()["processes"] == 0:
                break
            fork.run(["sleep", "0.05"])
        assert fork.stats()["processes"] == 0
        assert fork.processes == []


def test_a_status_as_a_shell_has_it() -> None:
    with kvmlet.Box() as box:
        ends = [box.run(words, shell=True) for words in ("exit 3", "kill -TERM $$")]
        ends.append(box.run(["sleep", "60"], timeout=0.1))
    assert [end.shell_status for end in ends] == [3, 143, 137]
