"""The files that a guest sees of this interpreter and of its modules."""

from __future__ import annotations

import os
import pathlib
import sys

import pytest

from kvmlet import _python_view
from kvmlet._python_view import everything_importable, libraries


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A script's folder on sys.path: a module, a package, and what is none of them."""
    (tmp_path / "view_module.py").write_text("")
    (tmp_path / "view_package").mkdir()
    (tmp_path / "view_package" / "__init__.py").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / ".env").write_text("secret")
    (tmp_path / "view-script.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def within(view: _python_view.View, folder: pathlib.Path) -> list[str]:
    prefix = os.fsencode(folder) + b"/"
    return sorted(
        os.fsdecode(path[len(prefix) :]) for path in view.readable if path.startswith(prefix)
    )


def test_a_folder_shows_its_modules_only(folder: pathlib.Path) -> None:
    view = everything_importable([])
    assert within(view, folder) == ["view_module.py", "view_package"]
    assert str(folder) in view.path
    assert os.fsencode(folder) not in view.readable


def test_a_home_directory_shows_what_is_imported(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert within(everything_importable([]), folder) == []
    assert within(everything_importable(["view_package.inner"]), folder) == ["view_package"]
    (folder / "view_loaded.py").write_text("")
    __import__("view_loaded")
    shown = within(everything_importable([]), folder)
    assert "view_loaded.py" in shown
    assert "view_module.py" not in shown


def test_a_session_sees_libraries_and_what_it_imports(folder: pathlib.Path) -> None:
    view = libraries([])
    assert within(view, folder) == []
    assert str(folder) not in view.path
    view = libraries(["view_module", "json"])
    assert within(view, folder) == ["view_module.py"]
    assert str(folder) in view.path


def test_the_interpreter_and_the_package_are_visible() -> None:
    for view in (libraries([]), everything_importable([])):
        shown = set(view.readable)
        for needed in (sys.prefix, sys.base_prefix, os.path.dirname(_python_view.__file__)):
            at = os.fsencode(os.path.realpath(needed))
            while at not in shown and at != b"/":
                at = os.path.dirname(at)
            assert at in shown, needed
        assert len(shown) == len(view.readable)


def test_a_folder_of_very_many_files_shows_none(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_python_view, "_MODULES_MAX", 1)
    assert within(everything_importable([]), folder) == []
