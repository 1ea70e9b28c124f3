"""Programs step by step: messages, calls, freezing, forking, resetting."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, repeated, sized
from e2e.service import tasks

pytestmark = [pytest.mark.poll, pytest.mark.usefixtures("vm")]

PYTHON = "/usr/bin/python3"
READY_S = HANG_S

LATE_S = 2
"""What an interruption may take, with slack: the guest may be in a long call of its own."""

SERVICE = """
import os, sys, time, kvmlet_guest
state = []

def answer(request):
    word, _, rest = request.partition(b" ")
    if word == b"add":
        state.append(rest)
    elif word == b"print":
        print(rest.decode())
        print(rest.decode(), file=sys.stderr)
        sys.stdout.flush()
    elif word == b"file":
        with open("/tmp/file", "ab") as file:
            file.write(rest)
        return open("/tmp/file", "rb").read()
    elif word == b"spin":
        while True:
            pass
    elif word == b"host":
        with open("/dev/urandom", "rb", buffering=0) as file:
            while os.readv(file.fileno(), [bytearray(1 << 20)] * 1024):
                pass
    elif word == b"sleep":
        time.sleep(float(rest))
    elif word == b"exit":
        print("last words", file=sys.stderr)
        sys.exit(int(rest))
    elif word == b"crash":
        os.kill(os.getpid(), 11)
    elif word == b"eat":
        data = [b"x" * (1 << 20) for _ in iter(int, 1)]
    elif word == b"generation":
        return b"%d" % kvmlet_guest.generation()
    elif word == b"random":
        import random
        return b"%r" % random.random()
    elif word == b"size":
        return bytes(int(rest))
    return b",".join(state) or b"-"

