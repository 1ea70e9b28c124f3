"""An executor for smolagents: the code of an agent runs in a VM, in a session of Python.

pip install kvmlet smolagents numpy; CodeAgent(tools, model, executor=KvmletExecutor())
"""

from typing import Any

from smolagents.local_python_executor import CodeOutput
from smolagents.monitoring import AgentLogger
from smolagents.remote_executors import RemotePythonExecutor
from smolagents.utils import AgentError

import kvmlet


class KvmletExecutor(RemotePythonExecutor):
    """Tools run in the VM as well: it has this interpreter's libraries, and no network."""

    def __init__(
        self, logger: AgentLogger | None = None, *, timeout_s: float = 60, **options: Any
    ) -> None:
        super().__init__([], logger or AgentLogger())
        self.timeout_s = timeout_s
        self.interpreter = kvmlet.Interpreter(**options)

    def send_variables(self, variables: dict[str, Any]) -> None:
        self.interpreter.run("", variables).check()

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        return additional_imports  # what is installed here can be imported there

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        try:
            cell = self.interpreter.run(code, timeout=self.timeout_s)
        except kvmlet.SandboxEnded as error:
            self.interpreter.reset()  # names are lost, and the agent is told
            raise AgentError(str(error), self.logger) from error
        except kvmlet.KvmletError as error:
            raise AgentError(str(error), self.logger) from error
        logs = cell.stdout + cell.stderr
        if cell.error is None and cell.ok:
            return CodeOutput(output=cell.value, logs=logs, is_final_answer=False)
        if cell.error and cell.error.type.endswith(self.FINAL_ANSWER_EXCEPTION):
            try:
                answer = self._deserialize_final_answer(cell.error.message)
            except Exception as error:  # the code in the VM chose every character of it
                raise AgentError(f"no final answer: {error}", self.logger) from error
            return CodeOutput(output=answer, logs=logs, is_final_answer=True)
        why = cell.error.traceback if cell.error else ""
        raise AgentError(f"{logs}\n{why}[the code ended: {cell.reason}]", self.logger)

    def cleanup(self) -> None:
        self.interpreter.close()
