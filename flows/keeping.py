"""Keeps the figures of past hours and days: the persister calls this beside its work.

An hour is marked first, in a moment in which nobody is changing a turn: each change from then on finds
the mark and makes it stale (the trigger of the fifth migration). Then its figures are made and written,
and it counts as kept only if the mark still stands.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction

from flows.models import KeptSpan, KeptTally
from flows.tallies import Chosen, Made, of_span

REST = timedelta(minutes=10)
"""So long after its end an hour is left alone: nearly all of its turns have ended by then."""

LONGEST_KEPT = timedelta(days=400)
HOURS_KEPT = timedelta(days=40)
"""Hours of kept days are forgotten after this time: only the edges of an older question need them."""

SCOPES_KEPT = timedelta(days=100)
LEAST_TURNS = 200
"""Fewer turns of one model, tool or person on a day are read from the turns as quickly."""

LOCK_TRIES = 5
LOCK_PAUSE_S = 0.02

# Hours with turns that are over and not kept, the newest first; old ones only for a day that is not kept.
_HOURS_TO_KEEP = """
WITH reach AS (
    SELECT date_bin('1 day', greatest(min(started_at), now() - %(longest)s), '2000-01-01Z') AS first FROM turns
)
SELECT hour, '' FROM reach, generate_series(first, now() - interval '1 hour' - %(rest)s, '1 hour') AS hour
WHERE NOT EXISTS (SELECT FROM kept_spans WHERE hours = 1 AND start = hour AND state = 2 AND scope = '')
  AND (hour > now() - %(hours_kept)s OR NOT EXISTS (
        SELECT FROM kept_spans WHERE hours = 24 AND start = date_bin('1 day', hour, '2000-01-01Z') AND state = 2
            AND scope = ''))
ORDER BY hour DESC LIMIT %(most)s
"""

_DAYS_TO_KEEP = """
SELECT day, '' FROM (
    SELECT date_bin('1 day', start, '2000-01-01Z') AS day FROM kept_spans WHERE hours = 1 AND state = 2
    GROUP BY 1 HAVING count(*) = 24) AS whole
WHERE NOT EXISTS (SELECT FROM kept_spans WHERE hours = 24 AND state = 2 AND start = day AND scope = '')
ORDER BY day DESC LIMIT %(most)s
"""

_OLD_HOURS = """
SELECT id FROM kept_spans AS hourly WHERE hours = 1 AND start < now() - %(hours_kept)s AND EXISTS (
    SELECT FROM kept_spans WHERE hours = 24 AND start = date_bin('1 day', hourly.start, '2000-01-01Z') AND state = 2
        AND scope = '')
"""

# Whose turns of a kept day are so many that their figures are worth keeping for themselves.
_SCOPES_TO_KEEP = """
SELECT daily.start, left(figure, 1) || key AS scope
FROM kept_spans AS daily JOIN kept_tallies ON span_id = daily.id
WHERE daily.hours = 24 AND daily.state = 2 AND daily.scope = '' AND daily.start > now() - %(scopes_kept)s
  AND figure IN ('model', 'tool', 'person') AND key IS NOT NULL
  AND NOT EXISTS (SELECT FROM kept_spans AS own WHERE own.hours = 24 AND own.start = daily.start AND own.state = 2
      AND own.scope = left(figure, 1) || key)
GROUP BY 1, 2 HAVING sum(count) >= %(least)s
ORDER BY 1 DESC, 2 LIMIT %(most)s
"""

_BEGIN = """
INSERT INTO kept_spans (hours, start, scope, state)
SELECT %s, start, scope, 1 FROM unnest(%s::timestamptz[], %s::text[]) AS wanted(start, scope)
ON CONFLICT (hours, start, scope) DO UPDATE SET state = 1 RETURNING id, start, scope
"""

_WRITE = """
INSERT INTO kept_tallies
    (span_id, figure, key, key2, key3, count, input_tokens, output_tokens, cost_usd, buckets, counts)
SELECT %s, figure, key, key2, key3, count, input_tokens, output_tokens, cost_usd, buckets, counts
FROM ({rows}) AS made
"""

_OF_HOURS = """
SELECT figure, key, key2, key3, sum(count) AS count, sum(input_tokens) AS input_tokens,
    sum(output_tokens) AS output_tokens, sum(cost_usd) AS cost_usd, NULL::int[] AS buckets, NULL::int[] AS counts
FROM kept_tallies WHERE span_id = ANY(%s) AND figure <> 'step' GROUP BY 1, 2, 3, 4
UNION ALL
SELECT 'step', key, key2, NULL, sum(steps), 0, 0, NULL,
    array_agg(bucket) FILTER (WHERE bucket IS NOT NULL), array_agg(n) FILTER (WHERE bucket IS NOT NULL)
