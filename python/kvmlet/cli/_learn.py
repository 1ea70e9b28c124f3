"""`--learn`: from what a program has used to the narrowest policy that would have been enough.

The records are the program's choice: nothing of them is believed. All that is written is looked
up on the host again, and names that are closed to a program that is learned never come in.
"""

import os
import stat

from kvmlet import _native, _program, _tree
from kvmlet._refusals import address_of, flag_of, path_of
from kvmlet._toml import string
from kvmlet.cli._text import printable
from kvmlet.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from typing import Any

    from kvmlet._launch import Start
    from kvmlet.cli._writer import File

# The ways of a use, as crates/linux/src/vfs/learn.rs has them.
_FILE, _DIRECTORY, _LISTED, _CHANGED, _NAMED = 1, 2, 4, 8, 16

# A folder stands for its files if that many of them were used, and that part of all in its tree.
_TOGETHER = 5
_PART = 2

# Entries that are looked at in one tree, to know that it holds nothing closed, and in all.
_SCAN_MAX = 20_000
_SCANS_MAX = 200_000

# Closed to be changed, but no secrets: a folder with these may be read.
_NOT_SECRET = frozenset((b".git", b".gitmodules", b".vscode", b".idea", b".mcp.json"))

# Reasons that are told at most.
_SAID_MAX = 20
# New rules of a sort at most: each takes a descriptor and a rule of the second wall.
_RULES_MAX = 1000

FIRST_LINE = (
    "learning: it may read all that you may but protected names, in homes too; its changes are "
    "thrown away, it reaches no other machine; what it uses goes to "
)

_HEADER = """\
# Learned by 'kvmlet run --learn' from runs of: {program}
# It allows what those used beyond what every program may use. Read it before you rely on it.
"""


