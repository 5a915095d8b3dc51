"""What cannot be stored comes into the log: a few strange entries, and a flood of them."""

import asyncio
import json
import uuid
from typing import Any

from flows import keys, log, persister
from tests.faults.rig import Outcome, Rig, Round
from tests.faults.scenario import scenario, strange


def document(**fields: Any) -> bytes:
    """One of nobody's checkpoints, well made but for `fields`."""
    turn_id = str(uuid.uuid4())
    made = {
        "flow_id": turn_id,
        "user_id": "nobody@example.com",
        "session_id": "s",
        "turn_id": turn_id,
        "checkpoint": "step",
        "parent_id": None,
        "metadata": {},
        "created_at": "2026-11-22T06:00:00.000000Z",
    }
    return json.dumps(made | fields).encode()


POISON = {
    "no JSON": b"no JSON",
    "not UTF-8": b"\xff\xfe",
    "NUL": document(metadata={"x": "nul"}).replace(b"nul", rb"\u0000"),
    "a lone surrogate": document().replace(b'"step"', rb'"\ud800"'),
    "a user_id that is too long": document(user_id="x" * 256),
    "a name that is too long": document(checkpoint="x" * 51),
    "no time": document(created_at="never"),
    "nested too deep": b'{"metadata":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "another shape": b"[1,2]",
}


def strew(rig: Rig, documents: list[bytes]) -> None:
    """Into the log, among what the product writes."""
    for each in documents:
        shard = log.shard_of(str(rig.random.random()))
        rig.omni2.redis.xadd(keys.log_shard(shard), {"d": each})


def letters(rig: Rig) -> int:
    return int(rig.omni2.redis.xlen(keys.DEAD_LETTERS))


async def persister_says(round_: Round) -> dict[str, Any]:
    """What /readyz says of the persister."""
    return (await round_.ready(round_.omni2.url)).get("checks", {}).get("persister", {})


@scenario(
    "poison",
    "entries that cannot be stored are set aside and seen in /readyz, all others are stored; a command replays them",
    times=11,
)
async def poison(rig: Rig) -> Outcome:
    """Each kind again and again, among the checkpoints of real turns; an orphan whose parent comes late."""
    kinds = list(POISON.values())
    strewn = min(rig.plan.times, persister.FLOOD_LETTERS // len(kinds)) * len(kinds)
    late_parent = document()
    turn_id = json.loads(late_parent)["turn_id"]
    child = document(turn_id=turn_id, parent_id=turn_id)
    async with rig.round() as round_:
        await asyncio.to_thread(strew, rig, [child])
        for _ in range(strewn // len(kinds)):
            round_.note("poison")
            round_.injections += len(kinds) - 1
            await asyncio.to_thread(strew, rig, kinds)
            await round_.pause(0, 1)
        await round_.until_sure(lambda: letters(rig) == strewn, "all of it is set aside")
        said = await persister_says(round_)
        # the parent is another turn's business, so it stands in any shard
        await asyncio.to_thread(strew, rig, [late_parent])
        orphan = "SELECT count(*) FROM interaction_flows WHERE turn_id = %s"
        await round_.until_sure(lambda: rig.omni2.sql(orphan, turn_id) == [(2,)], "the orphan has its parent")
    file = rig.omni2.folder / f"letters-{round_.number}.jsonl"
    replayed = await asyncio.to_thread(rig.omni2.manage, "replay_dead_letters", "--move-to", str(file))
    outcome = await round_.reckon()
    await asyncio.to_thread(rig.omni2.sql, "DELETE FROM interaction_flows WHERE user_id = 'nobody@example.com'")
    await asyncio.to_thread(rig.omni2.sql, "DELETE FROM turns WHERE user_id = 'nobody@example.com'")
    outcome.sum.problems += strange(round_.told)
    if (said.get("status"), said.get("dead_letters")) != ("degraded", strewn):
        outcome.sum.problems.append(f"/readyz said {said}")
    moved = file.read_text().splitlines()
    if f"0 stored or known already, {strewn} still refused" not in replayed or len(moved) != strewn:
        outcome.sum.problems.append(f"the command said {replayed!r}, and moved {len(moved)}")
    outcome.figures["set_aside"] = strewn
    return outcome


@scenario(
    "poison-flood",
    "a flood of what cannot be stored is not diverted: it stays in the log, /readyz fails, and all of it is stored when"
    " the cause is mended",
    times=1,
)
async def poison_flood(rig: Rig) -> Outcome:
    """The table refuses one kind of checkpoint, as after a bad migration; meanwhile all others are stored."""
    refuses = "ALTER TABLE omni2.interaction_flows ADD CONSTRAINT broken CHECK (checkpoint <> 'llm_complete') NOT VALID"
    async with rig.round() as round_:
        round_.note("the table refuses llm_complete")
        await asyncio.to_thread(rig.omni2.sql, refuses)
        await round_.until_sure(lambda: letters(rig) == persister.FLOOD_LETTERS, "as many are set aside as may be")
        await round_.pause(persister.RENEW_EVERY_S + 1)
        said = await persister_says(round_)
        await round_.pause(5)
        diverted = await asyncio.to_thread(letters, rig)
        await asyncio.to_thread(rig.omni2.sql, "ALTER TABLE omni2.interaction_flows DROP CONSTRAINT broken")
        round_.note("the table takes it again", injection=False)
        replayed = await asyncio.to_thread(rig.omni2.manage, "replay_dead_letters")
    outcome = await round_.reckon()
    outcome.sum.problems += strange(round_.told)
    if said.get("status") != "failed" or not said.get("held_back"):
        outcome.sum.problems.append(f"/readyz said {said}")
    if diverted != persister.FLOOD_LETTERS:
        outcome.sum.problems.append(f"{diverted} were set aside, of {persister.FLOOD_LETTERS} allowed")
    outcome.figures |= {"set_aside": diverted, "held_back": said.get("held_back"), "replayed": replayed.strip()}
    return outcome
