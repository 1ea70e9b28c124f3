"""`kvmlet serve` by TLS: handshakes, protocols, new certificates, and clients that do it badly."""

from __future__ import annotations

import contextlib
import http.client
import pathlib
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from e2e.certificates import Certificate, certificate, client, openssl
from e2e.oracle import ENV, HANG_S, KVMLET, ROOT
from e2e.serving import Served, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.default_mode]

APP = """
import http.server
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        names = ("X-Forwarded-Proto", "X-Forwarded-For", "Forwarded")
        body = "\\n".join(str(self.headers[name]) for name in names).encode()
        if self.path == "/large":
            body = b"x" * 3_000_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""


@pytest.fixture
def app(tmp_path: pathlib.Path) -> list[str]:
    (tmp_path / "app.py").write_text(APP)
    return ["/usr/bin/python3", "app.py"]


def words_for(made: Certificate) -> list[str]:
    return ["--tls-cert", str(made.cert), "--tls-key", str(made.key)]


@contextlib.contextmanager
def connected(served: Served, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with (
        socket.create_connection(("127.0.0.1", served.port), HANG_S) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as stream,
    ):
        yield stream


def get(stream: ssl.SSLSocket, path: str) -> bytes:
    stream.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    answer = http.client.HTTPResponse(stream, method="GET")
    answer.begin()
    assert answer.status == 200
    return answer.read()


def handshakes(served: Served, outcome: str) -> str:
    return f'kvmlet_tls_handshakes_total{{outcome="{outcome}"}}'


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def read_exactly(stream: ssl.SSLSocket, count: int) -> bytes:
    read = b""
    while len(read) < count:
        piece = stream.recv(count - len(read))
        assert piece
        read += piece
    return read


def get_by_http2(stream: ssl.SSLSocket, path: str) -> bytes:
    """The body of a GET request: RFC 9113, with the fields of RFC 7541 that need no table."""

    def literal(index: int, value: str) -> bytes:
        return bytes([index, len(value)]) + value.encode()

    # :method GET and :scheme https are of the static table; :path and :authority are literals.
    fields = b"\x82\x87" + literal(0x04, path) + literal(0x01, "localhost")
    stream.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0) + frame(1, 0x4 | 0x1, 1, fields)
    )
    body = b""
    while True:
        head = read_exactly(stream, 9)
        length = int.from_bytes(head[:3])
        kind, flags, number = head[3], head[4], int.from_bytes(head[5:])
        payload = read_exactly(stream, length)
        if kind == 1:
            # :status 200 is of the static table too.
            assert b"\x88" in payload[:8], payload
        if (kind, number) == (0, 1):
            body += payload
            stream.sendall(frame(8, 0, 0, struct.pack(">I", length)) if length else b"")
        if number == 1 and flags & 0x1:
            return body


def smuggled() -> list[bytes]:
    """Requests that another parser could read otherwise: those of the front's own tests."""
    file = ROOT / "crates" / "serve" / "src" / "front_tests" / "smuggled.txt"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]


