"""@kvmlet.isolated: functions of this program in a warmed interpreter."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import importlib
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import kvmlet
from e2e import isolated_functions as functions
from e2e.oracle import HANG_S, HW, ROOT, sized
from unit.hostile_answers import HOSTILE

pytestmark = pytest.mark.usefixtures("vm")


def test_a_call() -> None:
    invoice = functions.add_up(["1.50", "2.25"])
    assert invoice == functions.Invoice(
        7, decimal.Decimal("3.75"), datetime.date(2024, 2, 29), ("1.50", "2.25")
    )
    pid, executable, version, _ = functions.where()
    assert pid == 2
    assert executable == sys.executable
    assert version == sys.version


@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, 0, -1, 1 << 200, 0.1, 1j, "grüße", b"\0", bytearray(b"x")],
        {"a": (1, [2], {3}), 4: frozenset({5})},
        datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
        decimal.Decimal("1e-30"),
    ],
)
def test_values(value: object) -> None:
    assert functions.echo(value) == value


def test_variables_and_a_directory(tmp_path: pathlib.Path) -> None:
    here = os.path.dirname(os.path.realpath(functions.__file__))
    assert functions.surroundings() == ("hello", here, ["oracle.py"])
    functions.surroundings.close()
    wrong = kvmlet.isolated(size=1, cwd=tmp_path / "missing")(len)
    with pytest.raises(kvmlet.UsageError, match="cwd"):
        wrong([])
    for bad in (5, "a\0b"):
        with pytest.raises(kvmlet.UsageError, match="cwd"):
            kvmlet.isolated(cwd=bad)  # type: ignore[arg-type]


def test_every_call_is_the_first() -> None:
    assert [functions.count() for _ in range(sized(20, 3))] == [1] * sized(20, 3)
    assert functions.counted == []
    draws = [functions.draw() for _ in range(sized(20, 3))]
    assert len(set(draws)) == len(draws)
    keys = [functions.random_bytes() for _ in range(sized(20, 3))]
    assert len(set(keys)) == len(keys)
    for _ in range(3):
        assert functions.leave_traces() == []


@pytest.mark.skipif(HW, reason="numpy's file takes minutes to load on the emulated machine")
def test_arrays() -> None:
    np: Any = importlib.import_module("numpy")
    for shape in (10, (1000, 1000), 0):
        array = np.full(shape, 1.5)
        again = functions.scaled(array, 2)
        assert again.shape == array.shape
        assert (again == 3).all()
        assert (array == 1.5).all()
        again[...] = 0  # it is ours
    turned = np.arange(300_000).reshape(300, 1000).T[::2]
    assert (functions.scaled(turned, 3) == turned * 3).all()
    for _ in range(3):
        assert functions.scaled(np.ones(1_500_000), 2).sum() == 3_000_000
    # An argument is sent as it was, whatever the caller does with it meanwhile.
    array = np.ones(1_500_000)
    later = [functions.scaled.submit(array, factor) for factor in range(4)]
    array[:] = 9
    assert [future.result().sum() for future in later] == [0, 1_500_000, 3_000_000, 4_500_000]
    # More than one message takes: 24 MB there, and as much back.
    large = np.arange(3_000_000, dtype="f8")
    assert (functions.scaled(large, 2) == large * 2).all()
    functions.scaled.close()


def test_many_calls() -> None:
    count = sized(500, 20)
    assert list(functions.echo.map(range(count))) == list(range(count))
    futures = [functions.echo.submit(number) for number in range(count)]
    assert [future.result() for future in futures] == list(range(count))


def test_what_it_cannot_do(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        functions.read("/etc/shadow")
    (tmp_path / "secret").write_text("secret")
    # The guest has a /tmp of its own.
    with pytest.raises((PermissionError, FileNotFoundError)):
        functions.read(os.fspath(tmp_path / "secret"))
    with pytest.raises(OSError, match=r"refused|unreachable"):
        functions.connect()


def test_exceptions() -> None:
    with pytest.raises(ValueError, match=r"^bad") as value:
        functions.fail("value")
    assert isinstance(value.value, kvmlet.GuestError)
    assert "isolated_functions.py" in value.value.guest_traceback
    assert "kvmlet_runner" not in value.value.guest_traceback
    with pytest.raises(KeyError):
        functions.fail("key")
    with pytest.raises(MemoryError):
        functions.fail("memory")
    with pytest.raises(kvmlet.GuestError, match=r"OwnError: of its own"):
        functions.fail("own")
    kinds = iter(["stop", "cancelled", "stop"])
    seen = []
    for kind in kinds:
        with pytest.raises(kvmlet.GuestError) as error:
            next(functions.fail(kind) for _ in range(1))
        seen.append(error.value.type_name)
    assert seen == ["StopIteration", "asyncio.exceptions.CancelledError", "StopIteration"]
    with pytest.raises(kvmlet.GuestError, match="SystemExit: 3"):
        functions.fail("exit")
    with pytest.raises(kvmlet.SandboxEnded, match="status 3"):
        functions.fail("_exit")
    with pytest.raises(kvmlet.SandboxEnded, match="signal 6"):
        functions.fail("abort")
    with pytest.raises(kvmlet.ResultError, match=r"_thread\.lock"):
        functions.nothing_to_send()
    with pytest.raises(kvmlet.CannotSend):
        functions.echo(sys._getframe())
    assert functions.echo(1) == 1


def test_limits() -> None:
    with pytest.raises(kvmlet.DeadlineExceeded, match="timeout"):
        functions.spin()
    with pytest.raises((kvmlet.SandboxEnded, MemoryError)):
        functions.eat()
    assert functions.large(1 << 20) == bytes(1 << 20)
    future = functions.spin.submit()
    time.sleep(0.1)
    assert future.cancel()
    assert functions.echo(1) == 1


@pytest.mark.skipif(HW, reason="copies of this size take minutes on the emulated machine")
def test_calls_and_answers_of_any_length() -> None:
    for size in ((16 << 20) - 30, 16 << 20, (16 << 20) + 1, 33 << 20):
        assert functions.large(size) == bytes(size)
    sent = os.urandom(35 << 20)
    assert functions.echo(sent) == sent
    assert functions.echo(1) == 1
    # The guest's memory bounds both.
    for value in (30 << 20, bytes(80 << 20)):
        with pytest.raises((kvmlet.ResultError, kvmlet.SandboxEnded, MemoryError)):
            functions.in_little_memory(value)
        assert functions.in_little_memory("x") == "x"
    functions.in_little_memory.close()


def test_what_is_read_of_an_answer() -> None:
    """A few MiB of empty lists are hundreds in memory, and take seconds to read."""
    functions.lists_in_time.warm_up()
    start = time.monotonic()
    with pytest.raises(kvmlet.DeadlineExceeded):
        functions.lists_in_time()
    assert time.monotonic() - start < (HANG_S if HW else 3)
    with pytest.raises(kvmlet.ResultError, match="more memory"):
        functions.lists_in_memory()
    assert functions.echo(1) == 1


def test_hostile_answers() -> None:
    """Each comes from a real guest; the next call is a clean one."""
    names = list(HOSTILE) if not HW else list(HOSTILE)[::8]
    for name in names:
        try:
            functions.answer_with(HOSTILE[name])
        except (kvmlet.ResultError, kvmlet.GuestError):
            pass
        else:
            # The call has memory enough for what these make.
            assert "without end" in name or "as wide" in name
        assert functions.echo(name) == name
    functions.answer_with.close()


def test_printing(capsys: pytest.CaptureFixture[str]) -> None:
    functions.say("grüße")
    assert capsys.readouterr() == ("grüße\n", "grüße\n")


def test_a_call_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    call = functions.say_and_read.call("grüße", "/etc/shadow")
    assert (call.value, call.stdout, call.stderr) == (5, "grüße\n", "grüße\n")
    assert [(each.path, each.count) for each in call.denials] == [("/etc/shadow", 1)]
    assert call.stats["wall_us"] > 0
    assert capsys.readouterr() == ("", "")
    call = functions.say_and_read.call("", "/etc/hosts")
    assert (call.value, call.stdout, call.denials) == (0, "\n", [])
    with pytest.raises(ValueError, match=r"^bad"):
        functions.fail.call("value")


def test_from_a_coroutine() -> None:
    async def all_of_it() -> list[object]:
        results = await asyncio.gather(*(functions.echo.aio(number) for number in range(5)))
        with pytest.raises(KeyError):
            await functions.fail.aio("key")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await functions.sleep.aio(HANG_S)
        return list(results)

    assert asyncio.run(all_of_it()) == list(range(5))


def test_close() -> None:
    assert functions.alone() == 1
    threads = threading.active_count()
    functions.alone.close()
    assert threading.active_count() < threads
    functions.alone.close()
    assert functions.alone() == 1
    functions.alone.close()


def test_methods_and_nesting() -> None:
    assert functions.Scale(3).apply(5) == 15
    assert functions.nested(4) == 10


def test_functions_of_no_module() -> None:
    offset = 10

    @kvmlet.isolated(preload=["json"], size=1)
    def inner(number: int) -> int:
        import json

        return int(json.loads(f"{number + offset}"))

    assert inner(1) == 11
    offset = 20
    assert inner(1) == 21


MAIN = """
import dataclasses, os, sys
import kvmlet

