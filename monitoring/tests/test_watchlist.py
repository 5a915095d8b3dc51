"""The list in memory: right by PostgreSQL's clock, told once, there when PostgreSQL or Redis are not."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.db.models.functions import Now

from flows.redis import get_redis
from flows.retention import days_kept
from monitoring import config, control
from monitoring import watchlist as module
from monitoring.models import MonitoredUser, Omni2Config
from monitoring.watchlist import Change, Period, Watchlist
from omni2.database import in_database

HOUR = timedelta(hours=1)
BOB = "bob@example.com"

pytestmark = pytest.mark.django_db(transaction=True)


class Ear:
    """What a listener was told, and a way to wait for it."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Change, Period | None]] = []
        self._something = asyncio.Event()

    def __call__(self, user_id: str, change: Change, period: Period | None) -> None:
        self.heard.append((user_id, change, period))
        self._something.set()

    @property
    def changes(self) -> list[Change]:
        return [change for _, change, _ in self.heard]

    async def until(self, *changes: Change) -> None:
        async with asyncio.timeout(20):
            while self.changes != list(changes):
                self._something.clear()
                await self._something.wait()


@pytest.fixture
async def ear() -> Ear:
    return Ear()


@pytest.fixture
async def watchlist(ear: Ear) -> AsyncIterator[Watchlist]:
    """A list of its own, as another web process would have one."""
    watchlist = Watchlist()
    watchlist.add_listener(ear)
    await watchlist.start()
    yield watchlist
    await watchlist.stop()


async def enable(by: Any, *, ttl: timedelta = HOUR, reason: str | None = None) -> MonitoredUser:
    return await in_database(MonitoredUser.enable, BOB, by=by, ttl=ttl, reason=reason)


