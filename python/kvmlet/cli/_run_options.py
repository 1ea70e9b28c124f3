"""The options of `kvmlet run`, and those that other commands share with it: what they are and say.

On the path of every run: tests/unit/test_imports.py holds the list of what is imported.
"""

from os import environ

from kvmlet._launch import Named, guest_cwd
from kvmlet._values import (
    DEFAULT_DISK_BYTES,
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    MOST_MAX_FILES,
)
from kvmlet.cli._ends import (
    STATUS_CPU_TIME,
    STATUS_MEMORY,
    STATUS_NOT_EXECUTABLE,
    STATUS_NOT_FOUND,
    STATUS_OWN_ERROR,
    STATUS_TIMEOUT,
)
from kvmlet.cli._plain import Plain
from kvmlet.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace, _ArgumentGroup
    from collections.abc import Callable

    from kvmlet.cli._parser import Parser
    from kvmlet.policy import Policy

    Group = _ArgumentGroup | Plain

_OPTIONS_WITH_VALUE = (
    "--timeout",
    "--cpu-time",
    "--memory",
    "-m",
    "--disk",
    "--max-procs",
    "--max-files",
    "--calls",
    "--read",
    "--allow-read",
    "--write",
    "--allow-write",
    "-v",
    "--volume",
    "--tmpfs",
    "-e",
    "--env",
    "--env-file",
    "-w",
    "--workdir",
    "-u",
    "--user",
    "--changes",
    "--policy",
    "--profile",
    "--keep-protected",
    "--learn",
    "--report",
    "--net",
    "-p",
    "--publish",
    "--unix",
    "--fd",
)

# For --trace without a file: no argument of a command can be this.
TRACE_TO_STDERR = "\0"

_DESCRIPTION = """\
Run CMD in a virtual machine of its own. It may read /usr, /bin, /sbin, /lib*, the current
directory (or its git work tree) and a few files of /etc. It may change the current directory and
/tmp, in memory: the host's files stay as they are, unless --changes keeps what it did. It reaches
no other machine unless --net says so, and no server of this one unless --net or --unix does.
Everything after CMD belongs to CMD.
"""

_EPILOG = f"""\
exit status: CMD's own; {STATUS_TIMEOUT} time limit, \
{STATUS_OWN_ERROR} an error of kvmlet's or in its options, {STATUS_NOT_EXECUTABLE} CMD cannot
be executed, {STATUS_NOT_FOUND} CMD not found, 128+n ended by signal n, \
{STATUS_MEMORY} memory limit,
{STATUS_CPU_TIME} CPU time limit; \
{STATUS_OWN_ERROR} also if CMD's own is 0 and not all of its changes could be kept.
"""


def split_command(words: list[str]) -> tuple[list[str], list[str]]:
    """(our options, the program and its arguments); "--" between them may be left out."""
    return split_words(words, _OPTIONS_WITH_VALUE)


def split_words(words: list[str], with_value: "tuple[str, ...]") -> tuple[list[str], list[str]]:
    """The same for another command, whose options `with_value` take the next word.

    argparse cannot do this: it looks for options after positional arguments too.
    """
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return words[:position], words[position + 1 :]
        if not word.startswith("-") or word == "-":
            break
        position += 2 if word in with_value else 1
    return words[:position], words[position:]


def environment(files: list[str], words: list[str]) -> dict[str, str]:
    """The variables that --env-file and -e set; those of -e win. Raises UsageError."""
    lines = [(line, f"--env-file {file}") for file in files for line in _lines(file)]
    lines += [(word, "-e") for word in words]
    env: dict[str, str] = {}
    for line, name in lines:
        key, equals, value = line.partition("=")
        if not key:
            raise UsageError(f"{name}: '{line}' names no variable", remedy="write K=V or K")
        if equals:
            env[key] = value
        elif key in environ:
            env[key] = environ[key]
        elif name == "-e":
            raise UsageError(f"-e {key}: no such variable here", remedy=f"set it: -e {key}=VALUE")
    return env


def _lines(file: str) -> list[str]:
    """The lines of an --env-file that are neither empty nor comments."""
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as opened:
            lines = [line.strip() for line in opened]
    except OSError as error:
        raise UsageError(
            f"--env-file {file}: {error.strerror}", remedy="name a file with lines K=V"
        ) from None
    return [line for line in lines if line and not line.startswith("#")]


def imply_profiles(options: "Namespace", program: "list[str]") -> None:
    """Adds the profile that a program has without being told: git, that of git's own settings."""
    # A file that a project calls so is not meant.
    if program and program[0] in ("git", "/usr/bin/git"):
        options.profile.append("git")


