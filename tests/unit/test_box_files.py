"""The files of a box, without a box."""

from __future__ import annotations

from typing import Any

from kvmlet import _native
from kvmlet._box_files import ProgramFiles


class Empty:
    """A box in which nothing is but what is made."""

    def __init__(self) -> None:
        self.made: list[bytes] = []

    def stat(self, path: bytes, _follow: bool) -> tuple[int, int, int]:
        if path not in self.made:
            raise _native.NativeError("file", "ENOENT")
        return (0o040755, 0, 0)

    def mkdir(self, path: bytes) -> None:
        self.made.append(path)


def test_directories_of_any_depth_are_made() -> None:
    vm: Any = Empty()
    path = "/".join(["d"] * 2000)
    ProgramFiles(lambda: vm).mkdir(path, parents=True)
    assert [len(each) for each in vm.made] == [2 * depth - 1 for depth in range(1, 2001)]
