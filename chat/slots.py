"""What the ledger asks of the usage: who was let in, and whose slot is taken though nobody uses it any more.

A turn's row in `turn_usage` is committed before the turn begins, by a statement that knows nothing of checkpoints:
so it tells of turns of which nothing was stored, by name.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from django.db import connection

from flows.counts import HOUR_MS
from flows.ledger import Admitted, floor_id

SETTLING_S = 330
"""So long a process may try to charge a turn that has ended while PostgreSQL comes and goes (chat.turn)."""

FREED_S = 60
"""So long after its process's end the sweep has settled what it left."""

MOST_NAMED = 1_000

_ADMITTED = """
SELECT u.process_id,
    ('x' || left(u.turn_id::text, 8) || substr(u.turn_id::text, 10, 4))::bit(48)::bigint / %(hour_ms)s AS hour,
    count(*),
    (array_agg(u.turn_id) FILTER (WHERE t.turn_id IS NULL AND u.ended_at IS NULL))[1:%(most)s],
    (array_agg(u.turn_id) FILTER (WHERE t.turn_id IS NULL AND u.output_tokens > 0))[1:%(most)s],
    (array_agg(u.turn_id) FILTER (WHERE u.ended_at IS NULL AND (
        (t.outcome IS NOT NULL AND t.ended_at < clock_timestamp() - make_interval(secs => %(settling_s)s))
        OR p.ended_at < clock_timestamp() - make_interval(secs => %(freed_s)s))))[1:%(most)s]
FROM turn_usage u LEFT JOIN turns t USING (turn_id) LEFT JOIN serving_processes p ON p.process_id = u.process_id
WHERE u.turn_id >= %(first)s AND u.turn_id < %(last)s
GROUP BY 1, 2
"""


def admitted(first: UUID, last: UUID) -> Sequence[Admitted]:
    """The turns from this id up to that one that were let in, by process and hour. One query, a range of the key."""
    limits = {"hour_ms": HOUR_MS, "most": MOST_NAMED, "settling_s": SETTLING_S, "freed_s": FREED_S}
    with connection.cursor() as cursor:
        cursor.execute(_ADMITTED, {"first": first, "last": last, **limits})
        return [Admitted(*row[:3], *(sorted(ids or ()) for ids in row[3:])) for row in cursor.fetchall()]


# A range of the key: of what was let in before, all but the turns that are still stored is gone.
_FORGET = """
DELETE FROM turn_usage WHERE turn_id IN (
    SELECT u.turn_id FROM turn_usage u WHERE u.turn_id < %(last)s AND u.ended_at < %(border)s
        AND NOT EXISTS (SELECT FROM turns t WHERE t.turn_id = u.turn_id)
    ORDER BY u.turn_id LIMIT %(most)s FOR UPDATE SKIP LOCKED)
"""


def forget_settled(border: datetime, most: int) -> int:
    """Delete at most so many usages of turns that ended before the border and are no longer stored; returns how
    many. What their users used on that day stays. One statement."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGET, {"last": floor_id(border), "border": border, "most": most})
        return int(cursor.rowcount)
