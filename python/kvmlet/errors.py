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
    │   ├── StaleSnapshot      a file that the frozen program maps has changed
    │   ├── FrozenTooOften     forks of forks of forks, some thousand times
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
    """Base of all errors that kvmlet raises. `remedy` says what to do, "" if nothing is known.

    >>> try:
    ...     kvmlet.run("ls -l")
    ... except kvmlet.KvmletError as error:
    ...     print(error.message, "--", error.remedy)
    argv is a single str, not a list -- pass a list...
    """

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
    """An argument is wrong: a bad size, a bare string as argv, an unknown option.

    >>> kvmlet.run(["true"], memory="lots")
    Traceback (most recent call last):
    kvmlet.errors.UsageError: memory: 'lots' ...
    """


class UnknownSymbol(UsageError, LookupError):
    """The program and its libraries have no function of that name.

    >>> with snapshot.fork() as sandbox:
    ...     sandbox.call("no_such_function")
    Traceback (most recent call last):
    kvmlet.errors.UnknownSymbol: ...no_such_function...
    """


class MessageTooLong(UsageError):
    """More bytes than one message or one call's buffers may have.

    >>> with snapshot.fork() as sandbox:
    ...     sandbox.send(bytes(17 << 20))
    Traceback (most recent call last):
    kvmlet.errors.MessageTooLong: ...
    """


class CannotSend(UsageError):
    """A function or an argument cannot be pickled, so it cannot be sent to a VM.

    >>> import threading
    >>> kvmlet.isolated(len)(threading.Lock())
    Traceback (most recent call last):
    kvmlet.errors.CannotSend: len: the call cannot be pickled: ...
    """


class KvmUnavailable(KvmletError):
    """KVM cannot be used here; `remedy` says what would make it usable.

    >>> try:
    ...     kvmlet.run(["true"]).ok
    ... except kvmlet.KvmUnavailable as error:
    ...     print(error.remedy)
    True
    """


class LaunchError(KvmletError):
    """The program could not be started.

    >>> try:
    ...     kvmlet.run(["no-such-program"])
    ... except kvmlet.LaunchError as error:
    ...     type(error).__name__
    'ProgramNotFound'
    """


class ProgramNotFound(LaunchError):
    """There is no such program in the guest's view of the file system.

    >>> kvmlet.run(["no-such-program"])
    Traceback (most recent call last):
    kvmlet.errors.ProgramNotFound: no-such-program: ...
    """


class ProgramNotExecutable(LaunchError):
    """The program exists but cannot be executed: no permission, a directory, a malformed ELF.

    >>> kvmlet.run(["/usr/lib"])
    Traceback (most recent call last):
    kvmlet.errors.ProgramNotExecutable: /usr/lib: ...
    """


class ServerNotStarted(LaunchError):
    """A program that is to serve does not come to wait for connections, or fails its warm-up.

    >>> kvmlet.serve(["true"])
    Traceback (most recent call last):
    kvmlet.errors.ServerNotStarted: ...
    """


class HostError(KvmletError):
    """The host refused a resource: descriptors, memory, a directory.

    >>> try:
    ...     kvmlet.run(["true"]).ok
    ... except kvmlet.HostError as error:  # the host has run out of something
    ...     print(error.message)
    True
    """


class TooFewDescriptors(HostError):
    """The process may not open as many descriptors as its VMs take: they may have half of them.

    >>> try:
    ...     forks = [snapshot.fork() for _ in range(2)]
    ... except kvmlet.TooFewDescriptors as error:  # more forks than ulimit -n has room for
    ...     print(error.remedy)
    >>> for fork in forks:
    ...     fork.close()
    """


class TooFewMappings(HostError):
    """The process may not have as many mappings as its VMs take: they may have half of them.

    >>> try:
    ...     forks = [snapshot.fork() for _ in range(2)]
    ... except kvmlet.TooFewMappings as error:  # more than vm.max_map_count has room for
    ...     print(error.remedy)
    >>> for fork in forks:
    ...     fork.close()
    """


