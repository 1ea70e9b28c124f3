"""`kvmlet.run`: shell commands, text, and output as it comes."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import time

import pytest

import kvmlet

pytestmark = pytest.mark.usefixtures("vm")


def test_a_shell_command_is_the_guests_shells() -> None:
    result = kvmlet.run("echo $((6 * 7)) | tr 4 5; exit 3", shell=True, text=True)
    assert (result.stdout, result.returncode, result.exit_code) == ("52\n", 3, 3)
    assert result.args == ["echo $((6 * 7)) | tr 4 5; exit 3"]
    with pytest.raises(kvmlet.ExitError) as caught:
        kvmlet.run("echo why >&2; exit 4", shell=True, check=True)
    assert "status 4, its last error line: why" in str(caught.value)
    killed = kvmlet.run("kill -TERM $$", shell=True)
    assert (killed.returncode, killed.signal, killed.exit_code) == (-15, 15, None)


def test_text() -> None:
    result = kvmlet.run(["cat"], input="grün", text=True, encoding="latin-1")
    assert (result.stdout, result.stderr) == ("grün", "")
    broken = kvmlet.run(["cat"], input=b"\xff\n", text=True)
    assert broken.stdout == "\ufffd\n"
    with pytest.raises(UnicodeDecodeError):
        kvmlet.run(["cat"], input=b"\xff\n", text=True, errors="strict")


def test_output_as_it_comes() -> None:
    seen: list[tuple[str, float]] = []
    began = time.monotonic()
    script = "echo one; sleep 1; printf 'tw'; printf 'o\nrest'; echo late >&2"
    result = kvmlet.run(
        script,
        shell=True,
        text=True,
        stdout=lambda line: seen.append((line, time.monotonic() - began)),
    )
    assert [line for line, _ in seen] == ["one\n", "two\n", "rest"]
    # Told while the program sleeps.
    assert seen[1][1] - seen[0][1] > 0.5
    assert (result.stdout, result.stderr) == ("", "late\n")


def test_bytes_come_in_order_and_whole() -> None:
    chunks: dict[int, list[bytes]] = {1: [], 2: []}
    script = "i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done"
    result = kvmlet.run(
        script, shell=True, stdout=chunks[1].append, stderr=chunks[2].append, timeout=60
    )
    assert result.ok
    for number, word in ((1, "out"), (2, "err")):
        text = b"".join(chunks[number]).decode()
        assert text == "".join(f"{word} {i}\n" for i in range(300))
    # Far more than the limit on what is captured.
    total = 0

    def count(data: bytes) -> None:
        nonlocal total
        total += len(data)

    head = kvmlet.run(["head", "-c", "40000000", "/dev/zero"], stdout=count, timeout=60)
    assert (head.ok, total) == (True, 40_000_000)


def test_a_long_line_is_told_in_pieces() -> None:
    pieces: list[str] = []
    script = "head -c 5000000 /dev/zero | tr '\\0' x"
    assert kvmlet.run(script, shell=True, text=True, stdout=pieces.append, timeout=60).ok
    assert sum(map(len, pieces)) == 5_000_000
    assert len(pieces) > 1


def test_an_exception_of_the_callable_ends_the_run() -> None:
    def refuse(data: bytes) -> None:
        raise ValueError(data)

    began = time.monotonic()
    with pytest.raises(ValueError, match="one"):
        kvmlet.run("echo one; sleep 60", shell=True, stdout=refuse)
    assert time.monotonic() - began < 30


def test_inherited_output(tmp_path: pathlib.Path) -> None:
    code = (
        "import kvmlet\n"
        "r = kvmlet.run('echo out; echo err >&2', shell=True,"
        " stdout=kvmlet.INHERIT, stderr=kvmlet.INHERIT)\n"
        "assert (r.ok, r.stdout, r.stderr) == (True, b'', b''), r\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"out\n", b"err\n")


def test_more_to_read(tmp_path: pathlib.Path) -> None:
    path = "/var/lib/dpkg/status"
    hidden = kvmlet.run(["cat", path], cwd=tmp_path)
    assert hidden.exit_code == 1
    denial = next(each for each in hidden.denials if each.path == path)
    assert (denial.kind, denial.flag) == ("hidden", f"--read {path}")
    shown = kvmlet.run(["cat", path], cwd=tmp_path, read=[path])
    assert shown.stdout == pathlib.Path(path).read_bytes()
    assert shown.denials == []


def test_cpu_time_and_output_are_limited() -> None:
    asleep = kvmlet.run(["sleep", "1.5"], cpu_time=1)
    assert asleep.ok, asleep
    busy = kvmlet.run("while :; do :; done", shell=True, cpu_time="300ms", timeout=60)
    assert (busy.reason, busy.exit_code, busy.returncode) == ("cpu-time", None, -9)
    # All processes of it together.
    family = kvmlet.run(
        "for i in 1 2 3; do while :; do :; done & done; wait", shell=True, cpu_time=0.5, timeout=60
    )
    assert family.reason == "cpu-time"
    cut = kvmlet.run(["yes"], max_output=100, timeout=60)
    assert (cut.reason, cut.truncated, cut.stdout) == ("output", True, b"y\n" * 50)


def test_limits_as_one_value() -> None:
    limits = kvmlet.Limits(max_output=100, max_files=7, timeout=60)
    cut = kvmlet.run(["yes"], limits=limits)
    assert (cut.reason, cut.stdout) == ("output", b"y\n" * 50)
    files = kvmlet.run("ulimit -n", shell=True, text=True, limits=limits)
    assert files.stdout == "7\n"
    # A limit that is given beside it wins, and it wins over the policy's.
    given = kvmlet.run(["yes"], policy=kvmlet.Policy.of(max_output=4), limits=limits, max_output=6)
    assert given.stdout == b"y\n" * 3
    policy = kvmlet.Policy.of(max_output=4, timeout=60)
    assert kvmlet.run(["yes"], policy=policy, limits=limits).stdout == b"y\n" * 50
    with kvmlet.Box(limits=limits) as box:
        assert box.run("ulimit -n; yes", shell=True).stdout.startswith(b"7\ny\n")
    with kvmlet.Interpreter(limits=kvmlet.Limits(max_files=32)) as py:
        asks = "import resource; resource.getrlimit(resource.RLIMIT_NOFILE)[0]"
        assert py.run(asks).value == 32

    @kvmlet.isolated(limits=kvmlet.Limits(max_files=32, timeout=60))
    def most_files() -> int:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]

    assert most_files() == 32
    most_files.close()


@pytest.mark.parametrize("calls", ["poll", "exit"])
def test_output_for_a_callable_is_not_limited(calls: str) -> None:
    script = "head -c 40000000 /dev/zero; head -c 3000 /dev/zero >&2"
    sizes: list[int] = []
    told = kvmlet.run(
        script + "; echo end",
        shell=True,
        calls=calls,
        max_output="4k",
        stdout=lambda piece: sizes.append(len(piece)),
        timeout=60,
    )
    assert (told.reason, sum(sizes), len(told.stderr)) == ("exited", 40_000_004, 3000)
    # Output that is captured beside it is.
    cut = kvmlet.run(script, shell=True, calls=calls, max_output="2k", stdout=len, timeout=60)
    assert (cut.reason, len(cut.stderr)) == ("output", 2048)


def test_mistakes() -> None:
    with pytest.raises(kvmlet.UsageError, match="shell=True takes one string, not list"):
        kvmlet.run(["echo"], shell=True)
    with pytest.raises(kvmlet.UsageError, match="argv is a single str"):
        kvmlet.run("echo")
    with pytest.raises(kvmlet.UsageError, match="encoding: unknown encoding: nonsense"):
        kvmlet.run(["echo"], text=True, encoding="nonsense")
    with pytest.raises(kvmlet.UsageError, match="stdout: 1 is not a callable"):
        kvmlet.run(["echo"], stdout=1)  # type: ignore[call-overload]
    with pytest.raises(kvmlet.UsageError, match="read: /nowhere is not there"):
        kvmlet.run(["echo"], read=["/nowhere"])
    result = kvmlet.run(["true"])
    assert repr(result) == "Result(args=['true'], reason='exited', returncode=0)"
    with pytest.raises(TypeError, match="no truth value"):
        bool(result)
