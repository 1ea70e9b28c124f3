"""The changes that a program has made in memory: how `--changes` names what becomes of them."""

import os

from kvmlet.cli._text import printable, warn, write_stderr
from kvmlet.errors import UsageError

MODES = ("discard", "list", "keep", "ask", "dir:PATH")

_DIR = "dir:"
_CACHES = (b"__pycache__", b".pytest_cache", b".mypy_cache", b".ruff_cache")
# As kvmlet._changes.protected has it, which not every run imports.
_SAVED = b".kvmlet-changes-"


def parse_mode(text: str) -> tuple[str, bytes | None]:
    """The mode that `--changes` names, and the directory of the mode "dir". Raises UsageError."""
    if text.startswith(_DIR) and len(text) > len(_DIR):
        return "dir", os.path.abspath(os.fsencode(text[len(_DIR) :]))
    if text not in MODES or text.startswith(_DIR):
        raise UsageError(
            f"--changes: {text!r} is not one of {', '.join(MODES)}",
            remedy="discard throws changes away, list names them before, keep makes them here, ask "
            "asks, dir:PATH writes the changed files to PATH",
        )
    return text, None


def note_unfinished(tree: bytes | None) -> None:
    """One line if changes of an earlier run are saved in `tree` and nobody is making them."""
    if tree is None:
        return
    try:
        with os.scandir(tree) as names:
            found = sorted(each.name for each in names if each.name.startswith(_SAVED))
    except OSError:
        return
    for name in found:
        path = os.path.join(tree, name)
        if _is_busy(path):
            continue
        shown = os.fsdecode(path)
        warn(f"an earlier run's changes are not all made: 'kvmlet apply {shown}' finishes it")
        return


def _is_busy(path: bytes) -> bool:
    """True if a process is writing or making the saved changes at `path`."""
    import fcntl

    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        # Not a saved set, or not ours.
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def report(changes: list[tuple[str, bytes]], mode: str, tree: bytes | None, *, cut: bool) -> None:
    """Name or count, on standard error, the `changes` of `tree`, of which there are more if `cut`.

    A count leaves out what interpreters and tools cache: programs did not mean to keep that.
    """
    if tree is None:
        return
    if mode == "list":
        for kind, path in changes:
            name = os.fsdecode(path[len(tree) + 1 :])
            write_stderr(f" {kind} {printable(name)}\n")
        if cut:
            warn("there are more changes than these")
        return
    meant = sum(
        not any(name in _CACHES for name in path[len(tree) :].split(b"/")) for _, path in changes
    )
    if meant:
        what = "1 change is" if meant == 1 else f"{meant:,} changes are"
        what = f"more than {what}" if cut else what
        them = "it" if meant == 1 else "them"
        warn(
            f"{what} not kept: files are changed in memory only; "
            f"--changes keep keeps {them}, list names {them}"
        )
