"""The writer: a process that writes files of ours once the program has ended (--report, --learn).

It is forked before the run gives up its rights, so that the run itself never has the right to
write. The files' directories are opened by then: no link that a program makes leads elsewhere.
"""

import contextlib
import fcntl
import json
import os
import stat
import time

from kvmlet.cli._ends import STATUS_OK, STATUS_OWN_ERROR
from kvmlet.cli._helper import answer, answers_of, let_go, write_all
from kvmlet.cli._text import warn
from kvmlet.errors import KvmletError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kvmlet.cli._learn import Learner

_BYTES_MAX = 1 << 28
_MODE = 0o666
_LOCK_TRIES = 100
_LOCK_WAIT_S = 0.05


class File:
    """A file that is to be written, whole, at the end of a run."""

    def __init__(self, path: str, name: str) -> None:
        """`path`, which the option `name` gives. Raises UsageError."""
        self.shown = path
        real = os.path.realpath(os.fsencode(path))
        folder, self._name = os.path.split(real)
        self.folder = os.fsdecode(folder)
        if os.path.lexists(real) and not os.path.isfile(real):
            raise UsageError(f"{name} {path}: it is no regular file", remedy="name another one")
        try:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            self.fd = os.open(folder, flags)
        except OSError as error:
            raise UsageError(
                f"{name} {path}: {os.fsdecode(folder)}: {error.strerror}",
                remedy="name a file in a directory that is there",
            ) from None
        if not self._name or not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(
                f"{name} {path}: you may not write to {os.fsdecode(folder)}",
                remedy="name a file in a directory of your own",
            )

    def lock(self) -> None:
        """Wait for others that write in its directory. Raises OSError after a while."""
        for _ in range(_LOCK_TRIES):
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(_LOCK_WAIT_S)
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self) -> None:
        """Let others write."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def read(self) -> str | None:
        """Its text now, None if it is not there. Raises OSError, UnicodeDecodeError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(self._name, flags, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(_BYTES_MAX).decode()

    def write(self, text: str, ending: str = "") -> None:
        """Replace it, or the file whose name has `ending` too, in one step. Raises OSError.

        A link that has taken its name is replaced, never followed.
        """
        name = self._name + os.fsencode(ending)
        new = b".%s.%d.new" % (name[:200], os.getpid())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, _MODE, dir_fd=self.fd)
        try:
            with os.fdopen(fd, "wb") as file:
                with contextlib.suppress(FileNotFoundError):
                    old = os.stat(self._name, dir_fd=self.fd, follow_symlinks=False)
                    if stat.S_ISREG(old.st_mode):
                        os.fchmod(file.fileno(), old.st_mode & 0o777)
                file.write(text.encode("utf-8", "backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
            os.rename(new, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(new, dir_fd=self.fd)
            raise


class Writer:
    """The writer's process, from the side of the one that runs the program."""

    def __init__(self, sink: int, answers: int) -> None:
        self._sink = sink
        self._answers = answers

    def finish(self, orders: "dict[str, Any]", *, quiet: bool) -> int:
        """Have the files written; STATUS_OK, or STATUS_OWN_ERROR.

        orders: the data of the report by "report", the records of `Learner.learn` by "learn".
        """
        data = json.dumps(orders).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):
            write_all(self._sink, data)
        os.close(self._sink)
        status = STATUS_OWN_ERROR
        said = False
        for word, text in answers_of(self._answers):
            if word == "status":
                status, said = int(text), True
            elif word == "warn" or not quiet:
                warn(text)
        if not said:
            warn("a file was not written: its writer was interrupted")
        return status


def start(report: File | None, learner: "Learner | None") -> Writer:
    """Fork the writer of these files."""
    from_runner, sink = os.pipe()
    answers, to_runner = os.pipe()
    files = [each.fd for each in (report, learner and learner.file) if each]
    if os.fork() == 0:
        try:
            let_go([from_runner, to_runner, *files])
            with os.fdopen(from_runner, "rb") as pipe:
                data = pipe.read(_BYTES_MAX)
            # A run that was killed has no end to tell of.
            if data.endswith(b"\n"):
                status = _work(json.loads(data), report, learner, to_runner)
                write_all(to_runner, b"status %d\n" % status)
        finally:
            os._exit(0)
    for fd in (from_runner, to_runner, *files):
        os.close(fd)
    return Writer(sink, answers)


def _work(orders: "dict[str, Any]", report: File | None, learner: "Learner | None", to: int) -> int:
    status = STATUS_OK
    name = "a file"
    try:
        if report is not None and "report" in orders:
            name = report.shown
            report.write(json.dumps(orders["report"], indent=2) + "\n")
        if learner is not None and "learn" in orders:
            name = learner.file.shown
            for line in learner.learn(orders["learn"]):
                answer(to, b"warn", line)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        answer(to, b"warn", f"{name} is not written: {why}")
        status = STATUS_OWN_ERROR
    except KvmletError as error:
        answer(to, b"warn", f"{name} is not written: {error}")
        status = STATUS_OWN_ERROR
    except Exception as error:  # noqa: BLE001 - the last resort: a line instead of silence
        answer(to, b"warn", f"internal error: {name} is not written: {error!r}")
        status = STATUS_OWN_ERROR
    return status
