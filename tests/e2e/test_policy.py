"""Files that a guest may see and change, and what it is told when it may not."""

from __future__ import annotations

import os
import pathlib
import socket
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, Ended, command, in_vm, kvmlet_argv

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.usefixtures("vm")


@pytest.fixture
def room(tmp_path: pathlib.Path, guests: pathlib.Path) -> pathlib.Path:
    """A current directory with the probe program in it."""
    directory = tmp_path / "room"
    directory.mkdir()
    (directory / "policy").write_bytes((guests / "policy").read_bytes())
    (directory / "policy").chmod(0o755)
    (directory / "file").write_bytes(b"contents\n")
    (directory / "inner").mkdir()
    (directory / "inner" / "file").write_bytes(b"inner\n")
    return directory


def attempts(room: pathlib.Path, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """The end of each (action, object) in a guest that runs in `room`."""
    run = in_vm(["./policy", *(word for pair in pairs for word in pair)], cwd=room)
    assert run.status == 0, run
    lines = run.stdout.decode().splitlines()
    assert len(lines) == len(pairs), run
    return {line.rpartition(": ")[0]: line.rpartition(": ")[2] for line in lines}


def check(room: pathlib.Path, table: dict[str, str]) -> None:
    """Each "action object" must end as the table says; several answers are split by "|"."""
    pairs = [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in table]
    found = attempts(room, pairs)
    wrong = {k: f"{found[k]}, not {v}" for k, v in table.items() if found[k] not in v.split("|")}
    assert not wrong


def test_what_may_be_read(room: pathlib.Path) -> None:
    table = {
        "read file": "data",
        "read inner/file": "data",
        f"read {room}/file": "data",
        "read ../room/file": "data",
        "list .": "ok",
        "list /usr": "ok",
        "list /usr/bin": "ok",
        "read /usr/bin/true": "data",
        "read /bin/true": "data",
        "read /etc/passwd": "data",
        "read /etc/group": "data",
        "read /etc/nsswitch.conf": "data",
        "read /etc/ld.so.cache": "data",
        "stat /": "ok",
        "stat /tmp": "ok",
        "stat /usr/lib": "ok",
    }
    check(room, {line: want for line, want in table.items() if _is_there(line)})


def _is_there(line: str) -> bool:
    path = line.split(" ", 1)[1]
    return not path.startswith("/etc/") or pathlib.Path(path).exists()


def test_what_may_not_be_read(room: pathlib.Path) -> None:
    refused = "EACCES|ENOENT|EPERM"
    paths = [
        "/etc/shadow",
        "/etc/gshadow",
        "/etc/hostname",
        "/etc/ssh/sshd_config",
        "/root/.bashrc",
        "/root",
        "/home",
        "/var/log",
        "/boot",
        "/proc/1/root/etc/shadow",
        "/proc/self/root/etc/shadow",
        "/proc/kcore",
        "/sys/kernel",
        "/dev/kvm",
        "/dev/mem",
        "/var/lib/dpkg",
        "/usr/../etc/shadow",
        "/usr/bin/../../etc/shadow",
        "//etc//shadow",
        "/etc/./shadow",
        "/etc/ssl/../shadow",
    ]
    check(room, {f"read {path}": refused for path in paths})


def test_shadow_is_recorded_as_a_denial(room: pathlib.Path) -> None:
    assert pathlib.Path("/etc/shadow").exists()
    check(room, {"read /etc/shadow": "ENOENT", "write /etc/shadow": "EROFS"})
    run = in_vm(["/bin/cat", "/etc/shadow"], cwd=room)
    assert run.status == 1
    assert b"No such file or directory" in run.guest_stderr
    assert any("denied" in line and "/etc/shadow" in line for line in run.own_lines), run


def test_nothing_of_the_directory_above(room: pathlib.Path) -> None:
    secret = room.parent / "secret"
    secret.write_text("secret\n")
    sibling = room.parent / "sibling"
    sibling.mkdir()
    (sibling / "file").write_text("secret\n")
    refused = "EACCES|ENOENT|EPERM"
    check(
        room,
        {
            "read ../secret": refused,
            f"read {secret}": refused,
            "read ../sibling/file": refused,
            "list ../sibling": refused,
            "openat-up etc/shadow": refused,
            f"openat-up {str(secret).lstrip('/')}": refused,
        },
    )


def test_symlinks_never_lead_out(room: pathlib.Path) -> None:
    secret = room.parent / "secret"
    secret.write_text("secret\n")
    (room / "absolute").symlink_to(secret)
    (room / "relative").symlink_to("../secret")
    (room / "shadow").symlink_to("/etc/shadow")
    (room / "up").symlink_to("../..")
    (room / "root").symlink_to("/")
    (room / "inside").symlink_to("inner/file")
    (room / "round").symlink_to(f"../{room.name}/file")
    (room / "usr").symlink_to("/usr/bin/true")
    refused = "EACCES|ENOENT|EPERM|ELOOP"
    check(
        room,
        {
            "read absolute": refused,
            "read relative": refused,
            "read shadow": refused,
            f"read up/{room.parent.name}/secret": refused,
            "read root/etc/shadow": refused,
            "read root/etc/passwd": "data",
            "read inside": "data",
            "read round": "data",
            "read usr": "data",
            "readlink shadow": "ok",
        },
    )


def test_a_guest_symlink_leads_nowhere_else(room: pathlib.Path) -> None:
    secret = room.parent / "secret"
    secret.write_text("secret\n")
    code = (
        "import os\n"
        "os.symlink('/etc/shadow', '/tmp/a'); os.symlink('/root', '/tmp/b');"
        f"os.symlink({str(secret)!r}, '/tmp/c'); os.symlink('../etc/shadow', '/tmp/d')\n"
        "for path in ('/tmp/a', '/tmp/b/.bashrc', '/tmp/c', '/tmp/d'):\n"
        "    try:\n"
        "        print(open(path).read())\n"
        "    except OSError as error:\n"
        "        print('refused')\n"
    )
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room)
    assert (run.stdout, run.status) == (b"refused\n" * 4, 0)


