"""`kvmlet serve --config`: what a file may say, and the lines of what it may not."""

from __future__ import annotations

import pathlib

import pytest

import kvmlet
from kvmlet.cli import serve
from kvmlet.cli._serve_config import read

GOOD = """\
listen = ["8080", "unix:here"]
control = "unix:control"
keepalive = 30
trusted-proxy = ["10.0.0.0/8"]
proxy-protocol = true
access-log = "json"

[program.shop]
command = ["./server", "--port", "80"]
host = ["Shop.Example", "*.shop.example"]
path = "/api"
workdir = "shop"
forks = 3
queue = 0
timeout = "5s"
max-body = "2m"
warmup-request = ["GET /warm"]
memory = "64m"
request-memory = "8m"
max-procs = 9
read = ["file"]
env-file = "vars"

[program.shop.env]
A = "b"

[program.rest]
command = ["rest"]
write = ["kept"]
"""

ASKED = """\
listen = "1"

[program.shop]
command = ["shop"]
storage = ["cart"]

[storage.cart]
command = ["cart"]
concurrent = 4
timeout = "5s"
memory = "64m"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "vars").write_text("A=a\nB=c\n")
    return tmp_path


def refusal(text: str) -> str:
    pathlib.Path("serve.toml").write_text(text)
    with pytest.raises(kvmlet.UsageError) as caught:
        read("serve.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_says_what_the_options_say(folder: pathlib.Path) -> None:
    pathlib.Path("serve.toml").write_text(GOOD)
    plan = read("serve.toml")
    assert (plan.listen, plan.control) == (["8080", "unix:here"], "unix:control")
    front = plan.front.settings
    assert (front["keepalive_s"], front["access_log"]) == (30, "json")
    assert (front["trusted_proxies"], front["proxy_protocol"]) == (["10.0.0.0/8"], True)
    shop, rest = plan.programs
    assert (shop.name, shop.argv) == ("shop", [b"./server", b"--port", b"80"])
    assert (shop.hosts, shop.path) == (["shop.example", "*.shop.example"], "/api")
    settings = shop.words.settings
    assert (settings["forks"], settings["queue_max"], settings["timeout_s"]) == (3, 0, 5)
    assert settings["body_bytes_max"] == 2 << 20
    assert settings["warmup"] == [("GET /warm", [], b"", None)]
    assert shop.words.request_memory_bytes == 8 << 20
    assert bytes(folder / "file") in shop.named.read
    assert (shop.named.write, rest.named.write) == ([], [bytes(folder / "kept")])
    assert (rest.hosts, rest.path, rest.words.settings["queue_max"]) == ([], "/", 1024)


@pytest.mark.parametrize(
    ("old", "new", "line", "part"),
    [
        ("keepalive = 30", "keepalive = true", 3, "keepalive: True is not a duration"),
        ("keepalive = 30", "keepalives = 30", 3, "a server has no 'keepalives'; there are"),
        ("keepalive = 30", "header_timeout = 3", 3, "a server has no 'header_timeout'"),
        ("keepalive = 30", "keepalive = ", 3, "invalid value"),
        ('access-log = "json"', 'access-log = "xml"', 6, "access-log: 'xml' is none"),
        ('["10.0.0.0/8"]', "[]", 4, "proxy-protocol believes trusted proxies"),
        ("forks = 3", "forks = 0", 13, "forks: 0 is out of range"),
        ("forks = 3", "fork = 3", 13, "program shop has no 'fork'; there are boot-timeout"),
        ("queue = 0", 'queue = "x"', 14, "queue: 'x' is not a number"),
        ('max-body = "2m"', "max-body = -1", 16, "max-body: -1 is too small"),
        ('memory = "64m"', 'memory = "1k"', 18, "memory: '1k' is too small"),
        ("max-procs = 9", "max-procs = 0", 20, "max-procs: 0 is out of range"),
        ('["file"]', '["absent"]', 21, "read: absent is not there"),
        ('["kept"]', '["absent"]', 29, "write: absent is not there"),
        ('["kept"]', '["/usr"]', 29, "write: /usr is a system directory"),
        ('A = "b"', "A = 1", 25, "A is no string"),
        ('"*.shop.example"', '"shop.example:80"', 10, "'shop.example:80' is no name of a host"),
        ('"*.shop.example"', '"*"', 10, "'*' is no name of a host"),
        ('path = "/api"', 'path = "api"', 11, "'api' is no start of a path"),
        ('path = "/api"', 'path = "/a/../b"', 11, "'/a/../b' is no start of a path"),
        ('command = ["rest"]', "command = []", 27, "program rest has no command"),
        ('command = ["rest"]', "", 27, "program rest has no command"),
        ('command = ["rest"]', 'command = "rest"', 28, "command is no list of strings"),
        ("[program.rest]", '[program."re st"]', 27, "'re st' is no name"),
        (
            'command = ["rest"]',
            'command = ["rest"]\nisolate = "connection"',
            29,
            "a stream of bytes names no program, and there are 2",
        ),
        (
            'command = ["rest"]',
            'command = ["rest"]\nhost = "SHOP.example"\npath = "/api/"',
            29,
            "programs shop and rest are both for shop.example/api/",
        ),
        ('listen = ["8080", "unix:here"]', "listen = []", 1, "no place to listen at"),
        ('control = "unix:control"', 'control = "8080"', 1, "8080 is named twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(old: str, new: str, line: int, part: str) -> None:
    assert GOOD.count(old) == 1
    said = refusal(GOOD.replace(old, new))
    assert said.startswith(f"serve.toml:{line}:"), said
    assert part in said
    assert "; " in said


def test_a_storage_is_named_by_who_may_ask_it() -> None:
    pathlib.Path("serve.toml").write_text(ASKED)
    plan = read("serve.toml")
    (cart,) = plan.storages
    assert (cart.name, cart.argv, plan.programs[0].storages) == ("cart", [b"cart"], ["cart"])
    settings = cart.words.settings
    assert (settings["concurrent"], settings["timeout_s"], settings["boot_timeout_s"]) == (4, 5, 20)


@pytest.mark.parametrize(
    ("old", "new", "line", "part"),
    [
        ('storage = ["cart"]', "", 7, "no program may ask storage cart"),
        ('storage = ["cart"]', 'storage = ["cart", "card"]', 5, "there is no storage 'card'"),
        ('storage = ["cart"]', 'storage = ["cart", "cart"]', 5, "cart is named twice"),
        ('storage = ["cart"]', 'storage = "cart"', 5, "storage is no list of strings"),
        ("concurrent = 4", "concurrent = 0", 9, "concurrent: 0 is out of range"),
        ('timeout = "5s"', 'timeouts = "5s"', 10, "storage cart has no 'timeouts'; there are"),
        ('memory = "64m"', 'memory = "1k"', 11, "memory: '1k' is too small"),
        ('command = ["cart"]', "", 7, "storage cart has no command"),
        ("[storage.cart]", '[storage."ca rt"]', 7, "'ca rt' is no name"),
    ],
)
def test_what_is_wrong_with_a_storage(old: str, new: str, line: int, part: str) -> None:
    assert ASKED.count(old) == 1
    said = refusal(ASKED.replace(old, new))
    assert said.startswith(f"serve.toml:{line}:"), said
    assert part in said
    assert "; " in said


def test_secrets_that_repeat_are_told_of_known_programs() -> None:
    text = GOOD.replace('"./server", "--port", "80"', '"/usr/bin/redis-server"')
    pathlib.Path("serve.toml").write_text(text)
    shop, rest = read("serve.toml").programs
    assert str(shop.repeated).startswith("program shop: passwords that ACL GENPASS makes repeat")
    assert rest.repeated is None


def test_a_stream_has_no_host() -> None:
    one = 'listen = "1"\n[program.a]\ncommand = ["a"]\nisolate = "connection"\n'
    assert "serve.toml:5:1: host and isolate connection contradict" in refusal(one + 'host = "b"')
    assert "warmup and isolate connection contradict" in refusal(one + "warmup = 1")
    pathlib.Path("serve.toml").write_text(one)
    assert read("serve.toml").programs[0].words.settings["isolate"] == "connection"


def test_a_file_that_is_none(folder: pathlib.Path) -> None:
    assert "no program is named" in refusal('listen = "1"')
    for file, data in (
        ("absent", None),
        (".", None),
        ("binary", b"\xff"),
        ("large", b"#" * (2 << 20)),
    ):
        if data is not None:
            pathlib.Path(file).write_bytes(data)
        with pytest.raises(kvmlet.UsageError, match="name a file in TOML"):
            read(file)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--forks", "2"], "--config and --forks contradict each other"),
        (["--listen", "1"], "--config and --listen contradict each other"),
        (["--control", "1"], "--config and --control contradict each other"),
        (["--", "cmd"], "--config and CMD contradict each other"),
    ],
)
def test_options_stand_in_the_file(words: list[str], part: str) -> None:
    pathlib.Path("serve.toml").write_text(GOOD)
    with pytest.raises(kvmlet.UsageError, match=part):
        serve.main(["--config", "serve.toml", *words])
