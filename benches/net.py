"""`make bench-net`: what sockets cost, inside of a sandbox and to the host, against native ones.

As in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it. X is
the cost of one bare exit from a VM and re-entry. Redis is the one of Debian, asked by its own
benchmark in the same sandbox; without it those rows are missing.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING

from measure import (
    KVMLET,
    BenchError,
    interleave,
    kvmlet,
    native,
    program,
    runsc,
    why_not,
)
from report import Case, Promise, Row, compare, parser, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from measure import Run

CALLER = "127.0.0.54"
"""The caller's loopback address, as programs know it (host.kvmlet.internal)."""

MIB = 1 << 20
STREAMS = {
    "tcp": ("a TCP stream of the loopback device", "tcp"),
    "unix": ("a stream of AF_UNIX", "unix"),
}
BLOCKS = {MIB: (">=", 0.8, "auto"), 64 << 10: (">=", 0.8, "poll")}
"""For each size of a write, in bytes: the promise against native, and how calls travel."""
HAND_OVER_EXIT = Promise("<=", 1.2, "X")
HAND_OVER_POLLED = Promise("<=", 2, "native")
HOST_STREAM = Promise(">=", 0.7, "native")
CONNECT_X = 4
"""An allowed connect(2) takes as long as a native one, and so many exits, at most."""

REDIS = {
    "50 clients": (["-c", "50", "-n", "5000"], Promise(">=", 0.35, "native")),
    "16 in flight": (["-c", "50", "-n", "50000", "-P", "16"], Promise(">=", 0.8, "native")),
    "one client": (["-c", "1", "-n", "1000"], None),
}
"""Options of redis-benchmark, and the promise for requests per second."""

IDLE_CONNECTIONS = 1000
IDLE_S = 5
IDLE_CPU = Promise("<=", 0.01, "CPU")


