"""Profiles: policies that come with kvmlet, each a TOML file that can be printed."""

import os

from kvmlet.errors import UsageError

_FOLDER = os.path.join(os.path.dirname(__file__), "profiles")
_ENDING = ".toml"


def profile_names() -> list[str]:
    """The names of all profiles, sorted."""
    return sorted(
        name.removesuffix(_ENDING) for name in os.listdir(_FOLDER) if name.endswith(_ENDING)
    )


def profile_text(name: str) -> str:
    """The text of a profile. Raises UsageError, which names the nearest one there is."""
    names = profile_names()
    if name not in names:
        # Only a mistake needs it.
        from difflib import get_close_matches

        near = get_close_matches(name, names, 1, 0.5)
        known = f"there are {', '.join(names)}"
        raise UsageError(
            f"no profile {name!r}", remedy=f"did you mean {near[0]}? {known}" if near else known
        )
    with open(os.path.join(_FOLDER, name + _ENDING), encoding="utf-8") as file:
        return file.read()
