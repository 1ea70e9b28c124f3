"""Programs that talk: each natively and in a VM, and those that cross its border.

`make test-long PART=network` installs them. A few that are anywhere are in the default suite.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from e2e.certificates import certificate
from e2e.oracle import ENV, GUESTS, HW, LONG, ROOT, command, in_vm, kvmlet_argv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from e2e.oracle import Oracle

pytestmark = [
    pytest.mark.default_mode,
    pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only"),
    pytest.mark.timeout(900),
]

PROGRAMS = ROOT / "tests" / "e2e" / "network"
PYTHON = "/usr/bin/python3"
CALLER = "host.kvmlet.internal"
LIMIT_S = 100
RUNTIME = ("--memory", "2g")

# Waits until somebody listens on a port, which is the first word.
UNTIL = (
    "until_up() { for i in $(seq 300); do "
    "(exec 3<>/dev/tcp/127.0.0.1/$1) 2>/dev/null && return; sleep 0.1; done; echo nobody; }\n"
)


@dataclass(frozen=True)
class Program:
    """A script of bash in a copy of PROGRAMS, whose output is the same natively and in a VM."""

    script: str
    needs: tuple[str, ...] = ()
    """Programs, files with a slash in them, and modules of the system's Python behind "python:"."""
    options: tuple[str, ...] = ()
    quick: bool = False
    """In the default suite too."""
    as_user: bool = False
    """It does not run as root."""


