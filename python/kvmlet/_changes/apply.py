"""A saved change set is moved into place, name by name.

Each file is as it was or as it shall be at every moment, and the order leaves no half tree.
Directories are made first. Files follow in the order in which the program made them, and names are
removed last. All of it may be done again, after a crash or a kill: what is in place then is left.
What the host has changed since the program started is not overwritten.
"""

import errno
import os
import stat as _stat

from kvmlet._changes import saved as _saved
from kvmlet._changes.entry import Entry, Seen
from kvmlet._changes.host_tree import HostTree, NotInTree, set_mode

_SYNC_EACH_MAX = 64


class Conflict(Exception):
    """A change that cannot be made: the text says why."""


class Applied:
    """The outcome of applying a set."""

    def __init__(self) -> None:
        self.count = 0
        """Changed names that are in place, by this or an earlier attempt."""
        self.conflicts: list[tuple[Entry, str]] = []


def apply(saved: "_saved.SavedSet") -> Applied:
    """Move `saved` into place. It is gone afterwards, unless conflicts hold files of it.

    Raises OSError when the host's tree cannot be changed at all: `saved` is still there then.
    """
    work = _Work(saved)
    work.check()
    work.move()
    work.sync()
    kept = [entry for entry, _ in work.applied.conflicts if entry.has_data]
    kept = [entry for entry in kept if saved.stat(entry) is not None]
    if kept:
        saved.keep_only(kept)
    else:
        saved.remove()
    return work.applied


