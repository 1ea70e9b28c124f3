"""Programs are found and start wherever they lie; what is not needed for that stays hidden."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import venv

import pytest

import kvmlet
from e2e.oracle import ENV, HW, NO_RUNTIMES, command, in_vm, kvmlet_argv

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A home directory with a project's environment and a secret in it."""
    home = tmp_path_factory.mktemp("home")
    (home / "secret").write_text("hidden\n")
    (home / "project").mkdir()
    (home / "project" / ".env").write_text("hidden\n")
    venv.create(home / "project" / ".venv", symlinks=True)
    (home / "elsewhere").mkdir()
    (home / "link").symlink_to("project")
    return home


PREFIXES = "import sys; print(sys.prefix, sys.base_prefix, sys.executable)"


@pytest.mark.parametrize("where", ["{home}/project/.venv", "{home}/link/.venv", "../link/.venv"])
def test_a_virtual_environment_from_anywhere(home: pathlib.Path, where: str) -> None:
    python = f"{where.format(home=home)}/bin/python"
    cwd = home / "elsewhere"
    native = subprocess.run([python, "-c", PREFIXES], cwd=cwd, capture_output=True, check=True)
    run = in_vm([python, "-c", PREFIXES], cwd=cwd)
    assert (run.status, run.stdout, run.stderr) == (0, native.stdout, b"")


def test_an_activated_environment(home: pathlib.Path) -> None:
    prefix = home / "project" / ".venv"
    env = {**ENV, "PATH": f"{prefix}/bin:{ENV['PATH']}", "HOME": str(home)}
    cwd = home / "elsewhere"
    direct = command(
        kvmlet_argv(["python", "-c", "import sys; print(sys.prefix)"]), cwd=cwd, env=env
    )
    assert (direct.status, direct.stdout.decode().strip()) == (0, str(prefix))
    by_shell = command(kvmlet_argv(["sh", "-c", "command -v python; echo $HOME"]), cwd=cwd, env=env)
    assert by_shell.stdout.decode().split() == [f"{prefix}/bin/python", "/tmp"]
    # Neither the project around it nor the home directory.
    secrets = [str(home / "project" / ".env"), str(home / "secret")]
    hidden = command(kvmlet_argv(["cat", *secrets]), cwd=cwd, env=env)
    assert hidden.status == 1
    assert hidden.stdout == b""
    assert hidden.guest_stderr.count(b"No such file") == len(secrets)


def test_tools_of_a_project_are_found_by_what_starts_them(home: pathlib.Path) -> None:
    project = home / "project"
    (project / "Makefile").write_text(f"all:\n\t@.venv/bin/python -c '{PREFIXES}'\n")
    native = subprocess.run(["make"], cwd=project, capture_output=True, check=True)
    run = in_vm(["make"], cwd=project)
    assert (run.status, run.stdout, run.stderr) == (0, native.stdout, b"")


def test_only_what_is_there_is_told_as_refused(home: pathlib.Path) -> None:
    """Programs look for settings, sockets and modules that are nowhere."""
    cwd = home / "elsewhere"
    # The host's /tmp is another one.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as hidden:
        there = pathlib.Path(hidden, "there")
        there.touch()
        script = f"id -un >/dev/null; cat {hidden}/nowhere {there}; exit 3"
        run = in_vm(["bash", "-c", script], cwd=cwd)
        told = f"kvmlet: denied: open {there} (ENOENT); it is not visible; "
        assert (run.status, run.own_lines) == (3, [f"{told}allow it with --read {there}"])
        bound = f"{hidden}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(bound)
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({bound!r})"
            run = in_vm(["/usr/bin/python3", "-c", connect], cwd=cwd)
        told = f"kvmlet: denied: connect {bound} (ENOENT); allow it with --unix {bound}"
        assert (run.status, run.own_lines) == (1, [told])


