"""The signals that end a run as an exception, and the names of signals."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    # What `signal` is built on: `signal` itself makes enums of its tables on every start.
    import _signal

SIGINT = int(_signal.SIGINT)
SIGPIPE = int(_signal.SIGPIPE)

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
