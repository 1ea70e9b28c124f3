"""The plan of `kvmlet serve`, of its options or of a file, and the process that does.

After `harden` nothing more is imported, as in `kvmlet.cli.run`.
"""

import contextlib
import os

from kvmlet import _native, _program
from kvmlet._launch import Named, Start, guest_argv, guest_cwd
from kvmlet._serving import FrontWords, ProgramWords, StorageWords, start_of
from kvmlet.cli import _ends, _helper
from kvmlet.cli._text import warn
from kvmlet.errors import UsageError, from_native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable, Iterable, Iterator, Mapping
else:
    import _signal

# Programs with generators that no fork can seed anew, and the secrets that two clients get then.
_REPEATED = {
    "deno": "values of crypto repeat in each fork if one was drawn before deno was frozen; warm it "
    "with requests that draw none",
    "redis-server": "passwords that ACL GENPASS makes repeat in each fork; make them elsewhere",
}

SIGNALS = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


class _Startable:
    """A program that is to be started, as a server or as a storage."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        workdir: str | None,
        *,
        memory_bytes: int,
        processes_max: int,
        calls: str,
        place: "Callable[[], contextlib.AbstractContextManager[None]]",
    ) -> None:
        self.argv = guest_argv(argv)
        self.workdir = workdir
        self.named = Named()
        self.place = place
        self._env = env
        self._rest = {"memory_bytes": memory_bytes, "processes_max": processes_max}
        self._calls = calls

    @property
    def title(self) -> str:
        """Whose errors these are, with ": " behind it; empty if there is one program only."""
        raise NotImplementedError

    def _start(self, *, asks: bool) -> Start:
        with self.place():
            return start_of(self.argv, self._env, self.workdir, self.named, asks=asks)

    @contextlib.contextmanager
    def _translated(self) -> "Iterator[None]":
        with self.place():
            try:
                yield
            except _native.NativeError as error:
                raise from_native(*error.args) from None

    def check(self, start: Start) -> None:
        """Raises ProgramNotFound or ProgramNotExecutable, as the start of it would."""
        path = dict(start.env)[b"PATH"].split(b":")
        found = _program.find(start.argv[0], path)
        file = None if found is None else os.path.join(guest_cwd(self.workdir), found)
        name = self.title + start.argv[0].decode("utf-8", "backslashreplace")
        if file is None or not os.path.exists(file):
            raise from_native("not_found", f"{name}: no such program")
        if not (os.path.isfile(file) and os.access(file, os.X_OK)):
            raise from_native("not_executable", f"{name}: it cannot be executed")


class PlannedStorage(_Startable):
    """A storage that programs are to ask."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        workdir: str | None,
        words: StorageWords,
        *,
        name: str,
        memory_bytes: int,
        processes_max: int,
        calls: str,
        place: "Callable[[], contextlib.AbstractContextManager[None]]" = contextlib.nullcontext,
    ) -> None:
        """`place` has errors say where the storage is named. Raises UsageError."""
        super().__init__(
            argv,
            env,
            workdir,
            memory_bytes=memory_bytes,
            processes_max=processes_max,
            calls=calls,
            place=place,
        )
        self.words, self.name = words, name

    @property
    def title(self) -> str:
        """Whose errors these are."""
        return f"storage {self.name}: "

    def start(self) -> Start:
        """Its start. Raises UsageError, HostError, _native.NativeError."""
        # It takes questions by the module that others ask with.
        return self._start(asks=True)

    def storage(self, start: Start) -> _native.Storage:
        """It, as a server takes it. Raises UsageError, _native.NativeError."""
        with self._translated():
            return self.words.storage(start, calls=self._calls, name=self.name, **self._rest)


