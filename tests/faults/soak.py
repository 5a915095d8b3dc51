"""Everything at once for as long as one likes, then rest: what grows?

python -m tests.faults soak --minutes 30
"""

import asyncio
import contextlib
import itertools
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from random import Random
from typing import Any

from flows import keys
from tests.faults import arithmetic
from tests.faults.footprint import Footprint, at_rest, footprint, grown
from tests.faults.leavers import Leaver, counter, problems, wave
from tests.faults.load import Load, Person
from tests.faults.rig import Outcome, Rig
from tests.faults.scenario import scenario
from tests.faults.scenarios_watchers import add_uvicorn
from tests.faults.watchers import spread
from tests.running import Running

SAMPLE_EVERY_S = 10.0
STRETCHES = 4
LEAST_WARM_UP_S = 30.0

SCRIPTS = (
    "plain", "slow", "silent", "memory", "clock", "calculator", "parallel", "talk_and_call", "bad_sum", "unknown_tool",
    "bad_arguments", "endless", "many_calls", "error_500", "error_503", "error_429", "too_long", "cut",
    "error_in_middle", "bad_json", "strange_shape", "odd_text", "paced words=8 pace=0.3",
)  # fmt: skip

PAGES = ("/flows/", "/analytics/", "/live/", "/chat/")
API = ("/api/v1/turns?limit=20", "/api/v1/flows/user/soak-n0@example.com?limit=200", "/api/v1/monitoring/users")

MEMORY_SHARE, MEMORY_LEAST_KIB = 0.15, 24 * 1024
"""How much more a process may hold after the last stretch than after the warm-up. An allocator gives little
back and fragments, and caches (templates, statements, figures of the hours) fill up: that comes once, and
levels off. So besides, the second half of the stretches may add at most half of this."""

POOLED_MORE = 6


def message(random: Random) -> str:
    return f"script:{random.choice(SCRIPTS)} 6 * 7"


@scenario(
    "soak",
    "hours of mixed load leave the processes as they were after the first minute",
    limit_s=6 * 3600,
    on_demand=True,
    web=1,
)
async def soak(rig: Rig) -> Outcome:
    """A warm-up, then four stretches of load, with a rest after each; Daphne and uvicorn side by side."""
    omni2 = rig.omni2
    await asyncio.to_thread(add_uvicorn, omni2)
    stretch_s = rig.plan.minutes * 60 / (STRETCHES + 1)
    crowd = await asyncio.to_thread(rig.people, "soak", [f"n{number}" for number in range(8)])
    (blocked,) = await asyncio.to_thread(rig.people, "soak", ["blocked"])
    ada = rig.ada()
    await asyncio.to_thread(rig.block, blocked)
    await asyncio.to_thread(rig.monitor, crowd[:3])
    world = World(rig, crowd, blocked, ada, await asyncio.to_thread(omni2.sign_in, "ada@example.com"))
    print(_line({name: name for name in COLUMNS}))
    rests, still = [], []
    for number in range(STRETCHES + 1):
        await world.stretch(stretch_s if number else max(LEAST_WARM_UP_S, stretch_s))
        if rests:
            still = await asyncio.to_thread(grown, omni2, rests[0][0])
        rests.append(await asyncio.to_thread(_rest, omni2))
        print(_line(rests[-1][0].row()), "at rest", still or "")
    users = [person.email for person in (*crowd, blocked)]
    found = await asyncio.to_thread(arithmetic.compare, omni2, world.told, users)
    outcomes = dict(omni2.sql("SELECT turn_id::text, outcome FROM turns WHERE user_id = ANY(%s)", users))
    found.problems += [*still, *problems(world.leavers, outcomes), *world.watcher_problems, *_grown(rests)]
    held = [{**rest.row(), **more} for rest, more in rests]
    figures = {
        "minutes": rig.plan.minutes,
        "leavers": len(world.leavers),
        "requests_read": world.read,
        "visits_of_watchers": world.visits,
        "samples": len(world.samples),
        # a line of numbers each, one for every rest; what was always nothing is left out
        "rests": {name: " ".join(str(rest[name]) for rest in held) for name in held[0] if any(r[name] for r in held)},
    }
    return Outcome(world.visits + len(world.leavers), found, figures)


