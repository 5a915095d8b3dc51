"""A thousand clients that leave in the middle, and what of them is left: nothing."""

import asyncio
import time

from tests.faults import arithmetic
from tests.faults.footprint import at_rest, footprint, grown
from tests.faults.leavers import CASES, Leaver, counter, problems, wave
from tests.faults.model import asked, left
from tests.faults.rig import Outcome, Rig, percentile_ms
from tests.faults.scenario import scenario
from tests.faults.scenarios_watchers import add_uvicorn

A_WAVE = 100
MEMORY_KIB_EACH = 24
"""What a thousand may leave in an allocator's hands; a turn that is kept costs more than that."""


@scenario(
    "leaving",
    "clients leave at any moment in any way: the model is let go, the turn says so, and nothing is held any more",
    times=10,
    limit_s=900,
    web=1,
)
async def leaving(rig: Rig) -> Outcome:
    """Waves of a hundred, on Daphne and uvicorn at once."""
    omni2 = rig.omni2
    await asyncio.to_thread(add_uvicorn, omni2)
    people = await asyncio.to_thread(rig.people, "leaver", [f"n{number}" for number in range(12)])
    users = [person.email for person in people]
    numbers = counter()

    async def leave(tag: str) -> list[Leaver]:
        return await wave(people, omni2.urls, rig.random, count=A_WAVE, tag=tag, numbers=numbers)

    leavers = [*await leave("warm-up "), *await leave("warm-up ")]
    before = await asyncio.to_thread(at_rest, omni2)
    began = time.monotonic()
    for number in range(rig.plan.times):
        leavers += await leave(f"wave{number} ")
    took_s = time.monotonic() - began
    still = await asyncio.to_thread(grown, omni2, before)
    after = await asyncio.to_thread(footprint, omni2)
    found = await asyncio.to_thread(arithmetic.compare, omni2, [each.told for each in leavers], users)
    outcomes = dict(omni2.sql("SELECT turn_id::text, outcome FROM turns WHERE user_id = ANY(%s)", users))
    found.problems += [*still, *problems(leavers, outcomes)]
    hung = {question for question in asked(rig.notes) if question.startswith("script:hang")}
    if kept := hung - set(asked(left(rig.notes))):
        found.problems.append(f"{len(kept)} of {len(hung)} model calls were not let go")
    count = len(leavers) - 2 * A_WAVE
    if (more := after.web_kib - before.web_kib) > count * MEMORY_KIB_EACH:
        found.problems.append(f"{count} who left cost {more} KiB")
    return Outcome(
        count,
        found,
        {
            "cases": len(CASES),
            "seconds": round(took_s, 1),
            "model_calls_let_go": len(hung),
            **_noticed(rig, leavers),
            "before": before.row(),
            "after": after.row(),
        },
    )


def _noticed(rig: Rig, leavers: list[Leaver]) -> dict[str, float]:
    """From leaving to the turn's end, of those whose model would have gone on for an hour."""
    ends = "SELECT turn_id::text, extract(epoch FROM created_at)::float8 FROM interaction_flows"
    ended = dict(rig.omni2.sql(f"{ends} WHERE checkpoint = 'flow_end'"))
    found = {}
    for server, url in zip(("daphne", "uvicorn"), rig.omni2.urls, strict=True):
        delays = [
            ended[each.told.turn_id] - each.left_at
            for each in leavers
            if each.told.turn_id in ended and each.moment.message.startswith("script:hang") and each.told.url == url
        ]
        found |= {f"{server}_noticed_p{share}_ms": percentile_ms(delays, share) for share in (50, 99)}
    return found