TALK = {
    "busybox-http": Program(
        "echo served >index.html; busybox httpd -f -p 127.0.0.1:18101 -h . & server=$!\n"
        "until_up 18101; busybox wget -q -O - http://127.0.0.1:18101/index.html\n"
        "busybox wget -q -O - http://127.0.0.1:18101/none; echo $?; kill $server",
        needs=("busybox",),
        quick=True,
    ),
    "busybox-nc": Program(
        "(busybox nc -l -p 18102 -s 127.0.0.1 -e /bin/cat) & sleep 0.5\n"
        "echo 'there and back' | busybox nc -w 5 127.0.0.1 18102\n"
        "busybox nc -w 5 127.0.0.1 18102 </dev/null 2>/dev/null; echo $?",
        needs=("busybox",),
        quick=True,
    ),
    "openssl": Program(
        "openssl s_server -quiet -accept 127.0.0.1:18103 -cert server.pem -key server.key -WWW "
        ">/dev/null 2>&1 & server=$!\n"
        "until_up 18103; printf 'GET /clients.py HTTP/1.0\\r\\n\\r\\n' | "
        "openssl s_client -quiet -connect 127.0.0.1:18103 -CAfile server.pem 2>/dev/null | "
        "sha256sum; kill $server; wait $server 2>/dev/null; echo over",
        needs=("openssl",),
        quick=True,
    ),
    "socat": Program(
        "socat TCP-LISTEN:18001,bind=127.0.0.1,reuseaddr,fork EXEC:cat & tcp=$!\n"
        "socat UNIX-LISTEN:/tmp/kvmlet-socat,fork SYSTEM:'rev' & unix=$!\n"
        "socat UDP-RECVFROM:18001,bind=127.0.0.1,fork SYSTEM:'tr a-z A-Z' & udp=$!\n"
        "until_up 18001; sleep 0.5\n"
        "for i in 1 2 3; do echo stream $i | socat - TCP:127.0.0.1:18001; done\n"
        "echo backwards | socat -t5 - UNIX-CONNECT:/tmp/kvmlet-socat\n"
        "echo datagram | socat -T2 -t1 - UDP:127.0.0.1:18001\n"
        "head -c 3000000 /dev/zero | socat -t5 - TCP:127.0.0.1:18001 | sha256sum\n"
        "kill $tcp $unix $udp; rm -f /tmp/kvmlet-socat",
        needs=("socat",),
    ),
    "nc": Program(
        "nc -l -N 127.0.0.1 18002 <clients.py >/tmp/kvmlet-nc & sleep 0.5\n"
        "echo to the server | nc -N 127.0.0.1 18002 | sha256sum; wait; cat /tmp/kvmlet-nc\n"
        "nc -z 127.0.0.1 18002; echo $?; rm /tmp/kvmlet-nc",
        needs=("nc.openbsd",),
    ),
    "curl-and-wget": Program(
        "python3 -m http.server --bind 127.0.0.1 18003 2>/dev/null & plain=$!\n"
        "openssl s_server -quiet -accept 127.0.0.1:18004 -cert server.pem -key server.key -WWW "
        ">/dev/null 2>&1 & secret=$!\n"
        "python3 unix_http.py /tmp/kvmlet-http & local=$!\n"
        "until_up 18003; until_up 18004; until [ -S /tmp/kvmlet-http ]; do sleep 0.1; done\n"
        "curl -sS --retry 9 --retry-all-errors --unix-socket /tmp/kvmlet-http "
        "http://any/clients.py | sha256sum\n"
        "curl -sS http://127.0.0.1:18003/clients.py | sha256sum\n"
        "wget -q -O - http://localhost:18003/clients.py | sha256sum\n"
        "curl -sS --cacert server.pem https://127.0.0.1:18004/clients.py | sha256sum\n"
        "wget -q --ca-certificate=server.pem -O - https://127.0.0.1:18004/clients.py | sha256sum\n"
        "curl -sS https://127.0.0.1:18004/ 2>/dev/null; echo $?\n"
        "kill $plain $secret $local; wait 2>/dev/null; rm /tmp/kvmlet-http",
        needs=("curl", "wget", "openssl"),
    ),
    "nginx": Program(
        "mkdir /tmp/kvmlet-nginx; cat >/tmp/kvmlet-nginx/conf <<END\n"
        "daemon off; pid /tmp/kvmlet-nginx/pid; error_log stderr; worker_processes 2; events {}\n"
        "http { access_log off; client_body_temp_path /tmp/kvmlet-nginx/b;\n"
        "proxy_temp_path /tmp/kvmlet-nginx/p; fastcgi_temp_path /tmp/kvmlet-nginx/f;\n"
        "uwsgi_temp_path /tmp/kvmlet-nginx/u; scgi_temp_path /tmp/kvmlet-nginx/s;\n"
        "server { listen 127.0.0.1:18011; listen unix:/tmp/kvmlet-nginx/sock; root $PWD;\n"
        "location /up { proxy_pass http://unix:/tmp/kvmlet-nginx/sock:/; } } }\n"
        "END\n"
        'user=; [ $(id -u) = 0 ] && user="user root;"\n'
        '/usr/sbin/nginx -e stderr -g "$user" -c /tmp/kvmlet-nginx/conf 2>/dev/null & server=$!\n'
        "until_up 18011; curl -sS http://127.0.0.1:18011/clients.py | sha256sum\n"
        "curl -sS http://127.0.0.1:18011/up/clients.py | sha256sum\n"
        "curl -sS --unix-socket /tmp/kvmlet-nginx/sock http://any/nethttp.go | sha256sum\n"
        "curl -sS -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:18011/none 2>/dev/null\n"
        "kill -QUIT $server; wait; echo $?; rm -r /tmp/kvmlet-nginx",
        needs=("/usr/sbin/nginx", "curl"),
    ),
    "python-clients": Program("python3 clients.py urllib asyncio"),
    "requests": Program("python3 clients.py requests", needs=("python:requests",)),
    "aiohttp": Program("python3 clients.py aiohttp", needs=("python:aiohttp",)),
    "forkserver": Program("python3 forkserver.py"),
    "git-daemon": Program(
        "git='git -c user.name=a -c user.email=a@example.com -c init.defaultBranch=main'\n"
        "mkdir -p /tmp/kvmlet-git && cd /tmp/kvmlet-git && $git init -q repo && cd repo\n"
        "echo tracked >file; $git add file; $git commit -qm first; cd ..\n"
        "git daemon --base-path=. --export-all --listen=127.0.0.1 --port=18005 --reuseaddr "
        ". 2>/dev/null & server=$!\n"
        "until_up 18005; git clone -q git://127.0.0.1:18005/repo out; cat out/file\n"
        "git ls-remote git://127.0.0.1:18005/none 2>/dev/null; echo $?\n"
        "kill $server; wait 2>/dev/null; cd /; rm -r /tmp/kvmlet-git",
        needs=("git",),
    ),
    "redis": Program(
        "redis-server --port 18006 --bind 127.0.0.1 --save '' --daemonize no --dir /tmp "
        "--unixsocket /tmp/kvmlet-redis >/dev/null & server=$!\n"
        "until_up 18006; alias r='redis-cli -p 18006'; shopt -s expand_aliases\n"
        "redis-cli -p 18006 set a 1; redis-cli -p 18006 incr a\n"
        "redis-cli -s /tmp/kvmlet-redis get a\n"
        "redis-benchmark -p 18006 -q -n 2000 -c 20 -t get,set >/dev/null 2>&1; echo $?\n"
        "redis-benchmark -p 18006 -q -n 4000 -P 16 -t incr >/dev/null 2>&1; echo $?\n"
        "redis-cli -p 18006 dbsize; redis-cli -p 18006 shutdown nosave; wait; echo $?",
        needs=("redis-server", "redis-benchmark"),
    ),
    "pgbench": Program(
        # initdb would try all time zones that there are, and look at all locales.
        "export PATH=$PATH:$(echo /usr/lib/postgresql/*/bin) TZ=UTC; rm -rf /tmp/kvmlet-pg\n"
        "initdb -D /tmp/kvmlet-pg -U test -A trust -N --locale C -E UTF8 >/dev/null\n"
        "pg_ctl -s -w -D /tmp/kvmlet-pg -l /tmp/kvmlet-pg/log "
        "-o '-p 18007 -c unix_socket_directories=/tmp -c fsync=off' start\n"
        "export PGUSER=test PGPORT=18007 PGHOST=127.0.0.1; createdb bench\n"
        "pgbench -q -i -I dtgp bench 2>/dev/null >/dev/null; echo $?\n"
        "pgbench -n -c 4 -t 25 bench 2>/dev/null | grep processed\n"
        "PGHOST=/tmp psql -Atc 'select count(*) from pgbench_accounts' bench\n"
        "pg_ctl -s -w -m fast -D /tmp/kvmlet-pg stop; rm -rf /tmp/kvmlet-pg",
        needs=("/usr/lib/postgresql", "pgbench"),
        options=RUNTIME,
        as_user=True,
    ),
    "node": Program("node cluster.js", needs=("node",), options=RUNTIME),
    "go": Program("./nethttp", needs=("go",), options=RUNTIME),
    "java": Program("java Http.java", needs=("java",), options=RUNTIME),
    "pytest-xdist": Program(
        'cd /tmp; printf \'import pytest\\n@pytest.mark.parametrize("n", range(20))\\n'
        "def test_n(n):\\n    assert n != 7\\n' >test_kvmlet.py\n"
        "python3 -m pytest -q -n 2 -p no:cacheprovider test_kvmlet.py | "
        "grep -o '[0-9]* failed, [0-9]* passed'; rm -r test_kvmlet.py __pycache__",
        needs=("python:xdist",),
        options=RUNTIME,
    ),
    "pytest-xdist-sockets": Program(
        "mkdir -p /tmp/kvmlet-xdist/far /tmp/kvmlet-xdist/tests; cd /tmp/kvmlet-xdist/far\n"
        'printf \'import pytest\\n@pytest.mark.parametrize("n", range(6))\\n'
        "def test_n(n):\\n    assert n != 3\\n' >../tests/test_kvmlet.py\n"
        "server=$(python3 -c 'import execnet.script as s; print(s.__path__[0])')/socketserver.py\n"
        # It takes one connection: who only looked would be the last one.
        "python3 $server 127.0.0.1:18012 >/dev/null 2>&1 & server=$!\n"
        "until grep -q ':465C ' /proc/net/tcp; do sleep 0.1; done\n"
        "python3 -m pytest -q -p no:cacheprovider --dist load --tx socket=127.0.0.1:18012 "
        "--rsyncdir /tmp/kvmlet-xdist/tests /tmp/kvmlet-xdist/tests 2>/dev/null | "
        "grep -o '[0-9]* failed, [0-9]* passed'; kill $server; cd /; rm -r /tmp/kvmlet-xdist",
        needs=("python:xdist",),
        options=RUNTIME,
    ),
    "language-server": Program(
        "export XDG_CACHE_HOME=/tmp/kvmlet-lsp; python3 language_client.py - python3 -m pylsp\n"
        "python3 language_client.py 18008 python3 -m pylsp --tcp --host 127.0.0.1 --port 18008\n"
        "rm -rf /tmp/kvmlet-lsp",
        needs=("python:pylsp",),
        options=RUNTIME,
    ),
    # ss falls back to /proc/net here, which does not tell the backlog.
    "iproute2": Program(
        "ip -brief -4 address show dev lo; ip -o link show dev lo | cut -d' ' -f2-9\n"
        "ip address show dev lo | grep -o 'valid_lft.*'\n"
        "ip -4 route show table local dev lo | sed 's/ *$//'; ip route get 127.0.0.1 | head -1\n"
        "ip -6 route get ::1 | sed 's/ *$//'\n"
        "python3 -m http.server --bind 127.0.0.1 18009 >/dev/null 2>&1 & server=$!\n"
        "until_up 18009; ss -Htln 'sport = :18009' 2>/dev/null | tr -s ' ' | cut -d' ' -f1,4-5\n"
        "kill $server",
        needs=("ip", "ss"),
    ),
    "tmux": Program(
        "tmux='tmux -S /tmp/kvmlet-tmux -f /dev/null'\n"
        "$tmux new-session -d -x 80 -y 24 'cat'; $tmux send-keys 'typed there' Enter\n"
        "for i in $(seq 100); do "
        "[ $($tmux capture-pane -p | grep -c 'typed there') = 2 ] && break; sleep 0.1; done\n"
        "$tmux capture-pane -p | head -2; $tmux list-sessions -F '#{session_windows}'\n"
        "$tmux kill-server; echo $?",
        needs=("tmux",),
    ),
    "gpg": Program(
        "export GNUPGHOME=/tmp/kvmlet-gpg; mkdir -m 700 $GNUPGHOME\n"
        "gpg -q --batch --passphrase '' --quick-gen-key a@example.com ed25519 sign 2>/dev/null\n"
        "gpg -q --batch -o /tmp/kvmlet-gpg/sig --detach-sign clients.py; echo $?\n"
        "gpg -q --verify /tmp/kvmlet-gpg/sig clients.py 2>/dev/null; echo $?\n"
        "gpg -q --verify /tmp/kvmlet-gpg/sig forkserver.py 2>/dev/null; echo $?\n"
        "gpgconf --kill gpg-agent; rm -r $GNUPGHOME",
        needs=("gpg", "gpg-agent"),
    ),
    "ssh-agent": Program(
        "ssh-keygen -q -t ed25519 -N '' -C comment -f /tmp/kvmlet-key\n"
        "eval $(ssh-agent -s -a /tmp/kvmlet-agent) >/dev/null; ssh-add -q /tmp/kvmlet-key\n"
        "ssh-add -l | cut -d' ' -f1,3-; rm /tmp/kvmlet-key\n"
        "echo text | ssh-keygen -Y sign -f /tmp/kvmlet-key.pub -n file 2>/dev/null | head -1\n"
        "ssh-add -q -D; ssh-add -l; echo $?; ssh-agent -k >/dev/null; rm /tmp/kvmlet-key.pub",
        needs=("ssh-agent",),
    ),
    "dbus": Program(
        "dbus-run-session -- sh -c '"
        "send() { dbus-send --session --print-reply=literal --dest=org.freedesktop.DBus / $@; }; "
        "send org.freedesktop.DBus.NameHasOwner string:org.freedesktop.DBus; "
        "send org.freedesktop.DBus.RequestName string:org.example.Name uint32:0; "
        "send org.freedesktop.DBus.GetNameOwner string:org.example.None 2>&1 | cut -d: -f1' "
        "2>/dev/null",
        needs=("dbus-run-session", "dbus-send"),
    ),
}


