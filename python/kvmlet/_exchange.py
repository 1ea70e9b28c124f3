"""A request of HTTP and its answer, by a clean fork of a server: for those who speak with clients.

The request is there as a whole before a fork is taken. The answer is taken out of the fork as it
comes, some of it ahead of the client. The fork is put back once the last byte is there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import IO, TYPE_CHECKING

from kvmlet._values import parse_bytes, parse_duration
from kvmlet.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    Interrupted,
    KvmletError,
    NotReady,
    PoolClosed,
    QueueFull,
    SandboxEnded,
    UsageError,
)
from kvmlet.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

    from kvmlet._workers import Job
    from kvmlet.sandbox import Sandbox, Snapshot

PIECE_BYTES = 64 << 10
# A body of a request that is larger lies in a file meanwhile.
SPOOL_BYTES = 1 << 20
# An answer is taken out of its fork so far ahead of its client.
_AHEAD_BYTES = 1 << 20
_MAX_FIELDS = 100
_MAX_LINE_BYTES = 16 << 10
_MAX_INTERIM = 16

# Of one connection (RFC 9110, 7.6.1): none of it is the program's or the client's to know.
_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
# Set here, whatever the client says.
_OURS = frozenset(
    (
        "content-length",
        "expect",
        "forwarded",
        "host",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-request-id",
    )
)
_NO_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


class Refused(Exception):
    """A request that gets no answer of the program's; `status`, and why."""

    def __init__(self, status: int, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.outcome, self.reason = status, outcome, reason

    def answer(self, accept: str, request_id: str) -> tuple[str, list[tuple[str, str]], bytes]:
        """Status line, fields and body, in JSON for those who ask for it."""
        phrase = HTTPStatus(self.status).phrase
        if "application/json" in accept:
            kind = "application/json"
            said = {
                "status": self.status,
                "error": self.reason,
                "outcome": self.outcome,
                "request_id": request_id,
            }
            text = json.dumps(said, separators=(",", ":")) + "\n"
        else:
            kind = "text/plain; charset=utf-8"
            text = f"{self.status} {phrase}: {self.reason}\nrequest id: {request_id}\n"
        body = text.encode()
        fields = [
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Request-ID", request_id),
        ]
        if self.status == HTTPStatus.SERVICE_UNAVAILABLE:
            fields.append(("Retry-After", "1"))
        return f"{self.status} {phrase}", fields, body


@dataclass(slots=True)
class Request:
    """A request as it goes to the program: one of HTTP/1.1, and the last of its connection."""

    method: str
    target: str
    """Path and query, as they are sent."""
    host: str
    scheme: str
    peer: tuple[str, int] | None
    prefix: str
    """The part of the path that leads to this program, and that it does not see."""
    fields: list[tuple[str, str]]
    body: IO[bytes] | None = None
    length_bytes: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def close(self) -> None:
        """Its body is not needed any more."""
        if self.body is not None:
            self.body.close()

    def head(self) -> list[tuple[str, str]]:
        """Its fields. Raises Refused."""
        listed = [value for name, value in self.fields if name.lower() == "connection"]
        named = {word.strip().lower() for value in listed for word in value.split(",")}
        if not all(_is_name(name) and _is_value(value) for name, value in self.fields):
            raise Refused(400, "refused", "a field of the request is none of HTTP")
        if not (self.target.isascii() and self.target.isprintable()) or " " in self.target:
            raise Refused(400, "refused", "the target of the request is no path")
        kept = [
            (name, value)
            for name, value in self.fields
            if name.lower() not in _HOP_BY_HOP
            and name.lower() not in _OURS
            and name.lower() not in named
        ]
        if len(kept) > _MAX_FIELDS or any(len(value) > _MAX_LINE_BYTES for _, value in kept):
            raise Refused(431, "refused", "the fields of the request are too long")
        ours = [("Host", self.host), ("X-Forwarded-Proto", self.scheme)]
        if self.peer is not None:
            ours.append(("X-Forwarded-For", self.peer[0]))
        if self.host:
            ours.append(("X-Forwarded-Host", self.host))
        if self.prefix:
            ours.append(("X-Forwarded-Prefix", self.prefix))
        ours += [("X-Request-ID", self.id), ("Connection", "close")]
        if self.length_bytes or self.method not in ("GET", "HEAD", "DELETE", "OPTIONS"):
            ours.append(("Content-Length", str(self.length_bytes)))
        return [ours[0], *kept, *ours[1:]]


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer, its body framed anew by whoever hands it on."""

    status: int
    reason: str
    fields: list[tuple[str, str]]


class Answer:
    """The course of an answer: a head, then pieces of a body.

    One thread of the pool puts it in, and another thread takes it out, or is told that there is
    something to take.
    """

    def __init__(self, told: Callable[[], object], deadline_s: float) -> None:
        """`deadline_s` is on time.monotonic()."""
        self._told = told
        self.deadline_s = deadline_s
        self._changed = threading.Condition()
        self._head: Head | None = None
        self._pieces: deque[bytes] = deque()
        self._held_bytes = 0
        self._is_over = self._is_dropped = False
        self._error: Exception | None = None
        self.job: Job[None] | None = None

    # ---- of those who put it in ----

    def put_head(self, head: Head) -> None:
        """The head has come."""
        with self._changed:
            self._head = head
            self._changed.notify_all()
        self._told()

    def put(self, piece: bytes) -> bool:
        """A piece has come: wait for room. False if nobody wants it. Raises DeadlineExceeded."""
        with self._changed:
            while self._held_bytes >= _AHEAD_BYTES and not self._is_dropped:
                left_s = self.deadline_s - time.monotonic()
                if left_s <= 0:
                    raise DeadlineExceeded("the client has not taken the answer in time")
                self._changed.wait(left_s)
            if self._is_dropped:
                return False
            self._pieces.append(piece)
            self._held_bytes += len(piece)
            self._changed.notify_all()
        self._told()
        return True

    def end(self, error: Exception | None = None) -> None:
        """All of it has come, or no more will."""
        with self._changed:
            if not self._is_over:
                self._is_over, self._error = True, error
            self._changed.notify_all()
        self._told()

    # ---- of those who take it out ----

    def head_now(self) -> Head | None:
        """The head, if it is there. Raises why there is none."""
        with self._changed:
            if self._head is None and self._error is not None:
                raise self._error
            return self._head

    def wait_head(self) -> Head:
        """The head, once it is there. Raises why there is none."""
        with self._changed:
            while self._head is None and not self._is_over:
                left_s = self.deadline_s - time.monotonic()
                self._changed.wait(left_s if left_s > 0 else None)
                if left_s > 0 and self.deadline_s <= time.monotonic():
                    self.expire()
        head = self.head_now()
        if head is None:
            raise Refused(502, "invalid", "the program gave no answer")
        return head

    def expire(self) -> None:
        """The deadline has passed: give up a request that waits. One that runs ends by itself."""
        if self.job is not None and not self.job.running() and self._head is None:
            self.end(Refused(503, "full", "no fork was free in time"))
            self.job.cancel()

    def take_now(self) -> bytes | None:
        """The next piece, if any; b"" at the end, None before. Raises why it breaks off."""
        with self._changed:
            if self._pieces:
                piece = self._pieces.popleft()
                self._held_bytes -= len(piece)
                self._changed.notify_all()
                return piece
            if self._is_over and self._error is not None:
                raise self._error
            return b"" if self._is_over else None

    def take(self) -> bytes:
        """The next piece, once it is there; b"" at the end. Raises why it breaks off."""
        while True:
            piece = self.take_now()
            if piece is not None:
                return piece
            with self._changed:
                if not self._pieces and not self._is_over:
                    self._changed.wait()

    def drop(self) -> None:
        """Nobody wants any more of it: its program is stopped."""
        with self._changed:
            self._is_dropped = True
            self._pieces.clear()
            self._changed.notify_all()
        if self.job is not None:
            self.job.cancel()


class Gateway:
    """Clean forks of a frozen server, for requests."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        size: int | None,
        queue: int | None,
        timeout: float | str,
        max_body: int | str,
    ) -> None:
        """Raises UsageError."""
        self.timeout_s = parse_duration(timeout, "timeout")
        self.max_body_bytes = parse_bytes(max_body, "max_body")
        self.pool = Pool(snapshot, size, queue=queue)
        if snapshot._port is None:
            raise UsageError(
                "the frozen program is no server",
                remedy="until_listening() finds its port, before freeze()",
            )

    def ask(self, request: Request, told: Callable[[], object] = lambda: None) -> Answer:
        """Have a fork answer; `told` is called from other threads when there is more to take.

        Raises Refused, KvmletError.
        """
        try:
            return self._asked(request, told)
        except BaseException:
            request.close()
            raise

    def _asked(self, request: Request, told: Callable[[], object]) -> Answer:
        head = request.head()
        deadline_s = time.monotonic() + self.timeout_s
        answer = Answer(told, deadline_s)
        try:
            job = self.pool._submit(lambda fork: _serve(fork, request, head, answer), None)
        except QueueFull:
            raise Refused(503, "full", "as many requests wait as may") from None
        except PoolClosed:
            raise Refused(503, "full", "the program is being stopped") from None
        answer.job = job
        job.add_done_callback(lambda job: _ended(job, request, answer))
        return answer


