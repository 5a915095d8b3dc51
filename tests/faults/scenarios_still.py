"""Parts that stand still (SIGSTOP) and go on, and parts that are restarted in order."""

import asyncio
from typing import Any

from flows import sweep
from tests.faults import harm
from tests.faults.rig import Outcome, Rig, Round
from tests.faults.scenario import scenario, strange
from tests.faults.scenarios_postgres import UNAVAILABLE, refused_properly
from tests.running import Process

PROMISE = "{} stands still for {}: no turn ends twice, neither in the table nor in the stream nor at a watcher"
BRIEFLY_S = 10.0
BEYOND_PATIENCE_S = sweep.PATIENCE_S + 8.0
STOPPING = "server_stopping"


async def _still(round_: Round, process: Process, seconds: float) -> None:
    round_.note(f"{process.name} stands still for {seconds:g} s")
    await asyncio.to_thread(harm.freeze, process)
    try:
        await round_.pause(seconds)
    finally:
        await asyncio.to_thread(harm.thaw, process)
    round_.note(f"{process.name} goes on", injection=False)


async def _each(rig: Rig, seconds: float, part: str) -> Outcome:
    parts = {
        "web": rig.omni2.web[-1],
        "persister": rig.omni2.persisters[0],
        "Redis": rig.omni2.valkey,
        "PostgreSQL": rig.omni2.postgres,
    }
    process = parts[part]
    assert process is not None
    beyond = seconds > sweep.PATIENCE_S
    async with rig.round() as round_:
        for _ in range(1 if rig.plan.long else rig.plan.times):
            await _still(round_, process, seconds)
            # what stood still is told what it missed
            await round_.pause(8 if rig.plan.long else 2)
    taken_for_dead = beyond and part == "web"
    outcome = await round_.reckon(processes_died=taken_for_dead, may_give_up=taken_for_dead)
    errors = (STOPPING,) if taken_for_dead else ()
    # a turn begins with a visit to the database, which waits 15 s at most
    refusals = (UNAVAILABLE,) if part == "PostgreSQL" and seconds > 4 else ()
    outcome.sum.problems += [*strange(round_.told, errors=errors, refusals=refusals), *refused_properly(round_)]
    outcome.figures["server_stopping"] = sum(told.code == STOPPING for told in round_.told)
    return outcome


def _list(part: str) -> None:
    async def briefly(rig: Rig) -> Outcome:
        return await _each(rig, BRIEFLY_S if rig.plan.long else 3, part)

    async def long(rig: Rig) -> Outcome:
        return await _each(rig, BEYOND_PATIENCE_S, part)

    name = part.lower().removesuffix("ql")
    scenario(f"{name}-still", PROMISE.format(part, "10 s"))(briefly)
    scenario(f"{name}-still-long", PROMISE.format(part, "longer than the sweep's patience"))(long)


for _part in ("web", "persister", "Redis", "PostgreSQL"):
    _list(_part)


@scenario(
    "rolling-restart", "SIGTERM to one part after the other under load: no answer is cut off, no queue is lost", times=3
)
async def rolling_restart(rig: Rig) -> Outcome:
    """All web processes and the persister, one after the other, as a deployment does it; in short, one of each."""
    parts = (*rig.omni2.web[0 if rig.plan.long else -1 :], *rig.omni2.persisters)
    figures: dict[str, Any] = {"ended_after_s_most": 0.0}
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            for process in parts:
                round_.note(f"{process.name} is restarted")
                watch = harm.Stopwatch()
                await asyncio.to_thread(process.end)
                figures["ended_after_s_most"] = max(figures["ended_after_s_most"], watch.s)
                process.start()
                await asyncio.to_thread(rig.omni2.wait_until_ready)
                await round_.pause(1)
    outcome = await round_.reckon()
    # a client may come to a server that has just gone; no answer that was begun is cut off
    begun = [told for told in round_.told if told.turn_id or told.status]
    outcome.sum.problems += strange(begun, errors=(STOPPING,), refusals=(STOPPING,))
    abandoned = rig.omni2.sql(
        "SELECT count(*) FROM turns WHERE outcome = 'abandoned' AND user_id = ANY(%s)", round_.users
    )
    if abandoned[0][0]:
        outcome.sum.problems.append(f"{abandoned[0][0]} turns were abandoned")
    outcome.figures |= figures | {"server_stopping": sum(told.code == STOPPING for told in round_.told)}
    return outcome
