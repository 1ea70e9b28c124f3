"""A warmed Python program: imports, caches, and state done once; then it serves text requests.

Run with kvmlet_guest on the path. The answers depend on the request and the warm-up only.
"""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import gc
import hashlib
import json
import os
import re
import signal
import sys
import threading

import kvmlet_guest

WORDS = {
    f"word{number}": [number, str(number), {"square": number * number}] for number in range(3000)
}
PATTERN = re.compile(r"(?P<name>\w+)=(?P<value>[^;]*);")
LOOP = asyncio.new_event_loop()

requests = 0
left: list[object] = []


async def _gather(count: int) -> int:
    async def one(number: int) -> int:
        await asyncio.sleep(0)
        return number * number

    return sum(await asyncio.gather(*(one(number) for number in range(count))))


def _text(path: str) -> str:
    """A file of /proc, without what counts time."""
    with open(path) as file:
        text = file.read()
    if path.endswith("/stat"):
        fields = text.rsplit(")", 1)[1].split()
        return " ".join(fields[:11] + fields[15:])
    return "".join(line for line in text.splitlines(keepends=True) if "ctxt_switches" not in line)


def _tree(top: str) -> list[str]:
    found = []
    for directory, names, files in os.walk(top):
        # Not into another file system, as in service.h.
        device = os.lstat(directory).st_dev
        below = [name for name in names if os.lstat(f"{directory}/{name}").st_dev == device]
        names[:] = sorted(below)
        for name in sorted(files):
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found.append(
                    f"{path} {hashlib.sha256(file.read()).hexdigest()} {os.stat(path).st_mtime_ns}"
                )
        found.append(directory)
    return found


def _links() -> list[str]:
    found = []
    for name in sorted(os.listdir("/proc/self/fd"), key=int):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the descriptor that listed them
            pass
    return found


def see(tree: str) -> str:
    """Everything that the program can see of itself."""
    about = [
        f"requests {requests} left {len(left)} modules {len(sys.modules)}",
        f"threads {[thread.name for thread in threading.enumerate()]}",
        f"objects {len(gc.get_objects())} counts {gc.get_count()} hash {hash('kvmlet')}",
        f"ids {id(WORDS)} {id(object())} {id(bytearray(100))}",
        f"words {hashlib.sha256(json.dumps(WORDS).encode()).hexdigest()}",
        f"pid {os.getpid()} cwd {os.getcwd()} env {sorted(os.environ.items())}",
        f"mask {signal.pthread_sigmask(signal.SIG_BLOCK, [])} pending {signal.sigpending()}",
        f"handlers {[(int(n), str(signal.getsignal(n))) for n in sorted(signal.valid_signals())]}",
        f"timers {signal.getitimer(signal.ITIMER_REAL)} next descriptor {(fd := os.dup(0))}",
        f"context {decimal.getcontext()}",
        *_links(),
        *_tree(tree or "/tmp"),
    ]
    os.close(fd)
    about += [
        _text(f"/proc/self/{name}")
        for name in ("maps", "status", "statm", "stat", "limits", "cmdline")
    ]
    return "\n".join(about)


def leave_traces() -> str:
    """Change what can be changed, and leave it so."""
    WORDS.clear()
    left.extend(bytearray(100_000) for _ in range(50))
    with open("/tmp/trace", "w") as file:
        file.write("trace" * 1000)
    left.append(os.pipe())
    left.append(open("/tmp/trace", "rb"))
    os.chdir("/tmp")
    os.environ["TRACE"] = "left"
    signal.signal(signal.SIGUSR1, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    signal.setitimer(signal.ITIMER_REAL, 1000, 1000)
    decimal.getcontext().prec = 5
    thread = threading.Thread(target=threading.Event().wait, daemon=True)
    thread.start()
    left.append(thread)
    import fractions
    import textwrap

    left.append((fractions, textwrap))
    return "left"


def answer(request: str) -> str:
    """The answer to one request."""
    global requests  # noqa: PLW0603
    requests += 1
    verb, _, rest = request.partition(" ")
    if verb == "echo":
        return rest
    if verb == "count":
        return f"count {requests}"
    if verb == "work":
        count = int(rest)
        some = {key: WORDS[key] for key in list(WORDS)[: count % 50 + 1]}
        text = json.dumps(some, sort_keys=True)
        pairs = PATTERN.findall("".join(f"k{number}={number * count};" for number in range(20)))
        number = decimal.Decimal(count).sqrt() + sum(decimal.Decimal(value) for _, value in pairs)
        gathered = LOOP.run_until_complete(_gather(count % 30))
        return f"{len(json.loads(text))} {number} {gathered} {requests}"
    if verb == "see":
        return see(rest)
    if verb == "traces":
        return leave_traces()
    if verb == "crash":
        ctypes.string_at(8)
    if verb == "exit":
        os._exit(int(rest))
    if verb == "spin":
        while True:
            pass
    if verb == "eat":
        while True:
            left.append(bytearray(1 << 20))
    if verb == "random":
        import random

        return f"{random.random()} {os.urandom(8).hex()} {kvmlet_guest.generation()}"
    return f"what? {request}"


def main() -> None:
    global requests  # noqa: PLW0603
    asyncio.set_event_loop(LOOP)
    answer("work 7")
    answer("work 23")
    see("/nowhere")
    requests = 0
    gc.collect()
    kvmlet_guest.serve(lambda message: answer(message.decode()).encode())


main()
