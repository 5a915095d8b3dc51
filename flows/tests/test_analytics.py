"""The figures agree with the history list, and the percentiles with exact ones."""

import math
import uuid
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from flows import history
from flows.analytics import Analysis, Percentiles, Question, analyse
from flows.history import TurnFilters
from flows.models import STAGES, InteractionFlow, Turn
from flows.store import store
from flows.tests.samples import MODELS, USERS, Sample

pytestmark = pytest.mark.django_db
SINCE = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)
UNTIL = SINCE + timedelta(hours=30)
SLOTS = [SINCE + timedelta(hours=each) for each in (0, 6, 12, 18, 24, 30)]


def sample(seed: int = 1, turns: int = 400) -> None:
    made = Sample(seed)
    for _ in range(turns):
        made.turn(SINCE + timedelta(seconds=made.chance.uniform(-7200, 32 * 3600)))
    store(made.documents())


def questions() -> Iterator[Question]:
    yield Question(SINCE, UNTIL)
    yield Question(SINCE + timedelta(minutes=17), UNTIL - timedelta(hours=7, seconds=1))
    yield Question(SINCE, UNTIL, user_id=USERS[0])
    yield Question(SINCE, UNTIL, model=MODELS[1])
    yield Question(SINCE, UNTIL, tool="search")
    yield Question(SINCE, UNTIL, user_id=USERS[1], model=MODELS[0], tool="clock")
    yield Question(SINCE, UNTIL, user_id="nobody@example.com")


def count(question: Question, **more: Any) -> int:
    """What the history list counts."""
    asked = {"user_id": question.user_id, "model": question.model, "tool": question.tool}
    times = {"since": question.since, "until": question.until}
    return history.count(TurnFilters(**{**asked, **times, **more}))


def test_it_counts_what_the_history_list_counts() -> None:
    sample()
    for question in questions():
        agrees(question, analyse(question, SLOTS))


def agrees(question: Question, found: Analysis) -> None:
    """Every count of an analysis is that of the history list with the filters it links to."""
    assert found.turns == count(question)
    assert found.outcomes == {name: count(question, outcome=name) for name in found.outcomes}
    assert sum(found.outcomes.values()) == found.turns
    for slot in found.slots:
        times = {"since": max(slot.since, question.since), "until": min(slot.until, question.until)}
        assert sum(slot.outcomes.values()) == (count(question, **times) if times["since"] < times["until"] else 0)
        for name, turns in slot.outcomes.items():
            assert turns == count(question, outcome=name, **times)
    assert sum(sum(slot.outcomes.values()) for slot in found.slots) == found.turns
    for stage in found.funnel:
        assert sum(each.turns for each in stage.lost) == (
            count(question, stage=stage.key) if stage.key != "completed" else 0
        )
        for each in stage.lost:
            asked = {"stage": stage.key, "outcome": each.outcome}
            if each.error is not None:
                assert each.turns == count(question, error=each.error, **asked)
    keys = list(STAGES.values())
    for stage, key in zip(found.funnel, keys, strict=True):
        assert stage.key == key
        assert stage.reached == sum(count(question, stage=later) for later in keys[keys.index(key) :])
    for model in found.models:
        assert question.model in (None, model.name)
        assert model.turns == count(question, model=model.name)
    for user in found.users:
        assert question.user_id in (None, user.name)
        assert user.turns == count(question, user_id=user.name)
    for tool in found.tools:
        if question.tool in (None, tool.tool):
            assert tool.turns == count(question, tool=tool.tool)
    for problem in found.problems:
        assert problem.turns == count(question, error=problem.code)
        assert problem.outcomes == {
            name: count(question, error=problem.code, outcome=name) for name in problem.outcomes
        }


def chosen(question: Question) -> list[Turn]:
    turns = Turn.objects.filter(started_at__gte=question.since, started_at__lt=question.until)
    wanted = {"user_id": question.user_id, "model": question.model}
    turns = turns.filter(**{name: value for name, value in wanted.items() if value is not None})
    called = InteractionFlow.objects.filter(checkpoint="tool_call", metadata__tool=question.tool).values("turn_id")
    return list(turns.filter(turn_id__in=called) if question.tool else turns)


