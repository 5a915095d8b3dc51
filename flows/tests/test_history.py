"""Lists of checkpoints and turns: the right ones, in order, none skipped and none twice."""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from flows import history
from flows.history import RUNNING, FlowFilters, TurnFilters
from flows.models import InteractionFlow, Turn
from flows.tests.rows import BEGIN, StoredTurn, bare_row, tick

pytestmark = pytest.mark.django_db
BOB = "bob@example.com"


def all_pages(ask: Callable[[str | None], history.Page[Any]], between: Callable[[], None] = lambda: None) -> list[Any]:
    """Every row that paging gives, with something happening between the pages."""
    rows, cursor = [], None
    while True:
        page = ask(cursor)
        rows += page.rows
        between()
        if page.next is None:
            return rows
        cursor = page.next


def flow_ids(filters: FlowFilters, **how: Any) -> list[str]:
    return [str(row.flow_id) for row in history.flows_of(BOB, filters, **how).rows]


# --- the shape ----------------------------------------------------------------------------------


def test_it_gives_a_checkpoint_in_its_one_shape() -> None:
    turn = StoredTurn(BOB)
    call = turn.add("tool_call", turn.root, tool="clock", number=1, fraction=1.5, none=None, list=[1, {"a": True}])
    (row,) = history.flows_of(BOB, FlowFilters(checkpoint="tool_call")).rows
    stored = InteractionFlow.objects.get(flow_id=call)
    assert history.as_wire(row) == {
        "flow_id": call,
        "user_id": BOB,
        "session_id": turn.session_id,
        "turn_id": turn.turn_id,
        "checkpoint": "tool_call",
        "parent_id": turn.root,
        "metadata": {"tool": "clock", "number": 1, "fraction": 1.5, "none": None, "list": [1, {"a": True}]},
        "created_at": stored.created_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    }
    assert history.as_wire(stored) == history.as_wire(row)


def test_it_writes_six_digits_and_z_also_for_a_whole_second() -> None:
    assert history.wire_time(datetime(26, 1, 2, 3, 4, 5, tzinfo=UTC)) == "0026-01-02T03:04:05.000000Z"
    assert history.wire_time(datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T22:00:00.000000Z"


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        (None, {}),
        ("null", {}),
        ("[1, 2]", {"value": [1, 2]}),
        ('"word"', {"value": "word"}),
        ('{"n": 1.5e400}', {"n": 15 * 10**399}),
        ('{"n": 1e-400}', {"n": 0.0}),
        ('{"n": ' + "1" * 400 + ".5}", {"n": None}),
        ('{"n": ' + "1" * 5000 + "}", {"_cut": True}),
        ('{"n": ' + "[" * 3000 + "]" * 3000 + "}", {"_cut": True}),
    ],
)
def test_it_can_read_whatever_an_insert_from_outside_stored(stored: str | None, given: dict[str, Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO interaction_flows (user_id, session_id, checkpoint, metadata) VALUES (%s, 's', 'own', %s)",
            [BOB, stored],
        )
    (row,) = history.flows_of(BOB, FlowFilters()).rows
    assert history.as_wire(row)["metadata"] == given
    assert history.as_wire(row)["turn_id"] is None


@pytest.mark.parametrize("moment", ["infinity", "-infinity", "12000-01-01", "0044-03-15 BC"])
def test_it_is_not_stopped_by_a_moment_that_python_does_not_know(moment: str) -> None:
    known = bare_row(BOB)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO interaction_flows (user_id, session_id, checkpoint, created_at) VALUES (%s, %s, 'own', %s)",
            [BOB, known.session_id, moment],
        )
    assert history.flows_of(BOB, FlowFilters()).rows == [known]
    found = history.session(known.session_id)
    assert found is not None
    assert found.rows == [known]


def test_it_leaves_internal_metadata_out_for_those_who_may_not_see_it() -> None:
    turn = StoredTurn(BOB)
    turn.add("block_check", turn.root, status="failed", message="Ask the help desk.", reason="case 4711")
    row = history.flows_of(BOB, FlowFilters(checkpoint="block_check")).rows[0]
    assert history.as_wire(row)["metadata"]["reason"] == "case 4711"
    assert history.as_wire(row, internal=False)["metadata"] == {"status": "failed", "message": "Ask the help desk."}


