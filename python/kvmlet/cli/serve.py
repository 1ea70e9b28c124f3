"""`kvmlet serve`: an unmodified server, every request in a clean fork of it.

After `harden` nothing more is imported, as in `kvmlet.cli.run`.
"""

import os

from kvmlet import _native
from kvmlet._launch import Named, Start, guest_argv
from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    OUTPUT_LIMIT_BYTES,
    format_size,
    parse_bytes,
    parse_calls,
    parse_count,
    parse_duration,
    parse_size,
)
from kvmlet.cli import _ends, _helper
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import warn
from kvmlet.cli.run import environment, split_words
from kvmlet.errors import UsageError, from_native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    import signal as _signal
else:
    import _signal

_MAX_FORKS = 4096
_MAX_QUEUE = 1_000_000
_MAX_CONNECTIONS = 1_000_000
_FORKS_PER_CPU = 4
# Beyond this, clients of an ordinary server are not what limits it.
_MOST_THREADS = 4
_BUFFER_BYTES = 64 << 20
_MAX_BODY_BYTES = 16 << 20
# A connection and a page of each thread's stack have room in it.
_MIN_REQUEST_MEMORY_BYTES = 1 << 20
_MAX_CONNECTIONS_DEFAULT = 16_384
# Of --status: there is a server, and it takes no requests now.
_STATUS_NOT_READY = 1
# The first descriptor that systemd hands on.
_LISTEN_FDS_START = 3

_OPTIONS_WITH_VALUE = (
    "--listen",
    "--guest-port",
    "--isolate",
    "--forks",
    "--queue",
    "--timeout",
    "--idle-timeout",
    "--header-timeout",
    "--keepalive",
    "--boot-timeout",
    "--grace",
    "--max-body",
    "--max-connections",
    "--max-upgrades",
    "--warmup",
    "--warmup-request",
    "--access-log",
    "--control",
    "--trusted-proxy",
    "--tls-cert",
    "--tls-key",
    "--memory",
    "-m",
    "--request-memory",
    "--max-procs",
    "--calls",
    "--read",
    "--allow-read",
    "-e",
    "--env",
    "--env-file",
    "-w",
    "--workdir",
)

_DESCRIPTION = """\
Start CMD, a server, in a virtual machine until it waits for connections, freeze it there, and
answer each request by a fork of it. A fork is reset after its request: every request meets the
program as it was frozen. Clients speak HTTP/1.1 or HTTP/2 with kvmlet. CMD may read and change
what it may under 'kvmlet run'. Everything after CMD belongs to CMD.

SIGTERM stops it when its requests are answered, a second one at once; SIGHUP starts CMD anew
beside the old one, and then has it take over.
"""

_EPILOG = f"""\
exit status: 0 once it was told to stop; {_ends.STATUS_OWN_ERROR} an error of kvmlet's, in its
options or in the start of CMD, {_ends.STATUS_NOT_EXECUTABLE} CMD cannot be executed,
{_ends.STATUS_NOT_FOUND} CMD not found.
"""


