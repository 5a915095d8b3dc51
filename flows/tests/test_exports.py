"""Turns to take along: what is in the file, who gets which, what is noted, and what a broken one looks like."""

import csv
import http.client
import io
import json
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import AsyncClient, Client

from flows import exports, history
from flows.history import TurnFilters
from flows.models import Turn
from flows.reader import NotYours
from flows.tests.rows import BEGIN, StoredTurn
from omni2.accounts.models import AccessLog
from omni2.database import in_database
from tests.people import issue_token
from tests.running import Running, eventually, running

POOL_SIZE = 3
HOSTILE = ["=1+1", "+49 30 1234", "-5", "@SUM(A1)", "\tx", "\rx", 'say "hi",\r\nplease', "naïve – ünïcode", "'quoted"]


def some_turn(user_id: str, question: str = "?", **more: Any) -> Turn:
    values: dict[str, Any] = {"session_id": "s", "started_at": BEGIN, "outcome": "completed", **more}
    return Turn.objects.create(turn_id=uuid.uuid4(), user_id=user_id, question=question, **values)


def many_turns(number: int, user_id: str = "bob@example.com") -> None:
    Turn.objects.bulk_create(
        Turn(
            turn_id=uuid.uuid4(),
            session_id="s",
            user_id=user_id,
            started_at=BEGIN - timedelta(seconds=each % 500),
            question=f"question {each}",
            outcome="completed" if each % 3 else "failed",
            duration_ms=each * 1.5,
            cost_usd=Decimal("0.00000001") * each,
        )
        for each in range(number)
    )


async def exported(user: Any, address: str) -> Any:
    """The answer, and its whole body."""
    client = AsyncClient()
    await in_database(client.force_login, user)
    answer = await client.get(address)
    if not answer.streaming:
        return answer, answer.content.decode()
    return answer, b"".join([part async for part in answer.streaming_content]).decode()


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def notes() -> list[AccessLog]:
    return list(AccessLog.objects.filter(action="history_exported").order_by("id"))


# --- what is in it ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
async def test_a_csv_file_holds_what_the_list_holds_in_its_order(august: Any) -> None:
    await in_database(many_turns, 2500)
    answer, text = await exported(august, "/flows/export?format=csv&outcome=failed&sort=-duration")
    assert answer["Content-Type"] == "text/csv; charset=utf-8"
    today = datetime.now(UTC).date()
    assert answer["Content-Disposition"] == f'attachment; filename="omni2-turns-{today}.csv"'
    assert "no-store" in answer["Cache-Control"]
    assert text.startswith(",".join(exports.COLUMNS) + "\r\n")
    assert text.endswith("\r\n")
    listed = await in_database(lambda: history.turns(TurnFilters(outcome="failed"), sort="-duration", limit=5000).rows)
    assert len(listed) == 834
    rows = rows_of(text)
    assert [row["turn_id"] for row in rows] == [str(turn.turn_id) for turn in listed]
    for row, turn in zip(rows, listed, strict=True):
        assert row == {name: "" if value is None else str(value) for name, value in exports.record(turn).items()}


@pytest.mark.django_db(transaction=True)
async def test_a_json_document_holds_the_same_turns_as_the_api(august: Any) -> None:
    await in_database(many_turns, 2100)
    _, text = await exported(august, "/flows/export?format=json")
    document = json.loads(text)
    assert document["count"] == len(document["turns"]) == 2100
    listed = await in_database(lambda: history.turns(TurnFilters(), limit=5000).rows)
    assert document["turns"] == [{**history.summary(turn), "question": turn.question} for turn in listed]


