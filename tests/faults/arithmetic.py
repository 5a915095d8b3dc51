"""What the product said, compared with what PostgreSQL, Redis and the watchers have, exactly."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from flows import keys
from flows.history import wire_time
from tests.faults.load import Told
from tests.running import Running

_TURNS = """
SELECT f.turn_id::text, min(f.user_id), count(*), array_agg(f.checkpoint::text),
       count(*) FILTER (WHERE f.checkpoint = 'flow_end'),
       max((f.metadata ->> 'checkpoints')::int) FILTER (WHERE f.checkpoint = 'flow_end'),
       coalesce(max((f.metadata ->> 'given_up')::int) FILTER (WHERE f.checkpoint = 'flow_end'), 0),
       min(t.checkpoints), min(t.outcome), min(t.error), count(t.turn_id)
FROM interaction_flows f LEFT JOIN turns t USING (turn_id)
WHERE f.user_id = ANY(%s) GROUP BY f.turn_id
"""

_STORED = """
SELECT flow_id::text, turn_id::text, checkpoint, created_at FROM interaction_flows
WHERE user_id = %s ORDER BY created_at, flow_id
"""


@dataclass(slots=True)
class Stored:
    """One turn as PostgreSQL has it."""

    user_id: str
    rows: int
    names: Counter[str]
    ends: int
    made: int | None
    """how many checkpoints its flow_end says it made; the sweep's end does not say"""
    given_up: int
    summary: int | None
    outcome: str | None
    error: str | None
    summaries: int

    @property
    def swept(self) -> bool:
        return self.outcome == "abandoned"


@dataclass
class Sum:
    """What came of a comparison."""

    problems: list[str] = field(default_factory=list)
    turns: int = 0
    durable: int = 0
    persisted: int = 0
    lost: int = 0
    doubled: int = 0
    figures: dict[str, Any] = field(default_factory=dict)


def turns_of(omni2: Running, users: Sequence[str]) -> dict[str, Stored]:
    """Every turn of these users, by turn_id."""
    return {
        turn_id: Stored(user, rows, Counter(names), ends, made, given_up, summary, outcome, error, summaries)
        for turn_id, user, rows, names, ends, made, given_up, summary, outcome, error, summaries in omni2.sql(
            _TURNS, list(users)
        )
    }


def rows_of(omni2: Running, user_id: str) -> list[dict[str, Any]]:
    """The user's checkpoints as a watcher knows them, in order of (created_at, flow_id)."""
    return [
        {"flow_id": flow_id, "turn_id": turn_id, "checkpoint": checkpoint, "created_at": wire_time(created_at)}
        for flow_id, turn_id, checkpoint, created_at in omni2.sql(_STORED, user_id)
    ]


def waiting(omni2: Running) -> int:
    """Entries of the hand-off log that are not stored yet, or stored and not acknowledged."""
    if not omni2.redis_url:
        return 0
    count = 0
    for name in keys.LOG_SHARDS:
        count += omni2.redis.xlen(name)
        try:
            count += omni2.redis.xpending(name, keys.GROUP)["pending"]
        except redis.ResponseError:
            # no group yet, so nobody has read it
            continue
    return count


def given_up(omni2: Running) -> int:
    """By the heartbeats of all processes there ever were."""
    return int(omni2.sql("SELECT coalesce(sum(given_up), 0) FROM serving_processes")[0][0])


def waiting_or_wrong(omni2: Running, told: Sequence[Told], users: Sequence[str]) -> list[str]:
    """What is not right yet, or not at all: for tests that have no round of the rig."""
    if count := waiting(omni2):
        return [f"{count} entries wait in the log"]
    return compare(omni2, told, users).problems


def compare(
    omni2: Running,
    told: Sequence[Told],
    users: Sequence[str],
    *,
    processes_died: bool = False,
    given_up_before: int = 0,
    may_give_up: bool = False,
    fates_unknown: int = 0,
) -> Sum:
    """The whole account. `processes_died`: whether web processes were killed, which may take what was accepted and not
    yet durable, and end turns as abandoned. `may_give_up`: whether one that was taken for dead may give up what its
    turns still did after their end. `fates_unknown`: of how many admissions nobody can know whether they were
    committed, since their connection to PostgreSQL broke."""
    stored = turns_of(omni2, users)
    found = Sum(turns=len(told), persisted=sum(turn.rows for turn in stored.values()))
    for each in told:
        _compare_told(found, each, stored.get(each.turn_id) if each.turn_id else None, processes_died=processes_died)
    for turn_id, turn in stored.items():
        _compare_stored(found, turn_id, turn, processes_died=processes_died)
    _compare_unheard(found, told, stored)
    _compare_usage(omni2, found, told, users, fates_unknown=fates_unknown)
    _compare_streams(omni2, found, users)
    found.figures["given_up"] = given_up(omni2) - given_up_before
    if found.figures["given_up"] and not may_give_up:
        found.problems.append(f"{found.figures['given_up']} checkpoints were given up")
    if omni2.redis_url and (letters := omni2.redis.xlen(keys.DEAD_LETTERS)):
        found.problems.append(f"{letters} dead letters")
    return found


