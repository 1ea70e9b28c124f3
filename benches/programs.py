"""Whole programs that are measured, each with its inputs."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from measure import HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 100_000
FILES = 5_000
LINES = 5_000
_C_SOURCE = HERE.parent / "tests" / "guests" / "scripts" / "c_source.py"


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is measured, in a directory with its inputs."""

    name: str
    argv: tuple[str, ...]
    inputs: Callable[[], None]
    """Makes them in the current directory."""

    @contextlib.contextmanager
    def in_its_directory(self) -> Iterator[None]:
        """Work in a directory with the inputs, which is removed afterwards."""
        with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
            self.inputs()
            yield


def _no_inputs() -> None:
    pass


def _table() -> None:
    with open("rows.csv", "w") as table:
        table.writelines(
            f"{i},name{i * 7919 % ROWS},{i * 31 % 997},group{i % 13}\n" for i in range(ROWS)
        )


def _tree() -> None:
    for i in range(FILES):
        directory = Path(f"tree/{i % 50}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{i}").write_bytes(b"%d\n" % i * (i % 97 + 1))


def _source() -> None:
    with open("big.c", "w") as source:
        subprocess.run([sys.executable, _C_SOURCE, str(LINES - 5)], stdout=source, check=True)


def installed() -> Iterator[Program]:
    """Those that are there."""
    python = "/usr/bin/python3"
    yield Program("python-pass", (python, "-c", "pass"), _no_inputs)
    imports = "import json, re, decimal, asyncio"
    yield Program("python-imports", (python, "-c", imports), _no_inputs)
    if shutil.which("sqlite3"):
        script = (
            "create table t (id integer primary key, name text, score integer, grp text);",
            ".mode csv",
            ".import rows.csv t",
            "select count(*), sum(score) from t;",
        )
        yield Program("sqlite3", ("/usr/bin/sqlite3", ":memory:", *script), _table)
    # GNU tar reads no file when the archive is /dev/null.
    if shutil.which("tar"):
        yield Program("tar", (shutil.which("tar") or "", "-cf", "-", "tree"), _tree)
    if shutil.which("gcc"):
        found = subprocess.run(
            ["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True
        )
        cc1 = found.stdout.strip()
        if Path(cc1).is_absolute():
            yield Program("cc1", (cc1, "-quiet", "big.c", "-o", "/dev/null"), _source)
