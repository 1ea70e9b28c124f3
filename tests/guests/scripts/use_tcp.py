"""TCP and UDP on the loopback device: http.server and urllib, asyncio, xmlrpc, many clients at once."""

import asyncio
import http.server
import multiprocessing.managers
import select
import socket
import socketserver
import threading
import urllib.error
import urllib.request
import xmlrpc.client
import xmlrpc.server


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(f"you asked for {self.path}\n".encode())

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"]))[::-1])

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{server.server_port}"
        print(urllib.request.urlopen(f"{url}/page").read())
        print(len(urllib.request.urlopen(f"{url}/", data=b"x" * 3_000_000).read()))
    server.shutdown()
    thread.join()
try:
    urllib.request.urlopen(url)
except urllib.error.URLError as error:
    print(type(error.reason).__name__)


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def client(port, number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    total = 0
    for turn in range(20):
        writer.write(b"client %d says %d\n" % (number, turn))
        total += len(await reader.readline())
    writer.write(b"x" * 400_000 + b"\n")
    writer.write_eof()
    total += len(await reader.read())
    writer.close()
    await writer.wait_closed()
    return total


async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0, limit=1 << 20)
    port = server.sockets[0].getsockname()[1]
    async with server:
        print(await asyncio.gather(*[client(port, number) for number in range(50)]))

    class Datagrams(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            self.transport.sendto(data[::-1], address)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(transport.get_extra_info("sockname"))
        for number in range(3):
            sender.send(b"datagram %d" % number)
            print(await loop.sock_recv(sender, 100))
    transport.close()


asyncio.run(main())

with xmlrpc.server.SimpleXMLRPCServer(("localhost", 0), logRequests=False) as server:
    server.register_function(pow)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    proxy = xmlrpc.client.ServerProxy(f"http://localhost:{server.server_address[1]}")
    print(proxy.pow(2, 10))
    server.shutdown()
    thread.join()


class Forking(socketserver.ForkingMixIn, socketserver.TCPServer):
    allow_reuse_address = True


class Reverse(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline().strip()[::-1])


with Forking(("127.0.0.1", 0), Reverse) as server:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for number in range(5):
        with socket.create_connection(server.server_address) as connection:
            connection.sendall(b"number %d\n" % number)
            print(connection.makefile("rb").read())
    server.shutdown()
    thread.join()

manager = multiprocessing.managers.SyncManager(address=("127.0.0.1", 0), authkey=b"key")
manager.start()
names = manager.list()
names.append("by TCP")
print(list(names))
manager.shutdown()

print(
    socket.gethostbyname("localhost"),
    sorted(info[4][0] for info in socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)),
)
with socket.create_server(("127.0.0.1", 0)) as listener:
    readable, _, _ = select.select([listener], [], [], 0)
    with socket.create_connection(listener.getsockname()):
        print(len(readable), select.select([listener], [], [], 1)[0] == [listener])
