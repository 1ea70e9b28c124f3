"""Snapshots and their forks where they must not be used, run out of something, or are many."""

from __future__ import annotations

import json
import pathlib
import resource
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import GUESTS, HW, NO_RUNTIMES, repeated
from e2e.warmed import LIMIT_S, PYTHON, Warmed, ask, freeze

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]


# ---- bad input ----


def test_an_ended_program_cannot_be_frozen(guests: pathlib.Path) -> None:
    sandbox = kvmlet.Sandbox(["./exits", "quick", "3"], cwd=guests)
    with pytest.raises(kvmlet.SandboxEnded) as caught:
        sandbox.until_ready(timeout=LIMIT_S)
    assert caught.value.result is not None
    assert caught.value.result.exit_code == 3
    with pytest.raises(kvmlet.SandboxEnded):
        sandbox.freeze()
    sandbox.close()


def test_use_after_close(c_program: Warmed) -> None:
    sandbox = c_program.snapshot.fork()
    sandbox.close()
    sandbox.close()
    uses: list[Callable[[], object]] = [
        lambda: sandbox.send(b"x"),
        lambda: sandbox.recv(timeout=1),
        lambda: sandbox.request(b"x", timeout=1),
        lambda: sandbox.call("add", 1, 2),
        lambda: sandbox.until_ready(timeout=1),
        lambda: sandbox.run_for(0.1),
        lambda: sandbox.generation,
        sandbox.reset,
        sandbox.freeze,
        sandbox.output,
        sandbox.stats,
    ]
    for use in uses:
        with pytest.raises(kvmlet.SandboxClosed) as caught:
            use()
        assert caught.value.remedy


def test_a_closed_snapshot(guests: pathlib.Path) -> None:
    warmed = freeze(["./warm"], guests)
    with warmed.snapshot.fork() as fork:
        warmed.snapshot.close()
        with pytest.raises(kvmlet.SandboxClosed):
            warmed.snapshot.fork()
        for _ in range(3):
            assert ask(fork, "dirty 16") == "dirty 16 wrong 0"
            fork.reset()


def test_a_reset_is_for_forks(guests: pathlib.Path) -> None:
    with kvmlet.Sandbox(["./warm"], cwd=guests) as sandbox:
        with pytest.raises(kvmlet.NotReady):
            sandbox.call("add", 1, 2)
        with pytest.raises(kvmlet.NotAFork):
            sandbox.reset()
        assert ask(sandbox.until_ready(timeout=LIMIT_S), "echo alive") == "alive"


def test_nobody_answers(fork: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.NotReady) as caught:
        fork.recv(timeout=LIMIT_S)
    assert caught.value.remedy
    with pytest.raises(kvmlet.NotReady):
        fork.request(b"silent", timeout=LIMIT_S)
    assert ask(fork, "echo x") == "x"


def test_reset_during_a_run(c_program: Warmed, fork: kvmlet.Sandbox) -> None:
    raised: list[BaseException] = []

    def spin() -> None:
        try:
            fork.request(b"spin", timeout=LIMIT_S)
        except kvmlet.KvmletError as error:
            raised.append(error)

    thread = threading.Thread(target=spin)
    thread.start()
    time.sleep(0.3)
    for use in (fork.reset, fork.output, lambda: fork.request(b"echo x"), fork.close):
        with pytest.raises(kvmlet.SandboxBusy) as caught:
            use()
        assert caught.value.remedy
    fork.interrupt()
    thread.join(LIMIT_S)
    assert [type(error) for error in raised] == [kvmlet.Interrupted]
    fork.reset()
    c_program.check(fork, b"dirty 113")


def test_messages_have_limits(fork: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.MessageTooLong, match="in parts"):
        fork.send(bytes((16 << 20) + 1))
    for _ in range(4):
        fork.send(bytes(16 << 20))
    with pytest.raises(kvmlet.InboxFull):
        fork.send(b"x")
    fork.reset()
    with pytest.raises(kvmlet.UsageError):
        fork.send("text")  # type: ignore[arg-type]
    large = b"echo " + bytes(range(256)) * 4000
    assert fork.request(large, timeout=LIMIT_S) == large[5:]


