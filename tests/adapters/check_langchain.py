"""The LangChain tool, called as an agent's tool node calls it."""

import asyncio

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_tool import KvmletShell

import kvmlet


def test_the_tool() -> None:
    with kvmlet.Box(memory="256m", max_procs=32) as box:
        tool: BaseTool = KvmletShell(box=box)

        def call(**arguments: object) -> ToolMessage:
            return tool.invoke({"type": "tool_call", "id": "1", "name": "shell", "args": arguments})

        shape = convert_to_openai_tool(tool)["function"]
        assert shape["name"] == "shell"
        assert shape["parameters"]["required"] == ["command"]

        assert call(command="echo one > a; echo two >&2; cat a").content == "two\none\n"
        done = call(command="cat a missing")
        assert done.status == "success"
        assert done.content.startswith("one\n")
        assert done.content.endswith("missing: No such file or directory\n\n[exited, status 1]")
        assert done.artifact.exit_code == 1
        assert tool.invoke({"command": "cat a"}) == "one\n"
        assert asyncio.run(tool.ainvoke({"command": "cat a"})) == "one\n"

        # Too long, in time and in output; a path that leaves; commands that are none.
        assert "[timeout, " in call(command="sleep 60", timeout_s=1).content
        long = call(command="yes").content
        assert 20_000 < len(long) < 20_100
        assert "[output, " in long
        done = call(command="cat /etc/shadow ../../etc/shadow; echo > /usr/x")
        assert "root:" not in done.content
        assert {denial.path for denial in done.artifact.denials} >= {"/etc/shadow", "/usr/x"}
        done = call(command="echo a\0b")
        assert done.status == "error", done
        with pytest.raises(ValueError, match="timeout_s"):
            call(command="true", timeout_s=-1)
        assert call(command="echo alive").content == "alive\n"
    done = call(command="true")
    assert (done.status, "closed" in done.content) == ("error", True)
