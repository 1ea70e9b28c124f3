"""A client for the sandboxes of openai-agents: `SandboxRunConfig(client=KvmletClient())`."""

import io
import uuid
from typing import Any, Literal

from agents.sandbox import ExecResult, Manifest, errors, resolve_snapshot
from agents.sandbox.session import BaseSandboxClient, BaseSandboxSession, SandboxSessionState

import kvmlet


class KvmletState(SandboxSessionState):
    type: Literal["kvmlet"] = "kvmlet"


class KvmletSession(BaseSandboxSession):
    def __init__(self, state: KvmletState) -> None:
        self.state, self.box = state, kvmlet.aio.Box(memory="1g")

    async def _ensure_backend_started(self) -> None:
        await self.box

    async def _shutdown_backend(self) -> None:
        await self.box.close()

    async def running(self) -> bool:
        return self.box.started and not self.box.closed

    async def _exec_internal(self, *command: Any, timeout: float | None = None) -> ExecResult:
        env = await self.state.manifest.environment.resolve()
        try:
            done = await self.box.run(command, env=env, timeout=timeout)
        except kvmlet.KvmletError as error:
            raise errors.ExecTransportError(command=command, message=str(error)) from error
        if done.reason == "timeout":
            raise errors.ExecTimeoutError(command=command, timeout_s=timeout)
        return ExecResult(exit_code=done.shell_status, stdout=done.stdout, stderr=done.stderr)

    async def read(self, path: Any, *, user: Any = None) -> io.IOBase:
        inside = await self._inside(path, user)
        try:
            return io.BytesIO(await self.box.files.read(inside))
        except kvmlet.BoxFileNotFound as error:
            raise errors.WorkspaceReadNotFoundError(path=inside, cause=error) from error

    async def write(self, path: Any, data: io.IOBase, *, user: Any = None) -> None:
        inside = await self._inside(path, user, for_write=True)
        await self.box.files.write(inside, data.read(), parents=True)

    async def _inside(self, path: Any, user: Any, **how: bool) -> Any:
        if user is not None:
            raise ValueError(f"{user}: a box has one user")
        return await self._validate_path_access(path, **how)

    async def persist_workspace(self) -> io.IOBase:
        skip = [f"--exclude=./{path}" for path in self._persist_workspace_skip_relpaths()]
        done = await self.box.run(["tar", "-cf-", *skip, "."], max_output="1g", check=True)
        return io.BytesIO(done.stdout)

    async def hydrate_workspace(self, data: io.IOBase) -> None:
        await self.box.run(["tar", "-xf-"], input=data.read(), check=True)


class KvmletClient(BaseSandboxClient[Any]):
    backend_id, supports_default_options = "kvmlet", True

    async def create(self, *, snapshot: Any = None, manifest: Any = None, **_: Any) -> Any:
        manifest = self._validate_manifest_for_create(manifest or Manifest())
        manifest = manifest.model_copy(update={"root": "/work"})
        kept = resolve_snapshot(snapshot, str(uuid.uuid4()))
        return await self.resume(KvmletState(manifest=manifest, snapshot=kept))

    async def resume(self, state: Any) -> Any:
        return self._wrap_session(KvmletSession(state))

    async def delete(self, session: Any) -> Any:
        await session.shutdown()
        return session

    def deserialize_session_state(self, payload: dict[str, object]) -> SandboxSessionState:
        return self._deserialize_session_state_payload(payload, KvmletState)
