"""An unmodified server whose every request meets it as it was frozen, in this process.

    with kvmlet.serve(["python3", "-m", "http.server", "8000"], forks=8) as server:
        urllib.request.urlopen(server.url)

It is `kvmlet serve` without its second wall, as every sandbox of the library: threads of this
process speak with clients and run the forks. Where clients are not to be trusted, run the command.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from kvmlet import _native, _process
from kvmlet._calls import calls_mode
from kvmlet._extension import translated
from kvmlet._launch import guest_argv, named_of
from kvmlet._serving import (
    DEFAULTS,
    FRONT_DEFAULTS,
    MAX_STORAGES,
    PROGRAM_DEFAULTS,
    STORAGE_DEFAULTS,
    FrontWords,
    ProgramWords,
    StorageWords,
    given,
    is_name,
)
from kvmlet._serving import start_of as _start_of
from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    parse_count,
    parse_duration,
    parse_size,
)
from kvmlet.errors import (
    DeadlineExceeded,
    ForkedProcess,
    SandboxClosed,
    UsageError,
)
from kvmlet.policy import policy_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self, TypeAlias, Unpack

    from kvmlet._launch import Start
    from kvmlet.policy import Policy

    Word: TypeAlias = str | bytes | os.PathLike[str]
    Path: TypeAlias = str | os.PathLike[str]

__all__ = ["Server", "ServerStats", "serve"]

# A port of the system's choice, for this machine only.
_ANY_PORT = "127.0.0.1:0"
# Between two looks at what the threads have done.
_LOOK_S = 0.005
# At the end of the interpreter, the time that stopped forks have to return.
_LAST_WAIT_S = 5.0


class StorageOptions(TypedDict, total=False):
    """A storage: a program that is not reset, which forks ask (`kvmlet_guest.storage`).

    It has the files and variables of the server. Sizes and times are as in `ServerOptions`.
    """

    command: Sequence[Word]
    """The program and its arguments; the only one that must be given."""
    memory: int | str
    max_procs: int
    concurrent: int
    """Questions that it is given at one time, 1 by default. A thread of its own answers each."""
    timeout: float | str
    """A question's deadline, 30s by default. One that takes longer has it started anew."""
    boot_timeout: float | str


class ServerOptions(TypedDict, total=False):
    """Keywords of `Server`: the options of `kvmlet serve`, by their names and with its defaults.

    Times are in seconds or as "500ms", "2m"; sizes in bytes or as "64m".
    """

    listen: str | Sequence[str]
    """Places, "[ADDR:]PORT", "unix:PATH" or "fd:N"; by default a free port of 127.0.0.1."""
    control: str | None
    """A place for /-/healthy, /-/ready, /-/status and /metrics."""
    policy: Policy | None
    """Things that the program may see, use and change; it reaches no host."""
    read: Sequence[Path]
    write: Sequence[Path]
    """Files and directories that it may change, on the host itself. No reset undoes that."""
    env: Mapping[str, str] | None
    cwd: Path | None
    memory: int | str | None
    max_procs: int | None
    calls: str | None
    storage: Mapping[str, Sequence[Word] | StorageOptions]
    """Programs that are not reset, by the names that forks ask them by."""
    isolate: str
    """The unit that meets the frozen program: "request", "connection", or "none"."""
    forks: int | None
    queue: int
    timeout: float | str | None
    """A request's deadline."""
    idle_timeout: float | str
    header_timeout: float | str
    keepalive: float | str
    boot_timeout: float | str
    grace: float | str
    """Time for requests that are under way when it is stopped."""
    max_body: int | str
    max_connections: int
    max_upgrades: int | None
    request_memory: int | str | None
    guest_port: int | None
    warmup: int
    warmup_request: Sequence[str]
    access_log: str
    """Lines on standard output: "off", "common" or "json"."""
    trusted_proxy: Sequence[str]
    proxy_protocol: str
    """"required" of trusted proxies, or "off"."""
    tls_cert: Path | None
    tls_key: Path | None


_KNOWN = {
    *("listen", "control", "policy", "read", "write", "env", "cwd", "memory", "max_procs"),
    *("calls", "storage"),
    *DEFAULTS,
}


