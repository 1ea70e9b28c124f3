"""`kvmlet doctor`: what this machine offers, what that means, and what to do about it."""

import grp
import json
import os
import pwd

from kvmlet import _native
from kvmlet.cli._ends import STATUS_NO_VM, STATUS_OK
from kvmlet.cli._parser import Parser
from kvmlet.cli._text import printable, show

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_WIDTH = 12

_CONTAINER_REMEDIES = {
    "docker": "give the container the device: docker run --device /dev/kvm ...",
    "podman": "give the container the device and your groups: "
    "podman run --device /dev/kvm --group-add keep-groups ...",
    "lxc": "give the container the device, on its host: "
    "lxc config device add CONTAINER kvm unix-char source=/dev/kvm mode=0666",
}
_CONTAINER_REMEDY = (
    "give the container the device: docker run --device /dev/kvm ..., or "
    "podman run --device /dev/kvm --group-add keep-groups ..."
)
_WSL_REMEDY = (
    "on Windows 11 write nestedVirtualization=true below [wsl2] in %UserProfile%\\.wslconfig, "
    "then run wsl --shutdown"
)
_READ_WRITE = 0o6
# A thread of KVM's is made at the first KVM_RUN of a VM, and not at all if a signal comes then.
# Mended by "KVM: retry nx_huge_page_recovery_thread creation" (916b7f42b3b3).
_KERNEL_THAT_GIVES_UP = "6.13."
_VIRTUAL_REMEDY = (
    "load the module (sudo modprobe kvm_intel, or kvm_amd); if that fails, turn on virtualisation "
    "in the firmware or, in a virtual machine, nested virtualisation at its provider"
)


def main(words: list[str]) -> int:
    """Probe and print; 0 only if a probe VM really ran."""
    options = parser().parse_args(words)
    probe = {**_native.probe(), **surroundings()}
    text = json.dumps(probe, indent=2) + "\n" if options.json else render(probe)
    return show(text) or (STATUS_OK if probe.get("vm_ran") is True else STATUS_NO_VM)


def parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="kvmlet doctor",
        usage="kvmlet doctor [--json]",
        description="Show whether this machine can run programs in KVM, and what to do if not.\n"
        "The exit status is 0 only if a VM really ran.",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def surroundings() -> dict[str, object]:
    """Facts about /dev/kvm and its user that decide which advice helps.

    mode: its permission bits in octal, None if it is not there. owner: its user. in_group: the user
    is listed in its group. has_group: this process has that group. wsl: this is Windows' Linux.
    kernel: the version of Linux.
    """
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        status = None
    facts: dict[str, object] = {"mode": None, "owner": None, "in_group": None, "has_group": None}
    if status is not None:
        facts["mode"] = f"{status.st_mode & 0o777:o}"
        facts["owner"] = _name(lambda: pwd.getpwuid(status.st_uid).pw_name, status.st_uid)
        user = _name(lambda: pwd.getpwuid(os.getuid()).pw_name, os.getuid())
        try:
            facts["in_group"] = user in grp.getgrgid(status.st_gid).gr_mem
        except KeyError:
            facts["in_group"] = False
        facts["has_group"] = status.st_gid in (os.getgid(), os.getegid(), *os.getgroups())
    release = os.uname().release
    return {**facts, "wsl": "microsoft" in release.lower(), "kernel": release}


def _name(look_up: "Callable[[], str]", number: int) -> str:
    try:
        return look_up()
    except KeyError:
        return str(number)


def render(probe: dict[str, object]) -> str:
    """The findings in words, then problems and notes, each with its remedy."""
    lines = [f"{name:<{_WIDTH}}  {printable(text)}" for name, text in findings(probe)]
    for kind, entries in (("problem", problems(probe)), ("note", notes(probe))):
        for what, remedy in entries:
            lines += ["", f"{kind}: {printable(what)}", f"  to do: {printable(remedy)}"]
    verdict = "can" if probe.get("vm_ran") is True else "cannot"
    lines += ["", f"kvmlet {verdict} run programs on this machine."]
    return "\n".join(lines) + "\n"


