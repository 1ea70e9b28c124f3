"""`kvmlet serve --config`: several programs behind one front, each met as it was frozen."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, HANG_S, KVMLET, ONLY_ROOT_SEES
from e2e.serving import Served, free_port, started

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.default_mode]

# Says who it is, what it can read, and how often it has been asked.
APP = """
import http.server, os, sys
VERSION = open("version").read() if os.path.exists("version") else ""
COUNT = 0
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global COUNT
        COUNT += 1
        try:
            secret = open(os.environ["SECRET"]).read()
        except OSError as error:
            secret = type(error).__name__
        there = os.path.exists("/tmp/left")
        open("/tmp/left", "w").write("x")
        if self.path.endswith("?y"):
            print("asked", flush=True)
        body = f"{os.environ['NAME']}{VERSION} {COUNT} {there} {secret}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""

FRONT = """
listen = "{port}"
control = "unix:{control}"
"""

# Each needs a directory of its own: another one is not to be seen.
PROGRAM = """
[program.{name}]
command = ["/usr/bin/python3", "app.py"]
workdir = "{name}"
forks = {forks}
env = {{ NAME = "{name}", SECRET = "{secret}" }}
"""


class Place:
    """A folder with serve.toml and the programs that it names."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.port = folder, free_port()
        self.control = folder / "control"
        (folder / "secret").write_text("plums")

    def write(self, front: str = "", **programs: str) -> None:
        """Programs by their names, with further lines of each."""
        text = FRONT.format(port=self.port, control=self.control) + front
        for name, lines in programs.items():
            directory = self.folder / name
            directory.mkdir(exist_ok=True)
            (directory / "app.py").write_text(APP)
            # One that is not isolated is to have all requests in one fork.
            forks = 1 if 'isolate = "none"' in lines else 2
            secret = self.folder / "secret"
            text += PROGRAM.format(name=name, secret=secret, forks=forks) + lines + "\n"
        (self.folder / "serve.toml").write_text(text)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Served]:
        # Its relative paths are those of its folder.
        words = ["--config", os.fspath(self.folder / "serve.toml")]
        with started(words, pathlib.Path("/"), self.port, self.control) as served:
            yield served


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Place:
    return Place(tmp_path)


def ask(served: Served, host: str, path: str = "/") -> tuple[int, str]:
    status, body = served.get(path, Host=host)
    return status, body.decode()


def test_programs_by_host_and_path(place: Place) -> None:
    place.write(
        'access-log = "json"',
        shop='host = ["shop.test", "*.shop.test"]',
        api='host = "shop.test"\npath = "/api"\nread = ["secret"]',
        rest='isolate = "none"',
    )
    with place.serving() as served:
        for _ in range(3):
            assert ask(served, "shop.test") == (200, "shop 1 False FileNotFoundError")
            assert ask(served, "www.SHOP.test:80", "/api") == (
                200,
                "shop 1 False FileNotFoundError",
            )
            assert ask(served, "shop.test", "/api/x?y") == (200, "api 1 False plums")
        assert ask(served, "shop.test", "/api/../x")[0] == 400
        answers = [ask(served, "other.test")[1] for _ in range(2)]
        assert answers == ["rest 1 False FileNotFoundError", "rest 2 True FileNotFoundError"]
        for labels, count in (
            ('program="shop",outcome="ok"', 6),
            ('program="api",outcome="ok"', 3),
            ('program="rest",outcome="ok"', 2),
            ('outcome="refused"', 1),
        ):
            served.until(f"kvmlet_requests_total{{{labels}}}", count)
        served.until('kvmlet_forks_busy{program="api"}', 0)
        assert served.metric('kvmlet_reset_seconds_count{program="api"}') == 3
        served.until('kvmlet_forks{program="shop"}', 2)
        argv = [os.fspath(KVMLET), "serve", "--status", "--config", "serve.toml"]
        said = subprocess.run(argv, cwd=place.folder, env=ENV, capture_output=True, text=True)
        assert said.returncode == 0, said.stderr
        assert "program      api: 2 forks, 0 of them busy, 0 requests wait\n" in said.stdout
        status, out, err = served.end()
    assert status == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert [record.get("program") for record in records if record["status"] == 400] == [None]
    assert {record.get("program") for record in records} == {None, "shop", "api", "rest"}
    of_api = next(record for record in records if record.get("program") == "api")
    line = f"[api fork {of_api['fork']} {of_api['request_id']}] asked"
    assert line in err.decode().splitlines(), err


class Asking(threading.Thread):
    """A client that asks again and again; `wrong` has what was not 200 with an expected body."""

    def __init__(self, served: Served, expected: set[str]) -> None:
        super().__init__()
        self.served, self.expected = served, expected
        self.wrong: list[object] = []
        self.seen: set[str] = set()
        self.over = threading.Event()

    def run(self) -> None:
        connection = self.served.connect()
        while not self.over.is_set():
            try:
                # It connects anew where an answer said that it is the last one.
                connection.request("GET", "/", headers={"Host": "one.test"})
                answer = connection.getresponse()
                body = answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(error)
                connection.close()
                continue
            if answer.status != 200 or body not in self.expected:
                self.wrong.append((answer.status, body))
            self.seen.add(body)


def test_sighup_reads_the_file_again_and_fails_no_request(place: Place) -> None:
    old, new = "one 1 False FileNotFoundError", "one-2 1 False FileNotFoundError"
    place.write(one="")
    with place.serving() as served:
        clients = [Asking(served, {old, new}) for _ in range(4)]
        for client in clients:
            client.start()
        try:
            # A file that cannot be taken, and a program that does not come up, change nothing.
            for front, lines in (("queue = 5", ""), ("", 'command = ["/bin/false"]')):
                place.write(front, one="")
                file = place.folder / "serve.toml"
                if lines:
                    file.write_text(file.read_text() + f"[program.two]\nhost = 'b'\n{lines}\n")
                served.process.send_signal(signal.SIGHUP)
                said_by(served, b"served before is served on")
            place.write(one="", two='host = "two.test"')
            (place.folder / "one" / "version").write_text("-2")
            served.process.send_signal(signal.SIGHUP)
            said_by(served, b"kvmlet: reloaded")
            # The one before takes clients until it has heard of it.
            end = time.monotonic() + HANG_S
            while ask(served, "two.test") != (200, "two 1 False FileNotFoundError"):
                assert time.monotonic() < end
            assert ask(served, "one.test") == (200, new)
            time.sleep(0.2)
        finally:
            for client in clients:
                client.over.set()
            for client in clients:
                client.join()
        assert [client.wrong for client in clients] == [[]] * 4
        assert {body for client in clients for body in client.seen} == {old, new}
        # The one before has gone.
        end = time.monotonic() + HANG_S
        while len(children(served)) > 1:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert served.end()[0] == 0
        with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
            served.get("/")


def said_by(served: Served, part: bytes) -> None:
    """Waits until it has said this on standard error."""
    stream = served.process.stderr
    assert stream is not None
    while line := stream.readline():
        if part in line:
            return
    raise AssertionError(part)


def children(served: Served) -> list[int]:
    pid = served.process.pid
    return [
        int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


@ONLY_ROOT_SEES
def test_the_processes_end_together(place: Place) -> None:
    place.write(one="")
    with place.serving() as served:
        (child,) = children(served)
        # The one that serves is killed, as by the kernel that has no memory left.
        os.kill(child, signal.SIGKILL)
        assert served.process.wait(HANG_S) == 128 + signal.SIGKILL
    with place.serving() as served:
        (child,) = children(served)
        served.process.kill()
        end = time.monotonic() + HANG_S
        while pathlib.Path(f"/proc/{child}/exe").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        with pytest.raises(OSError), socket.create_connection(("127.0.0.1", served.port)):  # noqa: PT011
            pass


def test_a_file_is_checked(place: Place) -> None:
    def checked() -> tuple[int, str]:
        argv = [os.fspath(KVMLET), "serve", "--check", "--config", "serve.toml"]
        run = subprocess.run(argv, cwd=place.folder, env=ENV, capture_output=True, text=True)
        assert run.stdout == ""
        return run.returncode, run.stderr

    place.write(one="", two='host = "b"')
    assert checked() == (0, "")
    assert not place.control.exists()
    place.write(one="", two='host = "b"')
    file = place.folder / "serve.toml"
    file.write_text(
        file.read_text() + '[program.three]\nhost = "c"\ncommand = ["absent-program"]\n'
    )
    status, text = checked()
    assert (status, text.count("\n")) == (127, 1)
    assert text.startswith("kvmlet: program three: absent-program: no such program; ")
    place.write(one="", two="")
    status, text = checked()
    assert (status, text.count("\n")) == (125, 1)
    assert "serve.toml:" in text
    assert "programs one and two are both for any host/" in text
