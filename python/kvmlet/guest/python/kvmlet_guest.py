"""Messages for Python programs that run in kvmlet. Python 3.9 or later, nothing but its folder.

    import kvmlet_guest

    kvmlet_guest.serve(lambda request: request.upper())

The program is ready as soon as it waits for its first message. Its host can freeze it there, with
all its imports done, and give every request to a fresh copy.

Under `kvmlet serve` a program may also ask a storage, which is not reset: `storage`.

The same program runs without kvmlet. It then reads messages from descriptor 0 and writes its own to
descriptor 1, each behind its length as four bytes, least significant first. So keep standard
output for messages, and print to standard error.
"""

from __future__ import annotations

import _thread
import ctypes
import errno
import os

from kvmlet_reseed import make_ready, reseed

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable

__all__ = [
    "MESSAGE_MAX",
    "Storage",
    "StorageError",
    "check_fork",
    "generation",
    "on_fork",
    "receive",
    "reseed",
    "send",
    "serve",
    "storage",
]

MESSAGE_MAX = 16 << 20
"""Bytes of a message at most."""

# Numbers, flags and layout as in kvmlet.h.
_RECEIVE = 7000
_SEND = 7001
_GENERATION = 7002
_ASK = 7003
_ANSWER = 7004
_PEEK = 2
_DROP = 4
_FORK_LEN = 32
_SEED_AT = 8

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc["syscall"]
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 5
_syscall_send = _libc["syscall"]
_syscall_send.restype = ctypes.c_long
_syscall_send.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_size_t]
_syscall_ask = _libc["syscall"]
_syscall_ask.restype = ctypes.c_long
_syscall_ask.argtypes = [ctypes.c_long, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]


class _Buffers(_thread._local):
    """Each thread's own place for messages; it grows with them."""

    def __init__(self) -> None:
        self.fork = ctypes.create_string_buffer(_FORK_LEN)
        self.fork_at = ctypes.addressof(self.fork)
        self.resize(64 << 10)

    def resize(self, length: int) -> None:
        """Make room for a message of this length."""
        self.length = length
        self.bytes = ctypes.create_string_buffer(length)
        self.bytes_at = ctypes.addressof(self.bytes)


_buffers = _Buffers()
_hooks: list[Callable[[], object]] = []
_native = False
_generation = 0
_ready = False


def receive() -> bytes:
    """Wait for the next message and return it.

    The first time in a new copy of the program, random generators are seeded anew (`reseed`). Then
    the functions given to `on_fork` are called.

    Raises EOFError at the end of the input (only without kvmlet), OSError for input that is no
    message.
    """
    return _receive(_buffers.resize)  # type: ignore[return-value]


def receive_in_place() -> bytes | mmap.mmap:
    """As `receive`; a large message lies in memory of its own, which can be written, uncopied."""
    import mmap

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    return _receive(lambda length: mmap.mmap(-1, length, flags))  # type: ignore[return-value]


def _receive(
    room: Callable[[int], mmap.mmap | memoryview | None],
) -> bytes | mmap.mmap | memoryview:
    """The next message. `room` makes room for a large one: in the buffer, or what it returns."""
    global _ready  # noqa: PLW0603
    if not _ready:
        # It may be frozen as soon as it waits.
        _ready = True
        make_ready()
    while not _native:
        length = _syscall(_RECEIVE, _buffers.bytes_at, _buffers.length, 0, _buffers.fork_at)
        if length >= 0:
            _look_at_fork()
            return ctypes.string_at(_buffers.bytes_at, length)
        code = ctypes.get_errno()
        if code == errno.EMSGSIZE:
            length = _syscall(_RECEIVE, 0, 0, _PEEK, 0)
            place = room(length) if length > _buffers.length else None
            if place is not None:
                at = ctypes.addressof(ctypes.c_char.from_buffer(place))
                # Another thread may have taken it, and another message be there.
                taken = _syscall(_RECEIVE, at, length, 0, _buffers.fork_at)
                if taken >= 0:
                    _look_at_fork()
                    return place if taken == length else place[:taken]
        # A Python signal handler runs when the call has returned.
        elif code != errno.EINTR and not _found_native(code):
            raise OSError(code, os.strerror(code))
    prefix = _read(4, at_end=b"")
    if not prefix:
        raise EOFError("no more messages")
    length = int.from_bytes(prefix, "little")
    if length > MESSAGE_MAX:
        raise OSError(errno.EBADMSG, f"a message of {length} bytes; the limit is {MESSAGE_MAX}")
    return _read(length)


