"""What the pages say of how long turns are kept."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client

from flows import retention
from flows.pruning import Pruner
from flows.tests.test_pruning import SECOND, turn

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("empty_log")]


def page(user: Any, address: str) -> str:
    client = Client()
    client.force_login(user)
    answer = client.get(address, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def pruned(days: int) -> None:
    old = datetime.now(UTC) - timedelta(days=days + 1)
    turn(old, old + SECOND)
    list(Pruner(datetime.now(UTC) - timedelta(days=days), "command").batches())


def test_history_says_at_its_end_how_long_turns_are_kept(
    bob: Any, august: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    turn(now, now + SECOND)
    for user in (bob, august):
        assert "Turns are kept for 90 days." in page(user, "/flows/")
    monkeypatch.setattr(retention, "_days", lambda: 1)
    assert "Turns are kept for 1 day." in page(august, "/flows/")
    monkeypatch.setattr(retention, "_days", lambda: 0)
    assert "are kept for" not in page(august, "/flows/")


def test_a_pruned_session_is_one_that_is_not_there(august: Any) -> None:
    old = datetime.now(UTC) - timedelta(days=9)
    session = turn(old, old + SECOND)
    client = Client()
    client.force_login(august)
    assert client.get(f"/flows/{session}/").status_code == 200
    list(Pruner(datetime.now(UTC) - timedelta(days=7), "command").batches())
    assert client.get(f"/flows/{session}/").status_code == 404
    assert client.get(f"/api/v1/flows/session/{session}").status_code == 404


def test_analytics_says_from_when_on_there_are_turns(august: Any) -> None:
    pruned(days=3)
    now = datetime.now(UTC)
    turn(now, now + SECOND)
    assert "are no longer kept" in page(august, "/analytics/?range=7d")
    assert "are no longer kept" not in page(august, "/analytics/?range=24h")


def test_the_ledger_says_what_was_deleted(olga: Any) -> None:
    assert "None was deleted yet." in page(olga, "/ledger/")
    pruned(days=3)
    said = page(olga, "/ledger/?hours=168")
    assert "Turns are kept for 90 days" in said
    assert "The last time 1 turn from before" in said
    assert "are no longer kept: they are not in this account." in said
