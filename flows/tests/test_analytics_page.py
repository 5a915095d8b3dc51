"""The page of figures: who may see it, what it is asked, and that each figure is the number of turns it leads to."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from zoneinfo import ZoneInfo

import pytest
from django.test import Client
from django.utils import timezone

from flows import analytics_query, history
from flows.analytics_figures import rate
from flows.history import TurnFilters
from flows.models import Turn
from flows.serializers import TurnQuery
from flows.store import store
from flows.tests.rows import StoredTurn
from omni2.accounts.models import AccessLog
from tests.random_turns import MODELS, TOOLS, documents

pytestmark = pytest.mark.django_db

PEOPLE = ["bob@example.com", "mira@example.com", "o'neil+x@example.com"]


def signed_in(user: Any, zone: str = "") -> Client:
    client = Client()
    client.force_login(user)
    if zone:
        client.cookies["zone"] = zone
    return client


@pytest.fixture
def reader(august: Any) -> Client:
    return signed_in(august)


def html_of(client: Client, address: str = "/analytics/") -> str:
    answer = client.get(address, follow=True)
    assert answer.status_code == 200, address
    return answer.content.decode()


def some_turns(count: int, *, hours: float = 23, seed: int = 1, **more: Any) -> None:
    now = timezone.now()
    made = documents(Random(seed), count, since=now - timedelta(hours=hours), until=now, users=PEOPLE, **more)
    store(made)


class _Figures(HTMLParser):
    """Every link that says how many turns are behind it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[int, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if (number := given.get("data-turns")) is not None:
            self.found.append((int(number), given["href"] or ""))


def figures(html: str) -> list[tuple[int, str]]:
    return _Figures(html).found


def behind(href: str) -> int:
    """How many turns the history list of this address has."""
    parts = urlsplit(href)
    assert parts.path == "/flows/"
    query = TurnQuery(data=dict(parse_qsl(parts.query, keep_blank_values=True)))
    assert query.is_valid(), (href, query.errors)
    return history.count(TurnFilters(**query.filters()))


def part(html: str, start: str, end: str = "</table>") -> str:
    return html.split(start, 1)[1].split(end, 1)[0]


def text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


# --- who --------------------------------------------------------------------------------------------


def test_it_is_for_those_who_may_read_everybodys_flows(august: Any, ada: Any, charlie: Any) -> None:
    assert Client().get("/analytics/").headers["Location"].startswith("/login/")
    for user, status in ((august, 200), (ada, 200), (charlie, 403)):
        assert signed_in(user).get("/analytics/").status_code == status
    assert "administrator can give it" in signed_in(charlie).get("/analytics/").content.decode()


def test_the_navigation_leads_to_it(august: Any, charlie: Any) -> None:
    assert 'href="/analytics/"' in html_of(signed_in(august), "/chat/")
    assert 'href="/analytics/"' not in html_of(signed_in(charlie), "/chat/")


def test_looking_is_noted_with_whom_and_what(reader: Client, august: Any, bob: Any) -> None:
    html_of(reader, f"/analytics/?user_id={bob.user_id}&tool=search&range=7d")
    seen = AccessLog.objects.get()
    assert (seen.actor, seen.action, seen.subject_user_id) == (august.user_id, "history_opened", bob.user_id)
    assert seen.detail["opened"] == "analytics"
    assert seen.detail["tool"] == "search"
    assert {"since", "until"} <= set(seen.detail)


def test_ones_own_figures_are_nobody_elses_business(reader: Client, august: Any) -> None:
    html_of(reader, f"/analytics/?user_id={august.user_id}")
    assert not AccessLog.objects.exists()


# --- the figures are the turns behind them ---------------------------------------------------------------


FILTERS = [
    {},
    {"range": "7d"},
    {"user_id": PEOPLE[2]},
    {"model": MODELS[3]},
    {"tool": TOOLS[4]},
    {"range": "1h"},
    {"range": "7d", "user_id": PEOPLE[0], "model": MODELS[0], "tool": TOOLS[3]},
]


@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: " ".join(filters) or "none")
@pytest.mark.parametrize("zone", ["", "Asia/Kathmandu"])
def test_every_figure_is_the_number_of_turns_its_link_leads_to(august: Any, filters: dict[str, str], zone: str) -> None:
    some_turns(250)
    some_turns(60, hours=0.9, seed=2)
    some_turns(250, hours=24 * 6, seed=3)
    html = signed_in(august, zone).get("/analytics/", filters).content.decode()
    found = figures(html)
    assert len(found) > 20
    assert [(number, href) for number, href in found if behind(href) != number] == []
    assert found[0][0] > 5, "there are turns"


