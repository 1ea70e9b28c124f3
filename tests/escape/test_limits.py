"""Guests that take all they can get: a clean error or a limit's own end, in bounded memory."""

from __future__ import annotations

import concurrent.futures
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, LONG, in_vm, repeated
from escape.bounded import Run, bounded

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = pytest.mark.hw

HOGS = {
    "everything": ["everything"],
    "sparse-gib": ["sparse-gib"],
    "sparse-2mib": ["sparse-2mib"],
    "sparse-read": ["sparse-read"],
    "areas": ["areas"],
    "threads": ["threads"],
    "spinning-threads": ["spinning-threads"],
    "descriptors-host": ["descriptors", "/usr/bin/env"],
    "descriptors-tmp": ["descriptors", "/tmp/hog"],
    "descriptors-zero": ["descriptors", "/dev/zero"],
    "descriptors-directory": ["descriptors", "/usr/lib"],
    "pipes": ["pipes"],
    "tmp": ["tmp"],
    "sparse-file": ["sparse-file"],
    "files": ["names", "f"],
    "directories": ["names", "d"],
    "links": ["names", "s"],
    "hard-links": ["names", "h"],
    "memfds": ["names", "m"],
    "signals": ["signals"],
    "futexes": ["futexes"],
    "robust-list": ["robust"],
    "break": ["grow"],
    "file-maps": ["file-maps"],
    "churn": ["churn"],
}


ON_HW = {"sparse-2mib", "threads", "spinning-threads", "robust-list", "file-maps", "churn"}
"""Those that the CPU or its page tables have a part in."""


@pytest.mark.slow
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("name", [name for name in HOGS if not HW or name in ON_HW])
def test_hog(hostile: pathlib.Path, name: str) -> None:
    run = bounded(["./hog", *HOGS[name]], cwd=hostile, timeout_s=20 if LONG or HW else 3)
    # By itself, or by the limits of memory and time. Never by a signal: it did nothing wrong.
    assert run.status in (0, 124, 137), run.said
    if run.status == 0:
        assert run.stdout.endswith(b"done\n"), run.said
    else:
        assert any("limit" in line for line in run.own_lines), run.said


BROODS = {
    "bomb": (124, 137),
    "zombies": (0,),
    "unwanted": (0, 124),
    "chain": (0,),
    "parked-chain": (0,),
    "bad-manners": (0, 124, 128 + 6, 128 + 7, 128 + 11),
    "stopped": (124,),
    "war": (0, 124, 128 + 9, 128 + 1, 128 + 15),
    "storm": (0,),
    "heavy": (0,),
    "writing": (137,),
    "left": (0,),
    "breed": (0, 124, 137),
    "threads": (0,),
    "tables": (0,),
    "sharers": (0,),
    "leases": (0,),
    "mutexes": (0,),
    "arguments": (0, 137),
}
"""Families of processes, and the statuses that their runs may end with."""
BROODS_ON_HW = {"zombies", "parked-chain", "heavy", "threads"}
"""Those that the CPU or its page tables have a part in, and that end by themselves."""


@pytest.mark.slow
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("name", [name for name in BROODS if not HW or name in BROODS_ON_HW])
def test_broods(hostile: pathlib.Path, name: str) -> None:
    # Only what may go on for ever waits for a short limit.
    limit_s = 2 if 124 in BROODS[name] else 30
    run = bounded(["./brood", name], cwd=hostile, timeout_s=60 if HW else limit_s)
    assert run.status in BROODS[name], run.said
    if run.status == 0:
        assert run.stdout.endswith(b"done\n") or name == "war", run.said


TERMINALS = {
    "garbage": (0,),
    "loop": (0,),
    "lines": (0,),
    "again": (0,),
    "stopped": (0,),
    "signals": (0,),
    "sessions": (0,),
}
"""Terminals put to no good use, and the statuses that their runs may end with."""


@pytest.mark.usefixtures("vm")
@pytest.mark.skipif(HW, reason="the CPU has no part in it")
@pytest.mark.parametrize("name", TERMINALS)
def test_terminals(hostile: pathlib.Path, name: str) -> None:
    run = bounded(["./terminals", name], cwd=hostile, timeout_s=30)
    assert run.status in TERMINALS[name], run.said
    assert run.stdout.endswith(b"done\n"), run.said


IPC = {
    "numbers": (0,),
    "segments": (0,),
    "full-segments": (0, 137),
    "attachments": (0, 124, 137),
    "semaphores": (0,),
    "undo": (0,),
    "crowd": (0,),
    "queues": (0,),
    "killed": (0,),
    "copies": (0, 124),
    "splices": (0, 124),
}
"""What is done with System V IPC, and the statuses that its runs may end with."""


@pytest.mark.slow
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("name", [] if HW else IPC)
def test_system_v_ipc(hostile: pathlib.Path, name: str) -> None:
    limit_s = 3 if 124 in IPC[name] else 30
    run = bounded(["./ipc", name], cwd=hostile, timeout_s=limit_s)
    assert run.status in IPC[name], run.said
    if run.status == 0:
        assert run.stdout.endswith(b"done\n"), run.said


