"""The examples of README.md and of pages in docs/: each runs, and says what the page says.

Those of the first five minutes and the recipes are in test_recipes.py, those of the reference in
test_reference.py.
"""

from __future__ import annotations

import ast
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import tomllib
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import ENV, HANG_S, HW, KVMLET, LONG, NO_RUNTIMES, ROOT
from e2e.terminal import Terminal
from e2e.test_recipes import same

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

README = (ROOT / "README.md").read_text()
PYTHON_ENV = {**os.environ, "PYTHONPATH": os.fspath(ROOT / "python")}

ELSEWHERE = {
    "first-five-minutes.md": "tests/e2e/test_recipes.py",
    "recipes.md": "tests/e2e/test_recipes.py",
    "reference.md": "tests/e2e/test_reference.py",
    "adding-a-syscall.md": "fragments of the sources that it explains",
    "architecture.md": "drawings",
}
"""The pages with fenced blocks that are not run here, with the place or the reason."""
HERE = {"policy.md", "servers.md"}


def test_no_page_is_left_out() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md") if "```" in page.read_text()}
    assert pages == set(ELSEWHERE) | HERE


# ---- Python in the README ----

BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

SERVER = "import kvmlet_guest as g\nwhile True: g.send(g.receive().upper())\n"
PLOT = "open('plot.png', 'wb').write(b'a picture')\n"
# A block by a word of its own: the files that it takes, and the lines before it.
WORDS: dict[str, tuple[dict[str, str], str]] = {
    "plot.py": ({"plot.py": PLOT}, ""),
    "@kvmlet.isolated": ({}, ""),
    "kvmlet.Pool(": ({"server.py": SERVER}, "import kvmlet"),
    "kvmlet.serve(": ({}, "import kvmlet, urllib.request"),
    "until_listening": ({}, "import kvmlet"),
    "kvmlet.Box(memory": ({}, "import kvmlet"),
    "kvmlet.Interpreter(": ({}, "import kvmlet"),
    "kvmlet.aio.Box": ({}, "import asyncio, kvmlet.aio"),
    "Policy.of": ({"data/file": ""}, "import kvmlet"),
}
# Those that start a server take seconds; one of each kind is run always, in other tests.
SLOW = {"kvmlet.serve(", "until_listening", "kvmlet.Pool("}


def value(said: str) -> str | None:
    """The value that a comment begins with, as repr(3) has it; None if it is none."""
    for text in (said, said.partition(": ")[0]):
        try:
            return repr(ast.literal_eval(text))
        except (ValueError, SyntaxError):
            continue
    return None


def checked(block: str) -> tuple[str, int]:
    """The block, in which a line that ends in a value says what its expression gives."""
    lines, count = [], 0
    for line in block.splitlines():
        body, _, said = line.partition("  # ")
        expected = value(said) if said else None
        text = body.strip()
        if expected is not None and re.match(r"(\w+ = |policy\.save)", text) is None:
            indent = body[: len(body) - len(body.lstrip())]
            if text.startswith("print("):
                text, expected = f"repr({text[6:-1]})", repr(expected)
            else:
                text, expected = f"repr(({text}))", repr(expected)
            lines.append(f"{indent}check({text}, {expected})")
            count += 1
        else:
            lines.append(body if expected is None else line)
    return "\n".join(lines), count


CHECK = """
import re
def check(said, expected):
    pattern = ".*".join(map(re.escape, expected.split("...")))
    assert re.fullmatch(pattern, said, re.DOTALL), (said, expected)
"""


def test_each_block_is_known() -> None:
    assert [sum(word in block for word in WORDS) for block in BLOCKS] == [1] * len(WORDS)
    assert sum(checked(block)[1] for block in BLOCKS) > 8


@pytest.mark.parametrize("word", [word for word in WORDS if LONG or word not in SLOW])
def test_python_of_the_readme(tmp_path: pathlib.Path, word: str) -> None:
    (block,) = (block for block in BLOCKS if word in block)
    files, before = WORDS[word]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    block = block.replace("/data", f"{tmp_path}/data")
    code, _ = checked(block)
    if "async with" in code:
        code = f"async def main():\n{textwrap.indent(code, '    ')}\nasyncio.run(main())"
    script = tmp_path / "example.py"
    script.write_text(f"{before}\n{CHECK}\n{code}\n")
    run = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=PYTHON_ENV,
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    # Lines of a server may be there.
    assert (run.returncode, "Traceback" in run.stderr) == (0, False), run
    if word == "plot.py":
        assert (tmp_path / "plot.png").read_bytes() == b"a picture"
        assert not (tmp_path / "today").exists()
    if word == "Policy.of":
        saved = tomllib.loads((tmp_path / "policy.toml").read_text())
        assert saved["read"] == [f"{tmp_path}/data"]
        assert {"env", "limits"} < saved.keys()


# ---- commands ----

COMMANDS = re.findall(
    r"^    ((?:\.venv/bin/)?kvmlet (?:run|serve) [^\[\n]*)$", README, re.MULTILINE
)
POLICY = (ROOT / "docs" / "policy.md").read_text()
COMMANDS += re.findall(r"^    (kvmlet run [^\n]*)$", POLICY, re.MULTILINE)


class Shell:
    """A directory in which commands of the pages are run."""

    def __init__(self, top: pathlib.Path) -> None:
        self.top = top
        self.env = {**ENV, "PATH": f"{KVMLET.parent}:{ENV['PATH']}"}

    def words(self, command: str) -> list[str]:
        # A comment of the page's is one of the shell's as well.
        return ["/bin/bash", "-c", command.replace(".venv/bin/", "")]

    def run(self, command: str) -> str:
        run = subprocess.run(
            self.words(command),
            cwd=self.top,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=HANG_S,
        )
        assert run.returncode == 0, run
        return run.stdout

    def script(self, name: str, text: str) -> pathlib.Path:
        path = self.top / name
        path.write_text(text)
        path.chmod(0o755)
        return path


def prints_a_number(shell: Shell, command: str) -> None:
    assert shell.run(command) == "42\n"


def has_options_of_its_own(shell: Shell, command: str) -> None:
    shell.script("program", '#!/bin/sh\necho "$@"\n')
    assert shell.run(command) == "--its-own-option\n"


def keeps_a_picture(shell: Shell, command: str) -> None:
    (shell.top / "plot.py").write_text(PLOT)
    shell.run(command)
    assert (shell.top / "plot.png").read_text() == "a picture"


def asks_for_what_make_made(shell: Shell, command: str) -> None:
    (shell.top / "Makefile").write_text("made:\n\techo made > $@\n")
    words = shell.words(f"export PATH={KVMLET.parent}:$PATH; {command}")
    terminal = Terminal(words, shell.top)
    assert b"made" in terminal.read_until(b"[d]iff: ")
    terminal.type(b"y\n")
    assert terminal.finish() == 0
    assert (shell.top / "made").read_text() == "made\n"


def puts_results_elsewhere(shell: Shell, command: str) -> None:
    shell.script("convert", '#!/bin/sh\nfor f; do tr a b < "$f" > "$f.out"; done\n')
    for name in ("1.csv", "2.csv"):
        (shell.top / name).write_text("a,b\n")
    shell.run(command)
    assert sorted(os.listdir(shell.top / "out")) == ["1.csv.out", "2.csv.out"]
    assert (shell.top / "out" / "1.csv.out").read_text() == "b,b\n"


def serves(shell: Shell, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (shell.top / "page.txt").write_text("a page")
    server = subprocess.Popen(
        ["exec " + shell.words(command)[2].replace("8080", str(port))],
        shell=True,
        cwd=shell.top,
        env=shell.env,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + HANG_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/page.txt") as answer:
                    assert answer.read() == b"a page"
                break
            except urllib.error.URLError:
                assert time.monotonic() < until
                time.sleep(0.2)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(HANG_S) == 0


def learns(shell: Shell, command: str) -> None:
    learned(shell, command)


def learned(shell: Shell, *commands: str) -> None:
    # In /tmp a sandbox has files of its own.
    with tempfile.TemporaryDirectory(prefix="kvmlet-learned-", dir="/var/tmp") as other:
        (pathlib.Path(other) / "file").write_text("from elsewhere\n")
        shell.script("program", f'#!/bin/sh\ncat {other}/file\necho "$@"\n')
        for command in commands:
            assert shell.run(command) == "from elsewhere\nits arguments\n"
        assert f"{other}/file" in (shell.top / "policy.toml").read_text()


def runs_as_learned(shell: Shell, command: str) -> None:
    learned(shell, command.replace("--policy", "--learn"), command)


SHOWN: dict[str, Callable[[Shell, str], None]] = {
    "print(6 * 7)": prints_a_number,
    "--its-own-option": has_options_of_its_own,
    "http.server": serves,
    "plot.py": keeps_a_picture,
    "--changes ask": asks_for_what_make_made,
    "dir:out": puts_results_elsewhere,
    "--learn": learns,
    "--policy": runs_as_learned,
}


def test_each_command_is_known() -> None:
    assert [sum(word in command for word in SHOWN) for command in COMMANDS] == [1] * len(SHOWN)


@pytest.mark.parametrize("word", [word for word in SHOWN if LONG or word != "http.server"])
def test_a_command(tmp_path: pathlib.Path, word: str) -> None:
    (command,) = (command for command in COMMANDS if word in command)
    SHOWN[word](Shell(tmp_path), command)


# ---- settings ----


def toml_of(page: str) -> str:
    """The first settings that a page shows."""
    text: str = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)[0]
    assert isinstance(text, str)
    return text


def test_the_policy_of_the_page(tmp_path: pathlib.Path) -> None:
    text = toml_of("policy.md").replace("/data/corpus", f"{tmp_path}/corpus")
    text = text.replace("/run/app/db.sock", f"{tmp_path}/db.sock")
    for name in ("corpus", "home/models", "out"):
        (tmp_path / name).mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        text = text.replace("8080:80", f"{free.getsockname()[1]}:80")
    (tmp_path / "policy.toml").write_text(text)
    env = {**ENV, "HOME": os.fspath(tmp_path / "home")}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(tmp_path / "db.sock"))
        words = [os.fspath(KVMLET), "run", "--policy", "policy.toml", "--print-policy"]
        run = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, timeout=HANG_S)
    assert run.returncode == 0, run
    said = tomllib.loads(run.stdout.decode())
    asked = tomllib.loads(text)
    assert said["net"] == asked["net"]
    assert said["limits"].keys() == asked["limits"].keys()
    assert said["env"].items() >= asked["env"].items()
    assert [pathlib.Path(path).name for path in said["read"]] == ["corpus", "models"]


def test_the_servers_of_the_page(tmp_path: pathlib.Path) -> None:
    """Programs that answer as those of the page would, by host and path."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    figures = tmp_path / "figures"
    text = (
        toml_of("servers.md").replace('"8080"', f'"{port}"').replace("/srv/figures", f"{figures}")
    )
    for name in ("shop", "reports", "figures", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "serve.toml").write_text(text)
    for name in ("uvicorn", "node"):
        program = tmp_path / "bin" / name
        program.write_text(f"#!/bin/sh\n# {name}\nexec python3 -m http.server 8000\n")
        program.chmod(0o755)
    env = {**ENV, "PATH": f"{tmp_path}/bin:{ENV['PATH']}"}
    words = [os.fspath(KVMLET), "serve", "--check", "--config", "serve.toml"]
    run = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, timeout=HANG_S)
    assert (run.returncode, run.stderr) == (0, b""), run


def test_texts_are_compared_with_what_they_leave_out() -> None:
    assert same("one 12 two\n", "one ... two")
    assert not same("one two", "one ... three")
