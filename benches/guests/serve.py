"""serve.py [--fork]: a warmed Python program that answers messages, as dirty.c does.

A request is a JSON document, its answer a digest of it. Natively, messages are read from standard
input and written to standard output (kvmlet_guest); with --fork each is answered by a child process
of its own.
"""

import asyncio  # noqa: F401 - a warmed program has imported more than one request needs
import decimal
import json
import os
import re
import sys

import kvmlet_guest

ASKED_BEFORE: list[str] = []


def total(numbers: list[str]) -> decimal.Decimal:
    """The sum."""
    return sum((decimal.Decimal(number) for number in numbers), decimal.Decimal(0))


def answer(message: bytes) -> bytes:
    """The answer to one request; remembers it, which nobody may see."""
    request = json.loads(message)
    words = re.findall(r"\w+", request["text"])
    value = total(request["numbers"])
    ASKED_BEFORE.append(request["text"])
    return json.dumps(
        {"words": len(words), "total": str(value), "seen": len(ASKED_BEFORE)}
    ).encode()


def answer_in_child(message: bytes) -> None:
    """Answer by a child process, so that the next request finds this one clean."""
    child = os.fork()
    if not child:
        kvmlet_guest.send(answer(message))
        os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    """Answer until there are no more requests."""
    forks = "--fork" in sys.argv
    answer(b'{"text": "warm up", "numbers": ["1.5"]}')
    ASKED_BEFORE.clear()
    while True:
        try:
            message = kvmlet_guest.receive()
        except EOFError:
            return
        if forks:
            answer_in_child(message)
        else:
            kvmlet_guest.send(answer(message))


if __name__ == "__main__":
    main()
