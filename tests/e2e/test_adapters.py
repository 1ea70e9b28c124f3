"""Each adapter of examples/adapters, tried against the real package of PyPI without any model.

An adapter has a virtual environment of its own below .cache, made when it is first tried. The
package kvmlet in it is the one of this tree.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

import kvmlet
from e2e.oracle import HW, LONG, NO_RUNTIMES

ROOT = pathlib.Path(__file__).parents[2]
ADAPTERS = ROOT / "examples/adapters"
CHECKS = ROOT / "tests/adapters"

# Those of a check, beside cloudpickle, which kvmlet needs, and pytest.
PACKAGES = {
    "deepagents": ["deepagents>=0.7,<0.8"],
    "inspect": ["inspect-ai>=0.3.285,<0.4"],
    "langchain": ["langchain-core>=1.8,<2"],
    "mcp": ["mcp>=2.3,<3"],
    "openai_agents": ["openai-agents>=0.24,<0.25"],
    "smolagents": ["smolagents>=1.26,<2", "numpy>=2"],
}


def python_with(name: str) -> pathlib.Path:
    """The interpreter of the environment that has a check's packages."""
    wanted = [*PACKAGES[name], "cloudpickle>=3", "pytest>=8.4"]
    place = ROOT / ".cache/adapters" / name
    python = place / "bin/python"
    stamp = place / "packages"
    said = "\n".join([sys.version, os.fspath(ROOT), *wanted])
    if not stamp.exists() or stamp.read_text() != said:
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        pip = [os.fspath(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True)
        (site,) = place.glob("lib/python*/site-packages")
        package = pathlib.Path(kvmlet.__file__).parents[1]
        (site / "kvmlet-of-this-tree.pth").write_text(f"{package}\n")
        stamp.write_text(said)
    return python


@pytest.mark.default_mode
@pytest.mark.usefixtures("vm")
@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
@pytest.mark.skipif(not LONG, reason="installs packages from PyPI: tried in make test-long")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PACKAGES)
def test_adapter(name: str, tmp_path: pathlib.Path) -> None:
    words = [
        os.fspath(python_with(name)),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
    ]
    done = subprocess.run(
        [*words, "--rootdir", CHECKS, CHECKS / f"check_{name}.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(ADAPTERS)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]


def test_each_adapter_is_short_and_is_tried() -> None:
    files = sorted(ADAPTERS.glob("*.py"))
    assert len(files) == len(PACKAGES)
    for file in files:
        source = file.read_text()
        compile(source, file, "exec")
        assert sum(bool(line.strip()) for line in source.splitlines()) <= 60, file.name
        checks = [check.read_text() for check in CHECKS.glob("check_*.py")]
        assert sum(f"import {file.stem}" in text or f"from {file.stem} " in text for text in checks)
    assert sorted(CHECKS.glob("check_*.py")) == [CHECKS / f"check_{name}.py" for name in PACKAGES]
