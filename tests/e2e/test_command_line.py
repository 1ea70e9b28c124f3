"""`kvmlet run` in the middle of other commands: pipelines, xargs, nice, timeout, strace, make."""

from __future__ import annotations

import os
import pathlib
import shlex
import shutil
import subprocess
import time

import pytest

from e2e.oracle import ENV, HANG_S, HW, LONG, NO_RUNTIMES, kvmlet_argv
from e2e.test_kills import none_is_left

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.usefixtures("vm"),
    pytest.mark.skipif(HW, reason=NO_RUNTIMES),
]

# K stands for `kvmlet run`, or for nothing; the script says the same both ways.
SCRIPTS = {
    "ten in a pipeline": "seq 400 | "
    + " | ".join(f"$K sed -u s/{n}$/x/" for n in range(9))
    + " | $K sh -c 'wc -lc; exit 3'; echo ${PIPESTATUS[@]}",
    "a pipeline whose reader goes": "$K yes | head -n 3; echo ${PIPESTATUS[@]}",
    "xargs": "seq 12 | xargs -P4 -n1 $K sh -c 'echo $(($0 * $0))' | sort -n",
    "xargs that sees a failure": "seq 4 | xargs -P4 -n1 $K sh -c 'test $0 -ne 3'; echo $?",
    "nice": "nice -n 7 $K sh -c 'echo done'; echo $?",
    "timeout": "timeout 0.5 $K sleep 60; echo $?; timeout -s KILL 0.5 $K sleep 60; echo $?",
    "strace": "strace -f -o /dev/null $K sh -c 'echo traced; exit 4'; echo $?",
    "make": 'make -s -j4 K="$K" all && cat 1 2 3 4',
    "a substitution": 'echo "$($K echo inner) $(echo x | $K cat)"; '
    "diff <($K seq 9) <(seq 9) && echo same",
    "in the background": "$K sh -c 'sleep 0.2; echo later' & $K echo sooner; wait; jobs",
    "find": "find . -name '*.txt' -exec $K wc -c {} + | sort",
    "a loop": "for n in 1 2 3; do echo $n | $K sh -c 'read a; echo $a; exit $a'; echo $?; done",
    "time": "( time -p $K true ) 2>&1 | cut -d' ' -f1",
    "env": "env -i PATH=\"$PATH\" $K sh -c 'echo ok'",
}
ALWAYS = {"timeout", "make", "a pipeline whose reader goes"}
MAKEFILE = "all: 1 2 3 4\n1 2 3 4:\n\t$(K) sh -c 'echo made $@' > $@\n"


@pytest.mark.parametrize("name", [name for name in SCRIPTS if LONG or name in ALWAYS])
def test_as_without_it(tmp_path: pathlib.Path, name: str) -> None:
    if name == "strace" and shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    said = []
    for way, words in (("native", []), ("inside", kvmlet_argv([], ["-q", "--write", "."]))):
        room = tmp_path / way
        room.mkdir()
        (room / "Makefile").write_text(MAKEFILE)
        (room / "a.txt").write_text("12345")
        (room / "b.txt").write_text("123")
        env = {**ENV, "K": shlex.join(words)}
        began = time.monotonic()
        run = subprocess.run(
            ["/bin/bash", "-c", SCRIPTS[name]],
            cwd=room,
            env=env,
            capture_output=True,
            timeout=HANG_S,
        )
        assert time.monotonic() - began < HANG_S
        none_is_left(room)
        said.append((run.stdout, run.returncode, sorted(os.listdir(room))))
    assert said[1] == said[0]
