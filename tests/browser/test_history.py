"""The history page in a real browser: filters, chips, orders, pages, kept views, export, what is new, keys."""

import csv
import io
import json
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from django.utils import timezone
from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, WIDE, Api, Visits
from tests.browser.test_looks import overflowing
from tests.browser.test_the_road import LONG_MS, outcome_of
from tests.running import Running, eventually

AUGUST, OLGA = "august@example.com", "olga@example.com"
OUTCOMES = ("completed", "completed", "completed", "failed", "refused", "disconnected")


def store(user_id: str, number: int) -> None:
    """Turns of this user over the last hours, the newest first of all."""
    from flows.models import Turn, tag, tool_tag

    def turn(each: int) -> Turn:
        outcome = OUTCOMES[each % len(OUTCOMES)]
        return Turn(
            turn_id=uuid.uuid4(),
            session_id=str(uuid.uuid4()),
            user_id=user_id,
            started_at=timezone.now() - timedelta(minutes=each + 1),
            outcome=outcome,
            duration_ms=100.0 * each,
            question=f"question {each:03d}",
            model="m-1" if each % 2 else "m-2",
            input_tokens=each % 7,
            cost_usd="0.01",
            tool_calls=each % 3,
            error={"failed": "llm_timeout", "refused": "usage_limit"}.get(outcome),
            tags=[tag("tool_call"), tool_tag("clock")] if each % 3 else [],
        )

    Turn.objects.bulk_create(turn(each) for each in range(number))


@pytest.fixture
def mira(omni2: Running, someone: Callable[[str], str]) -> str:
    """Somebody with 130 turns."""
    user_id = someone("Mira Kovac")
    omni2.orm(store, user_id, 130)
    return user_id


def listed(page: Page) -> list[str]:
    return page.locator("#turns .what a").all_inner_texts()


def address(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def test_filters_become_an_address_without_what_is_empty_and_back_works(visit: Visits, mira: str) -> None:
    page = visit(AUGUST, "/flows/")
    page.get_by_label("User").fill(mira)
    page.get_by_role("textbox", name="Slower than").fill("1.5 s")
    page.get_by_text("More filters").click()
    page.get_by_label("Tool called").fill("clock")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".filter-chips li")).to_have_count(4)
    assert address(page) == {"user_id": mira, "slower_ms": "1500", "tool": "clock"}
    expect(page.locator(".filter-chips")).to_contain_text("User Mira Kovac")
    expect(page.locator(".filter-chips")).to_contain_text("Slower than 1.5 s")
    assert "question 016" in listed(page)
    assert "question 015" not in listed(page)

    page.get_by_role("link", name="Without: Slower than 1.5 s").click()
    expect(page.locator(".filter-chips li")).to_have_count(3)
    assert address(page) == {"user_id": mira, "tool": "clock"}
    page.go_back()
    expect(page.locator(".filter-chips li")).to_have_count(4)
    expect(page.get_by_role("textbox", name="Slower than")).to_have_value("1.5 s")
    page.get_by_role("link", name="Show all").click()
    expect(page.locator(".filter-chips")).to_have_count(0)
    assert address(page) == {}


