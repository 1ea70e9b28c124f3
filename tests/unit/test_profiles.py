"""Profiles: what comes with kvmlet, printed and combined."""

from __future__ import annotations

import pathlib

import pytest

import kvmlet
from kvmlet._profiles import profile_names, profile_text
from kvmlet.cli import main
from kvmlet.policy import Policy


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_each_profile_is_a_policy_of_its_own_and_opens_no_network() -> None:
    assert profile_names() == ["build", "git", "judge", "node", "python"]
    for name in profile_names():
        policy = Policy.profile(name)
        assert not policy.net
        assert not policy.publish
        assert not policy.paths("write")
        assert Policy.from_toml(policy.to_toml()) == policy


def test_git_reads_the_callers_settings_where_there_are_any(home: pathlib.Path) -> None:
    assert Policy.profile("git") == Policy()
    (home / ".gitconfig").write_text("[user]\n")
    assert Policy.profile("git") == Policy.of(read=[home / ".gitconfig"], env={"HOME": str(home)})
    (home / ".config" / "git").mkdir(parents=True)
    both = [home / ".gitconfig", home / ".config" / "git"]
    assert Policy.profile("git").paths("read") == [str(path) for path in both]


def test_policies_and_options_win_over_profiles(
    home: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = home / "more.toml"
    file.write_text('[limits]\nmemory = "300m"\ncpu-time = "2s"\n')
    words = ["run", "--profile", "judge", "--policy", str(file), "--cpu-time", "1s"]
    assert main([*words, "--print-policy"]) == 0
    printed = Policy.from_toml(capfd.readouterr().out)
    wanted = Policy.profile("judge").replace(memory="300m", cpu_time=1)
    assert printed == wanted


def test_git_as_program_implies_its_profile(
    home: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / ".gitconfig").write_text("[user]\n")
    for program, implied in (("git", True), ("/usr/bin/git", True), ("./git", False)):
        assert main(["run", "--print-policy", program, "status"]) == 0
        printed = Policy.from_toml(capfd.readouterr().out)
        assert printed == (Policy.profile("git") if implied else Policy())


def test_profiles_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "git"]) == 0
    assert capfd.readouterr().out == profile_text("git")
    assert main(["profile"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == profile_names()
    assert all(len(line) <= 100 for line in lines)


@pytest.mark.parametrize("words", [["profile", "gti"], ["run", "--profile", "gti", "true"]])
def test_an_unknown_profile_names_the_nearest(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 125
    said = capfd.readouterr().err
    assert said.startswith("kvmlet: no profile 'gti'")
    assert "did you mean git?" in said
    assert said.count("\n") == 1


def test_a_policy_may_name_the_callers_home(home: pathlib.Path) -> None:
    policy = Policy.from_toml('read = ["~/data", "~"]\n[env]\nA = "~/b"\n')
    assert policy == Policy.of(read=[home / "data", home], env={"A": "~/b"})
    with pytest.raises(kvmlet.UsageError):
        Policy.profile("../git")
