"""Standard streams pass through as they do natively."""

from __future__ import annotations

import fcntl
import os
import pathlib
import shlex
import signal
import subprocess

import pytest

from e2e.oracle import ENV, HANG_S, both_ways, kvmlet_argv, native_argv, sized
from e2e.terminal import Terminal

pytestmark = pytest.mark.poll

Run = list[str]


def test_output_to_a_file_in_order(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["printf", "inside\\n"],
        lambda run: f"(echo before; {run}; {run}; echo after) > out; cat out",
        tmp_path,
        native_only,
    )
    assert out == b"before\ninside\ninside\nafter\n"


def test_output_appended_to_a_file(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["printf", "inside\\n"],
        lambda run: f"echo old > out; {run} >> out; echo new >> out; cat out; rm out",
        tmp_path,
        native_only,
    )
    assert out == b"old\ninside\nnew\n"


def test_both_outputs_to_one_file(tmp_path: pathlib.Path, native_only: bool) -> None:
    argv = ["/bin/sh", "-c", "echo one; echo two >&2; echo three"]
    out = both_ways(argv, lambda run: f"{run} > out 2>&1; cat out", tmp_path, native_only)
    assert out == b"one\ntwo\nthree\n"


def test_input_from_a_file_moves_its_offset(tmp_path: pathlib.Path, native_only: bool) -> None:
    (tmp_path / "in").write_bytes(b"".join(b"line %d\n" % i for i in range(2000)))
    out = both_ways(
        ["dd", "bs=8", "count=2", "status=none"],
        lambda run: f"({run}; echo -- ; head -c 24) < in",
        tmp_path,
        native_only,
    )
    assert out.startswith(b"line 0\nline 1\nli--\n")


def test_input_from_a_pipe_is_read_no_further(tmp_path: pathlib.Path, native_only: bool) -> None:
    both_ways(
        ["dd", "bs=1", "count=5", "status=none"],
        lambda run: f"printf 'abcdefghij' | ({run}; echo; cat)",
        tmp_path,
        native_only,
    )


def test_empty_and_closed_input(guests: pathlib.Path, native_only: bool) -> None:
    both_ways(["./echo"], lambda run: f"{run} < /dev/null", guests, native_only)


@pytest.mark.parametrize("redirection", ["< /dev/null", "< in", "> out", ">> out", "2>&1", "| cat"])
def test_what_the_streams_are(
    tmp_path: pathlib.Path, guests: pathlib.Path, native_only: bool, redirection: str
) -> None:
    (tmp_path / "tty").write_bytes((guests / "tty").read_bytes())
    (tmp_path / "tty").chmod(0o755)
    (tmp_path / "in").write_bytes(b"data")
    both_ways(
        ["./tty"],
        lambda run: f"rm -f out; {run} {redirection}; test ! -f out || cat out",
        tmp_path,
        native_only,
    )


def test_closed_streams(guests: pathlib.Path, native_only: bool) -> None:
    both_ways(["./tty"], lambda run: f"{run} <&-", guests, native_only)
    both_ways(["./hello-static"], lambda run: f"{run} >&-; echo $?", guests, native_only)


def test_a_large_stream_through_a_pipe(guests: pathlib.Path, native_only: bool) -> None:
    size = sized(20_000_000, 1_000_000)
    out = both_ways(
        ["./flood", "1", str(size)], lambda run: f"{run} | sha256sum", guests, native_only
    )
    assert len(out) > 64
    both_ways(
        ["./echo"],
        lambda run: f"head -c {size} {guests}/flood /dev/zero | {run} | sha256sum",
        guests,
        native_only,
    )


def test_a_reader_that_leaves_ends_the_writer(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["yes"], lambda run: f"{run} | head -n 1; echo ${{PIPESTATUS[0]}}", tmp_path, native_only
    )
    assert out == b"y\n141\n"


def test_a_writer_that_ignores_the_signal_gets_the_error(
    tmp_path: pathlib.Path, native_only: bool
) -> None:
    code = (
        "import os, sys\n"
        "try:\n"
        "    while True: os.write(1, b'x' * 1000)\n"
        "except BrokenPipeError as error:\n"
        "    sys.stderr.write(error.strerror)\n"
        "    os._exit(3)\n"
    )
    out = both_ways(
        ["/usr/bin/python3", "-c", code],
        lambda run: f"{run} | head -c 1; echo ${{PIPESTATUS[0]}}",
        tmp_path,
        native_only,
    )
    assert out == b"x3\n"


