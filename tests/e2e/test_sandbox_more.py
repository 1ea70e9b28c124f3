"""Sandboxes: files, output as it comes, the end, and forks that are frozen again."""

from __future__ import annotations

import asyncio
import gc
import os
import pathlib
import threading
import time
import weakref
from typing import Any

import pytest

import kvmlet
from e2e.oracle import HANG_S, sized
from e2e.test_sandbox import PYTHON, READY_S, start
from kvmlet import aio

pytestmark = [pytest.mark.poll, pytest.mark.usefixtures("vm")]

SELF = """
import os, kvmlet_guest

def look():
    maps = [line.split()[:2] for line in open("/proc/self/maps")]
    fds = sorted(int(name) for name in os.listdir("/proc/self/fd"))
    return repr((maps, fds, os.getcwd())).encode()

kvmlet_guest.serve(lambda request: look())
"""


@pytest.fixture
def service(tmp_path: pathlib.Path) -> kvmlet.Sandbox:
    return start(tmp_path).until_ready(READY_S)


@pytest.fixture
def snapshot(service: kvmlet.Sandbox) -> kvmlet.Snapshot:
    return service.freeze()


# ---- files ----


def test_files_are_those_of_the_program(service: kvmlet.Sandbox, tmp_path: pathlib.Path) -> None:
    files = service.files
    assert service.request(b"file abc") == b"abc"
    assert files.read("/tmp/file") == b"abc"
    files.write("/tmp/file", "def")
    assert service.request(b"file ghi") == b"defghi"
    # Relative paths start where the program is, which may read that and not change it.
    (tmp_path / "data").write_text("here")
    assert files.read_text("data") == "here"
    with pytest.raises(OSError, match="data"):
        files.write("data", "x")
    files.mkdir("/tmp/a/b", parents=True)
    files.rename("/tmp/file", "/tmp/a/b/c")
    assert [names for _, _, names in files.walk("/tmp/a")] == [[], ["c"]]
    assert files.list("/tmp/a/b") == ["c"]
    assert files.stat("/tmp/a/b/c").size == 6
    files.upload(tmp_path, "/tmp/in")
    assert files.read("/tmp/in/data") == b"here"
    files.download("/tmp/a", tmp_path / "out")
    assert (tmp_path / "out/b/c").read_bytes() == b"defghi"
    big = os.urandom(5_000_000)
    files.write("/tmp/big", big)
    assert files.read("/tmp/big") == big
    files.remove("/tmp/a", recursive=True)
    assert not files.exists("/tmp/a")
    with pytest.raises(FileNotFoundError):
        files.read("/tmp/a")
    with pytest.raises(OSError, match="usr"):
        files.write("/usr/new", "x")
    service.close()
    with pytest.raises(kvmlet.SandboxClosed):
        files.list()


def test_the_program_sees_nothing_of_it(tmp_path: pathlib.Path) -> None:
    with kvmlet.Sandbox([PYTHON, "-c", SELF], cwd=tmp_path) as sandbox:
        sandbox.until_ready(READY_S)
        before = sandbox.request(b"")
        for number in range(20):
            sandbox.files.write(f"/tmp/{number}", b"x" * 300_000)
            sandbox.files.read(f"/tmp/{number}")
        sandbox.files.list("/usr/bin")
        assert sandbox.request(b"") == before


