"""Attempts to leave a sandbox by its sockets: each is refused, and recorded if it names a host."""

from __future__ import annotations

import http.server
import os
import socket
import threading
import urllib.parse
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.skipif(HW, reason="the emulated machine runs our own guests only")

# Each attempt is an expression that raises OSError where nothing leaves, and behind an arrow what
# is recorded of it. `port` is one of the host's at 127.0.0.1, which is allowed as
# host.kvmlet.internal; `other` is not. Nothing is recorded of loopback addresses, which are the
# sandbox's own, of abstract names, and of what Linux itself refuses.
ATTEMPTS = """
connect(AF_INET, ('8.8.8.8', 443)) -> connect 8.8.8.8:443
connect(AF_INET, ('10.0.0.1', 80)) -> connect 10.0.0.1:80
connect(AF_INET, ('169.254.169.254', 80)) -> connect 169.254.169.254:80
connect(AF_INET, ('100.100.100.200', 80)) -> connect 100.100.100.200:80
connect(AF_INET, ('168.63.129.16', 80)) -> connect 168.63.129.16:80
connect(AF_INET, ('192.168.0.1', port)) -> connect 192.168.0.1:{port}
connect(AF_INET, ('127.0.0.54', other)) -> connect host.kvmlet.internal:{other}
connect(AF_INET, ('198.51.100.1', 80)) -> connect 198.51.100.1:80
connect(AF_INET, ('240.0.0.1', 80)) -> connect 240.0.0.1:80
connect(AF_INET, ('127.0.0.1', port)) ->
connect(AF_INET, ('127.0.0.2', port)) ->
connect(AF_INET, ('127.255.255.254', port)) ->
connect(AF_INET, ('0.0.0.0', port)) ->
connect(AF_INET, ('2130706433', port)) ->
connect(AF_INET, ('0177.0.0.1', port)) ->
connect(AF_INET, ('0x7f000001', port)) ->
connect(AF_INET, ('127.1', port)) ->
connect(AF_INET, ('134744073', 443)) -> connect 8.8.8.9:443
connect(AF_INET, ('0x08080809', 444)) -> connect 8.8.8.9:444
connect(AF_INET, ('010.8.2057', 445)) -> connect 8.8.8.9:445
connect(AF_INET, ('0xa.1', 81)) -> connect 10.0.0.1:81
connect(AF_INET, ('012.0.0.0x1', 82)) -> connect 10.0.0.1:82
connect(AF_INET6, ('::1', port)) ->
connect(AF_INET6, ('::', port)) ->
connect(AF_INET6, ('::ffff:127.0.0.1', port)) ->
connect(AF_INET6, ('::ffff:0.0.0.0', port)) ->
connect(AF_INET6, ('::ffff:10.0.0.1', 83)) -> connect 10.0.0.1:83
connect(AF_INET6, ('::ffff:a00:1', 84)) -> connect 10.0.0.1:84
connect(AF_INET6, ('::ffff:169.254.169.254', 81)) -> connect 169.254.169.254:81
connect(AF_INET6, ('::ffff:127.0.0.54', other)) -> connect host.kvmlet.internal:{other}
connect(AF_INET6, ('::127.0.0.1', port)) -> connect [::7f00:1]:{port}
connect(AF_INET6, ('64:ff9b::7f00:1', port)) -> connect [64:ff9b::7f00:1]:{port}
connect(AF_INET6, ('2002:7f00:1::1', port)) -> connect [2002:7f00:1::1]:{port}
connect(AF_INET6, ('fd00:ec2::254', 80)) -> connect [fd00:ec2::254]:80
connect(AF_INET6, ('fe80::1', 80)) -> connect [fe80::1]:80
connect(AF_INET6, ('fe80::1', 81, 0, 1)) -> connect [fe80::1]:81
connect(AF_INET6, ('2606:4700::1111', 443)) -> connect [2606:4700::1111]:443
again((('127.0.0.1', 1), ('10.0.0.5', 80))) -> connect 10.0.0.5:80
unspecified_first(('10.0.0.6', 80)) -> connect 10.0.0.6:80
send(AF_INET, ('8.8.8.8', 53)) -> sendto 8.8.8.8:53
send(AF_INET, ('10.0.0.1', 53)) -> sendto 10.0.0.1:53
send(AF_INET, ('224.0.0.251', 5353)) -> sendto 224.0.0.251:5353
send(AF_INET, ('255.255.255.255', 67)) -> sendto 255.255.255.255:67
send(AF_INET, ('127.0.0.54', other)) -> sendto host.kvmlet.internal:{other}
send(AF_INET6, ('ff02::1', 9)) -> sendto [ff02::1]:9
send(AF_INET6, ('::ffff:8.8.8.8', 54)) -> sendto 8.8.8.8:54
message(AF_INET, ('8.8.8.8', 55)) -> sendto 8.8.8.8:55
fast_open(('8.8.8.8', 446)) ->
fast_open_option(('8.8.8.8', 447)) -> connect 8.8.8.8:447
getaddrinfo('metadata.google.internal', 80) -> resolve metadata.google.internal
getaddrinfo('secret-in-a-name.example.com', 80) -> resolve secret-in-a-name.example.com
getaddrinfo('host.kvmlet.internal.example.com', 80) -> resolve host.kvmlet.internal.example.com
getaddrinfo('x.host.kvmlet.internal', 80) -> resolve x.host.kvmlet.internal
getaddrinfo('Upper.Case.Example.COM.', 80) -> resolve upper.case.example.com
getaddrinfo('b\\u00fccher.example', 80) -> resolve xn--bcher-kva.example
getaddrinfo('localhost.example.com', 80) -> resolve localhost.example.com
getaddrinfo('127.0.0.1.nip.example', 80) -> resolve 127.0.0.1.nip.example
ask('by-udp.example.com') -> resolve by-udp.example.com
ask('by-tcp.example.com', stream=True) -> resolve by-tcp.example.com
ask('text.example.com', kind=16) -> resolve text.example.com
ask('all.example.com', kind=255) -> resolve all.example.com
ask('zone.example.com', kind=252) -> resolve zone.example.com
ask('1.0.0.10.in-addr.arpa', kind=12) ->
ask('elsewhere.example.com', server='8.8.4.4') -> sendto 8.8.4.4:53
ask('elsewhere.example.com', server='1.1.1.1', stream=True) -> connect 1.1.1.1:53
redirected('http://10.0.0.2/') -> connect 10.0.0.2:80
redirected('http://127.0.0.54:%d/' % other) -> connect host.kvmlet.internal:{other}
redirected('http://redirected.example/') -> resolve redirected.example
redirected('http://[::ffff:10.0.0.3]/') -> connect 10.0.0.3:80
socket(AF_INET, SOCK_RAW, 1) -> socket AF_INET of ICMP or raw packets
socket(AF_INET, SOCK_RAW, 255) -> socket AF_INET of ICMP or raw packets
socket(AF_INET6, SOCK_RAW, 58) -> socket AF_INET6 of ICMP or raw packets
socket(AF_INET, SOCK_DGRAM, 1) -> socket AF_INET of ICMP or raw packets
socket(AF_PACKET, SOCK_RAW, 0) -> socket AF_PACKET
socket(AF_PACKET, SOCK_DGRAM, 0) -> socket AF_PACKET
socket(AF_INET, SOCK_STREAM, 262) ->
socket(AF_INET, SOCK_SEQPACKET, 132) ->
netlink(2) -> socket AF_NETLINK of protocol 2
netlink(4) -> socket AF_NETLINK of protocol 4
netlink(6) -> socket AF_NETLINK of protocol 6
netlink(9) -> socket AF_NETLINK of protocol 9
netlink(10) -> socket AF_NETLINK of protocol 10
netlink(12) -> socket AF_NETLINK of protocol 12
netlink(15) -> socket AF_NETLINK of protocol 15
netlink(16) -> socket AF_NETLINK of protocol 16
route_change(24) ->
route_change(20) ->
route_change(16) ->
socket(40, SOCK_STREAM) -> socket family 40
socket(38, SOCK_SEQPACKET) -> socket family 38
socket(16, SOCK_RAW, 12) -> socket AF_NETLINK of protocol 12
socket(15, SOCK_RAW, 2) -> socket family 15
socket(21, SOCK_SEQPACKET) -> socket family 21
socket(24, SOCK_STREAM) -> socket family 24
socket(29, SOCK_RAW, 1) -> socket family 29
socket(30, SOCK_STREAM) -> socket family 30
socket(31, SOCK_STREAM) -> socket family 31
socket(41, SOCK_DGRAM) -> socket family 41
socket(42, SOCK_DGRAM) -> socket family 42
socket(43, SOCK_STREAM) -> socket family 43
socket(44, SOCK_RAW) -> socket family 44
option(SOL_SOCKET, 25, b'eth0') -> setsockopt SO_BINDTODEVICE
option(SOL_SOCKET, 36, 1) -> setsockopt SO_MARK
option(SOL_SOCKET, 62, 2) -> setsockopt SO_BINDTOIFINDEX
option(IPPROTO_IP, 4, b'\\x83\\x07\\x04\\x08\\x08\\x08\\x08\\x00') -> setsockopt IP_OPTIONS
option(IPPROTO_IP, 19, 1) -> setsockopt IP_TRANSPARENT
option(IPPROTO_IP, 50, 2) -> setsockopt IP_UNICAST_IF
option(IPPROTO_IP, 35, bytes(8)) ->
option(IPPROTO_TCP, 31, b'ulp') ->
device(0x8916) ->
device(0x890b) ->
device(0x8914) ->
bind_and_listen('8.8.8.8') ->
bind_and_listen('169.254.0.1') ->
unix(path) -> connect {path}
unix('./' + os.path.basename(path)) -> connect {path}
unix('\\0' + abstract) ->
unix('\\0/tmp/.X11-unix/X0') ->
unix('/proc/self/root' + path) -> connect {path}
unix('/proc/self/cwd/' + os.path.basename(path)) -> connect {path}
unix_by_descriptor(path) -> connect {path}
unix_by_link(path) -> connect {path}
unix_datagram(path) -> sendto {path}
""".strip().splitlines()

