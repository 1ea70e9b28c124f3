"""TOML with places: errors name the file, the line and the column of what is wrong."""

from __future__ import annotations

import contextlib
import re
import tomllib
from typing import TYPE_CHECKING, Any, NoReturn

from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterator, Mapping

_DECODE_ERROR = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_TABLE = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(?:#.*)?$")
_KEY = re.compile(r"""(\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[A-Za-z0-9_-]+)\s*[=.]""")


class Document:
    """A document, and the places of its keys."""

    def __init__(self, text: str, name: str) -> None:
        """Raises UsageError."""
        self._text = text
        self._name = name
        try:
            self._content = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = _DECODE_ERROR.fullmatch(str(error))
            said, line, column = found.groups() if found else (str(error), None, None)
            if line is None:
                line, column = self._end()
            remedy = 'texts stand in quotes, as in "1g"'
            raise self._error(line, column, said.lower(), remedy) from None
        except RecursionError:
            raise self._error(1, 1, "nested too deep", "see toml.io") from None

    @property
    def name(self) -> str:
        """Its name in errors."""
        return self._name

    def items(self) -> ItemsView[str, Any]:
        """Its keys and their values."""
        return self._content.items()

    def strings(self, path: tuple[str, ...], value: object) -> list[str]:
        """`value` as a list of strings. Raises UsageError."""
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            self.fail(path, f"{path[-1]} is no list of strings", f'write {path[-1]} = ["..."]')
        return value

    def table(self, path: tuple[str, ...], value: object) -> dict[str, Any]:
        """`value` as a table. Raises UsageError."""
        if not isinstance(value, dict):
            self.fail(path, f"{path[-1]} is no table", f"write [{path[-1]}] and its lines")
        return value

    def string(self, path: tuple[str, ...], value: object) -> str:
        """`value` as a string. Raises UsageError."""
        if not isinstance(value, str):
            self.fail(path, f"{path[-1]} is no string", f'write {path[-1]} = "..."')
        return value

    def fail(self, path: tuple[str, ...], what: str, remedy: str) -> NoReturn:
        """Raise UsageError for the value at `path`."""
        line, column = self._place(path)
        raise self._error(line, column, what, remedy)

    @contextlib.contextmanager
    def at(self, path: tuple[str, ...]) -> Iterator[None]:
        """Within this, a UsageError is one about the value at `path`."""
        try:
            yield
        except UsageError as error:
            line, column = self._place(path)
            raise self._error(line, column, error.message, error.remedy) from None

    def _error(self, line: object, column: object, what: str, remedy: str) -> UsageError:
        return UsageError(f"{self._name}:{line}:{column}: {what}", remedy=remedy)

    def _end(self) -> tuple[int, int]:
        lines = self._text.split("\n")
        return len(lines), len(lines[-1]) + 1

    def _place(self, path: tuple[str, ...]) -> tuple[int, int]:
        """Line and column of a key; of the nearest one around it if it is not on a line's start."""
        table: tuple[str, ...] = ()
        best, best_length = (1, 1), 0
        for number, line in enumerate(self._text.split("\n"), 1):
            header = _TABLE.match(line)
            if header:
                table = tuple(_bare(each) for each in header[1].split("."))
                found, column = table, len(line) - len(line.lstrip()) + 1
            elif key := _KEY.match(line):
                found, column = (*table, _bare(key[2])), len(key[1]) + 1
            else:
                continue
            if found == path[: len(found)] and len(found) > best_length:
                best, best_length = (number, column), len(found)
        return best


def _bare(key: str) -> str:
    key = key.strip()
    return key[1:-1] if key[:1] in "\"'" and len(key) > 1 else key


def toml(lists: Mapping[str, list[str]], tables: Mapping[str, Mapping[str, object]]) -> str:
    """Lists of strings, then tables of strings and whole numbers; none that is empty."""
    lines = [
        f"{key} = [{', '.join(string(value) for value in values)}]"
        for key, values in lists.items()
        if values
    ]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]"] if lines else [f"[{name}]"]
            lines += [f"{_key(key)} = {_value(value)}" for key, value in table.items()]
    return "".join(f"{line}\n" for line in lines)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else string(key)


def _value(value: object) -> str:
    return str(value) if isinstance(value, int) else string(str(value))


_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def string(text: str) -> str:
    """`text` as TOML has it."""
    shown = []
    for char in text:
        escape = _ESCAPES.get(char)
        if escape is None and (ord(char) < 0x20 or ord(char) == 0x7F):
            escape = f"\\u{ord(char):04x}"
        shown.append(escape or char)
    return f'"{"".join(shown)}"'