def test_the_stages_add_up_and_so_do_the_slots(reader: Client) -> None:
    some_turns(300)
    html = html_of(reader)
    total = figures(part(html, 'class="tiles"', "</ul>"))[0][0]
    assert total == Turn.objects.filter(started_at__lt=timezone.now()).count() == 300
    rows = part(html, 'id="slots"').split("<tr>")[2:]
    assert len(rows) == 24
    assert sum(figures(row)[0][0] for row in rows if figures(row)) == total
    stages = re.findall(r'<tr data-stage="(\w+)">(.*?)</tr>', part(html, 'id="funnel"'), re.DOTALL)
    assert [name for name, _ in stages] == list(dict(stages))
    assert len(stages) == 7
    reached = [figures(row)[0][0] for _, row in stages]
    ended = [int(n) for _, row in stages for n in re.findall(r'is-sum" data-turns="(\d+)"', row)]
    assert reached == sorted(reached, reverse=True)
    assert sum(ended) + reached[-1] == total


def test_a_slot_counts_by_the_viewers_day(august: Any) -> None:
    """Half past eleven at night in Berlin is the day before in UTC's morning or not, never both."""
    at = datetime(2026, 6, 10, 22, 30, tzinfo=UTC)  # in Berlin 11 June, half past midnight
    store(documents(Random(4), 3, since=at, until=at, users=PEOPLE))
    asked = "/analytics/?since=2026-06-09T00:00&until=2026-06-13T00:00"
    days = {}
    for zone in ("Europe/Berlin", "", "no/such-zone"):
        rows = part(html_of(signed_in(august, zone), asked), 'id="slots"').split("<tr>")[2:]
        days[zone] = {text(row.split("</th>")[0]).strip(): figures(row) for row in rows}
    assert [day for day, found in days["Europe/Berlin"].items() if found] == ["Thu 11 Jun"]
    assert [day for day, found in days[""].items() if found] == ["Wed 10 Jun"]
    assert days["no/such-zone"].keys() == days[""].keys()
    assert list(days["Europe/Berlin"]) == ["Fri 12 Jun", "Thu 11 Jun", "Wed 10 Jun", "Tue 9 Jun"]


def test_slowest_first_and_linked_to_the_turn(reader: Client) -> None:
    some_turns(60)
    links = re.findall(r'<a href="(/flows/[^"]+#[^"]+)"', part(html_of(reader), 'id="slowest"', "</ol>"))
    slowest = Turn.objects.filter(duration_ms__isnull=False).order_by("-duration_ms")[:10]
    assert links == [f"/flows/{turn.session_id}/#{turn.turn_id}" for turn in slowest]


def test_it_compares_with_the_time_before(reader: Client) -> None:
    now = timezone.now()
    before = now - timedelta(hours=30)
    store(documents(Random(1), 4, since=before, until=before, users=PEOPLE, ways=["completed"]))
    store(documents(Random(2), 6, since=now - timedelta(hours=2), until=now, users=PEOPLE, ways=["completed"]))
    tiles = text(part(html_of(reader), 'class="tiles"', "</ul>"))
    assert tiles.strip().endswith("Turns 6 +50 % Completed 6 100 % +50 % Failed 0 0 % Refused 0 0 %")
    assert "4 in the 24 hours before" in html_of(reader)


# --- words ----------------------------------------------------------------------------------------------


def test_it_says_why_in_words_and_claims_no_percentile_of_a_few(reader: Client) -> None:
    now = timezone.now()
    store(documents(Random(1), 4, since=now - timedelta(hours=1), until=now, users=PEOPLE, ways=["over_limit"]))
    html = html_of(reader)
    assert "Refused: over the limit" in text(part(html, 'id="funnel"'))
    assert "Over the limit" in text(part(html, 'id="problems"'))
    durations = text(part(html, 'id="durations"'))
    assert "Whole turn 4 too few too few too few" in durations
    assert "p50 needs 5 values, there are 4" in html


def test_hostile_names_are_text(reader: Client) -> None:
    some_turns(300)
    html = html_of(reader)
    assert "<script>alert(1)" not in html
    assert 'onclick="x()"' not in html.replace("&quot;", "")
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    for tool in TOOLS:
        assert tool in text(part(html, 'id="tools"')).replace("< ", "<") or tool.startswith("<")
    for script in html.split("<script")[1:]:
        assert "src=" in script.split(">", 1)[0]


def test_a_name_that_no_filter_can_ask_for_is_text_without_a_link(reader: Client, bob: Any) -> None:
    StoredTurn(bob.user_id, question="?").with_tool(" padded ")
    now = timezone.now()
    Turn.objects.update(started_at=now)
    Turn.objects.update(outcome="vanished", error="e" * 120)
    html = html_of(reader)
    assert "vanished" in html
    assert "e" * 120 in html
    for number, href in figures(html):
        assert behind(href) == number
    assert "<span" in part(html, 'id="tools"').split('scope="row"')[1].split("padded")[0]


@pytest.mark.parametrize(
    ("number", "of", "said"),
    [(0, 10, "0 %"), (1, 3000, "<0.1 %"), (1, 80, "1.2 %"), (2999, 3000, "99.9 %"), (3, 3, "100 %"), (1, 3, "33 %")],
)
def test_a_share_is_nothing_or_all_only_when_it_is(number: int, of: int, said: str) -> None:
    assert rate(number, of).replace("\u00a0", " ") == said


