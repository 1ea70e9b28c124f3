"""AF_UNIX sockets by asyncio, socketserver and http.server: many clients at once."""

import array
import asyncio
import http.client
import http.server
import os
import socket
import socketserver
import tempfile
import threading

PLACE = tempfile.mkdtemp(dir="/tmp")


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def client(number):
    reader, writer = await asyncio.open_unix_connection(f"{PLACE}/asyncio")
    total = 0
    for turn in range(20):
        writer.write(b"client %d says %d\n" % (number, turn))
        total += len(await reader.readline())
    writer.write(b"x" * 300_000 + b"\n")
    writer.write_eof()
    total += len(await reader.read())
    writer.close()
    return total


async def main():
    server = await asyncio.start_unix_server(echo, f"{PLACE}/asyncio", limit=1 << 20)
    async with server:
        print(await asyncio.gather(*[client(number) for number in range(30)]))


asyncio.run(main())


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"you asked for {self.path}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(f"{PLACE}/http")


with Server(f"{PLACE}/http", Handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for number in range(10):
        connection = Connection("localhost")
        connection.request("GET", f"/{number}")
        response = connection.getresponse()
        print(response.status, response.read())
        connection.close()
    server.shutdown()
    thread.join()

one, other = socket.socketpair()
with open(f"{PLACE}/file", "w+") as file:
    file.write("through a socket")
    file.flush()
    socket.send_fds(one, [b"here"], [file.fileno()])
message, fds, flags, address = socket.recv_fds(other, 100, 5)
print(message, len(fds), flags, os.pread(fds[0], 100, 0))
other.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
one.send(b"who")
message, control, flags, address = other.recvmsg(100, 100)
pid, uid, gid = array.array("i", control[0][2])
print(message, pid == os.getpid(), uid == os.getuid(), gid == os.getgid())
