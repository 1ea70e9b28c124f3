"""Blocking work for coroutines: each waits for its guest in a thread of its own.

The threads are none of the event loop's: a hundred guests that run for minutes leave its executor
alone. One that has ended its work waits a while for more. A coroutine that is cancelled has the
work stopped, and waits for its end.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from kvmlet._native import Stop
from kvmlet._stopping import stopped_by
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Future

T = TypeVar("T")

# A thread without work ends after so long.
_IDLE_S = 5.0
# At the end of the interpreter, the time that stopped guests have to return.
_LAST_WAIT_S = 5.0


class _Work(Generic[T]):
    """A call for a thread, and what became of it."""

    def __init__(self, call: Callable[[], T], halt: Callable[[], object] | None) -> None:
        self.call = call
        self.halt = halt
        self.value: T | None = None
        self.error: BaseException | None = None
        self.told: Callable[[], object] = lambda: None

    def run(self) -> None:
        try:
            self.value = self.call()
        except BaseException as error:  # noqa: BLE001 - the coroutine raises it
            self.error = error
        self.told()

    def result(self) -> T:
        try:
            if self.error is not None:
                raise self.error
            return self.value  # type: ignore[return-value]
        finally:
            self.error = None  # its traceback has this frame


class _Threads:
    """As many threads as there is work at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Thread] = []
        self._busy: set[_Thread] = set()

    def start(self, work: _Work[Any]) -> None:
        with self._lock:
            thread = self._idle.pop() if self._idle else None
            if thread is None:
                thread = _Thread(self)
                thread.start()
            self._busy.add(thread)
        thread.give(work)

    def finished(self, thread: _Thread) -> None:
        with self._lock:
            self._busy.discard(thread)
            self._idle.append(thread)

    def may_end(self, thread: _Thread) -> bool:
        """True if nobody has given it work meanwhile, and nobody will."""
        with self._lock:
            if thread not in self._idle:
                return False
            self._idle.remove(thread)
            return True

    def stop(self) -> None:
        """Stops all guests that are waited for."""
        with self._lock:
            busy = list(self._busy)
        end_s = time.monotonic() + _LAST_WAIT_S
        for thread in busy:
            thread.halt()
        while busy and time.monotonic() < end_s:
            time.sleep(0.005)
            with self._lock:
                busy = list(self._busy)


class _Thread(threading.Thread):
    def __init__(self, threads: _Threads) -> None:
        super().__init__(name="kvmlet-aio", daemon=True)
        self._threads = threads
        self._given: queue.SimpleQueue[_Work[Any]] = queue.SimpleQueue()
        self._work: _Work[Any] | None = None

    def give(self, work: _Work[Any]) -> None:
        self._given.put(work)

    def halt(self) -> None:
        work = self._work
        if work is not None and work.halt is not None:
            work.halt()

    def run(self) -> None:
        while True:
            try:
                self._work = self._given.get(timeout=_IDLE_S)
            except queue.Empty:
                if self._threads.may_end(self):
                    return
                continue
            self._work.run()
            self._work = None
            self._threads.finished(self)


_threads = _Threads()


def _forget() -> None:
    # The parent's threads are not here, and one of them may have held the lock.
    global _threads  # noqa: PLW0603
    _threads = _Threads()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def _stop() -> None:
    _threads.stop()


class _Loop(Protocol):
    """The event loop that a coroutine runs in."""

    async def wait_for(self, work: _Work[T]) -> T:
        """Has a thread do it; at a cancellation it is halted first, and its end waited for."""
        raise NotImplementedError

    async def future(self, future: Future[T]) -> T:
        """The result of a future, which a cancellation cancels."""
        raise NotImplementedError

    def call(self, tell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """From a thread: has the loop run a coroutine, and waits for it."""


class _Asyncio:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    async def wait_for(self, work: _Work[T]) -> T:
        done = asyncio.Event()

        def told() -> None:
            try:
                self._loop.call_soon_threadsafe(done.set)
            except RuntimeError:  # the loop was closed: nobody waits
                return

        work.told = told
        _threads.start(work)
        try:
            await done.wait()
        except asyncio.CancelledError:
            if work.halt is not None:
                work.halt()
            await _whatever_comes(done)
            work.error = None
            raise
        return work.result()

    async def future(self, future: Future[T]) -> T:
        return await asyncio.wrap_future(future)

    def call(self, tell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        asyncio.run_coroutine_threadsafe(tell(), self._loop).result()


async def _whatever_comes(done: asyncio.Event) -> None:
    """Waits for the end of work that has been halted, whoever cancels this as well."""
    while not done.is_set():
        try:
            await done.wait()
        except asyncio.CancelledError:
            continue


class _Anyio:
    """Any loop that anyio knows, which means trio."""

    def __init__(self) -> None:
        import anyio
        import anyio.from_thread
        import anyio.lowlevel

        self._anyio = anyio
        self._from_thread = anyio.from_thread
        self._token = anyio.lowlevel.current_token()

    async def wait_for(self, work: _Work[T]) -> T:
        done = self._anyio.Event()

        def told() -> None:
            try:
                self._from_thread.run_sync(done.set, token=self._token)
            except RuntimeError:  # the loop has ended: nobody waits
                return

        work.told = told
        _threads.start(work)
        try:
            await done.wait()
        except self._anyio.get_cancelled_exc_class():
            if work.halt is not None:
                work.halt()
            with self._anyio.CancelScope(shield=True):
                await done.wait()
            work.error = None
            raise
        return work.result()

    async def future(self, future: Future[T]) -> T:
        done = self._anyio.Event()
        here = threading.get_ident()

        def ended(_future: Future[T]) -> None:
            if threading.get_ident() == here:
                done.set()
                return
            try:
                self._from_thread.run_sync(done.set, token=self._token)
            except RuntimeError:  # the loop has ended: nobody waits
                return

        future.add_done_callback(ended)
        try:
            await done.wait()
        except self._anyio.get_cancelled_exc_class():
            future.cancel()
            raise
        return future.result()

    def call(self, tell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._from_thread.run(tell, token=self._token)


def _loop() -> _Loop:
    try:
        return _Asyncio(asyncio.get_running_loop())
    except RuntimeError:
        pass
    try:
        return _Anyio()
    except ImportError:
        raise UsageError(
            "this is no loop of asyncio", remedy="pip install 'kvmlet[trio]' for trio"
        ) from None


async def offload(call: Callable[[], T]) -> T:
    """`call()` in a thread. A cancellation takes effect when it has returned: it must be short."""
    return await _loop().wait_for(_Work(call, None))


async def until_stopped(call: Callable[[], T]) -> T:
    """`call()` in a thread. A cancellation ends what it waits for, and takes effect then."""
    stop = Stop()

    def stoppable() -> T:
        with stopped_by(stop):
            return call()

    return await _loop().wait_for(_Work(stoppable, stop.set))


async def halted_by(call: Callable[[], T], halt: Callable[[], object]) -> T:
    """`call()` in a thread. A cancellation calls `halt`, which must not wait."""
    return await _loop().wait_for(_Work(call, halt))


async def result_of(future: Future[T]) -> T:
    """The result of a future. A cancellation cancels it."""
    return await _loop().future(future)


def in_loop(tell: Any) -> Any:
    """`tell` for a thread to call: it is called in the loop of now, and may be a coroutine.

    None and INHERIT, which are no callables, stay as they are.
    """
    if not callable(tell):
        return tell
    loop = _loop()

    def told(data: object) -> None:
        async def call() -> None:
            done = tell(data)
            if inspect.isawaitable(done):
                await done

        loop.call(call)

    return told
