"""The extension module, built from crates/py."""

from typing import final

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
        """One of "exited", "signal", "timeout", "memory", "output", "interrupted",
        "broken"."""

    @property
    def stdout(self) -> bytes:
        """Captured standard output, empty when passed through."""

    @property
    def stderr(self) -> bytes:
        """Captured standard error, empty when passed through."""

    @property
    def denials(self) -> list[tuple[str, str, str]]:
        """(what, errno name, remedy or "") for each thing the policy refused."""

    @property
    def events(self) -> list[tuple[str, str]]:
        """(name, detail) for each unsupported thing the guest met."""

    @property
    def stats(self) -> dict[str, int | float]:
        """Flat counters; times have names ending in _us and are in microseconds."""

@final
class Inherited:
    """The caller's standard streams, opened as they are now: for one run, after `harden` too."""

    def __init__(self) -> None: ...
    def say(self, data: bytes) -> None:
        """Write to standard error what it takes within a tenth of a second."""

@final
class Policy:
    """The host files that a program started in `cwd` may see, and where it starts."""

    def __init__(self, cwd: bytes) -> None: ...

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
    memory_bytes: int,
    processes_max: int,
    output_limit_bytes: int,
    trace: bool,
    calls: str,
) -> Outcome: ...
def harden(policy: Policy) -> tuple[list[str], list[str]]:
    """Give up for good what a run under `policy` does not need: (what is on, what is missing).

    Afterwards this process opens only files that the program may read, and makes only the system
    calls of `calls_after_harden`: any other kills it. Raises NativeError if KVM cannot be used.
    """

def calls_after_harden(
    policy: Policy,
) -> list[tuple[str, list[tuple[int, int, int | None]], bool, str]]:
    """Rules for system calls: (name, conditions, whether it is made or fails with ENOSYS, reason).

    A condition is (place of the argument, bits looked at, their value or None for the own pid).
    """

def forget_vms() -> None:
    """In a child of `os.fork()`: closes what it has of the parent's unused VMs."""

def probe() -> dict[str, object]: ...
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
        cwd: bytes,
        input: bytes,
        readable: list[bytes],
        memory_bytes: int,
        processes_max: int,
        output_limit_bytes: int,
        calls: str,
    ) -> Sandbox:
        """Builds the VM and loads the program, of which nothing has run."""

    def until_ready(self, timeout_s: float | None) -> None:
        """Runs until a thread waits for a message."""

    def run_for(self, time_s: float) -> None:
        """Lets the program run for a time, or until it ends."""

    def send(self, message: bytes) -> None:
        """Queues a message; nothing runs."""

    def recv(self, timeout_s: float | None) -> bytes:
        """Runs until the guest has sent a message."""

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

    def freeze(self) -> Snapshot:
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

    def memory_left(self) -> int:
        """The rest of the program's memory limit, in bytes."""

    def outcome(self) -> Outcome | None:
        """The end of the program, None while it has not ended."""

    def stats(self) -> dict[str, int | float]:
        """Flat counters, as `Outcome.stats`."""

    def generation(self) -> int:
        """0 in what was started; differs in every fork and after every reset."""

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
