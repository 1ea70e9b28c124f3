"""Everything that can go wrong, as exceptions.

    KvmletError
    ├── UsageError             the call itself is wrong (also a ValueError)
    │   ├── UnknownSymbol      no function of that name in the program (also a LookupError)
    │   ├── MessageTooLong     more bytes than one message may have
    │   └── CannotSend         @isolated: a function or argument that cannot be pickled
    ├── KvmUnavailable         /dev/kvm is missing, closed to us or unusable
    ├── LaunchError            the program could not be started
    │   ├── ProgramNotFound
    │   ├── ProgramNotExecutable
    │   └── ServerNotStarted   a program that is to serve does not
    ├── HostError              the host refused something kvmlet needs
    │   ├── TooFewDescriptors
    │   └── TooFewMappings
    ├── SandboxError           the sandbox is in no state to do this
    │   ├── NotReady           the program waits for nothing, or for a message that nobody sent
    │   ├── NotListening       the program waits for no connection, or on several ports
    │   ├── ConnectionsOpen    a program cannot be frozen while it has connections out
    │   ├── ConnectionFailed   a connection into a sandbox (also a ConnectionError)
    │   │   ├── ConnectionRefused  nobody listens there (also a ConnectionRefusedError)
    │   │   ├── ConnectionReset    the program reset it (also a ConnectionResetError)
    │   │   └── ConnectionBroken   the program takes no more (also a BrokenPipeError)
    │   ├── NotAFork           only forks of a snapshot can be reset
    │   ├── IsAFork            a fork cannot be frozen again
    │   ├── StaleSnapshot      a file that the frozen program maps has changed
    │   ├── InboxFull          too many messages wait for the program
    │   ├── CallLost           a called function can no longer return
    │   ├── SandboxBusy        another thread is using it
    │   ├── SandboxClosed      it was closed or frozen
    │   │   └── ForkedProcess  it belongs to the parent of this process
    │   ├── SandboxEnded       its program has ended; `result` says how
    │   ├── BoxFull            a box has no room for another process
    │   ├── BoxWasReset        the process of a box that has been reset since
    │   └── BoxFileError       a file of a box cannot be used (also an OSError)
    │       ├── BoxFileExists      it is there already (also a FileExistsError)
    │       ├── BoxFileNotFound    it is not there (also a FileNotFoundError)
    │       ├── BoxIsADirectory    it is a directory (also an IsADirectoryError)
    │       ├── BoxNotADirectory   it is none (also a NotADirectoryError)
    │       └── BoxPermissionDenied    its mode forbids it (also a PermissionError)
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
    from typing import Any

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


class ServerNotStarted(LaunchError):
    """A program that is to serve does not come to wait for connections, or fails its warm-up."""


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


class NotListening(SandboxError):
    """The program waits, but not for a connection, or for connections on several ports."""


class ConnectionsOpen(SandboxError):
    """The program has connections to this process or another machine: they cannot be frozen."""


class ConnectionFailed(SandboxError, ConnectionError):
    """A connection to a server in a sandbox has failed; `errno` says as with an OSError."""

    def __init__(self, message: str, *, errno: int = 0, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno


class ConnectionRefused(ConnectionFailed, ConnectionRefusedError):
    """Nobody listens on that port."""


class ConnectionReset(ConnectionFailed, ConnectionResetError):
    """The program has reset the connection, or ended with bytes that it had not read."""


class ConnectionBroken(ConnectionFailed, BrokenPipeError):
    """The program takes no more bytes."""


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

    def __init__(
        self, message: str, *, result: "Result[Any] | None" = None, remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


class BoxFull(SandboxError):
    """A box has as many processes or pipes, or uses as much memory, as it may."""


class BoxWasReset(SandboxError):
    """A process belongs to a time before the last reset of its box."""


class BoxFileError(SandboxError, OSError):
    """A call for a file of a box has failed; `errno` and `filename` say as with an OSError."""

    def __init__(
        self, message: str, *, errno: int = 0, filename: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno
        self.filename = filename


class BoxFileNotFound(BoxFileError, FileNotFoundError):
    """No file of a box has this name."""


class BoxFileExists(BoxFileError, FileExistsError):
    """A file of a box has this name already."""


class BoxIsADirectory(BoxFileError, IsADirectoryError):
    """A file of a box is a directory."""


class BoxNotADirectory(BoxFileError, NotADirectoryError):
    """A file of a box is no directory, or a name on the way to it is none."""


class BoxPermissionDenied(BoxFileError, PermissionError):
    """The mode of a file of a box, or of a directory on the way to it, forbids the call."""


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

    def __init__(self, message: str, *, result: "Result[Any]", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


_REPORT = "please report it with what you ran"
_DOCTOR = "'kvmlet doctor' shows what was found"
_FORK_AGAIN = "make another one with Snapshot.fork() or Sandbox(...)"

_KINDS: dict[str, tuple[type[KvmletError], str]] = {
    "not_found": (
        ProgramNotFound,
        "it is in none of the directories of PATH; name it by its path",
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
    "serve_ended": (ServerNotStarted, "what it wrote says why; try it with 'kvmlet run'"),
    "serve_not_listening": (
        ServerNotStarted,
        "have it listen on one TCP port, or name the port that is meant by --guest-port",
    ),
    "serve_not_quiet": (
        ServerNotStarted,
        "allow more time (--boot-timeout), or have it do its work before it listens",
    ),
    "serve_unseeded": (
        ServerNotStarted,
        "its Python, or OpenSSL's RAND_poll, must return where it waits for connections",
    ),
    "warmup": (ServerNotStarted, "mend it, or say which status is expected"),
    "not_ready": (
        NotReady,
        "call until_ready() first, and recv() only for what the program sends",
    ),
    "not_listening": (
        NotListening,
        "name the port with port=, or let the program start a TCP server",
    ),
    "not_quiet": (
        DeadlineExceeded,
        "allow more time, or freeze it where it is with run_for() and freeze()",
    ),
    "unseeded": (CallLost, "reset() the fork, or start the program again"),
    "no_answer": (NotReady, "send the rest of the request, or shutdown() the sending side"),
    "connected": (ConnectionsOpen, "close() them, and run the program once more"),
    "connection": (ConnectionFailed, ""),
    "not_a_fork": (NotAFork, "freeze() it, and reset what Snapshot.fork() gives"),
    "is_a_fork": (IsAFork, "freeze what Sandbox(...) started"),
    "leads_out": (ConnectionsOpen, 'close it first, or end it by connections="drop"'),
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
    "box_full": (
        BoxFull,
        "end some of its processes, or make it with more memory or a larger max_procs",
    ),
    "box_reset": (BoxWasReset, "spawn() it again"),
    "file": (BoxFileError, "list() the directory, and see the modes with stat()"),
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
    cls, remedy = _KINDS.get(kind) or _KINDS.get(
        kind.removeprefix("serve_"), (InternalError, _REPORT)
    )
    return cls(message, remedy=remedy)
