"""Clients of HTTP for Python, each with a server in this process: the words name them."""

import asyncio
import http.server
import sys
import threading
import urllib.request


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"you asked for {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def by_urllib(base):
    print([urllib.request.urlopen(base + str(n)).read() for n in range(4)])


def by_requests(base):
    import requests

    with requests.Session() as session:
        print([session.get(base + str(n)).text for n in range(4)])


def by_asyncio(base):
    host, port = base.split("/")[2].split(":")

    async def get(path):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
        return data.rpartition(b"\r\n")[2]

    async def main():
        print(await asyncio.gather(*(get(f"/{n}") for n in range(16))))

    asyncio.run(main())


def by_aiohttp(_):
    from aiohttp import ClientSession, web

    async def answer(request):
        return web.Response(text=f"{request.method} {request.path} {len(await request.read())}")

    async def main():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        async with ClientSession() as session:

            async def get(n):
                async with session.post(f"http://127.0.0.1:{port}/{n}", data=b"x" * n) as found:
                    return await found.text()

            print(await asyncio.gather(*(get(n) for n in range(16))))
        await runner.cleanup()

    asyncio.run(main())


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    for name in sys.argv[1:]:
        globals()[f"by_{name}"](f"http://127.0.0.1:{server.server_address[1]}/")
    server.shutdown()
