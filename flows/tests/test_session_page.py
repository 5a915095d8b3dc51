"""The session page: what comes with it, what was said, what is beside it, and what one takes along."""

import csv
import io
import json
import math
import uuid
from typing import Any

import pytest
from django.test import Client

from flows import session_pages, transcript, words
from flows.capture import PREVIEW_CHARACTERS
from flows.models import InteractionFlow
from flows.session_export import COLUMNS, as_csv
from flows.tests.rows import StoredTurn, bare_row
from omni2.accounts.models import AccessLog

pytestmark = pytest.mark.django_db


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def opened(user: Any, turn: StoredTurn, query: str = "") -> Any:
    answer = signed_in(user).get(f"/flows/{turn.session_id}/{query}")
    assert answer.status_code == 200
    return answer


# --- what comes with the page -------------------------------------------------------------------------


def test_of_a_long_session_the_newest_turns_come_whole_and_the_others_as_lines(
    olga: Any, bob: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_pages, "FIRST_CHECKPOINTS", 5)
    session_id = str(uuid.uuid4())
    turns = [StoredTurn(bob.user_id, session_id, question=f"question {number}").end() for number in range(4)]
    data = opened(olga, turns[0]).context["data"]
    assert {row["turn_id"] for row in data["flows"]} == {turns[2].turn_id, turns[3].turn_id}
    assert [line["turn_id"] for line in data["lines"]] == [turns[0].turn_id, turns[1].turn_id]
    assert [line["question"] for line in data["lines"]] == ["question 0", "question 1"]

    asked = opened(olga, turns[0], f"?turn={turns[0].turn_id}").context["data"]
    assert turns[0].turn_id in {row["turn_id"] for row in asked["flows"]}
    grown = signed_in(olga).get(data["grow"] + f"&of={turns[1].turn_id}").json()["flows"]
    assert {row["turn_id"] for row in grown} == {turns[1].turn_id}


def test_a_turn_that_runs_comes_whole_however_long_the_session_is(
    olga: Any, bob: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_pages, "FIRST_CHECKPOINTS", 0)
    runs = StoredTurn(bob.user_id)
    ended = StoredTurn(bob.user_id, runs.session_id).end()
    data = opened(olga, runs).context["data"]
    assert {row["turn_id"] for row in data["flows"]} == {runs.turn_id}
    assert [line["turn_id"] for line in data["lines"]] == [ended.turn_id]


def test_a_row_of_no_turn_is_shown_too(olga: Any, bob: Any) -> None:
    row = bare_row(bob.user_id, checkpoint="left_over")
    html = signed_in(olga).get(f"/flows/{row.session_id}/").content.decode()
    assert 'data-checkpoint="left_over"' in html.split('id="without-script"')[1]


def test_what_belongs_to_a_checkpoint_of_another_session_does_not_come(olga: Any, bob: Any, charlie: Any) -> None:
    turn, other = StoredTurn(bob.user_id).end(), StoredTurn(charlie.user_id).end()
    grow = opened(olga, turn).context["data"]["grow"]
    assert signed_in(olga).get(f"{grow}&of={other.turn_id}").json() == {"flows": []}


def test_the_sessions_of_one_user_lead_to_each_other_by_time(olga: Any, bob: Any, charlie: Any) -> None:
    first, second = StoredTurn(bob.user_id).end(), StoredTurn(bob.user_id).end()
    StoredTurn(charlie.user_id).end()
    StoredTurn(bob.user_id, first.session_id).end()  # the first session goes on after the second began
    third = StoredTurn(bob.user_id).end()

    def beside(turn: StoredTurn) -> tuple[str | None, str | None]:
        found = opened(olga, turn).context["beside"]
        earlier, later = found["earlier"], found["later"]
        return earlier and earlier.session_id, later and later.session_id

    assert beside(first) == (None, second.session_id)
    assert beside(second) == (first.session_id, third.session_id)
    assert beside(third) == (second.session_id, None)


def test_the_turn_chosen_to_be_compared_is_kept_and_says_nothing_of_another_session(charlie: Any, bob: Any) -> None:
    own, other = StoredTurn(charlie.user_id).end(), StoredTurn(bob.user_id, question="bobs question").end()
    html = opened(charlie, own, f"?compare={other.turn_id}").content.decode()
    assert "A turn of another session is chosen" in html
    assert "bobs question" not in html
    assert f"/flows/compare/?a={other.turn_id}&amp;b={own.turn_id}" in html
    assert "chosen" not in opened(charlie, own, "?compare=nonsense").context["compare"]


# --- what was said ------------------------------------------------------------------------------------


def said(turn: StoredTurn) -> list[tuple[str, str, str, str]]:
    rows = InteractionFlow.objects.filter(turn_id=turn.turn_id).order_by("created_at")
    wire = [
        {
            "flow_id": str(row.flow_id),
            "checkpoint": row.checkpoint,
            "parent_id": row.parent_id and str(row.parent_id),
            "metadata": row.metadata,
        }
        for row in rows
    ]
    return [(line.part, line.state, line.text, line.result) for line in transcript.lines_of(wire)]


def test_it_tells_question_tools_and_answer(bob: Any) -> None:
    turn = StoredTurn(bob.user_id, question="how much?")
    thinking = turn.add("llm_thinking", turn.root, status="started", model="m-1", round=1)
    call = turn.add("tool_call", thinking, tool="search", arguments='{"office": "Oslo"}')
    failing = turn.add("tool_call", thinking, tool="convert")
    turn.add("tool_result", failing, status="error", error="timed out")
    turn.add("tool_result", call, status="ok", result="4")
    turn.add("llm_complete", thinking, status="ok", finish_reason="tool_call")
    again = turn.add("llm_thinking", turn.root, status="started", model="m-1", round=2)
    turn.add("llm_complete", again, status="ok", answer="four", finish_reason="stop")
    turn.end()
    assert said(turn) == [
        ("asked", "ok", "how much?", ""),
        ("tool", "ok", "office “Oslo”", "4"),
        ("tool", "failed", "", "timed out"),
        ("answer", "ok", "four", ""),
    ]


