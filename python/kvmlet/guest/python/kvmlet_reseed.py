"""New seeds for random generators that a copy of a program shares with its other copies.

kvmlet also runs this text in servers that it freezes, of any version of Python. It imports nothing
that they may not have, and says nothing.
"""

import os
import sys


def reseed(seed: bytes) -> None:
    """Have the generators that modules share give other values than in another copy.

    These are those of `random`, of `numpy.random`, and of OpenSSL, which `ssl` has. A generator
    that the program made itself, as numpy's `default_rng()`, goes on as it is.

    seed: at least 16 bytes that no other copy has.
    """
    found = sys.modules.get("random")
    if found is not None:
        found.seed(int.from_bytes(seed, "little"))
    found = sys.modules.get("numpy.random")
    if found is not None:
        found.seed([int.from_bytes(seed[at : at + 4], "little") for at in range(0, 16, 4)])
    # OpenSSL asks the kernel as well: it has other values for having been told anything at all.
    found = sys.modules.get("_ssl")
    if found is not None:
        found.RAND_add(seed, 0.0)


def make_ready() -> None:
    """Have generators be there before a program is copied.

    OpenSSL makes those that it has at their first use, which takes a millisecond. Nothing but that
    changes, and nothing that modules raise gets to the caller.
    """
    found = sys.modules.get("_ssl")
    try:
        if found is not None:
            found.RAND_bytes(1)
    except Exception:  # noqa: BLE001
        pass


def reseed_quietly() -> None:
    """Do so in a program that knows nothing of it: nothing of what its modules raise gets there."""
    # Modules of these names may be anything, and contextlib is not there before others.
    try:  # noqa: SIM105
        reseed(os.urandom(32))
    except Exception:  # noqa: BLE001
        pass
