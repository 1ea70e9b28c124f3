"""`make bench-files`: what starting a program and changing files in memory cost, against native.

As in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it. "The
whole command" has the start of kvmlet in it; "from VM creation to exit" has not.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from measure import BUILD, KVMLET, BenchError, Spread, interleave, kvmlet, kvmlet_plain, native
from report import Case, Promise, Row, compare, parser, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from measure import Run

PYTHON = ["/usr/bin/python3", "-c", "pass"]
STATUS_FILES = 2000
UNPACKED_FILES = 5000
FILE_LEN = 1000
_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.com")
_COUNTS = ("exits", "exits_fault", "exits_syscall")


def _in(where: Path, arm: Callable[[], Run]) -> Run:
    """A run in another directory."""
    os.chdir(where)
    try:
        return arm()
    finally:
        os.chdir(BUILD)


def _names(count: int) -> list[str]:
    return [f"d{number % 50}/e{number % 7}/file-{number}.txt" for number in range(count)]


def _bytes(chance: random.Random) -> bytes:
    return chance.randbytes(FILE_LEN // 2).hex().encode()


def _make_work_tree(tree: Path) -> None:
    """Everything in it is committed."""
    chance = random.Random(1)
    for name in _names(STATUS_FILES):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(_bytes(chance))
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        done = subprocess.run([*_GIT, *words], cwd=tree, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"git {words[0]}: {done.stderr.strip()}")


def _make_archive(place: Path) -> None:
    """Of many small files."""
    chance = random.Random(2)
    with tarfile.open(place / "files.tar", "w") as archive:
        for name in _names(UNPACKED_FILES):
            entry = tarfile.TarInfo(name)
            entry.size = FILE_LEN
            archive.addfile(entry, io.BytesIO(_bytes(chance)))


def _start(pairs: int) -> list[Row]:
    done = interleave(pairs, partial(kvmlet_plain, ["/bin/true"]), partial(native, PYTHON))
    wall_ns = [[run.wall_ns for run in runs] for runs in zip(*done, strict=True)]
    promise = Promise("<=", 2.5, "python3")
    return [compare("kvmlet run -- true, against python3 -c pass", wall_ns[0], wall_ns[1], promise)]


def _rows(what: str, where: Path, argv: list[str], pairs: int, remove: str = "") -> list[Row]:
    """The rows of a command in an overlay, and natively. `remove` is what it leaves then."""

    def plainly() -> Run:
        try:
            return native(argv)
        finally:
            if remove:
                shutil.rmtree(where / remove)

    arms = [partial(_in, where, plainly), partial(_in, where, partial(kvmlet, argv))]
    done = interleave(pairs, *arms)
    plain_ns = [runs[0].wall_ns for runs in done]
    whole_ns = [runs[1].wall_ns for runs in done]
    inside_ns = [runs[1].stat("wall_us") * 1e3 for runs in done]
    counts = {name: Spread.of([runs[1].stat(name) for runs in done]).median for name in _COUNTS}
    promise = Promise("<=", 2, "native")
    return [
        compare(
            f"{what}, from VM creation to exit",
            inside_ns,
            plain_ns,
            promise,
            counts=counts,
            shown=_COUNTS,
        ),
        compare(f"{what}, the whole command", whole_ns, plain_ns),
    ]


def _status(pairs: int) -> list[Row]:
    words = ["git", "--no-optional-locks", "status", "--short"]
    with tempfile.TemporaryDirectory(prefix="kvmlet-bench-") as name:
        _make_work_tree(Path(name))
        return _rows(f"git status of {STATUS_FILES:,} files", Path(name), words, pairs)


def _unpack(pairs: int) -> list[Row]:
    script = "mkdir out && exec tar -xf files.tar -C out"
    words = ["/bin/sh", "-c", script]
    with tempfile.TemporaryDirectory(prefix="kvmlet-bench-") as name:
        _make_archive(Path(name))
        what = f"untarring {UNPACKED_FILES:,} files"
        return _rows(what, Path(name), words, pairs, "out")


CASES = {"start": _start, "git-status": _status, "untar": _unpack}


def main() -> int:
    """Run the bench; the exit status."""
    options = parser("files.py", __doc__, list(CASES)).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench-files`", file=sys.stderr)
        return 2
    wanted = options.only or list(CASES)
    return run([Case(name, CASES[name]) for name in wanted], options)


if __name__ == "__main__":
    sys.exit(main())
