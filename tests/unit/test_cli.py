"""The command line, in front of a stand-in for the extension."""

import json
import os
import re
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmlet._refusals import remedy_of
from kvmlet.cli import main
from kvmlet.cli._ends import signal_name
from kvmlet.cli._plain import Plain
from kvmlet.cli._run_options import declare, parser, split_command
from kvmlet.cli._stats import stats_table
from kvmlet.cli._text import printable
from unit.fake import FakeInherited, FakeNative, NativeError, Outcome

Capture = pytest.CaptureFixture[str]


def ours(capfd: Capture) -> str:
    """The one line on standard error, which must be all that was printed."""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("kvmlet: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("kvmlet: ").removesuffix("\n")


# ---- the program's own words ----


@pytest.mark.parametrize(
    ("words", "own", "program"),
    [
        (["ls", "-l"], [], ["ls", "-l"]),
        (["--", "ls", "--", "-l"], [], ["ls", "--", "-l"]),
        (["--stats", "ls", "--stats"], ["--stats"], ["ls", "--stats"]),
        (["--stats=json", "--trace", "ls"], ["--stats=json", "--trace"], ["ls"]),
        (["--timeout", "1s", "ls", "--timeout"], ["--timeout", "1s"], ["ls", "--timeout"]),
        (["--calls", "exit", "ls"], ["--calls", "exit"], ["ls"]),
        (["--memory=1g", "--", "--trace"], ["--memory=1g"], ["--trace"]),
        (["--timeout", "1s"], ["--timeout", "1s"], []),
        (["--timeout"], ["--timeout"], []),
        (["-", "x"], [], ["-", "x"]),
        ([""], [], [""]),
        ([], [], []),
    ],
)
def test_split(words: list[str], own: list[str], program: list[str]) -> None:
    assert split_command(words) == (own, program)


WORDS = st.lists(st.sampled_from(["--", "--stats", "--trace", "--help", "--timeout", "-x", "ls"]))


@given(WORDS)
def test_everything_after_the_separator_is_the_programs(words: list[str]) -> None:
    assert split_command(["--trace", "--timeout", "1s", "--", *words])[1] == words


@given(WORDS)
def test_everything_after_the_program_is_the_programs(words: list[str]) -> None:
    assert split_command(["--stats", "ls", *words]) == (["--stats"], ["ls", *words])


def test_run(native: FakeNative, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PATH", "/usr/bin:here::/usr/games/:/usr/bin")
    assert main(["run", "--timeout", "1.5", "--memory=64m", "sh", "-c", "\udcff", "--trace"]) == 0
    (call,) = native.calls
    assert dict(call.pop("env")) == {
        b"PATH": b"/usr/bin:/usr/games",
        b"HOME": b"/tmp",
        b"TMPDIR": b"/tmp",
        b"TERM": b"xterm",
        b"LC_TIME": b"C",
    }
    assert isinstance(call.pop("streams"), FakeInherited)
    disk = call.pop("disk")
    assert (disk.limit_bytes, disk.directory) == (2 << 30, b"/var/tmp")
    assert call == {
        "argv": [b"sh", b"-c", b"\xff", b"--trace"],
        "policy": os.getcwdb(),
        "input": None,
        "timeout_s": 1.5,
        "cpu_time_s": None,
        "memory_bytes": 64 << 20,
        "processes_max": 256,
        "files_max": 1024,
        "output_limit_bytes": 16 << 20,
        "trace": False,
        "trace_to": None,
        "calls": "auto",
        "changes": None,
    }
    assert native.hardened == [os.getcwdb()]
    assert capfd.readouterr() == ("", "")


def test_trace_says_what_the_second_wall_is(native: FakeNative, capfd: Capture) -> None:
    assert main(["run", "--trace", "true"]) == 0
    assert native.calls[0]["trace"] is True
    assert ours(capfd) == "second wall: no core dumps, seccomp"


def test_one_line_says_what_the_second_wall_lacks(native: FakeNative, capfd: Capture) -> None:
    native.missing = ["no Landlock", "no seccomp"]
    assert main(["run", "true"]) == 0
    assert ours(capfd) == "running with a part of the second wall only: no Landlock; no seccomp"


def test_calls_mode(native: FakeNative, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmlet._calls.polling_is_slow", lambda: "")
    monkeypatch.setenv("KVMLET_CALLS", "poll")
    assert main(["run", "--calls", "exit", "--", "true"]) == 0
    assert main(["run", "true"]) == 0
    assert [call["calls"] for call in native.calls] == ["exit", "poll"]
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("KVMLET_CALLS", "fast")
    assert main(["run", "true"]) == 125
    assert ours(capfd).startswith("KVMLET_CALLS: 'fast' ")


@pytest.mark.parametrize(("mode", "warned"), [("poll", True), ("auto", False), ("exit", False)])
def test_polling_without_a_second_cpu(
    native: FakeNative, capfd: Capture, monkeypatch: pytest.MonkeyPatch, mode: str, warned: bool
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert main(["run", "--calls", mode, "true"]) == 0
    assert [call["calls"] for call in native.calls] == [mode]
    if warned:
        assert "one CPU only" in ours(capfd)
    else:
        assert capfd.readouterr() == ("", "")


# ---- how a run ends ----


@pytest.mark.parametrize("code", [0, 1, 2, 77, 125, 255])
def test_status_passes_through(native: FakeNative, capfd: Capture, code: int) -> None:
    native.outcome = Outcome(exit_code=code)
    assert main(["run", "x"]) == code
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "outcome", "status", "line"),
    [
        (
            ["--timeout", "1s"],
            Outcome(exit_code=None, reason="timeout"),
            124,
            "ended by the time limit of 1s; --timeout raises it",
        ),
        (
            ["--memory", "64m"],
            Outcome(exit_code=None, reason="memory"),
            137,
            "ended by the memory limit of 64m; --memory raises it",
        ),
        (
            [],
            Outcome(exit_code=None, signal=11, reason="signal"),
            139,
            "ended by SIGSEGV (Segmentation fault)",
        ),
        (
            [],
            Outcome(exit_code=None, signal=6, reason="signal"),
            134,
            "ended by SIGABRT (Aborted)",
        ),
        ([], Outcome(exit_code=None, signal=40, reason="signal"), 168, "ended by signal 40"),
        ([], Outcome(exit_code=None, reason="output"), 125, "ended by the output limit of 16m"),
    ],
)
def test_endings(
    native: FakeNative,
    capfd: Capture,
    words: list[str],
    outcome: Outcome,
    status: int,
    line: str,
) -> None:
    native.outcome = outcome
    assert main(["run", *words, "x"]) == status
    assert ours(capfd) == line


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome(exit_code=None, signal=13, reason="signal"), 141),
        (Outcome(exit_code=None, signal=2, reason="signal"), 130),
        (Outcome(exit_code=None, reason="interrupted"), 130),
    ],
)
def test_quiet_endings(native: FakeNative, capfd: Capture, outcome: Outcome, status: int) -> None:
    native.outcome = outcome
    assert main(["run", "yes"]) == status
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_ends_end_the_run(
    native: FakeNative, capfd: Capture, signum: signal.Signals, status: int
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    native.during_run = lambda: os.kill(os.getpid(), signum)
    assert main(["run", "sleep", "9"]) == status
    assert capfd.readouterr() == ("", "")
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_ignored_ends_stay_ignored(native: FakeNative) -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        native.during_run = lambda: os.kill(os.getpid(), signal.SIGINT)
        native.outcome = Outcome(exit_code=7)
        assert main(["run", "x"]) == 7
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("not_found", 127),
        ("not_executable", 126),
        ("is_directory", 126),
        ("bad_elf", 126),
        ("kvm_missing", 125),
        ("kvm_permission", 125),
        ("kvm_unusable", 125),
        ("bad_argument", 125),
        ("internal", 125),
        ("host", 125),
    ],
)
def test_errors(native: FakeNative, capfd: Capture, kind: str, status: int) -> None:
    native.error = NativeError(kind, "x\n\x1b[2J: broken")
    assert main(["run", "x"]) == status
    assert ours(capfd).startswith("x\\x0a\\x1b[2J: broken")


