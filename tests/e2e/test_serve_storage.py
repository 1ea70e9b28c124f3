"""Storages: forks that are reset after each request share on purpose what one program keeps."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import threading
import time
import urllib.request

import pytest

import kvmlet
from e2e.oracle import ENV, GUESTS, HANG_S, KVMLET
from e2e.service import native_answers
from e2e.serving import Served, free_port, serving, started
from kvmlet.server import StorageOptions

pytestmark = [pytest.mark.usefixtures("vm"), pytest.mark.default_mode]

# What is asked before the server listens is asked once; what a request asks, each time.
APP = """
import ctypes, http.server, os, threading
import kvmlet_guest
KEPT = kvmlet_guest.storage("kept")
try:
    START = KEPT.ask(b"add").decode()
except kvmlet_guest.StorageError as error:
    START = error.strerror
COUNT = 0
call = ctypes.CDLL(None, use_errno=True).syscall
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global COUNT
        COUNT += 1
        path, _, words = self.path[1:].partition("?")
        try:
            body = getattr(self, path)(words)
        except kvmlet_guest.StorageError as error:
            body = f"{type(error).__name__} {error.errno} {error.strerror}: {error.filename}"
        body = body.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def state(self, words):
        return f"{START} {COUNT} {KEPT.ask(b'add').decode()}"
    def ask(self, words):
        return KEPT.ask(words.replace("+", " ").encode()).decode()
    def other(self, words):
        return kvmlet_guest.storage(words).ask(b"add").decode()
    def large(self, words):
        # The buffer of this thread is smaller than that; the question is as long as one may be.
        return str(len(KEPT.ask(b"echo " + b"x" * (int(words) - 5))))
    def half(self, words):
        # It is gone before the storage has answered.
        threading.Timer(0.2, os._exit, (3,)).start()
        return KEPT.ask(b"slow 0.5").decode()
    def leave(self, words):
        # Asks and takes no answer.
        for _ in range(int(words)):
            assert call(7003, b"kept", b"add", 3) > 0
        return "left"
    def flood(self, words):
        def ask():
            while True:
                try:
                    KEPT.ask(bytes(1 << 20))
                except (kvmlet_guest.StorageError, MemoryError):
                    pass
        for _ in range(60):
            threading.Thread(target=ask).start()
        threading.Event().wait()
    def both(self, words):
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(KEPT.ask(b"meet"))) for _ in range(2)
        ]
        for each in threads: each.start()
        for each in threads: each.join()
        return b" ".join(answers).decode()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", 8000), App).serve_forever()
"""

STORAGE = """
import os, sys, threading, time
import kvmlet_guest
SUM, MEETING = 0, threading.Barrier(2)
def answer(question):
    global SUM
    word, _, rest = question.partition(b" ")
    if word == b"add":
        SUM += 1
    elif word == b"slow":
        time.sleep(float(rest))
        SUM += 1
    elif word == b"spin":
        while True: pass
    elif word == b"die":
        os._exit(7)
    elif word == b"echo":
        return question
    elif word == b"meet":
        return b"%d" % (MEETING.wait(20) < 2)
    elif word == b"skip":
        # The next one is taken before this one is answered.
        kvmlet_guest.receive()
    elif word == b"open":
        try:
            open(rest)
        except OSError as error:
            return type(error).__name__.encode()
    elif word == b"say":
        print("said by a storage", flush=True)
    return b"%d" % SUM
