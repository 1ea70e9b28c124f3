"""Descriptors above 2 that the caller of `kvmlet run` passes, as natively."""

from __future__ import annotations

import os
import pathlib
import shlex
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import ENV, HANG_S, both_ways, command, kvmlet_argv, native_argv

if TYPE_CHECKING:
    from collections.abc import Sequence


@pytest.fixture
def passed(tmp_path: pathlib.Path, guests: pathlib.Path) -> pathlib.Path:
    """A directory with the program that shows its descriptors, and a file for them."""
    (tmp_path / "passed").write_bytes((guests / "passed").read_bytes())
    (tmp_path / "passed").chmod(0o755)
    (tmp_path / "in").write_bytes(b"line one\nline two\nline three\n")
    return tmp_path


def test_process_substitution_is_read(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["cat"], lambda run: f"{run} <(echo hi) <(seq 30000) - </dev/null", tmp_path, native_only
    )
    assert out.startswith(b"hi\n1\n2\n")
    assert out.endswith(b"\n30000\n")


def test_process_substitution_is_written(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["tee"],
        lambda run: (
            f"rm -f out; seq 2000 | {run} >(tr 0-9 a-j > new; mv new out) | tail -n 1;"
            "until test -f out; do sleep 0.02; done; cat out"
        ),
        tmp_path,
        native_only,
    )
    assert out.startswith(b"2000\nb\nc\n")


def test_a_script_comes_by_a_pipe(tmp_path: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["bash"], lambda run: f"{run} <(echo 'echo \"$1\"') argument", tmp_path, native_only
    )
    assert out == b"argument\n"


def test_here_strings_by_descriptor(tmp_path: pathlib.Path, native_only: bool) -> None:
    code = "read x <&3; echo $x; read y; echo $y; wc -c <&4"
    out = both_ways(
        ["sh", "-c", code],
        # The long one is a file without a name.
        lambda run: f"echo stdin | {run} 3<<<'here string' 4<<<{'x' * 100000}",
        tmp_path,
        native_only,
    )
    assert out == b"here string\nstdin\n100001\n"


@pytest.mark.parametrize(
    "redirection",
    [
        "3<in",
        "3<>in",
        "3>out",
        "3>>out",
        "3<&-",
        "3< <(echo pipe)",
        "3> >(cat >new; mv new out)",
        "7<in 9>>in",
    ],
)
def test_they_are_as_opened(passed: pathlib.Path, native_only: bool, redirection: str) -> None:
    # A substitution ends when it likes.
    end = "until test -f out; do sleep 0.02; done" if ">(" in redirection else "true"
    both_ways(
        ["./passed", "3", "7", "9"],
        lambda run: (
            f"echo line one > in; rm -f out; {run} {redirection}; echo $?;"
            f"{end}; cat in; test ! -f out || cat out"
        ),
        passed,
        native_only,
    )


def test_the_offset_is_shared(passed: pathlib.Path, native_only: bool) -> None:
    out = both_ways(
        ["dd", "bs=9", "count=1", "status=none", "if=/dev/stdin"],
        lambda run: f"exec 3<in; {run} <&3; head -c 9 <&3",
        passed,
        native_only,
    )
    assert len(out) == 18
    code = "read x <&3; echo got $x; echo new >&4; sed -u 1q <&3"
    out = both_ways(
        ["sh", "-c", code],
        lambda run: f"rm -f out; exec 3<in 4>out; echo a >&4; {run}; cat <&3; echo b >&4; cat out",
        passed,
        native_only,
    )
    assert out == b"got line one\nline two\nline three\na\nnew\nb\n"


def test_a_hundred_of_them(passed: pathlib.Path, native_only: bool) -> None:
    opened = " ".join(f"{fd}<in" if fd % 2 else f"{fd}< <(echo {fd})" for fd in range(20, 120))
    out = both_ways(
        ["./passed", *map(str, range(18, 122))], lambda run: f"{run} {opened}", passed, native_only
    )
    # The shell has some pipes of its own left.
    assert out.count(b"mode 100000 ") == 50 <= out.count(b"mode 10000 ")