def findings(probe: dict[str, object]) -> list[tuple[str, str]]:
    """(what was looked at, what was found)."""
    kvm = probe.get("kvm")
    error = probe.get("kvm_error")
    states = {
        "ok": f"opens, API version {probe.get('api_version')}",
        "missing": "does not exist",
        "permission": "exists, but may not be opened",
        "unusable": "exists, but cannot be used",
    }
    state = states.get(str(kvm), str(kvm))
    rows = [("/dev/kvm", f"{state} ({error})" if error and kvm != "ok" else state)]
    kinds = {
        "hardware": "hardware virtualisation (VT-x or AMD-V)",
        "software": "software KVM: no VT-x or AMD-V is lent to this machine; programs run at full "
        "speed, leaving the VM costs more",
    }
    kind = probe.get("kvm_kind")
    if isinstance(kind, str):
        rows.append(("kind", kinds.get(kind, kind)))
    ran = probe.get("vm_ran") is True
    rows.append(
        ("probe VM", "ran" if ran else f"did not run ({error})" if error else "did not run")
    )
    exit_us = probe.get("x_us")
    if isinstance(exit_us, (int, float)):
        rows.append(("exit cost", f"{exit_us:.1f} us for leaving and re-entering the VM"))
    landlock = probe.get("landlock")
    rights = probe.get("landlock_rights")
    rows.append(("Landlock", f"on, ABI {landlock}: {rights}" if landlock else "off"))
    seccomp = probe.get("seccomp")
    rows.append(("seccomp", "unknown" if seccomp is None else "on" if seccomp else "off"))
    rows.append(("huge pages", str(probe.get("huge_pages") or "unknown")))
    if probe.get("nested") is True:
        rows.append(("nested", "this machine is itself a virtual machine"))
    container = probe.get("container")
    if container:
        rows.append(("container", str(container)))
    caps = probe.get("caps")
    if isinstance(caps, dict) and caps:
        rows.append(("KVM offers", ", ".join(_capability(*item) for item in caps.items())))
    return rows


def _capability(name: object, value: object) -> str:
    if value is False or value == 0:
        return f"no {name}"
    return str(name) if value is True else f"{name}={value}"


def problems(probe: dict[str, object]) -> list[tuple[str, str]]:
    """(what keeps programs from running, what to do about it)."""
    kvm = probe.get("kvm")
    container = probe.get("container")
    if kvm == "missing":
        if container:
            remedy = _CONTAINER_REMEDIES.get(str(container), _CONTAINER_REMEDY)
            return [("the container has no /dev/kvm", remedy)]
        if probe.get("wsl"):
            return [("WSL has no /dev/kvm", _WSL_REMEDY)]
        return [("there is no /dev/kvm", _VIRTUAL_REMEDY)]
    if kvm == "permission":
        return [_permission(probe)]
    if kvm != "ok":
        return [("KVM opens but does not work", _VIRTUAL_REMEDY)]
    if probe.get("vm_ran") is not True:
        return [
            (
                "the probe VM did not run",
                "see the kernel's messages (sudo dmesg | grep -i kvm); end other hypervisors "
                "(VirtualBox, VMware) that hold the processor",
            )
        ]
    return []


def _permission(probe: dict[str, object]) -> tuple[str, str]:
    """The reason why /dev/kvm may not be opened, and what would help here."""
    group = probe.get("group") or "kvm"
    container = probe.get("container")
    mode = int(str(probe.get("mode") or "660"), 8)
    if (mode >> 3) & _READ_WRITE != _READ_WRITE:
        return (
            f"/dev/kvm has mode {mode:o}: its group {group} may not use it",
            f"sudo chmod g+rw /dev/kvm; for good, in /etc/udev/rules.d/65-kvm.rules: "
            f'KERNEL=="kvm", GROUP="{group}", MODE="0660"',
        )
    if probe.get("has_group"):
        return (
            f"you are in group {group}, and /dev/kvm may still not be opened",
            _CONTAINER_REMEDIES.get(str(container), _CONTAINER_REMEDY)
            if container
            else "a security module or a container's device rules refuse it: "
            "see sudo dmesg, or ausearch -m avc",
        )
    if probe.get("in_group"):
        return (
            f"you are in group {group}, but were not yet when you logged in",
            f"log in again, or run: newgrp {group}",
        )
    join = f"sudo usermod -aG {group} $USER, then log in again"
    if container:
        remedy = _CONTAINER_REMEDIES.get(str(container), _CONTAINER_REMEDY)
        return (f"/dev/kvm belongs to group {group}", f"{remedy}; or {join}")
    return (f"/dev/kvm belongs to group {group}, and you are not in it", join)


def notes(probe: dict[str, object]) -> list[tuple[str, str]]:
    """(what works but could be better, what to do about it)."""
    entries: list[tuple[str, str]] = []
    if not probe.get("landlock"):
        entries.append(
            (
                "without Landlock, the kernel does not repeat kvmlet's own file policy",
                "boot a kernel 5.13 or later with landlock in its lsm= list",
            )
        )
    if probe.get("seccomp") is False:
        entries.append(
            (
                "without seccomp, kvmlet run keeps the system calls that it does not need",
                "boot a kernel with CONFIG_SECCOMP_FILTER",
            )
        )
    if str(probe.get("kernel")).startswith(_KERNEL_THAT_GIVES_UP):
        entries.append(
            (
                "this kernel may fail to run a VM (KVM_RUN: ENOMEM) while many are made, however "
                "much memory is left",
                "boot a kernel 6.14 or later; until then, run the program again",
            )
        )
    if probe.get("huge_pages") == "never":
        entries.append(
            (
                "without transparent huge pages, first use of memory is slower",
                "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled",
            )
        )
    return entries
