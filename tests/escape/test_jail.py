"""The second wall: what the process of `kvmlet run` may still do once its guest runs."""

from __future__ import annotations

import json
import os
import pathlib
import pty
import signal
import socket
import subprocess
import sys
import time

import pytest

from e2e.oracle import ENV, GUESTS, HANG_S, KVMLET, ROOT, kvmlet_argv
from escape.calls_of_host import HostCall, calls_after_wall, strace_argv
from kvmlet import _native

pytestmark = [pytest.mark.usefixtures("vm")]

HERE = pathlib.Path(__file__).parent
IN_PYTHON = {**ENV, "PYTHONPATH": os.fspath(ROOT / "python"), "PYTHONDONTWRITEBYTECODE": "1"}

# Rules that this machine does not show, by the call and the first value compared.
ELSEWHERE = {
    ("ioctl", 0x9000AEA4): "KVM_GET_XSAVE: before Linux 5.17, which has KVM_GET_XSAVE2",
    ("ioctl", 0x4018AEE2): "KVM_GET_DEVICE_ATTR: on hardware, where a vCPU has a TSC offset",
    ("getpgrp", None): "a terminal of the caller's session; e2e/test_terminals.py has such",
    ("getppid", None): "a job in the background; e2e/test_terminals.py has some",
    ("getsid", None): "a job in the background; e2e/test_terminals.py has some",
    ("preadv2", None): "a pipe that cannot be opened again",
    ("pwritev2", None): "a pipe that cannot be opened again",
    ("readlink", None): "in a panic; crates/jail/tests/panic.rs has one",
    (
        "restart_syscall",
        None,
    ): "after a stop by a debugger or the freezer, and in threads that do not handle SIGCONT",
    ("clock_getres", None): "where the kernel gives processes no vDSO",
}