def test_it_sums_a_turn_up() -> None:
    turn = StoredTurn(BOB, question="what time is it?").with_tool("clock").end()
    (row,) = history.turns(TurnFilters(user_id=BOB)).rows
    summary = history.summary(row)
    assert summary | {"started_at": "", "ended_at": ""} == {
        "turn_id": turn.turn_id,
        "session_id": turn.session_id,
        "user_id": BOB,
        "started_at": "",
        "ended_at": "",
        "duration_ms": 12.5,
        "outcome": "completed",
        "model": "m-1",
        "checkpoints": 6,
        "tool_calls": 1,
        "input_tokens": 3,
        "output_tokens": 4,
        "cost_usd": 0.25,
        "ttft_ms": 1.5,
        "error": None,
    }
    json.dumps(summary)


# --- a user's checkpoints -----------------------------------------------------------------------


def test_it_lists_the_newest_first_and_by_id_within_one_moment() -> None:
    at = tick()
    rows = [bare_row(BOB, created_at=at, flow_id=uuid.UUID(int=number)) for number in (2, 9, 5)]
    newer = bare_row(BOB)
    bare_row("somebody@example.com")
    expected = [newer.flow_id, *sorted((row.flow_id for row in rows), reverse=True)]
    assert flow_ids(FlowFilters()) == [str(flow_id) for flow_id in expected]


def test_it_filters_by_time_including_since_and_excluding_until() -> None:
    rows = [bare_row(BOB) for _ in range(4)]
    since, until = rows[1].created_at, rows[3].created_at
    assert flow_ids(FlowFilters(since=since, until=until)) == [str(rows[2].flow_id), str(rows[1].flow_id)]


def test_it_filters_by_checkpoint_and_by_the_outcome_of_the_turn() -> None:
    done = StoredTurn(BOB).with_tool("clock").end()
    StoredTurn(BOB).with_tool("clock").end("failed")
    StoredTurn(BOB).with_tool("clock")
    bare_row(BOB, checkpoint="tool_call")
    (row,) = history.flows_of(BOB, FlowFilters(checkpoint="tool_call", outcome="completed")).rows
    assert str(row.turn_id) == done.turn_id
    assert len(history.flows_of(BOB, FlowFilters(outcome="completed")).rows) == 6
    assert len(history.flows_of(BOB, FlowFilters(checkpoint="tool_call")).rows) == 4
    assert flow_ids(FlowFilters(checkpoint="never seen")) == []


def test_it_says_that_a_page_was_the_last() -> None:
    for _ in range(4):
        bare_row(BOB)
    assert history.flows_of(BOB, FlowFilters(), limit=4).next is None
    assert history.flows_of(BOB, FlowFilters(), limit=5).next is None
    assert history.flows_of(BOB, FlowFilters(), limit=3).next is not None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moments=some.lists(some.integers(0, 3), max_size=12),
    meanwhile=some.lists(some.lists(some.integers(-2, 6), max_size=3), max_size=12),
    limit=some.integers(1, 5),
)
def test_it_neither_skips_nor_repeats_what_was_stored_when_page_1_was_read(
    moments: list[int], meanwhile: list[list[int]], limit: int
) -> None:
    """Rows of equal moments, and rows that arrive between the pages, newer ones and late older ones."""
    user_id = f"{uuid.uuid4()}@example.com"

    def stored(moment: int) -> uuid.UUID:
        return bare_row(user_id, created_at=BEGIN + timedelta(microseconds=moment)).flow_id

    at_page_1 = [stored(moment) for moment in moments]
    arrivals = iter(meanwhile)
    seen = [
        row.flow_id
        for row in all_pages(
            lambda cursor: history.flows_of(user_id, FlowFilters(), limit=limit, cursor=cursor),
            between=lambda: [stored(moment) for moment in next(arrivals, [])] and None,
        )
    ]
    assert len(seen) == len(set(seen))
    assert set(at_page_1) <= set(seen)
    order = [(row.created_at, row.flow_id) for row in InteractionFlow.objects.filter(flow_id__in=seen)]
    assert seen == [flow_id for _, flow_id in sorted(order, reverse=True)]


# --- a session ----------------------------------------------------------------------------------


def test_it_gives_a_session_oldest_first_with_its_turns() -> None:
    first = StoredTurn(BOB).end()
    second = StoredTurn(BOB, first.session_id).with_tool("clock")
    own = bare_row(BOB, session_id=first.session_id)
    found = history.session(first.session_id)
    assert found is not None
    assert found.user_id == BOB
    assert [str(turn.turn_id) for turn in found.turns] == [first.turn_id, second.turn_id]
    assert [row.created_at for row in found.rows] == sorted(row.created_at for row in found.rows)
    assert len(found.rows) == 8
    assert found.rows[-1] == own


