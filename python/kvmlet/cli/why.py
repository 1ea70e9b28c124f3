"""`kvmlet why`: what a program would meet at a path or an address, and the option that allows it.

The policy is the one that `kvmlet run` makes of the same options. The program's kernel answers,
without a VM.
"""

import os
import stat

from kvmlet import _native
from kvmlet._launch import Start, guest_argv, guest_cwd
from kvmlet._refusals import flag_of, path_of, remedy_of
from kvmlet.cli import _run_options
from kvmlet.cli._ends import STATUS_OK
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import printable, show, warn
from kvmlet.errors import UsageError, from_native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Refusal = tuple[str, str, str] | None

_STATUS_NOT_READABLE = 1

_OPTIONS_WITH_VALUE = (
    "--read",
    "--allow-read",
    "--write",
    "--allow-write",
    "-v",
    "--volume",
    "--tmpfs",
    "--policy",
    "--profile",
    "-e",
    "--env",
    "--env-file",
    "-w",
    "--workdir",
    "--net",
    "--unix",
)

_DESCRIPTION = """\
Say if a program that 'kvmlet run' starts with these options may read and change PATH, by which
rule, and with which option it could. Nothing is run. A relative PATH starts in the current
directory, or in that of -w. CMD need not be given: what a program needs to start is visible to that
program only. In the place of PATH, HOST:PORT asks about an address.
"""

_EPILOG = f"""\
exit status: {STATUS_OK} it may be read (reached, or connected to if it is a socket),
{_STATUS_NOT_READABLE} it may not, 125 an error of kvmlet's or in its options.
"""

# Places without a tree of the host's.
_PLACES = {
    "leading": "a directory on the way to what is visible",
    "tmp": "the memory file system",
    "proc": "kvmlet's own /proc",
    "dev": "kvmlet's own devices",
    "sys": "kvmlet's own /sys",
    "made": "kvmlet's own file",
    "stream": "a stream of the program's",
    "outside": "outside of what is visible",
}

# The ends of changes, by place.
_CHANGED = {"overlay": ", in memory", "tmp": ", in memory", "writable": ", on the host"}

# Refusals that are not the policy's.
_ERRORS = {
    "EACCES": "its permissions do not allow it, or those of a directory on the way",
    "ELOOP": "too many symbolic links",
    "ENAMETOOLONG": "the name is too long",
    "ENOENT": "there is no such file",
    "ENOTDIR": "a part of the path is no directory",
    "ENXIO": "nobody is at its other end; only a run on a terminal has /dev/tty",
    "EROFS": "the host's file system is read-only",
}


def main(words: list[str]) -> int:
    """Answer for the path or address in `words`; the exit status."""
    own, rest = _run_options.split_words(words, _OPTIONS_WITH_VALUE)
    options = parser().parse_args(own)
    if not rest:
        raise UsageError("no path given", remedy="name it after the options: kvmlet why PATH")
    asked, program = rest[0], rest[1:]
    if program[:1] == ["--"]:
        del program[0]
    elif program and program[0].startswith("-"):
        raise UsageError(
            f"{printable(program[0])} comes after the path",
            remedy="write options before it: kvmlet why [options] PATH",
        )
    if not asked or "\0" in asked:
        raise UsageError("an empty path", remedy="name a file or a directory")
    env = _run_options.environment(options.env_file, options.env)
    options.publish = []
    _run_options.imply_profiles(options, program)
    if options.policy or options.profile:
        env = dict(_run_options.by_policies(options, env).env)
        # Nobody connects to what runs nothing.
        options.publish = []
    # Whatever is started, a shell needs nothing that others do not.
    argv = guest_argv(program or ["/bin/sh"])
    base = guest_cwd(options.workdir)
    try:
        start = Start(argv, env, options.workdir, _run_options.named_by(options), view="overlay")
        if start.note:
            warn(start.note)
        address = _address(asked)
        if address:
            answer = _of_address(start, asked, *address)
        else:
            path = os.path.join(base, os.fsencode(asked))
            answer = _of_socket(start, asked, path) or _of_path(start, asked, path)
    except _native.NativeError as error:
        raise from_native(*error.args) from None
    lines = answer.pop("lines")
    if options.json:
        import json

        text = json.dumps(answer, indent=2) + "\n"
    else:
        text = "".join(f"{printable(line)}\n" for line in lines)
    asked_for = next(word for word in ("reach", "connect", "read") if word in answer)
    allowed = answer[asked_for]["allowed"]
    return show(text) or (STATUS_OK if allowed else _STATUS_NOT_READABLE)


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet why",
        usage="kvmlet why [options] PATH [[--] CMD ARG...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    _run_options.add_policy_options(parser)
    answer = parser.add_argument_group("answer")
    answer.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def _of_path(start: Start, asked: str, path: bytes) -> "dict[str, Any]":
    # A program does not get a directory by another name with a slash at its end.
    found, place, tree, thing, read, write = start.policy.why(path.rstrip(b"/") or b"/")
    if read is not None and read[2] == "hidden":
        place = "outside"
    if not found.startswith(b"/"):
        # A stream that is open has no path.
        found, place = os.path.normpath(path), "stream"
    shown_by = _PLACES.get(place or "", "")
    if tree is not None:
        shown_by = start.shown_by(tree)
    rule = f"{os.fsdecode(tree)}: {shown_by}" if tree is not None else shown_by
    may = _may(thing, read, write, _CHANGED.get(place or "", ""))
    if place == "tmp" and thing == "absent" and os.path.lexists(found):
        # The sandbox has a directory of its own in the place of the host's.
        read = ("ENOENT", f"open {os.fsdecode(found)}", "hidden")
    leads_to = os.fsdecode(found)
    given = asked if found == os.path.normpath(path) else f"{asked} -> {leads_to}"
    lines = [f"{given}: {may}" + (f" ({rule})" if rule else "")]
    answer: dict[str, Any] = {
        "path": asked,
        "leads_to": leads_to,
        "thing": thing,
        "rule": {"place": place, "tree": tree and os.fsdecode(tree), "by": shown_by or None},
    }
    for word, refusal in (("read", read), ("write", write)):
        reason, option = "", ""
        if refusal is not None:
            errno, what, kind = refusal
            # Denials name the link. What is behind it has to be shown, or changed.
            if place is None or place == "outside":
                what = _behind_links(what)
            reason, option = _reason((errno, what, kind), tree, shown_by, start.volumes)
        answer[word] = {
            "allowed": refusal is None,
            "reason": reason or None,
            "option": option or None,
        }
        # That it is not there has been said.
        is_said = refusal is not None and refusal[0] == "ENOENT" and not refusal[2]
        if reason and not (thing == "absent" and place and is_said):
            lines.append(f"  {word}: {reason}")
    return answer | {"lines": lines}


