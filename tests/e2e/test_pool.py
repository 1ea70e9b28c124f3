"""Pools of forks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import pathlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, repeated, sized
from e2e.test_sandbox import LATE_S, PYTHON, READY_S, SERVICE

pytestmark = pytest.mark.usefixtures("vm")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kvmlet.Snapshot]:
    cwd = tmp_path_factory.mktemp("pool")
    sandbox = kvmlet.Sandbox([PYTHON, "-c", SERVICE], cwd=cwd, memory="48m")
    with sandbox.until_ready(READY_S).freeze() as snapshot:
        yield snapshot


def test_every_request_is_the_first(snapshot: kvmlet.Snapshot) -> None:
    count = sized(2000, 100)
    with kvmlet.Pool(snapshot, 2) as pool:
        pool.warm_up()
        futures = [pool.request(b"add %d" % number) for number in range(count)]
        assert [future.result() for future in futures] == [b"%d" % n for n in range(count)]
    stats = pool.stats()
    assert (stats.completed, stats.resets, stats.replaced) == (count, count, 0)


def test_jobs(snapshot: kvmlet.Snapshot) -> None:
    def twice(sandbox: kvmlet.Sandbox, word: bytes) -> bytes:
        sandbox.request(b"add " + word)
        return sandbox.request(b"add " + word)

    with kvmlet.Pool(snapshot, 2) as pool:
        assert pool.submit(twice, b"x").result() == b"x,x"
        assert list(pool.map(twice, [b"a", b"b", b"c"])) == [b"a,a", b"b,b", b"c,c"]
        assert pool.submit(lambda sandbox: sandbox.call("atoi", b"7")).result() == 7

        async def main() -> list[bytes]:
            asked = [asyncio.wrap_future(pool.request(b"add %d" % n)) for n in range(5)]
            return list(await asyncio.gather(*asked))

        assert asyncio.run(main()) == [b"0", b"1", b"2", b"3", b"4"]


def test_bad_requests_harm_no_other(snapshot: kvmlet.Snapshot) -> None:
    def closed(sandbox: kvmlet.Sandbox) -> bytes:
        sandbox.close()
        return sandbox.recv()

    with kvmlet.Pool(snapshot, 2, timeout=HANG_S) as pool:
        for _ in range(sized(5, 1)):
            bad: dict[concurrent.futures.Future[Any], type[Exception]] = {
                pool.request(b"exit 3"): kvmlet.SandboxEnded,
                pool.request(b"crash"): kvmlet.SandboxEnded,
                pool.request(b"spin", timeout=2 if HW else 0.2): kvmlet.DeadlineExceeded,
                pool.request(bytes((16 << 20) + 1)): kvmlet.MessageTooLong,
                pool.submit(lambda sandbox: sandbox.call("nothing")): kvmlet.UnknownSymbol,
                pool.submit(lambda sandbox: sandbox.recv(timeout=-1)): kvmlet.UsageError,
                pool.submit(lambda sandbox: sandbox.recv()): kvmlet.NotReady,
                pool.submit(closed): kvmlet.SandboxClosed,
                pool.submit(lambda sandbox: 1 // 0): ZeroDivisionError,
            }
            good = [pool.request(b"add x") for _ in range(10)]
            for future, cls in bad.items():
                with pytest.raises(cls):
                    future.result()
            assert [future.result() for future in good] == [b"x"] * 10


def test_a_job_may_freeze_its_fork(snapshot: kvmlet.Snapshot) -> None:
    def kept(sandbox: kvmlet.Sandbox) -> kvmlet.Snapshot:
        sandbox.request(b"add kept")
        return sandbox.freeze()

    with kvmlet.Pool(snapshot, 1) as pool:
        frozen, after = pool.submit(kept), pool.request(b"add x")
        assert after.result() == b"x"
        with frozen.result() as later, later.fork() as fork:
            assert fork.request(b"get") == b"kept"


def test_the_memory_limit(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 1) as pool:
        eater, after = pool.request(b"eat"), pool.request(b"add x")
        with pytest.raises(kvmlet.SandboxEnded):
            eater.result()
        assert after.result() == b"x"


def test_cancelling_stops_the_guest(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 1) as pool:
        for request in (b"spin", b"sleep 1000", b"host"):
            future = pool.request(request)
            while not future.running():
                time.sleep(0.001)
            time.sleep(1 if HW else 0.05)
            assert future.cancel()
            start = time.monotonic()
            assert pool.request(b"add x").result(HANG_S) == b"x"
            assert HW or time.monotonic() - start < LATE_S, request
            with pytest.raises(concurrent.futures.CancelledError):
                future.result()

        async def main() -> None:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(pool.request(b"spin")), 0.1)

        asyncio.run(main())
        assert pool.request(b"add x").result(HANG_S) == b"x"
    assert pool.stats().cancelled == 4


def test_leaving_by_an_exception(snapshot: kvmlet.Snapshot) -> None:
    def work() -> None:
        with kvmlet.Pool(snapshot, 2) as pool:
            for _ in range(5):
                pool.request(b"spin")
            time.sleep(0.05)
            raise KeyError

    with pytest.raises(KeyError):
        work()


def test_a_queue(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.Pool(snapshot, 1, queue=1) as pool:
        spinning = pool.request(b"spin")
        waiting = pool.request(b"add x")
        with pytest.raises(kvmlet.QueueFull):
            pool.request(b"add y")
        spinning.cancel()
        assert waiting.result(HANG_S) == b"x"


def test_other_threads_run_meanwhile(snapshot: kvmlet.Snapshot) -> None:
    turns = 0
    with kvmlet.Pool(snapshot, 2) as pool:
        futures = [pool.request(b"spin", timeout=0.5) for _ in range(2)]
        while not all(future.done() for future in futures):
            turns += 1
            time.sleep(0.001)
    assert turns > 3


def test_many_threads_use_one_pool(snapshot: kvmlet.Snapshot) -> None:
    wrong: list[object] = []
    with kvmlet.Pool(snapshot, 2) as pool:

        def work(name: int) -> None:
            for turn in range(sized(50, 5)):
                word = b"%d-%d" % (name, turn)
                answer = pool.request(b"add " + word).result()
                if answer != word:
                    wrong.append((word, answer))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.slow
def test_nothing_is_left(snapshot: kvmlet.Snapshot, tmp_path: pathlib.Path) -> None:
    def once() -> None:
        with kvmlet.Pool(snapshot, 3) as pool:
            pool.warm_up()
            futures = [pool.request(word) for word in (b"add x", b"crash", b"exit 1") * 3]
            concurrent.futures.wait(futures)

    def held(name: str) -> int:
        return len(os.listdir(f"/proc/self/{name}"))

    for _ in range(2):
        once()
    before = held("fd"), held("task")
    for _ in range(repeated(10, 2, short=3)):
        once()
    # A thread that was joined takes another moment to be gone.
    end = time.monotonic() + HANG_S
    while held("task") > before[1] and time.monotonic() < end:
        time.sleep(0.01)
    assert held("fd") <= before[0]
    assert held("task") <= before[1]