class SandboxError(KvmletError):
    """The sandbox is in no state to do what was asked of it.

    >>> box = kvmlet.Box()
    >>> box.close()
    >>> try:
    ...     box.run(["true"])
    ... except kvmlet.SandboxError as error:
    ...     type(error).__name__
    'SandboxClosed'
    """


class NotReady(SandboxError):
    """The program never asked for a message, or waits for one while a message of its is awaited.

    >>> with snapshot.fork() as sandbox:
    ...     sandbox.recv()  # it waits for a message itself
    Traceback (most recent call last):
    kvmlet.errors.NotReady: ...
    """


class NotListening(SandboxError):
    """The program waits, but not for a connection, or for connections on several ports.

    >>> with snapshot.fork() as sandbox:
    ...     sandbox.until_listening(timeout=10)
    Traceback (most recent call last):
    kvmlet.errors.NotListening: ...
    """


class ConnectionsOpen(SandboxError):
    """The program has connections to this process or another machine: they cannot be frozen.

    >>> with kvmlet.Box() as box:
    ...     server = box.spawn(["python3", "-m", "http.server", "80"])
    ...     box.wait_listening(80, timeout=30)
    ...     with box.connect(80):
    ...         box.snapshot()
    Traceback (most recent call last):
    kvmlet.errors.ConnectionsOpen: ...
    """


