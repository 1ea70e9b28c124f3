"""`kvmlet why` says of each path what a program meets there under the same options."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from e2e.oracle import ENV, HW, NO_RUNTIMES, command, kvmlet_argv
from kvmlet.cli import why
from kvmlet.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

# Below the directory of the test.
OWN = """
    p p/file p/new p/sub p/sub/deep p/sub/new p/sub/no/new p/.envrc p/to_data p/to_hidden p/dangling
    p/loop p/file/x p/secret p/locked p/locked/in p/locked/new p/dirlink/new p/pipe
    data data/file data/new data/none/x
    out out/file out/new out/.envrc out/.vscode/new out/.git out/.git/config out/.git/hooks
    out/.git/hooks/new out/sub/.git out/read_only out/secret out/to_hidden
    hidden hidden/file hidden/new nothing
    ro/file
"""

OTHERS = """
    / /shown /shown/new /shown/ro /shown/ro/file /shown/ro/new /shown/rw/file /shown/rw/new
    /shown/rw/.envrc /shown/over/file /shown/over/new /shown/one /scratch /scratch/new
    /tmp /tmp/new /tmp/no/new /usr /usr/bin/env /usr/new /etc /etc/passwd /etc/shadow /etc/new
    /etc/hosts /proc /proc/self/status /proc/cpuinfo /proc/new /dev /dev/null /dev/full /dev/none
    /dev/shm/new /sys/kernel /sys/devices/system/cpu/online /var /root /dev/stdin/x
"""

# Opens each of its arguments to read it, and to write or make it. In a directory it makes a file.
GUEST = """
import json, os, sys

def can(path, flags):
    try:
        os.close(os.open(path, flags | os.O_NONBLOCK, 0o600))
    except OSError:
        return False
    return True

def can_make(path):
    made = can(path, os.O_WRONLY | os.O_CREAT)
    if made:
        os.unlink(os.path.realpath(path))
    return made

answers = {}
for path in sys.argv[1:]:
    if os.path.isdir(path):
        write = can_make(path + "/NAME")
    elif os.path.exists(path):
        # A named pipe that nobody reads is no refusal.
        write = can(path, os.O_RDWR if path.endswith("pipe") else os.O_WRONLY)
    else:
        write = can_make(path)
    answers[path] = [can(path, os.O_RDONLY), write]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def room() -> Iterator[pathlib.Path]:
    """A directory outside of /tmp, which is memory for programs."""
    room = pathlib.Path(tempfile.mkdtemp(prefix="kvmlet-test-", dir="/var/tmp"))
    for directory in ("p/sub", "p/locked", "data", "out/.git/hooks", "out/.vscode", "out/sub"):
        (room / directory).mkdir(parents=True)
    for directory in ("hidden", "ro", "rw", "over"):
        (room / directory).mkdir()
    files = "p/file p/sub/deep p/secret p/locked/in data/file out/file out/.git/config"
    files += " out/read_only out/secret hidden/file ro/file rw/file over/file one"
    for file in files.split():
        (room / file).write_text("x\n")
    for link, target in (
        ("p/to_data", "../data/file"),
        ("p/to_hidden", "../hidden/file"),
        ("p/dangling", "made_through_a_link"),
        ("p/loop", "loop"),
        ("p/dirlink", "sub"),
        ("out/to_hidden", "../hidden/file"),
    ):
        (room / link).symlink_to(target)
    os.mkfifo(room / "p/pipe")
    (room / "p/secret").chmod(0)
    (room / "p/locked").chmod(0o555)
    (room / "out/secret").chmod(0)
    (room / "out/read_only").chmod(0o444)
    yield room
    (room / "p/locked").chmod(0o755)
    shutil.rmtree(room)


