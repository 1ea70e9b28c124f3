"""`kvmlet serve` before real servers: each request meets the program as it was frozen."""

from __future__ import annotations

import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess

import pytest

import kvmlet
from e2e.oracle import ENV, GUESTS, HANG_S, KVMLET
from e2e.serving import serving

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.default_mode]

# Remembers all that a request could leave behind, and does badly what it is asked to.
APP = """
import http.server, os, signal, sys, tempfile, time
SEEN, COUNT = [], 0
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body, kind="text/plain"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        global COUNT
        COUNT += 1
        path = self.path.partition("?")[0]
        if path == "/state":
            there = os.path.exists("/tmp/left")
            open("/tmp/left", "w").write("x")
            SEEN.append(self.headers["X-Request-ID"])
            return self.answer(f"{COUNT} {len(SEEN)} {there}".encode())
        if path == "/note":
            os.makedirs("data/deep", exist_ok=True)
            with open("data/log", "a") as file:
                file.write(f"{COUNT}\\n")
                file.flush()
                os.fsync(file.fileno())
            open("data/new~", "w").close()
            os.replace("data/new~", "data/new")
            open("other", "w").close()
            return self.answer(str(sorted(os.listdir("data"))).encode())
        if path == "/spin":
            while True: pass
        if path == "/sleep":
            time.sleep(float(self.path.partition("?")[2]))
            return self.answer(b"slept")
        if path == "/crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if path == "/exit":
            os._exit(3)
        if path == "/eat":
            hoard = []
            while True: hoard.append(bytearray(1 << 20))
        if path == "/take":
            # Piece by piece: one that is larger than all there is would be refused, as by Linux.
            taken = [bytearray(1 << 20) for _ in range(int(self.path.partition("?")[2]))]
            return self.answer(b"%d" % len(taken))
        if path == "/fork":
            while True:
                try:
                    if os.fork() == 0: time.sleep(60)
                except OSError:
                    time.sleep(60)
        if path == "/garbage":
            self.wfile.write(b"SSH-2.0-garbage\\r\\n")
            self.close_connection = True
            return
        if path == "/forever":
            self.send_response(200)
            self.end_headers()
            while True: self.wfile.write(b"x" * 65536)
        if path == "/write":
            number = 0
            while True:
                number += 1
                with open(f"/tmp/{number}", "wb") as file: file.write(bytes(1 << 20))
        if path == "/sockets":
            import socket
            kept = []
            while True:
                try:
                    kept.append(socket.socket())
                    kept[-1].setblocking(False)
                    kept[-1].connect_ex(("192.0.2.7", 80))
                except OSError:
                    time.sleep(60)
        if path == "/kill":
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(-1, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        if path == "/open":
            try:
                open(self.path.partition("?")[2])
            except OSError as error:
                return self.answer(type(error).__name__.encode())
        if path == "/traced":
            names = ("traceparent", "X-Request-ID")
            return self.answer(" ".join(self.headers[name] or "-" for name in names).encode())
        if path == "/say":
            print("said on stdout", flush=True)
            print("said on stderr", file=sys.stderr, flush=True)
        self.answer(f"{self.client_address[0]} {self.headers['X-Forwarded-For']}".encode())
    def do_POST(self):
        if self.path == "/refuse":
            # It reads nothing of the body.
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            return
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length)
        self.answer(f"{len(body)} {sum(body) % 251}".encode())
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""


@pytest.fixture
def app(tmp_path: pathlib.Path) -> list[str]:
    (tmp_path / "app.py").write_text(APP)
    return ["/usr/bin/python3", "app.py"]


def test_each_of_300_requests_meets_the_frozen_program(
    tmp_path: pathlib.Path, app: list[str]
) -> None:
    with serving(tmp_path, program=app) as served:
        connection = served.connect()
        # One connection, whose requests each have a fork.
        for _ in range(300):
            connection.request("GET", "/state")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b"1 1 False")
        connection.close()
        served.until('kvmlet_requests_total{outcome="ok"}', 300)
        assert served.metric("kvmlet_forks_rebuilt_total") == 0
        assert served.metric("kvmlet_reset_seconds_count") == 300
        assert not (tmp_path / "left").exists()
        status, _, err = served.end()
        assert (status, b"Traceback" in err) == (0, False), err


def test_what_write_names_is_changed_by_each_request(
    tmp_path: pathlib.Path, app: list[str]
) -> None:
    """On the host, where no reset undoes it; all else is the fork's."""
    (tmp_path / "data").mkdir()
    with serving(tmp_path, "--write", "data", "--forks", "2", program=app) as served:
        for _ in range(6):
            assert served.get("/note") == (200, b"['deep', 'log', 'new']")
        # Each has met a counter that was frozen.
        assert (tmp_path / "data" / "log").read_text() == "1\n" * 6
        served.process.send_signal(signal.SIGHUP)
        served.until("kvmlet_reloads_total", 1)
        assert served.get("/note")[0] == 200
        assert (tmp_path / "data" / "log").read_text() == "1\n" * 7
        assert not (tmp_path / "other").exists()
        status, _, err = served.end()
        assert (status, b"Traceback" in err) == (0, False), err


