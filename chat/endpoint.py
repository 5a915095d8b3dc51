"""The two ask routes, below Django."""

from typing import Any

ASK_PATHS = {"/api/v1/ask", "/api/v1/ask/stream"}


def is_ask_path(path: str) -> bool:
    return path in ASK_PATHS


async def ask_application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b""})
