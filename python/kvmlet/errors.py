"""Everything that can go wrong, as exceptions.

    KvmletError
    ├── UsageError             the call itself is wrong (also a ValueError)
    │   ├── UnknownSymbol      no function of that name in the program (also a LookupError)
    │   ├── MessageTooLong     more bytes than one message may have
    │   └── CannotSend         @isolated: a function or argument that cannot be pickled
    ├── KvmUnavailable         /dev/kvm is missing, closed to us or unusable
    ├── LaunchError            the program could not be started
    │   ├── ProgramNotFound
    │   └── ProgramNotExecutable
    ├── HostError              the host refused something kvmlet needs
    │   ├── TooFewDescriptors
    │   └── TooFewMappings
    ├── SandboxError           the sandbox is in no state to do this
    │   ├── NotReady           the program waits for nothing, or for a message that nobody sent
    │   ├── NotAFork           only forks of a snapshot can be reset
    │   ├── IsAFork            a fork cannot be frozen again
    │   ├── StaleSnapshot      a file that the frozen program maps has changed
    │   ├── InboxFull          too many messages wait for the program
    │   ├── CallLost           a called function can no longer return
    │   ├── SandboxBusy        another thread is using it
    │   ├── SandboxClosed      it was closed or frozen
    │   │   └── ForkedProcess  it belongs to the parent of this process
    │   └── SandboxEnded       its program has ended; `result` says how
    ├── DeadlineExceeded       a time limit passed (also a TimeoutError)
    ├── Interrupted            interrupt() or a cancelled future stopped it
    ├── PoolError
    │   ├── PoolClosed         it was shut down (also a RuntimeError, as other executors raise)
    │   └── QueueFull          as many jobs are waiting as the pool may queue
    ├── GuestError             @isolated: the function raised; also of that type if it is a builtin
    ├── ResultError            @isolated: a result that is not plain data (also a TypeError)
    ├── ExitError              Result.check(): the program did not end with status 0
    └── InternalError          a fault in kvmlet

Each is one line of text: what happened and, after a semicolon, what to do about it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmlet._result import Result


class KvmletError(Exception):
    """Base of all errors that kvmlet raises. `remedy` says what to do, "" if nothing is known."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Exception pickles positional arguments only; keep keyword-built state as well.
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(
    cls: type[KvmletError], args: tuple[object, ...], state: dict[str, object]
) -> KvmletError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UsageError(KvmletError, ValueError):
    """An argument is wrong: a bad size, a bare string as argv, an unknown option."""


class UnknownSymbol(UsageError, LookupError):
    """The program and its libraries have no function of that name."""


class MessageTooLong(UsageError):
    """More bytes than one message or one call's buffers may have."""


class CannotSend(UsageError):
    """A function or an argument cannot be pickled, so it cannot be sent to a VM."""


class KvmUnavailable(KvmletError):
    """KVM cannot be used here; `remedy` says what would make it usable."""


class LaunchError(KvmletError):
    """The program could not be started."""


class ProgramNotFound(LaunchError):
    """There is no such program in the guest's view of the file system."""


class ProgramNotExecutable(LaunchError):
    """The program exists but cannot be executed: no permission, a directory, a malformed ELF."""


class HostError(KvmletError):
    """The host refused a resource: descriptors, memory, a directory."""


class TooFewDescriptors(HostError):
    """The process may not open as many descriptors as its VMs take: they may have half of them."""


class TooFewMappings(HostError):
    """The process may not have as many mappings as its VMs take: they may have half of them."""


class SandboxError(KvmletError):
    """The sandbox is in no state to do what was asked of it."""


class NotReady(SandboxError):
    """The program never asked for a message, or waits for one while a message of its is awaited."""


class NotAFork(SandboxError):
    """There is no frozen state to return to: the sandbox was started, not forked."""


class IsAFork(SandboxError):
    """A fork cannot be frozen again."""


class StaleSnapshot(SandboxError):
    """A file that the frozen program has mapped changed since: its forks would mix old and new."""


class InboxFull(SandboxError):
    """More messages wait to be received than the program may leave waiting."""


class CallLost(SandboxError):
    """A called function can no longer return: its thread ended or took up something else."""


class SandboxBusy(SandboxError):
    """Another thread is using the sandbox, which serves one at a time."""


class SandboxClosed(SandboxError):
    """The sandbox, snapshot or pool was closed; a sandbox also is by `freeze()`."""


class ForkedProcess(SandboxClosed):
    """It belongs to the parent of this process: virtual machines do not survive `os.fork()`."""


