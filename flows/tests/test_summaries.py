"""A turn's summary is what its rows say, in whatever order and portions they come."""

import json
import random
import struct
import uuid
from collections.abc import Iterable, Iterator
from importlib import import_module
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from flows.models import STAGES, InteractionFlow, Turn, tag, tool_tag
from flows.store import store
from flows.tests.rows import StoredTurn

pytestmark = pytest.mark.django_db
BOB = "bob@example.com"
Document = dict[str, Any]

NAMES = [
    "auth_check",
    "block_check",
    "usage_check",
    "llm_thinking",
    "llm_complete",
    "tool_call",
    "tool_result",
    "error",
    "own_step",
    "flow_end",
]
STATUSES = some.sampled_from(["started", "passed", "failed", "ok", "error", "cancelled", 7, None])
FACTS = some.fixed_dictionaries(
    {},
    optional={
        "status": STATUSES,
        "tool": some.sampled_from(["clock", "search", "", "ü" * 300, None]),
        "duration_ms": some.one_of(some.floats(0, 1e6, width=32), some.just("soon"), some.just(-1)),
        "ttft_ms": some.one_of(some.floats(0, 1e6, width=32), some.none()),
        "outcome": some.sampled_from(["completed", "failed", "refused"]),
    },
)


@some.composite
def turns(draw: some.DrawFn) -> list[Document]:
    """A turn's documents, each below an earlier one, with at most one flow_end."""
    steps = draw(some.lists(some.tuples(some.sampled_from(NAMES), FACTS), min_size=1, max_size=12))
    turn_id = uuid.UUID(int=draw(some.integers(0, 2**128 - 1)))
    made: list[Document] = []
    for number, (checkpoint, facts) in enumerate(steps):
        if checkpoint == "flow_end" and any(row["checkpoint"] == "flow_end" for row in made):
            continue
        parent = draw(some.sampled_from(made))["flow_id"] if made else None
        made.append(
            {
                "flow_id": str(uuid.UUID(int=(turn_id.int + number) % 2**128)),
                "user_id": BOB,
                "session_id": "s",
                "turn_id": str(turn_id),
                "checkpoint": checkpoint,
                "parent_id": parent,
                "metadata": facts,
                "created_at": f"2026-11-22T06:00:00.{number:06d}Z",
            }
        )
    return made


def send(documents: Iterable[Document]) -> int:
    return store([json.dumps(document).encode() for document in documents])


def number(value: Any) -> float | None:
    return max(value, 0) if isinstance(value, int | float) else None


def text(value: Any, length: int) -> str | None:
    return None if value is None else str(value)[:length]


def expected(rows: Iterable[Document]) -> dict[str, Any]:
    """Tags, stage and steps as their definitions say, from the rows."""
    tags: set[str] = set()
    stage = 0
    steps: list[tuple[str, float | None]] = []
    for row in rows:
        name, facts = row["checkpoint"], row["metadata"]
        status, tool, ms = text(facts.get("status"), 50), text(facts.get("tool"), 200), number(facts.get("duration_ms"))
        tags.add(tag(name))
        if status is not None:
            tags |= {tag(name, status), tag(None, status)}
        if name == "tool_call" and tool is not None:
            tags.add(tool_tag(tool))
        stage = max(stage, reached(name, facts))
        failed = status in ("failed", "error")
        if name == "tool_call":
            steps.append((f"c{tool or ''}", ms))
        elif name == "tool_result":
            steps.append((f"{'R' if failed else 'r'}{tool or ''}", ms))
        elif name != "flow_end" and (failed or ms is not None):
            steps.append((f"{'S' if failed else 's'}{name}", ms))
    return {"tags": tags, "stage": stage, "steps": in_any_order(steps)}


def reached(name: str, facts: dict[str, Any]) -> int:
    checks = {"auth_check": "signed_in", "block_check": "not_blocked", "usage_check": "within_limits"}
    keys = {"begun"}
    if name in checks and facts.get("status") == "passed":
        keys.add(checks[name])
    if name == "llm_thinking":
        keys.add("model_called")
    if name in ("llm_complete", "flow_end") and facts.get("ttft_ms") is not None:
        keys.add("first_token")
    if name == "flow_end" and facts.get("outcome") == "completed":
        keys.add("completed")
    return max(at for at, key in STAGES.items() if key in keys)


def in_any_order(steps: Iterable[tuple[str, float | None]]) -> list[tuple[str, float]]:
    return sorted((step, -1.0 if ms is None else single(ms)) for step, ms in steps)


