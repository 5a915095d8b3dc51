"""PostgreSQL stopped, killed, hanging and full, and its connections broken."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from tests.faults import arithmetic, harm
from tests.faults.rig import Outcome, Rig, Round
from tests.faults.scenario import scenario, strange
from tests.running import Process, Running, eventually

PROMISE = "PostgreSQL {}: running chats finish, the log keeps all, new requests get 503, catching up outruns arrival"
UNAVAILABLE = "database_unavailable"


def postgres(omni2: Running) -> Process:
    assert omni2.postgres is not None
    return omni2.postgres


def rows(omni2: Running) -> int:
    return int(omni2.sql("SELECT count(*) FROM interaction_flows")[0][0])


async def catch_up(round_: Round) -> dict[str, Any]:
    """From now until the log is as good as empty: how fast it is stored."""
    omni2, watch = round_.omni2, harm.Stopwatch()
    waiting, before = await asyncio.to_thread(arithmetic.waiting, omni2), await asyncio.to_thread(rows, omni2)
    if waiting < 50:
        return {"waited": waiting}
    # one batch on its way is what there is in quiet times
    await round_.until_sure(lambda: arithmetic.waiting(omni2) < 50, "the log is stored", limit_s=90)
    took = max(watch.s, 0.01)
    stored = await asyncio.to_thread(rows, omni2) - before
    return {"waited": waiting, "caught_up_s": took, "caught_up_rows_a_s": round(stored / took)}


async def arrival(round_: Round) -> float:
    """Checkpoints a second in quiet times, over two seconds."""
    before = await asyncio.to_thread(rows, round_.omni2)
    watch = harm.Stopwatch()
    await round_.pause(2)
    return round((await asyncio.to_thread(rows, round_.omni2) - before) / watch.s)


def refused_properly(round_: Round) -> list[str]:
    """Every refusal for want of a database says when to come back."""
    refused = [told for told in round_.told if told.code == UNAVAILABLE]
    return [
        f"{told.message}: {told.status} with Retry-After {told.retry_after_s}"
        for told in refused
        if (told.status, bool(told.retry_after_s)) != (503, True)
    ]


async def _away(
    rig: Rig,
    hurt: Callable[[], Awaitable[None]],
    heal: Callable[[], Awaitable[None]],
    *,
    away_s: float,
    breaks: bool,
) -> Outcome:
    """`breaks`: whether connections break by it, and not only stand still."""
    figures: dict[str, Any] = {}
    async with rig.round() as round_:
        for _ in range(1 if rig.plan.long else rig.plan.times):
            figures["arrival_rows_a_s"] = await arrival(round_)
            running = [told for told in round_.told if told.tokens and not told.over_s]
            round_.note("PostgreSQL is away")
            await hurt()
            await round_.pause(away_s)
            figures["refused_meanwhile"] = sum(told.code == UNAVAILABLE for told in round_.told)
            finished = sum(told.end == "done" for told in running)
            figures |= {"running_then": len(running), "of_them_finished_meanwhile": finished}
            round_.note("PostgreSQL is back", injection=False)
            await heal()
            figures |= await catch_up(round_)
            began = len(round_.told)
            await round_.until(
                lambda began=began: any(told.end == "done" for told in round_.told[began:]), "new chats are answered"
            )
    outcome = await round_.reckon(fates_unknown=round_.connections * round_.injections * breaks)
    outcome.sum.problems += [*strange(round_.told, refusals=(UNAVAILABLE,)), *refused_properly(round_)]
    outcome.figures |= figures
    return outcome


@scenario("postgres-stopped", PROMISE.format("stopped for a minute"))
async def postgres_stopped(rig: Rig) -> Outcome:
    """Ended in order and started again."""

    async def end() -> None:
        await asyncio.to_thread(postgres(rig.omni2).end)

    async def start() -> None:
        await asyncio.to_thread(harm.start_postgres, rig.omni2)

    return await _away(rig, end, start, away_s=60 if rig.plan.long else 2, breaks=True)


@scenario("postgres-hangs", PROMISE.format("hanging (SIGSTOP of all its processes) for 25 s"))
async def postgres_hangs(rig: Rig) -> Outcome:
    """It takes connections and answers nothing."""

    async def freeze() -> None:
        await asyncio.to_thread(harm.freeze, postgres(rig.omni2))

    async def thaw() -> None:
        await asyncio.to_thread(harm.thaw, postgres(rig.omni2))
        await asyncio.to_thread(harm.wait_for_postgres, rig.omni2)

    return await _away(rig, freeze, thaw, away_s=25 if rig.plan.long else 2, breaks=False)


@scenario("postgres-table-locked", "the table of checkpoints locked for 30 s: no chat notices, the log keeps all of it")
async def postgres_table_locked(rig: Rig) -> Outcome:
    """Chats are let in and answered, and nothing can be stored: the log grows as fast as it can."""
    figures: dict[str, Any] = {}
    async with rig.round() as round_:
        figures["arrival_rows_a_s"] = await arrival(round_)
        round_.note("the table is locked")
        with harm.locked_table(rig.omni2):
            await round_.pause(30 if rig.plan.long else 2)
        figures |= await catch_up(round_)
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    outcome.figures |= figures
    return outcome


@scenario("postgres-killed", PROMISE.format("killed (-9) and started again"), times=25, limit_s=900)
async def postgres_killed(rig: Rig) -> Outcome:
    """With all its processes, at random moments."""
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            await round_.pause(0, 3)
            round_.note("kill PostgreSQL")
            await asyncio.to_thread(harm.kill_postgres, rig.omni2)
            await round_.pause(0, 2)
            await asyncio.to_thread(harm.start_postgres, rig.omni2)
            await _goes_on(round_)
    outcome = await round_.reckon(fates_unknown=round_.connections * round_.injections)
    outcome.sum.problems += [*strange(round_.told, refusals=(UNAVAILABLE,)), *refused_properly(round_)]
    outcome.figures["refused_meanwhile"] = sum(told.code == UNAVAILABLE for told in round_.told)
    return outcome


@scenario("postgres-connections", PROMISE.format("ending every connection (pg_terminate_backend)"), times=100)
async def postgres_connections(rig: Rig) -> Outcome:
    """Every connection of every process, at random moments."""
    broken = 0
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            await round_.pause(0, 2)
            round_.note("break all connections")
            broken += await asyncio.to_thread(harm.break_connections, rig.omni2)
            await round_.pause(0.5)
    outcome = await round_.reckon(fates_unknown=round_.connections * round_.injections)
    outcome.sum.problems += [*strange(round_.told, refusals=(UNAVAILABLE,)), *refused_properly(round_)]
    outcome.figures |= {
        "connections_broken": broken,
        "refused_meanwhile": sum(told.code == UNAVAILABLE for told in round_.told),
    }
    return outcome


async def _goes_on(round_: Round) -> None:
    """New chats are answered again."""
    began = len(round_.load.told)
    await round_.until(lambda: any(told.end == "done" for told in round_.load.told[began:]), "new chats are answered")


@scenario("postgres-disk-full", PROMISE.format("with a full disk under its tables"))
async def postgres_disk_full(rig: Rig) -> Outcome:
    """No table can grow beyond the largest of them: that of the checkpoints."""
    figures: dict[str, Any] = {}
    async with rig.round() as round_:
        await asyncio.to_thread(_fill_up, rig.omni2)
        round_.note("the disk is full")
        await asyncio.to_thread(_limit, rig.omni2)
        stuck = "SELECT count(*) FROM interaction_flows"
        await round_.until_sure(lambda: arithmetic.waiting(rig.omni2) > 100, "the log keeps what cannot be stored")
        before = (await asyncio.to_thread(rig.omni2.sql, stuck))[0][0]
        await round_.pause(30 if rig.plan.long else 1)
        figures["stored_meanwhile"] = (await asyncio.to_thread(rig.omni2.sql, stuck))[0][0] - before
        round_.note("there is room again", injection=False)
        await asyncio.to_thread(harm.unlimit_files, postgres(rig.omni2))
        figures |= await catch_up(round_)
        await _goes_on(round_)
    outcome = await round_.reckon()
    outcome.sum.problems += [*strange(round_.told, refusals=(UNAVAILABLE,)), *refused_properly(round_)]
    outcome.figures |= figures
    return outcome


def _fill_up(omni2: Running) -> None:
    """Make the table of checkpoints the largest of all files by far: the others then still have room."""
    omni2.sql(_FILL, 20_000)
    # what is written back later is below the limit too
    omni2.sql("CHECKPOINT")


def _limit(omni2: Running) -> None:
    harm.limit_files(postgres(omni2), harm.largest_file(omni2.folder / "pg"))
    # a table grows by many pages at a time: until the last of them is full, there is no trouble at all
    eventually(lambda: _is_full(omni2), "the table cannot grow")


def _is_full(omni2: Running) -> bool:
    try:
        omni2.sql(_FILL, 50)
    except psycopg.Error:
        return True
    return False


# smaller than any checkpoint, so that none fits where no more of these do
_FILL = """
INSERT INTO interaction_flows (flow_id, user_id, session_id, checkpoint, metadata)
SELECT gen_random_uuid(), 'filler', 'filler', 'filler', jsonb_build_object('x', md5(n::text))
FROM generate_series(1, %s) AS n
"""
