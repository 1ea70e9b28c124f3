"""Changes of files are told to who watches them: in memory, in overlays, in trees of the host."""

from __future__ import annotations

import pathlib
import sys

import pytest

import kvmlet
from e2e.oracle import HW, NO_RUNTIMES, in_vm, native

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
instance = libc.inotify_init1(os.O_NONBLOCK)
def watch(path, mask=0xFFF):
    wd = libc.inotify_add_watch(instance, path.encode(), mask)
    if wd < 0:
        raise OSError(ctypes.get_errno(), path)
    return wd
def events():
    found = []
    try:
        data = os.read(instance, 65536)
    except BlockingIOError:
        return found
    while data:
        wd, mask, cookie, length = struct.unpack_from("iIII", data)
        name = data[16:16 + length].rstrip(b"\\0").decode()
        found.append((wd, hex(mask), name))
        data = data[16 + length:]
    return found
def put(path, text):
    with open(path, "a") as file:
        file.write(text)
"""

IN_A_TREE = (
    WATCH
    + """
print(watch("."), watch("old"), watch("dir"))
open("old").read()
print(events())
put("old", "x")
print(events())
put("dir/inner", "x")
os.chmod("dir/inner", 0o600)
print(events())
os.rename("dir/inner", "inner")
os.rename("dir", "moved")
print(events())
put("moved/other", "y")
print(events())
os.rename("other", "old")
print(events())
os.unlink("old")
print(events())
os.listdir("moved")
print(events())
"""
)

# Natively others on the machine would be seen there.
IN_A_SYSTEM_TREE = (
    WATCH
    + """
print(watch("/usr/bin"), watch("/usr/bin/env"))
os.close(os.open("/usr/bin/env", os.O_RDONLY))
os.listdir("/usr/bin")
print(events())
"""
)

SERVER = (
    WATCH
    + """
import kvmlet_guest
os.mkdir("/tmp/d")
watch("/tmp/d", 0x100)
put("/tmp/d/before", "x")
def touch(name):
    put("/tmp/d/" + name.decode(), "x")
    return repr(events()).encode()
kvmlet_guest.serve(touch)
"""
)


def test_changes_of_a_tree_of_the_host(tmp_path: pathlib.Path) -> None:
    def fill(tree: pathlib.Path) -> pathlib.Path:
        (tree / "dir").mkdir(parents=True)
        for name in ("old", "other", "dir/inner"):
            (tree / name).write_text(name)
        return tree

    # The native run changes its tree: each has one of its own.
    of_its_own, inside = fill(tmp_path / "native"), fill(tmp_path / "inside")
    argv = [sys.executable, "-S", "-c", IN_A_TREE]
    expected = native(argv, cwd=of_its_own)
    assert (expected.status, expected.stdout.count(b"\n")) == (0, 9), expected.stderr
    assert in_vm(argv, cwd=inside).stdout == expected.stdout


def test_a_tree_of_the_host_that_is_only_read(tmp_path: pathlib.Path) -> None:
    argv = [sys.executable, "-S", "-c", IN_A_SYSTEM_TREE]
    numbers, events = in_vm(argv, cwd=tmp_path).stdout.decode().splitlines()
    assert numbers == "1 2"
    file = [(1, "0x20", "env"), (2, "0x20", ""), (1, "0x10", "env"), (2, "0x10", "")]
    directory = [(1, "0x40000020", ""), (1, "0x40000001", ""), (1, "0x40000010", "")]
    assert events == str(file + directory)


def test_tail_follows_a_file(tmp_path: pathlib.Path) -> None:
    # It would look by itself once in a thousand seconds.
    line = "echo 1 > f; tail -s 1000 -f f & for n in 2 3; do sleep .1; echo $n >> f; done"
    line += "; sleep .1; kill $!"
    result = kvmlet.run(line, shell=True, text=True, cwd=tmp_path, timeout=20)
    assert result.stdout == "1\n2\n3\n"


def test_watches_are_frozen_and_reset(tmp_path: pathlib.Path) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    argv = [sys.executable, "server.py"]
    sandbox = kvmlet.Sandbox(argv, cwd=tmp_path).until_ready(timeout=60)
    with sandbox.freeze() as snapshot, snapshot.fork() as one, snapshot.fork() as two:
        for name in (b"a", b"b"):
            expected = repr([(1, "0x100", "before"), (1, "0x100", name.decode())]).encode()
            assert one.request(name, timeout=20) == expected
            assert two.request(b"c", timeout=20) != expected
            # What was read of the queue is there again.
            one.reset()
            two.reset()
