"""`--learn`: what a program uses becomes the narrowest policy that would have been enough."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

from kvmlet.policy import Policy

KVMLET = [sys.executable, "-m", "kvmlet"]


@pytest.fixture
def place() -> Iterator[pathlib.Path]:
    """A directory that no sandbox shows: the host's /tmp is one that no sandbox can see."""
    path = pathlib.Path(os.path.realpath(tempfile.mkdtemp(dir="/var/tmp")))
    (path / "work").mkdir()
    yield path
    shutil.rmtree(path)


def run(place: pathlib.Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*KVMLET, "run", *words],
        cwd=place / "work",
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def learn(place: pathlib.Path, script: str, *options: str, **env: str) -> str:
    """The output of a shell's `script`; the policy is in policy.toml."""
    done = run(place, "--learn", str(place / "policy.toml"), *options, "sh", "-c", script, **env)
    assert done.stderr.startswith("kvmlet: learning: it may read all that you may"), done.stderr
    assert done.returncode == 0, done.stderr
    return done.stdout


def learned(place: pathlib.Path) -> Policy:
    return Policy.load(place / "policy.toml")


def snapshot(place: pathlib.Path) -> dict[str, bytes | None]:
    return {
        str(path): path.read_bytes() if path.is_file() else None
        for path in sorted(place.rglob("*"))
        if not path.name.startswith("policy.toml")
    }


