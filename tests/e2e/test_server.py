"""`kvmlet.Server`: an unmodified server in this process, started, looked at, reloaded, stopped."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
import warnings

import pytest

import kvmlet
import kvmlet.aio
from e2e.certificates import certificate, client
from e2e.oracle import HANG_S, KVMLET

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.default_mode]

APP = """
import http.server, os, time
VERSION = open("version").read()
COUNT = 0
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global COUNT
        COUNT += 1
        if self.path == "/crash":
            os._exit(3)
        if self.path == "/sleep":
            time.sleep(60)
        if self.path == "/doze":
            time.sleep(0.4)
        body = f"{VERSION} {COUNT} {os.environ.get('WORD')} {self.headers['X-Forwarded-Proto']}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())
http.server.HTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""
ARGV = ["/usr/bin/python3", "app.py"]


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "version").write_text("one")
    return tmp_path


def get(server: kvmlet.Server | kvmlet.aio.Server, path: str = "/") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.url + path, timeout=HANG_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_server_from_start_to_stop(place: pathlib.Path) -> None:
    policy = kvmlet.Policy.of(env={"WORD": "hello"}, memory="128m")
    threads = threading.active_count()
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    server = kvmlet.Server(ARGV, cwd=place, policy=policy, forks=2, timeout="2s")
    assert (server.state, server.addresses) == ("new", (f"127.0.0.1:{server.port}",))
    assert server.stats().requests == {}
    with server as same:
        assert same is server
        assert server.state == "serving"
        assert server.url == f"http://127.0.0.1:{server.port}"
        for _ in range(10):
            assert get(server) == (200, "one 1 hello http")
        assert get(server, "/crash")[0] == 502
        assert get(server, "/sleep")[0] == 504
        assert get(server) == (200, "one 1 hello http")
        stats = server.stats()
        assert (stats.requests["crash"], stats.requests["deadline"], stats.forks) == (1, 1, 2)

        (place / "version").write_text("two")
        assert get(server) == (200, "one 1 hello http")
        server.reload()
        assert get(server) == (200, "two 1 hello http")
        # A program that does not come up leaves the one there is.
        (place / "version").unlink()
        with pytest.raises(kvmlet.ServerNotStarted, match="has ended before it listened"):
            server.reload()
        assert get(server) == (200, "two 1 hello http")
        assert server.stats().reloads == 1

        # What is under way is answered.
        while server.stats().forks_busy > 0:
            time.sleep(0.005)
        with socket.create_connection(("127.0.0.1", server.port), HANG_S) as busy:
            busy.sendall(b"GET /doze HTTP/1.1\r\nHost: x\r\n\r\n")
            while server.stats().forks_busy == 0:
                time.sleep(0.005)
            server.stop()
            assert b"two 1 hello" in busy.recv(4096)
    assert server.state == "ended"
    assert server.stats().requests["ok"] >= 14
    with pytest.raises(urllib.error.URLError):
        get(server)
    for again in (server.start, server.reload):
        with pytest.raises(kvmlet.SandboxClosed):
            again()
    server.stop()
    server.close()
    assert threading.active_count() == threads
    # Signals are the caller's.
    after = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert after == handlers