class Learner:
    """The needs of a program on the way to a file."""

    def __init__(self, file: "File", policy: Policy, start: "Start", argv: list[bytes]) -> None:
        """`policy` is what was allowed anyway, which the file will say too."""
        self.file = file
        self._policy = policy
        self._start = start
        self._argv = argv
        self._scans = 0
        self._said: dict[str, list[str]] = {}

    def learn(self, records: "dict[str, Any]") -> list[str]:
        """Write the file; lines to be said. Raises OSError, UsageError.

        records: "uses" as (path, path given, ways), "denials" as (what, errno, kind, count), and
        "not_kept", the number of further ones.
        """
        uses = [
            (os.fsencode(path), os.fsencode(given), ways) for path, given, ways in records["uses"]
        ]
        writes = self._writes(uses)
        reads = self._reads(uses, writes)
        hosts = self._hosts(records["denials"])
        sockets = self._sockets(records["denials"])
        if records["not_kept"]:
            self._note("more than is recorded: learn again, by this policy")
        new = {"read": reads, "write": writes, "net": hosts, "unix": sockets}
        for found in new.values():
            if len(found) > _RULES_MAX:
                self._note(f"more than {_RULES_MAX:,} rules of a sort: name folders yourself")
                for each in list(found)[_RULES_MAX:]:
                    del found[each]
        # Of two that learn at once, both come in.
        self.file.lock()
        try:
            return self._written(new)
        finally:
            self.file.unlock()

    def _written(self, found: "dict[str, dict[str, str]]") -> list[str]:
        """Write what was found beside what is known; lines to be said."""
        shown = self.file.shown
        old = self.file.read()
        policy = self._policy
        if old is not None:
            policy = Policy.from_toml(old, name=shown, folder=self.file.folder) | policy
        known = _lists(policy)
        new = {
            name: {each: why for each, why in found[name].items() if each not in set(known[name])}
            for name in found
        }
        count = sum(map(len, new.values()))
        lines = [f"not in {shown}: {line}" for line in self._notes()]
        if old is not None and not count:
            return [*lines, f"nothing to add to {shown}"]
        if old is not None:
            self.file.write(old, "~")
        self.file.write(self._text(policy, new))
        rules = "1 rule" if count == 1 else f"{count} rules"
        return [*lines, f"{rules} added to {shown}; use it by --policy {shown}"]

    # ---- what was changed ----

    def _writes(self, uses: "list[tuple[bytes, bytes, int]]") -> dict[str, str]:
        """Files and directories to be changed on the host, and why."""
        folders: dict[bytes, list[bytes]] = {}
        files: list[bytes] = []
        for path, _, ways in uses:
            if self._is_written(path):
                continue
            if ways & _NAMED:
                folders.setdefault(_present_folder(path), []).append(path)
            elif ways & _CHANGED:
                mode = _mode(path)
                if stat.S_ISREG(mode):
                    files.append(path)
                elif stat.S_ISDIR(mode):
                    folders.setdefault(path, []).append(path)
        wanted: dict[str, str] = {}
        kept: set[bytes] = set()
        for folder, paths in sorted(folders.items()):
            why_not = _tree.unsuitable(folder) or self._protected(folder) or self._closed_in(folder)
            if why_not:
                self._note(f"changes in {why_not}", folder)
            elif not _lies_in(folder, kept):
                kept.add(folder)
                names = ", ".join(os.fsdecode(os.path.relpath(each, folder)) for each in paths[:3])
                more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
                self._want(wanted, folder, f"made, removed or renamed: {names}{more}")
        for path in files:
            if _lies_in(path, kept):
                continue
            why_not = self._protected(path)
            if why_not:
                self._note(f"changes of {why_not}", path)
            else:
                self._want(wanted, path, "changed")
        return wanted

    def _is_written(self, path: bytes) -> bool:
        trees = self._start.writable
        return any(_tree.beneath(tree, path) for tree in trees)

    def _protected(self, path: bytes) -> str:
        if self._start.policy.is_closed(path):
            return "what is protected"
        guard = _native.guard_of(path, os.path.lexists)
        return "what is protected" if guard in ("settings", "whole") else ""

    # ---- what was read ----

    def _reads(
        self, uses: "list[tuple[bytes, bytes, int]]", writes: dict[str, str]
    ) -> dict[str, str]:
        """Files and directories to be read, and why."""
        written = {os.fsencode(path) for path in writes}
        folders: dict[bytes, bytes] = {}
        files: dict[bytes, bytes] = {}
        for path, given, ways in uses:
            # A name that came or went is a matter of its folder.
            if self._is_shown(path) or _lies_in(path, written):
                continue
            mode = _mode(path)
            if stat.S_ISDIR(mode):
                if ways & _LISTED or path in folders:
                    folders[path] = given or folders.get(path, b"")
            elif ways & _FILE and self._is_readable(path, mode):
                if self._protected(path):
                    self._note("the contents of what is protected", path)
                else:
                    files[path] = given or files.get(path, b"")
        for path, given, _ in uses:
            if path in folders and given:
                folders[path] = given
        wanted: dict[str, str] = {}
        kept: set[bytes] = set()
        for folder, given in sorted(folders.items()):
            if _lies_in(folder, kept):
                continue
            why_not = self._unreadable(folder)
            if why_not:
                self._note(f"the names in {why_not}", folder)
                continue
            kept.add(folder)
            self._want(wanted, self._name(folder, given), "its names were listed")
        files = {path: given for path, given in files.items() if not _lies_in(path, kept)}
        for folder, paths in self._groups(files).items():
            self._want(wanted, folder, f"{len(paths)} files in it were used")
            for path in paths:
                del files[path]
        for path, given in files.items():
            self._want(wanted, self._name(path, given), "")
        return wanted

    def _is_shown(self, path: bytes) -> bool:
        return self._start.base.shows(path)

    def _is_readable(self, path: bytes, mode: int) -> bool:
        """True if `path` is no way to what is closed, and nothing special."""
        if self._start.policy.is_closed(path):
            return False
        if stat.S_ISLNK(mode):
            # A link that was looked at itself. The rule would show what it leads to.
            real = os.path.realpath(path)
            return stat.S_ISREG(_mode(real)) and not self._start.policy.is_closed(real)
        return stat.S_ISREG(mode)

    def _unreadable(self, folder: bytes) -> str:
        """Why the tree of `folder` is not named as a whole, in words; "" if it is."""
        if self._is_wide(folder):
            return "directories that lead to too much"
        return self._closed_in(folder)

    def _is_wide(self, folder: bytes) -> bool:
        if _tree.is_private(folder) or _tree.is_shared(folder):
            return True
        # Names that are closed may be made there later.
        return not self._start.policy.opens_all(folder)

    def _closed_in(self, folder: bytes) -> str:
        """Why nothing may have the tree of `folder` for what is in it, in words; "" if it may."""
        found = self._scan(folder)
        if found is None:
            return "directories with too many entries to look through"
        return f"directories with protected names, as {os.fsdecode(found[0])}" if found[0] else ""

    def _scan(self, folder: bytes, files_max: int = _SCAN_MAX) -> "tuple[bytes, int] | None":
        """(a closed name in the tree of `folder`, or b""; its files). None if there are many."""
        files = entries = 0
        ahead = [folder]
        while ahead:
            try:
                names = list(os.scandir(ahead.pop()))
            except OSError:
                continue
            for each in names:
                entries += 1
                self._scans += 1
                if entries > _SCAN_MAX or files > files_max or self._scans > _SCANS_MAX:
                    return None
                if self._start.policy.is_closed(each.path) and each.name not in _NOT_SECRET:
                    inside = each.path[len(folder) :].split(b"/")
                    if not _NOT_SECRET.intersection(inside):
                        return each.path, files
                if each.is_dir(follow_symlinks=False):
                    ahead.append(each.path)
                else:
                    files += 1
        return b"", files

    def _groups(self, files: "dict[bytes, bytes]") -> "dict[bytes, list[bytes]]":
        """Folders that stand for their files: the outermost of those in which enough were used."""
        beneath: dict[bytes, list[bytes]] = {}
        for path in files:
            folder = os.path.dirname(path)
            while folder != b"/" and not _tree.is_private(folder):
                beneath.setdefault(folder, []).append(path)
                folder = os.path.dirname(folder)
        groups: dict[bytes, list[bytes]] = {}
        for folder, paths in sorted(beneath.items()):
            if len(paths) < _TOGETHER or _lies_in(folder, groups):
                continue
            if self._is_wide(folder) or self._is_shown(folder):
                continue
            found = self._scan(folder, len(paths) * _PART)
            if found is not None and not found[0] and found[1] <= len(paths) * _PART:
                groups[folder] = paths
        return groups

    def _name(self, path: bytes, given: bytes) -> bytes:
        """The name of `path` to be written: as the program gave it if links led there."""
        if not given:
            return path
        name = os.path.normpath(given)
        links, real = _program.resolve(name)
        is_shown = all(self._start.base.shows_host(link) for link in links)
        if real != path or is_shown or any(self._start.policy.is_closed(link) for link in links):
            return path
        return name

    # ---- what was asked of the network ----

    def _hosts(self, denials: "Iterable[tuple[str, str, str, int]]") -> dict[str, str]:
        hosts: dict[str, str] = {}
        for what, _, kind, _ in denials:
            if kind == "address" and flag_of(what, kind):
                rule = address_of(what)
                if not self._is_reached(rule):
                    hosts[rule] = "" if what.startswith("connect ") else "at any port"
            elif kind == "hidden":
                self._note("what stays closed", os.fsencode(path_of(what)))
        return hosts

    def _sockets(self, denials: "Iterable[tuple[str, str, str, int]]") -> dict[str, str]:
        sockets: dict[str, str] = {}
        for what, _, kind, _ in denials:
            if kind != "host-socket":
                continue
            path = os.path.realpath(os.fsencode(path_of(what)))
            if not stat.S_ISSOCK(_mode(path)) or not flag_of(what, kind):
                continue
            # A daemon may do for the program all that you may do.
            if self._start.policy.is_closed(path) or self._protected(path):
                self._note("sockets that you have to name yourself, by unix", path)
            else:
                self._want(sockets, path, "")
        return sockets

    def _is_reached(self, rule: str) -> bool:
        if rule in self._policy.net:
            return True
        host, _, port = rule.rpartition(":")
        if not port.isdigit():
            host, port = rule, "443"
        return self._start.base.reach(host.strip("[]"), int(port)) not in (None, "refused")

    # ---- the file ----

    def _want(self, wanted: dict[str, str], path: bytes, why: str) -> None:
        name = os.fsdecode(path)
        if any("\ud800" <= char <= "\udfff" for char in name):
            self._note("names that are no UTF-8, which a policy cannot have", path)
        else:
            wanted[name] = why

    def _note(self, why: str, path: bytes = b"") -> None:
        paths = self._said.setdefault(why, [])
        if path:
            paths.append(os.fsdecode(path))

    def _notes(self) -> "Iterator[str]":
        """A line for each reason why something is not in the file."""
        for why, paths in list(self._said.items())[:_SAID_MAX]:
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            yield printable(why + (f": {', '.join(paths[:3])}{more}" if paths else ""))

    def _text(self, policy: Policy, new: "dict[str, dict[str, str]]") -> str:
        """The text of the file: what `policy` has, and what is new."""
        program = printable(" ".join(os.fsdecode(word) for word in self._argv))
        lines = [_HEADER.format(program=program[:200])]
        lines += [f"# Not in it: {line}\n" for line in self._notes()]
        old = _lists(policy)
        for name, values in old.items():
            if values or new[name]:
                lines.append(f"\n{name} = [\n")
                lines += [f"    {string(each)},\n" for each in values]
                lines += _entries(new[name])
                lines.append("]\n")
        if policy.publish:
            publish = ", ".join(string(each) for each in policy.publish)
            lines.append(f"\npublish = [{publish}]\n")
        rest = Policy(env=policy.env, limits=policy.limits).to_toml()
        return "".join(lines) + (f"\n{rest}" if rest else "")


