"""`make bench-serve`: servers behind `kvmlet serve`, against the same servers as they are.

wrk asks each in turn, at 1 and at 16 connections that are kept alive. All run on the same CPUs. As
in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it. A
latency is that of the median request. The 90th and the 99th stand beside it, with the exits from
the VM and the pages that were put back for one request. X is one bare exit from a VM and re-entry.

The multiples in parentheses are those that KVM Server has published, of bare metal. One local hop
is a request to the C server as it is, at one connection.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import (
    ENV,
    HERE,
    KVMLET,
    BenchError,
    Run,
    Spread,
    interleave,
    native,
    program,
)
from report import Case, Promise, Row, compare, parser, run

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = (1, 16)
ISOLATION = ("none", "connection", "request")
RUN_S = 0.6
_START_S = 60.0
# Connections that hold a fork each, with some to spare for those that are being put back.
_FORKS = 20
_BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Server:
    """A server to be measured: its command with {port}, and what it is held to."""

    words: str
    argv: tuple[str, ...]
    needs: str = ""
    """A program, or a path, without which it is left out."""
    path: str = "/"
    exits_allowed: int = 0
    """One connection, isolated by connection: so many X more than natively."""
    ratio_allowed: float = 0
    """Or so many times the native latency."""
    speed: float = 0
    """16 connections, isolated by request: the least part of the native throughput."""
    published: str = ""


SERVERS = {
    "c": Server(
        "C, epoll", (program("web"), "{port}"), exits_allowed=6, published="KVM Server: 2.2 x"
    ),
    "page": Server(
        "C, a page of 5 ms",
        (program("web"), "{port}", "{rounds}"),
        path="/page",
        ratio_allowed=1.15,
        published="KVM Server: 1.08 x",
    ),
    "uvicorn": Server(
        "uvicorn",
        (
            *(str(_BIN / "python"), "-m", "uvicorn", "--port", "{port}"),
            *("--log-level", "error", "web_asgi:app"),
        ),
        needs=str(_BIN / "uvicorn"),
        speed=0.5,
    ),
    "node": Server(
        "Node",
        ("node", "web.js", "{port}"),
        needs="node",
        exits_allowed=12,
        published="KVM Server: 2.9 x",
    ),
    "deno": Server(
        "Deno",
        (str(_BIN / "deno"), "run", "--allow-net", "web.ts", "{port}"),
        needs=str(_BIN / "deno"),
        exits_allowed=12,
        published="KVM Server: 2.9 x",
    ),
}


class Asked:
    """A server that runs: natively, or by `kvmlet serve`."""

    def __init__(self, url: str, control: int | None) -> None:
        self.url = url
        self._control = control

    def counts(self) -> dict[str, float]:
        """The counters of `kvmlet serve`. Raises BenchError."""
        if self._control is None:
            return {}
        page = _get(self._control, "/metrics").splitlines()
        values = {}
        for line in page:
            name, _, number = line.rpartition(" ")
            with contextlib.suppress(ValueError):
                values[name] = float(number)
        return values

    def wrk(self, connections: int) -> Run:
        """Ask it for a while with so many connections. Raises BenchError."""
        before = self.counts()
        # wrk counts whole seconds. Interrupted, it says what it has measured so far.
        argv = ["timeout", "--preserve-status", "-sINT", str(RUN_S)]
        argv += ["wrk", "-t1", f"-c{connections}", "-d60s", "--timeout", "30s"]
        done = native([*argv, "-s", str(HERE / "wrk.lua"), self.url])
        if done.value("failed") or not done.value("requests"):
            raise BenchError(f"wrk {self.url}: {done.values}")
        after = self.counts()
        stats = {name: value - before.get(name, 0) for name, value in after.items()}
        return Run(done.wall_ns, done.values, stats)


def _get(port: int, path: str) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), _START_S) as stream:
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
            return b"".join(iter(lambda: stream.recv(65536), b"")).decode(errors="replace")
    except OSError as error:
        raise BenchError(f"port {port}: {error}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _running(argv: list[str], port: int, path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that answers at `port`; it ends with the block. Raises BenchError."""
    quiet = subprocess.DEVNULL
    with subprocess.Popen(argv, env=ENV, stdout=quiet, stderr=subprocess.PIPE) as process:
        try:
            end_s = time.monotonic() + _START_S
            while True:
                with contextlib.suppress(BenchError):
                    if " 200 " in _get(port, path)[:16]:
                        break
                if process.poll() is not None or time.monotonic() > end_s:
                    process.kill()
                    said = process.stderr.read().decode() if process.stderr else ""
                    raise BenchError(f"{argv[0]}: {(said.splitlines() or ['no answer'])[-1]}")
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def _native(server: Server, rounds: int) -> Iterator[Asked]:
    port = _free_port()
    argv = [word.format(port=port, rounds=rounds) for word in server.argv]
    with _running(argv, port, server.path):
        yield Asked(f"http://127.0.0.1:{port}{server.path}", None)


