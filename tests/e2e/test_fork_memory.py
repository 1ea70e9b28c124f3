"""Mappings that exist at the freeze: what forks see of them, change, and find after a reset."""

from __future__ import annotations

import pathlib
import shutil
from typing import TYPE_CHECKING

import pytest

import kvmlet
from e2e.oracle import HW
from e2e.service import native_answers

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.hw, pytest.mark.usefixtures("vm")]

LIMIT_S = 400 if HW else 60
REQUESTS = [
    *(b"look", b"shared", b"store", b"pwrite", b"truncate", b"hole"),
    *(b"remove", b"remap", b"drop", b"write", b"protect", b"move"),
]


def argv(mapped: str) -> list[str]:
    return ["./forkmaps", mapped]


@pytest.fixture
def own_place(guests: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The program, in a directory that we may write."""
    shutil.copy(guests / "forkmaps", tmp_path)
    return tmp_path


@pytest.fixture(params=["immutable"] if HW else ["immutable", "changeable"])
def mapped(request: pytest.FixtureRequest) -> str:
    """A file to map: of one that somebody may write, the snapshot keeps every page itself."""
    return "forkmaps" if request.param == "immutable" else "changeable"


@pytest.fixture
def place(mapped: str, guests: pathlib.Path, own_place: pathlib.Path) -> pathlib.Path:
    """Its directory, and the program."""
    if mapped == "forkmaps":
        return guests
    path = own_place / mapped
    path.write_bytes((guests / "forkmaps").read_bytes()[: 3 * 4096])
    path.chmod(0o666)
    return own_place


@pytest.fixture
def snapshot(mapped: str, place: pathlib.Path) -> Iterator[kvmlet.Snapshot]:
    sandbox = kvmlet.Sandbox(argv(mapped), cwd=place)
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as frozen:
        yield frozen


def test_each_request_from_the_frozen_state(
    snapshot: kvmlet.Snapshot, mapped: str, place: pathlib.Path
) -> None:
    native = {
        request: native_answers(argv(mapped), cwd=place, messages=[request]) for request in REQUESTS
    }
    with snapshot.fork() as one, snapshot.fork() as other:
        for _ in range(3):
            for request in REQUESTS:
                for fork in (one, other):
                    assert [fork.request(request, timeout=LIMIT_S)] == native[request], request
                one.reset()
                other.reset()


def test_requests_in_turn(snapshot: kvmlet.Snapshot, mapped: str, place: pathlib.Path) -> None:
    """Without a reset between them; and again after one."""
    native = native_answers(argv(mapped), cwd=place, messages=REQUESTS)
    with snapshot.fork() as fork:
        for _ in range(3):
            answers = [fork.request(request, timeout=LIMIT_S) for request in REQUESTS]
            assert answers == native
            fork.reset()


@pytest.mark.skipif(HW, reason="the host's files are read-only on the emulated machine")
def test_a_file_that_changes_after_the_freeze(own_place: pathlib.Path) -> None:
    path = own_place / "changing"
    path.write_bytes(b"1" * 3 * 4096)
    path.chmod(0o666)
    first = kvmlet.Sandbox(argv(path.name), cwd=own_place).until_ready(timeout=LIMIT_S)
    with first.freeze() as snapshot, snapshot.fork() as fork:
        before = fork.request(b"look", timeout=LIMIT_S)
        assert b"code 31" in before
        path.write_bytes(b"2" * 3 * 4096)
        fork.reset()
        assert fork.request(b"look", timeout=LIMIT_S) == before
        path.write_bytes(b"")
        with snapshot.fork() as late:
            assert late.request(b"look", timeout=LIMIT_S) == before
    # What only its owner may write is shown from the file, and a fork notices the change.
    path.write_bytes(b"3" * 3 * 4096)
    path.chmod(0o644)
    second = kvmlet.Sandbox(argv(path.name), cwd=own_place).until_ready(timeout=LIMIT_S)
    with second.freeze() as snapshot:
        path.write_bytes(b"4" * 3 * 4096)
        if path.stat().st_uid == 0:
            with pytest.raises(kvmlet.StaleSnapshot, match="changing has changed"):
                snapshot.fork()


@pytest.mark.slow
def test_copies_of_a_memory_file_count(guests: pathlib.Path) -> None:
    """One frozen page of it may be copied for any number of mappings."""
    memory = "24m" if HW else "64m"
    sandbox = kvmlet.Sandbox(argv("forkmaps"), cwd=guests, memory=memory)
    with sandbox.until_ready(timeout=LIMIT_S).freeze() as snapshot, snapshot.fork() as fork:
        with pytest.raises(kvmlet.SandboxEnded) as caught:
            fork.request(b"multiply", timeout=LIMIT_S)
        result = caught.value.result
        assert result is not None
        assert result.reason == "memory"
        with snapshot.fork() as other:
            assert other.request(b"look", timeout=LIMIT_S)


def test_prepared_by_a_request(mapped: str, place: pathlib.Path) -> None:
    """Forks that have answered once are clean, and take no fault for the same request."""
    native = native_answers(argv(mapped), cwd=place, messages=[b"look", b"write"])
    sandbox = kvmlet.Sandbox(argv(mapped), cwd=place).until_ready(timeout=LIMIT_S)
    # What a request maps anew it faults for each time: here all it uses is mapped at the freeze.
    assert sandbox.request(b"look", timeout=LIMIT_S) == native[0]
    with sandbox.freeze() as snapshot:
        snapshot.prepare(2, request=b"write", timeout=LIMIT_S)
        assert snapshot.stats()["ready"] == 2
        with snapshot.fork() as one, snapshot.fork() as other:
            for fork in (one, other):
                faults = fork.stats()["exits_fault"]
                assert fork.request(b"write", timeout=LIMIT_S) == native[1]
                assert fork.stats()["exits_fault"] == faults
        with pytest.raises(kvmlet.UsageError):
            snapshot.prepare(1, request="text")  # type: ignore[arg-type]
