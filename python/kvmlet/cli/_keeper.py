"""The keeper: a process that makes a program's changes on the host, at its end.

It is forked before the process that runs the program gives up its rights, and waits. That process
never has the right to write anything: it sends the changes, of which the keeper believes nothing.
"""

import contextlib
import os

from kvmlet import _native
from kvmlet._changes.entry import (
    LINE_MAX,
    PIECE_BYTES,
    BadEntry,
    Entry,
    HostChanged,
    of_run,
    parse,
)
from kvmlet.cli._ends import STATUS_OK, STATUS_OWN_ERROR
from kvmlet.cli._helper import answer, answers_of, let_go, write_all
from kvmlet.cli._text import warn
from kvmlet.errors import HostError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from kvmlet._changes.host_tree import HostTree

_WORD_MAX = 64


class Keeper:
    """The keeper's process, from the side of the one that runs the program."""

    def __init__(self, mode: str, tree: bytes, sink: int, answers: int) -> None:
        self._mode = mode
        self._tree = tree
        self._sink = sink
        self._answers = answers

    def finish(self, held: "_native.Changes", *, cut_short: bool, quiet: bool) -> int:
        """Have the changes that are `held` kept as the mode says; STATUS_OK, or another.

        After a limit or a signal (`cut_short`) those of the mode keep are saved only.
        """
        save_only = cut_short and self._mode == "keep"
        # A keeper that has given up says why.
        with contextlib.suppress(BrokenPipeError):
            self._send(held, b"save" if save_only else b"apply")
        os.close(self._sink)
        status = STATUS_OWN_ERROR
        said = False
        for word, rest in answers_of(self._answers):
            if word == "status":
                status, said = int(rest), True
            elif word == "warn" or not quiet:
                warn(rest)
        if not said:
            warn(
                "keeping the changes was interrupted; "
                f"'kvmlet apply {os.fsdecode(self._tree)}' finishes it if they were saved"
            )
        return status

    def _send(self, held: "_native.Changes", order: bytes) -> None:
        if held.is_cut:
            write_all(self._sink, b"cut\n")
            return
        write_all(self._sink, order + b"\n")
        try:
            for entry, pieces in of_run(held, self._tree):
                write_all(self._sink, entry.line())
                end = b".\n"
                try:
                    for offset, piece in pieces:
                        write_all(self._sink, b"+ %d %d\n" % (offset, len(piece)))
                        write_all(self._sink, piece)
                except HostChanged:
                    end = b"!\n"
                if _sends_bytes(entry):
                    write_all(self._sink, end)
        except _native.NativeError as error:
            write_all(self._sink, b"failed %s\n" % str(error.args[-1]).encode().hex().encode())
            return
        write_all(self._sink, b"end\n")


def start(mode: str, tree: bytes, target: bytes | None, named: list[str]) -> Keeper:
    """Fork the keeper of the changes in `tree`.

    mode: "keep", "ask" (on the terminal) or "dir", which writes them to `target`. `named` are
    protected names that are kept. Raises UsageError, HostError.
    """
    from time import time_ns

    load(mode)
    from kvmlet._changes import keep, protected
    from kvmlet._changes.host_tree import HostTree

    root = tree
    if target is not None:
        try:
            keep.make_empty(target)
        except OSError as error:
            raise UsageError(
                f"--changes dir:{os.fsdecode(target)}: {error.strerror}",
                remedy="name an empty directory, or one that is not there",
            ) from None
        root = os.path.realpath(target)
    try:
        host_tree = HostTree(root)
    except OSError as error:
        raise HostError(f"{os.fsdecode(root)} cannot be changed: {error.strerror}") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise UsageError(
            f"--changes {mode}: you may not write to {os.fsdecode(root)}",
            remedy="--changes dir:PATH writes the changed files elsewhere",
        )
    terminal = _terminal() if mode == "ask" else None
    since_ns = time_ns()
    from_runner, sink = os.pipe()
    answers, to_runner = os.pipe()
    if os.fork() == 0:
        try:
            kept = [from_runner, to_runner, host_tree.fd]
            let_go(kept if terminal is None else [*kept, terminal])
            with os.fdopen(from_runner, "rb", buffering=PIECE_BYTES) as orders:
                job = _Job(mode, host_tree, since_ns, protected.named_in(tree, named), terminal)
                job.work(orders, to_runner)
        finally:
            os._exit(0)
    for fd in (from_runner, to_runner, terminal):
        if fd is not None:
            os.close(fd)
    host_tree.close()
    return Keeper(mode, tree, sink, answers)


def load(mode: str) -> None:
    """Import all that the keeper needs.

    Later, Python might find modules among the program's files.
    """
    from kvmlet._changes import apply, keep, protected  # noqa: F401

    if mode == "ask":
        from kvmlet.cli import _ask  # noqa: F401


def _terminal() -> int:
    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise UsageError(
            "--changes ask: there is no terminal to ask on",
            remedy="choose keep, discard or dir:PATH",
        ) from None


