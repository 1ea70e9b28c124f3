"""Counts KVM's own page faults over one run of a program: prints them as JSON.

    faults_kvm.py PROGRAM ARGUMENT...

It is started by faults.py, with the library of preload/peer.c loaded.
"""

from __future__ import annotations

import contextlib
import json
import sys

from measure import BenchError
from peer import Peer

import kvmlet


def main() -> None:
    """Run the program to its end and print KVM's counters."""
    peer = Peer()
    counts: dict[str, int] = {}
    with kvmlet.Sandbox(sys.argv[1:]) as sandbox:
        with contextlib.suppress(kvmlet.SandboxEnded):
            sandbox.run_for("60s")
        for name in ("pf_taken", "pf_fixed"):
            with contextlib.suppress(BenchError):
                counts[name] = peer.kvm_counter(name)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
