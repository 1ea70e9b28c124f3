"""The extension module, built from crates/py."""

from collections.abc import Callable, Sequence
from typing import Self, TypedDict, Unpack, final, type_check_only

__all__ = [
    "Box",
    "CertificateFiles",
    "Changes",
    "Connection",
    "Disk",
    "Files",
    "Inherited",
    "NativeError",
    "NotPlain",
    "Outcome",
    "Policy",
    "Sandbox",
    "ServedProgram",
    "Server",
    "Snapshot",
    "Stop",
    "Storage",
    "calls_after_harden",
    "check_places",
    "forget_vms",
    "guard_of",
    "harden",
    "is_saved_set",
    "listen",
    "makes_repository",
    "prepare",
    "probe",
    "room",
    "run",
    "serve_names",
    "syscalls",
]

@final
class Outcome:
    """The end of a guest. All attributes are read-only."""

    @property
    def exit_code(self) -> int | None:
        """Exit status 0..255, None if the guest did not exit by itself."""

    @property
    def signal(self) -> int | None:
        """Number of the guest signal that ended it, else None."""

    @property
    def reason(self) -> str:
        """One of "exited", "signal", "timeout", "cpu-time", "memory", "output", "interrupted",
        "broken"."""

    @property
    def stdout(self) -> bytes:
        """Captured standard output, empty when passed through."""

    @property
    def stderr(self) -> bytes:
        """Captured standard error, empty when passed through."""

    @property
    def changes_are_cut(self) -> bool:
        """True if there are more changes than `changes` has: of a great many, it has the first."""

    @property
    def changes(self) -> list[tuple[str, bytes]]:
        """Names changed in the overlay, sorted: ("A" added, "M" modified or "D" deleted, path).

        A new directory stands for what is in it; its path ends in "/".
        """

    @property
    def denials(self) -> list[tuple[str, str, str, int]]:
        """(what, errno name, remedy or "") for each thing the policy refused."""

    @property
    def events(self) -> list[tuple[str, str]]:
        """(name, detail) for each unsupported thing the guest met."""

    @property
    def uses(self) -> list[tuple[bytes, bytes, int]]:
        """Paths that were used beyond the rules while these were learned, sorted.

        (canonical path, path as given if that led through a link else empty, ways). Ways: 1 a file
        was found, 2 a directory, 4 its names were listed, 8 it was changed. 16: the name came, went
        or became another's.
        """

    @property
    def uses_not_kept(self) -> int:
        """Uses of further paths."""

    @property
    def stats(self) -> dict[str, int | float]:
        """Flat counters; times have names ending in _us and are in microseconds."""

@final
class Changes:
    """The changes of a run with their contents, held from its end on; empty before."""

    def __init__(self) -> None: ...
    def __len__(self) -> int: ...
    @property
    def is_held(self) -> bool:
        """True once a run has ended and before `release`. All else raises NativeError else."""

    @property
    def is_cut(self) -> bool:
        """True if there are more changes, or a part of the host's tree could not be read."""

    def entry(
        self, place: int
    ) -> tuple[
        str,
        bytes,
        int,
        int,
        int,
        int,
        bytes,
        tuple[int, int, int, int, int, int, int] | None,
        bool,
        int | None,
        list[tuple[bytes, bytes]],
    ]:
        """A change: kind, path, mode, mtime_ns, ctime_ns, size, target, seen, late, same as, and
        extended attributes of a file.

        kind: "removed", "file", "symlink", "directory", "special" or "mode". seen: the host's
        object of that name when it was first changed: (dev, ino, mode, links, size, mtime_ns,
        ctime_ns). It is late if it was looked at when the program had ended only. same as: the
        place of another name of the same file.
        """

    def next_data(self, place: int, offset: int) -> int:
        """The first offset from there on with other bytes than zeros; past the end if none."""

    def read(self, place: int, offset: int, size: int) -> bytes | None:
        """Bytes of a file, 1 MiB at most; short at its end.

        None if they are the host's and that file has changed meanwhile.
        """

    def release(self) -> None:
        """Give all of it up."""

