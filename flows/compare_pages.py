"""`/flows/compare/?a=&b=`: two turns side by side. Server-rendered; nothing on it needs a script.

Both turns are read through `flows.reader`, so both must be the reader's to read, and both looks are
noted. Which step of the one is which of the other is `flows.compare`'s.
"""

import re
from collections.abc import Iterable
from typing import Any, cast
from uuid import UUID

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import compare, lines, transcript, words
from flows.compare import Pair, Step
from flows.history import Session, TurnFilters
from flows.models import InteractionFlow, Turn
from flows.reader import Reader
from omni2.accounts.models import User

MOST_PAIRS = 500
MOST_LINES = 100
CANDIDATES = 8
SIDES = ("a", "b")
# a difference in time is worth a colour from here on
NOTABLE_MS, NOTABLE_PART = 50.0, 0.1
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


@require_safe
@never_cache
@login_required
def page(request: HttpRequest) -> HttpResponse:
    """Two turns compared, or what may be compared with the one that is chosen. 404 for what is not his to read."""
    reader = Reader(cast(User, request.user))
    given = {side: request.GET.get(side, "").strip() for side in SIDES}
    ids = {side: _turn_id(text) for side, text in given.items() if text}
    found = {side: reader.turn(turn_id) for side, turn_id in ids.items() if turn_id}
    names = lines.names(one.user_id for one in found.values())
    context: dict[str, Any] = {
        "title": "Compare two turns",
        "errors": {side: "There is no turn's id in this." for side, turn_id in ids.items() if turn_id is None},
        "given": given,
        "cards": [(side, lines.line(found[side].turns[0], names)) for side in SIDES if side in found],
    }
    if len(found) == len(SIDES):
        context |= _compared(reader, found["a"], found["b"])
    elif found:
        side, chosen = next(iter(found.items()))
        context |= {"chosen": side, "candidates": _candidates(reader, chosen.turns[0], names)}
    return render(request, "flows/compare.html", context)


def _turn_id(text: str) -> UUID | None:
    """The turn meant by an id, or by a link to a turn or to any of its checkpoints. At most one query."""
    ids = _UUID.findall(text)
    if not ids:
        return None
    wanted = UUID(ids[-1])
    of = InteractionFlow.objects.filter(flow_id=wanted).values_list("turn_id", flat=True).first()
    return of or wanted


