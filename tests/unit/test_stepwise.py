"""Sandbox and Snapshot: what they ask of the extension, and what they make of its answers."""

from __future__ import annotations

import ctypes
import os
import pathlib
import pickle
import threading
from typing import Any

import pytest

import kvmlet
from unit.fake import FakeNative, FakeSandbox, NativeError


@pytest.fixture
def sandbox(native: FakeNative) -> kvmlet.Sandbox:
    return kvmlet.Sandbox(["./server"])


def vm_of(sandbox: kvmlet.Sandbox) -> FakeSandbox:
    vm: Any = sandbox._vm
    assert isinstance(vm, FakeSandbox)
    return vm


def test_start(native: FakeNative, tmp_path: pathlib.Path) -> None:
    kvmlet.Sandbox(["a", b"b"], env={"A": "1"}, cwd=tmp_path, memory="64m", input="ü")
    arguments = native.started[0].arguments
    module = os.path.join(os.path.dirname(kvmlet.__file__), "guest", "python")
    environment = dict(arguments.pop("env"))
    assert environment[b"A"] == b"1"
    assert environment[b"PYTHONPATH"] == os.fsencode(os.path.realpath(module))
    assert arguments["policy"].readable == [environment[b"PYTHONPATH"]]
    assert arguments == {
        "argv": [b"a", b"b"],
        "policy": os.fsencode(tmp_path.resolve()),
        "input": "ü".encode(),
        "memory_bytes": 64 << 20,
        "disk": None,
        "processes_max": 256,
        "files_max": 1024,
        "output_limit_bytes": 16 << 20,
        "calls": "auto",
    }
    kvmlet.Sandbox(["a"], env={"PYTHONPATH": "/x"})
    search = dict(native.started[1].arguments["env"])[b"PYTHONPATH"]
    assert search == b"/x:" + environment[b"PYTHONPATH"]
    native.error = NativeError("not_found", "nothing: not found")
    with pytest.raises(kvmlet.ProgramNotFound):
        kvmlet.Sandbox(["nothing"])
    with pytest.raises(kvmlet.UsageError):
        kvmlet.Sandbox("ls -l")


def test_messages(sandbox: kvmlet.Sandbox) -> None:
    assert sandbox.until_ready("2s") is sandbox
    sandbox.send(bytearray(b"abc"))
    assert sandbox.recv(timeout=0.5) == b"cba"
    assert sandbox.request(memoryview(b"xy"), "100ms") == b"yx"
    assert sandbox.run_for("1ms") is sandbox
    assert vm_of(sandbox).asked == [
        ("until_ready", 2.0),
        ("recv", 0.5),
        ("recv", 0.1),
        ("run_for", 0.001),
    ]
    with pytest.raises(kvmlet.UsageError, match="encode it"):
        sandbox.send("text")  # type: ignore[arg-type]
    with pytest.raises(kvmlet.MessageTooLong):
        sandbox.send(bytes(5000))
    with pytest.raises(kvmlet.UsageError, match="timeout"):
        sandbox.recv(timeout=0)


def test_call_arguments(sandbox: kvmlet.Sandbox) -> None:
    vm = vm_of(sandbox)
    both, view = bytearray(b"in"), bytearray(b"view")
    vm.answer = (7, [b"ou", b"VIEW"])
    assert sandbox.call("f", 1, -1, True, 2.5, b"x", None, both, memoryview(view)) == 7
    assert vm.asked == [("f", [1, -1, True, 2.5, b"x", 0, both, bytearray(b"view")], "int", None)]
    assert both == b"ou"
    assert view == b"VIEW"
    for argument in ("text", 1 << 64, -(1 << 63) - 1, [1], 1j, memoryview(bytearray(4))[::2]):
        with pytest.raises(kvmlet.UsageError, match="argument 2"):
            sandbox.call("f", 0, argument)  # type: ignore[arg-type]
    for name in ("", "a\0b", b"f", None):
        with pytest.raises(kvmlet.UsageError):
            sandbox.call(name)  # type: ignore[arg-type]
    assert len(vm.asked) == 1


@pytest.mark.parametrize(
    ("returns", "kind", "given", "value"),
    [
        (int, "int", -5, -5),
        (float, "float", 0.5, 0.5),
        (bytes, "bytes", b"text", b"text"),
        (None, "none", None, None),
        (ctypes.c_int, "int", 0xFFFF_FFFF, -1),
        (ctypes.c_int, "int", 0x7FFF_0000_0000_0001, 1),
        (ctypes.c_uint8, "int", -1, 255),
        (ctypes.c_bool, "int", 0x100, False),
        (ctypes.c_uint64, "int", -1, (1 << 64) - 1),
        (ctypes.c_long, "int", -1, -1),
    ],
)
def test_call_returns(
    sandbox: kvmlet.Sandbox, returns: Any, kind: str, given: object, value: object
) -> None:
    vm = vm_of(sandbox)
    vm.answer = (given, [])
    assert sandbox.call("f", returns=returns, timeout="1s") == value
    assert vm.asked == [("f", [], kind, 1.0)]


@pytest.mark.parametrize("returns", ["int", str, ctypes.c_double, ctypes.c_char_p, 5])
def test_call_returns_nothing_else(sandbox: kvmlet.Sandbox, returns: Any) -> None:
    with pytest.raises(kvmlet.UsageError, match="returns"):
        sandbox.call("f", returns=returns)


