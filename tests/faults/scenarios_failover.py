"""The primary of a Redis with replicas and sentinels is lost, and another one takes its place."""

import asyncio
from collections.abc import Awaitable, Callable

from flows import keys
from tests.faults.harm import Stopwatch
from tests.faults.rig import Outcome, Rig, Round
from tests.faults.scenario import scenario, strange
from tests.faults.scenarios_redis import AWAY, away, back_to_redis
from tests.running import Process
from tests.sentinels import Guarded

BEHIND_S = 7.0
"""So much of what the primary acknowledged its replicas do not have. What a process appends again reaches back five,
and to whatever is not stored yet."""

LOST = (
    "the primary {}, a sentinel makes a replica the next one: no chat notices, nothing acknowledged is lost, watchers"
)
PROMISE = LOST + " get all or afresh"

Lose = Callable[[Round, Process], Awaitable[None]]


def guarded(rig: Rig) -> Guarded:
    assert rig.omni2.guarded is not None, "this scenario needs sentinels=True"
    return rig.omni2.guarded


async def _fail_over(rig: Rig, lose: Lose) -> Outcome:
    """Lose the primary, wait for the next one, let the old one come back as its replica; again and again."""
    redis, promoted, back = guarded(rig), [], []
    async with rig.round() as round_:
        for number in range(rig.plan.times):
            if number:
                # a sentinel demotes one that came back after ten seconds
                await round_.until_sure(redis.all_in_sync, "the old primary is a replica")
                await round_.pause(0, 2)
            old = await asyncio.to_thread(redis.primary)
            watch = Stopwatch()
            await lose(round_, old)
            await round_.until_sure(lambda old=old: redis.primary() is not old, "another primary is there")
            promoted.append(watch.s)
            await _let_come_back(round_, old)
            await back_to_redis(round_)
            back.append(watch.s)
            # and goes on there for a moment
            await round_.pause(1)
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures |= {"another_primary_after_s_most": max(promoted), "tracking_back_after_s_most": max(back)}
    return outcome


async def _let_come_back(round_: Round, old: Process) -> None:
    """Started, or thawed: it takes itself for the primary until a sentinel tells it otherwise."""
    round_.note(f"{old.name} is back", injection=False)
    await asyncio.to_thread(old.cont if old.alive else old.start)


@scenario("redis-failover", PROMISE.format("is killed (kill -9)"), times=10, limit_s=1200, sentinels=True)
async def redis_failover(rig: Rig) -> Outcome:
    """Its replicas have all but the last milliseconds."""

    async def kill(round_: Round, primary: Process) -> None:
        await round_.kill(primary)

    return await _fail_over(rig, kill)


@scenario("redis-failover-hangs", PROMISE.format("hangs (SIGSTOP)"), times=5, limit_s=1200, sentinels=True)
async def redis_failover_hangs(rig: Rig) -> Outcome:
    """Its connections stay open, and when it goes on it takes itself for the primary still."""

    async def freeze(round_: Round, primary: Process) -> None:
        round_.note(f"freeze {primary.name}")
        primary.stop()

    return await _fail_over(rig, freeze)


@scenario(
    "redis-failover-behind",
    PROMISE.format(f"is killed {BEHIND_S:g} s ahead of its replicas"),
    times=5,
    limit_s=1200,
    sentinels=True,
)
async def redis_failover_behind(rig: Rig) -> Outcome:
    """Replication stands still for a while: the next primary lacks what was acknowledged meanwhile."""
    lacked = []
    redis = guarded(rig)

    async def kill(round_: Round, primary: Process) -> None:
        replicas = await asyncio.to_thread(redis.replicas)
        # frozen they cannot take what comes, and cut off they are not even sent it; nor may a persister have it
        still = [*replicas, *rig.omni2.persisters]
        for each in still:
            each.stop()
        await asyncio.to_thread(redis.ask, primary, "CLIENT", "KILL", "TYPE", "replica")
        before = await asyncio.to_thread(_appended, redis, primary)
        await round_.pause(BEHIND_S)
        lacked.append(await asyncio.to_thread(_appended, redis, primary) - before)
        await round_.kill(primary)
        for each in still:
            each.cont()

    outcome = await _fail_over(rig, kill)
    assert min(lacked) > 0, "nothing was appended while replication stood still"
    outcome.figures["log_entries_the_next_primary_lacked"] = sum(lacked)
    return outcome


@scenario(
    "redis-without-replicas",
    AWAY.format("without its replicas for a minute, and told not to write alone (min-replicas-to-write)"),
    sentinels=True,
    valkey={"min-replicas-to-write": "1", "min-replicas-max-lag": "3"},
)
async def redis_without_replicas(rig: Rig) -> Outcome:
    """The primary lives and refuses every write: what it took would be lost with it."""
    replicas = guarded(rig).replicas()

    async def freeze() -> None:
        for replica in replicas:
            replica.stop()

    async def thaw() -> None:
        for replica in replicas:
            replica.cont()

    return await away(rig, freeze, thaw)


def _appended(redis: Guarded, server: Process) -> int:
    """How many entries its hand-off log ever had."""
    infos = [redis.ask(server, "XINFO", "STREAM", shard) for shard in keys.LOG_SHARDS]
    return sum(
        int(info["entries-added"] if "entries-added" in info else info[b"entries-added"]) for info in infos if info
    )
