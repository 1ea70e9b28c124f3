"""`kvmlet serve` under load: reloads and stops fail no request, slow and idle clients take no fork.

`make test-long PART=servers` has wrk, h2load and PyPI's h2, and many more clients.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import os
import pathlib
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from e2e.certificates import certificate, client
from e2e.oracle import GUESTS, HANG_S, LONG
from e2e.serving import Served, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.usefixtures("vm"),
    pytest.mark.default_mode,
    pytest.mark.timeout(1200 if LONG else 120),
]

ONLY_LONG = pytest.mark.skipif(not LONG, reason="it takes minutes: make test-long PART=servers")
WRK_S = 8
CONNECTIONS = 16


@pytest.fixture
def program(guests: pathlib.Path) -> list[str]:
    return [os.fspath(GUESTS / "build" / "webserver"), "epoll", "8000"]


def needs(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} here: make test-long PART=servers installs it")


class Asking(threading.Thread):
    """A client of one connection that is kept alive; `wrong` has what was no good answer."""

    def __init__(self, served: Served, context: ssl.SSLContext | None = None) -> None:
        super().__init__()
        self.served, self.context = served, context
        self.wrong: list[object] = []
        self.count = 0
        self.over = threading.Event()

    def run(self) -> None:
        connection = (
            self.served.connect()
            if self.context is None
            else http.client.HTTPSConnection(
                "localhost", self.served.port, timeout=HANG_S, context=self.context
            )
        )
        while not self.over.is_set():
            is_new = connection.sock is None
            try:
                connection.request("GET", "/count")
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException) as error:
                # Nobody listens any more once it is being stopped.
                if not (is_new and isinstance(error, ConnectionRefusedError)):
                    self.wrong.append(error)
                return
            if answer.status != 200 or not body.startswith(b"counter 1 file 1 list 1 "):
                self.wrong.append((answer.status, body))
            self.count += 1


@contextlib.contextmanager
def asking(served: Served, count: int, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """Clients that ask all the time, and must not have failed in the end."""
    clients = [Asking(served, context) for _ in range(count)]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        for each in clients:
            each.over.set()
        for each in clients:
            each.join(HANG_S)
    assert [each.wrong for each in clients] == [[]] * count
    assert min(each.count for each in clients) > 0


@pytest.mark.parametrize("by_tls", [False, True])
def test_reloads_and_a_stop_fail_no_request(
    by_tls: bool, tmp_path: pathlib.Path, program: list[str]
) -> None:
    made = certificate(tmp_path, "first")
    words = ["--tls-cert", str(made.cert), "--tls-key", str(made.key)] if by_tls else []
    context = client(made) if by_tls else None
    with serving(tmp_path, *words, program=program) as served, asking(served, 6, context):
        for reloads in range(1, 4):
            served.process.send_signal(signal.SIGHUP)
            served.until("kvmlet_reloads_total", reloads)
        time.sleep(0.1)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(HANG_S) == 0


def test_one_fork_is_free_for_the_next_request_of_a_client(
    tmp_path: pathlib.Path, program: list[str]
) -> None:
    """It is being put back then, and with a queue of none nobody else could wait."""
    with serving(tmp_path, "--forks", "1", "--queue", "0", program=program) as served:
        with asking(served, 1):
            time.sleep(0.5)
            served.process.send_signal(signal.SIGHUP)
            served.until("kvmlet_reloads_total", 1)
            time.sleep(0.2)
        assert served.metric('kvmlet_requests_total{outcome="full"}') == 0


# ---- clients that cost nothing ----


def may_open(count: int) -> None:
    """Raises the limit on descriptors as far as it takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"at most {hard} descriptors here: ulimit -Hn {count}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))


@pytest.mark.parametrize(
    ("slow", "idle"),
    [(60, 300), pytest.param(1000, 10_000, marks=ONLY_LONG)],
)
def test_slow_and_idle_clients_take_no_fork(
    slow: int, idle: int, tmp_path: pathlib.Path, program: list[str]
) -> None:
    may_open(slow + idle + 200)
    options = ["--forks", "2", "--header-timeout", "10m", "--keepalive", "10m"]
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(serving(tmp_path, *options, program=program))

        def connected() -> socket.socket:
            stream = socket.create_connection(("127.0.0.1", served.port), HANG_S)
            return stack.enter_context(stream)

        pieces = (b"GET /count HT", b"GET /count HTTP/1.1\r\nHost: x", b"\x50\x52\x49 * HTTP/2")
        slow_ones = [connected() for _ in range(slow)]
        for number, stream in enumerate(slow_ones):
            stream.sendall(pieces[number % len(pieces)])
        for _ in range(idle):
            stream = connected()
            stream.sendall(b"GET /count HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b"from " not in answer:
                more = stream.recv(4096)
                assert more, answer
                answer += more
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), answer
        served.until("kvmlet_connections", slow + idle)
        served.until("kvmlet_forks_busy", 0)
        assert served.metric("kvmlet_queue_length") == 0
        for _ in range(20):
            assert served.get("/count")[0] == 200
        slow_ones[0].sendall(b"TP/1.1\r\nHost: x\r\n\r\n")
        assert slow_ones[0].recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")