def test_the_policy_is_enough_and_learning_again_adds_nothing(place: pathlib.Path) -> None:
    for name in ("data/a", "data/b", "data/log", "listed/one", "listed/two", "real/c"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(f"{name}\n")
    (place / "out").mkdir()
    (place / "link").symlink_to("real")
    script = f"""
        cd {place}
        cat data/a link/c
        ls listed
        echo more >> data/log
        echo new > out/new && mv out/new out/renamed
        echo here > work/here
    """
    before = snapshot(place)
    said = learn(place, script)
    assert said == "data/a\nreal/c\none\ntwo\n"
    assert snapshot(place) == before
    policy = learned(place)
    wanted = [str(place / name) for name in ("data/a", "link/c", "listed")]
    assert sorted(policy.paths("read")) == wanted
    wanted = [str(place / name) for name in ("data/log", "out")]
    assert sorted(policy.paths("write")) == wanted
    file = str(place / "policy.toml")
    done = run(place, "--policy", file, "--verbose", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, said)
    assert "denied" not in done.stderr
    assert (place / "out" / "renamed").read_text() == "new\n"
    assert (place / "data" / "log").read_text() == "data/log\nmore\n"
    text = (place / "policy.toml").read_text()
    done = run(place, "--learn", file, "sh", "-c", script)
    assert f"nothing to add to {file}" in done.stderr
    assert (place / "policy.toml").read_text() == text
    assert not (place / "policy.toml~").exists()


def test_what_is_added_leaves_what_was_there(place: pathlib.Path) -> None:
    (place / "a").write_text("a\n")
    old = f'# mine\nread = ["{place}/a"]\n\n[limits]\nmemory = "300m"\n'
    (place / "policy.toml").write_text(old)
    (place / "b").write_text("b\n")
    assert learn(place, f"cat {place}/a {place}/b", "-e", "A=1") == "a\nb\n"
    wanted = Policy.of(read=[place / "a", place / "b"], memory="300m", env={"A": "1"})
    assert learned(place) == wanted
    assert (place / "policy.toml~").read_text() == old


def test_folders_stand_for_most_of_their_files_only(place: pathlib.Path) -> None:
    for name in ("most", "few"):
        (place / name / "deep").mkdir(parents=True)
        for number in range(12):
            (place / name / "deep" / str(number)).write_text("x")
    learn(place, f"cd {place}; for n in 0 1 2 3 4 5; do cat most/deep/$n; done")
    assert learned(place).paths("read") == [str(place / "most")]
    (place / "policy.toml").unlink()
    learn(place, f"cd {place}; for n in 0 1 2 3 4; do cat few/deep/$n; done")
    wanted = [str(place / "few" / "deep" / str(number)) for number in range(5)]
    assert learned(place).paths("read") == wanted


def test_nothing_protected_is_read_or_learned(place: pathlib.Path) -> None:
    home = place / "home"
    for name in (".ssh/id", ".config/gh/hosts.yml", ".bash_history", ".aws/x", "plain"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"secret {name}\n")
    (place / "way").symlink_to("home/.ssh")
    (place / "repo" / "hooks").mkdir(parents=True)
    (place / "repo" / "objects").mkdir()
    for name in ("HEAD", "config", "hooks/post-commit"):
        (place / "repo" / name).write_text("x\n")
    before = snapshot(place)
    said = learn(
        place,
        f"""exec 2>/dev/null; cd {home}
        cat .ssh/id .config/gh/hosts.yml .bash_history .aws/x {place}/way/id /etc/shadow
        mv .config moved && cat moved/gh/hosts.yml; ls -A moved
        mv .ssh keys && cat keys/id
        mkdir t && cat t/../.ssh/id /proc/self/cwd/.ssh/id
        ln -s {home}/.ssh/id ../link; cat ../link; ls -l {place}/way
        ls -A
        cat plain
        echo evil > {place}/repo/hooks/post-commit; echo evil >> {place}/repo/config
        echo evil > .bashrc; echo evil > .ssh/authorized_keys
        true""",
        HOME=str(home),
    )
    lines = said.splitlines()
    assert lines[-1] == "secret plain"
    assert sum("secret" in line for line in lines) == 1
    assert not {".ssh", ".bash_history", ".aws", "gh"} & set(lines)
    assert snapshot(place) == before
    policy = learned(place)
    assert policy.paths("read") == [str(home / "plain")]
    assert policy.paths("write") == []
    text = (place / "policy.toml").read_text()
    assert "# Not in it: changes in" in text


def test_no_folder_is_named_with_what_is_closed_in_it(place: pathlib.Path) -> None:
    for name in (
        "data/backup/.ssh/id",
        "data/a",
        "data/.config/gh/x",
        "repo/.git/config",
        "repo/a",
    ):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("x\n")
    learn(
        place,
        f"cd {place}; ls data data/backup data/.config repo; cat data/a repo/a; echo > data/new",
    )
    policy = learned(place)
    # Settings of git are closed to be changed, and no secret.
    assert policy.paths("read") == [str(place / "repo"), str(place / "data" / "a")]
    assert policy.paths("write") == []
    text = (place / "policy.toml").read_text()
    assert f"changes in directories with protected names, as {place}/data/" in text


def test_names_that_would_forge_rules(place: pathlib.Path) -> None:
    names = ['a\nread = ["/"]\n#', 'b", "/', "c\x1b[2J", "d\\"]
    for name in names:
        (place / name.replace("/", "%")).write_text("x")
    broken = os.fsencode(place) + b"/\xff"
    with open(broken, "w") as file:
        file.write("x")
    program = "import os, sys\nfor name in sys.argv[1:]: open(name).close()"
    paths = [str(place / name.replace("/", "%")) for name in names]
    done = run(
        place,
        "--learn",
        str(place / "policy.toml"),
        "/usr/bin/python3",
        "-ISc",
        program,
        *paths,
        os.fsdecode(broken),
    )
    assert done.returncode == 0, done.stderr
    assert sorted(learned(place).paths("read")) == sorted(paths)
    assert "no UTF-8" in done.stderr
    assert "\x1b" not in done.stderr + (place / "policy.toml").read_text()


def test_addresses_are_refused_and_recorded_whatever_the_rules(place: pathlib.Path) -> None:
    program = (
        "import socket\n"
        "for at in (('192.0.2.1', 443), ('192.0.2.2', 80)):\n"
        "    try: socket.create_connection(at, 1)\n"
        "    except OSError as error: print(error.errno)\n"
    )
    file = str(place / "policy.toml")
    words = ["--learn", file, "--net", "192.0.2.1", "/usr/bin/python3", "-ISc", program]
    done = run(place, *words)
    # ENETUNREACH: as without any network.
    assert (done.returncode, done.stdout) == (0, "101\n101\n"), done.stderr
    assert learned(place).net == ("192.0.2.1", "192.0.2.2:80")
    text = (place / "policy.toml").read_text()
    assert run(place, *words).returncode == 0
    assert (place / "policy.toml").read_text() == text


def test_directories_that_programs_do_not_get_are_not_learned(place: pathlib.Path) -> None:
    home = place / "home"
    home.mkdir()
    (home / "x").write_text("x\n")
    script = f"ls {home} /var/tmp /var >/dev/null; mkdir {home}/new; echo x > /var/tmp/kvmlet-new"
    learn(place, script, HOME=str(home))
    policy = learned(place)
    assert (policy.paths("read"), policy.paths("write")) == ([], [])
    text = (place / "policy.toml").read_text()
    for said in (
        f"# Not in it: changes in your home directory: {home}\n",
        "# Not in it: changes in a directory above your home directory: /var/tmp\n",
        f"# Not in it: the names in directories that lead to too much: {home}\n",
    ):
        assert said in text, said
    assert not os.path.lexists("/var/tmp/kvmlet-new")


def test_a_limit_ends_the_run_and_what_was_used_is_written(place: pathlib.Path) -> None:
    (place / "a").write_text("a\n")
    file = str(place / "policy.toml")
    done = run(place, "--learn", file, "--timeout", "2s", "sh", "-c", f"cat {place}/a; sleep 60")
    assert done.returncode == 124
    assert learned(place) == Policy.of(read=[place / "a"], timeout=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--learn", "p.toml", "--changes", "keep"], "--learn and --changes keep"),
        (["--learn", "."], "it is no regular file"),
        (["--learn", "missing/p.toml"], "No such file or directory"),
        (["--learn", "bad.toml"], "bad.toml:1:1: a policy has no 'no'"),
    ],
)
def test_bad_input(place: pathlib.Path, options: list[str], said: str) -> None:
    (place / "work" / "bad.toml").write_text("no = 1\n")
    done = run(place, *options, "true")
    assert done.returncode == 125
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert (place / "work" / "bad.toml").read_text() == "no = 1\n"
