"""`make bench`: what kvmlet costs, as ratios to what it is compared with.

Each ratio is the median over interleaved pairs, its quartiles beside it, so that a loaded machine
shows. Absolute times belong to the machine; the promises (SPECIFICATION.md) are on ratios.
"""

from __future__ import annotations

import sys

from cases import CASES
from measure import KVMLET
from report import parser, run


def main() -> int:
    """Run the bench; the exit status."""
    options = parser("run.py", __doc__, [case.name for case in CASES]).parse_args()
    if not KVMLET.exists():
        print(f"bench: {KVMLET} is missing: run `make bench`", file=sys.stderr)
        return 2
    return run([case for case in CASES if not options.only or case.name in options.only], options)


if __name__ == "__main__":
    sys.exit(main())
