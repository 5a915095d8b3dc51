"""Sockets of the live page."""

from typing import Any


async def websocket_application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.close", "code": 4403})
