"""Records of the logger "kvmlet", and calls for refusals while a program runs."""

from __future__ import annotations

import asyncio
import logging
import pathlib
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

import kvmlet

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmlet import Denial

pytestmark = [pytest.mark.default_mode, pytest.mark.usefixtures("vm")]

# It is refused something, and waits for a line afterwards.
REFUSED = "cat /etc/shadow 2>/dev/null; echo told; sleep 60"


FLOOD = """
import os
for number in range(1100):
    try:
        os.mkdir(f"/usr/{number}")
    except OSError:
        pass
"""


def facts(caplog: pytest.LogCaptureFixture, event: str) -> list[tuple[int, dict[str, Any]]]:
    """Level and facts of the records of an event."""
    made = [(each.levelno, vars(each)["kvmlet"]) for each in caplog.records]
    return [(level, told) for level, told in made if told["event"] == event]


def test_records_of_a_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="kvmlet")
    kvmlet.run("cat /etc/shadow; cat /etc/shadow; exit 3", shell=True)
    assert [level for level, _ in facts(caplog, "start")] == [logging.DEBUG]
    end = {"event": "end", "reason": "exited", "exit_code": 3, "signal": None}
    assert facts(caplog, "end") == [(logging.DEBUG, end)]
    refused = {"event": "denial", "what": "open /etc/shadow", "errno": "ENOENT", "kind": "hidden"}
    assert (logging.INFO, {**refused, "count": 2}) in facts(caplog, "denial")
    caplog.clear()
    kvmlet.run(["sleep", "60"], timeout=0.2)
    assert [(level, told["reason"]) for level, told in facts(caplog, "limit")] == [
        (logging.INFO, "timeout")
    ]
    # Arguments may be secrets.
    assert all("60" not in each.getMessage() for each in caplog.records)


def test_records_of_boxes_and_sessions(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="kvmlet")
    with kvmlet.Box() as box:
        box.run(["cat", "/etc/shadow"])
        assert len(facts(caplog, "denial")) == 1
        process = box.spawn("cat /etc/gshadow", shell=True)
        process.wait()
        (fork,) = box.fork()
        with fork:
            fork.reset()
    events = [vars(each)["kvmlet"]["event"] for each in caplog.records]
    for event in ("box", "spawn", "snapshot", "fork", "reset", "close"):
        assert event in events, events
    # Refusals of what is in the background are told by the end.
    assert [told["what"] for _, told in facts(caplog, "denial")][-1] == "open /etc/gshadow"
    caplog.clear()
    with kvmlet.Interpreter() as py:
        py.run("open('/etc/shadow')")
        assert "open /etc/shadow" in [told["what"] for _, told in facts(caplog, "denial")]
        py.run("while True: pass", timeout=0.2)
    assert [told["reason"] for _, told in facts(caplog, "limit")] == ["timeout"]


def test_a_record_shows_no_character_that_a_terminal_obeys(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="kvmlet")
    kvmlet.run(["mkdir", "/usr/a\x1b[2J\nsecret\u202e"])
    (record,) = [each for each in caplog.records if "secret" in each.getMessage()]
    assert record.getMessage().isprintable()


def test_a_fork_of_a_pool_that_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="kvmlet")

    @kvmlet.isolated(timeout=0.5)
    def endless() -> None:
        while True:
            pass

    with pytest.raises(kvmlet.DeadlineExceeded):
        endless()
    endless.close()
    assert [level for level, _ in facts(caplog, "fork-replaced")] == [logging.INFO]


LISTENING = """
import sys
import kvmlet
kvmlet.run(["true"])
loaded = "logging" in sys.modules
import logging
{setting}
kvmlet.run("cat /etc/shadow 2>/dev/null", shell=True)
kvmlet.run(["sleep", "60"], timeout=0.1)
logger = logging.getLogger("kvmlet")
print(loaded, [type(each).__name__ for each in logger.handlers])
"""


@pytest.mark.parametrize(
    ("setting", "lines"), [("", 0), ("logging.basicConfig(level='INFO')", 2)], ids=["no", "yes"]
)
def test_it_is_silent_unless_somebody_listens(setting: str, lines: int) -> None:
    code = LISTENING.format(setting=setting)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False ['NullHandler']\n", done.stderr
    assert done.stderr.count("INFO:kvmlet:") == lines, done.stderr
    assert bool(done.stderr) == bool(lines)