kvmlet_guest.serve(answer)
"""


def start(cwd: pathlib.Path, **options: str) -> kvmlet.Sandbox:
    return kvmlet.Sandbox([PYTHON, "-c", SERVICE], cwd=cwd, **options)  # type: ignore[arg-type]


@pytest.fixture
def service(tmp_path: pathlib.Path) -> kvmlet.Sandbox:
    return start(tmp_path).until_ready(READY_S)


@pytest.fixture
def snapshot(service: kvmlet.Sandbox) -> kvmlet.Snapshot:
    return service.freeze()


def test_messages(service: kvmlet.Sandbox) -> None:
    assert service.request(b"add x") == b"x"
    service.send(b"add y")
    service.send(bytearray(b"add z"))
    assert service.recv(HANG_S) == b"x,y"
    assert service.recv(HANG_S) == b"x,y,z"
    assert service.request(b"size 0") == b""
    for size in (1, 4095, 65536, 3_000_000, 16 << 20):
        assert service.request(b"size %d" % size) == bytes(size)
    with pytest.raises(kvmlet.MessageTooLong):
        service.send(bytes((16 << 20) + 1))
    with pytest.raises(kvmlet.NotReady):
        service.recv(HANG_S)
    assert service.request(b"get") == b"x,y,z"
    assert service.generation == 0


def test_output(service: kvmlet.Sandbox) -> None:
    assert service.output() == (b"", b"")
    service.request(b"print abc")
    assert service.output() == kvmlet.Output(b"abc\n", b"abc\n")
    assert service.output() == (b"", b"")
    assert service.stats()["exits"] > 0


def test_generators_of_openssl_are_made_before_the_freeze(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "draws.py"
    program.write_text(
        "import ssl, kvmlet_guest\nkvmlet_guest.serve(lambda _: ssl.RAND_bytes(16))\n",
    )
    draws = []
    with kvmlet.Sandbox([PYTHON, program]).until_ready(READY_S) as made:
        snapshot = made.freeze()
        for _ in range(3):
            fork = snapshot.fork()
            for _ in range(3):
                draws.append(fork.request(b"draw"))
                asked = fork.stats()
                # To make them takes locks; a seed takes random bytes of the kernel's only.
                assert "call_futex" not in asked
                assert asked["call_getrandom"] == 1
                fork.reset()
    assert len(set(draws)) == len(draws) == 9


def test_pages_written_with_what_they_held_are_copied_ahead(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "counts.py"
    program.write_text(
        "import kvmlet_guest\n"
        "pages = bytearray(b'a' * (4 << 20))\n"
        "def answer(_):\n"
        "    for number, at in enumerate(range(0, len(pages), 8192)):\n"
        "        pages[at] = pages[at] if number % 4 else ord('b')\n"
        "    return b'done'\n"
        "kvmlet_guest.serve(answer)\n"
    )
    with kvmlet.Sandbox([PYTHON, program], memory="64m").until_ready(READY_S) as made:
        snapshot = made.freeze()
        forks = [snapshot.fork() for _ in range(3)]
        for fork in forks * 3:
            fork.request(b"")
            fork.reset()
        fork = snapshot.fork()
        fork.request(b"")
        # 512 pages are written, a quarter of them with something else.
        assert fork.stats()["exits_fault"] < 50


def test_forks_and_resets(service: kvmlet.Sandbox) -> None:
    service.request(b"add frozen")
    service.until_ready(READY_S)
    with service.freeze() as snapshot:
        snapshot.prepare(2)
        with snapshot.fork() as one, snapshot.fork() as two:
            assert one.request(b"add one") == b"frozen,one"
            assert two.request(b"add two") == b"frozen,two"
            assert one.request(b"file abc") == b"abc"
            for _ in range(sized(200, 20)):
                one.reset()
                assert one.request(b"add again") == b"frozen,again"
                assert one.request(b"file def") == b"def"
            assert two.request(b"get") == b"frozen,two"
            generations = [one.generation, two.generation]
            one.reset()
            generations.append(one.generation)
            assert len({0, *generations}) == 4
            assert int(one.request(b"generation")) == one.generation
            draws = set()
            for fork in (one, two):
                fork.reset()
                draws.add(fork.request(b"random"))
                fork.reset()
                draws.add(fork.request(b"random"))
            assert len(draws) == 4
    assert snapshot.closed


def test_forks_outlive_their_snapshot(snapshot: kvmlet.Snapshot) -> None:
    fork = snapshot.fork()
    snapshot.close()
    assert fork.request(b"add x") == b"x"
    fork.reset()
    assert fork.request(b"add y") == b"y"
    with pytest.raises(kvmlet.SandboxClosed):
        snapshot.fork()
    fork.close()


def test_bad_requests_end_and_the_next_one_is_clean(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        for _ in range(2):
            with pytest.raises(kvmlet.SandboxEnded, match=r"status 3, .* last words") as caught:
                fork.request(b"exit 3")
            assert caught.value.result is not None
            assert caught.value.result.exit_code == 3
            with pytest.raises(kvmlet.SandboxEnded):
                fork.request(b"get")
            fork.reset()
            assert fork.result is None
            assert fork.request(b"add x") == b"x"
            with pytest.raises(kvmlet.SandboxEnded, match="signal 11"):
                fork.request(b"crash")
            fork.reset()
            assert fork.request(b"get") == b"-"
            with pytest.raises(kvmlet.DeadlineExceeded):
                fork.request(b"spin", timeout=2 if HW else 0.2)
            fork.reset()
            assert fork.request(b"get") == b"-"


def test_memory_limit(tmp_path: pathlib.Path) -> None:
    snapshot = start(tmp_path, memory="48m").until_ready(READY_S).freeze()
    with snapshot, snapshot.fork() as fork:
        with pytest.raises(kvmlet.SandboxEnded) as caught:
            fork.request(b"eat", timeout=HANG_S)
        assert caught.value.result is not None
        assert caught.value.result.reason in ("memory", "exited")
        fork.reset()
        assert fork.request(b"add x") == b"x"


def test_a_step_that_took_too_long_goes_on(service: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.DeadlineExceeded):
        service.request(b"sleep 0.3", timeout=0.05)
    assert service.recv(HANG_S) == b"-"


def test_run_for(tmp_path: pathlib.Path) -> None:
    """A program without a ready point is warmed by time, and frozen wherever it is."""
    program = (
        "import time; print('up', flush=True)\nwhile True: time.sleep(0.01); print(1, flush=1)"
    )
    sandbox = kvmlet.Sandbox([PYTHON, "-c", program], cwd=tmp_path)
    said = b""
    while b"1\n" not in said:
        said += sandbox.run_for("100ms").output().stdout
    with sandbox.freeze() as snapshot, snapshot.fork() as fork:
        assert set(fork.run_for(2 if HW else 0.3).output().stdout) == set(b"1\n")
        with pytest.raises(kvmlet.DeadlineExceeded):
            fork.until_ready(0.1)


def test_not_ready(guests: pathlib.Path) -> None:
    sandbox = kvmlet.Sandbox(["./hello-static"], cwd=guests)
    with pytest.raises(kvmlet.SandboxEnded, match="status 0") as caught:
        sandbox.until_ready(HANG_S)
    assert caught.value.result is not None
    assert caught.value.result.ok
    assert caught.value.result.stdout.startswith(b"hello, world")
    for use in (
        sandbox.freeze,
        sandbox.recv,
        lambda: sandbox.send(b"x"),
        lambda: sandbox.call("f"),
    ):
        with pytest.raises(kvmlet.SandboxEnded):
            use()
    sandbox.close()
    assert sandbox.result is caught.value.result


def test_wrong_states(snapshot: kvmlet.Snapshot, service: kvmlet.Sandbox) -> None:
    fork = snapshot.fork()
    assert fork.request(b"get") == b"-"
    fork.close()
    fork.close()
    for use in (fork.recv, fork.reset, fork.freeze, fork.output, lambda: fork.send(b"x")):
        with pytest.raises(kvmlet.SandboxClosed):
            use()
    assert service.closed  # by freeze


def test_interrupt(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        for request in (b"spin", b"sleep 1000", b"host"):
            timer = threading.Timer(1 if HW else 0.1, fork.interrupt)
            timer.start()
            start = time.monotonic()
            with pytest.raises(kvmlet.Interrupted):
                fork.request(request, timeout=HANG_S)
            assert HW or time.monotonic() - start < LATE_S, request
            timer.join()
            with pytest.raises(kvmlet.Interrupted):
                fork.recv()
            fork.reset()
            assert fork.request(b"get") == b"-"


def test_one_thread_at_a_time(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        caught: list[BaseException] = []

        fork.send(b"spin")

        def work() -> None:
            while not caught:
                try:
                    fork.recv()
                except kvmlet.SandboxBusy:
                    continue  # `stats` below was using it
                except kvmlet.KvmletError as error:
                    caught.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        end = time.monotonic() + HANG_S
        while time.monotonic() < end:
            try:
                fork.stats()
            except kvmlet.SandboxBusy:
                break
            time.sleep(0.001)
        for use in (fork.recv, fork.close, fork.reset, fork.output):
            with pytest.raises(kvmlet.SandboxBusy):
                use()
        fork.interrupt()
        thread.join()
        assert [type(error) for error in caught] == [kvmlet.Interrupted]
        fork.reset()
        assert fork.request(b"get") == b"-"


# ---- calls ----


def test_calls(service: kvmlet.Sandbox) -> None:
    assert service.call("atoi", b"-77", returns=ctypes.c_int) == -77
    assert service.call("labs", -(1 << 40)) == 1 << 40
    assert service.call("strtoull", b"18446744073709551615", None, 10) == -1
    assert service.call("strtoull", b"18446744073709551615", None, 10, returns=ctypes.c_uint64) == (
        (1 << 64) - 1
    )
    assert service.call("getenv", b"HOME", returns=bytes) == b"/tmp"
    # A child that executes a program is not the thread that the call runs on.
    assert service.call("system", b"exit 3", returns=ctypes.c_int) == 3 << 8
    assert service.call("strtod", b"2.5", None, returns=float) == 2.5
    assert service.call("ldexp", 1.5, 4, returns=float) == 24.0
    out = bytearray(6)
    assert service.call("swab", b"badcfe", out, 6, returns=None) is None
    assert out == b"abcdef"
    view = memoryview(bytearray(b"....ab"))
    service.call("swab", b"yx", view[4:], 2, returns=None)
    assert bytes(view) == b"....xy"
    # Between calls the program is where it was.
    assert service.request(b"add x") == b"x"


def test_calls_in_forks(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        for _ in range(sized(50, 5)):
            assert fork.call("setenv", b"NAME", b"value", 1, returns=ctypes.c_int) == 0
            assert fork.call("getenv", b"NAME", returns=bytes) == b"value"
            fork.reset()
            assert fork.call("getenv", b"NAME") == 0
        with pytest.raises(kvmlet.DeadlineExceeded):
            fork.call("sleep", 1000, timeout=0.1)
        fork.reset()
        with pytest.raises(kvmlet.SandboxEnded, match="status 9"):
            fork.call("_exit", 9)
        fork.reset()
        with pytest.raises(kvmlet.SandboxEnded, match="signal 6"):
            fork.call("abort")
        fork.reset()
        assert fork.request(b"get") == b"-"


def test_bad_calls(service: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.UnknownSymbol, match="no_such_function") as caught:
        service.call("no_such_function")
    assert isinstance(caught.value, LookupError)
    with pytest.raises(kvmlet.UsageError):
        service.call("atoi", "text")  # type: ignore[call-overload]
    with pytest.raises(kvmlet.KvmletError):
        service.call("atoi", bytes(64 << 20))
    with pytest.raises(kvmlet.UsageError):
        service.call("atoi", b"5", returns=bytes)  # address 5 is no string
    assert service.call("atoi", b"5") == 5


# ---- the process around them ----

CHILD = """
import os, signal, sys, threading, time
import kvmlet