@contextlib.contextmanager
def _served(server: Server, rounds: int, isolate: str) -> Iterator[Asked]:
    port, control = _free_port(), _free_port()
    options = ["--listen", str(port), "--control", str(control), "--isolate", isolate]
    options += ["--forks", str(_FORKS), "--memory", "1g", "-q", "--idle-timeout", "1h"]
    if isolate != "connection":
        options += ["--warmup-request", f"GET {server.path}", "--warmup", "10"]
    inside = [word.format(port=8000, rounds=rounds) for word in server.argv]
    with _running([str(KVMLET), "serve", *options, "--", *inside], control, "/-/ready"):
        yield Asked(f"http://127.0.0.1:{port}{server.path}", control)


def _rows(server: Server, pairs: int) -> list[Row]:
    """The rows of one server. Raises BenchError."""
    if server.needs and not (shutil.which(server.needs) or os.path.exists(server.needs)):
        raise BenchError(f"{os.path.basename(server.needs)} is not installed")
    rounds = int(native([program("web"), "calibrate"]).value("rounds"))
    floor = [program("kvm_floor"), "exit"]
    rows = []
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(_native(server, rounds))
        hop = plain if server is SERVERS["c"] else stack.enter_context(_native(SERVERS["c"], 0))
        ours = [stack.enter_context(_served(server, rounds, each)) for each in ISOLATION]
        for connections in CONNECTIONS:
            arms = [partial(each.wrk, connections) for each in (plain, *ours)]
            if connections == 1 and server.exits_allowed and hop is not plain:
                arms.append(partial(hop.wrk, 1))
            done = interleave(pairs, partial(native, floor), *arms)
            natives = [runs[1] for runs in done]
            hops = [runs[5] if len(runs) > 5 else runs[1] for runs in done]
            bare = Bare(
                [1e3 * each.value("p50_us") for each in natives],
                [runs[0].value("x_ns") for runs in done],
                [1e3 * each.value("p50_us") for each in hops],
            )
            for position, isolate in enumerate(ISOLATION):
                guests = [runs[2 + position] for runs in done]
                rows += _compared(server, connections, isolate, guests, natives, bare)
    return rows


@dataclass(frozen=True, slots=True)
class Bare:
    """The measures that a latency is held to, in each round."""

    native_ns: list[float]
    x_ns: list[float]
    hop_ns: list[float]

    def allowed_ns(self, exits: int, hops: int) -> list[float]:
        """So many X and local hops more than natively."""
        rounds = zip(self.native_ns, self.x_ns, self.hop_ns, strict=True)
        return [native + exits * x + hops * hop for native, x, hop in rounds]


def _compared(
    server: Server,
    connections: int,
    isolate: str,
    guests: list[Run],
    natives: list[Run],
    bare: Bare,
) -> list[Row]:
    """Latency and throughput of one kind of isolation at so many connections."""
    which = f"{server.words}, {connections} at once, isolate {isolate}"
    ours = [1e3 * guest.value("p50_us") for guest in guests]
    counts = {
        f"p{part}_us": Spread.of([guest.value(f"p{part}_us") for guest in guests]).median
        for part in (90, 99)
    }
    for name, metric in (("exits", "exits"), ("pages", "pages_reset")):
        each = [guest.stat(f"kvmlet_{metric}_total") / guest.value("requests") for guest in guests]
        counts[name] = Spread.of(each).median
    is_first = connections == 1 and isolate == "connection"
    promise = Promise("<=", server.ratio_allowed, "native") if server.ratio_allowed else None
    words = f"{which}: latency" + (f" ({server.published})" if server.published else "")
    rows = [
        compare(
            words,
            ours,
            bare.native_ns,
            promise if is_first else None,
            counts=counts,
            shown=tuple(counts),
        )
    ]
    exits = server.exits_allowed
    # A request of its own may cost two exits more, and one hop of this machine.
    more = {"connection": (0, 0), "request": (2, 1)}
    if exits and connections == 1 and isolate in more:
        exits, hops = exits + more[isolate][0], more[isolate][1]
        said = f"  against native + {exits} X" + (" + a local hop" if hops else "")
        allowed = bare.allowed_ns(exits, hops)
        rows.append(compare(said, ours, allowed, Promise("<=", 1, "of that")))
    speed = Promise(">=", server.speed, "native") if server.speed else None
    wanted = connections > 1 and isolate == "request"
    spent = [1e3 * run.value("duration_us") / run.value("requests") for run in guests]
    spent_plain = [1e3 * run.value("duration_us") / run.value("requests") for run in natives]
    rows.append(
        compare("  time per request (throughput)", spent, spent_plain, speed if wanted else None)
    )
    return rows


def main() -> int:
    """Run the bench; the exit status."""
    options = parser("serve.py", __doc__, list(SERVERS)).parse_args()
    for missing in [word for word in (str(KVMLET), "wrk") if shutil.which(word) is None]:
        print(f"bench: {missing} is missing: run `make bench-serve`", file=sys.stderr)
        return 2
    wanted = options.only or list(SERVERS)
    return run([Case(name, partial(_rows, SERVERS[name])) for name in wanted], options)


if __name__ == "__main__":
    sys.exit(main())
