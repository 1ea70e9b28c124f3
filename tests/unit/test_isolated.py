"""isolated: both of its sides, with the runner in this process in place of a VM."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import decimal
import importlib
import io
import json
import math
import os
import pickle
import sys
import time
import types
from typing import TYPE_CHECKING, Any

import kvmlet_runner
import pytest

import kvmlet
from kvmlet._isolated import interpreter
from kvmlet._isolated.call import value_of
from kvmlet._isolated.codec import type_name
from kvmlet._isolated.exceptions import error_type
from kvmlet._isolated.writer import encode
from unit.fake import FakeNative, FakeSandbox, FakeSnapshot

if TYPE_CHECKING:
    from collections.abc import Iterator


class Guest(FakeSandbox):
    """Answers as the runner does."""

    def recv(self, timeout_s: float | None) -> bytes:
        with self.use():
            message = self.inbox.pop(0)
            path = list(sys.path)
            try:
                work = kvmlet_runner._warm if self.origin is None else kvmlet_runner._call
                return b"".join(kvmlet_runner._answer(work, message))
            finally:
                sys.path[:] = path

    def freeze(self, connections: str = "refuse") -> FakeSnapshot:
        frozen = super().freeze(connections)
        fork = frozen.fork

        def make() -> FakeSandbox:
            sandbox = fork()
            sandbox.__class__ = Guest
            return sandbox

        frozen.fork = make  # type: ignore[method-assign]
        return frozen


@pytest.fixture(autouse=True)
def guest(native: FakeNative, monkeypatch: pytest.MonkeyPatch) -> FakeNative:
    def start(argv: list[bytes], **arguments: Any) -> FakeSandbox:
        native.started.append(Guest(argv=argv, **arguments))
        return native.started[-1]

    native.Sandbox.start = start
    monkeypatch.setattr(interpreter, "_warms", {})
    return native


@kvmlet.isolated
def add(x: int, y: int = 2) -> int:
    """The sum."""
    return x + y


@kvmlet.isolated(preload=["json"], timeout="1m", memory="64m", size=1, calls="exit")
def parse(text: str) -> object:
    return json.loads(text)


@kvmlet.isolated
def fail(error: BaseException) -> None:
    raise error


@kvmlet.isolated
def chained(error: BaseException, explicit: bool) -> None:
    try:
        raise error
    except BaseException as caught:
        if explicit:
            raise ValueError("outer") from caught
        raise ValueError("outer")  # noqa: B904


@kvmlet.isolated
def give(value: str) -> object:
    return eval(value)


@kvmlet.isolated
def factorial(number: int) -> int:
    return 1 if number == 0 else number * factorial.__wrapped__(number - 1)


@kvmlet.register_result
@dataclasses.dataclass
class Answer:
    text: str
    price: decimal.Decimal

    @kvmlet.isolated
    def doubled(self) -> Answer:
        return Answer(self.text * 2, self.price * 2)


def test_calls(guest: FakeNative) -> None:
    assert add(1) == 3
    assert add(1, y=5) == 6
    assert add.submit(2).result() == 4
    assert list(add.map([1, 2], [3, 4])) == [4, 6]
    assert factorial(5) == 120
    assert len(guest.started) == 1  # they share a module, and so an interpreter
    assert parse('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    first, second = guest.started
    assert first.arguments["memory_bytes"] == 512 << 20
    assert second.arguments["memory_bytes"] == 64 << 20
    assert [each.arguments["calls"] for each in guest.started] == ["auto", "exit"]
    assert add.__doc__ == "The sum."
    assert add.__wrapped__(1) == 3


def test_what_the_guest_is_given(guest: FakeNative) -> None:
    add.warm_up()
    (started,) = guest.started
    argv = started.arguments["argv"]
    assert argv[0] == os.fsencode(sys.executable)
    assert argv[1] == b"-I"
    readable = started.arguments["policy"].readable
    for needed in (sys.prefix, sys.base_prefix, os.path.dirname(kvmlet.__file__)):
        real = os.fsencode(os.path.realpath(needed))
        assert any((real + b"/").startswith(directory + b"/") for directory in readable)
    assert b"/" not in readable


def test_methods() -> None:
    answer = Answer("ab", decimal.Decimal("1.50"))
    assert answer.doubled() == Answer("abab", decimal.Decimal("3.00"))


def test_functions_without_a_name() -> None:
    offset = 10
    assert kvmlet.isolated(lambda x: x + offset)(1) == 11

    @kvmlet.isolated
    def inner(x: int) -> int:
        return x * offset if x < 5 else inner.__wrapped__(x - 1)

    assert inner(6) == 40
    with pytest.raises(kvmlet.CannotSend, match="cannot be pickled") as caught:
        kvmlet.isolated(lambda frame: offset)(sys._getframe())
    assert caught.value.remedy


def test_functions_of_the_main_program(monkeypatch: pytest.MonkeyPatch) -> None:
    main = types.ModuleType("__main__")
    code = """
