"""Cases of live.py: requests per second, memory, a Python program."""

from __future__ import annotations

import gc
import json
import time
from functools import partial
from typing import TYPE_CHECKING

from measure import BenchError, Spread
from peers import Servers, fresh_ns
from report import Promise, Row, compare
from warm import (
    SMALL,
    TIMEOUT_S,
    ask,
    clean,
    counts_of,
    crowd,
    dirtying,
    end,
    faults_of,
    faults_rows,
    median,
    spent_ns,
    stat,
    trained,
    undisturbed,
    warmed,
)

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from peer import Peer


LEAST_FORKS = 8
"""For a figure of memory per fork."""
MANY_FORKS = 64
"""For one of the memory of the whole machine, in which others live too."""


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
    resets, requests, x_ns, copies = [], [], [], []
    fresh = snapshot.fork()
    cold = faults_of(peer, fresh, message, 1)
    fresh.close()
    with snapshot.fork() as sandbox:
        first = ask(sandbox, message)
        for _ in range(pairs):
            x_ns.append(peer.x_ns())
            taken = []
            for _ in range(30):
                start = time.perf_counter_ns()
                sandbox.reset()
                middle = time.perf_counter_ns()
                if ask(sandbox, message) != first:
                    raise BenchError("an answer differs from the first")
                taken.append((middle - start, time.perf_counter_ns() - middle))
            resets.append(undisturbed(reset_ns for reset_ns, _ in taken))
            requests.append(undisturbed(request_ns for _, request_ns in taken))
            copied = int(stat(sandbox, "reset_pages_copied"))
            copies.append(undisturbed(peer.copy_ns(copied) for _ in range(5)))
        sandbox.reset()
        repeated = faults_of(peer, sandbox, message, 100)
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
        # Nothing is promised: no two runs of an interpreter write quite the same pages.
        *faults_rows("Python: 100 more identical requests", cold, repeated, None),
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
            kvmlet.Pool(snapshot, size=threads, timeout=TIMEOUT_S) as pool,
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
            counts = counts_of(peer.asked().since(before), 60)
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
    """The host's memory that a live fork takes once it has answered one request."""
    del peer, pairs
    snapshot = warmed()
    message = dirtying(SMALL)
    sample = snapshot.fork()
    for _ in range(3):
        clean(sample, message)
        sample.reset()
    written = stat(sample, "reset_pages_copied")
    kept = stat(sample, "reset_pages_kept")
    other = stat(sample, "reset_pages_scrubbed")
    tables = stat(sample, "private_table_pages")
    end(sample)
    count = max(live, LEAST_FORKS)
    pss, free = _pss_bytes(), _available_bytes()
    forks = crowd(snapshot, count + 1, message)
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
    of_fork = pss / count
    rows = [
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
            "  pages copied ahead, against those that requests write",
            kept,
            written,
            Spread.of([kept / max(written, 1)]),
            Promise("<=", 1.5, "of those"),
            unit="",
        ),
    ]
    if count >= MANY_FORKS:
        rows.append(
            Row(
                "  all that the host has less for it, KVM's own included",
                free / count,
                allowed,
                Spread.of([free / count / allowed]),
                None,
                unit="bytes",
            )
        )
    return rows


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
