"""Records for the logger "kvmlet", and the words that coroutines have for the same."""

from __future__ import annotations

import inspect
import logging
import subprocess
import sys

import pytest

from kvmlet import _log, box, interpreter
from kvmlet import _run as runs
from kvmlet.aio import _box, _interpreter, _run

SILENT = """
import sys
from kvmlet import _log
_log.say(_log.WARNING, "event", "text")
assert not _log.listens(_log.WARNING)
assert "logging" not in sys.modules
import logging
_log.say(_log.WARNING, "event", "text")
assert len(logging.getLogger("kvmlet").handlers) == 1
logging.getLogger("kvmlet").addHandler(logging.StreamHandler(sys.stdout))
_log.say(_log.WARNING, "event", "%s", "heard")
_log.say(_log.DEBUG, "event", "%s", "not heard")
"""


def test_nothing_is_imported_and_nobody_is_told() -> None:
    words = [sys.executable, "-S", "-c", SILENT]
    path = {"PYTHONPATH": _log.__file__.rpartition("/kvmlet/")[0]}
    done = subprocess.run(words, env=path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_an_import_that_has_only_begun_is_no_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "logging", type(sys)("logging"))
    monkeypatch.setattr(_log, "_logger", None)
    assert not _log.listens(_log.WARNING)


def test_a_record_has_its_facts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="kvmlet")
    _log.say(_log.DEBUG, "box", "made %d", 3, memory_bytes=7)
    (record,) = caplog.records
    assert record.getMessage() == "made 3"
    assert vars(record)["kvmlet"] == {"event": "box", "memory_bytes": 7}


@pytest.mark.parametrize(
    ("call", "options", "own"),
    [
        (runs.run, _run.RunOptions, {"text", "stdout", "stderr", "on_denial"}),
        (box.Box.run, _box.CommandOptions, {"text", "stdout", "stderr", "on_denial"}),
        (box.Box.spawn, _box.SpawnOptions, {"text", "encoding", "errors"}),
        (box.Box, _box.BoxOptions, set()),
        (interpreter.Interpreter, _interpreter.InterpreterOptions, set()),
    ],
    ids=["run", "box-run", "spawn", "box", "interpreter"],
)
def test_coroutines_take_the_same_keywords(call: object, options: type, own: set[str]) -> None:
    assert callable(call)
    given = inspect.signature(call).parameters.values()
    names = {each.name for each in given if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert set(options.__annotations__) == names - own
