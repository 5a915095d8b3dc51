"""A slow watcher costs nobody anything: he is closed, and comes back whole."""

import asyncio
import json
import uuid
from typing import Any

import pytest

from flows import keys
from flows.redis import get_redis
from flows.tracker import FlowTracker
from monitoring.relay import relay_here
from monitoring.tests.watching import BOB, Closed, Page, Script, Socket, disable, enable, in_stream, settle
from monitoring.watcher import Credit, Sent

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds are a long time in a test."""
    monkeypatch.setattr("monitoring.watcher.PATIENCE_S", 0.3)


async def flood(tracker: FlowTracker, checkpoints: int, *, size: int = 0) -> None:
    """So many checkpoints of Bob, in one turn."""
    turn = tracker.begin(user_id=BOB, session_id="s")
    root = turn.record("auth_check", status="passed")
    for n in range(checkpoints - 1):
        turn.record("note", root, n=n, text="x" * size)
    await turn.acknowledged(20)
    assert turn.durable == checkpoints


async def read_silently(socket: Socket) -> tuple[list[dict[str, Any]], int]:
    """All messages until the server closes, none acknowledged; and its code."""
    messages = []
    try:
        while True:
            messages.append(await socket.receive())
    except Closed as closed:
        return messages, closed.code


def test_credit_is_given_back_up_to_the_last_frame_with_that_cursor() -> None:
    credit = Credit()

    def spend(cursor: str, size: int) -> None:
        credit.spend([Sent(cursor, size)], size)

    for cursor in "abbc":
        spend(cursor, 1024 * 1024)
    assert not credit.left
    credit.give_back("unknown")
    assert not credit.left
    credit.give_back("b")
    assert credit.left
    for _ in range(3):
        spend("d", 1024 * 1024)
    assert not credit.left
    credit.give_back("d")
    credit.give_back("d")
    for _ in range(499):
        spend("e", 1)
    assert credit.left
    assert credit.covers(1, 1)
    assert not credit.covers(2, 2)
    spend("f", 1)
    assert not credit.left


@pytest.mark.usefixtures("impatient")
async def test_it_closes_whoever_acknowledges_nothing_and_he_comes_back_whole(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    await enable(olga)
    page = Page(olga_token, acknowledges=False)
    async with page:
        await page.until_snapshots(1)
        await flood(live, 800)
        await page.until(lambda page: page.closed is not None)
        assert page.closed == 4408
        # the snapshot and 499 frames
        assert len(page.shown) == 499
        assert page.snapshots == [True]
    page.acknowledges = True
    async with page:
        await page.until_shown(await in_stream())
        assert all(page.snapshots)


@pytest.mark.usefixtures("impatient")
async def test_it_counts_bytes_too(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    """Four megabytes of checkpoints of 8 KiB are fewer than 500 frames."""
    await enable(olga)
    async with Socket(token=olga_token) as socket:
        await socket.receive()
        await flood(live, 800, size=8100)
        messages, code = await read_silently(socket)
        assert code == 4408
        sizes = [len(json.dumps(message["checkpoint"])) for message in messages if message["type"] == "checkpoint"]
        assert len(sizes) < 499
        assert sum(sizes[:-1]) < 4.3 * 1024 * 1024


@pytest.mark.usefixtures("impatient")
async def test_it_counts_snapshots_too(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    """A resume of more than four megabytes waits for acknowledgements half-way, and says so."""
    await enable(olga)
    page = Page(olga_token)
    async with page:
        await page.until_snapshots(1)
    await flood(live, 900, size=8000)
    async with Socket(token=olga_token, after=page.cursor) as socket:
        messages, code = await read_silently(socket)
        parts = [message for message in messages if message["type"] == "snapshot"]
        assert code == 4408
        assert all(part["more"] for part in parts)
        assert 400 < sum(len(part["checkpoints"]) for part in parts) < 700
    async with page:
        await page.until_shown(await in_stream())
        assert page.snapshots == [True, True]


async def test_it_goes_on_when_there_is_credit_again(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    """Without credit for a while, but not too long: what was not sent is read from the log, in order."""
    await enable(olga)
    page = Page(olga_token, acknowledges=False)
    async with page:
        await page.until_snapshots(1)
        await flood(live, 2500)
        await page.until(lambda page: len(page.shown) == 499)
        assert page.socket is not None
        page.acknowledges = True
        page.socket.acknowledge(page.cursor)
        last = await Script(live).run()
        await page.until(lambda page: last[-1] in page.shown)
        assert list(page.shown) == await in_stream()
        assert all(page.snapshots)


async def test_one_slow_watcher_does_not_hold_the_others_up(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """Under a server with back-pressure `send` does not return; the others see all meanwhile."""
    await enable(olga)
    slow = Page(olga_token)
    async with slow, Page(olga_token) as quick:
        await slow.until_snapshots(1)
        await quick.until_snapshots(1)
        assert slow.socket is not None
        slow.socket.stuck = asyncio.Event()
        await flood(live, 1500)
        everything = await in_stream()
        await quick.until_shown(everything)
        assert slow.shown == {}
        slow.socket.stuck.set()
        await slow.until_shown(everything)


@pytest.mark.usefixtures("impatient")
async def test_it_leaves_a_client_that_takes_nothing(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`send` never returns: nothing can be said to him, not even goodbye; the socket's task ends."""
    # as in life, time is looked at several times before he has to be gone
    monkeypatch.setattr("monitoring.consumers.GOODBYE_S", 0.5)
    monkeypatch.setattr("monitoring.relay.TICK_S", 0.1)
    await enable(olga)
    socket = Socket(token=olga_token)
    await socket.open()
    await socket.receive()
    socket.stuck = asyncio.Event()
    await flood(live, 10)
    assert socket.task is not None
    await asyncio.wait_for(socket.task, 20)