def _of_socket(start: Start, asked: str, path: bytes) -> "dict[str, Any] | None":
    """The answer for a socket of the host; None for what is none."""
    real = os.path.realpath(path)
    try:
        if not stat.S_ISSOCK(os.stat(real).st_mode):
            return None
    except OSError:
        return None
    allowed = start.policy.reaches_socket(real)
    what = f"connect {os.fsdecode(real)}"
    reason = "" if allowed else remedy_of(what, "host-socket", start.volumes)
    option = "" if allowed else flag_of(what, "host-socket", start.volumes)
    may = "may be connected to (--unix)" if allowed else "may not be connected to"
    lines = [f"{asked}: {may}"] + ([f"  {reason}"] if reason else [])
    answer = {"allowed": allowed, "reason": reason or None, "option": option or None}
    return {"path": asked, "leads_to": os.fsdecode(real), "connect": answer, "lines": lines}


def _behind_links(what: str) -> str:
    """A denial with the path that its own leads to on the host."""
    path = path_of(what)
    return f"{what.partition(' ')[0]} {os.path.realpath(path)}" if os.path.lexists(path) else what


def _may(thing: str, read: "Refusal", write: "Refusal", where: str) -> str:
    """The first words of an answer."""
    if thing == "absent" and (read is None or not read[2]):
        return f"not there, may be made{where}" if write is None else "not there, may not be made"
    if read is None:
        return f"may be read and changed{where}" if write is None else "may be read, not changed"
    return f"may be changed{where}, not read" if write is None else "may not be read or changed"


def _reason(
    refusal: tuple[str, str, str],
    tree: bytes | None,
    shown_by: str,
    volumes: list[tuple[str, str]],
) -> tuple[str, str]:
    """Why something is refused, and the option that would allow it, in words."""
    errno, what, kind = refusal
    if not kind:
        return _ERRORS.get(errno, errno), ""
    if kind == "hidden" and not os.path.exists(path_of(what)):
        return "it is not visible, and you see no such file on the host", ""
    option, reason = flag_of(what, kind, volumes), remedy_of(what, kind, volumes)
    named = shown_by in ("--read", "--allow-read")
    if named and tree is not None and option == f"--write {os.fsdecode(tree)}":
        # Both of one path are refused.
        reason += f", instead of {shown_by}"
    return reason, option


def _address(word: str) -> tuple[str, int] | None:
    """HOST:PORT in parts, or None for a path."""
    host, colon, port = word.rpartition(":")
    if not colon or not host or "/" in word or not (port.isascii() and port.isdigit()):
        return None
    if len(port) > 5 or int(port) > 65535:
        return None
    return host.removeprefix("[").removesuffix("]"), int(port)


def _of_address(start: Start, asked: str, host: str, port: int) -> "dict[str, Any]":
    reach = start.policy.reach(host, port)
    if reach is None:
        raise UsageError(
            f"{asked}: neither a name nor an address", remedy=f"to ask about a file: ./{asked}"
        )
    allowed = reach != "refused"
    what = f"connect {asked}"
    reason = "" if allowed else remedy_of(what, "address")
    option = "" if allowed else flag_of(what, "address")
    may = {
        "refused": "may not be reached",
        "named": "may be reached",
        "public": "may be reached at addresses of the internet that are not this machine's own",
    }[reach]
    lines = [f"{asked}: {may}"]
    if reason:
        lines.append(f"  {reason}")
    answer = {"allowed": allowed, "reason": reason or None, "option": option or None}
    return {"address": asked, "reach": answer, "lines": lines}
