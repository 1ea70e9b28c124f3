"""Certificates for tests, each its own authority, made by openssl(1) when they are needed."""

from __future__ import annotations

import ssl
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pathlib


class Certificate(NamedTuple):
    """The files of a certificate for localhost and of its key."""

    cert: pathlib.Path
    key: pathlib.Path

    @property
    def der(self) -> bytes:
        """As a client gets it."""
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text())


def openssl(*words: object) -> None:
    """Run openssl(1), which must succeed."""
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)


def certificate(directory: pathlib.Path, name: str) -> Certificate:
    """A certificate and its key in files of `directory` that are called after `name`."""
    made = Certificate(directory / f"{name}.pem", directory / f"{name}.key")
    openssl(
        *("req", "-x509", "-nodes", "-days", 2, "-subj", f"/CN={name}", "-out", made.cert),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", made.key),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
    )
    return made


def client(*trusted: Certificate, protocols: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A client's side of TLS, which trusts these certificates only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for each in trusted:
        context.load_verify_locations(each.cert)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context
