"""For uvicorn."""

import counting
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route


async def ready(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ready")


async def count(request: Request) -> PlainTextResponse:
    return PlainTextResponse(counting.count())


async def draw(request: Request) -> PlainTextResponse:
    return PlainTextResponse(counting.draw())


app = Starlette(routes=[Route("/", ready), Route("/count", count), Route("/draw", draw)])
