"""For uvicorn. FastAPI calls plain functions in threads, and coroutines in its own."""

import counting
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

app = FastAPI(default_response_class=PlainTextResponse)


@app.get("/")
async def ready() -> str:
    return "ready"


@app.get("/count")
def count() -> str:
    return counting.count()


@app.get("/draw")
def draw() -> str:
    return counting.draw()
