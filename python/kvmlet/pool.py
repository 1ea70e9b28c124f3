"""A warmed program that answers many requests at once, each in a clean fork.

with kvmlet.Pool(snapshot, size=4, timeout="2s") as pool:
    answers = [pool.request(question) for question in questions]
    print([answer.result() for answer in answers])
"""

from __future__ import annotations

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
from kvmlet._workers import Core, Job
from kvmlet.errors import UsageError
from kvmlet.sandbox import Sandbox, Snapshot, message_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

__all__ = ["Pool", "PoolStats"]

T = TypeVar("T")
P = ParamSpec("P")

# At the end of the interpreter, the time that stopped guests have to return.
_LAST_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class PoolStats:
    """Counts of a pool at one moment.

    >>> with kvmlet.Pool(snapshot, size=2) as pool:
    ...     answer = pool.request(b"ab").result()
    ...     stats = pool.stats()
    >>> stats.size, stats.completed, stats.failed
    (2, 1, 0)
    """

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


class Pool(Executor):
    """Runs jobs in forks of one snapshot, at most `size` at a time.

    Every job finds the program exactly as it was frozen, whatever earlier jobs did. The fork is put
    back after each, or replaced if its program ended, took too long or was stopped. Threads and
    forks are made when first needed and kept; `warm_up` makes them ahead.

    Cancelling a future stops its job even while it runs. Leaving a `with` block waits for the jobs;
    leaving it by an exception cancels them, and so does the end of the interpreter.

        >>> with kvmlet.Pool(snapshot, size=2, timeout="5s") as pool:
        ...     futures = [pool.request(message) for message in (b"ab", b"cd", b"ef")]
        ...     [future.result() for future in futures]
        [b'ba', b'dc', b'fe']
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
        self._core = Core(snapshot, size, queue)
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

        Raises UsageError, PoolClosed, StaleSnapshot, SandboxClosed, TooFewDescriptors, HostError.
        """
        core = self._core
        if count is None:
            count = core.size
        elif isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= core.size:
            raise UsageError(
                f"count: {count!r} is not between 0 and the pool's size", remedy="leave it out"
            )
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
    ) -> Job[T]:
        job = Job(work, timeout_s)
        self._core.put(job, wait=wait)
        return job

    def _map(
        self,
        works: Iterable[Callable[[Sandbox], T]],
        timeout_s: float | None,
        all_timeout_s: float | None,
    ) -> Iterator[T]:
        end_s = None if all_timeout_s is None else time.monotonic() + all_timeout_s
        jobs: deque[Job[T]] = deque()
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
        self._core = Core(old.snapshot, old.size, old.queue)
        self._core.closed = self._core.forked = True

    def _stop(self) -> None:
        self._core.cancel_all()
        end_s = time.monotonic() + _LAST_WAIT_S
        for worker in self._core.workers.copy():
            worker.join(max(0.0, end_s - time.monotonic()))


def _applied(fn: Callable[..., T], items: tuple[Any, ...]) -> Callable[[Sandbox], T]:
    return lambda sandbox: fn(sandbox, *items)


def _results(jobs: deque[Job[T]], end_s: float | None) -> Iterator[T]:
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
