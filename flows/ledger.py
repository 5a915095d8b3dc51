"""The ledger: what the web processes say they made, compared with what is stored. `flows.judging` says what follows.

Two accounts that know nothing of each other. A process counts in memory (flows.counts) and says with each heartbeat
what it had counted at a moment of its own clock; all its checkpoints bear times of that clock, so PostgreSQL can be
asked for exactly those. The order of reading is the proof: first what the processes said, then the log, then the
tables, in one statement. What was acknowledged when it was said is in the log or in the tables at the end.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import connection

from flows.counts import HOUR_MS, Figures
from flows.pruning import last_border
from flows.waiting import Road, read_road

HOUR = timedelta(hours=1)
ALIVE_S = 30
"""As the sweep: a heartbeat older than that is nobody's."""

SWEPT_S = 60
"""So long after its process's end a turn may stay open: the sweep ends it within a minute."""

MOST_NAMED = 10
"""Turns of one kind of problem in one hour of one process that are named; the others are counted."""

# One statement: figures that are younger than the moment they are said to be of would look like losses.
_SAID = """
SELECT p.process_id, p.name, p.started_at, p.seen_at, p.ended_at, p.given_up,
    greatest(p.reported_at, (SELECT max(e.reported_at) FROM ledger_entries e WHERE e.process_id = p.process_id)),
    p.ended_at IS NULL AND p.seen_at > clock_timestamp() - make_interval(secs => %(alive_s)s),
    (SELECT jsonb_agg(to_jsonb(e) || jsonb_build_object('hour', extract(epoch FROM e.hour)::bigint / 3600))
     FROM ledger_entries e WHERE e.process_id = p.process_id AND e.hour >= %(since)s AND e.hour < %(until)s)
FROM serving_processes p
WHERE p.ended_at IS NULL OR p.ended_at >= %(since)s
   OR EXISTS (SELECT FROM ledger_entries e WHERE e.process_id = p.process_id AND e.hour >= %(since)s
        AND e.hour < %(until)s)
ORDER BY p.ended_at IS NOT NULL, p.started_at DESC
"""