class World:
    """The load, stretch by stretch, always by the same people."""

    def __init__(self, rig: Rig, crowd: Sequence[Person], blocked: Person, ada: str, session: dict[str, str]) -> None:
        self.rig, self.omni2, self.random = rig, rig.omni2, rig.random
        self.crowd, self.blocked, self.ada = crowd, blocked, ada
        self.cookie = "; ".join(f"{name}={value}" for name, value in session.items())
        self.load = Load(crowd, rig.omni2.urls, message, rig.random, tag="s")
        self.refused = Load([blocked], rig.omni2.urls, message, rig.random, tag="b")
        self.leavers: list[Leaver] = []
        self.watcher_problems: list[str] = []
        self.samples: list[dict[str, Any]] = []
        self.read = self.visits = 0
        self._numbers = counter()
        self._began = time.monotonic()

    @property
    def told(self) -> list[Any]:
        return [*self.load.told, *self.refused.told, *(each.told for each in self.leavers)]

    async def stretch(self, seconds: float) -> None:
        """All of it for so long; returns when the last one has gone."""
        stop = asyncio.Event()
        work = (
            self.load.run(stop, at_once=12, spread_s=2, pause_s=0.5),
            self.refused.run(stop, at_once=1, pause_s=4),
            self._leave(stop),
            self._watch(stop),
            self._look(stop),
            self._sample(stop),
        )
        running = [asyncio.create_task(each) for each in work]
        await asyncio.wait(running, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        stop.set()
        await asyncio.gather(*running)

    async def _leave(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            self.leavers += await wave(
                self.crowd, self.omni2.urls, self.random, count=10, tag="soak ", numbers=self._numbers
            )
            await _pause(stop, 1)

    async def _watch(self, stop: asyncio.Event) -> None:
        """Watchers that are cut, come back, and are replaced by new ones."""
        watched = [person.email for person in self.crowd[:3]]
        while not stop.is_set():
            watchers = spread(self.ada, watched, self.omni2.urls, 6)
            for watcher in watchers:
                watcher.start()
            for _ in range(10):
                await _pause(stop, self.random.uniform(0.5, 2))
                there = [each for each in watchers if each.is_connected]
                if there:
                    with contextlib.suppress(Exception):
                        await getattr(self.random.choice(there).page.socket, self.random.choice(("close", "reset")))()
            for watcher in watchers:
                await watcher.stop()
                self.visits += len(watcher.visits)
                if watcher.failed:
                    self.watcher_problems.append(watcher.failed)

    async def _look(self, stop: asyncio.Event) -> None:
        """Somebody reads: pages with a session, the API with a token."""
        for path in itertools.cycle((*PAGES, *API)):
            if stop.is_set():
                return
            url = self.random.choice(self.omni2.urls)
            status = await asyncio.to_thread(self._get, url + path)
            self.read += 1
            if status != 200:
                self.watcher_problems.append(f"{path} answered {status}")
            await _pause(stop, 0.3)

    def _get(self, url: str) -> int:
        headers = {"Authorization": f"Bearer {self.ada}"} if "/api/" in url else {"Cookie": self.cookie}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
                answer.read()
                return answer.status
        except urllib.error.HTTPError as refused:
            return refused.code

    async def _sample(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            row = (await asyncio.to_thread(footprint, self.omni2)).row()
            self.samples.append({"at_s": round(time.monotonic() - self._began), **row})
            print(_line(self.samples[-1]))
            await _pause(stop, SAMPLE_EVERY_S)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


def _rest(omni2: Running) -> tuple[Footprint, dict[str, int]]:
    """What is held when all is quiet. The users' streams fill up to their bound, so they are counted apart."""
    found = at_rest(omni2)
    streams = sum(omni2.redis.memory_usage(key, samples=0) or 0 for key in omni2.redis.scan_iter(keys.user_stream("*")))
    return found, {"redis_besides_streams_kib": found.redis_kib - streams // 1024}


def _grown(rests: Sequence[tuple[Footprint, dict[str, int]]]) -> list[str]:
    found = []
    for name in ("web_kib", "persister_kib"):
        values = [getattr(rest, name) for rest, _ in rests]
        room = max(values[0] * MEMORY_SHARE, MEMORY_LEAST_KIB)
        if values[-1] - values[0] > room:
            found.append(f"{name} grew from {values[0]} to {values[-1]}: {values}")
        if values[-1] - values[len(values) // 2] > room / 2:
            found.append(f"{name} goes on growing: {values}")
    besides = [more["redis_besides_streams_kib"] for _, more in rests]
    if besides[-1] - besides[0] > 4 * 1024:
        found.append(f"Redis grew besides the users' streams: {besides}")
    count = [rest.redis_keys for rest, _ in rests]
    # a refused user's stream, a process's fence: a handful that comes once
    if count[-1] > count[0] + 8:
        found.append(f"Redis keys grew: {count}")
    for name in ("postgres_connections", "redis_pooled"):
        pooled = [getattr(rest, name) for rest, _ in rests]
        # now and then one more is in use at the same time than ever before; what leaks comes with each wave
        if pooled[-1] > pooled[0] + POOLED_MORE:
            found.append(f"{name} grew: {pooled}")
    return found


COLUMNS = (
    "at_s", "web_kib", "persister_kib", "tasks", "descriptors", "postgres_connections", "redis_clients", "redis_pooled",
    "redis_keys", "redis_kib",
)  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    return "  ".join(f"{row.get(name, ''):>{max(8, len(name))}}" for name in COLUMNS)
