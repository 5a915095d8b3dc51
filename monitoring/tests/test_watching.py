"""What a watcher is told of the monitoring itself, and how far back he may see."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission

from flows.preroll import preroll
from flows.redis import get_redis
from flows.tracker import FlowTracker
from monitoring.models import MonitoredUser
from monitoring.tests.test_relay import persist
from monitoring.tests.watching import BOB, Page, Script, Socket, disable, enable
from monitoring.watchlist import watchlist
from omni2.database import in_database
from tests.people import issue_token, make_person

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def vera_token(db: None) -> str:
    """Vera may watch, but not read history: `flows.watch` alone."""

    def make() -> str:
        from tests.people import make_group

        make_group("operators")
        vera = make_person("vera@example.com", "Vera")
        vera.user_permissions.add(Permission.objects.get(codename="watch"))
        return issue_token(vera)

    return await in_database(make)


async def test_it_says_hello(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    period = await enable(olga)
    async with Socket(token=olga_token) as socket:
        hello = await socket.receive()
        assert hello.pop("server_time").endswith("Z")
        expires_at = period.expires_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        assert hello == {
            "type": "hello",
            "user_id": BOB,
            "monitoring": {"active": True, "expires_at": expires_at, "enabled_by": olga.user_id},
            "live": "on",
        }
        snapshot = await socket.receive_some("snapshot")
        cursor = snapshot.pop("cursor")
        assert snapshot == {"type": "snapshot", "complete": True, "more": False, "checkpoints": []}
        script = Script(live)
        await script.run(1)
        frame = await socket.receive_some("checkpoint")
        assert set(frame) == {"type", "cursor", "checkpoint", "sent_at"}
        assert frame["checkpoint"] == script.made[0].as_dict()
        assert frame["cursor"] != cursor


async def test_it_shows_nothing_of_a_user_who_is_not_monitored(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    await Script(live).run()
    async with Socket(token=olga_token) as socket:
        hello = await socket.receive()
        assert hello["monitoring"] == {"active": False, "expires_at": None, "enabled_by": None}
        snapshot = await socket.receive()
        assert snapshot == {"type": "snapshot", "complete": True, "cursor": None, "more": False, "checkpoints": []}
        await Script(live).run()
        await asyncio.sleep(0.1)
        assert socket.inbox.empty()


async def test_it_shows_what_happens_from_the_moment_he_is_monitored(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, vera_token: str
) -> None:
    """Olga, who may read history, sees what was before too; Vera does not."""
    before = await Script(live).run()
    async with Page(olga_token) as olgas, Page(vera_token) as veras:
        await olgas.until_snapshots(1)
        await veras.until_snapshots(1)
        await enable(olga)
        await olgas.until_snapshots(2)
        await veras.until_snapshots(2)
        after = await Script(live).run()
        await olgas.until_shown(before + after)
        await veras.until_shown(after)
        assert olgas.snapshots == veras.snapshots == [True, True]
        assert [message["reason"] for message in olgas.monitoring] == ["enabled"]
        assert olgas.monitoring[0]["active"] is True


@pytest.mark.parametrize("persisted", [True, False])
async def test_it_reaches_back_to_the_start_of_the_period_only(
    persisted: bool, live: FlowTracker, bob: Any, olga: Any, olga_token: str, vera_token: str
) -> None:
    """First open, and a turn that runs across the start."""
    script = Script(live)
    await script.run(5)
    await enable(olga)
    await script.run(2)
    if persisted:
        await persist()
    async with Page(vera_token) as veras, Page(olga_token) as olgas:
        await script.run()
        await veras.until_shown(script.flow_ids[5:])
        await olgas.until_shown(script.flow_ids)


async def test_it_does_not_resume_across_the_start_of_the_period(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, vera_token: str
) -> None:
    """A cursor of an earlier period: what came in between is not Vera's to see. Olga resumes."""
    await enable(olga)
    first = await Script(live).run()
    pages = Page(vera_token), Page(olga_token)
    for page in pages:
        async with page:
            await page.until_shown(first)
    await disable(olga)
    between = await Script(live).run()
    await enable(olga)
    last = await Script(live).run()
    veras, olgas = pages
    async with veras, olgas:
        await veras.until_shown(last)
        await olgas.until_shown(first + between + last)
        assert veras.snapshots == [True, False]
        assert olgas.snapshots == [True, True]


async def test_it_falls_silent_when_monitoring_is_disabled_and_begins_again(
    live: FlowTracker, bob: Any, olga: Any, vera_token: str
) -> None:
    await enable(olga)
    first = await Script(live).run()
    async with Page(vera_token) as page:
        await page.until_shown(first)
        await disable(olga)
        await page.until(lambda page: len(page.monitoring) == 1)
        assert page.monitoring[0] == {"type": "monitoring", "active": False, "expires_at": None, "reason": "disabled"}
        await Script(live).run()
        await asyncio.sleep(0.1)
        assert list(page.shown) == first
        await enable(olga)
        await page.until_snapshots(2)
        last = await Script(live).run()
        await page.until(lambda page: last[-1] in page.shown)
        # a new period begins with a new picture
        assert list(page.shown) == last


async def test_it_throws_away_what_was_read_for_an_earlier_period(
    live: FlowTracker, bob: Any, olga: Any, vera_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disabled and enabled again while a pre-roll is being read: it reaches too far back now."""
    go_on = asyncio.Event()
    begun = asyncio.Event()

    async def slow(*args: Any, **kwargs: Any) -> Any:
        found = await preroll(*args, **kwargs)
        begun.set()
        await go_on.wait()
        return found

    monkeypatch.setattr("monitoring.relay.preroll", slow)
    await enable(olga)
    await Script(live).run()
    async with Page(vera_token) as page:
        await begun.wait()
        await disable(olga)
        await enable(olga)
        await page.until(lambda page: len(page.monitoring) == 2)
        go_on.set()
        last = await Script(live).run()
        await page.until_shown(last)


async def test_it_tells_that_it_was_extended_and_that_it_expired(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    await enable(olga, hours=1)
    async with Page(olga_token) as page:
        first = await Script(live).run()
        await page.until_shown(first)
        await in_database(MonitoredUser.enable, BOB, by=olga, ttl=timedelta(seconds=1.5))
        await watchlist.refresh()
        await page.until(lambda page: len(page.monitoring) == 1)
        second = await Script(live).run()
        await page.until_shown(first + second)
        await page.until(lambda page: len(page.monitoring) == 2)
        assert [message["reason"] for message in page.monitoring] == ["extended", "expired"]
        assert [message["active"] for message in page.monitoring] == [True, False]
        await Script(live).run()
        await asyncio.sleep(0.1)
        assert list(page.shown) == first + second
        assert page.snapshots == [True]


async def test_it_says_that_live_is_off_without_redis(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, settings: Any
) -> None:
    """REDIS_ENABLED=false: what PostgreSQL has, marked as not complete, and no cursor to come back with."""
    await enable(olga)
    script = Script(live)
    await script.run()
    await persist()
    settings.REDIS_ENABLED = False
    async with Socket(token=olga_token) as socket:
        assert (await socket.receive())["live"] == "off"
        snapshot = await socket.receive_some("snapshot")
        assert [each["flow_id"] for each in snapshot["checkpoints"]] == script.flow_ids
        assert (snapshot["complete"], snapshot["cursor"], snapshot["more"]) == (False, None, False)
    settings.REDIS_ENABLED = True
    await get_redis().ping()
