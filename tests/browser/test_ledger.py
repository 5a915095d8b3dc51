"""The ledger as an operator reads it: that it adds up, that it does not and why, and without a script."""

import re
import urllib.parse
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Api, Visits
from tests.browser.test_the_road import LONG_MS, outcome_of
from tests.running import Running, eventually

OLGA = "olga@example.com"


@pytest.fixture
def turn(omni2: Running, api: Api, someone: Callable[[str], str]) -> str:
    """A turn that was answered, stored and counted."""
    answer = api.ask(someone("Bob Kahn"), "script:clock what time is it")
    turn_id = str(answer["turn_id"])
    eventually(lambda: outcome_of(omni2, turn_id), "stored")
    heard = (
        "SELECT 1 FROM serving_processes p JOIN turns t USING (process_id)"
        " WHERE turn_id = %s AND p.reported_at > t.ended_at"
    )
    eventually(lambda: omni2.sql(heard, turn_id), "its process has spoken since")
    return turn_id


@pytest.fixture
def spoilt(omni2: Running, turn: str) -> Iterator[str]:
    """The same, with a wrong number in its summary."""
    omni2.sql("UPDATE turns SET checkpoints = checkpoints + 3 WHERE turn_id = %s", turn)
    yield turn
    omni2.sql("UPDATE turns SET checkpoints = checkpoints - 3 WHERE turn_id = %s", turn)


def number(page: Page, row: str, name: str) -> int:
    return int(page.locator(f"{row} [data-name={name}]").first.inner_text().replace(",", ""))


def test_it_says_that_all_adds_up_and_leads_to_the_numbers(visit: Visits, turn: str) -> None:
    page = visit(OLGA, "/live/")
    page.get_by_role("link", name="Ledger").click()
    expect(page.get_by_role("heading", name="All adds up")).to_be_visible(timeout=LONG_MS)
    expect(page.get_by_text("The persister works")).to_be_visible()
    started = number(page, ".is-total", "started")
    assert started == sum(number(page, ".is-total", name) for name in ("stored", "running", "turns_given_up"))
    assert started > 0
    hour = page.locator("#hours .hour").first
    hour.get_by_role("link", expanded=False).click()
    expect(page).to_have_url(re.compile("open="))
    parts = page.locator("#hours .part")
    expect(parts.first).to_contain_text("let in, as the usage has it")
    shown = [int(cell.inner_text().replace(",", "")) for cell in parts.locator("[data-name=started]").all()]
    assert sum(shown) == number(page, ".hour", "started")
    page.go_back()
    expect(parts).to_have_count(0)


def test_it_leads_from_an_hour_to_its_turns(visit: Visits, turn: str) -> None:
    page = visit(OLGA, "/ledger/")
    page.locator("#hours .hour [data-name=stored] a").first.click()
    expect(page.locator(f'#turns [data-turn-id="{turn}"]')).to_be_visible(timeout=LONG_MS)
    asked = urllib.parse.parse_qs(urllib.parse.urlsplit(page.url).query)
    assert set(asked) >= {"since", "until"}


def test_it_names_what_does_not_add_up(visit: Visits, spoilt: str) -> None:
    page = visit(OLGA, "/ledger/")
    expect(page.get_by_role("heading", name="It does not add up")).to_be_visible(timeout=LONG_MS)
    problem = page.locator("#problems > li[data-kind=summary_differs]")
    expect(problem).to_contain_text("counts other checkpoints than it has")
    expect(problem.locator("code")).to_have_text(spoilt)
    expect(page.locator("#hours .hour.is-bad")).to_have_count(1)


def test_it_keeps_the_range_in_the_address(visit: Visits, turn: str) -> None:
    page = visit(OLGA, "/ledger/?hours=720")
    expect(page.get_by_role("link", name="30 days")).to_have_attribute("aria-current", "true")
    expect(page.get_by_text("in the last 30 days")).to_be_visible()
    page.get_by_role("link", name="7 days").click()
    expect(page).to_have_url(re.compile("hours=168"))
    page.goto("/ledger/?hours=25")
    expect(page.get_by_text("There is no range of “25” hours")).to_be_visible()


def test_it_is_read_without_a_script_and_in_the_viewers_zone(visit: Visits, turn: str) -> None:
    page = visit(OLGA, "/ledger/", java_script_enabled=False)
    expect(page.get_by_role("heading", name="All adds up")).to_be_visible(timeout=LONG_MS)
    page.locator(".opens").first.click()
    expect(page.locator("#hours .part").first).to_be_visible()
    kolkata = visit(OLGA, "/live/", timezone_id="Asia/Kolkata")
    kolkata.goto("/ledger/")
    expect(kolkata.locator("#hours .hour time").first).to_have_text(re.compile(r":30$"))


def test_it_shows_what_was_set_aside_and_how_to_take_it_up_again(visit: Visits, omni2: Running, turn: str) -> None:
    document = '{"flow_id": "x", "checkpoint": "tool_call", "metadata": {"arguments": "secret words"}}'
    letter = omni2.redis.xadd("omni2:dead", {"d": document, "reason": "no such uuid", "shard": 3})
    try:
        page = visit(OLGA, "/ledger/")
        expect(page.locator("#letters li")).to_contain_text(
            re.compile("1.*no such uuid.*tool_call 1.*shard 3", re.DOTALL)
        )
        expect(page.get_by_text("manage.py replay_dead_letters").first).to_be_visible()
        assert "secret words" not in page.content()
    finally:
        omni2.redis.xdel("omni2:dead", letter)
