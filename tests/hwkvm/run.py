#!/usr/bin/env python3
"""Run a command on hardware KVM semantics, on any x86-64 Debian machine.

QEMU's TCG emulates an AMD processor with SVM and nested paging. A Debian kernel in it loads the
real ``kvm-amd`` module, so ``/dev/kvm`` there behaves as on silicon. The command sees the host's
file system read-only (9p), with its own /dev, /proc and /sys. It has a tmpfs on /tmp, /run and
/dev/shm, and this repository as working directory. Its stdout, stderr and exit status are
passed through.

Exit status: the command's own; 124 on timeout; 2 if the machine could not be set up or failed;
130 or 143 if interrupted.

Nothing is installed but QEMU: the kernel and busybox are unpacked into ``.hw/`` in the repository.
Delete that folder to fetch them anew.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import lzma
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

HERE = Path(__file__).resolve().parent
REPO = HERE.parent.parent
CACHE = REPO / ".hw"
INIT = HERE / "init.sh"

QEMU = "qemu-system-x86_64"
QEMU_PACKAGES = ("qemu-system-x86",)
KERNEL_META_PACKAGE = "linux-image-amd64"
BUSYBOX_PACKAGE = "busybox-static"

# In order of insertion; those built into a kernel are skipped.
MODULES = (
    *("irqbypass", "ccp", "kvm", "kvm-amd"),
    *("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci"),
    *("virtio_console", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p"),
)
# What init.sh calls.
APPLETS = (
    *("sh", "mount", "mkdir", "insmod", "usleep", "chmod", "ln", "ip", "hostname", "stty"),
    *("setsid", "mkfifo", "cat", "kill", "poweroff", "env", "chroot"),
)
# Folders of the host that a tmpfs or a fresh device tree hides in the machine.
HIDDEN = (Path("/tmp"), Path("/run"), Path("/dev"))

EXIT_RIG = 2
EXIT_TIMEOUT = 124
BOOT_TIMEOUT_S = 120.0
DEFAULT_TIMEOUT_S = 900.0
MEMORY_MIB = 3072


class RigError(Exception):
    """The machine could not be set up or failed by itself; the message is one line."""


class Interrupted(Exception):
    """A signal asked this program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# --- fetching -------------------------------------------------------------------------------


def run_tool(argv: Sequence[str], cwd: Path | None = None) -> str:
    """Return the stdout of a host tool; RigError carries the last line it complained with."""
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        raise RigError(f"{argv[0]} not found: a Debian system with apt is needed") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise RigError(f"`{shlex.join(argv)}` failed: {said}")
    return done.stdout


def ensure_qemu() -> None:
    """Install QEMU where root may do so, else name the command that does."""
    if shutil.which(QEMU):
        return
    install = ("apt-get", "install", "-y", "--no-install-recommends", *QEMU_PACKAGES)
    if os.geteuid() != 0:
        raise RigError(f"{QEMU} not found; install it by: sudo {shlex.join(install)}")
    note("installing QEMU")
    run_tool(("apt-get", "update"))
    run_tool(install)
    if not shutil.which(QEMU):
        raise RigError(f"{QEMU} not found after `{shlex.join(install)}`")


def kernel_package() -> str:
    """Return the package that the kernel meta package stands for today."""
    depends = run_tool(("apt-cache", "depends", "--important", KERNEL_META_PACKAGE))
    found = re.search(r"Depends: (linux-image-\d\S*-amd64)$", depends, re.MULTILINE)
    if found is None:
        raise RigError(f"apt knows no {KERNEL_META_PACKAGE}; run `apt-get update` as root")
    return found.group(1)


def unpack_package(package: str, target: Path) -> None:
    """Download one package and unpack it below ``target``, without installing it."""
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="deb-") as folder:
        run_tool(("apt-get", "-o", "APT::Sandbox::User=root", "download", package), Path(folder))
        archives = list(Path(folder).glob("*.deb"))
        if len(archives) != 1:
            raise RigError(f"`apt-get download {package}` brought {len(archives)} files")
        run_tool(("dpkg-deb", "-x", str(archives[0]), str(target)))


