"""The threads of a pool: each takes jobs from the queue, and runs each in a clean fork."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kvmlet import _log
from kvmlet.errors import (
    DeadlineExceeded,
    HostError,
    InternalError,
    Interrupted,
    KvmletError,
    PoolClosed,
    QueueFull,
    SandboxError,
    TooFewDescriptors,
    TooFewMappings,
    from_native,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet.sandbox import Sandbox, Snapshot

T = TypeVar("T")

# After these a job's fork is not put back but replaced: its program may be anywhere.
_BREAKING = (SandboxError, DeadlineExceeded, Interrupted, HostError, InternalError)


class Job(Future[T]):
    """A future that can be cancelled while it runs, which stops the guest.

    For the base class it is pending until it has ended: only such a one can be cancelled.
    """

    def __init__(self, work: Callable[[Sandbox], T], timeout_s: float | None) -> None:
        super().__init__()
        self.work = work
        self.timeout_s = timeout_s
        # Guards `_sandbox`: an interrupt must not meet the fork's next job.
        self._lock = threading.Lock()
        self._sandbox: Sandbox | None = None

    def cancel(self) -> bool:
        """Cancel the job; one that is running has its guest stopped. False if it has ended."""
        cancelled = super().cancel()
        if cancelled:
            with self._lock:
                if self._sandbox is not None:
                    self._sandbox.interrupt()
        return cancelled

    def running(self) -> bool:
        """True while it is being run."""
        return self._sandbox is not None and not self.done()

    def begin(self, sandbox: Sandbox) -> None:
        """From now on a cancellation stops `sandbox`."""
        with self._lock:
            self._sandbox = sandbox
        if self.cancelled():  # before there was anything to stop
            sandbox.interrupt()

    def end(self) -> bool:
        """No cancellation from now on; False if there was one."""
        with self._lock:
            self._sandbox = None
        return self.set_running_or_notify_cancel()


@dataclass(slots=True)
class _Counts:
    """Running totals; guarded by the core's lock."""

    forks: int = 0
    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    resets: int = 0
    replaced: int = 0


class Core:
    """The part of a pool that its workers know: they must not keep the pool itself alive."""

    def __init__(self, snapshot: Snapshot, size: int, queue: int | None) -> None:
        self.snapshot = snapshot
        self.size = size
        self.queue = queue
        self.jobs: deque[Job[Any]] = deque()
        self.active: set[Job[Any]] = set()
        self.workers: list[threading.Thread] = []
        # Workers that have a fork and will take no more jobs.
        self.leaving = 0
        self.closed = False
        self.forked = False
        self.counts = _Counts()
        # Reentrant: a collection may come at any moment, and end a forgotten pool (see Pool).
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.room = threading.Condition(self.lock)

    def check_open(self) -> None:
        """With the lock held. Raises ForkedProcess, PoolClosed."""
        if self.forked:
            raise from_native("forked", "the pool belongs to the parent of this process")
        if self.closed:
            raise PoolClosed("the pool was shut down", remedy="make another one")

    def put(self, job: Job[Any], *, wait: bool) -> None:
        """Queue `job`, waiting for room if asked to. Raises QueueFull, PoolClosed."""
        with self.lock:
            self.check_open()
            while not self._has_room():
                if not wait:
                    raise QueueFull(
                        f"every fork is busy and the queue of {self.queue} is full",
                        remedy="wait for one of them, or make the pool or its queue larger",
                    )
                self.room.wait()
                self.check_open()
            self.jobs.append(job)
            # One that puts its fork back is free, too: a new fork would not be there sooner.
            free = len(self.workers) - len(self.active)
            if free < len(self.jobs) and len(self.workers) < self.size:
                self.add_worker(None)
            self.work.notify()

    def _has_room(self) -> bool:
        if self.queue is None:
            return True
        limit = self.queue + self.size - len(self.active)
        if len(self.jobs) >= limit:
            self.jobs = deque(job for job in self.jobs if not self._drop_cancelled(job))
        return len(self.jobs) < limit

    def _drop_cancelled(self, job: Job[Any]) -> bool:
        if not job.cancelled():
            return False
        job.end()
        self.counts.cancelled += 1
        return True

    def take(self, fork: Sandbox | None) -> Job[Any] | None:
        """The next job for a worker with `fork`, waiting for one; None at the end."""
        with self.lock:
            while not self.jobs:
                if self.closed:
                    self.leaving += fork is not None
                    return None
                self.work.wait()
            job = self.jobs.popleft()
            self.active.add(job)
            return job

    def hand_over(self, job: Job[Any]) -> bool:
        """Leave `job` to a worker that has a fork, and this thread; False if there is none."""
        with self.lock:
            if self.counts.forks == self.leaving:
                return False
            self.workers.remove(threading.current_thread())
            self.active.discard(job)
            self.jobs.appendleft(job)
            self.work.notify()
            return True

    def add_worker(self, ready: Future[None] | None) -> None:
        """Start a thread, which forks ahead if `ready` is given; with the lock held."""
        name = f"kvmlet-pool-{len(self.workers)}"
        thread = threading.Thread(target=_work, args=(self, ready), name=name, daemon=True)
        thread.start()
        self.workers.append(thread)

    def fork(self) -> Sandbox:
        """A new fork. Raises SandboxClosed, TooFewDescriptors, HostError."""
        fork = self.snapshot.fork()
        with self.lock:
            self.counts.forks += 1
        return fork

    def give_up(self, fork: Sandbox, *, replaced: bool) -> None:
        """Close a fork of ours: of a worker that will have another, or that takes no more jobs."""
        with self.lock:
            self.counts.forks -= 1
            self.counts.replaced += replaced
            self.leaving -= not replaced
        # A thread that the job left behind may still use it.
        with contextlib.suppress(KvmletError):
            fork.close()

    def close(self, *, cancel_jobs: bool) -> None:
        """Take no more jobs, and cancel those that have not begun if asked to."""
        with self.lock:
            self.closed = True
            dropped = list(self.jobs) if cancel_jobs else []
            if cancel_jobs:
                self.jobs.clear()
                self.counts.cancelled += len(dropped)
            self.work.notify_all()
            self.room.notify_all()
        # Without the lock: callbacks of the futures may use the pool.
        for job in dropped:
            job.cancel()
            job.end()

    def cancel_all(self) -> None:
        """Take no more jobs, cancel those that wait and stop those that run."""
        self.close(cancel_jobs=True)
        with self.lock:
            active = list(self.active)
        for job in active:
            job.cancel()


