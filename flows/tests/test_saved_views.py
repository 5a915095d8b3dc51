"""Views under a name: kept, replaced, renamed, deleted, each its owner's alone."""

from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.core.exceptions import ValidationError
from django.test import Client

from flows.saved_views import NAME_LENGTH_MAX, VIEWS_MAX, SavedView

pytestmark = pytest.mark.django_db


def signed_in(user: Any, **more: Any) -> Client:
    client = Client(**more)
    client.force_login(user)
    return client


def kept(client: Client, name: str, query: str = "outcome=failed&range=24h", page: str = "/flows/") -> Any:
    return client.post("/flows/views", {"name": name, "page": page, "query": query})


def said(answer: Any) -> str:
    return " ".join(str(message) for message in get_messages(answer.wsgi_request))


def views_of(user: Any) -> list[tuple[str, str, str]]:
    return list(SavedView.objects.filter(owner=user).values_list("name", "page", "query"))


def test_a_view_leads_back_to_its_filters(charlie: Any) -> None:
    client = signed_in(charlie)
    answer = kept(client, "  Failed   today ", "outcome=failed&range=24h&cursor=abc&from=2026-11-22&q=a%26b")
    assert answer.status_code == 302
    assert answer["Location"] == "/flows/?outcome=failed&range=24h&q=a%26b"
    assert views_of(charlie) == [("Failed today", "/flows/", "outcome=failed&range=24h&q=a%26b")]
    shown = client.get("/flows/?outcome=failed&range=24h")
    assert "Failed today" in shown.content.decode()
    assert 'href="/flows/?outcome=failed&amp;range=24h&amp;q=a%26b"' in shown.content.decode()
    assert client.get(answer["Location"]).context["given"]["q"] == "a&b"


def test_a_view_knows_that_it_is_shown_whatever_the_order_of_the_address(charlie: Any) -> None:
    client = signed_in(charlie)
    page = client.get("/flows/?range=24h&outcome=failed&q=&cursor=")
    kept(client, "Mine", page.context["views"]["query"])
    (view,) = SavedView.objects.all()
    for address in (view.address, "/flows/?outcome=failed&range=24h", "/flows/?range=24h&outcome=failed&tool="):
        assert client.get(address).context["views"]["current"] == view.pk
    assert client.get("/flows/?outcome=failed").context["views"]["current"] is None


def test_the_same_name_replaces_the_filters_and_says_so(charlie: Any) -> None:
    client = signed_in(charlie)
    assert "is kept" in said(kept(client, "Mine"))
    assert "now shows these filters" in said(kept(client, "Mine", "tool=clock"))
    assert views_of(charlie) == [("Mine", "/flows/", "tool=clock")]


def test_a_view_is_renamed_and_deleted(charlie: Any) -> None:
    client = signed_in(charlie)
    kept(client, "Mine")
    kept(client, "Other", "tool=clock")
    view = SavedView.objects.get(name="Mine")
    back = {"page": "/flows/", "query": "tool=clock"}
    answer = client.post(f"/flows/views/{view.pk}/rename", {"name": "Renamed", **back})
    assert answer["Location"] == "/flows/?tool=clock"
    answer = client.post(f"/flows/views/{view.pk}/rename", {"name": "Other", **back})
    assert "another view" in said(answer)
    assert [name for name, *_ in views_of(charlie)] == ["Other", "Renamed"]
    client.post(f"/flows/views/{view.pk}/delete", back)
    assert [name for name, *_ in views_of(charlie)] == ["Other"]


def test_two_people_may_use_one_name_and_neither_sees_the_others(charlie: Any, august: Any) -> None:
    for user in (charlie, august):
        kept(signed_in(user), "Mine", f"q={user.name}")
    assert len(views_of(charlie)) == len(views_of(august)) == 1
    other = SavedView.objects.get(owner=august)
    client = signed_in(charlie)
    for action in ("rename", "delete"):
        answer = client.post(f"/flows/views/{other.pk}/{action}", {"name": "Taken"})
        assert answer.status_code == 404
        assert client.post(f"/flows/views/{other.pk + 1000}/{action}").status_code == 404
        assert client.post(f"/flows/views/{'9' * 30}/{action}").status_code == 404
    assert views_of(august) == [("Mine", "/flows/", "q=August+Ferdinand+M%C3%B6bius")]
    assert f"/flows/views/{other.pk}/" not in client.get("/flows/").content.decode()


@pytest.mark.parametrize(
    ("name", "query", "page", "problem"),
    [
        ("", "q=x", "/flows/", "needs a name"),
        (" \t ", "q=x", "/flows/", "needs a name"),
        ("x" * (NAME_LENGTH_MAX + 1), "q=x", "/flows/", "at most 80"),
        ("a\0b", "q=x", "/flows/", "cannot be a name"),
        ("Mine", "q=" + "x" * 5000, "/flows/", "too long"),
        ("Mine", "q=x", "/admin/", "no views of this page"),
        ("Mine", "q=x", "https://elsewhere.example/", "no views of this page"),
    ],
)
def test_what_cannot_be_kept_is_said_and_leads_nowhere_else(
    charlie: Any, name: str, query: str, page: str, problem: str
) -> None:
    answer = kept(signed_in(charlie), name, query, page)
    assert problem in said(answer)
    assert answer["Location"].startswith("/flows/")
    assert views_of(charlie) == []


def test_nobody_has_more_than_fifty(charlie: Any, bob: Any) -> None:
    for number in range(VIEWS_MAX):
        SavedView.keep(charlie, f"view {number}", "/flows/", "q=x")
    with pytest.raises(ValidationError):
        SavedView.keep(charlie, "one more", "/analytics/", "range=7d")
    SavedView.keep(charlie, "view 7", "/flows/", "q=y")
    SavedView.keep(bob, "one more", "/flows/", "q=x")
    assert len(views_of(charlie)) == VIEWS_MAX


def test_a_page_shows_the_views_of_its_own(charlie: Any) -> None:
    SavedView.keep(charlie, "of the list", "/flows/", "q=x")
    SavedView.keep(charlie, "of analytics", "/analytics/", "range=7d")
    shown = signed_in(charlie).get("/flows/").context["views"]
    assert [view.name for view in shown["all"]] == ["of the list"]


def test_a_relative_time_stays_relative(charlie: Any) -> None:
    client = signed_in(charlie)
    page = client.get("/flows/?range=7d")
    assert page.context["views"]["query"] == "range=7d"


def test_a_form_of_a_stranger_is_refused(charlie: Any) -> None:
    client = signed_in(charlie, enforce_csrf_checks=True)
    assert kept(client, "Mine").status_code == 403
    for method in ("get", "put", "delete"):
        assert getattr(signed_in(charlie), method)("/flows/views").status_code == 405
    assert Client().post("/flows/views", {"name": "x"})["Location"].startswith("/login/")
    assert views_of(charlie) == []
