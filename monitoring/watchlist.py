"""Who is monitored now, in memory: asked by the flusher for every checkpoint, so it may cost nothing.

PostgreSQL is the truth. Each process reads it every half second, at the moment a period expires,
and at once when another process says that something changed; a change is in force everywhere within
a second. Whether a period is over is a comparison of times, by PostgreSQL's clock.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from django.db import Error as DatabaseProblem
from django.db import connection

from monitoring import config, control
from omni2.database import in_database

logger = logging.getLogger(__name__)

POLL_S = 0.5
LEAST_GAP_S = 0.02  # however often it is woken, a process asks no more than fifty times a second
FIRST_ANSWER_S = 2.0

Change = Literal["enabled", "extended", "disabled", "expired"]

# One statement, so that periods, settings and clock belong together. Whatever the session's time
# zone is, the times in jsonb carry their offset.
QUERY = """
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
       (SELECT coalesce(jsonb_agg(jsonb_build_array(id, user_id, enabled_by, enabled_at, expires_at, reason)), '[]')
          FROM monitored_users WHERE ended_at IS NULL AND expires_at > statement_timestamp()),
       (SELECT coalesce(jsonb_object_agg(config_key, config_value), '{{}}') FROM omni2_config WHERE is_active),
       jsonb_build_object({followed})
"""


@dataclass(frozen=True, slots=True)
class Period:
    """One user's monitoring, as it was when PostgreSQL was last asked."""

    user_id: str
    enabled_at: datetime
    enabled_by: str
    expires_at: datetime
    reason: str
    period_id: int
    expires_us: int = field(repr=False)


