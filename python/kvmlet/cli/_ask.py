"""`--changes ask`: a summary of the changes on the terminal, and a question."""

import os
import select
import stat as _stat
from difflib import unified_diff

from kvmlet._changes.keep import counted, lines_of
from kvmlet.cli._text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from kvmlet._changes.entry import Entry
    from kvmlet._changes.saved import SavedSet

_LINES_MAX = 50
_DIFF_MAX_BYTES = 256 << 10
_LETTERS = {"removed": "D", "directory": "A", "mode": "M"}


def ask(saved: "SavedSet", terminal: int, runner: int) -> bool:
    """True if the changes of `saved` shall be made.

    `runner` is a pipe to the process that ran the program: without it nobody answers.
    """
    _show(terminal, "".join(summary(saved)))
    for line in lines_of(saved.left, None, saved):
        _show(terminal, f"kvmlet: {printable(line)}\n")
    while True:
        _show(terminal, f"Keep {counted(len(saved.entries))}? [y]es, [n]o, [d]iff: ")
        answer = _line(terminal, runner)
        if answer is None or answer in ("n", "no"):
            return False
        if answer in ("y", "yes"):
            return True
        if answer in ("d", "diff"):
            for entry in saved.entries:
                for line in diff(saved, entry):
                    _show(terminal, line)


def summary(saved: "SavedSet") -> "Iterator[str]":
    """The changes as `git status --short` names them; a directory stands for what is in it."""
    lines = []
    above: bytes | None = None
    for entry in sorted(saved.entries, key=lambda entry: entry.path):
        if above is not None and entry.path.startswith(above):
            continue
        is_directory = entry.kind == "directory" or (
            entry.kind == "removed" and entry.seen is not None and _stat.S_ISDIR(entry.seen.mode)
        )
        above = entry.path + b"/" if is_directory else None
        letter = _LETTERS.get(entry.kind) or ("M" if entry.seen else "A")
        name = printable(os.fsdecode(entry.path)) + ("/" if is_directory else "")
        if entry.kind == "symlink":
            name += f" -> {printable(os.fsdecode(entry.target))}"
        elif entry.kind == "mode":
            name += f" (mode {entry.mode & 0o777:03o})"
        lines.append(f" {letter} {name}\n")
    yield from lines[:_LINES_MAX]
    if len(lines) > _LINES_MAX:
        yield f" and {len(lines) - _LINES_MAX:,} more\n"


def diff(saved: "SavedSet", entry: "Entry") -> "Iterator[str]":
    """The lines of an entry's difference from the host's file."""
    if entry.kind not in ("file", "removed"):
        return
    name = printable(os.fsdecode(entry.path))
    try:
        old = saved.tree.read(entry.path, _DIFF_MAX_BYTES + 1)
    except OSError:
        old = None
    new = saved.read(entry, _DIFF_MAX_BYTES + 1)
    if old is None and new is None:
        return
    texts = []
    for data in (old or b"", new or b""):
        if len(data) > _DIFF_MAX_BYTES or b"\0" in data:
            yield f"{name}: not shown: it is large, or no text\n"
            return
        texts.append(data.decode("utf-8", "replace").split("\n"))
    here, there = (name if data is not None else "/dev/null" for data in (old, new))
    before, after = texts
    for line in unified_diff(before, after, here, there, lineterm=""):
        # A tabulator does no harm.
        yield "\t".join(printable(part) for part in line.split("\t")) + "\n"


def _show(terminal: int, text: str) -> None:
    data = text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[os.write(terminal, data) :]
    except OSError:
        pass


def _line(terminal: int, runner: int) -> str | None:
    """A line that is typed, None if none will be: the terminal is gone, or another job's."""
    text = b""
    waiting = select.poll()
    waiting.register(terminal, select.POLLIN)
    # Its other end is closed when the run is interrupted.
    waiting.register(runner, 0)
    while not text.endswith(b"\n"):
        try:
            if os.tcgetpgrp(terminal) != os.getpgrp():
                return None
            # Looked at again now and then: to read as a job in the background stops it.
            ready = dict(waiting.poll(1000))
            if runner in ready:
                return None
            if terminal not in ready:
                continue
            part = os.read(terminal, 256)
        except OSError:
            return None
        if not part or len(text) > 4096:
            return None
        text += part
    return text.decode("utf-8", "replace").strip().lower()
