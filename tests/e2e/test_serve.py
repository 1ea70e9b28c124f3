"""Unmodified servers: run until they wait for connections, warmed, frozen, forked per request."""

from __future__ import annotations

import http.client
import os
import pathlib
import shutil
import socket
import subprocess
import sysconfig
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import kvmlet
from e2e.oracle import GUESTS, HW, LONG, NO_RUNTIMES, sized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.usefixtures("vm")

LIMIT_S = 400 if HW else 60
PORT = 8080

# The directory of what the tests install, which is the current directory of a server that needs it.
PACKAGES = sysconfig.get_path("purelib")

# Counts in a global variable, in a file and in a global list.
_STATE = """
import os, random, ssl, sys, threading
sys.dont_write_bytecode = True
counter, seen, lock = 0, [], threading.Lock()
def count():
    global counter
    with lock:
        counter += 1
        seen.append(object())
        with open('/tmp/count', 'a') as file:
            file.write('x')
        return f'{counter} {os.path.getsize("/tmp/count")} {len(seen)}'.encode()
def body(path):
    if path == '/draw':
        return f'{random.random()} {ssl.RAND_bytes(8).hex()}'.encode()
    return count() if path == '/count' else b'ready'
"""
_WSGI = (
    _STATE
    + """
def app(environ, start):
    data = body(environ['PATH_INFO'])
    start('200 OK', [('Content-Length', str(len(data)))])
    return [data]
"""
)
PYTHON = {
    "http.server": _STATE
    + """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = body(self.path)
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.ThreadingHTTPServer(('127.0.0.1', 8080), Handler).serve_forever()
""",
    "wsgiref": _WSGI
    + """
import wsgiref.simple_server
wsgiref.simple_server.make_server('', 8080, app).serve_forever()
""",
    "waitress": _WSGI
    + """
import waitress
waitress.serve(app, host='127.0.0.1', port=8080, threads=3)
""",
    "uvicorn": _STATE
    + """
import uvicorn
async def app(scope, receive, send):
    if scope['type'] != 'http':
        return
    data = body(scope['path'])
    head = [(b'content-length', str(len(data)).encode())]
    await send({'type': 'http.response.start', 'status': 200, 'headers': head})
    await send({'type': 'http.response.body', 'body': data})
uvicorn.run(app, port=8080, lifespan='off', log_level='warning')
""",
    "gunicorn": _WSGI
    + """
from gunicorn.app.base import BaseApplication
class Application(BaseApplication):
    def load_config(self):
        self.cfg.set('bind', '127.0.0.1:8080')
        self.cfg.set('workers', 2)
        self.cfg.set('worker_tmp_dir', '/tmp')
    def load(self):
        return app
Application().run()
""",
}

NODE = """
const crypto = require('crypto'), fs = require('fs'), http = require('http');
let counter = 0;
const seen = [];
http.createServer((request, response) => {
    if (request.url === '/draw') return response.end(crypto.randomBytes(8).toString('hex'));
    if (request.url !== '/count') return response.end('ready');
    counter++;
    seen.push({});
    fs.appendFileSync('/tmp/count', 'x');
    response.end(`${counter} ${fs.statSync('/tmp/count').size} ${seen.length}`);
}).listen(8080, '127.0.0.1');
"""

GO = """
package main

import (
	"fmt"
	"net/http"
	"os"
	"sync"
)

var lock sync.Mutex
var counter int
var seen []*int

func main() {
	http.HandleFunc("/", func(response http.ResponseWriter, request *http.Request) {
		if request.URL.Path != "/count" {
			fmt.Fprint(response, "ready")
			return
		}
		lock.Lock()
		defer lock.Unlock()
		counter++
		seen = append(seen, new(int))
		file, _ := os.OpenFile("/tmp/count", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0600)
		file.Write([]byte("x"))
		file.Close()
		info, _ := os.Stat("/tmp/count")
		fmt.Fprintf(response, "%d %d %d", counter, info.Size(), len(seen))
	})
	panic(http.ListenAndServe("127.0.0.1:8080", nil))
}
"""


def python_server(name: str) -> kvmlet.Sandbox:
    """A Python program that serves on port 8080."""
    argv = ["/usr/bin/python3", "-c", PYTHON[name]]
    if name in ("http.server", "wsgiref"):
        return kvmlet.Sandbox(argv, memory="256m")
    pytest.importorskip(name)
    return kvmlet.Sandbox(argv, cwd=PACKAGES, env={"PYTHONPATH": PACKAGES}, memory="512m")