def run_it(words: str, tell: Callable[[Denial], object]) -> object:
    return kvmlet.run(words, shell=True, timeout=20, on_denial=tell)


def command(words: str, tell: Callable[[Denial], object]) -> object:
    with kvmlet.Box() as box:
        return box.run(words, shell=True, timeout=20, on_denial=tell)


@pytest.mark.parametrize("run", [run_it, command])
def test_a_refusal_is_told_while_the_program_runs(run: Callable[..., object]) -> None:
    def end(denial: Denial) -> None:
        told.append(denial)
        raise KeyError(denial.path)

    told: list[Denial] = []
    start_s = time.monotonic()
    with pytest.raises(KeyError, match="/etc/shadow"):
        run(REFUSED, end)
    # It would sleep for longer.
    assert time.monotonic() - start_s < 15
    assert [(each.operation, each.errno, each.kind) for each in told] == [
        ("open", "ENOENT", "hidden")
    ]


@pytest.mark.parametrize("run", [run_it, command])
def test_each_refusal_is_told_once(run: Callable[..., object]) -> None:
    told: list[Denial] = []
    words = "for i in 1 2 3; do cat /etc/shadow /etc/gshadow /root/$i; sleep 0.1; done 2>/dev/null"
    result = run(words, told.append)
    assert isinstance(result, kvmlet.Result)
    paths = [each.path for each in told]
    assert sorted(paths) == sorted({each.path for each in result.denials})
    assert {"/etc/shadow", "/etc/gshadow"} <= set(paths)
    assert max(each.count for each in result.denials) == 3


def test_a_flood_of_refusals_is_bounded() -> None:
    with kvmlet.Box() as box:
        for run in (kvmlet.run, box.run):
            told: list[Denial] = []
            run(["python3", "-c", FLOOD], on_denial=told.append)
            assert len(told) == 1000


def test_a_coroutine_is_told() -> None:
    async def main() -> None:
        async def tell(denial: Denial) -> None:
            await asyncio.sleep(0)
            told.append(denial.path)

        await kvmlet.aio.run(["cat", "/etc/shadow"], on_denial=tell)
        async with kvmlet.aio.Box() as box:
            await box.run(["cat", "/etc/shadow"], on_denial=tell)

    told: list[str] = []
    asyncio.run(main())
    assert told == ["/etc/shadow"] * 2


def test_what_is_no_callable_is_refused() -> None:
    with pytest.raises(kvmlet.UsageError, match="on_denial: 'x' is not a callable"):
        kvmlet.run(["true"], on_denial="x")  # type: ignore[call-overload]


def test_a_command_whose_streams_are_joined(tmp_path: pathlib.Path) -> None:
    with kvmlet.Box() as box:
        words = "echo one; echo two >&2; echo three"
        joined = box.run(words, shell=True, text=True, stderr=subprocess.STDOUT)
        assert (joined.stdout, joined.stderr) == ("one\ntwo\nthree\n", "")
        lines: list[str] = []
        box.run(words, shell=True, text=True, stdout=lines.append, stderr=subprocess.STDOUT)
        assert lines == ["one\n", "two\n", "three\n"]


def test_a_command_with_a_limit_on_its_output() -> None:
    with kvmlet.Box() as box:
        result = box.run("yes", shell=True, max_output="64k")
        assert (result.reason, len(result.stdout), result.truncated) == ("output", 65536, True)
        assert box.run(["echo", "x"], max_output=2).stdout == b"x\n"
        with pytest.raises(kvmlet.UsageError, match="max_output"):
            box.run(["true"], max_output="much")


def test_commands_in_the_box_of_a_session() -> None:
    with kvmlet.Interpreter() as py:
        py.run("x = 1; open('made', 'w').write('by a cell')")
        assert py.box.run(["cat", "made"], text=True).stdout == "by a cell"
        py.box.run("echo by a command > made", shell=True)
        assert py.run("open('made').read()").value == "by a command\n"
        with py.fork()[0] as fork:
            assert fork.box.run(["cat", "made"], text=True).stdout == "by a command\n"
        py.box.reset()
        with pytest.raises(kvmlet.BoxWasReset):
            py.run("x")
        py.reset()
        assert py.run("x").value == 1
