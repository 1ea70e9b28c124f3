"""What can go wrong, as exceptions.

    KvmletError
    ├── UsageError             the call itself is wrong (also a ValueError)
    ├── KvmUnavailable         /dev/kvm is missing, closed to us or unusable
    ├── LaunchError            the program could not be started
    │   ├── ProgramNotFound
    │   └── ProgramNotExecutable
    ├── HostError              the host refused something kvmlet needs
    ├── ExitError              Result.check(): the program did not end with status 0
    └── InternalError          a fault in kvmlet

Each is one line of text: what happened and, after a semicolon, what to do about it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmlet.sandbox import Result


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


class InternalError(KvmletError):
    """A fault in kvmlet. The run it happened in is lost, other runs are not affected."""


class ExitError(KvmletError):
    """Raised by `Result.check()`; `result` is that result."""

    def __init__(self, message: str, *, result: "Result", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


_REPORT = "please report it with what you ran"
_DOCTOR = "'kvmlet doctor' shows what was found"

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
    "internal": (InternalError, _REPORT),
    "host": (HostError, ""),
}


def from_native(kind: str, message: str) -> KvmletError:
    """The exception for a NativeError's (kind, message)."""
    cls, remedy = _KINDS.get(kind, (InternalError, _REPORT))
    return cls(message, remedy=remedy)
