"""Functions that tests/e2e/test_isolated.py calls in a VM. Imported on both sides."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import decimal
import importlib
import os
import random
import socket
import ssl
import sys
import threading
import time
from typing import Any

import kvmlet

counted: list[int] = []

# OpenSSL's generator is there before any fork.
ssl.RAND_bytes(1)


@kvmlet.register_result
@dataclasses.dataclass(frozen=True)
class Invoice:
    number: int
    total: decimal.Decimal
    due: datetime.date
    lines: tuple[str, ...] = ()


@kvmlet.isolated(timeout=400)
def add_up(prices: list[str]) -> Invoice:
    total = sum(map(decimal.Decimal, prices), decimal.Decimal())
    return Invoice(7, total, datetime.date(2024, 2, 29), tuple(prices))


@kvmlet.isolated
def echo(value: object) -> object:
    return value


@kvmlet.isolated
def count() -> int:
    counted.append(1)
    return len(counted)


@kvmlet.isolated
def where() -> tuple[int, str, str, bool]:
    return os.getpid(), sys.executable, sys.version, hasattr(sys, "ps1")


@kvmlet.isolated(size=1, env={"GREETING": "hello"}, cwd=os.path.dirname(__file__))
def surroundings() -> tuple[str, str, list[str]]:
    return os.environ["GREETING"], os.getcwd(), [name for name in os.listdir() if "oracle" in name]


@kvmlet.isolated
def draw() -> float:
    return random.random()


@kvmlet.isolated(preload=["ssl"])
def random_bytes() -> bytes:
    return ssl.RAND_bytes(16)


@kvmlet.isolated
def say_and_read(text: str, path: str) -> int:
    print(text)
    print(text, file=sys.stderr)
    with contextlib.suppress(OSError), open(path, "rb"):
        pass
    return len(text)


@kvmlet.isolated
def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@kvmlet.isolated
def leave_traces() -> list[str]:
    found = [name for name in (*os.listdir("/tmp"), *os.environ) if name in ("trace", "TRACE")]
    with open("/tmp/trace", "w") as file:
        file.write("x")
    os.environ["TRACE"] = "x"
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    return [*found, *(thread.name for thread in threading.enumerate()[2:])]


@kvmlet.isolated
def connect() -> None:
    socket.create_connection(("192.0.2.1", 80), timeout=1)


@kvmlet.isolated
def fail(kind: str) -> None:
    if kind == "own":

        class OwnError(Exception):
            pass

        raise OwnError("of its own")
    if kind == "stop":
        raise StopIteration(5)
    if kind == "cancelled":
        raise asyncio.CancelledError
    if kind == "exit":
        sys.exit(3)
    if kind == "_exit":
        os._exit(3)
    if kind == "abort":
        os.abort()
    raise {"value": ValueError("bad"), "key": KeyError("k"), "memory": MemoryError()}[kind]


@kvmlet.isolated
def sleep(seconds: float) -> None:
    time.sleep(seconds)


@kvmlet.isolated(memory="200m")
def alone() -> int:
    """In an interpreter that no other function has."""
    return count()


@kvmlet.isolated(timeout=2)
def spin() -> None:
    while True:
        pass


@kvmlet.isolated(memory="64m")
def eat() -> int:
    data = []
    while True:
        data.append(b"x" * (1 << 20))


@kvmlet.isolated
def nothing_to_send() -> object:
    return threading.Lock()


def send_lists() -> None:
    """Answers the host with 15 MiB of empty lists, past the runner."""
    guest: Any = importlib.import_module("kvmlet_guest")
    count = 3 << 20
    value = b"t" + u32(2) + b"s" + u32(2) + b"ok" + b"l" + u32(count)
    guest.send(value + (b"l" + u32(0)) * count)
    time.sleep(1000)


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


lists_in_time = kvmlet.isolated(timeout="500ms", size=1)(send_lists)
lists_in_memory = kvmlet.isolated(memory="64m", size=1)(send_lists)


@kvmlet.isolated
def say(text: str) -> None:
    print(text)
    print(text, file=sys.stderr)


@kvmlet.isolated
def nested(number: int) -> int:
    return number if number == 0 else number + nested(number - 1)


@kvmlet.isolated(size=1, timeout=60, memory="256m", preload=["numpy"])
def scaled(array: Any, factor: float) -> Any:
    array *= factor  # it is the guest's own
    return array


@kvmlet.isolated
def large(size: int) -> bytes:
    return bytes(size)


@kvmlet.isolated(memory="64m", size=1)
def in_little_memory(value: object) -> object:
    return bytes(value) if isinstance(value, int) else value


class Scale:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @kvmlet.isolated
    def apply(self, number: int) -> int:
        return self.factor * number


@kvmlet.isolated(size=1, timeout=20, memory="96m")
def answer_with(data: bytes) -> None:
    """Answers the host with these bytes, past the runner."""
    guest: Any = importlib.import_module("kvmlet_guest")
    guest.send(data)
    time.sleep(1000)
