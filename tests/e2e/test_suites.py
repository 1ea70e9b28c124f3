"""Suites of others, natively and in a VM: each case must end alike, but for those that are listed.

`make test-long PART=suites` installs them. The lists are in `suites/`, in `cpython.toml` and
`go.toml`. A case is listed with its verdict in a VM and a reason; one that agrees again fails the
test, so that lists only shrink.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import threading
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pytest

from e2e.oracle import CALLS, ENV, KVMLET, LONG, Oracle, native_argv

pytestmark = [
    pytest.mark.usefixtures("vm"),
    pytest.mark.default_mode,
    pytest.mark.skipif(not LONG, reason="it takes half an hour: make test-long PART=suites"),
    pytest.mark.timeout(1800),
]

SUITES = pathlib.Path(__file__).parent / "suites"
PYTHON = "/usr/bin/python3"
RUN_LIMIT_S = 600
ENDS_MAX = 6
"""A module that ends early more often than that is not gone on with."""

LOST = "lost"
"""The verdict of a case that neither passed nor failed: it hung, or ended the whole program."""


VERDICTS = ("pass", "skip", "fail", "error", LOST, "none")
"""The last is that of a case which did not run at all."""


@dataclass(frozen=True)
class Pick:
    """Cases of a module: those after one, some only, all without some."""

    after: str = ""
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass
class Seen:
    """Verdicts by case, with what was said about each."""

    verdicts: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    begun: str = ""
    """The case that was under way at the end."""
    finished: bool = False

    def note(self, case: str, verdict: str, detail: str = "") -> None:
        self.verdicts[case] = verdict
        self.details[case] = detail

    def add(self, later: Seen) -> None:
        self.verdicts.update(later.verdicts)
        self.details.update(later.details)


@dataclass(frozen=True)
class Known:
    """Cases that end otherwise in a VM, all for one reason. They may be patterns as of a shell."""

    cases: tuple[str, ...]
    inside: str
    reason: str
    unsteady: bool = False
    """It depends on times, and may agree too."""


@dataclass(frozen=True)
class Module:
    """A module of a suite, as its list has it."""

    name: str
    known: tuple[Known, ...] = ()
    left_out: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    """Those that regrtest has to be asked for: "network" may be the loopback device."""

    def expected(self, cases: Collection[str]) -> dict[str, Known]:
        """The listed cases among those that were seen, and the patterns that none of them has."""
        return {
            case: known
            for known in self.known
            for pattern in known.cases
            for case in fnmatch.filter(cases, pattern) or [pattern]
        }


class Suite(Protocol):
    """The words that run some cases of a module, and the sense of what they print."""

    def words(self, pick: Pick) -> list[str]: ...

    def read(self, output: str) -> Seen: ...


def modules_of(name: str) -> dict[str, Module]:
    """The list of a suite: each module in the order in which it is named."""
    listed = tomllib.loads((SUITES / name).read_text())
    modules = {}
    for module, entry in listed.items():
        known = tuple(
            Known(**{**one, "cases": tuple(one["cases"])}) for one in entry.get("known", [])
        )
        assert all(one.reason and one.inside in VERDICTS for one in known), module
        left_out = tuple(case for one in entry.get("left_out", []) for case in one["cases"])
        modules[module] = Module(module, known, left_out, tuple(entry.get("resources", [])))
    return modules


# ---- running ----


def output_of(argv: list[str], cwd: pathlib.Path) -> str:
    """The output of a command until it ends, or until RUN_LIMIT_S. Nothing of it is left behind."""
    # In a file, which no process that is left behind keeps open for the reader.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=ENV,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(RUN_LIMIT_S + 30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        output.seek(0)
        return output.read().decode(errors="replace")


def run_all(
    suite: Suite, prefix: Callable[[list[str]], list[str]], pick: Pick, cwd: pathlib.Path
) -> Seen:
    """Every picked case. After one that ended the program it goes on with the next one."""
    seen = Seen()
    for _ in range(ENDS_MAX):
        output = output_of(prefix(suite.words(pick)), cwd)
        part = suite.read(output)
        seen.add(part)
        if part.finished:
            seen.finished = True
            break
        tail = output[-4000:]
        if not part.begun:
            seen.details["(module)"] = tail
            break
        seen.note(part.begun, LOST, tail)
        pick = dataclasses.replace(pick, after=part.begun)
    return seen


def both(suite: Suite, pick: Pick, cwd: pathlib.Path) -> tuple[Seen, Seen]:
    """The module natively and in a VM, side by side: tests wait more than they compute."""
    mode = ["--calls", CALLS] if CALLS else []
    limits = ["--timeout", f"{RUN_LIMIT_S}s", "--memory", "2g", "--max-procs", "512", "--quiet"]
    options = [*mode, *limits]
    ended: dict[str, Seen] = {}

    def natively() -> None:
        place = cwd / "native"
        ended["native"] = run_all(suite, native_argv, pick, place)

    def inside() -> None:
        place = cwd / "inside"
        ended["inside"] = run_all(
            suite, lambda words: [str(KVMLET), "run", *options, "--", *words], pick, place
        )

    for name in ("native", "inside"):
        shutil.rmtree(cwd / name, ignore_errors=True)
        shutil.copytree(cwd / "files", cwd / name, symlinks=True)
    threads = [threading.Thread(target=each) for each in (natively, inside)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended["native"], ended["inside"]


def differing(native: Seen, inside: Seen) -> dict[str, tuple[str, str]]:
    """The cases that end otherwise, with both verdicts; "none" for one that did not run."""
    cases = {**native.verdicts, **inside.verdicts}
    both_verdicts = {
        case: (native.verdicts.get(case, "none"), inside.verdicts.get(case, "none"))
        for case in cases
    }
    return {case: two for case, two in both_verdicts.items() if two[0] != two[1]}


def compare(suite: Suite, module: Module, cwd: pathlib.Path) -> None:
    """Fails if a case ends otherwise in a VM that is not listed, or alike that is."""
    native, inside = both(suite, Pick(without=module.left_out), cwd)
    assert native.finished, native.details.get("(module)", native.begun)
    expected = module.expected({**native.verdicts, **inside.verdicts})
    found = differing(native, inside)
    again = tuple(
        case
        for case, (_, verdict) in found.items()
        if case in native.verdicts and (case not in expected or expected[case].inside != verdict)
    )
    if again and inside.finished:
        # What depends on times, or on another test, is tried once more by itself.
        second_native, second_inside = both(suite, Pick(only=again), cwd)
        native.add(second_native)
        inside.add(second_inside)
        found = differing(native, inside)
    report(module, native, inside, found)
    problems = [] if inside.finished else ["it did not come to an end"]
    for case, (outside, verdict) in found.items():
        if case not in expected or expected[case].inside != verdict:
            said = inside.details.get(case, "") or native.details.get(case, "")
            problems.append(f"{case}: {outside} natively, {verdict} in a VM\n{said}")
    for case, known in expected.items():
        if case not in inside.verdicts and case not in native.verdicts:
            problems.append(f"{case} is listed, and there is no such case")
        elif case not in found and native.verdicts[case] == "pass" and not known.unsteady:
            problems.append(f"{case} is listed, and ends as natively: take it from the list")
    if problems:
        pytest.fail(f"{module.name}:\n" + "\n".join(problems), pytrace=False)


def report(module: Module, native: Seen, inside: Seen, found: Mapping[str, object]) -> None:
    """Prints the counts, for `pytest -rP`."""
    counts = {
        verdict: list(inside.verdicts.values()).count(verdict)
        for verdict in sorted(set(inside.verdicts.values()))
    }
    print(f"{module.name}: {len(native.verdicts)} cases, in a VM {counts}, {len(found)} differ")


# ---- CPython ----

CPYTHON = modules_of("cpython.toml")


class CPython:
    """A module of Debian's libpython3-testsuite, by a runner that tells of each case."""

    def __init__(self, module: Module) -> None:
        self._module = module.name
        self._resources = module.resources

    def words(self, pick: Pick) -> list[str]:
        only = [word for case in pick.only for word in ("--only", case)]
        without = [word for case in pick.without for word in ("--without", case)]
        after = ["--after", pick.after] if pick.after else []
        resources = [word for name in self._resources for word in ("--resource", name)]
        return [PYTHON, "run_cpython.py", self._module, *resources, *after, *only, *without]

    def read(self, output: str) -> Seen:
        seen = Seen()
        for line in output.split("\n"):
            if not line.startswith("\x1e"):
                continue
            record: dict[str, Any] = json.loads(line[1:])
            if "begins" in record:
                seen.begun = record["begins"]
            elif "case" in record:
                seen.note(record["case"], record["verdict"], record["detail"])
                seen.begun = ""
            seen.finished = seen.finished or "finished" in record
        return seen


