"""The start of a guest: its arguments, environment, directory and input, as bytes."""

import os

from kvmlet.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

GUEST_PATH = b"/usr/local/bin:/usr/bin:/bin"

# The guest inherits these from the caller: how to speak to the person at the terminal.
_INHERITED = (b"LANG", b"TERM")


def guest_env(extra: "Mapping[str, str] | None" = None) -> list[tuple[bytes, bytes]]:
    """The guest's whole environment: PATH, HOME, TMPDIR, the caller's LANG and TERM, then `extra`.

    Raises UsageError for a name or value that no environment can hold.
    """
    env = {b"PATH": GUEST_PATH, b"HOME": b"/tmp", b"TMPDIR": b"/tmp"}
    for name in _INHERITED:
        inherited = os.environb.get(name)
        if inherited is not None:
            env[name] = inherited
    for key, value in (extra or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"env: {key!r}={value!r} is not a pair of strings")
        name, data = os.fsencode(key), os.fsencode(value)
        if not name or b"=" in name or b"\0" in name or b"\0" in data:
            raise UsageError(
                f"env: {key!r}={value!r} cannot be an environment variable",
                remedy="names are not empty and have no '='; neither part has a null byte",
            )
        env[name] = data
    return list(env.items())


def guest_modules() -> str:
    """The directory of the Python modules that guests may import: `kvmlet_guest` and the like."""
    package = os.path.realpath(os.path.dirname(__file__))
    return os.path.join(package, "guest", "python")


def guest_cwd(directory: "str | bytes | os.PathLike[str] | None" = None) -> bytes:
    """The absolute path of `directory`, by default else the current one.

    Raises UsageError, HostError.
    """
    if directory is None:
        try:
            return os.getcwdb()
        except OSError as error:
            raise HostError(
                f"the current directory cannot be read: {error.strerror}",
                remedy="change to another directory",
            ) from None
    try:
        path = os.path.realpath(os.fsencode(directory))
        is_directory = os.path.isdir(path)
    except (TypeError, ValueError, OSError):
        is_directory, path = False, b""
    if not is_directory:
        raise UsageError(f"cwd: {directory!r} is not a directory")
    return path


def guest_argv(argv: object) -> list[bytes]:
    """`argv` (a sequence of str, bytes or os.PathLike) as bytes. Raises UsageError."""
    remedy = 'pass a list with the program first: ["python3", "-c", "print(1)"]'
    if isinstance(argv, (str, bytes, bytearray, os.PathLike)):
        raise UsageError(f"argv is a single {type(argv).__name__}, not a list", remedy=remedy)
    try:
        words: list[object] = list(argv)  # type: ignore[call-overload]
    except TypeError:
        raise UsageError(f"argv is {type(argv).__name__}, not a list", remedy=remedy) from None
    if not words:
        raise UsageError("argv is empty", remedy=remedy)
    encoded: list[bytes] = []
    for position, word in enumerate(words):
        if not isinstance(word, (str, bytes, os.PathLike)):
            raise UsageError(
                f"argv[{position}] is {type(word).__name__}, not str, bytes or a path",
                remedy="convert it with str()",
            )
        data = os.fsencode(word)
        if b"\0" in data:
            raise UsageError(f"argv[{position}] contains a null byte")
        encoded.append(data)
    return encoded


def input_bytes(data: object) -> bytes | None:
    """Standard input as bytes, a str as UTF-8; None for none. Raises UsageError."""
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"input cannot be encoded: {error}", remedy="pass bytes") from None
    if data is None or isinstance(data, (bytes, bytearray, memoryview)):
        return None if data is None else bytes(data)
    raise UsageError(f"input is {type(data).__name__}, not bytes or str")
