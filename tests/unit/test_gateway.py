"""Requests on their way from servers of WSGI and ASGI to a program, without a program."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from kvmlet import gateway
from kvmlet._exchange import Answer, Refused, Request, refusal_of
from kvmlet.errors import DeadlineExceeded, KvmletError, NotReady, SandboxEnded


def environ(**changed: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_NAME": "s",
        "SERVER_PORT": "8000",
        **changed,
    }


def scope(**changed: Any) -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": "/", "headers": [], **changed}


@pytest.mark.parametrize(
    ("changed", "target"),
    [
        ({}, "/"),
        ({"PATH_INFO": ""}, "/"),
        ({"PATH_INFO": "/a b\xc3\xa9%2F"}, "/a%20b%C3%A9%252F"),
        ({"PATH_INFO": "/a/b", "RAW_URI": "/a%2Fb?x", "QUERY_STRING": "y"}, "/a%2Fb?y"),
        # Of another path: this one is mounted below it.
        ({"PATH_INFO": "/b", "RAW_URI": "/a/b"}, "/b"),
        ({"PATH_INFO": "/b", "RAW_URI": "http://h/b"}, "/b"),
    ],
)
def test_the_target_is_that_of_the_client(changed: dict[str, Any], target: str) -> None:
    assert gateway._of_environ(environ(**changed)).target == target


def test_scopes_name_the_target_too() -> None:
    of = gateway._of_scope
    assert of(scope(path="/a b")).target == "/a%20b"
    assert of(scope(path="/a", raw_path=b"/%61", query_string=b"q")).target == "/%61?q"
    mounted = scope(path="/m/a", raw_path=b"/m/a", root_path="/m")
    assert (of(mounted).target, of(mounted).prefix) == ("/a", "/m")
    assert of(scope(path="/mx", raw_path=b"/mx", root_path="/m")).target == "/mx"
    assert of(scope(server=("h", 80))).host == "h"


@pytest.mark.parametrize(
    ("host", "port", "peer"),
    [
        ("192.0.2.1", "4000", ("192.0.2.1", 4000)),
        ("::1", 0, ("::1", 1)),
        ("192.0.2.1", "x", ("192.0.2.1", 1)),
        ("192.0.2.1", "99999999999", ("192.0.2.1", 1)),
        ("testclient", 5, None),
        (None, None, None),
    ],
)
def test_a_client_has_an_address_or_none(
    host: object, port: object, peer: tuple[str, int] | None
) -> None:
    assert gateway._peer(host, port) == peer


def request(**changed: Any) -> Request:
    words: dict[str, Any] = {
        "method": "GET",
        "target": "/",
        "host": "h",
        "scheme": "http",
        "peer": None,
        "prefix": "",
        "fields": [],
    }
    return Request(**{**words, **changed})


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"target": "/a b"}, 400),
        ({"target": "/a\r\nX: y"}, 400),
        ({"target": "/\xe9"}, 400),
        ({"fields": [("a b", "c")]}, 400),
        ({"fields": [("a", "b\r\nc: d")]}, 400),
        ({"fields": [("a", "b\0")]}, 400),
        ({"fields": [("a", "\u0101")]}, 400),
        ({"fields": [("a", "b")] * 101}, 431),
        ({"fields": [("a", "b" * 20_000)]}, 431),
    ],
)
def test_what_is_no_request_is_refused(changed: dict[str, Any], status: int) -> None:
    with pytest.raises(Refused) as caught:
        request(**changed).head()
    assert caught.value.status == status


def test_a_head_has_its_length_once() -> None:
    fields = [("Content-Length", "9"), ("Expect", "100-continue"), ("Transfer-Encoding", "chunked")]
    head = request(method="POST", fields=fields, length_bytes=3).head()
    assert [value for name, value in head if name == "Content-Length"] == ["3"]
    assert not {"Expect", "Transfer-Encoding"} & {name for name, _ in head}
    assert "Content-Length" not in dict(request(fields=fields).head())
    assert dict(request(method="PUT").head())["Content-Length"] == "0"


@pytest.mark.parametrize(
    ("changed", "data", "status", "length"),
    [
        ({}, b"abc", None, 0),
        ({"CONTENT_LENGTH": "3"}, b"abcd", None, 3),
        ({"CONTENT_LENGTH": "4"}, b"abc", 400, 0),
        ({"CONTENT_LENGTH": "-1"}, b"abc", 400, 0),
        ({"CONTENT_LENGTH": "11"}, b"a" * 11, 413, 0),
        ({"wsgi.input_terminated": True}, b"abc", None, 3),
        ({"wsgi.input_terminated": True}, b"a" * 11, 413, 0),
        ({"wsgi.input_terminated": True}, b"a" * 10, None, 10),
    ],
)
def test_bodies_are_read_as_a_whole(
    changed: dict[str, Any], data: bytes, status: int | None, length: int
) -> None:
    asked = request(method="POST")
    whole = environ(**changed, **{"wsgi.input": io.BytesIO(data)})
    if status is not None:
        with pytest.raises(Refused) as caught:
            gateway._read_body(whole, asked, 10)
        assert caught.value.status == status
        return
    gateway._read_body(whole, asked, 10)
    assert asked.length_bytes == length
    if length:
        assert asked.body is not None
        assert asked.body.read() == data[:length]
    asked.close()


def test_failures_have_the_answers_of_serve() -> None:
    for error, status in (
        (DeadlineExceeded("x"), 504),
        (SandboxEnded("x"), 502),
        (NotReady("x"), 502),
        (KvmletError("x"), 502),
        (ValueError("x"), 502),
    ):
        refusal = refusal_of(error)
        assert isinstance(refusal, Refused)
        assert refusal.status == status
    assert isinstance(refusal_of(ZeroDivisionError()), ZeroDivisionError)
    status_line, fields, body = Refused(503, "full", "no fork").answer("application/json", "id")
    assert status_line == "503 Service Unavailable"
    assert dict(fields)["Retry-After"] == "1"
    assert json.loads(body) == {
        "status": 503,
        "error": "no fork",
        "outcome": "full",
        "request_id": "id",
    }
    assert Refused(502, "crash", "it ended").answer("*/*", "id")[2] == (
        b"502 Bad Gateway: it ended\nrequest id: id\n"
    )


def test_nobody_waits_for_an_answer_that_is_dropped() -> None:
    answer = Answer(lambda: None, deadline_s=0)
    assert answer.put(bytes(1 << 19))
    assert answer.put(bytes(1 << 19))
    with pytest.raises(DeadlineExceeded):
        answer.put(b"x")
    assert len(answer.take()) == 1 << 19
    assert answer.put(b"x")
    answer.drop()
    assert not answer.put(b"x")
    answer.end(ZeroDivisionError())
    answer.end()
    with pytest.raises(ZeroDivisionError):
        answer.take()