@final
class Inherited:
    """The caller's standard streams, opened as they are now: for one run, after `harden` too."""

    def __new__(
        cls,
        left_open: list[tuple[int, int]] = ...,
        named: list[tuple[int, int]] = ...,
    ) -> Inherited:
        """And descriptors above 2 that the program gets: (its number there, a duplicate to take).

        Those of `left_open` are passed if they are pipes or regular files, and closed otherwise.
        Raises NativeError for one of `named` that cannot be passed.
        """

    def say(self, data: bytes) -> None:
        """Write to standard error what it takes within a tenth of a second."""

@final
class Disk:
    """A limit on a program's files, and the host's file for those that memory has no room for."""

    def __new__(cls, limit_bytes: int, directory: bytes | None) -> Disk:
        """Makes that file in `directory`; without one, files lie in memory. Raises NativeError."""

@final
class Policy:
    """The host files that a program started in `cwd` may see, and where it starts.

    `readable` are files and directories that it may read beside those; a symbolic link among them
    is visible as that. Paths are absolute and have no "..". Raises NativeError for one that must
    not be visible. Changes in the tree `overlay` are kept in memory, for the program alone. Those
    in the files and trees `writable` are made on the host, but for protected names. `bound` has
    more: the path on the host, the path that the program sees it at, and "ro", "rw" or "overlay".
    `memory` are paths of empty trees in memory.
    """

    def __new__(
        cls,
        cwd: bytes,
        readable: list[bytes],
        overlay: bytes | None = None,
        writable: list[bytes] = ...,
        bound: list[tuple[bytes, bytes, str]] = ...,
        memory: list[bytes] = ...,
        net: list[str] = ...,
        publish: list[str] = ...,
        sockets: list[bytes] = ...,
    ) -> Self:
        """The program may reach the hosts of `net`, and connect to the host's `sockets`.

        The ports `publish` are open from now on. `sockets` are canonical paths.
        """

    @staticmethod
    def of_box(
        readable: list[bytes],
        writable: list[bytes] = ...,
        net: list[str] = ...,
        publish: list[str] = ...,
        sockets: list[bytes] = ...,
    ) -> Policy:
        """The rules of a box: an empty directory /work, the system's trees, and these."""

    def why(
        self, path: bytes
    ) -> tuple[
        bytes,
        str | None,
        bytes | None,
        str,
        tuple[str, str, str] | None,
        tuple[str, str, str] | None,
    ]:
        """(path, place, tree, thing, read, write): what the program would meet at absolute `path`.

        `path` is the one that it leads to, `place` the kind of that, None if it leads nowhere.
        `tree` is the root of the tree that it lies in, None in kvmlet's own. `thing` is "absent",
        "directory" or "file". `read` and `write` are refusals, None if there is none. Each has
        the error's name, and a denial's what and kind, both empty if the policy does not refuse
        it. To write a directory is to make files in it.
        """

    def reach(self, host: str, port: int) -> str | None:
        """The way to reach an address or a name: "refused", "named", or "public" addresses only.

        None if it is neither.
        """

    def learning(self, home: bytes) -> Policy:
        """The same, but that all of the host may be read, and changed in memory.

        What is protected stays closed; no host may be reached. `home` is the caller's home.
        """

    def is_closed(self, path: bytes) -> bool:
        """True if what the host has at `path` is closed to a program that is learned."""

    def opens_all(self, path: bytes) -> bool:
        """True if no name directly in `path` is one that is closed to a program that is learned."""

    def shows_host(self, path: bytes) -> bool:
        """True if `path`, without symbolic links, lies in a file or tree of the host's."""

    def names_end(self) -> int | None:
        """The descriptor of a process that is to call `serve_names`; None if no rule has names."""

    def sockets_end(self) -> int | None:
        """The descriptor of a process that is to call `serve_sockets`; None if there are none."""

    def serve_sockets(self) -> None:
        """Connect to the host's sockets for the process at the other end of standard input.

        Only to those that these rules name, until that end is closed.
        """

    def reaches_socket(self, path: bytes) -> bool:
        """True if the program may connect to the host's socket that it sees at `path`."""

    def published(self) -> list[str]:
        """The addresses and ports of the host that have been opened, in order."""

    def shows(self, path: bytes) -> bool:
        """True if `path`, without symbolic links, is visible, or leads to something visible."""

