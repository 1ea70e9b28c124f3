"""Isolated functions and sessions in whatever way Python was started, and with tools attached."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

from e2e.oracle import HANG_S, HW, LONG, NO_RUNTIMES, ROOT

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

SCRIPT = """
import kvmlet
import neighbour

@kvmlet.isolated(size=1, timeout=60)
def double(number):
    return neighbour.twice(number)

class Scale:
    factor = 3

    @kvmlet.isolated(size=1, timeout=60)
    def apply(self, number):
        return self.factor * number

    @staticmethod
    @kvmlet.isolated(size=1, timeout=60)
    def half(number):
        return number // 2

def main():
    print(double(21), Scale().apply(5), Scale.half(8), list(Scale.half.map([2, 4])))
    with kvmlet.Interpreter() as py:
        print(py.run("6 * 7").value)

if __name__ == "__main__":
    main()
"""
SAID = "42 15 4 [1, 2]\n42\n"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "program.py").write_text(SCRIPT)
    (tmp_path / "neighbour.py").write_text("def twice(number):\n    return 2 * number\n")
    return tmp_path


def said(argv: list[str], folder: pathlib.Path, **env: str) -> str:
    """The output of a program of this library's users."""
    done = subprocess.run(
        argv,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT / "python"), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_relative_path(folder: pathlib.Path) -> None:
    python = os.path.relpath(sys.executable, folder)
    assert said([python, "program.py"], folder) == SAID


def test_a_link_to_the_interpreter(folder: pathlib.Path) -> None:
    link = folder / "python-of-mine"
    link.symlink_to(os.path.realpath(sys.executable))
    path = os.pathsep.join([os.fspath(ROOT / "python"), *filter(None, sys.path)])
    assert said(["./python-of-mine", "program.py"], folder, PYTHONPATH=path) == SAID


def test_a_link_to_the_script(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    place = folder / "elsewhere"
    place.mkdir()
    (place / "linked.py").symlink_to("../program.py")
    assert said([sys.executable, "elsewhere/linked.py"], folder) == SAID


def test_a_module_of_a_package(folder: pathlib.Path) -> None:
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text("from .work import main\nmain()\n")
    (package / "work.py").write_text(SCRIPT)
    assert said([sys.executable, "-m", "package"], folder) == SAID


def test_standard_input_and_command(folder: pathlib.Path) -> None:
    """Functions of a program that no file has."""
    assert said([sys.executable, "-c", SCRIPT], folder) == SAID


POOL = """
import multiprocessing
import sys
from program import double

if __name__ == "__main__":
    assert double(1) == 2  # warmed before the children are there
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.map(double, range(4)), pool.apply(double, (10,)))
    print(double(3))
"""


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"] if LONG else ["fork"])
def test_a_pool_of_processes(folder: pathlib.Path, way: str) -> None:
    (folder / "pool.py").write_text(POOL)
    assert said([sys.executable, "pool.py", way], folder) == "[0, 2, 4, 6] 20\n6\n"


@pytest.mark.skipif(not LONG, reason="these tests are under pytest too: tried in make test-long")
def test_under_pytest(folder: pathlib.Path) -> None:
    (folder / "test_it.py").write_text(
        "import kvmlet, program\n"
        "@kvmlet.isolated\n"
        "def here(number):\n"
        "    assert number > 0, 'too small'\n"
        "    return number\n"
        "def test_it():\n"
        "    assert program.double(4) == 8\n"
        "    assert here(1) == 1\n"
        "    try:\n"
        "        here(-1)\n"
        "    except AssertionError as error:\n"
        "        assert 'too small' in str(error)\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    assert "1 passed" in said(words, folder)


def test_a_debugger(folder: pathlib.Path) -> None:
    line = SCRIPT.splitlines().index("def main():") + 2
    commands = [f"break program.py:{line}", "continue", "continue", "quit"]
    words = [word for command in commands for word in ("-c", command)]
    output = said([sys.executable, "-m", "pdb", *words, "program.py"], folder)
    assert "Breakpoint 1" in output
    assert SAID in output


@pytest.mark.skipif(not LONG, reason="seconds of tracing: tried in make test-long")
def test_a_trace_of_all_lines(folder: pathlib.Path) -> None:
    ignored = os.pathsep.join({sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)})
    words = ["-m", "trace", "--count", "-C", "counts", f"--ignore-dir={ignored}"]
    assert said([sys.executable, *words, "program.py"], folder).startswith(SAID)
    assert (folder / "counts/program.cover").exists()


CELLS = """
import linecache
cells = [
    "import kvmlet, neighbour\\nfactor = 3",
    "@kvmlet.isolated(size=1, timeout=60)\\ndef f(x):\\n    return neighbour.twice(x) * factor",
    "print(f(7))",
    "factor = 4\\nprint(f(7))",
    "try:\\n    f(None)\\nexcept TypeError as error:\\n    print(error.guest_traceback)",
]
for number, cell in enumerate(cells):
    name = f"<ipython-input-{number}>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(True), name)
    exec(compile(cell, name, "exec"), globals())
"""


def test_cells_of_a_notebook(folder: pathlib.Path) -> None:
    """As a kernel runs them: code of no file, in the main module, with names that change."""
    (folder / "kernel.py").write_text(CELLS)
    output = said([sys.executable, "kernel.py"], folder).splitlines()
    assert output[:2] == ["42", "56"]
    assert '"<ipython-input-1>", line 3' in "\n".join(output)


needs = pytest.mark.skipif(
    not LONG, reason="takes packages of the group `long`: tried in make test-long"
)


def installed(*modules: str) -> None:
    for module in modules:
        assert importlib.util.find_spec(module), f"{module} is missing: pip install --group long"


@needs
def test_coverage(folder: pathlib.Path) -> None:
    installed("coverage")
    words = [sys.executable, "-m", "coverage", "run", "--branch", "program.py"]
    assert said(words, folder, PYTHONPATH=os.fspath(ROOT / "python")) == SAID
    assert "program.py" in said([sys.executable, "-m", "coverage", "report"], folder)


@needs
def test_a_kernel_of_jupyter(folder: pathlib.Path) -> None:
    installed("nbclient", "ipykernel", "nbformat")
    code = """
        import nbclient, nbformat
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(text) for text in (
            "import kvmlet, neighbour",
            "@kvmlet.isolated(size=1, timeout=60)\\ndef f(x):\\n    return neighbour.twice(x)",
            "f(21)",
            "import asyncio\\nawait f.aio(4)",
            "async with kvmlet.aio.Box() as box:\\n"
            "    said = (await box.run(['echo', 'a'], text=True)).stdout\\nsaid",
        )]
        nbclient.NotebookClient(notebook, timeout=100, kernel_name="python3").execute()
        for cell in notebook.cells[2:]:
            print(cell.outputs[-1]["data"]["text/plain"])
    """
    assert said([sys.executable, "-c", textwrap.dedent(code)], folder) == "42\n8\n'a\\n'\n"
