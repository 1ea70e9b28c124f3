"""The tree that a program changes as it likes, without the host's own being touched."""

import os

# Directories of the machine, and what lies in them: nobody's work.
_SYSTEM = (
    b"/bin",
    b"/boot",
    b"/dev",
    b"/etc",
    b"/lib",
    b"/lib32",
    b"/lib64",
    b"/libx32",
    b"/proc",
    b"/run",
    b"/sbin",
    b"/sys",
    b"/usr",
)
# Directories of the machine in which there may be somebody's work.
_SHARED = (b"/", b"/home", b"/media", b"/mnt", b"/opt", b"/root", b"/srv", b"/var", b"/var/tmp")

TMP = b"/tmp"


def beneath(tree: bytes, path: bytes) -> bool:
    """True if `path` is `tree` or lies in it."""
    return (path + b"/").startswith(tree if tree == b"/" else tree + b"/")


def home() -> bytes:
    """The caller's home directory, links resolved; empty if there is none."""
    named = os.environb.get(b"HOME", b"")
    return os.path.realpath(named) if named.startswith(b"/") else b""


def is_private(directory: bytes) -> bool:
    """True for a home directory, and for what lies above the caller's.

    HOME may be another's, or not be set: what homes usually are called counts too.
    """
    own = home()
    if directory == b"/root" or os.path.dirname(directory) == b"/home":
        return True
    return directory == b"/" or (bool(own) and beneath(directory, own))


def is_shared(directory: bytes) -> bool:
    """True for a directory of the machine that has different people's work."""
    return directory in _SHARED


def unsuitable(directory: bytes) -> str | None:
    """Why programs do not get the tree of `directory` to change, in words; None if they do."""
    own = home()
    if own and directory == own:
        return "your home directory"
    if own and beneath(directory, own):
        return "a directory above your home directory"
    if is_private(directory):
        return "a home directory"
    if directory in _SHARED or any(beneath(tree, directory) for tree in _SYSTEM):
        return "a system directory"
    return None


def overlay_of(directory: bytes) -> bytes | None:
    """The tree to change for a program started in `directory`.

    That of the directory or, if it lies in a git work tree, of the work tree's root. None for /tmp
    and what is unsuitable.
    """
    if directory == TMP or unsuitable(directory):
        return None
    at = directory
    while at not in (b"/", TMP) and not unsuitable(at):
        if os.path.lexists(at + b"/.git"):
            return at
        at = os.path.dirname(at)
    return directory
