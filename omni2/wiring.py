"""Ties the apps together: what a web process runs beside its requests, and what a persister does.

`flows` does not know who is monitored and what a turn costs; here it is told.
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import Error, connections

from chat import approvals, stops, tool_servers
from chat.catalogue import FOLLOWED, catalogue
from chat.limits import FOLLOWED as LIMITS_FOLLOWED
from chat.limits import in_use
from chat.slots import forget_settled
from chat.tool_rows import server_rows
from chat.usage import left_unsettled, settle_abandoned
from flows import heartbeat, keeping
from flows.checkpoints import use_clock
from flows.persister import Loop, Persister
from flows.pruning import BATCH_CHECKPOINTS, Pruner
from flows.retention import Retention, trim_recent
from flows.sweep import Sweep
from flows.tracker import tracker
from monitoring.models import Omni2Config
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
REFRESH_EVERY_S = 0.5
TIDY_EVERY_S = 3600.0
KEEP_EVERY_S = 5.0
"""How often the figures of a few past hours are kept: a month of them within a quarter of an hour. Few at a
time, since the rows that came meanwhile wait for it."""

BESIDE_TURNS = (forget_settled, trim_recent)
"""What is pruned besides the turns and their figures."""

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


def persister() -> Loop:
    """A persister with the sweep beside it, which needs to know who is monitored now. Without Redis
    there is no log to read, and the sweep alone."""
    worker = _persister() if settings.REDIS_ENABLED else Loop()
    sweep = Sweep(is_monitored=watchlist.is_monitored, on_abandoned=settle_abandoned, left_unsettled=left_unsettled)
    worker.beside(_every(REFRESH_EVERY_S, watchlist.refresh_sync))
    use_clock(watchlist.clock_ns)
    worker.beside(sweep)
    worker.beside(_every(KEEP_EVERY_S, keeping.keep))
    worker.beside(_every(TIDY_EVERY_S, tidy))
    worker.beside(_Aside("pruning", Retention(days_kept, also=BESIDE_TURNS).slice))
    return worker


def days_kept() -> int:
    """For how many days turns are kept, as PostgreSQL has it; 0: for ever."""
    return Omni2Config.retention_now().days


def pruner(border: datetime, *, batch: int = BATCH_CHECKPOINTS) -> Pruner:
    """A run of `manage.py prune_flows`."""
    return Pruner(border, "command", batch=batch, also=BESIDE_TURNS)


def _persister() -> Persister:
    worker = Persister()
    worker.alongside(Persister())
    return worker


def tidy() -> None:
    """Remove what has no use any more: sessions that ran out, what processes counted 90 days ago, those that
    ended a week ago and left nothing behind, the figures of single hours long ago, what was asked to stop, and
    answered questions to users."""
    call_command("clearsessions")
    heartbeat.forget_ended()
    stops.forget_old()
    keeping.forget_old_hours()
    approvals.forget_old()


class _Aside:
    """Work that must not delay the loop beside which it is called: in a thread of its own, one call at a time."""

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        self._work = work
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._called: Future[None] | None = None
        self._failing = False

    def __call__(self) -> None:
        if self._called is None or self._called.done():
            self._called = self._thread.submit(self._once)

    def _once(self) -> None:
        try:
            self._work()
            self._failing = False
        except (Error, OSError) as problem:
            if not self._failing:
                logger.warning("%s waits: %s: %s", self._thread._thread_name_prefix, type(problem).__name__, problem)
            self._failing = True
        finally:
            # back into the pool
            connections.close_all()


def _every(seconds: float, work: Callable[[], Any]) -> Callable[[], None]:
    """`work`, but at most once in so many seconds."""
    due = 0.0

    def maybe() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + seconds
            work()

    return maybe