def missing(needs: Sequence[str]) -> str:
    """Why a program cannot be run here, "" if it can."""
    for need in needs:
        kind, _, module = need.partition(":")
        if kind == "python":
            found = command([PYTHON, "-c", f"import {module}"], cwd="/").status == 0
        else:
            found = os.path.exists(need) if "/" in need else shutil.which(need) is not None
        if not found:
            return f"{need} is not installed: make test-long PART=network"
    return ""


def require(*needs: str) -> None:
    reason = missing(needs)
    if reason:
        pytest.skip(reason)


is_long = pytest.mark.skipif(not LONG, reason="it is long: make test-long PART=network")


@pytest.fixture
def programs(tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of PROGRAMS, with a certificate."""
    copy = tmp_path / "programs"
    shutil.copytree(PROGRAMS, copy)
    certificate(copy, "server")
    return copy


def rows() -> list[object]:
    marks = {True: (), False: (is_long,)}
    return [pytest.param(row, id=name, marks=marks[row.quick]) for name, row in TALK.items()]


@pytest.mark.parametrize("row", rows())
def test_as_natively(oracle: Oracle, programs: pathlib.Path, row: Program) -> None:
    require(*row.needs)
    if row.as_user and os.geteuid() == 0:
        pytest.skip("it does not run as root: make test-long PART=network as another user")
    if "go" in row.needs:
        build_go(programs / "nethttp.go")
    script = f"{UNTIL}{row.script}\n"
    run = oracle.compare(["/bin/bash", "-c", script], cwd=programs, options=list(row.options))
    assert b"nobody" not in run.stdout
    assert run.stdout


# ---- across the border ----


@is_long
def test_dig(tmp_path: pathlib.Path, vm: None) -> None:
    """Answers are ours: names that a rule allows, by UDP and by TCP, and no others."""
    require("dig")
    script = (
        f"dig +short {CALLER}; dig +short +tcp {CALLER}; dig +short {CALLER} AAAA\n"
        "dig nowhere.example | grep -o 'status: [A-Z]*'; dig +short localhost\n"
        f"dig {CALLER} MX | grep -o 'ANSWER: [0-9]*'; dig @127.0.0.53 +short {CALLER}\n"
    )
    run = in_vm(["/bin/bash", "-c", script], cwd=tmp_path, options=["--net", f"{CALLER}:80"])
    lines = run.stdout.decode().splitlines()
    address = "127.0.0.54"
    assert lines == [address, address, "status: NXDOMAIN", "127.0.0.1", "ANSWER: 0", address], run


def build_go(source: pathlib.Path) -> None:
    cache = os.fspath(GUESTS / "build" / ".go")
    settings = {"CGO_ENABLED": "0", "GO111MODULE": "off", "GOFLAGS": "", "GOCACHE": cache}
    env = {**os.environ, **settings}
    subprocess.run(["go", "build", source.name], cwd=source.parent, env=env, check=True)


@is_long
@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc", "go"])
def test_resolvers(programs: pathlib.Path, compiler: str, vm: None) -> None:
    """That of a static glibc, musl's and Go's own. Node's is in `test_network.py`."""
    require(compiler)
    if compiler == "go":
        build_go(programs / "lookup.go")
    else:
        words = [compiler, "-static", "-o", "lookup", "lookup.c"]
        subprocess.run(words, cwd=programs, check=True, capture_output=True)
    names = [CALLER, "nowhere.example", "localhost", "api.example.com"]
    run = in_vm(["./lookup", *names], cwd=programs, options=["--net", f"{CALLER}:80"])
    address = dict(line.split(" ", 1) for line in run.stdout.decode().splitlines())
    assert address == {
        CALLER: "127.0.0.54",
        "nowhere.example": "absent",
        "localhost": "127.0.0.1",
        "api.example.com": "absent",
    }, run


@is_long
@pytest.mark.parametrize("name", ["nginx", "redis"])
def test_reached_from_outside(tmp_path: pathlib.Path, name: str, vm: None) -> None:
    """A server by `-p`, asked by a program of the host."""
    conf = tmp_path / "nginx.conf"
    # As root it would serve as another user, who may not look here.
    user = "user root; " if os.geteuid() == 0 else ""
    conf.write_text(
        f"{user}daemon off; pid /tmp/pid; error_log stderr; events {{}}\n"
        "http { access_log off; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;\n"
        "fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n"
        f"server {{ listen 8000; root {tmp_path}; }} }}\n"
    )
    (tmp_path / "file").write_text("served\n" * 10_000)
    servers = {
        "nginx": ["/usr/sbin/nginx", "-e", "stderr", "-c", os.fspath(conf)],
        "redis": ["redis-server", "--port", "8000", "--save", "", "--dir", "/tmp"],
    }
    require(servers[name][0])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = kvmlet_argv(servers[name], ["-p", f"{port}:8000", *RUNTIME])
    with subprocess.Popen(
        words, cwd=tmp_path, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as run:
        try:
            ask = {"nginx": ask_nginx, "redis": ask_redis}[name]
            until = time.monotonic() + LIMIT_S
            while not ask(port):
                assert run.poll() is None, run.stderr and run.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.2)
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=LIMIT_S)