def test_what_the_hosts_own_tmp_has_is_told(home: pathlib.Path) -> None:
    """In the sandbox's own a name is missing only if the program has not made it."""
    cwd = home / "elsewhere"
    with tempfile.TemporaryDirectory(dir="/tmp") as hidden:
        for name in ("data.csv", "made"):
            pathlib.Path(hidden, name).write_text("a,b\n")
        script = (
            f"test -e {hidden}/made; mkdir -p {hidden}; echo > {hidden}/made; cat {hidden}/none"
        )
        run = in_vm(["sh", "-c", f"{script} {hidden}/data.csv"], cwd=cwd)
        told = f"kvmlet: denied: open {hidden}/data.csv (ENOENT); it is not visible; "
        option = f"--read {hidden}/data.csv"
        assert (run.status, run.own_lines) == (1, [f"{told}allow it with {option}"])
        run = in_vm(["cat", f"{hidden}/data.csv"], cwd=cwd, options=option.split())
        assert (run.status, run.stdout) == (0, b"a,b\n"), run
        bound = f"{hidden}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(bound)
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({bound!r})"
            run = in_vm(["/usr/bin/python3", "-c", connect], cwd=cwd)
        assert f"allow it with --unix {bound}" in run.own_lines[0]


def test_a_script_wherever_it_lies(home: pathlib.Path) -> None:
    folder = home / "scripts"
    folder.mkdir()
    (folder / "sibling").write_text("hidden\n")
    script = folder / "script.py"
    script.write_text(f"import os; print(os.path.exists({str(folder / 'sibling')!r}))\n")
    cwd = home / "elsewhere"
    run = in_vm([sys.executable, script], cwd=cwd)
    assert (run.status, run.stdout, run.stderr) == (0, b"False\n", b"")
    script.write_text(f"#!{sys.executable}\nprint('own')\n")
    script.chmod(0o755)
    run = in_vm([script], cwd=cwd)
    assert (run.status, run.stdout, run.stderr) == (0, b"own\n", b"")


def test_read_and_environment_options(home: pathlib.Path) -> None:
    cwd = home / "elsewhere"
    own = [
        "--read",
        str(home / "secret"),
        "-e",
        "GIVEN=1",
        "-e",
        "CALLERS",
        "-w",
        str(home / "link"),
    ]
    env = {**ENV, "CALLERS": "2", "OTHER": "3"}
    script = f"pwd; echo $GIVEN$CALLERS$OTHER; cat {home}/secret .env; ls {home}"
    run = command(kvmlet_argv(["sh", "-c", script], own), cwd=cwd, env=env)
    assert run.stdout.decode().split() == [
        str(home / "project"),
        "12",
        "hidden",
        "hidden",
        "project",
        "secret",
    ]
    assert (run.status, run.stderr) == (0, b"")


