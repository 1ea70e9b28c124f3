"""`kvmlet serve`: an unmodified server, every request in a clean fork of it.

After `harden` nothing more is imported, as in `kvmlet.cli.run`.
"""

from kvmlet._serving import (
    ACCESS_LOG,
    DEFAULTS,
    FORKS_PER_CPU,
    FRONT_DEFAULTS,
    ISOLATE,
    MAX_BODY_BYTES,
    MAX_CONNECTIONS_DEFAULT,
    MAX_STORAGES,
    PROGRAM_DEFAULTS,
    STORAGE_DEFAULTS,
    FrontWords,
    ProgramWords,
    StorageWords,
    given,
    inherited,
    is_name,
)
from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    format_size,
    parse_calls,
    parse_count,
    parse_size,
)
from kvmlet.cli import _ends
from kvmlet.cli._parser import Parser
from kvmlet.cli._run_options import add_paths, environment, split_words
from kvmlet.cli._serve_plan import Plan, Planned, PlannedStorage
from kvmlet.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

# Of --status: there is a server, and it takes no requests now.
_STATUS_NOT_READY = 1

# Of --storage-option, beside those of STORAGE_DEFAULTS.
_STORAGE_LIMITS = ("memory", "max_procs")

# Options that go with --config; all others stand in the file.
_WITH_CONFIG = ("config", "check", "status", "control")

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
    "--config",
    "--trusted-proxy",
    "--tls-cert",
    "--tls-key",
    "--memory",
    "-m",
    "--request-memory",
    "--storage",
    "--storage-option",
    "--max-procs",
    "--calls",
    "--read",
    "--allow-read",
    "--write",
    "--allow-write",
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

With --config several programs are served at once: docs/servers.md shows a file.
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
    if options.config is not None:
        return _by_config(options, program)
    if options.status:
        # Nothing of it is needed to serve.
        from kvmlet.cli import _serve_status

        return _ends.STATUS_OK if _serve_status.show(options.control) else _STATUS_NOT_READY
    plan = _plan(options, program)
    if options.check:
        plan.check()
        return _ends.STATUS_OK
    return plan.serve()


def _by_config(options: "argparse.Namespace", program: list[str]) -> int:
    """Serve, check or ask for what the file says; the exit status."""
    # A server of one program needs none of it.
    from kvmlet.cli import _serve_config, _serve_keeper, _serve_status

    usual = vars(parser().parse_args([]))
    others = [
        name
        for name, value in vars(options).items()
        if name not in _WITH_CONFIG and value != usual[name]
    ]
    if options.control is not None and not options.status:
        others.append("control")
    if program or others:
        what = _option(others[0]) if others else "CMD"
        raise UsageError(
            f"--config and {what} contradict each other", remedy="write all of it in the file"
        )
    file = _serve_keeper.enter_folder_of(options.config)
    if options.status:
        control = options.control or _serve_config.read(file).control
        return _ends.STATUS_OK if _serve_status.show(control) else _STATUS_NOT_READY
    if options.check:
        _serve_config.read(file).check()
        return _ends.STATUS_OK
    return _serve_keeper.serve(file)


def _plan(options: "argparse.Namespace", program: list[str]) -> Plan:
    """The plan that the options make. Raises UsageError."""
    words = vars(options)
    front = FrontWords(given(words, FRONT_DEFAULTS), _option)
    of_program = ProgramWords(given(words, PROGRAM_DEFAULTS), _option)
    memory_bytes = (
        DEFAULT_MEMORY_BYTES if options.memory is None else parse_size(options.memory, "--memory")
    )
    processes_max = parse_count(options.max_procs, "--max-procs")
    calls = parse_calls(options.calls, "--calls")
    if not program:
        raise UsageError(
            "no program given",
            remedy="name it after the options: kvmlet serve --listen 8080 -- CMD ARG...",
        )
    listen = options.listen or inherited()
    env = environment(options.env_file, options.env)
    storages = _storages(options, env, calls)
    planned = Planned(
        program,
        env,
        options.workdir,
        of_program,
        memory_bytes=memory_bytes,
        processes_max=processes_max,
        calls=calls,
        storages=[storage.name for storage in storages],
    )
    for each in (planned, *storages):
        add_paths(each.named, options)
    return Plan(
        [planned],
        front,
        storages=storages,
        listen=listen,
        control=options.control,
        quiet=options.quiet,
    )


