"""Guest programs about values of ours, each natively and in a VM.

Neither the CPU nor the way that calls travel has a part in them: they run once.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import LONG, in_vm

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle


def test_absolute_path_and_path_lookup(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare([guests / "args", "x"], cwd=guests, expect_status=1)
    oracle.compare(["true"], cwd=guests)
    oracle.compare(["printf", r"%s-%d\n", "x", "3"], cwd=guests)


def test_programs_by_descriptor(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./execat"], cwd=guests)


def test_files_of_others(guests: pathlib.Path) -> None:
    """As root with its capabilities, which other comparisons are made without."""
    native = subprocess.run(["./rootfiles"], cwd=guests, stdout=subprocess.PIPE, check=True)
    run = in_vm(["./rootfiles"], cwd=guests)
    assert run.stdout.decode().splitlines() == native.stdout.decode().splitlines()
    assert run.status == 0


def test_splices(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./splices"], cwd=guests)


def test_relations_of_processes(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./kin"], cwd=guests)


def test_descriptors_of_processes(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./pidfd"], cwd=guests)


def test_files(oracle: Oracle, guests: pathlib.Path, small_tree: pathlib.Path) -> None:
    program = small_tree.parent / "files"
    program.write_bytes((guests / "files").read_bytes())
    program.chmod(0o755)
    oracle.compare(["./files", small_tree.name], cwd=small_tree.parent)


def test_tmp_tree(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./tmp"], cwd=guests)


@pytest.mark.parametrize("part", ["shm", "sem", "msg"])
def test_system_v_ipc(oracle: Oracle, guests: pathlib.Path, part: str) -> None:
    oracle.compare(["./sysvipc", part], cwd=guests)


def test_mutexes_with_priority_inheritance(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./pimutex"], cwd=guests)


def test_message_queues(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./mqueue"], cwd=guests)


def test_resources_that_are_used(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./usage"], cwd=guests)


def test_leases_on_files(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./lease"], cwd=guests)


@pytest.mark.default_mode
@pytest.mark.timeout(300)
@pytest.mark.skipif(not LONG, reason="a holder has 45 seconds: make test-long PART=auto")
def test_a_lease_that_is_not_given_up(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./lease", "slow"], cwd=guests)


def test_named_pipes_and_packets(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./fifo"], cwd=guests)


def test_facts_about_the_system(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./info"], cwd=guests)


def frames(*messages: bytes) -> bytes:
    return b"".join(len(message).to_bytes(4, "little") + message for message in messages)


@pytest.mark.parametrize("library", ["", "-musl"])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        frames(b"hello", b"", b"longer than five", bytes(range(256)) * 200),
        frames(b"hello")[:-1],
        b"\5\0",
        b"\0\0\0\2",
    ],
    ids=["none", "whole", "cut", "cut-prefix", "huge"],
)
def test_messages_without_a_host(
    oracle: Oracle, guests: pathlib.Path, library: str, data: bytes
) -> None:
    oracle.compare([f"./messages{library}"], cwd=guests, input=data)
