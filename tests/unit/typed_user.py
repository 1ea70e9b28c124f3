# pyright: strict
"""A user's program that has every public name, for the type checkers. Nothing of it is run.

`make lint-python` has mypy and basedpyright read it, each in its strict mode.
"""

import asyncio
import dataclasses
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import assert_type

import kvmlet
from kvmlet import aio


def programs() -> None:
    result = kvmlet.run(["true", b"x", Path("y")], timeout="5s", memory="64m", check=True)
    assert_type(result, kvmlet.Result[bytes])
    assert_type(result.stdout, bytes)
    assert_type(result.exit_code, int | None)
    assert_type(result.shell_status + result.returncode, int)
    assert_type(result.check().ok, bool)
    text = kvmlet.run("ls", shell=True, text=True, stdout=print, stderr=kvmlet.INHERIT)
    assert_type(text, kvmlet.Result[str])
    assert_type(text.stderr, str)
    refused: list[kvmlet.Denial] = []
    kvmlet.run(["true"], on_denial=refused.append, net=["public"], publish=["8080:80"])
    kvmlet.run(["true"], unix=[Path("/run/x.sock"), "/run/y.sock"])
    kvmlet.run(["true"], limits=kvmlet.Limits(memory="1g"))
    assert_type([each.path + each.flag + each.remedy for each in refused], list[str])
    event: kvmlet.Event = result.events[0]
    assert_type(event.name, str)
    changes: kvmlet.Changes = kvmlet.run(["true"], changes="list", keep_protected=["x"]).changes
    assert_type(changes.read("x"), bytes)
    kept: kvmlet.Kept = changes.apply()
    assert_type(kept.count, int)
    assert_type(kvmlet.get_include() + kvmlet.__version__, str)


def policies() -> kvmlet.Policy:
    limits = kvmlet.Limits(timeout=3, memory="1g")
    policy = kvmlet.Policy(mounts=(kvmlet.Mount("/data", "write"),), limits=limits)
    both = policy | kvmlet.Policy.of(read=[Path("/x")], env={"A": "b"}, timeout="5s")
    assert_type(kvmlet.Policy.from_toml(both.to_toml()), kvmlet.Policy)
    both.save("policy.toml")
    return kvmlet.Policy.load("policy.toml").replace(memory="2g")


def boxes() -> None:
    with kvmlet.Box(policy=policies(), memory="512m", write=["/data"]) as box:
        assert_type(box.run(["true"], max_output="1m").stdout, bytes)
        joined = box.run("ls", shell=True, text=True, stderr=subprocess.STDOUT, cwd="x")
        assert_type(joined.stdout, str)
        box.files.write("a", "b", parents=True)
        assert_type(box.files.read("a"), bytes)
        assert_type(box.files.read_text(Path("a")), str)
        assert_type(box.files.list(), list[str])
        assert_type(box.files.stat("a").is_dir, bool)
        assert_type(list(box.files.walk()), list[tuple[str, list[str], list[str]]])
        with box.files.open("a", "rb") as file:
            file.read(1)
        process: kvmlet.Process = box.spawn(
            ["cat"], text=True, stderr=subprocess.DEVNULL, timeout="5s"
        )
        assert_type(process.timed_out, bool)
        shell = box.spawn(["bash"], terminal=kvmlet.TerminalSize(columns=80, rows=24))
        shell.resize(kvmlet.TerminalSize(100, 30))
        with box.files.watch("src", recursive=True) as watch:
            assert_type([change.kind + change.path for change in watch.read(timeout=1)], list[str])
            assert_type([change.path for change in watch], list[str])
        assert_type(process.wait(timeout=1), int)
        assert_type(process.poll(), int | None)
        connection: kvmlet.Connection = box.connect(80)
        connection.sendall(b"x")
        assert_type(connection.recv(1), bytes)
        snapshot: kvmlet.BoxSnapshot = box.snapshot()
        assert_type(snapshot.fork(2), list[kvmlet.Box])
        assert_type(box.fork(), list[kvmlet.Box])
        assert_type(box.stats(), dict[str, int | float])
        box.reset()


