"""The stubs of the extension, and a program for type checkers that has every public name."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys

import kvmlet
from unit import typed_user

ROOT = pathlib.Path(__file__).parents[2]


def test_the_stubs_are_those_of_the_extension() -> None:
    words = [sys.executable, "-m", "mypy.stubtest", "kvmlet._native", "--concise"]
    path = os.fspath(ROOT / "python")
    done = subprocess.run(
        [*words, "--mypy-config-file", ROOT / "pyproject.toml"],
        env={**os.environ, "PYTHONPATH": path, "MYPYPATH": path},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_users_program_has_every_public_name() -> None:
    tree = ast.parse(pathlib.Path(typed_user.__file__).read_text())
    used: dict[str, set[str]] = {"kvmlet": set(), "aio": set()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.setdefault(node.value.id, set()).add(node.attr)
    assert set(kvmlet.__all__) - used["kvmlet"] == {"aio"}
    assert set(kvmlet.aio.__all__) - used["aio"] == set()


def test_errors_are_the_builtin_ones_that_are_named() -> None:
    for ours, builtin in typed_user.BUILTIN.items():
        assert issubclass(ours, builtin)
