"""The process that holds the VMs: measures one case beside so many live VMs.

    live.py CASE LIVE PAIRS

Prints its rows as JSON. It is started by fork.py, with the library of preload/peer.c loaded.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from measure import BUILD, BenchError, Spread
from peer import Asked, Peer
from peers import Servers, fresh_ns
from report import Promise, Row, compare

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

ECHO, DIRTY = range(2)
DIRTIED = (0, 1, 16, 113, 581, 4096)
"""Pages that a request writes; 17, 113 and 581 are working sets that KVM Server has published."""
SMALL = 16

# A mixed load: pages written, and where in the heap. Most requests write the same few pages.
MIXED = (
    *((1, 0), (16, 0), (0, 0), (113, 0), (2, 0), (16, 3000), (581, 0), (1, 0)),
    *((8, 0), (16, 0), (113, 5000), (4, 0), (0, 0), (32, 0), (16, 0), (1, 7000)),
)

COSTS = ("exits", "ioctls", "slot_ioctls", "mapping_calls", "faults", "pages_copied")
_TIMEOUT_S = 60.0


class Cost(NamedTuple):
    """What the host was asked for an action, on average over its repetitions."""

    asked: dict[str, float]

    @classmethod
    def of(cls, peer: Peer, action: Callable[[], object], times: int) -> Cost:
        """Run `action` so many times and count."""
        before = peer.asked()
        for _ in range(times):
            action()
        asked = peer.asked().since(before)
        return cls(_counts(asked, times))


def _counts(asked: Asked, times: int) -> dict[str, float]:
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
    return sandbox.request(message, timeout=_TIMEOUT_S)


def clean(sandbox: kvmlet.Sandbox, message: bytes) -> None:
    """One request, which must find nothing of earlier ones. Raises BenchError."""
    answer = ask(sandbox, message)
    left_behind = struct.unpack("<Q", answer)[0]
    if message[0] == DIRTY and left_behind:
        raise BenchError(f"a request found {left_behind} changes of earlier ones")


def spent_ns(action: Callable[[], object]) -> float:
    """How long `action` takes."""
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
    return sandbox.until_ready(timeout=_TIMEOUT_S).freeze()


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

    How long closing took, in nanoseconds. Raises BenchError.
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


# ---- fork ----


def fork(peer: Peer, live: int, pairs: int) -> list[Row]:
    """Forking into a bound VM, binding one, and doing both with a VM made for it."""
    snapshot = warmed()
    message = dirtying(SMALL)
    trained(snapshot, message)
    others = crowd(snapshot, live, message)
    # From now on there is an empty VM, and none that is bound.
    end(snapshot.fork())
    echo = request(ECHO)
    x_ns, binds, slot_times, forks, answers, closes, ends = ([] for _ in range(7))
    for _ in range(pairs):
        x_ns.append(peer.x_ns())
        rounds = [_bound_round(peer, snapshot, echo) for _ in range(5)]
        # The bound round of median slot time has both sides of its ratio.
        binds.append(median([r.bind_ns for r in rounds]))
        slot_times.append(median([r.slot_ns for r in rounds]))
        forks.append(undisturbed(r.fork_ns for r in rounds))
        answers.append(undisturbed(r.fork_ns + r.answer_ns for r in rounds))
        closes.append(undisturbed(r.close_ns for r in rounds))
        ends.append(undisturbed(r.end_ns for r in rounds))

    held: list[kvmlet.Sandbox] = []
    _drain_empty_vms(peer, snapshot, held)
    unpooled, cold_answers, creations = [], [], []
    for number in range(pairs + 1):
        peer.forget_shape()
        start = time.perf_counter_ns()
        held.append(snapshot.fork())
        forked_ns = time.perf_counter_ns() - start
        ask(held[-1], echo)
        answered_ns = time.perf_counter_ns() - start
        created_ns = peer.create_ns()
        if number:
            unpooled.append(float(forked_ns))
            cold_answers.append(float(answered_ns))
            creations.append(created_ns)
    slots = peer.shape_slots()

    counts = _fork_counts(peer, snapshot, held, echo)
    rows = [
        compare(
            "fork of a bound VM",
            forks,
            x_ns,
            Promise("<=", 5, "X"),
            counts=counts["fork"],
            shown=COSTS,
        ),
        compare(
            "binding ahead, against its slot ioctls",
            binds,
            slot_times,
            Promise("<=", 1.3, "slot ioctls"),
            counts=counts["bind"],
            shown=COSTS,
        ),
        compare(
            "fork with a new VM, against creating one with its slots",
            unpooled,
            creations,
            Promise("<=", 1.3, "creation"),
            counts={**counts["unpooled"], "slots": slots},
            shown=(*COSTS, "slots"),
        ),
        compare(
            "fork of a bound VM to its first answer",
            answers,
            x_ns,
            counts=counts["answer"],
            shown=COSTS,
        ),
        compare("fork with a new VM to its first answer", cold_answers, creations),
        compare("closing a fork, which is put back for the next", closes, x_ns),
        compare("closing one whose program has ended: its VM is emptied", ends, x_ns),
    ]
    peer.drop_vms()
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


def _bound_round(peer: Peer, snapshot: kvmlet.Snapshot, message: bytes) -> _Bound:
    before = peer.asked()
    bind_ns = spent_ns(lambda: snapshot.prepare(1))
    asked = peer.asked().since(before)
    if asked.creations:
        raise BenchError("binding made a VM although an empty one was there")
    start = time.perf_counter_ns()
    sandbox = snapshot.fork()
    fork_ns = float(time.perf_counter_ns() - start)
    if peer.asked().since(before).slots != asked.slots:
        raise BenchError("forking a bound VM took slot ioctls")
    answer_ns = spent_ns(lambda: ask(sandbox, message))
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


def _fork_counts(
    peer: Peer, snapshot: kvmlet.Snapshot, held: list[kvmlet.Sandbox], message: bytes
) -> dict[str, dict[str, float]]:
    peer.watch_mappings()
    times = 5
    unpooled = Cost.of(peer, lambda: held.append(snapshot.fork()), times)
    for _ in range(times):
        end(held.pop())
    bind = Cost.of(peer, lambda: snapshot.prepare(times), 1)
    bound: list[kvmlet.Sandbox] = []
    forked = Cost.of(peer, lambda: bound.append(snapshot.fork()), times)
    faults = sum(stat(sandbox, "exits_fault") for sandbox in bound)
    answered = Cost.of(peer, lambda: [ask(sandbox, message) for sandbox in bound], 1)
    faults = sum(stat(sandbox, "exits_fault") for sandbox in bound) - faults
    held += bound

    def each(cost: Cost) -> dict[str, float]:
        return {name: count / times for name, count in cost.asked.items()}

    return {
        "unpooled": unpooled.asked,
        "bind": each(bind),
        "fork": forked.asked,
        "answer": {**each(answered), "faults": faults / times},
    }


# ---- reset ----


def reset(peer: Peer, live: int, pairs: int) -> list[Row]:
    """Putting a fork back, by the pages that its request wrote."""
    snapshot = warmed()
    others = crowd(snapshot, live, dirtying(SMALL))
    measured = [_resets(peer, snapshot, pages, pairs) for pages in DIRTIED]
    mixed = _mixed(peer, snapshot, pairs)
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
    for _ in range(3):
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
            alones.append(spent_ns(lambda: ask(free, message)))
            copies.append(peer.copy_ns(copied))
        result.reset_ns.append(float(undisturbed(resets)))
        result.added_ns.append(max(undisturbed(wholes) - undisturbed(alones), 1.0))
        result.x_ns.append(peer.x_ns(2))
        result.copy_ns.append(undisturbed(copies))
    return result


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


def _mixed(peer: Peer, snapshot: kvmlet.Snapshot, pairs: int) -> Row:
    """A load that writes now few, now many pages, against two simpler ways of resetting it.

    One copies back every page that any request has written; the other takes a fault for each page
    that this request writes. Their times are put together from what their parts were measured to
    take here.
    """
    sandbox, free = snapshot.fork(), snapshot.fork()
    messages = [dirtying(pages, first) for pages, first in MIXED]
    for _ in range(3):
        for message in messages:
            clean(sandbox, message)
            sandbox.reset()
            ask(free, message)
    union = len({first + page for pages, first in MIXED for page in range(pages)})
    ours, better = [], []
    for _ in range(pairs):
        added_ns = 0.0
        for message in messages:
            whole = undisturbed(spent_ns(partial(_and_reset, sandbox, message)) for _ in range(3))
            added_ns += whole - undisturbed(spent_ns(partial(ask, free, message)) for _ in range(3))
        x_ns = peer.x_ns(2)
        fault_ns, _ = _fault_ns(peer, snapshot)
        copy_all = len(MIXED) * (2 * x_ns + undisturbed(peer.copy_ns(union) for _ in range(3)))
        protect = sum(2 * x_ns + pages * fault_ns for pages, _ in MIXED)
        ours.append(max(added_ns, 1.0))
        better.append(min(copy_all, protect))
    counts = {"pages_union": float(union), "pages_mean": sum(p for p, _ in MIXED) / len(MIXED)}
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


def _and_reset(sandbox: kvmlet.Sandbox, message: bytes) -> None:
    clean(sandbox, message)
    sandbox.reset()


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
    counts = {**_counts(asked, pages), "faults": faults / pages}
    return max(first_ns - again_ns, 1.0) / pages, counts


# ---- calls ----


def calls(peer: Peer, live: int, pairs: int) -> list[Row]:
    """A message and its answer, a call by name, a first write, and a request that is repeated."""
    snapshot = warmed()
    others = crowd(snapshot, live, dirtying(SMALL))
    sandbox = snapshot.fork()
    echo = request(ECHO)
    messages, called, faults, x_ns = [], [], [], []
    for _ in range(pairs):
        x_ns.append(peer.x_ns(3))
        messages.append(undisturbed(spent_ns(lambda: ask(sandbox, echo)) for _ in range(20)))
        called.append(undisturbed(spent_ns(lambda: sandbox.call("add_one", 41)) for _ in range(20)))
        faults.append(_fault_ns(peer, snapshot)[0])
    if sandbox.call("add_one", 41) != 42:
        raise BenchError("add_one(41) is not 42")
    repeated = _repeated(peer, snapshot)
    peer.watch_mappings()
    costs = {
        "message": Cost.of(peer, lambda: ask(sandbox, echo), 20).asked,
        "call": Cost.of(peer, lambda: sandbox.call("add_one", 41), 20).asked,
        "fault": _fault_ns(peer, snapshot)[1],
    }
    rows = [
        compare("message and answer", messages, x_ns, counts=costs["message"], shown=COSTS),
        compare("call by name", called, x_ns, counts=costs["call"], shown=COSTS),
        compare("first write to a frozen page", faults, x_ns, counts=costs["fault"], shown=COSTS),
        *repeated,
    ]
    for one in (sandbox, *others):
        one.close()
    return rows


def _repeated(peer: Peer, snapshot: kvmlet.Snapshot) -> list[Row]:
    """Faults of the second identical request."""
    rows = []
    for pages in (1, 113, 4096):
        message = dirtying(pages)
        sandbox = snapshot.fork()
        seen = []
        for _ in range(2):
            faults, taken = stat(sandbox, "exits_fault"), peer.kvm_counter("pf_taken")
            clean(sandbox, message)
            seen.append(
                (
                    stat(sandbox, "exits_fault") - faults,
                    float(peer.kvm_counter("pf_taken") - taken),
                )
            )
            sandbox.reset()
        end(sandbox)
        for what, first, second in zip(("exits for #PF", "pf_taken"), *seen, strict=True):
            rows.append(
                Row(
                    f"second identical request, {pages} pages: {what}",
                    second,
                    first,
                    Spread.of([second]),
                    Promise("<=", 0, "faults"),
                    unit="",
                )
            )
    return rows


# ---- requests per second ----


def serve(peer: Peer, live: int, pairs: int) -> list[Row]:
    """Requests with a reset each, against a child process each and a fresh program each."""
    message = dirtying(SMALL)
    argv = ("./dirty",)
    return _served(peer, argv, message, live, pairs, "C")


def python(peer: Peer, live: int, pairs: int) -> list[Row]:
    """A warmed Python program: its forks, its resets and its requests, against its like."""
    numbers = [f"{number}.25" for number in range(20)]
    text = {"text": "the quick brown fox " * 20, "numbers": numbers}
    message = json.dumps(text).encode()
    argv = ("/usr/bin/python3", "serve.py")
    snapshot = warmed(argv)
    trained(snapshot, message)
    resets, requests, x_ns = [], [], []
    with snapshot.fork() as sandbox:
        first = ask(sandbox, message)
        for _ in range(pairs):
            x_ns.append(peer.x_ns())
            taken = []
            for _ in range(10):
                start = time.perf_counter_ns()
                sandbox.reset()
                middle = time.perf_counter_ns()
                if ask(sandbox, message) != first:
                    raise BenchError("an answer differs from the first")
                taken.append((middle - start, time.perf_counter_ns() - middle))
            resets.append(undisturbed(reset_ns for reset_ns, _ in taken))
            requests.append(undisturbed(request_ns for _, request_ns in taken))
        copied = int(stat(sandbox, "reset_pages_copied"))
        copies = [undisturbed(peer.copy_ns(copied) for _ in range(5)) for _ in range(pairs)]
        counts = {
            name: stat(sandbox, f"reset_{name}")
            for name in ("pages_copied", "pages_equal", "pages_kept", "pages_scrubbed")
        }
    allowed = [2 * x + 1.5 * copy for x, copy in zip(x_ns, copies, strict=True)]
    rows = [
        compare(
            "Python: reset, against 2 X + 1.5 x memcpy",
            resets,
            allowed,
            Promise("<=", 1, "of that"),
            counts=counts,
            shown=tuple(counts),
        ),
        compare("Python: request", requests, x_ns),
    ]
    snapshot.close()
    return rows + _served(peer, argv, message, live, pairs, "Python")


def _served(
    peer: Peer, argv: tuple[str, ...], message: bytes, live: int, pairs: int, what: str
) -> list[Row]:
    snapshot = warmed(argv)
    trained(snapshot, message)
    others = crowd(snapshot, live, message)
    rows = []
    for threads in (1, 2):
        ours: list[float] = []
        forking: list[float] = []
        plain: list[float] = []
        fresh: list[float] = []
        with (
            kvmlet.Pool(snapshot, size=threads, timeout=_TIMEOUT_S) as pool,
            Servers([*argv, "--fork"], threads) as servers,
            Servers(argv, threads) as plain_servers,
        ):
            arms: tuple[tuple[list[float], Callable[[int], object]], ...] = (
                (ours, lambda count: _pooled(pool, message, count)),
                (forking, lambda count: servers.serve(message, count)),
                (plain, lambda count: plain_servers.serve(message, count)),
            )
            for serve_some in (arm for _, arm in arms):
                serve_some(20)
            for number in range(pairs):
                for times, serve_some in (*arms[number % 3 :], *arms[: number % 3]):
                    times.append(spent_ns(partial(serve_some, 60)) / 60)
                fresh.append(fresh_ns(argv, message, threads))
            before, cpu = peer.asked(), time.process_time_ns()
            _pooled(pool, message, 60)
            counts = _counts(peer.asked().since(before), 60)
            counts["cpu_us"] = (time.process_time_ns() - cpu) / 60e3
        shown = ("exits", "ioctls", "slot_ioctls", "cpu_us")
        unit = f"{what}, {threads} thread{'s' * (threads > 1)}: request and reset"
        rows += [
            compare(f"{unit}, against fork()+exit", ours, forking, counts=counts, shown=shown),
            compare("  against a fresh subprocess", ours, fresh),
            compare("  against one server for all, nothing put back", ours, plain),
        ]
    for sandbox in others:
        sandbox.close()
    return rows


def _pooled(pool: kvmlet.Pool, message: bytes, count: int) -> None:
    for answer in [pool.request(message) for _ in range(count)]:
        answer.result()


# ---- memory ----


def memory(peer: Peer, live: int, pairs: int) -> list[Row]:
    """What a live fork that has answered one request takes of the host's memory."""
    del pairs
    snapshot = warmed()
    message = dirtying(SMALL)
    with snapshot.fork() as sample:
        for _ in range(3):
            clean(sample, message)
            sample.reset()
        written = stat(sample, "reset_pages_copied")
        kept = stat(sample, "reset_pages_kept")
        other = stat(sample, "reset_pages_scrubbed")
        tables = stat(sample, "private_table_pages")
    peer.x_ns()
    pss, free = _pss_bytes(), _available_bytes()
    forks = crowd(snapshot, live + 1, message)
    pss, free = _pss_bytes() - pss, free - _available_bytes()
    private = [stat(fork, "private_bytes") for fork in forks]
    for fork in forks:
        fork.close()
    pages = max(written, kept) + other + tables
    allowed = 4096 * pages + (128 << 10)
    counts = {
        "pages_written": written,
        "pages_kept": kept,
        "pages_other": other,
        "table_pages": tables,
    }
    of_fork = pss / live
    return [
        Row(
            "memory of a fork after a request (PSS), against its pages + 128 KiB",
            of_fork,
            allowed,
            Spread.of([of_fork / allowed]),
            Promise("<=", 1, "of that"),
            counts,
            tuple(counts),
            "bytes",
        ),
        Row(
            "  its own count of private memory, likewise",
            median(private),
            allowed,
            Spread.of([median(private) / allowed]),
            None,
            unit="bytes",
        ),
        Row(
            "  all that the host has less for it, KVM's own included",
            free / live,
            allowed,
            Spread.of([free / live / allowed]),
            None,
            unit="bytes",
        ),
        Row(
            "  pages copied ahead, against those that requests write",
            kept,
            written,
            Spread.of([kept / max(written, 1)]),
            Promise("<=", 1.5, "of those"),
            unit="",
        ),
    ]


def _pss_bytes() -> int:
    gc.collect()
    return _field("/proc/self/smaps_rollup", "Pss:")


def _available_bytes() -> int:
    return _field("/proc/meminfo", "MemAvailable:")


def _field(path: str, name: str) -> int:
    with open(path, encoding="ascii") as lines:
        for line in lines:
            if line.startswith(name):
                return int(line.split()[1]) << 10
    raise BenchError(f"{path} has no {name}")


CASES = {case.__name__: case for case in (fork, reset, calls, serve, memory, python)}


def main() -> None:
    """Measure one case and print its rows."""
    name, live, pairs = sys.argv[1:]
    os.chdir(BUILD)
    gc.disable()
    try:
        rows = CASES[name](Peer(), int(live), int(pairs))
    except (BenchError, kvmlet.KvmletError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps([asdict(row) for row in rows]))
    # What was watched cannot be unwatched: threads that end would wait for the one that counts.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