def test_files_of_forks_are_their_own(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as one, snapshot.fork() as other:
        one.files.write("/tmp/file", "one")
        assert not other.files.exists("/tmp/file")
        assert one.request(b"file +") == b"one+"
        one.reset()
        assert not one.files.exists("/tmp/file")
        with one.freeze() as again, again.fork() as fork:
            assert not fork.files.exists("/tmp/file")


def test_files_without_a_program(service: kvmlet.Sandbox) -> None:
    # Its first process ends, and another one goes on.
    with kvmlet.Sandbox(["sh", "-c", "(sleep 1000) & exec sleep 1000"]) as sandbox:
        sandbox.run_for("500ms")
        sandbox.files.write("/tmp/a", "b")
        assert sandbox.files.read("/tmp/a") == b"b"
    with pytest.raises(kvmlet.SandboxEnded):
        service.request(b"exit 0")
    with pytest.raises(kvmlet.SandboxEnded):
        service.files.list()


def test_files_at_the_limits_of_the_program(tmp_path: pathlib.Path) -> None:
    script = """
import resource, kvmlet_guest
resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))
kvmlet_guest.serve(lambda request: open("/proc/self/stat").read().encode())
"""
    with kvmlet.Sandbox([PYTHON, "-c", script], cwd=tmp_path, memory="64m") as sandbox:
        sandbox.until_ready(READY_S)
        # One more than the program has, and it is given back.
        for _ in range(10):
            sandbox.files.write("/tmp/a", "b")
        with pytest.raises(kvmlet.BoxFileError):
            sandbox.files.write("/tmp/large", bytes(200 << 20))
        sandbox.files.remove("/tmp/large")
        assert sandbox.request(b"")


def test_files_while_another_thread_runs_it(service: kvmlet.Sandbox) -> None:
    raised: list[BaseException] = []

    def spin() -> None:
        with pytest.raises(kvmlet.Interrupted) as caught:
            service.request(b"spin")
        raised.append(caught.value)

    thread = threading.Thread(target=spin)
    thread.start()
    time.sleep(0.3)
    with pytest.raises(kvmlet.SandboxBusy):
        service.files.list()
    service.interrupt()
    thread.join()
    assert raised


# ---- the end, and output as it comes ----


def test_wait() -> None:
    with kvmlet.Sandbox(["sh", "-c", "echo out; sleep 0.2; echo err >&2; exit 3"]) as sandbox:
        result = sandbox.wait(timeout=HANG_S)
        assert (result.exit_code, result.reason) == (3, "exited")
        assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
        assert sandbox.wait() is result is sandbox.result
    with kvmlet.Sandbox(["sleep", "1000"]) as sandbox:
        with pytest.raises(kvmlet.DeadlineExceeded):
            sandbox.wait(timeout=0.2)
        assert sandbox.result is None
        threading.Timer(0.2, sandbox.interrupt).start()
        with pytest.raises(kvmlet.Interrupted):
            sandbox.wait(timeout=HANG_S)
    with pytest.raises(kvmlet.SandboxClosed):
        sandbox.wait()


def test_a_fork_is_waited_for(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        fork.send(b"exit 4")
        assert fork.wait(HANG_S).exit_code == 4
        fork.reset()
        assert fork.result is None
        assert fork.request(b"get") == b"-"


def test_output_comes_while_it_runs() -> None:
    told: list[tuple[float, bytes]] = []
    errors: list[bytes] = []
    command = "for i in 1 2 3; do echo $i; sleep 0.3; done; echo last >&2"

    def tell(data: bytes) -> None:
        told.append((time.monotonic(), data))

    with kvmlet.Sandbox(["sh", "-c", command], stdout=tell, stderr=errors.append) as sandbox:
        sandbox.run_for("100ms")
        assert [data for _, data in told] == [b"1\n"]
        result = sandbox.wait(HANG_S)
        assert (result.stdout, result.stderr) == (b"", b"")
    assert b"".join(data for _, data in told) == b"1\n2\n3\n"
    assert told[-1][0] - told[0][0] > 0.3
    assert errors == [b"last\n"]


def test_forks_have_callables_of_their_own(service: kvmlet.Sandbox) -> None:
    one: list[bytes] = []
    snapshot = service.freeze()
    with snapshot, snapshot.fork(stdout=one.append) as fork, snapshot.fork() as other:
        fork.request(b"print a")
        other.request(b"print b")
        assert one == [b"a\n"]
        assert fork.output() == (b"", b"a\n")
        assert other.output() == (b"b\n", b"b\n")
        fork.reset()
        fork.request(b"print c")
        assert one == [b"a\n", b"c\n"]


def test_a_callable_whose_end_closes_the_sandbox() -> None:
    class Job:
        def __init__(self) -> None:
            self.sandbox = kvmlet.Sandbox(["sleep", "1000"], stdout=self.told)

        def told(self, data: bytes) -> None: ...

        def __del__(self) -> None:
            self.sandbox.close()

    sandbox = Job().sandbox
    sandbox.close()
    assert sandbox.closed


def test_a_cycle_with_a_callable_is_collected() -> None:
    class Job:
        def __init__(self) -> None:
            self.sandbox = kvmlet.Sandbox(["sleep", "1000"], stdout=self.told)
            self.fork: kvmlet.Sandbox | None = None

        def told(self, data: bytes) -> None: ...

    job = Job()
    with kvmlet.Sandbox(["sleep", "1000"]).run_for("100ms").freeze() as snapshot:
        job.fork = snapshot.fork(stdout=job.told, stderr=job.told)
    gone = [weakref.ref(each) for each in (job, job.sandbox, job.fork)]
    del job
    gc.collect()
    assert [each() for each in gone] == [None, None, None]


def test_a_callable_that_raises_or_asks(service: kvmlet.Sandbox) -> None:
    with service.freeze() as snapshot:

        def refuse(data: bytes) -> None:
            raise KeyError(data)

        with snapshot.fork(stdout=refuse) as fork:
            with pytest.raises(KeyError):
                fork.request(b"print a")
            fork.reset()
            assert fork.request(b"get") == b"-"
        caught: list[Exception] = []
        forks: list[kvmlet.Sandbox] = []

        def ask(_data: bytes) -> None:
            try:
                forks[0].output()
            except kvmlet.SandboxBusy as error:
                caught.append(error)

        forks.append(snapshot.fork(stdout=ask))
        forks[0].request(b"print a")
        assert caught
        caught.clear()
        gone = weakref.ref(forks[0])
        forks.pop().close()
        gc.collect()
        assert gone() is None
        anything: Any = 7
        with pytest.raises(kvmlet.UsageError, match="stdout"):
            snapshot.fork(stdout=anything)
        with pytest.raises(kvmlet.UsageError, match="stderr"):
            kvmlet.Sandbox(["true"], stderr=anything)


def test_output_is_passed_through(capfd: pytest.CaptureFixture[str]) -> None:
    with kvmlet.Sandbox(["echo", "hello"], stdout=kvmlet.INHERIT) as sandbox:
        assert sandbox.wait(HANG_S).stdout == b""
    assert capfd.readouterr().out == "hello\n"


# ---- forks that are frozen again ----


def test_a_fork_is_frozen_again(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        fork.request(b"add one")
        fork.files.write("/tmp/file", "kept")
        with fork.freeze() as later:
            assert fork.closed
            with later.fork() as a, later.fork() as b, snapshot.fork() as first:
                assert a.request(b"add a") == b"one,a"
                assert b.request(b"add b") == b"one,b"
                assert first.request(b"get") == b"-"
                assert b.request(b"file +") == b"kept+"
                a.reset()
                assert a.request(b"get") == b"one"
                b.reset()
                assert b.files.read("/tmp/file") == b"kept"


def test_a_chain_of_snapshots(snapshot: kvmlet.Snapshot) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    current = snapshot
    count = sized(25, 5)
    for number in range(count):
        fork = current.fork()
        fork.request(b"add %d" % number)
        frozen = fork.freeze()
        if current is not snapshot:
            current.close()
        current = frozen
    with current:
        expected = ",".join(map(str, range(count))).encode()
        with current.fork() as fork:
            for _ in range(5):
                assert fork.request(b"get") == expected
                fork.request(b"add more")
                fork.reset()
    # VMs that are kept for the next fork have some.
    assert descriptors() <= before + 40


def test_what_forks_of_forks_draw_differs(snapshot: kvmlet.Snapshot) -> None:
    draws, generations = [], []
    with snapshot.fork() as fork:
        draws.append(fork.request(b"random"))
        later = fork.freeze()
    with later, later.fork() as a, later.fork() as b, snapshot.fork() as c:
        for one in (a, b, c):
            draws.append(one.request(b"random"))
            generations.append(one.generation)
            one.reset()
            draws.append(one.request(b"random"))
            generations.append(one.generation)
    assert len(set(draws)) == len(draws) == 7
    assert len({0, *generations}) == 7


def test_a_pool_of_a_fork(snapshot: kvmlet.Snapshot) -> None:
    with snapshot.fork() as fork:
        fork.request(b"add warm")
        later = fork.freeze()
    with later, kvmlet.Pool(later, 2) as pool:
        futures = [pool.request(b"add x") for _ in range(20)]
        assert {future.result() for future in futures} == {b"warm,x"}


def test_a_fork_of_a_server_is_frozen_again(tmp_path: pathlib.Path) -> None:
    words = [PYTHON, "-m", "http.server", "8000"]
    (tmp_path / "index.html").write_text("hello")

    def ask(fork: kvmlet.Sandbox) -> bytes:
        connection = fork.connect()
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        connection.close()
        return answer

    with kvmlet.Sandbox(words, cwd=tmp_path).until_listening(timeout=READY_S).freeze() as snapshot:
        with snapshot.fork() as fork:
            assert ask(fork).endswith(b"hello")
            fork.until_listening(timeout=READY_S)
            later = fork.freeze()
        with later, later.fork() as fork:
            for _ in range(3):
                assert ask(fork).endswith(b"hello")
                fork.reset()


def test_for_coroutines(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        told: list[bytes] = []

        async def tell(data: bytes) -> None:
            await asyncio.sleep(0)
            told.append(data)

        async with aio.Sandbox(["sh", "-c", "echo a; sleep 0.1; echo b"], stdout=tell) as sandbox:
            assert (await sandbox.wait(HANG_S)).exit_code == 0
        assert b"".join(told) == b"a\nb\n"
        async with aio.Sandbox([PYTHON, "-c", SELF], cwd=tmp_path) as sandbox:
            await sandbox.until_ready(READY_S)
            await sandbox.files.write("/tmp/a", "b")
            async with await sandbox.freeze() as frozen, await frozen.fork() as fork:
                assert await fork.files.exists("/tmp/a")
                async with await fork.freeze() as again, await again.fork(stdout=tell) as last:
                    assert await last.files.read_text("/tmp/a") == "b"

    asyncio.run(main())