def c_server(mode: str) -> kvmlet.Sandbox:
    """The C program in one of its modes."""
    return kvmlet.Sandbox(["./webserver", mode], cwd=GUESTS / "build", memory="64m")


def ask(
    sandbox: kvmlet.Sandbox | kvmlet.Box, path: str = "/count", *, timeout: float = LIMIT_S
) -> bytes:
    """The body of the answer to a GET request over a connection of its own."""
    client = http.client.HTTPConnection("localhost")
    connection = sandbox.connect(PORT)
    connection.settimeout(timeout)
    client.sock = connection
    client.request("GET", path, headers={"Connection": "close"})
    response = client.getresponse()
    assert response.status == 200
    return response.read()


def warmed(sandbox: kvmlet.Sandbox) -> kvmlet.Snapshot:
    """The server, frozen after two requests."""
    sandbox.until_listening(timeout=LIMIT_S)
    assert sandbox.port == PORT
    for _ in range(2):
        ask(sandbox, "/")
    return sandbox.until_listening(timeout=LIMIT_S).freeze()


def requests(count: int) -> int:
    """A number of requests, many more of them in `make test-long`."""
    return 10_000 if LONG and not HW else sized(count, max(5, count // 30))


# Of a second thread, or of a second worker of gunicorn.
_TURNS_BYTES = 2 << 20


def check_requests(snapshot: kvmlet.Snapshot, count: int, first: bytes) -> None:
    """Each request meets the frozen state; without a reset the second does not."""
    with snapshot, snapshot.fork() as fork:
        sizes = []
        for _ in range(count):
            assert ask(fork) == first
            sizes.append(fork.stats()["private_bytes"])
            fork.reset()
        # Nothing grows, but threads and workers take turns: each writes to pages of its own.
        assert max(sizes[count // 2 :]) <= max(sizes[: count // 2]) + _TURNS_BYTES
        ask(fork)
        # The file is the same for all workers.
        assert ask(fork).split()[1] == b"2"
        # A fork that is made now is as the first was.
        with snapshot.fork() as other:
            assert ask(other) == first


@pytest.mark.parametrize(
    ("name", "count"),
    [("http.server", 300), ("waitress", 20), ("uvicorn", 40), ("gunicorn", 20), ("wsgiref", 10)],
)
def test_a_python_server(name: str, count: int) -> None:
    if HW:
        pytest.skip(NO_RUNTIMES)
    check_requests(warmed(python_server(name)), requests(count), b"1 1 1")


@pytest.mark.parametrize("name", ["http.server", "uvicorn", "gunicorn", "node"])
def test_forks_draw_different_numbers(name: str) -> None:
    if HW or (name == "node" and shutil.which("node") is None):
        pytest.skip(NO_RUNTIMES if HW else "no Node here: apt-get install nodejs")
    node = ["node", "-e", NODE]
    server = kvmlet.Sandbox(node, memory="1g") if name == "node" else python_server(name)
    with warmed(server) as snapshot, snapshot.fork() as fork:
        answers = []
        for _ in range(requests(20)):
            answers.append(ask(fork, "/draw"))
            fork.reset()
        with snapshot.fork() as other:
            answers.append(ask(other, "/draw"))
        for values in zip(*(answer.split() for answer in answers), strict=True):
            assert len(set(values)) == len(answers)


def test_a_node_server() -> None:
    if HW or shutil.which("node") is None:
        pytest.skip(NO_RUNTIMES if HW else "no Node here: apt-get install nodejs")
    sandbox = kvmlet.Sandbox(["node", "-e", NODE], memory="1g")
    check_requests(warmed(sandbox), requests(100), b"1 1 1")


@pytest.mark.skipif(not LONG, reason="building net/http takes long: in make test-long")
def test_a_go_server(tmp_path: pathlib.Path) -> None:
    if HW or shutil.which("go") is None:
        pytest.skip(NO_RUNTIMES if HW else "no Go compiler here: apt-get install golang-go")
    source = tmp_path / "server.go"
    source.write_text(GO)
    cache = os.fspath(GUESTS / "build" / ".go")
    env = {**os.environ, "CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": cache}
    subprocess.run(["go", "build", "-o", tmp_path / "server", source], env=env, check=True)
    sandbox = kvmlet.Sandbox(["./server"], cwd=tmp_path, memory="512m")
    check_requests(warmed(sandbox), requests(100), b"1 1 1")


# ---- a server in C: all ways to wait, all ways to fail ----


def count_of(answer: bytes) -> bytes:
    """The counters of an answer, without the client's address."""
    return answer.partition(b" from ")[0]


@pytest.mark.hw
@pytest.mark.poll
@pytest.mark.parametrize("mode", ["epoll", "threads", "prefork"])
def test_a_c_server(mode: str, guests: pathlib.Path) -> None:
    with warmed(c_server(mode)) as snapshot, snapshot.fork() as fork:
        for _ in range(requests(300)):
            assert count_of(ask(fork)) == b"counter 1 file 1 list 1"
            fork.reset()


@pytest.mark.hw
def test_generators_that_look_out_for_forks_differ(guests: pathlib.Path) -> None:
    # As Rust's crate rand 0.8 does: it registers a function for forks (pthread_atfork).
    sandbox = kvmlet.Sandbox(["./webserver-dynamic", "epoll"], cwd=guests, memory="64m")
    sandbox.until_listening(timeout=LIMIT_S)
    seen = {ask(sandbox, "/draw"), ask(sandbox, "/draw")}
    with sandbox.until_listening(timeout=LIMIT_S).freeze() as snapshot, snapshot.fork() as fork:
        for _ in range(3):
            seen.add(ask(fork, "/draw"))
            fork.reset()
    assert len(seen) == 5


@pytest.mark.hw
def test_a_fork_that_cannot_be_seeded_is_not_used(guests: pathlib.Path) -> None:
    with warmed(c_server("unseeded")) as snapshot, snapshot.fork() as fork:
        for reset in (False, True):
            if reset:
                fork.reset()
            with pytest.raises(kvmlet.CallLost, match="seed its random generators"):
                fork.connect()
            # Nor by whoever tries again.
            with pytest.raises(kvmlet.CallLost, match="seed its random generators"):
                fork.connect()


@pytest.fixture(scope="module")
def epoll_server(guests: pathlib.Path) -> Iterator[kvmlet.Snapshot]:
    with warmed(c_server("epoll")) as snapshot:
        yield snapshot


def raw(sandbox: kvmlet.Sandbox, path: str, timeout: float | None = None) -> bytes:
    """All that the server sends after a GET request."""
    with sandbox.connect() as connection:
        connection.settimeout(timeout)
        connection.sendall(b"GET %s HTTP/1.1\r\n\r\n" % path.encode())
        with connection.makefile("rb") as file:
            return bytes(file.read())


@pytest.mark.hw
def test_hostile_requests_harm_no_other(epoll_server: kvmlet.Snapshot) -> None:
    with epoll_server.fork() as fork:
        for path, expected in [
            ("/loop", kvmlet.DeadlineExceeded),
            ("/never", kvmlet.NotReady),
            ("/endless", kvmlet.DeadlineExceeded),
            ("/forks", None),
            ("/reset", kvmlet.ConnectionReset),
            ("/crash", kvmlet.SandboxEnded),
            ("/kill", kvmlet.SandboxEnded),
            ("/eat", kvmlet.SandboxEnded),
        ]:
            limit_s = 0.2 if expected is kvmlet.DeadlineExceeded else LIMIT_S
            if expected is None:
                # Its children have the connection too, which does not end.
                with fork.connect() as connection:
                    connection.sendall(b"GET /forks HTTP/1.1\r\n\r\n")
                    lines = iter(connection.makefile("rb"))
                    assert [next(lines) for _ in range(5)][-1] == b"forked\n"
            elif path == "/endless":
                # A client that takes all for ever looks at the time itself.
                with fork.connect() as connection:
                    connection.sendall(b"GET /endless HTTP/1.1\r\n\r\n")
                    assert sum(len(connection.recv(1 << 20)) for _ in range(50)) > 100_000
            else:
                with pytest.raises(expected):
                    raw(fork, path, limit_s)
            if path == "/eat":
                assert fork.result is not None
                assert fork.result.reason == "memory"
            fork.reset()
            assert count_of(ask(fork)) == b"counter 1 file 1 list 1", path
            fork.reset()


def test_each_thread_has_its_fork(epoll_server: kvmlet.Snapshot) -> None:
    """Forks serve at once, each in a thread; what one does, no other sees."""
    count, wrong = requests(30), []

    def serve(name: int) -> None:
        with epoll_server.fork() as fork:
            for turn in range(count):
                if turn % 10 == 3:
                    try:
                        raw(fork, "/loop", 0.05)
                    except kvmlet.DeadlineExceeded:
                        fork.reset()
                answer = count_of(ask(fork))
                if answer != b"counter 1 file 1 list 1":
                    wrong.append((name, turn, answer))
                fork.reset()

    threads = [threading.Thread(target=serve, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_pool_of_servers(epoll_server: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(epoll_server, size=2, timeout=2) as pool:
        looping = pool.submit(lambda fork: raw(fork, "/loop"))
        answers = [pool.submit(ask) for _ in range(20)]
        for answer in answers:
            assert count_of(answer.result(LIMIT_S)) == b"counter 1 file 1 list 1"
        with pytest.raises(kvmlet.DeadlineExceeded):
            looping.result(LIMIT_S)


@pytest.mark.parametrize(
    ("mode", "error", "said"),
    [
        ("busy", kvmlet.DeadlineExceeded, r"thread 3 \(webserver\) of process 2 has used the CPU"),
        ("none", kvmlet.NotListening, "listens on no TCP port"),
        ("two", kvmlet.NotListening, "several ports: 8080, 8081; name the port with port="),
        ("quits", kvmlet.SandboxEnded, "status 4.*no configuration, before it waited"),
        ("denied", kvmlet.SandboxEnded, r"status 1.*denied: connect 192\.0\.2\.7:5432"),
    ],
)
def test_a_program_that_is_no_ready_server(
    mode: str, error: type[kvmlet.KvmletError], said: str, guests: pathlib.Path
) -> None:
    with c_server(mode) as sandbox, pytest.raises(error, match=said) as caught:
        sandbox.until_listening(timeout=1.5 if mode == "busy" else LIMIT_S)
    assert "\n" not in str(caught.value)


def test_a_port_is_asked_for(guests: pathlib.Path) -> None:
    with c_server("two") as sandbox:
        assert sandbox.until_listening(8081, timeout=LIMIT_S).port == 8081
        with pytest.raises(kvmlet.NotListening, match="another port than 9: 8080, 8081"):
            sandbox.until_listening(9, timeout=LIMIT_S)
        for port in (0, 70_000, "80", True, -1):
            with pytest.raises(kvmlet.UsageError, match="is not a port"):
                sandbox.until_listening(port)  # type: ignore[arg-type]
            with pytest.raises(kvmlet.UsageError, match="is not a port"):
                sandbox.connect(port)  # type: ignore[arg-type]
        with pytest.raises(kvmlet.ConnectionRefused) as refused:
            sandbox.connect(9)
        assert isinstance(refused.value, ConnectionRefusedError)


def test_connections(epoll_server: kvmlet.Snapshot) -> None:
    with epoll_server.fork() as fork:
        with fork.connect(peer=("203.0.113.9", 4711)) as connection:
            connection.sendall(b"GET /count HTTP/1.1\r\n\r\n")
            file = connection.makefile("r", newline="")
            connection.close()
            # The file keeps it open, as that of a socket does.
            assert file.readline() == "HTTP/1.1 200 OK\r\n"
            assert file.read().endswith("from 203.0.113.9:4711\n")
            file.close()
            with pytest.raises(kvmlet.ConnectionFailed, match="closed"):
                connection.send(b"x")
        for peer in (("example.com", 1), ("1.2.3.4",), "1.2.3.4", ("::1", 0), (1, 2)):
            with pytest.raises(kvmlet.UsageError):
                fork.connect(peer=peer)  # type: ignore[arg-type]
        with fork.connect() as connection:
            connection.settimeout(0)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
            connection.settimeout("50ms")
            assert connection.gettimeout() == 0.05
            connection.sendall(b"GET /echo HTTP/1.1\r\n\r\n")
            block = os.urandom(150_000)
            connection.sendall(block)
            connection.shutdown(socket.SHUT_WR)
            with pytest.raises(kvmlet.ConnectionBroken):
                connection.send(b"x")
            got = b""
            while data := connection.recv(100_000):
                got += data
            assert got == block
            assert connection.recv(10) == b""
        connection = fork.connect()
        with pytest.raises(kvmlet.NotReady, match="every thread of the program waits"):
            connection.recv(1)
        fork.reset()
        with pytest.raises(kvmlet.ConnectionFailed, match="reset since"):
            connection.recv(1)
        connection.close()
        # The last bytes of a program that has ended come first, then its end.
        connection = fork.connect()
        connection.sendall(b"GET /exit HTTP/1.1\r\n\r\n")
        lines = iter(connection.makefile("rb"))
        assert [next(lines) for _ in range(5)][-1] == b"last\n"
        with pytest.raises(kvmlet.SandboxEnded, match="status 3"):
            next(lines)
        connection.close()
        with pytest.raises(kvmlet.SandboxEnded):
            fork.connect()


def test_open_connections_are_not_frozen(guests: pathlib.Path) -> None:
    with c_server("epoll") as sandbox:
        connection = sandbox.until_listening(timeout=LIMIT_S).connect()
        with pytest.raises(kvmlet.ConnectionsOpen, match=r"open: 1; close\(\) them"):
            sandbox.freeze()
        # One that nobody has any more is closed.
        del connection
        sandbox.until_listening(timeout=LIMIT_S).freeze().close()


# ---- boxes ----


@pytest.fixture(scope="module")
def box() -> Iterator[kvmlet.Box]:
    if HW:
        pytest.skip(NO_RUNTIMES)
    with kvmlet.Box() as box:
        box.spawn(["python3", "-c", PYTHON["http.server"]], stderr=subprocess.DEVNULL)
        box.wait_listening(PORT, timeout=LIMIT_S)
        yield box


def test_a_server_in_a_box(box: kvmlet.Box) -> None:
    before = int(ask(box).split()[0])
    assert int(ask(box).split()[0]) == before + 1
    with box.snapshot() as snapshot, snapshot.fork(1)[0] as fork:
        counts = [ask(fork), ask(box)]
        assert counts[0] == counts[1]
    with box.connect(PORT) as connection, pytest.raises(kvmlet.ConnectionsOpen):
        box.snapshot()
    connection = box.connect(PORT)
    connection.settimeout("20ms")
    with pytest.raises(kvmlet.DeadlineExceeded):
        connection.recv(1)
    connection.close()
    with pytest.raises(kvmlet.ConnectionRefused):
        box.connect(9)
    with pytest.raises(kvmlet.DeadlineExceeded, match="nothing listened on port 9 in time"):
        box.wait_listening(9, timeout="20ms")


def test_many_threads_talk_to_one_box(box: kvmlet.Box) -> None:
    counts: list[int] = []

    def talk() -> None:
        for _ in range(10):
            counts.append(int(ask(box).split()[0]))  # noqa: PERF401

    threads = [threading.Thread(target=talk) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(counts)) == 40


def test_a_client_waits_while_others_use_the_box(box: kvmlet.Box) -> None:
    with box.connect(PORT) as connection:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(connection.recv(4)))
        thread.start()
        time.sleep(0.05)
        assert box.run(["echo", "meanwhile"]).stdout == b"meanwhile\n"
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        thread.join(LIMIT_S)
        assert got == [b"HTTP"]


def test_a_reset_ends_connections() -> None:
    if HW:
        pytest.skip(NO_RUNTIMES)
    with kvmlet.Box() as box:
        script = (
            "import signal, socket; c = socket.create_server(('', 8080)).accept(); signal.pause()"
        )
        box.spawn(["python3", "-c", script])
        box.wait_listening(PORT, timeout=LIMIT_S)
        connection = box.connect(PORT)
        failed: list[Callable[[], object]] = []

        def wait() -> None:
            with pytest.raises(kvmlet.BoxWasReset):
                connection.recv(1)
            failed.append(wait)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        box.reset()
        thread.join(LIMIT_S)
        assert failed
        connection.close()
        with pytest.raises(kvmlet.ConnectionRefused):
            box.connect(PORT)


CLOCKS = """
import http.server, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = f'{time.monotonic()} {time.time()}'.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data)
http.server.HTTPServer(('127.0.0.1', 8080), Handler).serve_forever()
"""


def test_no_time_passes_while_a_server_is_frozen() -> None:
    """Timers that fell due meanwhile would all run in each request."""
    if HW:
        pytest.skip(NO_RUNTIMES)
    sandbox = kvmlet.Sandbox(["/usr/bin/python3", "-c", CLOCKS], memory="256m")
    seen: list[tuple[float, float]] = []

    def look(fork: kvmlet.Sandbox) -> None:
        monotonic, real = ask(fork, "/").split()
        seen.append((float(monotonic), float(real)))

    with sandbox.until_listening(timeout=LIMIT_S).freeze() as snapshot:
        snapshot.prepare(1)
        with snapshot.fork() as fork, snapshot.fork() as other:
            look(fork)
            fork.reset()
            # One that has been put back waits, one that has never run, and the snapshot itself.
            time.sleep(2)
            look(fork)
            look(other)
        # In the VM of one before.
        with snapshot.fork() as fork:
            look(fork)
    first = seen[0]
    # Both clocks go on while it answers, the wall clock in between too.
    assert [abs(each[0] - first[0]) < 1.5 for each in seen] == [True] * 4
    assert seen[1][1] - first[1] >= 2
