"""The ledger's page and its API: for operators, in words and in numbers, also while something is away."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from flows.ledger_pages import ago
from flows.tests.ledger_cast import Served, persist, sql
from flows.tests.test_persister import _quick
from flows.tracker import FlowTracker, TurnTrack

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("empty_log")]

__all__ = ["_quick"]


@pytest.fixture
def as_olga(olga: Any, client: Client) -> Client:
    client.force_login(olga)
    return client


def a_turn() -> TurnTrack:
    """Answered, counted and stored."""

    async def one() -> TurnTrack:
        tracker = FlowTracker()
        served = Served(tracker)
        turn = await served.chat()
        await served.tell()
        await served.pulse.lane.close()
        await tracker.flusher.stop()
        return turn

    turn = asyncio.run(one())
    persist()
    return turn


def test_it_says_that_nothing_began(as_olga: Client) -> None:
    page = as_olga.get("/ledger/").content.decode()
    assert "No turn began in this time" in page
    assert "0 turns started in the last 24 hours: 0 stored, 0 running, 0 given up." in page


def test_it_says_that_all_adds_up(as_olga: Client) -> None:
    a_turn()
    page = as_olga.get("/ledger/").content.decode()
    assert "All adds up" in page
    assert "1 turn started in the last 24 hours: 1 stored, 0 running, 0 given up." in page
    assert 'href="/flows/?since=' in page


def test_it_names_what_does_not_add_up(as_olga: Client) -> None:
    turn = a_turn()
    sql("UPDATE turns SET checkpoints = 9")
    page = as_olga.get("/ledger/?hours=720").content.decode()
    assert "It does not add up" in page
    assert turn.turn_id in page
    answer = as_olga.get("/api/v1/ledger").json()
    assert answer["adds_up"] is False
    assert [problem["kind"] for problem in answer["problems"]] == ["summary_differs"]


def test_it_takes_the_right_to_read_history_for_the_links_into_it(client: Client, charlie: Any) -> None:
    from django.contrib.auth.models import Permission

    a_turn()
    charlie.user_permissions.add(Permission.objects.get(codename="operate", content_type__app_label="flows"))
    client.force_login(charlie)
    answer = client.get("/ledger/")
    assert answer.status_code == 200
    assert "/flows/?since=" not in answer.content.decode()
    assert client.get("/api/v1/ledger").status_code == 200


def test_it_says_so_while_redis_is_away(as_olga: Client, settings: Any) -> None:
    a_turn()
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    page = as_olga.get("/ledger/").content.decode()
    assert "Nothing is known to be missing" in page
    assert "Redis does not answer" in page
    answer = as_olga.get("/api/v1/ledger").json()
    assert (answer["certain"], answer["road"]["redis"]) == (False, "away")


def test_it_says_so_when_redis_is_switched_off(as_olga: Client, settings: Any) -> None:
    settings.REDIS_ENABLED = False
    page = as_olga.get("/ledger/").content.decode()
    assert "Redis is switched off" in page
    assert "All adds up" in page
    assert as_olga.get("/api/v1/ledger").json()["road"]["redis"] == "off"


def test_the_api_answers_the_sums_by_the_hour_and_by_the_process(as_olga: Client) -> None:
    a_turn()
    answer = as_olga.get("/api/v1/ledger").json()
    assert answer["adds_up"] is answer["certain"] is True
    (hour,) = answer["hours"]
    (process,) = hour["processes"]
    for sums in (answer["total"], hour, process):
        assert (sums["turns"]["started"], sums["turns"]["stored"], sums["turns"]["admitted"]) == (1, 1, 1)
        assert (sums["checkpoints"]["made"], sums["checkpoints"]["stored"]) == (4, 4)
    assert datetime.fromisoformat(hour["hour"]).minute == 0


def test_the_api_takes_whole_hours_that_hold_the_time(as_olga: Client) -> None:
    a_turn()
    now = datetime.now(UTC)
    asked = {"since": (now - timedelta(minutes=1)).isoformat(), "until": now.isoformat()}
    answer = as_olga.get("/api/v1/ledger", asked).json()
    assert answer["total"]["turns"]["started"] == 1
    assert answer["since"].endswith(":00:00.000000Z")
    assert as_olga.get("/api/v1/ledger", {"since": "0001-01-01", "until": "0001-01-02"}).json()["hours"] == []
    before = {"until": (now - timedelta(hours=2)).isoformat()}
    assert as_olga.get("/api/v1/ledger", before).json()["total"]["turns"]["started"] == 0


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"since": "yesterday"}, "since"),
        ({"until": "9999-99-99"}, "until"),
        ({"since": "2026-01-02", "until": "2026-01-01"}, "until"),
        ({"since": "2999-01-01"}, "since"),
        ({"since": "2025-01-01", "until": "2026-01-01"}, "since"),
        ({"until": "9999-12-31T23:59:59"}, "until"),
        ({"until": "0001-01-01T00:00:00"}, "until"),
    ],
)
def test_the_api_names_the_field_that_is_wrong(as_olga: Client, asked: dict[str, str], field: str) -> None:
    answer = as_olga.get("/api/v1/ledger", asked)
    assert answer.status_code == 400
    assert list(answer.json()) == [field]


def test_whatever_is_in_its_address_it_answers(as_olga: Client) -> None:
    a_turn()
    for asked in (
        "hours=",
        "hours=-1",
        "hours=1e9",
        "hours=24&open=%00",
        "open=<script>",
        "hours=168&open=2026-13-45T99",
    ):
        assert as_olga.get(f"/ledger/?{asked}").status_code == 200


def test_ages_are_said_in_words() -> None:
    assert [ago(seconds) for seconds in (-1, 59.9, 60, 3599, 7200, 200_000)] == [
        "0 s",
        "59 s",
        "1 min",
        "59 min",
        "2 h",
        "2 d",
    ]
