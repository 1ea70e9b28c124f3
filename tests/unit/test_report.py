"""The page of figures that a bench writes."""

from __future__ import annotations

import pathlib
import sys
from argparse import Namespace

import pytest

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benches"))

import report
from measure import BenchError, Spread
from report import Case, Promise, Row, cpu_model, parser, run, section, with_section

PAGE = """# Figures

Kept by hand.

<!-- written by benches/a.py -->
old figures
<!-- end of benches/a.py -->

<!-- written by benches/b.py -->
other figures
<!-- end of benches/b.py -->
"""


def row(what: str, ratio: float, promise: Promise | None = None) -> Row:
    return Row(what, 2_500.0, 1_000.0, Spread(ratio, ratio - 0.1, ratio + 0.1), promise)


def test_a_section_is_replaced_and_nothing_else() -> None:
    page = with_section(PAGE, "benches/a.py", "new figures")
    assert page == PAGE.replace("old figures", "new figures")
    assert with_section(page, "benches/a.py", "old figures") == PAGE


def test_a_section_without_markers_comes_to_the_end() -> None:
    page = with_section(PAGE, "benches/c.py", "new figures")
    assert page.startswith(PAGE)
    again = with_section(page, "benches/c.py", "newer figures")
    assert again == page.replace("new figures", "newer figures")


def test_half_a_section_is_refused() -> None:
    for marker in ("<!-- written by benches/a.py -->", "<!-- end of benches/a.py -->"):
        with pytest.raises(BenchError, match="one of the markers"):
            with_section(PAGE.replace(marker, ""), "benches/a.py", "new figures")


@pytest.mark.parametrize("bench", ["run", "fork", "calls", "faults", "profile", "silicon"])
def test_the_page_of_the_repository_has_a_place_for_each_bench(bench: str) -> None:
    name = f"benches/{bench}.py"
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs/measurements.md").read_text()
    assert f"<!-- written by {name} -->" in page
    assert f"<!-- end of {name} -->" in page
    assert (root / name).exists()


def test_rows_and_failures_are_a_table() -> None:
    groups = {
        "calls": [row("a | b", 2.5, Promise("<=", 2, "X")), row("plain", 2.5)],
        "start": [],
    }
    text = section(groups, {"start": "no\nKVM"}, ["Day: today"])
    assert text.splitlines() == [
        "- Day: today",
        "",
        "| Group | What | kvmlet | Compared with | Ratio [quartiles] | Promise | State |",
        "|---|---|---:|---:|---|---|---|",
        r"| calls | a \| b | 2.50 us | 1.00 us | 2.500 [2.400, 2.600] | <= 2 X | open |",
        "| calls | plain | 2.50 us | 1.00 us | 2.500 [2.400, 2.600] |  |  |",
        "| start | failed: no KVM | | | | | |",
    ]


def test_the_model_of_the_cpu() -> None:
    assert cpu_model("processor\t: 0\nmodel name\t: A CPU: fast\n") == "A CPU: fast"
    assert cpu_model("") == "unknown"


@pytest.fixture
def page(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "build", lambda: None)
    monkeypatch.setattr(report, "BUILD", tmp_path)
    monkeypatch.delenv("KVMLET_BENCH_PAIRS", raising=False)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    return page


def options(*words: str) -> Namespace:
    return parser("a.py", None, ["calls"]).parse_args(words)


def test_a_run_writes_its_section(page: pathlib.Path) -> None:
    case = Case("calls", lambda pairs: [row(f"{pairs} pairs", 1.5)])
    assert run([case], options("--write", "page.md")) == 0
    written = page.read_text()
    assert "| calls | 15 pairs | 2.50 us |" in written
    assert "old figures" not in written
    assert "other figures" in written
    for line in ("- Day: 20", "- Kernel: Linux ", "- CPU: ", "- Pairs: 15"):
        assert line in written


def test_part_of_a_run_writes_nothing(
    page: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(_pairs: int) -> list[Row]:
        raise AssertionError

    case = Case("calls", never)
    assert run([case], options("--write", "page.md", "--only", "calls")) == 2
    assert run([case], options("--write", "missing.md")) == 2
    monkeypatch.setenv("KVMLET_BENCH_PAIRS", "3")
    assert run([case], options("--write", "page.md")) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in told] == ["bench"] * 3
    assert page.read_text() == PAGE