def test_it_keeps_two_users_apart_who_came_with_the_same_session_id() -> None:
    bobs = StoredTurn(BOB).end("refused")
    eves = StoredTurn("eve@example.com", bobs.session_id).end("refused")
    for user_id, turn in [(None, bobs), (BOB, bobs), ("eve@example.com", eves)]:
        found = history.session(bobs.session_id, user_id)
        assert found is not None
        assert found.user_id == turn.user_id
        assert {row.user_id for row in found.rows} == {turn.user_id}
        assert [str(each.turn_id) for each in found.turns] == [turn.turn_id]
    assert history.session(bobs.session_id, "charlie@example.com") is None
    assert history.session(str(uuid.uuid4())) is None


# --- turns --------------------------------------------------------------------------------------


def turn_ids(**filters: Any) -> list[str]:
    return [str(turn.turn_id) for turn in history.turns(TurnFilters(**filters)).rows]


def test_it_finds_turns_by_every_filter() -> None:
    plain = StoredTurn(BOB, question="Was kostet 100% Kaffee_mehl?").end()
    tool = StoredTurn(BOB, question="what time is it?").with_tool("clock").end("failed")
    running = StoredTurn("eve@example.com", question="WHAT Time?").with_tool("calculator")
    everything = [running.turn_id, tool.turn_id, plain.turn_id]
    assert turn_ids() == everything
    assert turn_ids(user_id=BOB) == [tool.turn_id, plain.turn_id]
    assert turn_ids(session_id=tool.session_id) == [tool.turn_id]
    assert turn_ids(outcome="failed") == [tool.turn_id]
    assert turn_ids(outcome=RUNNING) == [running.turn_id]
    assert turn_ids(model="m-1") == [running.turn_id, tool.turn_id]
    assert turn_ids(tool="clock") == [tool.turn_id]
    assert turn_ids(tool="cloc") == []
    assert turn_ids(q="what time") == [running.turn_id, tool.turn_id]
    assert turn_ids(q="100% kaffee_") == [plain.turn_id]
    assert turn_ids(q="100%i") == []
    assert turn_ids(q="Kaffee.mehl") == []
    begun = Turn.objects.get(turn_id=tool.turn_id).started_at
    assert turn_ids(since=begun) == [running.turn_id, tool.turn_id]
    assert turn_ids(until=begun) == [plain.turn_id]
    assert turn_ids(user_id=BOB, tool="clock", outcome="failed", q="it", model="m-1", since=begun) == [tool.turn_id]


def test_it_finds_a_tool_by_its_call_and_not_by_another_step_that_names_it() -> None:
    turn = StoredTurn(BOB)
    turn.add("own_step", turn.root, tool="clock")
    turn.add("tool_call", turn.root, tool="calculator")
    assert turn_ids(tool="clock") == []
    assert turn_ids(tool="calculator") == [turn.turn_id]


def test_it_pages_through_turns_that_began_in_the_same_moment() -> None:
    made = [
        Turn.objects.create(turn_id=uuid.uuid4(), session_id="s", user_id=BOB, started_at=BEGIN).turn_id
        for _ in range(7)
    ]
    seen = all_pages(lambda cursor: history.turns(TurnFilters(user_id=BOB), limit=2, cursor=cursor))
    assert [turn.turn_id for turn in seen] == sorted(made, reverse=True)


def test_it_takes_equal_times_for_equal_filters() -> None:
    for _ in range(3):
        bare_row(BOB)
    in_utc = FlowFilters(since=BEGIN)
    elsewhere = FlowFilters(since=BEGIN.astimezone(timezone(timedelta(hours=5))))
    cursor = history.flows_of(BOB, in_utc, limit=1).next
    assert len(history.flows_of(BOB, elsewhere, cursor=cursor).rows) == 2


# --- what it costs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "queries"),
    [
        (lambda: history.flows_of(BOB, FlowFilters(outcome="completed"), limit=2), 1),
        (lambda: history.turns(TurnFilters(tool="clock", q="xyz"), limit=2), 1),
        # one more, for how far it may look
        (lambda: history.turns(TurnFilters(tool="clock", q="x"), limit=2), 2),
        (lambda: history.session(str(uuid.uuid4()), BOB), 2),
    ],
)
def test_it_takes_no_query_per_row(ask: Callable[[], object], queries: int) -> None:
    for _ in range(3):
        StoredTurn(BOB, question="x").with_tool("clock").end()
    with CaptureQueriesContext(connection) as done:
        ask()
    assert len(done) == queries
