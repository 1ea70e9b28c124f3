"""Rows of `benches/silicon.py --beside` that would take too long in the emulated machine.

Prints a line of JSON for each, in nanoseconds. Arguments: the guest program of silicon.py, and a
directory that has numpy.
"""

from __future__ import annotations

import gc
import json
import statistics
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable

_GUESTS = Path(__file__).resolve().parent / "guests"
_PYTHON = "/usr/bin/python3"
_TIMEOUT_S = 60
_ROUNDS, _FORKS, _TEACHERS, _QUEUED = 100, 100, 4, 100
_TEXT = {"text": "the quick brown fox " * 20, "numbers": [f"{number}.25" for number in range(20)]}


def main() -> None:
    """Measure and print the rows."""
    guest, numpy_dir = sys.argv[1:]
    gc.disable()
    _python_requests()
    _numpy_forks(numpy_dir)
    _pool(guest)


def _python_requests() -> None:
    message = json.dumps(_TEXT).encode()
    with _warmed(_PYTHON, _GUESTS / "serve.py").fork() as fork:

        def once() -> None:
            fork.request(message)
            fork.reset()

        for _ in range(_ROUNDS // 10):
            once()
        taken_ns = [_spent_ns(once) for _ in range(_ROUNDS)]
        _print("request and reset of a warmed Python program", statistics.median(taken_ns))


def _numpy_forks(numpy_dir: str) -> None:
    """New forks, each in a VM that has run nothing, once it is known what requests write."""
    message = b"1000"
    snapshot = _warmed(_PYTHON, _GUESTS / "arrays.py", numpy_dir=numpy_dir)
    live = [snapshot.fork() for _ in range(_TEACHERS)]
    expected = live[0].request(message)
    for fork in live * 3:
        fork.request(message)
        fork.reset()
    prepared_ns = _spent_ns(lambda: snapshot.prepare(_FORKS))

    def answer() -> None:
        for _ in range(_FORKS):
            live.append(snapshot.fork())
            if live[-1].request(message) != expected:
                raise SystemExit("a fork answers otherwise than the first")

    answered_ns = _spent_ns(answer)
    _print(f"prepare({_FORKS}) of a warmed numpy", prepared_ns)
    _print(f"{_FORKS} new forks of it made and answered once", answered_ns)


def _pool(guest: str) -> None:
    message = struct.pack("2q", 0, 0)
    snapshot = _warmed(guest)
    with snapshot.fork() as fork, kvmlet.Pool(snapshot, size=1) as pool:
        pool.warm_up()

        def directly() -> None:
            for _ in range(_QUEUED):
                fork.request(message)
                fork.reset()

        def queued() -> None:
            # The last is the last to be answered.
            [pool.request(message) for _ in range(_QUEUED)][-1].result()

        def alone() -> None:
            for _ in range(_QUEUED):
                pool.request(message).result()

        works = (directly, queued, alone)
        rounds = [[_spent_ns(work) / _QUEUED for work in works] for _ in range(1 + _ROUNDS // 5)]
    names = (
        "request and reset by the library, for the next rows",
        f"Pool.request, {_QUEUED} in the queue, each",
        "Pool.request, one at a time",
    )
    # The first round is not counted.
    for name, taken_ns in zip(names, zip(*rounds[1:], strict=True), strict=True):
        _print(name, statistics.median(taken_ns))


def _warmed(*argv: str | Path, numpy_dir: str | None = None) -> kvmlet.Snapshot:
    env = {"PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}
    read: list[str | Path] = [_GUESTS]
    if numpy_dir is not None:
        env["PYTHONPATH"] = numpy_dir
        read.append(numpy_dir)
    sandbox = kvmlet.Sandbox(argv, env=env, read=read, memory="512m", calls="exit")
    return sandbox.until_ready(timeout=_TIMEOUT_S).freeze()


def _spent_ns(action: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    action()
    return float(time.perf_counter_ns() - start)


def _print(row: str, taken_ns: float) -> None:
    # As silicon.rs has it: where no instructions are counted, these are nanoseconds.
    print(json.dumps({"row": row, "instructions": taken_ns}))


if __name__ == "__main__":
    main()