def main(words: list[str]) -> int:
    """Serve the program in `words`; the exit status."""
    own, program = split_words(words, _OPTIONS_WITH_VALUE)
    options = parser().parse_args(own)
    if options.status:
        # Nothing of it is needed to serve.
        from kvmlet.cli import _serve_status

        return _ends.STATUS_OK if _serve_status.show(options.control) else _STATUS_NOT_READY
    settings = _settings(options)
    memory_bytes = (
        DEFAULT_MEMORY_BYTES if options.memory is None else parse_size(options.memory, "--memory")
    )
    request_memory_bytes = (
        None
        if options.request_memory is None
        else parse_bytes(
            options.request_memory, "--request-memory", least=_MIN_REQUEST_MEMORY_BYTES
        )
    )
    processes_max = parse_count(options.max_procs, "--max-procs")
    calls = parse_calls(options.calls, "--calls")
    if not program:
        raise UsageError(
            "no program given",
            remedy="name it after the options: kvmlet serve --listen 8080 -- CMD ARG...",
        )
    listen = options.listen or _inherited()
    if not listen:
        raise UsageError(
            "no place to listen at", remedy="give one: --listen 8080, or --listen unix:PATH"
        )
    argv = guest_argv(program)
    env = environment(options.env_file, options.env)
    named = Named()
    for path in options.read:
        named.add_read(path, "--read")
    for paths in options.allow_read:
        for path in paths.split(","):
            named.add_read(path, "--allow-read")
    try:
        start = Start(argv, env, options.workdir, named, view="overlay")
        if start.note and not options.quiet:
            warn(start.note)
        tls = _certificate(options)
        # From here on signals are the server's.
        for signum in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            _signal.signal(signum, _signal.SIG_IGN)
        server = _native.Server(
            start.argv,
            env=start.env,
            policy=start.policy,
            memory_bytes=memory_bytes,
            request_memory_bytes=request_memory_bytes,
            processes_max=processes_max,
            output_limit_bytes=OUTPUT_LIMIT_BYTES,
            calls=calls,
            listen=listen,
            control=options.control,
            tls=tls,
            quiet=options.quiet,
            signals=True,
            **settings,
        )
        warning = tls and tls.warning()
        if warning:
            warn(warning)
        _, missing = _native.harden(start.policy, "serve")
        if missing:
            warn(f"serving with a part of the second wall only: {'; '.join(missing)}")
        server.run()
    except _native.NativeError as error:
        raise from_native(*error.args) from None
    return _ends.STATUS_OK


def _certificate(options: "argparse.Namespace") -> "_native.CertificateFiles | None":
    """The files of --tls-cert and --tls-key, and a process that may read them for ever."""
    names = {"--tls-cert": options.tls_cert, "--tls-key": options.tls_key}
    absent = [name for name, path in names.items() if path is None]
    if len(absent) == 2:
        return None
    if absent:
        raise UsageError(
            f"a certificate and its key belong together, and there is no {absent[0]}",
            remedy="name both: --tls-cert FILE --tls-key FILE",
        )
    files = _native.CertificateFiles(
        *(os.path.abspath(os.fsencode(path)) for path in names.values())
    )
    _helper.start(files.helper_end(), files.serve)
    return files