def sessions() -> None:
    with kvmlet.Interpreter(preload=["json"]) as py:
        cell: kvmlet.Cell = py.run("x + 1", {"x": 1}, timeout=1, check=True)
        error: kvmlet.CellError | None = cell.error
        assert_type(cell.stdout if error is None else error.traceback, str)
        assert_type(py.box.run(["ls"], text=True).stdout, str)
        kept: kvmlet.InterpreterSnapshot = py.snapshot()
        assert_type(kept.fork(), list[kvmlet.Interpreter])


def sandboxes() -> None:
    with kvmlet.Sandbox(["server"]).until_ready(timeout=5).freeze() as snapshot:
        assert_type(snapshot, kvmlet.Snapshot)
        with snapshot.fork() as sandbox:
            assert_type(sandbox.request(b"x", timeout=1), bytes)
            assert_type(sandbox.call("atoi", b"42"), int)
            assert_type(sandbox.call("sin", 1.0, returns=float), float)
            output: kvmlet.Output = sandbox.output()
            assert_type(output.stdout, bytes)
            assert_type(sandbox.result, kvmlet.Result[bytes] | None)
            assert_type(sandbox.wait(timeout="5s"), kvmlet.Result[bytes])
            assert_type(sandbox.files.read_text("/tmp/a"), str)
        with snapshot.fork(stdout=print, stderr=kvmlet.INHERIT) as sandbox:
            assert_type(sandbox.freeze(), kvmlet.Snapshot)
        with kvmlet.Pool(snapshot, size=2) as pool:
            assert_type(pool.request(b"x"), Future[bytes])
            assert_type(pool.submit(length_of, b"x"), Future[int])
            stats: kvmlet.PoolStats = pool.stats()
            assert_type(stats.running, int)


def applications(snapshot: kvmlet.Snapshot) -> None:
    with kvmlet.wsgi(snapshot, size=2, queue=None, timeout="5s", max_body="1m") as app:
        assert_type(app, kvmlet.WsgiApp)
        assert_type(app.stats(), kvmlet.PoolStats)
    assert_type(kvmlet.asgi(snapshot, timeout=0.5), kvmlet.AsgiApp)


def servers() -> None:
    with kvmlet.serve(["server"], forks=2, timeout="5s") as server:
        assert_type(server, kvmlet.Server)
        assert_type(server.url + str(server.port), str)
        stats: kvmlet.ServerStats = server.stats()
        assert_type(stats.forks, int)
        server.reload(timeout=5)
        server.stop(grace=1)


async def async_servers() -> None:
    async with await aio.serve(["server"], isolate="connection") as server:
        assert_type(server, aio.Server)
        await server.reload()


def length_of(sandbox: kvmlet.Sandbox, data: bytes) -> int:
    return len(sandbox.request(data))


@kvmlet.register_result
@dataclasses.dataclass
class Point:
    x: int


@kvmlet.isolated(
    preload=["json"], limits=kvmlet.Limits(timeout=1), env={"A": "b"}, cwd=Path("/data")
)
def point(x: int) -> Point:
    return Point(x)


@kvmlet.isolated
def double(x: int) -> int:
    return 2 * x


def functions() -> None:
    assert_type(point(1), Point)
    assert_type(double(1), int)
    call: kvmlet.Call[int] = double.call(2)
    assert_type(call.value, int)
    assert_type(double.submit(1), Future[int])
    assert_type(double.map([1, 2]), Iterator[int])
    kept: kvmlet.Isolated[[int], int] = double
    kept.close()


