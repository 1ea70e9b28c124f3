"""The processes beside `kvmlet run` that reach for what its second wall forbids: started before it.

One looks up names: getaddrinfo(3) may load modules, read any file of /etc and talk to any daemon of
the host. One connects to the sockets of the host that `--unix` names: a filter of system calls sees
no paths. The process that runs the guest may do nothing of that, and shares no memory with them.
"""

from kvmlet import _native
from kvmlet.cli import _helper


def start_processes(policy: "_native.Policy") -> None:
    """Start those that rules of `policy` ask for. They end with this process."""
    end = policy.names_end()
    if end is not None:
        _helper.start(end, _native.serve_names)
    end = policy.sockets_end()
    if end is not None:
        _helper.start(end, policy.serve_sockets)