def test_a_link_that_is_shown_opens_no_more(home: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A link among what is readable leads where the view allows it and nowhere else."""
    tool = home / "project" / "tool"
    tool.write_text("#!/bin/sh\ncat $(dirname $0)/.env || ls $(dirname $0)\n")
    tool.chmod(0o755)
    run = in_vm([home / "link" / "tool"], cwd=tmp_path)
    assert run.status == 0
    assert run.stdout == b"tool\n"
    assert b"hidden" not in run.stdout
    assert os.readlink(home / "link") == "project"


def test_a_sandbox_does_not_get_a_home_directory(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    with pytest.warns(UserWarning, match="is your home directory"):
        sandbox = kvmlet.Sandbox(["cat", str(home / "secret")], cwd=home)
    with sandbox, pytest.raises(kvmlet.SandboxEnded) as caught:
        sandbox.until_ready(60)
    assert caught.value.result is not None
    assert (caught.value.result.exit_code, caught.value.result.stdout) == (1, b"")


def test_an_overlay_within_what_may_be_read(home: pathlib.Path) -> None:
    """Relative names from a directory above it lead into the overlay, not to the host's files."""
    project = home / "readable" / "project"
    project.mkdir(parents=True)
    (project / "kept").write_text("old\n")
    code = (
        "import os\n"
        f"above = os.open({str(project.parent)!r}, os.O_RDONLY)\n"
        "open('kept', 'w').write('new')\n"
        "open('made', 'w').close()\n"
        "there = os.open('project', os.O_RDONLY, dir_fd=above)\n"
        "print(sorted(os.listdir(there)), os.read(os.open('kept', 0, dir_fd=there), 9))\n"
        "os.mkdir('more', dir_fd=there)\n"
        "print(sorted(os.listdir('.')))\n"
    )
    own = ["--read", str(project.parent)]
    run = command(kvmlet_argv(["/usr/bin/python3", "-c", code], own), cwd=project, env=ENV)
    assert run.stdout.decode().splitlines() == [
        "['kept', 'made'] b'new'",
        "['kept', 'made', 'more']",
    ], run
    assert sorted(os.listdir(project)) == ["kept"]


@pytest.mark.skipif(os.geteuid() != 0, reason="/run is root's")
def test_directories_for_what_runs(tmp_path: pathlib.Path) -> None:
    """/run is in memory, as Debian has it; the host's is not shown."""
    script = """
stat -c '%a %U %n' /run /run/lock
readlink /var/run /var/lock
echo 1 > /var/run/app.pid && cat /run/app.pid
touch /var/lock/app && ls /run /run/lock
ls /var
grep -E ' /run ' /proc/mounts | cut -d ' ' -f 2,3
touch /var/x || mkdir /run/deep
cd /var/run && pwd -P
"""
    run = in_vm(["sh", "-c", script], cwd=tmp_path)
    listed = ["/run:", "app.pid", "lock", "", "/run/lock:", "app"]
    assert run.stdout.decode().splitlines() == [
        "755 root /run",
        "1777 root /run/lock",
        "/run",
        "/run/lock",
        "1",
        *listed,
        "lock",
        "run",
        "/run tmpfs",
        "/run",
    ]
    assert not pathlib.Path("/run/app.pid").exists()


def test_what_is_named_takes_the_place_of_run(tmp_path: pathlib.Path) -> None:
    (tmp_path / "here").write_text("host\n")
    script = ["sh", "-c", "ls /run; cat /var/run/here"]
    run = in_vm(script, cwd=tmp_path, options=["-v", f"{tmp_path}:/run:ro"])
    assert (run.status, run.stdout.decode()) == (0, "here\nhost\n"), run.stderr
    run = in_vm(["sh", "-c", "ls -A /run"], cwd=tmp_path, options=["--tmpfs", "/run"])
    assert (run.status, run.stdout.decode()) == (0, "lock\n"), run.stderr
    # In it, and in other directories in memory.
    named = ["-v", f"{tmp_path}:/run/app/data:ro", "--tmpfs", "/mnt", "-v", f"{tmp_path}:/mnt/a:rw"]
    script = ["sh", "-c", "cd /run && ls; cat app/data/here; cd /mnt && ls && echo more > a/more"]
    run = in_vm(script, cwd=tmp_path, options=[*named, "--tmpfs", "/run/lock"])
    assert (run.status, run.stdout.decode()) == (0, "app\nlock\nhost\na\n"), run.stderr
    assert (tmp_path / "more").read_text() == "more\n"
    # A program that asks for it is told of the option.
    run = in_vm(["sh", "-c", "echo x > /var/tmp/x"], cwd=tmp_path)
    assert run.own_lines == [
        "kvmlet: denied: open /var/tmp/x (EROFS); it is read-only; allow it with --tmpfs /var/tmp"
    ]


# ---- what is told of the machine ----


def said(script: str, tmp_path: pathlib.Path, *options: str) -> str:
    run = in_vm(["bash", "-c", script], cwd=tmp_path, options=options)
    assert (run.status, run.stderr) == (0, b""), run
    return run.stdout.decode()


def test_the_limits_are_told_as_those_of_a_control_group(tmp_path: pathlib.Path) -> None:
    script = """
cd /sys/fs/cgroup && cat memory.max pids.max cpu.max cpuset.cpus.effective cgroup.controllers
cat /proc/self/cgroup; stat -f -c %T . ..; grep cgroup2 /proc/mounts | cut -d ' ' -f 2-3
(( $(< memory.current) > 0 && $(< memory.current) <= $(< memory.peak) )) && echo in use
(( $(< pids.current) >= 1 )) && grep -cx $$ cgroup.procs
grep ^MemTotal /proc/meminfo; (echo 1 > memory.max) 2> /dev/null || echo refused
"""
    told = said(script, tmp_path, "-m", "256m", "--max-procs", "20")
    assert told.splitlines() == [
        *(f"{256 << 20}", "20", "max 100000", "0", "cpuset cpu memory pids"),
        *("0::/", "cgroup2fs", "sysfs", "/sys/fs/cgroup cgroup2", "in use", "1"),
        *("MemTotal:         262144 kB", "refused"),
    ]


def test_there_is_one_processor(tmp_path: pathlib.Path) -> None:
    """Its place is told in the files that the host tells its own in, and tools believe them."""
    script = """
nproc --all; getconf _NPROCESSORS_CONF; getconf _NPROCESSORS_ONLN
python3 -c 'import os; print(os.cpu_count(), len(os.sched_getaffinity(0)))'
cd /sys/devices/system && cat cpu/{online,possible,present} node/online node/node0/cpulist
"""
    assert set(said(script, tmp_path).split()) == {"1", "0"}
    if shutil.which("lscpu"):
        told = said("lscpu -p=CPU,CORE,SOCKET,NODE | tail -n 1", tmp_path)
        assert told == "0,0,0,0\n"
    topology = pathlib.Path("/sys/devices/system/cpu/cpu0/topology")
    files = said(f"cd {topology} && tail -n +1 *", tmp_path)
    here = re.findall(r"==> (\S+) <==\n(.*)\n", files)
    assert len(here) > 10
    if topology.is_dir():
        native = {path.name: path.read_text() for path in topology.iterdir()}
        for name, value in here:
            # Older kernels have fewer.
            if name in native:
                pattern = r"\d+" if name.endswith("_id") else r"[\da-f,-]+"
                assert re.fullmatch(pattern, value)
                assert re.fullmatch(pattern, native[name].strip())


def test_devices_are_those_of_every_system(tmp_path: pathlib.Path) -> None:
    names = "null zero full random urandom tty ptmx"
    script = f"""
cd /dev; stat -c '%n %F %t:%T %a' {names}; readlink fd stdin stdout stderr
head -c 3 zero | od -An -tx1; head -c 9 urandom | wc -c; (echo > full) 2>&1 | grep -o 'No space.*'
echo gone > null; cat null; tty < null
"""
    native = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True)
    inside = in_vm(["bash", "-c", script], cwd=tmp_path)
    assert inside.stdout == native.stdout
    listed = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero"
    assert said("ls -x -w 999 /dev", tmp_path).split() == listed.split()


