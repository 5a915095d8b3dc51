"""kill -9 of web processes."""

import asyncio
import time
from collections import defaultdict
from typing import Any

from tests.faults import arithmetic, model
from tests.faults.rig import Outcome, Rig, Round
from tests.faults.scenario import scenario, strange

SAME_DEATH_S = 2.0


@scenario(
    "web-killed",
    "kill -9 of a web process: what was acknowledged is stored, its turns end as abandoned, the others do not notice",
    times=100,
    limit_s=1500,
    web=3,
)
async def web_killed(rig: Rig) -> Outcome:
    """All web processes but the first are killed at random moments and started again."""
    kills: list[tuple[str, float]] = []
    steady, *victims = rig.omni2.urls
    async with rig.round() as round_:
        await asyncio.gather(*(_kill_again_and_again(round_, url, kills) for url in victims))
        for url in victims:
            await round_.answers(url)
    at_steady = [told for told in round_.told if told.url == steady]
    cut_watchers = [
        f"{watcher.name} was cut at {steady} with {visit.code}"
        for watcher in round_.watchers
        for visit in watcher.visits
        if visit.url == steady and visit.ended_s is not None and not visit.left
    ]
    outcome = await round_.reckon(processes_died=True)
    outcome.sum.problems += [*strange(at_steady), *cut_watchers]
    outcome.figures["turns_at_the_steady_process"] = len(at_steady)
    outcome.figures |= await asyncio.to_thread(_what_went_with_them, round_, kills)
    outcome.figures |= await asyncio.to_thread(_how_long_abandoned, round_)
    return outcome


async def _kill_again_and_again(round_: Round, url: str, kills: list[tuple[str, float]]) -> None:
    process = round_.omni2.web[round_.omni2.urls.index(url)]
    while len(kills) < round_.rig.plan.times:
        began = time.monotonic()
        await round_.until(lambda began=began: _serves(round_, url, began), f"{url} serves chats", limit_s=90)
        await round_.pause(0, 1.5)
        if len(kills) >= round_.rig.plan.times:
            return
        moment = await round_.kill(process)
        kills.append((url, moment))
        process.start()


def _serves(round_: Round, url: str, since_s: float) -> bool:
    """Whether several chats that began since are being answered there now."""
    answering = [
        told
        for told in round_.told[-2000:]
        if told.url == url and told.began_s >= since_s and told.tokens and not told.over_s
    ]
    return len(answering) >= min(3, round_.chats // 4)


def _what_went_with_them(round_: Round, kills: list[tuple[str, float]]) -> dict[str, Any]:
    """How many accepted checkpoints went with the killed processes, and how old they were.

    What a process had accepted is known from outside: the client heard `session` (three checks) and its events, and
    the model was asked right after `llm_thinking` was recorded. What PostgreSQL has not of that went with the process.
    """
    asked = model.asked(round_.rig.notes)
    stored = arithmetic.turns_of(round_.omni2, round_.users)
    by_question = dict(
        round_.omni2.sql("SELECT question, turn_id::text FROM turns WHERE user_id = ANY(%s)", round_.users)
    )
    lost: dict[tuple[str, float], int] = defaultdict(int)
    oldest_ms = 0.0
    for told in round_.told:
        death = next(
            (kill for kill in kills if kill[0] == told.url and 0 <= told.over_s - kill[1] < SAME_DEATH_S), None
        )
        if death is None or not told.cut:
            continue
        rounds = [moment for moment in asked.get(told.message, []) if moment <= death[1]]
        # a second round of the model follows a call, its result and the first round's end
        accepted = max(told.accepted, 4 * len(rounds))
        turn = stored.get(told.turn_id or by_question.get(told.message, ""))
        missing = accepted - (turn.rows - turn.swept if turn else 0)
        if missing > 0:
            lost[death] += missing
            if rounds:
                oldest_ms = max(oldest_ms, (death[1] - rounds[-1]) * 1000)
    return {
        "accepted_lost": sum(lost.values()),
        "deaths_that_took_some": len(lost),
        "most_at_once": max(lost.values(), default=0),
        "oldest_lost_ms": round(oldest_ms, 1),
    }


def _how_long_abandoned(round_: Round) -> dict[str, Any]:
    """Seconds from the cut to the abandoned end."""
    ended = dict(
        round_.omni2.sql(
            "SELECT turn_id::text, extract(epoch FROM ended_at)::float8 FROM turns"
            " WHERE outcome = 'abandoned' AND user_id = ANY(%s)",
            round_.users,
        )
    )
    to_wall_s = time.time() - time.monotonic()
    took = [ended[told.turn_id] - told.over_s - to_wall_s for told in round_.told if told.turn_id in ended]
    return {"abandoned": len(ended), "abandoned_after_s_most": round(max(took, default=0.0), 1)}