@is_long
def test_pgbench_from_outside(tmp_path: pathlib.Path, vm: None) -> None:
    """PostgreSQL in a tree of `--write`: asked from outside, and inside by its socket there."""
    require("/usr/lib/postgresql", "pgbench")
    if os.geteuid() == 0:
        pytest.skip("it does not run as root: make test-long PART=network as another user")
    tools = max(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    data = tmp_path / "data"
    env = {**ENV, "TZ": "UTC", "PGUSER": "test", "PGDATABASE": "postgres"}
    initdb = [os.fspath(tools / "initdb"), "-D", os.fspath(data), "-U", "test", "-A", "trust", "-N"]
    initdb += ["--locale", "C", "-E", "UTF8"]
    subprocess.run(initdb, check=True, capture_output=True, env=env, timeout=LIMIT_S)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": data,
        "fsync": "off",
    }
    server = " ".join(f"-c {name}={value}" for name, value in settings.items())
    script = (
        f"{tools}/postgres -D {data} -p 5432 {server} 2>/dev/null &\n"
        f"export PGUSER=test PGHOST={data}\n"
        "until psql -Atc 'select 6 * 7' postgres 2>/dev/null; do sleep 0.2; done; wait\n"
    )
    options = ["--write", os.fspath(tmp_path), "-p", f"{port}:5432", *RUNTIME]
    words = kvmlet_argv(["/bin/bash", "-c", script], options)
    with subprocess.Popen(
        words, cwd=tmp_path, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as run:
        try:
            assert run.stdout is not None
            assert run.stdout.readline() == b"42\n"
            outside = ["-h", "127.0.0.1", "-p", str(port)]
            for words in (["pgbench", "-q", "-i", "-I", "dtg"], ["pgbench", "-n", "-t", "25"]):
                done = subprocess.run(
                    [*words, *outside], env=env, capture_output=True, timeout=4 * LIMIT_S
                )
                assert done.returncode == 0, done
            assert b"processed: 25/25" in done.stdout, done
            # The name of its socket is there, and nobody of the host gets in by it.
            assert stat.S_ISSOCK((data / ".s.PGSQL.5432").lstat().st_mode)
            words = ["psql", "-h", os.fspath(data), "-c", "select 1"]
            done = subprocess.run(words, env=env, capture_output=True, timeout=LIMIT_S)
            assert b"Connection refused" in done.stderr, done
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=LIMIT_S)


