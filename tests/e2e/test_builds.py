"""Lua and SQLite, built in /tmp by the machine's own gcc, g++ and make, and then used: as natively.

Their sources are those that the crates lua-src and libsqlite3-sys have, which cargo fetches.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import LONG

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.skipif(not LONG, reason="it compiles for minutes: make test-long PART=auto"),
]

MANIFEST = """
[package]
name = "sources"
version = "0.0.0"
edition = "2021"
[dependencies]
lua-src = "547"
libsqlite3-sys = { version = "0.30", features = ["bundled"] }
"""

LUA = r"""
cat > Makefile <<'EOF'
objects := $(notdir $(patsubst %.c,%.o,$(wildcard $(SOURCE)/*.c))) main.o
VPATH := $(SOURCE)
lua: $(objects)
	$(LINK) -o $@ $^ -lm
%.o: %.c
	$(CC) -O1 -w -I$(SOURCE) -c -o $@ $<
EOF
cat > main.c <<'EOF'
#include "lua.h"
#include "lauxlib.h"
#include "lualib.h"
#include <stdio.h>
int main(int argc, char **argv) {
    lua_State *state = luaL_newstate();
    luaL_openlibs(state);
    if (argc < 2 || luaL_dofile(state, argv[1])) {
        fprintf(stderr, "%s\n", lua_tostring(state, -1));
        return 1;
    }
    lua_close(state);
    return 0;
}
EOF
cat > test.lua <<'EOF'
local t = {}
for i = 1, 2000 do t[i] = (i * 7919) % 2003 end
table.sort(t)
print(t[1], t[1000], t[2000], #t)
print(("hello world"):gsub("o", "0"), string.format("%5.2f|%q", math.pi, "a\nb"))
local co = coroutine.wrap(function() for i = 1, 3 do coroutine.yield(i) end end)
print(co(), co(), co())
print(pcall(error, "seven"), select(2, pcall(function() local x = nil; return x.y end)))
if io.popen then
    local ok, f = pcall(io.popen, "echo $((6*7)) | tr 4 5")
    print(ok, ok and f:read("a"), ok and f:close())
end
print(os.execute("exit 3"), 7 // 2, 7 % -3, 1 << 40, "10" + 5)
local sum = 0
for word in ("the quick brown fox"):gmatch("%a+") do sum = sum + #word end
print(sum, load("return 1 + 1")(), utf8.len("grüße"))
EOF
SOURCE=$(echo $SOURCES/lua-src-*/lua-5.4.*)
"""

SQLITE = r"""
cat > main.c <<'EOF'
#include "sqlite3.h"
#include <stdio.h>
static int show(void *unused, int count, char **values, char **names) {
    for (int i = 0; i < count; i++) printf("%s%s", i ? "|" : "", values[i] ? values[i] : "NULL");
    puts("");
    return 0;
}
int main(int argc, char **argv) {
    sqlite3 *base;
    char *error = NULL;
    if (sqlite3_open(argv[1], &base)) return 1;
    sqlite3_busy_timeout(base, 60000);
    for (int i = 2; i < argc; i++)
        if (sqlite3_exec(base, argv[i], show, NULL, &error)) printf("%s\n", error);
    return sqlite3_close(base);
}
EOF
echo 'sum: main.o sqlite3.o; $(LINK) -o $@ $^ -lm -lpthread -ldl' > Makefile
echo 'sqlite3.o: ; gcc -O0 -w -c $(SOURCE)/sqlite3.c' >> Makefile
echo 'main.o: main.c; $(MAIN) -w -I$(SOURCE) -c main.c' >> Makefile
make -s -j2 SOURCE=$(echo $SOURCES/libsqlite3-sys-*/sqlite3) MAIN="$MAIN" LINK="$LINK" || exit 1
./sum base.db 'create table t(a integer primary key, b text)' \
    'with recursive n(i) as (select 1 union all select i+1 from n where i<5000)
     insert into t select i, printf("%08x", i*2654435761) from n' \
    'select count(*), max(b), sum(length(b)) from t' 'create index i on t(b)' \
    'select a from t order by b limit 3' 'pragma integrity_check' 'select nonsense'
for i in 1 2 3 4; do ./sum base.db 'begin immediate; update t set b=b||"x"; commit' & done; wait
./sum base.db 'pragma journal_mode=wal' 'select count(*), min(length(b)) from t' \
    'pragma integrity_check'
"""

BUILDS = {
    "lua-gcc": LUA
    + r"""
make -s -j4 SOURCE=$SOURCE CC="gcc -DLUA_USE_POSIX" LINK=gcc && ./lua test.lua
make SOURCE=$SOURCE CC=gcc LINK=gcc
""",
    "lua-g++": LUA
    + r"""
make -s -j2 SOURCE=$SOURCE CC="g++ -x c++ -fpermissive" LINK=g++ && ./lua test.lua
""",
    "sqlite-gcc": "MAIN=gcc LINK=gcc\n" + SQLITE,
    # Its own file is C alone.
    "sqlite-g++": "MAIN='g++ -x c++' LINK=g++\n" + SQLITE,
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    place = tmp_path_factory.mktemp("sources")
    (place / "Cargo.toml").write_text(MANIFEST)
    (place / "src").mkdir()
    (place / "src" / "lib.rs").touch()
    argv = ["cargo", "vendor", "--quiet", "--versioned-dirs", "vendor"]
    subprocess.run(argv, cwd=place, check=True, stdout=subprocess.DEVNULL, timeout=300)
    return place / "vendor"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", BUILDS)
def test_builds(oracle: Oracle, sources: pathlib.Path, tmp_name: str, name: str) -> None:
    script = f"SOURCES={sources}\nrm -rf {tmp_name}; mkdir {tmp_name} && cd {tmp_name} || exit 1\n"
    script += f"{BUILDS[name]}\ncd /; rm -rf {tmp_name}; exit 0"
    oracle.compare(["bash", "-c", script], cwd=sources, options=["--memory", "2g"])
