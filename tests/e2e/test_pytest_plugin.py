"""The fixtures that kvmlet has for pytest, in a suite of somebody else's."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("vm")

SUITE = """
import kvmlet
import pytest
import urllib.request

APP = r'''
import os, socket
server = socket.create_server(("127.0.0.1", 8000))
while True:
    stream, _ = server.accept()
    stream.recv(4096)
    stream.sendall(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + os.environb[b"GREETING"])
    stream.close()
'''

@pytest.fixture(scope="session")
def kvmlet_policy():
    return kvmlet.Policy.of(env={"GREETING": "hello"})

@pytest.fixture(scope="session")
def kvmlet_preload():
    return ["fractions"]

@pytest.mark.parametrize("turn", [1, 2])
def test_a_box(box, turn):
    run = box.run("ls; echo $GREETING > left; cat left", shell=True, text=True)
    assert run.stdout == "hello\\n"

@pytest.mark.parametrize("turn", [1, 2])
def test_a_session(interpreter, turn):
    assert interpreter.run("import sys; 'fractions' in sys.modules").value is True
    assert interpreter.run("'left' in globals()").value is False
    interpreter.run("left = 1").check()

servers = []

def test_an_app(served):
    servers.append(served(["/usr/bin/python3", "-m", "http.server", "8000"], forks=1))
    servers.append(served(["/usr/bin/python3", "-c", APP], forks=1))
    for server, said in zip(servers, (b"Directory listing", b"hello")):
        assert said in urllib.request.urlopen(server.url).read()

def test_that_it_is_gone():
    assert [server.state for server in servers] == ["ended", "ended"]

def test_it_can_fail(box):
    assert box.run("exit 3", shell=True).exit_code == 0
"""


def test_a_suite_that_uses_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "6 passed" in run.stdout, run.stdout + run.stderr
    assert "1 failed" in run.stdout
