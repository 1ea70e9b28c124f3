"""A `kvmlet serve` that a test starts, asks and stops."""

from __future__ import annotations

import contextlib
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

from e2e.oracle import ENV, HANG_S, KVMLET

if TYPE_CHECKING:
    from collections.abc import Iterator


class Served:
    """A running `kvmlet serve`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, control: pathlib.Path) -> None:
        self.process = process
        self.port = port
        self.control_path = control

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = self.connect()
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def control(self, path: str) -> str:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(HANG_S)
            stream.connect(os.fspath(self.control_path))
            stream.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: stream.recv(65536), b""))
        return answer.decode()

    def metric(self, name: str) -> float:
        lines = self.control("/metrics").splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))

    def until(self, name: str, value: float) -> None:
        end = time.monotonic() + HANG_S
        while self.metric(name) != value:
            assert time.monotonic() < end, (name, self.control("/metrics"))
            time.sleep(0.01)

    def end(self) -> tuple[int, bytes, bytes]:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=HANG_S)
        return self.process.returncode, out, err


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(directory: pathlib.Path, *words: str, program: list[str]) -> Iterator[Served]:
    """Serves `program` in `directory` at a free port, and stops it afterwards."""
    port, control = free_port(), directory / "control"
    options = ["--listen", str(port), "--control", f"unix:{control}", "--forks", "2", *words]
    with started([*options, "--", *program], directory, port, control) as served:
        yield served


@contextlib.contextmanager
def started(
    words: list[str], directory: pathlib.Path, port: int, control: pathlib.Path
) -> Iterator[Served]:
    """`kvmlet serve` with these words, which listens at these places; stopped afterwards."""
    argv = [os.fspath(KVMLET), "serve", *words]
    process = subprocess.Popen(
        argv, cwd=directory, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    served = Served(process, port, control)
    try:
        end = time.monotonic() + HANG_S
        while True:
            with contextlib.suppress(OSError):
                if "\r\n\r\nready" in served.control("/-/ready"):
                    break
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                raise AssertionError(process.communicate())
            time.sleep(0.02)
        yield served
    finally:
        process.kill()
        process.communicate()