def _storages(
    options: "argparse.Namespace", env: dict[str, str], calls: str
) -> list[PlannedStorage]:
    """The storages of the command line, which see the program's files. Raises UsageError."""
    commands: dict[str, list[str]] = {}
    for word in options.storage:
        name, equals, command = word.partition("=")
        if not (equals and is_name(name)):
            raise UsageError(
                f"--storage: {word[:100]!r} names no storage",
                remedy="write NAME=CMD, as --storage 'cart=python3 cart.py'",
            )
        if name in commands:
            raise UsageError(f"--storage: {name} is named twice", remedy="name each storage once")
        commands[name] = _command(name, command)
    if len(commands) > MAX_STORAGES:
        raise UsageError(
            f"--storage: {len(commands)} are too many", remedy=f"the most are {MAX_STORAGES}"
        )
    said: dict[str, dict[str, str]] = {name: {} for name in commands}
    for word in options.storage_option:
        name, key, value = _storage_option(word)
        if name not in commands:
            raise UsageError(
                f"--storage-option: there is no storage {name[:100]!r}",
                remedy=f"start it: --storage '{name if is_name(name) else 'NAME'}=CMD'",
            )
        if key in said[name]:
            raise UsageError(f"--storage-option: {word[:100]}: said twice", remedy="say it once")
        said[name][key] = value
    return [
        _storage(name, command, said[name], env, options.workdir, calls)
        for name, command in commands.items()
    ]


def _storage(
    name: str,
    command: list[str],
    said: dict[str, str],
    env: dict[str, str],
    workdir: str | None,
    calls: str,
) -> PlannedStorage:
    def shown(key: str) -> str:
        return f"--storage-option {name}.{key.replace('_', '-')}"

    limits = {key: said.pop(key) for key in _STORAGE_LIMITS if key in said}
    return PlannedStorage(
        command,
        env,
        workdir,
        StorageWords({**STORAGE_DEFAULTS, **said}, shown),
        name=name,
        memory_bytes=parse_size(limits.get("memory", DEFAULT_MEMORY_BYTES), shown("memory")),
        processes_max=parse_count(limits.get("max_procs", DEFAULT_MAX_PROCS), shown("max_procs")),
        calls=calls,
    )


def _command(name: str, text: str) -> list[str]:
    # Only who has storages needs it.
    import shlex

    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"--storage {name}: {str(error).lower()}", remedy="write CMD as for a shell"
        ) from None
    if not words:
        raise UsageError(f"--storage {name}: no program given", remedy=f"write '{name}=CMD ARG...'")
    return words


