"""The imports of `kvmlet run`: every module is paid for on every run."""

import ast
import os
import pathlib
import subprocess
import sys

import kvmlet

SOURCE = pathlib.Path(kvmlet.__file__).parent
TESTS = pathlib.Path(__file__).parents[1]

# The package's own modules on that path.
OWN = {
    "kvmlet",
    "kvmlet._disk",
    "kvmlet._launch",
    "kvmlet._native",
    "kvmlet._program",
    "kvmlet._refusals",
    "kvmlet._tree",
    "kvmlet._values",
    "kvmlet.cli",
    "kvmlet.cli._changes",
    "kvmlet.cli._descriptors",
    "kvmlet.cli._ends",
    "kvmlet.cli._plain",
    "kvmlet.cli._run_options",
    "kvmlet.cli._stats",
    "kvmlet.cli._text",
    "kvmlet.cli.run",
    "kvmlet.errors",
}

# The extension is stood in for by one without imports of its own.
RUN = """
import sys
sys.modules["kvmlet._native"] = native = type(sys)("kvmlet._native")
native.NativeError = type("NativeError", (Exception,), {})
class Policy:
    __init__ = lambda self, cwd, readable, overlay, writable: None
    shows = lambda self, path: True
native.Policy = Policy
native.Disk = lambda limit_bytes, directory: None
native.harden = lambda policy: ([], [])
class Outcome:
    exit_code, signal, reason, stats = 0, None, "exited", {"exits": 1}
    denials, events, changes, changes_are_cut = [], [], [], False
class Inherited:
    __init__ = lambda self, left_open, named: None
    say = lambda self, data: None
native.Inherited = Inherited
native.run = lambda argv, **rest: Outcome
import kvmlet
kvmlet._native = native
from kvmlet.cli import main
assert main(sys.argv[1:]) == 0
"""

LIST = "\nimport sys\nprint(*sorted(sys.modules))"