def _compare_told(found: Sum, told: Told, turn: Stored | None, *, processes_died: bool) -> None:
    rows = turn.rows if turn else 0
    name = f"turn {told.turn_id or '?'} ({told.message})"

    def wrong(what: str) -> None:
        found.problems.append(f"{name}: {what}")

    if told.hung:
        wrong("its client waited in vain")
    if told.end == "done":
        found.durable += told.durable
        found.lost += max(0, told.durable - rows)
        if rows < told.durable:
            wrong(f"{told.durable} were durable, {rows} are stored")
        if rows > told.checkpoints:
            wrong(f"it made {told.checkpoints}, {rows} are stored")
        all_kept = told.durable == told.checkpoints or not processes_died
        if all_kept and rows != told.checkpoints:
            wrong(f"it made {told.checkpoints}, {told.durable} durable, {rows} are stored")
        if all_kept and (turn is None or turn.outcome != "completed"):
            wrong(f"it was done, and its outcome is {turn and turn.outcome}")
        return
    if told.refused:
        if told.turn_id and (turn is None or turn.outcome != "refused"):
            wrong(f"it was refused with {told.code}, and its outcome is {turn and turn.outcome}")
        return
    if told.end == "error":
        as_told = turn is not None and (turn.outcome, turn.error) == ("failed", told.code)
        if not as_told and not (processes_died and (turn is None or turn.swept)):
            wrong(f"it ended with {told.code}, and its outcome is {turn and turn.outcome}, {turn and turn.error}")
    elif turn is not None and turn.outcome not in {"abandoned", "disconnected", "completed", "failed"}:
        wrong(f"its client was cut, and its outcome is {turn.outcome}")
    found.durable += told.sure
    own = rows - bool(turn and turn.swept)
    if own < told.sure:
        found.lost += told.sure - own
        wrong(f"its client had a token that waited for {told.sure}, {own} are stored")


def _compare_stored(found: Sum, turn_id: str, turn: Stored, *, processes_died: bool) -> None:
    def wrong(what: str) -> None:
        found.problems.append(f"turn {turn_id}: {what}")

    if turn.ends != 1:
        wrong(f"{turn.ends} ends")
        found.doubled += max(0, turn.ends - 1)
    if turn.summaries != turn.rows or turn.summary != turn.rows:
        wrong(f"its summary says {turn.summary}, its rows are {turn.rows}")
    if turn.swept:
        if not processes_died:
            wrong("abandoned, and no process died")
    elif turn.ends and turn.made is not None and turn.made != turn.rows + turn.given_up:
        wrong(f"its end says {turn.made} made and {turn.given_up} given up, its rows are {turn.rows}")
        found.lost += max(0, turn.made - turn.given_up - turn.rows)
        found.doubled += max(0, turn.rows - turn.made)
    elif turn.ends and turn.made is None:
        wrong("its end does not say how many checkpoints it made")


def _compare_unheard(found: Sum, told: Sequence[Told], stored: dict[str, Stored]) -> None:
    """A client that was cut before it heard an id may have a turn; nobody else."""
    heard = {each.turn_id for each in told}
    unheard = [turn_id for turn_id in stored if turn_id not in heard]
    without_id = sum(each.sent and not each.turn_id and not each.refused for each in told)
    if len(unheard) > without_id:
        found.problems.append(f"{len(unheard)} turns nobody was told of, and {without_id} clients without an id")
    found.figures["turns_without_a_client"] = len(unheard)


def _compare_usage(
    omni2: Running, found: Sum, told: Sequence[Told], users: Sequence[str], *, fates_unknown: int
) -> None:
    mine = "user_id IN (SELECT id FROM users WHERE email = ANY(%s))"
    still = omni2.sql(f"SELECT turn_id::text FROM turn_usage WHERE ended_at IS NULL AND {mine}", list(users))
    found.problems += [f"turn {turn_id}: its slot of turns at once is still taken" for (turn_id,) in still]
    slots = omni2.sql(f"SELECT count(*) FROM turn_usage WHERE {mine}", list(users))[0][0]
    charged = int(omni2.sql(f"SELECT coalesce(sum(requests), 0) FROM daily_usage WHERE {mine}", list(users))[0][0])
    admitted = sum(each.admitted for each in told)
    # who was cut before the first event, and who was told that the database had not answered: refused, so not charged,
    # unless the answer to the commit itself was lost
    cut = sum(each.sent and not each.admitted and each.status == 0 for each in told)
    refused = sum(each.code == "database_unavailable" for each in told)
    unsure = cut + min(refused, fates_unknown)
    if charged != slots:
        found.problems.append(f"{charged} requests are charged, {slots} turns have a slot")
    if not admitted <= charged <= admitted + unsure:
        found.problems.append(f"{charged} requests are charged, {admitted} turns were let in (and {unsure} unsure)")
    found.figures["charged_unheard"] = charged - admitted


def _compare_streams(omni2: Running, found: Sum, users: Sequence[str]) -> None:
    """No turn may end twice in its user's stream; a repeated entry of one checkpoint is legal, and counted."""
    if not omni2.redis_url:
        return
    repeated = 0
    for user in users:
        ends: dict[str, set[str]] = {}
        seen: set[str] = set()
        entries: Any = omni2.redis.xrange(keys.user_stream(user))
        for _, fields in entries:
            document = json.loads(fields[b"d"])
            repeated += document["flow_id"] in seen
            seen.add(document["flow_id"])
            if document["checkpoint"] == "flow_end":
                ends.setdefault(document["turn_id"], set()).add(document["flow_id"])
        for turn_id, ids in ends.items():
            if len(ids) > 1:
                found.problems.append(f"turn {turn_id}: {len(ids)} ends in its user's stream")
                found.doubled += len(ids) - 1
    found.figures["repeated_entries"] = repeated