@final
class Stop:
    """A word from one thread to another, which waits in one of these functions."""

    def __init__(self) -> None: ...
    def set(self) -> None:
        """End what waits, or will wait, within 50 ms. There is no way back."""

    def is_set(self) -> bool: ...

class NotPlain(Exception):
    """An argument has to be converted first, or is wrong. Nothing has happened."""

class NativeError(Exception):
    """args: (kind, message).

    kind is a key of the one table of kinds, in kvmlet.errors.
    """

def run(
    argv: list[bytes],
    *,
    env: list[tuple[bytes, bytes]],
    policy: Policy,
    input: bytes | None,
    streams: Inherited | None,
    timeout_s: float | None,
    cpu_time_s: float | None,
    memory_bytes: int,
    disk: Disk | None,
    processes_max: int,
    output_limit_bytes: int,
    trace: bool,
    calls: str,
    on_stdout: Callable[[bytes], object] | None = None,
    on_stderr: Callable[[bytes], object] | None = None,
    on_denial: Callable[[str, str, str, int], object] | None = None,
    stop: Stop | None = None,
    changes: Changes | None = None,
    files_max: int = ...,
    trace_to: int | None = None,
) -> Outcome:
    """Runs a program to its end, or until `stop` is set: its reason is "interrupted" then.

    trace_to: a descriptor of a file for the trace, handed over; standard error if there is none.

    `on_stdout` and `on_stderr` are called with captured output as it comes, within some 50 ms. It
    is not kept then, but for what comes last, which is in the outcome. `on_denial` is called with
    the fields of each new refusal. An exception that they raise ends the run and is raised.
    `changes` holds the program's changes from its end on, also then.
    """

@type_check_only
class ProgramSettings(TypedDict):
    """Settings of one program behind a server, as the options of `kvmlet serve` name them."""

    guest_port: int | None
    isolate: str
    forks: int
    queue_max: int
    timeout_s: float
    connection_timeout_s: float | None
    idle_timeout_s: float
    boot_timeout_s: float
    body_bytes_max: int
    upgrades_max: int
    warmup: list[tuple[str, list[str], bytes, int | None]]

@type_check_only
class StorageSettings(TypedDict):
    """Settings of a storage, as the options of `kvmlet serve` name them."""

    concurrent: int
    timeout_s: float
    boot_timeout_s: float

@type_check_only
class FrontSettings(TypedDict):
    """Settings of a server, as the options of `kvmlet serve` name them."""

    header_timeout_s: float
    keepalive_s: float
    grace_s: float
    buffer_bytes: int
    connections_max: int
    access_log: str
    trusted_proxies: list[str]
    proxy_protocol: bool
    threads: int

@final
class Storage:
    """A program that is not reset, and that others ask by its `name`. Raises NativeError."""

    def __new__(
        cls,
        argv: list[bytes],
        *,
        env: list[tuple[bytes, bytes]],
        policy: Policy,
        memory_bytes: int,
        processes_max: int,
        output_limit_bytes: int,
        calls: str,
        name: str,
        **settings: Unpack[StorageSettings],
    ) -> Self: ...

@final
class ServedProgram:
    """A program that a server starts, freezes, and forks for what clients ask.

    It gets the requests for `hosts` (names and "*.NAME", any host if there are none) whose path is
    `path` or below it. `name` stands in metrics and lines; "" if it is the only one. Raises
    NativeError.
    """

    def __new__(
        cls,
        argv: list[bytes],
        *,
        env: list[tuple[bytes, bytes]],
        policy: Policy,
        memory_bytes: int,
        request_memory_bytes: int | None,
        processes_max: int,
        output_limit_bytes: int,
        calls: str,
        name: str,
        hosts: list[str],
        path: str,
        storages: list[Storage],
        files_max: int = ...,
        **settings: Unpack[ProgramSettings],
    ) -> Self: ...

