"""`kvmlet.run` for coroutines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from kvmlet import _run as sync
from kvmlet._offload import in_loop, until_stopped

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias, Unpack

    from kvmlet._result import Denial, Result
    from kvmlet._run import _Inherit
    from kvmlet.policy import Limits, Policy

    Word: TypeAlias = str | bytes | os.PathLike[str]


class RunOptions(TypedDict, total=False):
    """Keywords of `kvmlet.run`."""

    shell: bool
    input: bytes | str | None
    encoding: str
    errors: str
    check: bool
    timeout: float | str | None
    cpu_time: float | str | None
    memory: int | str | None
    disk: int | str | None
    max_procs: int | None
    max_output: int | str | None
    policy: Policy | None
    limits: Limits | None
    read: Sequence[str | os.PathLike[str]]
    write: Sequence[str | os.PathLike[str]]
    net: Sequence[str]
    publish: Sequence[str]
    unix: Sequence[str | os.PathLike[str]]
    env: Mapping[str, str] | None
    cwd: str | os.PathLike[str] | None
    calls: str | None
    changes: str
    keep_protected: Sequence[str | os.PathLike[str]]


@overload
async def run(
    argv: Sequence[Word] | str,
    *,
    text: Literal[False] = False,
    stdout: Callable[[bytes], object] | _Inherit | None = None,
    stderr: Callable[[bytes], object] | _Inherit | None = None,
    on_denial: Callable[[Denial], object] | None = None,
    **options: Unpack[RunOptions],
) -> Result[bytes]: ...
@overload
async def run(
    argv: Sequence[Word] | str,
    *,
    text: Literal[True],
    stdout: Callable[[str], object] | _Inherit | None = None,
    stderr: Callable[[str], object] | _Inherit | None = None,
    on_denial: Callable[[Denial], object] | None = None,
    **options: Unpack[RunOptions],
) -> Result[str]: ...
async def run(
    argv: Sequence[Word] | str,
    *,
    text: bool = False,
    stdout: Any = None,
    stderr: Any = None,
    on_denial: Any = None,
    **options: Any,
) -> Result[bytes] | Result[str]:
    """Run `argv` in a VM of its own until it ends. The arguments are those of `kvmlet.run`.

    Callables for `stdout`, `stderr` and `on_denial` are called in the event loop, and may be
    coroutines.
    Cancelling ends the VM, within a tenth of a second or so.

    Raises what `kvmlet.run` raises.

        >>> import asyncio
        >>> asyncio.run(kvmlet.aio.run(["echo", "hello"], text=True)).stdout
        'hello\\n'
    """
    told = {"stdout": stdout, "stderr": stderr, "on_denial": on_denial}
    told = {name: in_loop(tell) for name, tell in told.items()}
    run: Callable[..., Any] = sync.run
    return await until_stopped(lambda: run(argv, text=text, **told, **options))
