"""The report of `kvmlet doctor` on what the probe found."""

import json
import os

import pytest

from kvmlet.cli import main
from kvmlet.cli.doctor import render, surroundings
from unit.fake import HEALTHY, FakeNative

Capture = pytest.CaptureFixture[str]


SURROUNDINGS = {
    **dict.fromkeys(("mode", "owner", "in_group", "has_group")),
    "wsl": False,
    "kernel": "6.1.0-10-amd64",
}


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, native: FakeNative) -> None:
    """Those of this machine would change the advice."""

    def told() -> dict[str, object]:
        return {name: native.findings.get(name, value) for name, value in SURROUNDINGS.items()}

    monkeypatch.setattr("kvmlet.cli.doctor.surroundings", told)


def broken(kvm: str, **more: object) -> dict[str, object]:
    return {
        **HEALTHY,
        "kvm": kvm,
        "kvm_error": "why not",
        "api_version": None,
        "kvm_kind": None,
        "vm_ran": False,
        "x_us": None,
        "caps": {},
        **more,
    }


def test_healthy(native: FakeNative, capfd: Capture) -> None:
    assert main(["doctor"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert out.splitlines() == [
        "/dev/kvm      opens, API version 12",
        "kind          hardware virtualisation (VT-x or AMD-V)",
        "probe VM      ran",
        "exit cost     1.2 us for leaving and re-entering the VM",
        "Landlock      on, ABI 3: files, truncation",
        "seccomp       on",
        "huge pages    madvise",
        "KVM offers    sync_regs, readonly_mem, no xsave2, nr_memslots=32764",
        "",
        "kvmlet can run programs on this machine.",
    ]


def test_surroundings_of_this_machine() -> None:
    found = surroundings()
    assert set(found) == set(SURROUNDINGS)
    assert (found["mode"] is None) == (not os.path.exists("/dev/kvm"))


def test_json_is_the_probe(native: FakeNative, capfd: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == {**HEALTHY, **SURROUNDINGS}
    native.findings = broken("missing")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["vm_ran"] is False


@pytest.mark.parametrize(
    ("probe", "remedies"),
    [
        (broken("missing"), ["modprobe kvm_intel", "nested virtualisation"]),
        (broken("missing", container="docker"), ["docker run --device /dev/kvm"]),
        (broken("missing", container="podman"), ["--group-add keep-groups"]),
        (broken("missing", container="lxc"), ["lxc config device add"]),
        (
            broken("missing", container="other"),
            ["docker run --device", "podman run --device /dev/kvm --group-add keep-groups"],
        ),
        (broken("missing", wsl=True), ["nestedVirtualization=true", "wsl --shutdown"]),
        (broken("permission"), ["usermod -aG kvm $USER"]),
        (broken("permission", mode="600"), ["chmod g+rw /dev/kvm", "65-kvm.rules"]),
        (broken("permission", mode="660", in_group=True, has_group=False), ["newgrp kvm"]),
        (broken("permission", mode="660", has_group=True), ["security module"]),
        (broken("permission", group="virt"), ["usermod -aG virt $USER"]),
        (broken("permission", container="podman"), ["--group-add keep-groups", "usermod"]),
        (broken("unusable"), ["modprobe"]),
        (broken("ok"), ["dmesg"]),
    ],
)
def test_problems_have_remedies(
    native: FakeNative, capfd: Capture, probe: dict[str, object], remedies: list[str]
) -> None:
    native.findings = probe
    assert main(["doctor"]) == 1
    out = capfd.readouterr().out
    assert "why not" in out
    assert out.count("\nproblem: ") == 1
    (advice,) = [line for line in out.splitlines() if line.startswith("  to do: ")]
    for remedy in remedies:
        assert remedy in advice
    assert out.endswith("\nkvmlet cannot run programs on this machine.\n")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"landlock": 0}, "lsm="),
        ({"seccomp": False}, "CONFIG_SECCOMP_FILTER"),
        ({"huge_pages": "never"}, "transparent_hugepage/enabled"),
        ({"kernel": "6.13.4-arch1"}, "boot a kernel 6.14 or later"),
    ],
)
def test_notes_do_not_fail(
    native: FakeNative, capfd: Capture, change: dict[str, object], text: str
) -> None:
    native.findings.update(change)
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert "\nnote: " in out
    assert text in out
    assert "\nproblem: " not in out


def test_software_kvm_is_explained() -> None:
    text = render({**HEALTHY, "kvm_kind": "software", "nested": True, "container": "docker"})
    assert "software KVM" in text
    assert "virtual machine" in text
    assert "docker" in text


def test_a_probe_that_found_nothing_is_a_problem() -> None:
    assert "cannot run" in render({})


def test_texts_of_the_host_stay_on_their_line() -> None:
    assert "\x1b" not in render(broken("unusable", kvm_error="a\x1b[2Jb\nkvmlet can run programs"))