@pytest.mark.parametrize("debug", ["", "1"])
def test_our_own_faults_are_one_line(
    native: FakeNative, capfd: Capture, monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    monkeypatch.setenv("KVMLET_DEBUG", debug)
    native.error = RuntimeError("oh\nno")
    assert main(["run", "x"]) == 125
    err = capfd.readouterr().err
    assert err.splitlines()[-1].startswith("kvmlet: internal error: RuntimeError: oh\\x0ano")
    assert ("Traceback" in err) == bool(debug)


def test_an_ending_without_a_status_is_our_fault(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(exit_code=None, reason="exited")
    assert main(["run", "x"]) == 125
    assert "ended without a status" in ours(capfd)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no command given; try 'kvmlet run -- CMD ARG...' or 'kvmlet --help'"),
        (["python3", "x"], "unknown command 'python3'; to run a program: kvmlet run python3 ..."),
        (["--bogus"], "unknown option --bogus; see 'kvmlet --help'"),
        (["run"], "no program given; name it after the options: kvmlet run -- CMD ARG..."),
        (["run", "--"], "no program given; name it after the options: kvmlet run -- CMD ARG..."),
        (["run", "--bogus", "x"], "unknown option --bogus; see 'kvmlet run --help'"),
        (["run", "--time", "1s", "x"], "unknown option --time; did you mean --timeout?"),
        (
            ["run", "--timeout"],
            "argument --timeout: expected one argument; see 'kvmlet run --help'",
        ),
        (
            ["run", "--timeout", "5x", "x"],
            "--timeout: '5x' is not a duration; write e.g. 30s, 500ms, 2m, 1h or a number of "
            "seconds",
        ),
        (["run", "--timeout", "0", "x"], None),
        (["run", "--timeout", "-5", "x"], None),
        (["run", "--timeout=", "x"], None),
        (
            ["run", "--memory", "lots", "x"],
            "--memory: 'lots' is not a size; write e.g. 64m, 512M, 1g, 512MiB or a number of bytes",
        ),
        (["run", "--memory", "1m", "x"], "--memory: '1m' is too small; the least is 4m"),
        (
            ["run", "--max-procs", "none", "x"],
            "--max-procs: 'none' is not a number; give a number from 1 to 1024",
        ),
        (["run", "--memory", "2t", "x"], "--memory: '2t' is too large; the most is 1t"),
        (
            ["run", "--calls", "fast", "x"],
            "--calls: 'fast' is not a way for calls to travel; write auto, exit or poll",
        ),
        (["run", "--stats=xml", "x"], None),
        (["run", "--verbose=1", "x"], None),
        (["doctor", "now"], "unrecognized arguments: now; see 'kvmlet doctor --help'"),
        (["syscalls", "--json", "--markdown"], None),
    ],
)
def test_mistakes(native: FakeNative, capfd: Capture, words: list[str], line: str | None) -> None:
    assert main(words) == 125
    said = ours(capfd)
    assert "; " in said
    if line is not None:
        assert said == line
    assert native.calls == []
    # Nothing is bound before everything is known to be right.
    assert native.hardened == []


