"""Processes of ours beside a run or a server, started before the second wall for what it forbids.

Those of a run wait for orders in a pipe, and answer with lines to be said and a status.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterator
else:
    import _signal

_IGNORED = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGPIPE)


def start(end: int, work: "Callable[[], object]") -> None:
    """Start a process that does `work` with `end`, this process's, as its standard input.

    It has no other descriptor, and ends with its work. That is over when this process is gone.
    """
    if os.fork():
        os.close(end)
        return
    try:
        # Keys typed at the terminal are the program's.
        os.setsid()
        os.chdir("/")
        os.dup2(end, 0)
        os.closerange(1, os.sysconf("SC_OPEN_MAX"))
        work()
    finally:
        os._exit(0)


def let_go(kept: list[int]) -> None:
    """Let go of everything of the parent's but the descriptors `kept`."""
    for signum in _IGNORED:
        _signal.signal(signum, _signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                continue


def answer(fd: int, word: bytes, text: str) -> None:
    """Have the parent say a line: "warn", or "note", which it leaves out when it is quiet."""
    data = text.encode("utf-8", "surrogateescape").hex().encode()
    write_all(fd, b"%s %s\n" % (word, data))


def answers_of(fd: int) -> "Iterator[tuple[str, str]]":
    """The words and texts that a helper answers, until it ends; "status" and its number last."""
    for line in _lines_of(fd):
        word, _, rest = line.decode().partition(" ")
        known = word == "status"
        yield word, rest if known else bytes.fromhex(rest).decode("utf-8", "surrogateescape")


def write_all(fd: int, data: bytes) -> None:
    """All of `data`. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _lines_of(fd: int) -> "Iterator[bytes]":
    rest = b""
    while part := os.read(fd, 1 << 16):
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
