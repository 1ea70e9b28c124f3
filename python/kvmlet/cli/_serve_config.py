"""`kvmlet serve --config FILE`: several programs, each with its own policy, limits and forks.

The names are those of the command's options. Errors say the line.
"""

import contextlib
import os

from kvmlet._serving import (
    FRONT_DEFAULTS,
    MAX_STORAGES,
    PROGRAM_DEFAULTS,
    STORAGE_DEFAULTS,
    FrontWords,
    ProgramWords,
    StorageWords,
    inherited,
    is_name,
)
from kvmlet._toml import Document
from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    parse_calls,
    parse_count,
    parse_size,
)
from kvmlet.cli._run_options import environment
from kvmlet.cli._serve_plan import Plan, Planned, PlannedStorage
from kvmlet.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

_MAX_PROGRAMS = 64
_HOST_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")
_MAX_HOST_CHARS = 253
_MAX_BYTES = 1 << 20

_FRONT = (*FRONT_DEFAULTS, "listen", "control", "quiet")
_STARTED = (
    *("command", "workdir", "read", "write", "env", "env_file"),
    *("memory", "max_procs", "calls"),
)
_PROGRAM = (*PROGRAM_DEFAULTS, *_STARTED, "host", "path", "storage")
_STORAGE = (*STORAGE_DEFAULTS, *_STARTED)


def read(file: str) -> Plan:
    """The plan in `file`. Relative paths start at the current directory. Raises UsageError."""
    try:
        with open(file, "rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(
            f"--config: {file}: {error.strerror}", remedy="name a file in TOML"
        ) from None
    except UnicodeDecodeError:
        raise UsageError(f"--config: {file}: not UTF-8", remedy="name a file in TOML") from None
    if len(data) > _MAX_BYTES:
        raise UsageError(f"--config: {file}: too large", remedy="name a file in TOML")
    return _Reader(Document(text, os.path.basename(file))).plan()


