"""A turn's summary is what its rows say, in whatever order and portions they come."""

import json
import random
import threading
import uuid
from collections.abc import Iterable, Iterator
from datetime import timedelta
from importlib import import_module
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from flows.models import InteractionFlow, Turn
from flows.store import store
from flows.tests.rows import BEGIN, StoredTurn
from flows.tests.summary import Document, stored_summaries, summary_of
from tests.random_turns import documents

pytestmark = pytest.mark.django_db
BOB = "bob@example.com"
IN_ORDER = {"model", "ttft_ms", "error"}
"""What hangs on the order of the checkpoints: exact, unless two writers store different parts of one turn in the very
same moment."""

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
        "model": some.sampled_from(["m1", "m2", "m" * 300, None]),
        "code": some.sampled_from(["llm_failed", "tool_failed", None]),
        "reason": some.sampled_from(["revoked", "usage_limit", None]),
        "input_tokens": some.one_of(some.integers(-5, 10**6), some.just("many")),
        "output_tokens": some.one_of(some.integers(0, 10**6), some.none()),
        "cost_usd": some.one_of(some.decimals(0, 50, places=10).map(float), some.none()),
    },
)
# what hangs on the order of the checkpoints, whenever it is said
TELLING = some.fixed_dictionaries(
    {
        "status": some.sampled_from(["failed", "ok"]),
        "ttft_ms": some.sampled_from([1.5, 2.5, 3.5]),
        "model": some.sampled_from(["m1", "m2", "m3"]),
        "code": some.sampled_from(["llm_failed", "tool_failed", "internal_error"]),
    }
)
IN_ORDER_NAMES = ["llm_thinking", "llm_complete", "error", "usage_check"]
STEPS = some.one_of(
    some.tuples(some.sampled_from(NAMES), FACTS), some.tuples(some.sampled_from(IN_ORDER_NAMES), TELLING)
)
# of the first checkpoint alone
ROOT = some.fixed_dictionaries(
    {},
    optional={
        "question": some.sampled_from(["why?", ""]),
        "process": some.just("0199aaaa-0000-7000-8000-00000000000a"),
    },
)


@some.composite
def turns(draw: some.DrawFn) -> list[Document]:
    """A turn's documents, each below an earlier one, with at most one flow_end."""
    steps = draw(some.lists(STEPS, min_size=1, max_size=12))
    turn_id = uuid.UUID(int=draw(some.integers(0, 2**128 - 1)))
    made: list[Document] = []
    steps[0] = ("auth_check", {**steps[0][1], **draw(ROOT)})
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


def only(names: Iterable[str], summary: dict[str, Any]) -> dict[str, Any]:
    return {name: summary[name] for name in names}


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
        assert stored_summaries() == {rows[0]["turn_id"]: summary_of(rows)}


@pytest.mark.django_db(transaction=True)
def test_it_is_what_the_rows_say_with_several_writers_of_the_same_turns() -> None:
    """Each has all of the rows, in portions and an order of its own: as after a take-over, or with Redis away."""
    rows = [
        json.loads(row)
        for row in documents(random.Random(5), 40, since=BEGIN, until=BEGIN + timedelta(hours=1), users=[BOB])
    ]
    turns_of: dict[str, list[Document]] = {}
    for row in rows:
        turns_of.setdefault(row["turn_id"], []).append(row)
    problems: list[BaseException] = []
    together = threading.Barrier(3)

    def write(seed: int) -> None:
        try:
            together.wait()
            for portion in portions(rows, random.Random(seed)):
                send(portion)
        except BaseException as problem:
            problems.append(problem)
        finally:
            connection.close()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert problems == []
    exact = summary_of(rows).keys() - IN_ORDER
    stored = stored_summaries()
    assert stored.keys() == turns_of.keys()
    for turn_id, of_it in turns_of.items():
        assert only(exact, stored[turn_id]) == only(exact, summary_of(of_it))


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
    summaries = stored_summaries()
    assert summaries[second.turn_id]["steps"] == {("Rclock", 2.0): 1, ("rclock", 2.0): 1}
    assert summaries[third.turn_id]["steps"] == {("Rsearch", 2.0): 1}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=turns())
def test_its_migration_fills_in_what_the_store_would_have_made(rows: list[Document]) -> None:
    Turn.objects.all().delete()
    InteractionFlow.objects.all().delete()
    send(rows)
    Turn.objects.update(tags=[], stage=0, steps=[], step_ms=[])
    with connection.cursor() as cursor:
        cursor.execute(import_module("flows.migrations.0003_tags_and_steps").FILL_IN)
    filled = ("tags", "stage", "steps")
    assert only(filled, stored_summaries()[rows[0]["turn_id"]]) == only(filled, summary_of(rows))


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
