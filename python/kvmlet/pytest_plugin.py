"""Fixtures for pytest, which finds them wherever kvmlet is installed.

    def test_a_command(box):
        assert box.run(["echo", "hello"]).stdout == b"hello\\n"

    def test_an_answer(interpreter):
        assert interpreter.run("6 * 7").value == 42

    def test_an_app(served):
        server = served(["python3", "app.py"], timeout="5s")
        assert urllib.request.urlopen(server.url + "/health").status == 200

A project's own fixture of one of these names takes its place. Two of them are there for that:

    @pytest.fixture(scope="session")
    def kvmlet_policy():
        return kvmlet.Policy.of(memory="1g", read=["/data"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from kvmlet import Box, Interpreter, Policy, Server


@pytest.fixture(scope="session")
def kvmlet_policy() -> Policy | None:
    """The policy of `box`, `interpreter` and `served`; None for the default."""
    return None


@pytest.fixture(scope="session")
def kvmlet_preload() -> Iterable[str]:
    """The modules that `interpreter` has imported when a test begins."""
    return ()


@pytest.fixture
def box(kvmlet_policy: Policy | None) -> Iterator[Box]:
    """A `kvmlet.Box` of the test's own, ended with it."""
    from kvmlet import Box

    with Box(policy=kvmlet_policy) as made:
        yield made


@pytest.fixture
def interpreter(
    kvmlet_policy: Policy | None, kvmlet_preload: Iterable[str]
) -> Iterator[Interpreter]:
    """A `kvmlet.Interpreter` of the test's own: a fork of one that is warmed once."""
    from kvmlet import Interpreter

    with Interpreter(preload=kvmlet_preload, policy=kvmlet_policy) as made:
        yield made


@pytest.fixture
def served(kvmlet_policy: Policy | None) -> Iterator[Callable[..., Server]]:
    """`kvmlet.serve`, whose servers end with the test: `served(argv, **options)`."""
    from contextlib import ExitStack

    from kvmlet import serve

    with ExitStack() as servers:

        def start(argv: Sequence[str], **options: Any) -> Server:
            options.setdefault("policy", kvmlet_policy)
            return servers.enter_context(serve(argv, **options))

        yield start