def test_a_time_is_chosen_in_the_viewers_zone_and_asked_in_utc(visit: Visits, mira: str) -> None:
    page = visit(AUGUST, f"/flows/?user_id={mira}", timezone_id="Asia/Tokyo")
    page.get_by_text("More filters").click()
    page.get_by_label("From", exact=True).fill("2026-03-01T09:00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".filter-chips li")).to_have_count(3)
    assert address(page)["since"] == "2026-03-01T00:00:00.000Z"
    expect(page.get_by_label("From", exact=True)).to_have_value(re.compile("^2026-03-01T09:00"))
    # one or the other: the last hour, or from a time on
    page.locator('[name="range"]').select_option("24h")
    expect(page.locator(".filter-chips")).to_contain_text("Last 24 hours")
    assert address(page) == {"user_id": mira, "range": "24h"}


def test_outcomes_are_found_with_one_click(visit: Visits, mira: str) -> None:
    page = visit(AUGUST, f"/flows/?user_id={mira}")
    chips = page.get_by_role("navigation", name="Outcome")
    expect(chips.get_by_role("link", name="All 130")).to_have_attribute("aria-current", "true")
    expect(chips.get_by_role("link", name="Refused 21")).to_be_visible()
    chips.get_by_role("link", name="Failed 22").click()
    expect(page.locator("#turns tbody tr")).to_have_count(22)
    assert set(page.locator("#turns .outcome > span:last-child").all_inner_texts()) == {"Failed"}
    expect(page.locator("#turns .why").first).to_have_text("the model did not answer in time")
    expect(chips.get_by_role("link", name="All 130")).to_be_visible()


def test_one_sorts_and_pages_through_every_turn_once(visit: Visits, mira: str) -> None:
    page = visit(AUGUST, f"/flows/?user_id={mira}")
    page.get_by_role("link", name="Duration").click()
    head = page.get_by_role("columnheader", name="Duration")
    expect(head).to_have_attribute("aria-sort", "descending")
    seen = listed(page)
    for _ in range(2):
        page.get_by_role("link", name="Next").click()
        expect(page.get_by_role("link", name="Previous")).to_be_visible()
        expect(page.locator("#turns .what a").first).not_to_have_text(seen[-len(listed(page))] if seen else "")
        seen += listed(page)
    assert seen == [f"question {each:03d}" for each in range(129, -1, -1)]
    page.get_by_role("link", name="Previous").click()
    expect(page.locator("#turns .what a").first).to_have_text("question 079")
    page.get_by_role("link", name="First", exact=True).click()
    expect(page.locator("#turns .what a").first).to_have_text("question 129")
    page.get_by_role("link", name="Duration").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    expect(page.locator("#turns .what a").first).to_have_text("question 000")
    page.get_by_role("link", name="Sort by time").click()
    assert address(page) == {"user_id": mira}


def test_a_view_is_kept_found_replaced_and_deleted(visit: Visits, mira: str, someone: Callable[[str], str]) -> None:
    page = visit(AUGUST, f"/flows/?user_id={mira}&outcome=failed&range=24h")
    menu = page.locator("#views")
    menu.locator("> summary").click()
    page.get_by_label("Keep these filters as").fill("Mira's failures")
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_text("“Mira's failures” is kept.")).to_be_visible()
    page.goto("/flows/")
    page.get_by_role("navigation", name="Views").get_by_role("link", name="Mira's failures").click()
    expect(page.locator("#turns tbody tr")).to_have_count(22)
    assert address(page) == {"user_id": mira, "outcome": "failed", "range": "24h"}

    page.goto(f"/flows/?user_id={mira}&outcome=refused")
    menu.locator("> summary").click()
    menu.get_by_label("Change Mira's failures").click()
    menu.get_by_role("button", name="Replace by these filters").click()
    expect(page.get_by_text("now shows these filters")).to_be_visible()
    menu.locator("> summary").click()
    menu.get_by_label("Change Mira's failures").click()
    menu.get_by_label("Name of Mira's failures").fill("Mira's refusals")
    menu.get_by_role("button", name="Rename").click()
    expect(page.get_by_role("navigation", name="Views").get_by_role("link")).to_have_text(["Mira's refusals"])
    menu.locator("> summary").click()
    menu.get_by_label("Change Mira's refusals").click()
    menu.get_by_role("button", name="Delete").click()
    expect(page.get_by_role("navigation", name="Views").get_by_role("link")).to_have_count(0)


@pytest.mark.parametrize("format", ["CSV", "JSON"])
def test_what_is_filtered_is_taken_along(visit: Visits, mira: str, format: str) -> None:
    page = visit(AUGUST, f"/flows/?user_id={mira}&outcome=failed&sort=duration")
    page.get_by_text("Export").click()
    with page.expect_download() as download:
        page.get_by_role("link", name=format).click()
    name = download.value.suggested_filename
    assert re.fullmatch(rf"omni2-turns-\d{{4}}-\d\d-\d\d\.{format.lower()}", name)
    text = download.value.path().read_text()
    turns = list(csv.DictReader(io.StringIO(text, newline=""))) if format == "CSV" else json.loads(text)["turns"]
    assert [turn["question"] for turn in turns] == listed(page)
    assert len(turns) == 22


