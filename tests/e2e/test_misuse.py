"""Wrong uses of the library: each is an exception of its own, in one line, with a remedy."""

from __future__ import annotations

import asyncio
import itertools
import os
import pathlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, NO_RUNTIMES
from kvmlet import aio

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

PROGRAM = [
    "python3",
    "-c",
    "import kvmlet_guest as g; [g.send(m[::-1]) for m in iter(g.receive, b'')]",
]
# Users without annotations pass anything.
library: Any = kvmlet


def refused(kind: type[kvmlet.KvmletError], call: Callable[[], object]) -> kvmlet.KvmletError:
    """The exception of a wrong call, which must be of exactly this kind."""
    with pytest.raises(kvmlet.KvmletError) as caught:
        call()
    error = caught.value
    assert type(error) is kind, repr(error)
    # Rules on hosts name the words that there are in their message.
    assert error.remedy or ": give " in str(error), f"no remedy: {error}"
    assert "\n" not in str(error)
    return error


class Open:
    """One of each, open."""

    def __init__(self) -> None:
        self.snapshot: Any = kvmlet.Sandbox(PROGRAM).until_ready(HANG_S).freeze()
        self.sandbox: Any = self.snapshot.fork()
        self.pool: Any = kvmlet.Pool(self.snapshot, 1)
        self.box: Any = kvmlet.Box()
        self.process: Any = self.box.spawn(["cat"])
        self.box_snapshot: Any = self.box.snapshot()
        self.py: Any = kvmlet.Interpreter()
        self.py_snapshot: Any = self.py.snapshot()

    def close(self) -> None:
        self.pool.shutdown()
        for each in (self.sandbox, self.snapshot, self.box_snapshot, self.box):
            each.close()
        for each in (self.py_snapshot, self.py):
            each.close()


@pytest.fixture(scope="module")
def opened() -> Iterator[Open]:
    made = Open()
    yield made
    made.close()


# ---- wrong types and values ----

