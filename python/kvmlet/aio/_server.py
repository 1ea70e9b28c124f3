"""Servers for coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvmlet import server as sync
from kvmlet._offload import halted_by, offload
from kvmlet.aio._twin import Twin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self, Unpack


class Server(Twin[sync.Server]):
    """A server in VMs, as `kvmlet.Server` has it.

    `async with kvmlet.aio.Server(argv) as server:`, or `start` and `stop`.

        >>> import asyncio
        >>> async def main():
        ...     argv = ["python3", "-m", "http.server", "8000"]
        ...     async with kvmlet.aio.Server(argv, forks=1) as server:
        ...         return server.state
        >>> asyncio.run(main())
        'serving'
    """

    def __init__(self, argv: Sequence[sync.Word], **options: Unpack[sync.ServerOptions]) -> None:
        """Prepare `argv`, and listen. The options are those of `kvmlet.Server`."""
        self._sync = sync.Server(argv, **options)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.stop()
        else:
            await self.close()

    @property
    def state(self) -> str:
        """ "new", "starting", "serving" or "ended"."""
        return self._sync.state

    @property
    def addresses(self) -> tuple[str, ...]:
        """The places that it listens at."""
        return self._sync.addresses

    @property
    def port(self) -> int:
        """The first port that it listens on."""
        return self._sync.port

    @property
    def url(self) -> str:
        """The first of its addresses, as a URL without a path."""
        return self._sync.url

    async def start(self) -> Self:
        """Start the program and take clients; this server. Cancelling ends it."""
        it = self._sync
        await halted_by(it.start, it._course.end_now)
        return self

    async def stop(self, grace: float | str | None = None) -> None:
        """Take no more clients, and return when all requests are answered. Cancelling ends it."""
        it = self._sync
        await halted_by(lambda: it.stop(grace), it._course.end_now)

    async def close(self) -> None:
        """End it at once, with the requests that are under way."""
        await offload(self._sync.close)

    async def reload(self, timeout: float | str | None = None) -> None:
        """Start the program anew beside the one that serves. Cancelling waits for it."""
        await offload(lambda: self._sync.reload(timeout))

    def stats(self) -> sync.ServerStats:
        """Counts at this moment, or at its end."""
        return self._sync.stats()


async def serve(argv: Sequence[sync.Word], **options: Unpack[sync.ServerOptions]) -> Server:
    """A `Server` that has been started. Raises what `kvmlet.serve` raises.

    >>> import asyncio
    >>> async def main():
    ...     argv = ["python3", "-m", "http.server", "8000"]
    ...     async with await kvmlet.aio.serve(argv, forks=1) as server:
    ...         return server.url
    >>> asyncio.run(main())
    'http://127.0.0.1:...'
    """
    given: Any = options
    return await Server(argv, **given).start()
