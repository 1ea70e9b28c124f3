"""The changes of a run as `Result.changes` has them: names, and their contents where held."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from time import time_ns
from typing import TYPE_CHECKING

from kvmlet._changes import keep, protected
from kvmlet._changes.apply import Applied, apply
from kvmlet._changes.entry import BadEntry, of_run
from kvmlet._changes.host_tree import HostTree
from kvmlet.errors import HostError, KvmletError, UsageError, from_native

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kvmlet import _native
    from kvmlet._changes.saved import Left, SavedSet

__all__ = ["Changes", "Kept"]


@dataclass(frozen=True, slots=True)
class Kept:
    """The outcome of keeping the changes of a run.

    >>> result = kvmlet.run("echo new > kept", shell=True, changes="keep")
    >>> result.changes.kept, open("kept").read()
    (..., 'new\\n')
    """

    count: int
    """Changed names that are on the host now."""
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    """Paths in the tree that are left as they are, with the reason: the host has changed them."""
    protected: list[str] = field(default_factory=list)
    """Paths that are left out as programs of the host obey them."""
    special: list[str] = field(default_factory=list)
    """Named pipes, sockets and devices, which are left out."""
    saved: str | None = None
    """The directory that holds what conflicts kept out of place; `kvmlet apply` tries it again."""


class Changes(list[tuple[str, str]]):
    """Changed names: ("A", "M" or "D", path). With `changes="list"` or "keep", the contents too.

    >>> changes = kvmlet.run("echo new > note", shell=True, changes="list").changes
    >>> changes.read("note")
    b'new\\n'
    """

    def __init__(self, names: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(names)
        self.kept: Kept | None = None
        """The outcome of keeping them, if they were kept."""
        self._held: _native.Changes | None = None
        self._tree = b""
        self._since_ns = 0

    def hold(self, held: _native.Changes, tree: bytes, since_ns: int) -> None:
        """Take the contents of the changes of `tree`, by a run that began then."""
        self._held, self._tree, self._since_ns = held, tree, since_ns

    def read(
        self, path: str | bytes | os.PathLike[str], offset: int = 0, size: int | None = None
    ) -> bytes:
        """The bytes of a changed file, `size` of them at most from `offset` on.

        path: absolute, or in the changed tree. Raises UsageError for what is no changed file, and
        if the contents are not held. Raises HostError if the host has changed the file meanwhile.
        """
        held = self._contents()
        wanted = os.path.join(self._tree, os.fsencode(path))
        for place in range(len(held)):
            row = held.entry(place)
            if row[1] == wanted and row[0] == "file":
                return _read(held, place, row[5], offset, size)
        raise UsageError(
            f"{os.fsdecode(path)!r} is no changed file", remedy="see the names in changes"
        )

    def apply(self, keep_protected: Sequence[str | os.PathLike[str]] = ()) -> Kept:
        """Make the changes on the host, as `kvmlet run --changes keep` does.

        keep_protected: protected names (.git/hooks, .envrc and the like) to be changed too.
        Raises UsageError if the contents are not held. Raises HostError if not all could be kept;
        it names the directory that holds the rest.
        """
        held = self._contents()
        _whole(held)
        tree = _opened(self._tree)
        try:
            named = protected.named_in(self._tree, [os.fspath(each) for each in keep_protected])
            saved = _translated(held, self._tree, tree, self._since_ns, named)
            try:
                applied = apply(saved)
            except OSError as error:
                path = os.fsdecode(saved.path)
                raise HostError(
                    f"keeping the changes failed: {error.strerror}",
                    remedy=f"'kvmlet apply {path}' finishes it",
                ) from None
            finally:
                saved.close()
        finally:
            tree.close()
        self.kept = _kept(applied, saved.left, saved)
        return self.kept

    def write_to(self, path: str | bytes | os.PathLike[str]) -> Kept:
        """Write the changed files to the directory `path`, empty or not there, as `dir:PATH` does.

        Raises as `apply`.
        """
        held = self._contents()
        _whole(held)
        target = os.path.realpath(os.fsencode(path))
        try:
            keep.make_empty(target)
        except OSError as error:
            raise UsageError(
                f"{os.fsdecode(target)}: {error.strerror}", remedy="name another directory"
            ) from None
        tree = _opened(target)
        try:
            applied, left = keep.write_to(tree, of_run(held, self._tree))
        except _FAILURES as error:
            raise _not_kept(error) from None
        finally:
            tree.close()
        self.kept = _kept(applied, left, None)
        return self.kept

    def _contents(self) -> _native.Changes:
        if self._held is None:
            raise UsageError(
                "the contents of the changes are not held",
                remedy='run with changes="list" to read them, or changes="keep"',
            )
        return self._held

    def release(self) -> None:
        """Give the contents up: the names stay."""
        self._held = None


def now_ns() -> int:
    """The time at which a run begins that keeps its changes."""
    return time_ns()


def _native_error() -> type[Exception]:
    from kvmlet import _native

    return _native.NativeError


_FAILURES = (OSError, BadEntry)


def _read(
    held: _native.Changes, place: int, file_size: int, offset: int, size: int | None
) -> bytes:
    end = file_size if size is None else min(file_size, offset + size)
    parts = []
    try:
        while offset < end:
            part = held.read(place, offset, min(end - offset, 1 << 20))
            if part is None:
                raise HostError("the host has changed this file since the program did")
            parts.append(part)
            offset += len(part)
    except _native_error() as error:
        raise from_native(*error.args) from None
    return b"".join(parts)


def _whole(held: _native.Changes) -> None:
    if held.is_cut:
        raise HostError(f"no change is kept: {keep.TOO_MANY}")


def _opened(path: bytes) -> HostTree:
    try:
        return HostTree(path)
    except OSError as error:
        raise HostError(
            f"{os.fsdecode(path)} cannot be changed: {error.strerror}",
            remedy="name another directory",
        ) from None


def _translated(
    held: _native.Changes, path: bytes, tree: HostTree, since_ns: int, named: list[bytes]
) -> SavedSet:
    try:
        return keep.save(tree, of_run(held, path), since_ns, named)
    except _native_error() as error:
        raise from_native(*error.args) from None
    except _FAILURES as error:
        raise _not_kept(error) from None


def _not_kept(error: Exception) -> KvmletError:
    why = error.strerror if isinstance(error, OSError) else str(error)
    return HostError(f"changes are not kept: {why}")


def _kept(applied: Applied, left: Left, saved: SavedSet | None) -> Kept:
    conflicts = [(os.fsdecode(entry.path), "it has changed") for entry in left.stale]
    conflicts += [(os.fsdecode(entry.path), why) for entry, why in applied.conflicts]
    holds = bool(saved and any(entry in saved.entries for entry, _ in applied.conflicts))
    return Kept(
        applied.count,
        conflicts,
        [os.fsdecode(path) for path in left.protected],
        [os.fsdecode(path) for path in left.special],
        os.fsdecode(saved.path) if saved and holds else None,
    )