FEW = """
import json, resource, sys
import kvmlet

snapshot = kvmlet.Sandbox(["./warm"]).until_ready().freeze()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
forks = []
said = ""
try:
    for _ in range(100):
        forks.append(snapshot.fork())
except kvmlet.TooFewDescriptors as error:
    said = str(error)
live = len(forks)
answers = {fork.request(b"count").decode() for fork in forks}
for fork in forks[:5]:
    fork.reset()
    answers.add(fork.request(b"count").decode())
for fork in forks:
    fork.close()
with kvmlet.Pool(snapshot, size=60) as pool:
    results = [pool.request(b"count") for _ in range(300)]
    for result in results:
        try:
            answers.add(result.result().decode())
        except kvmlet.TooFewDescriptors:
            answers.add("few")
    # It goes on: those that have a fork answer.
    last = ""
    for _ in range(100):
        try:
            last = pool.request(b"count").result().decode()
            break
        except kvmlet.TooFewDescriptors:
            continue
print(json.dumps([live, said, sorted(answers), last]))
"""


def test_too_few_descriptors(guests: pathlib.Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FEW], cwd=guests, capture_output=True, text=True, timeout=LIMIT_S * 2
    )
    assert run.returncode == 0, run.stderr[-3000:]
    live, said, answers, last = json.loads(run.stdout)
    assert 5 < live < 64
    assert "ulimit" in said
    assert set(answers) <= {"count 1 8", "few"}
    assert "count 1 8" in answers
    assert last == "count 1 8"


FORKED = """
import os, sys
import kvmlet

snapshot = kvmlet.Sandbox(["./warm"]).until_ready().freeze()
fork = snapshot.fork()
assert fork.request(b"count") == b"count 1 8"
pid = os.fork()
if pid == 0:
    for use in (lambda: fork.request(b"count"), fork.reset, snapshot.fork):
        try:
            use()
        except kvmlet.ForkedProcess as error:
            assert error.remedy
        else:
            os._exit(3)
    # What the child makes itself works.
    with kvmlet.Sandbox(["./warm"]).until_ready().freeze() as mine, mine.fork() as own:
        if own.request(b"count") != b"count 1 8":
            os._exit(4)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
fork.reset()
assert fork.request(b"count") == b"count 1 8"
"""


@pytest.mark.poll
def test_host_fork(guests: pathlib.Path) -> None:
    """VMs do not survive fork(2): the child is told so, the parent goes on."""
    run = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=guests, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert run.returncode == 0, run.stderr[-3000:]


# ---- many at once ----

THOUSAND = """
import json, os, resource, sys, time
import kvmlet

count = int(sys.argv[1])
argv = sys.argv[2:]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

def pss_bytes():
    with open("/proc/self/smaps_rollup") as rollup:
        return next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))

snapshot = kvmlet.Sandbox(argv).until_ready().freeze()
with snapshot.fork() as one:
    expected = []
    for number in range(10):
        expected.append(one.request(b"work %d" % number))
        one.reset()
before = pss_bytes()
start = time.monotonic()
forks = [snapshot.fork() for _ in range(count)]
forked = time.monotonic()
wrong = sum(
    fork.request(b"work %d" % (number % 10)) != expected[number % 10]
    for number, fork in enumerate(forks)
)
answered = time.monotonic()
after = pss_bytes()
for fork in forks:
    fork.reset()
reset = time.monotonic()
wrong += sum(fork.request(b"work 3") != expected[3] for fork in forks)
vms = sum(
    os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:kvm-vm"
    for fd in os.listdir("/proc/self/fd")
    if os.path.islink(f"/proc/self/fd/{fd}")
)
for fork in forks:
    fork.close()
print(json.dumps({
    "wrong": wrong,
    "vms": vms,
    "fork_us": (forked - start) / count * 1e6,
    "answer_us": (answered - forked) / count * 1e6,
    "reset_us": (reset - answered) / count * 1e6,
    "fork_bytes": (after - before) // count,
    "close_us": (time.monotonic() - reset) / count * 1e6,
}))
"""


@pytest.mark.slow
@pytest.mark.default_mode  # they are many, and each makes a few calls
@pytest.mark.timeout(900)
@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_many_live_forks() -> None:
    count = repeated(1000, 0)
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 4 * count:
        pytest.skip(f"needs {4 * count} descriptors")
    run = subprocess.run(
        [sys.executable, "-c", THOUSAND, str(count), *PYTHON],
        cwd=GUESTS,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout)
    print(found)
    assert found["wrong"] == 0
    assert found["vms"] >= count
    # The program has some 20 MiB: what its forks share they do not pay for.
    assert found["fork_bytes"] < 4 << 20, found
