"""arrays.py: a warmed Python program with numpy.

A message is the length of an array, its answer a figure calculated of one.
"""

import kvmlet_guest
import numpy


def answer(message: bytes) -> bytes:
    """The answer to one request."""
    numbers = numpy.arange(int(message), dtype="f8")
    total = numbers @ numbers + numpy.linalg.norm(numbers) + numpy.sort(-numbers)[0]
    return str(float(total)).encode()


def main() -> None:
    """Answer until there are no more requests."""
    answer(b"1000")
    while True:
        try:
            message = kvmlet_guest.receive()
        except EOFError:
            return
        kvmlet_guest.send(answer(message))


if __name__ == "__main__":
    main()
