"""`kvmlet.wsgi` and `kvmlet.asgi`: an isolated program behind servers of this process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import sys
import threading
import time
import urllib.error
import urllib.request
import wsgiref.util
import wsgiref.validate
from typing import TYPE_CHECKING, Any

import pytest

import kvmlet
from e2e.oracle import HANG_S

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.default_mode]

APP = """
import http.server, json, os, signal, time
COUNT = 0
OK = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\n"
RAW = {
    "/garbage": b"SSH-2.0-garbage\\r\\n",
    "/folded": OK + b"X: a\\r\\n b\\r\\n\\r\\n",
    "/short": OK + b"Content-Length: 9\\r\\n\\r\\nabc",
    "/twice": OK + b"Content-Length: 3\\r\\nContent-Length: 4\\r\\n\\r\\nabcd",
    "/coding": OK + b"Transfer-Encoding: gzip\\r\\n\\r\\nabc",
    "/hints": b"HTTP/1.1 103 Early Hints\\r\\nLink: x\\r\\n\\r\\n" + OK
    + b"Transfer-Encoding: chunked\\r\\n\\r\\n3\\r\\nabc\\r\\n0\\r\\n\\r\\n",
}
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/plain")
        self.send_header("X-Many", "1")
        self.send_header("X-Many", "2")
        self.send_header("Keep-Alive", "timeout=5")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
    def do_GET(self):
        global COUNT
        COUNT += 1
        path = self.path.partition("?")[0]
        if path == "/sleep": time.sleep(60)
        if path == "/crash": os.kill(os.getpid(), signal.SIGSEGV)
        if path == "/eat":
            hoard = []
            while True: hoard.append(bytearray(1 << 20))
        if path in RAW:
            self.wfile.write(RAW[path])
            self.close_connection = True
            return
        if path == "/forever":
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            while True: self.wfile.write(b"x" * 65536)
        names = ("Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Kept",
                 "X-Hop", "X-Request-ID", "Connection")
        said = {name: self.headers[name] for name in names}
        self.answer(json.dumps({**said, "count": COUNT, "path": self.path}).encode())
    do_HEAD = do_DELETE = do_GET
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(f"{len(body)} {sum(body) % 251}".encode(), 201)
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""


@pytest.fixture(scope="module")
def snapshot() -> Iterator[kvmlet.Snapshot]:
    sandbox = kvmlet.Sandbox(["/usr/bin/python3", "-c", APP], memory="64m")
    with sandbox.until_listening(timeout=HANG_S).freeze() as frozen:
        yield frozen


class Said:
    """The answer of a server to its client."""

    def __init__(self, status: int, fields: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.body = status, body
        self.fields = [(name.lower(), value) for name, value in fields]

    def json(self) -> Any:
        return json.loads(self.body)

    def all(self, name: str) -> list[str]:
        return [value for other, value in self.fields if other == name]


def by_wsgi(
    app: kvmlet.WsgiApp, method: str = "GET", path: str = "/", body: bytes = b"", **more: Any
) -> Said:
    """One request, as PEP 3333 has it: the validator looks at both sides."""
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        **({"CONTENT_LENGTH": str(len(body))} if body else {}),
        **more,
    }
    wsgiref.util.setup_testing_defaults(environ)
    started: list[Any] = []

    def start(status: str, fields: list[tuple[str, str]], _: object = None) -> Any:
        started[:] = [int(status[:3]), fields]
        return started.append

    pieces = wsgiref.validate.validator(app)(environ, start)
    try:
        said = b"".join(pieces)
    finally:
        pieces.close()  # type: ignore[attr-defined]
    return Said(started[0], started[1], said)


def scope_of(method: str, path: str, fields: dict[str, str]) -> dict[str, Any]:
    raw, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": raw,
        "raw_path": raw.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"h.test")]
        + [(name.lower().encode(), value.encode()) for name, value in fields.items()],
        "client": ("192.0.2.7", 4000),
        "server": ("127.0.0.1", 80),
    }


async def by_asgi(
    app: kvmlet.AsgiApp,
    method: str = "GET",
    path: str = "/",
    body: bytes = b"",
    pieces_max: int | None = None,
    **fields: str,
) -> Said:
    """One request; the client goes away after so many pieces, if that is said."""
    parts = [body[at : at + 100_000] for at in range(0, len(body), 100_000)] or [b""]
    gone = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)
        if pieces_max is not None and len(sent) > pieces_max:
            gone.set()

    await app(scope_of(method, path, fields), receive, send)
    assert sent[0]["type"] == "http.response.start"
    if pieces_max is None:
        assert [message["more_body"] for message in sent[1:]][-1] is False
    head = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    return Said(sent[0]["status"], head, b"".join(message["body"] for message in sent[1:]))


