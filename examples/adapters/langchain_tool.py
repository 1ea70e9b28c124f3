"""A LangChain tool that runs shell commands in a kvmlet box, which keeps its files.

pip install kvmlet langchain-core; agent = create_agent(model, tools=[KvmletShell(box=box)])
"""

import subprocess

from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, ConfigDict, Field

import kvmlet

OUTPUT_MAX = 20_000


class Command(BaseModel):
    command: str = Field(description="a command line for /bin/sh")
    timeout_s: float = Field(default=30, gt=0, le=600, description="seconds until it is killed")


class KvmletShell(BaseTool):
    """Runs commands in `box`. Output comes back as text, the result as the artifact."""

    name: str = "shell"
    description: str = "Run a shell command in a sandbox. Files in /work stay for later commands."
    args_schema: type[BaseModel] = Command
    response_format: str = "content_and_artifact"
    handle_tool_error: bool = True
    model_config = ConfigDict(arbitrary_types_allowed=True)
    box: kvmlet.Box

    def _run(self, command: str, timeout_s: float = 30) -> tuple[str, kvmlet.Result[str]]:
        try:
            done = self.box.run(
                command,
                shell=True,
                text=True,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                max_output=OUTPUT_MAX,
            )
        except kvmlet.KvmletError as error:
            raise ToolException(str(error)) from error
        if done.ok:
            return done.stdout, done
        return f"{done.stdout}\n[{done.reason}, status {done.shell_status}]", done
