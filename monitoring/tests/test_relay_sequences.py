"""Whatever happens in whatever order: in the end every page shows what is stored, each once, in order.

Hypothesis thinks of the sequences; one event loop, one PostgreSQL and one Valkey that is killed and
started again serve them all. The limits are small here, so that snapshots come in parts, gaps in
pages, and credit runs out: what matters is the order of things, not their number.
"""

import asyncio
import json
import shutil
import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from flows import keys, log
from flows.history import wire_time
from flows.models import InteractionFlow
from flows.redis import get_redis
from flows.tracker import FlowTracker
from monitoring import consumers
from monitoring.models import MonitoredUser
from monitoring.tests.test_relay import persist
from monitoring.tests.watching import Page, Script, break_subscriptions, in_stream
from monitoring.watchlist import watchlist
from omni2 import embedded
from omni2.database import in_database
from tests.people import make_person
from tests.running import Process, eventually, own_valkey

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.slow]

PAGES = 3
LIMITED = 2
"""This page's watcher may not read history: he sees the current period of monitoring only."""

FRAMES = 12

SMALL = {
    "monitoring.messages.PART_CHECKPOINTS": 3,
    "monitoring.relay.CHECK_EVERY_S": 0.1,
    "monitoring.relay.PAGE_ENTRIES": 7,
    "monitoring.relay.PAUSE_S": (0.01,),
    "monitoring.relay.TICK_S": 0.1,
    "monitoring.consumers.GOODBYE_S": 0.2,
    "monitoring.watcher.CREDIT_FRAMES": FRAMES,
    "monitoring.watcher.PAGE_ENTRIES": 7,
    "monitoring.watcher.PATIENCE_S": 0.3,
    "monitoring.watcher.RETRY_S": 0.05,
    "monitoring.watcher.WAITING_FRAMES": 5,
    "flows.preroll.PAGE_ENTRIES": 7,
    "flows.flusher.PROBE_EVERY_S": 0.02,
    # a test that fails is tried many times over, to find the shortest sequence that does
    "monitoring.tests.watching.WAIT_S": 8.0,
}

KEPT_S, MARGIN_S = 0.8, 0.4
"""In a world that forgets: how long a user's stream is kept, and how much earlier that is reckoned with."""

A_PAGE = st.integers(0, PAGES - 1)
NOTHING = st.just(0)

# What may happen: (what, to which page or how often).
STEP = st.one_of(
    st.tuples(st.just("record"), st.integers(1, 12)),
    st.tuples(st.just("record_unpublished"), st.integers(1, 3)),
    st.tuples(st.just("persist"), NOTHING),
    st.tuples(st.just("come"), A_PAGE),
    st.tuples(st.sampled_from(["leave", "reset"]), A_PAGE),
    st.tuples(st.just("show_all"), A_PAGE),
    st.tuples(st.sampled_from(["stall", "go_on", "wear_out", "choke"]), A_PAGE),
    st.tuples(st.sampled_from(["miss_a_trim", "miss_an_expiry", "miss_a_restart", "miss_a_period"]), A_PAGE),
    st.tuples(st.just("repeat"), st.integers(1, 5)),
    st.tuples(st.just("trim"), st.integers(1, 15)),
    st.tuples(st.just("expire"), NOTHING),
    st.tuples(st.just("break_subscriptions"), NOTHING),
    st.tuples(st.sampled_from(["flush", "change_epoch"]), NOTHING),
    st.tuples(st.sampled_from(["disable", "enable"]), NOTHING),
    st.tuples(st.sampled_from(["kill_redis", "start_redis", "restart", "restart_empty"]), NOTHING),
)


