"""`kvmlet profile`: the profiles, and what each allows."""

from kvmlet._profiles import profile_names, profile_text
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import show

_DESCRIPTION = """\
Print the profile NAME, a policy in TOML that 'kvmlet run --profile NAME' adds. Without NAME, print
a line about each. In a profile, '~' is your home directory, and files that are not there are left
out. 'kvmlet run --profile NAME --print-policy' prints what it is for you.
"""


def main(words: list[str]) -> int:
    """Print the profile in `words`, or a line about each; the exit status."""
    name = parser().parse_args(words).name
    if name is not None:
        return show(profile_text(name))
    # The first line of each says what it is for.
    about = {each: profile_text(each).partition("\n")[0].lstrip("# ") for each in profile_names()}
    return show("".join(f"{each:<8}{line}\n" for each, line in about.items()))


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(prog="kvmlet profile", usage="kvmlet profile [NAME]", description=_DESCRIPTION)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the profile to print")
    return parser