def _ended(job: Future[None], request: Request, answer: Answer) -> None:
    request.close()
    if job.cancelled():
        answer.end(Refused(503, "full", "the program is being stopped"))
        return
    error = job.exception()
    answer.end(None if error is None else refusal_of(error))


def refusal_of(error: BaseException) -> Exception:
    """The answer to a client after a failure, with the status that `kvmlet serve` answers."""
    match error:
        case Refused():
            return error
        case DeadlineExceeded():
            return Refused(504, "deadline", "the program has not answered in time")
        case SandboxEnded() if error.result is not None and error.result.reason == "memory":
            return Refused(502, "memory", "the program has reached its memory limit")
        case SandboxEnded():
            return Refused(502, "crash", f"the program has ended: {error.message}")
        case Interrupted():
            return Refused(503, "full", "the program is being stopped")
        case NotReady() | ConnectionFailed() | http.client.RemoteDisconnected():
            return Refused(502, "invalid", "the program gave no answer")
        case http.client.IncompleteRead():
            return Refused(502, "invalid", "the program's answer is not complete")
        case http.client.HTTPException() | ValueError():
            return Refused(502, "invalid", "the program's answer is not HTTP")
        case KvmletError():
            return Refused(502, "error", "kvmlet could not run the program")
        case Exception():
            return error
    return RuntimeError(str(error))


