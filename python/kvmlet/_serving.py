"""The words that set a server, for `kvmlet serve` and `kvmlet.Server`: read, checked, completed."""

import os

from kvmlet import _native, _program
from kvmlet._launch import Start, guest_cwd, guest_modules, guest_node_module, pairs
from kvmlet._values import MOST_MAX_FILES, OUTPUT_LIMIT_BYTES, parse_bytes, parse_duration
from kvmlet.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from kvmlet._launch import Named

FORKS_PER_CPU = 4
MAX_CONNECTIONS_DEFAULT = 16_384
MAX_BODY_BYTES = 16 << 20
ISOLATE = ("request", "connection", "none")
ACCESS_LOG = ("common", "json", "off")

_MAX_FORKS = 4096
_MAX_QUEUE = 1_000_000
_MAX_CONNECTIONS = 1_000_000
MAX_STORAGES = 64
# Each has a thread of the storage's, of which a program has no more.
_MAX_CONCURRENT = 256
_NAME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_MAX_NAME_CHARS = 64
# Of the threads that read requests: beyond this, clients of a usual server are not the limit.
_MOST_THREADS = 4
# Each keeps so many CPUs busy with forks. A second one costs each request two switches of threads.
_CPUS_OF_A_THREAD = 4
_BUFFER_BYTES = 64 << 20
# A connection and a page of each thread's stack have room in it.
_MIN_REQUEST_MEMORY_BYTES = 1 << 20

# Of one program. A value that is None is made of the others.
PROGRAM_DEFAULTS: "Mapping[str, Any]" = {
    "isolate": "request",
    "forks": None,
    "queue": 1024,
    "timeout": None,
    "idle_timeout": "60s",
    "boot_timeout": "20s",
    "max_body": MAX_BODY_BYTES,
    "max_upgrades": None,
    "request_memory": None,
    "guest_port": None,
    "warmup": 0,
    "warmup_request": (),
}
# Of a storage.
STORAGE_DEFAULTS: "Mapping[str, Any]" = {
    "concurrent": 1,
    "timeout": "30s",
    "boot_timeout": "20s",
}
# Of what stands before all of them.
FRONT_DEFAULTS: "Mapping[str, Any]" = {
    "header_timeout": "30s",
    "keepalive": "75s",
    "grace": "30s",
    "max_connections": MAX_CONNECTIONS_DEFAULT,
    "access_log": "off",
    "trusted_proxy": (),
    "proxy_protocol": "off",
    "tls_cert": None,
    "tls_key": None,
}
DEFAULTS: "Mapping[str, Any]" = {**PROGRAM_DEFAULTS, **FRONT_DEFAULTS}


class _Words:
    """Words of a server, read and checked. Raises UsageError, which names them as `shown` does."""

    def __init__(self, words: "Mapping[str, Any]", shown: "Callable[[str], str]") -> None:
        """A number or time in `words` may be text or not."""
        self._words = words
        self._shown = shown

    def _number(self, name: str, least: int, most: int) -> int:
        return number(self._words[name], self._shown(name), least, most)

    def _one_of(self, name: str, known: tuple[str, ...]) -> str:
        word: str = self._words[name]
        if word not in known:
            raise UsageError(
                f"{self._shown(name)}: {word!r} is none",
                remedy=f"write {', '.join(known[:-1])} or {known[-1]}",
            )
        return word

    def _strings(self, name: str) -> list[str]:
        given = self._words[name]
        if isinstance(given, (list, tuple)) and all(isinstance(word, str) for word in given):
            return list(given)
        raise UsageError(
            f"{self._shown(name)}: {given!r} is not a list of str", remedy=f'write {name}=["..."]'
        )

    def _time_s(self, name: str) -> float:
        return parse_duration(self._words[name], self._shown(name))


