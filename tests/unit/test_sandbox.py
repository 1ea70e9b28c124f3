"""kvmlet.run: what it hands to the extension, and what it makes of the answer."""

import os
import pathlib
import pickle

import pytest

import kvmlet
from unit.fake import FakeNative, NativeError, Outcome

ENV = {b"PATH": b"/usr/local/bin:/usr/bin:/bin", b"HOME": b"/tmp", b"TMPDIR": b"/tmp"}


def test_defaults(native: FakeNative, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.delenv("TERM", raising=False)
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    kvmlet.run(["true"])
    (call,) = native.calls
    assert dict(call.pop("env")) == {**ENV, b"LANG": b"C.UTF-8"}
    assert call.pop("disk").limit_bytes == 2 << 30
    assert call == {
        "argv": [b"true"],
        "policy": os.getcwdb(),
        "input": None,
        "streams": None,
        "timeout_s": None,
        "cpu_time_s": None,
        "memory_bytes": 512 << 20,
        "processes_max": 256,
        "files_max": 1024,
        "output_limit_bytes": 16 << 20,
        "trace": False,
        "calls": "auto",
        "on_stdout": None,
        "on_stderr": None,
        "on_denial": None,
        "stop": None,
        "changes": None,
    }
    # Hardening binds a whole process for good: never that of a library's caller.
    assert native.hardened == []


def test_arguments(native: FakeNative, tmp_path: pathlib.Path) -> None:
    kvmlet.run(
        [pathlib.Path("/bin/cat"), b"\xff", "ä", "\udcfe"],
        input="grüße",
        timeout=1,
        memory="64m",
        calls="exit",
        env={"A": "1", "HOME": "/usr"},
        cwd=tmp_path,
    )
    (call,) = native.calls
    assert call["argv"] == [b"/bin/cat", b"\xff", "ä".encode(), b"\xfe"]
    assert call["input"] == "grüße".encode()
    assert call["timeout_s"] == 1.0
    assert call["memory_bytes"] == 64 << 20
    assert call["calls"] == "exit"
    assert dict(call["env"])[b"A"] == b"1"
    assert dict(call["env"])[b"HOME"] == b"/usr"
    assert call["policy"] == os.fsencode(tmp_path.resolve())


def test_calls_mode(native: FakeNative, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmlet._calls.polling_is_slow", lambda: "one CPU")
    monkeypatch.setenv("KVMLET_CALLS", "exit")
    kvmlet.run(["true"])
    kvmlet.run(["true"], calls="auto")
    with pytest.warns(RuntimeWarning, match="one CPU") as by_run:
        kvmlet.run(["true"], calls="poll")
    with pytest.warns(RuntimeWarning, match="one CPU") as by_sandbox:
        kvmlet.Sandbox(["true"], calls="poll")
    assert [each.filename for each in (*by_run, *by_sandbox)] == [__file__, __file__]
    kvmlet.Sandbox(["true"])
    assert [call["calls"] for call in native.calls] == ["exit", "auto", "poll"]
    assert [sandbox.arguments["calls"] for sandbox in native.started] == ["poll", "exit"]
    monkeypatch.setenv("KVMLET_CALLS", "fast")
    with pytest.raises(kvmlet.UsageError, match=r"KVMLET_CALLS: 'fast'.*auto, exit or poll"):
        kvmlet.run(["true"])


def test_result(native: FakeNative) -> None:
    native.outcome = Outcome(
        exit_code=3,
        stdout=b"out",
        stderr=b"err",
        denials=[("open /root/x", "ENOENT", "hidden", 2)],
        events=[("io_uring_setup", "ENOSYS")],
        stats={"exits": 5},
    )
    result = kvmlet.run(("false",))
    assert (result.stdout, result.stderr, result.exit_code) == (b"out", b"err", 3)
    assert (result.signal, result.reason, result.ok) == (None, "exited", False)
    (denial,) = result.denials
    assert denial == kvmlet.Denial("open /root/x", "ENOENT", "hidden", 2)
    assert (denial.operation, denial.path, denial.flag) == (
        "open",
        "/root/x",
        "--read /root/x",
    )
    assert denial.remedy == "it is not visible; allow it with --read /root/x"
    shadow = kvmlet.Denial("open /etc/shadow", "ENOENT", "hidden")
    assert (shadow.flag, shadow.remedy) == ("", "it is not visible, and no option shows it")
    network = kvmlet.Denial("socket AF_INET", "EACCES", "network")
    assert (network.path, network.flag) == ("", "")
    assert result.events == [kvmlet.Event("io_uring_setup", "ENOSYS")]
    assert result.stats == {"exits": 5}
    with pytest.raises(AttributeError):
        result.exit_code = 0  # type: ignore[misc]


def test_check(native: FakeNative) -> None:
    assert kvmlet.run(["true"]).check().ok
    endings = [
        (Outcome(exit_code=3, stderr=b"one\nlast line\n"), "status 3, its last error line: last"),
        (Outcome(exit_code=None, signal=11, reason="signal"), "signal 11"),
        (Outcome(exit_code=None, reason="timeout"), "time limit"),
        (Outcome(exit_code=None, reason="memory"), "memory limit"),
        (Outcome(exit_code=None, reason="output"), "output limit"),
        (Outcome(exit_code=None, reason="interrupted"), "interrupted"),
        # It had exited with 0, but not before its limit.
        (Outcome(exit_code=0, reason="output"), "output limit"),
    ]
    for outcome, message in endings:
        native.outcome = outcome
        result = kvmlet.run(["x"])
        with pytest.raises(kvmlet.ExitError, match=message) as caught:
            result.check()
        assert caught.value.result is result


@pytest.mark.parametrize(
    "argv", ["ls -l", b"ls", pathlib.Path("/bin/ls"), [], 5, None, [1], ["a\0b"], [b"\0"]]
)
def test_bad_argv(native: FakeNative, argv: object) -> None:
    with pytest.raises(kvmlet.UsageError) as caught:
        kvmlet.run(argv)  # type: ignore[call-overload]
    assert isinstance(caught.value, ValueError)
    assert native.calls == []


def test_bare_string_gets_a_hint(native: FakeNative) -> None:
    with pytest.raises(kvmlet.UsageError, match=r"argv is a single str, not a list; pass a list"):
        kvmlet.run("ls -l")
    assert native.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": 0},
        {"timeout": "soon"},
        {"memory": "lots"},
        {"memory": True},
        {"calls": "fast"},
        {"calls": ""},
        {"calls": 1},
        {"input": 5},
        {"input": "\ud800"},
        {"env": {"A=B": "1"}},
        {"env": {"": "1"}},
        {"env": {"A": "\0"}},
        {"env": {"A": 1}},
        {"cwd": "/nonexistent/dir"},
        {"cwd": "/etc/passwd"},
        {"cwd": "a\0b"},
        {"cwd": 5},
    ],
)
def test_bad_arguments(native: FakeNative, arguments: dict[str, object]) -> None:
    with pytest.raises(kvmlet.UsageError):
        kvmlet.run(["true"], **arguments)  # type: ignore[call-overload]
    assert native.calls == []


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("not_found", kvmlet.ProgramNotFound),
        ("not_executable", kvmlet.ProgramNotExecutable),
        ("bad_elf", kvmlet.ProgramNotExecutable),
        ("is_directory", kvmlet.ProgramNotExecutable),
        ("kvm_missing", kvmlet.KvmUnavailable),
        ("kvm_permission", kvmlet.KvmUnavailable),
        ("kvm_unusable", kvmlet.KvmUnavailable),
        ("bad_argument", kvmlet.UsageError),
        ("internal", kvmlet.InternalError),
        ("host", kvmlet.HostError),
        ("a kind of later", kvmlet.InternalError),
    ],
)
def test_native_errors(native: FakeNative, kind: str, cls: type[kvmlet.KvmletError]) -> None:
    native.error = NativeError(kind, "it went wrong")
    with pytest.raises(kvmlet.KvmletError) as caught:
        kvmlet.run(["x"])
    assert type(caught.value) is cls
    assert caught.value.message == "it went wrong"
    assert "\n" not in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), str(copy)) == (cls, str(caught.value))


def test_keyboard_interrupt_propagates(native: FakeNative) -> None:
    native.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        kvmlet.run(["x"])


def test_facade() -> None:
    assert set(kvmlet.__all__) == set(dir(kvmlet))
    for name in kvmlet.__all__:
        assert getattr(kvmlet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = kvmlet.nothing