@pytest.mark.default_mode
@pytest.mark.hw
def test_what_the_wall_refuses(tmp_path: pathlib.Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "old").write_text("x")
    outside = tmp_path / "outside"
    outside.write_text("secret")
    run = subprocess.run(
        [sys.executable, HERE / "refused_calls.py", outside],
        cwd=inside,
        env=IN_PYTHON,
        capture_output=True,
        timeout=HANG_S,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["wrong"] == {}
    assert answer["attempts"] > 100


TERMINAL = """
import fcntl, os, termios
settings = termios.tcgetattr(0)
for when in (termios.TCSANOW, termios.TCSADRAIN, termios.TCSAFLUSH):
    termios.tcsetattr(0, when, settings)
termios.tcflush(0, termios.TCIFLUSH)
fcntl.ioctl(0, termios.FIONREAD, bytes(4))
os.get_terminal_size(0)
"""

FILES = """
import os, sys
sys.stdin.read()
os.lseek(1, 0, os.SEEK_SET)
os.pwrite(1, b"abc", 1)
os.ftruncate(1, 2)
os.fsync(1)
os.statvfs("/usr")
assert len(os.listdir(".")) == 9001
"""

# Past a quarter of 16 MiB files lie on the host's disk.
PAST_MEMORY = "head -c 8M /dev/zero >/tmp/a && cmp -n 8388608 /tmp/a /dev/zero && rm /tmp/a"

OWN_NAME = ["/usr/bin/python3", "-c", "import socket as s; s.socket(s.AF_UNIX).bind('name')"]
HOST_FILES = [GUESTS / "build" / "hostfiles", "mappings", "locks", "unnamed", "attributes"]

# For more than a second after the last call, so that the poller ends.
POLLED = """
import os, time
for _ in range(3000):
    os.stat("/usr")
time.sleep(1.5)
"""

HARDEN = (
    "import os; from kvmlet import _native; "
    f"_native.harden(_native.Policy({os.fsencode(HERE)!r}, []))"
)


def calls_of(
    log: pathlib.Path,
    argv: list[str],
    *,
    status: int = 0,
    cwd: pathlib.Path | None = None,
    env: dict[str, str] = IN_PYTHON,
    **streams: object,
) -> set[HostCall]:
    """The calls that kvmlet makes once its wall stands, while it runs `argv`."""
    words = strace_argv(log, argv)
    run = subprocess.run(words, cwd=cwd, env=env, timeout=HANG_S, **streams)  # type: ignore[call-overload]
    calls = calls_after_wall(log)
    assert run.returncode == status, (argv, run, calls[-3:])
    return set(calls)


def calls_of_a_stopped_run(log: pathlib.Path) -> set[HostCall]:
    """As `calls_of`, of a run that is stopped and goes on while its guest waits."""
    argv = [os.fspath(KVMLET), "run", "--", "/bin/sh", "-c", "echo; exec sleep 1"]
    traced = subprocess.Popen(strace_argv(log, argv), env=ENV, stdout=subprocess.PIPE)
    assert traced.stdout is not None
    assert traced.stdout.readline() == b"\n"
    time.sleep(0.3)
    child = int(pathlib.Path(f"/proc/{traced.pid}/task/{traced.pid}/children").read_text())
    os.kill(child, signal.SIGSTOP)
    time.sleep(0.1)
    os.kill(child, signal.SIGCONT)
    assert traced.wait(HANG_S) == 0
    return set(calls_after_wall(log))


def calls_of_a_console(log: pathlib.Path, terminal: int) -> set[HostCall]:
    """As `calls_of`, of a program on a terminal that stops itself, and the job with it."""
    argv = [os.fspath(KVMLET), "run", "--", "/bin/sh", "-c", "kill -STOP $$; exit 3"]
    words = strace_argv(log, argv)
    # A job of its own, or the test would be stopped too.
    traced = subprocess.Popen(words, env=ENV, stdin=terminal, stdout=terminal, process_group=0)
    until = time.monotonic() + HANG_S
    while traced.poll() is None and time.monotonic() < until:
        time.sleep(0.3)
        os.killpg(traced.pid, signal.SIGCONT)
    assert traced.wait(1) == 3
    return set(calls_after_wall(log))


CHANGES = """
import ctypes, os, signal, sys
from kvmlet import _native
inside, outside, readable = (os.fsencode(word) for word in sys.argv[1:])
_native.harden(_native.Policy(inside, [readable], None, [inside]))
libc = ctypes.CDLL(None, use_errno=True)

def refused(name, call, *words, **names):
    try:
        call(*words, **names)
    except OSError as error:
        if error.errno in (1, 13, 18):
            return
        name += f": {error}"
    print("FAIL", name)

def linked(old_dir, old, new_dir, new, flags=0):
    if libc.linkat(old_dir, old, new_dir, new, flags):
        raise OSError(ctypes.get_errno(), "linkat")

def renamed(old_dir, old, new_dir, new):
    if libc.syscall(316, old_dir, old, new_dir, new, 0):
        raise OSError(ctypes.get_errno(), "renameat2")

for place in (outside, readable):
    old, new = place + b"/file", place + b"/new"
    refused("write", os.open, old, os.O_WRONLY)
    refused("append", os.open, old, os.O_RDWR | os.O_APPEND)
    refused("truncate at open", os.open, old, os.O_RDONLY | os.O_TRUNC)
    refused("create", os.open, new, os.O_CREAT | os.O_WRONLY, 0o600)
    at = os.open(place, os.O_PATH)
    refused("mkdir", os.mkdir, b"new", dir_fd=at)
    refused("unlink", os.unlink, b"file", dir_fd=at)
    refused("rmdir", os.rmdir, b"directory", dir_fd=at)
    refused("symlink", os.symlink, b"x", b"new", dir_fd=at)
    refused("socket", os.mknod, b"new", 0o140600, dir_fd=at)
    here = os.open(inside, os.O_PATH)
    refused("link in", linked, at, b"file", here, b"new")
    refused("link out", linked, here, b"mine", at, b"new")
    os.symlink(old, b"lnk", dir_fd=here)
    refused("link in by a link", linked, here, b"lnk", here, b"new", 0x400)
    os.unlink(b"lnk", dir_fd=here)
    refused("without a name", os.open, place, os.O_TMPFILE | os.O_RDWR, 0o600)
    unnamed = os.open(inside, os.O_TMPFILE | os.O_RDWR, 0o600)
    own = b"/proc/self/fd/%d" % unnamed
    refused("a name out there", linked, at, own, at, b"new", 0x400)
    os.close(unnamed)
    refused("rename in", renamed, at, b"file", here, b"new")
    refused("rename out", renamed, here, b"mine", at, b"new")
    refused("rename there", renamed, at, b"file", at, b"new")
print("done")
"""

# Each kills the process.
KILLING = [
    "os.chmod(here + '/mine', 0o777)",
    "os.mkfifo(here + '/fifo')",
    "os.mknod(here + '/node')",
    "os.mknod(here + '/node', 0o020600, 0x103)",
    "socket.socket(socket.AF_UNIX).bind(here + '/name')",
    "os.utime(here + '/mine')",
    "os.setxattr(here + '/mine', 'user.x', b'x')",
    "os.removexattr(here + '/mine', 'user.x')",
    "fcntl.lockf(os.open(here + '/mine', os.O_RDWR), 2)",
]


@pytest.mark.default_mode
def test_a_tree_to_change_is_the_only_one(tmp_path: pathlib.Path) -> None:
    places = [tmp_path / name for name in ("inside", "outside", "readable")]
    for place in places:
        (place / "directory").mkdir(parents=True)
        (place / "file").write_text("x")
        (place / "mine").write_text("x")
    words = [sys.executable, "-c", CHANGES, *map(os.fspath, places)]
    run = subprocess.run(words, env=IN_PYTHON, capture_output=True, timeout=HANG_S)
    assert run.stdout == b"done\n", run
    for place in places:
        assert sorted(os.listdir(place)) == ["directory", "file", "mine"]
        assert (place / "file").read_text() == "x"
    here = os.fspath(places[0])
    for attempt in KILLING:
        code = (
            f"import fcntl, os, socket; from kvmlet import _native; here = {here!r}\n"
            "_native.harden(_native.Policy(os.fsencode(here), [], None, [os.fsencode(here)]))\n"
            f"{attempt}"
        )
        run = subprocess.run([sys.executable, "-c", code], env=IN_PYTHON, capture_output=True)
        assert run.returncode == -signal.SIGSYS, (attempt, run)


@pytest.mark.default_mode
def test_each_rule_is_used(guests: pathlib.Path, tmp_path: pathlib.Path) -> None:
    writable = [os.fsencode(tmp_path)]
    rules = _native.calls_after_harden(_native.Policy(os.fsencode(HERE), [], None, writable))
    many = tmp_path / "many"
    many.mkdir()
    (many / "0").touch()
    # A listing that the heap grows its largest blocks for.
    for number in range(9000):
        (many / f"a-name-of-some-length-{number}").hardlink_to(many / "0")
    changed = tmp_path / "changed"
    changed.mkdir()
    (tmp_path / "more").mkdir()
    log = tmp_path / "log"

    def run(*argv: str | os.PathLike[str], calls: str = "exit", **options: object) -> set[HostCall]:
        words = [os.fspath(KVMLET), "run", "--calls", calls, *map(os.fspath, argv)]
        return calls_of(log, words, **options)  # type: ignore[arg-type]

    captured = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    master, terminal = pty.openpty()
    ours, theirs = socket.socketpair()
    ours.sendall(b"x\n")
    with (
        (tmp_path / "out").open("wb") as out,
        pathlib.Path("/etc/passwd").open("rb") as passwd,
        pathlib.Path(os.devnull).open("wb") as nowhere,
    ):
        seen = set.union(
            run(GUESTS / "build" / "hello-static", **captured),
            run(GUESTS / "build" / "breakpoints", "100", "20", "2000", **captured),
            run("/usr/bin/python3", "-c", FILES, cwd=many, stdin=passwd, stdout=out),
            run("--trace", "--", "/bin/sh", "-c", "read a; echo $a", input=b"x\n", **captured),
            run("--stats", "--", "/usr/bin/python3", "-c", POLLED, calls="poll", **captured),
            run("--timeout", "200ms", "--", "/bin/sleep", "9", status=124, **captured),
            run("--", "/bin/stat", "/usr", **captured),
            run("-m", "16m", "--", "/bin/sh", "-c", PAST_MEMORY, **captured),
            run("--write", ".", "--", GUESTS / "build" / "writes", cwd=changed, **captured),
            run("--write", ".", "--", *HOST_FILES, cwd=(tmp_path / "more"), **captured),
            run("--write", ".", "--", *OWN_NAME, cwd=(tmp_path / "more"), **captured),
            # A traceback, with lines of our own source.
            run("nosuch", status=127, cwd=ROOT, env={**ENV, "KVMLET_DEBUG": "1"}, **captured),
            run("--", "/bin/sh", "-c", "read a; echo $a", stdin=theirs, stdout=theirs),
            run("--", "/usr/bin/python3", "-c", TERMINAL, stdin=terminal, stdout=nowhere),
            calls_of(log, [sys.executable, "-c", f"{HARDEN}; os.abort()"], status=-signal.SIGABRT),
            calls_of_a_stopped_run(log),
            calls_of_a_console(log, terminal),
        )
    os.close(terminal)
    os.close(master)
    ours.close()
    theirs.close()
    unused = {
        (name, conditions[0][2] if conditions else None): why
        for name, conditions, _, why in rules
        if not any(call.fits(name, conditions) for call in seen)
    }
    assert set(unused) <= set(ELSEWHERE), f"rules that nothing uses: {unused}"


NETWORK = """
import socket, struct, sys
host, port, udp = 'host.kvmlet.internal', int(sys.argv[1]), int(sys.argv[2])
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.connect((host, port))
s.sendall(b'x'); s.shutdown(socket.SHUT_WR); s.recv(1); s.close()
s = socket.create_connection((host, port))
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); s.close()
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'x', (host, udp)); s.recv(1)
try: socket.getaddrinfo('no-such-name.invalid', 80)
except OSError: pass
# This machine's own, as far as it is one of the internet.
try: socket.create_connection(('198.41.0.4', 9), 0.2)
except OSError: pass
with socket.create_server(('', 8000)) as server:
    print('ready', flush=True)
    server.accept()
"""


@pytest.mark.default_mode
def test_each_rule_of_the_network_is_used(tmp_path: pathlib.Path) -> None:
    plain = _native.calls_after_harden(_native.Policy(os.fsencode(HERE), []))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.create_server(("127.0.0.1", 0)) as free,
    ):
        datagrams.bind(("127.0.0.1", 0))
        port, udp, published = (it.getsockname()[1] for it in (server, datagrams, free))
        free.close()
        net = [f"host.kvmlet.internal:{port}", f"host.kvmlet.internal:{udp}", "public"]
        net.append("no-such-name.invalid")
        policy = _native.Policy(os.fsencode(HERE), [], net=net, publish=[f"{published}:8000"])
        rules = [rule for rule in _native.calls_after_harden(policy) if rule not in plain]
        del policy
        log = tmp_path / "log"
        options = [word for rule in net for word in ("--net", rule)]
        argv = [os.fspath(KVMLET), "run", *options, "-p", f"{published}:8000", "--"]
        argv += ["/usr/bin/python3", "-c", NETWORK, str(port), str(udp)]
        traced = subprocess.Popen(strace_argv(log, argv), env=ENV, stdout=subprocess.PIPE)
        with server.accept()[0] as first:
            first.recv(1)
        with server.accept()[0]:
            data, peer = datagrams.recvfrom(9)
            datagrams.sendto(data, peer)
            assert traced.stdout is not None
            assert traced.stdout.readline() == b"ready\n"
        with socket.create_connection(("127.0.0.1", published)):
            assert traced.wait(HANG_S) == 0
    seen = set(calls_after_wall(log))
    unused = {
        (name, *(condition[2] for condition in conditions)): why
        for name, conditions, _, why in rules
        if not any(call.fits(name, conditions) for call in seen)
    }
    assert rules
    assert not unused, f"rules that nothing uses: {unused}"