CODE = """
import fcntl, os, struct, sys, urllib.parse, urllib.request
from socket import *
port, other, path, abstract = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
allowed = f'http://host.kvmlet.internal:{port}/'
def connect(family, address):
    with socket(family) as s:
        s.settimeout(20)
        s.connect(address)
def again(addresses):
    # One socket that is refused, and then tries elsewhere.
    with socket() as s:
        for address in addresses[:-1]:
            try: s.connect(address)
            except OSError: pass
        s.connect(addresses[-1])
def unspecified_first(address):
    # A datagram socket connected to what is allowed, and to nothing, and then elsewhere.
    with socket(AF_INET, SOCK_DGRAM) as s:
        s.connect(('127.0.0.54', port))
        s.connect(('0.0.0.0', 0))
        s.connect(address)
def send(family, address):
    with socket(family, SOCK_DGRAM) as s:
        s.setsockopt(SOL_SOCKET, SO_BROADCAST, 1)
        s.sendto(b'out', address)
def message(family, address):
    with socket(family, SOCK_DGRAM) as s:
        s.sendmsg([b'out'], [], 0, address)
def fast_open(address):
    with socket() as s:
        s.sendto(b'out', 0x20000000, address)
def fast_open_option(address):
    with socket() as s:
        s.setsockopt(IPPROTO_TCP, 30, 1)
        s.connect(address)
        s.send(b'out')
        s.recv(1)
def ask(name, kind=1, server='127.0.0.53', stream=False):
    labels = b''.join(bytes([len(label)]) + label.encode() for label in name.split('.'))
    question = struct.pack('>HHHHHH', 7, 256, 1, 0, 0, 0) + labels + struct.pack('>BHH', 0, kind, 1)
    with socket(AF_INET, SOCK_STREAM if stream else SOCK_DGRAM) as s:
        s.settimeout(20)
        if stream:
            s.connect((server, 53))
            s.sendall(struct.pack('>H', len(question)) + question)
            s.recv(2, MSG_WAITALL)
        else:
            s.sendto(question, (server, 53))
        answer = s.recv(999)
    if answer[3] & 15: raise OSError(answer[3] & 15, 'the code of an answer')
def redirected(url):
    urllib.request.urlopen(allowed + 'to?' + urllib.parse.quote(url, safe=''), timeout=20)
def netlink(protocol):
    socket(AF_NETLINK, SOCK_RAW, protocol)
def route_change(kind):
    # RTM_NEWROUTE, RTM_NEWADDR, RTM_NEWLINK: the error is in the answer.
    with socket(AF_NETLINK, SOCK_RAW, 0) as s:
        s.settimeout(20)
        s.send(struct.pack('=IHHII', 32, kind, 5, 1, 0) + bytes(16))
        code = struct.unpack_from('=i', s.recv(999), 16)[0]
        if code: raise OSError(-code, 'netlink')
def option(level, name, value):
    with socket() as s:
        s.setsockopt(level, name, value)
def device(request):
    # SIOCSIFADDR, SIOCADDRT, SIOCSIFFLAGS
    with socket(AF_INET, SOCK_DGRAM) as s:
        fcntl.ioctl(s, request, b'lo'.ljust(120, b'\\0'))
def bind_and_listen(address):
    with socket() as s:
        s.bind((address, 8080))
def unix(name):
    with socket(AF_UNIX) as s:
        s.connect(name)
def unix_datagram(name):
    with socket(AF_UNIX, SOCK_DGRAM) as s:
        s.sendto(b'out', name)
def unix_by_descriptor(name):
    fd = os.open(name, os.O_PATH)
    unix(f'/proc/self/fd/{fd}')
def unix_by_link(name):
    if not os.path.islink('/tmp/link'): os.symlink(name, '/tmp/link')
    unix('/tmp/link')
for attempt in sys.stdin.read().splitlines():
    try:
        eval(attempt)
        print('LEFT', attempt)
    except OSError as error:
        print('refused', attempt)
# What is allowed works beside all that.
print(urllib.request.urlopen(allowed, timeout=20).read())
"""


