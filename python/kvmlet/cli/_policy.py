"""`--profile` and `--policy`: the words of files, and those of options beside them."""

from kvmlet.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def combined(profiles: list[str], files: list[str], **options: "Any") -> Policy:
    """All that the profiles, the policies in `files` and the options say; the last wins.

    Raises UsageError.
    """
    policy = Policy()
    for profile in dict.fromkeys(profiles):
        policy |= Policy.profile(profile)
    for file in files:
        policy |= Policy.load(file)
    return policy | Policy.of(**options)
