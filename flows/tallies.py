"""Figures of many turns: one SQL over the turns' summaries gives them all.

Counts and sums by how turns ended, by model and by person, and for each measured step a histogram of
its durations, in buckets that each end 2 % above their beginning. flows.analytics makes its answers of
these rows.

Of past hours and days (UTC) the rows are kept (flows.keeping), and what is asked is put together
of kept days, kept hours and the turns of the rest. A trigger on `turns` marks an hour stale in the
transaction that changes it, so no answer is ever made of figures that are no longer true.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from django.db import connection

from flows.models import KeptSpan, tool_tag

MOST_PEOPLE = 20
# The figures of a row; what its keys then are.
END = "end"  # stage, outcome (None: running), error
MODEL = "model"  # model (None: the turn came to none)
PERSON = "person"  # user_id
TOOL = "tool"  # tool, outcome (None: running): the turns that called it
STEP = "step"  # a step as flows.store writes it, and for llm_complete the turn's model
TURN_TIME, FIRST_TOKEN = "d", "f"
"""The two times of a whole turn, as keys of STEP: no step is called so."""

GROWTH = 1.02
# Below a microsecond a duration is taken for none.
_NONE = -400


@dataclass(frozen=True, slots=True)
class Tally:
    """One row: how many turns (STEP: how many steps), what they used, and how long they took.

    `times`: bucket → how many; only for STEP.
    """

    figure: str
    key: str | None
    key2: str | None
    key3: str | None
    count: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None
    times: dict[int, int]


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which turns, besides when they began; nothing given: everybody's."""

    user_id: str | None = None
    model: str | None = None
    tool: str | None = None

    @property
    def scope(self) -> str | None:
        """One word for it, under which its figures may be kept; None for more than one choice at once."""
        given = [("p", self.user_id), ("m", self.model), ("t", self.tool)]
        words = [letter + name for letter, name in given if name is not None]
        return None if len(words) > 1 else "".join(words)

    @classmethod
    def of(cls, scope: str) -> "Chosen":
        """What a scope stands for."""
        name = {"p": "user_id", "m": "model", "t": "tool"}.get(scope[:1])
        return cls(**{name: scope[1:]}) if name else cls()


Made = tuple[str, list[Any]]
"""The SQL of some rows, and its values."""


def middle_ms(bucket: int) -> float:
    """The middle of a bucket: at most 1 % from any duration in it."""
    return 0.0 if bucket <= _NONE else GROWTH ** (bucket + 0.5)


def percentile(times: dict[int, int], share: float) -> float | None:
    """The duration that this share of all does not exceed (the nearest rank); None of nothing."""
    rank = math.ceil(share * sum(times.values()))
    for bucket in sorted(times):
        rank -= times[bucket]
        if rank <= 0:
            return middle_ms(bucket)
    return None


# One row per end, model, person, and tool with outcome; then one per step with its histogram.
OF_TURNS = """
SELECT CASE WHEN grouping(user_id) = 0 THEN 'person' WHEN grouping(model) = 0 THEN 'model' ELSE 'end' END AS figure,
    CASE WHEN grouping(user_id) = 0 THEN user_id WHEN grouping(model) = 0 THEN model ELSE stage::text END AS key,
    CASE WHEN grouping(stage) = 0 THEN outcome END AS key2, CASE WHEN grouping(stage) = 0 THEN error END AS key3,
    count(*) AS count,
    sum(input_tokens) AS input_tokens, sum(output_tokens) AS output_tokens, sum(cost_usd) AS cost_usd,
    NULL::int[] AS buckets, NULL::int[] AS counts
FROM turns WHERE {where}
GROUP BY GROUPING SETS ((stage, outcome, error), (model), (user_id))
UNION ALL
SELECT 'tool', substr(tag, 2), outcome, NULL, count(*), 0, 0, NULL, NULL, NULL
FROM turns CROSS JOIN LATERAL unnest(tags) AS tag WHERE {where} AND tool_calls > 0 AND tag LIKE 't%%'
GROUP BY tag, outcome
UNION ALL
SELECT 'step', step, model, NULL, sum(count), 0, 0, NULL,
    array_agg(bucket) FILTER (WHERE bucket IS NOT NULL), array_agg(count::int) FILTER (WHERE bucket IS NOT NULL)
FROM (
    SELECT step, CASE WHEN step IN ('sllm_complete', 'Sllm_complete') THEN model END AS model,
        CASE WHEN ms < 0.001 THEN -400 ELSE floor(ln(ms::float8) / ln(1.02::float8))::int END AS bucket,
        count(*) AS count
    FROM turns CROSS JOIN LATERAL
        unnest(steps || ARRAY['d', 'f'], step_ms || ARRAY[duration_ms, ttft_ms]::real[]) AS measured(step, ms)
    WHERE {where} AND (ms IS NOT NULL OR step NOT IN ('d', 'f'))
    GROUP BY 1, 2, 3
) AS counted
GROUP BY step, model
"""

