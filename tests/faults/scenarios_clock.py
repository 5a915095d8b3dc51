"""The clock of one process jumps while it serves."""

import asyncio
from datetime import timedelta
from pathlib import Path

from tests.faults.rig import Outcome, Rig
from tests.faults.scenario import scenario, strange

HOUR_S = 3600
JUMPS_S = (HOUR_S, -HOUR_S, 30 * 24 * HOUR_S, 0)


def with_steps(rig: Rig, steps: Path) -> None:
    """Restart the last web process and the persister with a clock of their own, ahead by what `steps` says."""
    for process in (rig.omni2.web[-1], rig.omni2.persisters[0]):
        process.end()
        python, *words = process.words
        process.words = [python, "-m", "tests.faults.clocked", str(steps), *words]
        process.start()
    rig.omni2.wait_until_ready()


@scenario(
    "clock-steps",
    "the clock of a web process and of the persister jumps by an hour, back, and by a month: no checkpoint is lost or"
    " of another time, nobody is taken for dead",
    times=10,
)
async def clock_steps(rig: Rig) -> Outcome:
    """The machine's clock is never touched: the process' own is ahead of it."""
    steps = rig.omni2.folder / "steps"
    await asyncio.to_thread(with_steps, rig, steps)
    now = "SELECT clock_timestamp()"
    began = (await asyncio.to_thread(rig.omni2.sql, now))[0][0]
    async with rig.round() as round_:
        for _ in range(rig.plan.times):
            for ahead_s in JUMPS_S:
                round_.note(f"the clock is ahead by {ahead_s} s")
                await asyncio.to_thread(steps.write_text, str(ahead_s))
                await round_.pause(0.5, 1.5)
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    ended = (await asyncio.to_thread(rig.omni2.sql, now))[0][0]
    times = "SELECT min(created_at), max(created_at) FROM interaction_flows WHERE user_id = ANY(%s)"
    first, last = (await asyncio.to_thread(rig.omni2.sql, times, round_.users))[0]
    # by PostgreSQL's clock, which each process knows to some milliseconds
    if first < began - timedelta(seconds=1) or last > ended + timedelta(seconds=1):
        outcome.sum.problems.append(f"checkpoints from {first} to {last}, in a round from {began} to {ended}")
    return outcome