@pytest.mark.default_mode
def test_each_rule_of_sockets_of_the_host_is_used(tmp_path: pathlib.Path) -> None:
    """The confined process receives connections, and makes none."""
    path = tmp_path / "socket"
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'x'); s.recv(1)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(b'x'); s.shutdown(socket.SHUT_WR); s.recv(1)\n"
    )
    log = tmp_path / "log"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(path))
        server.listen()
        server.settimeout(HANG_S)
        plain = _native.calls_after_harden(_native.Policy(os.fsencode(HERE), []))
        policy = _native.Policy(os.fsencode(HERE), [], sockets=[os.fsencode(path)])
        rules = [rule for rule in _native.calls_after_harden(policy) if rule not in plain]
        argv = [os.fspath(KVMLET), "run", "--unix", os.fspath(path), "--"]
        argv += ["/usr/bin/python3", "-c", code, os.fspath(path)]
        traced = subprocess.Popen(strace_argv(log, argv), env=ENV)
        for _ in range(2):
            with server.accept()[0] as connection:
                connection.recv(1)
                connection.send(b"y")
        assert traced.wait(HANG_S) == 0
    seen = set(calls_after_wall(log))
    made = {call.name for call in seen}
    assert "recvmsg" in made
    assert not made & {"connect", "socket", "sendmsg"}
    of_sockets = [rule for rule in rules if rule[0] == "recvmsg"]
    assert len(of_sockets) == 1
    assert all(any(call.fits(rule[0], rule[1]) for call in seen) for rule in of_sockets)
    assert not {rule[0] for rule in rules} & {"connect", "socket", "accept4"}