@kvmlet.register_result
@dataclasses.dataclass
class Point:
    x: int

FACTOR = 3

@kvmlet.isolated
def scale(point):
    if point.x > 100:
        return scale.__wrapped__(Point(100))
    return Point(point.x * FACTOR)

if __name__ == "__main__":
    print(scale(Point(5)), scale(Point(500)))
    pid = os.fork()
    if pid == 0:
        print(scale(Point(6)), flush=True)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print(scale(Point(7)))
    if len(sys.argv) > 1:
        scale(None)
"""


def main_program(tmp_path: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "program.py"
    script.write_text(MAIN)
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT / "python"), "PYTHONUNBUFFERED": "1"}
    return subprocess.run(
        [sys.executable, script, *words],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        env=environment,
    )


def test_a_main_program(tmp_path: pathlib.Path) -> None:
    done = main_program(tmp_path)
    assert done.stderr == ""
    assert done.stdout == "Point(x=15) Point(x=300)\nPoint(x=18)\nPoint(x=21)\n"
    assert done.returncode == 0


def test_a_traceback(tmp_path: pathlib.Path) -> None:
    done = main_program(tmp_path, "fail")
    assert done.returncode == 1
    assert "kvmlet.GuestAttributeError: 'NoneType' object has no attribute 'x'" in done.stderr
    assert "In the guest:" in done.stderr
    assert 'program.py", line ' in done.stderr
    assert "if point.x > 100" in done.stderr
    assert "pool.py" not in done.stderr
