"""Profiles at work."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def test_git_has_the_callers_own_settings(tmp_path: pathlib.Path) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    (home / ".config" / "git").mkdir(parents=True)
    (home / ".gitconfig").write_text("[user]\n\tname = A Name\n\temail = a@name.example\n")
    (home / ".config" / "git" / "config").write_text("[alias]\n\tsay = log --format=%an\n")
    (home / ".git-credentials").write_text("https://secret\n")
    work.mkdir()
    env = {**os.environ, "HOME": str(home)}
    kvmlet = [sys.executable, "-m", "kvmlet", "run", "--changes", "keep"]

    def run(*words: str) -> str:
        done = subprocess.run(
            words, cwd=work, env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    run("git", "init", "-q")
    run(*kvmlet, "git", "commit", "-q", "--allow-empty", "-m", "x")
    assert run("git", "log", "--format=%an <%ae>") == "A Name <a@name.example>\n"
    assert run(*kvmlet, "git", "say") == "A Name\n"
    seen = run(*kvmlet, "--profile", "git", "--", "sh", "-c", f"ls -A {home}")
    assert seen.split() == [".config", ".gitconfig"]
