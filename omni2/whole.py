"""An answer that fails after it has begun must not look whole.

What a client gets of a streamed answer is whole only if the connection ends in order. A server
that an exception reaches after the beginning has to break the connection off: uvicorn does.
Daphne 4.2 tries to send a page about the error instead, which fails in the loop that looks after
all its requests, and the client waits for ever. So here its connection is broken off first.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

GONE_WITHIN_S = 5.0


def whole_or_broken_off(application: Application) -> Application:
    """`application`; the connection of an answer that fails after its beginning is broken off."""

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        begun = ended = False

        async def watching(message: Any) -> None:
            nonlocal begun, ended
            begun = True
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await application(scope, receive, watching)
        finally:
            if begun and not ended:
                await _break_off(receive, send)

    return watched


async def _break_off(receive: Receive, send: Send) -> None:
    """Under Daphne: reset the connection, and return when Daphne knows. Elsewhere nothing."""
    # Daphne's `send` is bound to what holds the connection
    request = send.args[0] if isinstance(send, partial) and send.args else None
    transport = getattr(getattr(request, "channel", None), "transport", None)
    abort = getattr(transport, "abortConnection", None)
    if abort is None:
        return
    abort()
    with suppress(TimeoutError):
        async with asyncio.timeout(GONE_WITHIN_S):
            while (await receive())["type"] != "http.disconnect":
                pass
