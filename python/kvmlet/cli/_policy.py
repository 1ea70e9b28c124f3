"""`--policy`: the words of files, and those of options beside them."""

from kvmlet.policy import Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def combined(files: list[str], **options: "Any") -> Policy:
    """All that the policies in `files` and the options say; the last wins. Raises UsageError."""
    policy = Policy()
    for file in files:
        policy |= Policy.load(file)
    return policy | Policy.of(**options)
