"""Live delivery over the network: real web processes, on Daphne and on uvicorn alike."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from flows.flusher import REDIS_AWAY
from flows.redis import get_redis
from flows.tracker import FlowTracker
from monitoring.tests.watching import Closed, Page, Script, WireSocket, break_subscriptions, in_stream
from tests.faults.footprint import resident_kib
from tests.running import Process, Running, eventually, get, running

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

OLGA, CHARLIE = "olga@example.com", "charlie@example.com"


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def omni2(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Two web processes and a persister."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI2_TEST_SERVER", request.param)
        with running(web=2) as omni2:
            omni2.create_user(OLGA, "Olga", "operators")
            omni2.create_user(CHARLIE)
            yield omni2


@pytest.fixture
async def tracker(omni2: Running, settings: Any) -> AsyncIterator[FlowTracker]:
    """A third web process, as it were: it records turns into the same Redis."""
    settings.REDIS_URL = omni2.redis_url
    tracker = FlowTracker()
    tracker.is_monitored = lambda user_id: True
    yield tracker
    if tracker.flusher is not None:
        await tracker.flusher.stop()
    await get_redis().aclose()


@pytest.fixture
def token(omni2: Running) -> str:
    return omni2.create_token(OLGA)


@pytest.fixture
async def bob(omni2: Running, token: str) -> str:
    """Somebody new who is monitored, as every web process knows."""
    user_id = f"bob-{uuid.uuid4().hex[:8]}@example.com"
    omni2.create_user(user_id)
    period = "INSERT INTO monitored_users (user_id, enabled_by, expires_at) VALUES (%s, %s, now() + interval '1 hour')"
    omni2.sql(period, user_id, OLGA)
    for url in omni2.urls:
        async with WireSocket(url, user_id=user_id, token=token) as socket:
            message = await socket.receive()
            while not message.get("active", message.get("monitoring", {}).get("active")):
                message = await socket.receive()
    return user_id


@pytest.fixture
def page(bob: str, token: str) -> Callable[..., Page]:
    """page(url) → a page that watches Bob there."""
    return lambda url, **options: Page(token, user_id=bob, connect=partial(WireSocket, url), **options)


async def code_of(url: str, **options: Any) -> int | None:
    try:
        async with WireSocket(url, **options) as socket:
            assert (await socket.receive())["type"] == "hello"
    except Closed as closed:
        return closed.code
    return None


async def test_its_doors(omni2: Running, bob: str, token: str) -> None:
    code = partial(code_of, omni2.url, user_id=bob)
    session = "; ".join(f"{name}={value}" for name, value in omni2.sign_in(OLGA).items())
    assert await code(token=token) is None
    assert await code() == 4401
    assert await code(token="omni2_wrong") == 4401
    assert await code(token=omni2.create_token(CHARLIE)) == 4403
    assert await code(token=token, user_id="nobody@example.com") == 4404
    assert await code(token=token, after="x") == 4400
    assert await code(headers={"Origin": omni2.url, "Cookie": session}) is None
    assert await code(headers={"Origin": "https://evil.test", "Cookie": session}) == 403
    assert await code(headers={"Cookie": session}) == 403
    async with WireSocket(omni2.url, user_id=bob, subprotocols=["bearer", token]) as socket:
        assert socket.subprotocol == "bearer"
        assert (await socket.receive())["type"] == "hello"


async def test_a_turn_is_seen_whole_and_once_on_every_process(
    omni2: Running, tracker: FlowTracker, bob: str, page: Callable[..., Page]
) -> None:
    """Watchers on both, coming back on the other one, while subscriptions break."""
    pages = [page(url) for url in omni2.urls]
    for each in pages:
        await each.open()
        await each.until_snapshots(1)
    expected: list[str] = []
    for number in range(4):
        expected += await Script(tracker, bob).run()
        await break_subscriptions()
        expected += await Script(tracker, bob).run()
        pages[0].connect, pages[1].connect = pages[1].connect, pages[0].connect
        await pages[number % 2].leave(reset=number >= 2)
        expected += await Script(tracker, bob).run()
        await pages[number % 2].open()
    assert await in_stream(bob) == expected
    for each in pages:
        await each.until_shown(expected)
        assert all(each.snapshots)
        await each.leave()


async def test_whoever_takes_nothing_is_closed_and_comes_back_whole(
    omni2: Running, tracker: FlowTracker, bob: str, page: Callable[..., Page]
) -> None:
    """One reads and does not acknowledge; four do not even read what 16 MiB of checkpoints make of frames for each."""
    slow, stalled = page(omni2.url, acknowledges=False), [page(omni2.url, acknowledges=False) for _ in range(4)]
    before_kib = resident_kib(omni2.web[0])
    async with slow:
        for each in (slow, *stalled):
            if each is not slow:
                await each.open()
            await each.until_snapshots(1)
        for each in stalled:
            each.socket.connection.transport.pause_reading()
        made = await flood(tracker, bob, checkpoints=2000, size=7900)
        await slow.until(lambda page: page.closed is not None)
        assert slow.closed == 4408
        await asyncio.to_thread(eventually, lambda: watchers(omni2.url) == 0, "those who read nothing are let go")
        # four megabytes of credit, and as much in buffers; without a bound it were 64
        assert resident_kib(omni2.web[0]) - before_kib < 4 * 10 * 1024
    for each in (slow, *stalled):
        await each.leave(reset=True)
        each.acknowledges = True
        async with each:
            await each.until_shown(made)
            assert all(each.snapshots)


async def flood(tracker: FlowTracker, user_id: str, *, checkpoints: int, size: int) -> list[str]:
    """One turn of so many, each so large; their flow_ids."""
    turn = tracker.begin(user_id=user_id, session_id="s")
    made = [turn.record("auth_check", status="passed")]
    made += [turn.record("note", made[0], n=n, text="x" * size) for n in range(checkpoints - 1)]
    await turn.acknowledged(30)
    return [each.flow_id for each in made]


def watchers(url: str) -> int:
    return json.loads(get(url + "/readyz", timeout_s=20)[1])["checks"]["relay"]["watchers"]


async def test_it_survives_the_end_of_its_web_process(
    omni2: Running, tracker: FlowTracker, bob: str, page: Callable[..., Page]
) -> None:
    watcher = page(omni2.urls[1])
    async with watcher:
        first = await Script(tracker, bob).run()
        await watcher.until_shown(first)
        omni2.web[1].kill()
        await watcher.until(lambda page: page.closed is not None)
        second = await Script(tracker, bob).run()
    watcher.connect = partial(WireSocket, omni2.url)
    async with watcher:
        await watcher.until_shown(first + second)
        await watcher.until_snapshots(2)
        assert watcher.snapshots == [True, True]
    omni2.web[1].start()
    omni2.wait_until_ready()


async def kill_and_start(valkey: Process) -> None:
    """Started again from its append-only file: the same entries, another epoch."""
    valkey.kill()
    await asyncio.sleep(1)
    valkey.start()


async def freeze(valkey: Process) -> None:
    """Long enough for time-outs, so that checkpoints would go around it."""
    valkey.stop()
    await asyncio.sleep(3)
    valkey.cont()


@pytest.mark.parametrize("happens", [kill_and_start, freeze])
async def test_it_survives_redis(
    happens: Callable[[Process], Any], omni2: Running, tracker: FlowTracker, bob: str, page: Callable[..., Page]
) -> None:
    assert omni2.valkey is not None
    async with page(omni2.url) as watcher:
        first = await Script(tracker, bob).run()
        await watcher.until_shown(first)
        await happens(omni2.valkey)
        await until_redis_answers()
        second = await Script(tracker, bob).run()
        await watcher.until_shown(first + second)
        assert watcher.closed is None
        assert (False in watcher.snapshots) is (happens is kill_and_start)


async def test_whoever_comes_while_redis_is_away_sees_what_is_stored(
    omni2: Running, tracker: FlowTracker, bob: str, page: Callable[..., Page]
) -> None:
    """Marked as not complete; and when Redis is back, all."""
    assert omni2.valkey is not None
    first = await Script(tracker, bob).run()
    count = "SELECT count(*) FROM interaction_flows WHERE user_id = %s"
    await asyncio.to_thread(eventually, lambda: omni2.sql(count, bob) == [(len(first),)], "the turn is stored")
    omni2.valkey.kill()
    try:
        async with page(omni2.url) as watcher:
            await watcher.until_shown(first)
            assert watcher.snapshots == [False]
            assert watcher.cursor is None
            omni2.valkey.start()
            await until_redis_answers()
            second = await Script(tracker, bob).run()
            await watcher.until_shown(first + second)
            assert False in watcher.snapshots[1:]
    finally:
        if not omni2.valkey.alive:
            omni2.valkey.start()


async def until_redis_answers() -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                return await get_redis().ping()
            except REDIS_AWAY:
                await asyncio.sleep(0.1)
