"""Ties the apps together: what a web process runs beside its requests."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


async def start() -> None:
    """Start this process's background work once; cheap afterwards."""


async def lifespan(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """The ASGI lifespan protocol, for servers that have it."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await start()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