def test_a_running_turn_ticks_ends_in_its_row_and_new_ones_are_announced(
    visit: Visits, api: Api, omni2: Running, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    with api.asking(bob, f"script:until {bob} has seen it"):
        eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE user_id = %s AND outcome IS NULL", bob), "it is stored")
        page = visit(OLGA, f"/flows/?user_id={bob}")
        row = page.locator("#turns tbody tr")
        expect(row.locator(".outcome")).to_contain_text("Running")
        expect(row.get_by_role("link", name="Watch live")).to_have_attribute(
            "href", f"/live/?user={bob.replace('@', '%40')}"
        )
        clock = row.locator('[data-cell="took"]')
        expect(clock).to_have_text(re.compile(r"^\d+\.\d s$"))
        first = clock.inner_text()
        expect(clock).not_to_have_text(first)
        api.ask(someone("Carl Kahn"), f"script:enough {bob} has seen it")
    eventually(lambda: outcome_of(omni2, row.get_attribute("data-turn-id") or ""), "it has ended")
    newer = api.ask(bob, "script:plain and another")
    eventually(lambda: outcome_of(omni2, newer["turn_id"]), "stored")
    height = row.bounding_box()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(row).to_have_attribute("data-outcome", "completed", timeout=LONG_MS)
    expect(row.locator(".outcome")).to_contain_text("Completed")
    assert row.bounding_box() == height
    expect(page.locator("#turns tbody tr")).to_have_count(1)
    news = page.locator("#news")
    expect(news).to_have_text(re.compile("1 new turn$"))
    news.click()
    expect(page.locator("#turns tbody tr")).to_have_count(2)
    expect(news).to_be_hidden()


def test_people_are_offered_as_one_types(visit: Visits, mira: str) -> None:
    page = visit(AUGUST, "/flows/")
    page.get_by_label("User").press_sequentially(mira[:12], delay=20)
    option = page.locator(f'#offered-people option[value="{mira}"]')
    expect(option).to_have_count(1)
    assert option.text_content() == "Mira Kovac"


def test_the_keyboard_is_enough(visit: Visits, mira: str) -> None:
    page = visit(AUGUST, f"/flows/?user_id={mira}")
    page.keyboard.press("j")
    page.keyboard.press("j")
    expect(page.locator("#turns .what a").nth(1)).to_be_focused()
    page.keyboard.press("k")
    expect(page.locator("#turns .what a").first).to_be_focused()
    page.keyboard.press("n")
    expect(page.locator("#turns .what a").first).to_have_text("question 050")
    # the words are there before the keys are
    page.wait_for_load_state()
    page.keyboard.press("p")
    expect(page.locator("#turns .what a").first).to_have_text("question 000")
    page.wait_for_load_state()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    page.keyboard.press("/")
    expect(page.get_by_label("Question holds")).to_be_focused()
    page.keyboard.type("question 01j?")
    expect(page.get_by_label("Question holds")).to_have_value("question 01j?")
    page.get_by_label("Question holds").fill("question 01")
    page.keyboard.press("Enter")
    expect(page.locator("#turns tbody tr")).to_have_count(10)
    # a menu opens with Enter and closes with Escape, and leaves one where one was
    summary = page.locator("#views > summary")
    summary.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Keep these filters as")).to_be_visible()
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(page.get_by_label("Keep these filters as")).to_be_hidden()
    expect(summary).to_be_focused()


@pytest.mark.parametrize("width", [WIDE, 1024, 768, NARROW])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_every_width(visit: Visits, mira: str, width: int, theme: str) -> None:
    query = f"/flows/?user_id={mira}&q=question&range=24h&tool=clock&checkpoint=tool_call&slower_ms=1500&sort=-cost"
    page = visit(AUGUST, query, width=width, theme=theme)
    expect(page.locator("#turns tbody tr").first).to_be_visible()
    assert overflowing(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_text("More filters").click()
    page.locator("#views > summary").click()
    assert overflowing(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    box = page.locator("#views > div").bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    page.keyboard.press("Escape")
    page.get_by_role("link", name="Tokens").click()
    expect(page).to_have_url(re.compile("sort=-tokens"))


@pytest.fixture
def plain(visit: Visits) -> Callable[..., Page]:
    return lambda who, path: visit(who, path, java_script_enabled=False)


def test_everything_but_what_moves_works_without_a_script(plain: Callable[..., Page], mira: str) -> None:
    page = plain(AUGUST, "/flows/")
    page.get_by_label("User").fill(mira)
    page.get_by_role("textbox", name="Slower than").fill("0.1 min")
    page.get_by_role("button", name="Show").click()
    expect(page.locator(".filter-chips")).to_contain_text("Slower than 6 s")
    page.get_by_role("link", name="Duration").click()
    assert address(page) == {"user_id": mira, "slower_ms": "6000", "sort": "-duration"}
    page.get_by_role("link", name="Next").click()
    page.get_by_role("link", name="Previous").click()
    page.get_by_role("navigation", name="Outcome").get_by_role("link", name="Failed").click()
    expect(page.locator("#turns tbody tr").first).to_contain_text("the model did not answer in time")
    page.locator("#views > summary").click()
    page.get_by_label("Keep these filters as").fill("Without a script")
    page.get_by_role("button", name="Keep").click()
    expect(page.get_by_text("“Without a script” is kept.")).to_be_visible()
    page.locator("#views > summary").click()
    page.locator("#views").get_by_label("Change Without a script").click()
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("The view “Without a script” is deleted.")).to_be_visible()
    page.get_by_role("textbox", name="Slower than").fill("soon")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#wrong-slower_ms")).to_contain_text("A duration is needed")


def test_a_user_sees_his_own_and_no_others(visit: Visits, mira: str) -> None:
    page = visit(mira, "/flows/")
    expect(page.get_by_role("heading", name="My history")).to_be_visible()
    expect(page.get_by_role("link", name="All 130")).to_be_visible()
    expect(page.get_by_role("columnheader", name="Who")).to_have_count(0)
    expect(page.get_by_label("User")).to_have_count(0)


@pytest.fixture(autouse=True)
def no_views_are_left(omni2: Running) -> Iterator[None]:
    yield
    omni2.sql("DELETE FROM saved_views")