# ---- tools of others ----


def wrk(served: Served, scheme: str, meanwhile: Callable[[], None]) -> str:
    url = f"{scheme}://127.0.0.1:{served.port}/count"
    argv = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{WRK_S}s", "--timeout", "30s", url]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        meanwhile()
        said, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0
    return said


def failed(said: str) -> dict[str, int]:
    """The requests that have failed, by the way they did."""
    errors = re.search(r"Socket errors: (.*)", said)
    counts = dict(part.rsplit(" ", 1) for part in errors[1].split(", ")) if errors else {}
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    all_of_them = {name: int(count) for name, count in counts.items()}
    return {**all_of_them, "status": int(refused[1]) if refused else 0}


@ONLY_LONG
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_wrk_sees_no_failure(scheme: str, tmp_path: pathlib.Path, program: list[str]) -> None:
    needs("wrk")
    made = certificate(tmp_path, "first")
    words = ["--tls-cert", str(made.cert), "--tls-key", str(made.key)]
    options = ["--forks", "8", *(words if scheme == "https" else [])]
    with serving(tmp_path, *options, program=program) as served:

        def reload() -> None:
            for reloads in range(1, 6):
                served.process.send_signal(signal.SIGHUP)
                served.until("kvmlet_reloads_total", reloads)

        said = wrk(served, scheme, reload)
        assert not any(failed(said).values()), said
        said = wrk(served, scheme, lambda: served.process.send_signal(signal.SIGTERM))
        # Once it has ended nobody can connect any more: wrk tells of that when it writes, or by TLS
        # when it connects. An answer that is missing or cut off is told of when it reads.
        counts = failed(said)
        refused = counts.pop("write", 0) + counts.pop("connect", 0)
        assert refused > 0, said
        assert not any(counts.values()), said
        assert served.process.wait(HANG_S) == 0


@ONLY_LONG
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_h2load_sees_no_failure(scheme: str, tmp_path: pathlib.Path, program: list[str]) -> None:
    needs("h2load")
    made = certificate(tmp_path, "first")
    words = ["--tls-cert", str(made.cert), "--tls-key", str(made.key)]
    options = ["--forks", "8", *(words if scheme == "https" else [])]
    with serving(tmp_path, *options, program=program) as served:
        url = f"{scheme}://127.0.0.1:{served.port}/count"
        argv = ["h2load", "-n", "5000", "-c", "10", "-m", "20", url]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            for reloads in range(1, 4):
                served.process.send_signal(signal.SIGHUP)
                served.until("kvmlet_reloads_total", reloads)
            said, _ = process.communicate(timeout=HANG_S)
        assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in said, said
        assert "status codes: 5000 2xx" in said, said


class Peer:
    """A client of HTTP/2 by PyPI's h2, which checks all that the server says."""

    def __init__(self, served: Served) -> None:
        config: Any = importlib.import_module("h2.config")
        connection: Any = importlib.import_module("h2.connection")
        # What is sent may be wrong on purpose.
        self.h2 = connection.H2Connection(
            config.H2Configuration(
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                header_encoding=None,
            )
        )
        self.socket = socket.create_connection(("127.0.0.1", served.port), HANG_S)
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def ask(self, fields: list[tuple[bytes, bytes]], body: bytes = b"") -> int:
        stream: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream, fields, end_stream=not body)
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        self.flush()
        return stream

    def events(self) -> list[Any]:
        """The events that have come, [] once the connection is over."""
        data = self.socket.recv(65536)
        events: list[Any] = self.h2.receive_data(data) if data else []
        for event in events:
            if type(event).__name__ == "DataReceived":
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        with contextlib.suppress(OSError):
            self.flush()
        return events

    def outcome(self, stream: int) -> str:
        """The status of an answer, or "reset" of its stream, or "end" of the connection."""
        status = ""
        with contextlib.suppress(ConnectionError):
            while events := self.events():
                for event in events:
                    kind = type(event).__name__
                    if kind == "ConnectionTerminated":
                        return "end"
                    if getattr(event, "stream_id", 0) != stream:
                        continue
                    if kind == "ResponseReceived":
                        status = dict(event.headers)[b":status"].decode()
                    elif kind == "StreamReset":
                        return status or "reset"
                    elif kind == "StreamEnded":
                        return status
        return "end"


GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/count"), (b":authority", b"h")]
# The fields of a request, and the outcomes that are right (RFC 9113, 8).
HTTP2 = {
    "plain": (GET, {"200"}),
    "cookies": ([*GET, (b"cookie", b"a=1"), (b"cookie", b"b=2")], {"200"}),
    "trailers wanted": ([*GET, (b"te", b"trailers")], {"200"}),
    "the same host": ([*GET, (b"host", b"h")], {"200"}),
    "another host": ([*GET, (b"host", b"evil")], {"400", "reset"}),
    "two hosts": ([*GET, (b"host", b"h"), (b"host", b"h")], {"400", "reset"}),
    "no path": ([each for each in GET if each[0] != b":path"], {"400", "reset", "end"}),
    "an empty path": ([*GET[:2], (b":path", b""), GET[3]], {"400", "reset", "end"}),
    "two paths": ([*GET, (b":path", b"/")], {"400", "reset", "end"}),
    "a path with a space": ([*GET[:2], (b":path", b"/a b"), GET[3]], {"400", "reset", "end"}),
    "no method": (GET[1:], {"400", "reset", "end"}),
    "a late pseudo-field": ([(b"a", b"b"), *GET], {"400", "reset", "end"}),
    "an unknown pseudo-field": ([*GET, (b":x", b"y")], {"400", "reset", "end"}),
    "a status in a request": ([*GET, (b":status", b"200")], {"400", "reset", "end"}),
    "capitals": ([*GET, (b"X-A", b"b")], {"400", "reset", "end"}),
    "connection": ([*GET, (b"connection", b"close")], {"200", "400", "reset"}),
    "chunks": ([*GET, (b"transfer-encoding", b"chunked")], {"400", "reset"}),
    "an underscore": ([*GET, (b"transfer_encoding", b"chunked")], {"400"}),
    "a name with a colon": ([*GET, (b"a:b", b"c")], {"400", "reset", "end"}),
    "a line end": ([*GET, (b"a", b"b\r\nc: d")], {"400", "reset", "end"}),
    "a null byte": ([*GET, (b"a", b"b\0c")], {"400", "reset", "end"}),
    "a wrong length": ([*GET, (b"content-length", b"5")], {"400", "reset"}),
    "many fields": ([*GET, *((b"a", b"b"),) * 300], {"431", "400", "reset", "end"}),
    "a long field": ([*GET, (b"a", b"b" * 60_000)], {"431", "400", "reset", "end"}),
    "CONNECT": ([(b":method", b"CONNECT"), (b":authority", b"h:1")], {"405", "400", "reset"}),
}


@ONLY_LONG
def test_http2_as_others_speak_it(tmp_path: pathlib.Path, program: list[str]) -> None:
    if importlib.util.find_spec("h2") is None:
        pytest.skip("no h2 here: make test-long PART=servers installs it")
    with serving(tmp_path, program=program) as served:
        for name, (fields, right) in HTTP2.items():
            peer = Peer(served)
            with peer.socket:
                outcome = peer.outcome(peer.ask(fields))
                assert outcome in right, (name, outcome)
        # A length that is not that of the body.
        for said, right in ((b"3", {"200"}), (b"2", {"400", "reset"}), (b"9", {"400", "reset"})):
            peer = Peer(served)
            with peer.socket:
                post = [(b":method", b"POST"), *GET[1:], (b"content-length", said)]
                assert peer.outcome(peer.ask(post, b"abc")) in right, said
        # Streams that are given up as fast as they are made end their connection, and no other.
        peer = Peer(served)
        with peer.socket, contextlib.suppress(OSError):
            for _ in range(2000):
                peer.h2.reset_stream(peer.ask(GET))
                peer.flush()
        # Many at once, of one connection.
        peer = Peer(served)
        with peer.socket:
            left = {peer.ask(GET) for _ in range(60)}
            while left:
                for event in peer.events():
                    if type(event).__name__ == "StreamEnded":
                        left.discard(event.stream_id)
        served.until("kvmlet_forks_busy", 0)
        assert served.get("/count")[0] == 200
        assert served.metric("kvmlet_forks_rebuilt_total") == 0
