"""The extension module, built from crates/py."""

from typing import final

@final
class Outcome:
    """How a guest ended. All attributes are read-only."""

    @property
    def exit_code(self) -> int | None:
        """Exit status 0..255, None if the guest did not exit by itself."""

    @property
    def signal(self) -> int | None:
        """Number of the guest signal that ended it, else None."""

    @property
    def reason(self) -> str:
        """One of "exited", "signal", "timeout", "memory", "output", "interrupted"."""

    @property
    def stdout(self) -> bytes:
        """Captured standard output, empty when passed through."""

    @property
    def stderr(self) -> bytes:
        """Captured standard error, empty when passed through."""

    @property
    def denials(self) -> list[tuple[str, str, str]]:
        """(what, errno name, remedy or "") for each thing the policy refused."""

    @property
    def events(self) -> list[tuple[str, str]]:
        """(name, detail) for each unsupported thing the guest met."""

    @property
    def stats(self) -> dict[str, int | float]:
        """Flat counters; times have names ending in _us and are in microseconds."""

class NativeError(Exception):
    """args: (kind, message).

    kind is one of "not_found", "not_executable", "bad_elf", "is_directory", "kvm_missing",
    "kvm_permission", "kvm_unusable", "bad_argument", "internal", "host".
    """

def run(
    argv: list[bytes],
    *,
    env: list[tuple[bytes, bytes]],
    cwd: bytes,
    input: bytes | None,
    capture: bool,
    timeout_s: float | None,
    memory_bytes: int,
    output_limit_bytes: int,
    trace: bool,
) -> Outcome: ...
def harden(cwd: bytes) -> list[str]: ...
def probe() -> dict[str, object]: ...
def syscalls() -> list[tuple[int, str, str, str]]: ...
