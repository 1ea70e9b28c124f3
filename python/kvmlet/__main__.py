"""`python -m kvmlet`: the same as the `kvmlet` command.

Python would look for modules in the current directory first, which may be somebody else's: from
here on it does not. One that it has found there already is an error.
"""

import sys


def _found_in(directory: str) -> str:
    """The file in `directory` that a module was imported from, "" if there is none."""
    from os.path import dirname

    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        folder = dirname(file)
        # A package's folder has its name.
        if hasattr(module, "__path__"):
            folder = dirname(folder)
        if folder == directory and name not in ("__main__", __package__):
            return file
    return ""


def _main() -> int:
    if not sys.flags.safe_path:
        found = _found_in(sys.path.pop(0))
        if found:
            print(
                f"kvmlet: {found!r} was imported in the place of Python's own module; "
                "run the command kvmlet, or python -P -m kvmlet",
                file=sys.stderr,
            )
            return 125
    from kvmlet.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(_main())