def test_each_request_meets_the_frozen_program(snapshot: kvmlet.Snapshot) -> None:
    body = bytes(range(256)) * 8192
    with kvmlet.wsgi(snapshot, size=2) as app:
        for _ in range(10):
            said = by_wsgi(app)
            assert (said.status, said.json()["count"]) == (200, 1)
        assert said.all("x-many") == ["1", "2"]
        assert said.all("keep-alive") == []
        assert said.all("content-length") == [str(len(said.body))]
        assert len(said.all("x-request-id")) == 1
        said = by_wsgi(
            app,
            path="/a b/\xc3\xa9",
            SCRIPT_NAME="/mount",
            QUERY_STRING="q=1%20",
            RAW_URI="/a%20b/%c3%A9?q=1",
            HTTP_HOST="h.test",
            HTTP_X_KEPT="1",
            HTTP_X_HOP="1",
            HTTP_CONNECTION="x-hop",
            HTTP_X_FORWARDED_FOR="9.9.9.9",
            HTTP_X_REQUEST_ID="mine",
        )
        got = said.json()
        assert got.pop("X-Request-ID") == said.all("x-request-id")[0] != "mine"
        assert got == {
            "Host": "h.test",
            "X-Forwarded-For": "192.0.2.7",
            "X-Forwarded-Proto": "http",
            "X-Forwarded-Prefix": "/mount",
            "X-Kept": "1",
            "X-Hop": None,
            "Connection": "close",
            "count": 1,
            # As the client has sent it.
            "path": "/a%20b/%c3%A9?q=1%20",
        }
        said = by_wsgi(app, "POST", body=body)
        assert (said.status, said.body) == (201, b"%d %d" % (len(body), sum(body) % 251))
        # Without a length, from a server that says where it ends.
        endless: dict[str, Any] = {"wsgi.input": io.BytesIO(body), "wsgi.input_terminated": True}
        said = by_wsgi(app, "POST", **endless)
        assert said.body.startswith(b"%d " % len(body))
        head = by_wsgi(app, "HEAD")
        assert (head.status, head.body) == (200, b"")
        assert int(head.all("content-length")[0]) > 100
        hints = by_wsgi(app, path="/hints")
        assert (hints.status, hints.body) == (200, b"abc")
        stats = app.stats()
        assert (stats.failed, stats.resets >= 14) == (0, True)


FAILURES = {
    "/sleep": (504, "deadline"),
    "/crash": (502, "crash"),
    "/eat": (502, "memory"),
    "/garbage": (502, "invalid"),
    "/folded": (502, "invalid"),
    "/twice": (502, "invalid"),
    "/coding": (502, "invalid"),
}