kvmlet_guest.serve(answer, threads=int(sys.argv[1]) if sys.argv[1:] else 1)
"""


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "kept.py").write_text(STORAGE)
    return tmp_path


PROGRAM = ["/usr/bin/python3", "app.py"]
KEPT = ["--storage", "kept=/usr/bin/python3 kept.py"]


def refused(directory: pathlib.Path, *words: str) -> tuple[int, str]:
    argv = [os.fspath(KVMLET), "serve", *words]
    run = subprocess.run(argv, cwd=directory, env=ENV, capture_output=True, timeout=HANG_S)
    return run.returncode, run.stderr.decode()


def until_answered(served: Served) -> None:
    end = time.monotonic() + HANG_S
    while not (said := served.get("/state")[1]).startswith(b"1 1 "):
        assert time.monotonic() < end, said
        time.sleep(0.05)


def test_a_storage_is_not_reset_and_forks_are(place: pathlib.Path) -> None:
    warmup = ["--warmup-request", "GET /state"]
    with serving(place, *KEPT, *warmup, program=PROGRAM) as served:
        # One at the start, one that warmed the server up.
        for number in range(3, 23):
            assert served.get("/state") == (200, f"1 2 {number}".encode())
        assert served.get("/large?16777216") == (200, b"16777216")
        status, said = served.get("/large?16777217")
        assert (status, said.split()[:2]) == (200, [b"StorageError", b"90"])
        assert b"a question has at most 16777216 bytes" in said
        status, said = served.get("/other?nobody")
        assert (status, said) == (
            200,
            b"StorageError 2 there is no storage of this name: start it by kvmlet serve "
            b"--storage NAME=CMD: nobody",
        )
        assert served.get("/ask?say") == (200, b"22")
        # A program that takes another's place finds what it has left.
        served.process.send_signal(signal.SIGHUP)
        served.until("kvmlet_reloads_total", 1)
        # That one has asked at its start, and been warmed up.
        assert served.get("/state") == (200, b"23 2 25")
        name = 'kvmlet_storage_questions_total{storage="kept",outcome="ok"}'
        assert served.metric(name) == 27
        assert served.metric('kvmlet_storage_run_seconds_count{storage="kept"}') == 27
        assert served.metric('kvmlet_storage_memory_bytes{storage="kept"}') > 1 << 20
        status_text = served.control("/-/status")
        assert '"storages":{"kept":{"answered":27,"waiting":0,"restarts":0,' in status_text
        shown = subprocess.run(
            [os.fspath(KVMLET), "serve", "--status", "--control", f"unix:{served.control_path}"],
            env=ENV,
            capture_output=True,
            timeout=HANG_S,
        )
        assert b"storage      kept: 27 questions answered, 0 wait, started anew 0" in shown.stdout
        status, _, err = served.end()
        assert (status, b"[storage kept] said by a storage" in err) == (0, True), err


def test_a_request_that_dies_half_way_leaves_it_whole(place: pathlib.Path) -> None:
    options = ["--timeout", "2s", "--forks", "1", "--request-memory", "64m"]
    with serving(place, *KEPT, *options, program=PROGRAM) as served:
        assert served.get("/state") == (200, b"1 1 2")
        assert served.get("/half")[0] == 502
        # It has done what it was asked, for nobody.
        assert served.get("/state") == (200, b"1 1 4")
        # The deadline of the request ends that, and not the storage.
        assert served.get("/ask?slow+2.5")[0] == 504
        assert served.get("/state") == (200, b"1 1 6")
        assert served.get("/leave?10") == (200, b"left")
        # So many may not be open: it waits for itself.
        assert served.get("/leave?70")[0] == 504
        assert served.get("/flood")[0] in (502, 504)
        until_answered(served)
        assert served.metric('kvmlet_storage_restarts_total{storage="kept"}') == 0


def test_what_a_storage_is_denied_is_told_while_it_serves(place: pathlib.Path) -> None:
    with serving(place, *KEPT, program=PROGRAM) as served:
        for _ in range(2):
            assert served.get("/ask?open+/etc/shadow") == (200, b"FileNotFoundError")
        assert served.process.stderr is not None
        lines = iter(served.process.stderr.readline, b"")
        told = next(line for line in lines if b"denied: open" in line)
        assert told == b"[storage kept] denied: open /etc/shadow (ENOENT)\n"
        status, _, err = served.end()
        assert (status, b"denied" in err) == (0, False), err


def test_one_that_never_answers_is_ended_by_deadlines(place: pathlib.Path) -> None:
    limit = ["--storage-option", "kept.timeout=3s"]
    options = ["--timeout", "1s", "--forks", "2"]
    with serving(place, *KEPT, *limit, *options, program=PROGRAM) as served:
        assert served.get("/state") == (200, b"1 1 2")
        assert served.get("/ask?spin")[0] == 504
        # It stays, until its own time for a question is over.
        assert served.metric('kvmlet_storage_restarts_total{storage="kept"}') == 0
        served.until('kvmlet_storage_restarts_total{storage="kept"}', 1)
        until_answered(served)
        # Who waits behind it waits in vain.
        assert served.get("/ask?spin")[0] == 504
        assert served.get("/state")[0] == 504


def test_one_that_dies_is_an_error_of_its_own(place: pathlib.Path) -> None:
    with serving(place, *KEPT, program=PROGRAM) as served:
        for _ in range(3):
            status, said = served.get("/ask?die")
            assert (status, said) == (
                200,
                b"StorageError 32 the storage has ended before it answered: kept",
            )
            # It is started anew, without what it knew.
            assert served.get("/state") == (200, b"1 1 1")
        assert served.metric('kvmlet_storage_restarts_total{storage="kept"}') == 3
        outcome = 'kvmlet_storage_questions_total{storage="kept",outcome="ended"}'
        assert served.metric(outcome) == 3
        # It waits for the next one instead of answering.
        status, said = served.get("/ask?skip")
        assert (status, said.split()[:2]) == (200, [b"StorageError", b"71"]), said
        assert served.get("/state")[0] == 200
        status, _, err = served.end()
        assert status == 0
        assert b"storage kept: it exited with status 7; it is started anew, without what" in err


def test_questions_are_answered_at_one_time(place: pathlib.Path) -> None:
    kept = ["--storage", "kept=/usr/bin/python3 kept.py 2"]
    both = ["--storage-option", "kept.concurrent=2"]
    with serving(place, *kept, *both, program=PROGRAM) as served:
        # Neither is answered before the other is asked: of one request, and of two.
        assert served.get("/both") == (200, b"1 1")
        said: list[tuple[int, bytes]] = []
        asking = [
            threading.Thread(target=lambda: said.append(served.get("/ask?meet"))) for _ in range(2)
        ]
        for each in asking:
            each.start()
        for each in asking:
            each.join(HANG_S)
        assert said == [(200, b"1")] * 2


def test_programs_in_c_ask_and_answer() -> None:
    # The storage natively, and a program that asks one where there is none.
    assert native_answers(["./tally"], cwd=GUESTS / "build", messages=[b"2", b"-7", b"x"]) == [
        b"2",
        b"-5",
        b"-5",
    ]
    asks = subprocess.run(["./tally", "tally"], cwd=GUESTS / "build", capture_output=True)
    inside = kvmlet.run(["./tally", "tally"], cwd=GUESTS / "build", timeout=HANG_S)
    assert asks.stdout == inside.stdout == b"no answer: ENOSYS\ntoo long: 1\n"


def test_a_server_in_c_shares_a_sum(tmp_path: pathlib.Path) -> None:
    words = ["-w", os.fspath(GUESTS / "build"), "--storage", "tally=./tally"]
    with serving(tmp_path, *words, program=["./webserver", "epoll", "8000"]) as served:
        sums = [int(served.get(f"/tally/{number}")[1]) for number in (5, 10, 20)]
        assert sums == [5, 15, 35]
        assert served.get("/count")[1].startswith(b"counter 1 ")


def test_programs_of_a_file_ask_whom_they_may(place: pathlib.Path) -> None:
    port, control = free_port(), place / "control"
    program = """
