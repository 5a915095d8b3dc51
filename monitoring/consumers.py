"""One watcher's socket: `/ws/flows/{user_id}?after=<cursor>`, from the handshake to the goodbye.

A plain ASGI application and one task a socket: what Channels' consumers add to it (a channel, a
group, a task for each) would double what an idle watcher costs. Daphne and uvicorn alike.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import Error as DatabaseProblem

from flows.history import wire_time
from monitoring.admission import BEARER, Admission, ForeignPage, Refused, admit
from monitoring.relay import relay_here
from monitoring.watcher import TRY_LATER, Send, Watcher
from monitoring.watchlist import watchlist
from omni2.accounts.access import record_access
from omni2.database import in_database

logger = logging.getLogger(__name__)

GOODBYE_S = 10.0
"""How long a client may take to answer our closing before we leave without it."""

Receive = Callable[[], Awaitable[dict[str, Any]]]

# Lines of the access log on their way; the loop itself holds tasks only weakly.
_last_lines: set[asyncio.Task[None]] = set()


async def watch(scope: dict[str, Any], receive: Receive, send: Send, *, user_id: str) -> None:
    """Serve one socket. Who may not watch is closed with a code before anything is sent; only a
    foreign page with our cookie is refused before that, with 403 to its handshake."""
    await receive()  # websocket.connect
    user_id = user_id.lower()
    try:
        admission = await _admit(scope, user_id)
    except ForeignPage:
        await send({"type": "websocket.close", "code": 4403})
        return
    except Refused as refused:
        await _accept(scope, send)
        await send({"type": "websocket.close", "code": refused.code})
        return
    since = watchlist.now()
    try:
        await _accept(scope, send)
        await _relay(receive, send, user_id, admission)
    finally:
        _write_down_the_end(admission, user_id, since)


async def _admit(scope: dict[str, Any], user_id: str) -> Admission:
    if len(relay_here().watchers) >= settings.MAX_WATCHERS:
        raise Refused(TRY_LATER)
    try:
        await watchlist.start()
        return await in_database(admit, scope, user_id)
    except (DatabaseProblem, OSError) as problem:
        logger.warning("a watcher was sent away: PostgreSQL is away (%s)", problem)
        raise Refused(TRY_LATER) from problem


async def _accept(scope: dict[str, Any], send: Send) -> None:
    """The token of the subprotocol is never echoed, its name is."""
    message: dict[str, Any] = {"type": "websocket.accept"}
    if BEARER in scope.get("subprotocols", ()):
        message["subprotocol"] = BEARER
    await send(message)


async def _relay(receive: Receive, send: Send, user_id: str, admission: Admission) -> None:
    relay, loop = relay_here(), asyncio.get_running_loop()
    with suppress(TimeoutError):  # said goodbye, and the client did not answer
        async with asyncio.timeout(None) as limit:
            watcher = Watcher(
                relay.feed_of(user_id), send, admission, on_gone=lambda: limit.reschedule(loop.time() + GOODBYE_S)
            )
            relay.join(watcher)
            try:
                while (message := await receive())["type"] == "websocket.receive":
                    watcher.heard(message)
            finally:
                relay.leave(watcher)


def _write_down_the_end(admission: Admission, user_id: str, since: datetime) -> None:
    """In a task of its own: the server may cancel ours at any moment."""
    task = asyncio.get_running_loop().create_task(_record_end(admission.actor, user_id, since))
    _last_lines.add(task)
    task.add_done_callback(_last_lines.discard)


async def _record_end(actor: str, user_id: str, since: datetime) -> None:
    detail = {"from": wire_time(since), "to": wire_time(watchlist.now())}
    try:
        await in_database(record_access, actor=actor, action="watch_ended", subject_user_id=user_id, detail=detail)
    except (DatabaseProblem, OSError):
        logger.exception("not in the access log: %s watched %s from %s to %s", actor, user_id, *detail.values())
