"""Room on the host's disk: for the files of a sandbox that memory has no room for."""

from os import environ, fsencode, path

from kvmlet import _native
from kvmlet._values import DEFAULT_DISK_BYTES
from kvmlet.errors import HostError, UsageError

_VARIABLE = "KVMLET_TMPDIR"
_DEFAULT = "/var/tmp"


def open_disk(limit_bytes: int | None, name: str) -> "_native.Disk":
    """A limit on the files of one sandbox, and a file of the host's for those past memory's share.

    limit_bytes: most bytes of its files together; None for the default, 2 GiB.
    name: the limit as its user wrote it.

    The file is in $KVMLET_TMPDIR or /var/tmp, has no name there, and is gone with its last user.
    Where none can be made, and nobody has named a limit or a directory, files stay in memory.

    Raises UsageError, HostError.
    """
    named = environ.get(_VARIABLE)
    if named is not None and not path.isabs(named):
        raise UsageError(
            f"{_VARIABLE}: '{named}' is not an absolute path",
            remedy="name a directory, as /var/tmp",
        )
    limit = DEFAULT_DISK_BYTES if limit_bytes is None else limit_bytes
    try:
        return _native.Disk(limit, fsencode(named or _DEFAULT))
    except _native.NativeError as error:
        if named is None and limit_bytes is None:
            return _native.Disk(limit, None)
        what = _VARIABLE if named is not None else name
        raise HostError(
            f"{what}: {error.args[1]}",
            remedy=f"name another directory by {_VARIABLE}",
        ) from None


def note_of_full(stats: "dict[str, int | float]", limit: str) -> str:
    """A line for a program that failed after its files had no more room; "" if they had.

    stats: counters of its run.
    limit: the limit on its files, as people write it.
    """
    if stats.get("files_refused"):
        return f"its files had no more room than {limit}; --disk raises it"
    if stats.get("files_refused_by_host"):
        place = environ.get(_VARIABLE, _DEFAULT)
        return (
            f"the host had no more room in {place} for its files; {_VARIABLE} names another place"
        )
    return ""
