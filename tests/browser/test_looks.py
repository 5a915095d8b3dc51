"""The theme one chooses, the menu of a small screen. How every page looks: test_quality.py."""

from pathlib import Path

from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, Visits

CONTRAST = (Path(__file__).parent / "contrast.js").read_text()


def overflowing(page: Page) -> list[str]:
    """What stands out of the window to the right, if the page can be scrolled there."""
    return page.evaluate(
        """() => document.documentElement.scrollWidth <= innerWidth ? [] :
            [...document.querySelectorAll("body *")]
            .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
            .slice(0, 5).map((one) => one.outerHTML.slice(0, 120))"""
    )


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
