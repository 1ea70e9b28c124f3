"""Run by test_jail.py: a process behind kvmlet's second wall tries what the wall refuses.

Each attempt has a process of its own. Writes a JSON object: for each attempt, how it ended.
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable

from kvmlet import _native

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

HERE = os.getcwd().encode()
PARENT = os.getpid()
PAGE = 4096
AT_FDCWD = -100
WORD = ctypes.create_string_buffer(64)
# An unmapped address: what is refused is refused before it is looked at.
BAD = 8

# `mov eax, 20; int 0x80; ret`: getpid by the gate of 32-bit programs. Made before the wall.
_code = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
getpid_by_int80 = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(_code)))


def call(number: int, *arguments: object) -> str:
    """A system call; "ok" or the errno's name."""
    ctypes.set_errno(0)
    words = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]  # type: ignore[arg-type]
    if libc.syscall(ctypes.c_long(number), *words) != -1:
        return "ok"
    return errno_names[ctypes.get_errno()]


errno_names = {1: "EPERM", 2: "ENOENT", 13: "EACCES", 38: "ENOSYS", 40: "ELOOP", 18: "EXDEV"}


def openat2(path: bytes, flags: int, mode: int = 0) -> str:
    how = struct.pack("=QQQ", flags, mode, 0)
    return call(437, AT_FDCWD, path, how, len(how))


