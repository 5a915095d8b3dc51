"""Analytics in a browser: from a filter to a figure to its turns, by mouse and keyboard, and without JavaScript."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from random import Random

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import NARROW, WIDE, Visits
from tests.browser.test_looks import overflowing
from tests.random_turns import documents
from tests.running import Running

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)><b x-init=alert(2)>",
    "W" * 5000,
    "\u202egnirts desrever\u202c \u2067עברית\u2069 العربية",
    "👩‍👩‍👧‍👦🏳️‍🌈" * 20,
)
# None that run: the sweep ends those, since no process serves them.
EACH = {"completed": 20, "failed": 5, "over_limit": 4, "blocked": 3, "left": 5, "stopped": 3}


@pytest.fixture
def mira(omni2: Running, someone: Callable[[str], str]) -> str:
    """A user with forty turns in the last twenty hours."""
    user_id = someone("Mira Kovač")

    def fill() -> None:
        from flows.store import store

        now = datetime.now(UTC)
        since, until = now - timedelta(hours=20), now - timedelta(minutes=1)
        for way in EACH:
            random = Random(f"{user_id} {way}")
            store(documents(random, EACH[way], since=since, until=until, users=[user_id], ways=[way]))

    omni2.orm(fill)
    return user_id


def violations(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] }).then((result) => result.violations)")
    return [f"{one['id']}: {one['nodes'][0]['html']}" for one in found if one["impact"] in {"serious", "critical"}]


def tile(page: Page, outcome: str) -> Locator:
    return page.locator(f'.tiles [data-outcome="{outcome}"] a')


def turns(link: Locator) -> int:
    return int(link.get_attribute("data-turns") or "0")


def expect_history_of(page: Page, number: int) -> None:
    """The table of turns, showing that many."""
    expect(page).to_have_url(re.compile(r"/flows/\?"))
    expect(page.locator("#turns tbody tr[data-turn-id]")).to_have_count(number)


def test_a_filter_narrows_the_figures_and_a_figure_shows_its_turns(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", "/analytics/")
    page.get_by_label("User").fill(mira)
    page.get_by_label("User").press("Enter")
    expect(page.locator(".asked")).to_contain_text("Mira Kovač")
    assert turns(page.locator(".tiles a").first) == 40
    assert turns(tile(page, "failed")) == 5
    tile(page, "failed").click()
    expect_history_of(page, 5)
    page.go_back()
    tool = page.locator("#tools tbody a").first.text_content() or ""
    number = turns(page.locator("#tools td a").first)
    page.get_by_role("combobox", name="Tool").fill(tool)
    page.get_by_role("combobox", name="Tool").blur()
    expect(page.locator(".asked")).to_contain_text(tool)
    assert turns(page.locator(".tiles a").first) == number
    page.locator(".tiles a").first.click()
    expect_history_of(page, number)


def test_a_bar_says_what_it_counts_and_leads_there(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", f"/analytics/?user_id={mira}")
    expect(page.get_by_role("img", name="Turns over time")).to_be_visible()
    part = page.locator('.time-chart-links a[href*="outcome=completed"]').first
    number = turns(part)
    assert f"Completed {number}" in (part.locator("title").text_content() or "")
    part.click()
    expect_history_of(page, number)


def test_the_funnel_leads_to_those_who_ended_there(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", f"/analytics/?user_id={mira}&range=7d")
    stage = page.locator('tr[data-stage="not_blocked"]')
    expect(stage).to_contain_text("Refused: over the limit")
    assert turns(stage.locator(".is-sum")) == 4
    stage.locator(".is-sum").click()
    expect_history_of(page, 4)
    for row in page.locator("#turns tbody tr[data-turn-id]").all():
        expect(row).to_have_attribute("data-outcome", "refused")


def test_a_slow_turn_opens_in_its_session(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", f"/analytics/?user_id={mira}")
    slowest = page.locator("#slowest li").first
    turn_id = slowest.get_attribute("data-turn-id")
    slowest.locator("a").click()
    expect(page.locator(f'[data-turn-id="{turn_id}"]').first).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_it_fits_and_can_be_read(visit: Visits, mira: str, theme: str, width: int) -> None:
    page = visit("august@example.com", f"/analytics/?user_id={mira}", theme=theme, width=width)
    page.locator(".as-table summary").click()
    expect(page.locator("#slots")).to_be_visible()
    assert overflowing(page) == []
    assert page.evaluate(CONTRAST) == []
    assert violations(page) == []
    page.goto(f"/analytics/?user_id={mira}&model=none")
    expect(page.get_by_role("heading", name=re.compile("No turn in this time"))).to_be_visible()
    assert overflowing(page) == []
    page.goto("/analytics/?user_id=Xanthippe&since=never")
    expect(page.locator("#error-since")).to_be_visible()
    assert overflowing(page) == []
    assert page.evaluate(CONTRAST) == []


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_strange_names_are_text_and_break_nothing(
    visit: Visits, omni2: Running, someone: Callable[[str], str], width: int
) -> None:
    mallory = someone("W" * 120)

    def fill() -> None:
        from flows.tests.rows import StoredTurn

        for text in HOSTILE:
            turn = StoredTurn(mallory, question=text).with_tool(text)
            turn.add("error", turn.root, code=text)
            turn.add(text[:50], turn.root, duration_ms=3)
            turn.end("failed")

    omni2.orm(fill)
    address = f"/analytics/?user_id={mallory}&since=2026-11-22&until=2026-11-23"
    page = visit("august@example.com", address, width=width)
    expect(page.locator("#tools tbody tr")).to_have_count(len(HOSTILE))
    for summary in page.locator("details summary").all():
        if summary.is_visible():
            summary.click()
    assert overflowing(page) == []
    assert page.evaluate(CONTRAST) == []
    expect(page.locator("img[src=x], [onerror], [x-init^=alert]")).to_have_count(0)


def test_the_chart_keeps_its_letters_when_it_becomes_narrow(visit: Visits, mira: str) -> None:
    sizes = []
    for width in (WIDE, NARROW):
        page = visit("august@example.com", f"/analytics/?user_id={mira}", width=width)
        mark = page.locator(".time-chart text").first.bounding_box()
        assert mark is not None
        sizes.append(round(mark["height"]))
    assert sizes[0] == sizes[1]


def test_it_can_be_used_by_keyboard_alone(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", f"/analytics/?user_id={mira}")
    page.keyboard.press("/")
    expect(page.get_by_label("User")).to_be_focused()
    page.get_by_label("User").blur()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("t")  # at once: the closed dialog still has the focus
    expect(page.get_by_role("dialog", name="Keys")).to_be_hidden()
    expect(page.locator(".as-table .table-frame")).to_be_focused()
    page.keyboard.press("Tab")
    number = turns(page.locator(":focus"))
    page.keyboard.press("Enter")
    expect_history_of(page, number)
    page.go_back()
    page.get_by_role("link", name="7 days").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"range=7d"))
    expect(page.get_by_role("link", name="7 days")).to_have_attribute("aria-current", "true")


def test_all_is_there_without_javascript(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", "/analytics/", java_script_enabled=False)
    page.get_by_label("User").fill(mira)
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_role("img", name="Turns over time")).to_be_visible()
    page.locator(".as-table summary").click()
    rows = page.locator("#slots tbody tr")
    expect(rows).to_have_count(24)
    number = turns(page.locator("#slots tbody a").first)
    page.locator("#slots tbody a").first.click()
    expect_history_of(page, number)


def test_own_times_are_typed_by_the_viewers_clock(visit: Visits, mira: str) -> None:
    page = visit("august@example.com", f"/analytics/?user_id={mira}", timezone_id="Asia/Tokyo")
    expect(page.locator(".asked")).to_contain_text("hours and days of UTC")
    page.get_by_role("link", name="show in Asia/Tokyo").click()
    expect(page.locator(".asked")).to_contain_text("hours and days of Asia/Tokyo")
    page.get_by_text("Own times").click()
    page.get_by_label("From (Asia/Tokyo)").fill("2026-01-05T06:00:00")
    page.get_by_label("Before (Asia/Tokyo)").fill("2026-01-06T06:00:00")
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile(r"since=2026-01-04T21%3A00%3A00"))
    expect(page.get_by_label("From (Asia/Tokyo)")).to_have_value("2026-01-05T06:00")
