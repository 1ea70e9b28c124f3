"""The first attempts of somebody who has just installed kvmlet: each goes as on the host.

Run by `make test-long PART=first`, which installs the runtimes and tools.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import time
import tomllib

import pytest

from e2e.oracle import HANG_S, KVMLET, LONG, native_argv
from e2e.terminal import Terminal

pytestmark = [
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(not LONG, reason="it takes minutes: make test-long PART=first"),
    pytest.mark.timeout(900),
]

HOME = pathlib.Path.home()
ENV = {
    "PATH": f"{HOME}/.cargo/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": os.fspath(HOME),
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
KEEP = ["--changes", "keep"]
GIT = ["-c", "user.name=me", "-c", "user.email=me@example.com"]


def needs(*programs: str) -> pytest.MarkDecorator:
    path = ENV["PATH"]
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


class Attempt:
    """A folder, a copy of it, and a command that is run natively in one and inside in the other."""

    def __init__(self, top: pathlib.Path) -> None:
        self.inside, self.outside = top / "inside" / "project", top / "outside" / "project"
        self.inside.mkdir(parents=True)

    def write(self, name: str, text: str, mode: int = 0o644) -> pathlib.Path:
        path = self.inside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def run(
        self,
        argv: list[str],
        options: list[str],
        *,
        cwd: str = ".",
        env: dict[str, str] | None = None,
        status: int = 0,
    ) -> str:
        """The output, which is the same both ways."""
        if not self.outside.exists():
            shutil.copytree(self.inside, self.outside, symlinks=True)
        words = [os.fspath(KVMLET), "run", *options, "--", *argv]
        env = {**ENV, **(env or {})}
        said = []
        for place, command in ((self.outside, native_argv(argv)), (self.inside, words)):
            run = subprocess.run(
                command, cwd=place / cwd, env=env, capture_output=True, text=True, timeout=HANG_S
            )
            assert run.returncode == status, run
            said.append(run.stdout.replace(os.fspath(place), "PROJECT"))
        assert said[1] == said[0]
        return said[1]

    def same_files(self, *but: str) -> None:
        """Both folders have the same names now."""

        def names(place: pathlib.Path) -> list[str]:
            every = (os.fspath(path.relative_to(place)) for path in place.rglob("*"))
            return sorted(name for name in every if not any(part in name for part in but))

        assert names(self.inside) == names(self.outside)


@pytest.fixture
def attempt(tmp_path: pathlib.Path) -> Attempt:
    return Attempt(tmp_path)


PLOT = """
import csv, pathlib, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
rows = list(csv.reader(open("data.csv")))
x, y = np.array(rows[1:], dtype=float).T
plt.plot(x, y)
plt.savefig("plot.png")
print(float(np.mean(y)), sys.prefix != sys.base_prefix)
"""


def test_numpy_and_matplotlib_in_a_virtual_environment(attempt: Attempt) -> None:
    """Of an interpreter in the home directory, as pyenv has them; the picture comes out."""
    version = HOME / ".pyenv-of-a-test" / "versions" / "3"
    attempt.write("data.csv", "x,y\n1,2\n2,4\n3,9\n")
    attempt.write("plot.py", PLOT)
    try:
        # A copy of the interpreter would have no library: what pyenv builds is linked alike.
        (version / "bin").mkdir(parents=True)
        base = pathlib.Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))
        (version / "bin" / "python3").symlink_to(base)
        for place in (attempt.inside, attempt.inside.parents[1] / "outside" / "project"):
            place.mkdir(parents=True, exist_ok=True)
        shutil.copytree(attempt.inside, attempt.outside, dirs_exist_ok=True)
        for place in (attempt.inside, attempt.outside):
            python = place / ".venv" / "bin" / "python"
            subprocess.run([version / "bin" / "python3", "-m", "venv", place / ".venv"], check=True)
            words = [os.fspath(python), "-m", "pip", "install", "-q", "numpy", "matplotlib"]
            subprocess.run(words, check=True, timeout=600)
        said = attempt.run([".venv/bin/python", "plot.py"], [*KEEP, "-m", "1g"])
        assert said == "5.0 True\n"
        for place in (attempt.inside, attempt.outside):
            assert (place / "plot.png").read_bytes().startswith(b"\x89PNG")
        assert attempt.run(
            [".venv/bin/python", "-c", "import numpy; print(numpy.ones(3).sum())"], []
        )
    finally:
        shutil.rmtree(HOME / ".pyenv-of-a-test")


@needs("git")
def test_git_in_a_subfolder_with_a_question(attempt: Attempt) -> None:
    subprocess.run(["git", "init", "-q", "."], cwd=attempt.inside, check=True)
    attempt.write("sub/file", "one\n")
    subprocess.run(["git", "add", "."], cwd=attempt.inside, check=True)
    subprocess.run(["git", *GIT, "commit", "-qm", "first"], cwd=attempt.inside, check=True)
    attempt.write("sub/file", "two\n")
    attempt.write("sub/new", "new\n")
    said = attempt.run(["git", "status", "--short"], [], cwd="sub")
    assert said == " M file\n?? new\n"
    script = f"git add . && git {' '.join(GIT)} commit -qm second && git --no-pager log --format=%s"
    words = [os.fspath(KVMLET), "run", "--changes", "ask", "--", "/bin/sh", "-c", script]
    terminal = Terminal(words, attempt.inside / "sub")
    shown = terminal.read_until(b"[d]iff: ")
    assert b"second\r\nfirst\r\n" in shown
    terminal.type(b"y\n")
    assert terminal.finish() == 0
    log = ["git", "log", "--format=%s"]
    assert subprocess.check_output(log, cwd=attempt.inside, text=True) == "second\nfirst\n"
    status = subprocess.check_output(["git", "status", "--short"], cwd=attempt.inside)
    assert status == b""


@needs("make", "gcc")
def test_make_in_a_tree_that_is_written(attempt: Attempt) -> None:
    attempt.write(
        "main.c",
        '#include <stdio.h>\nint add(int, int);\nint main() { printf("%d\\n", add(2, 3)); }\n',
    )
    attempt.write("add.c", "int add(int a, int b) { return a + b; }\n")
    attempt.write("Makefile", "prog: main.o add.o\n\t$(CC) -o $@ $^\n")
    attempt.run(["make", "-j4", "-s"], ["--write", "."])
    attempt.same_files()
    assert subprocess.check_output([attempt.inside / "prog"]) == b"5\n"
    assert attempt.run(["make", "-q"], []) == ""


@needs("javac", "java")
def test_java(attempt: Attempt) -> None:
    attempt.write(
        "Main.java",
        "public class Main { public static void main(String[] a) throws Exception {"
        ' java.nio.file.Files.writeString(java.nio.file.Path.of("out.txt"), "written");'
        ' System.out.println("hello " + java.util.List.of(1, 2) + System.getenv("LANG")); } }\n',
    )
    attempt.run(["javac", "Main.java"], [*KEEP, "-m", "2g"])
    assert attempt.run(["java", "-cp", ".", "Main"], [*KEEP, "-m", "2g"]) == "hello [1, 2]C.UTF-8\n"
    attempt.same_files()
    assert (attempt.inside / "out.txt").read_text() == "written"


@needs("php")
def test_php(attempt: Attempt) -> None:
    attempt.write(
        "page.php",
        '<?php file_put_contents("out.json", json_encode(["a" => 1]));'
        ' echo strtoupper("php"), " ", count($argv), " ", date("Y", 0), "\\n";',
    )
    assert attempt.run(["php", "page.php", "one"], KEEP) == "PHP 2 1970\n"
    assert (attempt.inside / "out.json").read_text() == '{"a":1}'


@needs("Rscript")
def test_r(attempt: Attempt) -> None:
    attempt.write(
        "mean.R",
        'd <- read.csv("d.csv"); write.csv(d * 2, "e.csv", row.names=FALSE); cat(mean(d$x), "\\n")',
    )
    attempt.write("d.csv", "x\n1\n2\n6\n")
    assert attempt.run(["Rscript", "mean.R"], [*KEEP, "-m", "1g"]) == "3 \n"
    assert (attempt.inside / "e.csv").read_text() == '"x"\n2\n4\n12\n'


@needs("node")
def test_node_with_a_package(attempt: Attempt) -> None:
    attempt.write("node_modules/left/package.json", '{"name": "left", "main": "lib/index.js"}')
    attempt.write("node_modules/left/lib/index.js", "module.exports = (s, n) => s.padStart(n)\n")
    attempt.write(
        "app.js",
        'const left = require("left"); require("fs").writeFileSync("out.txt", left("x", 3));\n'
        'import("node:os").then(os => console.log(left("ok", 4), process.argv.length))\n',
    )
    assert attempt.run(["node", "app.js"], [*KEEP, "-m", "2g"]) == "  ok 2\n"
    assert (attempt.inside / "out.txt").read_text() == "  x"


@needs("cargo")
def test_cargo_with_the_callers_own_toolchain(attempt: Attempt) -> None:
    attempt.write("Cargo.toml", '[package]\nname = "small"\nversion = "0.1.0"\nedition = "2021"\n')
    attempt.write("src/main.rs", 'mod other;\nfn main() { println!("{}", other::f(20)); }\n')
    attempt.write("src/other.rs", "pub fn f(n: u64) -> u64 { (1..=n).product() }\n")
    attempt.run(["cargo", "build", "-q", "--offline"], ["--write", ".", "-m", "2g"])
    assert attempt.run(["target/debug/small"], []) == "2432902008176640000\n"
    test = "cargo test -q --offline | grep -o 'test result: ok'"
    assert attempt.run(["sh", "-c", test], ["-m", "2g"]) == "test result: ok\n"


def test_pip_from_a_folder_of_wheels(attempt: Attempt) -> None:
    wheels = attempt.inside / "wheels"
    words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", os.fspath(wheels)]
    subprocess.run([*words, "idna==3.10", "six==1.17.0"], check=True, timeout=600)
    for place in (attempt.inside, attempt.inside.parents[1] / "outside" / "project"):
        if place != attempt.inside:
            shutil.copytree(wheels, place / "wheels")
        subprocess.run(["/usr/bin/python3", "-m", "venv", place / ".venv"], check=True)
    install = [".venv/bin/python", "-m", "pip", "install", "-q", "--no-index", "-f", "wheels"]
    attempt.run([*install, "idna", "six"], [*KEEP, "-m", "1g"])
    code = "import idna, six; print(idna.encode('é.example'), six.PY3)"
    assert attempt.run([".venv/bin/python", "-c", code], []) == "b'xn--9ca.example' True\n"
    attempt.same_files("__pycache__")


def test_a_script_in_tmp(attempt: Attempt) -> None:
    script = pathlib.Path("/tmp") / f"kvmlet-first-{os.getpid()}.py"
    script.write_text("import os, sys; print(sys.argv[1:], os.path.basename(__file__))\n")
    shell = script.with_suffix(".sh")
    shell.write_text("#!/bin/sh\necho from a shell\n")
    shell.chmod(0o755)
    try:
        said = attempt.run(["python3", os.fspath(script), "x"], [])
        assert said == f"['x'] {script.name}\n"
        assert attempt.run([os.fspath(shell)], []) == "from a shell\n"
    finally:
        script.unlink()
        shell.unlink()


def test_a_variable(attempt: Attempt) -> None:
    said = attempt.run(["printenv", "TOKEN"], ["-e", "TOKEN"], env={"TOKEN": "a secret"})
    assert said == "a secret\n"
    attempt.write(".vars", "ONE=1\nTWO=a b\n")
    words = [os.fspath(KVMLET), "run", "--env-file", ".vars", "-e", "THREE=3", "--", "env"]
    run = subprocess.run(words, cwd=attempt.inside, env=ENV, capture_output=True, text=True)
    assert {"ONE=1", "TWO=a b", "THREE=3"} <= set(run.stdout.splitlines())


def test_a_table_read_and_a_result_beside_it(attempt: Attempt) -> None:
    attempt.write("in.csv", "name,n\na,1\nb,2\n")
    attempt.write(
        "sum.py",
        "import csv\nrows = list(csv.DictReader(open('in.csv')))\n"
        "open('out.csv', 'w').write(f'{sum(int(r[\"n\"]) for r in rows)}\\n')\n",
    )
    attempt.run(["python3", "sum.py"], KEEP)
    attempt.same_files()
    assert (attempt.inside / "out.csv").read_text() == "3\n"


def test_two_gigabytes_of_output_are_cut(tmp_path: pathlib.Path) -> None:
    """At the library's limit on what is captured, and by a reader that has had enough."""
    import kvmlet

    began = time.monotonic()
    result = kvmlet.run("head -c 2G /dev/zero", shell=True, timeout=HANG_S)
    assert (result.reason, len(result.stdout)) == ("output", 16 << 20)
    words = [os.fspath(KVMLET), "run", "--", "head", "-c", "2G", "/dev/zero"]
    script = f"set -o pipefail; {' '.join(words)} | head -c 1000 | wc -c"
    run = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, env=ENV, capture_output=True)
    assert (run.stdout, run.returncode) == (b"1000\n", 141), run
    assert time.monotonic() - began < HANG_S


# ---- what /etc and /sys tell ----

TOOLS: dict[str, str] = tomllib.loads((pathlib.Path(__file__).parent / "tools.toml").read_text())


def test_there_are_many_tools() -> None:
    assert len(TOOLS) >= 40


def of_shell(words: list[str], script: str, where: pathlib.Path) -> tuple[int, str]:
    run = subprocess.run(
        [*words, "/bin/bash", "-c", script],
        cwd=where,
        env={**ENV, "TMPDIR": "/tmp"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        timeout=HANG_S,
    )
    return run.returncode, run.stdout


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_finds_what_it_needs(tmp_path: pathlib.Path, tool: str) -> None:
    """Its settings and tables in /etc are there, and say what they say on the host."""
    path = f"{ENV['PATH']}:/sbin:/usr/sbin"
    if shutil.which(tool, path=path) is None:
        pytest.skip(f"{tool} is not installed")
    native = of_shell(native_argv([])[:-1] or ["env"], TOOLS[tool], tmp_path)
    inside = of_shell([os.fspath(KVMLET), "run", "-q", "-m", "2g", "--"], TOOLS[tool], tmp_path)
    assert inside == native
