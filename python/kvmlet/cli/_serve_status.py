"""`kvmlet serve --status`: a running server, as its control address tells it, for a person."""

import json
import socket

from kvmlet.errors import HostError, UsageError

_TIMEOUT_S = 10.0
# Its answer has a few hundred.
_MAX_ANSWER_BYTES = 64 << 10

_OF_PROGRAM = ("forks", "forks_busy", "waiting")
_OF_STORAGE = ("answered", "waiting", "restarts")

_NOT_RUNNING = "start the server with the same --control, or name its own"


def show(place: str | None) -> bool:
    """Print how the server with this control address is; True if it takes requests."""
    if place is None:
        raise UsageError(
            "--status asks the control address of a server, and none is given",
            remedy="name it: kvmlet serve --status --control PLACE",
        )
    ready_status, ready_text = _ask(place, "/-/ready")
    status, text = _ask(place, "/-/status")
    counts = _counts(text) if status == 200 else None
    if counts is None:
        raise HostError(f"--control: no server of kvmlet's answers at {place}", remedy=_NOT_RUNNING)
    is_ready = ready_status == 200
    state = "ready" if is_ready else f"not ready: {_line(ready_text)}"
    print(
        f"state        {state}\n"
        f"forks        {counts['forks']}, {counts['forks_busy']} of them busy\n"
        f"waiting      {counts['waiting']} requests for a fork\n"
        f"connections  {counts['connections']} of clients, {counts['upgrades']} hold a fork"
    )
    for name, own in _each(text, "programs", _OF_PROGRAM).items():
        print(
            f"program      {_line(name)}: {own['forks']} forks, {own['forks_busy']} of them busy, "
            f"{own['waiting']} requests wait"
        )
    for name, own in _each(text, "storages", _OF_STORAGE).items():
        print(
            f"storage      {_line(name)}: {own['answered']} questions answered, "
            f"{own['waiting']} wait, started anew {own['restarts']} times"
        )
    return is_ready


def _counts(text: str) -> dict[str, int] | None:
    try:
        said = json.loads(text)
    except ValueError:
        return None
    return _numbers(said, ("forks", "forks_busy", "waiting", "connections", "upgrades"))


def _numbers(said: object, names: tuple[str, ...]) -> dict[str, int] | None:
    if not isinstance(said, dict) or any(type(said.get(name)) is not int for name in names):
        return None
    return {name: said[name] for name in names}


def _each(text: str, kind: str, counts: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """These numbers of each program that has a name, or of each storage."""
    said = json.loads(text).get(kind)
    each = said.items() if isinstance(said, dict) else ()
    numbers = {name: _numbers(own, counts) for name, own in each}
    return {name: own for name, own in numbers.items() if own is not None}


def _line(text: str) -> str:
    """The first line, as far as it can be shown."""
    first = text.partition("\n")[0][:200]
    return "".join(char if char.isprintable() else "?" for char in first)


def _ask(place: str, path: str) -> tuple[int, str]:
    """Status and body of a GET request there."""
    family, address = _address(place)
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = b""
    try:
        with socket.socket(family) as stream:
            stream.settimeout(_TIMEOUT_S)
            stream.connect(address)
            stream.sendall(request.encode())
            while len(answer) < _MAX_ANSWER_BYTES:
                data = stream.recv(_MAX_ANSWER_BYTES)
                if not data:
                    break
                answer += data
    except OSError as error:
        why = error.strerror or "it does not answer"
        raise HostError(
            f"--control: no server at {place}: {why.lower()}", remedy=_NOT_RUNNING
        ) from None
    head, _, body = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    is_http = len(words) > 1 and words[0].startswith(b"HTTP/1.") and words[1].isdigit()
    return (int(words[1][:3]) if is_http else 0), body.decode(errors="replace")


def _address(place: str) -> tuple[int, str | tuple[str, int]]:
    path = place.removeprefix("unix:")
    if path != place and path:
        return socket.AF_UNIX, path
    host, colon, port = place.rpartition(":")
    is_number = port.isascii() and port.isdigit() and len(port) <= 5
    if path == place and is_number and int(port) <= 65_535 and bool(host) == bool(colon):
        if host.startswith("[") and host.endswith("]"):
            return socket.AF_INET6, (host[1:-1], int(port))
        return socket.AF_INET, (host or "127.0.0.1", int(port))
    raise UsageError(
        f"--control: '{place[:100]}' is no place to ask",
        remedy="write [ADDR:]PORT, as 8080, or unix:PATH",
    )