async def coroutines() -> None:
    assert_type(await aio.run(["true"], write=["/data"]), kvmlet.Result[bytes])
    assert_type(await aio.run("ls", shell=True, text=True), kvmlet.Result[str])
    assert_type(await double.aio(1), int)
    async with aio.Box(limits=kvmlet.Limits(memory="64m")) as box:
        assert_type(box, aio.Box)
        assert_type(await box.run(["true"], text=True), kvmlet.Result[str])
        assert_type(await box.files.read("a"), bytes)
        assert_type(await box.files.list(), list[str])
        process = await box.spawn(["cat"], text=True, timeout=5)
        assert_type(process, aio.Process[str])
        if process.stdin is not None and process.stdout is not None:
            writer: aio.Writer[str] = process.stdin
            reader: aio.Reader[str] = process.stdout
            await writer.write("x")
            assert_type([line async for line in reader], list[str])
        snapshot: aio.BoxSnapshot = await box.snapshot()
        assert_type(await snapshot.fork(2), list[aio.Box])
        assert_type(await box.stats(), dict[str, int | float])
        files: aio.Files = box.files
        await box.wait_listening(80, timeout=5)
        async with await box.connect(80) as connection:
            assert_type(connection, aio.Connection)
            assert_type(await connection.recv(9), bytes)
        assert_type((await box.open_connection(80))[0], asyncio.StreamReader)
        await files.write("a", b"b")
        assert_type([entry[0] async for entry in files.walk()], list[str])
        watch: aio.Watch = await files.watch()
        assert_type([change.path async for change in watch], list[str])
        shell = await box.spawn(["bash"], terminal=kvmlet.TerminalSize())
        await shell.resize(kvmlet.TerminalSize(rows=30))
    py = await aio.Interpreter(preload=["json"])
    assert_type(await py.run("1"), kvmlet.Cell)
    assert_type((await py.box.run(["ls"])).stdout, bytes)
    kept: aio.InterpreterSnapshot = await py.snapshot()
    assert_type(await kept.fork(), list[aio.Interpreter])
    async with aio.Sandbox(["server"]) as sandbox:
        program_files: aio.ProgramFiles = sandbox.files
        assert_type(await program_files.read("a"), bytes)
        assert_type((await sandbox.wait()).stdout, bytes)
        frozen: aio.Snapshot = await (await sandbox.until_ready()).freeze()
        async with aio.Pool(frozen, size=2) as pool:
            assert_type(await pool.request(b"x"), bytes)
            assert_type(await pool.run(length_of, b"x"), int)


def errors() -> str:
    try:
        programs()
    except kvmlet.ExitError as error:
        return error.result.reason
    except kvmlet.SandboxEnded as error:
        return "" if error.result is None else error.result.reason
    except kvmlet.GuestError as error:
        return error.type_name + error.guest_traceback
    except (kvmlet.BoxFileError, kvmlet.ConnectionFailed) as error:
        return str(error.errno)
    except kvmlet.KvmletError as error:
        return error.message + error.remedy
    return ""


BUILTIN: dict[type[kvmlet.KvmletError], type[Exception]] = {
    kvmlet.BoxFileExists: FileExistsError,
    kvmlet.BoxFileNotFound: FileNotFoundError,
    kvmlet.BoxIsADirectory: IsADirectoryError,
    kvmlet.BoxNotADirectory: NotADirectoryError,
    kvmlet.BoxPermissionDenied: PermissionError,
    kvmlet.ConnectionBroken: BrokenPipeError,
    kvmlet.ConnectionRefused: ConnectionRefusedError,
    kvmlet.ConnectionReset: ConnectionResetError,
    kvmlet.DeadlineExceeded: TimeoutError,
    kvmlet.PoolClosed: RuntimeError,
    kvmlet.ResultError: TypeError,
    kvmlet.UnknownSymbol: LookupError,
    kvmlet.UsageError: ValueError,
}
OTHERS: list[type[kvmlet.KvmletError]] = [
    kvmlet.BoxFull,
    kvmlet.BoxWasReset,
    kvmlet.CallLost,
    kvmlet.CannotSend,
    kvmlet.ConnectionsOpen,
    kvmlet.ForkedProcess,
    kvmlet.FrozenTooOften,
    kvmlet.HostError,
    kvmlet.InboxFull,
    kvmlet.InternalError,
    kvmlet.Interrupted,
    kvmlet.KvmUnavailable,
    kvmlet.LaunchError,
    kvmlet.MessageTooLong,
    kvmlet.NotAFork,
    kvmlet.NotListening,
    kvmlet.NotReady,
    kvmlet.PoolError,
    kvmlet.ProgramNotExecutable,
    kvmlet.ProgramNotFound,
    kvmlet.QueueFull,
    kvmlet.SandboxBusy,
    kvmlet.SandboxClosed,
    kvmlet.SandboxError,
    kvmlet.ServerNotStarted,
    kvmlet.StaleSnapshot,
    kvmlet.TooFewDescriptors,
    kvmlet.TooFewMappings,
]
