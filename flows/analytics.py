"""The figures behind /analytics/: what happened to the turns that began in a time, how long it took, what it cost.

Every count agrees with the history list of the same filters, and every percentile is within 1 % of
the exact one (flows.tallies says how).
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from django.db import connection
from django.db.models import F, QuerySet

from flows import tallies
from flows.models import STAGES, Turn, tool_tag
from flows.tallies import Chosen, Tally

RUNNING = "running"
SLOWEST = 10
SORTED_AT_MOST = 2_000
CHECKS = ("auth_check", "block_check", "usage_check")


@dataclass(frozen=True, slots=True)
class Question:
    """Which turns: begun at `since` or later and before `until` (aware), of a user, model or tool if given."""

    since: datetime
    until: datetime
    user_id: str | None = None
    model: str | None = None
    tool: str | None = None


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of `count` durations, in milliseconds; None when there are none."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class Slot:
    """The turns that began in an hour or a day, by outcome or "running"."""

    since: datetime
    until: datetime
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Loss:
    """Turns that came no further: how they ended ("running": they stand there), and the code that says why."""

    outcome: str
    error: str | None
    turns: int


@dataclass(frozen=True, slots=True)
class Stage:
    """How many turns came at least so far (a value of flows.models.STAGES), and who came no further."""

    key: str
    reached: int
    lost: list[Loss]


@dataclass(frozen=True, slots=True)
class Spent:
    """What the turns of one model, or of one user (then `name` is his user_id), used."""

    name: str
    turns: int
    input_tokens: int
    output_tokens: int
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool: the turns that called it, its calls, how many failed, how long they took."""

    tool: str
    turns: int
    calls: int
    failures: int
    time: Percentiles


@dataclass(frozen=True, slots=True)
class Step:
    """A measured checkpoint: each check, llm_complete by model, tool_result by tool, whatever else has a
    duration. `name` is the model or tool."""

    checkpoint: str
    name: str | None
    time: Percentiles
    failures: int


@dataclass(frozen=True, slots=True)
class Problem:
    """A code of a refusal or an error, and how its turns ended."""

    code: str
    turns: int
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Analysis:
    """The answer to a Question. `users` are the 20 who used most tokens, `slowest` the 10 slowest turns."""

    turns: int
    outcomes: dict[str, int]
    slots: list[Slot]
    turn: Percentiles
    first_token: Percentiles
    steps: list[Step]
    funnel: list[Stage]
    models: list[Spent]
    users: list[Spent]
    tools: list[Tool]
    problems: list[Problem]
    slowest: list[Turn]


def analyse(question: Question, slots: Sequence[datetime]) -> Analysis:
    """All figures of one question. `slots`: the borders of its hours or days, ascending. A few queries."""
    figures = _figures(question)
    ends, measured = figures[tallies.END], figures[tallies.STEP]
    turns = sum(end.count for end in ends)
    return Analysis(
        turns=turns,
        outcomes=_sums((end.key2 or RUNNING, end.count) for end in ends),
        slots=_slots(question, slots),
        turn=_percentiles(step for step in measured if step.key == tallies.TURN_TIME),
        first_token=_percentiles(step for step in measured if step.key == tallies.FIRST_TOKEN),
        steps=_steps(measured),
        funnel=_funnel(ends),
        models=_spent(figures[tallies.MODEL]),
        users=_spent(figures[tallies.PERSON]),
        tools=_tools(figures[tallies.TOOL], measured),
        problems=_problems(ends),
        slowest=_slowest(question, turns),
    )


def _slowest(question: Question, turns: int) -> list[Turn]:
    """The slowest, of so many turns. One query.

    Of few, all are sorted: PostgreSQL, which takes a rare tool for less rare than it is, would walk the order of all
    turns to its end in search of it."""
    order = F("duration_ms") + 0 if turns <= SORTED_AT_MOST else F("duration_ms")
    found = _turns(question).filter(duration_ms__isnull=False).order_by(order.desc(), "-turn_id")
    return list(found[:SLOWEST])


