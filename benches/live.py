"""The process that holds the VMs: measures one case beside so many live VMs.

    live.py CASE LIVE PAIRS

Prints its rows as JSON. It is started by fork.py, with the library of preload/peer.c loaded.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import asdict

import live_forks
import live_serving
from measure import BUILD, BenchError
from peer import Peer

import kvmlet

CASES = {
    "fork": live_forks.fork,
    "reset": live_forks.reset,
    "calls": live_forks.calls,
    "serve": live_serving.serve,
    "memory": live_serving.memory,
    "python": live_serving.python,
}


def main() -> None:
    """Measure one case and print its rows."""
    name, live, pairs = sys.argv[1:]
    os.chdir(BUILD)
    gc.disable()
    try:
        rows = CASES[name](Peer(), int(live), int(pairs))
    except (BenchError, kvmlet.KvmletError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps([asdict(row) for row in rows]))
    # What was watched cannot be unwatched: threads that end would wait for the one that counts.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