MAKEFILE = """\
all: outer one
outer:
\t@test -f one || sleep 0.1; echo outer
one:
\t+@{run} make -s inner
inner: a b c
a b c:
\t@echo $@
"""


def test_a_jobserver_of_make(tmp_path: pathlib.Path, native_only: bool) -> None:
    def made(words: list[str]) -> list[bytes]:
        (tmp_path / "Makefile").write_text(MAKEFILE.format(run=shlex.join(words)))
        ended = command(["make", "-s", "-j2"], cwd=tmp_path)
        assert ended.status == 0
        # "jobserver unavailable" if there is none.
        assert ended.stderr == b""
        return sorted(ended.stdout.splitlines())

    expected = made(native_argv([]))
    assert expected == [b"a", b"b", b"c", b"outer"]
    if native_only:
        pytest.skip("native side only")
    *words, _ = kvmlet_argv([], ["-e", "MAKEFLAGS", "-e", "MAKELEVEL"])
    assert made([*words, "--"]) == expected


def test_one_that_the_program_closes_is_closed(native_only: bool) -> None:
    if native_only:
        pytest.skip("natively there is nothing between")
    reader, writer = os.pipe()
    code = f"echo said >&{writer}; exec {writer}>&-; read word; echo $word"
    process = subprocess.Popen(
        kvmlet_argv(["bash", "-c", code]),
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[writer],
    )
    os.close(writer)
    with open(reader, "rb") as pipe:
        # The end comes while the program runs.
        assert pipe.read() == b"said\n"
    out, _ = process.communicate(b"on\n", timeout=HANG_S)
    assert out == b"on\n"


def ended(
    options: Sequence[str], words: Sequence[str], redirection: str, cwd: pathlib.Path
) -> tuple[int, str, str]:
    line = f"{shlex.join(kvmlet_argv(words, options))} {redirection}"
    run = command(["/bin/bash", "-c", line], cwd=cwd)
    return run.status, run.stdout.decode(), run.stderr.decode()


