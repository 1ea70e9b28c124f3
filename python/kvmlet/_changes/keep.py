"""Saving the changes of a run, and writing them to a directory of their own."""

import errno
import os
import stat as _stat

from kvmlet._changes import saved as _saved
from kvmlet._changes.apply import Applied, apply
from kvmlet._changes.entry import Entry
from kvmlet._changes.host_tree import HostTree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Pieces = Iterable[tuple[int, bytes]]

TOO_MANY = "there are more changes than are kept (200,000), or a part could not be read"

# Numbers of entries that are added to a set.
_ADDED = 1 << 40


def save(
    tree: HostTree,
    entries: "Iterable[tuple[Entry, Pieces]]",
    since_ns: int,
    named: "Iterable[bytes]" = (),
) -> "_saved.SavedSet":
    """A saved set of `entries`. Raises OSError, and what `entries` does: none is left then."""
    saved = _saved.SavedSet.create(tree)
    try:
        saved.since_ns = since_ns
        saved.fill(entries, named)
        saved.commit()
    except BaseException:
        saved.remove()
        saved.close()
        raise
    return saved


def make_empty(path: bytes) -> None:
    """Make the directory `path` if it is not there. Raises OSError if it is not empty."""
    try:
        os.mkdir(path)
    except FileExistsError:
        with os.scandir(path) as names:
            if next(names, None) is not None:
                raise OSError(errno.ENOTEMPTY, "it is not empty") from None


def write_to(
    target: HostTree,
    entries: "Iterable[tuple[Entry, Pieces]]",
    named: "Iterable[bytes]" = (),
) -> "tuple[Applied, _saved.Left]":
    """Put the changed files of `entries` into the empty directory `target`. Raises as `save`."""
    saved = save(target, _alone(entries), 0, named)
    try:
        return apply(saved), saved.left
    finally:
        saved.close()


def _alone(
    entries: "Iterable[tuple[Entry, Pieces]]",
) -> "Iterator[tuple[Entry, Pieces]]":
    """`entries` without what is gone, with the directories that they lie in."""
    made: set[bytes] = set()
    for entry, pieces in entries:
        if entry.kind in ("removed", "mode"):
            continue
        entry.seen = None
        names = entry.path.split(b"/")
        for depth in range(1, len(names)):
            path = b"/".join(names[:depth])
            if path not in made:
                made.add(path)
                number = _ADDED + len(made)
                mode = _stat.S_IFDIR | 0o755
                yield Entry("directory", path, mode, entry.mtime_ns, 0, number=number), ()
        if entry.kind == "directory":
            if entry.path in made:
                continue
            made.add(entry.path)
        yield entry, pieces


def lines_of(
    left: "_saved.Left", applied: Applied | None, saved: "_saved.SavedSet | None"
) -> list[str]:
    """A line for each thing that was not kept as the program made it."""
    lines = []
    if left.protected:
        lines.append(
            f"not kept, as programs of yours obey them: {_some(left.protected)}; "
            "--keep-protected PATH keeps one"
        )
    if left.special:
        lines.append(f"pipes, sockets and devices are not kept: {_some(left.special)}")
    if left.bits:
        lines.append(f"kept without set-user-ID, set-group-ID and sticky bits: {_some(left.bits)}")
    if left.links_out:
        lines.append(f"links that lead out of the tree: {_some(left.links_out)}")
    conflicts = [(entry, "it has changed") for entry in left.stale]
    conflicts += applied.conflicts if applied else []
    for entry, why in conflicts[:_CONFLICTS_MAX]:
        where = ""
        if saved and entry in saved.entries and entry.has_data:
            where = f"; the program's is {os.fsdecode(saved.path)}/{entry.number}"
        lines.append(f"{_shown(entry.path)} is left as it is: {why}{where}")
    if len(conflicts) > _CONFLICTS_MAX:
        lines.append(f"{len(conflicts) - _CONFLICTS_MAX:,} more are left as they are")
    return lines


_CONFLICTS_MAX = 20
_NAMED_MAX = 10
_SHOWN_MAX_CHARS = 200


def _shown(path: bytes) -> str:
    """A path for a line; the program has chosen its length."""
    name = os.fsdecode(path)
    return name if len(name) <= _SHOWN_MAX_CHARS else f"...{name[-_SHOWN_MAX_CHARS:]}"


def _some(paths: list[bytes]) -> str:
    named = ", ".join(_shown(path) for path in paths[:_NAMED_MAX])
    more = len(paths) - _NAMED_MAX
    return f"{named} and {more:,} more" if more > 0 else named


def counted(count: int) -> str:
    """The number of changes, in words."""
    return "1 change" if count == 1 else f"{count:,} changes"
