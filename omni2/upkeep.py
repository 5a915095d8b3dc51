"""What the persister's process does: it carries the log to PostgreSQL, ends abandoned turns, prunes old ones, and
removes what has no use any more. The web processes' side is omni2.wiring; nothing here needs a model or a tool."""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import Error, connections

from chat import approvals, stops
from chat.slots import forget_settled
from chat.usage import left_unsettled, settle_abandoned
from flows import heartbeat, keeping
from flows.checkpoints import use_clock
from flows.persister import Loop, Persister
from flows.pruning import BATCH_CHECKPOINTS, Pruner
from flows.retention import Retention, trim_recent
from flows.sweep import Sweep
from monitoring.models import Omni2Config
from monitoring.watchlist import watchlist

logger = logging.getLogger(__name__)

REFRESH_EVERY_S = 0.5
TIDY_EVERY_S = 3600.0
KEEP_EVERY_S = 5.0
"""How often the figures of a few past hours are kept: a month of them within a quarter of an hour. Few at a
time, since the rows that came meanwhile wait for it."""

BESIDE_TURNS = (forget_settled, trim_recent)
"""What is pruned besides the turns and their figures."""


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
