"""`python -m kvmlet`: the same as the `kvmlet` command."""

import sys

from kvmlet.cli import main

if __name__ == "__main__":
    sys.exit(main())
