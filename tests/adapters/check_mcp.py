"""The MCP server over standard input and output, driven by the client of the `mcp` package."""

import asyncio
import pathlib
import sys

import mcp_server
from mcp import Client, StdioServerParameters

SERVER = StdioServerParameters(command=sys.executable, args=[mcp_server.__file__])


async def talk() -> None:
    async with Client(SERVER) as client:

        async def call(tool: str, **arguments: object) -> str:
            done = await client.call_tool(tool, arguments)
            assert not done.is_error, done
            return done.content[0].text if done.content else ""

        async def refusal(tool: str, **arguments: object) -> str:
            done = await client.call_tool(tool, arguments)
            assert done.is_error, done
            return done.content[0].text

        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"run_code", "run_command", "read_file", "write_file"}
        assert tools["run_code"].input_schema["required"] == ["code"]

        # Names and files last, and are the session's own.
        assert await call("run_code", code="x = 40") == "\n[ok]"
        assert await call("run_code", code="print(1)\nx + 2") == "1\n42\n[ok]"
        assert "NameError" in await call("run_code", code="x", session="other")
        await call("write_file", path="a.txt", content="grün\n")
        assert await call("read_file", path="a.txt") == "grün\n"
        assert await call("run_command", command="cat a.txt") == "grün\n\n[exited, status 0]"
        assert await call("run_code", code="open('a.txt').read()") == "'grün\\n'\n[ok]"
        said = await call("run_command", command="ls; cat a.txt", session="other")
        assert "status 1" in said
        assert "No such file" in said
        # Sessions that begin at once are one.
        words = [call("run_command", command="echo x >> y", session="new") for _ in range(4)]
        await asyncio.gather(*words)
        assert await call("read_file", path="y", session="new") == "x\n" * 4

        # A missing file, a path that leaves, a file of the host.
        assert "No such file" in await refusal("read_file", path="missing")
        for path in ("../../../etc/shadow", str(pathlib.Path(__file__).resolve())):
            assert "No such file" in await refusal("read_file", path=path)
        assert "Read-only" in await refusal("write_file", path="/usr/x", content="")
        assert "is not a path" in await refusal("read_file", path="a\0b")

        # Too long, in time and in output: the session lives on.
        assert "[timeout]" in await call("run_code", code="while True: pass", timeout_s=1)
        assert "[timeout, " in await call("run_command", command="sleep 60", timeout_s=1)
        long = await call("run_command", command="yes")
        assert len(long) < 21_000
        assert "[output, " in long
        assert len(await call("run_code", code="print('x' * 10**6)")) < 21_000
        assert len(await call("run_code", code="'x' * 10**6")) < 21_000
        assert len(await call("run_code", code="raise ValueError('x' * 10**6)")) < 21_000
        await call("run_command", command="head -c 1000000 /dev/zero > zeros")
        assert "too large" in await refusal("read_file", path="zeros")
        assert await call("run_code", code="x") == "40\n[ok]"

        # A session that has ended starts anew; no more than eight at once.
        await call("run_code", code="import os; os._exit(3)")
        assert "has ended" in await refusal("run_code", code="x")
        assert "NameError" in await call("run_code", code="x")
        for number in range(5):
            await call("run_command", command="true", session=f"session {number}")
        assert "8 sessions are open" in await refusal("run_code", code="1", session="one more")


def test_the_server() -> None:
    asyncio.run(talk())
