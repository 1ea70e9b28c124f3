"""The peer of kvmlet in its own process, and requests to the host (preload/peer.c)."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, fields

from measure import PEER, BenchError


class _Counts(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "runs",
            "slots",
            "creations",
            "others",
            "slot_ns",
            "creation_ns",
            "cpuid_ns",
            "mapping_calls",
        )
    ]


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests of this process to the host; differences are taken between two moments."""

    runs: int
    """KVM_RUN."""
    slots: int
    """KVM_SET_USER_MEMORY_REGION."""
    creations: int
    """KVM_CREATE_VM and KVM_CREATE_VCPU."""
    others: int
    """All other ioctls."""
    slot_ns: int
    creation_ns: int
    cpuid_ns: int
    """KVM_SET_CPUID2, which is one of the others."""
    mapping_calls: int
    """mmap, munmap, mprotect, mremap, madvise and brk, once they are watched."""

    def since(self, before: Asked) -> Asked:
        """The requests between two moments."""
        return Asked(
            **{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)}
        )


class Peer:
    """The preloaded library of this process."""

    def __init__(self) -> None:
        """Raises BenchError when the process was started without it."""
        if os.environ.get("LD_PRELOAD") != str(PEER):
            raise BenchError(f"this process was not started with LD_PRELOAD={PEER}")
        library = ctypes.CDLL(str(PEER))
        for name in ("peer_exit_ns", "peer_copy_ns"):
            getattr(library, name).restype = ctypes.c_double
        library.peer_kvm_counter.restype = ctypes.c_int64
        self._library = library

    def asked(self) -> Asked:
        """The requests of this process to the host so far."""
        counts = _Counts()
        self._library.peer_counts(ctypes.byref(counts))
        return Asked(**{f.name: getattr(counts, f.name) for f in fields(Asked)})

    def x_ns(self, batches: int = 5) -> float:
        """One exit and re-entry of a bare VM."""
        return float(self._library.peer_exit_ns(batches))

    def copy_ns(self, pages: int, written: int | None = None) -> float:
        """Copying as many pages from huge frozen memory to small private ones.

        In the first `written`, by default in all, a word is written before: not timed.
        """
        return float(self._library.peer_copy_ns(pages, pages if written is None else written))

    def kvm_counter(self, name: str) -> int:
        """A counter of KVM over all vCPUs of kvmlet's here. Raises BenchError where it has none."""
        value = int(self._library.peer_kvm_counter(name.encode()))
        if value < 0:
            raise BenchError(f"this KVM has no counter {name}")
        return value

    def watch_mappings(self) -> None:
        """Count calls that change mappings, for good. Raises BenchError where it cannot be done."""
        if self._library.peer_watch_mappings():
            raise BenchError("the kernel lets nobody watch its calls (seccomp notifications)")