Listener = Callable[[str, Change, Period | None], None]


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of PostgreSQL, with the moments (monotonic, microseconds) between which it was made."""

    asked_us: int
    answered_us: int
    clock_us: int
    periods: Mapping[str, Period]
    settings: Mapping[str, object]
    followed: Mapping[str, object]
    """what is followed beside them, by name"""


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


def _moment_us(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _period(row: tuple[int, str, str, str, str, str]) -> Period:
    period_id, user_id, enabled_by, enabled_at, expires_at, reason = row
    expires = datetime.fromisoformat(expires_at).astimezone(UTC)
    return Period(
        user_id=user_id,
        enabled_at=datetime.fromisoformat(enabled_at).astimezone(UTC),
        enabled_by=enabled_by,
        expires_at=expires,
        reason=reason,
        period_id=period_id,
        expires_us=_moment_us(expires),
    )


def _ask(query: str = QUERY.format(followed="")) -> Reading:
    """One query."""
    with connection.cursor() as cursor:
        asked_us = _monotonic_us()
        cursor.execute(query)
        clock_us, periods, settings, followed = cursor.fetchone()
        answered_us = _monotonic_us()
    found = {period.user_id: period for period in map(_period, json.loads(periods))}
    return Reading(asked_us, answered_us, clock_us, found, json.loads(settings), json.loads(followed))


class Watchlist:
    """One process's list. Questions are answered from memory on any thread; before PostgreSQL has
    answered once, nobody is monitored. While PostgreSQL is away the last known periods go on and
    expire in time."""

    def __init__(self) -> None:
        self._periods: Mapping[str, Period] = {}
        self._offset_us: int | None = None  # PostgreSQL's clock minus time.monotonic
        self._asked_us = 0
        self._heard_us: int | None = None
        self._listeners: list[Listener] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._woken = asyncio.Event()
        self._answered = asyncio.Event()
        self._asking = asyncio.Lock()
        self._followed: dict[str, tuple[str, Callable[[object], None]]] = {}
        self._seen: dict[str, object] = {}
        self._query = QUERY.format(followed="")
        self.failures = 0

    # --- questions: no I/O --------------------------------------------------------------------

    def is_monitored(self, user_id: str) -> bool:
        """True from the moment this process knows of it until `expires_at`, to the microsecond of the
        estimated clock. A dict lookup and a comparison."""
        period = self._periods.get(user_id)
        return period is not None and self._now_us() < period.expires_us

    def period(self, user_id: str) -> Period | None:
        """The period he is monitored in now."""
        period = self._periods.get(user_id)
        return period if period is not None and self._now_us() < period.expires_us else None

    def now(self) -> datetime:
        """PostgreSQL's clock, estimated; this machine's before PostgreSQL answered once."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self._now_us())

    @property
    def age_seconds(self) -> float:
        """How old the list is; infinite before the first answer."""
        return float("inf") if self._heard_us is None else (_monotonic_us() - self._heard_us) / 1e6

    def _now_us(self) -> int:
        if self._offset_us is None:
            return time.time_ns() // 1000
        return _monotonic_us() + self._offset_us

    def clock_ns(self) -> int:
        """`now()` in nanoseconds since 1970: one clock for all processes of all machines, which a step of a
        machine's own clock does not move."""
        # as `_now_us`, without a further call: it is asked for each checkpoint
        offset_us = self._offset_us
        return time.time_ns() if offset_us is None else time.monotonic_ns() + offset_us * 1000

    # --- news ---------------------------------------------------------------------------------

    def add_listener(self, listener: Listener) -> None:
        """Be told of each change once, on the loop: `enabled` and `extended` with the period,
        `disabled` and `expired` with None. Who is monitored already when the list is first read
        is told as `enabled`."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        with suppress(ValueError):
            self._listeners.remove(listener)

    def _tell(self, user_id: str, change: Change, period: Period | None) -> None:
        for listener in tuple(self._listeners):
            if self._loop is not None and self._loop.is_running():
                # in order, and a listener that raises reaches the loop's own report, not the list
                self._loop.call_soon_threadsafe(listener, user_id, change, period)
            else:
                listener(user_id, change, period)

    def follow(self, name: str, sql: str, listener: Callable[[object], None]) -> None:
        """Read one more thing with each question, and be told its value when it is not what it was, on the loop
        (in a process without one: where it is read). `sql` is an expression that costs next to nothing and holds
        no text from outside; its value comes as JSON. To be called before the list is started."""
        self._followed[name] = (sql, listener)
        followed = (f"'{each}', ({expression})" for each, (expression, _) in self._followed.items())
        self._query = QUERY.format(followed=", ".join(followed))

    # --- reading PostgreSQL -------------------------------------------------------------------

    async def refresh(self) -> None:
        """Ask PostgreSQL now. One query; raises django.db.Error when it is away."""
        async with self._asking:
            self._take(await in_database(_ask, self._query))

    def refresh_sync(self) -> None:
        """The same for a process without a loop; its listeners are called here."""
        self._take(_ask(self._query))

    def _take(self, reading: Reading) -> None:
        if reading.asked_us < self._asked_us:
            return  # a later question was answered first
        self._asked_us = reading.asked_us
        self._heard_us = reading.answered_us
        self._set_clock(reading)
        before, self._periods = self._periods, reading.periods
        self._take_settings(reading.settings)
        self._report(before, reading)
        self._report_followed(reading.followed)

    def _set_clock(self, reading: Reading) -> None:
        """The true offset lies between these two; the estimate moves only when it is proved wrong,
        so one slow answer does not shift it."""
        earliest, latest = reading.clock_us - reading.answered_us, reading.clock_us - reading.asked_us
        if self._offset_us is None:
            self._offset_us = (earliest + latest) // 2
        self._offset_us = min(max(self._offset_us, earliest), latest)

    def _take_settings(self, settings: Mapping[str, object]) -> None:
        known = config.current.problems
        config.current.put(settings)
        if config.current.problems and config.current.problems != known:
            logger.error("settings not usable, those before stay in force: %s", dict(config.current.problems))

    def _report(self, before: Mapping[str, Period], reading: Reading) -> None:
        for user_id, period in before.items():
            now = reading.periods.get(user_id)
            if now is None or now.period_id != period.period_id:
                self._tell(user_id, "expired" if period.expires_us <= reading.clock_us else "disabled", None)
        for user_id, period in reading.periods.items():
            known = before.get(user_id)
            if known is None or known.period_id != period.period_id:
                self._tell(user_id, "enabled", period)
            elif known.expires_us != period.expires_us:
                self._tell(user_id, "extended", period)

    def _report_followed(self, followed: Mapping[str, object]) -> None:
        for name, value in followed.items():
            if name in self._seen and self._seen[name] == value:
                continue
            self._seen[name] = value
            listener = self._followed[name][1]
            if self._loop is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(listener, value)
            else:
                listener(value)

    def _drop_expired(self) -> None:
        """PostgreSQL cannot be asked: what has run out by the known clock is over."""
        now_us = self._now_us()
        over = [user_id for user_id, period in self._periods.items() if period.expires_us <= now_us]
        self._periods = {user_id: period for user_id, period in self._periods.items() if user_id not in over}
        for user_id in over:
            self._tell(user_id, "expired", None)

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Keep the list fresh on this loop from now on. The first call waits for PostgreSQL's first
        answer or failure, two seconds at most; later calls cost a comparison. A task that ended
        (a new loop, a defect) is started again."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop or any(task.done() for task in self._tasks[:1]):
            self._begin(loop)
        if not self._answered.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_ANSWER_S):
                    await self._answered.wait()
            self._answered.set()  # nobody waits twice for a PostgreSQL that hangs

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # made here because locks and events belong to one loop
        self._woken, self._answered, self._asking = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._tasks = [
            loop.create_task(self._keep_fresh(), name="watchlist"),
            loop.create_task(control.listen(self._woken.set), name="watchlist control"),
        ]

    async def stop(self) -> None:
        """End the tasks of this loop; the list stays as it is."""
        tasks, self._tasks, self._loop = self._tasks, [], None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Ask PostgreSQL now instead of at the next half second. From any thread; returns at once."""
        loop, woken = self._loop, self._woken
        if loop is not None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(woken.set)

    async def _keep_fresh(self) -> None:
        reachable = True
        while True:
            self._woken.clear()  # before asking: a change during the question asks again
            try:
                await self.refresh()
                reachable = True
            except DatabaseProblem as problem:
                self.failures += 1
                if reachable:
                    logger.warning("PostgreSQL is away, the monitored users stay as they were: %s", problem)
                reachable = False
                self._drop_expired()
            self._answered.set()
            await self._rest()

    async def _rest(self) -> None:
        await asyncio.sleep(LEAST_GAP_S)
        next_expiry_us = min((period.expires_us for period in self._periods.values()), default=None)
        rest_s = POLL_S - LEAST_GAP_S
        if next_expiry_us is not None:
            rest_s = min(rest_s, max(0.0, (next_expiry_us - self._now_us()) / 1e6))
        # not wait_for(): before Python 3.12 it can swallow a cancellation that meets the wake-up
        with suppress(TimeoutError):
            async with asyncio.timeout(rest_s):
                await self._woken.wait()


watchlist = Watchlist()
