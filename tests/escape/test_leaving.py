"""Some eighty attempts to leave a tree, in each way that a tree is shown: nothing else changes."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import tempfile
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, HW, LONG, NO_RUNTIMES, command, kvmlet_argv
from e2e.test_overlay import state

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

SCRIPT = pathlib.Path(__file__).parent / "leave.py"
SECRET = "what-no-guest-may-read"


class Places:
    """A tree that is shown, and one beside it that is not."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top, self.inside, self.outside = top, top / "inside", top / "outside"
        self.inside.mkdir()
        (self.inside / "old").write_text("old")
        (self.outside / "sub").mkdir(parents=True)
        (self.outside / "file").write_text(SECRET)
        (self.outside / "program").write_text("#!/bin/sh\nexit 9\n")
        (self.outside / "program").chmod(0o755)
        # Whoever the guest is on the host, it is not the host that refuses.
        (self.outside / "file").chmod(0o666)
        (self.outside / "sub").chmod(0o777)
        self.outside.chmod(0o777)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(os.fspath(self.outside / "socket"))
        self.listener.listen()
        self.listener.setblocking(False)
        self.before = state(self.outside)
        self.above = sorted(os.listdir(top))

    def run(self, options: list[str], cwd: pathlib.Path | None = None) -> bytes:
        """The output of all attempts, when nothing outside has changed."""
        words = ["/usr/bin/python3", SCRIPT, self.outside, self.outside / "socket"]
        options = ["--read", os.fspath(SCRIPT), "--timeout", "60s", *options]
        run = command(kvmlet_argv(words, options), cwd=cwd or self.inside, env=ENV)
        assert run.status in (0, 125), run
        self.check(run.stdout)
        return run.stdout

    def check(self, said: bytes) -> None:
        assert b"FAIL" not in said, said
        assert said.endswith(b" attempts\n"), said
        assert int(said.split()[-2]) >= 60
        assert state(self.outside) == self.before
        assert sorted(os.listdir(self.top)) == self.above
        with pytest.raises(BlockingIOError):
            self.listener.accept()

    def special(self) -> list[str]:
        """Names in the tree that are neither files, directories nor links."""
        found = [path for path in self.inside.rglob("*") if not path.is_symlink()]
        return [path.name for path in found if not (path.is_file() or path.is_dir())]


@pytest.fixture
def places() -> Iterator[Places]:
    """Outside of /tmp, where names beside a tree would be the sandbox's own."""
    with tempfile.TemporaryDirectory(prefix="kvmlet-leaving-", dir="/var/tmp") as name:
        made = Places(pathlib.Path(name))
        yield made
        made.listener.close()


def test_where_it_is_allowed_they_succeed(places: Places) -> None:
    """The attempts are real: the same script leaves where an option lets it."""
    words = ["/usr/bin/python3", SCRIPT, places.outside, places.outside / "socket"]
    options = ["--read", os.fspath(SCRIPT), "--write", os.fspath(places.outside)]
    run = command(kvmlet_argv(words, options), cwd=places.inside, env=ENV)
    assert b"FAIL a_link_to_the_file\n" in run.stdout
    assert state(places.outside) != places.before


def test_an_overlay(places: Places) -> None:
    before = state(places.inside)
    places.run([])
    assert state(places.inside) == before


def test_a_tree_that_is_changed_on_the_host(places: Places) -> None:
    places.run(["--write", "."])
    assert places.special() == []


@pytest.mark.parametrize("mode", ["rw", "overlay", "ro"] if LONG else ["rw"])
def test_a_tree_at_another_place(places: Places, mode: str) -> None:
    before = state(places.inside)
    elsewhere = places.top / "elsewhere"
    elsewhere.mkdir()
    places.above = sorted(os.listdir(places.top))
    guest = "/data/deep/tree"
    script = 'cd "$1" && shift && exec "$@"'
    words = ["/bin/sh", "-c", script, "sh", guest, "/usr/bin/python3", SCRIPT, places.outside]
    words.append(places.outside / "socket")
    options = ["--read", os.fspath(SCRIPT), "-v", f"{places.inside}:{guest}:{mode}"]
    run = command(kvmlet_argv(words, options), cwd=elsewhere, env=ENV)
    assert run.status == 0, run
    places.check(run.stdout)
    assert places.special() == []
    if mode != "rw":
        assert state(places.inside) == before


def test_changes_that_are_kept(places: Places) -> None:
    """All that the program has left is made on the host, and leads nowhere."""
    places.run(["--changes", "keep", "-q"])
    assert places.special() == []
    assert (places.inside / "large" / "d1").is_dir()
    # And over what is there by now.
    places.run(["--changes", "keep", "-q"])
    assert places.special() == []


@pytest.mark.skipif(not LONG, reason="in `make test-long`")
def test_an_empty_directory_in_memory(places: Places) -> None:
    before = state(places.inside)
    script = 'cd /mnt/room && exec "$@"'
    words = ["/bin/sh", "-c", script, "sh", "/usr/bin/python3", SCRIPT, places.outside]
    words.append(places.outside / "socket")
    options = ["--read", os.fspath(SCRIPT), "--tmpfs", "/mnt/room"]
    run = command(kvmlet_argv(words, options), cwd=places.inside, env=ENV)
    assert run.status == 0, run
    places.check(run.stdout)
    assert state(places.inside) == before


# ---- trees and links that a command line names ----


@pytest.mark.parametrize("option", ["--write", "-v", "--read"] if LONG else ["--write"])
def test_a_link_on_the_command_line_is_the_callers(places: Places, option: str) -> None:
    """It names what it leads to when kvmlet starts, and nothing that it leads to later."""
    link = places.top / "link"
    link.symlink_to("inside")
    value = f"{link}:/data" if option == "-v" else os.fspath(link)
    inside = "/data" if option == "-v" else os.fspath(link)
    here = places.top / "here"
    here.mkdir()
    script = f'echo ready; read line; cat "{inside}/file" 2>/dev/null; cat "{inside}/old"'
    running = subprocess.Popen(
        kvmlet_argv(["/bin/sh", "-c", script], [option, value]),
        cwd=here,
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"ready\n"
    link.unlink()
    link.symlink_to("outside")
    said, _ = running.communicate(b"\n")
    assert SECRET.encode() not in said
