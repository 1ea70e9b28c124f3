"""A tree of the host's, reached by directory descriptors only.

A path is walked a name at a time, from the descriptor of the tree's root. No symbolic link is
followed, and nothing beneath a mount point is reached. Neither a link that is swapped in during the
walk nor a name of any kind leads out of the tree.
"""

import errno
import os
import stat as _stat

# Each directory on the way is open.
_DEPTH_MAX = 256
_WALK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class NotInTree(OSError):
    """A directory on the way is a symbolic link, another file system's root, or no directory."""


class HostTree:
    """The directory at `path`, which is open as long as this lives."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self._mount = _mount_of(self.fd)
        # The directories of the last walk, with their descriptors.
        self._walked: list[tuple[bytes, int]] = []

    def close(self) -> None:
        """Close all descriptors."""
        self.forget()
        os.close(self.fd)

    def forget(self) -> None:
        """Walk from the root again the next time."""
        for _, fd in self._walked:
            os.close(fd)
        self._walked.clear()

    def directory(self, names: list[bytes]) -> int:
        """A descriptor of the directory that `names` lead to; it is this object's.

        Raises NotInTree, OSError.
        """
        if len(names) > _DEPTH_MAX:
            raise NotInTree(errno.ENAMETOOLONG, "it lies too deep")
        known = 0
        for (name, _), wanted in zip(self._walked, names, strict=False):
            if name != wanted:
                break
            known += 1
        while len(self._walked) > known:
            os.close(self._walked.pop()[1])
        at = self._walked[-1][1] if self._walked else self.fd
        for name in names[known:]:
            at = self._step(at, name)
            self._walked.append((name, at))
        return at

    def _step(self, at: int, name: bytes) -> int:
        if name in (b"", b".", b"..") or b"/" in name:
            raise NotInTree(errno.EINVAL, "it is no name")
        try:
            fd = os.open(name, _WALK, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise NotInTree(error.errno, "a directory above it is none any more") from None
            raise
        try:
            is_here = _mount_of(fd) == self._mount
        except BaseException:
            os.close(fd)
            raise
        if not is_here:
            os.close(fd)
            raise NotInTree(errno.EXDEV, "it is on another file system")
        return fd

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """The descriptor of the directory that `path` is in, and the name there."""
        *names, last = path.split(b"/")
        if last in (b"", b".", b".."):
            raise NotInTree(errno.EINVAL, "it is no name")
        return self.directory(names), last

    def stat(self, path: bytes) -> os.stat_result | None:
        """The attributes of what is at `path`, None if nothing is. Raises NotInTree, OSError."""
        try:
            fd, name = self.parent(path)
            return os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def read(self, path: bytes, most: int) -> bytes | None:
        """The start of the regular file at `path`; None if there is none. Raises OSError."""
        try:
            fd, name = self.parent(path)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            return read_start(os.open(name, flags, dir_fd=fd), most)
        except FileNotFoundError:
            return None

    def sync(self, path: bytes) -> None:
        """Have the names in the directory at `path` reach the disk."""
        at = self.directory(path.split(b"/") if path else [])
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def read_start(fd: int, most: int) -> bytes | None:
    """The first `most` bytes of the regular file `fd`, which is closed; None for others."""
    try:
        if not _stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        parts = []
        while most > 0 and (part := os.read(fd, min(most, 1 << 20))):
            parts.append(part)
            most -= len(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def set_mode(at: int, name: bytes, mode: int) -> None:
    """Give what directory `at` has by `name` permission bits; a symbolic link has none."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        found = os.fstat(fd)
        if _stat.S_ISDIR(found.st_mode):
            # Directories in one with the set-group-ID bit inherit it: that is the host's.
            mode |= found.st_mode & _stat.S_ISGID
        if not _stat.S_ISLNK(found.st_mode) and _stat.S_IMODE(found.st_mode) != mode:
            # The name leads to this very descriptor, whatever has the object's name by now.
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def _mount_of(fd: int) -> bytes:
    """The mount that `fd` is on, as the kernel numbers them."""
    info = os.open(f"/proc/self/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.read(info, 4096).splitlines()
    finally:
        os.close(info)
    for line in lines:
        if line.startswith(b"mnt_id:"):
            return line
    raise NotInTree(errno.ENOTSUP, "the kernel does not tell what it is mounted on")