SSH_OPTIONS = (
    "BatchMode=yes",
    "StrictHostKeyChecking=no",
    "UserKnownHostsFile=/dev/null",
    "LogLevel=ERROR",
)


@is_long
def test_sshd(package: pathlib.Path, vm: None) -> None:
    """An sshd inside, reached by ssh from inside and from outside, with a terminal and without."""
    require("/usr/sbin/sshd", "ssh", "ssh-keygen")
    if os.geteuid() != 0:
        pytest.skip("only root may have it run as a user with a shell")
    # One without privileges: there is no chroot(2) inside.
    user = next((each for each in pwd.getpwall() if each.pw_name == "postgres"), None)
    if user is None:
        pytest.skip("there is no user postgres: make test-long PART=network")
    place = package / "ssh"
    place.mkdir()
    for name in ("host", "key"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", os.fspath(place / name)]
        subprocess.run(words, check=True)
        os.chown(place / name, user.pw_uid, user.pw_gid)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "ListenAddress": "127.0.0.1",
        "HostKey": place / "host",
        "AuthorizedKeysFile": place / "key.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
    }
    server = " ".join(f"-o {name}={value}" for name, value in settings.items())
    client = ["-F", "/dev/null", "-i", os.fspath(place / "key")]
    client += [word for option in SSH_OPTIONS for word in ("-o", option)]
    ask = f"ssh -p 2222 {' '.join(client)} 127.0.0.1"
    script = (
        f"{UNTIL}/usr/sbin/sshd -D -e -f /dev/null -p 2222 {server} & until_up 2222\n"
        f"echo backwards | {ask} 'id -un; echo $((6 * 7)); rev; exit 3'; echo $?\n"
        f"head -c 300000 /dev/zero | {ask} sha256sum\n"
        f"{ask} -tt 'stty -echo; tty; read a; echo got $a' <<<typed\n"
        "echo over; wait\n"
    )
    options = ["-u", user.pw_name, "-p", f"{port}:2222", *RUNTIME]
    words = [PYTHON, "-m", "kvmlet", "run", *options, "--", "/bin/bash", "-c", script]
    env = {**ENV, "PYTHONPATH": os.fspath(package)}
    with (
        open(package / "said", "wb") as said,
        subprocess.Popen(words, cwd=place, env=env, stdout=subprocess.PIPE, stderr=said) as run,
    ):
        try:
            assert run.stdout is not None
            text = []
            for line in run.stdout:
                text.append(line.decode().rstrip())
                if text[-1] == "over":
                    break
            zeros = hashlib.sha256(bytes(300_000)).hexdigest()
            told = (text, (package / "said").read_text())
            assert text[:5] == [user.pw_name, "42", "sdrawkcab", "3", f"{zeros}  -"], told
            # Its home is not there, which sshd says on the terminal.
            assert text[-3].startswith("/dev/pts/"), told
            assert text[-2:] == ["got typed", "over"], told
            outside = subprocess.run(
                ["ssh", "-p", str(port), *client, f"{user.pw_name}@127.0.0.1", "cat; hostname"],
                input=b"x" * 300_000,
                capture_output=True,
                timeout=LIMIT_S,
            )
            assert outside.stdout.startswith(b"x" * 300_000), outside
            assert outside.returncode == 0, outside
        finally:
            run.send_signal(signal.SIGTERM)
            run.communicate(timeout=LIMIT_S)


