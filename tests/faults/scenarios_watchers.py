"""Watchers whose way is broken again and again, and watchers that take next to nothing."""

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import redis.asyncio

from flows import keys
from monitoring.tests.watching import Closed, Page, WireSocket
from tests.faults import arithmetic
from tests.faults.arithmetic import Sum
from tests.faults.footprint import footprint, resident_kib
from tests.faults.load import Person
from tests.faults.recorder import Recorder, recorders
from tests.faults.rig import Outcome, Rig, percentile_ms
from tests.faults.scenario import scenario
from tests.faults.watchers import Watcher, spread
from tests.running import Running, get

DROPS_AT_RATE = 1000.0
STAY_S = 20.0


@contextlib.contextmanager
def served_by(server: str) -> Iterator[None]:
    """Web processes started inside run on Daphne or uvicorn."""
    before = os.environ.get("OMNI2_TEST_SERVER")
    os.environ["OMNI2_TEST_SERVER"] = server
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMNI2_TEST_SERVER"]
        else:
            os.environ["OMNI2_TEST_SERVER"] = before


def add_uvicorn(omni2: Running) -> None:
    """One more web process, on the other server."""
    with served_by("uvicorn"):
        omni2.start_web()
    omni2.wait_until_ready()


async def _until(check: Any, what: str, *, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        await asyncio.sleep(0.05)


async def _arrive(watchers: Sequence[Watcher]) -> None:
    for watcher in watchers:
        watcher.start()
    await _until(lambda: all(watcher.is_there for watcher in watchers), "the watchers are there")


async def _stored(omni2: Running) -> None:
    await _until(lambda: arithmetic.waiting(omni2) == 0, "the log is drained", limit_s=120)


async def _compare(omni2: Running, found: Sum, watchers: Sequence[Watcher], person: Person, made: list[str]) -> None:
    """What was made, what is stored, what the stream has, and what each watcher shows: the same, in the same order."""
    await _stored(omni2)
    rows = [row["flow_id"] for row in await asyncio.to_thread(arithmetic.rows_of, omni2, person.email)]
    if rows != made:
        found.problems.append(f"{len(made)} were made, {len(rows)} are stored, or in another order")
    found.turns, found.durable, found.persisted = 0, len(made), len(rows)
    found.lost = len(set(made) - set(rows))
    with contextlib.suppress(AssertionError):
        await _until(lambda: all(len(each.page.shown) >= len(made) for each in watchers), "they show all", limit_s=30)
    stream = await asyncio.to_thread(_stream, omni2, person.email)
    for watcher in watchers:
        shown = list(watcher.page.shown)
        if watcher.failed:
            found.problems.append(watcher.failed)
        if shown != made:
            found.problems.append(f"{watcher.name}: shows {len(shown)} of {len(made)}, or in another order")
        if shown[-len(stream) :] != stream:
            found.problems.append(f"{watcher.name}: shows otherwise than the stream")
        if not all(watcher.page.snapshots):
            found.problems.append(f"{watcher.name}: was given a fresh start, though the log reached back")


def _stream(omni2: Running, user_id: str) -> list[str]:
    entries: Any = omni2.redis.xrange(keys.user_stream(user_id))
    pattern = re.compile(rb'"flow_id":"([^"]+)"')
    return list(dict.fromkeys(pattern.search(fields[b"d"])[1].decode() for _, fields in entries))


@scenario(
    "relay-dropped",
    "the relay's connection is dropped all the time at 1,000 checkpoints a second: each watcher's list is the stream",
    times=1000,
    limit_s=1200,
    web=1,
)
async def relay_dropped(rig: Rig) -> Outcome:
    """Daphne and uvicorn, two watchers at each."""
    omni2, found = rig.omni2, Sum()
    await asyncio.to_thread(add_uvicorn, omni2)
    ada = rig.ada()
    (person,) = await asyncio.to_thread(rig.people, "dropped", ["bob"])
    await asyncio.to_thread(rig.monitor, [person])
    watchers = spread(ada, [person.email], omni2.urls, 4 if rig.plan.long else 2)
    await _arrive(watchers)
    stop, drops, killed = asyncio.Event(), 0, 0
    began = time.monotonic()
    client = redis.asyncio.Redis.from_url(omni2.redis_url)
    async with recorders(omni2) as tracker:
        recorder = Recorder(tracker, person.email)
        recording = asyncio.create_task(recorder.run(DROPS_AT_RATE, stop))
        while drops < rig.plan.times:
            listening = [each for each in await client.client_list(_type="pubsub") if each["name"] == "omni2-relay"]
            if listening:
                killed += await client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
                drops += 1
            await asyncio.sleep(0.005)
        took_s = time.monotonic() - began
        stop.set()
        await recording
    await client.aclose()
    await _compare(omni2, found, watchers, person, recorder.made)
    figures = {
        "checkpoints": len(recorder.made),
        "rate": round(len(recorder.made) / took_s),
        "connections_killed": killed,
        "watchers": len(watchers),
        "prerolls": sum(len(watcher.page.snapshots) for watcher in watchers),
        "reconnects": await asyncio.to_thread(_reconnects, omni2),
    }
    for watcher in watchers:
        await watcher.stop()
    return Outcome(drops, found, figures)


def _reconnects(omni2: Running) -> int:
    return sum(json.loads(get(url + "/readyz")[1])["checks"]["relay"]["reconnects"] for url in omni2.urls)


@scenario(
    "watchers-cut",
    "watchers are cut by close, RST and a restart of their server: snapshot + live = stored, never half a gap",
    times=150,
)
async def watchers_cut(rig: Rig) -> Outcome:
    """A cut every fifth of a second or so; every fiftieth is the end of a whole server."""
    restarts = 0
    async with rig.round() as round_:
        for number in range(rig.plan.times):
            if number % 50 == 25:
                process = rig.omni2.web[restarts % len(rig.omni2.web)]
                restarts += 1
                round_.note(f"{process.name} is restarted")
                await asyncio.to_thread(process.end)
                process.start()
                await asyncio.to_thread(rig.omni2.wait_until_ready)
            there = [each for each in round_.watchers if each.is_connected]
            if there:
                how = rig.random.choice(("close", "reset"))
                watcher = rig.random.choice(there)
                round_.note(f"{how} {watcher.name}")
                with contextlib.suppress(Closed, OSError):
                    await getattr(watcher.page.socket, how)()
            await round_.pause(0.05, 0.3)
    outcome = await round_.reckon()
    outcome.figures["restarts"] = restarts
    return outcome


# --- the slow ones --------------------------------------------------------------------------------------

FRAME = re.compile(r'^\{"type":"checkpoint","cursor":"([^"]+)".*"created_at":"([^"]+)"\}', re.DOTALL)
CURSOR = re.compile(r'"cursor":"([^"]+)"')


class Stopwatch:
    """A watcher that only measures: from the making of each checkpoint to its frame."""

    def __init__(self, url: str, token: str, user_id: str) -> None:
        self.socket = WireSocket(url, user_id=user_id, token=token)
        self.delays_s: list[float] = []
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await self.socket.open()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        frames = 0
        async for text in self.socket.connection:
            now = time.time()
            if found := FRAME.match(text):
                self.delays_s.append(now - datetime.fromisoformat(found[2]).timestamp())
                frames += 1
                if frames % 50 == 0:
                    self.socket.acknowledge(found[1])
            elif found := CURSOR.search(text):
                self.socket.acknowledge(found[1])

    async def end(self) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.socket.close()


async def stalled(url: str, token: str, user_id: str) -> Page:
    """A page that has its snapshot and then reads nothing off its connection any more."""
    page = Page(token, user_id=user_id, connect=partial(WireSocket, url), acknowledges=False)
    await page.open()
    await page.until_snapshots(1)
    page.socket.connection.transport.pause_reading()
    return page


async def _creep(page: Page, stop: asyncio.Event) -> None:
    """Takes twenty frames a second and acknowledges each: always behind, never without credit for long."""
    transport = page.socket.connection.transport
    page.acknowledges = True
    while not stop.is_set():
        transport.resume_reading()
        await asyncio.sleep(0.002)
        transport.pause_reading()
        await asyncio.sleep(0.05)
    transport.resume_reading()


@scenario(
    "slow-watchers",
    "a stalled and a slow watcher among 50 cost the others nothing, the server little, and come back whole",
    times=2,
    limit_s=900,
    web=1,
)
async def slow_watchers(rig: Rig) -> Outcome:
    """With and without the two, in turn, on Daphne and on uvicorn."""
    omni2, found, figures = rig.omni2, Sum(), {}
    await asyncio.to_thread(add_uvicorn, omni2)
    ada = rig.ada()
    for name, url, process in zip(("daphne", "uvicorn"), omni2.urls, omni2.web, strict=True):
        (person,) = await asyncio.to_thread(rig.people, name, ["bob"])
        await asyncio.to_thread(rig.monitor, [person])
        async with recorders(omni2) as tracker:
            recorder = Recorder(tracker, person.email)
            figures[name] = await _side_by_side(rig, url, ada, person, recorder, found)
            figures[name] |= await _memory(rig, url, ada, person, recorder, process, found)
        await _stored(omni2)
    return Outcome(2 * rig.plan.times, found, figures)


async def _side_by_side(
    rig: Rig,
    url: str,
    ada: str,
    person: Person,
    recorder: Recorder,
    found: Sum,
    *,
    seconds: float = 11,
    rate: float = 120,
) -> dict[str, Any]:
    others = [Stopwatch(url, ada, person.email) for _ in range(48)]
    await asyncio.gather(*(each.begin() for each in others))
    delays: dict[bool, list[float]] = {False: [], True: []}
    closed = []
    for number in range(2 * rig.plan.times):
        bad = number % 2 == 1
        for each in others:
            each.delays_s.clear()
        stop, pages = asyncio.Event(), []
        if bad:
            pages = [await stalled(url, ada, person.email) for _ in range(2)]
            creeping = asyncio.create_task(_creep(pages[1], stop))
        recording = asyncio.create_task(recorder.run(rate, stop))
        await asyncio.sleep(seconds)
        stop.set()
        await recording
        await asyncio.sleep(0.5)
        delays[bad] += [delay for each in others for delay in each.delays_s]
        if bad:
            await creeping
            pages[0].socket.connection.transport.resume_reading()
            await pages[0].until(lambda page: page.closed is not None)
            closed.append(pages[0].closed)
            for page in pages:
                await _comes_back_whole(page, recorder.made, found)
    for each in others:
        await each.end()
    measured = {
        f"{name}_p{share}_ms": percentile_ms(delays[bad], share)
        for bad, name in ((False, "without"), (True, "with"))
        for share in (50, 99)
    }
    ratios = {
        f"ratio_p{share}": round(measured[f"with_p{share}_ms"] / measured[f"without_p{share}_ms"], 2)
        for share in (50, 99)
    }
    return {**measured, **ratios, "stalled_closed_with": sorted(set(closed))}


async def _comes_back_whole(page: Page, made: list[str], found: Sum) -> None:
    """With its cursor it is sent exactly what it has not got; or, if it fell far behind, a fresh start."""
    await page.leave()
    page.acknowledges = True
    page.shown = {} if page.cursor is None else page.shown
    await page.open()
    try:
        await page.until(lambda page: not page._in_snapshot and bool(page.shown) and page.visible[-1] == made[-1])
    except AssertionError as problem:
        found.problems.append(f"a slow page came back: {problem}")
    shown = page.visible
    if shown != made[len(made) - len(shown) :]:
        found.problems.append(f"a slow page shows {len(shown)} with a gap")
    await page.leave()


async def _memory(
    rig: Rig, url: str, ada: str, person: Person, recorder: Recorder, process: Any, found: Sum, *, count: int = 8
) -> dict[str, Any]:
    """Eight that read nothing while 24 MiB are due to each of them."""
    before = resident_kib(process)
    pages = [await stalled(url, ada, person.email) for _ in range(count)]
    recorder.metadata = {"text": "x" * 7900}
    most = before
    for _ in range(3000):
        recorder.record()
        if len(recorder.made) % 50 == 0:
            await asyncio.sleep(0.02)
            most = max(most, resident_kib(process))
    await recorder.end()
    began = time.monotonic()
    gone = False
    while not gone and time.monotonic() - began < STAY_S + 20:
        await asyncio.sleep(0.5)
        most = max(most, resident_kib(process))
        gone = (await asyncio.to_thread(footprint, rig.omni2)).watchers == 0
    if not gone:
        found.problems.append("stalled watchers are never let go")
    let_go_s = round(time.monotonic() - began, 1)
    after = resident_kib(process)
    # credit is four megabytes, and as much again may lie in buffers on its way
    if most - before > count * 10 * 1024:
        found.problems.append(f"{count} stalled watchers cost {(most - before) // 1024} MiB")
    for page in pages:
        await page.leave(reset=True)
    return {
        "stalled": count,
        "due_to_each_mib": 24,
        "rss_before_mib": before // 1024,
        "rss_most_mib": most // 1024,
        "rss_after_mib": after // 1024,
        "let_go_after_s": let_go_s,
    }