@final
class CertificateFiles:
    """The absolute paths of a certificate and its key, in PEM. A server reads them again."""

    def __new__(cls, certificate: bytes, key: bytes) -> CertificateFiles: ...
    def helper_end(self) -> int:
        """Have another process read them from here on: the descriptor that it gets."""

    def serve(self) -> None:
        """Read them for the process at the other end of standard input, until that is closed."""

    def warning(self) -> str | None:
        """A warning, if every user of the machine can read the key."""

@final
class Server:
    """A server before programs, of which at least one is given, and their storages.

    It listens once it is made. `signals` has SIGTERM, SIGINT and SIGHUP be commands to it. Raises
    NativeError.
    """

    def __new__(
        cls,
        programs: list[ServedProgram],
        *,
        storages: list[Storage],
        listen: list[str],
        control: str | None,
        tls: CertificateFiles | None,
        quiet: bool,
        signals: bool,
        keeper: int | None = None,
        takes_over: bool = False,
        **settings: Unpack[FrontSettings],
    ) -> Self:
        """`keeper` is the end of a pipe to the parent, which is told by a byte that it serves.

        It is told to stop when the parent ends. SIGHUP then says that another process, which
        `takes_over`, has its clients.
        """
    def names(self) -> list[str]:
        """The addresses that it listens at."""

    def run(self) -> None:
        """Serve until it is told to stop. Raises NativeError if the program does not start."""

    def stop(self) -> None:
        """End it once its requests are answered, the second time at once. For any thread."""

    def discard(self) -> None:
        """Listen no more, if it has not run: it never will."""

    def reload(self) -> int:
        """Start the program anew beside the old one, and have it take over. For any thread.

        The certificate is read again. Returns the number of this reload.
        """

    def reloaded(self, number: int) -> bool:
        """True once the reload with this number has ended. Raises NativeError if it failed."""

    def is_ready(self) -> bool:
        """True while it takes requests."""

    def requests(self) -> list[tuple[str, int]]:
        """Requests by the way they ended; none before it runs."""

    def counts(self) -> list[tuple[str, int]]:
        """Numbers of things that there are and have been; none before it runs."""

def check_places(places: list[str]) -> None:
    """Raise NativeError for what is no place to listen at. Nobody listens afterwards."""

def listen(place: str) -> int:
    """Listen at a place: the descriptor of the socket. Raises NativeError."""

def prepare() -> None:
    """Open KVM, for a process that gives rights up before `harden`. Raises NativeError."""

def harden(*policies: Policy, purpose: str = "run") -> tuple[list[str], list[str]]:
    """Give up for good what runs under `policies` do not need: (what is on, what is missing).

    The purpose "serve" leaves what serving clients takes, too. It takes any number of policies, and
    "run" takes one.

    Afterwards this process opens only files that the program may read, and makes only the system
    calls of `calls_after_harden`: any other kills it. Raises NativeError if KVM cannot be used.
    """

def calls_after_harden(
    policy: Policy,
    purpose: str = "run",
) -> list[tuple[str, list[tuple[int, int, int | None]], bool, str]]:
    """Rules for system calls: (name, conditions, whether it is made or fails with ENOSYS, reason).

    A condition is (place of the argument, bits looked at, their value or None for the own pid).
    """

def serve_names() -> None:
    """Look names up for the process at the other end of standard input, until that is closed."""

def guard_of(path: bytes, exists: Callable[[bytes], bool]) -> str:
    """The protection of an absolute path: "none", or one of these.

    "whole": it is a protected name, or lies in one. "settings": settings of git, protected unless
    they name no program. "leading": a directory that leads to protected names, which is nothing
    else. "nested": where git has submodules, and no links. `exists` is asked for a few other paths.
    """

def makes_repository(
    path: bytes, exists: Callable[[bytes], bool], acts: Callable[[bytes], bool]
) -> bool:
    """True if something new at `path` would have git obey what is in the directory already.

    `exists` is asked for other parts of a repository, `acts` for settings and hooks.
    """

