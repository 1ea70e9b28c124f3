"""A warmed program that answers many requests at once, each in a clean fork.

with kvmlet.Pool(snapshot, size=4, timeout="2s") as pool:
    answers = [pool.request(question) for question in questions]
    print([answer.result() for answer in answers])
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from kvmlet import _process
from kvmlet._values import parse_duration
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
    UsageError,
    from_native,
)
from kvmlet.sandbox import Sandbox, Snapshot, message_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

__all__ = ["Pool", "PoolStats"]

T = TypeVar("T")
P = ParamSpec("P")

# After these a job's fork is not put back but replaced: its program may be anywhere.
_BREAKING = (SandboxError, DeadlineExceeded, Interrupted, HostError, InternalError)

# How long the end of the interpreter waits for stopped guests, in seconds.
_LAST_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counts of a pool at one moment."""

    size: int
    """Most forks at once."""
    workers: int
    """Threads there are."""
    forks: int
    """Forks that are alive."""
    running: int
    """Jobs that run now."""
    queued: int
    """Jobs that wait."""
    completed: int
    """Jobs that gave a result."""
    failed: int
    """Jobs that raised, those that took too long included."""
    timed_out: int
    """Jobs that took too long."""
    cancelled: int
    """Jobs cancelled, running or not."""
    resets: int
    """Times that a fork was put back."""
    replaced: int
    """Forks given up for a new one: after an end, a time limit, a cancelled job."""


class _Job(Future[T]):
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
        """Whether it is being run."""
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


class _Core:
    """What the workers know of their pool: they must not keep the pool itself alive."""

    def __init__(self, snapshot: Snapshot, size: int, queue: int | None) -> None:
        self.snapshot = snapshot
        self.size = size
        self.queue = queue
        self.jobs: deque[_Job[Any]] = deque()
        self.active: set[_Job[Any]] = set()
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

    def put(self, job: _Job[Any], *, wait: bool) -> None:
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

    def _drop_cancelled(self, job: _Job[Any]) -> bool:
        if not job.cancelled():
            return False
        job.end()
        self.counts.cancelled += 1
        return True

    def take(self, fork: Sandbox | None) -> _Job[Any] | None:
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

    def hand_over(self, job: _Job[Any]) -> bool:
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


def _work(core: _Core, ready: Future[None] | None) -> None:
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
    core: _Core, job: _Job[Any], fork: Sandbox | None, refusal: BaseException | None
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


def _put_back(core: _Core, fork: Sandbox, *, keep: bool) -> Sandbox | None:
    fork._set_deadline(None)
    if keep:
        try:
            fork.reset()
        except KvmletError:
            pass  # the next job gets another one
        else:
            with core.lock:
                core.counts.resets += 1
            return fork
    core.give_up(fork, replaced=True)
    return None


