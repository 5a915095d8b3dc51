"""Sockets of the live page."""

import re
from typing import Any

from monitoring.consumers import watch

# An e-mail address may hold nearly everything, a slash too; servers give us the path decoded.
FLOWS = re.compile(r"/ws/flows/(?P<user_id>[^/].{0,254}?)/?", re.DOTALL)


async def websocket_application(scope: Any, receive: Any, send: Any) -> None:
    """Route one socket; a path we do not know is refused before it is accepted."""
    found = FLOWS.fullmatch(scope["path"])
    if found is None:
        await receive()
        await send({"type": "websocket.close"})
        return
    await watch(scope, receive, send, user_id=found["user_id"])
