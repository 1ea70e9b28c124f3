"""Attempts to leave a tree, inside a sandbox. Each function is one, told if it seems to succeed.

Arguments: the path of a directory that is not shown, with a file "file" and a directory "sub", and
of a socket there. The working directory may be changed. The host compares what it has before and
after: that decides.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import shutil
import socket
import stat
import struct
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

OUT = sys.argv[1]
SECRET = b"what-no-guest-may-read"
NAME = os.path.basename(OUT)
LIBC = ctypes.CDLL(None, use_errno=True)
ATTEMPTS: list[Callable[[], object]] = []


def attempt(function: Callable[[], object]) -> Callable[[], object]:
    ATTEMPTS.append(function)
    return function


def bytes_of(path: str, dir_fd: int | None = None) -> bytes:
    fd = os.open(path, os.O_RDONLY, dir_fd=dir_fd)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def write(path: str, flags: int = 0, dir_fd: int | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o666, dir_fd=dir_fd)
    try:
        os.write(fd, b"evil")
    finally:
        os.close(fd)


def link_to(target: str, name: str = "lnk") -> str:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
    os.symlink(target, name)
    return name


def fresh(name: str) -> str:
    if os.path.isdir(name) and not os.path.islink(name):
        shutil.rmtree(name)
    os.makedirs(name)
    return name


def system_call(number: int, *args: object) -> int:
    """A call by its number; OSError if it fails."""
    answer = LIBC.syscall(number, *args)
    if answer < 0:
        raise OSError(ctypes.get_errno(), "system call")
    return int(answer)


# ---- names and links ----


@attempt
def a_link_to_the_file() -> object:
    return bytes_of(link_to(f"{OUT}/file"))


@attempt
def writing_by_a_link_to_the_file() -> object:
    return write(link_to(f"{OUT}/file"))


@attempt
def a_link_to_the_directory() -> object:
    return write(link_to(OUT) + "/new", os.O_CREAT)


@attempt
def a_relative_link() -> object:
    return write(link_to(f"../{NAME}/file"))


@attempt
def a_chain_of_links() -> object:
    for number in range(20):
        link_to(f"chain{number + 1}", f"chain{number}")
    link_to(f"{OUT}/file", "chain20")
    return write("chain0")


@attempt
def a_link_in_a_link() -> object:
    link_to("..", "up")
    return write(f"up/{NAME}/file")


@attempt
def a_link_to_the_root() -> object:
    return write(link_to("/") + OUT + "/file")


@attempt
def the_parent() -> object:
    return write(f"../{NAME}/file")


@attempt
def many_parents() -> object:
    return write("../" * 60 + OUT.lstrip("/") + "/file")


@attempt
def a_parent_in_the_middle() -> object:
    fresh("d")
    return write(f"d/../../{NAME}/file")


@attempt
def the_parent_of_a_link() -> object:
    return bytes_of(link_to(f"{OUT}/sub") + "/../file")


@attempt
def a_dangling_link_that_makes_a_file() -> object:
    return write(link_to(f"{OUT}/made"), os.O_CREAT)


@attempt
def a_dangling_link_that_makes_a_file_alone() -> object:
    return write(link_to(f"{OUT}/made"), os.O_CREAT | os.O_EXCL)


@attempt
def a_link_that_is_cut_off() -> object:
    return os.truncate(link_to(f"{OUT}/file"), 0)


@attempt
def a_link_with_a_dot_behind() -> object:
    return write(link_to(OUT) + "/./file")


@attempt
def slashes() -> object:
    return write(f"..//{NAME}///file")


@attempt
def a_very_long_name() -> object:
    return write("./" * 2000 + f"../{NAME}/file")


@attempt
def a_deep_tree_and_back() -> object:
    fresh("deep")
    here = os.open("deep", os.O_RDONLY)
    for _ in range(200):
        os.mkdir("x", dir_fd=here)
        below = os.open("x", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    try:
        return write("../" * 210 + OUT.lstrip("/") + "/file", dir_fd=here)
    finally:
        os.close(here)


# ---- names that are read as others ----


@attempt
def a_name_with_a_line_end() -> object:
    return write(f"a\n../{NAME}/file", os.O_CREAT)


@attempt
def a_name_that_a_terminal_obeys() -> object:
    fresh("esc\x1b[2J\x1b]0;title\x07")
    return write(f"esc\x1b[2J\x1b]0;title\x07/../../{NAME}/file")


@attempt
def a_name_that_is_no_text() -> object:
    fresh(os.fsdecode(b"\xff\xfe\x80"))
    return write(os.fsdecode(b"\xff\xfe\x80") + f"/../../{NAME}/file")


@attempt
def dots_that_look_alike() -> object:
    for dots in ("\u2025", "\uff0e\uff0e", ".\u200b.", "..\u200b"):
        with contextlib.suppress(OSError):
            write(f"{dots}/{NAME}/file")
    return None


@attempt
def other_slashes() -> object:
    for slash in ("\u2215", "\uff0f", "\\", "%2f"):
        write(f"..{slash}{NAME}{slash}file", os.O_CREAT)
    return None


@attempt
def another_case() -> object:
    return write(f"../{NAME.upper()}/FILE")


@attempt
def a_percent_and_a_tilde() -> object:
    for name in ("~root/file", "$HOME/file", "%2e%2e/file"):
        with contextlib.suppress(OSError):
            write(name, os.O_CREAT)
    return None


@attempt
def a_name_that_ends_in_a_slash() -> object:
    link_to(f"{OUT}/file")
    return write("lnk/")


@attempt
def a_file_as_a_directory() -> object:
    write("plain", os.O_CREAT)
    return write(f"plain/../../{NAME}/file")


# ---- descriptors and directories that move ----


@attempt
def the_parent_of_a_descriptor() -> object:
    here = os.open(".", os.O_RDONLY)
    return write(f"../{NAME}/file", dir_fd=here)


@attempt
def a_descriptor_of_the_parent() -> object:
    above = os.open("..", os.O_RDONLY)
    return write(f"{NAME}/file", dir_fd=above)


@attempt
def a_directory_that_is_moved_up() -> object:
    fresh("m/a/b")
    held = os.open("m/a/b", os.O_RDONLY)
    os.rename("m/a/b", "m/up")
    return write(f"../../../{NAME}/file", dir_fd=held)


@attempt
def a_working_directory_that_is_moved() -> object:
    back = os.open(".", os.O_RDONLY)
    fresh("m/a/b")
    os.chdir("m/a/b")
    try:
        os.rename(f"/proc/self/fd/{back}/m/a/b", f"/proc/self/fd/{back}/moved")
        return write(f"../../{NAME}/file")
    finally:
        os.fchdir(back)
        shutil.rmtree("moved", ignore_errors=True)


@attempt
def a_working_directory_that_is_removed() -> object:
    back = os.open(".", os.O_RDONLY)
    fresh("gone")
    os.chdir("gone")
    try:
        os.rmdir("../gone")
        return write(f"../../{NAME}/file")
    finally:
        os.fchdir(back)


@attempt
def the_upper_directory_as_a_working_one() -> object:
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir("..")
        return write(f"{NAME}/file")
    finally:
        os.fchdir(back)


@attempt
def openat2_without_rules() -> object:
    how = struct.pack("QQQ", os.O_WRONLY, 0, 0)
    return system_call(437, -100, f"../{NAME}/file".encode(), how, len(how))


@attempt
def openat2_in_a_root() -> object:
    # RESOLVE_IN_ROOT: ".." of the root is the root.
    how = struct.pack("QQQ", os.O_RDONLY, 0, 0x10)
    above = os.open(".", os.O_RDONLY)
    fd = system_call(437, above, f"../{NAME}/file".encode(), how, len(how))
    return os.read(fd, 100)


@attempt
def a_handle() -> object:
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    system_call(303, -100, link_to(f"{OUT}/file").encode(), handle, ctypes.byref(mount), 0x400)
    return system_call(304, -100, handle, os.O_WRONLY)


# ---- what /proc and /dev lead to ----


@attempt
def the_working_directory_of_proc() -> object:
    return write(f"/proc/self/cwd/../{NAME}/file")


@attempt
def the_root_of_proc() -> object:
    return write(f"/proc/self/root{OUT}/file")


@attempt
def the_root_of_init() -> object:
    return write(f"/proc/1/root{OUT}/file")


@attempt
def a_descriptor_of_proc() -> object:
    here = os.open(".", os.O_RDONLY)
    return write(f"/proc/self/fd/{here}/../{NAME}/file")


@attempt
def a_descriptor_of_dev() -> object:
    here = os.open(".", os.O_RDONLY)
    return write(f"/dev/fd/{here}/../{NAME}/file")


@attempt
def the_map_files_of_proc() -> object:
    return [bytes_of(f"/proc/self/map_files/{name}") for name in os.listdir("/proc/self/map_files")]


# ---- hard links, renames, removals ----


@attempt
def a_hard_link() -> object:
    os.link(f"../{NAME}/file", "hard")
    return write("hard")


@attempt
def a_hard_link_by_a_link() -> object:
    os.link(link_to(f"{OUT}/file"), "hard", follow_symlinks=True)
    return write("hard")


@attempt
def a_hard_link_of_a_link() -> object:
    with contextlib.suppress(FileNotFoundError):
        os.unlink("hardlink")
    os.link(link_to(f"{OUT}/file"), "hardlink", follow_symlinks=False)
    return write("hardlink")


@attempt
def a_hard_link_by_a_location() -> object:
    fd = os.open(link_to(f"{OUT}/file"), os.O_PATH)
    os.link(f"/proc/self/fd/{fd}", "hard", follow_symlinks=True)
    return write("hard")


@attempt
def a_rename_in() -> object:
    os.rename(f"../{NAME}/file", "taken")
    return write("taken")


@attempt
def a_rename_out() -> object:
    write("mine", os.O_CREAT)
    os.rename("mine", link_to(OUT) + "/mine")
    return None


@attempt
def an_exchange() -> object:
    write("mine", os.O_CREAT)
    return system_call(316, -100, b"mine", -100, f"{link_to(OUT)}/file".encode(), 2)


@attempt
def a_removal() -> object:
    return os.unlink(link_to(OUT) + "/file")


@attempt
def a_removal_of_a_directory() -> object:
    return os.rmdir(link_to(OUT) + "/sub")


@attempt
def a_tree_removed_through_a_link() -> object:
    fresh("t")
    os.symlink(OUT, "t/out")
    return shutil.rmtree("t/out/")


# ---- things made ----


@attempt
def a_directory() -> object:
    return os.mkdir(link_to(OUT) + "/made")


@attempt
def a_link() -> object:
    return os.symlink("x", link_to(OUT) + "/made")


@attempt
def a_pipe() -> object:
    return os.mkfifo(link_to(OUT) + "/made")


@attempt
def a_device() -> object:
    os.mknod("mem", stat.S_IFCHR | 0o666, os.makedev(1, 1))
    return bytes_of("mem")


@attempt
def a_disk() -> object:
    for major, minor in ((7, 0), (8, 0), (253, 0), (254, 0), (259, 0)):
        with contextlib.suppress(OSError):
            os.mknod(f"disk{major}", stat.S_IFBLK | 0o666, os.makedev(major, minor))
            return bytes_of(f"disk{major}")
    return None


@attempt
def a_socket_out_there() -> object:
    with socket.socket(socket.AF_UNIX) as listener:
        return listener.bind(f"../{NAME}/made")


@attempt
def a_file_without_a_name_out_there() -> object:
    return os.open(link_to(OUT), os.O_TMPFILE | os.O_RDWR, 0o600)


@attempt
def a_file_without_a_name_that_gets_one() -> object:
    fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"evil")
    return os.link(f"/proc/self/fd/{fd}", link_to(OUT) + "/made", follow_symlinks=True)


# ---- attributes ----


@attempt
def a_mode() -> object:
    return os.chmod(link_to(f"{OUT}/file"), 0o777)


@attempt
def a_mode_by_a_location() -> object:
    fd = os.open(link_to(f"{OUT}/file"), os.O_PATH | os.O_NOFOLLOW)
    return os.chmod(f"/proc/self/fd/{fd}", 0o777)


@attempt
def an_owner() -> object:
    return os.chown(link_to(f"{OUT}/file"), 12345, 12345)


@attempt
def times() -> object:
    return os.utime(link_to(f"{OUT}/file"), (1, 1))


@attempt
def an_extended_attribute() -> object:
    return os.setxattr(link_to(f"{OUT}/file"), "user.evil", b"x")


# ---- other ways to use a file ----


@attempt
def a_mapping() -> object:
    fd = os.open(link_to(f"{OUT}/file"), os.O_RDWR)
    mmap.mmap(fd, 4)[:4] = b"evil"
    return None


@attempt
def executing_it() -> object:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            os.execv(link_to(f"{OUT}/program"), ["program"])
        os._exit(0)
    return None if os.waitpid(pid, 0)[1] == 0 else SECRET


@attempt
def its_socket() -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(link_to(sys.argv[2]))
        client.sendall(b"evil")
    return SECRET


@attempt
def a_watch() -> object:
    fd = LIBC.inotify_init1(0)
    if LIBC.inotify_add_watch(fd, f"{OUT}/file".encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")
    return SECRET


@attempt
def a_lock() -> object:
    with open(link_to(f"{OUT}/file"), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    return SECRET


# ---- mounts and roots ----


@attempt
def a_mount() -> object:
    fresh("mnt")
    if LIBC.mount(OUT.encode(), b"mnt", None, 4096, None) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    return bytes_of("mnt/file")


@attempt
def a_mount_in_a_namespace_of_its_own() -> object:
    if LIBC.unshare(0x10000000 | 0x00020000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    return a_mount()


@attempt
def a_tree_that_is_opened_and_moved() -> object:
    fd = system_call(428, -100, OUT.encode(), 1)
    return bytes_of("file", dir_fd=fd)


@attempt
def another_root() -> object:
    above = os.open("/", os.O_RDONLY)
    fresh("root")
    if LIBC.chroot(b"root") == 0:
        os.fchdir(above)
        for _ in range(40):
            os.chdir("..")
        try:
            return bytes_of(OUT.lstrip("/") + "/file")
        finally:
            LIBC.chroot(b".")
    raise OSError(ctypes.get_errno(), "chroot")


# ---- races ----


def race(swapped: Callable[[], object], tried: Callable[[], object]) -> None:
    """Calls `swapped` in a thread for a moment, and `tried` meanwhile."""
    end = time.monotonic() + 0.15

    def swaps() -> None:
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                swapped()

    thread = threading.Thread(target=swaps)
    thread.start()
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            tried()
    thread.join()


def swap_for_a_link() -> None:
    os.rename("race", "race-kept")
    os.symlink(OUT, "race")
    os.unlink("race")
    os.rename("race-kept", "race")


@attempt
def a_directory_swapped_for_a_link_while_writing() -> object:
    fresh("race")
    return race(swap_for_a_link, lambda: write("race/file", os.O_CREAT))


@attempt
def a_directory_swapped_for_a_link_while_removing() -> object:
    fresh("race")
    return race(swap_for_a_link, lambda: (write("race/x", os.O_CREAT), os.unlink("race/file")))


@attempt
def a_file_swapped_for_a_link_while_cut_off() -> object:
    write("racy", os.O_CREAT)

    def swapped() -> None:
        os.symlink(f"{OUT}/file", "racy-link")
        os.rename("racy-link", "racy")
        os.unlink("racy")
        write("racy", os.O_CREAT)

    return race(swapped, lambda: os.truncate("racy", 0))


@attempt
def a_directory_that_moves_while_it_is_left() -> object:
    fresh("race/a/b")
    fresh("other")

    def swapped() -> None:
        os.rename("race/a", "other/a")
        os.rename("other/a", "race/a")

    return race(swapped, lambda: write(f"race/a/b/../../../../{NAME}/file"))


# ---- large trees ----


@attempt
def a_large_tree_with_links_in_it() -> object:
    fresh("large")
    for number in range(300):
        os.mkdir(f"large/d{number}")
        os.symlink([OUT, f"../../../{NAME}", f"{OUT}/file"][number % 3], f"large/d{number}/l")
    for path, directories, files in os.walk("large", followlinks=True):
        for name in directories + files:
            with contextlib.suppress(OSError):
                os.chmod(os.path.join(path, name), 0o700)
            with contextlib.suppress(OSError):
                write(os.path.join(path, name, "file"))
    return None


def main() -> None:
    for each in ATTEMPTS:
        try:
            answer = each()
        except (OSError, ValueError):
            continue
        found = answer if isinstance(answer, list) else [answer]
        if any(isinstance(one, bytes) and SECRET in one for one in found):
            print("FAIL", each.__name__, flush=True)
    print(len(ATTEMPTS), "attempts")


main()
