"""Writes docs/reference.md: every public name of kvmlet, as its docstring tells of it.

    make reference

The texts and examples stand in the docstrings. Here is only the order in which they are shown.
`tests/unit/test_reference.py` says if the page is out of date, or a name has no example;
`tests/e2e/test_reference.py` runs the examples.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kvmlet
import kvmlet.box
import kvmlet.sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).with_suffix(".md")

SECTIONS: dict[str, tuple[str, ...]] = {
    "Programs": ("run", "Result", "Denial", "Event", "Changes", "Kept", "INHERIT"),
    "Policies": ("Policy", "Mount", "Limits"),
    "Boxes": (
        "Box",
        "Files",
        "FileStat",
        "Watch",
        "FileChange",
        "Process",
        "TerminalSize",
        "Connection",
        "BoxSnapshot",
    ),
    "Sessions of Python": ("Interpreter", "Cell", "CellError", "InterpreterSnapshot"),
    "Isolated functions": ("isolated", "Isolated", "Call", "register_result"),
    "Frozen programs": (
        "Sandbox",
        "ProgramFiles",
        "Snapshot",
        "Output",
        "Pool",
        "PoolStats",
        "get_include",
    ),
    "Servers": ("serve", "Server", "ServerStats", "wsgi", "asgi", "WsgiApp", "AsgiApp"),
    "Coroutines": ("aio", *(f"aio.{name}" for name in kvmlet.aio.__all__)),
    "The package": ("__version__",),
    "Errors": tuple(
        name
        for name in kvmlet.__all__
        if inspect.isclass(getattr(kvmlet, name))
        and issubclass(getattr(kvmlet, name), kvmlet.KvmletError)
    ),
}
"""The names of each section. Those of files are public by `Box.files` and `Sandbox.files` alone."""

TEXTS = {
    "INHERIT": """For `stdout` and `stderr` of `run`: output goes where this process's own goes.

        >>> kvmlet.run(["true"], stdout=kvmlet.INHERIT, stderr=kvmlet.INHERIT).ok
        True
    """,
    "__version__": """The version of the package, "0+unknown" in a tree that was never built.

        >>> isinstance(kvmlet.__version__, str)
        True
    """,
}
"""The texts of values, which have no docstring."""

PROGRAM = (
    "python3",
    "-c",
    "import kvmlet_guest as g; [g.send(m[::-1]) for m in iter(g.receive, b'')]",
)
"""The program of the examples: it answers each message with its bytes in reverse."""

HEAD = f"""# Reference

Every public name, as its docstring tells of it. `make reference` writes this page.
`tests/e2e/test_reference.py` runs each example, in an empty directory, after these lines:

```python
import kvmlet

# Answers each message with its bytes in reverse.
program = {list(PROGRAM)!r}
snapshot = kvmlet.Sandbox(program).until_ready().freeze()
```

Times are in seconds, or text as "500ms" and "2m"; sizes in bytes, or text as "64m" and "1g". Errors
of kvmlet are all `KvmletError`s, with a `message` and a `remedy`.
"""


def named(name: str) -> Any:
    """The object of a name in `SECTIONS`."""
    for module in (kvmlet.box, kvmlet.sandbox):
        if name in module.__all__:
            return getattr(module, name)
    found: Any = kvmlet
    for part in name.split("."):
        found = getattr(found, part)
    return found


def text_of(name: str) -> str:
    """The docstring of a name, "" if it has none of its own."""
    found = named(name)
    return inspect.cleandoc(TEXTS.get(name) or found.__doc__ or "")


def examples() -> Iterator[tuple[str, str]]:
    """Each name with its text, in the order of the page."""
    for names in SECTIONS.values():
        for name in names:
            yield name, text_of(name)


# ---- a docstring as Markdown ----

_ENTRY = re.compile(r"(?P<names>\w+(?:, \w+)*): (?=\S)")
_ERROR = re.compile(r"\b(?P<name>[A-Z]\w+)\b")
_ERRORS = {*SECTIONS["Errors"]}


def markdown(text: str, owner: str) -> str:
    """A docstring's paragraphs; what is indented is code, and "name: text" an entry of a list."""
    return "\n\n".join(filter(None, (_paragraph(each, owner) for each in re.split(r"\n\n+", text))))


def _paragraph(paragraph: str, owner: str) -> str:
    lines = paragraph.splitlines()
    # Behind a text of one line nothing shows that an example is indented.
    if lines[0].startswith(">>>") or all(line.startswith("    ") for line in lines):
        code = textwrap.dedent(paragraph).strip("\n")
        return f"```{'pycon' if code.startswith('>>>') else 'text'}\n{code}\n```"
    if _ENTRY.match(lines[0]):
        return _entries(lines, owner)
    # A part of it may be code, behind a line that introduces it.
    code_at = next((at for at, line in enumerate(lines) if line.startswith("    ")), len(lines))
    text = _linked(" ".join(lines[:code_at]), owner)
    if code_at < len(lines):
        text += "\n\n" + _paragraph("\n".join(lines[code_at:]), owner)
    return text