import dataclasses, kvmlet
@kvmlet.register_result
@dataclasses.dataclass
class Box:
    value: int
@kvmlet.isolated
def double(box):
    return Box(box.value * 2)
"""
    monkeypatch.setitem(sys.modules, "__main__", main)
    exec(code, main.__dict__)
    assert main.double(main.Box(3)) == main.Box(6)
    # A function that is found by name, with an argument that is not.
    with pytest.raises(TypeError, match="'Box' and 'int'"):
        add(main.Box(3))


def test_inside_a_guest_it_is_the_function_itself(
    guest: FakeNative, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvmlet_runner, "serving", True)
    assert add(1) == 3
    assert guest.started == []


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        KeyError("key"),
        OSError(2, "No such file", "/x"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ZeroDivisionError(),
        RecursionError("deep"),
        AssertionError(1, "two"),
        Exception("plain"),
    ],
)
def test_builtin_exceptions(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        fail(error)
    raised: Any = caught.value
    assert isinstance(raised, kvmlet.GuestError)
    assert raised.args == error.args
    assert str(raised) == str(error)
    assert raised.type_name == type(error).__name__
    assert "raise error" in raised.guest_traceback
    assert "kvmlet_runner" not in raised.guest_traceback
    assert raised.__notes__[0].startswith("In the guest:\nTraceback")
    for name in ("errno", "filename", "encoding", "object", "value"):
        assert getattr(raised, name, None) == getattr(error, name, None)
    copy = pickle.loads(pickle.dumps(raised))
    assert isinstance(copy, type(error))
    assert (str(copy), copy.args, copy.__notes__) == (str(raised), raised.args, raised.__notes__)


def read(answer: bytes) -> Any:
    return value_of(answer, 1 << 20, lambda: None)


STEERING = (BaseExceptionGroup, StopIteration, StopAsyncIteration)
"""Exceptions that a guest's never are, though they are Exceptions."""


class OwnError(ValueError):
    pass


class OwnStop(StopIteration):
    pass


class OwnInterrupt(KeyboardInterrupt):
    pass


HOSTILE = [
    StopIteration(5),
    StopAsyncIteration(5),
    GeneratorExit(),
    KeyboardInterrupt(),
    SystemExit(3),
    asyncio.CancelledError(),
    concurrent.futures.CancelledError(),
    concurrent.futures.InvalidStateError(),
    BaseException("base"),
    BaseExceptionGroup("several", [KeyboardInterrupt()]),
    ExceptionGroup("several", [StopIteration()]),
    OwnStop(),
    OwnInterrupt(),
]


