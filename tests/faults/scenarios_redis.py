"""Redis killed, stopped, hanging and full."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis

from omni2 import embedded
from tests.faults import harm
from tests.faults.rig import Outcome, Rig, Round, started
from tests.faults.scenario import scenario, strange
from tests.running import Process, Running

KILLED = (
    "kill -9 of Redis with appendfsync {}: no chat notices, nothing acknowledged is lost, watchers get all or afresh"
)
AWAY = "Redis {}: chats go on, checkpoints go to PostgreSQL directly, /readyz says so, all recovers by itself"


def valkey(omni2: Running) -> Process:
    assert omni2.valkey is not None
    return omni2.valkey


def start_valkey(omni2: Running) -> None:
    """Start it again; returns when it has read its data."""
    valkey(omni2).start()
    wait_for_valkey(omni2)


def wait_for_valkey(omni2: Running) -> None:
    from tests.running import eventually

    eventually(lambda: embedded.valkey_answers(omni2.folder / "s" / "v"), "Valkey answers")


async def tracking(round_: Round) -> list[dict[str, Any]]:
    """What each web process says of its way to the log."""
    answers = await asyncio.gather(*(round_.ready(url) for url in round_.omni2.urls))
    return [answer.get("checks", {}).get("tracking", {}) for answer in answers]


async def until_tracking(round_: Round, check: Callable[[dict[str, Any]], bool], what: str) -> float:
    """Returns when all web processes say so; after how many seconds."""
    watch = harm.Stopwatch()
    while not all(check(each) for each in await tracking(round_)):
        assert watch.s < 60, f"not within 60 s: {what}"
        await asyncio.sleep(0.1)
    return watch.s


async def back_to_redis(round_: Round) -> float:
    """Returns when all web processes write to Redis again; after how many seconds."""
    return await until_tracking(round_, lambda each: each.get("redis_away") is False, "tracking is back at Redis")


async def until_ready(round_: Round) -> float:
    """Returns when all web processes are ready, without any reservation; after how many seconds."""
    watch = harm.Stopwatch()
    while True:
        answers = await asyncio.gather(*(round_.ready(url) for url in round_.omni2.urls))
        if all(answer.get("status") == "ready" for answer in answers):
            return watch.s
        assert watch.s < 60, f"not ready again within 60 s: {answers[0].get('not_ready')}, {answers[0].get('degraded')}"
        await asyncio.sleep(0.2)


# --- killed -----------------------------------------------------------------------------------------


async def redis_killed(rig: Rig) -> Outcome:
    """Killed at random moments, away for a moment, started again."""
    back = []
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            await round_.pause(0, 2)
            await round_.kill(valkey(rig.omni2))
            await round_.pause(0, 2)
            await asyncio.to_thread(start_valkey, rig.omni2)
            back.append(await back_to_redis(round_))
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures["tracking_back_after_s_most"] = max(back)
    return outcome


scenario("redis-killed-everysec", KILLED.format("everysec"), times=100, limit_s=1200)(redis_killed)
scenario("redis-killed-always", KILLED.format("always"), times=50, limit_s=900, valkey={"appendfsync": "always"})(
    redis_killed
)


@scenario(
    "redis-killed-beside", "kill -9 of Redis: no slower first token than beside it, in an undisturbed Omni2", times=30
)
async def redis_killed_beside(rig: Rig) -> Outcome:
    """Two products with half the load each; the Redis of one is killed again and again."""
    rig.plan.chats, rig.plan.rate = rig.plan.chats // 2, rig.plan.rate / 2
    other = started(rig.plan, web=1)
    calm = await asyncio.to_thread(other.__enter__)
    try:
        url = rig.omni2.urls[:1]
        async with rig.round(urls=url) as round_, calm.round() as undisturbed:
            for _ in range(rig.plan.times):
                await round_.pause(0, 2)
                await round_.kill(valkey(rig.omni2))
                await round_.pause(0, 2)
                await asyncio.to_thread(start_valkey, rig.omni2)
                await back_to_redis(round_)
        outcome = await round_.reckon()
        beside = await undisturbed.reckon()
    finally:
        await asyncio.to_thread(other.__exit__, None, None, None)
    outcome.sum.problems += [*strange(round_.told), *beside.problems, *strange(undisturbed.told)]
    for share in (50, 95):
        ours, theirs = (each.first_tokens()[f"first_token_p{share}_ms"] for each in (round_, undisturbed))
        outcome.figures |= {
            f"p{share}_ms": ours,
            f"p{share}_ms_undisturbed": theirs,
            f"p{share}_ratio": _ratio(ours, theirs),
        }
    return outcome


def _ratio(ours: float, theirs: float) -> float:
    return round(ours / theirs, 2) if theirs else math.inf


# --- away -------------------------------------------------------------------------------------------


async def away(rig: Rig, hurt: Callable[[], Awaitable[None]], heal: Callable[[], Awaitable[None]]) -> Outcome:
    """Something is wrong with Redis for a while: chats go on, and their checkpoints appear in PostgreSQL meanwhile."""
    away_s = 60 if rig.plan.long else 2
    figures: dict[str, Any] = {}
    async with rig.round() as round_:
        for _ in range(1 if rig.plan.long else rig.plan.times):
            # so that there is something to compare with
            await round_.pause(5 if rig.plan.long else 0)
            hurt_s = time.monotonic()
            round_.note("Redis is away")
            await hurt()
            figures["noticed_after_s"] = await until_tracking(
                round_, lambda each: each.get("status") == "degraded", "/readyz says degraded"
            )
            chats, began = len(round_.told), time.monotonic()
            rows = "SELECT count(*) FROM interaction_flows WHERE user_id = ANY(%s)"
            before = (await asyncio.to_thread(rig.omni2.sql, rows, round_.users))[0][0]
            await round_.pause(away_s)
            after = (await asyncio.to_thread(rig.omni2.sql, rows, round_.users))[0][0]
            figures |= _meanwhile(round_, hurt_s, began)
            assert len(round_.told) > chats, "no chat began meanwhile"
            assert after > before, "nothing was stored meanwhile"
            figures |= {"stored_meanwhile": after - before, "begun_meanwhile": len(round_.told) - chats}
            round_.note("Redis is back", injection=False)
            await heal()
            figures["tracking_back_after_s"] = await back_to_redis(round_)
            figures["ready_again_after_s"] = await until_ready(round_)
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures |= figures
    return outcome


def _meanwhile(round_: Round, hurt_s: float, noticed_s: float) -> dict[str, float]:
    """First tokens before it was hurt, and since that was noticed."""
    before, since = round_.first_tokens(until_s=hurt_s), round_.first_tokens(since_s=noticed_s)
    return {f"{name}_before": value for name, value in before.items()} | {
        f"{name}_meanwhile": value for name, value in since.items()
    }


@scenario("redis-stopped", AWAY.format("stopped for a minute"))
async def redis_stopped(rig: Rig) -> Outcome:
    """Ended in order and started again."""

    async def end() -> None:
        await asyncio.to_thread(valkey(rig.omni2).end)

    return await away(rig, end, lambda: asyncio.to_thread(start_valkey, rig.omni2))


@scenario("redis-hangs", AWAY.format("hanging (SIGSTOP) for a minute"))
async def redis_hangs(rig: Rig) -> Outcome:
    """It takes connections and commands, and answers nothing."""

    async def stop() -> None:
        valkey(rig.omni2).stop()

    async def cont() -> None:
        valkey(rig.omni2).cont()
        await asyncio.to_thread(wait_for_valkey, rig.omni2)

    return await away(rig, stop, cont)


@scenario("redis-full", AWAY.format("full (maxmemory, noeviction) for a minute"))
async def redis_full(rig: Rig) -> Outcome:
    """It answers, and refuses whatever needs memory."""

    async def fill() -> None:
        def limit() -> None:
            used = rig.omni2.redis.info("memory")["used_memory"]
            rig.omni2.redis.config_set("maxmemory", used // 2)

        await asyncio.to_thread(limit)

    async def empty() -> None:
        await asyncio.to_thread(rig.omni2.redis.config_set, "maxmemory", 0)

    return await away(rig, fill, empty)


@scenario("redis-disk-full", AWAY.format("with a full disk under its append-only file"))
async def redis_disk_full(rig: Rig) -> Outcome:
    """It cannot write its append-only file, and refuses every write."""

    async def fill() -> None:
        def limit() -> None:
            harm.limit_files(valkey(rig.omni2), max(1, harm.largest_file(rig.omni2.folder / "vk")))

        await asyncio.to_thread(limit)
        await asyncio.to_thread(_wait_for_refusals, rig.omni2)

    async def empty() -> None:
        await asyncio.to_thread(harm.unlimit_files, valkey(rig.omni2))

    return await away(rig, fill, empty)


def _wait_for_refusals(omni2: Running) -> None:
    from tests.running import eventually

    def refused() -> bool:
        try:
            omni2.redis.set("omni2:a-test-writes", "x")
        except redis.ResponseError:
            return True
        return False

    eventually(refused, "Redis refuses writes")