async def test_it_learns_who_is_monitored(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    assert watchlist.is_monitored(BOB) is False
    assert watchlist.period(BOB) is None
    row = await enable(olga, reason="ticket 7")
    await ear.until("enabled")
    assert watchlist.is_monitored(BOB) is True
    period = watchlist.period(BOB)
    assert period is not None
    assert (period.user_id, period.enabled_by, period.reason) == (BOB, "olga@example.com", "ticket 7")
    assert (period.enabled_at, period.expires_at) == (row.enabled_at, row.expires_at)
    assert period.expires_at.tzinfo is UTC
    assert ear.heard == [(BOB, "enabled", period)]


async def test_it_tells_each_change_once(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    await enable(olga)
    await ear.until("enabled")
    await enable(olga, ttl=2 * HOUR)
    await ear.until("enabled", "extended")
    await in_database(MonitoredUser.stop, BOB, by=olga)
    await ear.until("enabled", "extended", "disabled")
    assert ear.heard[2] == (BOB, "disabled", None)
    for _ in range(3):
        await watchlist.refresh()
    await asyncio.sleep(0)
    assert len(ear.heard) == 3


async def test_it_tells_an_end_and_a_beginning_when_both_came_between_two_looks(ear: Ear, bob: Any, olga: Any) -> None:
    watchlist = Watchlist()
    watchlist.add_listener(ear)
    await enable(olga)
    await watchlist.refresh()
    await in_database(MonitoredUser.stop, BOB, by=olga)
    await enable(olga)
    await watchlist.refresh()
    assert ear.changes == ["enabled", "disabled", "enabled"]


async def test_it_ends_on_time_without_any_job(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    row = await enable(olga, ttl=timedelta(seconds=1))
    await ear.until("enabled")
    await ear.until("enabled", "expired")
    assert watchlist.now() >= row.expires_at
    assert watchlist.is_monitored(BOB) is False
    row = await in_database(MonitoredUser.objects.get)
    assert row.ended_at is None, "expiry is a comparison of times: nobody wrote anything"


async def test_it_judges_by_postgresqls_clock(bob: Any, olga: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's clock is a day ahead of PostgreSQL's; the period still lasts its hour, and not a moment more."""
    real = module.time.time_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: real() + 24 * 3600 * 10**9)
    await enable(olga)
    watchlist = Watchlist()
    await watchlist.refresh()
    assert watchlist.is_monitored(BOB) is True
    monotonic = module.time.monotonic_ns
    period = watchlist.period(BOB)
    assert period is not None
    left_ns = (period.expires_us - watchlist._now_us()) * 1000
    monkeypatch.setattr(module.time, "monotonic_ns", lambda: monotonic() + left_ns)
    assert watchlist.is_monitored(BOB) is False


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Auckland", "America/St_Johns"])
async def test_it_is_right_in_every_time_zone_of_the_server(
    zone: str, bob: Any, olga: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zone of PostgreSQL's session changes how times are written, never when a period ends."""

    def look() -> tuple[str, module.Reading]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('timezone', %s, false)", [zone])
            try:
                MonitoredUser.enable(BOB, by=olga, ttl=timedelta(minutes=90))
                reading = module._ask()
                cursor.execute("SELECT expires_at::text FROM monitored_users WHERE ended_at IS NULL")
                return cursor.fetchone()[0], reading
            finally:
                cursor.execute("SET TIME ZONE 'UTC'")

    written, reading = await in_database(look)
    assert written.endswith({"UTC": "+00", "Pacific/Auckland": "+13", "America/St_Johns": "-03:30"}[zone])
    watchlist = Watchlist()
    watchlist._take(reading)
    period = watchlist.period(BOB)
    assert period is not None
    assert period.expires_at - period.enabled_at == timedelta(minutes=90)
    left = period.expires_at - watchlist.now()
    assert timedelta(minutes=80) < left <= timedelta(minutes=90)


async def test_it_costs_no_query_to_ask(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    await enable(olga)
    await ear.until("enabled")

    def refuse(*_: Any) -> None:
        raise AssertionError("asked PostgreSQL")

    with connection.execute_wrapper(refuse):
        assert watchlist.is_monitored(BOB) is True
        assert watchlist.is_monitored("charlie@example.com") is False
        assert watchlist.period(BOB) is not None
        assert config.flow_monitoring()
        assert config.usage_limits()
        assert watchlist.age_seconds < float("inf")


async def test_it_does_not_mind_a_redis_flush(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    await enable(olga)
    await ear.until("enabled")
    await get_redis().flushall()
    await watchlist.refresh()
    assert watchlist.is_monitored(BOB) is True
    assert ear.changes == ["enabled"]


async def test_it_finds_changes_by_itself_when_no_word_comes(
    watchlist: Watchlist, ear: Ear, bob: Any, olga: Any
) -> None:
    """Written by SQL, announced by nobody."""
    await in_database(MonitoredUser.objects.create, user_id=BOB, enabled_by="olga@example.com", expires_at=Now() + HOUR)
    await ear.until("enabled")


async def test_it_works_with_redis_switched_off(settings: Any, ear: Ear, bob: Any, olga: Any) -> None:
    settings.REDIS_ENABLED = False
    watchlist = Watchlist()
    watchlist.add_listener(ear)
    await watchlist.start()
    try:
        await enable(olga)
        await ear.until("enabled")
        assert len([task for task in watchlist._tasks if not task.done()]) == 1, "no listening without Redis"
    finally:
        await watchlist.stop()


async def test_it_works_with_redis_away(settings: Any, ear: Ear, bob: Any, olga: Any) -> None:
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    watchlist = Watchlist()
    watchlist.add_listener(ear)
    await watchlist.start()
    try:
        await enable(olga)
        await ear.until("enabled")
    finally:
        await watchlist.stop()


async def test_it_asks_at_once_when_another_process_gives_word(
    ear: Ear, bob: Any, olga: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the half second made an hour, only the word can have brought the news."""
    monkeypatch.setattr(module, "POLL_S", 3600.0)
    watchlist = Watchlist()
    watchlist.add_listener(ear)
    await watchlist.start()
    try:
        redis = get_redis()
        async with asyncio.timeout(20):
            while not (await redis.pubsub_numsub("omni2:control"))[0][1]:
                await asyncio.sleep(0.01)
        await enable(olga)
        await ear.until("enabled")
    finally:
        await watchlist.stop()


async def test_it_keeps_the_last_list_while_postgresql_is_away(
    watchlist: Watchlist, ear: Ear, bob: Any, olga: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await enable(olga, ttl=timedelta(seconds=3))
    await ear.until("enabled")
    there = module._ask

    def away(*_: Any) -> module.Reading:
        raise OperationalError("the server is away")

    monkeypatch.setattr(module, "_ask", away)
    async with asyncio.timeout(20):
        while watchlist.failures == 0:
            watchlist.wake()
            await asyncio.sleep(0.01)
    if watchlist.now() < row.expires_at:
        assert watchlist.is_monitored(BOB) is True
    await ear.until("enabled", "expired")
    assert watchlist.is_monitored(BOB) is False
    monkeypatch.setattr(module, "_ask", there)
    await enable(olga)
    await ear.until("enabled", "expired", "enabled")


async def test_it_outlives_a_listener_that_fails(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    reports: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reports.append(context["exception"]))

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    watchlist.add_listener(fail)
    late = Ear()
    watchlist.add_listener(late)
    await enable(olga)
    await late.until("enabled")
    await in_database(MonitoredUser.stop, BOB, by=olga)
    await late.until("enabled", "disabled")
    assert [type(report) for report in reports] == [ZeroDivisionError, ZeroDivisionError]


async def test_it_forgets_a_listener_that_left(watchlist: Watchlist, ear: Ear, bob: Any, olga: Any) -> None:
    gone = Ear()
    watchlist.add_listener(gone)
    watchlist.remove_listener(gone)
    watchlist.remove_listener(gone)
    await enable(olga)
    await ear.until("enabled")
    await asyncio.sleep(0)
    assert gone.heard == []


async def test_it_starts_once_and_again_on_a_new_loop(watchlist: Watchlist) -> None:
    tasks = list(watchlist._tasks)
    await watchlist.start()
    assert watchlist._tasks == tasks
    await watchlist.stop()
    assert all(task.done() for task in tasks)
    await watchlist.start()
    assert watchlist._tasks[0] is not tasks[0]


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_it_stops_listening_whenever_it_is_told_to(steps: int) -> None:
    """At each step of connecting: redis-py swallows some cancellations on Python 3.11."""
    listening = asyncio.create_task(control.listen(lambda: None))
    for _ in range(steps):
        await asyncio.sleep(0)
    listening.cancel()
    _, pending = await asyncio.wait([listening], timeout=20)
    assert not pending


async def test_it_serves_a_process_without_a_loop(bob: Any, olga: Any) -> None:
    def in_the_persister() -> tuple[bool, list[Change]]:
        MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
        watchlist = Watchlist()
        heard: list[Change] = []
        watchlist.add_listener(lambda user_id, change, period: heard.append(change))
        watchlist.refresh_sync()
        return watchlist.is_monitored(BOB), heard

    assert await in_database(in_the_persister) == (True, ["enabled"])


async def test_it_ignores_an_answer_older_than_the_last(bob: Any, olga: Any) -> None:
    watchlist = Watchlist()
    old = await in_database(module._ask)
    await enable(olga)
    await watchlist.refresh()
    watchlist._take(old)
    assert watchlist.is_monitored(BOB) is True


def reading(*, asked_us: int, answered_us: int, clock_us: int) -> module.Reading:
    return module.Reading(asked_us, answered_us, clock_us, {}, {}, {})


def test_it_lets_a_slow_answer_not_shift_the_clock() -> None:
    watchlist = Watchlist()
    watchlist._take(reading(asked_us=1_000, answered_us=1_010, clock_us=500_005 + 1_000))
    assert watchlist._offset_us == 500_000
    watchlist._take(reading(asked_us=2_000, answered_us=902_000, clock_us=500_000 + 2_010))
    assert watchlist._offset_us == 500_000, "2 ms or 900 ms after asking: both would fit"
    watchlist._take(reading(asked_us=1_000_000, answered_us=1_000_010, clock_us=1_700_005))
    assert 699_995 <= watchlist._offset_us <= 700_005, "PostgreSQL's clock was set; the estimate follows"


async def test_it_brings_a_changed_setting_into_force(watchlist: Watchlist, ear: Ear) -> None:
    def change(key: str, **values: Any) -> None:
        row, _ = Omni2Config.objects.get_or_create(config_key=key, defaults={"config_value": config.default_value(key)})
        row.config_value = row.config_value | values
        row.save()

    async def until(reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not reached():
                await asyncio.sleep(0.01)

    try:
        await in_database(change, "flow_monitoring", default_ttl_hours=2.5)
        await in_database(change, "usage_limits", requests_per_day=None, turns_at_once=3)
        await in_database(change, "retention", days=7)
        await until(lambda: config.usage_limits().turns_at_once == 3)
        await until(lambda: days_kept() == 7)
        assert config.flow_monitoring().default_ttl_hours == 2.5
        assert config.usage_limits().requests_per_day is None

        def spoil() -> None:
            Omni2Config.objects.filter(config_key="usage_limits").update(config_value={"turns_at_once": "many"})

        await in_database(spoil)
        await until(lambda: "usage_limits" in config.current.problems)
        assert config.usage_limits().turns_at_once == 3, "what was right stays in force"
        await in_database(lambda: Omni2Config.objects.filter(config_key="usage_limits").update(is_active=False))
        await until(lambda: config.usage_limits() == config.UsageLimits())
    finally:
        config.current.put({})


async def test_it_does_not_fail_or_wait_when_nobody_can_be_told(settings: Any) -> None:
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    control.announce("monitoring")
    control._publish("monitoring")
    settings.REDIS_ENABLED = False
    control._publish("monitoring")