@pytest.mark.usefixtures("vm")
def test_the_number_of_processes_has_a_limit(hostile: pathlib.Path) -> None:
    run = in_vm(["./brood", "zombies"], cwd=hostile, options=["--max-procs", "10"])
    assert run.status == 0
    assert b"zombies: 9, then EAGAIN" in run.guest_stderr
    if not HW:  # as many as there may be: no program has 10,000 of them
        run = in_vm(["./brood", "zombies"], cwd=hostile, options=["--max-procs", "1023"])
        assert run.status == 0
        assert b"zombies: 1022, then EAGAIN" in run.guest_stderr
    result = kvmlet.run(["./brood", "zombies"], cwd=hostile, max_procs=5)
    assert result.exit_code == 0
    assert b"zombies: 4, then EAGAIN" in result.stderr
    assert any("--max-procs" in event.detail for event in result.events), result.events


HOARDS = {
    "maps": ["maps"],
    "named-maps": ["named-maps"],
    "long-names": ["long-names"],
    "epoll-items": ["epoll-items"],
    "proc-fd": ["proc-fd"],
    "listing": ["listing"],
    "host-listings": ["host-listings", "/usr/lib/x86_64-linux-gnu"],
    "denials": ["denials"],
    "pipes": ["pipes"],
    "terminals": ["terminals"],
    "sockets": ["sockets"],
    "connections": ["connections"],
    "objects": ["objects"],
    "areas": ["areas"],
    "pollers": ["pollers"],
    "threads": ["threads"],
    "queued": ["queued"],
    "arguments": ["arguments"],
    "links": ["links"],
    "pages": ["pages"],
    "vectors": ["vectors"],
}
"""Things that kvmlet keeps or makes for a guest, in memory that is not the guest's."""
MAY_END = ("maps", "sockets")
"""Those that end when they are refused more. All others go on until their memory is full."""


@pytest.mark.usefixtures("vm")
@pytest.mark.skipif(HW, reason="the CPU has no part in it")
@pytest.mark.parametrize("half", range(2))
def test_hoards(hostile: pathlib.Path, half: int) -> None:
    """Each takes all of its memory in the end: what was not charged would come on top of it."""

    def hoard(words: list[str]) -> Run:
        return bounded(["./hoard", *words], cwd=hostile, memory_mib=64, timeout_s=10)

    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        runs = [(name, executor.submit(hoard, HOARDS[name])) for name in list(HOARDS)[half::2]]
    for name, future in runs:
        run = future.result()
        ends = (0, 124, 137) if name in MAY_END else (124, 137)
        assert run.status in ends, f"{name}: {run.said}"


@pytest.mark.usefixtures("vm")
@pytest.mark.skipif(HW, reason="the CPU has no part in it")
@pytest.mark.parametrize("what", ["backlog", "streams", "datagrams", "rights"])
def test_sockets(hostile: pathlib.Path, what: str) -> None:
    """As [HOARDS]: connections that nobody accepts, queues, descriptors in messages."""
    run = bounded(["./sockets", what], cwd=hostile, memory_mib=64, timeout_s=10)
    assert run.status in (0, 124, 137), run.said


@pytest.mark.usefixtures("vm")
def test_memory_in_tmp_counts(hostile: pathlib.Path) -> None:
    """Filling /tmp ends with ENOSPC or with the memory limit, whichever is met first."""
    # Nothing of the emulated machine's own file system can be written.
    options = [] if HW else ["--disk", "200m"]
    run = bounded(["./hog", "tmp"], cwd=hostile, memory_mib=64, options=options)
    assert run.status in (0, 137), run.said
    if run.status == 0:
        assert b"then ENOSPC" in run.stderr, run.said


@pytest.mark.usefixtures("vm")
def test_a_program_that_executes_itself_uses_its_memory_again(hostile: pathlib.Path) -> None:
    """Twenty programs of 40 MiB, one after the other: the host has room for one."""
    run = bounded(["./again", "20"], cwd=hostile, memory_mib=64)
    assert run.status == 0, run.said


def test_vectors(oracle: Oracle, hostile: pathlib.Path) -> None:
    oracle.compare(["./hog", "vectors"], cwd=hostile)


@pytest.mark.slow
@pytest.mark.hw_modes
@pytest.mark.poll
@pytest.mark.usefixtures("vm")
def test_races(hostile: pathlib.Path) -> None:
    run = bounded(["./races", str(repeated(1000, 100))], cwd=hostile)
    assert run.status == 0, run.said
    assert run.stdout == b"0 forbidden, 0 surprises\n"


@pytest.mark.slow
@pytest.mark.poll
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("seed", range(repeated(12, 1, short=3)))
def test_random_calls(hostile: pathlib.Path, seed: int) -> None:
    """A program may end itself by what it does; nothing it does ends kvmlet."""
    bounded(["./fuzz", str(seed + 1), str(repeated(20_000, 2000, short=6000))], cwd=hostile)
