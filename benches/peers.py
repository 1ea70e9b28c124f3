"""Other ways to answer each request in a clean program: a child process, a fresh program."""

from __future__ import annotations

import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from measure import ENV, BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

_WARM_UP_S = 60


class Server:
    """A server that reads and writes messages with their lengths on its standard streams."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._name = argv[0]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENV, bufsize=0
        )

    def request(self, message: bytes) -> bytes:
        """One request and its answer. Raises BenchError."""
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:
            raise BenchError("a server without streams")
        to.write(struct.pack("<I", len(message)) + message)
        head = back.read(4)
        if head is None or len(head) != 4:
            raise BenchError(f"{self._name} gave no answer")
        left = struct.unpack("<I", head)[0]
        parts = []
        while left:
            part = back.read(left)
            if not part:
                raise BenchError(f"{self._name} gave half an answer")
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Let it end."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(_WARM_UP_S)


class Servers:
    """One server per thread."""

    def __init__(self, argv: Sequence[str], threads: int) -> None:
        self._servers = [Server(argv) for _ in range(threads)]

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()

    def serve(self, message: bytes, count: int) -> None:
        """Have `count` requests answered, shared out among the servers."""

        def share(server: Server) -> Callable[[], None]:
            def work() -> None:
                for _ in range(count // len(self._servers)):
                    server.request(message)

            return work

        _at_once([share(server) for server in self._servers])


def fresh_ns(argv: Sequence[str], message: bytes, threads: int) -> float:
    """A request to a program started for it, per request."""
    count = 3

    def work() -> None:
        for _ in range(count):
            server = Server(argv)
            server.request(message)
            server.close()

    start = time.perf_counter_ns()
    _at_once([work] * threads)
    return (time.perf_counter_ns() - start) / (count * threads)


def _at_once(jobs: Sequence[Callable[[], None]]) -> None:
    if len(jobs) == 1:
        jobs[0]()
        return
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
