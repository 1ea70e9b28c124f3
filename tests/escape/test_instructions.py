"""Instructions that ring 3 may not run, forged registers, and jumps into kvmlet's own pages."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HW, LONG, native, sized
from escape.bounded import bounded
from escape.layout import PAGES

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = [pytest.mark.hw, pytest.mark.poll]

EMULATED = ["emulated"] if HW else []
"""Leaves out what the emulated CPU gets wrong natively already (tests/escape/guests/attempt.h)."""

USER_VISIBLE = {PAGES[name] for name in ("SYSCALL_CODE", "STUB_DATA", "CALL_PAGE")}
"""Those that ring 3 may read on software KVM."""


@pytest.mark.slow
def test_ports(hostile: pathlib.Path, native_only: bool) -> None:
    """Every port, every form: SIGSEGV at the instruction, as without KVM.

    On software KVM an `out` has retired when it is refused, so rip is behind it.
    """
    argv = ["./ports", str(4096 if HW else 1 if LONG else 16)]
    expected = native(argv, cwd=hostile)
    assert b" 0 wrong" in expected.stdout
    if native_only:
        pytest.skip("native side only")
    run = bounded(argv, cwd=hostile, timeout_s=sized(90, 300))
    assert (run.status, run.stdout) == (0, expected.stdout), run.said


@pytest.mark.parametrize(
    "argument", [[], ["step"], ["ac"]], ids=["popf", "single-step", "alignment"]
)
def test_flags(oracle: Oracle, hostile: pathlib.Path, argument: list[str]) -> None:
    oracle.compare(["./flags", *(argument or EMULATED)], cwd=hostile)


def test_privileged_instructions(oracle: Oracle, hostile: pathlib.Path) -> None:
    oracle.compare(["./privileged"], cwd=hostile)


@pytest.mark.usefixtures("vm")
def test_instructions_that_differ_between_cpus(hostile: pathlib.Path) -> None:
    run = bounded(["./privileged", "loose"], cwd=hostile)
    assert run.status == 0, run.said
    assert run.stdout.endswith(b"alive\n")
    ends = dict(re.findall(rb"^int (0x[0-9a-f]+): (\w+)", run.stdout, re.MULTILINE))
    assert len(ends) == 252
    if not HW:
        # Software KVM's own CPUID call.
        ends.pop(b"0x1a")
    assert set(ends.values()) <= ({b"SIGSEGV"} if HW else {b"SIGSEGV", b"SIGILL"})
    # None of these is for ring 3 on any CPU.
    for name in [
        "vmlaunch",
        "vmrun",
        "vmload",
        "stgi",
        "invpcid",
        "encls",
        "rsm",
        "xsaves",
        "clac",
    ]:
        assert re.search(rf"^{name}: SIG(SEGV|ILL)".encode(), run.stdout, re.MULTILINE), name


def test_edges_of_user_space(oracle: Oracle, hostile: pathlib.Path) -> None:
    oracle.compare(["./canon", *EMULATED], cwd=hostile)


def test_vmm_pages(hostile: pathlib.Path, native_only: bool) -> None:
    """Nothing of kvmlet's area can be written or changed, and only the stub's pages can be read."""
    expected = native(["./vmmpages"], cwd=hostile)
    assert expected.stdout.endswith(b"alive\n")
    if native_only:
        pytest.skip("native side only")
    # With calls that try to change the area: natively some of those would succeed.
    run = bounded(["./vmmpages", "area"], cwd=hostile)
    assert (run.status, run.stdout) == (0, expected.stdout), run.said
    readable = {int(at, 16) for at in re.findall(rb"readable (0x[0-9a-f]+)", run.stderr)}
    executable = {int(at, 16) for at in re.findall(rb"executable (0x[0-9a-f]+)", run.stderr)}
    assert readable <= USER_VISIBLE
    assert executable <= {PAGES["SYSCALL_CODE"]}
    if HW:
        assert not readable
        assert not executable


@pytest.mark.slow
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("page", PAGES)
def test_jumps_into_vmm_pages(hostile: pathlib.Path, page: str) -> None:
    """A sample of each page, with forged registers; in full every third byte of the code."""
    code = page in ("SYSCALL_CODE", "EXC_CODE")
    step = (3 if LONG else 64) if code else 512
    # The emulated machine takes long for each of them.
    step *= 2 if HW and not LONG else 1
    argv = ["./stubjump", hex(PAGES[page]), "0", "4096", str(step)]
    run = bounded(argv, cwd=hostile, timeout_s=sized(100, 300))
    assert run.status == 0, run.said
    assert run.stdout.endswith(b"alive\n")
    if HW or page != "SYSCALL_CODE":
        assert b"0 came back" in run.stderr, run.said


@pytest.mark.slow
@pytest.mark.hw_modes
@pytest.mark.usefixtures("vm")
def test_jumps_to_every_byte_of_the_syscall_entry(hostile: pathlib.Path) -> None:
    step = str(13 if HW else 1 if LONG else 2)
    argv = ["./stubjump", hex(PAGES["SYSCALL_CODE"]), "0", "1600", step]
    run = bounded(argv, cwd=hostile, timeout_s=sized(100, 300))
    assert run.status == 0, run.said
    assert run.stdout.endswith(b"alive\n")


@pytest.mark.slow
@pytest.mark.default_mode  # each says how calls travel
@pytest.mark.usefixtures("vm")
@pytest.mark.parametrize("calls", ["poll", "exit"])
def test_jumps_into_the_trampoline_page(hostile: pathlib.Path, calls: str) -> None:
    """The program may execute that page. Where it has slots in use, each leads back into the middle
    of a function of the program, which is likely to end it.
    """
    argv = ["./stubjump", "trampolines", "0", "4096", str(512 if HW else 3 if LONG else 64)]
    run = bounded(argv, cwd=hostile, calls=calls, timeout_s=sized(100, 300))
    if HW or calls == "exit":
        assert run.status == 0, run.said
        assert run.stdout.endswith(b"alive\n")
    if HW:
        assert b"no page" in run.stdout


@pytest.mark.usefixtures("vm")
def test_segments(hostile: pathlib.Path) -> None:
    """Selectors and far transfers: fine or a signal; nothing reaches CPL 0."""
    run = bounded(["./segments", *EMULATED], cwd=hostile)
    assert run.status == 0, run.said
    assert run.stdout.endswith(b"alive\n")
    for line in [
        *([] if HW else [rb"lret to 0x10", rb"iretq to 0x10", rb"iretq to 0x40"]),
        rb"ljmp to 0x10",
        rb"mov to ss 0x10",
    ]:
        assert re.search(rb"^" + line + rb": SIG(SEGV|BUS|ILL)$", run.stdout, re.MULTILINE), line
    if HW:
        # There is no 32-bit code segment.
        assert not re.search(
            rb"^(lret|iretq|ljmp|lcall) to (?!0x33|0x30).*fine", run.stdout, re.MULTILINE
        )


@pytest.mark.usefixtures("vm")
@pytest.mark.skipif(
    not HW and os.environ.get("KVMLET_INT80") != "1",
    reason="32-bit entries are tried on hardware semantics; set KVMLET_INT80=1 to try them here",
)
def test_32_bit_entries(hostile: pathlib.Path) -> None:
    run = bounded(["./segments", "32-bit", *EMULATED], cwd=hostile)
    assert run.status == 0, run.said
    assert run.stdout.endswith(b"alive\n")
    if HW:
        assert not re.search(
            rb"^(lret|iretq|ljmp|lcall) to 0x2[03]: fine", run.stdout, re.MULTILINE
        )
        assert re.search(rb"^int 0x80: SIGSEGV$", run.stdout, re.MULTILINE)


@pytest.mark.hw_modes
@pytest.mark.usefixtures("vm")
def test_calls_on_wild_stacks_stay_in_ring_3(hostile: pathlib.Path) -> None:
    run = bounded(["./wildstack"], cwd=hostile, timeout_s=sized(30, 300))
    assert (run.status, run.stdout) == (0, b"0 wrong\n"), run.said


def test_signal_frames(oracle: Oracle, hostile: pathlib.Path) -> None:
    oracle.compare(["./sigframe"], cwd=hostile)


@pytest.mark.skipif(HW, reason="the emulated CPU takes any MXCSR")
def test_wrong_mxcsr_in_signal_frames(oracle: Oracle, hostile: pathlib.Path) -> None:
    oracle.compare(["./sigframe", "mxcsr"], cwd=hostile)


@pytest.mark.usefixtures("vm")
def test_wild_signal_frames(hostile: pathlib.Path) -> None:
    run = bounded(["./sigframe", "loose"], cwd=hostile)
    assert run.status == 0, run.said
    assert run.stdout.endswith(b"alive\n")
