"""The figures agree with the history list, and the percentiles with exact ones."""

import json
import math
import random
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

pytestmark = pytest.mark.django_db
SINCE = datetime(2026, 11, 20, 0, 0, tzinfo=UTC)
UNTIL = SINCE + timedelta(hours=30)
SLOTS = [SINCE + timedelta(hours=each) for each in (0, 6, 12, 18, 24, 30)]
USERS = ("ann@example.com", "bob@example.com", "cem@example.com")
MODELS = ("m-small", "m-large")
TOOLS = ("clock", "search", "calculator")


class Sample:
    """Turns of every kind, a few hundred, some before and after the time that is asked about."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rows: list[dict[str, Any]] = []

    def turn(self, began: datetime) -> None:
        chance = self.chance
        self.user_id, self.session_id = chance.choice(USERS), str(uuid.UUID(int=chance.getrandbits(128)))
        self.at, self.turn_id = began, ""
        kind = chance.choice(["done"] * 5 + ["signed_out", "blocked", "limit", "failed", "left", "running", "stands"])
        if kind == "signed_out":
            root = self.add("auth_check", None, status="failed", reason="expired", duration_ms=self.ms())
            return self.end(root, "refused")
        root = self.add("auth_check", None, status="passed", question="how late?", duration_ms=self.ms())
        if kind == "blocked":
            self.add("block_check", root, status="failed", code="user_blocked", duration_ms=self.ms())
            return self.end(root, "refused")
        check = self.add("block_check", root, status="passed", duration_ms=self.ms())
        if kind == "limit":
            self.add("usage_check", check, status="failed", code="usage_limit", duration_ms=self.ms())
            return self.end(root, "refused")
        check = self.add("usage_check", check, status="passed", duration_ms=self.ms())
        if kind == "stands":
            return None
        model = chance.choice(MODELS)
        thinking = self.add("llm_thinking", check, status="started", model=model)
        for _ in range(chance.choice([0, 0, 1, 3])):
            self.call(thinking)
        if kind == "running":
            return None
        status = {"failed": "error", "left": "cancelled"}.get(kind, "ok")
        spoke = {"ttft_ms": self.ms()} if status == "ok" else {}
        cost = chance.choice([None, 0.25])
        tokens = {"input_tokens": chance.randint(1, 99), "output_tokens": chance.randint(1, 99)}
        self.add("llm_complete", thinking, status=status, duration_ms=self.ms(), cost_usd=cost, **tokens, **spoke)
        if kind == "failed":
            self.add("error", thinking, code=chance.choice(["llm_failed", "llm_timeout"]))
        return self.end(root, {"failed": "failed", "left": "disconnected"}.get(kind, "completed"), **spoke)

    def call(self, thinking: str) -> None:
        tool, status = self.chance.choice(TOOLS), self.chance.choice(["ok", "ok", "error", "cancelled"])
        call = self.add("tool_call", thinking, status="started", tool=tool)
        if self.chance.random() < 0.9:
            self.add("tool_result", call, status=status, tool=tool, duration_ms=self.ms())

    def ms(self) -> float:
        return round(math.exp(self.chance.gauss(4, 2)), 3)

    def end(self, root: str, outcome: str, **more: Any) -> None:
        self.add("flow_end", root, outcome=outcome, duration_ms=self.ms(), **more)

    def add(self, checkpoint: str, parent: str | None, /, **metadata: Any) -> str:
        flow_id = str(uuid.UUID(int=self.chance.getrandbits(128)))
        self.turn_id = self.turn_id or flow_id
        self.at += timedelta(milliseconds=1)
        self.rows.append(
            {
                "flow_id": flow_id,
                "user_id": self.user_id,
                "session_id": self.session_id,
                "turn_id": self.turn_id,
                "checkpoint": checkpoint,
                "parent_id": parent,
                "metadata": metadata,
                "created_at": self.at.isoformat(),
            }
        )
        return flow_id


def sample(seed: int = 1, turns: int = 400) -> None:
    made = Sample(seed)
    for _ in range(turns):
        made.turn(SINCE + timedelta(seconds=made.chance.uniform(-7200, 32 * 3600)))
    store([json.dumps(row).encode() for row in made.rows])


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
