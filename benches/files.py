"""`make bench-files`: what starting a program and changing files in memory cost, against native.

As in `make bench`, each ratio is the median over interleaved pairs, its quartiles beside it.
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path

from commands import rows_of_command
from measure import KVMLET, BenchError, interleave, kvmlet_plain, native
from report import Case, Promise, Row, compare, parser, run

PYTHON = ["/usr/bin/python3", "-c", "pass"]
STATUS_FILES = 2000
UNPACKED_FILES = 5000
FILE_LEN = 1000
_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@example.com")


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


def _status(pairs: int) -> list[Row]:
    words = ["git", "--no-optional-locks", "status", "--short"]
    with tempfile.TemporaryDirectory(prefix="kvmlet-bench-") as name:
        _make_work_tree(Path(name))
        what = f"git status of {STATUS_FILES:,} files"
        return rows_of_command(what, Path(name), words, pairs, most=2)


def _unpack(pairs: int) -> list[Row]:
    script = "mkdir out && exec tar -xf files.tar -C out"
    words = ["/bin/sh", "-c", script]
    with tempfile.TemporaryDirectory(prefix="kvmlet-bench-") as name:
        _make_archive(Path(name))
        what = f"untarring {UNPACKED_FILES:,} files"
        return rows_of_command(what, Path(name), words, pairs, most=2, remove="out")


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
