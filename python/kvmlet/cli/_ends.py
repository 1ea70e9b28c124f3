"""The end of a command: every exit status, and the signals that end it as an exception."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    # `signal` is built on it, and itself makes enums of its tables on every start.
    import _signal

SIGINT = int(_signal.SIGINT)
SIGPIPE = int(_signal.SIGPIPE)

# Those of timeout(1) and shells. What is not here is the program's own.
STATUS_OK = 0
STATUS_NO_VM = 1
STATUS_TIMEOUT = 124
STATUS_OWN_ERROR = 125
STATUS_OUTPUT = STATUS_OWN_ERROR
STATUS_NOT_EXECUTABLE = 126
STATUS_NOT_FOUND = 127
STATUS_MEMORY = 137
# As a shell shows SIGXCPU, which ends a process at its RLIMIT_CPU.
STATUS_CPU_TIME = 152


def status_of_signal(signum: int) -> int:
    """The exit status of what signal `signum` ended."""
    return 128 + signum


STATUS_INTERRUPTED = status_of_signal(SIGINT)
STATUS_READER_GONE = status_of_signal(SIGPIPE)

# Each ends the process by default. Caught, the VM is taken down first, and terminals get their
# settings back.
_ENDING = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT)

# Second names of SIGCHLD, SIGABRT and SIGIO.
_ALIASES = ("SIGCLD", "SIGIOT", "SIGPOLL")


class SignalReceived(BaseException):
    """One of _ENDING came. Not an Exception: nothing may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def catch() -> "list[tuple[int, _signal._HANDLER]]":
    """Make what ends a process raise SignalReceived; the handlers there were, for `restore`.

    A signal that the caller ignores (nohup, a shell's background job) stays ignored.
    """
    previous: list[tuple[int, _signal._HANDLER]] = []
    for signum in _ENDING:
        if _signal.getsignal(signum) != _signal.SIG_IGN:
            try:
                previous.append((signum, _signal.signal(signum, _raise)))
            except ValueError:  # not the main thread: its owner handles signals
                break
    return previous


def restore(previous: "list[tuple[int, _signal._HANDLER]]") -> None:
    """Put back the handlers that `catch` replaced."""
    for signum, handler in previous:
        _signal.signal(signum, handler)


def _raise(signum: int, _frame: object) -> None:
    # A second one while the VM is being taken down ends the process at once.
    _signal.signal(signum, _signal.SIG_DFL)
    raise SignalReceived(signum)


def signal_name(number: int) -> str:
    """ "SIGSEGV (Segmentation fault)", or "signal 40" for one without a name."""
    for name, value in vars(_signal).items():
        if value == number and name.startswith("SIG") and name[3] != "_" and name not in _ALIASES:
            return f"{name} ({_signal.strsignal(number)})"
    return f"signal {number}"
