"""Cases of live.py: forks, resets, calls."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from measure import BenchError
from report import Promise, Row, compare
from warm import (
    COSTS,
    ECHO,
    RESTORE,
    SMALL,
    TIMEOUT_S,
    Cost,
    ask,
    clean,
    counts_of,
    crowd,
    dirtying,
    end,
    faults_of,
    faults_rows,
    median,
    request,
    spent_ns,
    stat,
    trained,
    undisturbed,
    warmed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from peer import Peer

    import kvmlet


DIRTIED = (0, 1, 16, 113, 581, 4096)
"""Pages that a request writes; 17, 113 and 581 are working sets that KVM Server has published."""
NO_FAULTS = Promise("<=", 0, "faults")

# A mixed load: how many pages are written, and where in the heap. Most requests write the same few;
# each of the larger sets comes back only after dozens of others.
_USUAL = ((1, 0), (16, 0), (0, 0), (16, 0), (2, 0), (32, 0), (8, 0), (16, 0))
MIXED = (
    *(*_USUAL, (113, 5000), *_USUAL, (16, 3000), *_USUAL, (581, 1000)),
    *(*_USUAL, (4, 7000), *_USUAL, (113, 100), *_USUAL),
)

# ---- fork ----


def fork(peer: Peer, live: int, pairs: int) -> list[Row]:
    """Forking into a bound VM, binding one, and doing both with a VM made for it.

    The last two are compared with the part of them that KVM takes, of the same calls.
    """
    # Of the first nothing is known, so nothing is copied ahead for its forks.
    unknown, known = warmed(), warmed()
    message = dirtying(SMALL)
    trained(known, message)
    known.fork().close()
    others = crowd(unknown, live, message)
    # From now on there is an empty VM, and none that is bound.
    end(known.fork())
    x_ns: list[float] = []
    plain: list[_Bound] = []
    ahead: list[_Bound] = []
    for _ in range(pairs):
        x_ns.append(peer.x_ns())
        plain.append(_bound(peer, unknown, message))
        ahead.append(_bound(peer, known, message))

    held: list[kvmlet.Sandbox] = []
    _drain_empty_vms(peer, unknown, held)
    cold: list[_Cold] = []
    for _ in range(pairs):
        tried = [_cold_round(peer, unknown, held, message) for _ in range(2)]
        cold.append(min(tried, key=lambda one: one.kvm_ns))

    costs = _fork_costs(peer, unknown, known, held, message)
    rows = [
        compare(
            "fork of a bound VM",
            [one.fork_ns for one in plain],
            x_ns,
            Promise("<=", 5, "X"),
            counts=costs["fork"],
            shown=COSTS,
        ),
        compare(
            "binding ahead, against its slot ioctls",
            [one.bind_ns for one in plain],
            [one.slot_ns for one in plain],
            Promise("<=", 1.3, "slot ioctls"),
            counts=costs["bind"],
            shown=COSTS,
        ),
        compare(
            f"  and copying {SMALL} pages ahead, likewise",
            [one.bind_ns for one in ahead],
            [one.slot_ns for one in ahead],
            counts=costs["bind and copy"],
            shown=COSTS,
        ),
        compare(
            "fork with a new VM, against its creation and slot ioctls",
            [one.fork_ns for one in cold],
            [one.kvm_ns for one in cold],
            Promise("<=", 1.3, "creation"),
            counts=costs["unpooled"],
            shown=COSTS,
        ),
        compare(
            "  and KVM_SET_CPUID2, which KVM needs for a vCPU that can run",
            [one.fork_ns for one in cold],
            [one.kvm_ns + one.cpuid_ns for one in cold],
            Promise("<=", 1.3, "creation"),
        ),
        compare(
            f"fork of a bound VM to its first answer, {SMALL} pages written",
            [one.fork_ns + one.answer_ns for one in plain],
            x_ns,
            counts=costs["answer"],
            shown=(*COSTS, "pf_taken"),
        ),
        compare(
            "  the same, copied ahead",
            [one.fork_ns + one.answer_ns for one in ahead],
            x_ns,
            counts=costs["answer, copied"],
            shown=(*COSTS, "pf_taken"),
        ),
        compare(
            "  the same with a new VM, nothing copied ahead",
            [one.answered_ns for one in cold],
            x_ns,
        ),
        compare(
            "closing a fork: it is put back for the next",
            [one.close_ns for one in plain],
            x_ns,
            counts=costs["close"],
            shown=COSTS,
        ),
        compare(
            "closing one whose program has ended: its VM is emptied",
            [one.end_ns for one in plain],
            x_ns,
        ),
    ]
    for sandbox in (*held, *others):
        sandbox.close()
    return rows


class _Bound(NamedTuple):
    bind_ns: float
    slot_ns: float
    fork_ns: float
    answer_ns: float
    close_ns: float
    end_ns: float


class _Cold(NamedTuple):
    fork_ns: float
    kvm_ns: float
    """Of that, in the ioctls that make a VM, its vCPU and its slots."""
    cpuid_ns: float
    """Of that, in KVM_SET_CPUID2, without which no vCPU runs a 64-bit program."""
    answered_ns: float


def _cold_round(
    peer: Peer, snapshot: kvmlet.Snapshot, held: list[kvmlet.Sandbox], message: bytes
) -> _Cold:
    """A fork for which there is no VM; it joins `held`, lest its VM be kept for the next."""
    before = peer.asked()
    start = time.perf_counter_ns()
    held.append(snapshot.fork())
    fork_ns = float(time.perf_counter_ns() - start)
    asked = peer.asked().since(before)
    clean(held[-1], message)
    answered_ns = float(time.perf_counter_ns() - start)
    kvm_ns = float(asked.creation_ns + asked.slot_ns)
    return _Cold(fork_ns, kvm_ns, float(asked.cpuid_ns), answered_ns)


def _bound(peer: Peer, snapshot: kvmlet.Snapshot, message: bytes) -> _Bound:
    """The life of a fork, from the binding of an empty VM to an empty VM."""
    rounds = [_bound_round(peer, snapshot, message) for _ in range(5)]
    # Both sides of a ratio are of the same round. On a busy machine most slot ioctls wait for the
    # kernel's other threads, and nothing else would be seen beside that.
    least = min(rounds, key=lambda r: r.slot_ns)
    return _Bound(
        least.bind_ns,
        least.slot_ns,
        undisturbed(r.fork_ns for r in rounds),
        undisturbed(r.answer_ns for r in rounds),
        undisturbed(r.close_ns for r in rounds),
        undisturbed(r.end_ns for r in rounds),
    )


def _bound_round(peer: Peer, snapshot: kvmlet.Snapshot, message: bytes) -> _Bound:
    before = peer.asked()
    bind_ns = spent_ns(lambda: snapshot.prepare(1))
    asked = peer.asked().since(before)
    if asked.creations or not asked.slots:
        raise BenchError("binding did not take the empty VM that was there")
    start = time.perf_counter_ns()
    sandbox = snapshot.fork()
    fork_ns = float(time.perf_counter_ns() - start)
    if peer.asked().since(before).slots != asked.slots:
        raise BenchError("forking a bound VM took slot ioctls")
    answer_ns = spent_ns(lambda: clean(sandbox, message))
    close_ns = spent_ns(sandbox.close)
    end_ns = end(snapshot.fork())
    return _Bound(bind_ns, float(asked.slot_ns), fork_ns, answer_ns, close_ns, end_ns)


def _drain_empty_vms(peer: Peer, snapshot: kvmlet.Snapshot, held: list[kvmlet.Sandbox]) -> None:
    """Fork until a fork has to make its VM."""
    for _ in range(64):
        before = peer.asked()
        held.append(snapshot.fork())
        if peer.asked().since(before).creations:
            return
    raise BenchError("64 forks in a row took a VM that was there")


def _fork_costs(
    peer: Peer,
    unknown: kvmlet.Snapshot,
    known: kvmlet.Snapshot,
    held: list[kvmlet.Sandbox],
    message: bytes,
) -> dict[str, dict[str, float]]:
    peer.watch_mappings()
    times = 5
    # Twice as many as are ended below.
    costs = {"unpooled": Cost.of(peer, lambda: held.append(unknown.fork()), 2 * times).asked}
    for snapshot, ending, bind in ((unknown, "", "bind"), (known, ", copied", "bind and copy")):
        for _ in range(times):
            end(held.pop())
        costs[bind] = _each(Cost.of(peer, partial(snapshot.prepare, times), 1), times)
        bound: list[kvmlet.Sandbox] = []

        def fork(snapshot: kvmlet.Snapshot = snapshot, bound: list[kvmlet.Sandbox] = bound) -> None:
            bound.append(snapshot.fork())

        def answer(bound: list[kvmlet.Sandbox] = bound) -> None:
            for sandbox in bound:
                clean(sandbox, message)

        def close(bound: list[kvmlet.Sandbox] = bound) -> None:
            for sandbox in bound:
                sandbox.close()

        costs["fork"] = Cost.of(peer, fork, times).asked
        faults = sum(stat(sandbox, "exits_fault") for sandbox in bound)
        taken = peer.kvm_counter("pf_taken")
        cost = _each(Cost.of(peer, answer, 1), times)
        faults = sum(stat(sandbox, "exits_fault") for sandbox in bound) - faults
        taken = peer.kvm_counter("pf_taken") - taken
        costs[f"answer{ending}"] = {**cost, "faults": faults / times, "pf_taken": taken / times}
        costs["close"] = _each(Cost.of(peer, close, 1), times)
    return costs


def _each(cost: Cost, times: int) -> dict[str, float]:
    return {name: count / times for name, count in cost.asked.items()}


# ---- reset ----


def reset(peer: Peer, live: int, pairs: int) -> list[Row]:
    """Putting a fork back, by the pages that its request wrote."""
    snapshot = warmed()
    others = crowd(snapshot, live, dirtying(SMALL))
    measured = [_resets(peer, snapshot, pages, pairs) for pages in DIRTIED]
    base_ns = median(measured[0].reset_ns)
    mixed = _mixed(peer, base_ns, pairs)
    peer.watch_mappings()
    rows = []
    for one in measured:
        counts = _reset_counts(peer, one)
        rows += _reset_rows(one, counts)
        one.sandbox.close()
        one.free.close()
    for sandbox in others:
        sandbox.close()
    return [*rows, mixed]


class _Resets(NamedTuple):
    pages: int
    sandbox: kvmlet.Sandbox
    free: kvmlet.Sandbox
    """A fork that is never put back: what a request costs by itself."""
    copied: int
    reset_ns: list[float]
    added_ns: list[float]
    """A request and its reset, less a request by itself."""
    x_ns: list[float]
    copy_ns: list[float]


def _resets(peer: Peer, snapshot: kvmlet.Snapshot, pages: int, pairs: int) -> _Resets:
    message = dirtying(pages)
    sandbox, free = snapshot.fork(), snapshot.fork()
    # More than half of the requests that are remembered: a single large one is nobody's load.
    for _ in range(10):
        clean(sandbox, message)
        sandbox.reset()
        ask(free, message)
    copied = int(stat(sandbox, "reset_pages_copied"))
    repeats = 4 if pages > 1000 else 10
    result = _Resets(pages, sandbox, free, copied, [], [], [], [])
    for _ in range(pairs):
        resets, wholes, alones, copies = [], [], [], []
        for _ in range(repeats):
            start = time.perf_counter_ns()
            clean(sandbox, message)
            answered = time.perf_counter_ns()
            sandbox.reset()
            end = time.perf_counter_ns()
            resets.append(end - answered)
            wholes.append(end - start)
            alones.append(_alone_ns(free, message))
            copies.append(peer.copy_ns(copied))
        result.reset_ns.append(float(undisturbed(resets)))
        result.added_ns.append(max(undisturbed(wholes) - undisturbed(alones), 1.0))
        result.x_ns.append(peer.x_ns(2))
        result.copy_ns.append(undisturbed(copies))
    return result


def _alone_ns(sandbox: kvmlet.Sandbox, message: bytes) -> float:
    """A request from where a reset would have left the program: it waits for a message."""
    sandbox.until_ready(timeout=TIMEOUT_S)
    return spent_ns(lambda: ask(sandbox, message))


def _reset_counts(peer: Peer, one: _Resets) -> dict[str, float]:
    message, times = dirtying(one.pages), 10
    one.sandbox.reset()
    faults = stat(one.sandbox, "exits_fault")
    asked: dict[str, float] = dict.fromkeys(COSTS, 0.0)
    for _ in range(times):
        clean(one.sandbox, message)
        for name, count in Cost.of(peer, one.sandbox.reset, 1).asked.items():
            asked[name] += count / times
    asked["faults"] = (stat(one.sandbox, "exits_fault") - faults) / times
    asked["pages_copied"] = stat(one.sandbox, "reset_pages_copied")
    for name in ("equal", "dropped", "kept", "scrubbed"):
        asked[f"pages_{name}"] = stat(one.sandbox, f"reset_pages_{name}")
    return asked


def _reset_rows(one: _Resets, counts: dict[str, float]) -> list[Row]:
    allowed = [
        2 * x_ns + 1.5 * copy_ns for x_ns, copy_ns in zip(one.x_ns, one.copy_ns, strict=True)
    ]
    figures = {
        "pages_dirtied": float(one.pages),
        "reset_ns": median(one.reset_ns),
        "added_ns": median(one.added_ns),
        "x_ns": median(one.x_ns),
        "copy_ns": median(one.copy_ns),
    }
    return [
        compare(
            f"reset, {one.pages} pages dirtied, against 2 X + 1.5 x memcpy",
            one.reset_ns,
            allowed,
            Promise("<=", 1, "of that"),
            counts={**counts, **figures},
            shown=COSTS,
        ),
        compare("  reset and what it makes the next request wait for", one.added_ns, allowed),
    ]


def _mixed(peer: Peer, base_ns: float, pairs: int) -> Row:
    """A load that writes now few, now many pages, against two simpler ways of resetting it.

    One copies back every page that any request has written: it is run, as a copy of so many pages
    after each request. The other takes a fault for each page that this request writes: it is
    reckoned from what a fault takes here. Both are granted `base_ns`, a reset of nothing.
    """
    # A snapshot of its own: copied ahead is what earlier requests wrote.
    snapshot = warmed()
    sandbox, free = snapshot.fork(), snapshot.fork()
    messages = [dirtying(pages, first) for pages, first in MIXED]
    union = len({first + page for pages, first in MIXED for page in range(pages)})
    _sequence_ns(sandbox, messages, sandbox.reset)
    _sequence_ns(free, messages, None)
    faults = stat(sandbox, "exits_fault")
    ours, better = [], []
    for _ in range(pairs):
        alone_ns = _sequence_ns(free, messages, None)
        added_ns = _sequence_ns(sandbox, messages, sandbox.reset) - alone_ns
        copy_ns = _sequence_ns(free, messages, partial(peer.copy_ns, union, written=0)) - alone_ns
        fault_ns, _ = _fault_ns(peer, snapshot)
        protect_ns = sum(pages for pages, _ in MIXED) * fault_ns
        ours.append(max(added_ns, 1.0))
        better.append(len(MIXED) * base_ns + min(copy_ns, protect_ns))
    counts = {
        "pages_union": float(union),
        "pages_mean": sum(pages for pages, _ in MIXED) / len(MIXED),
        "faults": (stat(sandbox, "exits_fault") - faults) / (3 * pairs * len(MIXED)),
    }
    sandbox.close()
    free.close()
    return compare(
        f"{len(MIXED)} mixed requests: all that resets add, against the better",
        ours,
        better,
        Promise("<=", 1.3, "of the better"),
        counts=counts,
        shown=tuple(counts),
    )


def _sequence_ns(
    sandbox: kvmlet.Sandbox, messages: list[bytes], after: Callable[[], object] | None
) -> float:
    """A sequence of requests, each from where the program waits, and what is done after each.

    The sequence is gone through three times, and each request counts with its best.
    """
    passes: list[list[int]] = []
    for _ in range(3):
        times = []
        for message in messages:
            sandbox.until_ready(timeout=TIMEOUT_S)
            start = time.perf_counter_ns()
            ask(sandbox, message)
            if after is not None:
                after()
            times.append(time.perf_counter_ns() - start)
        passes.append(times)
    return float(sum(min(times) for times in zip(*passes, strict=True)))


def _fault_ns(peer: Peer, snapshot: kvmlet.Snapshot) -> tuple[float, dict[str, float]]:
    """A first write to a frozen page, copy and all; what it asked of the host."""
    pages = 113
    # Where no other request writes, so that nothing was copied ahead.
    message = dirtying(pages, first=6000)
    sandbox = snapshot.fork()
    ask(sandbox, request(ECHO))
    faults = stat(sandbox, "exits_fault")
    before = peer.asked()
    first_ns = spent_ns(lambda: clean(sandbox, message))
    asked = peer.asked().since(before)
    faults = stat(sandbox, "exits_fault") - faults
    again_ns = undisturbed(spent_ns(lambda: ask(sandbox, message)) for _ in range(3))
    end(sandbox)
    counts = {**counts_of(asked, pages), "faults": faults / pages}
    return max(first_ns - again_ns, 1.0) / pages, counts


# ---- calls ----


def calls(peer: Peer, live: int, pairs: int) -> list[Row]:
    """A message and its answer, a call by name, a first write, and a request that is repeated."""
    snapshot = warmed()
    others = crowd(snapshot, live, dirtying(SMALL))
    # What has sent an answer is not ready for a call.
    sandbox, callee = snapshot.fork(), snapshot.fork()
    echo = request(ECHO)
    messages, clean_messages, called, faults, x_ns = [], [], [], [], []
    for _ in range(pairs):
        cleaned = []
        for _ in range(20):
            sandbox.reset()
            cleaned.append(spent_ns(lambda: ask(sandbox, echo)))
        clean_messages.append(undisturbed(cleaned))
        x_ns.append(peer.x_ns(3))
        messages.append(undisturbed(spent_ns(lambda: ask(sandbox, echo)) for _ in range(20)))
        called.append(undisturbed(spent_ns(lambda: callee.call("add_one", 41)) for _ in range(20)))
        faults.append(_fault_ns(peer, snapshot)[0])
    if callee.call("add_one", 41) != 42:
        raise BenchError("add_one(41) is not 42")
    repeated = _repeated(peer)
    peer.watch_mappings()
    costs = {
        "message": Cost.of(peer, lambda: ask(sandbox, echo), 20).asked,
        "call": Cost.of(peer, lambda: callee.call("add_one", 41), 20).asked,
        "fault": _fault_ns(peer, snapshot)[1],
    }
    rows = [
        compare("message and answer", messages, x_ns, counts=costs["message"], shown=COSTS),
        compare("  the same after a reset", clean_messages, x_ns),
        compare("call by name", called, x_ns, counts=costs["call"], shown=COSTS),
        compare("first write to a frozen page", faults, x_ns, counts=costs["fault"], shown=COSTS),
        *repeated,
    ]
    for one in (sandbox, callee, *others):
        one.close()
    return rows


def _repeated(peer: Peer) -> list[Row]:
    """Faults of a request that has been made before."""
    rows = []
    for pages in (1, 113, 4096):
        # One of its own: what is unusual for a program is not kept for it.
        snapshot = warmed()
        sandbox = snapshot.fork()
        first = faults_of(peer, sandbox, dirtying(pages), 1)
        second = faults_of(peer, sandbox, dirtying(pages), 1)
        end(sandbox)
        snapshot.close()
        rows += faults_rows(f"second identical request, {pages} pages", first, second, NO_FAULTS)
    # What reference counts do: a page is written, and in the end is what it was.
    message, pages = request(RESTORE, 113, first=5000), 113
    snapshot = warmed()
    sandbox = snapshot.fork()
    first = faults_of(peer, sandbox, message, 1)
    later = faults_of(peer, sandbox, message, 100)
    end(sandbox)
    rows += faults_rows(f"100 more, {pages} pages written and put back", first, later, NO_FAULTS)
    return rows