def _work(core: Core, ready: Future[None] | None) -> None:
    """A worker's thread: jobs, one after the other, each in a clean fork."""
    fork: Sandbox | None = None
    if ready is not None:
        try:
            fork = core.fork()
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            ready.set_exception(error)
        else:
            ready.set_result(None)
        ready = None
    while True:
        job = core.take(fork)
        if job is None:
            break
        refusal: BaseException | None = None
        if fork is None and not job.cancelled():
            try:
                fork = core.fork()
            except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
                refusal = error
        if isinstance(refusal, TooFewDescriptors | TooFewMappings) and core.hand_over(job):
            return
        fork = _run(core, job, fork, refusal)
        del job, refusal  # or they would live until the next one
    if fork is not None:
        core.give_up(fork, replaced=False)


def _run(
    core: Core, job: Job[Any], fork: Sandbox | None, refusal: BaseException | None
) -> Sandbox | None:
    """Run `job`, without a fork only to end it; the clean fork for the next one, if there is one.

    refusal: why there is no fork.
    """
    result: object = None
    error = refusal
    try:
        if fork is not None and not job.cancelled():
            job.begin(fork)
            if job.timeout_s is not None:
                fork._set_deadline(time.monotonic() + job.timeout_s)
            result = job.work(fork)
    except BaseException as raised:  # noqa: BLE001 - it is raised in the thread that waits
        error = raised
    finished = job.end()
    with core.lock:
        core.active.discard(job)
        core.room.notify()
        counts = core.counts
        if not finished:
            counts.cancelled += 1
        elif error is None:
            counts.completed += 1
        else:
            counts.failed += 1
            counts.timed_out += isinstance(error, DeadlineExceeded)
    if finished and error is not None:
        job.set_exception(error)
    elif finished:
        job.set_result(result)
    # Only now: whoever waits for the answer need not wait for the fork to be clean.
    if fork is None:
        return None
    keep = finished and not isinstance(error, _BREAKING) and not fork.closed
    # The traceback of an exception has this frame: it must not lead back to the exception.
    del error, refusal, result, job
    return _put_back(core, fork, keep=keep)


def _put_back(core: Core, fork: Sandbox, *, keep: bool) -> Sandbox | None:
    fork._set_deadline(None)
    who = f"pool of {fork._name!r}"
    if keep:
        try:
            if _log.listens(_log.INFO):
                _log.say_denials(who, fork.denials())
            fork.reset()
        except KvmletError as error:
            # Nobody else is told of it: the next job gets another one.
            _log.say(_log.WARNING, "fork-replaced", "%s: a fork cannot be reset: %s", who, error)
        else:
            with core.lock:
                core.counts.resets += 1
            return fork
    else:
        _log.say(_log.INFO, "fork-replaced", "%s: a fork is given up after its job", who)
    core.give_up(fork, replaced=True)
    return None
