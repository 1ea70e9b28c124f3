"""Real programs: busybox, Python, Perl, Lua, SQLite, the C compiler."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import SCRIPTS, repeated

if TYPE_CHECKING:
    from e2e.oracle import Oracle

PYTHON = "/usr/bin/python3"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


# ---- busybox ----

APPLETS = {
    "ls": ["ls", "-lR", "."],
    "ls-all": ["ls", "-lan", "dir1"],
    "find": ["find", ".", "-type", "f", "-size", "+1k", "-name", "*.txt"],
    "find-links": ["find", ".", "-type", "l", "-o", "-perm", "-100", "-type", "f"],
    "sort": ["sort", "-k2,2n", "-k1,1nr", "dir3/deep11/table.txt"],
    "sort-unique": ["sort", "-u", "-k3,3", "dir3/deep11/table.txt", "dir2/deep10/table.txt"],
    "awk": [
        "awk",
        "{ n[$3] += $2; l = l < $1 ? $1 : l } END { for (w in n) s += n[w]; print s, l, NR }",
        "dir3/deep11/table.txt",
    ],
    "awk-text": [
        "awk",
        "-F",
        "word",
        '$2 % 5 == 1 { printf "%s|%05.1f\\n", toupper($1), $2 / 3 }',
        "dir3/deep7/table.txt",
    ],
    "sha256sum": ["sha256sum", "dir0/deep8/data.bin", "dir0/deep8/table.txt", "empty"],
    "md5sum": ["md5sum", "dir2/deep10/data.bin"],
    "tar": ["tar", "-c", "-f", "-", "."],
    "gzip": ["gzip", "-c", "dir3/deep11/table.txt"],
    "grep": ["grep", "-rn", "word1[0-2]$", "dir1"],
    "sed": [
        "sed",
        "-n",
        "-e",
        "s/word\\([0-9]*\\)/<\\1>/",
        "-e",
        "10,20p",
        "dir3/deep11/table.txt",
    ],
    "cut": ["cut", "-d", " ", "-f", "2-3", "dir3/deep11/table.txt"],
    "wc": ["wc", "dir0/deep4/table.txt", "dir0/deep8/data.bin"],
    "od": ["od", "-A", "x", "-t", "x1", "dir1/deep1/data.bin"],
    "stat": ["stat", "-c", "%n %s %a %h %F %Y", "dir0", "link", "run.sh", "with space"],
    "du": ["du", "-a", "-b", "dir0"],
    "diff": ["diff", "-u", "dir0/deep4/table.txt", "dir0/deep8/table.txt"],
    "tail": ["tail", "-n", "5", "dir3/deep11/table.txt"],
    "seq": ["seq", "1", "3", "100"],
    "dd": ["dd", "if=dir2/deep10/data.bin", "bs=100", "skip=3", "count=7", "status=none"],
    "readlink": ["readlink", "-f", "link/table.txt"],
    "expr": ["expr", "7", "*", "6"],
    "false": ["false"],
    "missing": ["cat", "no-such-file"],
}
STATUSES = {"diff": 1, "false": 1, "missing": 1}


@needs("busybox")
@pytest.mark.parametrize("name", APPLETS)
def test_busybox(oracle: Oracle, work_tree: pathlib.Path, name: str) -> None:
    words = ["busybox", *APPLETS[name]]
    oracle.compare(words, cwd=work_tree, expect_status=STATUSES.get(name, 0))


@needs("busybox")
@pytest.mark.parametrize("words", [["tar", "-t", "-v", "-f", "-"], ["tar", "-x", "-O", "-f", "-"]])
def test_busybox_reads_an_archive(
    oracle: Oracle, work_tree: pathlib.Path, words: list[str]
) -> None:
    archive = subprocess.run(
        ["tar", "-c", "--owner=0", "--group=0", "."], cwd=work_tree, capture_output=True, check=True
    )
    oracle.compare(["busybox", *words], cwd=work_tree, input=archive.stdout)


@needs("busybox")
def test_busybox_unpacks_into_tmp(oracle: Oracle, work_tree: pathlib.Path, tmp_name: str) -> None:
    oracle.compare(["busybox", "cp", "-a", "-v", "dir1", tmp_name], cwd=work_tree)


@needs("busybox")
@pytest.mark.parametrize("level", ["-1", "-9"])
def test_busybox_gzip_round_trip(oracle: Oracle, work_tree: pathlib.Path, level: str) -> None:
    data = (work_tree / "dir3/deep11/table.txt").read_bytes() * 20
    packed = oracle.compare(["busybox", "gzip", level], cwd=work_tree, input=data)
    plain = oracle.compare(["busybox", "gzip", "-d"], cwd=work_tree, input=packed.stdout)
    assert plain.stdout == data


@pytest.mark.parametrize("shell", ["/bin/sh", "busybox", "/bin/bash"])
def test_shell_script(oracle: Oracle, work_tree: pathlib.Path, tmp_name: str, shell: str) -> None:
    words = ["busybox", "sh"] if shell == "busybox" else [shell]
    if shutil.which(words[0]) is None:
        pytest.skip(f"{shell} is not installed")
    script = (SCRIPTS / "use_shell.sh").read_text()
    oracle.compare([*words, "-c", script, "sh", tmp_name], cwd=work_tree, expect_status=9)


# ---- scripts with an interpreter line ----


def test_interpreter_line(oracle: Oracle, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        "#!/usr/bin/python3 -E\nimport sys\nprint(sys.argv, sys.flags.ignore_environment)\n"
    )
    script.chmod(0o755)
    oracle.compare(["./script", "a b", "c"], cwd=tmp_path)
    oracle.compare([script, "x"], cwd=tmp_path)


def test_interpreter_that_is_a_script(oracle: Oracle, tmp_path: pathlib.Path) -> None:
    (tmp_path / "first").write_text("#!/usr/bin/python3\nimport sys\nprint(sys.argv[1:])\n")
    (tmp_path / "second").write_text(f"#!{tmp_path}/first -x\n")
    for name in ("first", "second"):
        (tmp_path / name).chmod(0o755)
    oracle.compare(["./second", "word"], cwd=tmp_path)


# ---- Python ----


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("print('hello', 6 * 7)", 0),
        ("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)", 7),
        ("import sys; sys.exit('message')", 1),
        ("1 / 0", 1),
        ("import os; os.abort()", 134),
        ("import ctypes; ctypes.string_at(0)", 139),
        ("def f(n): return f(n + 1)\nf(0)", 1),
        ("import sys; print(sys.stdin.read().upper())", 0),
        ("print(input() + input())", 0),
        ("import os; print(sorted(os.environ))", 0),
        ("import os; print(os.getcwd() == os.path.realpath('.'), sorted(os.listdir('.'))[:3])", 0),
        ("import sys; print(sys.version, sys.path, sys.flags)", 0),
        (
            "import locale, sys; print(sys.getfilesystemencoding(), locale.getpreferredencoding())",
            0,
        ),
        ("import pwd, grp, os; print(pwd.getpwuid(os.getuid()), grp.getgrgid(0))", 0),
        ("import ctypes.util; print(ctypes.CDLL('libm.so.6').abs(-3))", 0),
        ("import resource; print(resource.getpagesize())", 0),
        ("import random; random.seed(1); print([random.random() for _ in range(3)])", 0),
        ("import datetime; print(datetime.datetime.fromtimestamp(10**9))", 0),
        ("import this", 0),
        (
            "import asyncio.base_events, unittest, xml.etree.ElementTree; print(1)",
            0,
        ),
    ],
)
def test_python_command(oracle: Oracle, work_tree: pathlib.Path, code: str, status: int) -> None:
    oracle.compare(
        [PYTHON, "-c", code], cwd=work_tree, input="ünï\ncode\n".encode(), expect_status=status
    )


@pytest.mark.parametrize("name", ["json", "re", "zlib_hashlib", "decimal", "threads", "memory"])
def test_python_script(oracle: Oracle, name: str) -> None:
    data = b"".join(b'{"n": %d, "a": [%d]}\n' % (i, i * i) for i in range(100))
    oracle.compare([PYTHON, f"use_{name}.py"], cwd=SCRIPTS, input=data)


def test_python_signals(oracle: Oracle) -> None:
    oracle.compare([PYTHON, "use_signals.py"], cwd=SCRIPTS, expect_status=143)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_python_sqlite3(oracle: Oracle, tmp_name: str, where: str) -> None:
    path = ":memory:" if where == "memory" else tmp_name
    words = [PYTHON, "use_sqlite3.py", path, "5000"]
    oracle.compare(words, cwd=SCRIPTS)


def test_python_files(oracle: Oracle, tmp_name: str) -> None:
    oracle.compare([PYTHON, "use_files.py", tmp_name], cwd=SCRIPTS)


def test_python_module(oracle: Oracle, tmp_path: pathlib.Path) -> None:
    oracle.compare([PYTHON, "-m", "json.tool"], cwd=tmp_path, input=b'{"b": [1, 2], "a": null}')


def test_python_imports_from_the_current_directory(oracle: Oracle, tmp_path: pathlib.Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("from .inner import value\n")
    (tmp_path / "package" / "inner.py").write_text("value = __name__\n")
    words = [PYTHON, "-B", "-c", "import package; print(package.value)"]
    oracle.compare(words, cwd=tmp_path)


# ---- Perl, Lua, SQLite ----


@needs("perl")
def test_perl(oracle: Oracle, work_tree: pathlib.Path) -> None:
    words = ["perl", "-e", (SCRIPTS / "use_perl.pl").read_text(), "dir3/deep11/table.txt"]
    oracle.compare(words, cwd=work_tree, expect_status=3)


@needs("perl")
def test_perl_filter(oracle: Oracle, work_tree: pathlib.Path) -> None:
    data = (work_tree / "dir3/deep11/table.txt").read_bytes()
    oracle.compare(["perl", "-pe", "s/(\\d+)/$1*2/e; $_ = lc"], cwd=work_tree, input=data)


@needs("lua5.4")
def test_lua(oracle: Oracle, work_tree: pathlib.Path) -> None:
    (work_tree / "use_lua.lua").write_bytes((SCRIPTS / "use_lua.lua").read_bytes())
    words = ["lua5.4", "use_lua.lua", "dir3/deep11/table.txt"]
    oracle.compare(words, cwd=work_tree, expect_status=4)


@pytest.mark.slow
@needs("sqlite3")
@pytest.mark.parametrize("where", ["memory", "file"])
def test_sqlite3_shell(oracle: Oracle, tmp_path: pathlib.Path, tmp_name: str, where: str) -> None:
    rows = repeated(100_000, 5_000, short=20_000)
    with (tmp_path / "rows.csv").open("w") as table:
        for i in range(rows):
            table.write(f"{i},name{i * 7919 % rows},{i * 31 % 997},group{i % 13}\n")
    script = textwrap.dedent(f"""
        create table t (id integer primary key, name text unique, score integer, grp text);
        .mode csv
        .import rows.csv t
        select count(*), sum(score), min(name), max(name) from t;
        select grp, count(*), round(avg(score), 4) from t group by grp order by grp;
        select id, name from t where name in ('name1', 'name77', 'none') order by id;
        create index by_score on t (score, id);
        select a.id, b.id from t a join t b on a.score = b.score and a.id < b.id
            where a.id < 20 order by a.id, b.id limit 20;
        begin; update t set score = score + 1 where id % 3 = 0; commit;
        select sum(score) from t;
        begin; delete from t where id > 10; rollback;
        select count(*) from t;
        with recursive c(x) as (select 1 union all select x + 1 from c where x < {rows})
            select sum(x * x % 1009) from c;
        pragma integrity_check;
        select nonsense from t;
    """)
    path = ":memory:" if where == "memory" else tmp_name
    run = oracle.compare(
        ["sqlite3", path],
        cwd=tmp_path,
        input=script.encode(),
        options=["--memory", "1g"],
        expect_status=1,
    )
    assert run.stdout.startswith(b"%d," % rows)


# ---- the C compiler ----


def c_source(lines: int) -> str:
    """A C file of about `lines` lines, the same at every run."""
    script = SCRIPTS / "c_source.py"
    made = subprocess.run(
        [sys.executable, script, str(lines)], capture_output=True, text=True, check=True
    )
    return made.stdout


def compiler() -> str:
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("gcc is not installed")
    found = subprocess.run(
        [gcc, "-print-prog-name=cc1"], capture_output=True, text=True, check=True
    )
    path = found.stdout.strip()
    if not pathlib.Path(path).is_absolute():
        pytest.skip("cc1 is not installed")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("level", ["-O0", "-O2"])
def test_cc1(oracle: Oracle, tmp_path: pathlib.Path, level: str) -> None:
    (tmp_path / "big.c").write_text(c_source(repeated(5000, 300, short=1500)))
    words = [compiler(), "-quiet", level, "big.c", "-o", "-"]
    run = oracle.compare(words, cwd=tmp_path, options=["--memory", "1g"])
    assert b"main:" in run.stdout


def test_cc1_writes_its_output_to_tmp(
    oracle: Oracle, tmp_path: pathlib.Path, tmp_name: str
) -> None:
    (tmp_path / "small.c").write_text("#include <stdio.h>\n" + c_source(60))
    oracle.compare(
        [
            compiler(),
            "-quiet",
            "-imultiarch",
            "x86_64-linux-gnu",
            "small.c",
            "-o",
            f"{tmp_name}.s",
        ],
        cwd=tmp_path,
    )


def test_cc1_reports_errors(oracle: Oracle, tmp_path: pathlib.Path) -> None:
    (tmp_path / "bad.c").write_text("int main(void) { return undeclared }\n")
    oracle.compare([compiler(), "-quiet", "bad.c", "-o", "-"], cwd=tmp_path, expect_status=1)