def test_it_tells_why_there_is_no_answer(bob: Any) -> None:
    blocked = StoredTurn(bob.user_id, question="may I?")
    blocked.add("block_check", blocked.root, status="failed", message="Enough for today.")
    blocked.end("refused")
    assert said(blocked)[1:] == [("problem", "refused", "Enough for today.", "")]

    left = StoredTurn(bob.user_id, question="may I?")
    thinking = left.add("llm_thinking", left.root, status="started", round=1)
    left.add("tool_call", thinking, tool="search")
    left.end("abandoned")
    assert said(left)[1:] == [
        ("tool", "open", "", "did not finish"),
        ("end", "left", "the process serving it went away · after 13 ms", ""),
    ]


def test_what_was_not_kept_is_said_to_be_missing_and_what_was_cut_is_marked(bob: Any) -> None:
    bare = StoredTurn(bob.user_id)
    thinking = bare.add("llm_thinking", bare.root, status="started", round=1)
    bare.add("llm_complete", thinking, status="ok", finish_reason="stop")
    assert [(part, state) for part, state, _, _ in said(bare)] == [("asked", "missing"), ("answer", "missing")]

    row = {"flow_id": "1", "checkpoint": "auth_check", "parent_id": None}
    for question, cut in (
        ("x" * (PREVIEW_CHARACTERS - 1) + "…", True),
        ("x" * PREVIEW_CHARACTERS, False),
        ("…", False),
    ):
        (line,) = transcript.lines_of([{**row, "metadata": {"status": "passed", "question": question}}])
        assert line.cut is cut


def test_words_of_any_metadata_raise_nothing() -> None:
    odd: list[Any] = [None, True, 0, -1.5, 1e300, 10**400, math.nan, "x", "", [], [1, {"a": None}], {}, {"tool": 1}]
    keys = (
        *("status", "method", "token", "reason", "message", "used", "limit", "limit_name", "resets_at", "offered"),
        *("total", "withheld", "round", "model", "finish_reason", "input_tokens", "cost_usd", "ttft_ms", "error"),
        *("arguments", "tool", "code", "outcome", "stopped_by", "duration_ms", "question", "answer", "result"),
    )
    for name in [*words.CHECKPOINTS, "odd"]:
        for value in odd:
            for status in ("failed", "ok", "error", value):
                metadata = {**dict.fromkeys(keys, value), "status": status}
                row = {"flow_id": "1", "checkpoint": name, "parent_id": None, "metadata": metadata}
                said = words.describe(row, row, over=True)
                assert isinstance(said.label + said.facts, str)
                transcript.lines_of([row])


# --- taken along --------------------------------------------------------------------------------------


def test_a_session_is_taken_along_as_json_and_csv_and_that_is_noted(august: Any, bob: Any) -> None:
    turn = StoredTurn(bob.user_id, question="how much?").with_tool("search").end()
    client = signed_in(august)
    whole = client.get(f"/flows/{turn.session_id}/export?format=json")
    assert f'filename="session-{turn.session_id}.json"' in whole.headers["Content-Disposition"]
    api = client.get(f"/api/v1/flows/session/{turn.session_id}").json()
    assert json.loads(whole.content) == {key: api[key] for key in ("session_id", "user_id", "turns", "flows")}

    table = client.get(f"/flows/{turn.session_id}/export?format=csv")
    assert table.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.content.decode())))
    assert [row["flow_id"] for row in rows] == [row["flow_id"] for row in api["flows"]]
    assert json.loads(rows[0]["metadata"]) == api["flows"][0]["metadata"]
    actions = AccessLog.objects.filter(actor=august.user_id, subject_user_id=bob.user_id).values_list(
        "action", flat=True
    )
    assert sorted(actions) == ["history_exported", "history_exported", "history_opened"]


def test_ones_own_is_taken_along_without_a_note_and_anothers_not_at_all(charlie: Any, bob: Any) -> None:
    own = StoredTurn(charlie.user_id)
    own.add("block_check", own.root, status="failed", reason="internal", message="No.")
    other = StoredTurn(bob.user_id).end()
    client = signed_in(charlie)
    answer = client.get(f"/flows/{own.session_id}/export?format=csv")
    assert answer.status_code == 200
    assert "internal" not in answer.content.decode()
    assert client.get(f"/flows/{other.session_id}/export").status_code == 404
    assert not AccessLog.objects.exists()


def test_no_cell_of_the_csv_is_a_formula() -> None:
    row = {
        "turn_id": None,
        "flow_id": "1",
        "parent_id": None,
        "created_at": "2026",
        "checkpoint": "=1+1",
        "metadata": {"tool": "@SUM(A1)", "model": "+1", "code": "-1", "round": -1, "status": ["=x"]},
    }
    head, cells = csv.reader(io.StringIO(as_csv([row])))
    line = dict(zip(head, cells, strict=True))
    assert tuple(head) == COLUMNS
    assert [line[name] for name in ("checkpoint", "tool", "model", "code", "round", "status")] == [
        *("'=1+1", "'@SUM(A1)", "'+1", "'-1", "-1"),
        '["=x"]',
    ]
