"""Refusals in words: what a guest was refused, and the option that would allow it.

`kvmlet run` imports this before its second wall, so it imports hardly anything itself.
"""

import os

from kvmlet import _tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    # Trees of the host that -v shows elsewhere: (path on the host, path that programs see).
    Volumes = Sequence[tuple[str, str]]

# Kinds of refusals, as the extension names them, and the reason or remedy of each.
# {path} is what was refused; a refusal that no option allows says why.
_REMEDIES = {
    "hidden": "it is not visible; allow it with --read {path}",
    "read-only": "only the current directory and /tmp can be changed",
    "leads-to-protected": "only a directory may be there, and it stays: it has protected names",
    "nested-repository": "where git has submodules there are no links, and directories stay",
    "set-id": "files of the host get no set-user-ID and set-group-ID bits",
    "protected": "what others act on or log in with stays as it is; allow it with --write {path}",
    "special-file": "only regular files and directories of the host can be opened and made",
    "kernel-file": "files of the host's kernel cannot be shown",
    "address": "allow it with --net {path}",
    "network": "a sandbox has no such sockets",
    "host-socket": "allow it with --unix {path}",
    "replaceable-socket": "the host's sockets in a tree of --write stay out of reach: "
    "a program could put another one there",
    "terminal": "the terminal is the caller's",
    "descriptors": "sandboxes have half of the descriptors that the process may open: "
    "raise its limit (ulimit -n)",
    "mappings": "sandboxes have half of the mappings that a process may have: "
    "raise vm.max_map_count",
    "rate": "a sandbox opens at most 1,000 in a second, and 10,000 after a quiet time",
}

# No option shows what lies below these (Policy::allow_tree).
_NEVER_SHOWN = ("/etc/shadow", "/etc/gshadow", "/proc/", "/sys/", "/dev/")
_NEVER = "it is not visible, and no option shows it"

# Programs make temporary files here, and it is nobody's to change on the host.
_TEMPORARY = "/var/tmp"

_NO_SOCKET = "of the host's sockets, --unix allows those outside of /dev, /proc and /sys"

# Calls that only ask. One that failed to use the same thing says more.
_ASKING = ("stat", "access", "readlink", "statfs", "getxattr", "listxattr")

# Runtimes ask for these whenever they start, and go on without.
_OPTIONAL = frozenset({"pkey_alloc"})

# Hidden things are named together by their folder from this many on.
_TOGETHER = 3


def path_of(what: str) -> str:
    """The path in "open /etc/shadow", or ""."""
    path = what.partition(" ")[2]
    return path if path.startswith("/") else ""


def address_of(what: str) -> str:
    """The rule that would allow "connect api.example.com:443" or "resolve NAME to ADDRESS"."""
    return what.partition(" ")[2].rpartition(" to ")[2]


def flag_of(what: str, kind: str, volumes: "Volumes" = ()) -> str:
    """The option of `kvmlet run` that would allow `what`, or ""."""
    if kind == "address":
        address = address_of(what)
        own = address.startswith(("127.", "0.", "[::1]", "[::]")) or address in ("::1", "::")
        return "" if own else f"--net {_quoted(address)}"
    path = path_of(what)
    if kind == "host-socket":
        if path.startswith(_NEVER_SHOWN):
            return ""
        return f"--unix {_quoted(_seen_on_host(path, volumes))}"
    volume = _volume_of(path, volumes)
    if volume and kind == "read-only":
        return f"-v {_quoted(':'.join((*volume, 'rw')))}"
    if volume and kind == "protected":
        return f"--write {_quoted(_on_host(path, *volume))}"
    if kind == "read-only":
        if os.path.dirname(path) == _TEMPORARY:
            return f"--tmpfs {_TEMPORARY}"
        tree = _tree_of(path)
        return f"--write {_quoted(tree)}" if tree else ""
    if kind == "protected":
        return f"--write {_quoted(path)}"
    shown = kind == "hidden" and path and not path.startswith(_NEVER_SHOWN)
    # Whoever reads this shall not be talked into showing a home directory.
    shown = shown and not _is_private(path)
    return f"--read {_quoted(path)}" if shown else ""


def _tree_of(path: str) -> str:
    """The directory that --write would have to name for a change of `path`, or ""."""
    tree = os.path.dirname(path)
    known = tree.encode("utf-8", "surrogatepass")
    if not path or f"{tree}/".startswith(("/etc/", *_NEVER_SHOWN)) or _tree.unsuitable(known):
        return ""
    return tree


