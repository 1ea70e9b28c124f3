"""Attempts to leave a sandbox by its sockets: each is refused, and recorded if it names a host."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")

# Each attempt is an expression that raises OSError where nothing leaves. `port` is one of the
# host's at 127.0.0.1, which is allowed as host.kvmlet.internal; `other` is not.
ATTEMPTS = """
connect(AF_INET, ('8.8.8.8', 443))
connect(AF_INET, ('10.0.0.1', 80))
connect(AF_INET, ('169.254.169.254', 80))
connect(AF_INET, ('100.100.100.200', 80))
connect(AF_INET, ('168.63.129.16', 80))
connect(AF_INET, ('192.168.0.1', port))
connect(AF_INET, ('127.0.0.54', other))
connect(AF_INET, ('127.0.0.1', port))
connect(AF_INET, ('127.0.0.2', port))
connect(AF_INET, ('0.0.0.0', port))
connect(AF_INET, ('2130706433', port))
connect(AF_INET, ('0177.0.0.1', port))
connect(AF_INET6, ('::1', port))
connect(AF_INET6, ('::', port))
connect(AF_INET6, ('::ffff:127.0.0.1', port))
connect(AF_INET6, ('::ffff:10.0.0.1', 80))
connect(AF_INET6, ('::ffff:169.254.169.254', 80))
connect(AF_INET6, ('::ffff:127.0.0.54', other))
connect(AF_INET6, ('::127.0.0.1', port))
connect(AF_INET6, ('64:ff9b::7f00:1', port))
connect(AF_INET6, ('2002:7f00:1::1', port))
connect(AF_INET6, ('fd00:ec2::254', 80))
connect(AF_INET6, ('fe80::1', 80))
send(AF_INET, ('8.8.8.8', 53))
send(AF_INET, ('10.0.0.1', 53))
send(AF_INET, ('224.0.0.251', 5353))
send(AF_INET, ('255.255.255.255', 67))
send(AF_INET, ('127.0.0.54', other))
send(AF_INET6, ('ff02::1', 9))
send(AF_INET6, ('::ffff:8.8.8.8', 53))
message(AF_INET, ('8.8.8.8', 53))
getaddrinfo('metadata.google.internal', 80)
getaddrinfo('secret-in-a-name.example.com', 80)
getaddrinfo('host.kvmlet.internal.example.com', 80)
getaddrinfo('x.host.kvmlet.internal', 80)
socket(AF_INET, SOCK_RAW, 1)
socket(AF_INET, SOCK_DGRAM, 1)
socket(AF_PACKET, SOCK_RAW, 0)
socket(AF_NETLINK, SOCK_RAW, 4)
socket(40, SOCK_STREAM)
socket(38, SOCK_SEQPACKET)
socket(16, SOCK_RAW, 12)
socket(AF_INET, SOCK_STREAM, 262)
device(b'eth0')
source_route()
bind_and_listen('8.8.8.8')
bind_and_listen('169.254.0.1')
unix(path)
unix('\\0' + abstract)
unix('/proc/self/root' + path)
unix_by_descriptor(path)
""".strip().splitlines()

# Loopback addresses are the sandbox's own, and nobody listens there.
OWN = ("127.0.0.1", "127.0.0.2", "0.0.0.0", "2130706433", "0177.0.0.1", "::1", "::")

CODE = """
import os, struct, sys
from socket import *
port, other, path, abstract = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
def connect(family, address):
    with socket(family) as s:
        s.settimeout(20)
        s.connect(address)
def send(family, address):
    with socket(family, SOCK_DGRAM) as s:
        s.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
        s.sendto(b'out', address)
def message(family, address):
    with socket(family, SOCK_DGRAM) as s:
        s.sendmsg([b'out'], [], 0, address)
def device(name):
    with socket() as s:
        s.setsockopt(SOL_SOCKET, 25, name)
def source_route():
    with socket() as s:
        s.setsockopt(IPPROTO_IP, 4, b'\\x83\\x07\\x04\\x08\\x08\\x08\\x08\\x00')
def bind_and_listen(address):
    with socket() as s:
        s.bind((address, 8080))
def unix(name):
    with socket(AF_UNIX) as s:
        s.connect(name)
def unix_by_descriptor(name):
    fd = os.open(name, os.O_PATH)
    unix(f'/proc/self/fd/{fd}')
for attempt in sys.stdin.read().splitlines():
    try:
        eval(attempt)
        print('LEFT', attempt)
    except OSError as error:
        print('refused', attempt)
# What is allowed works beside all that.
with create_connection(('host.kvmlet.internal', port), 20) as s:
    print(s.recv(9))
"""


def test_attempts_to_leave(tmp_path: pathlib.Path) -> None:
    reached: list[bytes] = []
    path, abstract = os.fspath(tmp_path / "socket"), f"kvmlet-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as allowed,
        socket.create_server(("127.0.0.1", 0)) as other,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as by_path,
        socket.socket(socket.AF_UNIX) as by_name,
    ):
        by_path.bind(path)
        by_name.bind(f"\0{abstract}")
        datagrams.bind(("127.0.0.1", other.getsockname()[1]))
        others = [other, by_path, by_name]
        for server in (by_path, by_name):
            server.listen()

        def serve() -> None:
            connection, _ = allowed.accept()
            with connection:
                connection.sendall(b"allowed")
            reached.append(b"allowed")

        thread = threading.Thread(target=serve)
        thread.start()
        port = allowed.getsockname()[1]
        result = kvmlet.run(
            [
                "/usr/bin/python3",
                "-c",
                CODE,
                str(port),
                str(other.getsockname()[1]),
                path,
                abstract,
            ],
            input="\n".join(ATTEMPTS),
            text=True,
            net=[f"host.kvmlet.internal:{port}"],
            cwd=tmp_path,
            timeout=120,
        )
        thread.join(20)
        for server in [*others, datagrams]:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(9) if server is datagrams else server.accept()
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("LEFT")] == []
    assert lines[:-1] == [f"refused {attempt}" for attempt in ATTEMPTS], result
    assert (lines[-1], reached) == ("b'allowed'", [b"allowed"])
    recorded = " ".join(f"{denial.what} " for denial in result.denials)
    for attempt in ATTEMPTS:
        call, _, rest = attempt.partition("(")
        if call not in ("connect", "send", "message", "getaddrinfo"):
            continue
        host = rest.split("'")[1].removeprefix("::ffff:")
        if host in OWN:
            continue
        known = {"127.0.0.54": "host.kvmlet.internal:", "::127.0.0.1": "::7f00:1"}
        assert known.get(host, host) in recorded, (attempt, recorded)


def test_a_published_port_is_where_it_was_told(tmp_path: pathlib.Path) -> None:
    """At 127.0.0.1, and at no other address of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sandbox = kvmlet.Sandbox(["/bin/sleep", "60"], publish=[f"{port}:80"])
    try:
        with socket.create_connection(("127.0.0.1", port), 10):
            pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 10)
    finally:
        sandbox.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 10)
