"""The library that programs link: kvmlet.h and kvmlet_guest, without kvmlet and its messages."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "python" / "kvmlet" / "guest"
EXAMPLES = ROOT / "examples" / "messages"
HEADER = LIBRARY / "include" / "kvmlet.h"
MODULE = LIBRARY / "python" / "kvmlet_guest.py"


def frames(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "little") + message for message in messages)


def run_python(code: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", code],
        input=data,
        capture_output=True,
        timeout=60,
        env={"PYTHONPATH": str(MODULE.parent)},
        check=False,
    )


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The examples, ready to run."""
    program = tmp_path_factory.mktemp("echo") / "echo"
    include = f"-I{HEADER.parent}"
    options = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1"]
    source = str(EXAMPLES / "echo.c")
    subprocess.run(["cc", *options, include, source, "-o", str(program)], check=True, timeout=60)
    return {"c": [str(program)], "python": [sys.executable, str(EXAMPLES / "echo.py")]}


@pytest.mark.parametrize("language", ["c", "python"])
def test_the_examples_answer_every_message(echo: dict[str, list[str]], language: str) -> None:
    messages = [b"hello", b"", b"x" * 100_000, b"last"]
    run = subprocess.run(
        echo[language],
        input=frames(*messages),
        capture_output=True,
        timeout=60,
        env={"PYTHONPATH": str(MODULE.parent)},
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == frames(*(message.upper() for message in messages))


def test_messages_of_several_source_files_are_one_stream(tmp_path: pathlib.Path) -> None:
    """The header's state is one for the whole program."""
    (tmp_path / "one.c").write_text(
        "#include <kvmlet.h>\nssize_t length(void) { return kvmlet_next_length(); }\n"
    )
    (tmp_path / "two.c").write_text(
        "#include <kvmlet.h>\nextern ssize_t length(void);\nint main(void) { char text[9];"
        " ssize_t len = length(); return len == 2 && kvmlet_receive(text, 9) == 2 ? 7 : 1; }\n"
    )
    program = tmp_path / "program"
    sources = [str(tmp_path / "one.c"), str(tmp_path / "two.c")]
    command = ["cc", f"-I{HEADER.parent}", *sources, "-o", str(program)]
    subprocess.run(command, check=True, timeout=60)
    assert subprocess.run([program], input=frames(b"ab"), check=False, timeout=60).returncode == 7


@pytest.mark.parametrize("data", [b"\5\0", frames(b"hello")[:-1], b"\0\0\0\2"])
def test_input_that_is_no_message_is_an_error(data: bytes) -> None:
    run = run_python("import kvmlet_guest as g; g.serve(bytes)", data)
    assert run.returncode == 1
    assert b"OSError: [Errno 74]" in run.stderr
    assert run.stdout == b""


def test_natively_there_is_one_generation_and_no_fork() -> None:
    code = (
        "import kvmlet_guest as g, sys\n"
        "g.on_fork(lambda: sys.exit(3))\n"
        "g.check_fork()\n"
        "assert g.generation() == 0\n"
        "assert g.receive() == b'x'\n"
        "g.send(bytearray(b'y')); g.send(memoryview(b'z'))\n"
        "try: g.send(bytes(g.MESSAGE_MAX + 1))\n"
        "except OSError as error: assert error.errno == 90\n"
    )
    run = run_python(code, frames(b"x"))
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == frames(b"y", b"z")


def test_a_new_copy_is_seeded_and_calls_its_hooks_once() -> None:
    code = (
        "import kvmlet_guest as g, random\n"
        "calls = []\n"
        "g.on_fork(lambda: calls.append(g._generation))\n"
        "random.seed(1); first = random.random()\n"
        "for number, seed in [(0, b'a'), (5, b'b'), (5, b'c'), (6, b'b'), (6, b'd')]:\n"
        "    random.seed(1)\n"
        "    g._now(number, seed * 24)\n"
        "    calls.append(random.random() == first)\n"
        "print(calls)\n"
    )
    assert run_python(code, b"").stdout == b"[True, 5, False, True, 6, False, True]\n"


def test_the_module_is_light() -> None:
    code = (
        "import sys, ctypes; before = set(sys.modules); import kvmlet_guest;"
        "print(sorted(set(sys.modules) - before))"
    )
    assert (
        run_python(code, b"").stdout
        == b"['__future__', 'errno', 'kvmlet_guest', 'kvmlet_reseed']\n"
    )


def test_header_and_module_agree() -> None:
    text = HEADER.read_text()
    defined = dict(re.findall(r"#define (KVMLET_\w+) \(?(\d+)", text))
    module = dict(re.findall(r"^(_[A-Z]+) = (\d+)$", MODULE.read_text(), re.MULTILINE))
    for name in ("RECEIVE", "SEND", "GENERATION"):
        assert defined[f"KVMLET_NR_{name}"] == module[f"_{name}"]
    assert defined["KVMLET_PEEK"] == module["_PEEK"]


def test_without_kvmlet_there_is_no_storage() -> None:
    code = """
import kvmlet_guest
for name in ("cart", "", "a\\0b"):
    try:
        kvmlet_guest.storage(name).ask(b"question")
    except kvmlet_guest.StorageError as error:
        print(error.errno, error.strerror)
"""
    run = run_python(code, b"")
    why = b"there are storages under kvmlet serve only"
    invalid = b"22 no name of a storage"
    assert run.stderr == b""
    assert run.stdout.splitlines() == [b"38 " + why, invalid, invalid]