# Of the people only those who used most.
_ASK = """
WITH parts AS MATERIALIZED ({parts}),
sums AS (
    SELECT figure, key, key2, key3, sum(count)::bigint AS count, sum(input_tokens)::bigint AS input_tokens,
        sum(output_tokens)::bigint AS output_tokens, sum(cost_usd) AS cost_usd
    FROM parts GROUP BY 1, 2, 3, 4
), steps AS MATERIALIZED (
    -- by number: some 100,000 buckets of a month are added up by two integers, not by two texts
    SELECT dense_rank() OVER (ORDER BY key, key2) AS step, key, key2, buckets, counts FROM parts WHERE figure = 'step'
), times AS (
    SELECT step, array_agg(bucket) AS buckets, array_agg(count) AS counts
    FROM (SELECT step, bucket, sum(n) AS count
          FROM steps CROSS JOIN LATERAL unnest(buckets, counts) AS measured(bucket, n) GROUP BY 1, 2) AS counted
    GROUP BY 1
), named AS (
    SELECT key, key2, times.buckets, times.counts
    FROM times JOIN (SELECT DISTINCT step, key, key2 FROM steps) AS each USING (step)
)
(SELECT figure, sums.key, sums.key2, key3, count, input_tokens, output_tokens, cost_usd, buckets, counts
 FROM sums LEFT JOIN named ON figure = 'step' AND named.key = sums.key AND named.key2 IS NOT DISTINCT FROM sums.key2
 WHERE figure <> 'person')
UNION ALL
(SELECT figure, key, key2, key3, count, input_tokens, output_tokens, cost_usd, NULL, NULL
 FROM sums WHERE figure = 'person' ORDER BY input_tokens + output_tokens DESC, count DESC, key LIMIT {people})
"""


_KEPT = """
SELECT figure, key, key2, key3, count, input_tokens, output_tokens, cost_usd, buckets, counts
FROM kept_tallies JOIN kept_spans ON kept_spans.id = span_id WHERE span_id = ANY(%s) AND state = 2
"""
# Asked in the same moment: are all spans that were counted on still kept?
_STILL_KEPT = """
UNION ALL SELECT 'spans', NULL, NULL, NULL, count(*), 0, 0, NULL, NULL, NULL
FROM kept_spans WHERE id = ANY(%s) AND state = 2
"""


def of_turns(since: datetime, until: datetime, chosen: Chosen) -> list[Tally]:
    """The figures of the turns that began in [since, until) and are chosen.

    Two queries at most, and more only if a kept hour changes between them.
    """
    for _ in range(3):
        spans = _kept_within(since, until, chosen)
        if not spans:
            break
        found = _put_together(since, until, chosen, spans)
        if found is not None:
            return found
    return read(since, until, chosen)


def read(since: datetime, until: datetime, chosen: Chosen) -> list[Tally]:
    """The same, of the turns themselves. One query."""
    return _asked(*of_span(since, until, chosen))


