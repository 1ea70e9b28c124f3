"""kvmlet for coroutines, on asyncio and on trio."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest

import kvmlet
from e2e.oracle import HANG_S, LONG
from kvmlet import aio

pytestmark = pytest.mark.usefixtures("vm")

in_full = pytest.mark.skipif(not LONG, reason="repeated in full in make test-long")

Run = Callable[[Callable[[], Awaitable[None]]], None]

# The promise is 0.2 s. Machines of tests are busy.
CANCEL_S = 1.0


def runner(backend: str) -> Run:
    def in_loop(main: Callable[[], Awaitable[None]]) -> None:
        anyio.run(main, backend=backend)

    return in_loop


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


@pytest.fixture(params=["asyncio", pytest.param("trio", marks=in_full)])
def run_briefly(request: pytest.FixtureRequest) -> Run:
    return runner(request.param)


async def cancelled(work: Callable[[], Awaitable[object]], after_s: float = 0.4) -> float:
    """Cancels it after a time; the seconds that it takes to end."""
    start = time.monotonic()
    with anyio.move_on_after(after_s) as scope:
        await work()
    assert scope.cancelled_caught
    return time.monotonic() - start - after_s


def test_run(run: Run) -> None:
    async def main() -> None:
        result = await aio.run(["cat"], input="abc", text=True)
        assert (result.stdout, result.ok) == ("abc", True)
        assert (await aio.run("echo $A; exit 3", shell=True, env={"A": "b"})).returncode == 3
        with pytest.raises(kvmlet.ExitError):
            await aio.run(["false"], check=True)
        with pytest.raises(kvmlet.UsageError):
            await aio.run([])
        told: list[object] = []

        async def tell(line: str) -> None:
            await anyio.sleep(0)
            told.append((line, threading.get_ident()))

        await aio.run("echo a; echo b", shell=True, text=True, stdout=tell)
        here = threading.get_ident()
        assert told == [("a\n", here), ("b\n", here)]

        def fail(data: bytes) -> None:
            raise RuntimeError(data)

        with pytest.raises(RuntimeError):
            await aio.run("echo a; sleep 1000", shell=True, stdout=fail)

    run(main)


def test_cancelling_stops_the_guest(run: Run) -> None:
    async def main() -> None:
        for command in ("while :; do :; done", "sleep 1000"):
            assert await cancelled(lambda: aio.run(command, shell=True)) < CANCEL_S  # noqa: B023
        async with aio.Box() as box:
            for command in ("while :; do :; done", "setsid sleep 1000 & sleep 1000"):
                assert await cancelled(lambda: box.run(command, shell=True)) < CANCEL_S  # noqa: B023
            assert (await box.stats())["processes"] == 0
            process = await box.spawn(["sleep", "1000"])
            assert await cancelled(process.wait) < CANCEL_S
            assert process.stdout is not None
            assert await cancelled(process.stdout.read1) < CANCEL_S
            assert await process.poll() is None
            await process.kill_all()
            assert await process.wait() == -9
        async with aio.Interpreter() as py:
            await py.run("x = 1")
            assert await cancelled(lambda: py.run("while True: pass")) < CANCEL_S
            assert (await py.run("x")).value == 1

    run(main)


def test_cancelling_stops_copies(run: Run, tmp_path: pathlib.Path) -> None:
    size = 1 << 30
    source, back = tmp_path / "source", tmp_path / "back"
    with source.open("wb") as file:
        file.truncate(size)

    async def main() -> None:
        async with aio.Box(memory="1500m") as box:
            files = box.files
            await box.run(["truncate", "-s", str(size), "holes"], check=True)
            copies: list[Callable[[], Awaitable[object]]] = [
                lambda: files.upload(source, "data"),
                lambda: files.download("holes", back),
                lambda: files.read("holes", limit_bytes=size),
                lambda: files.write("written", bytes(size)),
            ]
            for copy in copies:
                assert await cancelled(copy, 0.1) < CANCEL_S
            # Nothing goes on behind it, and the box is as usable as before.
            sizes = [(await files.stat("data")).size, back.stat().st_size]
            await anyio.sleep(0.2)
            assert [(await files.stat("data")).size, back.stat().st_size] == sizes
            assert max(sizes) < size
            await files.write("data", "new")
            assert await files.read_text("data") == "new"
            back.unlink()

            async def walk() -> None:
                while True:
                    async for _ in files.walk("/usr"):
                        pass

            assert await cancelled(walk, 0.1) < CANCEL_S

    run(main)


def test_nothing_blocks_the_loop(run_briefly: Run) -> None:
    async def main() -> None:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                await anyio.sleep(0.01)
                beats += 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beat)
            async with aio.Box() as box:
                await box.run(["sleep", "1"])
            tasks.cancel_scope.cancel()
        assert beats > 20

    run_briefly(main)


def test_a_box(run: Run) -> None:
    async def main() -> None:
        async with aio.Box(memory="256m") as box:
            await box.files.write("a", "1\n2\n")
            assert await box.files.list() == ["a"]
            assert [entry async for entry in box.files.walk()] == [(".", [], ["a"])]
            assert (await box.run("wc -l < a", shell=True, text=True)).stdout == "2\n"
            process = await box.spawn(["sed", "-u", "s/^/> /"], text=True)
            assert process.stdin is not None
            assert process.stdout is not None
            await process.stdin.write("hello\n")
            assert await process.stdout.readline() == "> hello\n"
            left, right = await box.fork(2)
            async with left, right:
                await left.files.write("a", "left")
                assert await right.files.read("a") == b"1\n2\n"
                assert len(left.processes) == 1
            await process.stdin.write("grüße\nend")
            await process.stdin.close()
            assert [line async for line in process.stdout] == ["> grüße\n", "> end"]
            assert await process.wait() == 0
            async with await box.spawn("printf 'a\\0b'; printf err >&2", shell=True) as process2:
                assert process2.stdout is not None
                assert process2.stderr is not None
                assert await process2.stdout.read(2) == b"a\0"
                assert await process2.stdout.read() == b"b"
                assert await process2.stderr.read1() == b"err"
            assert process2.returncode == 0
            limited = await box.spawn(["sleep", "1000"], timeout="300ms")
            assert (await limited.wait(), limited.timed_out) == (-9, True)
            async with await box.snapshot() as snapshot:
                await box.files.write("b", "")
                [fork] = await snapshot.fork()
                async with fork:
                    assert await fork.files.list() == ["a"]
            await box.reset()
            assert await box.files.list() == ["a"]
            # A read that is cancelled loses nothing.
            slow = await box.spawn("printf ab; sleep 1; echo cd", shell=True, text=True)
            assert slow.stdout is not None
            reader = slow.stdout
            await cancelled(reader.readline, 0.5)
            assert await reader.readline() == "abcd\n"
        assert box.closed
        with pytest.raises(kvmlet.SandboxClosed):
            await box.run(["true"])
        other = await aio.Box()
        await other.close()
        await other.close()
        await aio.Box().close()

    run(main)


def test_an_interpreter(run_briefly: Run) -> None:
    async def main() -> None:
        async with aio.Interpreter(preload=["json"]) as py:
            await py.run("x = 40")
            assert (await py.run("x + y", {"y": 2})).value == 42
            cell = await py.run("while True: pass", timeout=0.2, grace=HANG_S)
            assert cell.reason == "timeout"
            lines: list[str] = []
            await py.run("print(1)", stdout=lines.append)
            assert lines == ["1\n"]
            [fork] = await py.fork()
            async with fork:
                await fork.run("x = 1")
                assert (await py.run("x")).value == 40
            await py.run("x = 2")
            await py.reset()
            assert (await py.run("x")).value == 40

    run_briefly(main)


def test_a_sandbox_and_a_pool(run_briefly: Run) -> None:
    code = """
        import kvmlet_guest
        while True:
            message = kvmlet_guest.receive()
            while message == b"loop": pass
            kvmlet_guest.send(message[::-1])
    """
    program = ["python3", "-c", textwrap.dedent(code)]

    async def main() -> None:
        async with aio.Sandbox(program) as sandbox:
            snapshot = await (await sandbox.until_ready(HANG_S)).freeze()
        async with snapshot, await snapshot.fork() as fork:
            assert await fork.request(b"abc") == b"cba"
            assert await cancelled(lambda: fork.request(b"loop")) < CANCEL_S
            with pytest.raises(kvmlet.Interrupted):
                await fork.request(b"abc")
            await fork.reset()
            assert await fork.request(b"abc") == b"cba"
            async with aio.Pool(snapshot, 2) as pool:
                assert await pool.request(b"abc") == b"cba"
                assert await cancelled(lambda: pool.request(b"loop")) < CANCEL_S
                assert await pool.run(lambda sandbox: sandbox.request(b"xy")) == b"yx"
                answers: list[bytes] = []

                async def ask(number: int) -> None:
                    answers.append(await pool.request(str(number).encode()))

                async with anyio.create_task_group() as tasks:
                    for number in range(10):
                        tasks.start_soon(ask, number)
                assert sorted(answers) == [str(number).encode() for number in range(10)]

    run_briefly(main)


def test_the_default_executor_is_left_alone() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with aio.Box() as box:
            sleeps = [asyncio.create_task(box.run(["sleep", "1000"])) for _ in range(50)]
            await asyncio.sleep(0.3)
            assert await asyncio.wait_for(loop.run_in_executor(None, lambda: 5), HANG_S) == 5
            assert (await box.run(["echo", "a"])).stdout == b"a\n"
            for sleep in sleeps:
                sleep.cancel()
            done = await asyncio.gather(*sleeps, return_exceptions=True)
            assert all(isinstance(each, asyncio.CancelledError) for each in done)
            assert (await box.stats())["processes"] == 0

    asyncio.run(main())


def test_no_loop_and_one_that_ends_early() -> None:
    code = """
        import asyncio, kvmlet.aio
        async def main():
            task = asyncio.create_task(kvmlet.aio.run(["sleep", "1000"]))
            await asyncio.sleep(0.5)
            asyncio.get_running_loop().stop()
        try:
            asyncio.run(main())
        except RuntimeError:
            pass
        loop = asyncio.new_event_loop()
        loop.create_task(kvmlet.aio.run(["sleep", "1000"]))
        loop.run_until_complete(asyncio.sleep(0.5))
        print("over")
    """
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        timeout=HANG_S,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "over\n")


def taken() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def nothing_leaks() -> Iterator[None]:
    with kvmlet.Box() as box:
        box.run(["true"])
    before, memory = taken(), resident_bytes()
    yield
    end = time.monotonic() + 30
    while taken()[1] > before[1] and time.monotonic() < end:
        time.sleep(0.5)  # idle threads end
    descriptors, threads = taken()
    # VMs that are kept for the next box.
    assert descriptors <= before[0] + 80
    assert threads <= before[1]
    assert resident_bytes() < memory + (256 << 20)


@in_full
@pytest.mark.usefixtures("nothing_leaks")
def test_ten_boxes_of_a_hundred_commands() -> None:
    async def use(box: aio.Box) -> None:
        for index in range(100):
            command = f"echo {index} >> log; wc -l < log"
            result = await box.run(command, shell=True, text=True, timeout=HANG_S)
            assert result.stdout == f"{index + 1}\n"

    async def main() -> None:
        boxes: list[Any] = [await aio.Box() for _ in range(10)]
        await asyncio.gather(*map(use, boxes))
        await asyncio.gather(*(box.close() for box in boxes))

    asyncio.run(main())


@in_full
@pytest.mark.usefixtures("nothing_leaks")
def test_a_thousand_spawns() -> None:
    async def main() -> None:
        async with aio.Box() as box:
            for _ in range(1000):
                process = await box.spawn(["echo", "a"])
                assert process.stdout is not None
                assert await process.stdout.read() == b"a\n"
                assert await process.wait() == 0
            assert (await box.stats())["processes"] == 0

    asyncio.run(main())


@in_full
@pytest.mark.usefixtures("nothing_leaks")
def test_a_hundred_runs_at_once() -> None:
    async def main() -> None:
        runs = [aio.run(["echo", str(index)], memory="64m") for index in range(100)]
        results = await asyncio.gather(*runs)
        assert [int(result.stdout) for result in results] == list(range(100))

    asyncio.run(main())


@pytest.mark.parametrize("kind", [aio.Box, aio.Interpreter])
def test_many_coroutines_may_await_its_start(
    kind: type[kvmlet.aio.Box] | type[kvmlet.aio.Interpreter],
) -> None:
    async def main() -> None:
        one = kind()
        made = await asyncio.gather(*(one for _ in range(8)))
        assert all(each is one for each in made)
        await one.files.write("x", "y")
        await one.close()
        assert one.closed

    asyncio.run(main())


def test_a_start_that_fails_may_be_tried_again() -> None:
    async def main() -> None:
        box = kvmlet.aio.Box(read=["/nowhere/at/all"])
        for _ in range(2):
            with pytest.raises(kvmlet.KvmletError):
                await box
        assert not box.closed
        await box.close()

    asyncio.run(main())


# ---- connections ----

SERVER = """
import asyncio, socket, struct
async def serve(reader, writer):
    while data := await reader.read(100_000):
        if data == b'rude':
            linger = struct.pack('ii', 1, 0)
            raw = writer.get_extra_info('socket')
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            return
        writer.write(data.upper())
        await writer.drain()
    writer.write(b'over')
    writer.close()