def test_what_may_not_be_written(room: pathlib.Path) -> None:
    before = sorted(p.name for p in room.iterdir())
    check(
        room,
        {
            "create /usr/new": "EROFS",
            "mkdir /usr/new": "EROFS",
            "unlink /usr/bin/true": "EROFS",
            "write /usr/bin/true": "EROFS",
            "write /etc/passwd": "EROFS|EACCES",
            "create /etc/new": "EROFS|EACCES",
            "create /new": "EROFS|EACCES",
            "mkdir /new": "EROFS|EACCES",
            "create /root/new": "EROFS|EACCES|ENOENT",
            "mknod /tmp/device": "EPERM",
            "chroot /tmp": "EPERM",
            "read file": "data",
        },
    )
    assert sorted(p.name for p in room.iterdir()) == before
    assert (room / "file").read_bytes() == b"contents\n"


def test_a_refused_write_is_named(room: pathlib.Path) -> None:
    run = in_vm(["/bin/sh", "-c", "echo x > /usr/file"], cwd=room)
    assert run.status == 2
    assert any("/usr/file" in line and "EROFS" in line for line in run.own_lines), run


def test_tmp_is_empty_and_belongs_to_the_run(room: pathlib.Path) -> None:
    mark = pathlib.Path("/tmp") / f"kvmlet-mark-{os.getpid()}"
    mark.write_text("host")
    name = f"/tmp/kvmlet-guest-{os.getpid()}"
    code = (
        "import os\n"
        f"print(os.path.exists({str(mark)!r}), os.path.exists({name!r}))\n"
        f"open({name!r}, 'w').write('guest'); print(open({name!r}).read())\n"
    )
    try:
        for _ in range(2):
            run = in_vm(["/usr/bin/python3", "-c", code], cwd=room)
            assert (run.stdout, run.status) == (b"False False\nguest\n", 0)
        assert not pathlib.Path(name).exists()
        assert mark.read_text() == "host"
    finally:
        mark.unlink()


