"""A bash that is warmed and asked by pipes: each request is a line for it, the answer what it writes."""

import subprocess
import tempfile

import kvmlet_guest

END = b"end of the answer\n"
SHELL = ["/bin/bash", "--norc", "--noprofile"]

with (
    tempfile.TemporaryDirectory() as place,
    subprocess.Popen(
        SHELL, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as shell,
):

    def ask(line: bytes) -> bytes:
        shell.stdin.write(line + b"\necho '" + END.rstrip() + b"'\n")
        answer = b""
        while not answer.endswith(END):
            if not (part := shell.stdout.read(4096)):
                return b"the shell has ended"
            answer += part
        return answer.removesuffix(END)

    # The names of commands are known to it, and it has state of its own.
    ask(b"count=0; declare -A seen; hash sh tr cat")
    kvmlet_guest.serve(ask)
