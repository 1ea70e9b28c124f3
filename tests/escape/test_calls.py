"""Guests that lie in the page through which calls are answered without an exit."""

from __future__ import annotations

import json
import secrets
import signal
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HW, KVMLET, command, sized
from escape.bounded import bounded

if TYPE_CHECKING:
    import pathlib

    from escape.bounded import Run

pytestmark = [
    pytest.mark.hw,
    pytest.mark.hw_modes,
    pytest.mark.default_mode,  # each says how calls travel
    pytest.mark.usefixtures("vm"),
]

MODES = ["poll"] if HW else ["poll", "auto"]
ENDLESS_S = 20 if HW else 3
NOT_OURS = b"the page is not the program's\n"


def lies(run: Run) -> None:
    """Skip the test if `run` could not lie in the page."""
    if run.stdout == NOT_OURS:
        assert run.status == 0, run.said
        pytest.skip("not applicable: on hardware KVM the page is not the program's")


def test_the_page_is_the_programs_on_software_kvm_only(hostile: pathlib.Path) -> None:
    kind = json.loads(command([KVMLET, "doctor", "--json"], cwd=hostile).stdout)["kvm_kind"]
    run = bounded(["./callpage", "rewrite", "1", "1"], cwd=hostile, calls="poll")
    assert run.status == 0, run.said
    assert (run.stdout == NOT_OURS) == (kind == "hardware"), (kind, run.said)


@pytest.mark.parametrize("calls", MODES)
@pytest.mark.parametrize("what", ["rewrite"] if HW else ["rewrite", "numbers", "threads", "places"])
def test_what_is_written_into_the_page_does_no_more_than_calls(
    hostile: pathlib.Path, what: str, calls: str
) -> None:
    argv = ["./callpage", what, str(sized(3000, 200)), str(secrets.randbits(32))]
    run = bounded(argv, cwd=hostile, calls=calls)
    lies(run)
    said = f"{argv}: {run.said}"
    assert run.status == 0, said
    assert b"alive" in run.stdout, said
    assert b"MORE BYTES THAN POSTS" not in run.stdout, said


@pytest.mark.parametrize("calls", MODES)
def test_a_guest_that_does_not_leave_harms_itself_only(hostile: pathlib.Path, calls: str) -> None:
    run = bounded(["./callpage", "stay", "1000"], cwd=hostile, calls=calls)
    lies(run)
    # Memory that its VM does not have yet ends it: SIGBUS.
    assert run.status in (0, 128 + signal.SIGBUS), run.said


@pytest.mark.parametrize("calls", MODES)
@pytest.mark.parametrize("what", ["never-stop"] if HW else ["never-stop", "wait-for-ever"])
def test_a_guest_that_posts_or_waits_for_ever_is_ended(
    hostile: pathlib.Path, what: str, calls: str
) -> None:
    run = bounded(["./callpage", what, "1"], cwd=hostile, calls=calls, timeout_s=ENDLESS_S)
    lies(run)
    assert run.status == 124, run.said
