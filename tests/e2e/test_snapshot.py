"""Freeze, fork, reset, call: one warmed program, any number of clean requests."""

from __future__ import annotations

import ctypes
import json
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import kvmlet
from e2e.oracle import GUESTS, HW, NO_RUNTIMES, repeated, sized
from e2e.service import HostState, native_answers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]

PYTHON = ["/usr/bin/python3", "warm.py"]
LIMIT_S = 400 if HW else 60
"""For what should take no time at all."""


@dataclass
class Warmed:
    """A frozen program and how to run it natively."""

    argv: list[str]
    cwd: pathlib.Path
    snapshot: kvmlet.Snapshot
    known: dict[bytes, bytes] = field(default_factory=dict)

    def native(self, request: bytes) -> bytes:
        """The program's native answer if this is its first request."""
        if request not in self.known:
            (self.known[request],) = native_answers(self.argv, cwd=self.cwd, messages=[request])
        return self.known[request]

    def check(self, sandbox: kvmlet.Sandbox, request: bytes) -> None:
        """`sandbox`, a clean fork, answers as the native program does."""
        assert sandbox.request(request, timeout=LIMIT_S) == self.native(request)


def freeze(argv: list[str], cwd: pathlib.Path, memory: str = "512m") -> Warmed:
    """Warm up a program and freeze it."""
    sandbox = kvmlet.Sandbox(argv, cwd=cwd, memory=memory)
    return Warmed(argv, cwd, sandbox.until_ready(timeout=LIMIT_S).freeze())


@pytest.fixture(scope="module")
def c_program(guests: pathlib.Path) -> Iterator[Warmed]:
    warmed = freeze(["./warm"], guests, memory="96m")
    yield warmed
    warmed.snapshot.close()


@pytest.fixture(scope="module")
def python_warmed() -> Iterator[Warmed]:
    if HW:
        pytest.skip(NO_RUNTIMES)
    warmed = freeze(PYTHON, GUESTS)
    yield warmed
    warmed.snapshot.close()


@pytest.fixture(scope="module")
def go_program(guests: pathlib.Path) -> Iterator[Warmed]:
    if HW:
        pytest.skip(NO_RUNTIMES)
    if shutil.which("go") is None and not (guests / "warm-go").exists():
        pytest.skip("no Go compiler here: apt-get install golang-go")
    warmed = freeze(["./warm-go"], guests)
    yield warmed
    warmed.snapshot.close()


@pytest.fixture
def fork(c_program: Warmed) -> Iterator[kvmlet.Sandbox]:
    with c_program.snapshot.fork() as sandbox:
        yield sandbox


def ask(sandbox: kvmlet.Sandbox, request: str) -> str:
    """The answer as text."""
    return sandbox.request(request.encode(), timeout=LIMIT_S).decode()


# ---- many requests ----


PROGRAMS = {
    "c": (
        "c_program",
        ["echo hello", "count", "dirty 1", "dirty 113", "churn 300", "dirty 16", "what"],
    ),
    "python": ("python_warmed", ["echo hello", "count", "work 3", "work 40", "work 99"]),
    "go": ("go_program", ["echo hello", "count", "work 3", "work 40"]),
}


def test_counters_begin_with_the_fork(guests: pathlib.Path) -> None:
    """Not with what its VM did before: for the program that was frozen, or for another fork."""
    warmed = freeze(["./warm"], guests, memory="96m")
    with warmed.snapshot as snapshot:
        snapshot.prepare(1)  # in the VM of the program, which has made hundreds of exits
        for _ in range(3):
            with snapshot.fork() as fork:
                before = fork.stats()
                counted = ("exits", "exits_syscall", "exits_fault", "exits_kick", "flushes")
                assert [before[name] for name in counted] == [0] * len(counted)
                fork.request(b"see", timeout=LIMIT_S)
                assert fork.stats()["exits"] > 0