def options_for(room: pathlib.Path) -> list[str]:
    named = ["--read", f"{room}/data", "--write", f"{room}/out", "--tmpfs", "/scratch"]
    for words in (
        "ro:/shown/ro:ro",
        "rw:/shown/rw",
        "over:/shown/over:overlay",
        "one:/shown/one:ro",
    ):
        named += ["-v", f"{room}/{words}"]
    return named


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the runs."""
    for name in ("PATH", "HOME"):
        monkeypatch.setenv(name, ENV[name])


def answer(capfd: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    status = why.main(["--json", *words])
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert status == (0 if told["read"]["allowed"] else 1)
    return told


def test_the_same_as_a_program_meets(
    room: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"{room}/{name}" for name in OWN.split()] + OTHERS.split()
    assert len(paths) >= 70
    before = sorted(str(path) for path in room.rglob("*"))
    options = options_for(room)
    words = kvmlet_argv(["python3", "-c", GUEST, *paths], options)
    run = command(words, cwd=room / "p", env=ENV)
    assert run.status == 0, run.stderr
    met = json.loads(run.stdout)
    monkeypatch.chdir(room / "p")
    said = {}
    for path in paths:
        told = answer(capfd, [*options, path])
        said[path] = [told["read"]["allowed"], told["write"]["allowed"]]
    assert said == met
    # Both kinds of answers, or it would show little.
    for kind in (0, 1):
        counted = [value[kind] for value in met.values()]
        assert min(counted.count(True), counted.count(False)) >= 15
    # Asking makes and opens nothing for writing.
    assert sorted(str(path) for path in room.rglob("*")) == before


def test_the_option_that_is_named_allows_it(
    room: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room / "p")
    options = options_for(room)
    tried = set()
    for name in OWN.split():
        path = f"{room}/{name}"
        told = answer(capfd, [*options, path])
        for word in ("read", "write"):
            added = told[word]["option"]
            if added is None:
                continue
            given = options
            if told[word]["reason"].endswith(", instead of --read"):
                given = options[2:]
            after = answer(capfd, [*given, *shlex.split(added), path])
            # It is visible then; a path that is not there still is not.
            reason = after[word]["reason"]
            assert after[word]["allowed"] or reason in (
                "there is no such file",
                "its permissions do not allow it, or those of a directory on the way",
            ), (path, added, after)
            tried.add(added.split()[0])
    assert tried == {"--read", "--write"}


def test_words(
    room: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(room / "p")
    options = options_for(room)

    def said(*words: str) -> str:
        why.main([*options, *words])
        told = capfd.readouterr()
        assert told.err == ""
        return told.out.replace(str(room), "ROOM")

    here = "ROOM/p: the current directory, or the work tree around it"
    assert said("file") == f"file: may be read and changed, in memory ({here})\n"
    assert said("new") == f"new: not there, may be made, in memory ({here})\n"
    assert said("../data/file") == (
        "../data/file: may be read, not changed (ROOM/data: --read)\n"
        "  write: it is read-only; allow it with --write ROOM/data, instead of --read\n"
    )
    assert said("to_data").startswith("to_data -> ROOM/data/file: may be read, not changed")
    assert said(f"{room}/hidden/file") == (
        "ROOM/hidden/file: may not be read or changed (outside of what is visible)\n"
        "  read: it is not visible; allow it with --read ROOM/hidden/file\n"
        "  write: it is read-only; allow it with --write ROOM/hidden\n"
    )
    assert said("../out/.git/config") == (
        "../out/.git/config: may be read, not changed (ROOM/out: --write)\n"
        "  write: what others act on or log in with stays as it is; "
        "allow it with --write ROOM/out/.git/config\n"
    )
    assert said("/shown/rw/file") == (
        "/shown/rw/file: may be read and changed, on the host (/shown/rw: -v)\n"
    )
    assert said("/shown/ro/file").endswith(
        "  write: -v shows it to be read; allow it with -v ROOM/ro:/shown/ro:rw\n"
    )
    assert (
        said("/scratch/x") == "/scratch/x: not there, may be made, in memory (/scratch: --tmpfs)\n"
    )
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        own = f"{file.name}: not there, may be made, in memory (the memory file system)\n"
        shown = f"  read: it is not visible; allow it with --read {file.name}\n"
        assert said(file.name) == own + shown
    assert said(file.name) == own
    assert said("/usr/bin/env").splitlines()[0] == (
        "/usr/bin/env: may be read, not changed (/usr: every program has it)"
    )
    assert said("/etc/shadow").splitlines()[:2] == [
        "/etc/shadow: may not be read or changed (outside of what is visible)",
        "  read: it is not visible, and no option shows it",
    ]
    assert said("/dev/stdin").startswith("/dev/stdin: may be read")
    assert said("../hidden/new").splitlines()[1:] == [
        "  read: it is not visible, and you see no such file on the host",
        "  write: it is read-only; allow it with --write ROOM/hidden",
    ]
    assert "(ROOM/hidden/file: the program needs it to start)" in said(
        "../hidden/file", "--", "python3", "../hidden/file"
    )


def test_a_policy_file_and_addresses(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p").mkdir()
    monkeypatch.chdir(tmp_path / "p")
    policy = tmp_path / "policy.toml"
    # Its port is not opened: port 1 could be by root only.
    policy.write_text(
        'read = ["."]\nnet = ["10.0.0.0/8:5432", "*.example.com:443", "public:80"]\n'
        'publish = ["1:80"]\n'
    )
    for address, status in (
        ("10.1.2.3:5432", 0),
        ("10.1.2.3:80", 1),
        ("api.example.com:443", 0),
        ("api.example.org:443", 1),
        ("example.net:80", 0),
        ("8.8.8.8:80", 0),
        ("[2606:4700::1111]:80", 0),
        ("192.168.0.1:80", 1),
        ("127.0.0.1:80", 1),
        ("host.kvmlet.internal:80", 1),
    ):
        assert why.main(["--policy", str(policy), address]) == status, address
        first, _, second = capfd.readouterr().out.partition("\n")
        assert first.startswith(f"{address}: may {'not ' * status}be reached")
        assert ("--net" in second) == bool(status)
    with pytest.raises(UsageError, match="a b:80: neither a name nor an address"):
        why.main(["a b:80"])
    told = answer(capfd, ["--policy", str(policy), str(policy)])
    assert (told["rule"]["by"], told["write"]["allowed"]) == ("--read", False)
