"""Places of kvmlet's own pages: what the header of the hostile guests says."""

from __future__ import annotations

import pathlib
import re

_HEADER = (pathlib.Path(__file__).parent / "guests" / "layout.h").read_text()

PAGES = {
    name: int(offset, 16)
    for name, offset in re.findall(r"#define (\w+) \(VMM_AREA \+ (0x[0-9a-f]+)\)", _HEADER)
}
"""Offsets of the pages in kvmlet's area by their names, and of one that is not there."""
assert len(PAGES) == 11, "layout.h is not what this module reads"
PAGES["nothing"] = 0x30000
