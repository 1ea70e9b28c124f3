"""The backend for deepagents: its protocol, the tools over it, and what goes wrong."""

import asyncio
import os

import pytest
from deepagents import create_deep_agent
from deepagents.backends.protocol import SandboxBackendProtocol
from deepagents_backend import KvmletBackend
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

import kvmlet


@pytest.fixture
def backend():
    with kvmlet.Box(memory="512m", max_procs=64) as box:
        yield KvmletBackend(box)


def test_the_protocol(backend):
    assert isinstance(backend, SandboxBackendProtocol)
    done = backend.execute("echo one; echo two >&2; exit 3")
    assert (done.output, done.exit_code, done.truncated) == ("one\ntwo\n", 3, False)
    assert asyncio.run(backend.aexecute("echo later", timeout=10)).output == "later\n"


def test_files(backend):
    assert backend.write("/work/src/a.py", "x = 1\ny = 2\nz = 'x'\n").error is None
    read = backend.read("/work/src/a.py")
    assert read.error is None
    assert read.file_data["content"].splitlines() == ["x = 1", "y = 2", "z = 'x'"]
    assert backend.read("/work/src/a.py", offset=1, limit=1).file_data["content"].strip() == "y = 2"
    assert backend.edit("/work/src/a.py", "y = 2", "y = 3").occurrences == 1
    assert "y = 3" in backend.execute("cat src/a.py").output
    assert [entry["path"] for entry in backend.ls("/work/src").entries] == ["/work/src/a.py"]
    assert [match["line"] for match in backend.grep("x", "/work").matches] == [1, 3]
    assert [found["path"] for found in backend.glob("*.py", "/work").matches] == ["/work/src/a.py"]
    assert backend.edit("/work/src/a.py", "missing", "y").error
    long = "l" * 300_000
    assert backend.write("/work/long", long).error is None
    assert backend.edit("/work/long", "l" * 300_000, "short").occurrences == 1
    assert backend.download_files(["/work/long"])[0].content == b"short"
    assert backend.delete("/work/src").error is None
    assert backend.read("/work/src/a.py").error


def test_what_cannot_be_had(backend):
    backend.execute("mkdir folder; echo > locked; chmod 0 locked")
    paths = ["/work/missing", "/work/folder", "/work/locked", "/work/../etc/shadow", "a\0b"]
    told = [response.error for response in backend.download_files(paths)]
    # Root heeds no permissions, inside as natively.
    locked = "permission_denied" if os.geteuid() else None
    assert told[:4] == ["file_not_found", "is_directory", locked, "file_not_found"]
    assert "is not a path" in told[4]
    put = [("/usr/x", b""), ("/work/folder", b""), ("/work/ok", b"\xff")]
    errors = [response.error for response in backend.upload_files(put)]
    assert errors == ["permission_denied", "is_directory", None]
    assert backend.download_files(["/work/ok"])[0].content == b"\xff"


def test_limits(backend):
    done = backend.execute("echo before; sleep 60", timeout=1)
    assert (done.output, done.exit_code) == ("before\n\n[ended: timeout]", 137)
    done = backend.execute("yes")
    assert (len(done.output) < 1_100_000, done.truncated) == (True, True)
    assert backend.execute("echo alive").output == "alive\n"
    backend.box.close()
    assert backend.execute("true").exit_code == 125


class Calls(GenericFakeChatModel):
    def bind_tools(self, tools, **options):
        return self


def test_an_agent_without_a_model(backend):
    def call(number, name, **arguments):
        made = {"name": name, "args": arguments, "id": str(number), "type": "tool_call"}
        return AIMessage(content="", tool_calls=[made])

    answers = [
        call(1, "write_file", file_path="/work/a.txt", content="3\n1\n2\n"),
        call(2, "execute", command="sort a.txt | tr '\\n' ' '"),
        AIMessage(content="sorted"),
    ]
    agent = create_deep_agent(model=Calls(messages=iter(answers)), backend=backend)
    state = agent.invoke({"messages": [{"role": "user", "content": "sort it"}]})
    said = [str(message.content) for message in state["messages"]]
    assert any("1 2 3" in text for text in said), said
    assert said[-1] == "sorted"