def test_one_that_is_forgotten_or_ended_at_once(place: pathlib.Path) -> None:
    server = kvmlet.serve(ARGV, cwd=place, forks=1)
    port = server.port
    descriptors = len(os.listdir("/proc/self/fd"))
    with socket.create_connection(("127.0.0.1", port), HANG_S) as busy:
        busy.sendall(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n")
        while server.stats().forks_busy == 0:
            time.sleep(0.005)
        begun = time.monotonic()
        server.stop(grace="100ms")
        assert time.monotonic() - begun < 20
        assert busy.recv(4096) == b""
    # Nobody waits for one that was never started, and its port is free.
    unused = kvmlet.Server(ARGV, cwd=place)
    unused.close()
    assert unused.state == "ended"
    with pytest.raises(kvmlet.SandboxClosed):
        unused.start()
    socket.create_server(("127.0.0.1", unused.port)).close()
    forgotten = kvmlet.serve(ARGV, cwd=place, forks=1)
    port = forgotten.port
    del forgotten
    gc.collect()
    end = time.monotonic() + HANG_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            break
        assert time.monotonic() < end
        time.sleep(0.01)
    # What the first has had is not held.
    assert len(os.listdir("/proc/self/fd")) < descriptors


def test_tls_and_a_unix_socket(place: pathlib.Path) -> None:
    made = certificate(place, "first")
    made.key.chmod(0o644)
    path = place / "socket"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        server = kvmlet.Server(
            ARGV,
            cwd=place,
            forks=1,
            listen=["127.0.0.1:0", f"unix:{path}"],
            tls_cert=made.cert,
            tls_key=made.key,
        )
    assert "can read the key" in str(caught[0].message)
    with server:
        assert server.addresses[1] == f"unix:{path}"
        with urllib.request.urlopen(server.url, context=client(made)) as answer:
            assert answer.read() == b"one 1 None https"
        made.key.write_text("nothing")
        with pytest.raises(kvmlet.UsageError, match="there is no key in it"):
            server.reload()
        with urllib.request.urlopen(server.url, context=client(made)) as answer:
            assert answer.read() == b"one 1 None https"


def test_forks_change_what_write_names(place: pathlib.Path) -> None:
    (place / "app.py").write_text(
        APP.replace("COUNT += 1", 'COUNT += 1; open("log", "a").write("x")')
    )
    (place / "log").touch()
    with kvmlet.serve(ARGV, cwd=place, write=[place / "log"], forks=2) as server:
        assert [get(server)[1].split()[1] for _ in range(4)] == ["1"] * 4
    assert (place / "log").read_text() == "xxxx"


def test_what_cannot_be_served(place: pathlib.Path) -> None:
    for options, said in (
        ({"forks": 0}, "forks: 0 is out of range"),
        ({"fork": 1}, "a server has no option 'fork'"),
        ({"listen": 8080}, "listen: 8080 is no place"),
        ({"listen": []}, "listen: [] is no place"),
        ({"control": b"x"}, "control: b'x' is no place"),
        ({"listen": "nowhere"}, "'nowhere' is no place to listen at"),
        ({"policy": kvmlet.Policy.of(net=["example.org"])}, "reaches no host"),
        ({"policy": kvmlet.Policy.of(timeout=1)}, "neither timeout nor cpu_time"),
        ({"policy": "x"}, "policy: str is none"),
    ):
        with pytest.raises(kvmlet.UsageError) as caught:
            kvmlet.Server(ARGV, cwd=place, **options)
        assert said in str(caught.value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(kvmlet.UsageError, match="address already in use"):
            kvmlet.Server(ARGV, cwd=place, listen=listen)
    with pytest.raises(kvmlet.ProgramNotFound):
        kvmlet.serve(["no-such-program"], cwd=place)
    with pytest.raises(kvmlet.ServerNotStarted, match="it exited with status 1"):
        kvmlet.serve(["/bin/false"], cwd=place)


def test_for_coroutines(place: pathlib.Path) -> None:
    async def course() -> None:
        async with kvmlet.aio.Server(ARGV, cwd=place, forks=2) as server:
            answers = await asyncio.gather(*(asyncio.to_thread(get, server) for _ in range(5)))
            assert set(answers) == {(200, "one 1 None http")}
            (place / "version").write_text("two")
            await server.reload()
            assert await asyncio.to_thread(get, server) == (200, "two 1 None http")
            # It is counted once its fork is reset.
            while server.stats().requests["ok"] < 6:
                await asyncio.sleep(0.01)
        assert server.state == "ended"
        # Cancelled while it starts.
        never = kvmlet.aio.Server(["/bin/sleep", "60"], cwd=place, boot_timeout="60s")
        starting = asyncio.create_task(never.start())
        await asyncio.sleep(0.2)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert never.state == "ended"

    asyncio.run(course())


def test_the_end_of_the_interpreter_ends_it(place: pathlib.Path) -> None:
    script = (
        "import os, sys, kvmlet\n"
        f"server = kvmlet.serve({ARGV!r}, forks=1)\n"
        "if os.fork() == 0:\n"
        "    try: server.start()\n"
        "    except kvmlet.ForkedProcess: os._exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.wait()[1]) == 7\n"
        "print(server.state, flush=True)\n"
    )
    python = KVMLET.parent / "python"
    run = subprocess.run([python, "-c", script], cwd=place, capture_output=True, timeout=HANG_S)
    assert (run.returncode, run.stdout) == (0, b"serving\n"), run.stderr
