"""Settings of git that name a program, or that lead git elsewhere.

The settings that act on nothing are listed here; every other one counts, also those that git learns
tomorrow.
"""

HARMLESS = frozenset(
    (
        "branch.*.description",
        "branch.*.merge",
        "branch.*.pushremote",
        "branch.*.rebase",
        "branch.*.remote",
        "core.abbrev",
        "core.autocrlf",
        "core.bare",
        "core.compression",
        "core.eol",
        "core.filemode",
        "core.ignorecase",
        "core.logallrefupdates",
        "core.precomposeunicode",
        "core.quotepath",
        "core.repositoryformatversion",
        "core.safecrlf",
        "core.sharedrepository",
        "core.symlinks",
        "extensions.objectformat",
        "fetch.prune",
        "gc.auto",
        "init.defaultbranch",
        "merge.conflictstyle",
        "pull.ff",
        "pull.rebase",
        "push.autosetupremote",
        "push.default",
        "rebase.autosquash",
        "rebase.autostash",
        "remote.*.fetch",
        "remote.*.prune",
        "remote.*.tagopt",
        "user.email",
        "user.name",
    )
)
"""Keys without effect on what runs, the name in the middle as `*`; those of `color` are besides."""

# Addresses are harmless if they name no helper of git's.
_ADDRESSES = ("remote.*.url", "remote.*.pushurl")
_SCHEMES = ("https://", "http://", "ssh://", "git://", "file:///", "/", "../", "./")


def that_act(text: bytes) -> list[tuple[str, str]] | None:
    """The (key, value) pairs in `text` that are not known to be harmless; None if it is unclear."""
    pairs = _pairs(text)
    if pairs is None:
        return None
    return [(key, value) for key, value in pairs if not _is_harmless(key, value)]


def _is_harmless(key: str, value: str) -> bool:
    section, _, rest = key.partition(".")
    middle, _, name = rest.rpartition(".")
    # The first part and the last are compared without regard to case.
    wild = f"{section.lower()}.{'*.' if middle else ''}{name.lower()}"
    if wild in _ADDRESSES:
        is_scp = "@" in value.partition(":")[0] and not value.startswith("-")
        return "::" not in value and (value.startswith(_SCHEMES) or is_scp)
    if "::" in value or value.startswith("-"):
        # The name of a remote may be an address.
        return False
    return wild in HARMLESS or section.lower() == "color"


def _pairs(text: bytes) -> list[tuple[str, str]] | None:
    """The settings in order. None for what is not as plain as git writes it."""
    pairs = []
    section = ""
    for whole in text.decode("utf-8", "surrogateescape").split("\n"):
        line = whole.strip(" \t\r")
        if not line or line[0] in "#;":
            continue
        if line.endswith("\\"):
            return None
        if line.startswith("["):
            head, bracket, rest = line[1:].rpartition("]")
            if not bracket or rest.strip(" \t"):
                return None
            name, quote, middle = head.partition(' "')
            if quote and not middle.endswith('"'):
                return None
            if not name.replace("-", "").replace(".", "").isalnum():
                return None
            section = f"{name.lower()}.{middle[:-1]}" if quote else name.lower()
            continue
        key, _, value = line.partition("=")
        key = key.strip(" \t").lower()
        if not section or not key.replace("-", "").isalnum():
            return None
        pairs.append((f"{section}.{key}", value.strip(" \t")))
    return pairs
