"""The machine's own programs, many processes at a time: as natively."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HW

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests")

SCRIPTS = {
    "pipeline": "seq 1 1000 | grep 7 | sort -rn | head -5 | tr 7 x",
    "substitution": "diff <(seq 5) <(seq 6); cat <(echo a) <(echo b); echo x > >(cat -n); wait",
    "traps": """
        trap 'echo int' INT; kill -INT $$
        trap 'echo bye' EXIT
        (exit 3); echo $?
    """,
    "coprocess": """
        coproc cat; echo hi >&${COPROC[1]}; read -r line <&${COPROC[0]}; echo $line
        exec {COPROC[1]}>&-; wait; echo $?
    """,
    "here-documents": """
        cat <<EOF | sed s/o/0/g
foo $((6*7))
EOF
        while read -r word; do echo "[$word]"; done <<< $'one\\ntwo'
    """,
    "background": """
        sleep 0.3 & sleep 0.1 & wait; jobs
        (sleep 0.2; exit 4) & wait $!; echo $?
        timeout 0.2 sleep 5; echo $?
    """,
    "stopped-job": """
        set -m
        sleep 5 & kill -STOP %1; while [ -z "$(jobs -s)" ]; do sleep 0.01; done; jobs
        kill -CONT %1; kill %1; wait %1; echo $?
    """,
    "statuses": """
        set -o pipefail
        false | true; echo $? ${PIPESTATUS[@]}
        yes | head -1; echo ${PIPESTATUS[@]}
        /nonexistent; echo $?; /etc/passwd; echo $?
        sh -c 'kill -TERM $$'; echo $?
    """,
    "fifo-and-lock": """
        cd /tmp; mkfifo pipe; (echo through > pipe &); cat pipe
        flock lock -c 'flock -n lock true; echo $?'
        rm pipe lock
    """,
    "dash": """
        dash -c 'echo a | { read x; echo $x; }; trap "echo t" TERM; kill -TERM $$; echo $#' 1 2
    """,
    "xargs": "seq 20 | xargs -P4 -n5 sh -c 'echo $#' _ | sort",
    "find": "find /usr/share/doc/bash -type f -exec basename {} \\; | sort",
    "perl": r"""
        perl -e 'print qx(echo hi | tr h j); system(q(echo sys));
            my $p = fork; exit 7 if !$p; waitpid($p, 0); print $? >> 8, qq(\n);
            open(F, q(-|), q(seq 3)); print <F>'
    """,
    "ldd": "ldd /bin/ls | sed 's/(0x.*)//'",
}

BUILDS = {
    "archives": """
        mkdir d; seq 1000 > d/a; echo hi > d/b
        tar czf t.tgz d && tar tzf t.tgz | sort && rm -r d && tar xzf t.tgz && md5sum d/a d/b
        tar --zstd -cf t.zst d && rm -r d && tar --zstd -tf t.zst | sort && tar -xf t.zst
        md5sum d/a d/b; zstd -dc t.zst | tar xOf - d/b
    """,
    "make": r"""
        for n in 1 2 3 4 5 6; do echo "int f$n(void) { return $n; }" > f$n.c; done
        printf 'int f6(void); int main(void) { return f6(); }\n' > main.c
        objects='main.o $(patsubst %%.c,%%.o,$(sort $(wildcard f*.c)))'
        printf "prog: $objects"'\n\tgcc -o $@ $^\n' > Makefile
        make -s -j4 prog && ./prog; echo $?
        make prog
    """,
    "c++": r"""
        printf '#include <iostream>\n#include <vector>\nint main()\n' > a.cc
        printf '{ std::vector<int> v{1, 2}; std::cout << v.size() << std::endl; }\n' >> a.cc
        g++ -pipe -o a a.cc && ./a
    """,
    "git": """
        export GIT_AUTHOR_DATE=2020-01-01T00:00:00Z GIT_COMMITTER_DATE=2020-01-01T00:00:00Z
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        export GIT_CONFIG_NOSYSTEM=1
        git init -q -b main r && cd r
        echo 1 > f && git add f && git commit -qm one && git checkout -qb side
        echo 2 >> f && git commit -qam two && git checkout -q main
        echo 3 > g && git add g && git commit -qm three && git merge -q -m m side
        git log --oneline --graph; git checkout -q side && git rebase -q main && git status -s
        cd .. && git clone -q r copy && cd copy && git log --oneline
        git fsck && git branch -a
    """,
    "python": """
        cat > a.py <<'EOF'
import concurrent.futures, multiprocessing, os, subprocess
if __name__ == "__main__":
    print(subprocess.run(["sh", "-c", "echo hi; exit 3"], capture_output=True))
    print(subprocess.check_output("seq 5 | tail -2", shell=True))
    with multiprocessing.Pool(4) as pool:
        print(pool.map(abs, range(-9, 0)))
    with concurrent.futures.ProcessPoolExecutor(2) as executor:
        print(list(executor.map(abs, [-1, -2])))
    sleeper = subprocess.Popen(["sleep", "10"])
    sleeper.terminate()
    print(sleeper.wait())
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=os._exit, args=(5,))
    process.start()
    process.join()
    print(process.exitcode)
EOF
        /usr/bin/python3 a.py
    """,
}


IN_EACH_WAY = {"pipeline", "coprocess", "background", "stopped-job", "perl"}
"""Those that are repeated with calls by exit and polled."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.poll] * (name in IN_EACH_WAY)) for name in SCRIPTS],
)
def test_scripts(oracle: Oracle, guests: pathlib.Path, name: str) -> None:
    oracle.compare(["bash", "-c", f"{SCRIPTS[name]}\nexit 0"], cwd=guests)


@pytest.mark.default_mode
@pytest.mark.parametrize("name", BUILDS)
def test_builds(oracle: Oracle, guests: pathlib.Path, tmp_name: str, name: str) -> None:
    """In a directory of /tmp, which the sandbox has to itself."""
    if name == "git" and not shutil.which("git"):
        pytest.skip("git is not installed")
    script = f"rm -rf {tmp_name} && mkdir {tmp_name} && cd {tmp_name} || exit 1\n{BUILDS[name]}"
    script += f"\ncd / && rm -rf {tmp_name}; exit 0"
    oracle.compare(["bash", "-c", script], cwd=guests)