@pytest.mark.parametrize(
    "redirection", ["5</", "5</dev/null", "5<>/dev/ptmx", "5>/dev/tcp/127.0.0.1/{port}"]
)
def test_other_kinds_are_not_passed(passed: pathlib.Path, redirection: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened = redirection.format(port=server.getsockname()[1])
        status, out, err = ended([], ["./passed", "5"], opened, passed)
    assert (status, err) == (0, "")
    assert out == "open: 0 1 2\nlisted: 3\nfd 5: EBADF\n"


@pytest.mark.parametrize(
    ("number", "redirection", "words"),
    [
        ("5", "5</", "--fd 5: it is a directory, which is never passed; show it by --read"),
        ("5", "5</dev/null", "--fd 5: it is a device, which is never passed"),
        ("5", "5<>/dev/ptmx", "--fd 5: it is a device, which is never passed"),
        ("5", "", "--fd 5: it is not open; open it: CMD ARG... 5<FILE"),
        ("1", "", "--fd 1: the standard streams are passed anyway; leave it out"),
        ("x", "", "--fd: 'x' is no descriptor; write its number: --fd 3"),
        ("-1", "", "--fd: '-1' is no descriptor; write its number: --fd 3"),
        ("99999999999999999999", "", "--fd: '99999999999999999999' is no descriptor"),
    ],
)
def test_what_cannot_be_passed_is_an_error(
    passed: pathlib.Path, number: str, redirection: str, words: str
) -> None:
    status, out, err = ended([f"--fd={number}"], ["true"], redirection, passed)
    assert (status, out) == (125, "")
    assert err.startswith(f"kvmlet: {words}")
    assert err.count("\n") == 1


def test_verbose_says_which_are_passed(passed: pathlib.Path) -> None:
    status, out, err = ended(["--verbose", "--fd=9"], ["true"], "4<in 9>>in 5</", passed)
    assert (status, out, err) == (0, "", "kvmlet: passing descriptors 4, 9\n")


def test_a_connected_socket_is_passed_by_name() -> None:
    ours, theirs = socket.socketpair()
    number = theirs.fileno()
    code = f"read word <&{number}; echo got $word >&{number}"
    with ours:
        process = subprocess.Popen(
            kvmlet_argv(["bash", "-c", code], ["--fd", str(number)]), env=ENV, pass_fds=[number]
        )
        theirs.close()
        ours.sendall(b"word\n")
        with ours.makefile("rb") as stream:
            assert stream.read() == b"got word\n"
        assert process.wait(HANG_S) == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.fileno()
        done = subprocess.run(
            kvmlet_argv(["true"], ["--fd", str(number)]),
            env=ENV,
            pass_fds=[number],
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 125
    assert b"it is a socket without a peer; pass one that is connected" in done.stderr


@pytest.mark.parametrize(
    ("options", "module"),
    [
        ([], True),
        (["--changes", "keep"], False),
        (["--changes", "dir:new", "--net", "example.com:443", "-p", "0:80"], False),
        (["--env-file", "env", "--policy", "policy", "--trace", "--stats"], False),
    ],
)
def test_none_of_kvmlets_own_is_passed(
    passed: pathlib.Path, options: list[str], module: bool
) -> None:
    (passed / "env").write_text("A=b\n")
    (passed / "policy").write_text("")
    words = kvmlet_argv(["./passed"], options)
    if module:
        words = [sys.executable, "-m", "kvmlet", *words[1:]]
    done = subprocess.run(words, cwd=passed, env=ENV, stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"open: 0 1 2\nlisted: 3\n"


def test_the_library_passes_none(passed: pathlib.Path) -> None:
    with open(passed / "in") as file:
        os.set_inheritable(file.fileno(), True)
        result = kvmlet.run(["./passed"], cwd=passed)
        assert result.stdout == b"open: 0 1 2\nlisted: 3\n"
        # It is still the caller's.
        assert file.read(4) == "line"


HOSTILE = """\
import fcntl, mmap, os, sys
fd, own = int(sys.argv[1]), f"/proc/self/fd/{sys.argv[1]}"
def refused(name, call):
    try:
        print(name, "done", call())
    except OSError as error:
        print(name, error.strerror)
refused("write", lambda: os.write(fd, b"x"))
refused("pwrite", lambda: os.pwrite(fd, b"x", 0))
refused("truncate", lambda: os.ftruncate(fd, 0))
refused("truncate by name", lambda: os.truncate(own, 0))
refused("reopen", lambda: os.open(own, os.O_RDWR))
refused("reopen to truncate", lambda: os.open(own, os.O_WRONLY | os.O_TRUNC))
again = os.open(own, os.O_RDONLY)
refused("write again", lambda: os.write(again, b"x"))
refused("reopen again", lambda: os.open(f"/proc/self/fd/{again}", os.O_RDWR))
refused("map", lambda: mmap.mmap(fd, 4, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
refused("mode", lambda: os.fchmod(fd, 0o777))
refused("space", lambda: os.posix_fallocate(fd, 0, 1 << 20))
refused("beside", lambda: os.open(f"{own}/../in", os.O_RDONLY))
refused("link", lambda: os.link(own, "linked", follow_symlinks=True))
"""


def test_a_file_to_read_is_only_read(tmp_path: pathlib.Path) -> None:
    """One that lies outside of what the program sees, whose caller could change it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "in").write_bytes(b"data")
    (outside / "in").chmod(0o640)
    inside = tmp_path / "inside"
    inside.mkdir()
    status, out, err = ended(
        ["-q"], ["/usr/bin/python3", "-c", HOSTILE, "3"], "3<../outside/in", inside
    )
    assert status == 0, err
    lines = out.splitlines()
    assert len(lines) == 13
    assert [line for line in lines if "done" in line] == []
    assert (outside / "in").read_bytes() == b"data"
    assert (outside / "in").stat().st_mode & 0o777 == 0o640