def of_span(since: datetime, until: datetime, chosen: Chosen) -> Made:
    """The SQL of these rows."""
    condition, values = where([(since, until)], chosen)
    return OF_TURNS.format(where=condition), values * 3


def _asked(parts: str, values: Sequence[Any], more: str = "") -> list[Tally]:
    sql = _ASK.format(parts=parts, people=MOST_PEOPLE) + more
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return [_tally(row) for row in cursor.fetchall()]


def _put_together(since: datetime, until: datetime, chosen: Chosen, spans: "Sequence[Span]") -> list[Tally] | None:
    """Of kept spans and the turns between them; None when one of the spans is not kept any more."""
    condition, values = where(between(since, until, spans), chosen)
    ids = [span.id for span in spans]
    parts = OF_TURNS.format(where=condition) + "UNION ALL" + _KEPT
    found = _asked(parts, [*values * 3, ids, ids], _STILL_KEPT)
    still = next(tally.count for tally in found if tally.figure == "spans")
    return [tally for tally in found if tally.figure != "spans"] if still == len(spans) else None


class Span(NamedTuple):
    """A kept hour or day."""

    start: datetime
    end: datetime
    id: int


def _kept_within(since: datetime, until: datetime, chosen: Chosen) -> list[Span]:
    """The kept spans that lie wholly inside and do not overlap, days before hours; ascending. One query."""
    return [span for _, span in kept_in_slots([since, until], chosen)]


def kept_in_slots(borders: Sequence[datetime], chosen: Chosen) -> list[tuple[int, Span]]:
    """The kept spans that lie wholly inside one of the slots between these borders and do not overlap, days before
    hours, each with the number of its slot (from 0); ascending. One query."""
    scope = chosen.scope
    if scope is None:
        return []
    rows = KeptSpan.objects.filter(state=KeptSpan.KEPT, scope=scope, start__gte=borders[0], start__lt=borders[-1])
    found: list[tuple[int, Span]] = []
    days: set[datetime] = set()
    for row_id, hours, start in rows.order_by("-hours").values_list("id", "hours", "start"):
        span = Span(start, start + timedelta(hours=hours), row_id)
        day = start.astimezone(UTC).replace(hour=0)
        slot = bisect_right(borders, start) - 1
        if span.end > borders[slot + 1] or (hours == 1 and day in days):
            continue
        if hours != 1:
            days.add(day)
        found.append((slot, span))
    return sorted(found)


def between(since: datetime, until: datetime, spans: Sequence[Span]) -> list[tuple[datetime, datetime]]:
    """What of [since, until) none of the spans covers."""
    gaps, at = [], since
    for span in spans:
        if at < span.start:
            gaps.append((at, span.start))
        at = span.end
    return [*gaps, (at, until)] if at < until else gaps


def where(spans: Sequence[tuple[datetime, datetime]], chosen: Chosen) -> tuple[str, list[Any]]:
    """SQL over turns, and its values."""
    began = " OR ".join(["(started_at >= %s AND started_at < %s)"] * len(spans)) or "false"
    conditions, values = [f"({began})"], [moment for span in spans for moment in span]
    more: list[Any] = list(values)
    if chosen.user_id is not None:
        conditions.append("user_id = %s")
        more.append(chosen.user_id)
    if chosen.model is not None:
        conditions.append("model = %s")
        more.append(chosen.model)
    if chosen.tool is not None:
        conditions.append("tags @> ARRAY[%s]")
        more.append(tool_tag(chosen.tool))
    return " AND ".join(conditions), more


def _tally(row: Sequence[Any]) -> Tally:
    figure, key, key2, key3, count, input_tokens, output_tokens, cost_usd, buckets, counts = row
    times = dict(zip(buckets or (), counts or (), strict=True))
    return Tally(figure, key, key2, key3, count, input_tokens, output_tokens, cost_usd, times)