class ConnectionFailed(SandboxError, ConnectionError):
    """A connection to a server in a sandbox has failed; `errno` says as with an OSError.

    >>> with kvmlet.Box() as box:
    ...     try:
    ...         box.connect(80)
    ...     except kvmlet.ConnectionFailed as error:
    ...         error.errno
    111
    """

    def __init__(self, message: str, *, errno: int = 0, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno


class ConnectionRefused(ConnectionFailed, ConnectionRefusedError):
    """Nobody listens on that port.

    >>> with kvmlet.Box() as box:
    ...     box.connect(80)
    Traceback (most recent call last):
    kvmlet.errors.ConnectionRefused: Connection refused; run the program...
    """


class ConnectionReset(ConnectionFailed, ConnectionResetError):
    """The program has reset the connection, or ended with bytes that it had not read.

    >>> rude = "import socket; s = socket.create_server(('', 80)); s.accept()[0].recv(1)"
    >>> with kvmlet.Box() as box:
    ...     server = box.spawn(["python3", "-c", rude])
    ...     box.wait_listening(80, timeout=30)
    ...     with box.connect(80) as connection:
    ...         connection.sendall(b"more than it reads")
    ...         connection.recv(1)
    Traceback (most recent call last):
    kvmlet.errors.ConnectionReset: Connection reset by peer
    """


class ConnectionBroken(ConnectionFailed, BrokenPipeError):
    """The program takes no more bytes.

    >>> with kvmlet.Box() as box:
    ...     server = box.spawn(["python3", "-m", "http.server", "80"])
    ...     box.wait_listening(80, timeout=30)
    ...     with box.connect(80) as connection:
    ...         connection.shutdown(1)  # socket.SHUT_WR
    ...         connection.sendall(b"too late")
    Traceback (most recent call last):
    kvmlet.errors.ConnectionBroken: Broken pipe
    """


class NotAFork(SandboxError):
    """There is no frozen state to return to: the sandbox was started, not forked.

    >>> with kvmlet.Sandbox(["sleep", "60"]) as sandbox:
    ...     sandbox.reset()
    Traceback (most recent call last):
    kvmlet.errors.NotAFork: ...
    """


class StaleSnapshot(SandboxError):
    """A file that the frozen program has mapped changed since: its forks would mix old and new.

    >>> import shutil
    >>> copy = shutil.copy("/bin/sleep", "sleep")
    >>> with kvmlet.Sandbox(["./sleep", "60"]).run_for("200ms").freeze() as frozen:
    ...     size = open("sleep", "ab").write(b"changed")
    ...     frozen.fork()
    Traceback (most recent call last):
    kvmlet.errors.StaleSnapshot: ...
    """


class FrozenTooOften(SandboxError):
    """A fork of forks of forks cannot be frozen again. Some 8,000 freezes can build on each other.

    The fork goes on as it was.

    >>> with snapshot.fork() as sandbox:
    ...     try:
    ...         again = sandbox.freeze()
    ...     except kvmlet.FrozenTooOften as error:  # it goes back to thousands of freezes
    ...         print(error.remedy)
    ...     else:
    ...         again.close()
    """


class InboxFull(SandboxError):
    """More messages wait to be received than the program may leave waiting.

    >>> with snapshot.fork() as sandbox:
    ...     for _ in range(2000):
    ...         sandbox.send(bytes(1 << 16))
    Traceback (most recent call last):
    kvmlet.errors.InboxFull: ...
    """


class CallLost(SandboxError):
    """A called function can no longer return: its thread ended or took up something else.

    >>> import ctypes
    >>> with snapshot.fork() as sandbox:
    ...     try:
    ...         sandbox.call("abs", -5, returns=ctypes.c_int)
    ...     except kvmlet.CallLost:  # its thread has ended, say
    ...         sandbox.reset()
    5
    """


class SandboxBusy(SandboxError):
    """Another thread is using the sandbox, which serves one at a time.

    >>> with kvmlet.Interpreter() as py:
    ...     py.run("print(1)", stdout=lambda line: py.run("2"))
    Traceback (most recent call last):
    kvmlet.errors.SandboxBusy: ...
    """


class SandboxClosed(SandboxError):
    """The sandbox, snapshot or pool was closed; a sandbox also is by `freeze()`.

    >>> box = kvmlet.Box()
    >>> box.close()
    >>> box.run(["true"])
    Traceback (most recent call last):
    kvmlet.errors.SandboxClosed: the box is closed; ...
    """


class ForkedProcess(SandboxClosed):
    """It belongs to the parent of this process: virtual machines do not survive `os.fork()`.

    >>> import os
    >>> with kvmlet.Box() as box:
    ...     child = os.fork()
    ...     if child == 0:
    ...         try:
    ...             box.run(["true"])
    ...         except kvmlet.ForkedProcess:
    ...             os._exit(7)
    ...     os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    7
    """


class SandboxEnded(SandboxError):
    """The program has ended, by itself or at a limit; `result` says how and what it wrote last.

    >>> with kvmlet.Sandbox(["sh", "-c", "echo last words >&2; exit 3"]) as sandbox:
    ...     sandbox.until_ready()
    Traceback (most recent call last):
    kvmlet.errors.SandboxEnded: the program exited with status 3, its last error line: last...
    """

    def __init__(
        self, message: str, *, result: "Result[Any] | None" = None, remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


class BoxFull(SandboxError):
    """A box has as many processes or pipes, or uses as much memory, as it may.

    >>> with kvmlet.Box(max_procs=1) as box:
    ...     process = box.spawn(["sleep", "60"])
    ...     box.run(["true"])
    Traceback (most recent call last):
    kvmlet.errors.BoxFull: ...
    """


class BoxWasReset(SandboxError):
    """A process belongs to a time before the last reset of its box.

    >>> with kvmlet.Box() as box:
    ...     process = box.spawn(["sleep", "60"])
    ...     box.reset()
    ...     process.poll()
    Traceback (most recent call last):
    kvmlet.errors.BoxWasReset: ...; spawn() it again
    """


class BoxFileError(SandboxError, OSError):
    """A call for a file of a box has failed; `errno` and `filename` say as with an OSError.

    >>> with kvmlet.Box() as box:
    ...     box.files.write("/usr/mine", "")
    Traceback (most recent call last):
    kvmlet.errors.BoxFileError: '/usr/mine': Read-only file system; write below /work or /tmp
    """

    def __init__(
        self, message: str, *, errno: int = 0, filename: str = "", remedy: str = ""
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.errno = errno
        self.filename = filename


class BoxFileNotFound(BoxFileError, FileNotFoundError):
    """No file of a box has this name.

    >>> with kvmlet.Box() as box:
    ...     box.files.read("missing")
    Traceback (most recent call last):
    kvmlet.errors.BoxFileNotFound: 'missing': No such file or directory; list() the directory
    """


class BoxFileExists(BoxFileError, FileExistsError):
    """A file of a box has this name already.

    >>> with kvmlet.Box() as box:
    ...     box.files.mkdir("folder")
    ...     box.files.mkdir("folder")
    Traceback (most recent call last):
    kvmlet.errors.BoxFileExists: 'folder': File exists
    """


class BoxIsADirectory(BoxFileError, IsADirectoryError):
    """A file of a box is a directory.

    >>> with kvmlet.Box() as box:
    ...     box.files.read("/usr")
    Traceback (most recent call last):
    kvmlet.errors.BoxIsADirectory: '/usr': Is a directory; name a file in it
    """


class BoxNotADirectory(BoxFileError, NotADirectoryError):
    """A file of a box is no directory, or a name on the way to it is none.

    >>> with kvmlet.Box() as box:
    ...     box.files.write("file", "")
    ...     box.files.list("file")
    Traceback (most recent call last):
    kvmlet.errors.BoxNotADirectory: 'file': Not a directory
    """


class BoxPermissionDenied(BoxFileError, PermissionError):
    """The mode of a file of a box, or of a directory on the way to it, forbids the call.

    >>> with kvmlet.Box() as box:
    ...     box.files.write("/proc/version", "mine")
    Traceback (most recent call last):
    kvmlet.errors.BoxPermissionDenied: '/proc/version': Permission denied; ...
    """


class DeadlineExceeded(KvmletError, TimeoutError):
    """A time limit passed before the program had done what was asked.

    >>> with kvmlet.Box() as box:
    ...     box.spawn(["sleep", "60"]).wait(timeout="100ms")
    Traceback (most recent call last):
    kvmlet.errors.DeadlineExceeded: process ... has not ended in time; ...
    """


class Interrupted(KvmletError):
    """The program was stopped by `Sandbox.interrupt()` or by cancelling its future.

    >>> with snapshot.fork() as sandbox:
    ...     sandbox.interrupt()
    ...     sandbox.request(b"question")
    Traceback (most recent call last):
    kvmlet.errors.Interrupted: ...
    """


class PoolError(KvmletError):
    """A pool cannot take a job.

    >>> pool = kvmlet.Pool(snapshot)
    >>> pool.shutdown()
    >>> try:
    ...     pool.request(b"question")
    ... except kvmlet.PoolError as error:
    ...     type(error).__name__
    'PoolClosed'
    """


class PoolClosed(PoolError, RuntimeError):
    """The pool was shut down. A RuntimeError too: what every other executor raises here.

    >>> pool = kvmlet.Pool(snapshot)
    >>> pool.shutdown()
    >>> pool.request(b"question")
    Traceback (most recent call last):
    kvmlet.errors.PoolClosed: ...
    """


class QueueFull(PoolError):
    """As many jobs are waiting as the pool may queue.

    >>> import time
    >>> with kvmlet.Pool(snapshot, 1, queue=1) as pool:
    ...     [pool.submit(lambda sandbox: time.sleep(0.3)) for _ in range(3)]
    Traceback (most recent call last):
    kvmlet.errors.QueueFull: ...
    """


class ResultError(KvmletError, TypeError):
    """The result of an isolated function is not plain data; the message names the type.

    >>> import re
    >>> kvmlet.isolated(re.compile)("a+")
    Traceback (most recent call last):
    kvmlet.errors.ResultError: the result is not plain data: it contains re.Pattern; return ...
    """


class GuestError(KvmletError):
    """An isolated function raised. Of a builtin type, the exception is also of that type.

    It is never one that ends a loop, a task or the program: StopIteration, StopAsyncIteration, and
    what is no Exception (SystemExit, KeyboardInterrupt, GeneratorExit, CancelledError).

        >>> import json
        >>> try:
        ...     kvmlet.isolated(json.loads)("{")
        ... except kvmlet.GuestError as error:
        ...     error.type_name, "json" in error.guest_traceback
        ('json.decoder.JSONDecodeError', True)
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
    """A fault in kvmlet. The run it happened in is lost, other runs are not affected.

    >>> try:
    ...     kvmlet.run(["true"]).ok
    ... except kvmlet.InternalError as error:  # please report it
    ...     print(error.message)
    True
    """


class ExitError(KvmletError):
    """Raised by `Result.check()`; `result` is that result.

    >>> kvmlet.run("echo no such thing >&2; exit 3", shell=True, check=True)
    Traceback (most recent call last):
    kvmlet.errors.ExitError: the program exited with status 3, its last error line: no such...
    """

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
        "make it executable (chmod +x FILE), or name its interpreter: python3 FILE",
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
    "serve_not_ready": (
        ServerNotStarted,
        "have it take them: kvmlet_guest.serve(...), or kvmlet_receive in C",
    ),
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
    "leads_out": (ConnectionsOpen, 'close it first, or end it by connections="drop"'),
    "frozen_too_often": (
        FrozenTooOften,
        "it is unharmed; go back to an earlier snapshot, or start the program again",
    ),
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


_VISIBLE = "'kvmlet why PATH' says whether it is visible, and which option shows it"


def _remedy(kind: str, message: str) -> str | None:
    """The remedy of a kind that has several; None for the kind's own."""
    if "its interpreter" in message:
        if "\r" in message:
            return "its lines end as on Windows: convert them with dos2unix"
        return "correct the script's first line, or show the interpreter by --read"
    program = message.rpartition(": ")[0]
    if kind == "not_found" and "/" in program:
        return _VISIBLE
    if kind == "host" and message.endswith(": EADDRINUSE"):
        return "end what listens there, or choose another port"
    if kind == "host" and message.endswith(": EADDRNOTAVAIL"):
        return "name an address of this machine, or 0.0.0.0 for all of them"
    if kind == "host" and message.startswith("publish: ") and message.endswith(": EACCES"):
        return "choose a port from 1024 on"
    if kind == "bad_argument" and message.startswith("net: ") and "://" in message:
        return "write the host alone, without http:// and without a path"
    if kind == "bad_argument" and message.startswith("net: "):
        return "write HOST, *.NAME, an address, 10.0.0.0/8 or public, perhaps with :PORT"
    if kind == "bad_argument" and message.startswith("publish: "):
        return "as in 8080:80, or 0.0.0.0:8080:80"
    return None


def from_native(kind: str, message: str) -> KvmletError:
    """The exception for a NativeError's (kind, message)."""
    cls, remedy = _KINDS.get(kind) or _KINDS.get(
        kind.removeprefix("serve_"), (InternalError, _REPORT)
    )
    shown = message.replace(": EADDRINUSE", ": address already in use")
    shown = shown.replace(": EADDRNOTAVAIL", ": it is no address of this machine")
    return cls(shown, remedy=_remedy(kind, message) or remedy)


def named_by_options(error: KvmletError) -> KvmletError:
    """The same error of an argument, by the name of the option of the command."""
    word, colon, rest = error.message.partition(": ")
    option = {"cwd": "-w", "net": "--net", "publish": "-p"}.get(word)
    if option is None:
        return error
    return type(error)(f"{option}{colon}{rest}", remedy=error.remedy)
