"""`make bench-library`: what the Python library costs, and how soon it answers.

Each row compares a figure with its bound, or with the same work done without kvmlet or by sandlock.
As in `make bench`, ratios are medians over interleaved pairs with their quartiles. What takes
seconds is measured a few times only; its row says how often.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import KVMLET, BenchError, native, program
from report import Case, Promise, Row, compare, parser, run

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

_BOXES, _COMMANDS, _SPAWNS, _FORKS, _SESSIONS = 10, 100, 1000, 16, 100
_LONG_TIMES, _LOAD_TIMES = 3, 2
_FILE_BYTES = 1 << 30
_ARRAY_BYTES = 10_000_000
_PIECE_BYTES = 1 << 20
_BOX_MEMORY = "1500m"
TRUE = ["/bin/true"]
PASS = ["/usr/bin/python3", "-c", "pass"]
# Writes the time, and leaves enough of it for the line to arrive before the next one.
TICKS = """
import time
for _ in range({count}):
    time.sleep(0.02)
    print(time.time_ns(), flush=True)
"""


def spent_ns(action: Callable[[], object]) -> float:
    """The time that `action` takes."""
    start = time.perf_counter_ns()
    action()
    return float(time.perf_counter_ns() - start)


def in_turn(times: int, *arms: Callable[[], float]) -> list[list[float]]:
    """The figures of each arm over `times` rounds, each round starting with the next arm.

    A first round is not counted.
    """
    figures: list[list[float]] = [[] for _ in arms]
    for turn in range(times + 1):
        for step in range(len(arms)):
            arm = (turn + step) % len(arms)
            figure = arms[arm]()
            if turn:
                figures[arm].append(figure)
    return figures


def against(what: str, ours: list[float], bound: float, *, unit: str = "ns", of: str) -> Row:
    """A row of figures that are to stay below a bound, named `of`."""
    promise = Promise("<=", 1, f"of {of}")
    return compare(what, ours, [bound] * len(ours), promise, unit=unit)


# ---- commands in boxes ----


def _in_threads(work: Callable[[int], None]) -> None:
    failed: list[BaseException] = []

    def begin(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=begin, args=(index,)) for index in range(_BOXES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise BenchError(f"a thread failed: {failed[0]}")


def _commands_of_a_box(_: int) -> None:
    with kvmlet.Box(memory="64m") as box:
        for _ in range(_COMMANDS):
            box.run(TRUE, check=True)


def _commands_of_the_host(_: int) -> None:
    for _ in range(_COMMANDS):
        subprocess.run(TRUE, check=True, capture_output=True)


async def _commands_of_boxes() -> None:
    async def use() -> None:
        async with kvmlet.aio.Box(memory="64m") as box:
            for _ in range(_COMMANDS):
                await box.run(TRUE, check=True)

    await asyncio.gather(*(use() for _ in range(_BOXES)))


def boxes(_: int) -> list[Row]:
    """Ten boxes of a hundred commands, in threads and under asyncio, and what they leave."""
    before = _taken()
    threads, coroutines, plain = in_turn(
        _LOAD_TIMES,
        lambda: spent_ns(lambda: _in_threads(_commands_of_a_box)),
        lambda: spent_ns(lambda: asyncio.run(_commands_of_boxes())),
        lambda: spent_ns(lambda: _in_threads(_commands_of_the_host)),
    )
    what = f"{_BOXES} boxes of {_COMMANDS} times /bin/true ({_LOAD_TIMES} times)"
    return [
        compare(f"{what} in threads, against subprocess.run", threads, plain),
        compare(f"{what} under asyncio, against the same", coroutines, plain),
        *_left(before, "them"),
    ]


def spawns(_: int) -> list[Row]:
    """A thousand processes of one box, one after the other."""
    with kvmlet.Box() as box:
        box.run(TRUE, check=True)
        before = _taken()

        def ours() -> None:
            for _ in range(_SPAWNS):
                with box.spawn(TRUE) as process:
                    process.wait()

        def theirs() -> None:
            for _ in range(_SPAWNS):
                with subprocess.Popen(TRUE, stdout=subprocess.PIPE) as process:
                    process.wait()

        mine, plain = in_turn(1, lambda: spent_ns(ours), lambda: spent_ns(theirs))
        left = box.stats()["processes"]
        return [
            compare(f"{_SPAWNS} times Box.spawn of /bin/true and wait, against Popen", mine, plain),
            against("processes that are left of them", [float(left) + 1], 1, unit="", of="one"),
            *_left(before, "them"),
        ]


def _taken() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def _left(before: tuple[int, int], whose: str) -> list[Row]:
    """Descriptors and threads beyond those of before, once idle threads have had time to end."""
    end_s = time.monotonic() + 15
    while _taken()[1] > before[1] and time.monotonic() < end_s:
        time.sleep(0.5)
    after = _taken()
    # VMs that are kept for the next box have descriptors.
    return [
        against(
            f"descriptors after {whose}", [float(after[0])], before[0] + 80, unit="", of="80 more"
        ),
        against(f"threads after {whose}", [float(after[1])], before[1], unit="", of="before"),
    ]


# ---- how soon ----


def stream(pairs: int) -> list[Row]:
    """From a write of a program to the line in the host, by each way to stream."""
    words = ["/usr/bin/python3", "-c", TICKS.format(count=pairs)]
    rows = []
    for name, lines in (
        ("kvmlet.run(stdout=callable)", _lines_of_run),
        ("Box.run(stdout=callable)", _lines_of_a_command),
        ("Box.spawn, its stdout", _lines_of_a_process),
    ):
        late_ns = [float(now - int(line)) for line, now in lines(words)]
        rows.append(against(f"a line is there, {name}", late_ns, 50e6, of="50 ms"))
    return rows


def _lines_of_run(words: list[str]) -> list[tuple[str, int]]:
    told: list[tuple[str, int]] = []
    kvmlet.run(
        words, text=True, check=True, stdout=lambda line: told.append((line, time.time_ns()))
    )
    return told


def _lines_of_a_command(words: list[str]) -> list[tuple[str, int]]:
    told: list[tuple[str, int]] = []
    with kvmlet.Box() as box:
        box.run(
            words, text=True, check=True, stdout=lambda line: told.append((line, time.time_ns()))
        )
    return told


def _lines_of_a_process(words: list[str]) -> Iterator[tuple[str, int]]:
    with kvmlet.Box() as box, box.spawn(words, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield line, time.time_ns()


def cancel(pairs: int) -> list[Row]:
    """From the cancellation of a task to the end of its guest."""
    rows = []
    for name, command in (("computes", "while :; do :; done"), ("sleeps", "sleep 1000")):
        late_ns = asyncio.run(_cancelled(pairs, lambda: kvmlet.aio.run(command, shell=True)))  # noqa: B023
        rows.append(against(f"aio.run of a guest that {name} is gone", late_ns, 200e6, of="200 ms"))
        late_ns = asyncio.run(_cancelled_in_a_box(pairs, command))
        rows.append(against(f"the same for Box.run, {name}", late_ns, 200e6, of="200 ms"))
    return rows


async def _cancelled(times: int, work: Callable[[], Coroutine[Any, Any, object]]) -> list[float]:
    late_ns = []
    for _ in range(times):
        task = asyncio.create_task(work())
        await asyncio.sleep(0.1)
        start = time.perf_counter_ns()
        task.cancel()
        await asyncio.wait([task])
        late_ns.append(float(time.perf_counter_ns() - start))
        if not task.cancelled():
            raise BenchError("the task ended by itself")
    return late_ns


async def _cancelled_in_a_box(times: int, command: str) -> list[float]:
    async with kvmlet.aio.Box() as box:
        late_ns = await _cancelled(times, lambda: box.run(command, shell=True))
        if (await box.stats())["processes"]:
            raise BenchError("a cancelled command has left a process")
    return late_ns


# ---- data ----


def files(_: int) -> list[Row]:
    """A file of 1 GiB into a box and out of it, against a plain copy."""
    with (
        tempfile.TemporaryDirectory(dir=_roomy()) as folder,
        _spilled_to(folder),
        kvmlet.Box(memory=_BOX_MEMORY) as box,
    ):
        source, copy, back = (os.path.join(folder, name) for name in ("source", "copy", "back"))
        piece = os.urandom(_PIECE_BYTES)
        with open(source, "wb") as file:
            for _ in range(_FILE_BYTES // _PIECE_BYTES):
                file.write(piece)

        def plain() -> float:
            _gone(copy)
            return spent_ns(lambda: _plain_copy(source, copy))

        def into() -> float:
            if box.files.exists("data"):
                box.files.remove("data")
            return spent_ns(lambda: box.files.upload(source, "data"))

        def out() -> float:
            if not box.files.exists("data"):
                box.files.upload(source, "data")
            _gone(back)
            return spent_ns(lambda: box.files.download("data", back))

        copied, uploaded, downloaded = in_turn(_LONG_TIMES, plain, into, out)
        if os.path.getsize(back) != _FILE_BYTES:
            raise BenchError("the file came out with another size")
    promise = Promise(">=", 0.5, "of a plain copy")
    what = f"a file of 1 GiB, speed ({_LONG_TIMES} times)"
    return [
        compare(f"{what}, Box.files.upload", uploaded, copied, promise),
        compare(f"{what}, Box.files.download", downloaded, copied, promise),
    ]


@contextlib.contextmanager
def _spilled_to(folder: str) -> Iterator[None]:
    """Files of boxes that memory has no room for lie there too, beside those of the plain copy."""
    before = os.environ.get("KVMLET_TMPDIR")
    os.environ["KVMLET_TMPDIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["KVMLET_TMPDIR"]
        else:
            os.environ["KVMLET_TMPDIR"] = before


def _roomy() -> str | None:
    """A folder in memory, so that no disk is measured; None for the usual one."""
    shm = os.statvfs("/dev/shm")
    return "/dev/shm" if shm.f_bavail * shm.f_frsize > 5 * _FILE_BYTES else None


def _plain_copy(source: str, target: str) -> None:
    # Read and written in pieces, as a program copies: not by one call of the kernel's.
    with open(source, "rb", 0) as file, open(target, "wb", 0) as into:
        shutil.copyfileobj(file, into, _PIECE_BYTES)


def _gone(name: str) -> None:
    if os.path.exists(name):
        os.remove(name)


def _numpy() -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError:
        raise BenchError("numpy is missing: run `make bench-library`") from None


def forks(pairs: int) -> list[Row]:
    """Sixteen forks of a running Python with numpy, each of which answers."""
    _numpy()
    took_ns = []
    with kvmlet.Interpreter(preload=["numpy"], memory="256m") as py:
        py.run("import numpy; x = numpy.arange(1000)", check=True)
        for turn in range(pairs + 1):
            made: list[kvmlet.Interpreter] = []

            def fork(made: list[kvmlet.Interpreter] = made) -> None:
                made += py.fork(_FORKS)
                for each in made:
                    if each.run("int(x.sum())").value != 499_500:
                        raise BenchError("a fork answers wrongly")

            took = spent_ns(fork)
            for each in made:
                each.close()
            if turn:
                took_ns.append(took)
    what = f"fork({_FORKS}) of a session with numpy, each answers"
    return [against(what, took_ns, 100e6, of="100 ms")]


@kvmlet.isolated(size=1, timeout=60)
def nothing() -> None:
    """Does nothing."""


@kvmlet.isolated(preload=["numpy"], size=1, timeout=60, memory="256m")
def total(array: Any) -> float:
    """Takes an array."""
    return float(array[-1])


@kvmlet.isolated(preload=["numpy"], size=1, timeout=60, memory="256m")
def zeros(size_bytes: int) -> Any:
    """Gives an array."""
    return importlib.import_module("numpy").zeros(size_bytes, dtype="u1")


def isolated(pairs: int) -> list[Row]:
    """Isolated calls, with nothing and with an array of 10 MB, against copies of it."""
    np = _numpy()
    array = np.random.default_rng(7).random(_ARRAY_BYTES // 8)
    target = np.empty_like(array)
    floor = [program("kvm_floor"), "exit"]

    def call() -> float:
        return min(spent_ns(nothing) for _ in range(20))

    def copies() -> float:
        return min(spent_ns(lambda: np.copyto(target, array)) for _ in range(5))

    x_ns, plain, copied, sent, given = in_turn(
        pairs,
        lambda: native(floor).value("x_ns"),
        call,
        copies,
        lambda: min(spent_ns(lambda: total(array)) for _ in range(2)),
        lambda: min(spent_ns(lambda: zeros(_ARRAY_BYTES)) for _ in range(2)),
    )
    bound = [3 * copy + call for copy, call in zip(copied, plain, strict=True)]
    promise = Promise("<=", 1, "of 3 memcpy + a call")
    for function in (nothing, total, zeros):
        function.close()
    return [
        compare("an isolated call", plain, x_ns),
        compare("the same with an array of 10 MB", sent, bound, promise),
        compare("the same that returns one", given, bound, promise),
    ]


def sessions(_: int) -> list[Row]:
    """Memory of a hundred sessions with numpy that live at once."""
    _numpy()
    with kvmlet.Interpreter(preload=["numpy"], memory="256m") as first:
        first.run("import numpy; numpy.ones(10).sum()", check=True)
        before = _resident_bytes()
        live: list[kvmlet.Interpreter] = []
        try:
            for _ in range(_SESSIONS):
                live.append(kvmlet.Interpreter(preload=["numpy"], memory="256m"))
                if live[-1].run("import numpy; int(numpy.arange(10).sum())").value != 45:
                    raise BenchError("a session answers wrongly")
            each = (_resident_bytes() - before) / _SESSIONS
        finally:
            for session in live:
                session.close()
    what = f"memory of each of {_SESSIONS} live sessions with numpy"
    return [against(what, [each], float(3 << 20), unit="bytes", of="3 MiB")]


def _resident_bytes() -> int:
    """The pages of this process that no file of the host has."""
    pages = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("RssAnon", "RssShmem"):
            pages += int(value.split()[0])
    return pages << 10


# ---- beside sandlock ----


def sandlock(pairs: int) -> list[Row]:
    """The same programs in sandlock's sandboxes: processes under the host's own kernel."""
    theirs = _sandlock()
    rows = []
    for name, argv, bound in (("/bin/true", TRUE, 1.1), ("python3 -c pass", PASS, 1.6)):
        mine, other, plain = in_turn(
            pairs,
            lambda: spent_ns(lambda: kvmlet.run(argv, check=True)),  # noqa: B023
            lambda: spent_ns(lambda: theirs(argv)),  # noqa: B023
            lambda: spent_ns(lambda: subprocess.run(argv, check=True, capture_output=True)),  # noqa: B023
        )
        rows += [
            compare(
                f"run of {name}, against sandlock", mine, other, Promise("<=", bound, "sandlock")
            ),
            compare("the same, against subprocess.run", mine, plain),
        ]
    with kvmlet.Box() as box:

        def ours() -> None:
            for _ in range(_COMMANDS):
                box.run(TRUE, check=True)

        def others() -> None:
            for _ in range(_COMMANDS):
                theirs(TRUE)

        mine, other = in_turn(_LONG_TIMES, lambda: spent_ns(ours), lambda: spent_ns(others))
    what = f"{_COMMANDS} commands in a box, against as many of sandlock ({_LONG_TIMES} times)"
    rows.append(compare(what, mine, other, Promise("<=", 1.2, "sandlock")))
    return rows


def _sandlock() -> Callable[[list[str]], None]:
    """Runs a command in sandlock. Raises BenchError where it cannot be used."""
    try:
        module: Any = importlib.import_module("sandlock")
    except (ImportError, OSError, RuntimeError) as error:
        raise BenchError(f"sandlock is missing: run `make bench-library` ({error})") from None
    trees = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev")
    readable = [tree for tree in trees if os.path.exists(tree)]
    sandbox = module.Sandbox(fs_readable=readable)

    def command(argv: list[str]) -> None:
        result = sandbox.run(argv)
        if not result.success:
            raise BenchError(f"sandlock cannot run {argv[0]}: {result}")

    try:
        command(TRUE)
    except BenchError:
        raise
    except Exception as error:
        raise BenchError(f"sandlock cannot be used here: {error}") from None
    return command


CASES: dict[str, Callable[[int], list[Row]]] = {
    "boxes": boxes,
    "spawns": spawns,
    "stream": stream,
    "cancel": cancel,
    "files": files,
    "forks": forks,
    "isolated": isolated,
    "sessions": sessions,
    "sandlock": sandlock,
}


def _case(name: str, pairs: int) -> list[Row]:
    try:
        return CASES[name](pairs)
    except kvmlet.KvmletError as error:
        raise BenchError(f"{type(error).__name__}: {error}") from None


def main() -> int:
    """Run the bench; the exit status."""
    options = parser("library.py", __doc__, list(CASES)).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-library`", file=sys.stderr)
        return 2
    wanted = options.only or list(CASES)
    return run([Case(name, partial(_case, name)) for name in wanted], options)


if __name__ == "__main__":
    sys.exit(main())
