"""Changes of a box's files, as they happen."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

import kvmlet
import kvmlet.box
from e2e.oracle import HANG_S
from kvmlet import aio

pytestmark = pytest.mark.usefixtures("vm")


def sh(box: kvmlet.Box, command: str) -> None:
    box.run(command, shell=True, check=True)


def told(watch: kvmlet.box.Watch) -> list[tuple[str, str]]:
    """All that has been told so far."""
    return [(change.kind, change.path) for change in watch.read(timeout=0.001)]


def test_what_commands_do(box: kvmlet.Box) -> None:
    sh(box, "mkdir d; echo old > d/old; mkdir d/below")
    with box.files.watch("d") as watch:
        assert told(watch) == []
        sh(box, "echo text > d/new; chmod 600 d/new; mv d/new d/other; rm d/old")
        assert told(watch) == [
            ("created", "d/new"),
            ("modified", "d/new"),
            ("closed", "d/new"),
            ("attributes", "d/new"),
            ("removed", "d/new"),
            ("created", "d/other"),
            ("removed", "d/old"),
        ]
        sh(box, "echo x > elsewhere; echo x > d/below/x")
        assert told(watch) == []
        sh(box, "rm -r d")
        assert ("removed", "d/other") in (gone := told(watch))
        assert gone[-1] == ("removed", "d")
    with box.files.watch("/work/elsewhere") as watch:
        box.files.write("elsewhere", "more")
        kinds = {kind for kind, path in told(watch) if path == "/work/elsewhere"}
        assert kinds == {"modified", "closed"}


def test_directories_below(box: kvmlet.Box) -> None:
    sh(box, "mkdir -p d/a/b; ln -s a d/link")
    with box.files.watch("d", recursive=True) as watch:
        sh(box, "echo x > d/a/b/file")
        assert ("created", "d/a/b/file") in told(watch)
        # Made with all that is in it before anybody could watch it.
        sh(box, "mkdir -p d/new/deep; echo x > d/new/deep/file")
        created = [path for kind, path in told(watch) if kind == "created"]
        assert created == ["d/new", "d/new/deep", "d/new/deep/file"]
        sh(box, "echo x > d/new/deep/later; echo x > d/link/through")
        paths = {path for _, path in told(watch)}
        assert paths == {"d/new/deep/later", "d/a/through"}
        # What goes elsewhere has its new name from then on.
        sh(box, "mv d/new d/a/moved")
        assert [change for change in told(watch) if change[1] != "d/a/moved/deep"] == [
            ("removed", "d/new"),
            ("created", "d/a/moved"),
            ("created", "d/a/moved/deep/file"),
            ("created", "d/a/moved/deep/later"),
        ]
        sh(box, "echo x > d/a/moved/deep/last")
        assert ("created", "d/a/moved/deep/last") in told(watch)
        sh(box, "mv d/a/moved out; echo x > out/deep/unseen")
        assert told(watch) == [("removed", "d/a/moved")]


def test_waiting_and_iterating(box: kvmlet.Box) -> None:
    with box.files.watch() as watch:
        start = time.monotonic()
        assert watch.read(timeout=0.2) == []
        assert time.monotonic() - start >= 0.2
        process = box.spawn("sleep 0.3; touch flag", shell=True)
        assert watch.read(timeout=HANG_S)[0] == ("created", "./flag")
        process.wait(HANG_S)
        seen: list[kvmlet.box.FileChange] = []

        def follow() -> None:
            seen.extend(watch)

        thread = threading.Thread(target=follow)
        thread.start()
        sh(box, "touch one; touch two")
        end_s = time.monotonic() + HANG_S
        while ("closed", "./two") not in seen and time.monotonic() < end_s:
            time.sleep(0.01)
        watch.close()
        thread.join(HANG_S)
        assert not thread.is_alive()
        assert [path for kind, path in seen if kind == "created"] == ["./one", "./two"]


def test_a_flood_is_told_of_as_lost(box: kvmlet.Box) -> None:
    with box.files.watch() as watch:
        script = "import os\nfor i in range(20_000): open(f'f{i % 7}-{i}', 'w').close()"
        box.run(["python3", "-c", script], check=True)
        kinds = set()
        while changes := watch.read(timeout=0.5):
            kinds |= {change.kind for change in changes}
        assert "lost" in kinds
        box.files.mkdir("after")
        assert ("created", "./after") in watch.read(timeout=HANG_S)


def test_a_directory_that_is_moved_again_and_again(box: kvmlet.Box) -> None:
    """Each move brings all its files; what one read tells of is bounded all the same."""
    make = "import os\nos.mkdir('d')\nfor i in range(2000): open(f'd/{i}', 'w').close()"
    move = "import os\nfor _ in range(500): os.rename('d', 'e'); os.rename('e', 'd')"
    box.run(["python3", "-c", make], check=True)
    with box.files.watch(recursive=True) as watch:
        box.run(["python3", "-c", move], check=True)
        kinds = set()
        while changes := watch.read(timeout=0.5):
            assert len(changes) < 40_000
            kinds |= {change.kind for change in changes}
        assert "lost" in kinds


def test_more_directories_than_can_be_watched(box: kvmlet.Box) -> None:
    make = "import os\nfor i in range(9000): os.mkdir(f'{i}')"
    box.files.mkdir("many")
    with box.files.watch("many", recursive=True) as watch:
        box.run(["python3", "-c", make], check=True, cwd="many")
        kinds = set()
        while changes := watch.read(timeout=0.5):
            kinds |= {change.kind for change in changes}
        assert kinds == {"created", "lost"}
    with pytest.raises(kvmlet.BoxFileError) as full:
        box.files.watch("many", recursive=True)
    assert full.value.remedy
    # All of them have been given back.
    with box.files.watch("many"):
        box.files.mkdir("many/more")


def test_names_that_are_no_text(box: kvmlet.Box) -> None:
    with box.files.watch() as watch:
        box.run(["python3", "-c", r"open(b'\xff\n\x1b', 'w')"], check=True)
        assert watch.read(timeout=HANG_S)[0] == ("created", "./\udcff\n\x1b")


def test_its_end(box: kvmlet.Box) -> None:
    with pytest.raises(FileNotFoundError):
        box.files.watch("missing")
    with pytest.raises(kvmlet.UsageError):
        kvmlet.box.Watch()
    watch = box.files.watch()
    watch.close()
    watch.close()
    assert watch.closed
    with pytest.raises(kvmlet.UsageError, match="closed"):
        watch.read()
    assert list(watch) == []
    watch = box.files.watch()
    box.reset()
    with pytest.raises(kvmlet.BoxWasReset):
        watch.read()
    watch.close()
    watch = box.files.watch()
    box.close()
    with pytest.raises(kvmlet.SandboxClosed):
        watch.read()
    watch.close()


def test_watches_leave_nothing(box: kvmlet.Box) -> None:
    for _ in range(200):
        # At most 128 instances at once.
        with box.files.watch():
            pass
        box.files.watch()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_for_coroutines(backend: str) -> None:
    async def main() -> None:
        async with aio.Box() as box, await box.files.watch(recursive=True) as watch:
            with anyio.move_on_after(0.2) as scope:
                await watch.read()
            assert scope.cancelled_caught
            await box.run("mkdir a; touch a/b", shell=True, check=True)
            seen = []
            async for change in watch:
                if change.kind == "created":
                    seen.append(change.path)
                if len(seen) == 2:
                    break
            assert seen == ["./a", "./a/b"]

    anyio.run(main, backend=backend)