def _volume_of(path: str, volumes: "Volumes") -> tuple[str, str] | None:
    """The innermost tree of -v that `path` lies in."""
    within = [each for each in volumes if (path + "/").startswith(each[1] + "/")]
    return max(within, key=lambda each: len(each[1]), default=None)


def _seen_on_host(path: str, volumes: "Volumes") -> str:
    volume = _volume_of(path, volumes)
    return _on_host(path, *volume) if volume else path


def _on_host(path: str, host: str, guest: str) -> str:
    """The host's path of what a program sees at `path`, in a tree that -v shows at `guest`."""
    return host + path[len(guest) :]


def remedy_of(what: str, kind: str, volumes: "Volumes" = ()) -> str:
    """The change that would allow `what`, or the reason why nothing does."""
    if kind == "host-socket":
        flag = flag_of(what, kind, volumes)
        return f"allow it with {flag}" if flag else _NO_SOCKET
    volume = _volume_of(path_of(what), volumes)
    if volume and kind == "read-only":
        return f"-v shows it to be read; allow it with {flag_of(what, kind, volumes)}"
    if volume and kind == "protected":
        path = _on_host(path_of(what), *volume)
        return _REMEDIES[kind].format(path=_quoted(path))
    if kind == "hidden" and not flag_of(what, kind):
        return _NEVER
    if kind == "read-only":
        flag = flag_of(what, kind)
        if flag:
            return f"it is read-only; allow it with {flag}"
    if kind == "address" and not flag_of(what, kind):
        return "the caller's loopback address is --net host.kvmlet.internal:PORT"
    path = address_of(what) if kind == "address" else path_of(what)
    return _REMEDIES[kind].format(path=_quoted(path))


def lines(
    denials: list[tuple[str, str, str, int]],
    not_kept: int,
    events: list[tuple[str, str]],
    most: int,
    volumes: "Volumes" = (),
) -> list[str]:
    """Lines about what mattered, the likeliest cause of a failure first: `most` of each sort.

    denials: (what, errno, kind, count) as the extension tells them; not_kept: further ones.
    events: (name, detail) of what is not supported. volumes: trees of the host that -v shows at
    other paths, as (host, path).
    """
    denied = _grouped(denials, volumes)
    unsupported = list(
        dict.fromkeys(
            f"not supported: {name}" + (f" ({detail})" if detail else "")
            for name, detail in events
            if name not in _OPTIONAL
        )
    )
    said = [*denied[:most]]
    more = max(0, len(denied) - most) + not_kept
    if more:
        said.append(f"denied: and {more} more")
    said += unsupported[:most]
    if len(unsupported) > most:
        said.append(f"not supported: and {len(unsupported) - most} more")
    return said


def _grouped(denials: list[tuple[str, str, str, int]], volumes: "Volumes") -> list[str]:
    """A line for each thing that was refused, or for those of one folder; the last one first.

    A program gives up soon after what it could not do without. Questions that no option would
    answer otherwise come after the rest.
    """
    used = {path_of(what) for what, *_ in denials if what.partition(" ")[0] not in _ASKING}
    found: dict[str, tuple[str, str]] = {}
    folders: dict[str, list[str]] = {}
    for what, errno, kind, _count in reversed(denials):
        path = path_of(what)
        if what.partition(" ")[0] in _ASKING and (path in used or path in found):
            continue
        key = path if kind == "hidden" and path else what
        if key in found:
            continue
        found[key] = (f"denied: {what} ({errno})", remedy_of(what, kind, volumes))
        if flag_of(what, kind, volumes):
            folders.setdefault(os.path.dirname(path), []).append(path)
    told: list[str] = []
    asked: list[str] = []
    done: set[str] = set()
    for key, (line, remedy) in found.items():
        folder = os.path.dirname(key)
        together = folders.get(folder, []) if key.startswith("/") else []
        if len(together) < _TOGETHER or _is_private(folder):
            is_question = line.split()[1] in _ASKING and remedy == _NEVER
            (asked if is_question else told).append(f"{line}; {remedy}")
        elif folder not in done:
            done.add(folder)
            told.append(
                f"denied: {len(together)} names below {folder}, such as "
                f"{os.path.basename(together[0])}; allow them with --read {_quoted(folder)}"
            )
    return told + asked


def _is_private(path: str) -> bool:
    return _tree.is_private(path.encode("utf-8", "surrogatepass"))


def _quoted(path: str) -> str:
    """`path` as a shell takes it."""
    plain = (
        path.replace("/", "").replace(".", "").replace("-", "").replace("_", "").replace(":", "")
    )
    if not path or plain.isalnum():
        return path
    return "'" + path.replace("'", "'\\''") + "'"