def test_tmp_holds_nothing_when_the_directory_is_elsewhere() -> None:
    run = in_vm(["/bin/ls", "-A", "/tmp"], cwd="/usr")
    assert (run.stdout, run.status) == (b"", 0)


def test_the_current_directory_under_tmp(room: pathlib.Path) -> None:
    assert str(room).startswith("/tmp/")
    code = (
        "import os\n"
        "print(os.getcwd(), open('file').read().strip())\n"
        "print(os.path.realpath('.') == os.getcwd())\n"
        "open('/tmp/beside', 'w').close(); print(os.path.exists('/tmp/beside'))\n"
        "open('new', 'w').close(); print(os.path.exists('new'))\n"
    )
    run = in_vm(["/usr/bin/python3", "-c", code], cwd=room)
    expected = f"{room} contents\nTrue\nTrue\nTrue\n"
    assert (run.stdout.decode(), run.status) == (expected, 0), run


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "2001:db8::1", "169.254.169.254"])
def test_no_network(room: pathlib.Path, address: str) -> None:
    check(room, {f"connect {address}": "ENETUNREACH"})


def test_no_connection_reaches_the_host(room: pathlib.Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        code = (
            "import socket\n"
            "try:\n"
            f"    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2)\n"
            "    print('connected')\n"
            "except OSError:\n"
            "    print('refused')\n"
        )
        run = in_vm(["/usr/bin/python3", "-c", code], cwd=room)
        assert (run.stdout, run.status) == (b"refused\n", 0), run
        with pytest.raises(TimeoutError):
            server.accept()


def _environment(caller: dict[str, str], cwd: pathlib.Path) -> tuple[Ended, dict[str, str]]:
    run = command(kvmlet_argv(["/usr/bin/env", "-0"]), cwd=cwd, env=caller)
    pairs = [entry.split("=", 1) for entry in run.stdout.decode().split("\0") if entry]
    return run, {key: value for key, value in pairs}  # noqa: C416


def test_the_environment_is_a_few_names(room: pathlib.Path) -> None:
    caller = {
        **os.environ,
        "SECRET_TOKEN": "hunter2",
        "LD_PRELOAD": "/nowhere.so",
        "PATH": f"/nowhere:{room}:/etc:.:{ENV['PATH']}",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "TERM": "xterm",
        "LC_ALL": "C",
        "TZ": "UTC",
    }
    for name in ("LD_PRELOAD", "COLORTERM", "LANGUAGE", "NO_COLOR"):
        caller.pop(name, None)
    run, found = _environment(caller, room)
    assert run.status == 0, run
    path = f"{room}:/etc:{ENV['PATH']}"
    assert found == {**ENV, "TERM": "xterm", "LC_ALL": "C", "TZ": "UTC", "PATH": path}


def test_unset_names_stay_unset(room: pathlib.Path) -> None:
    _, found = _environment({"PATH": "/usr/bin"}, room)
    assert found == {"PATH": "/usr/bin", "HOME": "/tmp", "TMPDIR": "/tmp"}
    _, found = _environment({}, room)
    assert found == {key: ENV[key] for key in ("PATH", "HOME", "TMPDIR")}


def test_the_program_is_looked_up_in_the_callers_path(
    room: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    first = tmp_path / "bin"
    first.mkdir()
    for name in ("true", "other"):
        (first / name).write_text("#!/bin/sh\nother; exit 55\n" if name == "true" else "")
        (first / name).chmod(0o755)
    caller = {**ENV, "PATH": f"{first}:{ENV['PATH']}"}
    run = command(kvmlet_argv(["true"]), cwd=room, env=caller)
    assert run.status == 55
    # It alone is visible there.
    assert b"other: not found" in run.guest_stderr
    given = command(kvmlet_argv(["true"], ["-e", f"PATH={ENV['PATH']}"]), cwd=room, env=caller)
    assert given.status == 0


def test_capabilities_inside_and_no_inherited_descriptors(room: pathlib.Path) -> None:
    # Pipes and files are passed, and this is neither.
    counter = os.eventfd(0)
    try:
        code = (
            "import os\n"
            "for fd in range(3, 64):\n"
            "    try:\n"
            "        os.fstat(fd); print('open', fd)\n"
            "    except OSError:\n"
            "        pass\n"
            "for line in open('/proc/self/status'):\n"
            "    if line.startswith('CapEff'): print(line.split()[1])\n"
        )
        run = subprocess.run(
            kvmlet_argv(["/usr/bin/python3", "-c", code]),
            cwd=room,
            env=ENV,
            pass_fds=[counter],
            capture_output=True,
        )
    finally:
        os.close(counter)
    # Root has those of root in a container that have an effect.
    inside = b"00000000000005fb\n" if os.geteuid() == 0 else b"0000000000000000\n"
    assert (run.stdout, run.returncode) == (inside, 0), run


def test_special_files_in_the_directory_do_not_block(room: pathlib.Path) -> None:
    os.mkfifo(room / "fifo")
    assert stat.S_ISFIFO((room / "fifo").stat().st_mode)
    run = in_vm(["/bin/cat", "fifo"], cwd=room, options=["--timeout", "2s"])
    # A FIFO without a writer blocks its reader natively; it must not block the deadline.
    assert run.status in (1, 124), run


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be where it may not go")
def test_root_in_a_directory_below_a_private_one(room: pathlib.Path) -> None:
    """As a process without capabilities, which may stay where it is but not come back."""
    os.chown(room.parent, 12345, 12345)
    room.parent.chmod(0o700)
    check(room, {"read file": "data", "read inner/file": "data", f"read {room}/file": "data"})
    (room / "inner").chmod(0o700)
    os.chown(room / "inner", 12345, 12345)
    check(room, {"read inner/file": "EACCES"})


def test_the_process_itself_may_do_no_more(room: pathlib.Path) -> None:
    """The second wall: root's process has no capability left when its guest runs."""
    with subprocess.Popen(
        kvmlet_argv(["/bin/cat"]),
        cwd=room,
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as run:
        assert run.stdin
        assert run.stdout
        run.stdin.write(b"ready\n")
        run.stdin.flush()
        assert run.stdout.readline() == b"ready\n"
        tasks = list(pathlib.Path(f"/proc/{run.pid}/task").iterdir())
        fields = [dict(line.split(":\t", 1) for line in lines_of(task)) for task in tasks]
        run.stdin.close()
    assert run.returncode == 0
    assert fields
    for found in fields:
        assert (int(found["CapEff"], 16), int(found["CapPrm"], 16)) == (0, 0), found["Name"]
        assert found["NoNewPrivs"] == "1", found["Name"]


def lines_of(task: pathlib.Path) -> list[str]:
    """The kernel's account of a thread, a field in each line."""
    return [line for line in (task / "status").read_text().splitlines() if ":\t" in line]


def test_settings_beneath_etc_are_shown_where_they_are_named(room: pathlib.Path) -> None:
    listing = in_vm(["/bin/ls", "/etc/apt"], cwd=room)
    assert listing.status == 2, listing
    shown = in_vm(["/bin/ls", "/etc/apt"], cwd=room, options=["--read", "/etc/apt"])
    assert shown.stdout.decode().split() == sorted(os.listdir("/etc/apt"))
    for name in ("/etc", "/etc/shadow"):
        refused = in_vm(["/bin/ls", "/"], cwd=room, options=["--read", name])
        assert (refused.status, refused.stdout) == (125, b""), refused
        assert refused.own_lines == [
            f'kvmlet: {name}: "{name}" cannot be made visible to the program'
        ]
    # No way around: a named directory shows no other.
    around = in_vm(["/bin/cat", "/etc/apt/../shadow"], cwd=room, options=["--read", "/etc/apt"])
    assert around.status == 1, around
