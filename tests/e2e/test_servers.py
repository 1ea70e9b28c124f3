"""Servers as they are installed, by `kvmlet serve`: each request meets the state that was frozen.

`make test-long PART=servers` and `PART=runtimes` install them.
KVMLET_SERVER_REQUESTS=100 asks each less often.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from e2e.oracle import GUESTS, LONG, ROOT
from e2e.serving import Served, serving

pytestmark = [
    pytest.mark.usefixtures("vm"),
    pytest.mark.default_mode,
    pytest.mark.skipif(not LONG, reason="long: make test-long PART=servers, PART=runtimes"),
]

REQUESTS = int(os.environ.get("KVMLET_SERVER_REQUESTS", "10000"))
# A connection to PostgreSQL is a process of it, which takes longer to start.
SESSIONS = max(1, REQUESTS // 20)
GROWTH_MAX_KIB = 8192
"""Memory that comes and goes: what threads have at hand, pages that were learned."""

OF_REQUEST = ("date", "x-request-id")
"""Fields of an answer that differ from one request to another."""

SERVERS = ROOT / "tests" / "e2e" / "servers"
IS_INSTALLED = bool(os.environ.get("KVMLET_SERVERS"))
PYTHON = sys.executable
PLACE = "127.0.0.1:8000"


@dataclass(frozen=True)
class Server:
    """A server of HTTP at port 8000: its command and what it needs, in the words of `serve`."""

    program: tuple[str, ...]
    options: tuple[str, ...] = ()
    needs: str = ""
    """A program, or a module of Python."""
    build: Callable[[pathlib.Path], None] = lambda directory: None
    """Makes the program in a copy of SERVERS."""
    count: bytes = b"1 1 1"
    """The beginning of its answer to /count if nobody has asked that before."""
    warmup: tuple[str, ...] = ("/", "/draw")
    """Asked before it is frozen. Words of /draw are values that no two clients may get."""
    draws: int = 100
    """The forks that values are collected from; many for one server of each kind of generator."""


def run(*words: str, cwd: pathlib.Path, **variables: str) -> None:
    subprocess.run(words, cwd=cwd, env={**os.environ, **variables}, check=True)


def build_go(directory: pathlib.Path) -> None:
    cache = os.fspath(GUESTS / "build" / ".go")
    settings = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": cache}
    run("go", "build", "-o", "server", "server.go", cwd=directory, **settings)


def build_hyper(directory: pathlib.Path) -> None:
    built = ROOT / "target" / "servers"
    source = directory / "hyper"
    run("cargo", "build", "--release", "--quiet", "--target-dir", str(built), cwd=source)
    shutil.copy(built / "release" / "hyper-server", directory)


def build_java(directory: pathlib.Path) -> None:
    run("javac", "Server.java", cwd=directory)


def build_c(directory: pathlib.Path) -> None:
    shutil.copy(GUESTS / "build" / "webserver-dynamic", directory / "webserver")


def module(name: str, *words: str) -> tuple[str, ...]:
    return (PYTHON, "-m", name, *words)


GUNICORN = ("--workers", "2")
HTTP = {
    "flask": Server(module("flask", "--app", "flask_app", "run", "--port", "8000"), needs="flask"),
    "django": Server((PYTHON, "django_app.py", "runserver", "--noreload"), needs="django"),
    "fastapi": Server(module("uvicorn", "fastapi_app:app"), needs="fastapi"),
    "starlette": Server(module("uvicorn", "starlette_app:app"), needs="starlette"),
    "aiohttp": Server(module("aiohttp.web", "--port", "8000", "aiohttp_app:init"), needs="aiohttp"),
    "gunicorn-gthread": Server(
        module("gunicorn", *GUNICORN, "--threads", "4", "wsgi_app:app"), needs="gunicorn"
    ),
    "gunicorn-sync": Server(module("gunicorn", *GUNICORN, "wsgi_app:app"), needs="gunicorn"),
    # random, uuid, secrets and ssl of CPython.
    "waitress": Server(
        module("waitress", "--listen", PLACE, "wsgi_app:app"), needs="waitress", draws=REQUESTS
    ),
    "go": Server(("./server",), needs="go", build=build_go, draws=REQUESTS),
    # Its crypto, with the values that it would draw ahead.
    "node": Server(("node", "node_app.js"), needs="node", draws=REQUESTS),
    "express": Server(
        ("node", "express_app.js"),
        options=("-e", "NODE_PATH=/usr/share/nodejs"),
        needs="/usr/share/nodejs/express",
    ),
    # As root it would give its files to another user.
    "nginx": Server(
        ("/usr/sbin/nginx", "-p", ".", "-e", "stderr", "-c", "nginx.conf", "-g", "user root root;"),
        needs="/usr/sbin/nginx",
        count=b"x\nx\n",
        # OpenSSL.
        draws=REQUESTS,
    ),
    # Classes that a first request loads are loaded once, for all forks.
    "java": Server(
        ("java", "-cp", ".", "Server"),
        needs="javac",
        build=build_java,
        count=b"2 2 2",
        warmup=("/", "/draw", "/count"),
    ),
    # getrandom(2).
    "hyper": Server(("./hyper-server",), needs="cargo", build=build_hyper, draws=REQUESTS),
    "c": Server(
        ("./webserver", "epoll", "8000"),
        build=build_c,
        count=b"counter 1 file 1 list 1 ",
    ),
    "deno": Server(
        (
            str(pathlib.Path(PYTHON).parent / "deno"),
            *("run", "--allow-net", "--allow-read=/tmp", "--allow-write=/tmp", "deno_app.ts"),
        ),
        needs="deno",
        # Values that it has drawn before repeat: docs/servers.md.
        warmup=("/",),
    ),
}


class Host:
    """The process of `kvmlet serve`, as the host sees it."""

    def __init__(self, served: Served) -> None:
        self.place = pathlib.Path("/proc") / str(served.process.pid)

    @property
    def memory_kib(self) -> int:
        """Memory that no file stands for."""
        lines = (line.split() for line in (self.place / "status").read_text().splitlines())
        return sum(int(words[1]) for words in lines if words[0] in ("RssAnon:", "RssShmem:"))

    @property
    def descriptors(self) -> int:
        """Their number; -1 for anybody but root, who cannot see those of such a process."""
        try:
            return len(list((self.place / "fd").iterdir()))
        except PermissionError:
            assert os.geteuid() != 0
            return -1


class Growth:
    """Fails if memory or descriptors of a process grow over many requests."""

    def __init__(self, served: Served) -> None:
        self._host = Host(served)
        self._memory: list[int] = []
        self._descriptors: list[int] = []

    def look(self) -> None:
        self._memory.append(self._host.memory_kib)
        self._descriptors.append(self._host.descriptors)

    def check(self) -> None:
        half = len(self._memory) // 2
        for seen, slack in ((self._memory, GROWTH_MAX_KIB), (self._descriptors, 0)):
            assert max(seen[half:]) <= max(seen[:half]) + slack, seen


def report(served: Served, growth: Growth) -> None:
    """Prints the cost of a request, for `pytest -rP`."""
    resets = served.metric("kvmlet_reset_seconds_count")
    pages = served.metric("kvmlet_pages_reset_total") / resets
    run_ms, reset_ms = (
        1000 * served.metric(f"kvmlet_{name}_seconds_sum") / resets for name in ("run", "reset")
    )
    print(f"{resets:.0f} resets of {pages:.0f} pages in {reset_ms:.2f} ms, run {run_ms:.2f} ms")
    print(f"memory in KiB {growth._memory}, descriptors {growth._descriptors}")


def read_on(served: Served) -> list[bytes]:
    """The lines that it writes to standard error, which nobody else reads meanwhile."""
    lines: list[bytes] = []
    assert served.process.stderr is not None
    threading.Thread(target=lines.extend, args=(served.process.stderr,), daemon=True).start()
    return lines


def is_there(needs: str) -> bool:
    if needs.startswith("/"):
        return os.path.exists(needs)
    return shutil.which(needs) is not None or importlib.util.find_spec(needs) is not None


def require(needs: str) -> None:
    if needs and not is_there(needs):
        # The part that installs it must have it.
        assert not IS_INSTALLED, needs
        pytest.skip(f"no {needs} here: make test-long PART=servers or PART=runtimes installs it")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", HTTP)
def test_each_request_meets_the_frozen_server(tmp_path: pathlib.Path, name: str) -> None:
    server = HTTP[name]
    require(server.needs)
    shutil.copytree(SERVERS, tmp_path, dirs_exist_ok=True)
    server.build(tmp_path)
    warmup = [word for path in server.warmup for word in ("--warmup-request", f"GET {path}")]
    words = ["--timeout", "100s", *server.options, *warmup]
    with serving(tmp_path, *words, program=list(server.program)) as served:
        said = read_on(served)
        growth = Growth(served)
        connection = served.connect()

        def get(path: str) -> tuple[int, list[tuple[str, str]], bytes]:
            connection.request("GET", path)
            answer = connection.getresponse()
            fields = [field for field in answer.getheaders() if field[0] not in OF_REQUEST]
            return answer.status, fields, answer.read()

        first = get("/count")
        assert first[0] == 200, said
        assert first[2].startswith(server.count), first
        for number in range(1, REQUESTS):
            assert get("/count") == first, number
            if number % max(1, REQUESTS // 20) == 0:
                growth.look()
        drawn = []
        for _ in range(server.draws):
            status, _, text = get("/draw")
            assert status == 200, text
            drawn.append(text.split())
        for values in zip(*drawn, strict=True):
            assert len(set(values)) == len(drawn)
        connection.close()
        report(served, growth)
        growth.check()
        assert served.metric("kvmlet_forks_rebuilt_total") == 0
        status, _, _ = served.end()
        assert status == 0, said


def serve_connections(
    directory: pathlib.Path, count: int, program: list[str], ask: Callable[[int], object]
) -> list[bytes]:
    """Has `ask` talk over connections of its own to a port, each of which must go the same way.

    The lines that were written to standard error.
    """
    with serving(directory, "--isolate", "connection", program=program) as served:
        said = read_on(served)
        growth = Growth(served)
        first = ask(served.port)
        for number in range(1, count):
            assert ask(served.port) == first, number
            if number % max(1, count // 20) == 0:
                growth.look()
        report(served, growth)
        growth.check()
        assert served.metric("kvmlet_forks_rebuilt_total") == 0
        status, _, _ = served.end()
        assert status == 0, said
    return said


def test_nginx_answers_with_a_part_of_a_file(tmp_path: pathlib.Path) -> None:
    server = HTTP["nginx"]
    require(server.needs)
    shutil.copytree(SERVERS, tmp_path, dirs_exist_ok=True)
    (tmp_path / "large.txt").write_bytes(bytes(range(256)) * 4096)
    with serving(tmp_path, *server.options, program=list(server.program)) as served:
        for part, first, last in (("3-9", 3, 9), ("-5", -5, -1), ("1048570-", 1048570, 1048575)):
            connection = served.connect()
            connection.request("GET", "/large.txt", headers={"Range": f"bytes={part}"})
            answer = connection.getresponse()
            wanted = bytes(number % 256 for number in range(first, last + 1))
            assert (answer.status, answer.read()) == (206, wanted)
            assert answer.getheader("Content-Range", "").endswith("/1048576")
            connection.close()


@pytest.mark.timeout(1800)
def test_each_connection_meets_the_frozen_redis(tmp_path: pathlib.Path) -> None:
    require("/usr/bin/redis-server")
    redis = pytest.importorskip("redis")

    def ask(port: int) -> object:
        with redis.Redis(port=port, socket_timeout=60) as client:
            answers = [client.incr("counter"), client.rpush("list", "x"), client.dbsize()]
            before = client.info("persistence")["rdb_last_save_time"]
            # It writes a file.
            assert client.save()
            assert client.info("persistence")["rdb_changes_since_last_save"] == 0
            return [*answers, before]

    program = ["/usr/bin/redis-server", "--port", "6379", "--dir", "/tmp"]
    said = serve_connections(tmp_path, REQUESTS, program, ask)
    assert any(b"kvmlet: passwords that ACL GENPASS makes repeat" in line for line in said), said


@pytest.mark.timeout(1800)
def test_each_connection_meets_the_frozen_postgresql(tmp_path: pathlib.Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("PostgreSQL does not run as root: make test-long PART=runtimes as another user")
    require("/usr/lib/postgresql")
    pg8000 = pytest.importorskip("pg8000.native")
    programs = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    data = str(tmp_path / "data")
    run(str(programs / "initdb"), "-D", data, "-U", "test", "-A", "trust", "-N", cwd=tmp_path)
    drawn: set[str] = set()

    def ask(port: int) -> object:
        client = pg8000.Connection(
            "test", host="127.0.0.1", port=port, database="postgres", timeout=60
        )
        client.run("create table seen (number serial, word text)")
        client.run("insert into seen (word) values ('x')")
        answers = client.run("select * from seen")
        drawn.add(str(client.run("select gen_random_uuid()")))
        client.close()
        return answers

    program = [str(programs / "postgres"), "-D", data, "-c", "unix_socket_directories=/tmp"]
    serve_connections(tmp_path, SESSIONS, program, ask)
    assert len(drawn) == SESSIONS
