"""An MCP server on standard input and output: Python, commands and files, in VMs."""

from collections.abc import Awaitable, Callable
from subprocess import STDOUT
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

import kvmlet
from kvmlet.aio import Interpreter

SESSIONS_MAX, TEXT_MAX = 8, 20_000
POLICY = kvmlet.Policy.of(memory="512m", max_procs=64, max_output=TEXT_MAX)
sessions: dict[str, Interpreter] = {}


async def within(name: str, work: Callable[[Interpreter], Awaitable[Any]]) -> Any:
    if name not in sessions and len(sessions) >= SESSIONS_MAX:
        raise ToolError(f"{SESSIONS_MAX} sessions are open: use one of {[*sessions]}")
    try:
        return await work(await sessions.setdefault(name, Interpreter(policy=POLICY)))
    except kvmlet.KvmletError as error:
        if isinstance(error, kvmlet.SandboxEnded) and (ended := sessions.pop(name, None)):
            await ended.close()  # the next call starts a new one
        raise ToolError(error.message) from error


async def run_code(code: str, session: str = "main", timeout_s: float = 30) -> str:
    """Run Python code. A session keeps its names; the value of the last line is shown."""
    cell = await within(session, lambda py: py.run(code, timeout=timeout_s))
    value = "" if cell.value is None else f"{cell.value!r}"[:TEXT_MAX]
    error = cell.error.traceback[-TEXT_MAX:] if cell.error else ""
    return f"{cell.stdout}{cell.stderr}{error}{value}\n[{cell.reason}]"


async def run_command(command: str, session: str = "main", timeout_s: float = 30) -> str:
    """Run a shell command in the session's directory, /work."""
    how: Any = {"shell": True, "text": True, "stderr": STDOUT, "timeout": timeout_s}
    done = await within(session, lambda py: py.box.run(command, **how))
    return f"{done.stdout}\n[{done.reason}, status {done.shell_status}]"


async def read_file(path: str, session: str = "main") -> str:
    """Read a text file of the session; relative paths start in /work."""
    data = await within(session, lambda py: py.files.read(path, limit_bytes=TEXT_MAX))
    return data.decode(errors="replace")


async def write_file(path: str, content: str, session: str = "main") -> None:
    """Write a text file of the session."""
    await within(session, lambda py: py.files.write(path, content, parents=True))


if __name__ == "__main__":
    server = MCPServer("kvmlet")
    for tool in (run_code, run_command, read_file, write_file):
        server.add_tool(tool, structured_output=False)
    server.run("stdio")