THREAD = 0x00000100 | 0x00000200 | 0x00000400 | 0x00000800 | 0x00010000
RULED_OUT: dict[str, Callable[[], object]] = {
    "execve": lambda: call(59, b"/bin/true", 0, 0),
    "execveat": lambda: call(322, AT_FDCWD, b"/bin/true", 0, 0, 0),
    "fork": lambda: call(57),
    "vfork": lambda: call(58),
    "clone a process": lambda: call(56, signal.SIGCHLD, 0, 0, 0, 0),
    "clone a user namespace": lambda: call(56, THREAD | 0x10000000, 0, 0, 0, 0),
    "unshare": lambda: call(272, 0x10000000),
    "setns": lambda: call(308, 0, 0),
    "ptrace": lambda: call(101, 16, PARENT, 0, 0),
    "read another's memory": lambda: call(310, PARENT, BAD, 1, BAD, 1, 0),
    "write another's memory": lambda: call(311, PARENT, BAD, 1, BAD, 1, 0),
    "kcmp": lambda: call(312, PARENT, PARENT, 0, 0, 0),
    "pidfd_open": lambda: call(434, PARENT, 0),
    "pidfd_getfd": lambda: call(438, 0, 0, 0),
    "kill another": lambda: call(62, PARENT, 0),
    "kill oneself": lambda: call(62, os.getpid(), 0),
    "kill all": lambda: call(62, -1, 0),
    "tgkill another": lambda: call(234, PARENT, PARENT, 0),
    "tkill": lambda: call(200, PARENT, 0),
    "rt_sigqueueinfo": lambda: call(129, PARENT, 0, BAD),
    "rt_tgsigqueueinfo": lambda: call(297, PARENT, PARENT, 0, BAD),
    "socket of IPv4": lambda: call(41, 2, 1, 0),
    "socket of UNIX": lambda: call(41, 1, 1, 0),
    "socketpair": lambda: call(53, 1, 1, 0, BAD),
    "connect": lambda: call(42, 0, BAD, 16),
    "bind": lambda: call(49, 0, BAD, 16),
    "sendto an address": lambda: call(44, 1, BAD, 1, 0, BAD, 16),
    "sendto an address that ends in zeros": lambda: call(44, 1, BAD, 1, 0, 1 << 32, 16),
    "sendmsg": lambda: call(46, 1, BAD, 0),
    "recvmsg": lambda: call(47, 0, BAD, 0),
    "open to write": lambda: call(257, AT_FDCWD, b"/dev/null", os.O_WRONLY, 0),
    "open to read and write": lambda: call(257, AT_FDCWD, b"/dev/null", os.O_RDWR, 0),
    "open to create": lambda: call(257, AT_FDCWD, HERE + b"/new", os.O_CREAT, 0o600),
    "open to shorten": lambda: call(257, AT_FDCWD, HERE + b"/old", os.O_TRUNC, 0),
    "open without a name": lambda: call(257, AT_FDCWD, HERE, os.O_TMPFILE, 0o600),
    "open(2) to write": lambda: call(2, b"/dev/null", os.O_WRONLY, 0),
    "creat": lambda: call(85, HERE + b"/new", 0o600),
    "unlink": lambda: call(87, HERE + b"/old"),
    "unlinkat": lambda: call(263, AT_FDCWD, HERE + b"/old", 0),
    "rename": lambda: call(82, HERE + b"/old", HERE + b"/new"),
    "renameat2": lambda: call(316, AT_FDCWD, HERE + b"/old", AT_FDCWD, HERE + b"/new", 0),
    "mkdir": lambda: call(83, HERE + b"/new", 0o700),
    "link": lambda: call(86, HERE + b"/old", HERE + b"/new"),
    "symlink": lambda: call(88, b"old", HERE + b"/new"),
    "mknod": lambda: call(133, HERE + b"/new", 0o10600, 0),
    "truncate": lambda: call(76, HERE + b"/old", 0),
    "chmod": lambda: call(90, HERE + b"/old", 0o777),
    "fchmod": lambda: call(91, 0, 0o777),
    "chown": lambda: call(92, HERE + b"/old", 1, 1),
    "utimensat": lambda: call(280, AT_FDCWD, HERE + b"/old", 0, 0),
    "setxattr": lambda: call(188, HERE + b"/old", b"user.a", b"b", 1, 0),
    "mount": lambda: call(165, BAD, HERE, BAD, 0, 0),
    "move_mount": lambda: call(429, 0, BAD, 0, BAD, 0),
    "umount2": lambda: call(166, HERE, 0),
    "chroot": lambda: call(161, HERE),
    "chdir": lambda: call(80, b"/"),
    "open_by_handle_at": lambda: call(304, 0, BAD, 0),
    "fanotify_init": lambda: call(300, 0, 0),
    "bpf": lambda: call(321, 0, BAD, 0),
    "io_uring_setup": lambda: call(425, 1, BAD),
    "keyctl": lambda: call(250, 0, 0),
    "add_key": lambda: call(248, BAD, BAD, 0, 0, 0),
    "perf_event_open": lambda: call(298, BAD, 0, -1, -1, 0),
    "userfaultfd": lambda: call(323, 0),
    "memfd_create": lambda: call(319, b"m", 0),
    "shmget": lambda: call(29, 0, PAGE, 0o1600),
    "msgget": lambda: call(68, 0, 0o1600),
    "inotify_init1": lambda: call(294, 0),
    "map to execute": lambda: call(9, 0, PAGE, 5, 0x22, -1, 0),
    "protect to execute": lambda: call(10, ctypes.addressof(WORD) & -PAGE, PAGE, 5),
    "pkey_mprotect to execute": lambda: call(329, ctypes.addressof(WORD) & -PAGE, PAGE, 5, -1),
    "a core dump again": lambda: call(157, 4, 1, 0, 0, 0),
    "PR_SET_MM": lambda: call(157, 35, 1, 0, 0, 0),
    "PR_SET_PTRACER": lambda: call(157, 0x59616D61, PARENT, 0, 0, 0),
    "limits of another": lambda: call(302, PARENT, 7, 0, BAD),
    "setrlimit": lambda: call(160, 4, BAD),
    "setuid": lambda: call(105, 0),
    "capset": lambda: call(126, BAD, BAD),
    "setpgid": lambda: call(109, 0, 0),
    "setpriority": lambda: call(141, 0, PARENT, 5),
    "type for the user": lambda: call(16, 0, 0x5412, b"x"),
    "take the terminal": lambda: call(16, 0, 0x540E, 0),
    "an eventfd for KVM": lambda: call(16, 0, 0x4020AE76, BAD),
    "a device of KVM's": lambda: call(16, 0, 0xC00CAEE0, BAD),
    "make a stream asynchronous": lambda: call(72, 0, 4, 0x2000),
    "signals for a stream": lambda: call(72, 0, 8, PARENT),
    "dup2": lambda: call(33, 0, 5),
    "modify_ldt": lambda: call(154, 0, BAD, 0),
    "iopl": lambda: call(172, 3),
    "personality": lambda: call(135, 0xFFFFFFFF),
    "init_module": lambda: call(175, BAD, 0, BAD),
    "kexec_load": lambda: call(246, 0, 0, 0, 0),
    "reboot": lambda: call(169, 0, 0, 0, 0),
    "clock_settime": lambda: call(227, 0, BAD),
    "a call of x32": lambda: call(0x40000000 | 39),
    "a call of 32 bits": getpid_by_int80,
    "no such call": lambda: call(1000),
}

