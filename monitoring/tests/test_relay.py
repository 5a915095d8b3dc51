"""A watcher misses nothing and sees nothing twice, whenever he comes, goes, or comes back."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from flows import keys, log
from flows.checkpoints import Checkpoint
from flows.persister import Persister
from flows.redis import get_redis, sync_client, was_cancelled
from flows.store import store
from flows.tracker import FlowTracker
from monitoring.relay import counts, relay_here, status
from monitoring.tests.watching import BOB, Page, Script, break_subscriptions, enable, in_stream, settle
from omni2.database import in_database

pytestmark = pytest.mark.django_db(transaction=True)

STEPS = range(len(Script.NAMES) + 1)


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are compared more often than in earnest, to spare the tests the waiting; and no ping
    wakes a watcher who should have been woken before."""
    monkeypatch.setattr("monitoring.relay.CHECK_EVERY_S", 0.3)
    monkeypatch.setattr("monitoring.relay.PING_EVERY_S", 1000)


async def persist() -> None:
    """Move all that waits to PostgreSQL."""

    def work() -> None:
        persister = Persister()
        with sync_client() as client:
            while any(client.xlen(shard) for shard in keys.LOG_SHARDS):
                persister.step()
        persister.stop()
        persister.run()  # gives its shards back

    await in_database(work)


async def no_persister() -> None:
    """PostgreSQL stays empty."""


# --- the test to be proud of -----------------------------------------------------------------------


