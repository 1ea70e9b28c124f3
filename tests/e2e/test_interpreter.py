"""Sessions of Python in a box."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

import kvmlet
from e2e.oracle import HANG_S, HW, LONG, ROOT

pytestmark = pytest.mark.usefixtures("vm")

# The descriptor that the guest's side answers by.
ANSWERS = 201


@pytest.fixture
def py() -> Iterator[kvmlet.Interpreter]:
    with kvmlet.Interpreter() as made:
        yield made


def test_names_last(py: kvmlet.Interpreter) -> None:
    assert py.run("x = 40").value is None
    cell = py.run("x + 2")
    assert (cell.value, cell.is_data, cell.ok, cell.reason) == (42, True, True, "ok")
    assert py.run("_").value == 42
    assert py.run("def f(n):\n    return [n] * 2\nf('a')").value == ["a", "a"]
    assert py.run("__name__").value == "__main__"
    assert py.run("class A: pass\nimport pickle\ntype(pickle.loads(pickle.dumps(A()))) is A").value
    assert py.run("").value is None
    assert py.run("y['a'] + z", {"y": {"a": 1}, "z": 2}).value == 3
    shown = py.run("len")
    assert (shown.value, shown.is_data) == ("<built-in function len>", False)
    assert repr(cell) == "Cell(reason='ok', value=42)"


def test_output(py: kvmlet.Interpreter) -> None:
    code = """
        import os, subprocess, sys
        print("out")
        print("err", file=sys.stderr)
        os.write(1, b"raw\\n")
        subprocess.run(["echo", "sub"])
        print("no end", end="")
    """
    cell = py.run(textwrap.dedent(code))
    assert (cell.stdout, cell.stderr) == ("out\nraw\nsub\nno end", "err\n")
    assert py.run("1").stdout == ""
    lines: list[str] = []
    assert py.run("for i in range(3): print(i)", stdout=lines.append).stdout == ""
    assert lines == ["0\n", "1\n", "2\n"]
    big = py.run("print('x' * (20 << 20)); 7")
    assert (len(big.stdout), big.truncated, big.value) == (16 << 20, True, 7)
    assert py.run("import sys; sys.stdin.read()").value == ""


def test_errors_are_data(py: kvmlet.Interpreter) -> None:
    cell = py.run("def f():\n    return 1 / 0\nf()")
    assert (cell.reason, cell.ok, cell.value) == ("error", False, None)
    assert cell.error is not None
    assert (cell.error.type, cell.error.message) == ("ZeroDivisionError", "division by zero")
    # Nothing of ours, and the source of the cell.
    assert 'File "<cell 1>", line 3' in cell.error.traceback
    assert "return 1 / 0" in cell.error.traceback
    assert "kvmlet_session" not in cell.error.traceback
    with pytest.raises(ZeroDivisionError) as raised:
        cell.check()
    assert isinstance(raised.value, kvmlet.GuestError)
    wrong = py.run("1 +")
    assert wrong.error is not None
    assert wrong.error.type == "SyntaxError"
    ended = py.run("import sys; sys.exit(3)")
    assert ended.error is not None
    assert ended.error.type == "SystemExit"
    ansi = py.run("raise ValueError('\\x1b[2J')")
    assert ansi.error is not None
    assert "\x1b" not in ansi.error.message + ansi.error.traceback
    assert py.run("1", check=True).value == 1


def test_a_runaway_cell_is_interrupted_and_the_session_goes_on(py: kvmlet.Interpreter) -> None:
    py.run("x = 1")
    for code in (
        "while True: pass",
        "import time; time.sleep(1000)",
        "repr_ = [].sort\nwhile 1: 1",
    ):
        start = time.monotonic()
        cell = py.run(code, timeout=0.2, grace=HANG_S)
        assert (cell.reason, cell.error and cell.error.type) == ("timeout", "KeyboardInterrupt")
        assert time.monotonic() - start < 10
        with pytest.raises(kvmlet.DeadlineExceeded):
            cell.check()
    # A value that never shows itself.
    cell = py.run("class A:\n def __repr__(self):\n  while 1: pass\nA()", timeout=0.2, grace=HANG_S)
    assert cell.reason == "timeout"
    threading.Timer(0.2, py.interrupt).start()
    cell = py.run("while True: pass", timeout=HANG_S)
    assert (cell.reason, cell.error and cell.error.type) == ("error", "KeyboardInterrupt")
    assert py.run("x").value == 1


def test_cells_await(py: kvmlet.Interpreter) -> None:
    code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0.01)\n    return 10 / x\n"
    assert py.run(code + "y = await f(2)\nawait f(5)").value == 2
    assert py.run("y").value == 5
    # A task goes on while later cells await, and asyncio.run works beside them.
    py.run("task = asyncio.get_event_loop().create_task(f(10))\nawait asyncio.sleep(0)")
    assert py.run("asyncio.run(f(4))").value == 2.5
    assert py.run("await task").value == 1
    cell = py.run("1\nawait f(0)")
    assert cell.error is not None
    assert cell.error.type == "ZeroDivisionError"
    assert cell.error.traceback.splitlines()[1].strip() == 'File "<cell 6>", line 2, in <module>'
    assert "asyncio" not in cell.error.traceback
    code = "try:\n    await asyncio.sleep(1000)\nfinally:\n    print('in order')"
    cell = py.run(code, timeout=0.3, grace=HANG_S)
    assert (cell.reason, cell.stdout) == ("timeout", "in order\n")
    assert py.run("await f(1)").value == 10


def test_what_does_not_give_up_ends_with_its_session(py: kvmlet.Interpreter) -> None:
    py.run("x = 1")
    py.snapshot().close()
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
    assert py.run(code, timeout=0.2, grace=0.2).reason == "timeout"
    with pytest.raises(kvmlet.SandboxEnded):
        py.run("x")
    py.reset()
    assert py.run("x").value == 1


def test_forks_snapshots_and_resets(py: kvmlet.Interpreter) -> None:
    py.run("import random; x = 1; open('f', 'w').write('a')")
    left, right = py.fork(2)
    with left, right:
        left.run("x = 2; open('f', 'w').write('b')")
        assert [each.run("x").value for each in (left, right, py)] == [2, 1, 1]
        assert [each.files.read("f") for each in (left, right, py)] == [b"b", b"a", b"a"]
        draws = {each.run("random.random()").value for each in (left, right, py)}
        assert len(draws) == 3
        left.reset()
        assert left.run("x").value == 1
    py.run("x = 3")
    with py.snapshot() as snapshot:
        py.run("x = 4")
        [fork] = snapshot.fork()
        with fork:
            assert fork.run("x").value == 3
    py.reset()
    assert py.run("x").value == 3


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "exited"),
        ("import os; os.kill(os.getpid(), 9)", "signal"),
        ("import ctypes; ctypes.string_at(0)", "signal"),
    ],
)
def test_the_end_of_the_process(py: kvmlet.Interpreter, code: str, reason: str) -> None:
    cell = py.run(code)
    assert (cell.reason, cell.ok) == (reason, False)
    with pytest.raises(kvmlet.SandboxEnded):
        cell.check()
    with pytest.raises(kvmlet.SandboxEnded):
        py.run("1")
    py.reset()
    assert py.run("1").value == 1


def test_sessions_that_ended_leave_later_ones_whole() -> None:
    """Each took the vDSO out of its address space, which a reset puts back for the next one."""
    for _ in range(4):
        with kvmlet.Interpreter() as ended:
            assert ended.run("import os; os._exit(3)").reason == "exited"
    with kvmlet.Interpreter() as py:
        py.run("x = 1")
        with py.fork()[0] as fork:
            assert fork.run("import time\n(x, time.time() > 0)").value == (1, True)
        assert py.run("import time\n(x, time.time() > 0)").value == (1, True)
        py.reset()
        assert py.run("x").value == 1


def test_a_cell_that_forks_answers_once(py: kvmlet.Interpreter) -> None:
    code = "import os\npid = os.fork()\nprint('child' if pid == 0 else 'parent')\nif pid: os.wait()"
    assert sorted(py.run(code).stdout.split()) == ["child", "parent"]
    assert py.run("1").value == 1


def frame(content: bytes) -> str:
    return f"import os; os.write({ANSWERS}, {len(content).to_bytes(4, 'little') + content!r})"


@pytest.mark.parametrize(
    "code",
    [
        frame(b""),
        frame(b"N"),
        frame(b"l" * 1000),
        frame(b"t\x06\0\0\0" + b"l\x01\0\0\0" * 500),
        f"import os; os.write({ANSWERS}, b'\\xff' * 4)",
        f"import os\nfor _ in range(100): os.write({ANSWERS}, b'\\x01\\0\\0\\0N')",
        f"import os; os.close({ANSWERS}); os.closerange(3, 1000)\nwhile True: pass",
        # A whole answer to the wrong request.
        "from kvmlet._isolated.writer import encode; import os\n"
        "a = encode((999, None, '', None, [], None))\n"
        f"os.write({ANSWERS}, len(a).to_bytes(4, 'little') + a)",
        # Fields of other kinds.
        "from kvmlet._isolated.writer import encode; import os\n"
        "a = encode((1, 5, '', None, [], None))\n"
        f"os.write({ANSWERS}, len(a).to_bytes(4, 'little') + a)",
        "from kvmlet._isolated.writer import encode; import os\n"
        "a = encode((1, None, '', None, [b'no png'], None))\n"
        f"os.write({ANSWERS}, len(a).to_bytes(4, 'little') + a)",
        "from kvmlet._isolated.writer import encode; import os\n"
        "a = encode((1, b'N', '', None, [], (1, 2, 3)))\n"
        f"os.write({ANSWERS}, len(a).to_bytes(4, 'little') + a)",
    ],
)
def test_answers_that_make_no_sense(py: kvmlet.Interpreter, code: str) -> None:
    start = time.monotonic()
    with pytest.raises(kvmlet.ResultError):
        py.run(code)
    assert time.monotonic() - start < HANG_S
    with pytest.raises(kvmlet.SandboxEnded):
        py.run("1")
    py.reset()
    assert py.run("1").value == 1


def test_values_of_classes_of_the_session(py: kvmlet.Interpreter) -> None:
    code = """
        import collections, dataclasses, enum
        P = collections.namedtuple("P", "x")
        E = enum.Enum("E", "A")
        D = dataclasses.make_dataclass("D", ["x"])
        {expression}
    """
    for expression, shown in (
        ("P(1)", "P(x=1)"),
        ("[E.A]", "[<E.A: 1>]"),
        ("D(2)", "D(x=2)"),
    ):
        cell = py.run(textwrap.dedent(code).format(expression=expression))
        assert (cell.value, cell.is_data, cell.ok) == (shown, False, True)


def test_values_that_are_too_much(py: kvmlet.Interpreter) -> None:
    big = py.run("b'x' * (100 << 20)")
    assert not big.is_data
    assert "too many" in big.value
    deep = py.run("x = []\nfor _ in range(1000): x = [x]\nx")
    assert not deep.is_data
    assert py.run("1").value == 1


def test_rich_results(py: kvmlet.Interpreter) -> None:
    code = """
        class Table:
            def _repr_html_(self): return "<b>1</b>"
            def _repr_png_(self): return b"\\x89PNG\\r\\n\\x1a\\n..."
            def __repr__(self): return "Table"
        Table()
    """
    cell = py.run(textwrap.dedent(code))
    assert (cell.value, cell.html, cell.images) == (
        "Table",
        "<b>1</b>",
        [b"\x89PNG\r\n\x1a\n..."],
    )
    assert py.run("Table").html is None
    # As much of matplotlib as is asked for.
    code = """
        import sys, types
        class Figure:
            def savefig(self, file, format): file.write(b"\\x89PNG\\r\\n\\x1a\\nplot")
        plt = types.ModuleType("matplotlib.pyplot")
        open_figures = [1, 2]
        plt.get_fignums = lambda: open_figures
        plt.figure = lambda number: Figure()
        plt.close = lambda which: open_figures.clear()
        sys.modules["matplotlib.pyplot"] = plt
    """
    assert len(py.run(textwrap.dedent(code)).images) == 2
    assert py.run("1").images == []


def test_the_view(tmp_path: pathlib.Path) -> None:
    (tmp_path / "neighbour.py").write_text("name = 'n'")
    (tmp_path / ".env").write_text("secret")
    (tmp_path / "other.py").write_text("")
    sys.path.insert(0, str(tmp_path))
    try:
        with kvmlet.Interpreter(preload=["neighbour"]) as py:
            assert py.run("import neighbour; neighbour.name").value == "n"
            assert py.run(f"import os; os.listdir({str(tmp_path)!r})").value == ["neighbour.py"]
            assert py.run(f"os.path.exists({str(tmp_path / '.env')!r})").value is False
            assert py.run("os.getcwd(), os.environ['HOME'], os.listdir()").value == (
                "/work",
                "/work",
                [],
            )
            assert py.run(f"os.path.exists({str(ROOT / 'README.md')!r})").value is False
            py.files.write("mine.py", "a = 5")
            assert py.run("import mine; mine.a").value == 5
    finally:
        sys.path.remove(str(tmp_path))
    with kvmlet.Interpreter(env={"A": "b"}, read=[tmp_path]) as py:
        assert py.run("import os; os.environ['A']").value == "b"
        assert py.files.read(str(tmp_path / ".env")) == b"secret"


def test_wrong_uses(py: kvmlet.Interpreter) -> None:
    wrong: Any = 5
    with pytest.raises(kvmlet.UsageError):
        py.run(wrong)
    with pytest.raises(kvmlet.CannotSend):
        py.run("x", {"x": threading.Lock()})
    with pytest.raises(kvmlet.UsageError):
        kvmlet.Interpreter(preload="json")
    with pytest.raises(kvmlet.GuestError) as raised:
        kvmlet.Interpreter(preload=["no_such_module"])
    assert isinstance(raised.value, ModuleNotFoundError)
    runs = threading.Event()
    thread = threading.Thread(
        target=lambda: py.run("print(1)\nwhile True: pass", stdout=lambda _: runs.set())
    )
    thread.start()
    assert runs.wait(HANG_S)
    with pytest.raises(kvmlet.SandboxBusy):
        py.run("1")
    with pytest.raises(kvmlet.SandboxBusy):
        py.snapshot()
    py.interrupt()
    thread.join()
    pid = os.fork()
    if not pid:
        try:
            py.run("1")
        except kvmlet.ForkedProcess:
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7

    def fail(line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="hello"):
        py.run("print('hello')\nwhile True: pass", stdout=fail)
    assert py.run("1").value == 1
    py.close()
    py.close()
    assert py.closed
    with pytest.raises(kvmlet.SandboxClosed):
        py.run("1")


def test_a_raising_signal_handler_stops_the_cell() -> None:
    code = """
        import os, signal, threading, kvmlet
        with kvmlet.Interpreter() as py:
            py.run("x = 1")
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            try:
                py.run("while True: pass")
            except KeyboardInterrupt:
                print("stopped", py.run("x").value)
    """
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT / "python")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        timeout=HANG_S * 3,
        text=True,
    )
    assert done.stdout == "stopped 1\n"


@pytest.mark.skipif(not LONG, reason="repeated in full in make test-long")
def test_many_sessions_leak_nothing() -> None:
    def taken() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with kvmlet.Interpreter(preload=["json"]) as py:
        py.run("x = 1")
        for _ in range(3):
            for fork in py.fork(4):
                with fork:
                    assert fork.run("x").value == 1
        before = taken()
        for _ in range(50):
            forks = py.fork(4)
            for fork in forks:
                assert fork.run("x").value == 1
            for fork in forks:
                fork.close()
        assert taken()[0] <= before[0] + 8
        assert taken()[1] == before[1]


@pytest.mark.skipif(HW, reason="numpy's file takes minutes to load on the emulated machine")
@pytest.mark.skipif(not LONG, reason="repeated in full in make test-long")
def test_a_hundred_live_sessions_answer_and_share_their_start() -> None:
    words: dict[str, Any] = {"preload": ["numpy"], "memory": "256m"}
    live: list[kvmlet.Interpreter] = []
    with kvmlet.Interpreter(**words) as first:
        first.run("import numpy; numpy.ones(10).sum()", check=True)
        before = own_bytes()
        try:
            for number in range(100):
                live.append(kvmlet.Interpreter(**words))
                assert live[-1].run(f"import numpy; x = numpy.full(9, {number})").error is None
            each = (own_bytes() - before) / len(live)
            # Each goes on where it was, whatever the others have done since.
            for number, session in enumerate(live):
                assert session.run("int(x.sum())").value == 9 * number
        finally:
            for session in live:
                session.close()
    assert each <= 3 << 20, each


def own_bytes() -> int:
    """The pages of this process that no file of the host has."""
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":") for line in status)
    return sum(int(v.split()[0]) << 10 for k, v in pairs if k in ("RssAnon", "RssShmem"))


def test_policies(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a").write_text("content")
    policy = kvmlet.Policy.of(read=[tmp_path], env={"A": "b"}, memory="200m", timeout=0.3)
    code = f"import os; print(open({str(tmp_path / 'a')!r}).read(), os.environ['A'])"
    with kvmlet.Interpreter(policy=policy) as py:
        assert py.run(code, timeout=HANG_S).stdout == "content b\n"
        assert 200 << 20 <= py.stats()["memory_limit_bytes"] < 256 << 20
        assert py.run("while True: pass", grace=HANG_S).reason == "timeout"
    with kvmlet.Box(policy=policy, memory="300m", env={"B": "c"}) as box:
        said = box.run(f"cat {tmp_path}/a; echo $A $B", shell=True, text=True, timeout=HANG_S)
        assert said.stdout == "contentb c\n"
        assert 300 << 20 <= box.stats()["memory_limit_bytes"] < 350 << 20
        assert box.run(["sleep", "1000"]).reason == "timeout"
        [fork] = box.fork()
        with fork:
            assert fork.run(["sleep", "1000"]).reason == "timeout"
    result = kvmlet.run(["cat", tmp_path / "a"], policy=policy, timeout=HANG_S, cwd="/tmp")
    assert result.stdout == b"content"
    assert kvmlet.run(["sleep", "1000"], policy=policy).reason == "timeout"
    small = kvmlet.Policy.of(max_output=10)
    assert len(kvmlet.run(["seq", "1000"], policy=small).stdout) == 10
    with kvmlet.Box(policy=small) as box:
        assert len(box.run(["seq", "1000"]).stdout) == 10
    for wrong in (kvmlet.Policy.of(cpu_time=1), 5):
        with pytest.raises(kvmlet.UsageError):
            kvmlet.Box(policy=wrong)  # type: ignore[arg-type]


def test_reading_a_value_has_an_end(
    py: kvmlet.Interpreter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvmlet.interpreter._READING_MAX_S", 0.0)
    with pytest.raises(kvmlet.ResultError, match="too long"):
        py.run("list(range(100_000))")
    monkeypatch.undo()
    assert py.run("1").value == 1


def test_forks_learn_from_the_first_of_them() -> None:
    """A page that it writes is there in the others before they write it, as it was."""
    with kvmlet.Interpreter(preload=["json"]) as py:
        py.run("x = list(range(1000))", check=True)
        forks = py.fork(4)
        try:
            faults = []
            for index, fork in enumerate(forks):
                code = f"x.append({index}); sum(x) + len([str(each) for each in x])"
                assert fork.run(code).value == sum(range(1000)) + index + 1001
                faults.append(fork.stats()["exits_fault"])
        finally:
            for fork in forks:
                fork.close()
        assert faults[0] > 50
        assert max(faults[1:]) < faults[0] / 2, faults
