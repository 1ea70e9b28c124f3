"""The program of a run is found, and shows its installation and no more."""

import os
from pathlib import Path

import pytest

from kvmlet import _tree
from kvmlet._program import find, needs, resolve, search_path


def program(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("RUSTUP_HOME", "PYENV_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return home


def shown(*argv: object, cwd: str = "/usr", path: str = "/usr/bin") -> list[str]:
    words = [os.fsencode(str(word)) for word in argv]
    readable, _ = needs(words, os.fsencode(cwd), search_path({b"PATH": path.encode()}))
    return [os.fsdecode(each) for each in readable]


def test_programs_of_the_system_need_nothing(home: Path) -> None:
    assert shown("python3", "-c", "1") == []
    assert shown("/bin/sh", "-c", "true") == []
    assert shown("no-such-program") == []


def test_the_callers_path_is_searched_in_its_order(home: Path) -> None:
    first, second = home / "a", home / "b"
    wanted = program(second / "tool")
    (first / "tool").mkdir(parents=True)
    path = search_path({b"PATH": os.fsencode(f"{first}:.:{second}")})
    assert b"." not in path
    assert find(b"tool", path) == os.fsencode(wanted)
    assert find(b"./tool", path) == b"./tool"
    assert shown("tool", path=str(second)) == [str(wanted)]


def test_a_lone_file_shows_itself_only(home: Path) -> None:
    (home / "bin" / "lib").mkdir(parents=True)
    tool = program(home / "bin" / "tool")
    assert shown(tool) == [str(tool)]
    local = program(home / ".local" / "bin" / "tool")
    (home / ".local" / "lib" / "python3.11").mkdir(parents=True)
    assert shown(local) == [str(local)]


def test_a_virtual_environment_and_its_interpreter(home: Path) -> None:
    base = home / ".pyenv" / "versions" / "3.11"
    python = program(base / "bin" / "python3.11")
    program(base / "lib" / "python3.11" / "os.py")
    venv = home / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "pyvenv.cfg").write_text("")
    link = venv / "bin" / "python"
    link.symlink_to(python)
    found = shown(link)
    assert str(venv) in found
    assert str(base / "lib") in found
    assert str(base) not in found
    assert not any(Path(each) in (home, home / ".pyenv") for each in found)
    # A script of the environment, and an environment that is first in PATH.
    script = program(venv / "bin" / "black", f"#!{link}\n")
    assert set(shown(script)) >= {str(venv), str(base / "lib")}
    assert str(venv) in shown("true", path=str(venv / "bin"))


def test_tools_that_are_started_by_others(home: Path, tmp_path: Path) -> None:
    """Make and shells start tools in the caller's PATH and of the project's environment."""
    (home / ".rustup").mkdir()
    cargo = program(home / ".cargo" / "bin" / "cargo")
    version = home / ".nvm" / "versions" / "node" / "v20"
    program(version / "bin" / "node")
    (version / "lib" / "node_modules").mkdir(parents=True)
    path = f"{cargo.parent}:{version}/bin:{home}/bin:/usr/bin"
    parts = {str(cargo.parent), str(home / ".rustup"), str(version / "bin"), str(version / "lib")}
    assert set(shown("make", path=path)) == parts
    base = home / ".pyenv" / "versions" / "3.11"
    python = program(base / "bin" / "python3.11")
    program(base / "lib" / "python3.11" / "os.py")
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    environment = project / ".venv" / "bin"
    environment.mkdir(parents=True)
    (project / ".venv" / "pyvenv.cfg").write_text("")
    (environment / "python").symlink_to("python3")
    (environment / "python3").symlink_to(python)
    own = {str(python), str(base / "bin"), str(base / "lib")}
    assert set(shown("make", cwd=str(project))) == own
    argv, cwd = [b"make"], os.fsencode(project / "sub")
    assert set(needs(argv, cwd, [], os.fsencode(project))[0]) == {os.fsencode(each) for each in own}
    # A link that a program has left there shows nothing that is no Python.
    program(home / "other" / "pyvenv.cfg")
    for target in (home / "secret", home / "other" / "bin" / "python"):
        (environment / "python3").unlink()
        (environment / "python3").symlink_to(program(target))
        assert shown("make", cwd=str(project)) == []


def test_a_home_directory_is_never_shown_as_a_whole(home: Path, tmp_path: Path) -> None:
    (home / "bin").mkdir()
    (home / "pyvenv.cfg").write_text("")
    assert shown("true", path=str(home / "bin")) == []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(home)
    assert str(home) not in shown("true", path=str(elsewhere / "bin"))
    tool = program(home / "bin" / "tool")
    assert shown(elsewhere / "bin" / "tool") == [str(elsewhere), str(tool)]


def test_homes_by_their_usual_names(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("", "/nowhere"):
        monkeypatch.setenv("HOME", named)
        for directory in (b"/root", b"/home/somebody", b"/"):
            assert _tree.is_private(directory)
            assert _tree.unsuitable(directory)
            assert _tree.overlay_of(directory) is None
        assert not _tree.is_private(b"/home/somebody/project")
        assert _tree.overlay_of(b"/home/somebody/project") == b"/home/somebody/project"


def test_toolchains_below_home(home: Path) -> None:
    rustup = program(home / ".cargo" / "bin" / "rustup")
    cargo = home / ".cargo" / "bin" / "cargo"
    cargo.symlink_to("rustup")
    (home / ".rustup").mkdir()
    (home / ".cargo" / "credentials.toml").write_text("secret")
    readable, variables = needs([os.fsencode(cargo)], b"/usr", [])
    assert {os.fsencode(rustup.parent), os.fsencode(home / ".rustup")} <= set(readable)
    assert os.fsencode(home / ".cargo") not in readable
    assert variables == {b"RUSTUP_HOME": os.fsencode(home / ".rustup")}
    version = home / ".nvm" / "versions" / "node" / "v20"
    node = program(version / "bin" / "node")
    (version / "lib" / "node_modules").mkdir(parents=True)
    assert set(shown(node)) == {str(node), str(version / "bin"), str(version / "lib")}


def test_the_script_of_an_interpreter_is_readable(home: Path) -> None:
    script = home / "work.py"
    script.write_text("")
    assert shown("python3", "-B", script, "-c") == [str(script)]
    assert shown("python3", "-c", script) == []
    assert shown("python3", "-m", script) == []
    assert shown("cat", script) == []
    private = home / ".ssh" / "id.py"
    private.parent.mkdir()
    private.write_text("")
    assert shown("python3", private) == []


def test_links_on_the_way_are_shown_as_links(home: Path) -> None:
    real = home / "data" / "tool"
    program(real)
    (home / "link").symlink_to("data")
    assert shown(home / "link" / "tool") == [str(home / "link"), str(real)]
    (home / "loop").symlink_to("loop")
    assert resolve(os.fsencode(home / "loop" / "x"))[0] == []
    assert shown(home / "loop" / "x") == []


def test_interpreters_that_name_each_other_end(home: Path) -> None:
    one, two = home / "one", home / "two"
    program(one, f"#!{two}\n")
    program(two, f"#!{one}\n")
    assert set(shown(one)) == {str(one), str(two)}
    assert shown(program(home / "env", "#!/usr/bin/env -S python3 -B\n")) == [str(home / "env")]
