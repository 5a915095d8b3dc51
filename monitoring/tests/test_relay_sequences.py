"""Whatever happens in whatever order: in the end every page shows what is stored, each once, in order.

Hypothesis thinks of the sequences; one event loop, one Redis and one PostgreSQL serve them all.
"""

import asyncio
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import keys, log
from flows.redis import get_redis, sync_client
from flows.tracker import FlowTracker
from monitoring.models import MonitoredUser
from monitoring.tests.test_relay import persist
from monitoring.tests.watching import Page, Script, break_subscriptions, in_stream
from monitoring.watchlist import watchlist
from omni2.database import in_database
from tests.people import make_person

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

PAGES = 3

# What may happen: (what, to which page or how often).
STEP = st.one_of(
    st.tuples(st.just("record"), st.integers(1, 12)),
    st.tuples(st.just("record unpublished"), st.integers(1, 3)),
    st.tuples(st.just("come"), st.integers(0, PAGES - 1)),
    st.tuples(st.just("go"), st.integers(0, PAGES - 1)),
    st.tuples(st.just("show all"), st.integers(0, PAGES - 1)),
    st.tuples(st.just("repeat"), st.integers(1, 5)),
    st.tuples(st.just("trim"), st.integers(1, 15)),
    st.tuples(st.just("break subscriptions"), st.just(0)),
    st.tuples(st.just("flush"), st.just(0)),
    st.tuples(st.just("change epoch"), st.just(0)),
)


class World:
    """A user of one sequence, his turns, and the pages that watch him."""

    def __init__(self, tracker: FlowTracker, user_id: str, token: str) -> None:
        self.tracker, self.user_id = tracker, user_id
        self.pages = [Page(token, user_id=user_id) for _ in range(PAGES)]
        self.script = Script(tracker, user_id)
        self.everything: list[str] = []
        self.made: list[Any] = []

    async def do(self, what: str, number: int) -> None:
        match what:
            case "record":
                await self.record(number)
            case "record unpublished":
                self.tracker.is_monitored = lambda user_id: False
                await self.record(number)
                self.tracker.is_monitored = lambda user_id: True
            case "come" if self.pages[number].socket is None:
                await self.pages[number].open()
            case "go":
                await self.pages[number].leave()
            case "show all" if self.pages[number].socket is not None:
                await self.shows_all(self.pages[number])
            case "repeat" if self.made:
                await get_redis().execute_command(*log.pack_append(self.made[-number:], lambda user_id: True))
            case "trim":
                await persist()
                await get_redis().xtrim(keys.user_stream(self.user_id), maxlen=number, approximate=False)
            case "break subscriptions":
                await break_subscriptions()
            case "flush":
                await persist()
                await get_redis().flushall()
            case "change epoch":
                await get_redis().hset(keys.EPOCH, "epoch", uuid.uuid4().hex[:12])

    async def record(self, number: int) -> None:
        for _ in range(number):
            if self.script.turn.ended:
                self.script = Script(self.tracker, self.user_id)
            await self.script.step()
            self.made.append(self.script.made[-1])
            self.everything.append(self.made[-1].flow_id)

    async def shows_all(self, page: Page) -> None:
        """All of it, in order; a page that flinches at a checkpoint it has fails by itself."""
        await page.until_shown(self.everything)

    async def end(self) -> None:
        for page in self.pages:
            if page.socket is None:
                await page.open()
        await self.record(1)
        for page in self.pages:
            await self.shows_all(page)
            await page.leave()
        assert set(await in_stream(self.user_id)) <= set(self.everything)


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


def test_whatever_happens_every_page_shows_what_is_stored(
    runner: asyncio.Runner, olga: Any, olga_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.relay.CHECK_EVERY_S", 0.1)
    monkeypatch.setattr("monitoring.relay.PAUSE_S", (0.01,))
    with sync_client() as client:
        client.flushall()
    tracker = FlowTracker()
    tracker.is_monitored = lambda user_id: True

    async def begin() -> str:
        await watchlist.start()

        def make() -> str:
            user = make_person(f"bob-{uuid.uuid4().hex}@example.com", "Bob")
            MonitoredUser.enable(user.user_id, by=olga, ttl=timedelta(hours=1))
            return user.user_id

        user_id = await in_database(make)
        await watchlist.refresh()
        return user_id

    async def live_through(steps: list[tuple[str, int]]) -> None:
        world = World(tracker, await begin(), olga_token)
        try:
            for what, number in steps:
                await world.do(what, number)
            await world.end()
        finally:
            for page in world.pages:
                await page.leave()

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, max_size=25))
    def sequences(steps: list[tuple[str, int]]) -> None:
        runner.run(live_through(steps))

    try:
        sequences()
    finally:
        runner.run(end(tracker))


async def end(tracker: FlowTracker) -> None:
    if tracker.flusher is not None:
        await tracker.flusher.stop()
    await watchlist.stop()
    await get_redis().aclose()
