"""Files that start `kvmlet serve` elsewhere: their commands are ones that it takes."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import pytest

from kvmlet.cli import serve
from kvmlet.cli._run_options import split_words

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "serve"


def parsed(words: list[str]) -> tuple[dict[str, object], list[str]]:
    """The options of `kvmlet serve` with their values, and the program."""
    own, program = split_words(words, serve._OPTIONS_WITH_VALUE)
    return vars(serve.parser().parse_args(own)), program


def settings(file: str) -> dict[str, list[str]]:
    """The settings of a unit of systemd, with all values of each."""
    found: dict[str, list[str]] = {}
    for line in (EXAMPLES / file).read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def instruction(text: str, name: str) -> list[str]:
    found = re.search(rf"^{name} (\[.*\])$", text, re.MULTILINE)
    assert found, name
    words: list[str] = json.loads(found[1])
    return words


def test_the_unit_of_systemd_starts_and_stops_a_server() -> None:
    unit = settings("kvmlet.service")
    command, *words = shlex.split(unit["ExecStart"][0])
    assert (command, words[0]) == ("/opt/kvmlet/bin/kvmlet", "serve")
    options, program = parsed(words[1:])
    # It has the socket from systemd.
    assert (options["listen"], program[0]) == ([], "/opt/app/bin/gunicorn")
    assert settings("kvmlet.socket")["ListenStream"] == ["8080"]
    grace_s = float(str(options["grace"]).removesuffix("s"))
    assert float(unit["TimeoutStopSec"][0].removesuffix("s")) > grace_s
    assert "/dev/kvm rw" in unit["DeviceAllow"]


def test_the_container_serves_by_its_entry_point() -> None:
    text = (EXAMPLES / "Dockerfile").read_text()
    assert parsed(instruction(text, "HEALTHCHECK CMD")[2:])[0]["status"] is True
    words = [*instruction(text, "ENTRYPOINT"), *instruction(text, "CMD")]
    options, program = parsed(words[2:])
    assert (options["listen"], options["control"]) == (["0.0.0.0:8080"], "0.0.0.0:9090")
    assert program == ["python3", "-m", "http.server", "8000"]


def test_the_manifest_of_kubernetes_gives_the_container_its_words() -> None:
    text = (EXAMPLES / "kubernetes.yaml").read_text()
    args = re.search(r"^ +args: (\[.*\])$", text, re.MULTILINE)
    assert args
    options, program = parsed(json.loads(args[1]))
    assert (options["forks"], program[0]) == ("16", "python3")
    yaml = pytest.importorskip("yaml", reason="no PyYAML here: apt-get install python3-yaml")
    kinds = [each["kind"] for each in yaml.safe_load_all(text)]
    assert kinds == ["DaemonSet", "Deployment", "Service"]
