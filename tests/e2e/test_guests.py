"""The guest programs in C, each natively and in a VM."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from e2e.oracle import HW, NO_RUNTIMES, in_vm, repeated, sized

if TYPE_CHECKING:
    import pathlib

    from e2e.oracle import Oracle

pytestmark = [pytest.mark.hw, pytest.mark.poll]

# Which library a program is linked with is nothing to the CPU.
HELLOS = (
    ["static", "dynamic"] if HW else ["static", "musl", "static-pie", "dynamic", "musl-dynamic"]
)
LIBRARIES = [""] if HW else ["", "-dynamic", "-musl"]


@pytest.mark.parametrize("kind", HELLOS)
def test_hello(oracle: Oracle, guests: pathlib.Path, kind: str) -> None:
    oracle.compare([f"./hello-{kind}", "one", "two words", "", "ünï"], cwd=guests)


@pytest.mark.hw_modes
def test_first_instruction_and_registers(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./bare"], cwd=guests, expect_status=7)


@pytest.mark.parametrize("library", LIBRARIES)
def test_arguments_environment_and_auxiliary_vector(
    oracle: Oracle, guests: pathlib.Path, library: str
) -> None:
    oracle.compare([f"./args{library}", "a b", ""], cwd=guests, expect_status=2)


def test_many_long_arguments(oracle: Oracle, guests: pathlib.Path) -> None:
    words = [f"{i}-" + "x" * (i * 37 % 3000) for i in range(200)]
    oracle.compare(["./args", *words], cwd=guests, expect_status=200)


@pytest.mark.parametrize("library", LIBRARIES)
def test_processes(oracle: Oracle, guests: pathlib.Path, library: str) -> None:
    oracle.compare([f"./processes{library}"], cwd=guests)


def test_memory_after_fork(oracle: Oracle, guests: pathlib.Path) -> None:
    """With little memory: what fork loses is missed in the end."""
    options = ["--memory", "96m"]
    oracle.compare(["./forkmem", "./forkmem"], cwd=guests, options=options)


@pytest.mark.default_mode
def test_what_a_process_costs_is_given_back(oracle: Oracle, guests: pathlib.Path) -> None:
    """With little memory: there is no room for all of them at the same time."""
    times, memory = (100, "12m") if HW else (600, "24m")
    script = f"i=0; while [ $i -lt {times} ]; do (exit 3); i=$((i + 1)); done; echo $i"
    oracle.compare(["/bin/sh", "-c", script], cwd=guests, options=["--memory", memory])


def test_stops(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./stops"], cwd=guests)


def test_hand_overs_beside_a_process_that_computes(oracle: Oracle, guests: pathlib.Path) -> None:
    """3,000 waits for a turn of 10 ms would take half a minute."""
    words = ["./beside", str(sized(1500, 100))]
    oracle.compare(words, cwd=guests, options=["--timeout", "300" if HW else "15"])


def test_parents_that_wait_in_vfork(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./vfork"], cwd=guests)


def test_a_program_that_changes_its_text(oracle: Oracle, guests: pathlib.Path) -> None:
    """The next one that executes the file finds what the file has."""
    oracle.compare(["./owntext"], cwd=guests)


def test_a_program_that_is_written_anew(oracle: Oracle, tmp_path: pathlib.Path) -> None:
    """In place, or as another file of that name: what is there now is executed."""
    script = """
        for turn in 1 2 3 4; do
            for program in echo printf; do
                cat /usr/bin/$program > tool
                chmod +x tool
                ./tool "%s%s" $turn; ./tool "%s%s" $turn
            done
            rm -f other; cp /usr/bin/basename other; ./other a/b; mv tool other; ./other c/d
        done
    """
    oracle.compare(["/bin/sh", "-c", script], cwd=tmp_path)


def test_calls_on_other_processes(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./peer"], cwd=guests)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("size", [1_000_001] if HW else [0, 1, 4096, 1_000_001])
def test_echo(oracle: Oracle, guests: pathlib.Path, library: str, size: int) -> None:
    data = bytes(i * i % 251 for i in range(size))
    oracle.compare([f"./echo{library}"], cwd=guests, input=data)


ENDINGS = [
    (["return", "0"], 0),
    (["return", "1"], 1),
    (["return", "255"], 255),
    (["return", "256"], 0),
    (["exit", "3"], 3),
    (["quick", "4"], 4),
    (["exit-thread-only", "5"], 5),
    (["thread", "6"], 6),
    (["group", "7"], 7),
    (["main-first"], 0),
    (["default-ignored"], 0),
    (["abort"], 134),
    (["null"], 139),
    (["null-call"], 139),
    (["noncanonical"], 139),
    (["kernel-half"], 139),
    (["readonly"], 139),
    (["overflow"], 139),
    (["div"], 136),
    (["ud2"], 132),
    (["int3"], 133),
    (["hlt"], 139),
    *[(["raise", str(n)], 128 + n) for n in (1, 2, 3, 6, 9, 10, 13, 14, 15, 31, 40)],
    *[(["kill", str(n)], 128 + n) for n in (2, 9, 11, 15)],
]
EXCEPTIONS = ENDINGS[ENDINGS.index((["abort"], 134)) : ENDINGS.index((["raise", "1"], 129))]
"""Those by an instruction."""
if HW:
    ENDINGS = [*ENDINGS[:1], *EXCEPTIONS]


@pytest.mark.parametrize(("words", "status"), ENDINGS, ids=["-".join(w) for w, _ in ENDINGS])
def test_endings(oracle: Oracle, guests: pathlib.Path, words: list[str], status: int) -> None:
    oracle.compare(["./exits", *words], cwd=guests, expect_status=status)


@pytest.mark.hw_modes
@pytest.mark.parametrize(
    "program", ["mmap", "protect", "mremap"] if HW else ["mmap", "mmap-musl", "protect", "mremap"]
)
def test_memory(oracle: Oracle, guests: pathlib.Path, program: str) -> None:
    oracle.compare([f"./{program}"], cwd=guests)


@pytest.mark.hw_modes
@pytest.mark.parametrize("program", ["mmapfile"] if HW else ["mmapfile", "mmapfile-dynamic"])
def test_mapped_files(
    oracle: Oracle, guests: pathlib.Path, pattern_file: pathlib.Path, program: str
) -> None:
    copy = pattern_file.parent / program
    copy.write_bytes((guests / program).read_bytes())
    copy.chmod(0o755)
    oracle.compare([f"./{program}", "pattern"], cwd=copy.parent)


@pytest.mark.hw_modes
@pytest.mark.parametrize("library", LIBRARIES)
def test_signals(oracle: Oracle, guests: pathlib.Path, library: str) -> None:
    oracle.compare([f"./signals{library}"], cwd=guests, expect_status=139)


@pytest.mark.slow
def test_breakpoints_among_signals(oracle: Oracle, guests: pathlib.Path) -> None:
    """A kick during its delivery neither loses a breakpoint nor moves it to a signal's handler."""
    rounds, interval_us = repeated(4000, 100), sized(400, 20_000)
    oracle.compare(["./breakpoints", str(rounds), "40", str(interval_us)], cwd=guests)