FROM (SELECT key, key2, bucket, sum(n)::int AS n, sum(steps) AS steps
      FROM kept_tallies CROSS JOIN LATERAL (
          SELECT bucket, n, 0 AS steps FROM unnest(buckets, counts) AS measured(bucket, n)
          UNION ALL SELECT NULL, 0, count) AS measured
      WHERE span_id = ANY(%s) AND figure = 'step' GROUP BY 1, 2, 3) AS counted
GROUP BY 1, 2, 3
"""


def keep(*, most: int = 4) -> int:
    """Keep the figures of at most so many hours that are over, of the days they complete, and of the models,
    tools and people with many turns on one of them; returns how many are kept now that were not. Some
    milliseconds for each.

    Any number of processes may keep at once; an hour that changes meanwhile is left for later.
    """
    limits: dict[str, Any] = {"longest": LONGEST_KEPT, "rest": REST, "hours_kept": HOURS_KEPT, "most": most}
    limits |= {"scopes_kept": SCOPES_KEPT, "least": LEAST_TURNS}
    kept = 0
    for hours, sql, made in (
        (1, _HOURS_TO_KEEP, _of_hour),
        (24, _DAYS_TO_KEEP, _of_day),
        (24, _SCOPES_TO_KEEP, _of_scope),
    ):
        kept += sum(_keep(span_id, start, scope, made) for span_id, start, scope in _begin(hours, _wanted(sql, limits)))
    return kept


def forget_old_hours() -> int:
    """Forget hours after HOURS_KEPT when their day is kept; returns how many. Two queries, and a few more if any."""
    with connection.cursor() as cursor:
        limits: dict[str, Any] = {"hours_kept": HOURS_KEPT}
        cursor.execute(_OLD_HOURS, limits)
        old = [span_id for (span_id,) in cursor.fetchall()]
    KeptSpan.objects.filter(id__in=old).delete()
    return len(old)


def _wanted(sql: str, limits: dict[str, Any]) -> list[tuple[datetime, str]]:
    """What to keep: start and scope."""
    with connection.cursor() as cursor:
        cursor.execute(sql, limits)
        return list(cursor.fetchall())


def _begin(hours: int, wanted: Sequence[tuple[datetime, str]]) -> list[tuple[int, datetime, str]]:
    """Mark these spans, with the lock nobody else can have meanwhile; (id, start, scope) of each, none if there
    is always somebody changing turns. Never waits for the lock: whoever came after it would wait as well."""
    for _ in range(LOCK_TRIES if wanted else 0):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_try_advisory_xact_lock(hashtextextended('omni2 tallies', 0))")
            if cursor.fetchone()[0]:
                cursor.execute(_BEGIN, [hours, [start for start, _ in wanted], [scope for _, scope in wanted]])
                return list(cursor.fetchall())
        time.sleep(LOCK_PAUSE_S)
    return []


def _of_hour(start: datetime, scope: str) -> Made:
    return of_span(start, start + timedelta(hours=1), Chosen.of(scope))


def _of_scope(start: datetime, scope: str) -> Made:
    return of_span(start, start + timedelta(days=1), Chosen.of(scope))


def _of_day(start: datetime, _: str) -> Made | None:
    """From its hours; None when not all of them are kept any more."""
    hours = KeptSpan.objects.filter(hours=1, scope="", state=KeptSpan.KEPT)
    hours = hours.filter(start__gte=start, start__lt=start + timedelta(days=1))
    ids = list(hours.values_list("id", flat=True))
    return (_OF_HOURS, [ids, ids]) if len(ids) == 24 else None


def _keep(span_id: int, start: datetime, scope: str, make: Callable[[datetime, str], Made | None]) -> bool:
    """Write a span's figures; False when it was changed, or somebody else kept it."""
    with transaction.atomic(), connection.cursor() as cursor:
        # Two keepers of the same span come one after the other; a late change waits for the end of this,
        # and then makes it stale.
        cursor.execute("SELECT 1 FROM kept_spans WHERE id = %s AND state = 1 FOR UPDATE", [span_id])
        if cursor.fetchone() is None or (made := make(start, scope)) is None:
            return False
        rows, values = made
        KeptTally.objects.filter(span_id=span_id).delete()
        cursor.execute(_WRITE.format(rows=rows), [span_id, *values])
        KeptSpan.objects.filter(id=span_id).update(state=KeptSpan.KEPT)
    return True