def send(message: bytes | bytearray | memoryview) -> None:
    """Send a message to the host; waits while too many are under way.

    Raises OSError: EMSGSIZE if it has more than MESSAGE_MAX bytes.
    """
    if isinstance(message, memoryview) and _sent_in_place(message):
        return
    data = bytes(message)
    if len(data) > MESSAGE_MAX:
        raise OSError(errno.EMSGSIZE, f"a message of {len(data)} bytes; the limit is {MESSAGE_MAX}")
    while not _native:
        if _syscall_send(_SEND, data, len(data)) == 0:
            return
        code = ctypes.get_errno()
        if code != errno.EINTR and not _found_native(code):
            raise OSError(code, os.strerror(code))
    rest = memoryview(len(data).to_bytes(4, "little") + data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _sent_in_place(view: memoryview) -> bool:
    """True if it was sent from where it lies: large memory that ctypes gives the address of."""
    if view.readonly or not view.c_contiguous or not 0 < view.nbytes <= MESSAGE_MAX:
        return False
    held = ctypes.c_char.from_buffer(view)
    while not _native:
        if _syscall(_SEND, ctypes.addressof(held), view.nbytes, 0, 0) == 0:
            return True
        code = ctypes.get_errno()
        if code != errno.EINTR and not _found_native(code):
            raise OSError(code, os.strerror(code))
    return False


def generation() -> int:
    """Which copy of the program this is.

    0 in the one that was started, and always without kvmlet; another number in each fork and after
    each reset.
    """
    if not _native:
        number: int = _syscall(_GENERATION, 0, 0, 0, 0)
        if number >= 0:
            return number
        _found_native(ctypes.get_errno())
    return 0


def on_fork(hook: Callable[[], object]) -> None:
    """Have `hook()` called once in every new copy, before it gets its first message.

    Copies start with the same state of the program's own random generators, the same unique ids,
    the same temporary names. What `reseed` knows is taken care of.
    """
    _hooks.append(hook)


def check_fork() -> None:
    """Do what is to be done once in a new copy, if this is one: for code that gets no message."""
    _now(generation(), os.urandom(24))


def serve(handler: Callable[[bytes], bytes | bytearray | memoryview], *, threads: int = 1) -> None:
    """Answer each message with what `handler` returns for it; returns at the end of the input.

    threads: call `handler` in so many at one time, for a storage that is asked concurrently. One
    that raises ends the process, in whichever it is. Without kvmlet there is one only.
    """
    generation()
    for _ in range(0 if _native else threads - 1):
        _thread.start_new_thread(_serve_or_end, (handler,))
    _serve(handler)


def _serve(handler: Callable[[bytes], bytes | bytearray | memoryview]) -> None:
    while True:
        try:
            request = receive()
        except EOFError:
            return
        send(handler(request))


def _serve_or_end(handler: Callable[[bytes], bytes | bytearray | memoryview]) -> None:
    # A question that a thread has taken which is gone would never be answered.
    try:
        _serve(handler)
    except BaseException:  # noqa: BLE001 - whatever it is, it has been said
        import traceback

        traceback.print_exc()
        os._exit(1)


class StorageError(OSError):
    """A storage has not answered; `errno` says why.

    ENOENT: there is none of that name. ENOSYS: this program does not run under `kvmlet serve`.
    EPIPE: it has ended meanwhile, and is started anew without what it knew. EPROTO: it went on
    without an answer. ETIMEDOUT: it took too long. EBUSY: too many wait for it. EMSGSIZE: the
    question has more than MESSAGE_MAX bytes. ENOMEM: no memory here for question or answer.
    """


_WHY = {
    errno.ENOENT: "there is no storage of this name: start it by kvmlet serve --storage NAME=CMD",
    errno.ENOSYS: "there are storages under kvmlet serve only",
    errno.EPERM: "there are storages under kvmlet serve only",
    errno.EPIPE: "the storage has ended before it answered",
    errno.EPROTO: "the storage has gone on without an answer",
    errno.ETIMEDOUT: "the storage has not answered in time",
    errno.EBUSY: "too many questions wait for the storage",
    errno.EMSGSIZE: f"a question has at most {MESSAGE_MAX} bytes",
    errno.ENOMEM: "no memory is left for the question or its answer",
}


class Storage:
    """A program beside this one that is not reset, and that all forks ask by its name."""

    def __init__(self, name: str) -> None:
        """Nobody is asked yet. Raises StorageError (EINVAL) for what cannot be a name."""
        self.name = name
        data = name.encode()
        if not data or b"\0" in data:
            raise StorageError(errno.EINVAL, "no name of a storage", name)
        self._data = data

    def __repr__(self) -> str:
        return f"kvmlet_guest.storage({self.name!r})"

    def ask(self, question: bytes | bytearray | memoryview) -> bytes:
        """Send a question, wait for the answer to it, and return that.

        If this program ends meanwhile, or its request, the storage goes on as ever; it may have
        done what it was asked.

        Raises StorageError.
        """
        data = bytes(question)
        while True:
            ticket = _syscall_ask(_ASK, self._data, data, len(data))
            if ticket >= 0:
                break
            # A Python signal handler runs when the call has returned: nothing has been asked.
            self._check(ctypes.get_errno())
        try:
            return self._answer(ticket)
        except BaseException:
            # As of a signal handler that raises.
            _syscall(_ANSWER, ticket, 0, 0, _DROP)
            raise

    def _answer(self, ticket: int) -> bytes:
        while True:
            length = _syscall(_ANSWER, ticket, _buffers.bytes_at, _buffers.length, 0)
            if length >= 0:
                return ctypes.string_at(_buffers.bytes_at, length)
            code = ctypes.get_errno()
            if code == errno.EMSGSIZE:
                length = _syscall(_ANSWER, ticket, 0, 0, _PEEK)
                if length > _buffers.length:
                    _buffers.resize(length)
            else:
                self._check(code)

    def _check(self, code: int) -> None:
        if code != errno.EINTR:
            raise StorageError(code, _WHY.get(code) or os.strerror(code), self.name)


def storage(name: str) -> Storage:
    """The storage with this name, as `kvmlet serve --storage NAME=CMD` starts it.

        count = int(kvmlet_guest.storage("count").ask(b"one more"))

    It lasts as long as the server, whatever becomes of forks. What it is asked comes from clients
    in the end: it must trust no question.
    """
    return Storage(name)


def _look_at_fork() -> None:
    """Does what is to be done once in a new copy, as the last message has told."""
    fork = _buffers.fork.raw
    _now(int.from_bytes(fork[:_SEED_AT], "little"), fork[_SEED_AT:])


def _now(number: int, seed: bytes) -> None:
    global _generation  # noqa: PLW0603
    if number == _generation:
        return
    _generation = number
    reseed(seed)
    for hook in _hooks:
        hook()


def _found_native(code: int) -> bool:
    """True if the error says that this is no kvmlet. Some seccomp filters give EPERM."""
    global _native  # noqa: PLW0603
    _native = _native or code in (errno.ENOSYS, errno.EPERM)
    return _native


def _read(length: int, at_end: bytes | None = None) -> bytes:
    """All of `length` bytes from descriptor 0; at the end of the input `at_end`, if given."""
    parts = []
    left = length
    while left:
        part = os.read(0, left)
        if not part:
            if left == length and at_end is not None:
                return at_end
            raise OSError(errno.EBADMSG, "the input ends amid a message")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
