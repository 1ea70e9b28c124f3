"""Servers of this process's own for guests that reach out, and programs that do."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PYTHON = "/usr/bin/python3"
LIMIT_S = 400 if HW else 60
CALLER = "host.kvmlet.internal"


def own_address() -> str | None:
    """An address of this machine beside those of its loopback device."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent.
            probe.connect(("198.51.100.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


ADDRESS = own_address()
has_address = pytest.mark.skipif(ADDRESS is None, reason="this machine has a loopback device only")


@contextlib.contextmanager
def serving(answer: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[int]:
    """A server of TCP that calls `answer` with each connection; its port."""
    with socket.create_server((host, 0)) as server, accepting(server, answer):
        yield server.getsockname()[1]


@contextlib.contextmanager
def accepting(server: socket.socket, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Calls `answer` with each connection to a listening socket."""

    def run() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def received_by(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def python(code: str, *rules: str, **options: object) -> kvmlet.Result[str]:
    return kvmlet.run(  # type: ignore[call-overload, no-any-return]
        [PYTHON, "-c", code], text=True, net=list(rules), timeout=LIMIT_S, **options
    )


def denied(result: kvmlet.Result[str]) -> list[tuple[str, str]]:
    return [(denial.what, denial.errno) for denial in result.denials if denial.kind == "address"]
