"""The network by rule: what may be reached is reached as natively, and nothing else is.

The machine that tests run on may have no network. Servers are this process's own, on its loopback
addresses and on the address that this machine has beside them.
"""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import threading
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, KVMLET, SCRIPTS
from e2e.peers import (
    ADDRESS,
    CALLER,
    LIMIT_S,
    PYTHON,
    denied,
    echo,
    has_address,
    python,
    received_by,
    serving,
)

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


@pytest.fixture
def web(tmp_path: pathlib.Path) -> Iterator[int]:
    """A server of files over HTTP; its port."""
    (tmp_path / "hello").write_text("hello from outside\n")
    (tmp_path / "large").write_bytes(os.urandom(3_000_000))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=os.fspath(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body[::-1])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


# ---- what is reached ----


@needs("curl")
def test_curl(web: int, tmp_path: pathlib.Path, vm: None) -> None:
    base = f"http://{CALLER}:{web}"
    script = (
        f"curl -sS {base}/hello; curl -sS {base}/large | sha256sum; "
        f"head -c 500000 /dev/zero | tr '\\0' a | curl -sS --data-binary @- {base}/ | wc -c"
    )
    words = [os.fspath(KVMLET), "run", "--net", f"{CALLER}:{web}", "--", "/bin/sh", "-c", script]
    run = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    digest = subprocess.run(["sha256sum"], input=(tmp_path / "large").read_bytes(), stdout=-1)
    expected = f"hello from outside\n{digest.stdout.decode()}500000\n"
    assert (run.stdout, run.stderr, run.returncode) == (expected, "", 0)


def test_python_urllib_and_asyncio(web: int, vm: None) -> None:
    code = (
        "import asyncio, urllib.request\n"
        f"url = 'http://{CALLER}:{web}/hello'\n"
        "print(urllib.request.urlopen(url).read())\n"
        "async def get():\n"
        f"    reader, writer = await asyncio.open_connection('{CALLER}', {web})\n"
        "    writer.write(b'GET /hello HTTP/1.0\\r\\n\\r\\n')\n"
        "    data = await reader.read()\n"
        "    writer.close()\n"
        "    await writer.wait_closed()\n"
        "    return data.split(b'\\r\\n\\r\\n')[1]\n"
        "async def main():\n"
        "    print(set(await asyncio.gather(*(get() for _ in range(8)))))\n"
        "asyncio.run(main())\n"
    )
    result = python(code, f"{CALLER}:{web}")
    said = "b'hello from outside\\n'\n{b'hello from outside\\n'}\n"
    assert (result.stdout, result.stderr, denied(result)) == (said, "", [])


@needs("node")
def test_node(web: int, vm: None) -> None:
    code = (
        f"const url = 'http://{CALLER}:{web}/hello';\n"
        "fetch(url).then(r => r.text()).then(t => { console.log(t.trim());\n"
        "  require('http').get(url, r => r.on('data', d => console.log(String(d).trim())));\n"
        "  require('dns').resolve4('" + CALLER + "', (e, a) => console.log(e || a.length));\n"
        "  require('dns').resolve4('nowhere.example', e => console.log(e.code));\n"
        "});"
    )
    result = kvmlet.run(
        ["node", "-e", code], text=True, net=[f"{CALLER}:{web}"], timeout=LIMIT_S, memory="2g"
    )
    lines = sorted(result.stdout.splitlines())
    assert lines == ["1", "ENOTFOUND", "hello from outside", "hello from outside"], result


@needs("git")
def test_git_clone(web: int, tmp_path: pathlib.Path, vm: None) -> None:
    work = tmp_path / "work"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-C", os.fspath(work)]
    work.mkdir()
    (work / "file").write_text("tracked\n")
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    bare = tmp_path / "repo.git"
    subprocess.run(["git", "clone", "-q", "--bare", work, bare], check=True)
    subprocess.run(["git", "-C", bare, "update-server-info"], check=True)
    script = f"cd /tmp && git clone -q http://{CALLER}:{web}/repo.git out && cat out/file"
    result = kvmlet.run(
        script, shell=True, text=True, net=[f"{CALLER}:{web}"], timeout=LIMIT_S, memory="1g"
    )
    assert (result.stdout, result.exit_code) == ("tracked\n", 0), result


