"""Pool: who runs what when, on stand-in sandboxes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import kvmlet
from unit.fake import FakeNative, FakeSnapshot, NativeError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def snapshot(native: FakeNative) -> kvmlet.Snapshot:
    return kvmlet.Sandbox(["./server"]).freeze()


def fake_of(snapshot: kvmlet.Snapshot) -> FakeSnapshot:
    vm: Any = snapshot._vm
    assert isinstance(vm, FakeSnapshot)
    return vm


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_requests(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 2) as pool:
        assert fake_of(snapshot).forks == []  # nothing before the first job
        futures = [pool.request(b"%d" % number) for number in range(50)]
        assert [future.result() for future in futures] == [
            (b"%d" % number)[::-1] for number in range(50)
        ]
        assert all(future.done() and not future.running() for future in futures)
    forks = fake_of(snapshot).forks
    assert len(forks) <= 2
    assert sum(fork.resets for fork in forks) == 50
    assert all(fork.closed for fork in forks)
    stats = pool.stats()
    assert (stats.completed, stats.failed, stats.resets, stats.replaced) == (50, 0, 50, 0)
    assert (stats.queued, stats.running, stats.forks) == (0, 0, 0)


def test_it_is_an_executor(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 2) as pool:
        assert isinstance(pool, concurrent.futures.Executor)
        future = pool.submit(lambda sandbox, x, y: (sandbox.request(x), y), b"ab", y=5)
        assert future.result() == (b"ba", 5)
        answers = pool.map(lambda sandbox, x: sandbox.request(x), [b"ab", b"cd"], timeout=20)
        assert list(answers) == [b"ba", b"dc"]
        futures = [pool.request(b"ab") for _ in range(5)]
        assert set(concurrent.futures.as_completed(futures)) == set(futures)
        assert concurrent.futures.wait(futures).not_done == set()

        async def main() -> bytes:
            return await asyncio.wrap_future(pool.request(b"ab"))

        assert asyncio.run(main()) == b"ba"
    with pytest.raises(RuntimeError, match="shut down"):
        pool.request(b"ab")
    with pytest.raises(kvmlet.PoolClosed):
        pool.warm_up()


def test_a_failed_job_harms_no_other(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 1) as pool:
        with pytest.raises(kvmlet.SandboxEnded) as caught:
            pool.request(b"end").result()
        assert caught.value.result is not None
        assert pool.request(b"ab").result() == b"ba"
        with pytest.raises(kvmlet.DeadlineExceeded):
            pool.request(b"hang", timeout=0.01).result()
        assert pool.request(b"ab").result() == b"ba"
        with pytest.raises(ZeroDivisionError):
            pool.submit(lambda sandbox: 1 // 0).result()
        assert pool.request(b"ab").result() == b"ba"
        with pytest.raises(SystemExit):
            pool.submit(lambda sandbox: exit(1)).result()
        pool.submit(lambda sandbox: sandbox.close()).result()
        assert pool.request(b"ab").result() == b"ba"
    forks = fake_of(snapshot).forks
    assert len(forks) == 4  # after the end, the deadline, the close
    assert all(fork.closed for fork in forks)
    stats = pool.stats()
    assert (stats.completed, stats.failed, stats.timed_out, stats.replaced) == (5, 4, 1, 3)


def test_the_deadline_is_for_the_whole_job(snapshot: kvmlet.Snapshot) -> None:
    def job(sandbox: kvmlet.Sandbox) -> None:
        for _ in range(1000):
            time.sleep(0.005)
            sandbox.request(b"ab", timeout=50)

    with kvmlet.Pool(snapshot, 1, timeout="50ms") as pool:
        with pytest.raises(kvmlet.DeadlineExceeded):
            pool.submit(job).result()
        assert pool.request(b"ab").result() == b"ba"
        with pytest.raises(kvmlet.DeadlineExceeded):
            pool.submit(lambda sandbox: sandbox.run_for(5)).result()


def test_nothing_of_a_job_may_wait_beyond_its_deadline(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 1, timeout=100) as pool:
        for own_s in (None, 1000, 1):
            pool.submit(kvmlet.Sandbox.request, b"ab", timeout=own_s).result()
    limits_s = [limit_s for _, limit_s in fake_of(snapshot).forks[0].asked]
    assert [limit_s <= 100 for limit_s in limits_s] == [True, True, True]
    assert limits_s[2] == 1


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("descriptors", kvmlet.TooFewDescriptors), ("mappings", kvmlet.TooFewMappings)],
)
def test_out_of_room_for_vms_a_worker_with_a_fork_does_the_job(
    snapshot: kvmlet.Snapshot, kind: str, cls: type[kvmlet.KvmletError]
) -> None:
    fake = fake_of(snapshot)
    go_on = threading.Event()

    def first(sandbox: kvmlet.Sandbox) -> bytes:
        assert go_on.wait(20)
        return sandbox.request(b"ab")

    with kvmlet.Pool(snapshot, 4) as pool:
        running = pool.submit(first)
        until(running.running)
        fake.fail = NativeError(kind, "nothing left")
        # Each has a thread of its own started, which gets no fork.
        others = [pool.request(b"cd") for _ in range(6)]
        until(lambda: pool.stats().workers == 1)
        assert pool.stats().queued == 6
        assert not any(other.done() for other in others)
        go_on.set()
        assert running.result(20) == b"ba"
        assert [other.result(20) for other in others] == [b"dc"] * 6
        # What the job itself asks for is the job's own failure, and costs it its fork.
        with pytest.raises(cls):
            pool.submit(lambda _: snapshot.fork()).result(20)
        # With nobody left to do them, jobs fail.
        with pytest.raises(cls):
            pool.request(b"ab").result(20)
        fake.fail = None
        assert pool.request(b"ab").result(20) == b"ba"
    stats = pool.stats()
    assert (stats.failed, stats.forks, stats.queued, stats.running) == (2, 0, 0, 0)


def test_a_job_is_not_left_to_workers_that_have_ended(snapshot: kvmlet.Snapshot) -> None:
    """Out of descriptors while the pool shuts down: every job ends all the same."""
    fake = fake_of(snapshot)
    for _ in range(50):
        fake.fail = None
        pool = kvmlet.Pool(snapshot, 3)
        jobs = [pool.request(b"ab")]
        until(jobs[0].done)
        fake.fail = NativeError("descriptors", "no descriptor left")
        jobs += [pool.request(b"ab") for _ in range(3)]
        pool.shutdown()
        for job in jobs:
            assert job.done()
            assert isinstance(job.exception(), kvmlet.TooFewDescriptors | None)


def test_a_fork_that_cannot_be_made_or_reset(snapshot: kvmlet.Snapshot) -> None:
    fake = fake_of(snapshot)
    with kvmlet.Pool(snapshot, 1) as pool:
        fake.fail = NativeError("descriptors", "no descriptor left")
        with pytest.raises(kvmlet.TooFewDescriptors):
            pool.request(b"ab").result()
        with pytest.raises(kvmlet.TooFewDescriptors):
            kvmlet.Pool(snapshot, 1).warm_up()
        fake.fail = None
        assert pool.request(b"ab").result() == b"ba"

        def spoil(sandbox: kvmlet.Sandbox) -> None:
            fake.forks[-1].fail = NativeError("internal", "broken")

        pool.submit(spoil).result()
        assert pool.request(b"ab").result() == b"ba"
    assert fake.living == 0


def test_queue(snapshot: kvmlet.Snapshot) -> None:
    go = threading.Event()
    with kvmlet.Pool(snapshot, 2, queue=1) as pool:
        running = [pool.submit(lambda sandbox: go.wait(20)) for _ in range(2)]
        waiting = pool.request(b"ab")
        with pytest.raises(kvmlet.QueueFull, match="queue of 1 is full"):
            pool.request(b"cd")
        assert waiting.cancel()
        last = pool.request(b"cd")  # the cancelled one made room
        go.set()
        assert last.result() == b"dc"
        assert all(future.result() for future in running)
        # `map` waits for room instead.
        answers = list(pool.map(lambda sandbox, x: sandbox.request(x), [b"ab"] * 20))
        assert answers == [b"ba"] * 20
    assert pool.stats().cancelled == 1
    go.clear()
    with kvmlet.Pool(snapshot, 1, queue=0) as pool:
        one = pool.submit(lambda sandbox: go.wait(20))
        with pytest.raises(kvmlet.QueueFull):
            pool.request(b"ab")
        go.set()
        one.result()
        until(lambda: pool.stats().resets == 1)
        assert pool.request(b"ab").result() == b"ba"


def test_cancelling_stops_the_guest(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 1) as pool:
        future = pool.request(b"hang")
        queued = pool.request(b"ab")
        until(future.running)
        assert future.cancel()
        assert future.cancelled()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        assert queued.result() == b"ba"
        assert not queued.cancel()
        assert queued.result() == b"ba"
        assert concurrent.futures.wait([future], 20).done == {future}
    stats = pool.stats()
    assert (stats.cancelled, stats.completed, stats.replaced) == (1, 1, 1)


def test_cancelling_at_any_moment(snapshot: kvmlet.Snapshot) -> None:
    """However a cancellation meets the end of its job, it never stops another one."""
    with kvmlet.Pool(snapshot, 2) as pool:
        for turn in range(300):
            victim, other = pool.request(b"ab"), pool.request(b"cd")
            if turn % 3:
                time.sleep(turn % 7 * 1e-5)
            cancelled = victim.cancel()
            assert other.result() == b"dc"
            assert cancelled == victim.cancelled()
            assert cancelled or victim.result() == b"ba"
    stats = pool.stats()
    assert stats.completed + stats.cancelled == 600
    assert stats.failed == 0
    assert fake_of(snapshot).living == 0


def test_shutdown(snapshot: kvmlet.Snapshot) -> None:
    pool = kvmlet.Pool(snapshot, 1)
    go = threading.Event()
    running = pool.submit(lambda sandbox: go.wait(20))
    until(running.running)
    queued = [pool.request(b"ab") for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in queued)
    assert concurrent.futures.wait(queued, 20).not_done == set()
    go.set()
    assert running.result() is True
    pool.shutdown()
    pool.shutdown()
    assert fake_of(snapshot).living == 0


def test_leaving_by_an_exception_stops_everything(snapshot: kvmlet.Snapshot) -> None:
    futures = []

    def work() -> None:
        with kvmlet.Pool(snapshot, 2) as pool:
            futures.extend([pool.request(b"hang") for _ in range(5)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert all(future.cancelled() for future in futures)
    assert fake_of(snapshot).living == 0


def test_warm_up(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 3) as pool:
        pool.warm_up(2)
        assert len(fake_of(snapshot).forks) == 2
        pool.warm_up()
        assert len(fake_of(snapshot).forks) == 3
        pool.warm_up()
        assert [future.result() for future in [pool.request(b"ab") for _ in range(9)]]
        assert len(fake_of(snapshot).forks) == 3
        for count in (-1, 4, True, "2"):
            with pytest.raises(kvmlet.UsageError):
                pool.warm_up(count)  # type: ignore[arg-type]


def test_a_forgotten_pool_ends(snapshot: kvmlet.Snapshot) -> None:
    pool = kvmlet.Pool(snapshot, 2)
    future = pool.request(b"ab")
    assert future.result() == b"ba"
    workers = list(pool._core.workers)
    del pool
    gc.collect()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    assert fake_of(snapshot).living == 0


def test_failed_jobs_are_no_garbage(snapshot: kvmlet.Snapshot) -> None:
    """The exception of a job is freed with its future, without waiting for a collection."""
    with kvmlet.Pool(snapshot, 1) as pool:
        for job in (pool.submit(lambda sandbox: 1 // 0), pool.request(b"end")):
            until(job.done)
        gc.collect()
        gc.disable()
        try:
            future = pool.submit(lambda sandbox: 1 // 0)
            until(future.done)
            watch = weakref.ref(future)
            del future
            until(lambda: watch() is None)
        finally:
            gc.enable()


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 0},
        {"size": True},
        {"size": "2"},
        {"queue": -1},
        {"queue": 1.5},
        {"timeout": "soon"},
    ],
)
def test_bad_arguments(snapshot: kvmlet.Snapshot, arguments: dict[str, Any]) -> None:
    with pytest.raises(kvmlet.UsageError):
        kvmlet.Pool(snapshot, **arguments)


def test_bad_jobs(snapshot: kvmlet.Snapshot) -> None:
    with pytest.raises(kvmlet.UsageError, match="freeze"):
        kvmlet.Pool(kvmlet.Sandbox(["x"]))  # type: ignore[arg-type]
    with kvmlet.Pool(snapshot, 1) as pool:
        with pytest.raises(kvmlet.UsageError, match="encode"):
            pool.request("text")  # type: ignore[arg-type]
        with pytest.raises(kvmlet.UsageError):
            pool.request(b"ab", timeout=-1)
        with pytest.raises(kvmlet.MessageTooLong):
            pool.request(bytes(5000)).result()
        assert pool.stats().replaced == 0