OUTSIDE = sys.argv[1].encode()
REFUSED: dict[str, Callable[[], object]] = {
    "open outside": lambda: call(257, AT_FDCWD, OUTSIDE, os.O_RDONLY, 0),
    "open2 outside": lambda: openat2(OUTSIDE, os.O_RDONLY),
    "list outside": lambda: call(257, AT_FDCWD, os.path.dirname(OUTSIDE), os.O_DIRECTORY, 0),
    "open by way of inside": lambda: openat2(HERE + b"/../" + os.path.basename(OUTSIDE), 0),
    "open2 to write": lambda: openat2(HERE + b"/old", os.O_WRONLY),
    "open2 to shorten": lambda: openat2(HERE + b"/old", os.O_RDONLY | os.O_TRUNC),
    "open2 to create": lambda: openat2(HERE + b"/new", os.O_RDWR | os.O_CREAT, 0o600),
    "open2 a device to write": lambda: openat2(b"/dev/null", os.O_WRONLY),
    "open KVM again": lambda: openat2(b"/dev/kvm", os.O_RDWR),
}
ABSENT: dict[str, Callable[[], object]] = {"clone3": lambda: call(435, BAD, 88)}
ALLOWED: dict[str, Callable[[], object]] = {
    "open inside": lambda: call(257, AT_FDCWD, HERE + b"/old", os.O_RDONLY, 0),
    "open2 inside": lambda: openat2(HERE + b"/old", os.O_RDONLY),
}


def harden() -> None:
    # A dump would show, did the wall not lower this again.
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    _, missing = _native.harden(_native.Policy(HERE, []))
    assert not missing, missing


def attempt(action: Callable[[], object], prepare: Callable[[], None] = harden) -> str:
    """The end of a process that tries it behind the wall: a signal's name, or what it says."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            os.write(writer, str(action()).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    said = os.read(reader, 100).decode()
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        core = " with a core dump" if os.WCOREDUMP(status) else ""
        return signal.Signals(os.WTERMSIG(status)).name + core
    return said


# landlock_create_ruleset(2), asked for the version. Before the third (Linux 6.2) it knows no
# truncation, and openat2 shows seccomp no flags.
TRUNCATION_IS_REFUSED = libc.syscall(ctypes.c_long(444), None, ctypes.c_long(0), 1) >= 3


if __name__ == "__main__":
    if not TRUNCATION_IS_REFUSED:
        del REFUSED["open2 to shorten"]
    everything = {**RULED_OUT, **REFUSED, **ABSENT, **ALLOWED}
    ends = {name: attempt(action) for name, action in everything.items()}
    expected = {
        **dict.fromkeys(RULED_OUT, "SIGSYS"),
        **dict.fromkeys(REFUSED, "EACCES"),
        **dict.fromkeys(ABSENT, "ENOSYS"),
        **dict.fromkeys(ALLOWED, "ok"),
    }
    # Without the wall, the same process may do it.
    for name, action in REFUSED.items():
        ends[f"{name}, free"] = attempt(action, lambda: None)
        expected[f"{name}, free"] = "ok"
    wrong = {name: (end, expected[name]) for name, end in ends.items() if end != expected[name]}
    json.dump({"attempts": len(ends), "wrong": wrong}, sys.stdout)