# Index ranges only: turns by their key, rows by (turn_id, created_at), ends by the index that keeps them single. The
# hour is the time in the turn's id, on both sides of the comparison. `after` is what a process made later than it
# last spoke: it stands on neither side. The sweep's end of an abandoned turn is nobody's checkpoint.
_STORED = """
WITH told AS MATERIALIZED (
    SELECT * FROM unnest(%(processes)s::uuid[], %(as_of)s::timestamptz[]) AS t(process_id, as_of)
), way AS MATERIALIZED (
    SELECT * FROM unnest(%(flow_ids)s::uuid[], %(turn_ids)s::uuid[], %(made_at)s::timestamptz[], %(by)s::uuid[],
        %(aside)s::boolean[], %(swept)s::boolean[]) AS w(flow_id, turn_id, created_at, process_id, aside, swept)
    WHERE w.turn_id >= %(first)s::uuid AND w.turn_id < %(last)s::uuid
      AND NOT EXISTS (SELECT FROM interaction_flows f WHERE f.flow_id = w.flow_id)
), counted AS (
    SELECT turn_id, count(*) AS rows FROM interaction_flows
    WHERE turn_id >= %(first)s::uuid AND turn_id < %(last)s::uuid GROUP BY turn_id
), ends AS (
    SELECT turn_id, count(*) AS ends,
        max(CASE WHEN jsonb_typeof(metadata -> 'checkpoints') = 'number'
            THEN least(greatest((metadata ->> 'checkpoints')::numeric, 0), 1e9)::bigint END) AS said,
        max(CASE WHEN jsonb_typeof(metadata -> 'given_up') = 'number'
            THEN least(greatest((metadata ->> 'given_up')::numeric, 0), 1e9)::bigint ELSE 0 END) AS given_up
    FROM interaction_flows
    WHERE checkpoint = 'flow_end' AND turn_id >= %(first)s::uuid AND turn_id < %(last)s::uuid GROUP BY turn_id
), whole AS (
    -- asked for one by one: a join would read the whole table for the hardly ever one row without a summary
    SELECT coalesce(t.turn_id, c.turn_id) AS turn_id,
        CASE WHEN t.turn_id IS NOT NULL THEN t.process_id ELSE (
            SELECT CASE WHEN f.metadata ->> 'process' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
                THEN (f.metadata ->> 'process')::uuid END
            FROM interaction_flows f WHERE f.flow_id = c.turn_id) END AS process_id,
        CASE WHEN t.turn_id IS NOT NULL THEN t.started_at ELSE (
            SELECT f.created_at FROM interaction_flows f WHERE f.flow_id = c.turn_id) END AS started_at,
        t.turn_id IS NOT NULL AS summed_up, t.outcome, t.ended_at, t.checkpoints AS summary,
        coalesce(c.rows, 0) AS rows, coalesce(e.ends, 0) AS ends, e.said, e.given_up
    FROM (SELECT * FROM turns WHERE turn_id >= %(first)s::uuid AND turn_id < %(last)s::uuid) AS t
    FULL JOIN counted c ON c.turn_id = t.turn_id
    LEFT JOIN ends e ON e.turn_id = coalesce(t.turn_id, c.turn_id)
), seen AS (
    SELECT w.*, told.as_of, p.process_id IS NOT NULL AS is_known, p.ended_at AS process_ended_at,
        ('x' || left(w.turn_id::text, 8) || substr(w.turn_id::text, 10, 4))::bit(48)::bigint / %(hour_ms)s AS hour,
        rows - (outcome IS NOT DISTINCT FROM 'abandoned' AND ends > 0)::int AS made,
        CASE WHEN told.as_of IS NULL THEN rows - (outcome IS NOT DISTINCT FROM 'abandoned' AND ends > 0)::int
            WHEN outcome IS NOT NULL AND w.ended_at < told.as_of THEN 0
            ELSE (SELECT count(*) FROM interaction_flows f WHERE f.turn_id = w.turn_id AND f.created_at >= told.as_of
                AND NOT (f.checkpoint = 'flow_end' AND outcome IS NOT DISTINCT FROM 'abandoned'))
        END AS after
    FROM whole w LEFT JOIN told USING (process_id) LEFT JOIN serving_processes p USING (process_id)
), problems AS (
    SELECT seen.*, CASE
        WHEN NOT summed_up THEN 'no_summary'
        WHEN ends > 1 THEN 'two_ends'
        WHEN summary <> rows THEN 'summary_differs'
        WHEN outcome IS NOT NULL AND ends = 0 THEN 'no_end'
        WHEN turn_id IN (SELECT turn_id FROM way) THEN NULL
        WHEN process_id IS NOT NULL AND said IS NOT NULL AND said - given_up <> rows THEN 'end_differs'
        WHEN outcome IS NULL AND process_ended_at < clock_timestamp() - make_interval(secs => %(swept_s)s)
            THEN 'left_open'
        -- of which no process knows: the sweep judges it by its own age, two minutes
        WHEN outcome IS NULL AND NOT is_known AND rows > 0
            AND started_at < clock_timestamp() - make_interval(secs => %(swept_s)s + 120) THEN 'left_open'
    END AS kind FROM seen
), by_kind AS (
    SELECT process_id, hour, kind, count(*) AS count, coalesce(sum(said - given_up - rows), 0) AS missing,
        (array_agg(jsonb_build_object('turn_id', turn_id, 'rows', rows, 'summary', summary, 'said', said - given_up)
            ORDER BY turn_id))[1:%(most)s] AS turns
    FROM problems WHERE kind IS NOT NULL GROUP BY process_id, hour, kind
), stored AS (
    SELECT process_id, hour, count(*) AS turns, count(outcome) AS ended,
        count(*) FILTER (WHERE outcome = 'abandoned') AS abandoned,
        count(*) FILTER (WHERE outcome <> 'abandoned' AND ended_at < as_of) AS ended_before,
        count(*) FILTER (WHERE as_of IS NULL OR started_at >= as_of) AS turns_after,
        sum(made)::bigint AS rows, sum(after)::bigint AS rows_after
    FROM seen GROUP BY process_id, hour
), way_turns AS (
    SELECT coalesce(t.process_id, root.process_id) AS process_id, w.turn_id, t.turn_id IS NULL AS is_new,
        ('x' || left(w.turn_id::text, 8) || substr(w.turn_id::text, 10, 4))::bit(48)::bigint / %(hour_ms)s AS hour,
        count(*) FILTER (WHERE NOT aside AND NOT swept) AS waiting,
        count(*) FILTER (WHERE aside AND NOT swept) AS aside,
        count(*) FILTER (WHERE NOT swept AND (told.as_of IS NULL OR w.created_at >= told.as_of)) AS after,
        bool_and(told.as_of IS NULL OR w.created_at >= told.as_of) AS is_after
    FROM way w LEFT JOIN turns t ON t.turn_id = w.turn_id
    LEFT JOIN LATERAL (SELECT process_id FROM way r WHERE r.flow_id = w.turn_id) AS root ON true
    LEFT JOIN told ON told.process_id = coalesce(t.process_id, root.process_id)
    GROUP BY 1, 2, 3, 4
), on_the_way AS (
    SELECT process_id, hour, sum(waiting)::bigint AS waiting, sum(aside)::bigint AS aside, sum(after)::bigint AS after,
        count(*) FILTER (WHERE is_new) AS turns, count(*) FILTER (WHERE is_new AND is_after) AS turns_after
    FROM way_turns GROUP BY process_id, hour
)
SELECT 'stored', process_id, hour, to_jsonb(stored) FROM stored
UNION ALL SELECT 'way', process_id, hour, to_jsonb(on_the_way) FROM on_the_way
UNION ALL SELECT 'problem', process_id, hour, to_jsonb(by_kind) FROM by_kind
"""


