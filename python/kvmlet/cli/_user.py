"""`-u USER[:GROUP]`: the user that the program is, inside and for the host's files."""

import grp
import os
import pwd

from kvmlet import _native
from kvmlet.errors import UsageError, from_native

# chown(2): the last one stands for none.
_ID_MAX = 0xFFFF_FFFE
_HERE = os.path.dirname(os.path.realpath(__file__))


def become(words: str) -> None:
    """Have this process be USER, with his groups or the one group that is named.

    It can be no one else afterwards, and opens files with that user's rights: what it makes for the
    program and what it keeps. /dev/kvm is opened before.

    Raises UsageError if the caller may not become that user, and what opening KVM raises.
    """
    user, colon, group = words.partition(":")
    uid, home_gid, name = _user(user, words)
    gid = _group(group, words) if colon else home_gid
    groups = [gid] if colon or name is None else os.getgrouplist(name, gid)
    now = {(os.getuid(), os.getgid()), (os.geteuid(), os.getegid())}
    # Who is not root keeps his other groups.
    if now == {(uid, gid)} and (uid != 0 or not colon):
        return
    try:
        _native.prepare()
    except _native.NativeError as error:
        raise from_native(*error.args) from None
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError:
        raise UsageError(
            f"-u {words}: you may not become that user",
            remedy="run kvmlet as root, or leave -u out",
        ) from None
    if not os.access(_HERE, os.R_OK | os.X_OK):
        raise UsageError(
            f"-u {words}: that user may not read kvmlet's own files in {_HERE}",
            remedy="install kvmlet where everybody may read it",
        )


def _user(text: str, words: str) -> tuple[int, int, str | None]:
    """The number, the group and the name of a user; a number that nobody has is its own group."""
    number = _number(text)
    try:
        found = pwd.getpwnam(text) if number is None else pwd.getpwuid(number)
    except KeyError:
        if number is not None:
            return number, number, None
        raise UsageError(
            f"-u {words}: there is no user '{text}'", remedy="name one of /etc/passwd, or a number"
        ) from None
    return found.pw_uid, found.pw_gid, found.pw_name


def _group(text: str, words: str) -> int:
    number = _number(text)
    if number is not None:
        return number
    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise UsageError(
            f"-u {words}: there is no group '{text}'", remedy="name one of /etc/group, or a number"
        ) from None


def _number(text: str) -> int | None:
    """The number that `text` is, if it is one that a user or a group can have."""
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _ID_MAX:
        return int(text)
    return None