@pytest.mark.parametrize("persisted", [persist, no_persister])
@pytest.mark.parametrize("moment", STEPS)
async def test_it_shows_all_to_whoever_joins(
    moment: int, persisted: Callable[[], Any], live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """For every moment of a turn: snapshot + live = what is stored, each once, in order."""
    await enable(olga)
    earlier = await Script(live).run()
    script = Script(live)
    await script.run(moment)
    await persisted()
    async with Page(olga_token) as page:
        await script.run()
        await page.until_shown(earlier + script.flow_ids)
        assert page.snapshots == [True]
    assert await in_stream() == earlier + script.flow_ids


@pytest.mark.parametrize("gone_for", [0, 1, 4])
async def test_it_shows_all_to_whoever_comes_back(
    gone_for: int, live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """The same for connections that break at each moment and come back with their cursor so many
    checkpoints later; one of them with an empty page."""
    await enable(olga)
    script = Script(live)
    pages = [Page(olga_token) for _ in STEPS]
    for page in pages:
        await page.open()
        await page.until_snapshots(1)
    for moment in range(len(Script.NAMES) + gone_for + 1):
        if moment < len(pages):
            await pages[moment].until_shown(script.flow_ids)
            await pages[moment].leave()
        if moment >= gone_for:
            await pages[moment - gone_for].open()
        if moment < len(Script.NAMES):
            await script.step()
    for page in pages:
        await page.until_shown(script.flow_ids)
        await page.until_snapshots(2)
        assert page.snapshots == [True, True]
        await page.leave()


async def test_it_shows_all_while_everything_happens_at_once(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """Many turns at once; pages that come, break off without reading to the end, and come back."""
    await enable(olga)
    pages = [Page(olga_token) for _ in range(6)]
    scripts = [Script(live) for _ in range(12)]

    async def come_and_go(page: Page, number: int) -> None:
        for _ in range(8):
            await page.open()
            await asyncio.sleep(0.003 * number)
            await page.leave()

    async def talk(script: Script) -> None:
        for _ in Script.NAMES:
            await script.step()
            await asyncio.sleep(0.004)

    await asyncio.gather(*(come_and_go(page, n) for n, page in enumerate(pages)), *map(talk, scripts))
    everything = await in_stream()
    assert len(everything) == 120
    for page in pages:
        async with page:
            await page.until(lambda page: len(page.shown) == 120)
            assert set(page.shown) == set(everything)
            assert all(page.snapshots)


# --- what Redis does --------------------------------------------------------------------------------


async def test_it_recovers_what_a_broken_subscription_lost(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """CLIENT KILL TYPE pubsub, again and again while checkpoints flow."""
    await enable(olga)
    reconnects = counts.reconnects

    talked = asyncio.Event()
    drops = 0

    async def break_it() -> None:
        nonlocal drops
        while drops < 30 or not talked.is_set():
            await settle(lambda: relay_here().connected)
            await break_subscriptions()
            await asyncio.sleep(0.02)
            # counted is what the relay has noticed: on a busy machine a kill may meet a connection killed before
            drops = counts.reconnects - reconnects

    async def talk() -> None:
        # four of them make about a thousand a second: the user's stream keeps ten thousand
        while drops < 30:
            await Script(live).run()
            await asyncio.sleep(0.03)

    async def talk_at_once() -> None:
        await asyncio.gather(*(talk() for _ in range(4)))
        talked.set()

    async with Page(olga_token) as page, Page(olga_token) as other:
        await page.until_snapshots(1)
        await asyncio.gather(break_it(), talk_at_once())
        everything = await in_stream()
        assert len(everything) > 300
        await page.until_shown(everything)
        await other.until_shown(everything)
        assert page.snapshots == [True] * len(page.snapshots)
    assert counts.reconnects >= reconnects + 30


@pytest.fixture
def checks_no_positions(_often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The position check would find it as well: here something else must."""
    monkeypatch.setattr("monitoring.relay.CHECK_EVERY_S", 1000)


@pytest.mark.usefixtures("checks_no_positions")
async def test_it_sees_a_hole_by_the_next_message(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    """Messages lost on a connection that stays: the next one names a predecessor we do not have."""
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        for moment in range(len(Script.NAMES)):
            publishing = moment % 4 != 1
            live.is_monitored = lambda user_id, publishing=publishing: publishing
            await script.step()
            if publishing:
                await page.until_shown(script.flow_ids)
        assert page.snapshots == [True]


@pytest.mark.usefixtures("checks_no_positions")
async def test_it_looks_at_the_stream_when_it_has_subscribed_again(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came while there was no subscription, and nothing after it that would tell."""
    monkeypatch.setattr("monitoring.relay.PAUSE_S", (0.3,))
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        await script.run(3)
        await page.until_shown(script.flow_ids)
        await break_subscriptions()
        await settle(lambda: not relay_here().connected)
        await script.run(3)
        assert len(page.shown) == 3
        await page.until_shown(script.flow_ids)
        assert page.snapshots == [True]


@pytest.mark.usefixtures("checks_no_positions")
async def test_it_takes_what_is_on_its_way_for_no_hole(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream is ahead of Pub/Sub for a moment, at any time."""
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        await script.run(3)
        await page.until_shown(script.flow_ids)
        holes, feed, on_its_way = counts.holes, relay_here().feeds[BOB], []
        hear = feed.hear
        monkeypatch.setattr(feed, "hear", on_its_way.append)
        await script.run(2)
        reached = await feed.check()
        assert len(page.shown) == 3
        await settle(lambda: len(on_its_way) == 2)
        monkeypatch.setattr(feed, "hear", hear)
        for message in on_its_way:
            feed.hear(message)
        feed.must_have(reached)
        await page.until_shown(script.flow_ids)
        assert counts.holes == holes
        # the same, but it never comes
        monkeypatch.setattr(feed, "hear", lambda message: None)
        await script.run(1)
        feed.must_have(await feed.check())
        await page.until_shown(script.flow_ids)
        assert counts.holes == holes + 1


@pytest.mark.usefixtures("checks_no_positions")
async def test_it_has_read_a_hole_though_checkpoints_keep_coming(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each reading of the stream one more is there: it comes by Pub/Sub."""
    await enable(olga)
    turn = live.begin(user_id=BOB, session_id="s")
    read_after, reads = log.read_after, 0

    async def record() -> None:
        turn.record("note")
        await turn.acknowledged(20)

    async def read_while_more_comes(*args: Any, **kwargs: Any) -> list[log.Entry]:
        nonlocal reads
        entries = await read_after(*args, **kwargs)
        reads += 1
        if reads < 20:
            await record()
        return entries

    async with Page(olga_token) as page:
        await record()
        await page.until_shown(await in_stream())
        monkeypatch.setattr("flows.log.read_after", read_while_more_comes)
        live.is_monitored = lambda user_id: False
        await record()
        live.is_monitored = lambda user_id: True
        await record()  # its predecessor is missing
        await settle(lambda: reads > 0)
        await page.until(lambda page: len(page.shown) >= 4)
        assert reads < 5
        await page.until_shown(await in_stream())
        assert page.snapshots == [True]


async def test_it_finds_what_was_never_published(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    """The last messages before a silence are lost: no later one tells of the hole, the position check does."""
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        await script.run(3)
        await page.until_shown(script.flow_ids)
        live.is_monitored = lambda user_id: False  # a process that has not heard of the monitoring yet
        await script.run()
        await page.until_shown(script.flow_ids)


async def test_it_gives_a_fresh_snapshot_after_a_flush(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        await script.run(4)
        await page.until_shown(script.flow_ids)
        await persist()
        await get_redis().flushall()
        await script.run()
        await page.until_shown(script.flow_ids)
        await page.until_snapshots(2)
        assert page.snapshots == [True, False]
        again = Script(live)
        await again.run()
        await page.until_shown(script.flow_ids + again.flow_ids)


async def test_it_gives_a_fresh_snapshot_to_a_cursor_of_another_epoch(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    await enable(olga)
    script = Script(live)
    page = Page(olga_token)
    async with page:
        await script.run(4)
        await page.until_shown(script.flow_ids)
    await persist()
    await get_redis().flushall()
    await script.run(2)
    async with page:
        await page.until_snapshots(2)
        await script.run()
        await page.until_shown(script.flow_ids)
        assert page.snapshots == [True, False]


async def test_it_gives_a_fresh_snapshot_when_the_epoch_changes(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """Checkpoints went to PostgreSQL directly while Redis was away, and then the epoch changed."""
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        await script.run(4)
        await page.until_shown(script.flow_ids)
        await get_redis().hset("omni2:epoch", "epoch", "another")
        await page.until_snapshots(2)
        await script.run()
        await page.until_shown(script.flow_ids)
        assert page.snapshots == [True, False]


async def test_it_gives_a_fresh_snapshot_when_the_log_no_longer_reaches_back(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    await enable(olga)
    first = Script(live)
    page = Page(olga_token)
    async with page:
        await first.run()
        await page.until_shown(first.flow_ids)
    second = Script(live)
    await second.run()
    await persist()
    await get_redis().xtrim(f"interaction_flows:{BOB}", maxlen=3, approximate=False)
    async with page:
        await page.until_shown(first.flow_ids + second.flow_ids)
        assert page.snapshots == [True, False]


async def test_it_resumes_exactly_when_the_log_reaches_just_back(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """Trimmed, but not beyond the cursor."""
    await enable(olga)
    first = Script(live)
    page = Page(olga_token)
    async with page:
        await first.run()
        await page.until_shown(first.flow_ids)
    second = Script(live)
    await second.run()
    await get_redis().xtrim(f"interaction_flows:{BOB}", maxlen=11, approximate=False)
    async with page:
        await page.until_shown(first.flow_ids + second.flow_ids)
        await page.until_snapshots(2)
        assert page.snapshots == [True, True]


async def test_it_shows_once_what_went_around_the_log_and_came_into_it_later(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """Stored while Redis did not take it, so a pre-roll has it; then appended to the stream, by another process."""
    await enable(olga)
    first = await Script(live).run()
    around = live.begin(user_id=BOB, session_id="s")
    made = [Checkpoint(around, "auth_check", None, {})]
    around.turn_id = made[0].flow_id
    made.append(Checkpoint(around, "flow_end", made[0], {"outcome": "completed"}))
    await in_database(store, [checkpoint.document for checkpoint in made])
    expected = first + [checkpoint.flow_id for checkpoint in made]
    async with Page(olga_token) as page:
        await page.until_shown(expected)
        await get_redis().execute_command(*log.pack_append(made, lambda user_id: True, way="around"))
        last = await Script(live).run()
        await page.until_shown(expected + last)
        assert page.snapshots == [True, False]


@pytest.mark.parametrize("moment", [0, 2, 5, 9, 10])
async def test_it_drops_the_second_entry_of_a_retried_append(
    moment: int, live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """A batch whose answer was lost is appended again; joins and rejoins before, between and after."""
    await enable(olga)
    script = Script(live)
    page = Page(olga_token)

    async def repeat() -> None:
        words = log.pack_append(script.made, lambda user_id: True)
        await get_redis().execute_command(*words)

    await script.run(moment)
    if moment:
        await repeat()
    async with page:
        await page.until_shown(script.flow_ids)
        await page.until_snapshots(1)
        if moment:
            await repeat()
    await script.run(min(3, 10 - moment))
    await repeat()
    async with page:
        await script.run()
        await repeat()
        last = await Script(live).run()
        await page.until_shown(script.flow_ids + last)
        assert all(page.snapshots)


async def test_it_knows_a_repeated_entry_long_after(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeated right after the cursor of one who stays away for longer than the feed remembers."""
    monkeypatch.setattr("monitoring.relay.RECENT_FLOW_IDS", 5)
    await enable(olga)
    script = Script(live)
    page = Page(olga_token)
    async with page:
        await script.run(4)
        await page.until_shown(script.flow_ids)
    await get_redis().execute_command(*log.pack_append(script.made, lambda user_id: True))
    await script.run()
    async with page:
        await page.until_shown(script.flow_ids)
        await page.until_snapshots(2)
        assert page.snapshots == [True, True]


# --- many watchers, many users ----------------------------------------------------------------------


async def test_it_never_mixes_two_users(live: FlowTracker, bob: Any, ada: Any, olga: Any, olga_token: str) -> None:
    await enable(olga)
    await enable(olga, ada.user_id)
    async with Page(olga_token) as bobs, Page(olga_token, user_id=ada.user_id) as adas:
        ours, hers = [Script(live) for _ in range(3)], [Script(live, ada.user_id) for _ in range(3)]
        await asyncio.gather(*(script.run() for script in ours + hers))
        await bobs.until(lambda page: len(page.shown) == 30)
        await adas.until(lambda page: len(page.shown) == 30)
        assert list(bobs.shown) == await in_stream()
        assert list(adas.shown) == await in_stream(ada.user_id)


async def test_it_uses_one_subscription_for_all_and_ends_it_with_the_last(
    live: FlowTracker, bob: Any, ada: Any, olga: Any, olga_token: str
) -> None:
    await enable(olga)
    await enable(olga, ada.user_id)

    async def connections() -> int:
        return len([each for each in await get_redis().client_list() if each["name"] == "omni2-relay"])

    async with Page(olga_token) as one, Page(olga_token) as two, Page(olga_token, user_id=ada.user_id) as three:
        for page in (one, two, three):
            await page.until_snapshots(1)
        assert await connections() == 1
        assert (status()["feeds"], status()["watchers"], status()["connected"]) == (2, 3, True)
    await settle(lambda: not relay_here()._tasks)
    assert status()["watchers"] == 0
    async with asyncio.timeout(10):
        while await connections():
            await asyncio.sleep(0.01)


async def test_it_ends_in_peace_while_it_reads_and_unsubscribes(
    live: FlowTracker, bob: Any, ada: Any, olga: Any, olga_token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The last watcher leaves some steps of the loop after the one before him, whatever they meet."""
    await enable(olga)
    await enable(olga, ada.user_id)

    async def talk() -> None:
        while not was_cancelled():
            async with get_redis().pipeline(transaction=False) as pipe:
                for _ in range(50):
                    pipe.publish(keys.user_channel(BOB), b"nobody listens any more")
                await pipe.execute()

    talking = asyncio.create_task(talk())
    for steps in range(40):
        async with Page(olga_token) as one, Page(olga_token, user_id=ada.user_id) as two:
            await one.until_snapshots(1)
            await two.until_snapshots(1)
            relay = relay_here()
            (bobs,), (adas,) = (relay.feeds[user_id].watchers for user_id in (BOB, ada.user_id))
            relay.leave(bobs)
            for _ in range(steps % 4):
                await asyncio.sleep(0)
            relay.leave(adas)
            await settle(lambda relay=relay: not relay._tasks)
            await asyncio.sleep(0.01)
    talking.cancel()
    await asyncio.wait([talking])
    assert [record.getMessage() for record in caplog.records if "relay failed" in record.getMessage()] == []


async def test_it_reads_a_long_gap_in_parts(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    """However much came since: all of it, in parts of 200."""
    await enable(olga)
    page = Page(olga_token)
    async with page:
        await page.until_snapshots(1)
    turns = [live.begin(user_id=BOB, session_id="s") for _ in range(250)]
    for turn in turns:
        root = turn.record("auth_check", status="passed")
        for n in range(8):
            turn.record("note", root, n=n)
        turn.end("completed")
    for turn in turns:
        await turn.acknowledged(20)
    everything = await in_stream()
    assert len(everything) == 2500
    async with page:
        await page.until_shown(everything)
        assert page.snapshots == [True, True]