@pytest.mark.parametrize("error", HOSTILE, ids=lambda error: type(error).__name__)
def test_what_a_guest_raises_ends_no_loop_or_task(error: BaseException) -> None:
    raised: list[BaseException] = []

    def items() -> Iterator[int]:
        for number in range(3):
            try:
                fail(error)
            except kvmlet.GuestError as caught:
                raised.append(caught)
            yield number

    class Items:
        def __iter__(self) -> Items:
            return self

        def __next__(self) -> None:
            fail(error)

    @contextlib.contextmanager
    def manager() -> Iterator[None]:
        yield
        fail(error)

    async def task() -> str:
        # In a task of its own, awaited from another, and as an executor's future.
        for waited in (
            asyncio.wrap_future(fail.submit(error)),
            asyncio.to_thread(fail, error),
            asyncio.create_task(nested()),
        ):
            with pytest.raises(kvmlet.GuestError) as caught:
                await waited
            raised.append(caught.value)
        return "went on"

    async def nested() -> None:
        fail(error)

    assert list(items()) == [0, 1, 2]
    with pytest.raises(kvmlet.GuestError) as caught:
        for _ in Items():
            pass
    raised.append(caught.value)
    with pytest.raises(kvmlet.GuestError) as caught:
        next(iter(Items()), None)
    raised.append(caught.value)
    suppressed = (StopIteration, StopAsyncIteration, asyncio.CancelledError, GeneratorExit)
    with (
        pytest.raises(kvmlet.GuestError) as caught,
        contextlib.suppress(*suppressed, KeyboardInterrupt, SystemExit),
    ):
        fail(error)
    raised.append(caught.value)
    with pytest.raises(kvmlet.GuestError) as caught, manager():
        pass
    raised.append(caught.value)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        with pytest.raises(kvmlet.GuestError) as caught:
            executor.submit(fail, error).result()
        raised.append(caught.value)
        with pytest.raises(kvmlet.GuestError) as caught:
            list(executor.map(fail, [error]))
        raised.append(caught.value)
    assert asyncio.run(task()) == "went on"
    assert len(raised) == 12
    for each in raised:
        assert type(each) is kvmlet.GuestError
        assert each.type_name == type_name(type(error))
        assert str(each).startswith(each.type_name)
        assert each.__cause__ is None
    for cause in (error, None):
        with pytest.raises(ValueError, match="outer") as outer:
            chained(error, cause is not None)
        assert isinstance(outer.value, kvmlet.GuestError)
        assert outer.value.__cause__ is None
        assert outer.value.__context__ is None
        assert type(error).__name__ in outer.value.guest_traceback


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OwnError("own"), "unit.test_isolated.OwnError: own"),
        (SystemExit(3), "SystemExit: 3"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (ExceptionGroup("several", [ValueError()]), "ExceptionGroup: several (1 sub-exception)"),
        (json.JSONDecodeError("x", "doc", 0), "json.decoder.JSONDecodeError: x: line 1"),
    ],
)
def test_other_exceptions(error: BaseException, text: str) -> None:
    with pytest.raises(kvmlet.GuestError) as caught:
        fail(error)
    assert type(caught.value) is kvmlet.GuestError
    assert str(caught.value).startswith(text)


def test_every_builtin_exception_has_its_twin() -> None:
    import builtins

    for name, cls in vars(builtins).items():
        if isinstance(cls, type) and issubclass(cls, BaseException):
            twin = error_type(cls.__name__)
            own = issubclass(cls, Exception) and not issubclass(cls, STEERING)
            assert issubclass(twin, cls) or not own, name
            assert own or twin is kvmlet.GuestError
            assert twin is error_type(cls.__name__)
    for name in ("int", "open", "__import__", "nothing", "GuestError", "a b", ""):
        assert error_type(name) is kvmlet.GuestError


def test_hostile_exceptions() -> None:
    """A guest's words on its exceptions neither break the host nor move its cursor."""
    arguments: Any
    content: tuple[Any, ...]
    for arguments in (
        None,
        [1],
        {},
        (1, 2, 3),
        ([],),
        ("x", ("f", 1, -5, "t", 1, 10**9)),
        (1.5,) * 9,
    ):
        for name in (
            "SyntaxError",
            "OSError",
            "UnicodeDecodeError",
            "KeyError",
            "ImportError",
            "\n",
        ):
            content = ("error", name, "te\x1b[2Jxt", "tra\x1bce\n\tline\r", arguments)
            with pytest.raises(kvmlet.GuestError) as caught:
                read(encode(content))
            assert "te\\x1b[2Jxt" in str(caught.value)
            assert caught.value.guest_traceback == "tra\\x1bce\n\tline\\x0d"
    with pytest.raises(SyntaxError) as syntax:
        read(encode(("error", "SyntaxError", "x", "", ("x", ("f", 1, 1, "t", 1, 10**9)))))
    assert syntax.value.args == ("x",)


