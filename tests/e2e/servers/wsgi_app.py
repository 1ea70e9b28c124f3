"""For servers of WSGI."""

from collections.abc import Callable, Iterable
from typing import Any

import counting


def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    answers = {"/count": counting.count, "/draw": counting.draw}
    data = answers.get(environ["PATH_INFO"], lambda: "ready")().encode()
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(data)))])
    return [data]
