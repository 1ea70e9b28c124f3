"""Hello for uvicorn, without a framework."""

from __future__ import annotations

from typing import Any


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ARG001
    """Answer one request."""
    if scope["type"] != "http":
        return
    head = [(b"content-length", b"6")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"hello\n"})
