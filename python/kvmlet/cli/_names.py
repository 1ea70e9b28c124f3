"""The process that looks up names for `kvmlet run`: it is started before the second wall.

getaddrinfo(3) may load modules, read any file of /etc and talk to any daemon of the host. The
process that runs the guest may do nothing of that, and shares no memory with the one that does.
"""

import os

from kvmlet import _native


def start_process(policy: "_native.Policy") -> None:
    """Start it, if a rule of `policy` is about names. It ends with this process."""
    end = policy.names_end()
    if end is None:
        return
    if os.fork():
        os.close(end)
        return
    try:
        # Keys typed at the terminal are the program's.
        os.setsid()
        os.chdir("/")
        os.dup2(end, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        _native.serve_names()
    finally:
        os._exit(0)