@dataclass(frozen=True, slots=True)
class Process:
    """A web process, and up to which moment of its own clock it has said what it counted (None: it keeps no
    ledger, or ended before it said anything)."""

    process_id: UUID
    name: str
    started_at: datetime
    seen_at: datetime
    ended_at: datetime | None
    given_up: int
    as_of: datetime | None
    is_alive: bool


@dataclass(frozen=True, slots=True)
class Admitted:
    """Turns of one process and hour that were let in: written in PostgreSQL before the turn began, by nobody who
    counts. `missing_open` and `missing_charged` are turns of which no summary is stored."""

    process_id: UUID
    hour: int
    count: int
    missing_open: list[UUID]
    missing_charged: list[UUID]
    left_open: list[UUID]
    """whose slot is taken although they have ended, or their process has"""


Admissions = Callable[[UUID, UUID], Sequence[Admitted]]
"""Of all turns from this id up to that one."""


def _nobody_admits(first: UUID, last: UUID) -> Sequence[Admitted]:
    return ()


_admissions: Admissions = _nobody_admits


def use_admissions(read: Admissions) -> None:
    """Let the ledger know who was let in; the app that does it says so at its start."""
    global _admissions
    _admissions = read


@dataclass(slots=True)
class Facts:
    """All that is known of the turns of a time, read in the one order that lets it be judged."""

    since: datetime
    until: datetime
    processes: dict[UUID, Process]
    road: Road
    said: dict[tuple[UUID | None, int], Figures]
    stored: dict[tuple[UUID | None, int], dict[str, Any]] = field(default_factory=dict)
    way: dict[tuple[UUID | None, int], dict[str, Any]] = field(default_factory=dict)
    problems: list[tuple[UUID | None, int, dict[str, Any]]] = field(default_factory=list)
    admitted: dict[tuple[UUID | None, int], Admitted] = field(default_factory=dict)
    kept_from: datetime | None = None
    """turns of earlier hours were pruned, and nothing is said of them; None: of none"""

    def leave_out_pruned(self, border: datetime | None) -> None:
        """Forget what is known of the hours of which not every turn is kept."""
        if border is None or border <= self.since:
            return
        self.kept_from = whole_hours(border, border)[1]
        first = hour_number(self.kept_from)
        for table in (self.said, self.stored, self.way, self.admitted):
            for key in [key for key in table if key[1] < first]:
                del table[key]
        self.problems = [one for one in self.problems if one[1] >= first]


