"""Programs that serve messages: the native answers, and what the host process holds for the VMs."""

from __future__ import annotations

import gc
import inspect
import os
import pathlib
import shutil
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from e2e.oracle import ENV, HANG_S, ROOT, native_argv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from e2e.oracle import Word


# As kvmlet sets it; and nothing is written beside the module.
_ENV = {
    **ENV,
    "PYTHONPATH": os.fspath(ROOT / "python" / "kvmlet" / "guest" / "python"),
    "PYTHONDONTWRITEBYTECODE": "1",
}


def native_answers(argv: Sequence[Word], *, cwd: Word, messages: Sequence[bytes]) -> list[bytes]:
    """Answers of the program, run natively from its start, to these messages in turn."""
    stream = b"".join(struct.pack("<I", len(message)) + message for message in messages)
    run = subprocess.run(
        native_argv(argv), cwd=cwd, env=_ENV, input=stream, capture_output=True, timeout=HANG_S
    )
    for path in ("/tmp/warm", "/tmp/traces"):
        shutil.rmtree(path, ignore_errors=True)
    # Another user's run would not get rid of it.
    pathlib.Path("/tmp/child").unlink(missing_ok=True)
    assert run.returncode == 0, (run.returncode, run.stderr[-2000:])
    answers = []
    rest = run.stdout
    while rest:
        (length,) = struct.unpack_from("<I", rest)
        answers.append(rest[4 : 4 + length])
        rest = rest[4 + length :]
    return answers


def tasks() -> list[str]:
    """This process's threads without pollers, which come when they pay and end by themselves."""
    import os

    found = []
    for task in sorted(os.listdir("/proc/self/task")):
        try:
            with open(f"/proc/self/task/{task}/comm") as comm:
                name = comm.read().strip()
        except OSError:  # it has ended
            continue
        if name != "kvmlet-poller":
            found.append(task)
    return found


TASKS = inspect.getsource(tasks)
"""The same for the programs of tests."""


@dataclass(frozen=True, slots=True)
class HostState:
    """The things that this process holds."""

    descriptors: int
    vms: int
    threads: int
    mappings: int
    resident_bytes: int

    @classmethod
    def now(cls) -> HostState:
        """As of now, without what waits to be collected."""
        gc.collect()
        links = []
        for name in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:  # the descriptor that listed them
                continue
        with open("/proc/self/statm") as statm:
            resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/self/maps") as maps:
            mappings = sum(1 for _ in maps)
        return cls(
            descriptors=len(links),
            vms=sum(link == "anon_inode:kvm-vm" for link in links),
            threads=len(tasks()),
            mappings=mappings,
            resident_bytes=resident,
        )

    def check_growth(self, before: HostState, *, most_bytes: int) -> None:
        """Fail if more is held than `before`; `most_bytes` is what the allocators may keep."""
        assert (self.descriptors, self.vms, self.threads) == (
            before.descriptors,
            before.vms,
            before.threads,
        ), (before, self)
        assert self.mappings <= before.mappings + 8, (before, self)
        assert self.resident_bytes <= before.resident_bytes + most_bytes, (before, self)