def is_saved_set(path: bytes) -> bool:
    """True if a path lies in a saved set of changes."""

def forget_vms() -> None:
    """In a child of `os.fork()`: closes what it has of the parent's unused VMs."""

def probe() -> dict[str, object]: ...
def room(len_bytes: int) -> bytearray:
    """Memory that is not cleared, for whoever writes all of it before it is read."""

def syscalls() -> list[tuple[int, str, str, str]]: ...

@final
class Sandbox:
    """A program in a VM of its own.

    One thread at a time: a call while another one runs fails with kind "busy". One in a child of
    the process that made it fails with "forked". A call that runs the guest takes `timeout_s`
    (None: no limit; then "timeout"), releases the interpreter's lock, and lets a raising signal
    handler end it.
    """

    @staticmethod
    def start(
        argv: list[bytes],
        *,
        env: list[tuple[bytes, bytes]],
        policy: Policy,
        input: bytes,
        memory_bytes: int,
        disk: Disk | None,
        processes_max: int,
        output_limit_bytes: int,
        calls: str,
        files_max: int = ...,
    ) -> Sandbox:
        """Builds the VM and loads the program, of which nothing has run."""

    def until_ready(self, timeout_s: float | None) -> None:
        """Runs until a thread waits for a message."""

    def tell(
        self,
        stdout: Callable[[bytes], object] | None,
        stderr: Callable[[bytes], object] | None,
    ) -> None:
        """Calls these with output from now on, while the guest runs; it is not kept then."""

    def files(self) -> Files:
        """Its files, as the program has them. A file is open until a reset, `epoch`s are
        generations."""

    def wait(self, timeout_s: float | None) -> None:
        """Runs the program to its end."""

    def run_for(self, time_s: float) -> None:
        """Lets the program run for a time, or until it ends."""

    def send(self, message: bytes) -> None:
        """Queues a message; nothing runs."""

    def recv(self, timeout_s: float | None) -> bytes:
        """Runs until the guest has sent a message."""

    def request(self, message: bytes, timeout_s: float | None) -> bytes:
        """`send`, then `recv`."""

    def send_parts(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """`send` of one message, which is put together from these: each is contiguous."""

    def request_parts(
        self, parts: Sequence[bytes | bytearray | memoryview], timeout_s: float | None
    ) -> bytes:
        """`send_parts`, then `recv`."""

    def recv_into(self, room: bytearray, at: int, timeout_s: float | None) -> int:
        """`recv`, the message being copied to `room` at `at`, or lost if it does not fit there: its
        length."""

    def call(
        self,
        symbol: str,
        args: list[int | float | bytes | bytearray],
        returns: str,
        timeout_s: float | None,
    ) -> tuple[int | float | bytes | None, list[bytes]]:
        """Calls a function: (its value, what each bytearray holds afterwards).

        `args`: int in -2**63..2**64; bytes passes a pointer to a copy, a bytearray is copied back
        too. `returns`: "int" (rax, signed), "float" (xmm0), "bytes" (the string at rax) or "none".
        """

    def call_plain(
        self, symbol: object, args: tuple[object, ...], returns: object, timeout_s: float | None
    ) -> int | float | bytes | None:
        """`call` of what needs no conversion: its value.

        `args` are of exactly int, float and bytes, or None, and `returns` is one of these types or
        None. NotPlain if anything is not; nothing has happened then.
        """

    def until_listening(self, port: int | None, timeout_s: float | None) -> int:
        """Runs until the program waits for connections, on `port` if there is one: the port.

        0 if it waits on a UNIX socket, and on no port.
        """

    def connect(self, port: int, peer: tuple[str, int] | None) -> Connection:
        """Connects to a listener inside; nothing runs. `peer` is an IP address and a port.

        Port 0 is the UNIX socket that `until_listening` has found.

        This and the calls below fail with kind "connection" and the error's name.
        """

    def send_to(self, to: Connection, data: bytes, timeout_s: float | None) -> int:
        """Sends as soon as there is room: how many bytes."""

    def receive_from(self, source: Connection, max_bytes: int, timeout_s: float | None) -> bytes:
        """Receives as soon as there is something, b"" at the end."""

    def shut_down(self, connection: Connection, how: int) -> None:
        """SHUT_RD, SHUT_WR or SHUT_RDWR, by number."""

    def hang_up(self, connection: Connection) -> None:
        """Ends a connection. May be repeated."""

    def freeze(self, connections: str) -> Snapshot:
        """Ends this sandbox and keeps its state."""

    def reset(self) -> None:
        """Back to the frozen state; also takes back an `interrupt`."""

    def interrupt(self) -> None:
        """From any thread: what runs here, or will run next, fails with "interrupted"."""

    def close(self) -> None:
        """Gives up the VM. Later calls fail with "closed", but this one may be repeated."""

    def abandon(self) -> None:
        """In a child of the process that made it: gives up what the child has of the VM."""

    def take_output(self) -> tuple[bytes, bytes]:
        """Standard output and error, captured since the last call."""

    def take_report(self) -> tuple[list[tuple[str, str, str, int]], list[tuple[str, str]]]:
        """Denials and events since the last call or reset, as in `Outcome`."""

    def memory_limit(self) -> int:
        """The program's memory limit, in bytes."""

    def memory_left(self) -> int:
        """The rest of the program's memory limit, in bytes."""

    def outcome(self) -> Outcome | None:
        """The end of the program, None while it has not ended."""

    def stats(self) -> dict[str, int | float]:
        """Flat counters, as `Outcome.stats`."""

    def generation(self) -> int:
        """0 in what was started; differs in every fork and after every reset."""

@final
class Connection:
    """The host's end of a connection: its sandbox or box uses it."""

@final
class Files:
    """The files of a box or of a sandbox's program, by calls that are made inside.

    What was opened before a reset fails with kind "box_reset" after it.
    """

    def open(self, path: bytes, flags: int, mode: int) -> tuple[int, int]:
        """Opens a file: (epoch, number).

        This and the calls below fail with kind "file" and the error's name.
        """

    def read(self, epoch: int, number: int, max_bytes: int) -> bytes:
        """Reads at most 1 MiB."""

    def write(self, epoch: int, number: int, data: bytes) -> int: ...
    def stat(self, path: bytes, follow: bool) -> tuple[int, int, int]:
        """Mode, size in bytes, time of modification in nanoseconds."""

    def stat_file(self, epoch: int, number: int) -> tuple[int, int, int]: ...
    def names(self, path: bytes) -> list[bytes]:
        """The names in a directory, without "." and ".."."""

    def open_watch(self) -> tuple[int, int]:
        """Opens an inotify instance: (epoch, number). `exchange` reads its events."""

    def add_watch(
        self, epoch: int, number: int, path: bytes, mask: int
    ) -> tuple[int, list[tuple[bytes, bool]]]:
        """Watches a path as well: (the number of its watch, names in it from now on).

        A name's second part is true for a directory. Events come for what happens afterwards.
        """

    def remove_watch(self, epoch: int, number: int, watch: int) -> None: ...
    def mkdir(self, path: bytes) -> None: ...
    def remove(self, path: bytes) -> None: ...
    def rename(self, source: bytes, target: bytes) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def close(self, epoch: int, number: int) -> None: ...

@final
class Box:
    """A sandbox that commands are started in, which a thread of its own runs.

    Any thread may use it. A call releases the interpreter's lock. `epoch` is the number of resets
    before a process was spawned: later, calls for it fail with kind "box_reset".
    """

    @staticmethod
    def start(
        *,
        policy: Policy,
        memory_bytes: int,
        disk: Disk | None,
        processes_max: int,
        calls: str,
        files_max: int = ...,
    ) -> Box: ...
    def spawn(
        self,
        argv: list[bytes],
        *,
        env: list[tuple[bytes, bytes]],
        cwd: bytes,
        stdio: list[str],
        terminal: tuple[int, int] | None,
    ) -> tuple[int, int, int, list[int | None]]:
        """Starts a command: (epoch, process id, command, our ends of its pipes).

        `stdio`, for descriptors 0 to 3: "null", "pipe", "absent" for none, or "stdout" for standard
        error that goes there too. A pipe at 3 is one that the command writes to.

        `terminal`: columns and rows of a terminal that 0 to 2 are instead. Our ends are two then:
        to type, and to read what is shown.
        """

    def exchange(
        self,
        epoch: int,
        *,
        read: list[int],
        max_bytes: int,
        write: tuple[int, bytes] | None,
        child: int | None,
        timeout_s: float | None,
        stop: Stop | None = None,
    ) -> tuple[list[tuple[int, bytes]], int | None, tuple[int | None, int | None] | None] | None:
        """Waits until a pipe can be read or written, or a child has ended. None: out of time.

        Answers (bytes by pipe, b"" at its end; number of bytes written; exit status and signal).
        The number is -1 if nobody reads them any more. `timeout_s` 0 only looks. Fails with kind
        "interrupted" once `stop` is set.
        """

    def signal(self, epoch: int, pid: int, signo: int) -> None:
        """Sends a signal to a child."""

    def resize(self, epoch: int, number: int, size: tuple[int, int]) -> None:
        """Sets columns and rows of a terminal by our end of it.

        Fails with kind "file" and the error's name.
        """

    def end_command(self, epoch: int, command: int) -> None:
        """Kills a command and all that descends from it."""

    def was_out_of_memory(self, epoch: int, command: int) -> bool:
        """True once if the memory limit has ended a process of the command."""

    def close_stream(self, epoch: int, number: int) -> None:
        """Closes our end of a pipe, or a file."""

    def take_report(self) -> tuple[list[tuple[str, str, str, int]], list[tuple[str, str]]]:
        """Denials and events since the last call, as in `Outcome`."""

    def files(self) -> Files:
        """Its files, as the holder has them."""

    def connect(self, port: int, peer: tuple[str, int] | None) -> Connection:
        """Connects to a listener inside; nothing runs. `peer` is an IP address and a port.

        This and the calls below fail with kind "connection" and the error's name.
        """

    def send_to(
        self, to: Connection, data: bytes, timeout_s: float | None, stop: Stop | None
    ) -> int | None:
        """Sends as soon as there is room: how many bytes; None: out of time.

        "interrupted" once `stop` is set, here and in what follows.
        """

    def receive_from(
        self, source: Connection, max_bytes: int, timeout_s: float | None, stop: Stop | None
    ) -> bytes | None:
        """Receives as soon as there is something, b"" at the end; None: out of time."""

    def shut_down(self, connection: Connection, how: int) -> None:
        """SHUT_RD, SHUT_WR or SHUT_RDWR, by number."""

    def hang_up(self, connection: Connection) -> None:
        """Ends a connection. May be repeated."""

    def wait_listening(self, port: int, timeout_s: float | None, stop: Stop | None) -> bool:
        """Waits until somebody listens on a TCP port. False: out of time."""

    def snapshot(self, connections: str) -> Snapshot:
        """Keeps the state of now, which `reset` goes back to. The box goes on."""

    def fork(self, snapshot: Snapshot) -> Box:
        """Another box that goes on from a snapshot of this one or of a fork."""

    def reset(self) -> None:
        """Back to the last snapshot, or to the start."""

    def epoch(self) -> int: ...
    def stats(self) -> dict[str, int | float]: ...
    def close(self) -> None:
        """Ends everything in it. May be repeated."""

@final
class Snapshot:
    """A frozen program. Any thread may use it at any time."""

    def fork(self) -> Sandbox:
        """A sandbox in the frozen state."""

    def prepare(self, count: int) -> None:
        """Has VMs for `count` forks ready ahead of use."""

    def stats(self) -> dict[str, int | float]:
        """Flat counters."""

    def close(self) -> None:
        """Gives up the frozen state; forks live on."""

    def abandon(self) -> None:
        """In a child of the process that made it: gives up what the child has of the state."""