def _inherited() -> list[str]:
    """The sockets that systemd hands on (sd_listen_fds(3))."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    if not (count.isascii() and count.isdigit() and int(count) <= _MAX_FORKS):
        return []
    return [f"fd:{_LISTEN_FDS_START + position}" for position in range(int(count))]


def _number(word: str, name: str, least: int, most: int) -> int:
    remedy = f"give a number from {least} to {most}"
    if not (word.isascii() and word.isdigit() and len(word) <= len(str(most))):
        raise UsageError(f"{name}: '{word[:64]}' is not a number", remedy=remedy)
    value = int(word)
    if not least <= value <= most:
        raise UsageError(f"{name}: {value} is out of range", remedy=remedy)
    return value


def _settings(options: "argparse.Namespace") -> "_native.ServeSettings":
    cpus = len(os.sched_getaffinity(0))
    forks = (
        cpus * _FORKS_PER_CPU
        if options.forks is None
        else _number(options.forks, "--forks", 1, _MAX_FORKS)
    )
    is_stream = options.isolate == "connection"
    timeout_s = parse_duration(options.timeout or "30s", "--timeout")
    times = {
        name: parse_duration(getattr(options, name), "--" + name.replace("_", "-"))
        for name in ("idle_timeout", "header_timeout", "keepalive", "boot_timeout", "grace")
    }
    if is_stream and (options.warmup != "0" or options.warmup_request):
        raise UsageError(
            "--warmup and --isolate connection contradict each other",
            remedy="requests are of HTTP: leave one of the two out",
        )
    if options.proxy_protocol and not options.trusted_proxy:
        raise UsageError(
            "--proxy-protocol believes trusted proxies, and there are none",
            remedy="name them: --trusted-proxy 10.0.0.0/8",
        )
    return {
        "guest_port": None
        if options.guest_port is None
        else _number(options.guest_port, "--guest-port", 1, 65_535),
        "isolate": options.isolate,
        "forks": forks,
        "queue_max": _number(options.queue, "--queue", 0, _MAX_QUEUE),
        "timeout_s": timeout_s,
        "connection_timeout_s": timeout_s if is_stream and options.timeout else None,
        "idle_timeout_s": times["idle_timeout"],
        "header_timeout_s": times["header_timeout"],
        "keepalive_s": times["keepalive"],
        "boot_timeout_s": times["boot_timeout"],
        "grace_s": times["grace"],
        "body_bytes_max": parse_bytes(options.max_body, "--max-body"),
        "buffer_bytes": _BUFFER_BYTES,
        "connections_max": _number(
            options.max_connections, "--max-connections", 1, _MAX_CONNECTIONS
        ),
        "upgrades_max": max(1, forks // 2)
        if options.max_upgrades is None
        else _number(options.max_upgrades, "--max-upgrades", 0, _MAX_FORKS),
        "warmup": _warmup(options),
        "access_log": options.access_log,
        "trusted_proxies": options.trusted_proxy,
        "proxy_protocol": options.proxy_protocol,
        "threads": min(cpus, _MOST_THREADS),
    }


def _warmup(options: "argparse.Namespace") -> list[tuple[str, list[str], bytes, int | None]]:
    count = _number(options.warmup, "--warmup", 0, _MAX_QUEUE)
    if options.warmup_request:
        requests = [_warmup_request(word) for word in options.warmup_request]
        return requests * max(1, count)
    return [("GET /", [], b"", None)] * count


def _warmup_request(word: str) -> tuple[str, list[str], bytes, int | None]:
    """A request from 'METHOD PATH [Name: value]... [@FILE] [=STATUS]', a line each or one line."""
    line, *rest = [part.strip() for part in word.split("\n") if part.strip()] or [""]
    fields: list[str] = []
    body = b""
    status: int | None = None
    for part in rest:
        if part.startswith("@"):
            try:
                with open(part[1:], "rb") as file:
                    body = file.read(_MAX_BODY_BYTES)
            except OSError as error:
                raise UsageError(
                    f"--warmup-request: {part[1:]}: {error.strerror}", remedy="name a file"
                ) from None
        elif part.startswith("="):
            status = _number(part[1:], "--warmup-request", 100, 599)
        else:
            fields.append(part)
    return line, fields, body, status


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet serve",
        usage="kvmlet serve --listen [ADDR:]PORT [options] [--] CMD ARG...\n"
        "       kvmlet serve --status --control PLACE",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    clients = parser.add_argument_group("clients")
    clients.add_argument(
        "--listen",
        metavar="PLACE",
        action="append",
        default=[],
        help="[ADDR:]PORT (127.0.0.1 if no ADDR is given), unix:PATH or fd:N; may be given again "
        "(default: the sockets that systemd hands on)",
    )
    clients.add_argument(
        "--header-timeout",
        metavar="TIME",
        default="30s",
        help="a handshake and a request's head must be over by then, and an answer be taken "
        "(default 30s)",
    )
    clients.add_argument(
        "--keepalive",
        metavar="TIME",
        default="75s",
        help="a client may be idle for that long between two requests (default 75s)",
    )
    clients.add_argument(
        "--max-body",
        metavar="SIZE",
        default="16m",
        help=f"most bytes of a request's body (default {format_size(_MAX_BODY_BYTES)})",
    )
    clients.add_argument(
        "--max-connections",
        metavar="N",
        default=str(_MAX_CONNECTIONS_DEFAULT),
        help=f"most clients at one time (default {_MAX_CONNECTIONS_DEFAULT})",
    )
    clients.add_argument(
        "--trusted-proxy",
        metavar="CIDR",
        action="append",
        default=[],
        help="keep X-Forwarded-*, Forwarded and X-Request-ID of clients from here, or from 'unix'; "
        "may be given again",
    )
    clients.add_argument(
        "--proxy-protocol",
        action="store_true",
        help="those proxies begin each connection with a PROXY header, which names its client",
    )
    clients.add_argument(
        "--tls-cert",
        metavar="FILE",
        help="speak TLS with all clients: the certificate and those above it, in PEM; SIGHUP reads "
        "it and its key again",
    )
    clients.add_argument("--tls-key", metavar="FILE", help="the key of the certificate, in PEM")
    forks = parser.add_argument_group("forks")
    forks.add_argument(
        "--isolate",
        choices=("request", "connection", "none"),
        default="request",
        help="what meets the program as it was frozen: each request of HTTP (the default), each "
        "connection of any protocol, or nothing",
    )
    forks.add_argument(
        "--forks", metavar="N", help=f"forks (default: {_FORKS_PER_CPU} for each CPU)"
    )
    forks.add_argument(
        "--queue",
        metavar="N",
        default="1024",
        help="requests that may wait for a fork; more are answered with 503 (default 1024)",
    )
    forks.add_argument(
        "--timeout",
        metavar="TIME",
        help="a request's deadline, then 504 (default 30s); of a connection where that is isolated "
        "(default none)",
    )
    forks.add_argument(
        "--idle-timeout",
        metavar="TIME",
        default="60s",
        help="end a connection that has a fork, such as a WebSocket, after TIME without a byte "
        "(default 60s)",
    )
    forks.add_argument(
        "--max-upgrades",
        metavar="N",
        help="most WebSockets and streams of events, each of which has a fork (default: half)",
    )
    start = parser.add_argument_group("start and stop")
    start.add_argument(
        "--guest-port", metavar="PORT", help="the port of CMD's that is meant, if it has several"
    )
    start.add_argument(
        "--boot-timeout",
        metavar="TIME",
        default="20s",
        help="CMD waits for connections by then (default 20s)",
    )
    start.add_argument(
        "--warmup",
        metavar="N",
        default="0",
        help="have CMD answer N requests before it is frozen: GET /, or --warmup-request",
    )
    start.add_argument(
        "--warmup-request",
        metavar="REQUEST",
        action="append",
        default=[],
        help="'METHOD PATH'; in further lines 'Name: value', '@FILE' for the body, '=STATUS' for "
        "the status expected (default: below 400); may be given again",
    )
    start.add_argument(
        "--grace",
        metavar="TIME",
        default="30s",
        help="time for requests that are under way when it is stopped (default 30s)",
    )
    program = parser.add_argument_group("CMD's files, environment and limits, as of 'kvmlet run'")
    program.add_argument("--read", metavar="PATH", action="append", default=[], help="show PATH")
    program.add_argument(
        "--allow-read", metavar="PATH,...", action="append", default=[], help="the same"
    )
    program.add_argument(
        "-e", "--env", metavar="K[=V]", action="append", default=[], help="set a variable"
    )
    program.add_argument(
        "--env-file", metavar="FILE", action="append", default=[], help="set those of FILE"
    )
    program.add_argument("-w", "--workdir", metavar="DIR", help="start in DIR, and show its tree")
    program.add_argument(
        "-m",
        "--memory",
        metavar="SIZE",
        help=f"most memory before it is frozen (default {DEFAULT_MEMORY_BYTES >> 20}m)",
    )
    program.add_argument(
        "--request-memory",
        metavar="SIZE",
        help="most memory that a request may add to what is frozen, then 502 (default: --memory)",
    )
    program.add_argument(
        "--max-procs", metavar="N", default=DEFAULT_MAX_PROCS, help="most processes"
    )
    program.add_argument("--calls", metavar="MODE", help="exit, poll or auto")
    operation = parser.add_argument_group("operation")
    operation.add_argument(
        "--control",
        metavar="PLACE",
        help="serve /-/healthy, /-/ready, /-/status and /metrics there: [ADDR:]PORT or unix:PATH",
    )
    operation.add_argument(
        "--status",
        action="store_true",
        help="say how the server with this --control is, and serve nothing; exit status 1 if it is "
        "not ready",
    )
    operation.add_argument(
        "--access-log",
        choices=("common", "json", "off"),
        default="off",
        help="a line for each request on standard output (default off)",
    )
    operation.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    return parser
