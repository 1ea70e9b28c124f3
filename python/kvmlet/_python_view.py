"""The files of this interpreter and of its modules, as far as a guest that runs it needs them.

A guest sees whole libraries: the interpreter's own, and folders that packages are installed in. Of
any other folder on `sys.path`, such as a script's, it sees the files of modules and nothing else.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

from kvmlet import _tree
from kvmlet._launch import guest_modules, readable_path
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_INSTALLED = ("site-packages", "dist-packages")
# A folder with more of them is none that somebody keeps modules in.
_MODULES_MAX = 2000
_SUFFIXES = (".py", ".pyc", ".so")


class View(NamedTuple):
    """The files that an interpreter needs."""

    executable: str
    """The interpreter, absolute."""
    path: list[str]
    """`sys.path` of the guest."""
    readable: list[bytes]
    """Files and directories that it may read, absolute."""


def libraries(modules: Iterable[str]) -> View:
    """The libraries of this interpreter, this package, and the files of `modules`."""
    path = [entry for entry in _entries() if _is_library(entry)]
    files = list(_package())
    for name in modules:
        for file in _files_of(name.partition(".")[0]):
            files.append(file)
            path.append(os.path.dirname(file))
    return _view(path, files)


def everything_importable(modules: Iterable[str]) -> View:
    """The same, with all modules that this process has imported or finds in folders of its own.

    In a home directory, and above one, only those that have been imported are visible.
    """
    entries = _entries()
    files = list(_package())
    for entry in entries:
        if not (_is_library(entry) or _tree.is_private(os.fsencode(entry))):
            files += _modules_in(entry)
    for name in {*modules, *(name for name in list(sys.modules) if "." not in name)}:
        files += _files_of(name.partition(".")[0])
    return _view(entries, files)


def _executable() -> str:
    """The interpreter's path from / on: Python keeps ".." and links as it was started by them.

    A link to it stays one: a virtual environment is found beside that.
    """
    if not sys.executable:
        raise UsageError(
            "this program's interpreter is unknown (sys.executable is empty)",
            remedy="start Python by its path, or set sys.executable",
        )
    folder, name = os.path.split(os.path.abspath(sys.executable))
    return os.path.join(os.path.realpath(folder), name)


def _entries() -> list[str]:
    """`sys.path` with full names: what is there of it."""
    entries = [os.path.realpath(entry or os.curdir) for entry in sys.path if isinstance(entry, str)]
    return [entry for entry in dict.fromkeys(entries) if os.path.exists(entry)]


def _prefixes() -> set[str]:
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    return {os.path.realpath(prefix) for prefix in prefixes if os.path.isdir(prefix)}


def _is_library(entry: str) -> bool:
    if os.path.isfile(entry) or os.path.basename(entry) in _INSTALLED:
        return True
    data = os.fsencode(entry)
    # A virtual environment may lie in a project, but no project in an installation.
    return any(_tree.beneath(os.fsencode(prefix), data) for prefix in _prefixes())


def _package() -> tuple[str, str]:
    """This package, and the modules of guests, which lie in it."""
    package = os.path.dirname(os.path.abspath(__file__))
    return os.path.realpath(package), guest_modules()


def _files_of(name: str) -> Iterator[str]:
    """The files of a module or package without a dot in its name; none of a builtin one."""
    module = sys.modules.get(name)
    spec = getattr(module, "__spec__", None)
    if module is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # the guest tells it better
            return
    if spec is None:
        file = getattr(module, "__file__", None)  # a script
        if isinstance(file, str) and os.path.isfile(file):
            yield os.path.abspath(file)
        return
    if spec.submodule_search_locations is not None:
        for folder in spec.submodule_search_locations:
            if isinstance(folder, str) and os.path.isdir(folder):
                yield os.path.abspath(folder)
    elif spec.has_location:
        for file in (spec.origin, spec.cached):
            if isinstance(file, str) and os.path.isfile(file):
                yield os.path.abspath(file)


def _modules_in(folder: str) -> list[str]:
    """The files of modules and the folders of packages in a folder."""
    found: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem = entry.name.partition(".")[0]
                if not stem.isidentifier():
                    continue
                is_module = entry.name.endswith(_SUFFIXES) and entry.is_file()
                if is_module or os.path.isfile(os.path.join(entry.path, "__init__.py")):
                    found.append(entry.path)
                if len(found) > _MODULES_MAX:
                    return []
    except OSError:
        return []
    return found


def _view(path: list[str], files: list[str]) -> View:
    executable = _executable()
    wanted = [executable, *sorted(_prefixes()), *filter(_is_library, path), *files]
    readable: dict[bytes, None] = {}
    for each in wanted:
        if not os.path.exists(each):
            continue
        for file in readable_path(each, "sys.path"):
            if not _tree.is_private(file):
                readable[file] = None
    parent = os.path.dirname(_package()[0])
    # Of this package's folder only what `files` has is visible.
    path = list(dict.fromkeys([*path, parent]))
    return View(executable, path, _without_inner(list(readable)))


def _without_inner(files: list[bytes]) -> list[bytes]:
    """Without what lies in another one of them."""
    trees = set(files)

    def lies_in_another(file: bytes) -> bool:
        at = os.path.dirname(file)
        while at not in (b"", b"/"):
            if at in trees and not os.path.islink(at):
                return True
            at = os.path.dirname(at)
        return False

    return [file for file in files if not lies_in_another(file)]