@dataclass(frozen=True, slots=True)
class ServerStats:
    """Counts of a server at one moment.

    >>> import urllib.request
    >>> with kvmlet.serve(["python3", "-m", "http.server", "8000"], forks=1) as server:
    ...     page = urllib.request.urlopen(server.url).read()
    >>> server.stats().requests["ok"]
    1
    """

    requests: Mapping[str, int]
    """Requests by the way they ended: "ok", "refused", "full", "deadline", "crash", and more."""
    forks: int
    """Forks there are."""
    forks_busy: int
    """Forks that have a request or are being reset."""
    forks_rebuilt: int
    """Forks that were made anew after failures."""
    waiting: int
    """Requests that wait for a fork."""
    connections: int
    """Connections of clients."""
    upgrades: int
    """Connections that hold a fork."""
    reloads: int
    """Programs that took the place of another."""
    pages_reset: int
    """Pages that resets put back."""


class _Course:
    """A server and the thread that waits for its end; knows nothing of the object before it."""

    def __init__(self, native: _native.Server) -> None:
        self.native = native
        self.ended = threading.Event()
        self.error: Exception | None = None
        self.thread: threading.Thread | None = None

    def begin(self) -> None:
        self.thread = threading.Thread(target=self._run, name="kvmlet-serve", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            translated(self.native.run)
        except Exception as error:  # noqa: BLE001 - who started it raises it
            self.error = error
        finally:
            self.ended.set()

    def until_ready(self) -> None:
        """Returns once it takes requests, or raises why it does not."""
        while not self.native.is_ready():
            if self.ended.wait(_LOOK_S):
                if self.error is not None:
                    raise self.error
                raise SandboxClosed("the server has been stopped", remedy="make another one")

    def end_now(self) -> None:
        """Ends it without waiting for its requests."""
        self.native.stop()
        self.native.stop()
        if self.thread is None:
            self.native.discard()
            self.ended.set()


class Server:
    """A server in VMs: started, frozen where it waits for connections, and forked for clients.

    It listens once it is made, serves between `start` and `stop`, and serves once only. As a
    context manager it is started on entry and stopped on exit. Any thread may use it.

    Lines of the program go to standard error, each with its fork and request.

        >>> server = kvmlet.Server(["python3", "-m", "http.server", "8000"], forks=1)
        >>> server.state, server.url
        ('new', 'http://127.0.0.1:...')
        >>> with server:
        ...     server.state
        'serving'
    """

    def __init__(self, argv: Sequence[Word], **options: Unpack[ServerOptions]) -> None:
        """Prepare `argv`, and listen. The options are those of `kvmlet serve` (`ServerOptions`).

        Raises UsageError, HostError.
        """
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise UsageError(f"a server has no option {unknown[0]!r}", remedy="see ServerOptions")
        keywords: dict[str, Any] = dict(options)
        all_words = {**DEFAULTS, **keywords}
        words = ProgramWords(given(all_words, PROGRAM_DEFAULTS), str)
        front = FrontWords(given(all_words, FRONT_DEFAULTS), str)
        policy = policy_of(
            keywords.get("policy"),
            read=keywords.get("read", ()),
            write=keywords.get("write", ()),
            env=keywords.get("env"),
            memory=keywords.get("memory"),
            max_procs=keywords.get("max_procs"),
        )
        limits = policy.limits.in_full()
        if limits.timeout_s is not None or limits.cpu_time_s is not None:
            raise UsageError(
                "policy: a server has neither timeout nor cpu_time of its own",
                remedy="give its requests a deadline: timeout=",
            )
        if limits.disk_bytes is not None:
            raise UsageError(
                "policy: files of a program that is served lie in memory, not on a disk",
                remedy="leave disk out, and give it more memory",
            )
        if policy.net or policy.publish or policy.unix:
            raise UsageError(
                "policy: a program that is served reaches no host",
                remedy="leave net, publish and unix out",
            )
        program = guest_argv(argv)
        calls = calls_mode(keywords.get("calls"), stacklevel=3)

        def start(argv: list[bytes], *, asks: bool) -> Start:
            cwd, named = keywords.get("cwd"), named_of(policy)
            found: Start = translated(_start_of, argv, policy.env, cwd, named, asks=asks)
            return found

        storages = [
            _storage(name, options, start, calls)
            for name, options in _table(keywords.get("storage", {})).items()
        ]
        started = start(program, asks=bool(storages))
        if started.note:
            warnings.warn(started.note, stacklevel=2)
        warning = front.tls and front.tls.warning()
        if warning:
            warnings.warn(warning, stacklevel=2)
        listen = _places(keywords.get("listen", _ANY_PORT), "listen")
        control = keywords.get("control")
        served = translated(
            words.served,
            started,
            memory_bytes=limits.memory_bytes,
            processes_max=limits.processes_max,
            files_max=limits.files_max,
            calls=calls,
            storages=storages,
        )
        native = translated(
            front.server,
            [served],
            storages=storages,
            listen=listen,
            control=None if control is None else _places(control, "control")[0],
            quiet=True,
            signals=False,
        )
        self._course = _Course(native)
        self._name = program[0].decode("utf-8", "backslashreplace")
        self._scheme = "https" if front.tls else "http"
        self._lock = threading.Lock()
        self._is_forked = False
        self._addresses = tuple(native.names())
        _process.track(self)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self.close()

    def __repr__(self) -> str:
        return f"<kvmlet.Server {self._name} at {', '.join(self._addresses)} ({self.state})>"

    def __del__(self) -> None:
        course = getattr(self, "_course", None)
        if course is not None and not self._is_forked:
            course.end_now()

    # ---- its place ----

    @property
    def state(self) -> str:
        """ "new", "starting", "serving" or "ended"."""
        course = self._course
        if course.ended.is_set():
            return "ended"
        if course.thread is None:
            return "new"
        return "serving" if course.native.is_ready() else "starting"

    @property
    def addresses(self) -> tuple[str, ...]:
        """The places that it listens at: "127.0.0.1:40000", "unix:/run/app"."""
        return self._addresses

    @property
    def port(self) -> int:
        """The first port that it listens on. Raises UsageError if it has UNIX sockets only."""
        return int(self._inet().rpartition(":")[2])

    @property
    def url(self) -> str:
        """The first of its addresses, as a URL without a path. Raises UsageError, as `port`."""
        host, _, port = self._inet().rpartition(":")
        if host in ("0.0.0.0", "[::]"):
            host = "localhost"
        return f"{self._scheme}://{host}:{port}"

    def _inet(self) -> str:
        for address in self._addresses:
            if not address.startswith("unix"):
                return address
        raise UsageError("it listens at no port", remedy="see addresses")

    # ---- its course ----

    def start(self) -> Self:
        """Start the program, warm it, freeze it, and take clients; this server.

        Returns once it serves. Raises LaunchError (a ServerNotStarted if it does not come to
        serve), KvmUnavailable, HostError, SandboxClosed if it has been stopped.
        """
        course = self._usable()
        with self._lock:
            if course.thread is None and not course.ended.is_set():
                course.begin()
        try:
            course.until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def stop(self, grace: float | str | None = None) -> None:
        """Take no more clients, and return when all requests are answered.

        grace: ends those that are left then, at once; by default the one that it was made with.

        Raises UsageError.
        """
        limit_s = None if grace is None else parse_duration(grace, "grace")
        course = self._course
        if self._is_forked:
            return
        if course.thread is None:
            course.end_now()
            return
        course.native.stop()
        if not course.ended.wait(limit_s):
            self.close()
        course.thread.join()

    def close(self) -> None:
        """End it at once, with the requests that are under way."""
        course = self._course
        if self._is_forked:
            return
        course.end_now()
        if course.thread is not None:
            course.thread.join()

    def reload(self, timeout: float | str | None = None) -> None:
        """Start the program anew beside the one that serves, which it then takes the place of.

        The certificate is read again, too. No request fails meanwhile. Returns when that is done.

        timeout: for waiting; the reload goes on. By default the program's time to boot is enough.

        Raises ServerNotStarted and UsageError, and what was before serves on; DeadlineExceeded,
        SandboxClosed.
        """
        limit_s = None if timeout is None else parse_duration(timeout, "timeout")
        end_s = None if limit_s is None else time.monotonic() + limit_s
        course = self._usable()
        if course.thread is None:
            raise SandboxClosed("the server does not serve yet", remedy="start() it first")
        number = course.native.reload()
        while not translated(course.native.reloaded, number):
            if course.ended.wait(_LOOK_S):
                raise SandboxClosed("the server has been stopped", remedy="make another one")
            if end_s is not None and time.monotonic() > end_s:
                raise DeadlineExceeded("the server was not reloaded in time", remedy="wait longer")

    def stats(self) -> ServerStats:
        """Counts at this moment, or at its end."""
        native = self._course.native
        counts = dict(native.counts()) or dict.fromkeys(_COUNTS, 0)
        return ServerStats(requests=dict(native.requests()), **counts)

    def _usable(self) -> _Course:
        if self._is_forked:
            raise ForkedProcess(
                "the server is one of the parent of this process",
                remedy="make it again in this process",
            )
        return self._course

    def _abandon(self) -> None:
        # Its threads are not here.
        self._is_forked = True

    def _stop(self) -> None:
        course = self._course
        course.end_now()
        if course.thread is not None:
            course.thread.join(_LAST_WAIT_S)


def _table(storages: object) -> dict[str, object]:
    if isinstance(storages, Mapping):
        if len(storages) > MAX_STORAGES:
            raise UsageError(
                f"storage: {len(storages)} are too many", remedy=f"the most are {MAX_STORAGES}"
            )
        return dict(storages)
    raise UsageError(
        f"storage: {storages!r} is no table",
        remedy='write storage={"cart": ["python3", "cart.py"]}',
    )


def _storage(
    name: object, options: object, start: Callable[..., Start], calls: str
) -> _native.Storage:
    if not isinstance(name, str) or not is_name(name):
        raise UsageError(
            f"storage: {name!r} is no name", remedy="write letters, digits, '-' and '_'"
        )
    words: dict[str, Any] = dict(options) if isinstance(options, Mapping) else {"command": options}
    where = f"storage[{name!r}]"
    command = words.pop("command", None)
    if command is None:
        raise UsageError(f"{where} has no command", remedy='give it one: "command": ["python3"]')
    if isinstance(command, (str, bytes)):
        raise UsageError(
            f"{where}: its command is a single {type(command).__name__}, not a list",
            remedy='write its words, as ["python3", "cart.py"]',
        )
    memory = words.pop("memory", DEFAULT_MEMORY_BYTES)
    processes_max = words.pop("max_procs", DEFAULT_MAX_PROCS)
    unknown = sorted(str(key) for key in set(words) - set(STORAGE_DEFAULTS))
    if unknown:
        raise UsageError(f"{where} has no option {unknown[0]!r}", remedy="see StorageOptions")
    of_storage = StorageWords({**STORAGE_DEFAULTS, **words}, lambda key: f"{where}: {key}")
    storage: _native.Storage = translated(
        of_storage.storage,
        start(guest_argv(command), asks=True),
        memory_bytes=parse_size(memory, f"{where}: memory"),
        processes_max=parse_count(processes_max, f"{where}: max_procs"),
        calls=calls,
        name=name,
    )
    return storage


def _places(places: object, name: str) -> list[str]:
    if isinstance(places, str):
        return [places]
    if isinstance(places, (list, tuple)) and places and all(isinstance(it, str) for it in places):
        return list(places)
    raise UsageError(f"{name}: {places!r} is no place", remedy='write "8080" or "unix:PATH"')


_COUNTS = tuple(name for name in ServerStats.__slots__ if name != "requests")


def serve(argv: Sequence[Word], **options: Unpack[ServerOptions]) -> Server:
    """A `Server` that has been started: `with kvmlet.serve(argv, forks=8) as server:`.

    Raises what `Server` and `Server.start` raise.

        >>> import urllib.request
        >>> with kvmlet.serve(["python3", "-m", "http.server", "8000"], forks=1) as server:
        ...     urllib.request.urlopen(server.url).status
        200
    """
    return Server(argv, **options).start()