def by_policies(options: "Namespace", env: dict[str, str], **limits: "float | None") -> "Policy":
    """All that profiles, policies and options say; the options say all of it afterwards.

    Raises UsageError.
    """
    from kvmlet.cli._policy import combined

    policy = combined(
        options.profile,
        options.policy,
        read=_paths(options.read, options.allow_read),
        write=_paths(options.write, options.allow_write),
        net=options.net,
        publish=options.publish,
        unix=options.unix,
        env=env,
        **limits,
    )
    options.read, options.allow_read = policy.paths("read"), []
    options.write, options.allow_write = policy.paths("write"), []
    options.net, options.publish = list(policy.net), list(policy.publish)
    options.unix = list(policy.unix)
    return policy


def _paths(paths: list[str], lists: list[str]) -> list[str]:
    return paths + [path for each in lists for path in each.split(",")]


def add_paths(named: Named, options: "Namespace") -> None:
    """Adds the paths that the options name to be read and to be changed. Raises UsageError."""
    for path in options.read:
        named.add_read(path, "--read")
    for paths in options.allow_read:
        for path in paths.split(","):
            named.add_read(path, "--allow-read")
    for path in options.write:
        named.add_write(path, "--write")
    for paths in options.allow_write:
        for path in paths.split(","):
            named.add_write(path, "--allow-write")


def named_by(options: "Namespace") -> Named:
    """The files and trees that the options name. Raises UsageError."""
    named = Named()
    add_paths(named, options)
    for words in options.volume:
        named.add_volume(words, "-v")
    for path in options.tmpfs:
        named.add_memory(path, "--tmpfs")
    named.add_network(options.net, options.publish)
    for path in options.unix:
        named.add_socket(path, "--unix")
    if options.allow_all:
        named.add_all(guest_cwd(options.workdir))
    return named


def parser(
    prog: str = "kvmlet run",
    usage: str = "kvmlet run [options] [--] CMD ARG...",
    description: str = _DESCRIPTION,
) -> "Parser":
    """The options of the command, or of another that takes the same."""
    # It is more than half of what a run imports.
    from kvmlet.cli._parser import Parser

    parser = Parser(prog=prog, usage=usage, description=description, epilog=_EPILOG)
    declare(parser)
    return parser


def read(words: list[str], parser: "Callable[[], Parser]" = parser) -> "Namespace":
    """The options in `words`, as `parser` reads them. Raises UsageError."""
    plain = Plain()
    declare(plain)
    options = plain.read(words)
    return parser().parse_args(words) if options is None else options


def declare(parser: "Parser | Plain") -> None:
    """Declares all options of the command."""
    groups = add_policy_options(parser)
    groups.environment.add_argument(
        "-u",
        "--user",
        metavar="USER[:GROUP]",
        help="be this user, for CMD and for the host's files; another than the caller only if the "
        "caller may become that user",
    )
    groups.policies.add_argument(
        "--print-policy",
        action="store_true",
        help="write what the options and policies say as TOML, and run nothing",
    )
    groups.policies.add_argument(
        "--learn",
        metavar="FILE.toml",
        help="let CMD read what you may, but for protected names, throw its changes away, refuse "
        "addresses, and write to FILE the narrowest policy that would have been enough; rules of "
        "a FILE that is there stay",
    )
    groups.changes.add_argument(
        "--changes",
        metavar="MODE",
        default="discard",
        help="what becomes of changes in the current directory, which are made in memory: discard "
        "(the default), keep (make them here at the end), ask (show and ask first), list (names on "
        "standard error: A added, M modified, D deleted) or dir:PATH (write the changed files to "
        "the empty directory PATH)",
    )
    groups.changes.add_argument(
        "--keep-protected",
        metavar="PATH",
        action="append",
        default=[],
        help="keep changes of PATH too though programs of yours obey it (.git/hooks, .envrc, "
        "shell start-up files, credentials and the like); may be given again",
    )
    groups.environment.add_argument(
        "--fd",
        metavar="N",
        action="append",
        default=[],
        help="CMD has the open descriptor N too, a connected socket; pipes and regular files that "
        "are left open it has anyway; may be given again",
    )
    groups.network.add_argument(
        "-p",
        "--publish",
        metavar="[ADDR:]HOSTPORT:PORT",
        action="append",
        default=[],
        help="what connects to HOSTPORT of this machine (at 127.0.0.1, or ADDR) comes to CMD's "
        "PORT; may be given again",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--timeout", metavar="TIME", help="end the run after TIME: 30s, 500ms, 2m, 1h or seconds"
    )
    limits.add_argument(
        "--cpu-time",
        metavar="TIME",
        help="end the run once it has used TIME of a CPU, sleeping not counted",
    )
    limits.add_argument(
        "-m",
        "--memory",
        metavar="SIZE",
        help=f"most memory CMD may use: 64m, 1g or bytes (default {DEFAULT_MEMORY_BYTES >> 20}m)",
    )
    limits.add_argument(
        "--disk",
        metavar="SIZE",
        help="most room for CMD's files in /tmp and in trees that it changes in memory (default "
        f"{DEFAULT_DISK_BYTES >> 30}g); past a quarter of the memory they lie in /var/tmp or "
        "$KVMLET_TMPDIR, without a name",
    )
    limits.add_argument(
        "--max-procs",
        metavar="N",
        help=f"most processes CMD may have (default {DEFAULT_MAX_PROCS})",
    )
    limits.add_argument(
        "--max-files",
        metavar="N",
        help=f"most files that each of them may have open (default {MOST_MAX_FILES}); more: EMFILE",
    )
    messages = parser.add_argument_group("messages")
    notes = messages.add_mutually_exclusive_group()
    notes.add_argument("-q", "--quiet", action="store_true", help="say nothing about how CMD ended")
    notes.add_argument(
        "--verbose",
        action="store_true",
        help="say what was refused also when CMD succeeds, and which descriptors it is given",
    )
    messages.add_argument(
        "--report",
        metavar="FILE.json",
        help="write status, reason, limits, peaks, refusals and changes to FILE, as JSON",
    )
    messages.add_argument(
        "--trace",
        nargs="?",
        const=TRACE_TO_STDERR,
        metavar="FILE",
        help="write CMD's system calls to FILE, or to standard error",
    )
    messages.add_argument(
        "--stats",
        nargs="?",
        const="table",
        choices=("table", "json"),
        metavar="json",
        help="write counters and times to standard error at the end",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--calls",
        metavar="MODE",
        help="how CMD's system calls reach kvmlet: exit (each leaves the VM), poll (a thread on "
        "another CPU looks out for them) or auto, whichever is faster (default $KVMLET_CALLS or "
        "auto)",
    )


