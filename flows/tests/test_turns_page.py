"""The table of turns as a page: what its address asks, what it offers next, what it asks for while open."""

import re
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs

import pytest
from django.test import Client
from django.utils import timezone

from flows import history, pages
from flows.models import Turn
from flows.tests.rows import StoredTurn
from flows.tests.test_exports import many_turns, some_turn
from omni2.accounts.models import AccessLog

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the form offers is kept for a minute: each test begins without."""
    monkeypatch.setattr(pages, "_occurring_of_all", None)


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def questions(answer: Any) -> list[str]:
    return [each["turn"].question for each in answer.context["turns"]]


# --- filters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "ms"),
    [
        ("1.5 s", 1500),
        ("1,5s", 1500),
        ("800 ms", 800),
        ("800", 800),
        ("2 min", 120_000),
        ("0.5 h", 1_800_000),
        ("1234.5 ms", 1234.5),
        ("90 s", 90_000),
    ],
)
def test_slower_than_is_typed_as_people_write_it_and_linked_in_milliseconds(august: Any, typed: str, ms: float) -> None:
    some_turn("bob@example.com", "equal", duration_ms=ms)
    some_turn("bob@example.com", "slower", duration_ms=ms + 0.5)
    answer = signed_in(august).get("/flows/", {"slower_ms": typed})
    assert questions(answer) == ["slower"]
    (chip,) = answer.context["chips"]
    assert float(parse_qs(answer.context["by_time"].removeprefix("?"))["slower_ms"][0]) == ms
    # what the field shows means the same again
    again = signed_in(august).get("/flows/", {"slower_ms": answer.context["given"]["slower_ms"]})
    assert again.context["by_time"] == answer.context["by_time"]
    assert chip["without"] == "?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slower_ms", "soon"),
        ("slower_ms", "-1"),
        ("slower_ms", "1 day"),
        ("range", "yesterday"),
        ("stage", "nowhere"),
        ("since", "x"),
        ("until", "x"),
        ("model", "x" * 201),
        ("tool", "a\0"),
        ("checkpoint", "x" * 51),
        ("status", "x" * 51),
        ("error", "x" * 101),
        ("session_id", "x"),
        ("user_id", "x" * 256 + "@"),
        ("q", "x" * 201),
        ("outcome", "done"),
        ("sort", "question"),
        ("cursor", "x"),
    ],
)
def test_what_cannot_be_is_said_at_its_field(august: Any, name: str, value: str) -> None:
    answer = signed_in(august).get("/flows/", {name: value})
    assert answer.status_code == 200
    assert list(answer.context["errors"]) == [name]
    html = answer.content.decode()
    if name in {"outcome", "sort", "cursor"}:
        assert re.search(r'role="alert".*?</div>', html, re.DOTALL)
    else:
        field = re.search(rf'name="{name}".*?</label>', html, re.DOTALL)
        assert field is not None
        assert "field-error" in field[0]
    assert "<tbody>" not in html


def test_every_filter_of_the_address_is_a_chip_with_the_way_without_it(august: Any, bob: Any) -> None:
    given = {
        "q": "what",
        "user_id": bob.user_id,
        "range": "24h",
        "slower_ms": "1500",
        "model": "m-1",
        "tool": "clock",
        "checkpoint": "usage_check",
        "status": "failed",
        "error": "usage_limit",
        "stage": "within_limits",
    }
    answer = signed_in(august).get("/flows/", {**given, "sort": "-cost", "outcome": "refused"})
    chips = {chip["name"]: chip for chip in answer.context["chips"]}
    assert set(chips) == set(given)
    said = {name: chip["value"] for name, chip in chips.items()}
    assert (said["user_id"], said["range"], said["slower_ms"]) == (bob.name, "Last 24 hours", "1.5 s")
    assert (said["error"], said["stage"]) == ("over the limit", "Within limits")
    for name, chip in chips.items():
        without = {key: values[0] for key, values in parse_qs(chip["without"].removeprefix("?")).items()}
        assert without == {
            **{key: value for key, value in given.items() if key != name},
            "sort": "-cost",
            "outcome": "refused",
        }


def test_outcomes_are_links_with_counts_for_the_other_filters(august: Any) -> None:
    for outcome in ("completed", "completed", "refused", None):
        some_turn("bob@example.com", "what", outcome=outcome)
    some_turn("bob@example.com", "else", outcome="failed")
    answer = signed_in(august).get("/flows/?q=what&outcome=refused")
    chips = {chip["value"]: chip for chip in answer.context["outcomes"]}
    counted = {value: chip["count"] for value, chip in chips.items() if chip["count"] != "0"}
    assert counted == {"": "4", "running": "1", "completed": "2", "refused": "1"}
    assert [value for value, chip in chips.items() if chip["is_current"]] == ["refused"]
    assert chips[""]["address"] == "?q=what"
    assert len(signed_in(august).get("/flows/" + chips["completed"]["address"]).context["turns"]) == 2


def test_counts_beyond_the_limit_say_so(august: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "COUNTED_AT_MOST", 5)
    monkeypatch.setattr(pages, "COUNTED_AT_MOST", 5)
    many_turns(12)
    counts = {one["value"]: one["count"] for one in signed_in(august).get("/flows/").context["outcomes"]}
    assert (counts[""], counts["completed"], counts["failed"]) == ("5+", "5+", "4")


def test_the_form_offers_what_occurs_to_whom_may_know(august: Any, charlie: Any) -> None:
    StoredTurn("bob@example.com").with_tool("secret_tool").end("failed")
    html = signed_in(august).get("/flows/").content.decode()
    assert '<option value="secret_tool">' in html
    assert '<option value="m-1">' in html
    assert "secret_tool" not in signed_in(charlie).get("/flows/").content.decode()


def test_a_name_that_may_be_two_people_is_asked_about_with_the_other_filters_kept(
    august: Any, django_user_model: Any
) -> None:
    for address in ("kim.a@example.com", "kim.b@example.com"):
        django_user_model.objects.create_user(address, name=f"Kim {address[4].upper()}")
    answer = signed_in(august).get("/flows/?user_id=kim&outcome=failed")
    assert [one["address"] for one in answer.context["people"]] == [
        "?user_id=kim.a%40example.com&outcome=failed",
        "?user_id=kim.b%40example.com&outcome=failed",
    ]
    assert not AccessLog.objects.exists()


# --- orders and pages ---------------------------------------------------------------------------------


def test_heads_sort_largest_first_and_then_the_other_way(august: Any) -> None:
    for tokens in (1, 3, 2):
        some_turn("bob@example.com", str(tokens), input_tokens=tokens)
    some_turn("bob@example.com", "running", input_tokens=9, outcome=None)
    client = signed_in(august)
    answer = client.get("/flows/")
    head = {one["name"]: one for one in answer.context["heads"]}["tokens"]
    assert head["direction"] == ""
    down = client.get("/flows/" + head["address"])
    assert questions(down) == ["3", "2", "1"]
    html = down.content.decode()
    assert re.search(r'<th [^>]*data-head="tokens" aria-sort="descending"', html)
    assert html.count("aria-sort") == 1
    assert "only turns that have ended" in html
    head = {one["name"]: one for one in down.context["heads"]}["tokens"]
    assert questions(client.get("/flows/" + head["address"])) == ["1", "2", "3"]
    assert len(questions(client.get("/flows/" + down.context["by_time"]))) == 4
    oldest = client.get("/flows/?sort=started")
    assert re.search(r'data-head="started" aria-sort="ascending"', oldest.content.decode())


def test_one_goes_forth_and_back_through_the_pages_of_a_relative_time(august: Any) -> None:
    start = timezone.now() - timedelta(hours=1)
    for number in range(130):
        some_turn("bob@example.com", f"{number:03d}", started_at=start + timedelta(seconds=number))
    client = signed_in(august)
    first = client.get("/flows/?range=24h")
    assert (first.context["previous"], first.context["first"]) == (None, None)
    second = client.get("/flows/" + first.context["next"])
    third = client.get("/flows/" + second.context["next"])
    assert third.context["next"] is None
    assert questions(first) + questions(second) + questions(third) == [f"{number:03d}" for number in range(129, -1, -1)]
    back = client.get("/flows/" + third.context["previous"])
    assert questions(back) == questions(second)
    assert back.context["first"] == "?range=24h"
    begin = client.get("/flows/" + back.context["previous"])
    assert questions(begin) == questions(first)
    assert (begin.context["previous"], begin.context["first"]) == (None, None)


def test_a_page_takes_few_queries_however_many_turns_it_shows(august: Any, django_assert_max_num_queries: Any) -> None:
    many_turns(60)
    client = signed_in(august)
    client.get("/flows/")
    with django_assert_max_num_queries(11):
        assert len(client.get("/flows/?sort=-duration").context["turns"]) == 50


def test_a_running_turn_leads_to_the_live_page_for_those_who_may_watch(olga: Any, august: Any, settings: Any) -> None:
    some_turn("bob+x@example.com", "runs", outcome=None)
    watch = 'href="/live/?user=bob%2Bx%40example.com"'
    assert watch in signed_in(olga).get("/flows/").content.decode()
    assert "/live/?user" not in signed_in(august).get("/flows/").content.decode()
    settings.REDIS_ENABLED = False
    assert "/live/?user" not in signed_in(olga).get("/flows/").content.decode()


@pytest.mark.parametrize(
    ("name", "user_id", "letters"),
    [
        ("Ada Lovelace", "a@x", "AL"),
        ("August Ferdinand Möbius", "a@x", "AM"),
        ("Plato", "a@x", "P"),
        ("", "aiko.sato@example.com", "AS"),
        ("", "x_y-z@example.com", "XZ"),
        ("(x) ---", "a@x", "?"),
        ("", "@", "?"),
    ],
)
def test_people_have_initials(name: str, user_id: str, letters: str) -> None:
    assert pages.initials({user_id: name} if name else {}, user_id) == letters


# --- while it is open ---------------------------------------------------------------------------------


def test_an_open_page_hears_what_is_new_and_what_has_ended(august: Any) -> None:
    running = some_turn("bob@example.com", "what runs", outcome=None)
    client = signed_in(august)
    news = client.get("/flows/?q=what").context["news"]
    assert client.get(news).json() == {"new": 0, "ended": []}
    noted = AccessLog.objects.count()
    for question in ("what is new", "something else"):
        some_turn("bob@example.com", question, started_at=timezone.now())
    Turn.objects.filter(pk=running.pk).update(
        outcome="failed", duration_ms=1500, error="llm_timeout", input_tokens=1200
    )
    heard = client.get(news).json()
    assert heard["new"] == 1
    (ended,) = heard["ended"]
    assert (ended["turn_id"], ended["code"], ended["took"], ended["tokens"]) == (
        str(running.pk),
        "failed",
        "1.5 s",
        "1,200",
    )
    assert ended["outcome"]["label"] == "Failed"
    assert ended["why"] == "the model did not answer in time"
    assert AccessLog.objects.count() == noted


def test_what_a_page_hears_is_only_for_whom_it_was_made(august: Any, charlie: Any, olga: Any) -> None:
    client = signed_in(august)
    news = client.get("/flows/").context["news"]
    assert Client().get(news).status_code == 401
    for other in (charlie, olga):
        assert signed_in(other).get(news).status_code == 403
    assert client.get(news + "x").status_code == 403
    assert client.get("/flows/news").status_code == 403
    august.groups.clear()
    assert signed_in(august).get(news).status_code == 403


def test_people_are_found_by_those_who_see_everybody(august: Any, charlie: Any, bob: Any) -> None:
    found = signed_in(august).get("/flows/people?q=kahn").json()
    assert found == {"people": [{"user_id": bob.user_id, "name": bob.name}]}
    for words in ("", " ", "%", "\0", "_" * 300):
        assert signed_in(august).get("/flows/people", {"q": words}).json() == {"people": []}
    assert signed_in(charlie).get("/flows/people?q=kahn").status_code == 403
    assert Client().get("/flows/people?q=kahn").status_code == 401


def test_a_page_that_is_not_full_says_how_far_it_looked_and_leads_further(
    august: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "LOOKED_AT", 5)
    many_turns(12)
    oldest = Turn.objects.order_by("started_at").first()
    assert oldest is not None
    Turn.objects.filter(pk=oldest.pk).update(question="Wie spät ist es in Köln, bitte?")
    client = signed_in(august)
    answer = client.get("/flows/", {"q": "ö"})
    text = answer.content.decode()
    assert "Looked as far as" in text
    assert "None of these holds “ö”" in text
    assert 'rel="next"' in text
    assert "Look further back" in text
    assert "No such turns" not in text
    assert answer.context["outcomes"][0]["count"] == "0+"
    assert "Counted in the newest 5 turns of the other filters" in text
    answer = client.get("/flows/" + answer.context["next"])
    assert questions(answer) == []
    assert "Look further back" in answer.content.decode()
    answer = client.get("/flows/" + answer.context["next"])
    assert questions(answer) == ["Wie spät ist es in Köln, bitte?"]
    assert "That was the last." in answer.content.decode()
    assert "Looked as far as" not in answer.content.decode()
    # and back
    answer = client.get("/flows/" + answer.context["previous"])
    assert questions(answer) == []
    assert "Look further" in answer.content.decode()
    by_cost = client.get("/flows/", {"q": "zz", "sort": "-cost"}).content.decode()
    assert "Looked at 5 turns in this order" in by_cost