def _entries(lines: list[str], owner: str) -> str:
    """Lines of "name: text", which go on where they are indented; then a text, if there is one."""
    entries: list[str] = []
    rest: list[str] = []
    for line in lines:
        found = _ENTRY.match(line)
        if rest or not (found or line.startswith("    ")):
            rest.append(line)
        elif found:
            names = ", ".join(f"`{name}`" for name in found["names"].split(", "))
            entries.append(f"- {names}: {line[found.end() :]}")
        else:
            entries[-1] += f" {line.strip()}"
    text = "\n".join(_linked(entry, owner) for entry in entries)
    return f"{text}\n\n{_linked(' '.join(rest), owner)}" if rest else text


def _linked(text: str, owner: str) -> str:
    """`text` with each error, but for the one that it is about, as a link to its section."""

    def link(found: re.Match[str]) -> str:
        name = found["name"]
        return f"[{name}](#{name.lower()})" if name in _ERRORS and name != owner else name

    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else _ERROR.sub(link, piece) for piece in pieces)


# ---- names and their members ----


def section_of(name: str) -> Iterator[str]:
    """The lines of a name: its text with the example, then its members."""
    found = named(name)
    yield f"### {name}\n"
    if inspect.isclass(found):
        bases = [base for base in found.__bases__ if base not in (object, Exception)]
        shown = [_base(base) for base in bases if _base(base)]
        if shown:
            yield f"Also a {', '.join(shown)}.\n"
        if _made(found):
            yield f"```python\n{_signature(name, found.__init__)}\n```\n"
    elif inspect.isroutine(found):
        yield f"```python\n{_signature(name, found)}\n```\n"
    yield markdown(text_of(name), name) + "\n"
    if inspect.isclass(found):
        yield from _members(name, found)


def _base(base: type) -> str:
    if base.__name__ in _ERRORS:
        return f"[{base.__name__}](#{base.__name__.lower()})"
    return (
        f"`{base.__name__}`" if base.__module__ in ("builtins", "concurrent.futures._base") else ""
    )


def _is_plain(found: type) -> bool:
    """True for a value that is made of its fields, which are listed."""
    return dataclasses.is_dataclass(found) or issubclass(found, (tuple, list, enum.Enum, Exception))


def _members(name: str, found: type) -> Iterator[str]:
    if _made(found):
        yield markdown(_made(found), name) + "\n"
    fields = list(_fields(found))
    for field, kind, text in fields:
        yield f"- `{field}: {kind}`" + (f": {_linked(text, name)}" if text else "")
    if fields:
        yield ""
    for member, value in vars(found).items():
        if member.startswith("_") and member != "__call__":
            continue
        if isinstance(value, property):
            text = inspect.cleandoc(value.__doc__ or "")
            yield f"#### {name}.{member}\n\n{markdown(text, name)}\n"
            continue
        function = getattr(value, "__func__", value)
        if inspect.isfunction(function):
            text = inspect.cleandoc(function.__doc__ or "")
            shown = name if member == "__call__" else f"{name}.{member}"
            title = f"{name}()" if member == "__call__" else shown
            yield f"#### {title}\n"
            yield f"```python\n{_signature(shown, function)}\n```\n\n{markdown(text, name)}\n"


def _made(found: type) -> str:
    """The text of a class on how it is made, "" for one that something else makes."""
    made = vars(found).get("__init__")
    if _is_plain(found) or not inspect.isfunction(made):
        return ""
    return inspect.cleandoc(made.__doc__ or "")


def _fields(found: type) -> Iterator[tuple[str, str, str]]:
    """Name, type and text of each public attribute that the class body declares."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(found)))
    (cls,) = tree.body
    assert isinstance(cls, ast.ClassDef)
    for statement, after in zip(cls.body, [*cls.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        field = statement.target.id
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
        if not field.startswith("_"):
            yield field, ast.unparse(statement.annotation), text


def _signature(name: str, function: Any) -> str:
    """The call in Python's words, on one line or with one parameter on each."""
    signature = inspect.signature(function, follow_wrapped=True)
    parameters = [
        each for each in signature.parameters.values() if each.name not in ("self", "cls")
    ]
    kinds = inspect.Parameter
    words: list[str] = []
    has_star = False
    for each in parameters:
        if each.kind is kinds.KEYWORD_ONLY and not has_star:
            words.append("*")
            has_star = True
        has_star |= each.kind is kinds.VAR_POSITIONAL
        words.append(_parameter(each))
    waits = "await " if inspect.iscoroutinefunction(function) else ""
    returns = signature.return_annotation
    end = "" if returns in (inspect.Signature.empty, "None") else f" -> {_type(returns)}"
    line = f"{waits}{name}({', '.join(words)}){end}"
    if len(line) <= 100:
        return line
    inner = "".join(f"    {word},\n" for word in words)
    return f"{waits}{name}(\n{inner}){end}"


def _parameter(each: inspect.Parameter) -> str:
    stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
    text = f"{stars}{each.name}"
    if each.annotation is not each.empty:
        text += f": {_type(each.annotation)}"
    if each.default is not each.empty:
        shown = getattr(each.default, "__name__", repr(each.default))
        text += f"={shown}" if each.annotation is each.empty else f" = {shown}"
    return text


def _type(annotation: object) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, names in SECTIONS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += section_of(name)
    text = "\n".join(
        part.rstrip() if not part.startswith("- ") else part for part in _spaced(parts)
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _spaced(parts: list[str]) -> Iterator[str]:
    for part in parts:
        yield part
        if not part.startswith("- "):
            yield ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
