"""Every page in both themes, wide and at 390 px: nothing overflows, every text can be read, no error."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, WIDE, Api, Visits
from tests.browser.test_the_road import outcome_of
from tests.running import Running, eventually

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


def overflowing(page: Page) -> list[str]:
    """What stands out of the window to the right, if the page can be scrolled there."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.querySelectorAll("body *")]
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
            .slice(0, 5).map((one) => one.outerHTML.slice(0, 120))"""
    )


@pytest.fixture
def busy(omni2: Running, api: Api, someone: Callable[[str], str]) -> tuple[str, str]:
    """A user with a completed, a failed and a refused turn, monitored; and one of his sessions."""
    bob = someone("Bob Kahn")
    api.watch(bob, reason="Ticket 4711")
    session_id = api.ask(bob, "script:parallel Which invoices of the Oslo office are overdue?")["session_id"]
    api.ask(bob, "script:bad_sum how much is it", session_id=session_id)
    failed = api.ask(bob, "script:error_500 and now fail", session_id=session_id)

    def block() -> None:
        from chat.models import UserBlock
        from omni2.accounts.models import User

        UserBlock.objects.create(user=User.objects.get(email=bob), message="Enough for today.")

    omni2.orm(block)
    refused = api.ask(bob, "script:plain may I?", session_id=session_id)
    for turn_id in (failed["turn_id"], refused["turn_id"]):
        eventually(lambda turn_id=turn_id: outcome_of(omni2, turn_id), "stored")
    return bob, session_id


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_every_page_fits_and_can_be_read(visit: Visits, busy: tuple[str, str], theme: str, width: int) -> None:
    bob, session_id = busy
    visit.forgive("status of 404")
    page = visit("ada@example.com", f"/live/?user={bob}", theme=theme, width=width)
    expect(page.locator(".row").first).to_be_visible()
    expect(page.locator("html")).to_have_class("dark" if theme == "dark" else "")
    page.locator('.row[data-state="refused"]').first.click()
    pages = ["", "/flows/", f"/flows/{session_id}/", "/chat/", "/account/tokens/", "/account/password/", "/admin/"]
    for path in [*pages, "/admin/accounts/user/", "/nothing-here/"]:
        if path:
            page.goto(path)
            page.wait_for_load_state("networkidle") if path != f"/flows/{session_id}/" else page.wait_for_timeout(400)
        assert overflowing(page) == [], path
        if not path.startswith("/admin/"):  # the admin's widgets are unfold's own
            assert page.evaluate(CONTRAST) == [], path
    anonymous = visit(None, "/login/", theme=theme, width=width)
    assert overflowing(anonymous) == []
    assert anonymous.evaluate(CONTRAST) == []


def test_the_theme_is_chosen_in_the_account_menu_and_kept(visit: Visits) -> None:
    page = visit("charlie@example.com", "/chat/")
    page.locator(".account summary").click()
    page.get_by_role("button", name="Dark").click()
    expect(page.locator("html")).to_have_class("dark")
    page.goto("/flows/")
    expect(page.locator("html")).to_have_class("dark")
    page.locator(".account summary").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{page.url.split('/login')[0]}/login/")


def test_the_menu_opens_on_a_small_screen(visit: Visits) -> None:
    page = visit("olga@example.com", "/flows/", width=NARROW)
    expect(page.locator("#nav-sidebar")).to_be_hidden()
    page.get_by_role("button", name="Menu").click()
    page.locator("#nav-sidebar").get_by_role("link", name="Live").click()
    expect(page.get_by_role("heading", name="Live")).to_be_visible()
