"""Bad pointers and lengths to every call: the same answers as Linux gives."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HW
from escape.bounded import bounded

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Ended, Oracle

pytestmark = [pytest.mark.hw, pytest.mark.poll]

NO_POINTERS = """
alarm brk clone close close_range dup dup2 dup3 epoll_create epoll_create1
eventfd eventfd2 exit exit_group fadvise64 fallocate
fanotify_init fchdir fchmod fchown fdatasync flock fork fsmount fsync getegid geteuid getgid
getpgid getpgrp getpid getppid getpriority getsid gettid getuid inotify_init inotify_init1
inotify_rm_watch ioperm iopl
ioprio_get ioprio_set kcmp kill kvmlet_generation
listen lseek pidfd_getfd pidfd_open
membarrier mlockall msgget munlockall pause personality pkey_alloc pkey_free readahead reboot
rt_sigreturn sched_get_priority_max sched_get_priority_min sched_getscheduler sched_yield semget
setfsgid setfsuid setgid setns setpgid setpriority setregid setresgid setresuid setreuid setsid
setuid shmget shutdown sync sync_file_range syncfs tee tgkill timer_delete
timer_getoverrun timerfd_create tkill umask unshare userfaultfd vfork
vhangup
"""
"""Calls whose arguments are all numbers. `clone` has a guest of its own."""

SLICES = 16


def rows(hostile: pathlib.Path) -> list[str]:
    listed = subprocess.run([hostile / "badptr", "--list"], capture_output=True, text=True)
    return listed.stdout.split()


@pytest.mark.usefixtures("vm")
def test_every_implemented_call_has_a_row(hostile: pathlib.Path) -> None:
    from kvmlet import _native

    implemented = {name for _, name, support, _ in _native.syscalls() if support != "none"}
    assert implemented - set(NO_POINTERS.split()) - set(rows(hostile)) == set()


@pytest.mark.parametrize("part", range(1 if HW else SLICES))
def test_bad_pointers(oracle: Oracle, hostile: pathlib.Path, tmp_name: str, part: int) -> None:
    names = rows(hostile)[part::SLICES]
    assert names
    argv = ["./badptr", tmp_name, *names]
    if HW and not oracle.native_only:
        # Another kernel, older: its error numbers are not the same in all of them.
        run: Ended = bounded(argv, cwd=hostile)
        assert run.status == 0
        assert b"FAIL" not in run.stdout
    else:
        run = oracle.compare(argv, cwd=hostile)
    assert run.stdout.endswith(b"alive\n")


# Not t3 and t4: thread pointers in kvmlet's own area, which Linux would take.
# On the emulated machine those that the CPU or its page tables have a part in.
THREADS = [
    f"{kind}{n}"
    for kind in ("st" if HW else "spcxt")
    for n in range(3 if HW else 8)
    if (kind, n) not in (("t", 3), ("t", 4))
]


@pytest.mark.parametrize("which", THREADS)
def test_threads_begun_with_bad_pointers(oracle: Oracle, hostile: pathlib.Path, which: str) -> None:
    # The new thread exits at once, without a stack: what it is given must not matter.
    oracle.compare(["./hog", "bad-thread", which], cwd=hostile)