def ask_nginx(port: int) -> bool:
    try:
        for _ in range(20):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/file", timeout=20) as answer:
                assert answer.read() == b"served\n" * 10_000
    except OSError:
        return False
    return True


def ask_redis(port: int) -> bool:
    # Its benchmark waits for ever for who does not answer at first.
    try:
        with socket.create_connection(("127.0.0.1", port), 20) as client:
            client.sendall(b"PING\r\n")
            if client.recv(7) != b"+PONG\r\n":
                return False
    except OSError:
        return False
    words = ["redis-benchmark", "-p", str(port), "-q", "-n", "2000", "-c", "20", "-t", "get,set"]
    run = subprocess.run(words, capture_output=True, timeout=LIMIT_S, text=True)
    return run.returncode == 0 and len(re.findall("requests per second", run.stdout)) == 2


@is_long
def test_gdb_refuses(tmp_path: pathlib.Path, vm: None) -> None:
    """A sandbox has no ptrace(2): gdb says so and ends."""
    require("gdb")
    words = ["gdb", "-nx", "-batch", "-ex", "run", "-ex", "info registers rip", "/bin/true"]
    run = in_vm(words, cwd=tmp_path, options=list(RUNTIME))
    said = (run.stdout + run.guest_stderr).decode()
    assert "trace" in said, run
    assert "The program has no registers now" in said, run
    assert any("ptrace" in line for line in run.own_lines), run