class _Job:
    """The keeper's work, in its own process."""

    def __init__(
        self,
        mode: str,
        tree: "HostTree",
        since_ns: int,
        named: list[bytes],
        terminal: int | None,
    ) -> None:
        self._mode = mode
        self._tree = tree
        self._since_ns = since_ns
        self._named = named
        self._terminal = terminal
        self._answer = -1

    def work(self, orders: "BinaryIO", to: int) -> None:
        self._answer = to
        order = orders.readline(_WORD_MAX)
        if not order:
            # The run has ended without an end.
            return
        status = STATUS_OWN_ERROR
        try:
            if order == b"cut\n":
                from kvmlet._changes.keep import TOO_MANY

                self._say(b"warn", f"no change is kept: {TOO_MANY}")
            elif order == b"save\n":
                status = self._save(orders)
            elif order == b"apply\n":
                status = self._apply(orders)
        except (OSError, BadEntry, EOFError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._say(b"warn", f"changes are not kept: {why}")
        except Exception as error:  # noqa: BLE001 - the last resort: a line instead of silence
            self._say(b"warn", f"internal error: changes are not kept: {error!r}")
        write_all(to, b"status %d\n" % status)

    def _say(self, word: bytes, text: str) -> None:
        answer(self._answer, word, text)

    def _save(self, orders: "BinaryIO") -> int:
        from kvmlet._changes import keep

        saved = keep.save(self._tree, _received(orders), self._since_ns, self._named)
        if not saved.entries:
            saved.remove()
        for line in keep.lines_of(saved.left, None, saved):
            self._say(b"warn", line)
        if not saved.entries:
            return STATUS_OK
        path = os.fsdecode(saved.path)
        what = keep.counted(len(saved.entries))
        self._say(b"warn", f"{what} saved in {path}; 'kvmlet apply {path}' makes them")
        return STATUS_OK

    def _apply(self, orders: "BinaryIO") -> int:
        from kvmlet._changes import keep
        from kvmlet._changes.apply import apply

        if self._mode == "dir":
            applied, left = keep.write_to(self._tree, _received(orders), self._named)
            for line in keep.lines_of(left, applied, None):
                self._say(b"warn", line)
            where = os.fsdecode(self._tree.path)
            self._say(b"note", f"{keep.counted(applied.count)} written to {where}")
            return STATUS_OWN_ERROR if applied.conflicts or left.stale else STATUS_OK
        saved = keep.save(self._tree, _received(orders), self._since_ns, self._named)
        if not saved.entries:
            saved.remove()
            for line in keep.lines_of(saved.left, None, saved):
                self._say(b"warn", line)
            return STATUS_OWN_ERROR if saved.left.stale else STATUS_OK
        if self._terminal is not None:
            from kvmlet.cli import _ask

            if not _ask.ask(saved, self._terminal, self._answer):
                saved.remove()
                self._say(b"note", "no change is kept")
                return STATUS_OK
        path = os.fsdecode(saved.path)
        try:
            applied = apply(saved)
        except OSError as error:
            self._say(
                b"warn",
                f"keeping the changes failed: {error.strerror}; "
                f"they are saved in {path}: 'kvmlet apply {path}' finishes it",
            )
            return STATUS_OWN_ERROR
        for line in keep.lines_of(saved.left, applied, saved):
            self._say(b"warn", line)
        self._say(b"note", f"{keep.counted(applied.count)} kept")
        return STATUS_OWN_ERROR if applied.conflicts or saved.left.stale else STATUS_OK


def _received(orders: "BinaryIO") -> "Iterator[tuple[Entry, Iterator[tuple[int, bytes]]]]":
    """The entries that come. Raises BadEntry, EOFError."""
    while True:
        line = orders.readline(LINE_MAX)
        if line == b"end\n":
            return
        if not line:
            raise EOFError("the run ended before all of them had come")
        if line.startswith(b"failed "):
            raise BadEntry(bytes.fromhex(line[7:].decode()).decode("utf-8", "replace"))
        entry = parse(line)
        pieces = _received_pieces(orders, entry) if _sends_bytes(entry) else iter(())
        yield entry, pieces
        # Whoever took the entry may have had no use for its bytes.
        for _ in pieces:
            pass


def _received_pieces(orders: "BinaryIO", entry: Entry) -> "Iterator[tuple[int, bytes]]":
    while True:
        line = orders.readline(_WORD_MAX)
        if line == b".\n":
            return
        if line == b"!\n":
            raise HostChanged
        word, *numbers = line.split()
        if word == b"failed" or word != b"+" or len(numbers) != 2:
            raise BadEntry(f"the bytes of {os.fsdecode(entry.path)} did not come")
        offset, size = map(int, numbers)
        if not (offset >= 0 and 0 < size <= PIECE_BYTES and offset + size <= entry.size):
            raise BadEntry(f"the bytes of {os.fsdecode(entry.path)} are too many")
        piece = orders.read(size)
        if len(piece) < size:
            raise EOFError("the run ended before all of them had come")
        yield offset, piece


def _sends_bytes(entry: Entry) -> bool:
    return entry.kind == "file" and entry.same_as is None
