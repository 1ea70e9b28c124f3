"""`make bench-silicon`: instructions that requests, resets and forks cost on hardware KVM.

The emulated machine (tests/hwkvm) runs with a clock that counts instructions, one a nanosecond, on
one processor. Counts repeat to a few per mille where times would not. They are those of the whole
machine: guest, KVM and kvmlet. X is a bare exit and re-entry in the same run.

silicon.toml has the rows: multiples of X, which may only fall. `--check` fails when one has risen.

`--beside CHECKOUT` measures time instead, on this machine's KVM, in pairs with another checkout in
which the same was built. Rows of warmed.py are among them.

Exit status: 0; 1 if a row has risen; 2 if nothing could be measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from measure import BenchError, Spread
from report import with_section

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
ROWS = HERE / "silicon.toml"
GUEST = REPO / "tests/guests/build/silicon"
PAGE = REPO / "docs/measurements.md"

SLACK = 1.02
OTHER_SLACK = 1.15
"""With another compiler or kernel than the rows were measured with."""
_HANG_S = 280
_HEAD = """\
# The rows of `make bench-silicon`: multiples of X, an exit and re-entry, in instructions of the
# emulated machine. Goals are instructions. fork_memory and its goal are bytes.
# A row may only fall: `benches/silicon.py --update` lowers those that have. One that must rise says
# why in `reason`, and stays within its goal.
# `quick` and `release` are the engine's, by build profile; `python` is through the library.
"""
_ARMS = ("quick", "release", "python")


Command = tuple[str, ...]
Measured = dict[str, dict[str, float]]
"""What was counted in each row, by name."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of silicon.toml."""

    name: str
    fields: dict[str, str | float]

    def known(self, arm: str) -> float | None:
        """The figure of the file, None if there is none."""
        value = self.fields.get(arm)
        return None if value is None else float(value)

    def goal(self, arm: str, rows: Measured) -> float | None:
        """Instructions (or bytes) at most, given what was counted with it; None if nobody says."""
        value = self.fields.get("python_goal" if arm == "python" else "goal")
        beside = self.fields.get("goal_beside")
        if value is None:
            return None
        return float(value) + (rows[str(beside)]["instructions"] if beside in rows else 0.0)