[program.{name}]
command = ["/usr/bin/python3", "app.py"]
path = "/{name}"
forks = 1
{more}
"""
    app = APP.replace("self.path[1:]", "self.path[1:].partition('/')[2]")
    (place / "app.py").write_text(app)
    storage = """
[storage.kept]
command = ["/usr/bin/python3", "kept.py"]
memory = "64m"
"""
    text = f'listen = "{port}"\ncontrol = "unix:{control}"\n' + storage
    # One that may ask nobody has the module if it is shown.
    modules = pathlib.Path(kvmlet.get_include()).parent / "python"
    shown = f'read = ["{modules}"]\nenv = {{ PYTHONPATH = "{modules}" }}'
    asking = 'storage = ["kept"]'
    for name, more in (("a", asking), ("b", asking), ("c", shown)):
        text += program.format(name=name, more=more)
    (place / "serve.toml").write_text(text)
    words = ["--config", os.fspath(place / "serve.toml")]
    with started(words, place, port, control) as served:
        told = [served.get(f"/{name}/state")[1].split()[1:] for name in "aba"]
        assert [count for count, _ in told] == [b"1"] * 3
        # Both have asked at their start.
        assert [int(number) for _, number in told] == [3, 4, 5]
        assert served.get("/c/state")[1].startswith(b"StorageError 2 there is no storage")


def test_a_storage_in_this_process(place: pathlib.Path) -> None:
    kept: StorageOptions = {
        "command": ["/usr/bin/python3", "kept.py"],
        "memory": "64m",
        "timeout": 10,
    }
    with kvmlet.serve(PROGRAM, cwd=place, forks=1, storage={"kept": kept}) as server:

        def get() -> bytes:
            with contextlib.closing(urllib.request.urlopen(server.url + "/state")) as answer:
                said: bytes = answer.read()
                return said

        assert [get(), get()] == [b"1 1 2", b"1 1 3"]
        server.reload()
        assert get() == b"4 1 5"
    command = ["/usr/bin/python3", "kept.py"]
    for storage, part in (
        (["x"], "storage: ['x'] is no table"),
        ({"a b": command}, "storage: 'a b' is no name"),
        ({"kept": {"memory": 1}}, "storage['kept'] has no command"),
        ({"kept": {"command": command, "forks": 1}}, "storage['kept'] has no option 'forks'"),
        ({"kept": {"command": command, "concurrent": 0}}, "storage['kept']: concurrent: 0 is"),
        ({"kept": {"command": command, "memory": "1k"}}, "storage['kept']: memory: '1k'"),
    ):
        with pytest.raises(kvmlet.UsageError) as caught:
            kvmlet.Server(PROGRAM, cwd=place, storage=storage)  # type: ignore[arg-type]
        assert part in str(caught.value)
        assert "; " in str(caught.value)


def test_what_is_wrong_with_a_storage_is_one_line(place: pathlib.Path) -> None:
    listen = ["--listen", "unix:place", "-q"]
    for words, part in (
        (["--storage", "kept"], "--storage: 'kept' names no storage; write NAME=CMD"),
        (["--storage", "a b=true"], "--storage: 'a b=true' names no storage"),
        (["--storage", "kept="], "--storage kept: no program given"),
        (["--storage", "kept='"], "--storage kept: no closing quotation"),
        ([*KEPT, *KEPT], "--storage: kept is named twice"),
        (["--storage-option", "kept.memory=64m"], "there is no storage 'kept'; start it"),
        ([*KEPT, "--storage-option", "kept.forks=1"], "'kept.forks=1' is none; write NAME.KEY"),
        ([*KEPT, "--storage-option", "kept.memory=1k"], "--storage-option kept.memory: '1k'"),
        ([*KEPT, "--storage-option", "kept.concurrent=0"], "kept.concurrent: 0 is out of range"),
        ([*KEPT, *(["--storage-option", "kept.timeout=1s"] * 2)], "said twice"),
        (["--storage", "kept=/bin/false"], "storage kept: the program has ended before it waited"),
        (
            ["--storage", "kept=/bin/sleep 9", "--storage-option", "kept.boot-timeout=500ms"],
            "storage kept: it does not wait for questions; have it take them: kvmlet_guest.serve",
        ),
    ):
        status, text = refused(place, *listen, *words, "--", *PROGRAM)
        assert (status, text.count("\n")) == (125, 1), text
        assert part in text
    for check in ([], ["--check"]):
        status, text = refused(place, *check, *listen, "--storage", "k=absent", "--", *PROGRAM)
        assert (status, "storage k: absent" in text) == (127, True), text