TRUE = ["true"]
OF_RUN: dict[str, Callable[[], object]] = {
    "argv is a number": lambda: library.run(5),
    "argv is one str": lambda: library.run("ls -l"),
    "argv is empty": lambda: library.run([]),
    "argv has a null byte": lambda: library.run(["a\0b"]),
    "argv has a number": lambda: library.run(["a", 1]),
    "shell with a list": lambda: library.run(["ls"], shell=True),
    "input is a number": lambda: library.run(TRUE, input=5),
    "timeout is 0": lambda: library.run(TRUE, timeout=0),
    "timeout is a word": lambda: library.run(TRUE, timeout="soon"),
    "timeout is not a number": lambda: library.run(TRUE, timeout=float("nan")),
    "memory is a word": lambda: library.run(TRUE, memory="lots"),
    "memory is a bool": lambda: library.run(TRUE, memory=True),
    "no processes": lambda: library.run(TRUE, max_procs=0),
    "a variable is a number": lambda: library.run(TRUE, env={"A": 1}),
    "a variable of no name": lambda: library.run(TRUE, env={"": "x"}),
    "a variable with =": lambda: library.run(TRUE, env={"A=B": "x"}),
    "cwd is a number": lambda: library.run(TRUE, cwd=5),
    "cwd is missing": lambda: library.run(TRUE, cwd="/nowhere/at/all"),
    "stdout is a number": lambda: library.run(TRUE, stdout=5),
    "policy is a number": lambda: library.run(TRUE, policy=5),
    "limits is a number": lambda: library.run(TRUE, limits=5),
    "limits is a policy": lambda: library.run(TRUE, limits=kvmlet.Policy()),
    "read is one path": lambda: library.run(TRUE, read="/etc"),
    "read is missing": lambda: library.run(TRUE, read=["/nowhere/at/all"]),
    "net is one rule": lambda: library.run(TRUE, net="example.com"),
    "net is no rule": lambda: library.run(TRUE, net=["ex ample"]),
    "changes is no mode": lambda: library.run(TRUE, changes="all"),
    "changes is for the command": lambda: library.run(TRUE, changes="ask"),
    "calls is no mode": lambda: library.run(TRUE, calls="fast"),
    "no such encoding": lambda: library.run(TRUE, text=True, encoding="none"),
    "on_denial is a number": lambda: library.run(TRUE, on_denial=5),
}
OF_VALUES: dict[str, Callable[[], object]] = {
    "a limit is a word": lambda: library.Limits(memory="lots"),
    "a mount is a number": lambda: library.Mount(5),
    "a mount of no access": lambda: library.Mount("/etc", "execute"),
    "mounts are numbers": lambda: library.Policy(mounts=[5]),
    "limits are a number": lambda: library.Policy(limits=5),
    "a policy with another word": lambda: library.Policy().replace(colour="red"),
    "a policy's file is missing": lambda: library.Policy.load("/nowhere/at/all"),
    "a policy's text is none": lambda: library.Policy.from_toml("read = 5"),
    "no such profile": lambda: library.Policy.profile("none"),
    "a number is isolated": lambda: library.isolated(5),
    "a class is isolated": lambda: library.isolated(int),
    "preload is one name": lambda: library.isolated(preload="json"),
    "preload is no name": lambda: library.isolated(preload=["import os"]),
    "no calls at once": lambda: library.isolated(size=0),
    "a number is registered": lambda: library.register_result(5),
    "a session of one name": lambda: library.Interpreter(preload="json"),
    "a box of no memory": lambda: library.Box(memory=0),
    "a box with CPU time": lambda: library.Box(policy=kvmlet.Policy.of(cpu_time=1)),
    "a function with CPU time": lambda: library.isolated(limits=kvmlet.Limits(cpu_time=1)),
    "a sandbox that writes": lambda: library.Sandbox(
        TRUE, policy=kvmlet.Policy.of(write=["/var/tmp"])
    ),
    "a pool of a number": lambda: library.Pool(5),
    "a server of nothing": lambda: library.Server([]),
    "a server with another word": lambda: library.Server(TRUE, colour="red"),
    "a server at a number": lambda: library.Server(TRUE, listen=5),
    "made directly: Snapshot": library.Snapshot,
    "made directly: BoxSnapshot": library.BoxSnapshot,
    "made directly: InterpreterSnapshot": library.InterpreterSnapshot,
    "made directly: Process": library.Process,
    "made directly: Connection": library.Connection,
}


@pytest.mark.parametrize("name", [*OF_RUN, *OF_VALUES])
def test_wrong_arguments(name: str) -> None:
    error = refused(kvmlet.UsageError, {**OF_RUN, **OF_VALUES}[name])
    assert isinstance(error, ValueError)


OF_OBJECTS: dict[str, Callable[[Open], object]] = {
    "Box.run": lambda it: it.box.run("ls"),
    "Box.spawn": lambda it: it.box.spawn(TRUE, stdin=7),
    "Box.fork": lambda it: it.box.fork(-1),
    "Box.connect": lambda it: it.box.connect("80"),
    "Box.wait_listening": lambda it: it.box.wait_listening(0),
    "Files.read": lambda it: it.box.files.read(5),
    "Files.read, limit_bytes": lambda it: it.box.files.read("x", limit_bytes="1m"),
    "Files.write": lambda it: it.box.files.write("x", 5),
    "Files.list": lambda it: it.box.files.list(""),
    "Process.send_signal": lambda it: it.process.send_signal("TERM"),
    "Process.wait": lambda it: it.process.wait("soon"),
    "BoxSnapshot.fork": lambda it: it.box_snapshot.fork("2"),
    "Interpreter.run": lambda it: it.py.run(5),
    "Interpreter.run, timeout": lambda it: it.py.run("1", timeout=-1),
    "Interpreter.fork": lambda it: it.py.fork(True),
    "Sandbox.send": lambda it: it.sandbox.send("text"),
    "Sandbox.recv": lambda it: it.sandbox.recv(timeout=0),
    "Sandbox.call": lambda it: it.sandbox.call(5),
    "Sandbox.call, an argument": lambda it: it.sandbox.call("abs", "5"),
    "Sandbox.call, returns": lambda it: it.sandbox.call("abs", 5, returns=str),
    "Sandbox.connect": lambda it: it.sandbox.connect(),
    "Sandbox.until_listening": lambda it: it.sandbox.until_listening(70_000),
    "Snapshot.prepare": lambda it: it.snapshot.prepare(-1),
    "Pool.request": lambda it: it.pool.request("text"),
    "Pool.warm_up": lambda it: it.pool.warm_up(5),
    "Pool, its size": lambda it: library.Pool(it.snapshot, 0),
    "Pool, its queue": lambda it: library.Pool(it.snapshot, queue=-1),
}