class Planned(_Startable):
    """A program that is to be served."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        workdir: str | None,
        words: ProgramWords,
        *,
        memory_bytes: int,
        processes_max: int,
        calls: str,
        name: str = "",
        hosts: "Iterable[str]" = (),
        path: str = "/",
        storages: "Iterable[str]" = (),
        place: "Callable[[], contextlib.AbstractContextManager[None]]" = contextlib.nullcontext,
    ) -> None:
        """`storages` it may ask; `place` has errors say where it is named. Raises UsageError."""
        super().__init__(
            argv,
            env,
            workdir,
            memory_bytes=memory_bytes,
            processes_max=processes_max,
            calls=calls,
            place=place,
        )
        self.words = words
        self.name, self.hosts, self.path = name, list(hosts), path
        self.storages = list(storages)

    @property
    def title(self) -> str:
        """Whose errors these are."""
        return f"program {self.name}: " if self.name else ""

    @property
    def repeated(self) -> str | None:
        """The secrets that two of its clients may get, for a known program: docs/servers.md."""
        said = _REPEATED.get(os.path.basename(os.fsdecode(self.argv[0])))
        return said and self.title + said

    def start(self) -> Start:
        """Its start. Raises UsageError, HostError, _native.NativeError."""
        return self._start(asks=bool(self.storages))

    def served(
        self, start: Start, storages: "Mapping[str, _native.Storage]"
    ) -> _native.ServedProgram:
        """It, as a server takes it. Raises UsageError, _native.NativeError."""
        with self._translated():
            return self.words.served(
                start,
                calls=self._calls,
                name=self.name,
                hosts=self.hosts,
                path=self.path,
                storages=[storages[name] for name in self.storages],
                **self._rest,
            )


class _Starts:
    """The starts of storages and programs."""

    def __init__(
        self,
        storages: list[tuple[PlannedStorage, Start]],
        programs: list[tuple[Planned, Start]],
    ) -> None:
        self._storages, self._programs = storages, programs

    def __iter__(self) -> "Iterator[tuple[PlannedStorage | Planned, Start]]":
        yield from self._storages
        yield from self._programs

    def served(self) -> tuple[list[_native.ServedProgram], list[_native.Storage]]:
        """All of them, as a server takes them. Raises UsageError, _native.NativeError."""
        storages = {planned.name: planned.storage(start) for planned, start in self._storages}
        programs = [planned.served(start, storages) for planned, start in self._programs]
        return programs, list(storages.values())


class Plan:
    """Programs, their storages, and what stands before them."""

    def __init__(
        self,
        programs: list[Planned],
        front: FrontWords,
        *,
        storages: "Iterable[PlannedStorage]" = (),
        listen: list[str],
        control: str | None,
        quiet: bool,
    ) -> None:
        """`listen` has at least one place. Raises UsageError."""
        self.programs, self.front, self.storages = programs, front, list(storages)
        self.listen, self.control, self.quiet = listen, control, quiet
        if not listen:
            raise UsageError(
                "no place to listen at", remedy="give one: --listen 8080, or --listen unix:PATH"
            )

    @property
    def places(self) -> list[str]:
        """All places that it takes connections at."""
        return [*self.listen, *([self.control] if self.control else [])]

    def _starts(self) -> "_Starts":
        return _Starts(
            [(planned, planned.start()) for planned in self.storages],
            [(planned, planned.start()) for planned in self.programs],
        )

    def check(self) -> None:
        """Raise what serving it would raise, and serve nothing."""
        try:
            starts = self._starts()
            _native.check_places(self.places)
            served, storages = starts.served()
            self.front.server(
                served, storages=storages, listen=[], control=None, quiet=True, signals=False
            )
        except _native.NativeError as error:
            raise from_native(*error.args) from None
        for planned, start in starts:
            planned.check(start)

    def serve(self, kept: "Kept | None" = None) -> int:
        """Serve it until told to stop, as a child of a keeper or not; the exit status."""
        try:
            starts = self._starts()
            for _, start in starts:
                if start.note and not self.quiet:
                    warn(start.note)
            for said in (planned.repeated for planned in self.programs):
                if said and not self.quiet:
                    warn(said)
            tls = self.front.tls
            if tls is not None:
                # Behind the wall nobody may open its files again.
                _helper.start(tls.helper_end(), tls.serve)
            if kept is None:
                # From here on signals are the server's.
                for signum in SIGNALS:
                    _signal.signal(signum, _signal.SIG_IGN)
            served, storages = starts.served()
            server = self.front.server(
                served,
                storages=storages,
                listen=self.listen,
                control=self.control,
                quiet=self.quiet,
                signals=True,
                keeper=None if kept is None else kept.pipe,
                takes_over=kept is not None and kept.takes_over,
            )
            if kept is not None and not kept.begin():
                return _ends.STATUS_OWN_ERROR
            warning = tls and tls.warning()
            if warning:
                warn(warning)
            policies = [start.policy for _, start in starts]
            _, missing = _native.harden(*policies, purpose="serve")
            if missing:
                warn(f"serving with a part of the second wall only: {'; '.join(missing)}")
            server.run()
        except _native.NativeError as error:
            raise from_native(*error.args) from None
        return _ends.STATUS_OK


class Kept:
    """The things that a process has from its keeper, its parent: sockets, the end of a pipe."""

    def __init__(self, parent: int, pipe: int, sockets: list[int], *, takes_over: bool) -> None:
        """`sockets` are the descriptors that the places of the plan name."""
        self.pipe, self.takes_over = pipe, takes_over
        self._parent, self._sockets = parent, sockets

    def begin(self) -> bool:
        """The server has all of them, and takes signals. False if the keeper has ended."""
        for fd in (self.pipe, *self._sockets):
            os.close(fd)
        # They have been held back since the keeper made this process.
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, SIGNALS)
        return os.getppid() == self._parent