def unpack_kernel(image: bytes) -> bytes:
    """Return the ELF kernel inside a bzImage (kernel: arch/x86/boot.rst), or the image itself.

    QEMU enters an ELF kernel by its PVH note. Unpacking an image inside the emulator would take
    longer than the whole remaining boot.
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(b"\xfd7zXZ\0"):
        return image
    # The payload ends with its unpacked size, which is no part of the xz stream.
    return lzma.LZMADecompressor().decompress(payload)


def trim(root: Path) -> None:
    """Drop what no run needs: 400 of 410 MB."""
    wanted = {name.replace("-", "_") for name in MODULES}
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        module = ".ko" in path.suffixes and module_stem(path) in wanted
        if not (module or re.match(r"vmlinuz-|busybox$|modules\.builtin$|copyright$", path.name)):
            path.unlink()


def fetch(root: Path) -> None:
    """Unpack kernel and busybox into ``root``, which appears only when complete."""
    if root.is_dir():
        return
    note("fetching a kernel and busybox into .hw/")
    try:
        package = kernel_package()
    except RigError:
        if os.geteuid() != 0:
            raise
        package = ""
    if not package:  # a fresh machine has no package lists yet
        run_tool(("apt-get", "update"))
        package = kernel_package()
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="root-") as folder:
        fresh = Path(folder) / "root"
        try:
            unpack_package(package, fresh)
        except RigError:
            if os.geteuid() != 0:
                raise
            run_tool(("apt-get", "update"))  # stale lists name a version that is gone
            unpack_package(kernel_package(), fresh)
        unpack_package(BUSYBOX_PACKAGE, fresh)
        trim(fresh)
        images = list(fresh.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise RigError(f"{package} brought {len(images)} kernels")
        (fresh / "kernel").write_bytes(unpack_kernel(images[0].read_bytes()))
        fresh.rename(root)


# --- the initramfs --------------------------------------------------------------------------


def cpio_entry(name: str, mode: int, data: bytes, number: int) -> bytes:
    """Return one member of a "newc" archive (kernel: driver-api/early-userspace/buffer-format)."""
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + b"\0" * (-len(head) % 4) + data + b"\0" * (-len(data) % 4)


def cpio_archive(members: Sequence[tuple[str, int, bytes]]) -> bytes:
    entries = [cpio_entry(n, mode, data, i + 1) for i, (n, mode, data) in enumerate(members)]
    return b"".join((*entries, cpio_entry("TRAILER!!!", 0, b"", 0)))


def module_stem(path: Path) -> str:
    """Return a module's name; file names mix ``-`` and ``_``, which mean the same."""
    return path.name.split(".ko")[0].replace("-", "_")


def collect_modules(root: Path) -> list[tuple[str, bytes]]:
    """Return (name, object bytes) of MODULES in order, without those built into the kernel."""
    files = {module_stem(path): path for path in root.glob("lib/modules/*/kernel/**/*.ko*")}
    builtin = {
        module_stem(Path(line))
        for listing in root.glob("lib/modules/*/modules.builtin")
        for line in listing.read_text().splitlines()
    }
    found = []
    for name in MODULES:
        key = name.replace("-", "_")
        if path := files.get(key):
            data = path.read_bytes()
            found.append((name, lzma.decompress(data) if path.suffix == ".xz" else data))
        elif key not in builtin:
            raise RigError(f"the kernel in .hw/ has no module {name}; delete .hw and try again")
    return found


def build_initramfs(root: Path, target: Path) -> None:
    """Write the initramfs, uncompressed: the emulator would unpack it slowly."""
    folder, executable, plain = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755, stat.S_IFREG | 0o644
    modules = collect_modules(root)
    members = [(name, folder, b"") for name in ("bin", "dev", "modules")]
    members.append(("init", executable, INIT.read_bytes()))
    members.append(("bin/busybox", executable, (root / "bin/busybox").read_bytes()))
    members += [(f"bin/{name}", stat.S_IFLNK | 0o777, b"busybox") for name in APPLETS]
    members += [(f"modules/{name}.ko", plain, data) for name, data in modules]
    order = "".join(f"{name}\n" for name, _ in modules)
    members.append(("modules/order", plain, order.encode()))
    with tempfile.NamedTemporaryFile(dir=CACHE, prefix="new-", delete=False) as fresh:
        fresh.write(cpio_archive(members))
    Path(fresh.name).rename(target)


def sweep() -> None:
    """Remove what killed runs left behind; the caller holds the lock."""
    for pattern in ("deb-*", "root-*", "new-*"):
        for left in CACHE.glob(pattern):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    for run in CACHE.glob("run-*"):
        if not Path("/proc", run.name.split("-")[1]).exists():
            shutil.rmtree(run, ignore_errors=True)


@dataclass(frozen=True)
class Image:
    """The system that QEMU boots."""

    kernel: Path
    initramfs: Path