def single(value: float) -> float:
    """In the four bytes the column has."""
    return struct.unpack("f", struct.pack("f", value))[0]


def kept(turn_id: str) -> dict[str, Any]:
    """The same columns as they are stored."""
    turn = Turn.objects.get(turn_id=turn_id)
    assert len(turn.steps) == len(turn.step_ms)
    assert len(turn.tags) == len(set(turn.tags))
    steps = in_any_order(zip(turn.steps, turn.step_ms, strict=True))
    return {"tags": set(turn.tags), "stage": turn.stage, "steps": steps}


def portions(rows: list[Document], chance: random.Random) -> Iterator[list[Document]]:
    """The rows in another order that the foreign key allows, in portions, some of them again."""
    left, sent = list(rows), set[str]()
    while left:
        ready = [row for row in left if row["parent_id"] is None or row["parent_id"] in sent]
        portion = chance.sample(ready, chance.randint(1, len(ready)))
        sent |= {row["flow_id"] for row in portion}
        left = [row for row in left if row["flow_id"] not in sent]
        again = [row for row in rows if row["flow_id"] in sent and chance.random() < 0.3]
        # within one portion a child may stand before its parent, and a row twice
        yield chance.sample([*portion, *again], len(portion) + len(again))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=turns(), chance=some.randoms(use_true_random=False))
@example(rows=[], chance=random.Random(1))
def test_it_is_what_the_rows_say_in_any_order_and_portions(rows: list[Document], chance: random.Random) -> None:
    Turn.objects.all().delete()
    InteractionFlow.objects.all().delete()
    stored, stages = 0, [0]
    for portion in portions(rows, chance):
        stored += send(portion)
        stages.append(Turn.objects.get().stage)
    assert stored == len(rows)
    assert stages == sorted(stages)
    if rows:
        assert kept(rows[0]["turn_id"]) == expected(rows)


def test_it_counts_several_turns_in_one_portion_each_for_itself() -> None:
    first = StoredTurn(BOB).with_tool("clock").end()
    second = StoredTurn(BOB)
    third = StoredTurn(BOB)
    assert Turn.objects.get(turn_id=first.turn_id).stage == 6
    both: list[Document] = [
        {
            "flow_id": str(uuid.uuid4()),
            "user_id": BOB,
            "session_id": turn.session_id,
            "turn_id": turn.turn_id,
            "checkpoint": "tool_result",
            "parent_id": turn.root,
            "metadata": {"tool": tool, "status": status, "duration_ms": 2},
            "created_at": "2026-11-22T06:00:01Z",
        }
        for turn, tool, status in [(second, "clock", "ok"), (third, "search", "error"), (second, "clock", "error")]
    ]
    send(both)
    assert kept(second.turn_id)["steps"] == [("Rclock", 2.0), ("rclock", 2.0)]
    assert kept(third.turn_id)["steps"] == [("Rsearch", 2.0)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=turns())
def test_its_migration_fills_in_what_the_store_would_have_made(rows: list[Document]) -> None:
    Turn.objects.all().delete()
    InteractionFlow.objects.all().delete()
    send(rows)
    Turn.objects.update(tags=[], stage=0, steps=[], step_ms=[])
    with connection.cursor() as cursor:
        cursor.execute(import_module("flows.migrations.0003_tags_and_steps").FILL_IN)
    assert kept(rows[0]["turn_id"]) == expected(rows)


def test_its_columns_have_defaults_for_whoever_inserts_a_turn_without_them() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO turns (turn_id, session_id, user_id, started_at, question, checkpoints, tool_calls,"
            " input_tokens, output_tokens) VALUES (gen_random_uuid(), 's', %s, now(), '', 1, 0, 0, 0)",
            [BOB],
        )
    turn = Turn.objects.get()
    assert (turn.tags, turn.stage, turn.steps, turn.step_ms) == ([], 0, [], [])


def plan(sql: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {sql}")
        return "\n".join(line for (line,) in cursor.fetchall())


def test_it_has_an_index_for_marks_for_words_and_for_the_slow() -> None:
    assert "idx_turns_tags" in plan("SELECT 1 FROM turns WHERE tags @> ARRAY['tclock']")
    assert "idx_turns_question" in plan("SELECT 1 FROM turns WHERE upper(question) LIKE '%COFFEE%'")
    assert "idx_turns_duration" in plan("SELECT 1 FROM turns WHERE duration_ms > 5 ORDER BY duration_ms DESC LIMIT 9")
