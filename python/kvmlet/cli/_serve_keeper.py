"""`kvmlet serve --config FILE`: the process that keeps the sockets, and starts those that serve.

A reload is a new process: it reads the file anew, and has a second wall of its own. A process that
serves could never widen its wall. The sockets stay, so that no client is refused meanwhile.
"""

import os
import select

from kvmlet import _native
from kvmlet.cli import _ends
from kvmlet.cli._serve_config import read
from kvmlet.cli._serve_plan import SIGNALS, Kept, Plan
from kvmlet.cli._text import warn
from kvmlet.errors import KvmletError, UsageError, from_native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal


def serve(file: str) -> int:
    """Serve what `file` says, and what it says later, until told to stop; the exit status.

    Raises UsageError and, in a process that is to serve, what the start of that raises.
    """
    try:
        keeper = _Keeper(file)
        keeper.start()
        while keeper.status is None:
            keeper.wait()
    except _IsChild as child:
        plan, kept = child.plan, child.kept
    else:
        return keeper.status
    return plan.serve(kept)


class _IsChild(Exception):
    """This process is one that shall serve."""

    def __init__(self, plan: Plan, kept: Kept) -> None:
        super().__init__()
        self.plan, self.kept = plan, kept


def enter_folder_of(file: str) -> str:
    """Have relative paths start at the folder of `file`; its name from there. Raises UsageError."""
    folder, name = os.path.split(file)
    if folder:
        try:
            os.chdir(folder)
        except OSError as error:
            raise UsageError(
                f"--config: {file}: {error.strerror}", remedy="name a file in TOML"
            ) from None
    return name


class _Child:
    """A process that serves, or is about to."""

    def __init__(self, pid: int, pipe: int, plan: Plan) -> None:
        self.pid, self.pipe, self.plan = pid, pipe, plan
        self.is_ready = False

    def tell(self, signum: int) -> None:
        # It may be gone, and is not reaped yet.
        os.kill(self.pid, signum)


class _Keeper:
    """Sockets by their places, and the processes that have them."""

    def __init__(self, file: str) -> None:
        self.status: int | None = None
        self._file = file
        self._sockets: dict[str, int] = {}
        self._children: dict[int, _Child] = {}
        # The one that serves, and the one that is to take over from it.
        self._current: _Child | None = None
        self._next: _Child | None = None
        self._is_asked = False
        self._stops = 0
        # Of the one that served, once it has ended.
        self._code = _ends.STATUS_OK
        self._woken, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakers = (self._woken, woken)
        for signum in (*SIGNALS, _signal.SIGCHLD):
            # All that is done happens outside of it.
            _signal.signal(signum, lambda *_: None)
        _signal.set_wakeup_fd(woken, warn_on_full_buffer=False)

    def start(self) -> None:
        """Start the first one. Raises UsageError, and what its start raises, in that one."""
        plan = read(self._file)
        self._bind(plan)
        self._current = self._spawn(plan, takes_over=False)

    def wait(self) -> None:
        """Wait for the next thing to happen, and do what it asks for."""
        waiting = select.poll()
        waiting.register(self._woken, select.POLLIN)
        pipes = {child.pipe: child for child in self._children.values() if not child.is_ready}
        for pipe in pipes:
            waiting.register(pipe, select.POLLIN)
        come = [fd for fd, _ in waiting.poll()]
        for pipe, child in pipes.items():
            if pipe in come and os.read(pipe, 1):
                self._serves(child)
        signals = os.read(self._woken, 4096) if self._woken in come else b""
        for signum in signals:
            if signum in (_signal.SIGTERM, _signal.SIGINT):
                self._stop()
            elif signum == _signal.SIGHUP:
                self._is_asked = True
        self._reap()
        is_free = self._next is None and self._current is not None and self._current.is_ready
        if self._is_asked and is_free and not self._stops and self.status is None:
            self._is_asked = False
            self._reload()

    def _reload(self) -> None:
        try:
            plan = read(self._file)
            self._bind(plan)
            self._next = self._spawn(plan, takes_over=True)
        except (KvmletError, OSError) as error:
            self._stays(str(error))

    def _stays(self, why: str = "") -> None:
        """Say that what there is serves on, and let go of what it does not need."""
        text = "the file was not taken, and what was served before is served on"
        warn(f"{text}: {why}" if why else text)
        self._close_unused()

    def _close_unused(self) -> None:
        places = self._current.plan.places if self._current else []
        for place in [each for each in self._sockets if each not in places]:
            os.close(self._sockets.pop(place))

    def _serves(self, child: _Child) -> None:
        child.is_ready = True
        if child is not self._next:
            return
        before, self._current, self._next = self._current, child, None
        self._close_unused()
        if not child.plan.quiet:
            warn("reloaded")
        if before is not None:
            # It gives way to the new one, which has its sockets.
            before.tell(_signal.SIGHUP)

    def _stop(self) -> None:
        self._stops += 1
        for fd in self._sockets.values():
            os.close(fd)
        self._sockets.clear()
        for child in self._children.values():
            # Those that have given way are ending, and a second word would end them at once.
            if self._stops > 1 or child in (self._current, self._next):
                child.tell(_signal.SIGTERM)

    def _reap(self) -> None:
        """Take leave of those that have ended; all is over once there are none."""
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is None:
                continue
            os.close(child.pipe)
            code = os.waitstatus_to_exitcode(status)
            if child is self._next:
                self._next = None
                if not self._stops:
                    self._stays()
            elif child is self._current:
                # It has ended by itself: so do the others.
                self._current = None
                self._code = _ends.status_of_signal(-code) if code < 0 else code
                if not self._stops:
                    self._stop()
        if self._stops:
            self.status = self._code

    def _bind(self, plan: Plan) -> None:
        """Listen where `plan` says, too. Raises UsageError, and changes nothing then."""
        new: dict[str, int] = {}
        try:
            for place in plan.places:
                if place not in self._sockets and place not in new:
                    new[place] = _native.listen(place)
        except _native.NativeError as error:
            for fd in new.values():
                os.close(fd)
            raise from_native(*error.args) from None
        self._sockets |= new

    def _spawn(self, plan: Plan, *, takes_over: bool) -> _Child:
        """A process that serves `plan`: in it, this does not return."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        # A signal that comes too early for the child waits until that has handlers of its own.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._leave(ours)
            served = self._of_sockets(plan)
            kept = Kept(parent, theirs, list(self._sockets.values()), takes_over=takes_over)
            raise _IsChild(served, kept)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, SIGNALS)
        os.close(theirs)
        child = self._children[pid] = _Child(pid, ours, plan)
        return child

    def _leave(self, pipe: int) -> None:
        """In a child: nothing of the keeper's is left but its sockets."""
        _signal.set_wakeup_fd(-1)
        for signum in (*SIGNALS, _signal.SIGCHLD):
            _signal.signal(signum, _signal.SIG_DFL)
        for fd in (pipe, *self._wakers, *(child.pipe for child in self._children.values())):
            os.close(fd)

    def _of_sockets(self, plan: Plan) -> Plan:
        """The same with the keeper's sockets in the place of their places."""
        at = {place: f"fd:{fd}" for place, fd in self._sockets.items()}
        return Plan(
            plan.programs,
            plan.front,
            storages=plan.storages,
            listen=[at[place] for place in plan.listen],
            control=None if plan.control is None else at[plan.control],
            quiet=plan.quiet,
        )