class Pool(Executor):
    """Runs jobs in forks of one snapshot, at most `size` at a time.

    Every job finds the program exactly as it was frozen, whatever earlier jobs did: the fork is put
    back after each, or replaced if its program ended, took too long or was stopped. Threads and
    forks are made when first needed and kept; `warm_up` makes them ahead.

    Cancelling a future stops its job even while it runs. Leaving a `with` block waits for the jobs;
    leaving it by an exception cancels them, and so does the end of the interpreter.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        size: int | None = None,
        *,
        queue: int | None = None,
        timeout: float | str | None = None,
    ) -> None:
        """A pool of forks of `snapshot`, which must stay open.

        size: most forks at once; by default as many as there are processors to use.
        queue: how many jobs may wait; one more raises QueueFull. None for no limit.
        timeout: how long each job may run, in seconds or as "500ms", "2m"; None for no limit.

        Raises UsageError.
        """
        if not isinstance(snapshot, Snapshot):
            raise UsageError(
                f"{type(snapshot).__name__} is not a Snapshot", remedy="pass what freeze() gave"
            )
        if size is None:
            size = len(os.sched_getaffinity(0))
        elif isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UsageError(f"size: {size!r} is not a number of forks", remedy="pass 1 or more")
        if queue is not None and (
            isinstance(queue, bool) or not isinstance(queue, int) or queue < 0
        ):
            raise UsageError(f"queue: {queue!r} is not a number of jobs", remedy="pass 0 or more")
        self._timeout_s = None if timeout is None else parse_duration(timeout, "timeout")
        self._core = _Core(snapshot, size, queue)
        # Whoever forgets `shutdown` gets the threads back all the same.
        self._finalizer = weakref.finalize(self, self._core.close, cancel_jobs=False)
        self._finalizer.atexit = False
        _process.track(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._core.cancel_all()
        self.shutdown(wait=True)

    def __repr__(self) -> str:
        state = "shut down" if self._core.closed else "open"
        return f"<kvmlet.Pool of {self._core.size} ({state})>"

    # Other executors call `fn` with the arguments alone.
    def submit(  # type: ignore[override]
        self, fn: Callable[Concatenate[Sandbox, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Have `fn(sandbox, *args, **kwargs)` called with a clean fork.

        The fork belongs to the call: when it returns the fork is put back, and must not be used.
        `fn` runs in a thread of this process; only what it asks of `sandbox` runs in the VM.

        Raises QueueFull, PoolClosed.
        """
        return self._submit(lambda sandbox: fn(sandbox, *args, **kwargs), self._timeout_s)

    def request(
        self, data: bytes | bytearray | memoryview, timeout: float | str | None = None
    ) -> Future[bytes]:
        """Send `data` to a clean fork; its future answer.

        timeout: how long it may run, the pool's own limit if None. Waiting in the queue is not
            counted: `Future.result(timeout)` limits that.

        Raises QueueFull, PoolClosed, UsageError.
        """
        timeout_s = self._timeout_s if timeout is None else parse_duration(timeout, "timeout")
        message = message_bytes(data)
        return self._submit(lambda sandbox: sandbox.request(message), timeout_s)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,  # noqa: ARG002 - Executor.map has it
    ) -> Iterator[T]:
        """`fn(sandbox, item, ...)` for each item, in order. Waits for room instead of QueueFull.

        timeout: for all results together, in seconds, as `Executor.map` has it.
        chunksize: ignored, as by thread pools.
        """
        works = (_applied(fn, items) for items in zip(*iterables, strict=False))
        return self._map(works, self._timeout_s, timeout)

    def warm_up(self, count: int | None = None) -> None:
        """Have `count` workers with a fork each, by default `size`; returns when they are there.

        Raises UsageError, PoolClosed, SandboxClosed, TooFewDescriptors, HostError.
        """
        core = self._core
        if count is None:
            count = core.size
        elif isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= core.size:
            raise UsageError(f"count: {count!r} is not between 0 and the pool's size")
        forks: list[Future[None]] = []
        with core.lock:
            core.check_open()
            while len(core.workers) < count:
                forks.append(Future())
                core.add_worker(forks[-1])
        for fork in forks:
            fork.result()

    def stats(self) -> PoolStats:
        """Counts at this moment."""
        core = self._core
        with core.lock:
            counts = core.counts
            return PoolStats(
                size=core.size,
                workers=len(core.workers),
                forks=counts.forks,
                running=len(core.active),
                queued=len(core.jobs),
                completed=counts.completed,
                failed=counts.failed,
                timed_out=counts.timed_out,
                cancelled=counts.cancelled,
                resets=counts.resets,
                replaced=counts.replaced,
            )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more jobs, and give up the forks as their jobs end.

        wait: return when all jobs have ended.
        cancel_futures: cancel the jobs that have not begun. One that runs is stopped by cancelling
            its own future.
        """
        self._core.close(cancel_jobs=cancel_futures)
        if wait:
            for worker in self._core.workers.copy():
                if worker is not threading.current_thread():
                    worker.join()

    def _submit(
        self,
        work: Callable[[Sandbox], T],
        timeout_s: float | None,
        *,
        wait: bool = False,
    ) -> _Job[T]:
        job = _Job(work, timeout_s)
        self._core.put(job, wait=wait)
        return job

    def _map(
        self,
        works: Iterable[Callable[[Sandbox], T]],
        timeout_s: float | None,
        all_timeout_s: float | None,
    ) -> Iterator[T]:
        end_s = None if all_timeout_s is None else time.monotonic() + all_timeout_s
        jobs: deque[_Job[T]] = deque()
        try:
            for work in works:
                jobs.append(self._submit(work, timeout_s, wait=True))
        except BaseException:
            for job in jobs:
                job.cancel()
            raise
        return _results(jobs, end_s)

    def _abandon(self) -> None:
        # The threads are not here, and one of them may have held the lock.
        old = self._core
        self._finalizer.detach()
        self._core = _Core(old.snapshot, old.size, old.queue)
        self._core.closed = self._core.forked = True

    def _stop(self) -> None:
        self._core.cancel_all()
        end_s = time.monotonic() + _LAST_WAIT_S
        for worker in self._core.workers.copy():
            worker.join(max(0.0, end_s - time.monotonic()))


def _applied(fn: Callable[..., T], items: tuple[Any, ...]) -> Callable[[Sandbox], T]:
    return lambda sandbox: fn(sandbox, *items)


def _results(jobs: deque[_Job[T]], end_s: float | None) -> Iterator[T]:
    try:
        while jobs:
            job = jobs[0]
            result = job.result(None if end_s is None else end_s - time.monotonic())
            jobs.popleft()
            del job
            yield result
    finally:
        for job in jobs:
            job.cancel()
