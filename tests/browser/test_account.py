"""Signing in, and a token from its making to its end, with the keyboard alone."""

import urllib.error
import urllib.request
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import NARROW, Visits
from tests.people import PASSWORD
from tests.running import Running


def status_of(omni2: Running, token: str) -> int:
    """What the second web process answers to this token."""
    request = urllib.request.Request(
        f"{omni2.urls[1]}/api/v1/auth/tokens", headers={"Authorization": f"Bearer {token}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as answer:
        return answer.code


def tab_to(page: Page, words: str) -> None:
    """Press Tab until what has the focus says these words."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if words in (page.evaluate("document.activeElement.textContent") or "").strip()[:200]:
            return
    raise AssertionError(f"no Tab leads to {words!r}")


def test_a_token_is_made_copied_used_and_revoked_by_keyboard(
    visit: Visits, omni2: Running, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    page = visit(None, "/account/tokens/", width=NARROW, permissions=["clipboard-read", "clipboard-write"])
    expect(page.get_by_label("E-mail")).to_be_focused()
    page.keyboard.type(bob.upper())
    page.keyboard.press("Tab")
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Wrong e-mail address or password.")
    expect(page.get_by_label("Password")).to_be_focused()
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="No token yet")).to_be_visible()

    page.get_by_label("What is it for?").focus()
    page.keyboard.type("laptop")
    page.keyboard.press("Enter")
    token = page.locator("#new-token").inner_text()
    assert token.startswith("omni2_")
    assert token not in page.url
    tab_to(page, "Copy")
    page.keyboard.press("Enter")
    expect(page.locator("#announcements")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == token
    assert status_of(omni2, token) == 200

    page.goto("/account/tokens/")
    expect(page.get_by_role("cell", name="laptop", exact=True)).to_be_visible()
    assert token not in page.content()
    tab_to(page, "Revoke")
    page.keyboard.press("Enter")
    tab_to(page, "Yes, revoke it")
    page.keyboard.press("Enter")
    expect(page.get_by_text("laptop is revoked")).to_be_visible()
    assert status_of(omni2, token) == 401


def test_a_new_password_ends_the_other_browser(visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    here, there = visit(bob, "/account/password/"), visit(bob, "/account/tokens/")
    new = "another battery staple"
    here.get_by_label("Old password").fill(PASSWORD)
    here.get_by_label("New password", exact=True).fill(new)
    here.get_by_label("New password confirmation").fill(new)
    here.get_by_role("button", name="Change password").click()
    expect(here.get_by_text("Your password is changed.")).to_be_visible()
    there.reload()
    expect(there.get_by_role("heading", name="Sign in")).to_be_visible()
