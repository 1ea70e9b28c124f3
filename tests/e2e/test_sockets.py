"""Sockets inside of a sandbox: real programs that use them, and those that exist at a freeze."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW, SCRIPTS, command, in_vm, repeated, sized
from e2e.service import HostState, native_answers

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from e2e.oracle import Oracle

PYTHON = "/usr/bin/python3"


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


LIMIT_S = 400 if HW else 60

# ---- real programs ----


@pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")
@pytest.mark.parametrize(
    "name", ["use_unix_sockets", "use_multiprocessing", "use_tcp", "use_netlink"]
)
def test_python(oracle: Oracle, work_tree: pathlib.Path, name: str) -> None:
    script = work_tree / f"{name}.py"
    script.write_text((SCRIPTS / f"{name}.py").read_text())
    oracle.compare([PYTHON, script], cwd=work_tree)


CONFIGURED = """
import socket
def told(*args):
    try: return sorted(each[4] for each in socket.getaddrinfo(*args))
    except socket.gaierror as error: return error.errno
for host in ("127.0.0.1", "::1", None):
    for family in (socket.AF_INET, socket.AF_INET6):
        for flags in (0, socket.AI_ADDRCONFIG):
            print(host, family, flags, told(host, 80, family, socket.SOCK_STREAM, 0, flags))
"""


@pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")
def test_loopback_alone_is_no_configured_address(tmp_path: pathlib.Path) -> None:
    """AI_ADDRCONFIG finds nothing then (getaddrinfo(3)), as in a namespace that has only lo."""
    alone = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    native = command([*alone, PYTHON, "-c", CONFIGURED], cwd=tmp_path)
    if b"Operation not permitted" in native.stderr:
        pytest.skip("this user may not make a network namespace")
    assert native.status == 0, native
    assert b" 32 -2\n" in native.stdout
    inside = in_vm([PYTHON, "-c", CONFIGURED], cwd=tmp_path)
    assert (inside.status, inside.stdout) == (0, native.stdout), inside


@pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")
@needs("curl")
def test_curl(oracle: Oracle, work_tree: pathlib.Path) -> None:
    """A server, a client by address and by name, and a port where nobody listens."""
    script = (
        "python3 -m http.server --bind 127.0.0.1 8765 2>/dev/null & server=$!\n"
        "for i in $(seq 50); do\n"
        "  curl -s http://127.0.0.1:8765/ >/dev/null && break; sleep 0.1\n"
        "done\n"
        "curl -s http://127.0.0.1:8765/dir3/deep11/table.txt | sha256sum\n"
        "curl -s http://localhost:8765/dir0/deep8/data.bin | sha256sum\n"
        "curl -s -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:8765/none\n"
        "kill $server; wait $server; curl -s http://127.0.0.1:8765/; echo $?\n"
    )
    oracle.compare(["/bin/bash", "-c", script], cwd=work_tree)


@pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")
@needs("node")
def test_node(oracle: Oracle, work_tree: pathlib.Path) -> None:
    script = (
        "const http = require('http');\n"
        "const server = http.createServer((q, r) => r.end('you asked for ' + q.url));\n"
        "server.listen(0, '127.0.0.1', async () => {\n"
        "  const url = 'http://127.0.0.1:' + server.address().port;\n"
        "  const all = await Promise.all([...Array(50).keys()].map(async (n) =>\n"
        "    (await fetch(url + '/' + n)).text()));\n"
        "  console.log(all.join('\\n'));\n"
        "  server.close(); server.closeAllConnections();\n"
        "});\n"
    )
    options = ["--memory", "2g"]
    oracle.compare(["node", "-e", script], cwd=work_tree, options=options)


FULL = """
import errno, os, socket
os.chdir('/tmp')
made, said = 0, []
sockets = [socket.socket(socket.AF_UNIX) for _ in range(3)]
def bind(name):
    try: sockets.pop().bind(name)
    except OSError as error: return errno.errorcode[error.errno]
    return os.path.exists(name)
