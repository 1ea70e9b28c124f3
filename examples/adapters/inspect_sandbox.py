"""A sandbox for Inspect: import this, and `Task(..., sandbox="kvmlet")` gives samples a box."""

import errno
from typing import Any

from inspect_ai.util import ExecResult, OutputLimitExceededError, SandboxEnvironment, sandboxenv
from inspect_ai.util import SandboxEnvironmentLimits as Limits
from inspect_ai.util import SandboxUserUnsupportedError as UserUnsupportedError

import kvmlet


@sandboxenv(name="kvmlet")
class KvmletSandbox(SandboxEnvironment):
    def __init__(self, box: kvmlet.aio.Box) -> None:
        super().__init__()
        self.box = box

    @classmethod
    async def sample_init(cls, *_: Any) -> dict[str, SandboxEnvironment]:
        return {"default": cls(await kvmlet.aio.Box(memory="2g"))}

    @classmethod
    async def sample_cleanup(cls, _task: Any, _config: Any, made: Any, _interrupted: bool) -> None:
        for environment in made.values():
            await environment.box.close()

    async def exec(self, cmd, input=None, cwd=None, env=None, user=None, timeout=None, *_, **__):
        if user is not None:
            raise UserUnsupportedError(f"{user}: commands in a box run as the caller")
        how: Any = {"input": input, "cwd": cwd, "env": env, "timeout": timeout}
        most = Limits.MAX_EXEC_OUTPUT_SIZE
        try:
            done = await self.box.run(cmd, text=True, max_output=2 * most, **how)
        except kvmlet.ProgramNotFound as error:
            return ExecResult(False, 127, "", str(error))
        except kvmlet.ProgramNotExecutable as error:
            raise PermissionError(str(error)) from error
        if done.reason == "timeout":
            raise TimeoutError(f"the command took more than {timeout} s")
        if done.truncated or max(len(done.stdout), len(done.stderr)) > most:
            raise OutputLimitExceededError(Limits.MAX_EXEC_OUTPUT_SIZE_STR, done.stdout[:most])
        return ExecResult(done.ok, done.shell_status, done.stdout, done.stderr)

    async def write_file(self, file: str, contents: str | bytes) -> None:
        await self.box.files.write(file, contents, parents=True)

    async def read_file(self, file: str, text: bool = True) -> Any:
        try:
            data = await self.box.files.read(file, limit_bytes=Limits.MAX_READ_FILE_SIZE)
        except kvmlet.BoxFileError as error:
            if error.errno != errno.EFBIG:
                raise
            raise OutputLimitExceededError(Limits.MAX_READ_FILE_SIZE_STR, None) from error
        return data.decode() if text else data