class SandboxEnded(SandboxError):
    """The program has ended, by itself or at a limit; `result` says how and what it wrote last."""

    def __init__(self, message: str, *, result: "Result | None" = None, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


class DeadlineExceeded(KvmletError, TimeoutError):
    """A time limit passed before the program had done what was asked."""


class Interrupted(KvmletError):
    """The program was stopped by `Sandbox.interrupt()` or by cancelling its future."""


class PoolError(KvmletError):
    """A pool cannot take a job."""


class PoolClosed(PoolError, RuntimeError):
    """The pool was shut down. A RuntimeError too: what every other executor raises here."""


class QueueFull(PoolError):
    """As many jobs are waiting as the pool may queue."""


class ResultError(KvmletError, TypeError):
    """The result of an isolated function is not plain data; the message names the type."""


class GuestError(KvmletError):
    """An isolated function raised. Of a builtin type, the exception is also of that type.

    It is never one that ends a loop, a task or the program: StopIteration, StopAsyncIteration, and
    what is no Exception (SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError).
    """

    def __init__(
        self, message: str, *, type_name: str = "", guest_traceback: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.type_name = type_name
        """Module and name of the exception's type in the guest: "json.decoder.JSONDecodeError"."""
        self.guest_traceback = guest_traceback
        """The guest's traceback as text, written by the guest."""


class InternalError(KvmletError):
    """A fault in kvmlet. The run it happened in is lost, other runs are not affected."""


class ExitError(KvmletError):
    """Raised by `Result.check()`; `result` is that result."""

    def __init__(self, message: str, *, result: "Result", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


_REPORT = "please report it with what you ran"
_DOCTOR = "'kvmlet doctor' shows what was found"
_FORK_AGAIN = "make another one with Snapshot.fork() or Sandbox(...)"

_KINDS: dict[str, tuple[type[KvmletError], str]] = {
    "not_found": (
        ProgramNotFound,
        "programs are found in /usr/local/bin, /usr/bin and /bin, or by path",
    ),
    "not_executable": (
        ProgramNotExecutable,
        "see its mode with 'ls -l', or name its interpreter: python3 FILE",
    ),
    "is_directory": (ProgramNotExecutable, "name a program file in it"),
    "bad_elf": (ProgramNotExecutable, "kvmlet runs 64-bit x86 Linux programs: see 'file PROGRAM'"),
    "kvm_missing": (
        KvmUnavailable,
        "load the kvm module, or pass the device in (docker run --device /dev/kvm); " + _DOCTOR,
    ),
    "kvm_permission": (
        KvmUnavailable,
        "join the group that owns it (sudo usermod -aG kvm $USER) and log in again; " + _DOCTOR,
    ),
    "kvm_unusable": (KvmUnavailable, _DOCTOR),
    "bad_argument": (UsageError, ""),
    "not_ready": (
        NotReady,
        "call until_ready() first, and recv() only for what the program sends",
    ),
    "not_a_fork": (NotAFork, "freeze() it, and reset what Snapshot.fork() gives"),
    "is_a_fork": (IsAFork, "freeze what Sandbox(...) started"),
    "stale": (StaleSnapshot, "start and freeze the program again"),
    "inbox_full": (InboxFull, "recv() its answers before sending more"),
    "call_lost": (CallLost, "reset() the fork, or make another sandbox"),
    "busy": (SandboxBusy, "give each thread a fork of its own, or use a kvmlet.Pool"),
    "closed": (SandboxClosed, _FORK_AGAIN),
    "forked": (ForkedProcess, "make it again in this process"),
    "ended": (SandboxEnded, "reset() a fork, or make another sandbox"),
    "timeout": (DeadlineExceeded, "allow more time, or reset() the fork"),
    "interrupted": (Interrupted, "reset() the fork, or make another sandbox"),
    "unknown_symbol": (
        UnknownSymbol,
        "list the functions there are with 'nm PROGRAM' or 'nm -D LIBRARY'",
    ),
    "message_too_long": (MessageTooLong, ""),
    "descriptors": (
        TooFewDescriptors,
        "raise the limit (ulimit -n), or keep fewer sandboxes open at once",
    ),
    "mappings": (
        TooFewMappings,
        "raise the limit (sysctl vm.max_map_count), or keep fewer sandboxes open at once",
    ),
    "internal": (InternalError, _REPORT),
    "host": (HostError, ""),
}


def from_native(kind: str, message: str) -> KvmletError:
    """The exception for a NativeError's (kind, message)."""
    cls, remedy = _KINDS.get(kind, (InternalError, _REPORT))
    return cls(message, remedy=remedy)