@pytest.mark.default_mode
def test_a_call_that_is_not_listed_shows_itself(tmp_path: pathlib.Path) -> None:
    code = f"{HARDEN}; os.umask(0)"
    log = tmp_path / "log"
    run = subprocess.run(strace_argv(log, [sys.executable, "-c", code]), env=IN_PYTHON)
    assert run.returncode == -signal.SIGSYS
    assert calls_after_wall(log)[-1] == HostCall("umask", (0,))
    # What a shell makes of it.
    words = ["/bin/sh", "-c", '"$@"; echo $?', "sh", sys.executable, "-c", code]
    shown = subprocess.run(words, env=IN_PYTHON, capture_output=True)
    assert shown.stdout == b"159\n"


# Answers two calls with an errno each, for this process and what it executes: number and errno.
LACKING = """
import ctypes, os, struct, sys
lacking = [tuple(map(int, word.split(":"))) for word in sys.argv[1].split(",")]
program = [(0x20, 0, 0, 0)]
for number, errno in lacking:
    program += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | errno)]
program.append((0x06, 0, 0, 0x7FFF0000))
code = b"".join(struct.pack("=HBBI", *step) for step in program)
buffer = ctypes.create_string_buffer(code, len(code))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0
header = struct.pack("@HxxxxxxQ", len(program), ctypes.addressof(buffer))
filter = ctypes.create_string_buffer(header)
assert libc.prctl(22, 2, filter) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""
NO_LANDLOCK = ("444:38", "this kernel has no Landlock")
DISABLED_LANDLOCK = ("444:95", "Landlock is not enabled in this kernel")
NO_SECCOMP = ("317:22", "seccomp: ")


@pytest.mark.default_mode
@pytest.mark.parametrize(
    "lacks",
    [[NO_LANDLOCK], [DISABLED_LANDLOCK], [NO_SECCOMP], [NO_LANDLOCK, NO_SECCOMP]],
    ids=["no Landlock", "Landlock off", "no seccomp", "neither"],
)
def test_a_kernel_that_lacks_a_part(lacks: list[tuple[str, str]]) -> None:
    words = ",".join(word for word, _ in lacks)
    argv = kvmlet_argv(["/bin/sh", "-c", "echo runs; exit 7"])
    run = subprocess.run(
        [sys.executable, "-c", LACKING, words, *argv], env=ENV, capture_output=True, timeout=HANG_S
    )
    assert (run.stdout, run.returncode) == (b"runs\n", 7), run
    (line,) = run.stderr.decode().splitlines()
    assert line.startswith("kvmlet: running with a part of the second wall only: ")
    assert all(reason in line for _, reason in lacks), line