@pytest.mark.django_db(transaction=True)
async def test_an_export_goes_through_all_turns_for_a_short_word(august: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LOOKED_AT", 100)
    await in_database(many_turns, 1000)
    await in_database(some_turn, "bob@example.com", "ü", started_at=BEGIN - timedelta(days=1))
    _, text = await exported(august, "/flows/export?format=json&q=ü")
    assert [turn["question"] for turn in json.loads(text)["turns"]] == ["ü"]
    _, text = await exported(august, "/flows/export?format=csv&q=9")
    assert len(rows_of(text)) == 271


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("format", ["csv", "json"])
async def test_an_empty_export_is_a_valid_file(august: Any, format: str) -> None:
    _, text = await exported(august, f"/flows/export?format={format}&model=none")
    if format == "csv":
        assert text == ",".join(exports.COLUMNS) + "\r\n"
    else:
        assert json.loads(text) == {"turns": [], "count": 0}


@pytest.mark.django_db(transaction=True)
async def test_no_text_becomes_a_formula_and_none_is_lost(charlie: Any) -> None:
    for number, question in enumerate(HOSTILE):
        at = BEGIN - timedelta(seconds=number)
        await in_database(some_turn, charlie.user_id, question, started_at=at, model="=cmd", error="-x")
    _, text = await exported(charlie, "/flows/export?format=csv")
    rows = rows_of(text)
    for row, question in zip(rows, HOSTILE, strict=True):
        defused = question.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert row["question"] == ("'" + question if defused else question)
        assert (row["model"], row["error"]) == ("'=cmd", "'-x")
    _, text = await exported(charlie, "/flows/export?format=json")
    assert [turn["question"] for turn in json.loads(text)["turns"]] == HOSTILE


@pytest.mark.django_db(transaction=True)
async def test_turns_that_arrive_meanwhile_neither_repeat_nor_push_out_any(
    august: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "PAGE_ROWS", 10)
    await in_database(many_turns, 95)
    before = await in_database(lambda: {str(pk) for pk in Turn.objects.values_list("pk", flat=True)})
    export = exports.Export(august.pk, TurnFilters(), history.DEFAULT_SORT, "json")
    parts = []
    async for part in exports._stream(export):
        parts.append(part)
        if len(parts) < 12:
            await in_database(many_turns, 7)
    document = json.loads(b"".join(parts))
    ids = [turn["turn_id"] for turn in document["turns"]]
    assert len(ids) == len(set(ids)) == document["count"]
    assert before <= set(ids)


# --- whose --------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
async def test_a_user_takes_his_own_along_and_that_is_noted_nowhere(bob: Any, charlie: Any) -> None:
    await in_database(some_turn, bob.user_id, "bobs")
    await in_database(some_turn, charlie.user_id, "charlies")
    for address in ("/flows/export", f"/flows/export?user_id={charlie.user_id}"):
        _, text = await exported(charlie, address)
        assert [row["question"] for row in rows_of(text)] == ["charlies"]
    answer, _ = await exported(charlie, f"/flows/export?user_id={bob.user_id}")
    assert answer.status_code == 403
    assert await in_database(notes) == []


@pytest.mark.django_db(transaction=True)
async def test_what_is_taken_along_of_others_is_noted_at_the_beginning_and_at_the_end(august: Any, bob: Any) -> None:
    await in_database(many_turns, 1200)
    await exported(august, f"/flows/export?format=json&user_id={bob.user_id}&outcome=failed&since=2026-01-01")
    begun, ended = await in_database(notes)
    asked = {
        "opened": "turns",
        "format": "json",
        "user_id": bob.user_id,
        "outcome": "failed",
        "since": "2026-01-01T00:00:00.000000Z",
    }
    assert (begun.actor, begun.subject_user_id, begun.detail) == (august.user_id, bob.user_id, asked)
    assert ended.detail == {**asked, "rows": 400, "complete": True}


@pytest.mark.django_db(transaction=True)
async def test_it_ends_when_the_right_is_withdrawn_on_the_way(august: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PAGE_ROWS", 10)
    await in_database(many_turns, 30)
    stream = exports._stream(exports.Export(august.pk, TurnFilters(user_id="bob@example.com"), "-started", "csv"))
    assert len([await anext(stream) for _ in range(2)]) == 2
    await in_database(august.groups.clear)
    with pytest.raises(NotYours):
        await anext(stream)
    await _until_noted(2)
    assert (await in_database(notes))[-1].detail["rows"] == 10
    assert (await in_database(notes))[-1].detail["complete"] is False


async def _until_noted(limit_s: float) -> None:
    import asyncio

    async with asyncio.timeout(limit_s + 20):
        while not await in_database(AccessLog.objects.exists):
            await asyncio.sleep(0.02)


@pytest.mark.django_db
def test_bad_filters_are_refused_before_anything_is_sent(august: Any) -> None:
    client = Client()
    client.force_login(august)
    for query in ("format=xml", "outcome=x", "sort=question", "range=x", "slower_ms=soon", "user_id=%00"):
        assert client.get(f"/flows/export?{query}").status_code == 400, query
    api = Client(headers={"Authorization": f"Bearer {issue_token(august)}"})
    for field, value in (("format", "xml"), ("outcome", "x"), ("sort", "question"), ("slower_ms", "-1")):
        answer = api.get("/api/v1/turns/export", {field: value})
        assert answer.status_code == 400
        assert list(answer.json()) == [field]
    assert not AccessLog.objects.exists()


# --- on a real server ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def omni2(request: pytest.FixtureRequest) -> Iterator[Running]:
    before = os.environ.get("OMNI2_TEST_SERVER", "")
    os.environ["OMNI2_TEST_SERVER"] = request.param
    try:
        with running(persisters=0, DATABASE_POOL_SIZE=str(POOL_SIZE)) as started:
            started.create_user("august@example.com", "August Möbius", "auditors")
            yield started
    finally:
        os.environ["OMNI2_TEST_SERVER"] = before


def asked(omni2: Running, address: str) -> http.client.HTTPResponse:
    place = urlsplit(omni2.url)
    connection = http.client.HTTPConnection(str(place.hostname), place.port, timeout=60)
    token = omni2.create_token("august@example.com")
    connection.request("GET", address, headers={"Authorization": f"Bearer {token}"})
    return connection.getresponse()


def last_note(omni2: Running) -> Any:
    found = omni2.sql("SELECT detail FROM access_log WHERE action = 'history_exported' ORDER BY id DESC LIMIT 1")
    return found[0][0] if found else {}


@pytest.mark.slow
def test_thousands_of_turns_arrive_whole(omni2: Running) -> None:
    omni2.orm(Turn.objects.all().delete)
    omni2.orm(many_turns, 6000)
    text = asked(omni2, "/api/v1/turns/export").read().decode()
    assert len({row["turn_id"] for row in rows_of(text)}) == 6000
    document = json.loads(asked(omni2, "/api/v1/turns/export?format=json&sort=cost").read())
    assert document["count"] == len(document["turns"]) == 6000
    costs = [turn["cost_usd"] for turn in document["turns"]]
    assert costs == sorted(costs)
    eventually(lambda: last_note(omni2).get("rows") == 6000, "noted")


@pytest.mark.slow
def test_open_exports_hold_no_connection(omni2: Running) -> None:
    """More of them than there are connections, all of them standing: others are served."""
    omni2.orm(Turn.objects.all().delete)
    omni2.orm(many_turns, 8_000)
    standing = [asked(omni2, "/api/v1/turns/export") for _ in range(POOL_SIZE + 2)]
    assert {len(answer.read(100)) for answer in standing} == {100}
    assert asked(omni2, "/api/v1/turns?limit=1").status == 200
    for answer in standing:
        answer.close()


@pytest.mark.slow
def test_a_client_that_leaves_ends_it_and_that_is_noted(omni2: Running) -> None:
    omni2.orm(Turn.objects.all().delete)
    omni2.orm(many_turns, 10_000)
    answer = asked(omni2, "/api/v1/turns/export?format=json")
    assert len(answer.read(2000)) == 2000
    answer.close()
    eventually(lambda: last_note(omni2).get("complete") is False, "noted")
    assert 0 <= last_note(omni2)["rows"] < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("format", ["csv", "json"])
def test_an_export_that_breaks_on_the_way_does_not_look_whole(omni2: Running, format: str) -> None:
    omni2.orm(Turn.objects.all().delete)
    omni2.orm(many_turns, 2500)
    # the last row in this order cannot be read
    omni2.sql(
        "INSERT INTO turns (turn_id, session_id, user_id, started_at, outcome, question, checkpoints, tool_calls,"
        " input_tokens, output_tokens) VALUES (gen_random_uuid(), 's', 'x', '0044-03-15 BC', 'failed', '', 0, 0, 0, 0)"
    )
    answer = asked(omni2, f"/api/v1/turns/export?format={format}")
    assert answer.status == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionError)) as broken:
        answer.read()
    if isinstance(broken.value, http.client.IncompleteRead) and format == "json":
        with pytest.raises(ValueError, match=r"."):
            json.loads(broken.value.partial)
    eventually(lambda: last_note(omni2).get("complete") is False, "noted")
    assert last_note(omni2)["rows"] == 2000
    # and the server goes on: with others, and with looking after its requests
    omni2.sql("DELETE FROM turns WHERE user_id = 'x'")
    assert json.loads(asked(omni2, "/api/v1/turns/export?format=json").read())["count"] == 2500


def test_it_is_a_turns_own_question_that_is_taken_along(db: None) -> None:
    StoredTurn("bob@example.com", question="what time is it?").with_tool("clock").end()
    (turn,) = history.turns(TurnFilters()).rows
    assert list(exports.record(turn)) == list(exports.COLUMNS)
    assert exports.record(turn)["question"] == "what time is it?"