def _serve(
    fork: Sandbox,
    request: Request,
    head: list[tuple[str, str]],
    answer: Answer,
) -> None:
    """Has `fork` answer, in a thread of the pool."""
    fork._set_deadline(answer.deadline_s)
    with fork.connect(peer=request.peer) as connection:
        client = http.client.HTTPConnection("localhost")
        client.sock = connection
        _send(client, request, head)
        response = client.getresponse()
        _skip_interim(response)
        answer.put_head(_head_of(response, request))
        for piece in _pieces(response):
            if not answer.put(piece):
                return


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it comes. Raises IncompleteRead."""
    left_bytes = response.length
    while left_bytes != 0:
        most_bytes = PIECE_BYTES if left_bytes is None else min(PIECE_BYTES, left_bytes)
        piece = response.read1(most_bytes)
        if not piece:
            break
        if left_bytes is not None:
            left_bytes -= len(piece)
        yield piece
    if left_bytes:
        raise http.client.IncompleteRead(b"", left_bytes)


def _send(
    client: http.client.HTTPConnection, request: Request, head: Iterable[tuple[str, str]]
) -> None:
    client.putrequest(request.method, request.target, skip_host=True, skip_accept_encoding=True)
    for name, value in head:
        client.putheader(name, value)
    # A program may answer before it has read all of it, and then reads no more.
    with contextlib.suppress(ConnectionFailed, NotReady):
        client.endheaders()
        while request.body is not None and (piece := request.body.read(PIECE_BYTES)):
            client.send(piece)


def _skip_interim(response: http.client.HTTPResponse) -> None:
    """Takes the next answer while this one is an interim one: 103 and the like (RFC 9110, 15.2)."""
    for _ in range(_MAX_INTERIM):
        if not 100 <= response.status < 200:
            return
        if response.status == HTTPStatus.SWITCHING_PROTOCOLS:
            break
        response.headers = response.msg = None  # type: ignore[assignment]
        response.begin()
    raise Refused(502, "invalid", "the program speaks another protocol, which nobody asked for")


def _head_of(response: http.client.HTTPResponse, request: Request) -> Head:
    """The head as the client gets it. Raises Refused."""
    codings = response.headers.get_all("transfer-encoding") or []
    if codings and [coding.strip().lower() for coding in codings] != ["chunked"]:
        raise Refused(
            502, "invalid", "the program's answer has a transfer coding that is not 'chunked'"
        )
    if not 200 <= response.status <= 599:
        raise Refused(502, "invalid", "the program's answer has no status of HTTP")
    listed = response.headers.get_all("connection") or []
    named = {word.strip().lower() for value in listed for word in value.split(",")}
    fields = []
    for name, value in response.headers.items():
        lower = name.lower()
        if lower in _HOP_BY_HOP or lower in named or lower == "content-length":
            continue
        if not (_is_name(name) and _is_value(value)):
            raise Refused(502, "invalid", "the program's answer is not HTTP")
        fields.append((name, value))
    length = _length_of(response, request)
    if length is not None:
        fields.append(("Content-Length", str(length)))
    if "x-request-id" not in {name.lower() for name, _ in fields}:
        fields.append(("X-Request-ID", request.id))
    said = "".join(char for char in response.reason if char.isprintable() and char.isascii())
    reason = said or http.client.responses.get(response.status, "Unknown")
    return Head(response.status, reason, fields)


def _length_of(response: http.client.HTTPResponse, request: Request) -> int | None:
    """The length that the client is told. Raises Refused for one that is said in two ways."""
    said = {value.strip() for value in response.headers.get_all("content-length") or []}
    if response.chunked or not said or response.status == HTTPStatus.NO_CONTENT:
        return None
    (length, *others) = said
    if others or not (length.isascii() and length.isdigit() and len(length) < 20):
        raise Refused(502, "invalid", "the program's answer is not HTTP")
    has_body = request.method != "HEAD" and response.status not in _NO_BODY
    if has_body and response.length != int(length):
        raise Refused(502, "invalid", "the program's answer is not HTTP")
    return int(length)


_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _is_name(name: str) -> bool:
    return bool(name) and _TOKEN.issuperset(name)


def _is_value(value: str) -> bool:
    """True for one that stays one line, in ISO 8859-1."""
    return all(char == "\t" or (32 <= ord(char) < 256 and ord(char) != 127) for char in value)
