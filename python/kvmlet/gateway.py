"""An isolated program behind any Python server: each request is answered by a clean fork of it.

    sandbox = kvmlet.Sandbox(["python3", "legacy.py"]).until_listening()
    app = kvmlet.wsgi(sandbox.freeze(), timeout="5s")

`app` is an application of WSGI (PEP 3333), for gunicorn, waitress, or a route of Flask or Django.
`kvmlet.asgi` makes one of ASGI, for uvicorn, hypercorn, or a mount of Starlette or FastAPI. The
server speaks with clients, and kvmlet with the program: by HTTP/1.1, over a connection inside.

Failures are answers, as those of `kvmlet serve`. The program ends or says no HTTP: 502. No fork is
free: 503. The deadline has passed: 504. Connections for WebSockets are refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import tempfile
import time
import urllib.parse
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypedDict

from kvmlet._exchange import (
    PIECE_BYTES,
    SPOOL_BYTES,
    Answer,
    Gateway,
    Head,
    Refused,
    Request,
    refusal_of,
)
from kvmlet.errors import KvmletError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
    from types import TracebackType
    from typing import Self, Unpack
    from wsgiref.types import StartResponse, WSGIEnvironment

    from kvmlet.pool import PoolStats
    from kvmlet.sandbox import Snapshot

    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]

__all__ = ["AsgiApp", "WsgiApp", "asgi", "wsgi"]

_TIMEOUT = "30s"
_MAX_BODY = 16 << 20
_QUEUE = 1024
# Characters of a path that need no other form.
_PLAIN = "/:@!$&'()*+,;=~-._"
# The path and query of a form that servers may give besides, as the client sent them.
_RAW = ("RAW_URI", "REQUEST_URI")


class AppOptions(TypedDict, total=False):
    """Keywords of `wsgi` and `asgi`, as `WsgiApp` describes them."""

    size: int | None
    queue: int | None
    timeout: float | str
    max_body: int | str


class _App:
    """Parts of both kinds of application."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        size: int | None = None,
        queue: int | None = _QUEUE,
        timeout: float | str = _TIMEOUT,
        max_body: int | str = _MAX_BODY,
    ) -> None:
        """Forks of `snapshot`, a server that was frozen when it waited for connections.

        size: most forks at once; by default as many as there are processors to use.
        queue: requests that may wait for a fork; one more is answered with 503.
        timeout: a request's deadline, from when it is read to the end of its answer.
        max_body: most bytes of a request's body; more is answered with 413.

        Raises UsageError.
        """
        self._gateway = Gateway(
            snapshot, size=size, queue=queue, timeout=timeout, max_body=max_body
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def warm_up(self, count: int | None = None) -> None:
        """Make `count` forks ahead, by default all. Raises what `Pool.warm_up` raises."""
        self._gateway.pool.warm_up(count)

    def stats(self) -> PoolStats:
        """Counts of its forks and requests at this moment."""
        return self._gateway.pool.stats()

    def close(self) -> None:
        """Take no more requests, and return when those that run are answered."""
        self._gateway.pool.shutdown()


class WsgiApp(_App):
    """An application of WSGI whose requests are answered by an isolated program.

    >>> argv = ["python3", "-m", "http.server", "8000"]
    >>> site = kvmlet.Sandbox(argv).until_listening(timeout=60).freeze()
    >>> import wsgiref.util
    >>> environ = {}
    >>> wsgiref.util.setup_testing_defaults(environ)
    >>> with kvmlet.WsgiApp(site, size=1) as app:
    ...     page = b"".join(app(environ, lambda status, fields: None))
    >>> b"Directory listing" in page
    True
    """

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        request = _of_environ(environ)
        accept = environ.get("HTTP_ACCEPT", "")
        try:
            _read_body(environ, request, self._gateway.max_body_bytes)
            body = _Body(self._gateway.ask(request))
            head = body.answer.wait_head()
        except (Refused, KvmletError) as error:
            return _refused(refusal_of(error), accept, request, start_response)
        start_response(f"{head.status} {head.reason}", head.fields)
        return body


class _Body:
    """The body of an answer, which a server of WSGI takes piece by piece and then closes."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def __iter__(self) -> Iterator[bytes]:
        while piece := self.answer.take():
            yield piece

    def close(self) -> None:
        self.answer.drop()

    def __del__(self) -> None:
        self.answer.drop()


def _refused(
    error: Exception, accept: str, request: Request, start_response: StartResponse
) -> list[bytes]:
    if not isinstance(error, Refused):
        raise error
    status, fields, body = error.answer(accept, request.id)
    start_response(status, fields)
    return [b"" if request.method == "HEAD" else body]


def _of_environ(environ: WSGIEnvironment) -> Request:
    """The request without its body."""
    names = {
        name: name[5:].replace("_", "-").title() for name in environ if name.startswith("HTTP_")
    }
    fields = [(shown, environ[name]) for name, shown in names.items()]
    if environ.get("CONTENT_TYPE"):
        fields.append(("Content-Type", environ["CONTENT_TYPE"]))
    prefix = environ.get("SCRIPT_NAME", "").rstrip("/")
    path = environ.get("PATH_INFO", "").encode("latin-1")
    target = urllib.parse.quote(path, safe=_PLAIN)
    for name in _RAW:
        raw = environ.get(name, "").partition("?")[0]
        # Only if it is the same: the server may have been asked for a part of it.
        if raw.startswith("/") and urllib.parse.unquote_to_bytes(raw) == path:
            target = raw
    target = target if target.startswith("/") else f"/{target}"
    if environ.get("QUERY_STRING"):
        target += "?" + environ["QUERY_STRING"]
    server = environ.get("SERVER_NAME", "localhost"), environ.get("SERVER_PORT", "80")
    return Request(
        method=environ["REQUEST_METHOD"],
        target=target,
        host=environ.get("HTTP_HOST") or ":".join(server),
        scheme=environ.get("wsgi.url_scheme", "http"),
        peer=_peer(environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT")),
        prefix=prefix,
        fields=fields,
    )


def _peer(host: object, port: object) -> tuple[str, int] | None:
    """The address of a client, as far as the server tells it."""
    try:
        address = str(ipaddress.ip_address(str(host)))
    except ValueError:
        return None
    number = str(port)
    is_port = number.isascii() and number.isdigit() and 0 < int(number[:6]) < 1 << 16
    return address, int(number) if is_port else 1


def _too_large(most_bytes: int) -> Refused:
    return Refused(
        413, "refused", f"the body has more than the {most_bytes} bytes that it may have"
    )


class _Spool:
    """A body of a request while it is read: in memory, or in a file if it is large."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # The request closes it.
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115
        self.length_bytes = 0

    def add(self, piece: bytes) -> None:
        """Raises Refused."""
        self.length_bytes += len(piece)
        if self.length_bytes > self._max_bytes:
            raise _too_large(self._max_bytes)
        self._file.write(piece)

    def close(self) -> None:
        """It is not needed."""
        self._file.close()

    def give_to(self, request: Request) -> None:
        """The body is there as a whole, and is the request's to close."""
        self._file.seek(0)
        request.body, request.length_bytes = self._file, self.length_bytes


def _read_body(environ: WSGIEnvironment, request: Request, max_bytes: int) -> None:
    """Reads the body of a request. Raises Refused."""
    said = environ.get("CONTENT_LENGTH") or ""
    if said and not (said.isascii() and said.isdigit()):
        raise Refused(400, "refused", "the length of the body is no number")
    # Without a length there is a body only if the server says that it ends.
    is_ended = bool(environ.get("wsgi.input_terminated"))
    left_bytes = int(said) if said else max_bytes + 1 if is_ended else 0
    if said and left_bytes > max_bytes:
        raise _too_large(max_bytes)
    if left_bytes == 0:
        return
    spool = _Spool(max_bytes)
    try:
        while left_bytes and (piece := environ["wsgi.input"].read(min(PIECE_BYTES, left_bytes))):
            left_bytes -= len(piece)
            spool.add(piece)
    except BaseException:
        spool.close()
        raise
    if said and left_bytes:
        spool.close()
        raise Refused(400, "refused", "the body of the request is not complete")
    spool.give_to(request)


class AsgiApp(_App):
    """An application of ASGI whose requests are answered by an isolated program.

    >>> argv = ["python3", "-m", "http.server", "8000"]
    >>> site = kvmlet.Sandbox(argv).until_listening(timeout=60).freeze()
    >>> with kvmlet.AsgiApp(site, size=1) as app:
    ...     app.warm_up()
    ...     app.stats().forks
    1
    """

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or serve the start and end of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            # Before it is accepted, the server answers 403.
            await send({"type": "websocket.close", "code": 1008})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await asyncio.to_thread(self.warm_up, 1)
                except KvmletError as error:
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await asyncio.to_thread(self.close)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        request = _of_scope(scope)
        accept = ",".join(value for name, value in request.fields if name == "accept")
        course = _Course(receive)
        try:
            if not await course.read_body(request, self._gateway.max_body_bytes):
                return
            answer = self._gateway.ask(request, course.told)
        except (Refused, KvmletError) as error:
            course.end()
            await _send_refusal(error, accept, request, send)
            return
        try:
            try:
                head = await course.head_of(answer)
            except (Refused, KvmletError) as error:
                await _send_refusal(error, accept, request, send)
                return
            if head is None:
                return
            await send(
                {
                    "type": "http.response.start",
                    "status": head.status,
                    "headers": _encoded(head.fields),
                }
            )
            while piece := await course.piece_of(answer):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            if piece is not None:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            answer.drop()
            course.end()


class _Course:
    """A request of ASGI that is being answered: its messages, and news of its answer."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._gone: asyncio.Task[None] | None = None

    def told(self) -> None:
        """There may be something to take: from any thread."""
        # Its client may be gone, and the loop with it.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def read_body(self, request: Request, max_bytes: int) -> bool:
        """Read all of it; False if the client is gone. Raises Refused."""
        spool = _Spool(max_bytes)
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    spool.close()
                    return False
                spool.add(message.get("body", b""))
                if not message.get("more_body", False):
                    break
        except BaseException:
            spool.close()
            raise
        spool.give_to(request)
        self._gone = asyncio.ensure_future(self._until_gone())
        return True

    async def head_of(self, answer: Answer) -> Head | None:
        """The head, None if the client is gone. Raises why there is none."""
        while (head := answer.head_now()) is None:
            left_s = answer.deadline_s - time.monotonic()
            if not await self._news(left_s if left_s > 0 else None):
                return None
            if left_s > 0 and answer.deadline_s <= time.monotonic():
                answer.expire()
        return head

    async def piece_of(self, answer: Answer) -> bytes | None:
        """The next piece, b"" at the end, None if the client is gone. Raises why it breaks off."""
        while (piece := answer.take_now()) is None:
            if not await self._news(None):
                return None
        return piece

    def end(self) -> None:
        """Wait for nothing any more."""
        if self._gone is not None:
            self._gone.cancel()

    async def _news(self, limit_s: float | None) -> bool:
        """Wait for news of the answer, or the limit; False if the client is gone."""
        told = asyncio.ensure_future(self._changed.wait())
        waiting = {told} if self._gone is None else {told, self._gone}
        try:
            await asyncio.wait(waiting, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            told.cancel()
        # Cleared before it is looked at: what comes later is seen the next time.
        self._changed.clear()
        return self._gone is None or not self._gone.done()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _of_scope(scope: Message) -> Request:
    """The request without its body."""
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    hosts = [value for name, value in fields if name == "host"]
    prefix = scope.get("root_path", "").rstrip("/")
    raw = scope.get("raw_path")
    path = raw.decode("latin-1") if raw else urllib.parse.quote(scope["path"], safe=_PLAIN)
    # The path has the prefix where the server follows the newer version of ASGI.
    quoted = urllib.parse.quote(prefix, safe=_PLAIN)
    if quoted and (path == quoted or path.startswith(quoted + "/")):
        path = path[len(quoted) :]
    target = path if path.startswith("/") else f"/{path}"
    if scope.get("query_string"):
        target += "?" + scope["query_string"].decode("latin-1")
    client = scope.get("client") or (None, None)
    server = scope.get("server") or ("localhost", None)
    return Request(
        method=scope["method"],
        target=target,
        host=hosts[0] if hosts else str(server[0]),
        scheme=scope.get("scheme", "http"),
        peer=_peer(client[0], client[1]),
        prefix=prefix,
        fields=fields,
    )


def _encoded(fields: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in fields]


async def _send_refusal(error: Exception, accept: str, request: Request, send: Send) -> None:
    refusal = refusal_of(error)
    if not isinstance(refusal, Refused):
        raise refusal
    _, fields, body = refusal.answer(accept, request.id)
    headers = _encoded(fields)
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    body = b"" if request.method == "HEAD" else body
    await send({"type": "http.response.body", "body": body, "more_body": False})


def wsgi(snapshot: Snapshot, **options: Unpack[AppOptions]) -> WsgiApp:
    """An application of WSGI that has a clean fork of `snapshot` answer each request.

    The options are those of `WsgiApp`. Raises UsageError.

        >>> argv = ["python3", "-m", "http.server", "8000"]
        >>> site = kvmlet.Sandbox(argv).until_listening(timeout=60).freeze()
        >>> with kvmlet.wsgi(site, timeout="5s") as app:
        ...     callable(app)
        True
    """
    return WsgiApp(snapshot, **options)


def asgi(snapshot: Snapshot, **options: Unpack[AppOptions]) -> AsgiApp:
    """The same as an application of ASGI, for servers that run asyncio.

    The options are those of `AsgiApp`. Raises UsageError.

        >>> argv = ["python3", "-m", "http.server", "8000"]
        >>> site = kvmlet.Sandbox(argv).until_listening(timeout=60).freeze()
        >>> with kvmlet.asgi(site, queue=0) as app:
        ...     callable(app)
        True
    """
    return AsgiApp(snapshot, **options)