def open_vms():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            pass
    return len([link for link in links if "kvm-v" in link])

sandbox = kvmlet.Sandbox(["/usr/bin/python3", "-c", sys.argv[1]])
snapshot = sandbox.until_ready(200).freeze()
fork = snapshot.fork()
"""

INTERRUPTED = """
print("waiting", flush=True)
try:
    fork.request(b"spin")
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
fork.reset()
print(fork.request(b"add x"), flush=True)
"""

FORKS = """
before = open_vms()
pid = os.fork()
if pid == 0:
    assert open_vms() < before, "the child holds the parent's VMs"
    for use in (fork.recv, fork.reset, snapshot.fork):
        try:
            use()
        except kvmlet.SandboxClosed:
            pass
        else:
            raise AssertionError(use)
    fork.interrupt()
    again = kvmlet.Sandbox(["/usr/bin/python3", "-c", sys.argv[1]]).until_ready(200).freeze()
    assert again.fork().request(b"add y") == b"y"
    print("child", flush=True)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert fork.request(b"add x") == b"x"
fork.reset()
assert snapshot.fork().request(b"add z") == b"z"
print("parent", flush=True)
"""

LEAVES = """
def work():
    try:
        fork.request(b"spin")
    except kvmlet.Interrupted:
        pass

pool = kvmlet.Pool(snapshot, 2)
for _ in range(5):
    pool.request(b"spin")
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
print("end", flush=True)
"""


def script(body: str, cwd: pathlib.Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD + body, SERVICE],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_keyboard_interrupt(tmp_path: pathlib.Path) -> None:
    with script(INTERRUPTED, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        time.sleep(2 if HW else 0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    assert (out, process.returncode) == (b"KeyboardInterrupt\nb'x'\n", 0), err


def test_a_host_that_forks(tmp_path: pathlib.Path) -> None:
    with script(FORKS, tmp_path) as process:
        out, err = process.communicate(timeout=HANG_S)
    assert (out, process.returncode) == (b"child\nparent\n", 0), err


def test_a_host_that_ends_while_guests_run(tmp_path: pathlib.Path) -> None:
    with script(LEAVES, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"end\n"
        before = time.monotonic()
        out, err = process.communicate(timeout=HANG_S)
        assert time.monotonic() - before < (60 if HW else 10)
    assert (out, err, process.returncode) == (b"", b"", 0)


def test_too_few_descriptors(tmp_path: pathlib.Path) -> None:
    body = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
forks = []
try:
    for _ in range(100):
        forks.append(snapshot.fork())
except kvmlet.TooFewDescriptors as error:
    print("too few", "; " in str(error))
assert forks[0].request(b"add x") == b"x"
forks.pop().close()
assert snapshot.fork().request(b"add x") == b"x"
"""
    with script(body, tmp_path) as process:
        out, err = process.communicate(timeout=HANG_S)
    assert (out, process.returncode) == (b"too few True\n", 0), err


@pytest.mark.slow
def test_nothing_is_left(tmp_path: pathlib.Path) -> None:
    """Sandboxes that come and go leave no descriptor, thread or mapping behind."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(tasks())

    def once() -> None:
        with start(tmp_path).until_ready(READY_S).freeze() as snapshot:
            snapshot.prepare(2)
            forks = [snapshot.fork() for _ in range(4)]
            for fork in forks:
                assert fork.request(b"add x") == b"x"
                fork.close()
            snapshot.fork().request(b"get")  # closed by nobody

    # Emptied VMs are kept for other programs, some from the tests before: their number settles.
    for _ in range(repeated(20, 4, short=6)):
        once()
    before = held()
    for _ in range(repeated(10, 2, short=4)):
        once()
    after = held()
    assert after[0] <= before[0], (before, after)
    assert after[1] <= before[1], (before, after)