def _storage_option(word: str) -> tuple[str, str, str]:
    place, equals, value = word.partition("=")
    name, dot, key = place.partition(".")
    known = (*STORAGE_DEFAULTS, *_STORAGE_LIMITS)
    if not (equals and dot) or key.replace("-", "_") not in known or "_" in key:
        keys = ", ".join(sorted(each.replace("_", "-") for each in known))
        raise UsageError(
            f"--storage-option: {word[:100]!r} is none",
            remedy=f"write NAME.KEY=VALUE, as cart.memory=64m; there are {keys}",
        )
    return name, key.replace("-", "_"), value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet serve",
        usage="kvmlet serve --listen [ADDR:]PORT [options] [--] CMD ARG...\n"
        "       kvmlet serve --config FILE\n"
        "       kvmlet serve --check [options] [--] CMD ARG...\n"
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
        default=DEFAULTS["header_timeout"],
        help="a handshake and a request's head must be over by then, and an answer be taken "
        "(default 30s)",
    )
    clients.add_argument(
        "--keepalive",
        metavar="TIME",
        default=DEFAULTS["keepalive"],
        help="a client may be idle for that long between two requests (default 75s)",
    )
    clients.add_argument(
        "--max-body",
        metavar="SIZE",
        default=DEFAULTS["max_body"],
        help=f"most bytes of a request's body (default {format_size(MAX_BODY_BYTES)})",
    )
    clients.add_argument(
        "--max-connections",
        metavar="N",
        default=DEFAULTS["max_connections"],
        help=f"most clients at one time (default {MAX_CONNECTIONS_DEFAULT})",
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
        action="store_const",
        const="required",
        default=DEFAULTS["proxy_protocol"],
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
        choices=ISOLATE,
        default=DEFAULTS["isolate"],
        help="what meets the program as it was frozen: each request of HTTP (the default), each "
        "connection of any protocol, or nothing",
    )
    forks.add_argument(
        "--forks", metavar="N", help=f"forks (default: {FORKS_PER_CPU} for each CPU)"
    )
    forks.add_argument(
        "--queue",
        metavar="N",
        default=DEFAULTS["queue"],
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
        default=DEFAULTS["idle_timeout"],
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
        default=DEFAULTS["boot_timeout"],
        help="CMD waits for connections by then (default 20s)",
    )
    start.add_argument(
        "--warmup",
        metavar="N",
        default=DEFAULTS["warmup"],
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
        default=DEFAULTS["grace"],
        help="time for requests that are under way when it is stopped (default 30s)",
    )
    program = parser.add_argument_group("CMD's files, environment and limits, as of 'kvmlet run'")
    program.add_argument("--read", metavar="PATH", action="append", default=[], help="show PATH")
    program.add_argument(
        "--allow-read", metavar="PATH,...", action="append", default=[], help="the same"
    )
    program.add_argument(
        "--write",
        metavar="PATH",
        action="append",
        default=[],
        help="have PATH changed, on the host and at once; forks share it, and no reset undoes it",
    )
    program.add_argument(
        "--allow-write", metavar="PATH,...", action="append", default=[], help="the same"
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
    shared = parser.add_argument_group("things that forks share")
    shared.add_argument(
        "--storage",
        metavar="NAME=CMD",
        action="append",
        default=[],
        help="start CMD too, a program that is not reset; forks ask it by "
        "kvmlet_guest.storage(NAME).ask(...). It has the files and variables of the server; may be "
        "given again",
    )
    shared.add_argument(
        "--storage-option",
        metavar="NAME.KEY=VALUE",
        action="append",
        default=[],
        help="set a limit of that storage: memory, max-procs, concurrent (questions at one time, "
        "by default 1), timeout (of a question, by default 30s), boot-timeout; may be given again",
    )
    operation = parser.add_argument_group("operation")
    operation.add_argument(
        "--control",
        metavar="PLACE",
        help="serve /-/healthy, /-/ready, /-/status and /metrics there: [ADDR:]PORT or unix:PATH",
    )
    operation.add_argument(
        "--config",
        metavar="FILE",
        help="serve the programs that FILE names, in TOML, by the host and path of each request; "
        "SIGHUP reads it again",
    )
    operation.add_argument(
        "--check",
        action="store_true",
        help="say what is wrong with the options or FILE, the certificate and CMD, and serve "
        "nothing; exit status 0 if nothing is",
    )
    operation.add_argument(
        "--status",
        action="store_true",
        help="say how the server with this --control is, and serve nothing; exit status 1 if it is "
        "not ready",
    )
    operation.add_argument(
        "--access-log",
        choices=ACCESS_LOG,
        default=DEFAULTS["access_log"],
        help="a line for each request on standard output (default off)",
    )
    operation.add_argument("-q", "--quiet", action="store_true", help="say only what goes wrong")
    return parser
