"""Ties the apps together in a web process: what it runs beside its requests, and how it ends.

`flows` does not know who is monitored and what a turn costs; here it is told. The persister's side is omni2.upkeep.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from django.db import Error

from chat import approvals, stops, tool_servers
from chat.catalogue import FOLLOWED, catalogue
from chat.limits import FOLLOWED as LIMITS_FOLLOWED
from chat.limits import in_use
from chat.tool_rows import server_rows
from flows import heartbeat
from flows.checkpoints import use_clock
from flows.tracker import tracker
from monitoring.watchlist import watchlist
from omni2 import env
from omni2.database import in_database
from omni2.listening import stop_listening

logger = logging.getLogger(__name__)

DRAIN_S = env.integer("OMNI2_DRAIN_S", 10, low=0, high=600)
"""How long running answers may go on after SIGTERM, and then how long the queue may take to empty."""

JUST_COME_S = 0.3
"""How long whoever connected just before SIGTERM has to send his request: until then nothing tells that he is there."""

LAST_WORDS_S = 2.0
"""How long a cancelled answer has to close its tree and tell its client."""

FLUSH_S = 5.0

_started_on: asyncio.AbstractEventLoop | None = None
_starting: "asyncio.Task[None] | None" = None
_background: set[asyncio.Task[Any]] = set()


async def start(beside: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Start this process's background work, and `beside` with it, once per event loop; two
    comparisons afterwards.

    Whoever comes meanwhile waits as well: the first turn needs a heartbeat and the clock. It goes on when the
    first one's client has left."""
    global _started_on, _starting
    loop = asyncio.get_running_loop()
    if _started_on is not loop:
        _started_on = loop
        _starting = loop.create_task(_start(loop, beside), name="start")
    if _starting is not None:
        await asyncio.shield(_starting)


async def _start(loop: asyncio.AbstractEventLoop, beside: Callable[[], Coroutine[Any, Any, None]]) -> None:
    global _starting
    tracker.is_monitored = watchlist.is_monitored
    pulse = heartbeat.Heartbeat(tracker)
    # before the first turn, so that the sweep can judge it from its first moment
    await pulse.once()
    watchlist.follow("catalogue", FOLLOWED, lambda _: _keep(loop.create_task(_read_catalogue(), name="catalogue")))
    watchlist.follow("approvals", approvals.FOLLOWED, approvals.approvals.hear)
    watchlist.follow("must_end", stops.FOLLOWED, stops.hear)
    watchlist.follow("limits", LIMITS_FOLLOWED, in_use.hear)
    await watchlist.start()
    await _read_catalogue()
    # so that a step of this machine's clock moves no checkpoint, and turns of several machines sort as they were
    use_clock(watchlist.clock_ns)
    _keep(loop.create_task(pulse.run(), name="heartbeat"))
    _keep(loop.create_task(beside(), name="beside"))
    _end_in_order(loop)
    _starting = None


async def _read_catalogue() -> None:
    try:
        await in_database(catalogue.read)
        await in_database(server_rows.read)
        tool_servers.rows_changed()
    except (Error, OSError) as problem:
        logger.warning("the catalogue of models and tool servers could not be read: %s", problem)


def _keep(task: asyncio.Task[Any]) -> None:
    # the loop itself holds tasks only weakly
    _background.add(task)
    task.add_done_callback(_background.discard)


def _end_in_order(loop: asyncio.AbstractEventLoop) -> None:
    """On SIGTERM and SIGINT let running answers finish, write what was recorded, then let the
    server end as it would have. Works alike on Daphne and uvicorn, which have no hook in common."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, _Ending(loop, before).begin)


class _Ending:
    """One signal's way to the end: drain first, then the server's own handler."""

    begun = False

    def __init__(self, loop: asyncio.AbstractEventLoop, before: Callable[[int, FrameType | None], Any]) -> None:
        self.loop = loop
        self.before = before

    def begin(self, number: int, frame: FrameType | None) -> None:
        if _Ending.begun:
            # asked a second time: end now
            self.before(number, frame)
            return
        _Ending.begun = True
        self.loop.call_soon_threadsafe(self._go, number)

    def _go(self, number: int) -> None:
        _keep(self.loop.create_task(self._drain(number), name="drain"))

    async def _drain(self, number: int) -> None:
        try:
            stop_listening(self.before)
            await asyncio.sleep(JUST_COME_S)
            await drain()
        finally:
            self.before(number, None)


_answering = 0
"""HTTP requests that are being answered"""


@contextmanager
def answering() -> Iterator[None]:
    """A request is being answered: this process does not end meanwhile, unless that takes too long.

    Turns alone do not say so: one is over before its client has heard the last of it, and does not run yet while
    the checks are made."""
    global _answering
    _answering += 1
    try:
        yield
    finally:
        _answering -= 1


def draining() -> bool:
    """Whether this process is about to end and should take no new turn."""
    return _Ending.begun


async def drain() -> None:
    """Wait for what is being answered (10 s at most; then turns are cancelled), write what was recorded (5 s
    at most), and say goodbye in PostgreSQL."""
    await _answers_end(within_s=DRAIN_S)
    for turn in list(tracker.running):
        if turn.cancel is not None:
            turn.cancel()
    await _answers_end(within_s=LAST_WORDS_S)
    await tool_servers.tool_servers().close()
    if tracker.flusher is not None and not await tracker.flusher.drain(FLUSH_S):
        logger.error("ended with %d checkpoints not written", len(tracker.queue))
    try:
        await in_database(heartbeat.end, tracker.process_id, tracker.report())
    except (Error, OSError):
        logger.warning("the end of this process could not be written: the sweep will see it")


async def _answers_end(*, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while (tracker.running or _answering) and time.monotonic() < deadline:  # noqa: ASYNC110 - once in a process's life
        await asyncio.sleep(0.05)


async def lifespan(
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    beside: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    """The ASGI lifespan protocol, for servers that have it."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await start(beside)
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
