"""Nothing of one request is left for the next, or for another program in the same VM.

A guest puts a secret wherever a program can put one. After the reset it searches all its memory
and state for it, and this process searches what the host holds as guest memory. The VMs live in a
process of their own. That never has the secret, as the guest derives it from a seed.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import secrets
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, repeated
from e2e.service import native_answers

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.hw, pytest.mark.poll, pytest.mark.slow, pytest.mark.usefixtures("vm")]

MASK = 0x5A5A_5A5A_5A5A_5A5A
LIMIT_S = 400 if HW else 60
PAGE = 4096
CHUNK = 4 << 20


def mixed(number: int) -> int:
    """As mix() in secrets.c."""
    bits = (1 << 64) - 1
    number = (number + 0x9E37_79B9_7F4A_7C15) & bits
    number = (number ^ number >> 30) * 0xBF58_476D_1CE4_E5B9 & bits
    number = (number ^ number >> 27) * 0x94D0_49BB_1331_11EB & bits
    return number ^ number >> 31


def needles(seed: int) -> list[bytes]:
    """The secret as the guest writes it: two words, and the first in hexadecimal."""
    words = [mixed(seed), mixed((seed + 1) & (1 << 64) - 1)]
    return [word.to_bytes(8, "little") for word in words] + [b"%016x" % words[0]]


# Serves one line per step: "reset N" and "close N" are what they say, "fork N S" makes fork N of
# snapshot S, "on N" lets it run on after its answer, "take N" drops a message that is there. Other
# words ask fork N.
WORKER = """
import sys
import time
import kvmlet

snapshots = [
    kvmlet.Sandbox(words.split()).until_ready().freeze() for words in sys.argv[1:]
]
forks = {}
for line in sys.stdin:
    verb, name, *rest = line.split()
    said = ""
    if verb == "fork":
        forks[name] = snapshots[int(rest[0])].fork()
    elif verb == "reset":
        forks[name].reset()
        assert forks[name].output() == (b"", b"")
    elif verb == "on":
        forks[name].run_for(0.02)
    elif verb == "take":
        forks[name].recv(timeout=100)
    elif verb == "close":
        forks.pop(name).close()
    else:
        said = forks[name].request(f"{verb} {rest[0]}".encode(), timeout=100).decode()
    print(repr(said), flush=True)
"""


class Worker:
    """The process with the VMs."""

    def __init__(self, cwd: pathlib.Path, programs: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *programs],
            cwd=cwd,
            # Arenas of malloc(3) beside its first are mapped without a reservation, too.
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, step: str) -> str:
        """One step's answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{step}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the worker ended: {step}"
        return str(eval(line))

    def plant(self, name: str, verb: str = "plant") -> int:
        """Has a secret planted; its seed."""
        seed = secrets.randbits(64)
        said = self.do(f"{verb} {name} {seed:016x}")
        assert said == "planted", (verb, said)
        return seed

    def find(self, name: str, seed: int) -> int:
        """Number of times that the guest finds the secret."""
        said = self.do(f"find {name} {seed ^ MASK:016x}")
        found = int(said.rsplit(" ", 1)[1])
        self.said = said
        return found

    def guest_memory(self) -> Iterator[tuple[int, int]]:
        """Address ranges, in bytes, of what the host holds as guest memory.

        That is what has been advised to be of huge pages or not to be (hg and nh of smaps' VmFlags,
        proc(5)). What is mapped without a reservation (nr) is, too, and mappings of memfds. Some
        kernels show stacks of our own threads so.
        """
        stacks = self.stack_pointers()
        text = pathlib.Path(f"/proc/{self.process.pid}/smaps").read_text()
        for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", text)[1:]:
            head = entry.splitlines()[0]
            flags = re.search(r"(?m)^VmFlags: (.*)$", entry)
            resident = re.search(r"(?m)^Rss: +(\d+) kB", entry)
            assert flags is not None
            assert resident is not None
            ours = "memfd:" in head or {"hg", "nh", "nr"} & set(flags[1].split())
            if ours and resident[1] != "0" and "r" in head.split()[1]:
                start, end = (int(part, 16) for part in head.split()[0].split("-"))
                if not any(start <= pointer < end for pointer in stacks):
                    yield start, end

    def stack_pointers(self) -> list[int]:
        """Of our threads, once each sleeps (proc(5), /proc/pid/task/tid/syscall)."""
        while True:
            tasks = pathlib.Path(f"/proc/{self.process.pid}/task").iterdir()
            places = [(task / "syscall").read_text().split() for task in tasks]
            if all(len(place) > 2 for place in places):
                return [int(place[-2], 16) for place in places]
            time.sleep(0.001)

    def search(self, seed: int) -> list[str]:
        """Places of the secret in the host's copy of guest memory."""
        found = []
        words = needles(seed)
        with (
            open(f"/proc/{self.process.pid}/mem", "rb", buffering=0) as memory,
            open(f"/proc/{self.process.pid}/pagemap", "rb", buffering=0) as pagemap,
        ):
            for start, end in self.guest_memory():
                for at in range(start, end, CHUNK):
                    length = min(CHUNK, end - at)
                    pages = os.pread(pagemap.fileno(), length // PAGE * 8, at // PAGE * 8)
                    # Bit 63: present. Reading what is not would be slow.
                    if not any(pages[7::8]):
                        continue
                    data = os.pread(memory.fileno(), length, at)
                    found += [
                        f"{word!r} at {at + data.find(word):#x}" for word in words if word in data
                    ]
        return found

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@pytest.fixture
def worker(hostile: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Worker]:
    worker = Worker(hostile, request.param)
    yield worker
    worker.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("worker", "rounds"),
    [(["./secrets 0"], repeated(1000, 4)), (["./secrets 8"], repeated(1000, 4))],
    ids=["one-thread", "eight-more"],
    indirect=["worker"],
)
def test_nothing_is_left_after_a_reset(worker: Worker, rounds: int) -> None:
    """The same fork, reset, finds nothing; nor does the host's view of its memory."""
    worker.do("fork a 0")
    assert worker.find("a", secrets.randbits(64)) == 0, worker.said
    worker.do("reset a")
    for number in range(rounds):
        seed = worker.plant("a")
        if number % 3 == 0:  # its threads get to where they hold the secret in registers
            worker.do("on a")
        if number % 50 == 0:  # the searches do find it where it is
            assert worker.search(seed), "the host's search is blind"
            if number % 100 == 0:
                worker.do("take a")
                assert worker.find("a", seed) > 1000
        worker.do("reset a")
        if number % 10 == 0:
            assert worker.search(seed) == []
        assert worker.find("a", seed) == 0, worker.said
        worker.do("reset a")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "worker", [["./secrets 0", "./secrets 1"]], ids=["two-programs"], indirect=True
)
def test_nothing_reaches_another_program(worker: Worker) -> None:
    """Two snapshots that use one VM in turn, and a live fork beside it."""
    worker.do("fork witness 1")
    for number in range(repeated(1000, 5)):
        worker.do("fork a 0")
        seed = worker.plant("a")
        if number % 2:
            worker.do("reset a")
        assert worker.find("witness", seed) == 0, worker.said
        worker.do("reset witness")
        worker.do("close a")
        if number % 10 == 0:
            assert worker.search(seed) == []
        worker.do("fork b 1")
        assert worker.find("b", seed) == 0, worker.said
        worker.do("close b")
        worker.do("fork a 0")
        assert worker.find("a", seed) == 0, worker.said
        worker.do("close a")


