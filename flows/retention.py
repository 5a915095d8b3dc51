"""How long turns are kept: what the pages say of it, and the daily pruning beside the persister.

`flows` does not know where the setting is kept: the app that has it tells (`use_retention`), and the persister's
wiring gives the value that PostgreSQL has.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import Error
from redis.exceptions import RedisError

from flows import keys
from flows.models import Pruning
from flows.pruning import Batch, Forget, Pruner, border_of_days
from flows.redis import sync_client

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 60.0
SLICE_S = 1.0
"""So long a call of `Retention.slice` works at most: whoever ends its process waits no longer."""

REST = 3.0
"""After a batch, so many times as long as it took: old turns are in no hurry, and the disk is others' too."""

BUSY_REST_S = 0.5


def _for_ever() -> int:
    return 0


_days: Callable[[], int] = _for_ever


def use_retention(days: Callable[[], int]) -> None:
    """Let the pages know for how many days turns are kept (0: for ever); the app that has the setting says so at
    its start. Must cost nothing: it is asked for each page."""
    global _days
    _days = days


def days_kept() -> int:
    """For how many days turns are kept; 0: for ever. No I/O."""
    return _days()


LATE = timedelta(days=2)
"""Pruning is due once a day; if none has done anything for so long, somebody has to look."""


def last_pruning() -> Pruning | None:
    """The run with the latest border: it goes on, or it is the last one. One query."""
    return Pruning.objects.order_by("-border").first()


def status() -> dict[str, Any]:
    """For /readyz: how long turns are kept, and what the last run did. One query.

    `late`: turns are to be deleted, and for days no run has come to its end."""
    last, days = last_pruning(), days_kept()
    if last is None:
        return {"days": days, "late": False}
    return {
        "days": days,
        "late": days > 0 and datetime.now(UTC) - last.last_at > LATE,
        "kept_from": last.border.isoformat(),
        "last_at": last.last_at.isoformat(),
        "running": last.ended_at is None,
        "turns": last.turns,
        "checkpoints": last.checkpoints,
    }


def trim_recent(border: datetime, _: int = 0) -> int:
    """Take what is older than the border out of the users' streams in Redis; returns how many entries.

    A stream runs out a day after its last entry, but of somebody who asks a little every day it may hold months. A
    reader who was behind the border gets a fresh beginning, as after any trimming. With Redis away: another day."""
    if not settings.REDIS_ENABLED:
        return 0
    first = int(border.timestamp() * 1000)
    try:
        with sync_client() as client:
            names = client.scan_iter(match=keys.user_stream("*"), count=1_000)
            return sum(client.xtrim(name, minid=first, approximate=False) for name in names)
    except (RedisError, OSError) as problem:
        logger.warning("the users' streams are trimmed another day: %s", type(problem).__name__)
        return 0


class Retention:
    """Prunes what is older than the setting, once a day and a slice at a time; `days` is asked at each look.

    For a thread of its own: a batch takes about as long as a batch of the persister."""

    def __init__(self, days: Callable[[], int], also: Sequence[Forget] = ()) -> None:
        self.days = days
        self.also = also
        self._look_at = time.monotonic() + LOOK_EVERY_S
        self._pruner: Pruner | None = None
        self._batches: Iterator[Batch] = iter(())

    def slice(self) -> None:
        """A second's work, if there is any. Raises django.db.Error; the next call then looks again."""
        if self._pruner is None and not self._begin():
            return
        until = time.monotonic() + SLICE_S
        while self._pruner is not None and time.monotonic() < until:
            began = time.monotonic()
            try:
                done = next(self._batches, None)
            except Error:
                self._pruner = None
                raise
            if done is None:
                self._end(self._pruner)
            elif done.busy:
                time.sleep(BUSY_REST_S)
            else:
                time.sleep(min(SLICE_S, REST * (time.monotonic() - began)))

    def _begin(self) -> bool:
        """Whether there is something to do: a border that no run has reached yet. Three queries a minute."""
        if time.monotonic() < self._look_at:
            return False
        self._look_at = time.monotonic() + LOOK_EVERY_S
        days = self.days()
        if days <= 0:
            return False
        border = border_of_days(days)
        if Pruning.objects.filter(border__gte=border, ended_at__isnull=False).exists():
            return False
        self._pruner = Pruner(border, "persister", also=self.also)
        self._batches = self._pruner.batches()
        return True

    def _end(self, pruner: Pruner) -> None:
        self._pruner = None
        total = pruner.total
        if total.turns or total.checkpoints:
            logger.info("pruned %d turns with %d checkpoints", total.turns, total.checkpoints)
