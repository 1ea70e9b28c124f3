"""Freeze, fork, reset, call: one warmed program, any number of clean requests."""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import time
from typing import TYPE_CHECKING, Any

import pytest

import kvmlet
from e2e.oracle import HW, NO_RUNTIMES, repeated, sized
from e2e.service import HostState, native_answers
from e2e.warmed import LIMIT_S, Warmed, ask, freeze

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]


@pytest.fixture(scope="module")
def go_program(guests: pathlib.Path) -> Iterator[Warmed]:
    if HW:
        pytest.skip(NO_RUNTIMES)
    if shutil.which("go") is None and not (guests / "warm-go").exists():
        pytest.skip("no Go compiler here: apt-get install golang-go")
    warmed = freeze(["./warm-go"], guests)
    yield warmed
    warmed.snapshot.close()


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


def test_calls_with_values_that_are_almost_plain(fork: kvmlet.Sandbox) -> None:
    """They go another way than values of exactly int, float, bytes and str."""
    plain = (int, float, bytes, str)
    kinds: list[Any] = [type(f"My{kind.__name__}", (kind,), {}) for kind in plain]
    number, real, data, name = kinds
    assert fork.call(name("add"), 2, 40) == fork.call("add", number(2), 40) == 42
    assert fork.call("add", True, False) == fork.call("add", 1, None) == 1
    assert fork.call("add", (1 << 64) - 1, 1) == fork.call("add", -(1 << 63), 0) == 0
    assert fork.call("scale", real(1.5), 4.0, returns=float) == 6.0
    assert fork.call("sum", data(b"ab"), 2) == fork.call("sum", memoryview(b"ab"), 2) == 195
    for wrong in ("a\0b", b"add", name(""), None):
        with pytest.raises(kvmlet.UsageError, match="not the name of a function") as caught:
            fork.call(wrong, 1, 2)  # type: ignore[arg-type]
        assert caught.value.__context__ is None


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


# Threads that wait until a time of day, by both calls that can.
UNTIL_A_TIME = """
import ctypes, threading, time
import kvmlet_guest
libc = ctypes.CDLL(None)
UNTIL = time.time() + 2
until = (ctypes.c_long * 2)(int(UNTIL), int(UNTIL % 1 * 1e9))
word, woken = ctypes.c_int(5), []
def sleep():
    libc.clock_nanosleep(0, 1, until, None)
    woken.append("clock_nanosleep")
def wait():
    # FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME
    libc.syscall(202, ctypes.byref(word), 9 | 128 | 256, 5, until, None, 0xffffffff)
    woken.append("futex")
for each in (sleep, wait):
    threading.Thread(target=each, daemon=True).start()
kvmlet_guest.serve(lambda _: " ".join(sorted(woken)).encode())
"""


def test_a_time_of_day_passes_while_a_program_is_frozen() -> None:
    if HW:
        pytest.skip(NO_RUNTIMES)
    argv = ["/usr/bin/python3", "-c", UNTIL_A_TIME]
    frozen = kvmlet.Sandbox(argv).until_ready(timeout=LIMIT_S).freeze()
    with frozen as snapshot, snapshot.fork() as fork:
        time.sleep(2.5)
        # No time has passed on CLOCK_MONOTONIC, so that a wait by that would take 2 s more.
        for _ in range(2):
            fork.run_for(0.5)
            assert fork.request(b"", timeout=LIMIT_S) == b"clock_nanosleep futex"
            fork.reset()


def test_timers_of_the_time_of_day_expire_while_a_program_is_frozen(guests: pathlib.Path) -> None:
    """Natively all are due after the same time; those of CLOCK_MONOTONIC stand meanwhile."""
    messages = [b"steady", b"set", b"nap", b"wall"]
    steady, unset, _, wall = native_answers(["./walltimers"], cwd=guests, messages=messages)
    assert wall == b"day 1 boot 1 day 1 boot 1 "
    assert steady == b"length 0 steady 0 length EAGAIN steady EAGAIN "
    assert unset == b"readable 0 set EAGAIN set EAGAIN "
    sandbox = kvmlet.Sandbox(["./walltimers"], cwd=guests).until_ready(timeout=LIMIT_S)
    with sandbox.freeze() as snapshot, snapshot.fork() as other:
        time.sleep(1.3)
        # A fork that has not run: the time that it has missed is not forgotten.
        with other.freeze() as later, later.fork() as fork:
            time.sleep(1.3)
            for _ in range(2):
                assert ask(fork, "wall").encode() == wall
                assert ask(fork, "steady").encode() == steady
                # As after a machine has slept (timerfd_create(2)).
                assert ask(fork, "set") == "readable 1 set ECANCELED set EAGAIN "
                fork.reset()


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