@pytest.mark.parametrize(
    "content", [None, (), ("ok",), ("ok", 1, 2), ("error",), ("error", 1, 2, 3, 4), ("x", 1), "ok"]
)
def test_answers_without_sense(content: object) -> None:
    with pytest.raises(kvmlet.ResultError, match="makes no sense"):
        read(encode(content))
    with pytest.raises(kvmlet.ResultError, match="makes no sense"):
        read(pickle.dumps(content))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("object()", "object"),
        ("[1, {2: memoryview(b'')}]", "memoryview"),
        ("lambda: 1", "function"),
        ("print", "builtin_function_or_method"),
        ("__import__('re').compile('x')", "re.Pattern"),
    ],
)
def test_results_that_are_no_data(value: str, name: str) -> None:
    with pytest.raises(kvmlet.ResultError, match=name) as caught:
        give(value)
    assert isinstance(caught.value, TypeError)
    assert "register_result" in caught.value.remedy
    assert "\n" not in str(caught.value)


@dataclasses.dataclass
class Unknown:
    x: int


def test_a_dataclass_that_is_not_registered() -> None:
    with pytest.raises(kvmlet.ResultError, match=r"unit.test_isolated.Unknown, which is not regis"):
        give(f"__import__('sys').modules[{__name__!r}].Unknown(1)")


def test_reading_an_answer_is_part_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the guest sends is read within the call's time and memory, or not at all."""
    lists = encode(("ok", []))[:-4] + (1 << 20).to_bytes(4, "little") + encode([]) * (1 << 20)
    monkeypatch.setattr(Guest, "recv", lambda _self, _timeout_s: lists)
    monkeypatch.setattr(interpreter, "_warm_snapshot", lambda *_: kvmlet.Sandbox(["x"]).freeze())

    @kvmlet.isolated(size=1)
    def anything() -> object: ...

    monkeypatch.setattr(Guest, "memory_left", lambda _self: 8 << 20)
    with pytest.raises(kvmlet.ResultError, match=r"more memory.*isolated\(memory"):
        anything()
    monkeypatch.setattr(Guest, "memory_left", lambda _self: 1 << 30)
    anything._timeout_s = 0.1
    start = time.monotonic()
    with pytest.raises(kvmlet.DeadlineExceeded, match=r"isolated\(timeout"):
        anything()
    assert time.monotonic() - start < 3
    # A cancelled one leaves its thread to the next.
    anything._timeout_s = 60
    future = anything.submit()
    time.sleep(0.1)
    assert future.cancel()
    monkeypatch.setattr(Guest, "recv", lambda _self, _timeout_s: encode(("ok", 5)))
    start = time.monotonic()
    assert anything() == 5
    assert time.monotonic() - start < 3


def test_the_time_and_the_end(guest: FakeNative, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guest, "recv", FakeSandbox.recv)

    @kvmlet.isolated
    def slow() -> None:
        pass

    monkeypatch.setattr(interpreter, "_warm_snapshot", lambda *_: kvmlet.Sandbox(["x"]).freeze())
    slow._timeout_s = 0.01
    for message, cls in ((b"hang", kvmlet.DeadlineExceeded), (b"end", kvmlet.SandboxEnded)):
        monkeypatch.setattr(kvmlet.Isolated, "_message", lambda *_, message=message: [message])
        with pytest.raises(cls):
            slow()
    monkeypatch.setattr(kvmlet.Isolated, "_message", lambda *_: [b"hang"])
    with pytest.raises(kvmlet.DeadlineExceeded, match=r"isolated\(timeout"):
        slow()


def test_printing(capsys: pytest.CaptureFixture[str], guest: FakeNative) -> None:
    add.warm_up()
    warm: Any = next(iter(interpreter._warms.values()))
    snapshot: Any = warm.pool()._core.snapshot._vm
    fork = snapshot.fork

    def noisy() -> FakeSandbox:
        sandbox: FakeSandbox = fork()
        sandbox.written = ("grüße\n".encode(), b"\xff\n")
        return sandbox

    snapshot.fork = noisy
    assert add(1) == 3
    assert capsys.readouterr() == ("grüße\n", "\\xff\n")