class Redirecting(http.server.BaseHTTPRequestHandler):
    """Sends whoever asks for /to?URL there, and is "allowed" to others."""

    def do_GET(self) -> None:
        _, question, url = self.path.partition("?")
        self.send_response(302 if question else 200)
        if question:
            self.send_header("Location", urllib.parse.unquote(url))
        self.end_headers()
        self.wfile.write(b"allowed")

    def log_message(self, *_: object) -> None:
        pass


def test_attempts_to_leave(tmp_path: pathlib.Path) -> None:
    path, abstract = os.fspath(tmp_path / "socket"), f"kvmlet-test-{os.getpid()}"
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as allowed,
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
        thread = threading.Thread(target=allowed.serve_forever, args=(0.05,))
        thread.start()
        ports = (allowed.server_address[1], other.getsockname()[1])
        attempts = [attempt.partition(" ->")[0] for attempt in ATTEMPTS]
        try:
            result = kvmlet.run(
                ["/usr/bin/python3", "-c", CODE, *map(str, ports), path, abstract],
                input="\n".join(attempts),
                text=True,
                net=[f"host.kvmlet.internal:{ports[0]}"],
                cwd=tmp_path,
                timeout=120,
            )
        finally:
            allowed.shutdown()
            thread.join(20)
        for server in [*others, datagrams]:
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.recv(9) if server is datagrams else server.accept()
    lines = result.stdout.splitlines()
    assert [line for line in lines if line.startswith("LEFT")] == []
    assert lines[:-1] == [f"refused {attempt}" for attempt in attempts], result
    assert lines[-1] == "b'allowed'"
    kinds = ("address", "network", "host-socket")
    recorded = {denial.what for denial in result.denials if denial.kind in kinds}
    words = {"port": ports[0], "other": ports[1], "path": path}
    expected = {
        what.strip().format(**words)
        for _, _, what in (attempt.partition(" -> ") for attempt in ATTEMPTS)
        if what.strip()
    }
    assert expected - recorded == set()
    assert recorded - expected == set()
    assert len(attempts) > 100


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