@pytest.mark.parametrize("name", CPYTHON)
def test_cpython(tmp_path: pathlib.Path, name: str) -> None:
    tests = pathlib.Path(sysconfig.get_path("stdlib", vars={"base": "/usr"})) / "test"
    if not (tests / "test_subprocess.py").exists():
        pytest.skip(f"no suite in {tests}: make test-long PART=suites installs it")
    (tmp_path / "files").mkdir()
    shutil.copy(SUITES / "run_cpython.py", tmp_path / "files")
    compare(CPython(CPYTHON[name]), CPYTHON[name], tmp_path)


# ---- Go ----

GO = modules_of("go.toml")
GO_VERDICT = re.compile(r"--- (PASS|FAIL|SKIP): (\S+) \(\d+\.\d+s\)")
GO_BEGUN = re.compile(r"=== RUN +(\S+)")


class Go:
    """The tests of a package of Go's own library, which were compiled on the host."""

    def __init__(self, program: pathlib.Path) -> None:
        listed = subprocess.run(
            [program, "-test.list", "."], cwd=program.parent, capture_output=True, text=True
        )
        self._tests = [name for name in listed.stdout.split() if name.startswith("Test")]
        self._program = f"./{program.name}"

    def words(self, pick: Pick) -> list[str]:
        tests = self._tests
        if pick.after:
            tests = tests[tests.index(top(pick.after)) + 1 :]
        if pick.only:
            wanted = {top(case) for case in pick.only}
            tests = [name for name in tests if name in wanted]
        tests = [name for name in tests if name not in pick.without]
        pattern = f"^({'|'.join(tests)})$"
        return [self._program, "-test.v", "-test.short", "-test.timeout=240s", "-test.run", pattern]

    def read(self, output: str) -> Seen:
        seen = Seen()
        words = {"PASS": "pass", "FAIL": "fail", "SKIP": "skip"}
        starts = []
        for line in output.split("\n"):
            if begun := GO_BEGUN.search(line):
                starts.append(begun[1])
            elif ended := GO_VERDICT.search(line):
                seen.note(ended[2], words[ended[1]])
        open_ones = [name for name in starts if name not in seen.verdicts]
        seen.begun = open_ones[-1] if open_ones else ""
        seen.finished = bool(re.search(r"^(PASS|FAIL|testing: warning.*)$", output, re.MULTILINE))
        if seen.begun:
            seen.begun = top(seen.begun)
            seen.finished = False
        for name, verdict in seen.verdicts.items():
            if verdict == "fail":
                seen.details[name] = said_by(output, name)
        return seen


