"""Warmed programs, requests to them, and what those take of the host."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from measure import BenchError, Spread
from report import Row

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from peer import Asked, Peer
    from report import Promise

ECHO, DIRTY, RESTORE = range(3)
SMALL = 16
COSTS = ("exits", "ioctls", "slot_ioctls", "mapping_calls", "faults", "pages_copied")
TIMEOUT_S = 60.0


class Cost(NamedTuple):
    """The requests to the host for an action, on average over its repetitions."""

    asked: dict[str, float]

    @classmethod
    def of(cls, peer: Peer, action: Callable[[], object], times: int) -> Cost:
        """Run `action` so many times and count."""
        before = peer.asked()
        for _ in range(times):
            action()
        asked = peer.asked().since(before)
        return cls(counts_of(asked, times))


def counts_of(asked: Asked, times: int) -> dict[str, float]:
    """The requests for each of so many actions, in the words of `COSTS`."""
    return {
        "exits": asked.runs / times,
        "ioctls": (asked.slots + asked.creations + asked.others) / times,
        "slot_ioctls": asked.slots / times,
        "mapping_calls": asked.mapping_calls / times,
    }


def request(verb: int, pages: int = 0, first: int = 0, seed: int = 7) -> bytes:
    """A request to dirty.c."""
    return struct.pack("<4I", verb, first, pages, seed)


def dirtying(pages: int, first: int = 0) -> bytes:
    """A request that writes so many pages."""
    return request(DIRTY, pages, first) if pages else request(ECHO)


def ask(sandbox: kvmlet.Sandbox, message: bytes) -> bytes:
    """One request and its answer."""
    return sandbox.request(message, timeout=TIMEOUT_S)


def clean(sandbox: kvmlet.Sandbox, message: bytes) -> None:
    """One request, which must find nothing of earlier ones. Raises BenchError."""
    answer = ask(sandbox, message)
    left_behind = struct.unpack("<Q", answer)[0]
    if message[0] != ECHO and left_behind:
        raise BenchError(f"a request found {left_behind} changes of earlier ones")


def spent_ns(action: Callable[[], object]) -> float:
    """The time that `action` takes."""
    start = time.perf_counter_ns()
    action()
    return float(time.perf_counter_ns() - start)


def undisturbed(times_ns: Iterable[float]) -> float:
    """The tenth percentile: what it takes when nothing comes between."""
    ordered = sorted(times_ns)
    return ordered[len(ordered) // 10]


def median(numbers: Sequence[float]) -> float:
    """The median."""
    return Spread.of(numbers).median


def warmed(argv: Sequence[str] = ("./dirty",)) -> kvmlet.Snapshot:
    """A program of ours, warmed up and frozen."""
    sandbox = kvmlet.Sandbox([*argv], memory="512m", env={"PYTHONDONTWRITEBYTECODE": "1"})
    return sandbox.until_ready(timeout=TIMEOUT_S).freeze()


def trained(snapshot: kvmlet.Snapshot, message: bytes) -> None:
    """Let forks to come know what requests write."""
    with snapshot.fork() as sandbox:
        for _ in range(3):
            ask(sandbox, message)
            sandbox.reset()


def crowd(snapshot: kvmlet.Snapshot, live: int, message: bytes) -> list[kvmlet.Sandbox]:
    """One live fork less than `live`, each of which has answered a request."""
    forks = []
    for _ in range(live - 1):
        fork = snapshot.fork()
        ask(fork, message)
        forks.append(fork)
    return forks


def end(sandbox: kvmlet.Sandbox) -> float:
    """Have the program exit, and close: its VM is emptied, not kept as it is.

    Time that closing took, in nanoseconds. Raises BenchError.
    """
    try:
        ask(sandbox, b"no request")
    except kvmlet.SandboxEnded:
        return spent_ns(sandbox.close)
    raise BenchError("the program went on after a message that is no request")


def stat(sandbox: kvmlet.Sandbox, name: str) -> float:
    """A counter. Raises BenchError."""
    stats = sandbox.stats()
    if name not in stats:
        raise BenchError(f"the statistics have no {name}")
    return float(stats[name])


def faults_of(
    peer: Peer, sandbox: kvmlet.Sandbox, message: bytes, times: int
) -> tuple[float, float]:
    """Faults that left the VM, and faults that KVM took, over so many requests."""
    _wait_for_quiet(peer)
    faults, taken = stat(sandbox, "exits_fault"), peer.kvm_counter("pf_taken")
    for _ in range(times):
        ask(sandbox, message)
        sandbox.reset()
    faults = stat(sandbox, "exits_fault") - faults
    return faults, float(peer.kvm_counter("pf_taken") - taken)


def _wait_for_quiet(peer: Peer) -> None:
    """Wait until no VM is made ahead of its use: KVM's counters are those of all VMs here."""
    last = -1
    while (now := peer.kvm_counter("pf_taken")) != last:
        last = now
        time.sleep(0.05)


def faults_rows(
    what: str, first: tuple[float, float], later: tuple[float, float], promise: Promise | None
) -> list[Row]:
    """The later of two `faults_of`; the first is shown beside it."""
    return [
        Row(f"{what}: {kind}", ours, theirs, Spread.of([ours]), promise, unit="")
        for kind, ours, theirs in zip(("exits for #PF", "pf_taken"), later, first, strict=True)
    ]
