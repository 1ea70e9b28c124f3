"""Sources that are built: Lua's with a Makefile, and some with a script like autoconf's."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

from measure import HERE, BenchError

if TYPE_CHECKING:
    from pathlib import Path

_MANIFEST = """
[package]
name = "sources"
version = "0.0.0"
edition = "2021"
[dependencies]
lua-src = "=547.0.0"
"""

_LUA_MAKEFILE = """
objects := $(patsubst %.c,%.o,$(filter-out lua.c luac.c onelua.c ltests.c,$(wildcard *.c)))
liblua.a: $(objects)
	ar rcs $@ $^
	ranlib $@
%.o: %.c
	gcc -O2 -std=gnu99 -DLUA_COMPAT_5_3 -DLUA_USE_POSIX -w -c -o $@ $<
"""

_FETCH_S = 300


def make_lua(tree: Path) -> None:
    """Lua's source in `source`, as the crate lua-src has it, with a Makefile. Raises BenchError."""
    (tree / "Cargo.toml").write_text(_MANIFEST)
    (tree / "src").mkdir()
    (tree / "src" / "lib.rs").touch()
    argv = ["cargo", "vendor", "--quiet", "vendor"]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=_FETCH_S)
    found = sorted((tree / "vendor").glob("lua-src/lua-5.4.*"))
    if done.returncode or not found:
        raise BenchError(f"cargo vendor: {done.stderr.strip() or 'no source of Lua 5.4'}")
    found[0].rename(tree / "source")
    (tree / "source" / "Makefile").write_text(_LUA_MAKEFILE)


# ---- a configure script ----

_PARTS = HERE / "configure"
_PROGRAMS = ("gcc", "ar", "ranlib", "sed")
_HEADERS = (
    "stdio.h",
    "stdlib.h",
    "string.h",
    "unistd.h",
    "sys/types.h",
    "sys/stat.h",
    "stdint.h",
    "fcntl.h",
    "sys/time.h",
    "sys/sysctl.h",
    "locale.h",
)
_FUNCTIONS = ("memmove", "strtol", "poll", "mmap", "strlcpyx", "fork", "getaddrinfo")
_TYPES = ("int", "long", "void *")


def configure_script() -> str:
    """A script of about 500 lines that asks the machine what it has, as autoconf's do."""
    checks = {"program": _PROGRAMS, "header": _HEADERS, "function": _FUNCTIONS, "size": _TYPES}
    parts = [(_PARTS / "start.sh").read_text()]
    for kind, names in checks.items():
        check = (_PARTS / f"{kind}.sh").read_text()
        parts += [check.replace("@NAME@", name) for name in names]
    return "\n".join([*parts, (_PARTS / "end.sh").read_text()])


def make_configure(tree: Path) -> None:
    """In `source` that script and what it reads."""
    source = tree / "source"
    source.mkdir()
    (source / "configure").write_text(configure_script())
    (source / "configure").chmod(0o755)
    (source / "main.c").write_text("int main(void) { return 0; }\n")
    makefile = "CC = @CC@\nmain: @srcdir@/main.c\n\t$(CC) @CFLAGS@ -o $@ $<\n"
    (source / "Makefile.in").write_text(makefile)
    names = [f"HAVE_{name}" for name in (*_HEADERS, *_FUNCTIONS)]
    names += [f"SIZEOF_{name}" for name in _TYPES]
    words = (re.sub(r"\W", "_", name.replace("*", "p")).upper() for name in names)
    (source / "config.h.in").write_text("".join(f"#undef {word}\n" for word in words))