class ProgramWords(_Words):
    """The words of one program, a value for each name of PROGRAM_DEFAULTS."""

    def __init__(self, words: "Mapping[str, Any]", shown: "Callable[[str], str]") -> None:
        """Raises UsageError."""
        super().__init__(words, shown)
        self.settings = self._settings()
        self.request_memory_bytes = (
            None
            if words["request_memory"] is None
            else parse_bytes(
                words["request_memory"], shown("request_memory"), least=_MIN_REQUEST_MEMORY_BYTES
            )
        )

    def served(
        self,
        start: Start,
        *,
        memory_bytes: int,
        processes_max: int,
        files_max: int = MOST_MAX_FILES,
        calls: str,
        name: str = "",
        hosts: "Iterable[str]" = (),
        path: str = "/",
        storages: "Iterable[_native.Storage]" = (),
    ) -> _native.ServedProgram:
        """This program, as a server takes it. Raises _native.NativeError."""
        return _native.ServedProgram(
            start.argv,
            env=start.env,
            policy=start.policy,
            memory_bytes=memory_bytes,
            request_memory_bytes=self.request_memory_bytes,
            processes_max=processes_max,
            files_max=files_max,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            calls=calls,
            name=name,
            hosts=list(hosts),
            path=path,
            storages=list(storages),
            **self.settings,
        )

    def _settings(self) -> "_native.ProgramSettings":
        words, shown = self._words, self._shown
        isolate = self._one_of("isolate", ISOLATE)
        cpus = len(os.sched_getaffinity(0))
        forks = (
            cpus * FORKS_PER_CPU if words["forks"] is None else self._number("forks", 1, _MAX_FORKS)
        )
        is_stream = isolate == "connection"
        timeout = words["timeout"]
        timeout_s = parse_duration("30s" if timeout is None else timeout, shown("timeout"))
        warmup = self._warmup()
        if is_stream and warmup:
            raise UsageError(
                f"{shown('warmup')} and {shown('isolate')} connection contradict each other",
                remedy="requests are of HTTP: leave one of the two out",
            )
        return {
            "guest_port": None
            if words["guest_port"] is None
            else self._number("guest_port", 1, 65_535),
            "isolate": isolate,
            "forks": forks,
            "queue_max": self._number("queue", 0, _MAX_QUEUE),
            "timeout_s": timeout_s,
            "connection_timeout_s": timeout_s if is_stream and timeout is not None else None,
            "idle_timeout_s": self._time_s("idle_timeout"),
            "boot_timeout_s": self._time_s("boot_timeout"),
            "body_bytes_max": parse_bytes(words["max_body"], shown("max_body")),
            "upgrades_max": max(1, forks // 2)
            if words["max_upgrades"] is None
            else self._number("max_upgrades", 0, _MAX_FORKS),
            "warmup": warmup,
        }

    def _warmup(self) -> list[tuple[str, list[str], bytes, int | None]]:
        count = self._number("warmup", 0, _MAX_QUEUE)
        given = self._strings("warmup_request")
        if given:
            name = self._shown("warmup_request")
            return [_warmup_request(word, name) for word in given] * max(1, count)
        return [("GET /", [], b"", None)] * count


class StorageWords(_Words):
    """The words of a storage, a value for each name of STORAGE_DEFAULTS."""

    def __init__(self, words: "Mapping[str, Any]", shown: "Callable[[str], str]") -> None:
        """Raises UsageError."""
        super().__init__(words, shown)
        self.settings: _native.StorageSettings = {
            "concurrent": self._number("concurrent", 1, _MAX_CONCURRENT),
            "timeout_s": self._time_s("timeout"),
            "boot_timeout_s": self._time_s("boot_timeout"),
        }

    def storage(
        self,
        start: Start,
        *,
        memory_bytes: int,
        processes_max: int,
        calls: str,
        name: str,
    ) -> _native.Storage:
        """This storage, as a server takes it. Raises _native.NativeError."""
        return _native.Storage(
            start.argv,
            env=start.env,
            policy=start.policy,
            memory_bytes=memory_bytes,
            processes_max=processes_max,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            calls=calls,
            name=name,
            **self.settings,
        )


class FrontWords(_Words):
    """The words of what stands before programs, a value for each name of FRONT_DEFAULTS."""

    def __init__(self, words: "Mapping[str, Any]", shown: "Callable[[str], str]") -> None:
        """Raises UsageError."""
        super().__init__(words, shown)
        self.settings = self._settings()
        self.tls = self._certificate()

    def server(
        self,
        programs: "list[_native.ServedProgram]",
        *,
        storages: "Iterable[_native.Storage]" = (),
        listen: list[str],
        control: str | None,
        quiet: bool,
        signals: bool,
        keeper: int | None = None,
        takes_over: bool = False,
    ) -> _native.Server:
        """A server before these programs, which listens. Raises _native.NativeError."""
        return _native.Server(
            programs,
            storages=list(storages),
            listen=listen,
            control=control,
            tls=self.tls,
            quiet=quiet,
            signals=signals,
            keeper=keeper,
            takes_over=takes_over,
            **self.settings,
        )

    def _settings(self) -> "_native.FrontSettings":
        shown = self._shown
        proxies = self._strings("trusted_proxy")
        takes_headers = self._one_of("proxy_protocol", ("off", "required")) == "required"
        if takes_headers and not proxies:
            raise UsageError(
                f"{shown('proxy_protocol')} believes trusted proxies, and there are none",
                remedy=f"name them by {shown('trusted_proxy')}, as 10.0.0.0/8",
            )
        cpus = len(os.sched_getaffinity(0))
        return {
            "header_timeout_s": self._time_s("header_timeout"),
            "keepalive_s": self._time_s("keepalive"),
            "grace_s": self._time_s("grace"),
            "buffer_bytes": _BUFFER_BYTES,
            "connections_max": self._number("max_connections", 1, _MAX_CONNECTIONS),
            "access_log": self._one_of("access_log", ACCESS_LOG),
            "trusted_proxies": proxies,
            "proxy_protocol": takes_headers,
            "threads": min(max(cpus // _CPUS_OF_A_THREAD, 1), _MOST_THREADS),
        }

    def _certificate(self) -> _native.CertificateFiles | None:
        """The files with the certificate and its key."""
        names = ("tls_cert", "tls_key")
        paths = [self._words[name] for name in names]
        absent = [self._shown(name) for name in names if self._words[name] is None]
        if len(absent) == len(names):
            return None
        if absent:
            raise UsageError(
                f"a certificate and its key belong together, and there is no {absent[0]}",
                remedy="name both, each a file in PEM",
            )
        for name, path in zip(names, paths, strict=True):
            if not isinstance(path, (str, bytes, os.PathLike)) or b"\0" in os.fsencode(path):
                raise UsageError(f"{self._shown(name)}: {path!r} is no path", remedy="name a file")
        return _native.CertificateFiles(*(os.path.abspath(os.fsencode(path)) for path in paths))


def start_of(
    argv: list[bytes],
    env: "Mapping[str, str]",
    cwd: "str | bytes | os.PathLike[str] | None",
    named: "Named",
    *,
    asks: bool,
) -> Start:
    """The start of a program that is served. One that `asks` storages has `kvmlet_guest`.

    Node reads a file of ours first: it would give the same values of randomUUID to many clients.
    Raises as `Start`.
    """
    env = dict(env)
    search = _program.search_path(pairs(env))
    if _program.is_run_by((b"node", b"nodejs"), argv, guest_cwd(cwd), search):
        file = guest_node_module()
        # As Node reads its options: in quotes, where a backslash stands before one of these.
        quoted = file.replace("\\", "\\\\").replace('"', '\\"')
        option = f'"--require={quoted}"'
        env["NODE_OPTIONS"] = " ".join(filter(None, (option, env.get("NODE_OPTIONS"))))
        named.read.append(os.fsencode(file))
    modules = os.fsencode(guest_modules()) if asks else None
    return Start(argv, env, cwd, named, modules=modules, view="overlay")


def is_name(name: str) -> bool:
    """True for a name of a program or storage: letters, digits, "-" and "_", at most 64."""
    return 0 < len(name) <= _MAX_NAME_CHARS and _NAME_CHARS.issuperset(name)


def number(given: object, name: str, least: int, most: int) -> int:
    """A number from `least` to `most`, of text or not; `name` says whose. Raises UsageError."""
    remedy = f"give a number from {least} to {most}"
    if isinstance(given, str) and given.isascii() and given.isdigit():
        given = int(given) if len(given) <= len(str(most)) else most + 1
    if isinstance(given, bool) or not isinstance(given, int):
        raise UsageError(f"{name}: {str(given)[:64]!r} is not a number", remedy=remedy)
    if not least <= given <= most:
        raise UsageError(f"{name}: {given} is out of range", remedy=remedy)
    return given


def _warmup_request(word: str, name: str) -> tuple[str, list[str], bytes, int | None]:
    """A request from 'METHOD PATH [Name: value]... [@FILE] [=STATUS]', a line each or one line."""
    line, *rest = [part.strip() for part in word.split("\n") if part.strip()] or [""]
    fields: list[str] = []
    body = b""
    status: int | None = None
    for part in rest:
        if part.startswith("@"):
            try:
                with open(part[1:], "rb") as file:
                    body = file.read(MAX_BODY_BYTES)
            except OSError as error:
                raise UsageError(
                    f"{name}: {part[1:]}: {error.strerror}", remedy="name a file"
                ) from None
        elif part.startswith("="):
            status = number(part[1:], name, 100, 599)
        else:
            fields.append(part)
    return line, fields, body, status


def inherited() -> list[str]:
    """The sockets that systemd hands on (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and int(count) <= _MAX_FORKS):
        return []
    # The first descriptor that systemd hands on is 3.
    return [f"fd:{3 + position}" for position in range(int(count))]


def given(words: "Mapping[str, Any]", names: "Iterable[str]" = DEFAULTS) -> "dict[str, Any]":
    """Of `words` those with one of the names."""
    return {name: words[name] for name in names}
