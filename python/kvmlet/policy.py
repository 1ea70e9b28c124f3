"""The things that a program may see and use, as values: kept, combined, written to files.

policy = kvmlet.Policy.of(read=["/data"], memory="1g", timeout="30s")
kvmlet.run(["wc", "/data/a.csv"], policy=policy | kvmlet.Policy.of(timeout="5s"))
policy.save("policy.toml")  # for `kvmlet run --policy policy.toml`
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kvmlet._values import (
    DEFAULT_MAX_PROCS,
    DEFAULT_MEMORY_BYTES,
    MOST_MAX_FILES,
    OUTPUT_LIMIT_BYTES,
    format_size,
    parse_bytes,
    parse_count,
    parse_disk,
    parse_duration,
    parse_files,
    parse_size,
)
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Self, TypeAlias

    Path: TypeAlias = str | os.PathLike[str]

__all__ = ["Limits", "Mount", "Policy"]

Access = Literal["read", "write"]
# Each is an option of `kvmlet run`, an argument of `run`, and a list in a file.
_ACCESSES: tuple[Access, ...] = ("read", "write")
_NETWORK = ("net", "publish")
_SOCKETS = "unix"


def _exact_duration(seconds: float) -> str:
    return f"{seconds:.12g}s"


# For each limit: from and to the form that people write.
_LIMITS: dict[str, tuple[Callable[[Any, str], Any], Callable[[Any], object]]] = {
    "timeout": (parse_duration, _exact_duration),
    "cpu_time": (parse_duration, _exact_duration),
    "memory": (parse_size, format_size),
    "disk": (parse_disk, format_size),
    "max_procs": (parse_count, int),
    "max_files": (parse_files, int),
    "max_output": (parse_bytes, format_size),
}
_FILE_MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that a program may use. None leaves a limit to whoever runs it.

    >>> limits = kvmlet.Limits(timeout="2m", memory="64m")
    >>> limits.timeout, limits.memory, limits.max_procs
    (120.0, 67108864, None)
    """

    timeout: float | str | None = None
    """Wall time, in seconds once made; given also as "500ms", "2m"."""
    cpu_time: float | str | None = None
    """CPU time, in the same way; sleeping does not count."""
    memory: int | str | None = None
    """Memory, in bytes once made; given also as "64m", "1g"."""
    disk: int | str | None = None
    """Room for files in /tmp and in trees that are changed in memory, as `memory`."""
    max_procs: int | None = None
    """Processes, with those that have not been waited for: 1 to 1,024."""
    max_files: int | None = None
    """Descriptors that each process may have open: 1 to 1,024, which is what it may without."""
    max_output: int | str | None = None
    """Output that is captured, of both streams together, in bytes as `memory`."""

    def __post_init__(self) -> None:
        for name, (parse, _) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse(value, name))

    def __or__(self, other: Limits) -> Limits:
        """Both, where `other` decides what it names."""
        if not isinstance(other, Limits):
            return NotImplemented
        return replace(self, **other._named())

    def in_full(self) -> Numbers:
        """Numbers for each limit: where it names none, the library's own."""
        return Numbers(
            timeout_s=_number(self.timeout, None),
            cpu_time_s=_number(self.cpu_time, None),
            memory_bytes=_number(self.memory, DEFAULT_MEMORY_BYTES),
            disk_bytes=_number(self.disk, None),
            processes_max=_number(self.max_procs, DEFAULT_MAX_PROCS),
            files_max=_number(self.max_files, MOST_MAX_FILES),
            output_bytes=_number(self.max_output, OUTPUT_LIMIT_BYTES),
        )

    def _named(self) -> dict[str, Any]:
        pairs = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in pairs if value is not None}


class Numbers(NamedTuple):
    """Limits as the extension takes them."""

    timeout_s: float | None
    cpu_time_s: float | None
    memory_bytes: int
    disk_bytes: int | None
    processes_max: int
    files_max: int
    output_bytes: int


