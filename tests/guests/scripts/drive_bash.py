"""Types at an interactive bash on a pseudo-terminal, and prints what it shows."""

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time

PROMPT = b"ready> "
pid, master = pty.fork()
if pid == 0:
    env = {"PATH": "/usr/bin:/bin", "PS1": PROMPT.decode(), "TERM": "dumb", "HISTFILE": ""}
    os.execve("/bin/bash", ["bash", "--norc", "--noediting", "-i"], env)
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 97, 0, 0))
shown = b""


def until(end):
    global shown
    while end not in shown:
        if not select.select([master], [], [], 20)[0]:
            sys.exit(f"nothing more after {shown!r}")
        try:
            shown += os.read(master, 4096)
        except OSError:
            shown += b"[closed]"
    at = shown.index(end) + len(end)
    text, shown = shown[:at], shown[at:]
    # Numbers of processes and terminals are nobody's business.
    text = re.sub(rb"\[(\d)\] \d+", rb"[\1] PID", text)
    print(re.sub(rb"pts/\d+", b"pts/N", text).decode(errors="replace").encode("unicode_escape"))


def in_foreground():
    """Wait until the shell has given the terminal to its job, and a moment for the job to begin."""
    while os.tcgetpgrp(master) == pid:
        time.sleep(0.01)
    time.sleep(0.3)


def run(line):
    os.write(master, line + b"\n")
    until(PROMPT)


until(PROMPT)
run(b"tty; stty size")
run(b"stty -a")
os.write(master, b"sleep 100; echo no\n")
until(b"echo no\r\n")
in_foreground()
os.write(master, b"\x03")
until(PROMPT)
run(b"echo $?")
os.write(master, b"cat\n")
until(b"cat\r\n")
in_foreground()
os.write(master, b"tyqed\x7f\x7f\x7fped\n")
until(b"typed\r\n")
os.write(master, b"\x1a")
until(PROMPT)
run(b"jobs")
os.write(master, b"fg\n")
until(b"cat\r\n")
in_foreground()
os.write(master, b"more\n")
until(b"more\r\nmore\r\n")
os.write(master, b"\x04")
until(PROMPT)
run(b"(trap 'echo size' WINCH; kill -WINCH $BASHPID; stty size)")
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
run(b"stty size; stty -echo")
run(b"echo hidden; stty echo")
run(b"set -m; sleep 100 & bg; jobs -r; kill %%; sleep 0.3; jobs")
run(b"cat < /dev/tty & sleep 0.3; jobs -s | cat")
run(b"kill -9 %%; sleep 0.3; jobs")
os.write(master, b"\x04")
until(b"[closed]")
print(os.waitpid(pid, 0)[1])