# ---- what children that have ended leave behind ----

ENDS = ("end", "kill", "execute", "grow")
"""Ways in which a child of heirs.c ends. At the last it has too much memory to be a spare."""


def test_children_leave_nothing_natively(hostile: pathlib.Path) -> None:
    """The search finds nothing where nothing can be, and all that it looks at is there."""
    seed = secrets.randbits(64)
    for end in ENDS:
        messages = [f"{end} {seed:016x}".encode(), f"find {seed ^ MASK:016x}".encode()]
        answers = native_answers(["./heirs"], cwd=hostile, messages=messages)
        assert answers == [b"planted", b"found 0"], end


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("worker", [["./heirs"]], ids=["heirs"], indirect=True)
def test_children_leave_nothing(worker: Worker) -> None:
    """Neither to the next children of the same request, nor after the reset.

    That is frames, tables, address spaces that are kept for the next fork, terminals and pipes.
    """
    worker.do("fork a 0")
    for number in range(repeated(400, 1, short=4)):
        verb = ENDS[number % len(ENDS)]
        seed = worker.plant("a", verb)
        if verb == "end":  # an address space that is kept for the next fork has it
            assert worker.search(seed), "the host's search is blind"
        assert worker.find("a", seed) == 0, (verb, worker.said)
        again = worker.plant("a", verb)
        worker.do("reset a")
        assert worker.search(seed) == [], verb
        assert worker.search(again) == [], verb
        assert worker.find("a", again) == 0, (verb, worker.said)
        worker.do("reset a")


# ---- state of the vCPU, beside the registers that hold_registers() fills ----

FILLS = (1, 12, 23, 34, 57, 61, 789, 998)


@contextlib.contextmanager
def tenants(cwd: pathlib.Path) -> Iterator[tuple[kvmlet.Snapshot, kvmlet.Snapshot]]:
    """Two snapshots, so of two owners."""
    first, second = (kvmlet.Sandbox(["./state"], cwd=cwd).until_ready(LIMIT_S) for _ in range(2))
    with first.freeze() as one, second.freeze() as other:
        yield one, other


def asked(fork: kvmlet.Sandbox, message: str) -> str:
    """A fork's answer."""
    return fork.request(message.encode(), timeout=LIMIT_S).decode()


def crash(fork: kvmlet.Sandbox) -> None:
    """Has the program end by a signal."""
    with pytest.raises(kvmlet.SandboxEnded):
        asked(fork, "crash")


def test_vcpu_state_is_put_back(hostile: pathlib.Path) -> None:
    """After a reset, a fault and its rebuild, and in the next program of the VM or thread."""
    with tenants(hostile) as (snapshot, other), other.fork() as witness:
        clean, clean_thread = asked(witness, "show"), asked(witness, "show thread")
        witness.reset()
        assert clean == clean_thread
        for number in FILLS:
            fill = f"fill {number}"
            with snapshot.fork() as fork:
                filled = asked(fork, fill)
                assert filled != clean
                # A null selector's low bits may go at any return to ring 3, as outside.
                assert asked(fork, "show").split(" gs base ")[1] == filled.split(" gs base ")[1]
                assert asked(fork, "show thread") == clean, f"{fill}: another thread"
                fork.reset()
                assert asked(fork, "show") == clean, f"{fill}: reset"
                asked(fork, fill)
                assert asked(witness, "show") == clean, f"{fill}: another VM"
                witness.reset()
                crash(fork)
                fork.reset()
                assert asked(fork, "show") == clean, f"{fill}: rebuilt"
                asked(fork, fill)
                crash(fork)
            # The emptied VM is the next one's, as is one that was put back.
            with other.fork() as fork:
                assert asked(fork, "show") == clean, f"{fill}: another program"
            with snapshot.fork() as fork:
                asked(fork, fill)
            with snapshot.fork() as fork:
                assert asked(fork, "show") == clean, f"{fill}: another fork"
                assert asked(fork, "show thread") == clean, f"{fill}: another fork's thread"