def _candidates(reader: Reader, chosen: Turn, names: dict[str, str]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The same person's turns: with the same question, and the newest."""
    user_id = chosen.user_id
    recent = reader.turns(TurnFilters(user_id=user_id), limit=CANDIDATES + 1).rows
    alike: Iterable[Turn] = ()
    if chosen.question:
        found = reader.turns(TurnFilters(user_id=user_id, q=chosen.question), limit=CANDIDATES + 1).rows
        alike = (turn for turn in found if turn.question == chosen.question)
    groups = (("The same question", alike), ("The newest turns", recent))
    return [
        (title, [lines.line(turn, names) for turn in turns if turn.turn_id != chosen.turn_id][:CANDIDATES])
        for title, turns in groups
    ]


# --- the comparison ----------------------------------------------------------------------------------


def _compared(reader: Reader, a: Session, b: Session) -> dict[str, Any]:
    rows = {"a": [reader.as_wire(row) for row in a.rows], "b": [reader.as_wire(row) for row in b.rows]}
    pairs = compare.align(rows["a"], rows["b"])
    span = max((step.end_ms for pair in pairs for step in (pair.a, pair.b) if step), default=1.0)
    over = {"a": a.turns[0].outcome is not None, "b": b.turns[0].outcome is not None}
    alone = {side: sum(1 for pair in pairs if getattr(pair, _other(side)) is None) for side in SIDES}
    return {
        "totals": list(_totals(a.turns[0], b.turns[0])),
        "pairs": [_line(pair, over) for pair in pairs[:MOST_PAIRS]],
        "left_out": max(0, len(pairs) - MOST_PAIRS),
        "span": max(1.0, round(span, 3)),
        "span_text": words.duration(span),
        "alone": alone,
        "said": [(side, transcript.lines_of(rows[side])[:MOST_LINES]) for side in SIDES],
    }


def _other(side: str) -> str:
    return "b" if side == "a" else "a"


def _line(pair: Pair, over: dict[str, bool]) -> dict[str, Any]:
    """One pair as the template needs it."""
    sides = {side: _side(getattr(pair, side), over=over[side]) for side in SIDES if getattr(pair, side)}
    first = sides.get("a") or sides["b"]
    line = {"depth": min(pair.depth, 12), "level": pair.depth + 1, "sides": sides, "first": first}
    if pair.a is None or pair.b is None:
        return {**line, "only": "a" if pair.b is None else "b"}
    a, b = sides["a"]["said"], sides["b"]["said"]
    return {
        **line,
        "other_label": b.label if b.label != a.label else "",
        "same_facts": a.facts == b.facts,
        "difference": _time(pair.a.took_ms, pair.b.took_ms) if a.state == b.state else {"text": "differs"},
    }


def _side(step: Step, *, over: bool) -> dict[str, Any]:
    return {
        "step": step,
        "said": words.describe(step.start, step.end, over=over),
        "from": max(0.0, round(step.begin_ms, 3)),
        "to": max(0.0, round(step.end_ms, 3)),
        "is_point": step.took_ms == 0,
        "took": words.duration(step.took_ms) if step.took_ms else "",
    }


def _time(a: float | None, b: float | None) -> dict[str, str]:
    """How much longer B took than A: text, and `slower` or `faster` where it is worth a colour."""
    if a is None or b is None:
        return {"text": ""}
    more = b - a
    if round(abs(more)) == 0:
        return {"text": "same"}
    notable = abs(more) >= max(NOTABLE_MS, NOTABLE_PART * max(a, b))
    way = "slower" if more > 0 else "faster"
    return {"text": f"{_sign(more)}{words.duration(abs(more))}", "way": way, "state": way if notable else ""}


def _number(a: float | None, b: float | None, say: Any) -> dict[str, str]:
    if a is None or b is None:
        return {"text": "" if a == b else "not known on both sides"}
    if a == b:
        return {"text": "same"}
    return {"text": f"{_sign(b - a)}{say(abs(b - a))}{_part(a, b)}"}


def _sign(more: float) -> str:
    return "+" if more > 0 else "−"


def _part(a: float, b: float) -> str:
    return f" ({_sign(b - a)}{words.count(round(abs(b - a) / a * 100))} %)" if a else ""


def _totals(a: Turn, b: Turn) -> Iterable[dict[str, Any]]:
    """The lines of the table on top: what it is, both values, the difference."""
    both = (a, b)
    yield {
        "name": "Outcome",
        "outcomes": [words.outcome(turn.outcome) for turn in both],
        "difference": {"text": "same" if a.outcome == b.outcome else "differs"},
    }
    if a.error or b.error:
        why = [words.reason(turn.error) if turn.error else "" for turn in both]
        yield {"name": "Why", "values": why, "difference": {"text": "same" if a.error == b.error else "differs"}}
    for name, column in (("Time", "duration_ms"), ("First token", "ttft_ms")):
        times = [getattr(turn, column) for turn in both]
        yield {"name": name, "values": [words.duration(time) for time in times], "difference": _time(*times)}
    for name, column in (
        ("Input tokens", "input_tokens"),
        ("Output tokens", "output_tokens"),
        ("Tools", "tool_calls"),
        ("Checkpoints", "checkpoints"),
    ):
        numbers = [getattr(turn, column) for turn in both]
        difference = _number(numbers[0], numbers[1], words.count)
        yield {"name": name, "values": [words.count(number) for number in numbers], "difference": difference}
    costs = [None if turn.cost_usd is None else float(turn.cost_usd) for turn in both]
    difference = _number(costs[0], costs[1], words.money)
    yield {"name": "Cost", "values": [words.money(cost) for cost in costs], "difference": difference}
    models = [turn.model or "" for turn in both]
    yield {"name": "Model", "values": models, "difference": {"text": "same" if a.model == b.model else "differs"}}


compare_urls: list[URLPattern | URLResolver] = [
    path("flows/compare/", page, name="turn-compare"),
]