@pytest.fixture
def in_small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of three checkpoints a part, and credit for ten parts."""
    monkeypatch.setattr("monitoring.messages.PART_CHECKPOINTS", 3)
    monkeypatch.setattr("monitoring.watcher.CREDIT_FRAMES", 10)


async def change_epoch() -> None:
    """Checkpoints went around the log, and the relay has seen it."""
    feed, epoch = relay_here().feeds[BOB], uuid.uuid4().hex[:12]
    await get_redis().hset(keys.EPOCH, "epoch", epoch)
    feed.synchronise()
    await settle(lambda: feed.epoch == epoch)


@pytest.mark.usefixtures("in_small_parts")
@pytest.mark.parametrize("times", [1, 2, 3])
async def test_it_begins_anew_in_the_middle_of_a_snapshot(
    times: int, live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """The log restarts while a snapshot is half sent, and again while the fresh one is."""
    await enable(olga)
    for _ in range(5):
        await Script(live).run()
    page = Page(olga_token, acknowledges=False)
    async with page:
        for _ in range(times):
            await page.until(lambda page: len(page.shown) == 30)
            assert page._in_snapshot
            before = len(page.snapshots)
            await change_epoch()
            page.socket.acknowledge(page.cursor)
            await page.until(lambda page, before=before: len(page.snapshots) > before)
        page.acknowledges = True
        page.socket.acknowledge(page.cursor)
        last = await Script(live).run()
        await page.until(lambda page: last[-1] in page.shown)
        assert page.visible == await in_stream()


@pytest.mark.usefixtures("in_small_parts")
async def test_monitoring_that_ends_in_the_middle_of_a_snapshot_ends_it(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    """And the next period begins with a whole one."""
    await enable(olga)
    for _ in range(5):
        await Script(live).run()
    page = Page(olga_token, acknowledges=False)
    async with page:
        await page.until(lambda page: len(page.shown) == 30)
        await disable(olga)
        page.acknowledges = True
        await enable(olga)
        page.socket.acknowledge(page.cursor)
        await page.until_shown(await in_stream())