@is_long
def test_pip_installs_from_its_index(tmp_path: pathlib.Path, vm: None) -> None:
    """With the hosts of the index allowed, and nothing else."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    pip = [sys.executable, "-m", "pip"]
    shown = subprocess.run([*pip, "config", "list"], capture_output=True, text=True).stdout
    found = re.search(r"index-url='([^']+)'", shown)
    index = (found[1] if found else "https://pypi.org/simple").rstrip("/")
    authority = re.search(r"cert='([^']+)'", shown)
    request = urllib.request.Request(
        f"{index}/six/", headers={"Accept": "application/vnd.pypi.simple.v1+json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            files = json.load(answer)["files"]
    except (OSError, ValueError, KeyError) as error:
        pytest.skip(f"no index at {index}: {error}")
    rules = set()
    for url in (index, files[-1]["url"]):
        parts = urllib.parse.urlsplit(urllib.parse.urljoin(f"{index}/six/", url))
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        rules.add(f"{parts.hostname}:{port}")
        # A mirror beside this machine is reached by a rule for its address only.
        for *_, address in socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM):
            ip = str(address[0])
            rules.add(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}")
    options = [word for rule in sorted(rules) for word in ("--net", rule)]
    if authority:
        options += ["--read", authority[1], "-e", f"PIP_CERT={authority[1]}"]
    options += ["-e", f"PIP_INDEX_URL={index}", *RUNTIME]
    install = "install --quiet --no-deps --no-cache-dir --target /tmp/out six"
    code = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-m', 'pip', *{install!r}.split()], check=True)\n"
        "sys.path.insert(0, '/tmp/out'); import six; print(six.__name__)\n"
    )
    words = [sys.executable, "-c", code]
    run = command(kvmlet_argv(words, options), cwd=tmp_path)
    assert (run.stdout, run.status) == (b"six\n", 0), run
    # Without a rule it is told which one would do.
    run = command(kvmlet_argv(words, RUNTIME), cwd=tmp_path)
    host = urllib.parse.urlsplit(index).hostname
    assert run.status != 0
    assert any(f"--net {host}" in line for line in run.own_lines), run