def test_a_call_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    add.warm_up()
    warm: Any = next(iter(interpreter._warms.values()))
    snapshot: Any = warm.pool()._core.snapshot._vm
    fork = snapshot.fork

    def noisy() -> FakeSandbox:
        sandbox: FakeSandbox = fork()
        sandbox.written = ("grüße\n".encode(), b"\xff\n")
        sandbox.refused = [("open /etc/shadow", "EACCES", "hidden", 3)]
        return sandbox

    snapshot.fork = noisy
    call = add.call(1, y=5)
    assert (call.value, call.stdout, call.stderr) == (6, "grüße\n", "\\xff\n")
    assert call.denials == [kvmlet.Denial("open /etc/shadow", "EACCES", "hidden", 3)]
    assert capsys.readouterr() == ("", "")
    again = add.call(1)
    assert (again.value, again.stdout, again.denials) == (3, "", [])
    with pytest.raises(TypeError):
        add.call("a")  # type: ignore[arg-type]


def test_a_package_that_each_call_imports_is_told_once(
    monkeypatch: pytest.MonkeyPatch, guest: FakeNative
) -> None:
    @kvmlet.isolated(size=1)
    def parse(text: str) -> object:
        for name in [name for name in sys.modules if name.partition(".")[0] == "wsgiref"]:
            del sys.modules[name]  # as in a clean fork
        importlib.import_module("wsgiref.validate")
        return text

    monkeypatch.setattr(kvmlet_runner, "_MANY_MODULES", 2)
    with pytest.warns(RuntimeWarning, match=r"wsgiref in every call; @isolated\(preload=") as told:
        assert [parse("a"), parse("b"), *parse.map("cd"), parse.call("e").value] == list("abcde")
    assert [each.filename for each in told] == [__file__]
    monkeypatch.undo()


@pytest.mark.parametrize("is_terminal", [True, False])
def test_control_characters_reach_no_terminal(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return is_terminal

    add.warm_up()
    warm: Any = next(iter(interpreter._warms.values()))
    snapshot: Any = warm.pool()._core.snapshot._vm
    fork = snapshot.fork

    def noisy() -> FakeSandbox:
        sandbox: FakeSandbox = fork()
        sandbox.written = ("grüße\n\x1b[2Jgone\r".encode(), b"")
        return sandbox

    snapshot.fork = noisy
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    assert add(1) == 3
    shown = "\\x1b[2Jgone\\x0d" if is_terminal else "\x1b[2Jgone\r"
    assert stream.getvalue() == f"grüße\n{shown}"


def test_close(guest: FakeNative) -> None:
    @kvmlet.isolated(size=1)
    def double(x: int) -> int:
        return 2 * x

    double.close()
    assert double(1) == 2
    (warm,) = interpreter._warms.values()
    pool = warm.pool()
    double.close()
    double.close()
    with pytest.raises(kvmlet.PoolClosed):
        pool.request(b"")
    assert double(2) == 4
    assert len(guest.started) == 2


def test_a_module_that_cannot_be_imported() -> None:
    @kvmlet.isolated(preload=["no_such_module"])
    def f() -> None:
        pass

    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught:
            f()
        assert isinstance(caught.value, kvmlet.GuestError)


def test_bad_decorations() -> None:
    async def coroutine() -> None:
        pass

    def generator() -> Any:
        yield 1

    for wrong in (coroutine, generator, 5, int, staticmethod(math.sqrt)):
        with pytest.raises(kvmlet.UsageError):
            kvmlet.isolated(wrong)  # type: ignore[arg-type]
    for arguments in (
        {"preload": "json"},
        {"preload": ["import os"]},
        {"preload": [5]},
        {"timeout": 0},
        {"memory": "lots"},
        {"size": 0},
        {"calls": "fast"},
    ):
        with pytest.raises(kvmlet.UsageError):
            kvmlet.isolated(**arguments)
