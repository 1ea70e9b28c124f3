"""Inspect's own suite for sandboxes, an evaluation without a model, and what goes wrong."""

import os

import pytest
from inspect_ai import Task
from inspect_ai import eval as evaluate
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, accuracy, scorer
from inspect_ai.solver import solver
from inspect_ai.util import ExecResult, OutputLimitExceededError, sandbox
from inspect_ai.util._sandbox.self_check import *  # noqa: F403
from inspect_sandbox import KvmletSandbox

# Of files whose permissions are taken away.
OF_USERS = (
    "test_read_file_not_allowed",
    "test_write_binary_file_without_permissions",
    "test_write_text_file_without_permissions",
)


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def sandbox_env(request):
    name = request.node.originalname
    if name == "test_exec_as_user":
        request.node.add_marker(pytest.mark.xfail(reason="commands of a box run as one user"))
    if name in OF_USERS and os.geteuid() == 0:
        reason = "root heeds no permissions, inside as natively"
        request.node.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    made = await KvmletSandbox.sample_init("task", None, {})
    yield made["default"]
    await KvmletSandbox.sample_cleanup("task", None, made, False)


pytestmark = pytest.mark.anyio


async def test_a_path_that_leaves(sandbox_env):
    for path in ("../../root/.bashrc", "/etc/shadow", "/proc/1/root/etc/shadow"):
        with pytest.raises((FileNotFoundError, PermissionError)):
            await sandbox_env.read_file(path)


async def test_output_too_long(sandbox_env):
    with pytest.raises(OutputLimitExceededError):
        await sandbox_env.exec(["yes"], timeout=60)
    assert (await sandbox_env.exec(["echo", "alive"])).stdout == "alive\n"


async def test_no_such_program(sandbox_env):
    done = await sandbox_env.exec(["no-such-program"])
    assert (done.success, done.returncode) == (False, 127)


def test_an_evaluation_without_a_model(tmp_path):
    @solver
    def works():
        async def solve(state, generate):
            await sandbox().write_file("folder/question", state.input_text)
            done: ExecResult = await sandbox().exec(["rev", "folder/question"])
            state.output.completion = done.stdout
            return state

        return solve

    @scorer(metrics=[accuracy()])
    def is_reversed():
        async def score(state, target):
            return Score(value=state.output.completion == target.text)

        return score

    samples = [Sample(input="abc", target="cba"), Sample(input="xyz", target="zyx")]
    task = Task(dataset=samples, solver=works(), scorer=is_reversed(), sandbox="kvmlet")
    (log,) = evaluate(task, model="mockllm/model", log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.results.scores[0].metrics["accuracy"].value == 1