# --- what is asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("range=5y", "error-range"),
        ("since=yesterday", "error-since"),
        ("until=2026-01-01", "error-since"),
        ("since=2026-01-02&until=2026-01-01", "error-until"),
        ("since=2999-01-01", "error-since"),
        ("since=2001-01-01", "error-since"),
        ("since=0001-01-01T00:00%2B23:00", "error-since"),
        ("model=" + "m" * 201, "error-model"),
        ("tool=%00", "error-tool"),
        ("user_id=" + "u" * 256, "error-user_id"),
        ("user_id=nobody@example.com", "error-user_id"),
        ("user_id=Xanthippe", "error-user_id"),
    ],
)
def test_what_is_wrong_is_said_at_its_field(reader: Client, query: str, field: str) -> None:
    html = html_of(reader, f"/analytics/?{query}")
    assert f'id="{field}"' in html
    assert 'class="tiles"' not in html
    assert not AccessLog.objects.exists()


def test_a_name_becomes_an_address_and_several_are_offered(reader: Client, bob: Any, charlie: Any, ada: Any) -> None:
    answer = reader.get("/analytics/", {"user_id": "bob k", "range": "7d"})
    assert answer.headers["Location"] == "/analytics/?range=7d&user_id=bob%40example.com"
    html = html_of(reader, "/analytics/?user_id=a&range=7d")
    assert "may be" in html
    assert "/analytics/?range=7d&amp;user_id=ada%40example.com" in html


def test_an_empty_field_and_a_local_time_get_their_one_spelling(august: Any) -> None:
    client = signed_in(august, "Europe/Berlin")
    answer = client.get("/analytics/?range=24h&user_id=&model=&since=2026-06-10T00:00&until=2026-06-12T00:00")
    assert answer.headers["Location"] == (
        "/analytics/?since=2026-06-09T22%3A00%3A00.000000Z&until=2026-06-11T22%3A00%3A00.000000Z"
    )
    again = client.get(answer.headers["Location"])
    assert again.status_code == 200
    assert 'name="since" value="2026-06-10T00:00:00"' in again.content.decode()


def test_no_turn_says_what_to_try(reader: Client, bob: Any) -> None:
    assert "No turn yet" in html_of(reader)
    now = timezone.now() - timedelta(hours=3)
    store(documents(Random(1), 2, since=now, until=now, users=[bob.user_id]))
    html = html_of(reader, "/analytics/?range=1h&model=gone")
    assert "No turn in this time" in html
    assert 'href="/analytics/?range=24h&amp;model=gone"' in html
    assert "Everybody, every model and tool" in html
    assert 'class="tiles"' in html_of(reader, "/analytics/?range=24h")


def test_filters_are_kept_under_a_name(reader: Client, august: Any, ada: Any) -> None:
    query = "range=7d&tool=search"
    answer = reader.post("/flows/views", {"page": "/analytics/", "query": query, "name": "Searches"})
    assert answer.headers["Location"] == f"/analytics/?{query}"
    html = html_of(reader, f"/analytics/?{query}")
    assert '<a class="view" href="/analytics/?range=7d&amp;tool=search" aria-current="page">Searches</a>' in html
    assert "Searches" not in html_of(signed_in(ada))


# --- hours and days ------------------------------------------------------------------------------------------


def borders(name: str, now: datetime, zone: str) -> list[datetime]:
    where = ZoneInfo(zone)
    since = analytics_query.began(name, now, where)
    length = analytics_query.RANGE_LENGTHS[name]
    slot = timedelta(minutes=5) if name == "1h" else timedelta(hours=1) if name == "24h" else timedelta(days=1)
    assert now - since <= length + timedelta(hours=1)
    return list(analytics_query.borders(since, now, slot, where))


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Cairo"])
@pytest.mark.parametrize("name", analytics_query.RANGES)
def test_slots_ascend_and_are_as_many_as_the_range_says(name: str, zone: str) -> None:
    random = Random(f"{name} {zone}")
    for _ in range(60):
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=random.uniform(1, 366 * 86400))
        found = borders(name, now, zone)
        assert found == sorted(set(found))
        expected = {"1h": 12, "24h": 24, "7d": 7, "30d": 30, "90d": 90}[name]
        assert len(found) - 1 in {expected, expected + 1}  # one more where a clock was set back half an hour
        for inner in found[1:-1]:
            local = inner.astimezone(ZoneInfo(zone))
            assert local.second == local.microsecond == 0


def test_the_day_on_which_clocks_are_set_back_has_25_hours() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    days = _days(datetime(2026, 10, 24, tzinfo=berlin), datetime(2026, 10, 27, tzinfo=berlin), berlin)
    assert [after - before for before, after in days] == [timedelta(hours=hours) for hours in (24, 25, 24)]


def _days(since: datetime, until: datetime, zone: ZoneInfo) -> Iterator[tuple[datetime, datetime]]:
    found = list(analytics_query.borders(since.astimezone(UTC), until.astimezone(UTC), timedelta(days=1), zone))
    return pairwise(found)