def test_df_and_mount_tell_of_the_sandbox(tmp_path: pathlib.Path) -> None:
    script = """
df -B1 --output=size,target /tmp | tail -n 1; df --output=fstype . / /proc /sys | tail -n +2
mount | awk '{ print $3, $5 }'; findmnt -n -o FSTYPE /tmp
"""
    told = said(script, tmp_path, "-m", "64m", "--disk", "100m").splitlines()
    size, *_, target = told[0].split()
    assert (int(size), target) == (100 << 20, "/tmp")
    mounted = dict(line.split() for line in told if line.startswith("/"))
    assert mounted["/tmp"] == mounted["/run"] == "tmpfs"
    assert (mounted["/proc"], mounted["/sys"]) == ("proc", "sysfs")
    assert mounted[os.fspath(tmp_path)] == "overlay"
    assert told[-1] == "tmpfs"


def test_a_name_of_etc_that_is_a_link_shows_no_private_folder(tmp_path: pathlib.Path) -> None:
    """Keys, passwords and the machine's identity are absent, by whatever path."""
    closed = "shadow gshadow sudoers machine-id ssl/private ssh/ssh_host_rsa_key crontab cron.d"
    script = f"""
cd /etc; for name in {closed}; do ls $name $PWD/./$name /proc/self/root/etc/$name; done 2>/dev/null
cat /etc/hosts /etc/resolv.conf | grep -c 127.0.0; ls /var/lib/dbus/machine-id 2> /dev/null; true
"""
    assert said(script, tmp_path).splitlines() in (["2"], ["3"])