@pytest.mark.hw_modes
def test_alternate_stack(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./altstack"], cwd=guests, expect_status=139)


def test_selectors_of_threads(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./selectors"], cwd=guests)


@pytest.mark.slow
@pytest.mark.hw_modes
@pytest.mark.parametrize("library", LIBRARIES)
def test_threads(oracle: Oracle, guests: pathlib.Path, library: str) -> None:
    argv = [f"./threads{library}", str(sized(20000, 500)), str(repeated(200, 3))]
    oracle.compare(argv, cwd=guests)


# What sendfile(2) tells inotify depends on the kernel.
WAITED_FOR = ["epoll", "timerfd", "loopback"]
if not HW:
    WAITED_FOR += ["eventfd", "inotify", "socketpair", "unixnames", "rights", "procnet"]


@pytest.mark.hw_modes
@pytest.mark.parametrize("program", WAITED_FOR)
def test_descriptors_that_are_waited_for(
    oracle: Oracle, guests: pathlib.Path, program: str
) -> None:
    oracle.compare([f"./{program}"], cwd=guests)


@pytest.mark.hw_modes
def test_threads_that_never_call_the_kernel_take_turns(
    oracle: Oracle, guests: pathlib.Path
) -> None:
    oracle.compare(["./preempt"], cwd=guests)


@pytest.mark.hw_modes
def test_threads_keep_their_vector_registers(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./fpu", str(sized(40, 8))], cwd=guests)


@pytest.mark.parametrize("library", LIBRARIES)
def test_clocks(oracle: Oracle, guests: pathlib.Path, library: str) -> None:
    oracle.compare([f"./clock{library}", str(sized(20000, 1000))], cwd=guests)


@pytest.mark.hw_modes
def test_timers(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./timers"], cwd=guests)


def test_interval_timers(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./itimer"], cwd=guests)


def test_cpu_time_between_calls(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./cputime"], cwd=guests)


@pytest.mark.slow
def test_each_call_is_made_once(oracle: Oracle, guests: pathlib.Path) -> None:
    argv = ["./once", "100", "50000"] if HW else ["./once", str(repeated(2000, 100, short=500))]
    oracle.compare(argv, cwd=guests)


@pytest.mark.slow
@pytest.mark.hw_modes
@pytest.mark.parametrize("linked", LIBRARIES[:2])
def test_calls_that_jump(oracle: Oracle, guests: pathlib.Path, linked: str) -> None:
    argv = [
        f"./trampoline{linked}",
        *(["20", "50000"] if HW else [str(repeated(2000, 20, short=600))]),
    ]
    oracle.compare(argv, cwd=guests)


def test_shared_memory_by_name(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./shm"], cwd=guests)


@pytest.mark.hw_modes
def test_queued_signals(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./sigqueue"], cwd=guests)


def test_signals_of_pipes_and_sockets(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./sigio"], cwd=guests)


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_the_go_runtime(oracle: Oracle, guests: pathlib.Path) -> None:
    if not (guests / "goruntime-go").exists():
        pytest.skip("no Go compiler here: apt-get install golang-go")
    oracle.compare(["./goruntime-go", "a", "b"], cwd=guests)


def test_vdso_symbols(oracle: Oracle, guests: pathlib.Path) -> None:
    oracle.compare(["./vdso"], cwd=guests)


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_many_runs_see_different_randomness(vm: None, guests: pathlib.Path) -> None:
    script = "import os; print(os.urandom(16).hex(), hash('x'), id(object()))"
    runs = [in_vm(["/usr/bin/python3", "-c", script], cwd=guests) for _ in range(5)]
    assert all(run.status == 0 for run in runs)
    columns = list(zip(*(run.stdout.split() for run in runs), strict=True))
    # Random bytes, the hash seed and the address space layout.
    assert all(len(set(column)) == len(runs) for column in columns), columns


@pytest.mark.skipif(HW, reason=NO_RUNTIMES)
def test_the_first_process(vm: None, guests: pathlib.Path) -> None:
    script = (
        "import os; u = os.uname();"
        "print(u.sysname, u.machine, os.getpid(), os.getppid(), os.getuid(), os.getgid())"
    )
    run = in_vm(["/usr/bin/python3", "-c", script], cwd=guests)
    assert run.stdout.decode() == f"Linux x86_64 2 1 {os.getuid()} {os.getgid()}\n"
    assert run.status == 0
