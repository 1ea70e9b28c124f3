"""The process that looks up names for `kvmlet run`: it is started before the second wall.

getaddrinfo(3) may load modules, read any file of /etc and talk to any daemon of the host. The
process that runs the guest may do nothing of that, and shares no memory with the one that does.
"""

from kvmlet import _native
from kvmlet.cli import _helper


def start_process(policy: "_native.Policy") -> None:
    """Start it, if a rule of `policy` is about names. It ends with this process."""
    end = policy.names_end()
    if end is not None:
        _helper.start(end, _native.serve_names)
