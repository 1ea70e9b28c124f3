"""A client of a language server: over standard streams, or by a port if the first word is one."""

import json
import socket
import subprocess
import sys
import time


def write(stream, message):
    body = json.dumps({"jsonrpc": "2.0", **message}).encode()
    stream.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
    stream.flush()


def read(stream):
    length = 0
    while line := stream.readline().strip():
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return json.loads(stream.read(length))


def ask(streams, number, method, params):
    into, out = streams
    write(into, {"id": number, "method": method, "params": params})
    while (answer := read(out)).get("id") != number:
        pass
    return answer["result"]


def talk(streams):
    result = ask(streams, 1, "initialize", {"processId": None, "rootUri": None, "capabilities": {}})
    print(sorted(result["capabilities"])[:3])
    text = "import os\nos.pat"
    item = {"uri": "file:///tmp/a.py", "languageId": "python", "version": 1, "text": text}
    write(streams[0], {"method": "initialized", "params": {}})
    write(streams[0], {"method": "textDocument/didOpen", "params": {"textDocument": item}})
    place = {"textDocument": {"uri": item["uri"]}, "position": {"line": 1, "character": 6}}
    found = ask(streams, 2, "textDocument/completion", place)
    print([each["label"] for each in found["items"]][:3])
    ask(streams, 3, "shutdown", None)
    write(streams[0], {"method": "exit"})


port, server = sys.argv[1], sys.argv[2:]
if port == "-":
    with subprocess.Popen(server, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        talk((process.stdin, process.stdout))
else:
    process = subprocess.Popen(server)
    for _ in range(600):
        try:
            connection = socket.create_connection(("127.0.0.1", int(port)))
            break
        except OSError:
            time.sleep(0.1)
    with connection, connection.makefile("rwb") as stream:
        talk((stream, stream))
    process.terminate()
    process.wait()
