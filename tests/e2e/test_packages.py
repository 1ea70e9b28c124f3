"""The wheel and the source that `make wheel` makes, each installed where nothing else is."""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from e2e.oracle import HW, LONG, NO_RUNTIMES, ROOT

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
    pytest.mark.skipif(not LONG, reason="compiles everything anew: tried in make test-long"),
    pytest.mark.timeout(3600),
]

WHEEL_MAX_BYTES = 8 << 20
# Beside sources of Python's: profiles, and what a guest has for C and Node.
KINDS = {".py", ".pyi", ".h", ".typed", ".so", ".toml", ".cjs"}
TRY = """
import sys, kvmlet
result = kvmlet.run(["echo", "hello"], text=True, timeout=60)
assert result.stdout == "hello\\n", result
with kvmlet.Interpreter() as py:
    assert py.run("6 * 7").value == 42
print(kvmlet.__version__, kvmlet.__file__.startswith(sys.prefix))
"""


@functools.cache
def packages() -> tuple[pathlib.Path, pathlib.Path]:
    """The wheel and the source package."""
    subprocess.run(["make", "wheel"], cwd=ROOT, check=True)
    (wheel,) = ROOT.glob("dist/kvmlet-*.whl")
    (source,) = ROOT.glob("dist/kvmlet-*.tar.gz")
    return wheel, source


def interpreters() -> list[str]:
    """Every CPython from 3.11 on that the machine has and that can make an environment."""
    places = [os.path.dirname(sys.executable), *os.environ["PATH"].split(os.pathsep)]
    places += [os.fspath(each) for each in pathlib.Path.home().glob(".pyenv/versions/3.*/bin")]
    found: dict[str, str] = {}
    asks = "import sys, ensurepip; assert sys.version_info >= (3, 11); print(sys.version)"
    for name in ("python3", *(f"python3.{minor}" for minor in range(11, 20))):
        for place in places:
            path = shutil.which(name, path=place)
            if path and "shims" not in path:
                done = subprocess.run([path, "-c", asks], capture_output=True, text=True)
                if done.returncode == 0:
                    found.setdefault(done.stdout, path)
    return list(found.values())


def tracked() -> set[str]:
    """The files of the package that are kept in the repository."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "kvmlet"]
    listed = subprocess.run(words, cwd=ROOT / "python", stdout=subprocess.PIPE, check=True)
    return set(listed.stdout.decode().split())


def try_it(package: pathlib.Path, interpreter: str, place: pathlib.Path) -> None:
    """Install `package` into a new environment, and use it there."""
    subprocess.run([interpreter, "-m", "venv", "--clear", place], check=True)
    pip = [
        os.fspath(place / "bin/python"),
        "-m",
        "pip",
        "--quiet",
        "--disable-pip-version-check",
        "install",
    ]
    # The source is compiled in the profile that the tests are compiled in already.
    env = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        "MATURIN_PEP517_ARGS": "--profile quick",
        "CARGO_TARGET_DIR": os.fspath(ROOT / "target"),
    }
    subprocess.run([*pip, package], env=env, cwd=place, check=True)
    version = package.name.split("-")[1].removesuffix(".tar.gz")
    for words, expected in (
        (["kvmlet", "run", "--", "true"], ""),
        (["kvmlet", "--version"], f"kvmlet {version}\n"),
        (["python", "-c", TRY], f"{version} True\n"),
    ):
        done = subprocess.run(
            [place / "bin" / words[0], *words[1:]],
            cwd=place,
            env=env,
            capture_output=True,
            text=True,
        )
        assert (done.returncode, done.stdout) == (0, expected), (words, done.stderr)
    doctor = subprocess.run([place / "bin/kvmlet", "doctor"], env=env, capture_output=True)
    assert doctor.returncode == 0, doctor.stdout


def test_contents_of_the_wheel(tmp_path: pathlib.Path) -> None:
    wheel, _ = packages()
    assert wheel.name.endswith("-cp311-abi3-manylinux_2_28_x86_64.whl")
    assert wheel.stat().st_size <= WHEEL_MAX_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
        metadata = next(archive.read(name) for name in names if name.endswith("/METADATA"))
        archive.extract("kvmlet/_native.abi3.so", tmp_path)
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == tracked() | {"kvmlet/_native.abi3.so"}
    assert {pathlib.PurePath(name).suffix for name in inside} == KINDS
    assert {"METADATA", "RECORD", "WHEEL", "entry_points.txt"} <= about
    assert {"licenses/LICENSE-APACHE", "licenses/LICENSE-MIT"} <= about
    assert b"\nLicense-Expression: Apache-2.0 OR MIT\n" in metadata
    assert b"\n# kvmlet\n" in metadata
    library = tmp_path / "kvmlet/_native.abi3.so"
    sections = subprocess.run(["readelf", "-SW", library], stdout=subprocess.PIPE, check=True)
    assert b".symtab" not in sections.stdout
    assert b".debug" not in sections.stdout
    content = library.read_bytes()
    # Nothing of the machine that built it: this folder, and those of cargo and of Rust.
    sysroot = subprocess.run(["rustc", "--print", "sysroot"], stdout=subprocess.PIPE, check=True)
    cargo = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")
    for place in (os.fspath(ROOT), cargo, sysroot.stdout.decode().strip()):
        assert os.fsencode(place) not in content, place


def test_contents_of_the_source() -> None:
    _, source = packages()
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        name.removeprefix("python/") for name in names if name.startswith("python/kvmlet/")
    } == tracked()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {
        "Cargo.lock",
        "Cargo.toml",
        "LICENSE-APACHE",
        "LICENSE-MIT",
        "PKG-INFO",
        "README.md",
        "crates",
        "pyproject.toml",
        "python",
    }


def test_the_wheel_in_every_python(tmp_path: pathlib.Path) -> None:
    wheel, _ = packages()
    for number, interpreter in enumerate(interpreters()):
        print(interpreter)
        try_it(wheel, interpreter, tmp_path / str(number))


def test_the_source_builds_outside_of_a_repository(tmp_path: pathlib.Path) -> None:
    _, source = packages()
    try_it(source, sys.executable, tmp_path / "environment")
