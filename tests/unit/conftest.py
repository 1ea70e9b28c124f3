"""The `native` fixture: every user of the extension gets the same stand-in."""

import importlib
import sys

import pytest
from hypothesis import HealthCheck, settings

from kvmlet._launch import guest_modules
from unit.fake import FakeNative

try:
    import kvmlet._native
except ImportError:  # not built
    import kvmlet

    stand_in = FakeNative()
    sys.modules["kvmlet._native"] = stand_in
    kvmlet._native = stand_in  # type: ignore[attr-defined, assignment, unused-ignore]

# Where the programs of guests find theirs.
sys.path.append(guest_modules())

# Of a busy machine's time nothing follows.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

USERS = (
    "kvmlet._disk",
    "kvmlet._extension",
    "kvmlet._launch",
    "kvmlet._run",
    "kvmlet.sandbox",
    "kvmlet.cli.doctor",
    "kvmlet.cli.run",
    "kvmlet.cli.syscalls",
)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> FakeNative:
    fake = FakeNative()
    monkeypatch.delenv("KVMLET_CALLS", raising=False)
    # The caller's tools would be shown too.
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for user in USERS:
        monkeypatch.setattr(importlib.import_module(user), "_native", fake)
    return fake
