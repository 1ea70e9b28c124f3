"""Names that programs of the host obey: a program's changes of them are kept only when named.

The names are those of the extension (crates/policy/src/protected.rs), which protects them in trees
that programs change themselves too. Here is what else a change that is kept must be to pass.
"""

import os

from kvmlet import _native
from kvmlet._changes import gitconfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Exists = Callable[[bytes], bool]
    Read = Callable[[int], bytes | None]

PREFIX = b".kvmlet-changes-"
"""Saved change sets have names that start so. No program's changes of them are ever kept."""

_CONFIG_MAX_BYTES = 1 << 20


def _nothing(_: bytes) -> bool:
    return False


class Protection:
    """The protected names of `tree`, in which `named` (paths there) are let through.

    `exists` tells whether the tree has something at a path there, now or by the changes; `on_host`
    whether it has now.
    """

    def __init__(
        self,
        named: "Iterable[bytes]" = (),
        exists: "Exists" = _nothing,
        on_host: "Exists" = _nothing,
        *,
        tree: bytes = b"",
    ) -> None:
        self._named = tuple(named)
        self._exists = exists
        self._on_host = on_host
        self._tree = tree.rstrip(b"/") + b"/"

    def holds(self, path: bytes, kind: str, new: "Read", old: "Read") -> bool:
        """True if a change of `path` is left out.

        kind: what it becomes, as an entry has it. `new` and `old` read the start of its contents,
        None if there are none.
        """
        if _native.is_saved_set(path):
            return True
        if any(named in (b"", path) or path.startswith(named + b"/") for named in self._named):
            return False
        whole = self._tree + path
        guard = _native.guard_of(whole, self._has)
        if guard == "settings":
            return self._acts(kind, new, old)
        if guard == "whole":
            return True
        if guard == "leading" and kind not in ("directory", "removed", "mode"):
            return True
        if guard == "nested" and kind == "symlink":
            return True
        if kind in ("removed", "mode"):
            return False
        makes = _native.makes_repository(whole, self._has, self._had)
        return makes and not self._on_host(path)

    def _has(self, path: bytes) -> bool:
        if path.startswith(self._tree):
            return self._exists(path[len(self._tree) :])
        return os.path.lexists(path)

    def _had(self, path: bytes) -> bool:
        """The same without what the changes make, of which nothing protected comes."""
        if path.startswith(self._tree):
            return self._on_host(path[len(self._tree) :])
        return os.path.lexists(path)

    @staticmethod
    def _acts(kind: str, new: "Read", old: "Read") -> bool:
        """True if a change of settings of git is one of programs that it runs."""
        if kind in ("directory", "mode"):
            return False
        if kind not in ("file", "removed"):
            return True
        texts = [read(_CONFIG_MAX_BYTES + 1) or b"" for read in (old, new)]
        if any(len(text) > _CONFIG_MAX_BYTES for text in texts):
            return True
        before, after = (gitconfig.that_act(text) for text in texts)
        return before is None or after is None or before != after


def named_in(tree: bytes, words: "Iterable[str]") -> list[bytes]:
    """The paths in `tree` of files that `words` name; those elsewhere are left out.

    A word may name a protected directory that the whole tree lies in.
    """
    found = []
    for word in words:
        path = os.path.abspath(os.fsencode(word))
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        if path.startswith(tree + b"/"):
            found.append(path[len(tree) + 1 :])
            continue
        is_around = (tree + b"/").startswith(path + b"/")
        if is_around and _native.guard_of(path, os.path.lexists) != "none":
            found.append(b"")
    return found
