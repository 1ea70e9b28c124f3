"""Completion and the manual page, in the shells and the formatter that read them."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import types

import pytest

from kvmlet.cli import COMMANDS, _run_options, completion, man, serve, why
from kvmlet.cli._words import DESCRIPTIONS, PARSERS, options


def test_each_command_has_its_words() -> None:
    assert tuple(PARSERS) == COMMANDS
    assert all(DESCRIPTIONS[name] for name in PARSERS)


@pytest.mark.parametrize("room", [_run_options, serve, why])
def test_options_with_a_value_are_known(room: types.ModuleType) -> None:
    """Those whose value is the next word: the command begins behind them."""
    actions = [action for action in room.parser()._actions if action.nargs is None]
    names = {name for action in actions for name in action.option_strings}
    assert names == set(room._OPTIONS_WITH_VALUE)


def completed(tmp_path: pathlib.Path, line: str) -> list[str]:
    """The words that bash offers for the last one of `line`."""
    script = tmp_path / "completion"
    script.write_text(completion.bash())
    program = f"""
        source {script}
        compopt() {{ :; }}
        COMP_LINE={line!r}
        read -r -a COMP_WORDS <<< "${{COMP_LINE//=/ = }}"
        [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _kvmlet
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_bash(tmp_path: pathlib.Path) -> None:
    (tmp_path / "data.csv").touch()
    (tmp_path / "directory").mkdir()
    assert completed(tmp_path, "kvmlet r") == ["run"]
    assert completed(tmp_path, "kvmlet run --time") == ["--timeout"]
    assert completed(tmp_path, "kvmlet run -q --calls p") == ["poll"]
    assert completed(tmp_path, "kvmlet run --calls=p") == ["poll"]
    assert completed(tmp_path, "kvmlet run --calls poll --time") == ["--timeout"]
    assert completed(tmp_path, "kvmlet run --calls=poll --time") == ["--timeout"]
    assert completed(tmp_path, "kvmlet run --read d") == ["data.csv", "directory"]
    assert completed(tmp_path, "kvmlet run -w d") == ["directory"]
    assert "data.csv" in completed(tmp_path, "kvmlet run -q d")
    assert completed(tmp_path, "kvmlet why --read directory d") == ["data.csv", "directory"]
    assert "--json" in completed(tmp_path, "kvmlet why --j")
    assert "true" in completed(tmp_path, "kvmlet run -- tru")
    assert completed(tmp_path, "kvmlet run true --time") == []
    assert completed(tmp_path, "kvmlet completion z") == ["zsh"]
    assert "--json" in completed(tmp_path, "kvmlet doctor --j")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(tmp_path: pathlib.Path, shell: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "completion"
    script.write_text({"zsh": completion.zsh, "fish": completion.fish}[shell]())
    done = subprocess.run([program, "-n", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_manual_page_has_every_option() -> None:
    page = man.page()
    for make in PARSERS.values():
        for _, found in options(make()):
            for option in found:
                assert all(name.replace("-", "\\-") in page for name in option.names)
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(
        ["groff", "-man", "-Tascii", "-ww", "-P-c"],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert "kvmlet run [options] [--] CMD ARG..." in re.sub(".\x08", "", done.stdout)


@pytest.mark.parametrize("name", PARSERS)
def test_help_comes_in_groups_of_one_screen(name: str) -> None:
    lines_max, columns_max = 24, 100
    for group in PARSERS[name]().format_help().split("\n\n"):
        lines = group.splitlines()
        assert len(lines) <= lines_max
        assert max(map(len, lines)) <= columns_max