def _number(limit: Any, default: Any) -> Any:
    return default if limit is None else limit


@dataclass(frozen=True, slots=True)
class Mount:
    """A file or directory of the host that a program may use, with all beneath it.

    >>> policy = kvmlet.Policy(mounts=[kvmlet.Mount("/srv"), kvmlet.Mount("/var/tmp", "write")])
    >>> policy.paths("read"), policy.paths("write")
    (['/srv'], ['/var/tmp'])
    """

    path: str
    """Its path, absolute once made."""
    access: Access = "read"
    """The use that the program may make of it: "read", or "write", which changes it on the host."""

    def __post_init__(self) -> None:
        if not isinstance(self.path, (str, os.PathLike)) or "\0" in os.fspath(self.path):
            raise UsageError(f"{self.path!r} is not a path", remedy="pass a str or a path")
        if self.access not in _ACCESSES:
            raise UsageError(
                f"access: {self.access!r} is none", remedy=f"pass {' or '.join(_ACCESSES)}"
            )
        object.__setattr__(self, "path", os.path.abspath(os.fspath(self.path)))


def _words(given: object, name: str) -> tuple[str, ...]:
    """A sequence of str, each once. Raises UsageError, which names the argument `name`."""
    if isinstance(given, (list, tuple)) and all(isinstance(word, str) for word in given):
        return tuple(dict.fromkeys(given))
    raise UsageError(f"{name}: {given!r} is not a list of str", remedy=f'write {name}=["..."]')


def _sockets(given: object) -> tuple[str, ...]:
    """Paths of sockets, absolute, each once. Raises UsageError."""
    if isinstance(given, (list, tuple)) and all(
        isinstance(path, (str, os.PathLike)) and "\0" not in os.fspath(path) for path in given
    ):
        return tuple(dict.fromkeys(os.path.abspath(os.fspath(path)) for path in given))
    raise UsageError(f"unix: {given!r} is not a list of paths", remedy='write unix=["..."]')