def top(case: str) -> str:
    return case.partition("/")[0]


def said_by(output: str, case: str) -> str:
    """The last words of a test before its verdict."""
    before, _, _ = output.partition(f"--- FAIL: {case} (")
    return before.rpartition(f"=== RUN   {case}\n")[2][-2000:]


@pytest.mark.parametrize("name", GO)
def test_go(tmp_path: pathlib.Path, name: str) -> None:
    go = shutil.which("go", path=ENV["PATH"])
    if go is None:
        pytest.skip("no go here: make test-long PART=suites installs it")
    settings = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": ""}
    env = {**ENV, **settings, "GOCACHE": os.fspath(tmp_path.parent / "go-cache")}
    root = subprocess.run([go, "env", "GOROOT"], env=env, capture_output=True, text=True)
    source = pathlib.Path(root.stdout.strip()) / "src" / name
    files = tmp_path / "files"
    # Tests find what they need beside themselves, and write there.
    shutil.copytree(source, files)
    program = files / "suite.test"
    subprocess.run([go, "test", "-c", "-o", program, name], env=env, cwd=tmp_path, check=True)
    compare(Go(program), GO[name], tmp_path)


# ---- Node and Java, by programs of ours ----

PROGRAMS = {
    "child_process": ["node", "child_process.js"],
    "cluster": ["node", "cluster.js"],
    "http": ["node", "http.js"],
    "process_builder": ["java", "-Xmx256m", "-Xshare:auto", "ProcessBuilders.java"],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(oracle: Oracle, tmp_path: pathlib.Path, name: str) -> None:
    program, *words = PROGRAMS[name]
    found = shutil.which(program, path=ENV["PATH"])
    if found is None:
        pytest.skip(f"no {program} here: make test-long PART=suites installs it")
    shutil.copy(SUITES / words[-1], tmp_path)
    oracle.compare([found, *words], cwd=tmp_path, options=["--memory", "4g"])