@pytest.mark.parametrize("name", OF_OBJECTS)
def test_wrong_arguments_of_methods(opened: Open, name: str) -> None:
    refused(kvmlet.UsageError, lambda: OF_OBJECTS[name](opened))


# ---- use after close, and in a forked process ----

USES: dict[str, Callable[[Open], object]] = {
    "Sandbox.request": lambda it: it.sandbox.request(b"x"),
    "Sandbox.reset": lambda it: it.sandbox.reset(),
    "Sandbox.stats": lambda it: it.sandbox.stats(),
    "Snapshot.fork": lambda it: it.snapshot.fork(),
    "Snapshot.prepare": lambda it: it.snapshot.prepare(1),
    "Pool.request": lambda it: it.pool.request(b"x").result(),
    "Pool.warm_up": lambda it: it.pool.warm_up(),
    "Box.run": lambda it: it.box.run(TRUE),
    "Box.spawn": lambda it: it.box.spawn(TRUE),
    "Box.snapshot": lambda it: it.box.snapshot(),
    "Box.fork": lambda it: it.box.fork(),
    "Box.reset": lambda it: it.box.reset(),
    "Box.stats": lambda it: it.box.stats(),
    "Box.connect": lambda it: it.box.connect(80),
    "Files.list": lambda it: it.box.files.list(),
    "Files.write": lambda it: it.box.files.write("x", "y"),
    "Process.poll": lambda it: it.process.poll(),
    "Process.wait": lambda it: it.process.wait(),
    "Process.kill_all": lambda it: it.process.kill_all(),
    "Process.stdin": lambda it: it.process.stdin.write(b"x"),
    "BoxSnapshot.fork": lambda it: it.box_snapshot.fork(),
    "Interpreter.run": lambda it: it.py.run("1"),
    "Interpreter.reset": lambda it: it.py.reset(),
    "Interpreter.interrupt": lambda it: it.py.interrupt(),
    "Interpreter.files": lambda it: it.py.files.list(),
    "InterpreterSnapshot.fork": lambda it: it.py_snapshot.fork(),
}


def kind_of(name: str) -> type[kvmlet.KvmletError]:
    return kvmlet.PoolClosed if name.startswith("Pool") else kvmlet.SandboxClosed


def test_after_close() -> None:
    it = Open()
    it.close()
    it.close()
    for name, use in USES.items():
        refused(kind_of(name), lambda: use(it))  # noqa: B023


def test_in_a_forked_process(opened: Open) -> None:
    """In a child each use is refused, and it ends: no VM of the parent's is touched."""
    for name, use in USES.items():
        child = os.fork()
        if child == 0:
            status = 1
            try:
                use(opened)
            except kvmlet.ForkedProcess as error:
                status = 0 if error.remedy else 2
            except BaseException:
                status = 3
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, name
    assert opened.box.run(TRUE).ok
    assert opened.sandbox.request(b"ab") == b"ba"


# ---- several users ----