def _lists(policy: Policy) -> "dict[str, Sequence[str]]":
    """The lists of a policy that are learned, by their names in a file."""
    return {
        "read": policy.paths("read"),
        "write": policy.paths("write"),
        "net": policy.net,
        "unix": policy.unix,
    }


def _entries(found: dict[str, str]) -> "Iterator[str]":
    """Lines of a list, those of one folder together."""
    folder = None
    for path in sorted(found, key=lambda path: (os.path.dirname(path), path)):
        why = f"  # {printable(found[path])}" if found[path] else ""
        if path.startswith("/") and os.path.dirname(path) != folder:
            folder = os.path.dirname(path)
            yield f"    # in {printable(folder)}\n"
        yield f"    {string(path)},{why}\n"


def _lies_in(path: bytes, trees: "Container[bytes]") -> bool:
    """True if `path` is one of `trees` or lies in one: the work depends on its depth alone."""
    while path not in trees:
        if path == b"/":
            return False
        path = os.path.dirname(path)
    return True


def _present_folder(path: bytes) -> bytes:
    """The directory of `path` or, if the program made that too, the nearest one above it."""
    folder = os.path.dirname(path)
    while folder != b"/" and not stat.S_ISDIR(_mode(folder)):
        folder = os.path.dirname(folder)
    return folder


def _mode(path: bytes) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
