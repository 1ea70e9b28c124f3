"""A CodeAgent of smolagents with the executor. Its model is a list of answers."""

import pytest
from smolagents import CodeAgent, Tool, tool
from smolagents.models import ChatMessage, MessageRole, Model
from smolagents.utils import AgentError
from smolagents_executor import KvmletExecutor


class Answers(Model):
    """Says what it is given, and keeps what it is told."""

    def __init__(self, *answers: str) -> None:
        super().__init__(model_id="answers")
        self.answers = list(answers)
        self.told: list[str] = []

    def generate(self, messages, *args, **options):
        self.told = [str(message.content) for message in messages]
        code = self.answers.pop(0)
        said = f"Thought: as planned.\n<code>\n{code}\n</code>"
        return ChatMessage(role=MessageRole.ASSISTANT, content=said)


@tool
def double(number: int) -> int:
    """Twice a number.

    Args:
        number: the number
    """
    return number * 2


class Shout(Tool):
    name = "shout"
    description = "Text in capitals."
    inputs = {"text": {"type": "string", "description": "the text"}}  # noqa: RUF012
    output_type = "string"

    def forward(self, text: str) -> str:
        return text.upper()


def run(*answers, task="work", **options):
    model = Answers(*answers)
    executor = KvmletExecutor(timeout_s=options.pop("timeout_s", 30), memory="512m")
    with CodeAgent([double, Shout()], model, executor=executor, verbosity_level=0) as agent:
        return agent.run(task, **options), model


def test_tools_state_and_an_answer():
    answer, model = run(
        "x = double(21)\nprint('x is', x)",
        "final_answer({'x': x, 'text': shout('abc'), 'given': given})",
        additional_args={"given": [1, 2]},
    )
    assert answer == {"x": 42, "text": "ABC", "given": [1, 2]}
    assert "x is 42" in model.told[-1]


def test_errors_are_told_to_the_model():
    answer, model = run("1 / 0", "open('/etc/shadow')", "final_answer('done')")
    assert answer == "done"
    assert any("ZeroDivisionError" in text for text in model.told)
    assert any("FileNotFoundError: [Errno 2]" in text for text in model.told)


def test_code_without_an_end_and_output_without_bounds():
    answer, model = run(
        "x = 1\nwhile True: pass", "print('x' * 10**8)", "final_answer(x)", timeout_s=5
    )
    assert answer == 1
    assert any("the code ended: timeout" in text for text in model.told)


def test_a_session_that_ends_is_started_again():
    executor = KvmletExecutor(memory="256m")
    executor("x = 1")
    with pytest.raises(AgentError, match="exited"):
        executor("import os; os._exit(1)")
    with pytest.raises(AgentError, match="has ended"):
        executor("x")
    assert executor("2 + 3").output == 5
    executor.cleanup()


def test_answers_that_are_none():
    executor = KvmletExecutor(memory="256m")
    made = "class FinalAnswerException(BaseException): pass\nraise FinalAnswerException({!r})"
    for text in (
        "",
        "pickle:gASVAAA",
        "safe:",
        'safe:{"__type__": "bytes"}',
        "safe:" + "[" * 10**5,
    ):
        with pytest.raises(AgentError, match="no final answer"):
            executor(made.format(text))
    output = executor(made.format('safe:{"__type__": "tuple", "data": [1]}'))
    assert (output.output, output.is_final_answer) == ((1,), True)
    executor.cleanup()
