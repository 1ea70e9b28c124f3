"""A stand-in for the extension module: it records how it was called and ends as it is told."""

from __future__ import annotations

import contextlib
import os
import threading
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEALTHY: dict[str, object] = {
    "kvm": "ok",
    "kvm_error": None,
    "api_version": 12,
    "kvm_kind": "hardware",
    "vm_ran": True,
    "x_us": 1.25,
    "landlock": 3,
    "landlock_rights": "files, truncation",
    "seccomp": True,
    "huge_pages": "madvise",
    "nested": False,
    "container": None,
    "group": "kvm",
    "caps": {"sync_regs": True, "readonly_mem": True, "xsave2": False, "nr_memslots": 32764},
}


class NativeError(Exception):
    """As the extension's: args are (kind, message)."""


class NotPlain(Exception):
    """As the extension's."""


@dataclass
class Outcome:
    exit_code: int | None = 0
    signal: int | None = None
    reason: str = "exited"
    stdout: bytes = b""
    stderr: bytes = b""
    changes: list[tuple[str, bytes]] = field(default_factory=list)
    changes_are_cut: bool = False
    denials: list[tuple[str, str, str, int]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    stats: dict[str, int | float] = field(default_factory=dict)


class FakeInherited:
    """The standard streams: what kvmlet itself says goes to standard error."""

    def __init__(self, left_open: object, named: object) -> None:
        pass

    def say(self, data: bytes) -> None:
        os.write(2, data)


class FakeDisk:
    """Room for files: no file is made."""

    def __init__(self, limit_bytes: int, directory: bytes | None) -> None:
        self.limit_bytes = limit_bytes
        self.directory = directory


class FakeChanges:
    """No changes."""

    is_held = False
    is_cut = False

    def __len__(self) -> int:
        return 0


class FakePolicy(bytes):
    """Its directory stands for a policy, which shows everything."""

    readable: list[bytes]
    overlay: bytes | None
    writable: list[bytes]
    rest: tuple[object, ...]

    def __new__(
        cls,
        cwd: bytes,
        readable: list[bytes],
        overlay: bytes | None = None,
        writable: list[bytes] | None = None,
        *rest: object,
    ) -> FakePolicy:
        policy = super().__new__(cls, cwd)
        policy.readable = readable
        policy.overlay = overlay
        policy.writable = writable or []
        policy.rest = rest
        return policy

    def shows_host(self, path: bytes) -> bool:
        return path == self or path.startswith(self + b"/")

    def shows(self, path: bytes) -> bool:
        return path.startswith(b"/")


class FakeNative(types.ModuleType):
    NativeError = NativeError
    NotPlain = NotPlain

    def __init__(self) -> None:
        super().__init__("kvmlet._native")
        self.outcome = Outcome()
        self.error: BaseException | None = None
        self.during_run: Callable[[], None] | None = None
        self.calls: list[dict[str, Any]] = []
        self.hardened: list[bytes] = []
        self.missing: list[str] = []
        self.findings: dict[str, object] = dict(HEALTHY)
        self.rows: list[tuple[int, str, str, str]] = []
        self.started: list[FakeSandbox] = []
        self.Inherited = FakeInherited
        self.Policy = FakePolicy
        self.Changes = FakeChanges
        self.Disk = FakeDisk
        self.room = bytearray
        self.Sandbox = types.SimpleNamespace(start=self.start)

    def start(self, argv: list[bytes], **arguments: Any) -> FakeSandbox:
        if self.error is not None:
            raise self.error
        self.started.append(FakeSandbox(argv=argv, **arguments))
        return self.started[-1]

    def run(self, argv: list[bytes], **arguments: Any) -> Outcome:
        self.calls.append({"argv": argv, **arguments})
        if self.during_run is not None:
            self.during_run()
        if self.error is not None:
            raise self.error
        return self.outcome

    def forget_vms(self) -> None:
        pass

    def harden(self, policy: bytes) -> tuple[list[str], list[str]]:
        self.hardened.append(policy)
        return ["no core dumps", "seccomp"], self.missing

    def probe(self) -> dict[str, object]:
        return self.findings

    def syscalls(self) -> list[tuple[int, str, str, str]]:
        return self.rows


class FakeSandbox:
    """A program that answers each message with itself reversed, and knows a few words more.

    b"end" ends it, b"hang" takes until it is interrupted or out of time.
    """

    def __init__(self, fork_of: FakeSnapshot | None = None, **arguments: Any) -> None:
        self.arguments = arguments
        self.origin = fork_of
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.inbox: list[bytes] = []
        self.asked: list[tuple[Any, ...]] = []
        self.answer: tuple[object, list[bytes]] = (0, [])
        self.ended: Outcome | None = None
        self.closed = False
        self.resets = 0
        self.fail: NativeError | None = None
        self.written = (b"", b"")
        self.refused: list[tuple[str, str, str, int]] = []

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        if not self.lock.acquire(blocking=False):
            raise NativeError("busy", "the sandbox is being used by another thread")
        try:
            if self.closed:
                raise NativeError("closed", "the sandbox is closed")
            if self.fail is not None:
                raise self.fail
            yield
        finally:
            self.lock.release()

    def running(self) -> None:
        if self.ended is not None:
            raise NativeError("ended", "the program has ended")
        if self.stopped.is_set():
            raise NativeError("interrupted", "interrupted")

    def until_ready(self, timeout_s: float | None) -> None:
        with self.use():
            self.running()
            self.asked.append(("until_ready", timeout_s))

    def run_for(self, time_s: float) -> None:
        with self.use():
            self.running()
            self.asked.append(("run_for", time_s))

    def send(self, message: bytes) -> None:
        with self.use():
            if self.ended is not None:
                raise NativeError("ended", "the program has ended")
            if len(message) > 4000:
                raise NativeError("message_too_long", "too long")
            self.inbox.append(message)

    def recv(self, timeout_s: float | None) -> bytes:
        with self.use():
            self.running()
            self.asked.append(("recv", timeout_s))
            message = self.inbox.pop(0)
            if message == b"end":
                self.ended = Outcome(exit_code=3, stderr=b"a\nlast words\n")
                raise NativeError("ended", "the program has ended")
            if message == b"hang":
                if self.stopped.wait(timeout_s):
                    raise NativeError("interrupted", "interrupted")
                raise NativeError("timeout", "too slow")
            return message[::-1]

    def request(self, message: bytes, timeout_s: float | None) -> bytes:
        self.send(message)
        return self.recv(timeout_s)

    def send_parts(self, parts: list[bytes]) -> None:
        self.send(b"".join(parts))

    def request_parts(self, parts: list[bytes], timeout_s: float | None) -> bytes:
        return self.request(b"".join(parts), timeout_s)

    def recv_into(self, room: bytearray, at: int, timeout_s: float | None) -> int:
        message = self.recv(timeout_s)
        if len(message) <= len(room) - at:
            room[at : at + len(message)] = message
        return len(message)

    def call_plain(self, *asked: Any) -> object:
        raise NotPlain

    def call(self, *asked: Any) -> tuple[object, list[bytes]]:
        with self.use():
            self.running()
            self.asked.append(asked)
            return self.answer

    def freeze(self, connections: str = "refuse") -> FakeSnapshot:
        with self.use():
            self.closed = True
            return FakeSnapshot()

    def reset(self) -> None:
        with self.use():
            if self.origin is None:
                raise NativeError("not_a_fork", "only a fork can be reset")
            self.stopped.clear()
            self.inbox.clear()
            self.ended = None
            self.resets += 1

    def interrupt(self) -> None:
        self.stopped.set()

    def close(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise NativeError("busy", "the sandbox is being used by another thread")
        self.lock.release()
        if not self.closed and self.origin is not None:
            self.origin.living -= 1
        self.closed = True

    def abandon(self) -> None:
        self.closed = True

    def take_report(self) -> tuple[list[tuple[str, str, str, int]], list[tuple[str, str]]]:
        with self.use():
            refused, self.refused = self.refused, []
            return refused, []

    def take_output(self) -> tuple[bytes, bytes]:
        with self.use():
            written, self.written = self.written, (b"", b"")
            return written

    def outcome(self) -> Outcome | None:
        with self.use():
            return self.ended

    def stats(self) -> dict[str, int | float]:
        with self.use():
            return {"exits": 1}

    def files(self) -> None:
        raise NotImplementedError

    def memory_limit(self) -> int:
        with self.use():
            return 512 << 20

    def memory_left(self) -> int:
        with self.use():
            return 64 << 20

    def generation(self) -> int:
        with self.use():
            return self.resets


class FakeSnapshot:
    def __init__(self) -> None:
        self.closed = False
        self.forks: list[FakeSandbox] = []
        self.living = 0
        self.prepared = 0
        self.fail: NativeError | None = None

    def fork(self) -> FakeSandbox:
        if self.closed:
            raise NativeError("closed", "the snapshot is closed")
        if self.fail is not None:
            raise self.fail
        self.forks.append(FakeSandbox(self))
        self.living += 1
        return self.forks[-1]

    def prepare(self, count: int) -> None:
        self.prepared = count

    def stats(self) -> dict[str, int | float]:
        return {"forks": len(self.forks)}

    def close(self) -> None:
        self.closed = True

    def abandon(self) -> None:
        self.closed = True
