"""Several processes that exist at the freeze: what forks see of them, and find after a reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, NO_RUNTIMES, SCRIPTS, repeated, sized
from e2e.service import HostState, native_answers
from e2e.warmed import Warmed, freeze

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = [pytest.mark.hw, pytest.mark.poll, pytest.mark.usefixtures("vm")]

LIMIT_S = 400 if HW else 60
REQUESTS = [b"look", b"share", b"write", b"fork", b"execute", b"kill", b"leave", b"replace"]


@pytest.fixture
def snapshot(guests: pathlib.Path) -> Iterator[kvmlet.Snapshot]:
    sandbox = kvmlet.Sandbox(["./family"], cwd=guests)
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as frozen:
        yield frozen


def test_each_request_from_the_frozen_state(
    snapshot: kvmlet.Snapshot, guests: pathlib.Path
) -> None:
    native = {
        request: native_answers(["./family"], cwd=guests, messages=[request])
        for request in REQUESTS
    }
    with snapshot.fork() as one, snapshot.fork() as other:
        for _ in range(sized(3, 1)):
            for request in REQUESTS:
                for fork in (one, other):
                    assert [fork.request(request, timeout=LIMIT_S)] == native[request], request
                one.reset()
                other.reset()


def test_requests_in_turn(snapshot: kvmlet.Snapshot, guests: pathlib.Path) -> None:
    """Without a reset between them; and again after one."""
    native = native_answers(["./family"], cwd=guests, messages=REQUESTS)
    with snapshot.fork() as fork:
        for _ in range(sized(3, 1)):
            answers = [fork.request(request, timeout=LIMIT_S) for request in REQUESTS]
            assert answers == native
            fork.reset()


@pytest.mark.timeout(1200)
def test_many_requests(snapshot: kvmlet.Snapshot, guests: pathlib.Path) -> None:
    """The last one meets the state of the first, and nothing has grown."""
    native = {
        request: native_answers(["./family"], cwd=guests, messages=[request])
        for request in REQUESTS
    }
    rounds = repeated(10_000, 8, short=100)
    with snapshot.fork() as fork:
        before = None
        for number in range(rounds):
            request = REQUESTS[number % len(REQUESTS)]
            assert [fork.request(request, timeout=LIMIT_S)] == native[request], (number, request)
            fork.reset()
            if number == rounds // 10:
                before = HostState.now()
        after = HostState.now()
    assert before is not None
    after.check_growth(before, most_bytes=8 << 20)


SHELL_REQUESTS = [
    b"sh -c 'echo $((6*7)) | tr 4 5'",
    b"echo $((++count)) ${#seen[@]} ${PWD%/*}; seen[$RANDOM]=1; cd /usr; count=9",
    b"for i in 1 2 3; do echo $i & done | sort; wait; echo ${PIPESTATUS[@]}",
    b"cat <(echo a) <(sh -c 'exit 3'; echo $?); ls; echo b > left; ls",
    b"(sleep 20 & exec sleep 20) & kill -9 $!; wait $! 2>/dev/null; echo $?; ls",
    b"trap 'echo hung up' HUP; kill -HUP $$; exec 2>&1; no-such-command; echo $?",
]


@pytest.fixture
def shell() -> Iterator[Warmed]:
    if HW:
        pytest.skip(NO_RUNTIMES)
    warmed = freeze(["/usr/bin/python3", "warm_shell.py"], SCRIPTS)
    with warmed.snapshot:
        yield warmed


def test_a_warmed_shell(shell: Warmed) -> None:
    """One line leaves nothing in bash, in files and in processes for the next."""
    rounds = repeated(1_000, 1, short=12)
    with shell.snapshot.fork() as fork:
        for number in range(rounds):
            shell.check(fork, SHELL_REQUESTS[number % len(SHELL_REQUESTS)])
            fork.reset()


SHARED_REQUESTS = [b"look", b"post", b"send", b"undo", b"new", b"remove"]


@pytest.fixture
def sharing(guests: pathlib.Path) -> Iterator[kvmlet.Snapshot]:
    sandbox = kvmlet.Sandbox(["./sysvserver"], cwd=guests)
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as frozen:
        yield frozen


def test_shared_segments_semaphores_and_queues(
    sharing: kvmlet.Snapshot, guests: pathlib.Path
) -> None:
    """Each request from the frozen state, then all in turn: nothing of one fork is another's."""
    argv = ["./sysvserver"]
    with sharing.fork() as one, sharing.fork() as other:
        for request in SHARED_REQUESTS:
            native = native_answers(argv, cwd=guests, messages=[request])
            for fork in (one, other):
                assert [fork.request(request, timeout=LIMIT_S)] == native, request
            one.reset()
            other.reset()
        native = native_answers(argv, cwd=guests, messages=SHARED_REQUESTS)
        for _ in range(2):
            assert [one.request(request, timeout=LIMIT_S) for request in SHARED_REQUESTS] == native
            one.reset()
