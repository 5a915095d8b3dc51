"""A conversation as its owner reads it: question by question, with what became of each.

Behind the chat page. What was said is in `messages`, how it went in `turns` and the tool calls of
`interaction_flows`; whether an answer is still being made is known from `turn_usage` at once, from
`turns` a moment later.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.db.models.fields.json import KT
from django.utils import timezone

from chat.models import Message, Role, TurnUsage
from flows.models import InteractionFlow, Outcome, Turn

PER_PAGE = 30
STORED_WITHIN = timedelta(seconds=15)
"""After an answer has ended, its turn is stored within a second or two; later it is not waited for."""
TOLD_OF_A_TURN = (
    "outcome",
    "error",
    "model",
    "duration_ms",
    "input_tokens",
    "output_tokens",
    "cost_usd",
    "tool_calls",
    "user_id",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One use of a tool. `status`: ok, error, cancelled, or running (in a turn that is over: never ended)."""

    tool: str
    status: str = "running"
    duration_ms: float | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody ended a turn: its own user, or another one; what its user was told."""

    by_himself: bool
    message: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One question and what became of it. `turn` is None until the turn is stored."""

    number: int
    turn_id: UUID
    question: str
    at: datetime
    answer: str = ""
    turn: Turn | None = None
    is_running: bool = False
    steps: list[Step] = field(default_factory=list)
    stop: Stop | None = None


@dataclass(frozen=True, slots=True)
class Talk:
    """Some questions of a conversation, oldest first; `earlier`: the number before which older ones stand."""

    asked: list[Asked]
    earlier: int | None


def talk(user_pk: int, session_id: str, *, before: int | None = None, limit: int = PER_PAGE) -> Talk:
    """The newest `limit` questions of one conversation of this user, or the newest before a number.

    Empty when there is none, or when it is somebody else's. Two to six queries, however long the
    conversation is.
    """
    questions = _questions(user_pk, session_id).order_by("-id")
    if before is not None:
        questions = questions.filter(id__lt=before)
    found = list(questions[: limit + 1])
    shown = found[:limit][::-1]
    return Talk(_with_what_became(session_id, shown), shown[0].pk if len(found) > limit else None)


def asked_in(user_pk: int, session_id: str, turn_id: UUID) -> Asked | None:
    """One question of a conversation of this user; None when there is none. Two to six queries."""
    found = _with_what_became(session_id, _questions(user_pk, session_id).filter(turn_id=turn_id)[:1])
    return found[0] if found else None


def _questions(user_pk: int, session_id: str) -> QuerySet[Message]:
    return Message.objects.filter(conversation_id=session_id, conversation__user_id=user_pk, role=Role.USER)


def _with_what_became(session_id: str, questions: Iterable[Message]) -> list[Asked]:
    asked = list(questions)
    if not asked:
        return []
    ids = [each.turn_id for each in asked]
    answers = _answers(session_id, ids, after=asked[0].pk)
    turns = Turn.objects.only(*TOLD_OF_A_TURN).in_bulk(ids)
    over = {turn_id for turn_id, turn in turns.items() if turn.outcome}
    running = _running(set(ids) - over)
    used_tools = [turn_id for turn_id in ids if turn_id not in over or turns[turn_id].tool_calls]
    steps = _steps(used_tools)
    stops = _stops({turn_id: turn for turn_id, turn in turns.items() if turn.outcome == Outcome.STOPPED})
    return [
        Asked(
            number=each.pk,
            turn_id=each.turn_id,
            question=each.content,
            at=each.created_at,
            answer=answers.get(each.turn_id, ""),
            turn=turns.get(each.turn_id),
            is_running=each.turn_id in running,
            steps=steps.get(each.turn_id, []),
            stop=stops.get(each.turn_id),
        )
        for each in asked
    ]


def _answers(session_id: str, turn_ids: list[UUID], *, after: int) -> dict[UUID, str]:
    """The answers by turn. An answer comes after its question, so the index begins at the first of these."""
    said = Message.objects.filter(conversation_id=session_id, id__gt=after, role=Role.ASSISTANT, turn_id__in=turn_ids)
    return dict(said.values_list("turn_id", "content"))


def _running(turn_ids: set[UUID]) -> set[UUID]:
    """Of turns without a stored outcome: those whose answer is being made, or has only just ended."""
    if not turn_ids:
        return set()
    lately = timezone.now() - STORED_WITHIN
    usages = TurnUsage.objects.filter(turn_id__in=turn_ids).values_list("turn_id", "ended_at")
    return {turn_id for turn_id, ended_at in usages if ended_at is None or ended_at > lately}


def _stops(turns: dict[UUID, Turn]) -> dict[UUID, Stop]:
    """Who stopped these turns, as their trees have it. One query, if there are any."""
    if not turns:
        return {}
    rows = (
        InteractionFlow.objects.filter(turn_id__in=list(turns), checkpoint="error", metadata__code="stopped")
        .annotate(by=KT("metadata__stopped_by"), message=KT("metadata__message"))
        .values_list("turn_id", "by", "message")
    )
    return {
        turn_id: Stop(by == turns[turn_id].user_id, message or "")
        for turn_id, by, message in rows
        if turn_id is not None
    }


def _steps(turn_ids: list[UUID]) -> dict[UUID, list[Step]]:
    """The tool calls of each turn, in the order they began."""
    if not turn_ids:
        return {}
    rows: list[Any] = list(
        InteractionFlow.objects.filter(turn_id__in=turn_ids, checkpoint__in=["tool_call", "tool_result"])
        .annotate(
            tool=KT("metadata__tool"),
            status=KT("metadata__status"),
            took=KT("metadata__duration_ms"),
            problem=KT("metadata__error"),
        )
        .order_by("created_at", "flow_id")
        .values("turn_id", "flow_id", "parent_id", "checkpoint", "tool", "status", "took", "problem")
    )
    results = {row["parent_id"]: row for row in rows if row["checkpoint"] == "tool_result"}
    steps: dict[UUID, list[Step]] = {}
    for row in rows:
        if row["checkpoint"] == "tool_call":
            steps.setdefault(row["turn_id"], []).append(_step(row, results.get(row["flow_id"])))
    return steps


def _step(call: dict[str, Any], result: dict[str, Any] | None) -> Step:
    tool = call["tool"] or "tool"
    if result is None:
        return Step(tool)
    return Step(tool, result["status"] or "ok", _number(result["took"]), result["problem"] or "")


def _number(text: str | None) -> float | None:
    """Milliseconds as they were written; what an INSERT from outside wrote may be no number."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None