def test_failures_are_answers(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.wsgi(snapshot, size=1, timeout=HANG_S, max_body="1m") as app:
        for path, (status, outcome) in FAILURES.items():
            if path == "/sleep":
                continue
            said = by_wsgi(app, path=path, HTTP_ACCEPT="application/json")
            assert (said.status, said.json()["outcome"]) == (status, outcome), path
            assert said.json()["request_id"] == said.all("x-request-id")[0]
            assert by_wsgi(app).json()["count"] == 1, path
        # Its head has come: the client has to see that it breaks off.
        with pytest.raises(Exception, match="not complete"):
            by_wsgi(app, path="/short")
        too_large = by_wsgi(app, "POST", body=bytes((1 << 20) + 1))
        assert too_large.status == 413
        assert by_wsgi(app).json()["count"] == 1
    assert by_wsgi(app).status == 503
    with kvmlet.wsgi(snapshot, size=1, queue=0, timeout="300ms") as app:
        app.warm_up()
        slow = threading.Thread(target=by_wsgi, args=(app,), kwargs={"path": "/sleep"})
        slow.start()
        while app.stats().running == 0:
            time.sleep(0.005)
        said = by_wsgi(app)
        assert (said.status, said.all("retry-after")) == (503, ["1"])
        assert b"as many requests wait as may" in said.body
        slow.join()
    with kvmlet.wsgi(snapshot, size=1, timeout="300ms") as app:
        assert by_wsgi(app, path="/sleep").status == 504
        with pytest.raises(Exception, match="the program has not answered in time"):
            by_wsgi(app, path="/forever")


def test_who_closes_an_answer_stops_its_program(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.wsgi(snapshot, size=1) as app:
        for end in ("close", "forget"):
            pieces = iter(app(_environ("/forever"), lambda *_: io.BytesIO().write))
            assert sum(len(next(pieces)) for _ in range(5)) > 0
            if end == "close":
                pieces.close()  # type: ignore[attr-defined]
            del pieces
            assert by_wsgi(app).json()["count"] == 1


def _environ(path: str) -> dict[str, Any]:
    environ: dict[str, Any] = {"PATH_INFO": path}
    wsgiref.util.setup_testing_defaults(environ)
    return environ


def test_by_asgi(snapshot: kvmlet.Snapshot) -> None:
    body = bytes(range(256)) * 8192

    async def all_of_it(app: kvmlet.AsgiApp) -> None:
        answers = await asyncio.gather(*(by_asgi(app, path="/x?%20") for _ in range(20)))
        for said in answers:
            got = said.json()
            assert (said.status, got["count"], got["path"]) == (200, 1, "/x?%20")
            assert (got["Host"], got["X-Forwarded-Proto"]) == ("h.test", "https")
            assert got["X-Forwarded-For"] == "192.0.2.7"
        said = await by_asgi(app, "POST", body=body)
        assert (said.status, said.body) == (201, b"%d %d" % (len(body), sum(body) % 251))
        assert (await by_asgi(app, "HEAD")).body == b""
        for path in ("/crash", "/garbage", "/eat"):
            status, outcome = FAILURES[path]
            said = await by_asgi(app, path=path, accept="application/json")
            assert (said.status, said.json()["outcome"]) == (status, outcome), path
        # A client that goes away gives its fork back.
        started = time.monotonic()
        for _ in range(2):
            assert (await by_asgi(app, path="/forever", pieces_max=3)).status == 200
        assert (await by_asgi(app)).json()["count"] == 1
        assert time.monotonic() - started < HANG_S
        assert (await by_asgi(app, "POST", body=bytes(5 << 20))).status == 413
        waiting = asyncio.create_task(by_asgi(app, path="/sleep"))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
        assert (await by_asgi(app)).json()["count"] == 1

    with kvmlet.asgi(snapshot, size=2, timeout=HANG_S, max_body="4m") as app:
        asyncio.run(all_of_it(app))
    with kvmlet.asgi(snapshot, size=1, timeout="300ms") as app:
        assert asyncio.run(by_asgi(app, path="/sleep")).status == 504
        with pytest.raises(Exception, match="not answered in time"):
            asyncio.run(by_asgi(app, path="/forever"))

    async def too_late(app: kvmlet.AsgiApp) -> list[int]:
        both = asyncio.gather(by_asgi(app, path="/sleep"), by_asgi(app, path="/sleep"))
        return sorted(said.status for said in await both)

    with kvmlet.asgi(snapshot, size=1, timeout="300ms") as app:
        # The second one has no fork before its deadline, or none in time to answer.
        assert set(asyncio.run(too_late(app))) <= {503, 504}


def test_the_life_of_a_server(snapshot: kvmlet.Snapshot) -> None:
    async def live(app: kvmlet.AsgiApp) -> list[str]:
        asked = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            return asked.pop(0)

        async def send(message: Any) -> None:
            said.append(message)

        await app({"type": "lifespan"}, receive, send)
        asked.append({"type": "websocket.connect"})
        await app({"type": "websocket"}, receive, send)
        return [message["type"] for message in said]

    app = kvmlet.asgi(snapshot, size=1)
    assert asyncio.run(live(app)) == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
        "websocket.close",
    ]
    assert app.stats().forks == 0


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=HANG_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_behind_waitress_and_uvicorn(snapshot: kvmlet.Snapshot) -> None:
    waitress = pytest.importorskip("waitress")
    uvicorn = pytest.importorskip("uvicorn")
    with kvmlet.wsgi(snapshot, size=2) as app:
        server = waitress.create_server(app, host="127.0.0.1", port=0)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.effective_port}"
        for _ in range(5):
            assert json.loads(get(url)[1])["count"] == 1
        assert get(url + "/crash")[0] == 502
        server.close()
    config = uvicorn.Config(
        kvmlet.asgi(snapshot, size=2), host="127.0.0.1", port=0, log_level="error"
    )
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, daemon=True)
    thread.start()
    while not serving.started:
        time.sleep(0.01)
    port = serving.servers[0].sockets[0].getsockname()[1]
    for _ in range(5):
        assert json.loads(get(f"http://127.0.0.1:{port}")[1])["count"] == 1
    assert get(f"http://127.0.0.1:{port}/crash")[0] == 502
    serving.should_exit = True
    thread.join(HANG_S)
    assert not thread.is_alive()


def test_what_is_no_server(snapshot: kvmlet.Snapshot) -> None:
    for options in ({"timeout": 0}, {"max_body": -1}, {"size": 0}, {"queue": -1}):
        with pytest.raises(kvmlet.UsageError):
            kvmlet.wsgi(snapshot, **options)
    with pytest.raises(kvmlet.UsageError, match="is not a Snapshot"):
        kvmlet.asgi("app")  # type: ignore[arg-type]
    with kvmlet.Sandbox(["/bin/sleep", "60"]) as sandbox:
        sandbox.run_for("50ms")
        with sandbox.freeze() as frozen, pytest.raises(kvmlet.UsageError, match="is no server"):
            kvmlet.wsgi(frozen)