class _Work:
    def __init__(self, saved: "_saved.SavedSet") -> None:
        self._saved = saved
        self._tree: HostTree = saved.tree
        self._by_path = {entry.path: entry for entry in saved.entries}
        self._touched: set[bytes] = set()
        self._doing: list[Entry] = []
        self.applied = Applied()

    def check(self) -> None:
        """Find conflicts before anything is moved: moving one name may change another's times."""
        for entry in self._saved.entries:
            try:
                self._check(entry)
            except Conflict as why:
                self.applied.conflicts.append((entry, str(why)))
            except NotInTree as error:
                if self._is_beneath_made(entry):
                    self._doing.append(entry)
                elif entry.kind != "removed":
                    self.applied.conflicts.append((entry, error.strerror or "it fails"))
            except OSError as error:
                self.applied.conflicts.append((entry, error.strerror or "it fails"))
            else:
                self._doing.append(entry)

    def _is_beneath_made(self, entry: Entry) -> bool:
        path = entry.path
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            above = self._by_path.get(path)
            if above is not None and above.kind == "directory":
                return entry.kind != "removed"
        return False

    def _check(self, entry: Entry) -> None:
        now, seen = self._tree.stat(entry.path), entry.seen
        if entry.has_data:
            own = self._saved.stat(entry)
            if own is None or (now is not None and _same(own, now)):
                return
        if entry.kind == "removed":
            if now is not None:
                self._must_be(entry, now)
        elif entry.kind == "mode":
            if now is None:
                raise Conflict("it is gone")
            self._must_be(entry, now)
        elif now is None:
            # A directory that was replaced goes before what takes its place comes.
            if seen is not None and not _stat.S_ISDIR(seen.mode) and entry.kind != "directory":
                raise Conflict("it is gone")
        elif entry.kind == "directory" and _stat.S_ISDIR(now.st_mode):
            return
        elif seen is None:
            raise Conflict("something has this name now")
        else:
            self._must_be(entry, now)

    def _must_be(self, entry: Entry, now: os.stat_result) -> None:
        seen = entry.seen
        if seen is None or not _is(seen, now, entry):
            raise Conflict("it has changed")
        if not _stat.S_ISDIR(seen.mode) and seen.ctime_ns > self._saved.since_ns:
            raise Conflict("it has changed since the program started")

    def move(self) -> None:
        """Make the changes, in the order that leaves no half tree."""
        removed = [entry for entry in self._doing if entry.kind == "removed"]
        removed.sort(key=lambda entry: entry.path, reverse=True)
        replaced = [entry for entry in removed if self._is_beneath_file(entry)]
        later = [entry for entry in removed if not self._is_beneath_file(entry)]
        directories = [entry for entry in self._doing if entry.kind == "directory"]
        files = [entry for entry in self._doing if entry.has_data]
        files.sort(key=lambda entry: (entry.ctime_ns, entry.path))
        modes = [entry for entry in self._doing if entry.kind in ("mode", "directory")]
        modes.sort(key=lambda entry: entry.path, reverse=True)
        failed: set[bytes] = set()
        for entries, step in (
            (replaced, self._remove),
            (sorted(directories, key=lambda entry: entry.path), self._make_directory),
            (files, self._place),
            (later, self._remove),
            (modes, self._set_mode),
        ):
            for entry in entries:
                if entry.path in failed:
                    continue
                try:
                    step(entry)
                except Conflict as why:
                    self.applied.conflicts.append((entry, str(why)))
                    failed.add(entry.path)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                        raise
                    self.applied.conflicts.append((entry, error.strerror or "it fails"))
                    failed.add(entry.path)
        done = {entry.path for entry in self._doing} - failed
        self.applied.count = len(done)

    def _is_beneath_file(self, entry: Entry) -> bool:
        path = entry.path
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            above = self._by_path.get(path)
            if above is not None and above.has_data:
                return True
        return False

    def _remove(self, entry: Entry) -> None:
        now = self._tree.stat(entry.path)
        if now is None:
            return
        fd, name = self._tree.parent(entry.path)
        if _stat.S_ISDIR(now.st_mode):
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise Conflict("something is in it still") from None
                raise
            self._tree.forget()
        else:
            if entry.seen is None or not _is(entry.seen, now, entry):
                raise Conflict("it has changed")
            os.unlink(name, dir_fd=fd)
        self._touch(entry)

    def _make_directory(self, entry: Entry) -> None:
        now = self._tree.stat(entry.path)
        fd, name = self._tree.parent(entry.path)
        if now is not None and _stat.S_ISDIR(now.st_mode):
            return
        if now is not None:
            if entry.seen is None or not _is(entry.seen, now, entry):
                raise Conflict("something has this name now")
            os.unlink(name, dir_fd=fd)
        os.mkdir(name, 0o700, dir_fd=fd)
        self._touch(entry)

    def _place(self, entry: Entry) -> None:
        own = self._saved.stat(entry)
        if own is None:
            return
        number = str(entry.number)
        now = self._tree.stat(entry.path)
        fd, name = self._tree.parent(entry.path)
        if now is not None and _same(own, now):
            os.unlink(number, dir_fd=self._saved.fd)
            return
        if now is not None and _stat.S_ISDIR(now.st_mode):
            if entry.seen is None or not _is(entry.seen, now, entry):
                raise Conflict("something has this name now")
            try:
                os.rmdir(name, dir_fd=fd)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise Conflict("something is in it still") from None
                raise
            self._tree.forget()
            fd, name = self._tree.parent(entry.path)
            now = None
        if now is None:
            self._place_new(number, fd, name)
        else:
            if entry.seen is None or not _is(entry.seen, now, entry):
                raise Conflict("it has changed")
            self._keep_owner(number, now)
            os.rename(number, name, src_dir_fd=self._saved.fd, dst_dir_fd=fd)
        self._touch(entry)

    def _place_new(self, number: str, fd: int, name: bytes) -> None:
        # link(2) never replaces what has come meanwhile.
        try:
            os.link(number, name, src_dir_fd=self._saved.fd, dst_dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            raise Conflict("something has this name now") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without hard links.
            os.rename(number, name, src_dir_fd=self._saved.fd, dst_dir_fd=fd)
            return
        os.unlink(number, dir_fd=self._saved.fd)

    def _keep_owner(self, number: str, now: os.stat_result) -> None:
        own = os.stat(number, dir_fd=self._saved.fd, follow_symlinks=False)
        if (own.st_uid, own.st_gid) == (now.st_uid, now.st_gid):
            return
        for uid, gid in ((now.st_uid, now.st_gid), (-1, now.st_gid)):
            try:
                os.chown(number, uid, gid, dir_fd=self._saved.fd, follow_symlinks=False)
            except PermissionError:
                continue
            return

    def _set_mode(self, entry: Entry) -> None:
        now = self._tree.stat(entry.path)
        if now is None:
            raise Conflict("it is gone")
        fd, name = self._tree.parent(entry.path)
        if entry.kind == "directory" and not _stat.S_ISDIR(now.st_mode):
            raise Conflict("something has this name now")
        if entry.kind == "mode" and (entry.seen is None or not _is(entry.seen, now, entry)):
            raise Conflict("it has changed")
        set_mode(fd, name, entry.mode & 0o777)
        if entry.kind == "directory" and entry.seen is None:
            times = (entry.mtime_ns, entry.mtime_ns)
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    def _touch(self, entry: Entry) -> None:
        self._touched.add(entry.path.rpartition(b"/")[0])

    def sync(self) -> None:
        """Have the changed directories reach the disk, before the saved set goes."""
        if len(self._touched) > _SYNC_EACH_MAX:
            _saved.sync_all(self._tree.fd)
            return
        for path in sorted(self._touched):
            try:
                self._tree.sync(path)
            except FileNotFoundError:
                continue
            except (NotInTree, PermissionError):
                _saved.sync_all(self._tree.fd)
                return


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)


def _is(seen: Seen, now: os.stat_result, entry: Entry) -> bool:
    """True if what is there now is what was `seen`, unchanged."""
    kind = _stat.S_IFMT
    if (seen.dev, seen.ino, kind(seen.mode)) != (now.st_dev, now.st_ino, kind(now.st_mode)):
        return False
    if _stat.S_ISDIR(seen.mode):
        return True
    if (seen.size, seen.mtime_ns) != (now.st_size, now.st_mtime_ns):
        return False
    # Another name of it may have been replaced by this very set, and its mode set.
    if seen.links > 1 or seen.ctime_ns == now.st_ctime_ns:
        return True
    return entry.kind == "mode" and _stat.S_IMODE(now.st_mode) == entry.mode & 0o777