def test_one_thread_at_a_time(opened: Open) -> None:
    """A second user is told that one at a time is served; the first one goes on."""
    running = threading.Event()
    values: list[object] = []

    def cell() -> None:
        values.append(
            opened.py.run("print(1)\nwhile True: pass", stdout=lambda _: running.set()).reason
        )

    thread = threading.Thread(target=cell)
    thread.start()
    assert running.wait(HANG_S)
    for use in (lambda: opened.py.run("1"), opened.py.snapshot, opened.py.reset):
        refused(kvmlet.SandboxBusy, use)
    opened.py.interrupt()
    thread.join()
    assert values == ["error"]
    assert opened.py.run("6 * 7").value == 42
    with opened.snapshot.fork() as sandbox:
        errors: list[kvmlet.KvmletError] = []

        def use(call: Callable[[], object]) -> None:
            try:
                call()
            except kvmlet.SandboxBusy as error:  # whichever comes second
                errors.append(error)
            except kvmlet.Interrupted:
                pass

        thread = threading.Thread(target=use, args=(lambda: sandbox.run_for("2s"),))
        thread.start()
        while thread.is_alive() and not errors:
            use(sandbox.stats)
        assert errors
        assert errors[0].remedy
        sandbox.interrupt()
        thread.join()


def test_two_users_of_one_box(opened: Open) -> None:
    failures: list[BaseException] = []

    def use(number: int) -> None:
        try:
            for step in range(5):
                said = opened.box.run(["echo", f"{number} {step}"], text=True, check=True).stdout
                assert said == f"{number} {step}\n"
                opened.box.files.write(f"of {number}", said)
                assert opened.box.files.read_text(f"of {number}") == said
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_an_object_of_another_loop() -> None:
    """Objects belong to no event loop: the next one may use them."""
    box = aio.Box()

    async def made() -> None:
        await box
        await box.files.write("x", "of the first")

    async def used() -> str:
        async with box:
            return await box.files.read_text("x")

    asyncio.run(made())
    assert asyncio.run(used()) == "of the first"


# ---- results, files, ends ----


@kvmlet.isolated(size=1, timeout=60)
def value_of(text: str) -> object:
    """The value of an expression, of whatever kind."""
    return eval(text, {"threading": threading, "itertools": itertools})


@pytest.mark.parametrize(
    "text",
    [
        "threading.Lock()",
        "object()",
        "open('/dev/null')",
        "(x for x in [1])",
        "lambda: 1",
        "len",
        "type('T', (), {})()",
        "threading",
        "[1, {'a': (2, itertools.count())}]",
        "1 << (1 << 21)",
        "(lambda l: l.append(l) or l)([])",
    ],
)
def test_results_that_cannot_be_data(text: str) -> None:
    refused(kvmlet.ResultError, lambda: value_of(text))


def test_missing_files(opened: Open, tmp_path: pathlib.Path) -> None:
    refused(kvmlet.ProgramNotFound, lambda: kvmlet.run(["no-such-program"]))
    refused(kvmlet.ProgramNotFound, lambda: opened.box.run(["no-such-program"]))
    refused(kvmlet.ProgramNotFound, lambda: kvmlet.Sandbox(["./no-such-program"]))
    refused(kvmlet.ProgramNotExecutable, lambda: kvmlet.run(["/usr/lib"]))
    refused(kvmlet.BoxFileNotFound, lambda: opened.box.files.read("missing"))
    refused(kvmlet.BoxFileNotFound, lambda: opened.box.files.download("missing", tmp_path / "x"))
    # Files of this machine raise as always in Python.
    with pytest.raises(FileNotFoundError):
        opened.box.files.upload(tmp_path / "missing", "x")
    opened.box.files.write("there", "x")
    (tmp_path / "taken").write_text("")
    with pytest.raises(FileExistsError):
        opened.box.files.download("there", tmp_path / "taken")


def test_programs_that_have_ended(opened: Open) -> None:
    with kvmlet.Sandbox(["sh", "-c", "exit 3"]) as sandbox:
        for use in (sandbox.until_ready, lambda: sandbox.send(b"x"), sandbox.recv):
            error = refused(kvmlet.SandboxEnded, use)
            assert "status 3" in str(error)
    [session] = opened.py.fork()
    with session:
        assert session.run("import os; os._exit(3)").reason == "exited"
        refused(kvmlet.SandboxEnded, lambda: session.run("1"))
        session.reset()
        assert session.run("1").value == 1
    [fork] = opened.box.fork()
    with fork:
        process = fork.spawn(["sleep", "60"])
        fork.reset()
        refused(kvmlet.BoxWasReset, process.poll)