class World:
    """A user of one sequence, his turns, the pages that watch him, and the servers in between."""

    def __init__(
        self,
        tracker: FlowTracker,
        valkey: tuple[Process, Path],
        period: MonitoredUser,
        tokens: list[str],
        *,
        forgets: bool,
    ) -> None:
        self.tracker = tracker
        self.valkey, self.folder = valkey
        self.user_id = period.user_id
        self.by = period.enabled_by
        self.forgets = forgets
        self.pages = [Page(token, user_id=self.user_id) for token in tokens]
        self.script = Script(tracker, self.user_id)
        self.everything: dict[str, str] = {}
        """flow_id → when it was made, in order"""
        self.may_be_repeated: list[Any] = []
        self.is_monitored = True
        self._begin(period)

    def _begin(self, period: MonitoredUser) -> None:
        self.pages[LIMITED].since = wire_time(period.enabled_at)

    def expected(self, page: Page) -> list[str]:
        return [flow_id for flow_id, made_at in self.everything.items() if made_at >= page.since]

    def check(self) -> None:
        """At every moment: what a page shows is all that was made until some moment, in order."""
        for page in self.pages:
            page._check_reader()
            if page.is_placed and not page._in_snapshot:
                assert page.visible == self.expected(page)[: len(page.visible)]

    # --- the turns -----------------------------------------------------------------------------------

    async def record(self, number: int) -> None:
        for _ in range(number):
            if self.script.turn.ended:
                self.script = Script(self.tracker, self.user_id)
            await self.script.step()
            made = self.script.made[-1]
            self.everything[made.flow_id] = json.loads(made.document)["created_at"]
            if self.valkey.alive:
                self.may_be_repeated.append(made)
        if self.forgets:
            # what expires has long been stored in life
            await self.persist()

    async def record_unpublished(self, number: int) -> None:
        """By a process that has not heard of the monitoring yet."""
        self.tracker.is_monitored = lambda user_id: False
        await self.record(number)
        self.tracker.is_monitored = watchlist.is_monitored

    async def persist(self, _: int = 0) -> None:
        if self.valkey.alive:
            await persist()

    async def repeat(self, number: int) -> None:
        """A retried append. It follows its first try at once, so never one that vanished meanwhile."""
        if self.valkey.alive and self.may_be_repeated and not self.forgets:
            # a Redis that was started anew may not know the script yet
            await get_redis().script_load(log.APPEND.source)
            words = log.pack_append(self.may_be_repeated[-number:], watchlist.is_monitored)
            await get_redis().execute_command(*words)

    # --- the pages -----------------------------------------------------------------------------------

    async def come(self, number: int) -> None:
        page = self.pages[number]
        if page.closed is not None:
            await page.leave()
        if page.socket is None:
            await page.open()

    async def leave(self, number: int) -> None:
        await self.pages[number].leave()

    async def reset(self, number: int) -> None:
        await self.pages[number].leave(reset=True)

    async def stall(self, number: int) -> None:
        """It acknowledges nothing for a while."""
        self.pages[number].acknowledges = False

    async def go_on(self, number: int) -> None:
        page = self.pages[number]
        page.acknowledges = True
        if page.socket is not None:
            page.socket.acknowledge(page.cursor)

    async def wear_out(self, number: int) -> None:
        """It acknowledges nothing until the server has had enough."""
        if not (self.is_monitored and self.valkey.alive):
            return
        await self.come(number)
        page = self.pages[number]
        page.acknowledges = False
        # what it reads from the log comes three in a frame
        await self.record(3 * FRAMES)
        await page.until(lambda page: page.closed is not None)
        assert page.closed == 4408
        page.acknowledges = True

    async def choke(self, number: int) -> None:
        """It takes nothing off the network any more, until the server gives it up."""
        if not (self.is_monitored and self.valkey.alive):
            return
        await self.come(number)
        page = self.pages[number]
        page.socket.stuck = asyncio.Event()
        await self.record(FRAMES)
        await page.until(lambda page: page.closed is not None)

    async def show_all(self, number: int) -> None:
        """All of it, in order. A gap that is given as one has to be whole: a page flinches at a
        checkpoint it has, and `check` at one it has not."""
        if self.is_monitored and self.valkey.alive:
            await self.come(number)
            await self.go_on(number)
            page = self.pages[number]
            expected = self.expected(page)
            await page.until(lambda page: page.closed is not None or page.visible == expected)
            if page.closed is not None:  # too slow on a machine as busy as this
                await self.show_all(number)

    # --- what a page misses that was shown all --------------------------------------------------------

    async def _miss(self, number: int, *happens: Any) -> None:
        await self.show_all(number)
        await self.leave(number)
        await self.record(8)
        for happen in happens:
            await happen(3)
        await self.record(1)
        await self.come(number)

    async def miss_a_trim(self, number: int) -> None:
        """The beginning of its gap is not in the log any more, the end is."""
        await self._miss(number, self.trim)

    async def miss_an_expiry(self, number: int) -> None:
        await self._miss(number, self.expire)

    async def miss_a_restart(self, number: int) -> None:
        await self._miss(number, self.kill_redis, self.record, self.start_redis)

    async def miss_a_period(self, number: int) -> None:
        await self._miss(number, self.disable, self.record, self.enable)

    # --- the servers ---------------------------------------------------------------------------------

    async def trim(self, number: int) -> None:
        if self.valkey.alive:
            await persist()
            await get_redis().xtrim(keys.user_stream(self.user_id), maxlen=number, approximate=False)
            self.may_be_repeated.clear()

    async def expire(self, _: int) -> None:
        """The user is silent for so long that Redis forgets him."""
        if self.forgets and self.valkey.alive:
            while await get_redis().exists(keys.user_stream(self.user_id)):
                await asyncio.sleep(0.02)

    async def break_subscriptions(self, _: int) -> None:
        if self.valkey.alive:
            await break_subscriptions()

    async def flush(self, _: int) -> None:
        if self.valkey.alive:
            await persist()
            await get_redis().flushall()
            self.may_be_repeated.clear()

    async def change_epoch(self, _: int) -> None:
        if self.valkey.alive:
            await get_redis().hset(keys.EPOCH, "epoch", uuid.uuid4().hex[:12])

    async def disable(self, _: int) -> None:
        if self.is_monitored:
            await in_database(MonitoredUser.stop, self.user_id, by=self.by)
            await watchlist.refresh()
            self.is_monitored = False

    async def enable(self, _: int) -> None:
        if not self.is_monitored:
            self._begin(await in_database(MonitoredUser.enable, self.user_id, by=self.by, ttl=timedelta(hours=1)))
            await watchlist.refresh()
            self.is_monitored = True

    async def kill_redis(self, _: int = 0) -> None:
        """What is recorded until it is started goes to PostgreSQL directly."""
        if self.valkey.alive:
            await asyncio.to_thread(self.valkey.kill)
            self.may_be_repeated.clear()

    async def start_redis(self, _: int = 0) -> None:
        if not self.valkey.alive:
            self.valkey.start()
            socket = self.folder / "s" / "v"
            await asyncio.to_thread(eventually, lambda: embedded.valkey_answers(socket), "Valkey answers")

    async def restart(self, _: int) -> None:
        """The same entries in another process."""
        await self.kill_redis()
        await self.start_redis()

    async def restart_empty(self, _: int) -> None:
        """Its disk is lost."""
        if self.valkey.alive:
            await persist()
            await self.kill_redis()
            shutil.rmtree(self.folder / "vk")
            (self.folder / "vk").mkdir()
            await self.start_redis()

    # --- the end ---------------------------------------------------------------------------------------

    async def live_through(self, steps: list[tuple[str, int]]) -> None:
        try:
            for what, number in steps:
                await getattr(self, what)(number)
                self.check()
            await self._end()
        finally:
            for page in self.pages:
                await page.leave()
            await self.start_redis()

    async def _end(self) -> None:
        await self.start_redis()
        await self.enable(0)
        for number in range(PAGES):
            await self.come(number)
        await self.record(1)
        for number in range(PAGES):
            await self.show_all(number)
        assert set(await in_stream(self.user_id)) <= set(self.everything)
        await persist()
        stored = await in_database(self._stored)
        assert [flow_id for turn in stored.values() for flow_id in turn] == list(self.everything)
        for page in self.pages[:LIMITED]:
            assert _by_turn(page.shown) == stored
        assert not await get_redis().exists(keys.DEAD_LETTERS)

    def _stored(self) -> dict[str, list[str]]:
        rows = InteractionFlow.objects.filter(user_id=self.user_id).order_by("created_at", "flow_id")
        found: dict[str, list[str]] = {}
        for turn_id, flow_id in rows.values_list("turn_id", "flow_id"):
            found.setdefault(str(turn_id), []).append(str(flow_id))
        return found