def modules_after(code: str, *words: str) -> set[str]:
    # -S: what `site` loads depends on the machine and would hide what we load ourselves.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code + LIST, *words],
        env={"PYTHONPATH": os.fspath(SOURCE.parent), "LANG": "en_US.UTF-8"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return set(done.stdout.split())


def test_run_imports_os_and_itself_only() -> None:
    allowed = modules_after("import os") | OWN
    words = ["run", "--timeout", "5s", "--memory", "64m", "--stats", "--", "true"]
    assert modules_after(RUN, *words) - allowed == set()


def test_nothing_is_imported_once_hardened() -> None:
    # Python's files may lie outside what a hardened process can still read.
    ending = (
        'Outcome.exit_code = 1; Outcome.denials = [("open /\\x1b\\ud800", "EACCES", "hidden", 1)]\n'
    )
    ending += 'Outcome.events = [("x", "y")]\n'
    watch = RUN.replace("import kvmlet\n", ending + "import kvmlet\n", 1).replace("== 0", "== 1")
    watch = watch.replace(
        "native.harden = lambda policy: ([], [])",
        "seen = []\nnative.harden = lambda policy: (seen.extend(sys.modules) or [], [])",
    )
    watch += "\nlate = set(sys.modules) - set(seen)\nassert not late, late"
    for stats in ("--stats", "--stats=json"):
        modules_after(watch, "run", stats, "true")


def test_the_keeper_imports_nothing_once_the_program_runs(tmp_path: pathlib.Path) -> None:
    # By then there may be modules of the program's in the current directory.
    code = """
import io, os, sys
sys.modules["kvmlet._native"] = native = type(sys)("kvmlet._native")
native.guard_of = lambda path, exists: "none"
native.makes_repository = lambda path, exists, acts: False
native.is_saved_set = lambda path: False
import kvmlet
kvmlet._native = native
from kvmlet._changes.entry import Entry
from kvmlet._changes.host_tree import HostTree
from kvmlet.cli import _keeper
mode, terminal = sys.argv[2], None
_keeper.load(mode)
if mode == "ask":
    ours, terminal = os.openpty()
    os.tcgetpgrp = lambda fd: os.getpgrp()
    os.write(ours, b"d\\ny\\n")
entries = [Entry("file", b"%d" % n, 0o644, 0, 0, number=n).line() + b".\\n" for n in range(99)]
orders = io.BytesIO(b"apply\\n" + b"".join(entries) + b"end\\n")
seen = set(sys.modules)
tree = HostTree(os.fsencode(sys.argv[1]))
_keeper._Job(mode, tree, 0, [], terminal).work(orders, os.open("/dev/null", os.O_WRONLY))
late = set(sys.modules) - seen
assert not late, late
assert len(os.listdir(sys.argv[1])) == 99
"""
    for mode in ("keep", "ask"):
        tree = tmp_path / mode
        tree.mkdir()
        modules_after(code, os.fspath(tree), mode)


def test_the_writer_imports_nothing_once_the_program_runs(tmp_path: pathlib.Path) -> None:
    code = """
import os, sys
sys.modules["kvmlet._native"] = native = type(sys)("kvmlet._native")
native.guard_of = lambda path, exists: "none"
import kvmlet
kvmlet._native = native
from kvmlet.cli import _learn, _writer
from kvmlet.policy import Policy
class Start:
    class policy:
        is_closed = staticmethod(lambda path: False)
    class base:
        shows = shows_host = staticmethod(lambda path: False)
        reach = staticmethod(lambda host, port: None)
    writable = []
os.chdir(sys.argv[1])
for name in ("link", "new"):
    os.symlink("data", name)
os.makedirs("data/deep")
open("data/a", "w").close()
here = os.getcwd()
uses = [(here + "/data/a", here + "/link/a", 1), (here + "/data/deep", "", 6)]
uses += [(here + "/data/deep/x", "", 16), (here + "/data/a", "", 9)]
denials = [("connect 192.0.2.1:80", "EX", "address", 1), ("open /x", "ENOENT", "hidden", 1)]
orders = {"report": {"a": "\\udcff"}, "learn": {"uses": uses, "denials": denials, "not_kept": 1}}
seen = set(sys.modules)
for attempt in range(2):
    learner = _learn.Learner(_writer.File("p.toml", "--learn"), Policy(), Start, [b"a"])
    null = os.open("/dev/null", os.O_WRONLY)
    assert _writer._work(orders, _writer.File("r.json", "--report"), learner, null) == 0
late = set(sys.modules) - seen
assert not late, late
assert {"p.toml", "r.json"} < set(os.listdir("."))
"""
    modules_after(code, os.fspath(tmp_path))


def test_importing_the_package_imports_nothing() -> None:
    extra = modules_after("import kvmlet") - modules_after("")
    assert extra == {"kvmlet"}


def test_the_guest_of_isolated_functions_has_its_own_side_only() -> None:
    words = (os.fspath(SOURCE / "guest" / "python"),)
    code = "import sys; sys.path.append(sys.argv[1]); import kvmlet_runner"
    own = {name for name in modules_after(code, *words) if name.startswith("kvmlet")}
    assert own == {
        "kvmlet",
        "kvmlet._isolated",
        "kvmlet._isolated.call",
        "kvmlet._isolated.codec",
        "kvmlet._isolated.exceptions",
        "kvmlet._isolated.function",
        "kvmlet._isolated.interpreter",
        "kvmlet._isolated.pieces",
        "kvmlet._isolated.registry",
        "kvmlet._isolated.request",
        "kvmlet._isolated.writer",
        "kvmlet._values",
        "kvmlet.errors",
        "kvmlet.policy",
        "kvmlet_guest",
        "kvmlet_reseed",
        "kvmlet_runner",
    }


def native_users() -> set[str]:
    users = set()
    for path in SOURCE.rglob("*.py"):
        module = ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                names.append(str(node.module))
            if "kvmlet._native" in names:
                users.add(module)
    return users


def test_who_may_use_the_extension() -> None:
    # import-linter sees Python files only, and the extension is none.
    assert native_users() == {
        "kvmlet._box_command",
        "kvmlet._box_files",
        "kvmlet._box_process",
        "kvmlet._box_watch",
        "kvmlet._connection",
        "kvmlet._changes.protected",
        "kvmlet._changes.result",
        "kvmlet.box",
        "kvmlet._disk",
        "kvmlet._extension",
        "kvmlet._launch",
        "kvmlet._process",
        "kvmlet._run",
        "kvmlet._serving",
        "kvmlet._session",
        "kvmlet._stopping",
        "kvmlet.cli._keeper",
        "kvmlet.cli._learn",
        "kvmlet.cli._names",
        "kvmlet.cli._stats",
        "kvmlet.cli._user",
        "kvmlet.cli.doctor",
        "kvmlet.cli._serve_keeper",
        "kvmlet.cli._serve_plan",
        "kvmlet.cli.run",
        "kvmlet.cli.syscalls",
        "kvmlet._offload",
        "kvmlet.cli.why",
        "kvmlet.sandbox",
        "kvmlet.server",
    }