# ---- what it says afterwards ----


def test_denials_after_a_failure(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(
        exit_code=1,
        denials=[
            ("stat /root/e", "ENOENT", "hidden", 7),
            ("open /root/e", "ENOENT", "hidden", 1),
            *((f"open /root/d/{n}", "ENOENT", "hidden", 1) for n in range(7)),
            ("mkdir /usr/x", "EROFS", "read-only", 1),
            ("open /root/my file\x1b[1m", "ENOENT", "hidden", 1),
            ("socket AF_INET", "EACCES", "network", 1),
            *((f"open /dev/{n}", "EACCES", "special-file", 1) for n in range(2)),
        ],
        events=[("io_uring_setup", ""), ("io_uring_setup", ""), ("ioctl", "request 1")],
        stats={"denials_not_kept": 100},
    )
    assert main(["run", "x"]) == 1
    special = "only regular files and directories of the host can be opened and made"
    assert capfd.readouterr().err.splitlines() == [
        f"kvmlet: denied: open /dev/1 (EACCES); {special}",
        f"kvmlet: denied: open /dev/0 (EACCES); {special}",
        "kvmlet: denied: socket AF_INET (EACCES); a sandbox has no such sockets",
        "kvmlet: denied: open /root/my file\\x1b[1m (ENOENT); it is not visible; "
        "allow it with --read '/root/my file\\x1b[1m'",
        "kvmlet: denied: mkdir /usr/x (EROFS); only the current directory and /tmp can be changed",
        "kvmlet: denied: and 102 more",
        "kvmlet: not supported: io_uring_setup",
        "kvmlet: not supported: ioctl (request 1)",
    ]


def test_what_no_option_answers_comes_last(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(
        exit_code=4,
        denials=[
            ("resolve a.example", "NXDOMAIN", "address", 1),
            ("stat /sys/fs", "ENOENT", "hidden", 1),
        ],
        events=[("pkey_alloc", "")],
    )
    assert main(["run", "x"]) == 4
    assert capfd.readouterr().err.splitlines() == [
        "kvmlet: denied: resolve a.example (NXDOMAIN); allow it with --net a.example",
        "kvmlet: denied: stat /sys/fs (ENOENT); it is not visible, and no option shows it",
    ]


def test_hidden_names_of_one_folder_are_told_together(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(
        exit_code=1,
        denials=[
            ("stat /a/x", "ENOENT", "hidden", 1),
            *((f"open /a b/{n}", "ENOENT", "hidden", 1) for n in range(3)),
            ("access /a/x", "ENOENT", "hidden", 1),
        ],
    )
    assert main(["run", "x"]) == 1
    assert capfd.readouterr().err.splitlines() == [
        "kvmlet: denied: access /a/x (ENOENT); it is not visible; allow it with --read /a/x",
        "kvmlet: denied: 3 names below /a b, such as 2; allow them with --read '/a b'",
    ]


def test_nobody_is_talked_into_showing_a_home(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(
        exit_code=1,
        denials=[
            ("open /home/u", "ENOENT", "hidden", 1),
            *((f"open /home/u/{n}", "ENOENT", "hidden", 1) for n in range(3)),
        ],
    )
    assert main(["run", "x"]) == 1
    said = capfd.readouterr().err
    assert "--read /home/u/2" in said
    assert "--read /home/u\n" not in said


def test_each_kind_of_refusal_has_words() -> None:
    source = Path(__file__).parents[2] / "crates" / "linux" / "src" / "report.rs"
    names = re.search(r"pub fn name\(self\).*?\n    }", source.read_text(), re.DOTALL)
    assert names
    for kind in re.findall(r'=> "([a-z-]+)"', names[0]):
        assert remedy_of("open /x", kind)


def test_no_denials_after_success(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(denials=[("open /etc/shadow", "EACCES", "hidden", 1)])
    assert main(["run", "x"]) == 0
    assert capfd.readouterr() == ("", "")


def test_stats(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(exit_code=3, stats={"exits": 12345, "run_us": 1500.5, "syscalls": 7})
    assert main(["run", "--stats", "x"]) == 3
    assert capfd.readouterr().err == ("exits     12,345\nrun        1.500 ms\nsyscalls       7\n")
    assert main(["run", "--stats=json", "x"]) == 3
    assert json.loads(capfd.readouterr().err) == {
        "reason": "exited",
        "exit_code": 3,
        "signal": None,
        "exits": 12345,
        "run_us": 1500.5,
        "syscalls": 7,
    }


def test_stats_by_transport() -> None:
    stats = {
        "exits": 40,
        "calls_polled": 1500,
        "calls_exit": 500,
        "calls_left": 100,
        "polls_timed_out": 2,
        "poller_cpu_us": 8000.0,
        "poller_useful_us": 2000.0,
        "guest_us": 9000.0,
        "wall_us": 12000.0,
    }
    assert stats_table(stats).splitlines() == [
        "exits                              40",
        "guest                           9.000 ms  75.0%",
        "wall                           12.000 ms",
        "calls by transport, without those that the stub answered",
        "  polled                        1,500     75.0%",
        "  by exit                         500     25.0%",
        "    that the poller had begun     100      5.0%",
        "  polls given up                    2",
        "  poller's CPU time             8.000 ms",
        "  of it useful                  2.000 ms  25.0%",
    ]


def test_stats_of_a_run_without_calls() -> None:
    stats = {"calls_polled": 0, "calls_exit": 0, "poller_cpu_us": 0.0, "poller_useful_us": 0.0}
    assert "%" not in stats_table(stats)


def test_no_stats_no_table() -> None:
    assert stats_table({}) == ""


def test_signal_names() -> None:
    for each in signal.Signals:
        name = signal_name(each)
        assert name.endswith(f"({signal.strsignal(each)})") or name == f"signal {each:d}"
    assert signal_name(signal.SIGKILL) == "SIGKILL (Killed)"


@given(st.text())
def test_printable_is_one_harmless_line(text: str) -> None:
    assert printable(text).isprintable()


# ---- options that are read without argparse ----

_NAMES = sorted(parser()._option_string_actions)
_TEXTS = st.sampled_from(["", "5s", "1", "table", "json", "-5", "a=b", "--", "x y", "-"])
_GIVEN = st.one_of(
    st.sampled_from(_NAMES),
    # Of "--name=--" argparse makes an empty list.
    st.tuples(st.sampled_from(_NAMES), _TEXTS.filter(lambda text: text != "--")).map("=".join),
    st.tuples(st.sampled_from(["-m", "-q", "-v", "-e"]), _TEXTS).map("".join),
    _TEXTS,
)


@given(st.lists(_GIVEN, max_size=6))
def test_plain_options_are_read_as_argparse_reads_them(words: list[str]) -> None:
    own, _ = split_command(words)
    plain = Plain()
    declare(plain)
    options = plain.read(own)
    if options is not None:
        assert vars(options) == vars(parser().parse_args(own))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--timeout", "5s", "-m", "64m", "--stats", "--read", "a", "--read", "b", "-q"],
        ["--stats=json", "--changes=keep", "--trace=x", "--trace", "-A", "-e", "A=1"],
    ],
)
def test_usual_options_need_no_argparse(words: list[str]) -> None:
    plain = Plain()
    declare(plain)
    options = plain.read(words)
    assert options is not None
    assert vars(options) == vars(parser().parse_args(words))
    # Nothing is left of one reading in the next.
    options.read.append("more")
    again = plain.read(words)
    assert again is not None
    assert again.read == options.read[:-1]


# ---- the other commands ----


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["doctor", "-h"]])
def test_help(native: FakeNative, capfd: Capture, words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    out, err = capfd.readouterr()
    assert out.startswith("usage: kvmlet")
    assert err == ""
    assert native.calls == []


def test_version(capfd: Capture) -> None:
    import kvmlet

    assert main(["--version"]) == 0
    assert capfd.readouterr() == (f"kvmlet {kvmlet.__version__}\n", "")


def test_syscalls(native: FakeNative, capfd: Capture) -> None:
    native.rows = [(39, "getpid", "full", ""), (0, "read", "partial", "no a|b files")]
    assert main(["syscalls"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "   0  read    partial  no a|b files",
        "  39  getpid  full",
        "2 calls: 1 full, 1 partial, 0 refused, 0 none",
    ]
    assert main(["syscalls", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[1] == {
        "number": 39,
        "name": "getpid",
        "support": "full",
        "note": "",
    }
    assert main(["syscalls", "--markdown"]) == 0
    assert capfd.readouterr().out.splitlines()[2:] == [
        "| 0 | `read` | partial | no a\\|b files |",
        "| 39 | `getpid` | full |  |",
    ]


def test_reader_that_goes_away(native: FakeNative, capfd: Capture) -> None:
    native.rows = [(n, "x", "none", "") for n in range(50_000)]
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    try:
        assert main(["syscalls"]) == 141
    finally:
        os.dup2(saved, 1)
        os.close(saved)
        os.close(writer)
    assert capfd.readouterr().err == ""


# ---- the environment and the view ----


def test_environment(native: FakeNative, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINE", "caller's")
    monkeypatch.delenv("ABSENT", raising=False)
    file = tmp_path / "vars"
    file.write_text("# not a variable\n\nA=1\n B = x=y \nMINE\nABSENT\n")
    assert main(["run", "--env-file", str(file), "-e", "A=2", "--env", "E=", "true"]) == 0
    env = dict(native.calls[0]["env"])
    assert env[b"A"] == b"2"
    assert env[b"B "] == b" x=y"
    assert env[b"MINE"] == b"caller's"
    assert env[b"E"] == b""
    assert b"ABSENT" not in env


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-e", "ABSENT_HERE"], "-e ABSENT_HERE: no such variable here; set it"),
        (["-e", "=1"], "-e: '=1' names no variable; write K=V or K"),
        (["--env-file", "/nowhere"], "--env-file /nowhere: No such file or directory; name a file"),
        (["--read", "/nowhere"], "--read: /nowhere is not there; name an existing"),
        (
            ["--allow-read", "/usr,/nowhere"],
            "--allow-read: /nowhere is not there; name an existing",
        ),
        (["-w", "/nowhere"], "-w: '/nowhere' is not a directory"),
        (["-q", "--verbose"], "argument --verbose: not allowed with argument -q/--quiet"),
    ],
)
def test_mistakes_in_options(
    native: FakeNative, capfd: Capture, words: list[str], said: str
) -> None:
    assert main(["run", *words, "true"]) == 125
    assert said in ours(capfd)
    assert native.calls == []


def test_what_may_be_read(native: FakeNative, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    link = tmp_path / "link"
    link.symlink_to("c")
    words = ["--read", str(tmp_path / "a"), f"--allow-read={tmp_path / 'b'},{link}"]
    assert main(["run", *words, "-w", str(link), "true"]) == 0
    policy = native.calls[0]["policy"]
    assert policy == os.fsencode(tmp_path / "c")
    assert policy.readable == [os.fsencode(tmp_path / name) for name in ("a", "b", "link", "c")]


def test_quiet_and_verbose(native: FakeNative, capfd: Capture) -> None:
    native.outcome = Outcome(denials=[("open /root/x", "ENOENT", "hidden", 1)])
    assert main(["run", "--verbose", "true"]) == 0
    assert "open /root/x" in ours(capfd)
    native.outcome = Outcome(exit_code=1, denials=[("open /root/x", "ENOENT", "hidden", 1)])
    assert main(["run", "-q", "true"]) == 1
    assert capfd.readouterr() == ("", "")