def name_of(row: InteractionFlow, model_of: dict[uuid.UUID, str | None]) -> str | None:
    """What a step is told apart by, besides its checkpoint."""
    if row.checkpoint == "llm_complete":
        return model_of[row.turn_id]
    return row.metadata["tool"] if row.checkpoint == "tool_result" else None


def near(found: Percentiles, exact: list[float]) -> None:
    """Each percentile is within 1.1 % of the nearest rank's duration."""
    assert found.count == len(exact)
    for share, value in ((0.5, found.p50), (0.95, found.p95), (0.99, found.p99)):
        if not exact:
            assert value is None
        else:
            rank = sorted(exact)[math.ceil(share * len(exact)) - 1]
            assert value == pytest.approx(rank, rel=0.011)


def test_its_times_sums_and_calls_are_those_of_the_checkpoints() -> None:
    sample(seed=2)
    for question in questions():
        found, turns = analyse(question, SLOTS), chosen(question)
        near(found.turn, [turn.duration_ms for turn in turns if turn.duration_ms is not None])
        near(found.first_token, [turn.ttft_ms for turn in turns if turn.ttft_ms is not None])
        rows = list(InteractionFlow.objects.filter(turn_id__in=[turn.turn_id for turn in turns]))
        model_of = {turn.turn_id: turn.model for turn in turns}
        for step in found.steps:
            own = [row for row in rows if (row.checkpoint, name_of(row, model_of)) == (step.checkpoint, step.name)]
            near(step.time, [row.metadata["duration_ms"] for row in own])
            assert step.failures == sum(row.metadata["status"] in ("failed", "error") for row in own)
        measured = [row for row in rows if "duration_ms" in row.metadata and row.checkpoint != "flow_end"]
        assert sum(step.time.count for step in found.steps) == len(measured)
        for tool in found.tools:
            own = [row for row in rows if row.metadata.get("tool") == tool.tool]
            kinds = Counter((row.checkpoint, row.metadata["status"]) for row in own)
            assert tool.calls == kinds["tool_call", "started"]
            assert tool.failures == kinds["tool_result", "error"]
            near(tool.time, [row.metadata["duration_ms"] for row in own if row.checkpoint == "tool_result"])
        for spent in found.models + found.users:
            own_turns = [turn for turn in turns if spent.name in (turn.model, turn.user_id)]
            assert spent.input_tokens == sum(turn.input_tokens for turn in own_turns)
            assert spent.output_tokens == sum(turn.output_tokens for turn in own_turns)
            costs = [turn.cost_usd for turn in own_turns if turn.cost_usd is not None]
            assert spent.cost_usd == (sum(costs) if costs else None)
        assert (
            found.slowest
            == sorted(
                (turn for turn in turns if turn.duration_ms is not None),
                key=lambda turn: (-turn.duration_ms, turn.turn_id),
            )[:10]
        )


def test_it_answers_when_there_is_nothing() -> None:
    found = analyse(Question(SINCE, UNTIL), SLOTS)
    assert (found.turns, found.outcomes, found.steps, found.tools, found.slowest) == (0, {}, [], [], [])
    assert found.turn == Percentiles(0, None, None, None)
    assert [slot.outcomes for slot in found.slots] == [{}] * 5
    assert [stage.reached for stage in found.funnel] == [0] * 7


def test_it_keeps_the_order_of_the_checks_and_the_usual_first() -> None:
    sample()
    steps = analyse(Question(SINCE, UNTIL), SLOTS).steps
    assert [step.checkpoint for step in steps[:3]] == ["auth_check", "block_check", "usage_check"]
    tools = [step.time.count for step in steps if step.checkpoint == "tool_result"]
    assert tools == sorted(tools, reverse=True)