try:
    with open('file', 'wb') as file: file.write(bytes(8 << 20))
except OSError as error: said.append(errno.errorcode[error.errno])
# A name takes no block of the disk, but memory.
said.append(bind('first'))
try:
    while True:
        os.mkdir(f'{made:0250}')
        made += 1
except OSError as error: said.append(errno.errorcode[error.errno])
said.append(bind('second'))
for number in range(made // 2, made): os.rmdir(f'{number:0250}')
said.append(bind('second'))
print(*said)
"""


@pytest.mark.skipif(HW, reason="the emulated machine has no Python")
def test_a_full_disk_for_a_name(tmp_path: pathlib.Path, vm: None) -> None:
    options = ["--memory", "32m", "--disk", "4m"]
    run = in_vm([PYTHON, "-c", FULL], cwd=tmp_path, options=options)
    assert run.stdout == b"ENOSPC True ENOSPC ENOSPC True\n", run


# ---- the host ----


@pytest.mark.skipif(HW, reason="the emulated machine has no Python")
def test_a_socket_of_the_host_is_not_reached(tmp_path: pathlib.Path) -> None:
    import socket

    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(0.2)
        code = (
            "import errno, socket\n"
            "try:\n"
            "    socket.socket(socket.AF_UNIX).connect('socket')\n"
            "except OSError as error:\n"
            "    print(errno.errorcode[error.errno])\n"
        )
        run = in_vm([PYTHON, "-c", code], cwd=tmp_path)
        assert (run.stdout, run.status) == (b"EACCES\n", 0), run
        with pytest.raises(TimeoutError):
            listener.accept()


# ---- freeze, fork, reset ----

REQUESTS = [b"look", b"udp", b"events", b"receive", b"accept", b"ask", b"tcp", b"unlink", b"close"]
frozen_sockets = [pytest.mark.hw, pytest.mark.poll, pytest.mark.usefixtures("vm")]


@pytest.fixture
def snapshot(guests: pathlib.Path) -> Iterator[kvmlet.Snapshot]:
    sandbox = kvmlet.Sandbox(["./connected"], cwd=guests)
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as frozen:
        yield frozen


class TestFrozen:
    pytestmark = frozen_sockets

    def test_each_request_from_the_frozen_state(
        self, snapshot: kvmlet.Snapshot, guests: pathlib.Path
    ) -> None:
        native = {
            request: native_answers(["./connected"], cwd=guests, messages=[request])
            for request in REQUESTS
        }
        with snapshot.fork() as one, snapshot.fork() as other:
            for _ in range(sized(3, 1)):
                for request in REQUESTS:
                    for fork in (one, other):
                        assert [fork.request(request, timeout=LIMIT_S)] == native[request], request
                    one.reset()
                    other.reset()

    def test_requests_in_turn(self, snapshot: kvmlet.Snapshot, guests: pathlib.Path) -> None:
        """Without a reset between them; and again after one."""
        native = native_answers(["./connected"], cwd=guests, messages=REQUESTS)
        with snapshot.fork() as fork:
            for _ in range(sized(3, 1)):
                answers = [fork.request(request, timeout=LIMIT_S) for request in REQUESTS]
                assert answers == native
                fork.reset()

    @pytest.mark.timeout(1200)
    def test_many_requests(self, snapshot: kvmlet.Snapshot) -> None:
        """Nothing has grown, and the last one finds what the first one found."""
        rounds = repeated(10_000, 9, short=100)
        with snapshot.fork() as fork:
            first: dict[bytes, bytes] = {}
            before = None
            for number in range(rounds):
                request = REQUESTS[number % len(REQUESTS)]
                found = fork.request(request, timeout=LIMIT_S)
                assert found == first.setdefault(request, found), (number, request)
                fork.reset()
                if number == rounds // 10:
                    before = HostState.now()
            after = HostState.now()
        assert before is not None
        after.check_growth(before, most_bytes=8 << 20)
