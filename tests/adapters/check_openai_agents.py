"""The client for openai-agents: its sessions, an agent with scripted answers, what goes wrong."""

import asyncio
import io
from pathlib import Path

import pytest
from agents import Runner, set_tracing_disabled
from agents.run_config import RunConfig
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig, errors
from agents.sandbox.capabilities import Shell
from agents.sandbox.snapshot import LocalSnapshotSpec
from agents.testing import ScriptedModel, assistant_message, function_call
from openai_agents_client import KvmletClient

set_tracing_disabled(True)


def in_session(work, **options):
    async def main():
        client = KvmletClient()
        session = await client.create(**options)
        try:
            async with session:
                await work(session)
        finally:
            await client.delete(session)

    asyncio.run(main())


def test_commands_and_files():
    async def work(session):
        assert await session.running()
        done = await session.exec("echo one; echo two >&2; pwd; exit 3")
        assert (done.stdout, done.stderr, done.exit_code) == (b"one\n/work\n", b"two\n", 3)
        await session.write(Path("src/a.txt"), io.BytesIO(b"\xffa"))
        assert (await session.read(Path("src/a.txt"))).read() == b"\xffa"
        assert [Path(entry.path).name for entry in await session.ls("src")] == ["a.txt"]
        await session.mkdir("made/here", parents=True)
        await session.rm("src", recursive=True)
        done = await session.exec("ls", shell=False)
        assert done.stdout == b"made\n"

    in_session(work)


def test_what_goes_wrong():
    async def work(session):
        with pytest.raises(errors.WorkspaceReadNotFoundError):
            await session.read(Path("missing"))
        for path in ("../etc/shadow", "/etc/shadow"):
            with pytest.raises(errors.InvalidManifestPathError):
                await session.read(Path(path))
        await session.exec("ln -s /etc/shadow link; ln -s /usr usr")
        with pytest.raises(errors.WorkspaceReadNotFoundError):
            await session.read(Path("link"))
        with pytest.raises(OSError, match="Read-only"):
            await session.write(Path("usr/x"), io.BytesIO(b""))
        with pytest.raises(errors.ExecTimeoutError):
            await session.exec("sleep 60", timeout=1)
        with pytest.raises(errors.ExecTransportError, match="not-there"):
            await session.exec("not-there", shell=False)
        with pytest.raises(errors.ExecTransportError, match="sudo"):
            await session.exec("true", user="somebody")
        with pytest.raises(ValueError, match="one user"):
            await session.read(Path("missing"), user="somebody")
        done = await session.exec("yes")
        assert (done.exit_code, len(done.stdout) <= 16 << 20) == (137, True)
        assert (await session.exec("echo alive")).stdout == b"alive\n"

    in_session(work)


def test_a_workspace_is_kept_and_restored(tmp_path):
    async def main():
        client = KvmletClient()
        spec = LocalSnapshotSpec(base_path=tmp_path)
        manifest = Manifest(entries={"given": {"type": "file", "content": b"from the manifest"}})
        session = await client.create(snapshot=spec, manifest=manifest)
        async with session:
            await session.exec("echo kept > file; mkdir d; ln -s ../file d/link")
            assert (await session.read(Path("given"))).read() == b"from the manifest"
        payload = client.serialize_session_state(session.state)
        again = await client.resume(client.deserialize_session_state(payload))
        async with again:
            assert (await again.exec("cat d/link given")).stdout == b"kept\nfrom the manifest"
        await client.delete(again)

    asyncio.run(main())


def test_an_agent_with_scripted_answers():
    command = {"cmd": "seq 3 | tac | tr '\\n' ' '"}
    model = ScriptedModel(
        [[function_call("exec_command", command, call_id="1")], [assistant_message("3 2 1")]]
    )
    agent = SandboxAgent(name="sorter", model=model, capabilities=[Shell()])
    config = RunConfig(sandbox=SandboxRunConfig(client=KvmletClient()))
    result = asyncio.run(Runner.run(agent, "count down", run_config=config))
    assert result.final_output == "3 2 1"
    outputs = [str(item.raw_item) for item in result.new_items if "output" in item.type]
    assert any("3 2 1" in text for text in outputs), outputs