def test_the_end(sandbox: kvmlet.Sandbox) -> None:
    assert repr(sandbox) == "<kvmlet.Sandbox ./server (open)>"
    with pytest.raises(kvmlet.SandboxEnded, match="status 3, its last error line: last words") as e:
        sandbox.request(b"end")
    assert e.value.result is not None
    assert e.value.result.exit_code == 3
    assert sandbox.result is e.value.result
    assert repr(sandbox) == "<kvmlet.Sandbox ./server (ended)>"
    with pytest.raises(kvmlet.SandboxEnded):
        sandbox.send(b"more")
    copy = pickle.loads(pickle.dumps(e.value))
    assert (str(copy), copy.result) == (str(e.value), e.value.result)


def test_forks(sandbox: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.NotAFork):
        sandbox.reset()
    snapshot = sandbox.freeze()
    assert sandbox.closed
    with pytest.raises(kvmlet.SandboxClosed):
        sandbox.recv()
    with snapshot.fork() as fork:
        with pytest.raises(kvmlet.SandboxEnded):
            fork.request(b"end")
        fork.reset()
        assert fork.result is None
        assert fork.request(b"ab") == b"ba"
        assert fork.generation == 1
    assert fork.closed
    fork.close()
    snapshot.prepare(3)
    with pytest.raises(kvmlet.UsageError):
        snapshot.prepare(-1)
    snapshot.close()
    snapshot.close()
    with pytest.raises(kvmlet.SandboxClosed):
        snapshot.fork()
    with pytest.raises(kvmlet.UsageError, match="freeze"):
        kvmlet.Snapshot()


def test_time_and_interruption(sandbox: kvmlet.Sandbox) -> None:
    with pytest.raises(kvmlet.DeadlineExceeded) as caught:
        sandbox.request(b"hang", timeout=0.01)
    assert isinstance(caught.value, TimeoutError)
    assert "\n" not in str(caught.value)
    thread = threading.Timer(0.02, sandbox.interrupt)
    thread.start()
    with pytest.raises(kvmlet.Interrupted):
        sandbox.request(b"hang", timeout=50)
    thread.join()
    with pytest.raises(kvmlet.Interrupted):
        sandbox.recv()


def test_one_thread_at_a_time(sandbox: kvmlet.Sandbox) -> None:
    caught: list[BaseException] = []
    began = threading.Event()

    def work() -> None:
        began.set()
        try:
            sandbox.request(b"hang")
        except kvmlet.KvmletError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    began.wait()
    while not vm_of(sandbox).asked:
        pass
    for use in (sandbox.recv, sandbox.close, sandbox.stats, lambda: sandbox.send(b"")):
        with pytest.raises(kvmlet.SandboxBusy, match="fork of its own"):
            use()
    sandbox.interrupt()
    thread.join()
    assert [type(error) for error in caught] == [kvmlet.Interrupted]
    sandbox.close()


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("not_ready", kvmlet.NotReady),
        ("not_a_fork", kvmlet.NotAFork),
        ("stale", kvmlet.StaleSnapshot),
        ("frozen_too_often", kvmlet.FrozenTooOften),
        ("inbox_full", kvmlet.InboxFull),
        ("call_lost", kvmlet.CallLost),
        ("closed", kvmlet.SandboxClosed),
        ("forked", kvmlet.ForkedProcess),
        ("busy", kvmlet.SandboxBusy),
        ("timeout", kvmlet.DeadlineExceeded),
        ("interrupted", kvmlet.Interrupted),
        ("unknown_symbol", kvmlet.UnknownSymbol),
        ("message_too_long", kvmlet.MessageTooLong),
        ("descriptors", kvmlet.TooFewDescriptors),
        ("mappings", kvmlet.TooFewMappings),
        ("ended", kvmlet.SandboxEnded),
    ],
)
def test_errors(sandbox: kvmlet.Sandbox, kind: str, cls: type[kvmlet.KvmletError]) -> None:
    vm_of(sandbox).fail = NativeError(kind, "it went wrong")
    with pytest.raises(kvmlet.KvmletError) as caught:
        sandbox.call("f")
    error = caught.value
    assert type(error) is cls
    assert str(error).startswith("it went wrong")
    # Of what is too long, the extension's message itself says what to do.
    assert bool(error.remedy) == (kind != "message_too_long")
    assert "\n" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_in_a_child(sandbox: kvmlet.Sandbox) -> None:
    """os.fork() gives up in the child what only the parent can use."""
    snapshot = kvmlet.Sandbox(["x"]).freeze()
    pool = kvmlet.Pool(snapshot, 1)
    assert pool.request(b"ab").result() == b"ba"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert sandbox.closed
            assert snapshot.closed
            for use in (sandbox.recv, snapshot.fork):
                with pytest.raises(kvmlet.SandboxClosed):
                    use()
            with pytest.raises(kvmlet.ForkedProcess, match="parent"):
                pool.request(b"ab")
            pool.shutdown()
            assert kvmlet.Sandbox(["x"]).request(b"ab") == b"ba"
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert not sandbox.closed
    assert pool.request(b"ab").result() == b"ba"
    pool.shutdown()


def test_include_directory() -> None:
    assert kvmlet.get_include().endswith("/kvmlet/guest/include")


def test_a_quoted_line_is_short_and_printable() -> None:
    result = kvmlet.Result(
        stdout=b"", stderr=b"\x1b[2J" + b"x" * 9000, exit_code=1, signal=None, reason="exited"
    )
    with pytest.raises(kvmlet.ExitError) as raised:
        result.check()
    text = str(raised.value)
    assert len(text) < 300
    assert text.isprintable()
