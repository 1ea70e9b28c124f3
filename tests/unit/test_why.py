"""The words of `kvmlet why`, without a program."""

from __future__ import annotations

import pytest

from kvmlet.cli import why
from kvmlet.errors import UsageError


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("example.com:443", ("example.com", 443)),
        ("[::1]:80", ("::1", 80)),
        ("10.0.0.1:5432", ("10.0.0.1", 5432)),
        ("./a:80", None),
        ("a:b", None),
        ("a:", None),
        (":80", None),
        ("a:65536", None),
        ("a:" + "9" * 5000, None),
        ("a:²", None),
        ("file", None),
    ],
)
def test_an_address_or_a_path(word: str, address: tuple[str, int] | None) -> None:
    assert why._address(word) == address


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no path given"),
        (["--read", "/usr"], "no path given"),
        ([""], "an empty path"),
        (["x", "--json"], "--json comes after the path"),
        (["--no-such-option", "x"], "unknown option --no-such-option"),
        (["--read", "/no/such/path", "x"], "--read: /no/such/path is not there"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        why.main(words)
    assert str(raised.value).startswith(message)
