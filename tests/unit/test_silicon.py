"""The ratchet of instructions: a row that rises fails, and one that falls is remembered."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benches"))

import silicon
from measure import BenchError
from silicon import Ratchet, Row, lowered, multiples, risen

ROWS = {
    "call": Row("call", {"what": "a call", "goal": 2.0, "quick": 3.0, "release": 2.5}),
    "fork": Row("fork", {"what": "a fork", "goal": 10.0, "goal_beside": "creation"}),
}
RATCHET = Ratchet("6.1.0", "rustc 1.88.0", ROWS)


def counted(**rows: float) -> silicon.Measured:
    return {name: {"x": x} for name, x in rows.items()}


def test_counts_become_multiples_of_the_exit_in_the_same_run() -> None:
    rows = multiples(
        {
            "bare_exit": {"instructions": 3000.0},
            "call": {"instructions": 7500.0, "exits": 2.0},
            "forks": {"instructions": 9000.0, "bytes_beside_pages": 512.0},
        }
    )
    assert rows["call"] == {"instructions": 7500.0, "exits": 2.0, "x": 2.5}
    assert rows["fork_memory"] == {"x": 512.0}
    with pytest.raises(BenchError, match="no exit"):
        multiples({"call": {"instructions": 1.0}})


def test_a_row_that_rises_fails() -> None:
    assert risen(RATCHET, "quick", counted(call=3.05, fork=99.0), 1.02) == []
    (line,) = risen(RATCHET, "quick", counted(call=3.07), 1.02)
    assert "call (quick): 3.070 where it was 3.000" in line
    (line,) = risen(RATCHET, "release", counted(fork=1.0), 1.02)
    assert "call (release): not measured" in line
    assert risen(RATCHET, "python", counted(call=99.0), 1.02) == []


def test_rows_are_lowered_and_never_raised() -> None:
    now = lowered(RATCHET, {"quick": counted(call=2.8), "release": counted(call=2.9, fork=7.0)})
    assert now.rows["call"].known("quick") == 2.8
    assert now.rows["call"].known("release") == 2.5
    assert now.rows["fork"].known("release") == 7.0
    assert now.rows["fork"].known("quick") is None


def test_a_goal_may_stand_beside_what_was_counted_with_it() -> None:
    assert ROWS["call"].goal("quick", {}) == 2.0
    assert ROWS["call"].goal("python", {}) is None
    assert ROWS["fork"].goal("quick", {"creation": {"instructions": 200.0}}) == 210.0


def test_the_repository_has_rows_and_they_survive_being_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratchet = Ratchet.read()
    goals = [row.goal("quick", {}) for row in ratchet.rows.values()]
    assert len([goal for goal in goals if goal is not None]) >= 12
    monkeypatch.setattr(silicon, "ROWS", tmp_path / "silicon.toml")
    ratchet.write()
    assert Ratchet.read() == ratchet
    silicon.ROWS.write_text("kernel = ")
    with pytest.raises(BenchError, match=r"silicon\.toml"):
        Ratchet.read()


def test_two_engines_are_compared_in_pairs(tmp_path: pathlib.Path) -> None:
    commands = []
    for name, time_ns in [("ours", 2000.0), ("other", 4000.0)]:
        engine = tmp_path / name
        engine.write_text(
            f'#!/bin/sh\necho \'{{"row": "call", "instructions": {time_ns}}}\'\n'
            f'echo \'{{"row": "only_{name}", "instructions": 1.0}}\'\n'
        )
        engine.chmod(0o755)
        commands.append([(str(engine),), ("echo", f'{{"row": "{name}", "instructions": 1.0}}')])
    ours, other = commands
    *_, row = silicon.beside(RATCHET, ours, other, pairs=3).splitlines()
    assert row.endswith("| 2.0 us | 4.0 us | 0.500 [0.500, 0.500] |")
    (tmp_path / "ours").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(BenchError, match="ended with status 3"):
        silicon.beside(RATCHET, ours, other, pairs=1)
    with pytest.raises(BenchError, match="No such file"):
        silicon.beside(RATCHET, [(str(tmp_path / "none"),)], other[:1], pairs=1)


def test_the_other_checkout_must_be_built(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["silicon.py", "--beside", str(tmp_path)])
    assert silicon.main() == 2
    assert "is missing" in capsys.readouterr().err