def test_the_server_of_the_standard_library_shows_a_directory(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file.bin").write_bytes(bytes(range(256)) * 4096)
    program = ["/usr/bin/python3", "-m", "http.server", "8000"]
    with serving(tmp_path, program=program) as served:
        assert served.get("/file.bin") == (200, bytes(range(256)) * 4096)
        status, listing = served.get("/")
        assert status == 200
        assert b"file.bin" in listing
        assert served.get("/absent")[0] == 404


def test_without_isolation_a_fork_remembers(tmp_path: pathlib.Path, app: list[str]) -> None:
    with serving(tmp_path, "--isolate", "none", "--forks", "1", program=app) as served:
        assert [served.get("/state")[1] for _ in range(3)] == [
            b"1 1 False",
            b"2 2 True",
            b"3 3 True",
        ]


def test_a_server_may_listen_on_a_unix_socket(tmp_path: pathlib.Path) -> None:
    words = ["-w", os.fspath(GUESTS / "build"), "--warmup-request", "GET /other"]
    with serving(tmp_path, *words, program=["./webserver", "unix"]) as served:
        for _ in range(5):
            status, text = served.get("/count")
            assert (status, text.partition(b" from")[0]) == (200, b"counter 1 file 1 list 1")
    with kvmlet.Sandbox(["./webserver", "unix"], cwd=GUESTS / "build") as sandbox:
        assert sandbox.until_listening(timeout=HANG_S).port is None
        with sandbox.freeze() as snapshot, snapshot.fork() as fork, fork.connect() as connection:
            connection.sendall(b"GET /count HTTP/1.1\r\n\r\n")
            assert b"counter 1 file 1 list 1" in connection.makefile("rb").read()
            with pytest.raises(kvmlet.UsageError, match="port: 0 is not a port"):
                fork.connect(0)


# Draws each kind of value that Node keeps some of.
NODE = """
import http from 'node:http';
import { randomBytes, randomInt, randomUUID } from 'node:crypto';
http.createServer((request, response) => response.end([
    randomBytes(8).toString('hex'), randomUUID(), globalThis.crypto.randomUUID(),
    randomInt(2 ** 47),
].join(' '))).listen(8000);
"""


def test_forks_of_node_draw_different_values(tmp_path: pathlib.Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("no Node here: apt-get install nodejs")
    (tmp_path / "app.mjs").write_text(NODE)
    options = ["--memory", "1g", "--warmup-request", "GET /"]
    with serving(tmp_path, *options, program=["node", "app.mjs"]) as served:
        drawn = [served.get("/")[1].split() for _ in range(20)]
    for values in zip(*drawn, strict=True):
        assert len(set(values)) == len(drawn), values


def test_hostile_requests_among_good_ones(tmp_path: pathlib.Path, app: list[str]) -> None:
    # All of them on the same fork.
    options = ["--timeout", "700ms", "--memory", "64m", "--max-procs", "8", "--forks", "1"]
    expected = {
        "/spin": {504},
        "/sleep?60": {504},
        "/crash": {502},
        "/exit": {502},
        "/kill": {502},
        "/eat": {502, 504},
        "/write": {502, 504},
        "/fork": {504},
        "/sockets": {504},
        "/garbage": {502},
    }
    with serving(tmp_path, *options, program=app) as served:
        for path, statuses in expected.items():
            status, body = served.get(path, Accept="application/json")
            assert status in statuses, (path, body)
            assert json.loads(body)["request_id"]
            assert served.get("/state") == (200, b"1 1 False"), path
        # Its head has come: it can only be broken off.
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            served.get("/forever")
        assert served.get("/state") == (200, b"1 1 False")
        assert served.metric('kvmlet_requests_total{outcome="deadline"}') >= 4


def test_a_request_has_memory_of_its_own(tmp_path: pathlib.Path, app: list[str]) -> None:
    for options, taken in (
        (("--memory", "256m", "--request-memory", "24m"), {"8": 200, "48": 502}),
        # More than the program itself may have before it is frozen.
        (("--memory", "64m", "--request-memory", "128m"), {"96": 200, "160": 502}),
    ):
        with serving(tmp_path, *options, program=app) as served:
            for size, wanted in (taken | {"1": 200}).items():
                status, body = served.get(f"/take?{size}", Accept="application/json")
                assert status == wanted, (options, size, body)
                if wanted == 502:
                    assert json.loads(body)["outcome"] == "memory"
                    assert b"memory limit" in body
                assert served.get("/state") == (200, b"1 1 False")
            served.until('kvmlet_requests_total{outcome="memory"}', 1)


def test_status_is_for_a_person(tmp_path: pathlib.Path, app: list[str]) -> None:
    def asked(*words: str) -> tuple[int, str, str]:
        argv = [os.fspath(KVMLET), "serve", "--status", *words]
        run = subprocess.run(argv, env=ENV, capture_output=True, timeout=HANG_S, text=True)
        return run.returncode, run.stdout, run.stderr

    control = f"unix:{tmp_path / 'control'}"
    status, _, err = asked("--control", control)
    assert (status, err.count("\n")) == (125, 1), err
    assert "no server at" in err
    assert "; start the server with the same --control" in err
    with serving(tmp_path, program=app) as served:
        served.until("kvmlet_forks", 2)
        status, out, err = asked("--control", control)
        assert (status, err) == (0, "")
        assert out.splitlines()[:3] == [
            "state        ready",
            "forks        2, 0 of them busy",
            "waiting      0 requests for a fork",
        ]
        # A server, but not one of ours.
        status, _, err = asked("--control", str(served.port))
        assert (status, "no server of kvmlet's answers" in err) == (125, True), err
    for words, part in (((), "none is given"), (("--control", "x"), "no place to ask")):
        status, _, err = asked(*words)
        assert (status, err.count("\n")) == (125, 1), err
        assert part in err


def test_slow_clients_and_bodies(tmp_path: pathlib.Path, app: list[str]) -> None:
    with serving(tmp_path, "--forks", "1", "--max-body", "2m", program=app) as served:
        slow = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
        for stream in slow:
            stream.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
        assert served.get("/state") == (200, b"1 1 False")
        # None of them has it.
        served.until("kvmlet_forks_busy", 0)
        slow[7].sendall(b"bc")
        slow[7].settimeout(HANG_S)
        assert slow[7].recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
        for stream in slow:
            stream.close()
        connection = served.connect()
        body = bytes(range(256)) * 4096
        connection.request("POST", "/", body=body)
        assert connection.getresponse().read() == f"{len(body)} {sum(body) % 251}".encode()
        connection.request("POST", "/", body=iter([body, b"x"]), encode_chunked=True)
        assert connection.getresponse().read().startswith(f"{len(body) + 1} ".encode())
        # It is told before it has sent any of it.
        connection.putrequest("POST", "/")
        connection.putheader("Content-Length", str(3 << 20))
        connection.endheaders()
        assert connection.getresponse().status == 413


def test_a_program_may_answer_before_it_has_read_the_body(
    tmp_path: pathlib.Path, app: list[str]
) -> None:
    with serving(tmp_path, program=app) as served:
        connection = served.connect()
        for _ in range(3):
            connection.request("POST", "/refuse", body=bytes(8 << 20))
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (403, b"")
        connection.request("GET", "/traced", headers={"traceparent": "00-1-2-01"})
        traced, request_id = connection.getresponse().read().split()
        assert (traced, request_id != b"-") == (b"00-1-2-01", True)


def test_one_who_speaks_no_http_is_told(tmp_path: pathlib.Path, app: list[str]) -> None:
    hello = bytes.fromhex("16030100c8010000c40303") + bytes(194)  # TLS begins so
    said = [b"SSH-2.0-x\r\n", hello, b"EHLO x\r\n", bytes(64), b"*1\r\n$4\r\nPING\r\n"]
    with serving(tmp_path, "-q", "--access-log", "json", program=app) as served:
        for each in said:
            with socket.create_connection(("127.0.0.1", served.port), HANG_S) as stream:
                stream.sendall(each)
                answer = b"".join(iter(lambda: stream.recv(4096), b""))
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n"), (each, answer)
            assert body.startswith(b"400 Bad Request: "), answer
            assert served.get("/state") == (200, b"1 1 False")
        served.until('kvmlet_requests_total{outcome="refused"}', len(said))
        status, out, err = served.end()
    assert (status, err) == (0, b"")
    records = [json.loads(line) for line in out.splitlines()]
    assert sorted(record["status"] for record in records) == [200] * len(said) + [400] * len(said)


def test_sockets_of_systemd_are_served(tmp_path: pathlib.Path, app: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # systemd hands them on from 3 on, and says whom they are for (sd_listen_fds(3)).
        script = f'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&{listener.fileno()}'
        argv = ["/bin/bash", "-c", script, "bash", os.fspath(KVMLET), "serve", "-q", "--", *app]
        process = subprocess.Popen(argv, cwd=tmp_path, env=ENV, pass_fds=[listener.fileno()])
        try:
            # A client waits while it starts.
            port = listener.getsockname()[1]
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
            client.request("GET", "/state")
            assert client.getresponse().read() == b"1 1 False"
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == 0
        finally:
            process.kill()
            process.wait()


def test_lines_say_whose_they_are(tmp_path: pathlib.Path, app: list[str]) -> None:
    with serving(tmp_path, "--access-log", "json", program=app) as served:
        assert served.get("/say", **{"X-Forwarded-For": "9.9.9.9"}) == (200, b"127.0.0.1 127.0.0.1")
        served.until("kvmlet_forks_busy", 0)
        status, out, err = served.end()
    assert status == 0
    record = json.loads(out)
    assert (record["target"], record["status"], record["outcome"]) == ("/say", 200, "ok")
    assert record["pages_reset"] > 0
    prefix = f"[fork {record['fork']} {record['request_id']}] "
    lines = err.decode().splitlines()
    assert f"{prefix}said on stdout" in lines, lines
    assert f"{prefix}said on stderr" in lines, lines


def test_what_is_denied_is_told_once(tmp_path: pathlib.Path, app: list[str]) -> None:
    outside = "/etc/shadow"
    with serving(tmp_path, program=app) as served:
        for _ in range(3):
            assert served.get(f"/open?{outside}") == (200, b"FileNotFoundError")
        served.until("kvmlet_denials_total", 3)
        assert served.metric("kvmlet_poller_cpu_seconds_total") >= 0
        status, _, err = served.end()
    lines = [line for line in err.splitlines() if b"denied: open " in line]
    assert (status, len(lines)) == (0, 1), err
    assert lines[0].startswith(b"[fork ")
    assert lines[0].endswith(f"denied: open {outside} (ENOENT)".encode())


def test_full_drain_and_reload(tmp_path: pathlib.Path, app: list[str]) -> None:
    with serving(tmp_path, "--forks", "1", "--queue", "0", program=app) as served:
        busy = served.connect()
        busy.request("GET", "/sleep?0.7")
        served.until("kvmlet_forks_busy", 1)
        assert served.get("/state")[0] == 503
        assert busy.getresponse().read() == b"slept"
        # A fork that is being reset or made is as good as free: one client alone is never refused.
        for reloads in range(1, 4):
            assert served.get("/state") == (200, b"1 1 False")
            served.process.send_signal(signal.SIGHUP)
            served.until("kvmlet_reloads_total", reloads)
            for _ in range(20):
                assert served.get("/state") == (200, b"1 1 False")
        busy.request("GET", "/sleep?0.5")
        served.until("kvmlet_forks_busy", 1)
        served.process.send_signal(signal.SIGTERM)
        assert busy.getresponse().read() == b"slept"
        assert served.process.wait(HANG_S) == 0


def test_a_connection_of_any_protocol(tmp_path: pathlib.Path) -> None:
    (tmp_path / "echo.py").write_text(
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 7))\n"
        "count = 0\n"
        "while True:\n"
        "    stream, _ = server.accept()\n"
        "    count += 1\n"
        "    while data := stream.recv(4096): stream.sendall(b'%d ' % count + data)\n"
        "    stream.close()\n"
    )
    program = ["/usr/bin/python3", "echo.py"]
    with serving(tmp_path, "--isolate", "connection", program=program) as served:
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", served.port), HANG_S) as stream:
                for word in (b"\0one", b"two"):
                    stream.sendall(word)
                    assert stream.recv(4096) == b"1 " + word
                stream.shutdown(socket.SHUT_WR)
                assert stream.recv(4096) == b""


def test_requests_warm_the_program_up(tmp_path: pathlib.Path, app: list[str]) -> None:
    warmup = ["--warmup", "3", "--warmup-request", "GET /state"]
    with serving(tmp_path, *warmup, program=app) as served:
        assert served.get("/state") == (200, b"4 4 True")


def refused(directory: pathlib.Path, *words: str) -> tuple[int, str]:
    run = subprocess.run(
        [KVMLET, "serve", *words], cwd=directory, env=ENV, capture_output=True, timeout=HANG_S
    )
    assert run.stdout == b""
    return run.returncode, run.stderr.decode()


def test_bad_input_is_one_line_with_a_remedy(tmp_path: pathlib.Path, app: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, text = refused(tmp_path, "--listen", port, "--", *app)
    assert (status, text.count("\n")) == (125, 1)
    assert "address already in use" in text
    assert "--listen" in text
    for words, part in (
        (["--forks", "0", *app], "--forks: 0 is out of range; give a number from 1"),
        (["--max-body", "x", *app], "--max-body"),
        (["--request-memory", "1k", *app], "--request-memory"),
        (["--isolate", "thread", *app], "--isolate"),
        (["--trusted-proxy", "10.0.0.0/99", *app], "--trusted-proxy"),
        (["--proxy-protocol", *app], "name them by --trusted-proxy"),
        (["--warmup-request", "GET", *app], "is not a method and a path"),
        (["--isolate", "connection", "--warmup", "1", *app], "contradict"),
        ([], "no program given"),
    ):
        status, text = refused(tmp_path, "--listen", "unix:place", *words)
        assert (status, text.count("\n")) == (125, 1), text
        assert part in text
    assert refused(tmp_path, *app)[1].startswith("kvmlet: no place to listen at; ")
    assert refused(tmp_path, "--listen", "unix:place", "absent-program")[0] == 127


def test_check_serves_nothing(tmp_path: pathlib.Path, app: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        # A server that is checked may run already.
        assert refused(tmp_path, "--check", "--listen", port, "--", *app) == (0, "")
    assert refused(tmp_path, "--check", "--listen", "unix:place", "--", *app) == (0, "")
    assert not (tmp_path / "place").exists()
    for words, wanted, part in (
        (["--forks", "0", *app], 125, "--forks: 0 is out of range"),
        (["--control", "x", *app], 125, "'x' is no place to listen at"),
        (["--warmup-request", "GET", *app], 125, "is not a method and a path"),
        (["--trusted-proxy", "10.0.0.0/99", *app], 125, "--trusted-proxy"),
        (["--tls-cert", "absent", "--tls-key", "absent", *app], 125, "no such file or directory"),
        (["absent-program"], 127, "absent-program"),
        (["./absent-program"], 127, "absent-program"),
        (["./app.py"], 126, "it cannot be executed"),
    ):
        status, text = refused(tmp_path, "--check", "--listen", "unix:place", *words)
        assert (status, text.count("\n")) == (wanted, 1), text
        assert part in text


def test_a_program_that_does_not_serve(tmp_path: pathlib.Path, app: list[str]) -> None:
    two = "import socket as s\na, b = [s.create_server(('', p)) for p in (8001, 8002)]\n"
    two += "import select; select.select([a, b], [], [])"
    for limit, words, part in (
        ("20s", ["/bin/false"], "has ended before it listened: it exited with status 1"),
        ("1s", ["/bin/sleep", "60"], "listens on no TCP port"),
        ("20s", ["/usr/bin/python3", "-c", two], "8001, 8002"),
        ("1s", ["/usr/bin/python3", "-c", "while True: pass"], "the time limit passed"),
    ):
        options = ["--listen", "unix:place", "-q", "--boot-timeout", limit]
        status, text = refused(tmp_path, *options, "--", *words)
        assert (status, text.count("\n")) == (125, 1), text
        assert part in text, text
    build = ["-w", os.fspath(GUESTS / "build")]
    status, text = refused(
        tmp_path, "--listen", "unix:place", *build, "--", "./webserver", "denied"
    )
    assert (status, text.splitlines()[-1].count("denied: connect 192.0.2.7:5432")) == (125, 1), text
    assert text.splitlines()[-1].startswith("kvmlet: the program has ended before it listened")
    for warmup, part in (
        ("GET /exit", "'GET /exit' ended the program: it exited with status 3"),
        ("POST /refuse", "'POST /refuse' was answered with 403"),
        ("GET /state\n=204", "'GET /state' was answered with 200"),
    ):
        options = ["--listen", "unix:place", "-q", "--warmup-request", warmup]
        status, text = refused(tmp_path, *options, "--", *app)
        assert (status, text.count("\n")) == (125, 1), text
        assert f"the warm-up request {part}" in text, text