@contextlib.contextmanager
def reading() -> Iterator[int]:
    """A server at 127.0.0.1 that reads all that comes; its port."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            buffer = bytearray(MIB)
            while connection.recv_into(buffer):
                pass

    def accept(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=4096) as server:
        thread = threading.Thread(target=accept, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def _operations(runs: list[Run]) -> list[float]:
    return [run.value("operation_ns") for run in runs]


def _streams(kind: str, peer: Callable[[Sequence[str]], Run] | None, pairs: int) -> list[Row]:
    words, name = STREAMS[kind]
    rows = []
    for block, (sense, bound, calls) in BLOCKS.items():
        argv = [program("talk"), name, str(block), "64"]
        arms = [partial(native, argv), partial(kvmlet, argv, calls=calls)]
        if peer is not None:
            arms.append(partial(peer, argv))
        done = [list(arm) for arm in zip(*interleave(pairs, *arms), strict=True)]
        size = f"{block >> 10} KiB" if block < MIB else f"{block >> 20} MiB"
        promise = Promise(sense, bound, "native")
        told = f"{words}, writes of {size}" + (", polled" if calls == "poll" else "")
        rows.append(compare(told, _operations(done[1]), _operations(done[0]), promise))
        if peer is not None:
            told = f"the same, writes of {size}, runsc --platform=ptrace"
            rows.append(compare(told, _operations(done[2]), _operations(done[0])))
    return rows


def _hand_over(pairs: int) -> list[Row]:
    rows = []
    for kind, words in (("hand-tcp", "TCP"), ("hand-unix", "AF_UNIX")):
        argv = [program("talk"), kind, "100"]
        floor = [program("kvm_floor"), "exit"]
        done = interleave(
            pairs,
            partial(native, floor),
            partial(native, argv),
            partial(kvmlet, argv, calls="exit"),
            partial(kvmlet, argv, calls="poll"),
        )
        floors, plain, left, polled = (list(arm) for arm in zip(*done, strict=True))
        x_ns = [run.value("x_ns") for run in floors]
        told = f"a hand-over by {words}"
        rows.append(compare(f"{told}, by exit", _operations(left), x_ns, HAND_OVER_EXIT))
        against = _operations(plain)
        rows.append(compare(f"{told}, polled", _operations(polled), against, HAND_OVER_POLLED))
    return rows


def _host(pairs: int) -> list[Row]:
    with reading() as port:
        net = ("--net", f"host.kvmlet.internal:{port}")
        there, inside = f"127.0.0.1:{port}", f"{CALLER}:{port}"
        talk = program("talk")
        done = interleave(
            pairs,
            partial(native, [talk, "host", there, str(MIB), "64"]),
            partial(kvmlet, [talk, "host", inside, str(MIB), "64"], options=net),
            partial(native, [talk, "connect", there, "200"]),
            partial(kvmlet, [talk, "connect", inside, "200"], options=net),
            partial(native, [program("kvm_floor"), "exit"]),
        )
    plain, ours, plain_connect, connect, floors = (list(arm) for arm in zip(*done, strict=True))
    allowed_ns = [
        run.value("operation_ns") + CONNECT_X * floor.value("x_ns")
        for run, floor in zip(plain_connect, floors, strict=True)
    ]
    told = "TCP to a server of the host, writes of 1 MiB"
    return [
        compare(told, _operations(ours), _operations(plain), HOST_STREAM),
        compare(
            f"connect(2) to an allowed address, against native and {CONNECT_X} X",
            _operations(connect),
            allowed_ns,
            Promise("<=", 1, "native + 4 X"),
        ),
    ]


def _redis(pairs: int) -> list[Row]:
    for name in ("redis-server", "redis-benchmark", "redis-cli"):
        if shutil.which(name) is None:
            raise BenchError(f"{name} is not installed")
    rows = []
    for words, (options, promise) in REDIS.items():
        # Nanoseconds of a request, of the second column of "GET","12345.67",...
        script = (
            "redis-server --port 18200 --save '' --dir /tmp >/dev/null & "
            "until redis-cli -p 18200 ping >/dev/null 2>&1; do sleep 0.1; done; "
            f"redis-benchmark -p 18200 --csv -t get {' '.join(options)} | "
            'awk -F\'"\' \'$2 == "GET" {print "operation_ns", 1e9 / $4}\'; '
            "redis-cli -p 18200 shutdown nosave; wait"
        )
        argv = ["/bin/sh", "-c", script]
        arms = [partial(native, argv), partial(kvmlet, argv)]
        if promise is None:
            arms.append(partial(native, [program("kvm_floor"), "exit"]))
        done = [list(arm) for arm in zip(*interleave(pairs, *arms), strict=True)]
        plain_ns, ours_ns = _operations(done[0]), _operations(done[1])
        told = f"GET of redis, {words}"
        if promise is None:
            floors = [run.value("x_ns") for run in done[2]]
            plain_ns = [ns + 4 * x for ns, x in zip(plain_ns, floors, strict=True)]
            told += ", against native and 4 X"
        bound = promise or Promise("<=", 1, "native + 4 X")
        rows.append(compare(told, ours_ns, plain_ns, bound))
    return rows


def _idle(pairs: int) -> list[Row]:
    """CPU time of the whole process by the second of sleep. Below 0, it is noise of two starts."""
    with reading() as port:
        net = ("--net", f"host.kvmlet.internal:{port}")
        idle = [program("talk"), "idle", f"{CALLER}:{port}"]
        long = [*idle, str(IDLE_CONNECTIONS), str(1 + IDLE_S)]
        short = [*idle, str(IDLE_CONNECTIONS), "1"]
        done = interleave(
            pairs, partial(kvmlet, long, options=net), partial(kvmlet, short, options=net)
        )
    # What it takes to start and to connect is in both.
    waits, starts = (list(arm) for arm in zip(*done, strict=True))
    ours = [
        (wait.cpu_ns - start.cpu_ns) / IDLE_S for wait, start in zip(waits, starts, strict=True)
    ]
    told = f"CPU time of a second with {IDLE_CONNECTIONS} idle connections"
    return [compare(told, ours, [1e9] * len(ours), IDLE_CPU)]


def main() -> int:
    """Run the bench; the exit status."""
    names = [*STREAMS, "hand-over", "host", "redis", "idle"]
    options = parser("net.py", __doc__, names).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-net`", file=sys.stderr)
        return 2
    reason = why_not(runsc)
    if reason:
        print(f"not compared with runsc --platform=ptrace: {reason}")
    peer = None if reason else runsc
    cases: dict[str, Callable[[int], list[Row]]] = {
        "hand-over": _hand_over,
        "host": _host,
        "redis": _redis,
        "idle": _idle,
    }
    for kind in STREAMS:
        cases[kind] = partial(_streams, kind, peer)
    wanted = options.only or names
    return run([Case(name, cases[name]) for name in wanted], options)


if __name__ == "__main__":
    sys.exit(main())
