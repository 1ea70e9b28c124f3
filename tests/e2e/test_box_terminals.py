"""Processes of a box with a terminal of their own, beside the same natively."""

from __future__ import annotations

import asyncio
import hashlib
import pathlib
import threading
from typing import Any

import pytest

import kvmlet
from e2e.oracle import HANG_S
from e2e.terminal import Terminal
from kvmlet import aio

pytestmark = pytest.mark.usefixtures("vm")

# That of e2e.terminal.Terminal.
SIZE = kvmlet.TerminalSize(columns=101, rows=33)


class Dialogue:
    """A process with a terminal, and what it shows."""

    def __init__(self, box: kvmlet.Box, argv: list[str], **more: Any) -> None:
        self.process = box.spawn(argv, terminal=SIZE, timeout=HANG_S, **more)
        self._shown = b""

    def type(self, keys: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(keys)

    def read_until(self, end: bytes) -> bytes:
        assert self.process.stdout is not None
        while end not in self._shown:
            out: Any = self.process.stdout
            piece = out.read1()
            assert piece, f"nothing more after {self._shown!r}"
            self._shown += piece
        at = self._shown.index(end) + len(end)
        seen, self._shown = self._shown[:at], self._shown[at:]
        return seen

    def finish(self) -> int:
        code = self.process.wait(HANG_S)
        assert self.process.stdout is not None
        # Nobody has the terminal any more: that is its end.
        self.process.stdout.read()
        return code if code >= 0 else 128 - code


TALK = r"""
stty size
tty > /dev/null && echo on a terminal
[ "$(ps -o tpgid= -p $$)" -eq $$ ] && echo in the foreground
stty -a | grep -o 'erase = [^;]*; kill = [^;]*; eof = [^;]*'
trap 'stty size' WINCH
trap 'echo interrupted' INT
echo first; read a; echo "got $a"
stty -echo; echo second; read a; stty echo; echo "got $a"
echo third; cat; echo "end of input"
echo fourth; sleep 1000; echo "status $?"
stty -echo; echo fifth; read -rsn3 a; printf '%s' "$a" | od -c
exit 7
"""


def talk(with_it: Terminal | Dialogue) -> tuple[list[bytes], int]:
    """All that is shown, and the status."""
    seen = []
    for end, keys in (
        (b"first\r\n", b"on\x7fe\n"),
        (b"second\r\n", b"hidden\n"),
        (b"third\r\n", b"line\n\x04"),
        (b"fourth\r\n", b"\x03"),
        (b"fifth\r\n", b"\x1b[A"),
    ):
        seen.append(with_it.read_until(end))
        if b"fourth" in end:
            # It is there before the key is.
            threading.Event().wait(0.5)
        with_it.type(keys)
    seen.append(with_it.read_until(b"0000003\r\n"))
    return seen, with_it.finish()


def test_a_terminal_is_as_natively(box: kvmlet.Box, tmp_path: pathlib.Path) -> None:
    words = ["/bin/bash", "-c", TALK]
    native = talk(Terminal(words, tmp_path))
    assert native[1] == 7
    assert b"33 101\r\non a terminal\r\nin the foreground\r\n" in native[0][0]
    assert talk(Dialogue(box, words)) == native


def test_another_size_is_told_to_the_foreground(box: kvmlet.Box) -> None:
    script = "trap 'stty size' WINCH; echo there; while :; do sleep 0.05; done"
    with box.spawn(script, shell=True, terminal=SIZE, text=True) as process:
        out: Any = process.stdout
        assert out.readline() == "there\n"
        process.resize(kvmlet.TerminalSize(columns=80, rows=24))
        assert out.readline() == "24 80\n"
        process.resize(kvmlet.TerminalSize(columns=80, rows=24))  # nothing new
        process.resize(kvmlet.TerminalSize(columns=81, rows=24))
        assert out.readline() == "24 81\n"
        process.kill_all()


def test_closing_both_ends_hangs_up(box: kvmlet.Box) -> None:
    script = "trap 'echo hung up > said; exit 3' HUP; echo there; while :; do sleep 0.05; done"
    process = box.spawn(script, shell=True, terminal=SIZE, text=True)
    out: Any = process.stdout
    assert out.readline() == "there\n"
    assert process.stdin is not None
    process.stdin.close()
    process.resize(kvmlet.TerminalSize())
    assert process.poll() is None
    out.close()
    assert process.wait(HANG_S) == 3
    assert box.files.read_text("said") == "hung up\n"
    with pytest.raises(kvmlet.UsageError, match="closed"):
        process.resize(SIZE)


def test_the_end_of_a_terminal(box: kvmlet.Box) -> None:
    process = box.spawn(["true"], terminal=SIZE)
    out: Any = process.stdout
    assert process.stderr is None
    assert out.read() == b""
    assert process.wait(HANG_S) == 0
    to_it: Any = process.stdin
    with pytest.raises(BrokenPipeError):
        to_it.write(b"x")
    # Both streams are one; what goes to standard error is shown too.
    with box.spawn("echo a; echo b >&2", shell=True, terminal=SIZE) as both:
        assert both.stdout is not None
        assert both.stdout.read() == b"a\r\nb\r\n"


def test_the_environment_names_a_terminal(box: kvmlet.Box) -> None:
    def named(**more: Any) -> str:
        with box.spawn("echo $TERM", shell=True, terminal=SIZE, text=True, **more) as process:
            assert process.stdout is not None
            text: str = process.stdout.read()
            return text

    assert named().strip()
    assert named(env={"TERM": "vt100"}) == "vt100\n"


def test_much_is_shown_and_typed(box: kvmlet.Box) -> None:
    with box.spawn(["seq", "100000"], terminal=SIZE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "".join(f"{number}\n" for number in range(1, 100_001))
    # One thread types while another one reads: the echo needs room.
    with box.spawn(
        "stty raw -echo; echo; head -c 1000000 | md5sum", shell=True, terminal=SIZE
    ) as p:
        to_it, out = p.stdin, p.stdout
        assert to_it is not None
        assert out is not None
        out.readline()
        typist = threading.Thread(target=to_it.write, args=(b"k" * 1_000_000,))
        typist.start()
        said = out.readline()
        typist.join()
        digest = hashlib.md5(b"k" * 1_000_000, usedforsecurity=False).hexdigest()
        assert said.split()[0] == digest.encode()


def test_job_control_works(box: kvmlet.Box) -> None:
    words = ["/bin/bash", "--norc", "--noprofile", "-i"]
    shell = Dialogue(box, words, env={"TERM": "dumb"})
    shell.type(b"PS1='ready: '; set +o history\n")
    shell.read_until(b"\nready: ")
    shell.type(b"sleep 1000\n")
    shell.read_until(b"sleep 1000\r\n")
    threading.Event().wait(0.5)
    shell.type(b"\x1a")
    assert b"Stopped" in shell.read_until(b"ready: ")
    shell.type(b"jobs; kill %1; wait; exit 4\n")
    assert shell.finish() == 4


def test_a_terminal_in_forks_and_after_a_reset(box: kvmlet.Box) -> None:
    process = box.spawn("while read a; do echo got $a; done", shell=True, terminal=SIZE, text=True)

    def ask(one: kvmlet.Process, text: str) -> str:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.write(f"{text}\n")
        assert one.stdout.readline() == f"{text}\n"
        answer: str = one.stdout.readline()
        return answer

    assert ask(process, "a") == "got a\n"
    forks = box.fork(2)
    try:
        for index, fork in enumerate(forks):
            [copy] = fork.processes
            assert ask(copy, f"b{index}") == f"got b{index}\n"
            copy.resize(kvmlet.TerminalSize(90, 20))
        assert ask(process, "c") == "got c\n"
    finally:
        for fork in forks:
            fork.close()
    box.reset()
    with pytest.raises(kvmlet.BoxWasReset):
        process.resize(SIZE)
    [again] = box.processes
    assert ask(again, "d") == "got d\n"


def test_terminals_leave_nothing(box: kvmlet.Box) -> None:
    def once() -> None:
        with box.spawn(["true"], terminal=SIZE) as process:
            process.wait()

    # What is executed again is copied, once.
    for _ in range(3):
        once()
    before = box.stats()["memory_bytes"]
    for _ in range(20):
        once()
    assert box.stats()["processes"] == 0
    # A terminal counts 80 KiB; tables of processes that have gone are given back by the dozen.
    assert box.stats()["memory_bytes"] <= before + (512 << 10)
    assert box.files.list("/dev/pts") in ([], ["ptmx"])


def test_wrong_uses(box: kvmlet.Box) -> None:
    wrongs: list[Any] = [(0, 24), (80, 65_536), (80, -1), (True, 24), ("80", 24), (80, None)]
    for columns, rows in wrongs:
        with pytest.raises(kvmlet.UsageError, match="no size of a terminal"):
            kvmlet.TerminalSize(columns, rows)
    anything: Any = (80, 24)
    with pytest.raises(kvmlet.UsageError, match="TerminalSize"):
        box.spawn(["true"], terminal=anything)
    with pytest.raises(kvmlet.UsageError, match="at once"):
        box.spawn(["true"], terminal=SIZE, stdin=-3)
    with box.spawn(["true"]) as process, pytest.raises(kvmlet.UsageError, match="no terminal"):
        process.resize(SIZE)
    with box.spawn(["true"], terminal=SIZE) as process, pytest.raises(kvmlet.UsageError):
        process.resize(anything)
    assert box.stats()["processes"] == 0


def test_for_coroutines() -> None:
    async def main() -> None:
        async with aio.Box() as box:
            script = "stty size; read a; echo got $a; stty size"
            process = await box.spawn(script, shell=True, terminal=SIZE, text=True)
            async with process:
                assert process.stdout is not None
                assert process.stdin is not None
                assert await process.stdout.readline() == "33 101\n"
                await process.resize(kvmlet.TerminalSize(80, 24))
                await process.stdin.write("it\n")
                assert await process.stdout.read() == "it\ngot it\n24 80\n"

    asyncio.run(main())
