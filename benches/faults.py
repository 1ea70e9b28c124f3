"""`make bench-faults`: page faults that leave the VM, against those that Linux takes natively.

For each program: page-fault exits against the page faults of a plain child process (wait4), and
wall time against its wall time, both over interleaved pairs. KVM's own faults (`pf_taken`, and
`pf_fixed` where it filled an entry) are those of one more run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import report
from cases import counters
from measure import HERE, KVMLET, PEER, BenchError, interleave, kvmlet, native
from report import Case, Promise, Row, parser, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROWS = 100_000
FILES = 5_000
LINES = 5_000
FAULTS = Promise("<=", 0.05, "native")
_SHOWN = ("exits", "faults", "syscalls", "flushes", "pf_fixed", "pf_taken", "memory_peak_bytes")
_HANG_S = 120


@dataclass(frozen=True, slots=True)
class Program:
    """A program that is measured, in a directory with its inputs."""

    name: str
    argv: tuple[str, ...]
    inputs: Callable[[], None]
    """Makes them in the current directory."""


def _no_inputs() -> None:
    pass


def _rows_script() -> None:
    with open("rows.csv", "w") as table:
        table.writelines(
            f"{i},name{i * 7919 % ROWS},{i * 31 % 997},group{i % 13}\n" for i in range(ROWS)
        )


def _tree() -> None:
    for i in range(FILES):
        directory = Path(f"tree/{i % 50}")
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"file{i}").write_bytes(b"%d\n" % i * (i % 97 + 1))


def _c_source() -> None:
    """A C file of LINES lines: functions with loops, switches and structures."""
    out = [
        "typedef unsigned long u64;",
        "struct item { u64 key; double weight; struct item *next; char name[16]; };",
        "static u64 mix(u64 x) { x ^= x >> 31; x *= 0x9e3779b97f4a7c15ul; return x ^ (x >> 27); }",
    ]
    number = 0
    while len(out) < LINES - 5:
        k = number * 7 % 61 + 1
        out += [
            f"static u64 f{number}(struct item *p, u64 a, int n)",
            "{",
            f"    u64 sum = {number}ul, table[{k}];",
            f"    for (int i = 0; i < {k}; i++) table[i] = mix(a + i * {k});",
            "    for (; p; p = p->next) {",
            f"        if (p->key % {k} == {number % k}) sum += (u64)(p->weight * {k}.5);",
            f"        switch (n & 7) {{ case {number % 8}: sum ^= p->key; break;",
            f"        case {(number + 3) % 8}: sum -= p->name[{k % 16}]; break; default: sum++; }}",
            "    }",
            f"    while (n-- > 0) sum = mix(sum) + table[(unsigned)n % {k}];",
            f"    return sum{f' + f{number - 1}(p, sum, n & 3)' if number else ''};",
            "}",
        ]
        number += 1
    out += ["int main(int argc, char **argv)", "{", '    struct item it = { argc, 2.5, 0, "x" };']
    out += [f"    return (int)f{number - 1}(&it, (u64)argc, argv != 0) & 0x7f;", "}"]
    Path("big.c").write_text("\n".join(out) + "\n")


def _programs() -> Iterator[Program]:
    """The programs that are installed."""
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
        yield Program("sqlite3", ("/usr/bin/sqlite3", ":memory:", *script), _rows_script)
    # GNU tar reads no file when the archive is /dev/null.
    if shutil.which("tar"):
        yield Program("tar", (shutil.which("tar") or "", "-cf", "-", "tree"), _tree)
    if shutil.which("gcc"):
        found = subprocess.run(
            ["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True
        )
        cc1 = found.stdout.strip()
        if Path(cc1).is_absolute():
            yield Program("cc1", (cc1, "-quiet", "big.c", "-o", "/dev/null"), _c_source)


def _rows(program: Program, pairs: int) -> list[Row]:
    """The rows of one program. Raises BenchError."""
    argv = list(program.argv)
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        program.inputs()
        rounds = interleave(pairs, lambda: kvmlet(argv), lambda: native(argv))
        kvm = _kvm_counters(argv)
    guests, plain = [guest for guest, _ in rounds], [run for _, run in rounds]
    counts = {**counters(guests), **kvm}
    made = report.compare(
        f"{program.name}: page-fault exits, against native faults",
        [guest.stat("exits_fault") for guest in guests],
        [run.stat("faults") for run in plain],
        FAULTS,
        counts=counts,
        shown=_SHOWN,
        unit="",
    )
    return [
        made,
        report.compare(
            f"{program.name}: wall time of the VM",
            [guest.stat("wall_us") * 1e3 for guest in guests],
            [run.wall_ns for run in plain],
            counts={name: counts[name] for name in ("guest_us", "personality_us")},
            shown=("guest_us", "personality_us"),
        ),
    ]


def _kvm_counters(argv: list[str]) -> dict[str, float]:
    """What KVM counted over one run, as far as it counts. Raises BenchError."""
    child = [sys.executable, str(HERE / "faults_kvm.py"), *argv]
    environment = {**os.environ, "LD_PRELOAD": str(PEER)}
    done = subprocess.run(child, env=environment, capture_output=True, text=True, timeout=_HANG_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BenchError(f"counting KVM's faults of {argv[0]}: {lines[-1]}")
    return {str(name): float(value) for name, value in json.loads(done.stdout).items()}


def main() -> int:
    """Run the bench; the exit status."""
    programs = {program.name: program for program in _programs()}
    options = parser("faults.py", __doc__, list(programs)).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make develop`", file=sys.stderr)
        return 2
    wanted = options.only or list(programs)
    return run([Case(name, partial(_rows, programs[name])) for name in wanted], options)


if __name__ == "__main__":
    sys.exit(main())
