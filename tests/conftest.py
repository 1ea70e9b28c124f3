"""What every test directory shares: the guest programs and the option to leave the VMs out."""

import pathlib
import subprocess

import pytest

GUESTS = pathlib.Path(__file__).parent / "guests"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native-only",
        action="store_true",
        help="check the native side of each comparison, then skip: to work on the tests",
    )


@pytest.fixture(scope="session")
def guests() -> pathlib.Path:
    """The directory of the built guest programs.

    Nothing is written when they are up to date: the file system may be read-only.
    """
    question = subprocess.run(["make", "--question", "--silent", "-C", GUESTS], capture_output=True)
    if question.returncode != 0:
        build = subprocess.run(
            ["make", "--silent", "-j2", "-C", GUESTS], capture_output=True, text=True
        )
        assert build.returncode == 0, f"the guest programs do not build:\n{build.stderr}"
    return GUESTS / "build"