def test_requests_by_tls(tmp_path: pathlib.Path, app: list[str]) -> None:
    made = certificate(tmp_path, "first")
    words = ["--header-timeout", "1s", "--proxy-protocol", "--trusted-proxy", "127.0.0.2"]
    with serving(tmp_path, *words_for(made), *words, program=app) as served:
        https = http.client.HTTPSConnection("localhost", served.port, context=client(made))
        for _ in range(3):
            https.request("GET", "/", headers={"X-Forwarded-Proto": "gopher"})
            said = https.getresponse().read().decode().splitlines()
            assert said[:2] == ["https", "127.0.0.1"]
            assert "proto=https" in said[2]
        body = bytes(range(256)) * 4096
        https.request("POST", "/", body=body)
        assert https.getresponse().read() == body
        https.close()
        served.until(handshakes(served, "ok"), 1)

        both = client(made, protocols=("h2", "http/1.1"))
        with connected(served, both) as stream:
            assert stream.selected_alpn_protocol() == "h2"
            assert get_by_http2(stream, "/").startswith(b"https\n127.0.0.1\n")
        with connected(served, client(made, protocols=("http/1.1",))) as stream:
            assert stream.selected_alpn_protocol() == "http/1.1"
            assert len(get(stream, "/large")) == 3_000_000
        old = client(made)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with connected(served, old) as stream:
            assert stream.version() == "TLSv1.2"
            assert stream.selected_alpn_protocol() is None
            assert get(stream, "/").startswith(b"https\n")
        # A session of before is gone on with.
        with connected(served, old) as first:
            get(first, "/")
            session = first.session
        plain = socket.create_connection(("127.0.0.1", served.port), HANG_S)
        with old.wrap_socket(plain, server_hostname="localhost", session=session) as again:
            assert again.session_reused
            get(again, "/")
        served.until(handshakes(served, "ok"), 6)
        # A proxy of streams, which knows nothing of TLS.
        proxy = ("127.0.0.2", 0)
        with socket.create_connection(("127.0.0.1", served.port), HANG_S, proxy) as plain:
            plain.sendall(b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 443\r\n")
            with client(made).wrap_socket(plain, server_hostname="localhost") as stream:
                assert get(stream, "/").startswith(b"https\n192.0.2.1\n")

        # What follows needs no fork, and leaves none busy.
        served.until("kvmlet_forks_busy", 0)
        ran = served.metric("kvmlet_run_seconds_count")
        bare = client(made)
        for request in smuggled():
            answer = b""
            with connected(served, bare) as stream, contextlib.suppress(ConnectionResetError):
                stream.sendall(request + b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
                while piece := stream.recv(4096):
                    answer += piece
            assert answer.startswith(b"HTTP/1.1 400 "), (request, answer)
            assert answer.count(b"HTTP/1.1 ") == 1, request
        served.until('kvmlet_requests_total{outcome="refused"}', 40)
        assert served.metric("kvmlet_run_seconds_count") == ran
        with pytest.raises(ssl.SSLError), connected(served, client(made, protocols=("gopher",))):
            pass
        with pytest.raises(ssl.SSLError), connected(served, client(certificate(tmp_path, "other"))):
            pass
        served.until(handshakes(served, "failed"), 2)
        with socket.create_connection(("127.0.0.1", served.port), HANG_S) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 500 + b"\r\n")
            answer = b"".join(iter(lambda: plain.recv(4096), b""))
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"ask by https" in answer
        for garbage in (b"\0" * 400, b"SSH-2.0-x\r\n", b"\xff"):
            with socket.create_connection(("127.0.0.1", served.port), HANG_S) as plain:
                plain.sendall(garbage)
                with contextlib.suppress(ConnectionResetError):
                    while plain.recv(4096):
                        pass
        served.until(handshakes(served, "not_tls"), 4)
        # A record that is none, and a hello whose length is a lie: an alert, and the end.
        for bad in (b"\x16\x03\x01\xff\xff" + b"\xff" * 9, b"\x16\x03\x01\0\x04\x01\xff\xff\xff"):
            with socket.create_connection(("127.0.0.1", served.port), HANG_S) as plain:
                plain.sendall(bad + b"\0" * 64)
                with contextlib.suppress(ConnectionResetError):
                    while plain.recv(4096):
                        pass
        served.until(handshakes(served, "failed"), 4)
        # Some never finish: they are let go in time, and nobody waits for them.
        slow = [socket.create_connection(("127.0.0.1", served.port), HANG_S) for _ in range(100)]
        for half in slow[::2]:
            half.sendall(b"\x16\x03\x01\x02")
        served.until("kvmlet_tls_handshakes", 100)
        begun = time.monotonic()
        with connected(served, client(made)) as stream:
            assert get(stream, "/").startswith(b"https\n")
        for waiting in slow:
            assert waiting.recv(1) == b""
            waiting.close()
        assert time.monotonic() - begun < 10
        served.until(handshakes(served, "timeout"), 100)
        served.until("kvmlet_forks_busy", 0)
        assert served.metric("kvmlet_forks_rebuilt_total") == 0


def test_a_new_certificate_under_load(tmp_path: pathlib.Path, app: list[str]) -> None:
    # As a secret of Kubernetes: links to a directory that another one takes the place of.
    made = {name: certificate(tmp_path, name) for name in ("first", "second")}
    for name, each in made.items():
        (tmp_path / f"data-{name}").mkdir()
        each.cert.rename(tmp_path / f"data-{name}" / "tls.crt")
        each.key.rename(tmp_path / f"data-{name}" / "tls.key")
        made[name] = Certificate(
            tmp_path / f"data-{name}" / "tls.crt", tmp_path / f"data-{name}" / "tls.key"
        )
    shown = tmp_path / "data"
    shown.symlink_to("data-first")
    named = Certificate(shown / "tls.crt", shown / "tls.key")
    context = client(*made.values())
    failed: list[BaseException] = []
    count = 0
    is_over = threading.Event()

    def ask(served: Served) -> None:
        nonlocal count
        try:
            while not is_over.is_set():
                with connected(served, context) as stream:
                    for _ in range(3):
                        assert get(stream, "/").startswith(b"https\n")
                        count += 1
        except BaseException as error:
            failed.append(error)

    def certificate_shown(served: Served) -> bytes | None:
        with connected(served, context) as stream:
            return stream.getpeercert(binary_form=True)

    with serving(tmp_path, *words_for(named), program=app) as served:
        assert certificate_shown(served) == made["first"].der
        askers = [threading.Thread(target=ask, args=(served,)) for _ in range(3)]
        for asker in askers:
            asker.start()
        (tmp_path / "next").symlink_to("data-second")
        (tmp_path / "next").rename(shown)
        served.process.send_signal(signal.SIGHUP)
        served.until("kvmlet_tls_certificates_read_total", 1)
        assert certificate_shown(served) == made["second"].der
        served.until("kvmlet_reloads_total", 1)
        # One that cannot be used leaves the one there is.
        made["second"].key.write_bytes(made["first"].key.read_bytes())
        served.process.send_signal(signal.SIGHUP)
        served.until("kvmlet_reloads_total", 2)
        assert certificate_shown(served) == made["second"].der
        is_over.set()
        for asker in askers:
            asker.join(HANG_S)
        assert (failed, count > 10) == ([], True)
        status, _, err = served.end()
    assert status == 0
    said = [line for line in err.decode().splitlines() if "was not read again" in line]
    assert len(said) == 1, err
    assert "it is not that of the certificate" in said[0]


def test_a_connection_of_any_protocol_by_tls(tmp_path: pathlib.Path) -> None:
    (tmp_path / "echo.py").write_text(
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 7))\n"
        "while True:\n"
        "    stream, _ = server.accept()\n"
        "    while data := stream.recv(4096): stream.sendall(b'> ' + data)\n"
        "    stream.close()\n"
    )
    made = certificate(tmp_path, "first")
    program = ["/usr/bin/python3", "echo.py"]
    words = [*words_for(made), "--isolate", "connection"]
    with serving(tmp_path, *words, program=program) as served:
        # There is no protocol that it could offer.
        context = client(made, protocols=("redis",))
        with connected(served, context) as stream:
            assert stream.selected_alpn_protocol() is None
            for word in (b"\0one", b"two"):
                stream.sendall(word)
                assert stream.recv(4096) == b"> " + word