def prepare() -> Image:
    """Return the kernel and an initramfs that matches this file and init.sh."""
    ensure_qemu()
    CACHE.mkdir(exist_ok=True)
    recipe = hashlib.sha256(INIT.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:16]
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sweep()
        root = CACHE / "root"
        fetch(root)
        initramfs = CACHE / f"initramfs-{recipe}.cpio"
        if not initramfs.exists():
            for old in CACHE.glob("initramfs-*.cpio"):
                old.unlink()
            build_initramfs(root, initramfs)
    return Image(root / "kernel", initramfs)


# --- the machine ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One command and the machine it wants."""

    argv: tuple[str, ...]
    interactive: bool
    timeout_s: float | None
    cpus: int
    nested_paging: bool
    icount: bool
    environment: tuple[str, ...]
    kept: tuple[Path, ...]
    append: str
    verbose: bool


def job_environment(job: Job) -> dict[str, str]:
    """Return the command's whole environment: nothing leaks in from the caller's."""
    env = {
        "PATH": f"{REPO}/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb") if job.interactive else "dumb",
        "USER": "root",
        "KVMLET_HWKVM": "1",  # for tests that choose smaller sizes here
        # The repository cannot be written.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    }
    for assignment in job.environment:
        name, _, value = assignment.partition("=")
        env[name] = value
    return env


def kept_paths(job: Job) -> list[Path]:
    """Return the host paths that must be shown although they lie in a hidden folder."""
    wanted = {REPO, *(path.resolve() for path in job.kept)}
    if (python := REPO / ".venv/bin/python").exists():
        wanted.add(python.resolve().parent.parent)  # the interpreter that .venv rests on
    hidden = [path for path in wanted if any(path.is_relative_to(folder) for folder in HIDDEN)]
    for path in hidden:
        if path in HIDDEN:
            raise RigError(f"{path} is private to the machine and cannot be shown in it")
        if not path.is_dir():
            raise RigError(f"{path} is not a folder")
    return sorted(hidden)


def write_job(job: Job, folder: Path) -> None:
    """Write what init.sh reads: the paths to hold, and the full command line."""
    (folder / "keep").write_text("".join(f"{path}\n" for path in kept_paths(job)))
    env = [f"{name}={value}" for name, value in job_environment(job).items()]
    enter = 'cd -- "$0" && exec "$@"'
    argv = ("env", "-i", *env, "chroot", "/host", "/bin/sh", "-c", enter, str(REPO), *job.argv)
    size = shutil.get_terminal_size()
    lines = [
        f"interactive={'yes' if job.interactive else 'no'}",
        f"rows={size.lines} columns={size.columns}",
        f"set -- {shlex.join(argv)}",
    ]
    (folder / "job.sh").write_text("".join(f"{line}\n" for line in lines))


def option_path(path: Path) -> str:
    """Return a path as a QEMU option value, where a comma is doubled."""
    return str(path).replace(",", ",,")


def qemu_argv(job: Job, image: Image, folder: Path, ports: Sequence[int]) -> list[str]:
    """Return QEMU's command line; ``ports`` are connected sockets for stdout, stderr, status."""
    cpu = "EPYC-Rome,+svm" + (",+npt" if job.nested_paging else ",-npt")
    # One thread runs all processors in turn. With a thread each, a guest of the machine's /dev/kvm
    # ended by a triple fault about once in two runs of the tests. That was never seen with one
    # processor, with one thread, or on another KVM; nobody knows why.
    accel = "tcg" if job.icount else "tcg,thread=single"
    # mitigations=off: they cost much under emulation and change nothing that the guest of a
    # guest can see. tsc=reliable: emulated TSCs all follow the host's, but a slow machine's
    # watchdog doubts them, and then no vDSO reads them. panic=-1 with -no-reboot ends the machine.
    append = f"console=ttyS0 quiet panic=-1 mitigations=off nowatchdog tsc=reliable {job.append}"
    argv = [QEMU, "-accel", accel, "-cpu", cpu, "-smp", str(job.cpus), "-m", str(MEMORY_MIB)]
    argv += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    argv += ["-kernel", str(image.kernel), "-initrd", str(image.initramfs), "-append", append]
    if job.icount:
        argv += ["-icount", "shift=0"]
    if job.interactive:
        argv += ["-serial", "mon:stdio"]
    else:
        argv += ["-serial", f"file:{folder / 'console.log'}"]
    for tag, path in (("host", Path("/")), ("job", folder)):
        argv += [
            "-virtfs",
            f"local,path={option_path(path)},mount_tag={tag},security_model=none,"
            "readonly=on,multidevs=remap",
        ]
    argv += ["-device", f"virtio-serial-pci,max_ports={len(ports) + 1}"]
    for number, descriptor in enumerate(ports, start=1):
        argv += ["-chardev", f"socket,id=port{number},fd={descriptor}"]
        argv += ["-device", f"virtserialport,nr={number},chardev=port{number}"]
    return argv


