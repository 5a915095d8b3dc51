"""kill -9 of persisters, at chosen moments and at any."""

import asyncio
from collections.abc import Callable

from flows import keys
from tests.faults import arithmetic, harm
from tests.faults.rig import Outcome, Rig, Round
from tests.faults.scenario import scenario, strange
from tests.running import Process, Running

PROMISE = "kill -9 of the persister {}: nothing lost, nothing twice, nothing left pending"


def behind(omni2: Running) -> Callable[[], bool]:
    """A check whether all that is in the log now has been stored and acknowledged; what comes later does not count."""
    last = {name: omni2.redis.xrevrange(name, count=1) for name in keys.LOG_SHARDS}
    ends = {name: entries[0][0] for name, entries in last.items() if entries}
    return lambda: not any(omni2.redis.xrange(name, max=end, count=1) for name, end in ends.items())


async def _start_again(round_: Round, process: Process) -> float:
    """Start it; returns after how many seconds nothing was left of what waited then."""
    is_done = await asyncio.to_thread(behind, round_.omni2)
    if not round_.rig.plan.long:
        # else it waits until the leases of the dead one have run out
        round_.omni2.redis.delete(*map(keys.shard_lease, range(keys.SHARDS)), keys.PERSISTERS)
    process.start()
    watch = harm.Stopwatch()
    await round_.until_sure(is_done, "what waited at the kill is stored", limit_s=60)
    return watch.s


async def _before_insert(round_: Round, process: Process) -> None:
    """It has read a batch and waits for the table."""
    with harm.locked_table(round_.omni2):
        await asyncio.to_thread(harm.wait_for_insert, round_.omni2)
        await round_.kill(process)
        assert arithmetic.waiting(round_.omni2)


async def _before_commit_undone(round_: Round, process: Process) -> None:
    """It has inserted; the transaction ends with it, since its server is ended as well."""
    with harm.gate_before_commit(round_.omni2):
        server = await asyncio.to_thread(harm.wait_for_gate, round_.omni2)
        await round_.kill(process)
        await asyncio.to_thread(round_.omni2.sql, "SELECT pg_terminate_backend(%s)", server)


async def _before_commit_done(round_: Round, process: Process) -> None:
    """It has inserted; its server commits after its death, and after the next persister has begun on the same rows."""
    with harm.gate_before_commit(round_.omni2) as keeper:
        await asyncio.to_thread(harm.wait_for_gate, round_.omni2)
        await round_.kill(process)
        round_.omni2.redis.delete(*map(keys.shard_lease, range(keys.SHARDS)), keys.PERSISTERS)
        process.start()
        locked = "SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"
        await round_.until_sure(lambda: round_.omni2.sql(locked), "the next persister meets the rows of the dead one")
        harm.open_gate(keeper)
    await asyncio.to_thread(process.kill)


async def _before_acknowledge(round_: Round, process: Process) -> None:
    """Its batch is committed, and it never comes to know."""
    # a large batch may be frozen in mid-sending, since the server takes nothing in while it waits for the table:
    # then it is let go on, and the next one is tried
    while not await _frozen_after_commit(round_, process):
        process.cont()
    await round_.kill(process)
    assert arithmetic.waiting(round_.omni2)


async def _frozen_after_commit(round_: Round, process: Process) -> bool:
    """Whether the batch of the persister, which is frozen then, was committed."""
    rows = "SELECT count(*) FROM interaction_flows"
    with harm.locked_table(round_.omni2):
        await asyncio.to_thread(harm.wait_for_insert, round_.omni2)
        before = await asyncio.to_thread(round_.omni2.sql, rows)
        process.stop()
    try:
        await round_.until_sure(lambda: round_.omni2.sql(rows) > before, "its batch is committed", limit_s=5)
    except AssertionError:
        return False
    return True


MOMENTS = (_before_insert, _before_commit_undone, _before_commit_done, _before_acknowledge)


@scenario("persister-moments", PROMISE.format("before insert, before commit, before acknowledge"), times=10)
async def persister_moments(rig: Rig) -> Outcome:
    """Each of the moments, so often, with the load going on."""
    process, took = rig.omni2.persisters[0], []
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            for moment in MOMENTS:
                await moment(round_, process)
                took.append(await _start_again(round_, process))
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures["nothing_pending_after_s_most"] = max(took)
    return outcome


@scenario("persister-killed", PROMISE.format("at random moments"), times=20)
async def persister_killed(rig: Rig) -> Outcome:
    """The only one there is, again and again, with time to work in between."""
    process, took = rig.omni2.persisters[0], []
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            await round_.pause(0, 1)
            await round_.kill(process)
            await round_.pause(0, 1)
            took.append(await _start_again(round_, process))
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures["nothing_pending_after_s_most"] = max(took)
    return outcome


@scenario("persisters-killed", PROMISE.format("of two, at random moments"), times=100, limit_s=1200, persisters=2)
async def persisters_killed(rig: Rig) -> Outcome:
    """Two share the work; one or the other is killed, sometimes both."""
    took = []
    async with rig.round() as round_:
        while round_.injections < rig.plan.times:
            victims = rig.random.choice([[0], [1], [0], [1], [0, 1]])
            await round_.pause(0, 3)
            for number in victims:
                await round_.kill(rig.omni2.persisters[number])
            for number in victims:
                rig.omni2.persisters[number].start()
            if rig.random.random() < 0.2:
                is_done = await asyncio.to_thread(behind, rig.omni2)
                watch = harm.Stopwatch()
                await round_.until_sure(is_done, "what waited at the kill is stored", limit_s=60)
                took.append(watch.s)
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures["nothing_pending_after_s_most"] = max(took, default=0.0)
    return outcome