def test_files_that_cannot_be_used(tmp_path: pathlib.Path, app: list[str]) -> None:
    made, other = (certificate(tmp_path, name) for name in ("first", "other"))
    encrypted = tmp_path / "encrypted.key"
    openssl("pkey", "-in", made.key, "-aes256", "-passout", "pass:x", "-out", encrypted)
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    absent = tmp_path / "absent.pem"

    def refused(*words: object) -> str:
        argv = [str(KVMLET), "serve", "--listen", "unix:place", *map(str, words), "--", *app]
        run = subprocess.run(argv, cwd=tmp_path, env=ENV, capture_output=True, timeout=HANG_S)
        assert (run.returncode, run.stdout) == (125, b"")
        lines = run.stderr.decode().splitlines()
        assert len(lines) == 1, lines
        assert "; " in lines[0]
        return lines[0]

    for cert, key, part in (
        (absent, made.key, f"cannot read the certificate {absent}: no such file or directory"),
        (made.cert, absent, f"cannot read the key {absent}: no such file or directory"),
        (tmp_path, made.key, "it is no regular file"),
        (empty, made.key, "there is no certificate in it"),
        (made.key, made.key, "there is no certificate in it"),
        (made.cert, made.cert, "there is no key in it"),
        (made.cert, encrypted, "it is encrypted; decrypt it"),
        (made.cert, other.key, "it is not that of the certificate"),
    ):
        assert part in refused("--tls-cert", cert, "--tls-key", key)
    assert "there is no --tls-key" in refused("--tls-cert", made.cert)
    assert "there is no --tls-cert" in refused("--tls-key", made.key)
    assert not (tmp_path / "place").exists()

    made.key.chmod(0o644)
    with serving(tmp_path, *words_for(made), program=app) as served:
        status, _, err = served.end()
    assert status == 0
    assert f"every user of this machine can read the key {made.key}".encode() in err
