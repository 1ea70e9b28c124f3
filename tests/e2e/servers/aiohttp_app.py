"""For aiohttp's own server."""

import counting
from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    answers = {"/count": counting.count, "/draw": counting.draw}
    return web.Response(text=answers.get(request.path, lambda: "ready")())


def init(argv: list[str]) -> web.Application:
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    return app