def steps(question: Question) -> list[Step]:
    """Its measured steps alone. One query."""
    return _steps(_figures(question)[tallies.STEP])


def _figures(question: Question) -> dict[str, list[Tally]]:
    found: dict[str, list[Tally]] = defaultdict(list)
    chosen = Chosen(question.user_id, question.model, question.tool)
    for tally in tallies.of_turns(question.since, question.until, chosen):
        found[tally.figure].append(tally)
    return found


def _turns(question: Question) -> QuerySet[Turn]:
    found = Turn.objects.filter(started_at__gte=question.since, started_at__lt=question.until)
    if question.user_id is not None:
        found = found.filter(user_id=question.user_id)
    if question.model is not None:
        found = found.filter(model=question.model)
    if question.tool is not None:
        found = found.filter(tags__contains=[tool_tag(question.tool)])
    return found.defer("tags", "steps", "step_ms")


def _sums(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Counts by name, the largest first."""
    found: dict[str, int] = defaultdict(int)
    for name, count in pairs:
        found[name] += count
    return dict(sorted(found.items(), key=lambda each: (-each[1], each[0])))


# --- over time ----------------------------------------------------------------------------------------

# Of kept spans, and of the turns between them; in the same moment, how many of the spans are kept still.
_BY_SLOT = """
SELECT slot, outcome, sum(count)::bigint FROM (
    SELECT slot, key2 AS outcome, count FROM unnest(%s::bigint[], %s::int[]) AS kept(id, slot)
    JOIN kept_tallies ON span_id = kept.id AND {kept}
    UNION ALL
    SELECT width_bucket(started_at, %s::timestamptz[]) - 1, outcome, count(*) FROM turns WHERE {where} GROUP BY 1, 2
) AS counted GROUP BY 1, 2
UNION ALL SELECT -1, NULL, count(*) FROM kept_spans WHERE id = ANY(%s) AND state = 2
"""


def _slots(question: Question, borders: Sequence[datetime]) -> list[Slot]:
    """Turns by slot and outcome. Of kept days and hours as far as they fit: a viewer's day need not begin with one
    of UTC. Two queries, and one more if a kept hour changes between them."""
    if len(borders) < 2:
        return []
    chosen = Chosen(question.user_id, question.model, question.tool)
    times = max(question.since, borders[0]), min(question.until, borders[-1])
    # how the turns of each tool ended stands in everybody's figures, which are kept of hours as well
    scope = Chosen() if _is_tool_alone(chosen) else chosen
    kept = tallies.kept_in_slots(borders, scope) if times == (borders[0], borders[-1]) else []
    found = _by_slot(times, chosen, borders, kept) or _by_slot(times, chosen, borders, [])
    return [Slot(*ends, each) for ends, each in zip(pairwise(borders), found or (), strict=True)]


def _is_tool_alone(chosen: Chosen) -> bool:
    return chosen == Chosen(tool=chosen.tool) and chosen.tool is not None


def _by_slot(
    times: tuple[datetime, datetime],
    chosen: Chosen,
    borders: Sequence[datetime],
    kept: Sequence[tuple[int, tallies.Span]],
) -> list[dict[str, int]] | None:
    """None when one of the spans is not kept any more."""
    spans, numbers = [span for _, span in kept], [slot for slot, _ in kept]
    ids = [span.id for span in spans]
    where, values = tallies.where(tallies.between(*times, spans), chosen)
    found: list[dict[str, int]] = [{} for _ in borders[1:]]
    with connection.cursor() as cursor:
        of_kept, name = (
            ("figure = 'tool' AND key = %s", [chosen.tool]) if _is_tool_alone(chosen) else ("figure = 'end'", [])
        )
        sql = _BY_SLOT.format(kept=of_kept, where=where)
        cursor.execute(sql, [ids, numbers, *name, list(borders), *values, ids])
        for slot, outcome, count in cursor.fetchall():
            if slot >= 0:
                found[slot][outcome or RUNNING] = count
            elif count != len(ids):
                return None
    return found


# --- how far, and why not further ----------------------------------------------------------------------


def _funnel(ends: Sequence[Tally]) -> list[Stage]:
    return [
        Stage(
            key=key,
            reached=sum(end.count for end in ends if int(end.key or 0) >= stage),
            lost=_lost([end for end in ends if int(end.key or 0) == stage]) if stage < max(STAGES) else [],
        )
        for stage, key in STAGES.items()
    ]


def _lost(ends: Iterable[Tally]) -> list[Loss]:
    lost = [Loss(end.key2 or RUNNING, end.key3, end.count) for end in ends]
    return sorted(lost, key=lambda each: (-each.turns, each.outcome, each.error or ""))


def _problems(ends: Iterable[Tally]) -> list[Problem]:
    by_code: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for end in ends:
        if end.key3 is not None:
            by_code[end.key3].append((end.key2 or RUNNING, end.count))
    found = [Problem(code, sum(count for _, count in each), _sums(each)) for code, each in by_code.items()]
    return sorted(found, key=lambda each: (-each.turns, each.code))


# --- how long -------------------------------------------------------------------------------------------


def _percentiles(found: Iterable[Tally]) -> Percentiles:
    times: dict[int, int] = defaultdict(int)
    for tally in found:
        for bucket, count in tally.times.items():
            times[bucket] += count
    p50, p95, p99 = (tallies.percentile(times, share) for share in (0.5, 0.95, 0.99))
    return Percentiles(sum(times.values()), p50, p95, p99)


def _steps(steps: Iterable[Tally]) -> list[Step]:
    """The checks in their order, then what else was measured, models and tools; of those the usual first."""
    by_step: dict[tuple[str, str | None], list[Tally]] = defaultdict(list)
    for step in steps:
        kind, name = (step.key or "")[:1], (step.key or "")[1:]
        if kind in ("s", "S"):
            by_step[name, step.key2].append(step)
        elif kind in ("r", "R"):
            by_step["tool_result", name].append(step)
    found = [
        Step(checkpoint, name, _percentiles(each), sum(step.count for step in each if (step.key or "")[:1] in "RS"))
        for (checkpoint, name), each in by_step.items()
    ]
    return sorted(found, key=_place)


def _place(step: Step) -> tuple[int, str, int, str]:
    checks = CHECKS.index(step.checkpoint) if step.checkpoint in CHECKS else len(CHECKS)
    late = {"llm_complete": 1, "tool_result": 2}.get(step.checkpoint, 0)
    return checks + late, step.checkpoint, -step.time.count, step.name or ""


# --- what it cost ---------------------------------------------------------------------------------------


def _spent(found: Iterable[Tally]) -> list[Spent]:
    spent = [
        Spent(each.key, each.count, each.input_tokens, each.output_tokens, each.cost_usd)
        for each in found
        if each.key is not None
    ]
    return sorted(spent, key=lambda each: (-each.input_tokens - each.output_tokens, -each.turns, each.name))


def _tools(tools: Iterable[Tally], steps: Sequence[Tally]) -> list[Tool]:
    turns: dict[str, int] = defaultdict(int)
    for each in tools:
        turns[each.key or ""] += each.count
    found = []
    for tool, count in turns.items():
        results = [step for step in steps if step.key in (f"r{tool}", f"R{tool}")]
        calls = sum(step.count for step in steps if step.key == f"c{tool}")
        failures = sum(step.count for step in results if step.key == f"R{tool}")
        found.append(Tool(tool, count, calls, failures, _percentiles(results)))
    return sorted(found, key=lambda each: (-each.calls, each.tool))