class _Env(Mapping[str, str]):
    """Variables that do not change."""

    def __init__(self, pairs: Mapping[str, str]) -> None:
        self._pairs = dict(pairs)

    def __getitem__(self, name: str) -> str:
        return self._pairs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __hash__(self) -> int:
        return hash(frozenset(self._pairs.items()))

    def __repr__(self) -> str:
        return repr(self._pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The things that a program may see and use, beside those that every program may.

    A value: it is compared, hashed, pickled, and never changes. `policy | other` has the mounts,
    hosts, ports, sockets and variables of both; where both name a limit or a variable, `other`
    decides.

        >>> policy = kvmlet.Policy.of(memory="64m") | kvmlet.Policy.of(env={"NAME": "you"})
        >>> print(policy.to_toml())
        [env]
        NAME = "you"
        <BLANKLINE>
        [limits]
        memory = "64m"
        <BLANKLINE>
        >>> kvmlet.run("echo $NAME", shell=True, text=True, policy=policy).stdout
        'you\\n'
    """

    mounts: tuple[Mount, ...] = ()
    """Files and directories of the host."""
    net: tuple[str, ...] = ()
    """Rules on the hosts that it may connect to, as `--net` has them."""
    publish: tuple[str, ...] = ()
    """Ports of this machine that lead to its own, as `--publish` has them."""
    unix: tuple[str, ...] = ()
    """Sockets of this machine that it may connect to, by their paths, as `--unix` has them."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Variables beside those that every program has."""
    limits: Limits = Limits()
    """The most that it may use."""

    def __post_init__(self) -> None:
        """Raises UsageError."""
        mounts = tuple(dict.fromkeys(self.mounts))
        if not all(isinstance(mount, Mount) for mount in mounts):
            raise UsageError("mounts: they are no mounts", remedy='pass [Mount("/data")]')
        if not isinstance(self.limits, Limits):
            raise UsageError("limits: they are no limits", remedy="pass Limits(...)")
        for name, value in self.env.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise UsageError(
                    f"env: {name!r}={value!r} is not a pair of strings", remedy="pass str for both"
                )
            if not name or "=" in name or "\0" in name + value:
                raise UsageError(
                    f"env: {name!r} cannot be an environment variable", remedy="leave it out"
                )
        for name in _NETWORK:
            object.__setattr__(self, name, _words(getattr(self, name), name))
        object.__setattr__(self, "unix", _sockets(self.unix))
        object.__setattr__(self, "mounts", mounts)
        object.__setattr__(self, "env", _Env(self.env))

    @classmethod
    def of(
        cls,
        *,
        read: Iterable[Path] = (),
        write: Iterable[Path] = (),
        net: Iterable[str] = (),
        publish: Iterable[str] = (),
        unix: Iterable[Path] = (),
        env: Mapping[str, str] | None = None,
        timeout: float | str | None = None,
        cpu_time: float | str | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        max_procs: int | None = None,
        max_files: int | None = None,
        max_output: int | str | None = None,
    ) -> Self:
        """A policy by the words of `run` and `kvmlet run`. Raises UsageError."""
        for name, paths in (("read", read), ("write", write)):
            if isinstance(paths, (str, bytes)):
                raise UsageError(f"{name} is a single path, not a list", remedy=f"pass [{paths!r}]")
        limits = Limits(
            timeout=timeout,
            cpu_time=cpu_time,
            memory=memory,
            disk=disk,
            max_procs=max_procs,
            max_files=max_files,
            max_output=max_output,
        )
        mounts = tuple(Mount(os.fspath(path)) for path in read)
        mounts += tuple(Mount(os.fspath(path), "write") for path in write)
        return cls(
            mounts=mounts,
            net=_words(net, "net"),
            publish=_words(publish, "publish"),
            unix=_sockets(unix),
            env=env or {},
            limits=limits,
        )

    def __or__(self, other: Policy) -> Policy:
        """Both, where `other` decides what both name."""
        if not isinstance(other, Policy):
            return NotImplemented
        return Policy(
            mounts=self.mounts + other.mounts,
            net=self.net + other.net,
            publish=self.publish + other.publish,
            unix=self.unix + other.unix,
            env={**self.env, **other.env},
            limits=self.limits | other.limits,
        )

    def replace(self, **changes: Any) -> Policy:
        """The same with other fields, or other limits by their names: `replace(memory="1g")`.

        Raises UsageError.
        """
        limits = {name: changes.pop(name) for name in list(changes) if name in _LIMITS}
        unknown = sorted(set(changes) - {each.name for each in fields(self)})
        if unknown:
            known = ", ".join((*(each.name for each in fields(self)), *_LIMITS))
            raise UsageError(f"a policy has no {unknown[0]!r}", remedy=f"it has {known}")
        if limits:
            changes["limits"] = replace(changes.get("limits", self.limits), **limits)
        return replace(self, **changes)

    def paths(self, access: Access) -> list[str]:
        """The paths of its mounts with this access."""
        return [mount.path for mount in self.mounts if mount.access == access]

    # ---- files ----

    @classmethod
    def load(cls, path: Path) -> Self:
        """The policy in a TOML file.

        Relative paths in it start at its folder, those that begin with "~/" at the caller's home.

        Raises UsageError, with file, line and column.
        """
        name = os.fspath(path)
        try:
            with open(name, "rb") as file:
                data = file.read(_FILE_MAX_BYTES + 1)
        except OSError as error:
            raise UsageError(
                f"{name}: {error.strerror}", remedy="name a file that can be read"
            ) from None
        if len(data) > _FILE_MAX_BYTES:
            raise UsageError(f"{name}: more than 1 MiB", remedy="name a policy's file")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise UsageError(f"{name}: it is not UTF-8", remedy="name a policy's file") from None
        return cls.from_toml(text, name=name, folder=os.path.dirname(os.path.abspath(name)))

    @classmethod
    def from_toml(cls, text: str, *, name: str = "<policy>", folder: Path = ".") -> Self:
        """The policy in `text`; `name` is told in errors, relative paths start at `folder`.

        Raises UsageError, with name, line and column.
        """
        from kvmlet._toml import Document

        document = Document(text, name)
        words: dict[str, Any] = {}
        for key, value in document.items():
            if key in _ACCESSES or key == _SOCKETS:
                words[key] = [
                    os.path.join(folder, os.path.expanduser(path))
                    for path in document.strings((key,), value)
                ]
            elif key in _NETWORK:
                words[key] = document.strings((key,), value)
            elif key == "env":
                pairs = document.table((key,), value).items()
                words[key] = {each: document.string((key, each), text) for each, text in pairs}
            elif key == "limits":
                for word, limit in document.table((key,), value).items():
                    field_name = word.replace("-", "_")
                    if field_name not in _LIMITS or "_" in word:
                        known = ", ".join(each.replace("_", "-") for each in _LIMITS)
                        document.fail((key, word), f"no limit {word!r}", f"there are {known}")
                    with document.at((key, word)):
                        words[field_name] = _LIMITS[field_name][0](limit, word)
            else:
                known = ", ".join((*_ACCESSES, *_NETWORK, _SOCKETS, "env", "limits"))
                document.fail((key,), f"a policy has no {key!r}", f"there are {known}")
        with document.at(()):
            return cls.of(**words)

    @classmethod
    def profile(cls, name: str) -> Policy:
        """The profile `name`, as `--profile` has it: "git", "python" and so on.

        Files that are not there are left out, and variables that are paths in the caller's home
        with them. Raises UsageError.
        """
        from kvmlet._profiles import profile_text

        policy = cls.from_toml(profile_text(name), name=f"<profile {name}>")
        mounts = tuple(mount for mount in policy.mounts if os.path.exists(mount.path))
        env = {
            key: os.path.expanduser(value)
            for key, value in policy.env.items()
            if mounts or not value.startswith("~")
        }
        return replace(policy, mounts=mounts, env=env)

    def to_toml(self) -> str:
        """The policy as TOML, which `from_toml` reads back."""
        from kvmlet._toml import toml

        limits = {
            name.replace("_", "-"): _LIMITS[name][1](value)
            for name, value in self.limits._named().items()
        }
        lists: dict[str, list[str]] = {access: self.paths(access) for access in _ACCESSES}
        lists |= {name: list(getattr(self, name)) for name in (*_NETWORK, _SOCKETS)}
        return toml(lists, {"env": dict(self.env), "limits": limits})

    def save(self, path: Path) -> None:
        """Write it to a file. Raises OSError."""
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.to_toml())


NO_POLICY = Policy()
"""For whoever is given none."""


def policy_of(
    policy: object,
    *,
    limits: object = None,
    read: Iterable[Path] = (),
    write: Iterable[Path] = (),
    net: Iterable[str] = (),
    publish: Iterable[str] = (),
    unix: Iterable[Path] = (),
    env: Mapping[str, str] | None = None,
    **words: float | str | None,
) -> Policy:
    """`policy` and `limits`, None for none, with the arguments of a call that name more.

    Raises UsageError.
    """
    if policy is None:
        policy = NO_POLICY
    if not isinstance(policy, Policy):
        raise UsageError(
            f"policy: {type(policy).__name__} is none",
            remedy="pass kvmlet.Policy.of(...) or kvmlet.Policy.load(FILE)",
        )
    if limits is not None:
        if not isinstance(limits, Limits):
            raise UsageError(
                f"limits: {type(limits).__name__} is none",
                remedy='pass kvmlet.Limits(memory="1g", timeout="30s")',
            )
        policy |= Policy(limits=limits)
    named: dict[str, Any] = words
    return policy | Policy.of(
        read=read, write=write, net=net, publish=publish, unix=unix, env=env, **named
    )