def die_with_parent() -> None:
    """Ask the kernel to end QEMU with this program, however that ends (prctl(2))."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


class Machine:
    """A running QEMU: relays the command's streams and collects its status lines."""

    def __init__(self, job: Job, image: Image, folder: Path) -> None:
        self.job = job
        self.console = folder / "console.log"
        self.status = b""
        self.started_s = time.monotonic()
        self.ready_s: float | None = None
        pairs = [socket.socketpair() for _ in range(3)]
        self.selector = selectors.DefaultSelector()
        for (ours, _), target in zip(pairs, (1, 2, None), strict=True):
            self.selector.register(ours, selectors.EVENT_READ, target)
        theirs = [pair[1].fileno() for pair in pairs]
        try:
            with (folder / "qemu.log").open("wb") as log:
                self.process = subprocess.Popen(
                    qemu_argv(job, image, folder, theirs),
                    stdin=None if job.interactive else subprocess.DEVNULL,
                    stdout=None if job.interactive else log,
                    stderr=log,
                    pass_fds=theirs,
                    preexec_fn=die_with_parent,
                    # Ctrl-C reaches us alone; a shell needs the terminal's foreground group.
                    start_new_session=not job.interactive,
                )
        finally:
            for _, their in pairs:
                their.close()
        self.qemu_log = folder / "qemu.log"

    def stop(self) -> None:
        """End QEMU; nothing in the machine is worth saving."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for key in list(self.selector.get_map().values()):
            self._close(key.fileobj)

    def _close(self, stream: object) -> None:
        assert isinstance(stream, socket.socket)
        self.selector.unregister(stream)
        stream.close()

    def _pump(self, wait_s: float) -> bool:
        """Relay what is there; False once every stream has ended."""
        for key, _ in self.selector.select(wait_s):
            stream = key.fileobj
            assert isinstance(stream, socket.socket)
            try:
                data = stream.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                self._close(stream)
            elif key.data is None:
                self.status += data
            else:
                write_all(key.data, data)
        return bool(self.selector.get_map())

    def _line(self, word: str) -> str | None:
        """Return the rest of the complete status line that starts with ``word``."""
        for line in self.status.decode(errors="replace").splitlines(keepends=True):
            if line.endswith("\n") and line.startswith(word + " "):
                return line[len(word) + 1 :].strip()
        return None

    def _deadline_error(self) -> RigError | TimeoutError | None:
        now_s = time.monotonic()
        if self.ready_s is None:
            if now_s - self.started_s > BOOT_TIMEOUT_S:
                return RigError(
                    f"the machine did not boot in {BOOT_TIMEOUT_S:g} s; see .hw/console.log"
                )
        elif self.job.timeout_s is not None and now_s - self.ready_s > self.job.timeout_s:
            return TimeoutError(f"no end within {self.job.timeout_s:g} s")
        return None

    def wait(self) -> int:
        """Relay until the command ends; return its exit status."""
        while self._pump(0.25):
            if self.ready_s is None and self._line("ready"):
                self.ready_s = time.monotonic()
            if self._line("exit") is not None or self._line("fail") is not None:
                break
            if error := self._deadline_error():
                raise error
        if not self.job.interactive:
            self.process.terminate()
        # All output was consumed before the status line was sent: what remains is in our sockets.
        while self._pump(0.25):
            pass
        self.process.wait()
        if (code := self._line("exit")) is not None:
            return int(code)
        raise RigError(self._failure())

    def _failure(self) -> str:
        """Say in one line why the machine ended without the command's status."""
        if reason := self._line("fail"):
            return reason
        console = self.console_text()
        if panic := re.search(r"Kernel panic.*", console):
            return f"the machine's kernel stopped: {panic.group().strip()}; see .hw/console.log"
        log = self.qemu_log.read_text(errors="replace").splitlines()
        if said := [line for line in log if line.strip() and "warning:" not in line]:
            return f"QEMU: {said[-1]}"
        if self.process.returncode:
            return f"QEMU ended with status {self.process.returncode}"
        return "the machine ended without the command's status; see .hw/console.log"

    def console_text(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.console.read_text(errors="replace")
        return ""


@contextlib.contextmanager
def job_folder() -> Iterator[Path]:
    """A folder for one run; its console log stays as .hw/console.log."""
    folder = Path(tempfile.mkdtemp(dir=CACHE, prefix=f"run-{os.getpid()}-"))
    try:
        yield folder
    finally:
        with contextlib.suppress(FileNotFoundError):
            (folder / "console.log").rename(CACHE / "console.log")
        shutil.rmtree(folder, ignore_errors=True)


def on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(number)


def run_job(job: Job) -> int:
    """Boot, run, relay; return the command's exit status."""
    image = prepare()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    with job_folder() as folder:
        write_job(job, folder)
        machine = Machine(job, image, folder)
        try:
            code = machine.wait()
        finally:
            machine.stop()
        if "Out of memory: Killed" in machine.console_text():
            note("the machine ran out of memory and killed a process; see .hw/console.log")
        if job.verbose and machine.ready_s is not None:
            boot_s = machine.ready_s - machine.started_s
            whole_s = time.monotonic() - machine.started_s
            note(f"boot {boot_s:.1f} s, whole run {whole_s:.1f} s, exit status {code}")
        return code


# --- the command line -----------------------------------------------------------------------


def note(message: str) -> None:
    print(f"hwkvm: {message}", file=sys.stderr, flush=True)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        description="Run a command on hardware KVM semantics (QEMU TCG with SVM).",
        epilog="Exit status: the command's; 124 timeout; 2 the machine could not run.",
    )
    parser.add_argument("--smp", type=int, default=1, metavar="N", help="processors (1)")
    parser.add_argument(
        "--timeout-s",
        type=float,
        metavar="S",
        help=f"seconds the command may run once booted ({DEFAULT_TIMEOUT_S:g}; shell: no limit)",
    )
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="set a variable; may be repeated",
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="show this host folder although it lies under /tmp or /run; may be repeated",
    )
    parser.add_argument(
        "--shadow-paging", action="store_true", help="a processor without nested paging"
    )
    parser.add_argument(
        "--icount", action="store_true", help="a clock that counts instructions (repeatable)"
    )
    parser.add_argument("--append", default="", metavar="ARGS", help="further kernel arguments")
    parser.add_argument("--verbose", action="store_true", help="print times to stderr")
    parser.add_argument("--shell", action="store_true", help="an interactive shell there")
    parser.add_argument(
        "--prepare", action="store_true", help="only fetch the kernel and build the initramfs"
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD ARG...")
    return parser.parse_args(argv), parser


def job_from(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Job:
    """Check the options; argparse ends with status 2 and one line on a wrong one."""
    command: list[str] = options.command
    if command[:1] == ["--"]:
        command = command[1:]
    if options.shell and not command:
        command = ["/bin/bash", "-i"]
    if not command:
        parser.error("no command; give one after --, or --shell, or --prepare")
    if not 1 <= options.smp <= 16:
        parser.error("--smp must be 1 to 16")
    if options.icount and options.smp != 1:
        parser.error("--icount needs --smp 1")
    if options.timeout_s is not None and not 0 < options.timeout_s < 1e6:
        parser.error("--timeout-s must be a positive number of seconds")
    for assignment in options.env:
        if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", assignment):
            parser.error(f"--env {assignment}: NAME=VALUE is wanted")
    timeout_s = options.timeout_s
    if timeout_s is None and not options.shell:
        timeout_s = DEFAULT_TIMEOUT_S
    return Job(
        argv=tuple(command),
        interactive=options.shell,
        timeout_s=timeout_s,
        cpus=options.smp,
        nested_paging=not options.shadow_paging,
        icount=options.icount,
        environment=tuple(options.env),
        kept=tuple(options.keep),
        append=options.append,
        verbose=options.verbose,
    )


def main(argv: Sequence[str]) -> int:
    options, parser = parse(argv)
    try:
        if options.prepare:
            prepare()
            return 0
        return run_job(job_from(options, parser))
    except RigError as error:
        note(f"error: {error}")
        return EXIT_RIG
    except TimeoutError as error:
        note(f"timeout: {error}")
        return EXIT_TIMEOUT
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except OSError as error:
        note(f"error: {error}")
        return EXIT_RIG
    except Interrupted as interruption:
        return 128 + interruption.number


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