def test_a_full_device(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["/bin/echo", "x"], lambda run: f"{run} > /dev/full; echo $?", tmp_path, native_only
    )
    assert out == b"1\n"


def test_output_arrives_while_the_guest_runs(vm: None, guests: pathlib.Path) -> None:
    with subprocess.Popen(
        kvmlet_argv(["./clockping"]),
        cwd=guests,
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(3):
            process.stdin.write(b"?")
            process.stdin.flush()
            assert len(process.stdout.readline().split()) == 4
        process.stdin.close()
        assert process.wait(HANG_S) == 0


def test_descriptors_are_never_made_non_blocking(vm: None, guests: pathlib.Path) -> None:
    """O_NONBLOCK belongs to the open file, which the caller shares (open(2))."""
    in_reader, in_writer = os.pipe()
    out_reader, out_writer = os.pipe()

    def flags() -> list[int]:
        return [fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK for fd in (in_reader, out_writer)]

    process = subprocess.Popen(
        kvmlet_argv(["./sleeper", "read"]), cwd=guests, env=ENV, stdin=in_reader, stdout=out_writer
    )
    try:
        assert os.read(out_reader, 6) == b"ready\n"
        assert flags() == [0, 0]
        os.write(in_writer, b"x")
        assert process.wait(HANG_S) == 0
        assert flags() == [0, 0]
    finally:
        process.kill()
        process.wait()
        for fd in (in_reader, in_writer, out_reader, out_writer):
            os.close(fd)


def test_a_descriptor_that_is_non_blocking_already(vm: None, guests: pathlib.Path) -> None:
    """Natively the program sees EAGAIN; so it does here, and the flag stays as it was."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        code = "import os\ntry: os.read(0, 1)\nexcept BlockingIOError as e: print(e.strerror)"
        run = subprocess.run(
            kvmlet_argv(["/usr/bin/python3", "-c", code]),
            cwd=guests,
            env=ENV,
            stdin=reader,
            capture_output=True,
            timeout=HANG_S,
        )
        assert (run.stdout, run.returncode) == (b"Resource temporarily unavailable\n", 0)
        assert not os.get_blocking(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_a_terminal(guests: pathlib.Path, native_only: bool) -> None:
    code = (
        "import os, sys; print(sys.stdin.readline().strip(), flush=True);"
        "print(sys.stdout.isatty(), os.get_terminal_size(), flush=True)"
    )
    argv = ["/usr/bin/python3", "-c", code]
    seen = []
    for words in (["/usr/bin/env", *native_argv(argv)], kvmlet_argv(argv)):
        terminal = Terminal(words, guests)
        terminal.type(b"typed\n")
        seen.append((terminal.read_until(b")\r\n"), terminal.finish()))
        if native_only:
            break
    assert b"True os.terminal_size(columns=101, lines=33)" in seen[0][0]
    assert seen[0][1] == 0
    assert seen[-1] == seen[0]


@pytest.mark.parametrize("words", [["./spin"], ["./sleeper"], ["./sleeper", "read"]])
def test_ctrl_c_on_a_terminal(vm: None, guests: pathlib.Path, words: Run) -> None:
    terminal = Terminal(kvmlet_argv(words), guests)
    assert b"ready" in terminal.read_until(b"ready")
    terminal.type(b"\x03")
    assert terminal.finish() == 128 + signal.SIGINT


def test_the_terminal_is_left_as_it_was(vm: None, guests: pathlib.Path) -> None:
    run = shlex.join(kvmlet_argv(["./sleeper", "read"]))
    terminal = Terminal(["/bin/sh", "-c", f"stty -g; {run}; stty -g; echo end"], guests)
    seen = terminal.read_until(b"ready")
    terminal.type(b"\n")
    seen += terminal.read_until(b"end")
    assert terminal.finish() == 0
    states = [line for line in seen.split() if line.count(b":") > 10]
    assert len(states) == 2
    assert states[0] == states[1]
