"""Shared by every test directory: the guest programs and the option to leave the VMs out."""

import argparse
import pathlib
import re
import signal
import subprocess

import pytest

# Started in the background of a shell or by nohup, this process would take no interrupt, and would
# hand ignored signals on to its children.
for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _handler)

GUESTS = pathlib.Path(__file__).parent / "guests"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native-only",
        action="store_true",
        help="check the native side of each comparison, then skip: to work on the tests",
    )
    parser.addoption(
        "--share",
        metavar="K[-L]/N",
        type=share_of,
        default=(1, 1, 1),
        help="of each N tests, run the Kth to the Lth: the shares of 1 to N are the whole suite",
    )


def share_of(text: str) -> tuple[int, int, int]:
    """The K, L and N of `K-L/N`; `K/N` is `K-K/N`."""
    found = re.fullmatch(r"(\d+)(?:-(\d+))?/(\d+)", text)
    words = (found[1], found[2] or found[1], found[3]) if found else (0, 0, 0)
    first, last, n = map(int, words)
    if not 1 <= first <= last <= n:
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N or K-L/N with 1 <= K <= L <= N")
    return first, last, n


# What is slow comes last, so that a failure elsewhere shows early. This runs last, so that shares
# are taken of what -m and -k have left.
@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
    first, last, n = config.getoption("--share")
    others = [item for at, item in enumerate(items) if not first <= at % n + 1 <= last]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for at, item in enumerate(items) if first <= at % n + 1 <= last]


def built(programs: pathlib.Path) -> pathlib.Path:
    """The directory of the guest programs that the Makefile in `programs` builds.

    They are built under the lock of that directory: others may need one of them meanwhile.
    Nothing is written when they are up to date: the file system may be read-only.
    """
    make = ["flock", programs, "make", "--silent", "-j2", "-C", programs]
    if subprocess.run([*make, "--question"], capture_output=True).returncode != 0:
        build = subprocess.run(make, capture_output=True, text=True)
        assert build.returncode == 0, f"guest programs do not build:\n{build.stderr}"
    return programs / "build"


@pytest.fixture(scope="session")
def guests() -> pathlib.Path:
    """The directory of the built guest programs."""
    return built(GUESTS)