@pytest.mark.slow
@pytest.mark.hw_modes
@pytest.mark.poll
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", PROGRAMS)
def test_many_requests(request: pytest.FixtureRequest, name: str) -> None:
    """Each in a clean fork: right answers, no trace of the one before, nothing kept."""
    fixture, texts = PROGRAMS[name]
    warmed: Warmed = request.getfixturevalue(fixture)
    requests = [text.encode() for text in texts]
    rounds = repeated(10_000, 200, whole_in=("auto", "poll"))
    with warmed.snapshot.fork() as sandbox:
        first = ask(sandbox, "see")

        def serve(numbers: range) -> None:
            for number in numbers:
                sandbox.reset()
                if number % 100 == 50:
                    assert ask(sandbox, "traces") == "left"
                elif number % 500 == 51:
                    assert ask(sandbox, "see") == first
                else:
                    warmed.check(sandbox, requests[number % len(requests)])

        # The pages that each kind of request writes are kept from then on.
        warm_up = max(rounds // 5, 60)
        serve(range(warm_up))
        before = HostState.now()
        serve(range(warm_up, rounds))
        HostState.now().check_growth(before, most_bytes=4 << 20)
        sandbox.reset()
        assert ask(sandbox, "see") == first
        with warmed.snapshot.fork() as other:
            assert ask(other, "see") == first


def test_go_goes_on(go_program: Warmed) -> None:
    """Its goroutines, tickers, timers and collector work in every fork."""
    with go_program.snapshot.fork() as one, go_program.snapshot.fork() as two:
        for _ in range(3):
            for sandbox in (one, two):
                assert ask(sandbox, "ticks") == "ticks go on true"
            one.reset()


def test_a_second_request_sees_the_first_without_a_reset(fork: kvmlet.Sandbox) -> None:
    assert ask(fork, "count") == "count 1 8"
    assert ask(fork, "count") == "count 2 9"
    fork.reset()
    assert ask(fork, "count") == "count 1 8"


@pytest.mark.parametrize("name", PROGRAMS)
def test_all_traces_go(request: pytest.FixtureRequest, name: str) -> None:
    """A request that changes all a program can change of itself."""
    warmed: Warmed = request.getfixturevalue(PROGRAMS[name][0])
    with warmed.snapshot.fork() as sandbox:
        clean = ask(sandbox, "see")
        sandbox.reset()
        assert ask(sandbox, "traces") == "left"
        assert ask(sandbox, "see") != clean, "nothing was changed"
        sandbox.reset()
        assert ask(sandbox, "see") == clean


def test_what_was_changed_before_the_freeze_stays(guests: pathlib.Path) -> None:
    """A program frozen with all sorts of state: forks have it."""
    sandbox = kvmlet.Sandbox(["./warm"], cwd=guests).until_ready(timeout=LIMIT_S)
    assert ask(sandbox, "traces") == "left"
    seen = ask(sandbox, "see /tmp")
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as snapshot, snapshot.fork() as fork:
        found = ask(fork, "see /tmp")
        # The state before the first look is not that before the second: only what both tell.
        stable = ("fd ", "signal ", "blocked ", "altstack ", "itimer ", "limit ", "/tmp/", "cwd ")
        lines = [line for line in found.splitlines() if line.startswith(stable)]
        assert len(lines) > 60
        assert lines == [line for line in seen.splitlines() if line.startswith(stable)]
        fork.reset()
        assert ask(fork, "see /tmp") == found


def test_output_is_each_requests_own(fork: kvmlet.Sandbox) -> None:
    assert ask(fork, "print one") == "printed"
    assert fork.output() == (b"one\n", b"err one\n")
    assert ask(fork, "print two") == "printed"
    fork.reset()
    assert fork.output() == (b"", b"")
    assert ask(fork, "print three") == "printed"
    assert fork.output() == (b"three\n", b"err three\n")


def test_messages_that_nobody_took_are_gone(fork: kvmlet.Sandbox) -> None:
    assert ask(fork, "twice") == "first"
    fork.send(b"echo unread")
    fork.reset()
    assert ask(fork, "echo clean") == "clean"
    assert ask(fork, "twice") == "first"
    assert fork.recv(timeout=LIMIT_S) == b"second"


def test_an_execve_is_undone(c_program: Warmed, fork: kvmlet.Sandbox) -> None:
    clean = ask(fork, "see")
    fork.reset()
    assert ask(fork, "exec") == "executed"
    fork.reset()
    assert ask(fork, "see") == clean


# ---- threads ----


@pytest.mark.hw_modes
@pytest.mark.poll
def test_parked_threads_work_in_every_fork(guests: pathlib.Path) -> None:
    """Eight threads on condition variables, an epoll loop, timers, sleepers and readers."""
    messages = [b"wake 3", b"wake 5", b"threads"]

    def plain(answer: bytes) -> str:
        return re.sub(r"tid \d+ ", "", answer.decode())

    answers = native_answers(["./parked"], cwd=guests, messages=messages)
    native = [plain(answer) for answer in answers]
    sandbox = kvmlet.Sandbox(["./parked"], cwd=guests).until_ready(timeout=LIMIT_S)
    sandbox.run_for(0.2)
    with sandbox.freeze() as snapshot:
        time.sleep(0.1)
        with snapshot.fork() as one, snapshot.fork() as two:
            for _ in range(sized(20, 2)):
                for message, expected in zip(messages, native, strict=True):
                    for fork in (one, two):
                        answer = plain(fork.request(message, timeout=LIMIT_S))
                        if message != b"threads":
                            assert answer == expected
                        else:
                            assert sorted(answer.split()) == sorted(expected.split())
                one.reset()
                two.reset()


# ---- ends ----


def test_endings_of_a_request(c_program: Warmed, fork: kvmlet.Sandbox) -> None:
    """Each has its reason, and the next request of the same fork is clean."""
    clean = ask(fork, "see")
    endings = {
        b"crash": ("signal", 11, None),
        b"abort": ("signal", 6, None),
        b"exit 7": ("exited", None, 7),
        b"eat": ("memory", None, None),
    }
    for request, (reason, number, code) in endings.items():
        fork.reset()
        with pytest.raises(kvmlet.SandboxEnded) as caught:
            fork.request(request, timeout=LIMIT_S)
        assert caught.value.remedy
        result = fork.result
        assert result is not None
        assert (result.reason, result.signal, result.exit_code) == (reason, number, code)
        with pytest.raises(kvmlet.SandboxEnded):
            fork.request(b"echo more", timeout=LIMIT_S)
        fork.reset()
        assert fork.result is None
        assert ask(fork, "see") == clean
    fork.reset()
    c_program.check(fork, b"dirty 581")


@pytest.mark.hw_modes
@pytest.mark.poll
def test_a_request_that_loops(c_program: Warmed, fork: kvmlet.Sandbox) -> None:
    for _ in range(3):
        start_s = time.monotonic()
        with pytest.raises(kvmlet.DeadlineExceeded) as caught:
            fork.request(b"spin", timeout=0.2)
        assert HW or time.monotonic() - start_s < 5
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.remedy
        fork.reset()
        c_program.check(fork, b"dirty 113")
        fork.reset()


def test_one_request_does_not_decide_for_others(guests: pathlib.Path) -> None:
    """Pages of one request are neither copied ahead for later forks nor kept by its own."""
    usual, large = 30, 4000
    with freeze(["./warm"], guests).snapshot as snapshot:

        def serve(fork: kvmlet.Sandbox, pages: int) -> float:
            """What a reset keeps after a request that writes so many pages, in bytes."""
            assert ask(fork, f"dirty {pages}") == f"dirty {pages} wrong 0"
            fork.reset()
            return fork.stats()["private_bytes"]

        def ahead() -> float:
            """Pages that are copied ahead for a new fork, which holds little else."""
            with snapshot.fork() as fork:
                learned = snapshot.stats()["learned_pages"]
                assert fork.stats()["private_bytes"] <= learned * 4096 + (256 << 10)
                serve(fork, usual)
                # Its VM is not the next one's, with what it has.
                with pytest.raises(kvmlet.SandboxEnded):
                    ask(fork, "exit 3")
            return learned

        with snapshot.fork() as fork, snapshot.fork() as other:
            for _ in range(3):
                kept = max(serve(fork, usual), serve(other, usual))
            written = fork.stats()["reset_pages_copied"]
            assert usual <= written <= 2 * usual
            assert usual <= ahead() <= 1.5 * written
            for _ in range(2):
                assert serve(fork, large) < kept + (1 << 20), "kept by its own fork"
                for _ in range(9):
                    serve(fork, usual)
                assert fork.stats()["reset_pages_kept"] <= 2 * written
                assert ahead() <= 1.5 * written, "copied ahead for later forks"
            # A load that has changed is another matter.
            for _ in range(10):
                serve(fork, 1500)
            assert 1500 <= ahead() <= 1.5 * 1600
            assert fork.stats()["reset_pages_kept"] >= 1500
            for _ in range(10):
                serve(fork, usual)
            assert ahead() <= 1.5 * written
            assert fork.stats()["reset_pages_kept"] <= 1024


@pytest.mark.slow
def test_python_ends_and_goes_on(python_warmed: Warmed) -> None:
    with python_warmed.snapshot.fork() as sandbox:
        for request, reason in ((b"crash", "signal"), (b"exit 3", "exited"), (b"eat", "memory")):
            with pytest.raises(kvmlet.SandboxEnded):
                sandbox.request(request, timeout=LIMIT_S)
            assert sandbox.result is not None
            assert sandbox.result.reason == reason
            sandbox.reset()
            python_warmed.check(sandbox, b"work 40")
            sandbox.reset()
        with pytest.raises(kvmlet.DeadlineExceeded):
            sandbox.request(b"spin", timeout=0.3)
        sandbox.reset()
        python_warmed.check(sandbox, b"work 40")


@pytest.mark.slow
def test_a_pool_goes_on(c_program: Warmed) -> None:
    """Whatever its jobs do."""

    def job(sandbox: kvmlet.Sandbox, text: str) -> bytes:
        return sandbox.request(text.encode(), timeout=0.3 if text == "spin" else LIMIT_S)

    bad: dict[str, type[Exception]] = {
        "crash": kvmlet.SandboxEnded,
        "eat": kvmlet.SandboxEnded,
        "spin": kvmlet.DeadlineExceeded,
        "exit 1": kvmlet.SandboxEnded,
        "silent": kvmlet.NotReady,
    }
    with kvmlet.Pool(c_program.snapshot, size=2) as pool:
        futures = []
        for round_number in range(sized(4, 1)):
            for text in bad:
                futures.append((text, pool.submit(job, text)))
                futures.append(("dirty 113", pool.submit(job, "dirty 113")))
                number = f"echo {round_number}"
                futures.append((number, pool.submit(job, number)))
        for text, future in futures:
            if text in bad:
                with pytest.raises(bad[text]):
                    future.result(LIMIT_S)
            else:
                assert future.result(LIMIT_S) == c_program.native(text.encode())
        too_long = pool.submit(lambda sandbox: sandbox.send(bytes((16 << 20) + 1)))
        with pytest.raises(kvmlet.MessageTooLong):
            too_long.result(LIMIT_S)
        unknown = pool.submit(lambda sandbox: sandbox.call("no_such_function"))
        with pytest.raises(kvmlet.UnknownSymbol):
            unknown.result(LIMIT_S)
        assert pool.submit(job, "count").result(LIMIT_S) == b"count 1 8"


# ---- calls by name ----


@pytest.mark.hw_modes
def test_calls_by_name(fork: kvmlet.Sandbox) -> None:
    assert fork.call("add", 2, 40) == 42
    assert fork.call("add", -7, 3, returns=ctypes.c_int) == -4
    assert fork.call("add_eight", 1, 2, 3, 4, 5, 6) == 91
    assert fork.call("add_eight", -1, 0, 0, 0, 0, 0) == -1
    data = bytes(range(256)) * 30
    assert fork.call("sum", data, len(data)) == sum(data)
    assert fork.call("sum", b"", 0) == 0
    text = bytearray(b"shouted, not said\0")
    assert fork.call("upper", text, returns=ctypes.c_int) == 14
    assert text == b"SHOUTED, NOT SAID\0"
    assert fork.call("name", returns=bytes) == b"warm"
    assert fork.call("scale", 1.5, 4.0, returns=float) == 6.0
    assert fork.call("mixed", 0.5, 2, 0.25, b"four", returns=float) == 6.75
    assert fork.call("is_null", None, returns=ctypes.c_int) == 1
    assert fork.call("is_null", b"", returns=ctypes.c_int) == 0
    assert fork.call("nothing", returns=None) is None
    assert fork.call("sleep_ms", 20, timeout=LIMIT_S) == 0
    # The call of a function of the C library, which the program has linked.
    assert fork.call("call_and_print", b"text", timeout=LIMIT_S) == 4
    assert fork.output().stdout == b"called with text\n"


def test_calls_and_messages_mix(fork: kvmlet.Sandbox) -> None:
    clean = ask(fork, "see")
    fork.reset()
    assert [fork.call("count_call") for _ in range(3)] == [1, 2, 3]
    assert ask(fork, "count") == "count 4 8"
    assert fork.call("answer_from_call", b"from within", returns=ctypes.c_int) == 0
    assert fork.recv(timeout=LIMIT_S) == b"from within"
    assert ask(fork, "echo still there") == "still there"
    fork.reset()
    assert fork.call("count_call") == 1
    fork.reset()
    assert ask(fork, "see") == clean


def test_calls_that_end_badly(c_program: Warmed, fork: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.DeadlineExceeded):
        fork.call("spin_for_ever", timeout=0.2, returns=None)
    fork.reset()
    with pytest.raises(kvmlet.DeadlineExceeded):
        fork.call("sleep_ms", 100_000, timeout=0.2)
    fork.reset()
    with pytest.raises(kvmlet.SandboxEnded):
        fork.call("crash", returns=None, timeout=LIMIT_S)
    assert fork.result is not None
    assert (fork.result.reason, fork.result.signal) == ("signal", 11)
    fork.reset()
    with pytest.raises(kvmlet.KvmletError) as caught:
        fork.call("no_string", returns=bytes)
    assert not isinstance(caught.value, kvmlet.InternalError)
    fork.reset()
    with pytest.raises(kvmlet.UnknownSymbol) as unknown:
        fork.call("no_such_function")
    assert unknown.value.remedy
    wrong: Any
    for wrong in ("text", object(), 1 << 64, [1], 2j):
        with pytest.raises(kvmlet.UsageError):
            fork.call("add", 1, wrong)
    wrong = str
    with pytest.raises(kvmlet.UsageError):
        fork.call("add", 1, 2, returns=wrong)
    with pytest.raises(kvmlet.UsageError):
        fork.call("")
    with pytest.raises(kvmlet.UsageError, match="send a message"):
        fork.call("sum", bytes(64 << 20), 64 << 20)
    c_program.check(fork, b"count")


# ---- forks apart ----


def test_forks_do_not_see_each_other(c_program: Warmed) -> None:
    snapshot = c_program.snapshot
    with snapshot.fork() as one, snapshot.fork() as two, snapshot.fork() as three:
        clean = ask(three, "see")
        three.reset()
        data, reader, _ = ask(one, "data").split()
        assert ask(one, "file /tmp/warm/mine one") == "file 3 3 one"
        assert ask(two, "file /tmp/warm/mine two!") == "file 4 4 two!"
        assert ask(one, f"seek {data} 20") == "seek 20"
        assert ask(two, f"where {data}") == "where 5"
        assert ask(two, f"pull {data}") == "pull 8 56789abc"
        assert ask(one, f"where {data}") == "where 20"
        assert ask(one, f"pull {reader}") == "pull 4 pipe"
        assert ask(two, "push more") == "push 4"
        assert ask(two, f"pull {reader}") == "pull 8 pipemore"
        assert ask(one, "dirty 4096") == "dirty 4096 wrong 0"
        assert ask(two, "dirty 4096") == "dirty 4096 wrong 0"
        assert ask(one, "traces") == "left"
        assert ask(three, "see") == clean
        two.reset()
        assert ask(two, "see") == clean


def test_wipe_on_fork(guests: pathlib.Path) -> None:
    """MADV_WIPEONFORK (madvise(2)): zero in each fork, also after it was written there."""
    sandbox = kvmlet.Sandbox(["./warm"], cwd=guests).until_ready(timeout=LIMIT_S)
    assert ask(sandbox, "wiped") == "first kept second kept"
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as snapshot, snapshot.fork() as fork:
        for _ in range(3):
            assert ask(fork, "wiped") == "first zero second kept"
            assert ask(fork, "traces") == "left"
            assert ask(fork, "wiped") == "first kept second changed"
            fork.reset()


def test_generations(c_program: Warmed) -> None:
    """Differ in each fork and after each reset, on both sides."""
    seen = []
    with c_program.snapshot.fork() as one, c_program.snapshot.fork() as two:
        for _ in range(5):
            for sandbox in (one, two):
                number = int(ask(sandbox, "generation"))
                assert number == sandbox.generation
                seen.append(number)
                sandbox.reset()
    assert len(set(seen)) == len(seen)
    assert 0 not in seen


def test_python_forks_draw_different_numbers(python_warmed: Warmed) -> None:
    drawn = set()
    with python_warmed.snapshot.fork() as one, python_warmed.snapshot.fork() as two:
        for _ in range(5):
            for sandbox in (one, two):
                drawn.update(ask(sandbox, "random").split())
                sandbox.reset()
    assert len(drawn) == 30


# ---- freezing from outside ----

TICKING = """
import sys, time
number = 0
while True:
    number += 1
    print(number, flush=True)
    {pause}
"""


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
@pytest.mark.parametrize(
    "pause",
    ["time.sleep(0.01)", "sum(range(20000))"],
    ids=["sleeping", "computing"],
)
def test_freeze_from_outside(guests: pathlib.Path, pause: str) -> None:
    """A program that never asks for a message is stopped where it is, and goes on from there."""
    sandbox = kvmlet.Sandbox(["/usr/bin/python3", "-c", TICKING.format(pause=pause)], cwd=guests)
    before: list[bytes] = []
    for _ in range(100):
        sandbox.run_for(sized(1, 20) * 0.3)
        before += sandbox.output().stdout.split()
        if len(before) > 10:
            break
    assert before == [b"%d" % number for number in range(1, len(before) + 1)]
    with pytest.raises(kvmlet.DeadlineExceeded):
        sandbox.until_ready(timeout=0.1)
    before += sandbox.output().stdout.split()
    with sandbox.freeze() as snapshot, snapshot.fork() as one, snapshot.fork() as two:
        assert sandbox.closed
        for fork in (one, two, one, two):
            after: list[bytes] = []
            for _ in range(100):
                fork.run_for(sized(1, 20) * 0.1)
                after += fork.output().stdout.split()
                if len(after) > 5:
                    break
            assert after == [b"%d" % (len(before) + number) for number in range(1, len(after) + 1)]
            assert len(after) > 5
            fork.reset()


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


def test_reset_and_freeze_are_for_the_right_ones(
    guests: pathlib.Path, fork: kvmlet.Sandbox
) -> None:
    with pytest.raises(kvmlet.IsAFork):
        fork.freeze()
    assert ask(fork, "echo alive") == "alive"
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