def _by_turn(shown: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for flow_id, checkpoint in shown.items():
        found.setdefault(checkpoint["turn_id"], []).append(flow_id)
    return found


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def valkey(settings: Any) -> Iterator[tuple[Process, Path]]:
    with own_valkey() as (process, folder):
        settings.REDIS_URL = embedded.valkey_url(folder / "s" / "v")
        yield process, folder


@pytest.fixture
def wanda_token(db: None, token_of: Any) -> str:
    """Wanda may watch; history is not hers to read."""
    wanda = make_person("wanda@example.com", "Wanda Szmielew", "operators")
    watch = wanda.groups.get().permissions.get(codename="watch")
    wanda.groups.clear()
    wanda.user_permissions.add(watch)
    return token_of(wanda)


def test_whatever_happens_every_page_shows_what_is_stored(
    runner: asyncio.Runner,
    valkey: tuple[Process, Path],
    olga: Any,
    olga_token: str,
    wanda_token: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SMALL.items():
        monkeypatch.setattr(name, value)
    kept = {"RECENT_SECONDS": KEPT_S, "EXPIRY_MARGIN_SECONDS": MARGIN_S}
    in_life = {name: getattr(log, name) for name in kept}
    tracker = FlowTracker()
    tracker.is_monitored = watchlist.is_monitored

    async def begin() -> MonitoredUser:
        await watchlist.start()

        def make() -> MonitoredUser:
            user = make_person(f"bob-{uuid.uuid4().hex}@example.com", "Bob")
            return MonitoredUser.enable(user.user_id, by=olga, ttl=timedelta(hours=1))

        period = await in_database(make)
        await watchlist.refresh()
        return period

    async def live_through(steps: list[tuple[str, int]], forgets: bool, straight: bool) -> None:
        monkeypatch.setattr("monitoring.watcher.straight_to", lambda send: send.__self__.write if straight else None)
        for name, value in (kept if forgets else in_life).items():
            monkeypatch.setattr(log, name, value)
        period = await begin()
        world = World(tracker, valkey, period, [olga_token, olga_token, wanda_token], forgets=forgets)
        world.by = olga
        await world.live_through(steps)

    @hypothesis_settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(STEP, max_size=25), st.booleans(), st.booleans())
    def sequences(steps: list[tuple[str, int]], forgets: bool, straight: bool) -> None:
        runner.run(live_through(steps, forgets, straight))

    try:
        sequences()
    finally:
        runner.run(end(tracker))


async def end(tracker: FlowTracker) -> None:
    if tracker.flusher is not None:
        await tracker.flusher.stop()
    await watchlist.stop()
    # lines of the access log that are still on their way belong to this loop
    await asyncio.gather(*consumers._last_lines)
    await get_redis().aclose()
