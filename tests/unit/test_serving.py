"""The words of a server, as the command and the library give them, and as they are refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from kvmlet._serving import (
    DEFAULTS,
    FRONT_DEFAULTS,
    PROGRAM_DEFAULTS,
    FrontWords,
    ProgramWords,
    given,
    inherited,
)
from kvmlet.cli import serve as command
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


class Words:
    """All words of a server of one program, as they were read."""

    def __init__(self, words: dict[str, Any], shown: Callable[[str], str]) -> None:
        program = ProgramWords(given(words, PROGRAM_DEFAULTS), shown)
        front = FrontWords(given(words, FRONT_DEFAULTS), shown)
        self.settings: dict[str, Any] = {**program.settings, **front.settings}


def words(**changed: Any) -> Words:
    return Words({**DEFAULTS, **changed}, str)


def test_the_command_and_the_library_have_the_same_defaults() -> None:
    options = given(vars(command.parser().parse_args([])))
    of_command = Words(options, command._option).settings
    assert of_command == words().settings
    assert of_command["forks"] == 4 * len(os.sched_getaffinity(0))
    assert (of_command["timeout_s"], of_command["connection_timeout_s"]) == (30, None)
    assert of_command["body_bytes_max"] == 16 << 20


def test_numbers_and_times_are_text_or_not() -> None:
    for changed in (
        {"forks": "3", "timeout": "1500ms", "max_body": "1k", "warmup": "2", "queue": "0"},
        {"forks": 3, "timeout": 1.5, "max_body": 1024, "warmup": 2, "queue": 0},
    ):
        settings = words(**changed).settings
        assert (settings["forks"], settings["timeout_s"]) == (3, 1.5)
        assert (settings["body_bytes_max"], settings["queue_max"]) == (1024, 0)
        assert settings["warmup"] == [("GET /", [], b"", None)] * 2
        assert settings["upgrades_max"] == 1
    assert words(isolate="connection", timeout="2s").settings["connection_timeout_s"] == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"forks": 0}, "forks: 0 is out of range; give a number from 1 to 4096"),
        ({"forks": "-1"}, "forks: '-1' is not a number"),
        ({"forks": True}, "forks: 'True' is not a number"),
        ({"forks": "9" * 400}, "forks: 4097 is out of range"),
        ({"forks": "\u0663"}, "is not a number"),
        ({"guest_port": 65_536}, "guest_port: 65536 is out of range"),
        ({"isolate": "thread"}, "isolate: 'thread' is none; write request, connection or none"),
        ({"access_log": "xml"}, "access_log: 'xml' is none; write common, json or off"),
        ({"keepalive": 0}, "keepalive: 0 is not more than zero"),
        ({"grace": "x"}, "grace: 'x' is not a duration"),
        ({"max_body": -1}, "max_body: -1 is too small"),
        ({"request_memory": "1k"}, "request_memory: '1k' is too small"),
        ({"trusted_proxy": "10.0.0.0/8"}, "trusted_proxy: '10.0.0.0/8' is not a list of str"),
        ({"proxy_protocol": "on"}, "proxy_protocol: 'on' is none; write off or required"),
        ({"proxy_protocol": "required"}, "proxy_protocol believes trusted proxies"),
        ({"isolate": "connection", "warmup": 1}, "warmup and isolate connection contradict"),
        ({"tls_cert": "c"}, "there is no tls_key; name both"),
        ({"tls_key": "k"}, "there is no tls_cert; name both"),
        ({"tls_cert": 7, "tls_key": "k"}, "tls_cert: 7 is no path"),
        ({"tls_cert": "c\0", "tls_key": "k"}, "is no path"),
        ({"warmup_request": ["GET /\n@/no/such/file"]}, "warmup_request: /no/such/file: No such"),
        ({"warmup_request": ["GET /\n=99"]}, "warmup_request: 99 is out of range"),
    ],
)
def test_a_word_that_cannot_be_used_is_named(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        words(**changed)
    assert said in str(caught.value)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_sockets_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for pid, count, wanted in (
        (str(os.getpid()), "2", ["fd:3", "fd:4"]),
        (str(os.getpid()), "", []),
        (str(os.getpid()), "99999", []),
        ("1", "2", []),
    ):
        monkeypatch.setenv("LISTEN_PID", pid)
        monkeypatch.setenv("LISTEN_FDS", count)
        assert inherited() == wanted