def whole_hours(since: datetime, until: datetime) -> tuple[datetime, datetime]:
    """The whole hours (UTC) that hold this time: a process says what it counted by the hour."""
    first = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    last = until.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return first, last if last == until else last + HOUR


def hour_number(at: datetime) -> int:
    return int(at.timestamp()) * 1000 // HOUR_MS


def hour_start(number: int) -> datetime:
    return datetime.fromtimestamp(number * (HOUR_MS // 1000), UTC)


def floor_id(at: datetime) -> UUID:
    """Not above any UUIDv7 of this moment (a whole second) or later, and above all earlier ones."""
    return UUID(int=max(0, int(at.timestamp()) * 1000) << 80)


def read(since: datetime, until: datetime) -> Facts:
    """Everything about the turns that began in the whole hours of this time. Four queries and one round trip
    to Redis. Raises django.db.Error; a Redis that is away is said in `road`."""
    since, until = whole_hours(since, until)
    with connection.cursor() as cursor:
        cursor.execute(_SAID, {"since": since, "until": until, "alive_s": ALIVE_S})
        rows = cursor.fetchall()
    processes = {row[0]: Process(*row[:8]) for row in rows}
    said = {(row[0], entry["hour"]): _figures(entry) for row in rows for entry in json.loads(row[8] or "[]")}
    facts = Facts(since, until, processes, read_road(), said)
    with connection.cursor() as cursor:
        cursor.execute(_STORED, _asked(facts))
        for part, process_id, hour, found in cursor.fetchall():
            if part == "problem":
                facts.problems.append((process_id, hour, json.loads(found)))
            else:
                (facts.stored if part == "stored" else facts.way)[process_id, hour] = json.loads(found)
    facts.admitted = {(one.process_id, one.hour): one for one in _admissions(floor_id(since), floor_id(until))}
    # last: a border is written down no later than the first deletion, so nothing that was read misses its rows unknown
    facts.leave_out_pruned(last_border())
    return facts


def _figures(entry: dict[str, Any]) -> Figures:
    return Figures(
        turns=entry["turns"],
        ended=entry["turns_ended"],
        turns_given_up=entry["turns_given_up"],
        made=entry["checkpoints"],
        durable=entry["durable"],
        given_up=tuple(sorted(entry["given_up"].items())),
        late=entry["late"],
    )


def _asked(facts: Facts) -> dict[str, Any]:
    """The parameters of _STORED: of which moments the figures are, and what is on its way."""
    spoken = [process for process in facts.processes.values() if process.as_of is not None]
    way = facts.road.checkpoints
    return {
        "first": floor_id(facts.since),
        "last": floor_id(facts.until),
        "hour_ms": HOUR_MS,
        "swept_s": SWEPT_S,
        "most": MOST_NAMED,
        "processes": [process.process_id for process in spoken],
        "as_of": [process.as_of for process in spoken],
        "flow_ids": [one.flow_id for one in way],
        "turn_ids": [one.turn_id for one in way],
        "made_at": [one.created_at for one in way],
        "by": [one.process_id for one in way],
        "aside": [one.set_aside for one in way],
        "swept": [one.swept for one in way],
    }