class _Reader:
    """A document that is being read."""

    def __init__(self, document: Document) -> None:
        self._document = document
        # The name that was looked at last: an error is about that.
        self._last = ""

    def plan(self) -> Plan:
        document = self._document
        content = dict(document.items())
        tables = document.table(("program",), content.pop("program", {}))
        of_storages = document.table(("storage",), content.pop("storage", {}))
        words = self._words((), content, _FRONT)
        if words.get("proxy_protocol") in (True, False):
            words["proxy_protocol"] = "required" if words["proxy_protocol"] else "off"
        listen = words.pop("listen", [])
        listen = [listen] if isinstance(listen, str) else document.strings(("listen",), listen)
        control = words.pop("control", None)
        if control is not None:
            document.string(("control",), control)
        quiet = words.pop("quiet", False)
        if not isinstance(quiet, bool):
            document.fail(("quiet",), f"quiet: {quiet!r} is neither true nor false", "write true")
        with self._at(()):
            front = FrontWords({**FRONT_DEFAULTS, **words}, self._shown)
        if not tables:
            raise UsageError(
                f"{document.name}: no program is named",
                remedy='write [program.NAME] and below it command = ["CMD", "ARG"]',
            )
        if len(tables) > _MAX_PROGRAMS:
            document.fail(("program",), "too many programs", f"the most are {_MAX_PROGRAMS}")
        if len(of_storages) > MAX_STORAGES:
            document.fail(("storage",), "too many storages", f"the most are {MAX_STORAGES}")
        storages = [self._storage(name, table) for name, table in of_storages.items()]
        programs = [self._program(name, table) for name, table in tables.items()]
        self._check_together(programs)
        self._check_asked(programs, storages)
        with document.at(()):
            plan = Plan(
                programs,
                front,
                storages=storages,
                listen=listen or inherited(),
                control=control,
                quiet=quiet,
            )
        for place in plan.places:
            if plan.places.count(place) > 1:
                document.fail(("listen",), f"{place} is named twice", "name each place once")
        return plan

    def _words(
        self, path: tuple[str, ...], table: "Mapping[str, Any]", known: "Iterable[str]"
    ) -> "dict[str, Any]":
        """The values by their names in Python. Raises UsageError for another key."""
        words = {}
        for key, value in table.items():
            name = key.replace("-", "_")
            if name not in known or "_" in key:
                names = sorted(each.replace("_", "-") for each in known)
                of = " ".join(path) or "a server"
                self._document.fail(
                    (*path, key), f"{of} has no {key!r}", f"there are {', '.join(names)}"
                )
            words[name] = value
        return words

    def _shown(self, name: str) -> str:
        self._last = name.replace("_", "-")
        return self._last

    @contextlib.contextmanager
    def _at(self, path: tuple[str, ...]) -> "Iterator[None]":
        """Within this, a UsageError is one about the key that was looked at last."""
        self._last = ""
        try:
            yield
        except UsageError as error:
            with self._document.at((*path, self._last)):
                raise UsageError(error.message, remedy=error.remedy) from None

    def _started(
        self, path: tuple[str, ...], words: "dict[str, Any]"
    ) -> "tuple[list[str], dict[str, str], str | None, dict[str, list[str]]]":
        """Command, environment, directory and trees; they are not in `words` any more.

        The trees are those to be read and to be changed, by the names of their keys.
        """
        document = self._document
        kind, name = path
        if not is_name(name):
            document.fail(path, f"{name!r} is no name", "write letters, digits, '-' and '_'")
        command = document.strings((*path, "command"), words.pop("command", []))
        if not command:
            document.fail(path, f"{kind} {name} has no command", 'write command = ["CMD", "ARG"]')
        workdir = words.pop("workdir", None)
        if workdir is not None:
            document.string((*path, "workdir"), workdir)
        pairs = document.table((*path, "env"), words.pop("env", {}))
        env = {key: document.string((*path, "env", key), text) for key, text in pairs.items()}
        files = words.pop("env_file", [])
        files = [files] if isinstance(files, str) else document.strings((*path, "env-file"), files)
        trees = {
            key: document.strings((*path, key), words.pop(key, [])) for key in ("read", "write")
        }
        with self._at(path):
            self._shown("env_file")
            env = {**environment(files, []), **env}
        return command, env, workdir, trees

    def _add_trees(self, planned: Planned | PlannedStorage, trees: dict[str, list[str]]) -> None:
        add = {"read": planned.named.add_read, "write": planned.named.add_write}
        for key, paths in trees.items():
            self._shown(key)
            for path in paths:
                add[key](path, key)

    def _limits(self, words: "Mapping[str, Any]") -> "dict[str, Any]":
        return {
            "memory_bytes": parse_size(
                words.get("memory", DEFAULT_MEMORY_BYTES), self._shown("memory")
            ),
            "processes_max": parse_count(
                words.get("max_procs", DEFAULT_MAX_PROCS), self._shown("max_procs")
            ),
            "calls": parse_calls(words.get("calls"), self._shown("calls")),
        }

    def _program(self, name: str, table: object) -> Planned:
        document = self._document
        path = ("program", name)
        words = self._words(path, document.table(path, table), _PROGRAM)
        command, env, workdir, trees = self._started(path, words)
        hosts = words.pop("host", [])
        hosts = [hosts] if isinstance(hosts, str) else document.strings((*path, "host"), hosts)
        for host in hosts:
            self._check_host((*path, "host"), host)
        start = document.string((*path, "path"), words.pop("path", "/"))
        self._check_path((*path, "path"), start)
        storages = document.strings((*path, "storage"), words.pop("storage", []))
        with self._at(path):
            of_program = {key: value for key, value in words.items() if key in PROGRAM_DEFAULTS}
            planned = Planned(
                command,
                env,
                workdir,
                ProgramWords({**PROGRAM_DEFAULTS, **of_program}, self._shown),
                **self._limits(words),
                name=name,
                hosts=[host.lower() for host in hosts],
                path=start,
                storages=storages,
                place=lambda: document.at((*path, "command")),
            )
            self._add_trees(planned, trees)
        return planned

    def _storage(self, name: str, table: object) -> PlannedStorage:
        document = self._document
        path = ("storage", name)
        words = self._words(path, document.table(path, table), _STORAGE)
        command, env, workdir, trees = self._started(path, words)
        with self._at(path):
            of_storage = {key: value for key, value in words.items() if key in STORAGE_DEFAULTS}
            planned = PlannedStorage(
                command,
                env,
                workdir,
                StorageWords({**STORAGE_DEFAULTS, **of_storage}, self._shown),
                **self._limits(words),
                name=name,
                place=lambda: document.at((*path, "command")),
            )
            self._add_trees(planned, trees)
        return planned

    def _check_host(self, path: tuple[str, ...], host: str) -> None:
        name = host.lower().removeprefix("*.")
        labels = name.split(".")
        if (
            len(name) > _MAX_HOST_CHARS
            or not _HOST_CHARS.issuperset(name)
            or not all(0 < len(label) <= 63 for label in labels)
        ):
            self._document.fail(
                path, f"{host[:100]!r} is no name of a host", 'write "NAME" or "*.NAME", no port'
            )

    def _check_path(self, path: tuple[str, ...], start: str) -> None:
        parts = start.split("/")
        if (
            not start.startswith("/")
            or not (start.isascii() and start.isprintable())
            or any(char in ' ?#%\\;*"' for char in start)
            or any(part in (".", "..") for part in parts)
            or "" in parts[1:-1]
        ):
            self._document.fail(
                path, f"{start[:100]!r} is no start of a path", 'write it plainly: "/api"'
            )

    def _check_asked(self, programs: list[Planned], storages: list[PlannedStorage]) -> None:
        """Raises UsageError for a storage that is not there, or that nobody may ask."""
        there = [storage.name for storage in storages]
        asked = set()
        for planned in programs:
            for name in planned.storages:
                path = ("program", planned.name, "storage")
                if name not in there:
                    self._document.fail(
                        path,
                        f"there is no storage {name[:100]!r}",
                        f"write [storage.{name if is_name(name) else 'NAME'}] and its command",
                    )
                if planned.storages.count(name) > 1:
                    self._document.fail(path, f"{name} is named twice", "name each storage once")
                asked.add(name)
        for name in there:
            if name not in asked:
                self._document.fail(
                    ("storage", name),
                    f"no program may ask storage {name}",
                    f'write storage = ["{name}"] for a program, or leave it out',
                )

    def _check_together(self, programs: list[Planned]) -> None:
        """Raises UsageError for programs that contradict each other."""
        taken: dict[tuple[str, str], str] = {}
        for planned in programs:
            path = ("program", planned.name)
            if planned.words.settings["isolate"] == "connection":
                if len(programs) > 1:
                    self._document.fail(
                        (*path, "isolate"),
                        "isolate connection: a stream of bytes names no program, and there are "
                        f"{len(programs)}",
                        "serve it by another file, or isolate requests",
                    )
                if planned.hosts or planned.path != "/":
                    key = "host" if planned.hosts else "path"
                    self._document.fail(
                        (*path, key),
                        f"{key} and isolate connection contradict each other",
                        "a stream of bytes has neither host nor path: leave one of the two out",
                    )
            for host in planned.hosts or [""]:
                other = taken.setdefault((host, planned.path.rstrip("/")), planned.name)
                if other != planned.name:
                    self._document.fail(
                        (*path, "host" if host else "path"),
                        f"programs {other} and {planned.name} are both for "
                        f"{host or 'any host'}{planned.path}",
                        "give one of them another host or path",
                    )
