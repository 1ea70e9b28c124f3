"""A changed name, as it comes from the extension, from another process, and from a saved set.

The text of an entry is one line of plain ASCII. Whoever reads one believes nothing of it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    class Held(Protocol):
        """The changes of a run, as the extension holds them."""

        def __len__(self) -> int: ...
        def entry(self, place: int) -> tuple[object, ...]: ...
        def next_data(self, place: int, offset: int) -> int: ...
        def read(self, place: int, offset: int, size: int) -> bytes | None: ...


KINDS = ("removed", "file", "symlink", "directory", "special", "mode")

PIECE_BYTES = 256 << 10
"""The bytes of a file are held and sent in pieces of this size."""

_NAME_MAX = 255
_PATH_MAX = 1 << 16
_NUMBER_MAX = 1 << 63
_ATTRIBUTES_MAX_BYTES = 64 << 10
LINE_MAX = 4 * _PATH_MAX + 4 * _ATTRIBUTES_MAX_BYTES + 4096


class BadEntry(Exception):
    """The text that was read is no entry that kvmlet writes."""


class HostChanged(Exception):
    """Bytes that a changed file shares with the host's are not there any more."""


class Seen:
    """The host's object that had a name when the program took the name's place."""

    __slots__ = ("ctime_ns", "dev", "ino", "links", "mode", "mtime_ns", "size")

    def __init__(self, row: "Iterable[int]") -> None:
        (
            self.dev,
            self.ino,
            self.mode,
            self.links,
            self.size,
            self.mtime_ns,
            self.ctime_ns,
        ) = row

    def row(self) -> tuple[int, ...]:
        """Its values in the order of `__init__`."""
        return (
            self.dev,
            self.ino,
            self.mode,
            self.links,
            self.size,
            self.mtime_ns,
            self.ctime_ns,
        )


class Entry:
    """A changed name: its `path` in the tree, and what it has become (`kind`)."""

    __slots__ = (
        "attributes",
        "ctime_ns",
        "kind",
        "late",
        "mode",
        "mtime_ns",
        "number",
        "path",
        "same_as",
        "seen",
        "size",
        "target",
    )

    def __init__(
        self,
        kind: str,
        path: bytes,
        mode: int,
        mtime_ns: int,
        ctime_ns: int,
        size: int = 0,
        target: bytes = b"",
        seen: Seen | None = None,
        late: bool = False,
        same_as: int | None = None,
        number: int = 0,
        attributes: "Iterable[tuple[bytes, bytes]]" = (),
    ) -> None:
        self.kind = kind
        self.path = path
        self.mode = mode
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.size = size
        self.target = target
        self.seen = seen
        self.late = late
        """True if `seen` is from after the program's end: a part of a directory that is gone."""
        self.same_as = same_as
        """The number of another entry, which is a name of the same file."""
        self.number = number
        """The entry's place in its set; the name of its bytes in a saved one."""
        self.attributes = list(attributes)
        """Extended attributes of a file: names, which begin with `user.`, and values."""

    @property
    def has_data(self) -> bool:
        """True for what is moved into place: a file or a symbolic link."""
        return self.kind in ("file", "symlink")

    def line(self) -> bytes:
        """The entry as text."""
        seen = ",".join(map(str, self.seen.row())) if self.seen else "-"
        same = "-" if self.same_as is None else str(self.same_as)
        numbers = f"{self.number} {self.mode} {self.mtime_ns} {self.ctime_ns} {self.size}"
        names = f"{self.path.hex()} {self.target.hex() or '-'}"
        pairs = ",".join(f"{name.hex()}:{value.hex()}" for name, value in self.attributes)
        line = f"{self.kind} {numbers} {int(self.late)} {same} {seen} {names} {pairs or '-'}\n"
        return line.encode()


def parse(line: bytes) -> Entry:
    """The entry that `line` is the text of. Raises BadEntry."""
    try:
        kind, *rest = line.decode("ascii").split()
        number, mode, mtime, ctime, size, late, same, seen, path, target, pairs = rest
        entry = Entry(
            kind,
            bytes.fromhex(path),
            _number(mode) & 0o177777,
            _time(mtime),
            _time(ctime),
            _number(size),
            b"" if target == "-" else bytes.fromhex(target),
            None if seen == "-" else Seen(_time(word) for word in seen.split(",")),
            late == "1",
            None if same == "-" else _number(same),
            _number(number),
            [] if pairs == "-" else [_pair(pair) for pair in pairs.split(",")],
        )
    except ValueError:
        raise BadEntry("it is no entry of a change set") from None
    check(entry)
    return entry


def check(entry: Entry) -> None:
    """Raises BadEntry for an entry whose path could lead out of the tree, or without sense."""
    names = entry.path.split(b"/")
    if entry.kind not in KINDS:
        raise BadEntry("it is of no known kind")
    if len(entry.path) > _PATH_MAX or any(
        name in (b"", b".", b"..") or len(name) > _NAME_MAX or b"\0" in name for name in names
    ):
        raise BadEntry("its path is no path in a tree")
    length = sum(len(name) + len(value) for name, value in entry.attributes)
    if length > _ATTRIBUTES_MAX_BYTES or any(
        not name.startswith(b"user.") or not 5 < len(name) <= _NAME_MAX or b"\0" in name
        for name, _ in entry.attributes
    ):
        raise BadEntry("its attributes are none of a user's")
    if b"\0" in entry.target or (entry.kind == "symlink") != bool(entry.target):
        raise BadEntry("its target is none")


def _pair(text: str) -> tuple[bytes, bytes]:
    name, value = text.split(":")
    return bytes.fromhex(name), bytes.fromhex(value)


def _number(text: str) -> int:
    value = int(text)
    if not 0 <= value <= _NUMBER_MAX:
        raise ValueError(text)
    return value


def _time(text: str) -> int:
    # Times of seconds that fit in 64 bits, and device numbers.
    value = int(text)
    if abs(value) >= 1 << 95:
        raise ValueError(text)
    return value


def of_run(held: "Held", tree: bytes) -> "Iterator[tuple[Entry, Iterator[tuple[int, bytes]]]]":
    """The entries in `tree` of a run, each with the pieces of its file: (offset, bytes).

    Between the pieces all is zero. The pieces raise HostChanged.
    """
    for place in range(len(held)):
        row = held.entry(place)
        kind, path, mode, mtime, ctime, size, target, seen, late, same, attributes = row
        assert isinstance(path, bytes)
        if not path.startswith(tree + b"/"):
            continue
        entry = Entry(
            kind,  # type: ignore[arg-type]
            path[len(tree) + 1 :],
            mode,  # type: ignore[arg-type]
            mtime,  # type: ignore[arg-type]
            ctime,  # type: ignore[arg-type]
            size,  # type: ignore[arg-type]
            target,  # type: ignore[arg-type]
            None if seen is None else Seen(seen),  # type: ignore[arg-type]
            bool(late),
            same,  # type: ignore[arg-type]
            place,
            attributes,  # type: ignore[arg-type]
        )
        yield entry, _pieces(held, entry)


def _pieces(held: "Held", entry: Entry) -> "Iterator[tuple[int, bytes]]":
    if entry.kind != "file" or entry.same_as is not None:
        return
    offset = 0
    while True:
        offset = held.next_data(entry.number, offset)
        if offset >= entry.size:
            return
        piece = held.read(entry.number, offset, PIECE_BYTES)
        if piece is None:
            raise HostChanged
        if not piece:
            return
        yield offset, piece
        offset += len(piece)
