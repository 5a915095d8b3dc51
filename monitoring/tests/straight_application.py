"""An ASGI application for test_framing, run by a real server: what `straight_to` writes, between what is sent."""

from typing import Any

from monitoring.framing import framed, straight_to

SIZES = (1, 125, 126, 65535, 65536, 200_000)
MANY = 40
"""Of the largest: 8 MB, more than a connection holds whose client does not read."""


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Say whether there is a straight way, then texts of all sizes, more than the connection takes at once."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    write = straight_to(send)
    await send({"type": "websocket.send", "text": "straight" if write else "by send alone"})
    if write is not None:
        for size in SIZES:
            write(framed(b"x" * size))
        write(framed(b"y" * SIZES[-1]) * MANY)
    await send({"type": "websocket.send", "text": "end"})
    await receive()
    if write is not None:
        write(framed(b"nobody hears this"))