async def main():
    server = await asyncio.start_server(serve, '127.0.0.1', 80)
    await server.serve_forever()
asyncio.run(main())
"""


def test_connections(run: Run) -> None:
    async def main() -> None:
        async with aio.Box() as box:
            with pytest.raises(kvmlet.DeadlineExceeded):
                await box.wait_listening(80, timeout="10ms")
            with pytest.raises(kvmlet.ConnectionRefused):
                await box.connect(80)
            await box.spawn(["python3", "-c", SERVER])
            await box.wait_listening(80, timeout=HANG_S)
            async with await box.connect(80) as connection:
                received = b""

                async def receive() -> None:
                    nonlocal received
                    while len(received) < 400_000:
                        received += await connection.recv(100_000)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(receive)
                    await connection.sendall(b"x" * 400_000)
                assert received == b"X" * 400_000
                assert await cancelled(lambda: connection.recv(1), 0.1) < CANCEL_S
                # Bytes that came as the wait was given up are there for the next one.
                connection._arrived = b"kept"
                assert await connection.recv(3) == b"kep"
                assert await connection.recv(9) == b"t"
                connection.settimeout("20ms")
                with pytest.raises(kvmlet.DeadlineExceeded):
                    await connection.recv(1)
                connection.settimeout(None)
                await connection.shutdown(1)
                assert await connection.recv(9) == b"over"
                assert await connection.recv(9) == b""
            with pytest.raises(kvmlet.ConnectionFailed):
                await connection.recv(1)
            with pytest.raises(kvmlet.UsageError):
                await box.connect(0)

    run(main)


def test_streams_of_asyncio() -> None:
    async def main() -> None:
        async with aio.Box() as box:
            await box.spawn(["python3", "-c", SERVER])
            await box.wait_listening(80, timeout=HANG_S)

            async def ask(number: int) -> bytes:
                reader, writer = await box.open_connection(80)
                data = b"%d" % number * 50_000
                writer.write(data)
                writer.write_eof()
                back, _ = await asyncio.gather(reader.read(), writer.drain())
                writer.close()
                await writer.wait_closed()
                assert back == data.upper() + b"over"
                return back[:1]

            assert b"".join(await asyncio.gather(*map(ask, range(8)))) == b"01234567"
            reader, writer = await box.open_connection(80)
            writer.write(b"rude")
            with pytest.raises(kvmlet.ConnectionReset):
                await reader.read()
            writer.close()
            # Bytes that nobody reads wait inside, and are not taken without end.
            reader, writer = await box.open_connection(80)
            for _ in range(40):
                writer.write(b"y" * 100_000)
            assert await reader.readexactly(4_000_000) == b"Y" * 4_000_000
            writer.transport.abort()
            await writer.wait_closed()
            with pytest.raises(ConnectionResetError):
                await writer.drain()
            reader, _ = await box.open_connection(80)
            read = asyncio.create_task(reader.read())
            await asyncio.sleep(0.05)
            await box.close()
            with pytest.raises(kvmlet.KvmletError):
                await read

    asyncio.run(main())


def test_streams_need_a_loop_of_asyncio() -> None:
    async def main() -> None:
        async with aio.Box() as box:
            with pytest.raises(kvmlet.UsageError, match="connect"):
                await box.open_connection(80)

    runner("trio")(main)


def test_a_connection_into_a_sandbox(run_briefly: Run) -> None:
    async def main() -> None:
        async with aio.Sandbox(["/usr/bin/python3", "-c", SERVER]) as sandbox:
            await sandbox.until_listening(timeout=HANG_S)
            assert sandbox.port == 80
            async with await sandbox.freeze() as snapshot, await snapshot.fork() as fork:
                for _ in range(2):
                    async with await fork.connect() as connection:
                        await connection.sendall(b"abc")
                        assert await connection.recv(9) == b"ABC"
                    await fork.reset()

    run_briefly(main)