class Groups:
    """The groups of options that say what CMD may see and use. Each fits on a screen."""

    def __init__(self, parser: "Parser | Plain") -> None:
        self.files: Group = parser.add_argument_group("files")
        self.changes: Group = parser.add_argument_group("changes")
        self.environment: Group = parser.add_argument_group("environment")
        self.policies: Group = parser.add_argument_group("policies")
        self.network: Group = parser.add_argument_group("network")


def add_policy_options(parser: "Parser | Plain") -> Groups:
    """Adds the options that say what CMD may see and use; their groups, for others like them."""
    groups = Groups(parser)
    files, environment, policies = groups.files, groups.environment, groups.policies
    files.add_argument(
        "--read",
        metavar="PATH",
        action="append",
        default=[],
        help="CMD may read PATH too, and all beneath it; may be given again",
    )
    files.add_argument(
        "--allow-read",
        metavar="PATH,...",
        action="append",
        default=[],
        help="the same for several paths",
    )
    files.add_argument(
        "--write",
        metavar="PATH",
        action="append",
        default=[],
        help="CMD may change PATH and all beneath it, on the host and at once; names that others "
        "act on, as .git/hooks, stay read-only unless PATH is one; may be given again",
    )
    files.add_argument(
        "--allow-write",
        metavar="PATH,...",
        action="append",
        default=[],
        help="the same for several paths",
    )
    files.add_argument(
        "-A",
        "--allow-all",
        action="store_true",
        help="CMD may change your home directory and the current one, on the host and at once, but "
        "for protected names, and has all of your variables; it reaches no network",
    )
    files.add_argument(
        "-v",
        "--volume",
        metavar="HOST:GUEST",
        action="append",
        default=[],
        help="show HOST at GUEST; with :ro after it CMD may read it, with :overlay change it in "
        "memory, with :rw, which is the default, on the host; may be given again",
    )
    files.add_argument(
        "--tmpfs",
        metavar="PATH",
        action="append",
        default=[],
        help="have an empty directory in memory at PATH; may be given again",
    )
    policies.add_argument(
        "--profile",
        metavar="NAME",
        action="append",
        default=[],
        help="what programs of a kind need: python, node, git, build or judge ('kvmlet profile "
        "NAME' prints one); policies and options win; may be given again",
    )
    policies.add_argument(
        "--policy",
        metavar="FILE",
        action="append",
        default=[],
        help="limits, paths, hosts, ports, sockets and variables from FILE, as TOML; options win; "
        "may be given again",
    )
    environment.add_argument(
        "-e",
        "--env",
        metavar="K[=V]",
        action="append",
        default=[],
        help="set variable K to V, or to the caller's value; may be given again",
    )
    environment.add_argument(
        "--env-file",
        metavar="FILE",
        action="append",
        default=[],
        help="set the variables of FILE: a line K=V or K each",
    )
    environment.add_argument(
        "-w",
        "--workdir",
        metavar="DIR",
        help="start in DIR, and show its tree (default: the current directory)",
    )
    groups.network.add_argument(
        "--net",
        metavar="RULE",
        action="append",
        default=[],
        help="CMD may connect to RULE: HOST, *.NAME, an address, a network as 10.0.0.0/8, or "
        "public (the internet), each perhaps with :PORT or :PORT-PORT; the caller's own loopback "
        "address is host.kvmlet.internal:PORT; may be given again",
    )
    groups.network.add_argument(
        "--unix",
        metavar="PATH",
        action="append",
        default=[],
        help="CMD may connect to PATH, a socket of this machine, and use all that the server "
        "behind it does for you; no descriptors are passed; may be given again",
    )
    return groups