@has_address
def test_an_address_and_its_port(vm: None) -> None:
    assert ADDRESS is not None
    with serving(echo, ADDRESS) as port, serving(echo, ADDRESS) as other:
        code = (
            "import socket\n"
            f"for port in ({port}, {other}):\n"
            "    try:\n"
            f"        with socket.create_connection(('{ADDRESS}', port), 10) as s:\n"
            "            s.sendall(b'x' * 100000)\n"
            "            s.shutdown(socket.SHUT_WR)\n"
            "            print(len(b''.join(iter(lambda: s.recv(65536), b''))))\n"
            f"            print(s.getpeername() == ('{ADDRESS}', port), s.getsockname()[0])\n"
            "    except OSError as error:\n"
            "        print(type(error).__name__)\n"
        )
        result = python(code, f"{ADDRESS}:{port}")
    assert result.stdout == "100000\nTrue 198.18.0.2\nPermissionError\n", result
    assert denied(result) == [(f"connect {ADDRESS}:{other}", "EACCES")]
    assert result.denials[0].flag == f"--net {ADDRESS}:{other}"


def test_options_and_states_of_a_connection(vm: None) -> None:
    """A program sees the same of a connection outside as of one without a VM."""

    def answer(connection: socket.socket) -> None:
        assert connection.recv(5, socket.MSG_WAITALL) == b"hello"
        connection.sendall(b"0123456789")
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    code = (
        "import errno, os, select, socket, sys, tempfile\n"
        "host, port, closed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])\n"
        "s = socket.socket()\n"
        "s.setblocking(False)\n"
        "print(errno.errorcode[s.connect_ex((host, port))])\n"
        "poll = select.poll(); poll.register(s, select.POLLOUT)\n"
        "print(poll.poll(10000)[0][1], s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))\n"
        "s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)\n"
        "try: s.recv(1)\n"
        "except BlockingIOError: print('nothing yet')\n"
        "epoll = select.epoll(); epoll.register(s, select.EPOLLIN | select.EPOLLET)\n"
        "print(s.sendmsg([b'he', b'llo']))\n"
        "print(len(epoll.poll(10)))\n"
        "s.setblocking(True)\n"
        "print(s.recv(4, socket.MSG_PEEK | socket.MSG_WAITALL))\n"
        "b = bytearray(4); print(os.readv(s.fileno(), [memoryview(b)[:1], memoryview(b)[1:]]), b)\n"
        "print(s.recv(6, socket.MSG_WAITALL), s.recv(1))\n"
        "with tempfile.TemporaryFile() as f:\n"
        "    f.write(b'z'); f.flush(); print(os.sendfile(s.fileno(), f.fileno(), 0, 1))\n"
        "s.close()\n"
        "s = socket.socket()\n"
        "print(errno.errorcode[s.connect_ex((host, closed))])\n"
        "s = socket.socket(); s.setblocking(False)\n"
        "s.connect_ex((host, closed)); poll = select.poll(); poll.register(s, select.POLLOUT)\n"
        "print(bool(poll.poll(10000)[0][1] & select.POLLERR))\n"
        "print(errno.errorcode[s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()[1]
    seen = []
    for host in ("127.0.0.1", CALLER):
        with serving(answer) as port:
            words = [PYTHON, "-c", code, host, str(port), str(closed)]
            if host == CALLER:
                rules = [f"{CALLER}:{port}", f"{CALLER}:{closed}"]
                run = kvmlet.run(words, text=True, net=rules, timeout=LIMIT_S)
                seen.append((run.stdout, run.stderr))
            else:
                native = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
                seen.append((native.stdout, native.stderr))
    assert seen[0] == seen[1]


def test_a_reset_and_a_slow_reader(vm: None) -> None:
    def abort(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    received = []

    def read_slowly(connection: socket.socket) -> None:
        threading.Event().wait(0.3)
        received.append(sum(len(data) for data in iter(lambda: connection.recv(1 << 20), b"")))

    code = (
        "import socket, sys\n"
        f"s = socket.create_connection(('{CALLER}', int(sys.argv[1])))\n"
        "s.sendall(b'x')\n"
        "try: print(s.recv(1))\n"
        "except OSError as error: print(type(error).__name__)\n"
        f"s = socket.create_connection(('{CALLER}', int(sys.argv[2])))\n"
        "s.sendall(bytes(8 << 20))\n"
    )
    with serving(abort) as first, serving(read_slowly) as second:
        words = [PYTHON, "-c", code, str(first), str(second)]
        rules = [f"{CALLER}:{first}", f"{CALLER}:{second}"]
        result = kvmlet.run(words, text=True, net=rules, timeout=LIMIT_S)
        # The program has ended without waiting for the reader.
        for _ in range(500):
            if received:
                break
            threading.Event().wait(0.02)
    assert (result.stdout, received) == ("ConnectionResetError\n", [8 << 20]), result


def test_datagrams(vm: None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]

        def run() -> None:
            for _ in range(3):
                data, peer = server.recvfrom(65536)
                server.sendto(data[::-1], peer)

        thread = threading.Thread(target=run)
        thread.start()
        code = (
            "import socket\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n"
            f"to = (socket.gethostbyname('{CALLER}'), {port})\n"
            "s.sendto(b'one', to); data, peer = s.recvfrom(99); print(data, peer == to)\n"
            "s.connect(to); s.send(b'two'); print(s.recv(99))\n"
            "s.send(bytes(9000)); print(len(s.recv(65536)))\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
            "try: s.sendto(b'x', ('8.8.8.8', 53))\n"
            "except OSError as error: print(type(error).__name__)\n"
        )
        result = python(code, f"{CALLER}:{port}")
        thread.join(10)
    said = "b'eno' True\nb'owt'\n9000\nPermissionError\n"
    assert (result.stdout, result.stderr) == (said, "")
    assert denied(result) == [("sendto 8.8.8.8:53", "EACCES")]


def test_a_connected_socket_hears_nobody_else(vm: None) -> None:
    """Datagrams of an earlier peer are lost from then on (udp(7))."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as earlier,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
    ):
        for server in (earlier, peer):
            server.bind(("127.0.0.1", 0))
            server.settimeout(LIMIT_S)
        ports = [server.getsockname()[1] for server in (earlier, peer)]

        def run() -> None:
            _, first = earlier.recvfrom(99)
            _, second = peer.recvfrom(99)
            earlier.sendto(b"stray", first)
            peer.sendto(b"meant", second)

        thread = threading.Thread(target=run)
        thread.start()
        code = (
            "import socket\n"
            "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)\n"
            f"s.sendto(b'x', ('127.0.0.54', {ports[0]}))\n"
            f"s.connect(('127.0.0.54', {ports[1]})); s.send(b'x'); print(s.recv(99))\n"
            "s.settimeout(0.3)\n"
            "try: print(s.recv(99))\n"
            "except TimeoutError: print('nothing else')\n"
        )
        result = python(code, *(f"{CALLER}:{port}" for port in ports))
        thread.join(10)
    assert result.stdout == "b'meant'\nnothing else\n", result


def test_a_guest_that_computes_gets_what_arrives(vm: None) -> None:
    """A thread waits for bytes while another one computes."""
    code = (
        "import socket, threading, time\n"
        f"s = socket.create_connection(('{CALLER}', PORT))\n"
        "def run():\n"
        "    while True: sum(range(1000))\n"
        "threading.Thread(target=run, daemon=True).start()\n"
        "for _ in range(20):\n"
        "    s.sendall(b'x'); s.recv(1)\n"
        "print('done')\n"
    )
    with serving(echo) as port:
        result = python(code.replace("PORT", str(port)), f"{CALLER}:{port}")
    assert (result.stdout, result.stderr) == ("done\n", "")


MANY = """
import errno, socket, sys
port, held = int(sys.argv[1]), []
def open_until_refused():
    while True:
        s = socket.socket()
        try: s.connect(('127.0.0.54', port))
        except OSError as error:
            s.close()
            return errno.errorcode[error.errno]
        held.append(s)
print(open_until_refused())
first = len(held)
for s in held[::2]: s.close()
held = held[1::2]
held[0].sendall(b'still there'); print(held[0].recv(99))
print(open_until_refused(), abs(len(held) - first) < 3, 20 < first < 400)
# What a datagram socket reaches takes descriptors too.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    try: print(s.sendto(b'x', ('127.0.0.54', port)))
    except OSError as error: print(errno.errorcode[error.errno])
"""


def test_connections_have_a_limit(vm: None) -> None:
    """A part of the descriptors that kvmlet may open; those that are there go on."""
    with serving(echo) as port:
        rule = f"{CALLER}:{port}"
        words = [os.fspath(KVMLET), "run", "--verbose", "--net", rule, "--", PYTHON, "-c", MANY]
        script = 'ulimit -n 400; exec "$@"'
        run = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *words, str(port)],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
    assert run.stdout.splitlines() == [
        "ENOBUFS",
        "b'still there'",
        "ENOBUFS True True",
        "ENOBUFS",
    ], run
    assert "opening a socket" in run.stderr, run
    assert run.returncode == 0


def test_idle_and_half_closed_connections_stay(vm: None) -> None:
    def answer(connection: socket.socket) -> None:
        first = connection.recv(9)
        while connection.recv(9):
            pass
        threading.Event().wait(1)
        connection.sendall(first)
        threading.Event().wait(0.5)
        connection.sendall(b", and the end")

    code = (
        "import socket, sys, time\n"
        "s = socket.create_connection(('127.0.0.54', PORT)); time.sleep(1)\n"
        "s.sendall(b'first'); s.shutdown(socket.SHUT_WR)\n"
        "print(b''.join(iter(lambda: s.recv(99), b'')).decode())\n"
    )
    with serving(answer) as port:
        result = python(code.replace("PORT", str(port)), f"{CALLER}:{port}")
    assert (result.stdout, result.stderr) == ("first, and the end\n", "")


# ---- ports of the host ----


def test_a_published_port(vm: None) -> None:
    code = (
        "import socket\n"
        "with socket.create_server(('', 8000)) as server:\n"
        "    print('ready', flush=True)\n"
        "    for _ in range(3):\n"
        "        connection, peer = server.accept()\n"
        "        data = b''.join(iter(lambda: connection.recv(65536), b''))\n"
        "        connection.sendall(data[::-1]); connection.close()\n"
        "    print(peer[0])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [os.fspath(KVMLET), "run", "-p", f"{port}:8000", "--", PYTHON, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(b"ab" * 50_000)
                client.shutdown(socket.SHUT_WR)
                data = received_by(client)
            assert data == b"ba" * 50_000
        assert run.stdout.read() == "127.0.0.1\n"
        assert run.wait(LIMIT_S) == 0


def test_nobody_listens_behind_a_published_port(vm: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [
        os.fspath(KVMLET),
        "run",
        "-p",
        f"{port}:8000",
        "--",
        "/bin/sh",
        "-c",
        "echo ready; read x",
    ]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
        # The reset may come while connect(2) returns.
        with (
            pytest.raises(ConnectionResetError),
            socket.create_connection(("127.0.0.1", port), 20) as client,
        ):
            client.recv(1)
        run.communicate("\n", timeout=LIMIT_S)


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = [os.fspath(KVMLET), "run", "-p", f"{port}:80", "--", "/bin/true"]
        run = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    assert run.returncode == 125
    assert len(run.stderr.splitlines()) == 1
    assert f"{port}:80" in run.stderr
    assert "EADDRINUSE" in run.stderr or "in use" in run.stderr


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--net", "host:0"),
        ("--net", "10.0.0.1/8"),
        ("--net", "127.0.0.1"),
        ("--net", "http://example.com"),
        ("--net", ""),
        ("--net", CALLER),
        ("-p", "80"),
        ("-p", "99999:80"),
    ],
)
def test_bad_rules(option: str, rule: str) -> None:
    words = [os.fspath(KVMLET), "run", option, rule, "--", "/bin/true"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    assert (run.returncode, run.stdout) == (125, "")
    assert len(run.stderr.splitlines()) <= 2, run.stderr
    assert rule in run.stderr


@pytest.mark.parametrize("option", ["--net", "-p"])
def test_a_rule_that_is_no_text(option: str) -> None:
    words = [os.fspath(KVMLET), "run", option, "\udcff", "--", "/bin/true"]
    run = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S)
    assert (run.returncode, run.stdout) == (125, "")
    assert "is no text" in run.stderr
    assert len(run.stderr.splitlines()) == 1


# ---- names ----


def test_names_that_no_rule_allows(vm: None) -> None:
    code = (
        "import socket\n"
        "for name in ('api.example.com', 'nowhere.example', 'localhost', 'a b', 'x' * 300):\n"
        "    try: print(socket.getaddrinfo(name, 443, socket.AF_INET)[0][4][0])\n"
        "    except (OSError, UnicodeError) as error: print(error.args[0])\n"
    )
    for rules in ([], ["other.example:443"]):
        result = python(code, *rules)
        assert result.stdout.splitlines()[:3] == ["-2", "-2", "127.0.0.1"], result
        names = [what for what, errno in denied(result) if errno == "NXDOMAIN"]
        assert names == ["resolve api.example.com", "resolve nowhere.example"]
    flags = [denial.flag for denial in result.denials if denial.kind == "address"]
    assert flags[0] == "--net api.example.com"


IN_NAMESPACE = SCRIPTS / "in_namespace.sh"
can_unshare = pytest.mark.skipif(
    os.getuid() != 0
    or shutil.which("unshare") is None
    or shutil.which("ip") is None
    or subprocess.run(["unshare", "-nm", "true"], capture_output=True).returncode != 0,
    reason="a network of its own takes root",
)


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Runs `script` beside a machine with public, private and special addresses and names."""
    words = ["unshare", "-nm", "/bin/sh", os.fspath(IN_NAMESPACE), "/bin/sh", "-c", script]
    env = {**os.environ, "KVMLET": os.fspath(KVMLET), "PYTHON": PYTHON}
    return subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, env=env)


GET = """'import sys, urllib.request
for url in sys.argv[1:]:
    try: print(urllib.request.urlopen(url, timeout=20).read().decode().strip())
    except Exception as error: print(getattr(error, "reason", error))'"""


@can_unshare
def test_names_by_the_hosts_resolver(vm: None) -> None:
    """A public address is reached by its name, a private one only by a rule for it."""
    run = in_namespace(
        f"$KVMLET run --verbose --net site.example:80 --net '*.rebind.example' -- $PYTHON -c {GET} "
        "http://site.example/ http://site.example:81/ http://private.rebind.example/ "
        "http://other.example/ http://local.rebind.example/ http://93.184.216.34/"
    )
    assert run.stdout.splitlines() == [
        "served",
        "[Errno 13] Permission denied",
        "[Errno -2] Name or service not known",
        "[Errno -2] Name or service not known",
        "[Errno -2] Name or service not known",
        "served",
    ], run
    told = [line.removeprefix("kvmlet: ") for line in run.stderr.splitlines()]
    assert "denied: connect site.example:81 (EACCES); allow it with --net site.example:81" in told
    assert (
        "denied: resolve private.rebind.example to 10.9.9.9 (NXDOMAIN); "
        "allow it with --net 10.9.9.9" in told
    )
    assert "denied: resolve other.example (NXDOMAIN); allow it with --net other.example" in told
    assert any(
        line.startswith("denied: resolve local.rebind.example to 127.0.0.1") for line in told
    )
    run = in_namespace(
        f"$KVMLET run --net 'private.rebind.example' --net 10.9.0.0/16:80 -- $PYTHON -c {GET} "
        "http://private.rebind.example/"
    )
    assert run.stdout == "served\n", run


@can_unshare
def test_the_public_internet(vm: None) -> None:
    run = in_namespace(
        "$KVMLET run --net public --net 93.184.216.34:80 -- "
        f"$PYTHON -c {GET} http://site.example/ http://10.9.9.9/ http://169.254.169.254/ "
        "http://metadata.example/ http://93.184.216.35/"
    )
    # This machine's own public addresses are reached if they are named.
    assert run.stdout.splitlines() == [
        "served",
        "[Errno 13] Permission denied",
        "[Errno 13] Permission denied",
        "[Errno -2] Name or service not known",
        "[Errno 13] Permission denied",
    ], run


LOOK_UPS = """
import socket
def look_up(name):
    try: found = sorted({each[4][0] for each in socket.getaddrinfo(name, 80)})
    except OSError as error: found = error.errno
    print(name, found)
def connect(address, port=80):
    try:
        with socket.create_connection((address, port), 20): print(address, port, 'connected')
    except OSError as error: print(address, port, type(error).__name__)
for name in ('alias', 'inner', 'chain', 'mixed', 'mapped', 'nat64', 'b\u00fccher', 'CHAIN', 'none'):
    look_up(name + '.example')
look_up('chain.example.')
connect('93.184.216.34')
for name, address in (('flips', '10.9.9.9'), ('turns', '127.0.0.54')):
    # What the name leads to changes after the first look-up.
    look_up(name + '.example')
    connect('93.184.216.34')
    look_up(name + '.example')
    connect(address)
    connect('93.184.216.34')
    # The second one is made in the same moment as the connection.
    connect(name + '.example')
"""


@can_unshare
def test_names_that_change_their_mind(vm: None) -> None:
    """Aliases, answers without time to live, and ones that change between look-up and connect."""
    server = SCRIPTS / "name_server.py"
    run = in_namespace(
        f"$PYTHON {server} >/tmp/kvmlet-names & names=$!\n"
        "until grep -q up /tmp/kvmlet-names; do sleep 0.05; done; rm /tmp/kvmlet-names\n"
        "report=$(mktemp)\n"
        "$KVMLET run --report $report --net '*.EXAMPLE.:80' --net XN--bcher-kva.example "
        f'-- $PYTHON -c "{LOOK_UPS}"; kill $names; cat $report >&2; rm $report'
    )
    far = "['93.184.216.34']"
    refused = ["10.9.9.9 80 PermissionError", "127.0.0.54 80 ConnectionRefusedError"]
    expected = [
        "alias.example -2",
        "inner.example -2",
        f"chain.example {far}",
        f"mixed.example {far}",
        "mapped.example -2",
        "nat64.example -2",
        f"b\u00fccher.example {far}",
        f"CHAIN.example {far}",
        "none.example -2",
        f"chain.example. {far}",
        "93.184.216.34 80 connected",
    ]
    for name, line in zip(("flips", "turns"), refused, strict=True):
        expected += [
            f"{name}.example {far}",
            "93.184.216.34 80 connected",
            f"{name}.example -2",
            line,
            # The address was admitted for a minute, and is the one that was looked at.
            "93.184.216.34 80 connected",
            f"{name}.example 80 gaierror",
        ]
    assert run.stdout.splitlines() == expected, run
    for told in (
        "resolve alias.example to 10.9.9.9",
        "resolve mixed.example to 169.254.169.254",
        "resolve mapped.example to 10.9.9.9",
        "resolve nat64.example to 64:ff9b::a09:909",
        "resolve flips.example to 10.9.9.9",
        "resolve turns.example to 127.0.0.1",
    ):
        assert f'"{told}"' in run.stderr, run


LOOK = """'import socket, sys
for name in sys.argv[1:]:
    try: print(socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error: print(error.errno, error.strerror)'"""


@can_unshare
def test_no_resolver_on_the_host(vm: None) -> None:
    """Nobody answers where the host asks, it does not say where, or who is there stays silent."""
    names = "site.example none.example"
    inside = f"$KVMLET run --net '*.example' -- $PYTHON -c {LOOK} {names}"
    run = in_namespace(
        f"$PYTHON -c {LOOK} {names}; {inside}\n"
        f": >/etc/resolv.conf; $PYTHON -c {LOOK} {names}; {inside}\n"
        "umount /etc/resolv.conf; mount --bind /dev/null /etc/resolv.conf\n"
        f"{inside}\n"
        # Nobody has this address, and nobody says so at once.
        "umount /etc/resolv.conf; r=$(mktemp); echo nameserver 10.9.9.200 >$r\n"
        "mount --bind $r /etc/resolv.conf\n"
        f"$KVMLET run --timeout 500ms --net '*.example' -- $PYTHON -c {LOOK} none.example\n"
        "echo $?; rm $r\n"
    )
    found = ["93.184.216.34", "-3 Temporary failure in name resolution"]
    assert run.stdout.splitlines() == [*found * 5, "124"], run
    told = [line for line in run.stderr.splitlines() if "none.example" in line]
    assert told == []
    assert len(run.stderr.splitlines()) <= 2, run


@can_unshare
def test_a_wide_rule_is_not_about_this_machine(vm: None) -> None:
    run = in_namespace(
        f"$KVMLET run --net 0.0.0.0/1 -- $PYTHON -c {GET} "
        "http://93.184.216.34/ http://93.184.216.35/ http://10.9.9.9/\n"
        f"$KVMLET run --net 93.184.216.35 -- $PYTHON -c {GET} http://93.184.216.35/"
    )
    refused = "[Errno 13] Permission denied"
    assert run.stdout.splitlines() == ["served", refused, refused, "served"], run
