"""Turns and checkpoints in the admin: looked up by those who may, changed by nobody."""

import uuid

import pytest
from django.test import Client

from flows.models import InteractionFlow, Turn
from flows.tests.rows import StoredTurn, bare_row
from omni2.accounts.models import AccessLog, User

pytestmark = pytest.mark.django_db
LISTS = ["/admin/flows/turn/", "/admin/flows/interactionflow/"]


@pytest.fixture
def as_auditor(client: Client, august: User) -> Client:
    august.is_staff = True
    august.save()
    client.force_login(august)
    return client


@pytest.mark.parametrize("url", LISTS)
def test_it_lists_what_is_stored_and_notes_the_look(as_auditor: Client, url: str) -> None:
    StoredTurn("bob@example.com").with_tool("<b id=x>").end("<b id=x>")
    bare_row("legacy@example.com", metadata=["bare"])
    answer = as_auditor.get(url, {"q": "bob@example.com"})
    assert answer.status_code == 200
    assert "bob@example.com" in answer.content.decode()
    assert "<b id=x>" not in answer.content.decode()
    line = AccessLog.objects.get()
    assert (line.actor, line.action) == ("august@example.com", "history_opened")
    assert line.detail["q"] == "bob@example.com"


@pytest.mark.parametrize("url", LISTS)
@pytest.mark.parametrize(
    "query",
    [
        {"checkpoint": "tool_call"},
        {"outcome__exact": "completed"},
        {"outcome__isnull": "True"},
        {"started_at_from_0": "2026-11-22", "started_at_from_1": "06:00:00"},
        {"created_at_from_0": "2026-11-22", "created_at_from_1": "x"},
        {"p": "3"},
        {"o": "1.-2"},
        {"q": "a' OR 1=1 --"},
    ],
)
def test_it_filters(as_auditor: Client, url: str, query: dict[str, str]) -> None:
    StoredTurn("bob@example.com").with_tool("clock").end()
    assert as_auditor.get(url, query, follow=True).status_code == 200


def test_it_shows_one_checkpoint_and_notes_whose(as_auditor: Client) -> None:
    turn = StoredTurn("bob@example.com")
    child = turn.add("own_step", turn.root, text="<img src=x onerror=alert(1)>")
    answer = as_auditor.get(f"/admin/flows/interactionflow/{child}/change/")
    assert answer.status_code == 200
    assert f"/admin/flows/interactionflow/{turn.root}/change/" in answer.content.decode()
    assert "<img src=x" not in answer.content.decode()
    assert AccessLog.objects.get().subject_user_id == "bob@example.com"


def test_it_finds_nothing_under_a_strange_id(as_auditor: Client) -> None:
    for strange in (str(uuid.uuid4()), "x", "_00"):
        assert as_auditor.get(f"/admin/flows/turn/{strange}/change/", follow=True).status_code in {200, 404}


def test_nobody_changes_anything(client: Client, ada: User) -> None:
    client.force_login(ada)
    turn = StoredTurn("bob@example.com").end()
    for address in (f"turn/{turn.turn_id}", f"interactionflow/{turn.root}"):
        assert client.post(f"/admin/flows/{address}/change/", {"user_id": "eve@example.com"}).status_code == 403
        assert client.post(f"/admin/flows/{address}/delete/", {"post": "yes"}).status_code == 403
    for kind in ("turn", "interactionflow"):
        assert client.get(f"/admin/flows/{kind}/add/").status_code == 403
        client.post(f"/admin/flows/{kind}/", {"action": "delete_selected", "_selected_action": turn.root})
    assert Turn.objects.filter(turn_id=turn.turn_id, user_id="bob@example.com").count() == 1
    assert InteractionFlow.objects.filter(turn_id=turn.turn_id, user_id="bob@example.com").count() == 2


@pytest.mark.parametrize("url", LISTS)
def test_it_is_closed_to_staff_without_the_right(client: Client, charlie: User, url: str) -> None:
    charlie.is_staff = True
    charlie.save()
    client.force_login(charlie)
    assert client.get(url).status_code == 403
    assert not AccessLog.objects.exists()
