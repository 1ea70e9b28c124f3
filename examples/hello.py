"""Shows what a program sees inside kvmlet: its kernel, itself, and what it may not do.

kvmlet run -- /usr/bin/python3 examples/hello.py
"""

import os
import socket
import sys
import time
from collections.abc import Callable


def attempt(label: str, action: Callable[[], object]) -> None:
    try:
        outcome = action()
    except OSError as error:
        print(f"  {label:<28} refused: {error.strerror}")
    else:
        print(f"  {label:<28} {outcome}")


def read(path: str) -> str:
    with open(path, "rb") as file:
        return f"read {len(file.read())} bytes"


def write(path: str) -> str:
    with open(path, "w") as file:
        return f"wrote {file.write('hello')} characters"


def connect() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(("1.1.1.1", 53))
    return "connected"


def main() -> None:
    kernel = os.uname()
    print(f"kernel    {kernel.sysname} {kernel.release} {kernel.version}, {kernel.machine}")
    print(f"program   {sys.executable} {sys.version.split()[0]}")
    print(f"process   pid {os.getpid()}, uid {os.getuid()}, in {os.getcwd()}")
    print(f"variables {' '.join(sorted(os.environ))}")
    started = time.perf_counter()
    total = sum(number * number for number in range(300_000))
    print(f"compute   {total} in {(time.perf_counter() - started) * 1e3:.0f} ms")
    print("files and network:")
    attempt("read /etc/passwd", lambda: read("/etc/passwd"))
    attempt("read /etc/shadow", lambda: read("/etc/shadow"))
    attempt("list /root", lambda: os.listdir("/root"))
    attempt("write /usr/bin/hello", lambda: write("/usr/bin/hello"))
    attempt("write here", lambda: write("hello-was-here"))
    attempt("write /tmp/hello", lambda: write("/tmp/hello"))
    attempt("connect to 1.1.1.1", connect)


if __name__ == "__main__":
    main()