@dataclass(frozen=True, slots=True)
class Ratchet:
    """silicon.toml."""

    kernel: str
    compiler: str
    rows: dict[str, Row]

    @classmethod
    def read(cls) -> Ratchet:
        """The file's. Raises BenchError."""
        try:
            found = tomllib.loads(ROWS.read_text(encoding="utf-8"))
            rows = {name: Row(name, dict(fields)) for name, fields in found["rows"].items()}
            return cls(str(found["kernel"]), str(found["compiler"]), rows)
        except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
            raise BenchError(f"{ROWS.name}: {error}") from None

    def write(self) -> None:
        """Replaces the file."""
        lines = [_HEAD, f'kernel = "{self.kernel}"', f'compiler = "{self.compiler}"']
        for row in self.rows.values():
            lines += ["", f"[rows.{row.name}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in row.fields.items()]
        ROWS.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Run the bench; the exit status."""
    options = _options()
    try:
        ratchet = Ratchet.read()
        profile = options.profile
        if options.beside is not None:
            ours, theirs = (_arms_of(checkout, profile) for checkout in (REPO, options.beside))
            print(beside(ratchet, ours, theirs, options.pairs))
            return 0
        arms = {profile: multiples(_engine(profile))}
        if not options.check:
            arms["python"] = multiples(_python(), arms[profile]["bare_exit"]["instructions"])
        print(table(ratchet, arms))
        risen = [line for arm, rows in arms.items() for line in _risen(ratchet, arm, rows)]
        if options.update:
            lowered(ratchet, arms).write()
        elif risen:
            print("\n".join(risen), file=sys.stderr)
            return 1
        if options.write:
            _write(table(ratchet, arms))
    except BenchError as error:
        print(f"bench-silicon: {error}", file=sys.stderr)
        return 2
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/silicon.py", description=__doc__)
    parser.add_argument(
        "--profile", choices=("quick", "release"), default="release", help="the engine's build"
    )
    parser.add_argument("--check", action="store_true", help="the engine's rows only")
    parser.add_argument("--update", action="store_true", help="lower rows that have fallen")
    parser.add_argument("--write", action="store_true", help=f"replace the section of {PAGE.name}")
    parser.add_argument(
        "--beside", type=Path, metavar="CHECKOUT", help="time on this machine, beside that build's"
    )
    parser.add_argument("--pairs", type=int, default=15, help="pairs of runs with --beside")
    return parser.parse_args()


def multiples(rows: Measured, exit_instructions: float | None = None) -> Measured:
    """`rows` with multiples of X as `x`, and the row of memory apart."""
    if exit_instructions is None:
        if "bare_exit" not in rows:
            raise BenchError("the machine has counted no exit")
        exit_instructions = rows["bare_exit"]["instructions"]
    found: Measured = {}
    for name, counted in rows.items():
        found[name] = {**counted, "x": counted["instructions"] / exit_instructions}
        if "bytes_beside_pages" in counted:
            found["fork_memory"] = {"x": counted["bytes_beside_pages"]}
    return found


def _binary(profile: str, checkout: Path = REPO) -> Path:
    binary = checkout / "target" / profile / "examples" / "silicon"
    if not binary.exists():
        raise BenchError(f"{binary} is missing; `make bench-silicon` builds it")
    return binary


def _arms_of(checkout: Path, profile: str) -> tuple[Command, ...]:
    """The commands that measure a checkout's engine and library, by the benches of this one."""
    python = checkout / ".venv/bin/python"
    numpy = importlib.util.find_spec("numpy")
    if numpy is None or numpy.origin is None:
        raise BenchError(
            "numpy is missing: run this by .venv/bin/python, after `make bench-silicon`"
        )
    numpy_dir = str(Path(numpy.origin).parents[1])
    return (
        (str(_binary(profile, checkout)), str(GUEST)),
        (str(python), str(HERE / "silicon_python.py"), str(GUEST)),
        (str(python), str(HERE / "warmed.py"), str(GUEST), numpy_dir),
    )


def _engine(profile: str) -> Measured:
    """What the Rust bench counts."""
    return _in_machine(str(_binary(profile)), str(GUEST))


def _python() -> Measured:
    """What the library's bench counts."""
    return _in_machine(sys.executable, str(HERE / "silicon_python.py"), str(GUEST))


def _in_machine(*command: str) -> Measured:
    machine = (sys.executable, str(REPO / "tests/hwkvm/run.py"), "--smp", "1", "--icount")
    return _rows(*machine, "--timeout-s", str(_HANG_S), "--", *command)


def _rows(*argv: str) -> Measured:
    """What a command prints."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    except OSError as error:
        raise BenchError(f"{argv[0]}: {error.strerror}") from None
    if done.returncode:
        raise BenchError(f"`{' '.join(argv)}` ended with status {done.returncode}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {row.pop("row"): row for row in rows}


def beside(ratchet: Ratchet, ours: Sequence[Command], theirs: Sequence[Command], pairs: int) -> str:
    """Each row's time by two builds, and the ratio over pairs, as Markdown. Raises BenchError."""
    lines = ["| Row | This build | The other | Ratio [quartiles] |", "|---|---:|---:|---:|"]
    for commands in zip(ours, theirs, strict=True):
        runs: list[tuple[Measured, Measured]] = []
        for number in range(max(pairs, 1)):
            # Neither always comes second.
            order = commands if number % 2 == 0 else commands[::-1]
            found = {command: _rows(*command) for command in order}
            runs.append((found[commands[0]], found[commands[1]]))
        lines += _ratios(ratchet, runs)
    return "\n".join(lines)


def _ratios(ratchet: Ratchet, runs: Sequence[tuple[Measured, Measured]]) -> list[str]:
    lines = []
    for name in runs[0][0]:
        if not all(name in both and "instructions" in both[name] for run in runs for both in run):
            continue
        ns = [[both[name]["instructions"] for both in run] for run in runs]
        ratio = Spread.of([a / b for a, b in ns])
        mine, other = (Spread.of(list(side)).median / 1000 for side in zip(*ns, strict=True))
        row = ratchet.rows.get(name, Row(name, {}))
        lines.append(
            f"| {row.fields.get('what', name)} | {mine:,.1f} us | {other:,.1f} us "
            f"| {ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}] |"
        )
    return lines


def table(ratchet: Ratchet, arms: dict[str, Measured]) -> str:
    """All rows for people, as Markdown."""
    lines = [
        f"- Kernel: {machine_kernel()}; {compiler()}",
        "",
        "| Row | By | Instructions | Goal | State | X | Exits | ioctls | Bytes copied |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for arm, rows in arms.items():
        for name, counted in rows.items():
            row = ratchet.rows.get(name, Row(name, {}))
            goal = row.goal(arm, rows)
            value = counted.get("instructions", counted["x"])
            state = "" if goal is None else "holds" if value <= goal else "open"
            shown = [
                str(row.fields.get("what", name)),
                "Python" if arm == "python" else f"engine ({arm})",
                _number(counted.get("instructions"), 0),
                _number(goal, 0),
                state,
                _number(counted["x"], 2),
                _number(counted.get("exits"), 0),
                _number(counted.get("ioctls"), 0),
                _number(counted.get("bytes_copied"), 0),
            ]
            lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def risen(ratchet: Ratchet, arm: str, rows: Measured, slack: float) -> list[str]:
    """A line for each row of `arm` that is more than `slack` times what is known, or is missing."""
    lines = []
    for name, row in ratchet.rows.items():
        known = row.known(arm)
        if known is None:
            continue
        if name not in rows:
            lines.append(f"{name} ({arm}): not measured; it was {known:.3f}")
        elif rows[name]["x"] > known * slack:
            now = rows[name]["x"]
            lines.append(
                f"{name} ({arm}): {now:.3f} where it was {known:.3f}: it may only fall "
                f"({ROWS.relative_to(REPO)})"
            )
    return lines


def _risen(ratchet: Ratchet, arm: str, rows: Measured) -> list[str]:
    same = (ratchet.kernel, ratchet.compiler) == (machine_kernel(), compiler())
    return risen(ratchet, arm, rows, SLACK if same else OTHER_SLACK)


def lowered(ratchet: Ratchet, arms: dict[str, Measured]) -> Ratchet:
    """The ratchet with what was measured, where that is less."""
    rows = {}
    for name, row in ratchet.rows.items():
        fields = dict(row.fields)
        for arm in _ARMS:
            now = arms.get(arm, {}).get(name)
            if now is not None:
                known = row.known(arm)
                fields[arm] = round(now["x"] if known is None else min(known, now["x"]), 3)
        rows[name] = Row(name, fields)
    return Ratchet(machine_kernel(), compiler(), rows)


def machine_kernel() -> str:
    """The kernel of the emulated machine, by its file's name."""
    images = list((REPO / ".hw/root/boot").glob("vmlinuz-*"))
    return images[0].name.removeprefix("vmlinuz-") if len(images) == 1 else "unknown"


def compiler() -> str:
    """The Rust compiler, without the date of its making."""
    said = subprocess.run(("rustc", "--version"), capture_output=True, text=True, check=False)
    return re.sub(r" \(.*", "", said.stdout.strip()) or "unknown"


def _toml(value: str | float) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(body: str) -> None:
    page = with_section(PAGE.read_text(encoding="utf-8"), "benches/silicon.py", body)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
