"""State that outlives a request in an ordinary server: a number, a file, a list, generators."""

import os
import random
import secrets
import ssl
import threading
import uuid

_lock = threading.Lock()
_counter = 0
_seen: list[object] = []


def count() -> str:
    """Counts the requests in a global variable, in a file and in a global list."""
    global _counter  # noqa: PLW0603 -- it is what a server keeps
    with _lock:
        _counter += 1
        _seen.append(object())
        with open("/tmp/count", "a") as file:
            file.write("x")
        return f"{_counter} {os.path.getsize('/tmp/count')} {len(_seen)}"


def draw() -> str:
    """Values that no other client may get."""
    values = (
        random.random(),
        ssl.RAND_bytes(8).hex(),
        os.urandom(8).hex(),
        uuid.uuid4(),
        secrets.token_hex(8),
    )
    return " ".join(map(str, values))
