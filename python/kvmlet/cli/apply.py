"""`kvmlet apply`: makes the changes of a run that were saved and not made, or not all of them."""

import os

from kvmlet import _tree
from kvmlet._changes import keep, protected, saved
from kvmlet._changes.apply import apply
from kvmlet._changes.entry import BadEntry
from kvmlet._changes.host_tree import HostTree
from kvmlet.cli._ends import STATUS_OK, STATUS_OWN_ERROR
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import warn
from kvmlet.errors import HostError, UsageError

_DESCRIPTION = """\
Make the changes that a run has saved in DIR and not made: after a limit, or when making them was
interrupted. DIR is the directory of a saved set (.kvmlet-changes-*), or the tree that it is in
(default: that of the current directory). It may be repeated.
"""


def main(words: list[str]) -> int:
    """Apply the sets that `words` name; the exit status."""
    options = parser().parse_args(words)
    path = os.path.realpath(os.fsencode(options.dir or "."))
    name = os.path.basename(path)
    if name.startswith(protected.PREFIX):
        root, names = os.path.dirname(path), [name]
    else:
        root, names = _tree.overlay_of(path) or path, []
    try:
        tree = HostTree(root)
        names = names or saved.find(tree)
    except OSError as error:
        raise UsageError(
            f"{os.fsdecode(root)}: {error.strerror}", remedy="name a directory"
        ) from None
    if not names:
        raise UsageError(
            f"no changes are saved in {os.fsdecode(root)}",
            remedy="name the directory that a run said it saved them in",
        )
    named = protected.named_in(root, options.keep_protected)
    status = STATUS_OK
    for name in names:
        try:
            if options.discard:
                _discard(tree, name)
            elif _apply(tree, name, named):
                status = STATUS_OWN_ERROR
        except (saved.Busy, BadEntry) as error:
            warn(f"{os.fsdecode(os.path.join(root, name))}: {error}")
            status = STATUS_OWN_ERROR
        except OSError as error:
            raise HostError(f"{os.fsdecode(os.path.join(root, name))}: {error.strerror}") from None
    return status


def _apply(tree: HostTree, name: bytes, named: list[bytes]) -> bool:
    """Apply the set `name` of `tree`; True if not all of it could be. Raises as `SavedSet.open`."""
    changes = saved.SavedSet.open(tree, name)
    if changes is None:
        saved.remove_unfinished(tree, name)
        # It was being written, or removed after the last change.
        warn(f"{os.fsdecode(name)} was not whole, and is removed: none or all of it had been kept")
        return False
    try:
        changes.check(named)
        applied = apply(changes)
        for line in keep.lines_of(changes.left, applied, changes):
            warn(line)
        warn(f"{keep.counted(applied.count)} kept")
        return bool(applied.conflicts)
    finally:
        changes.close()


def _discard(tree: HostTree, name: bytes) -> None:
    saved.remove_unfinished(tree, name)
    warn(f"{os.fsdecode(name)} is removed")


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet apply",
        usage="kvmlet apply [--keep-protected PATH] [--discard] [DIR]",
        description=_DESCRIPTION,
    )
    parser.add_argument("dir", nargs="?", metavar="DIR", help="the saved set, or its tree")
    parser.add_argument(
        "--keep-protected",
        metavar="PATH",
        action="append",
        default=[],
        help="make changes of the protected name PATH too; may be given again",
    )
    parser.add_argument(
        "--discard", action="store_true", help="remove what is saved instead of making it"
    )
    return parser
