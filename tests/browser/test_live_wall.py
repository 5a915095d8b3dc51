"""The live wall: who is watched, every state in words, hostile text, keys, and the choice in the URL."""

import re
from collections.abc import Callable

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Api, Visits
from tests.browser.test_looks import overflowing
from tests.browser.test_the_road import LONG_MS, shown_ids
from tests.running import Running

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }} "
    + "W" * 400
    + " \u202eright to left\u202c \U0001f9d1\u200d\U0001f680 \u0627\u0644\u0639\u0631\u0628\u064a\u0629"
)


def panel_of(page: Page, user_id: str) -> Locator:
    return page.locator(f'.panel[data-user="{user_id}"]')


def test_monitoring_that_ends_says_by_whom_and_can_begin_again(
    visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob, reason="Ticket 1")
    olga = visit("olga@example.com", f"/live/?user={bob}")
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    expect(panel).to_contain_text("Watching. Nothing since")
    api.ask(bob, "script:plain hello")
    expect(panel.locator('[data-outcome="completed"]')).to_be_visible(timeout=LONG_MS)

    # somebody else stops it: the page says so by itself and keeps what was seen
    status, _ = api("ada@example.com", "/api/v1/monitoring/disable", {"user_id": bob})
    assert status == 200
    expect(panel.get_by_role("status")).to_have_text("Monitoring ended", timeout=LONG_MS)
    expect(panel).to_contain_text("by Ada Lovelace", timeout=LONG_MS)
    expect(panel.locator('[data-outcome="completed"]')).to_be_visible()
    expect(olga.locator(f'#people [data-user="{bob}"]')).to_have_count(0)

    panel.get_by_role("button", name="Watch again").click()
    olga.get_by_role("button", name="Watch", exact=True).click()
    expect(panel.get_by_role("status")).to_have_text("Connected", timeout=LONG_MS)
    api.ask(bob, "script:plain and again")
    expect(panel).to_contain_text("and again", timeout=LONG_MS)


def test_an_operator_extends_and_stops_on_the_panel(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob, hours=0.2)
    olga = visit("olga@example.com", f"/live/?user={bob}")
    panel = panel_of(olga, bob)
    timer = panel.locator("details.menu summary")
    expect(timer).to_contain_text(re.compile(r"1[01]:\d\d"))
    timer.click()
    panel.get_by_role("button", name="8 h").click()
    expect(timer).to_contain_text("8 h 00", timeout=LONG_MS)
    timer.click()
    panel.get_by_role("button", name="Stop monitoring").click()
    expect(panel.get_by_role("status")).to_have_text("Monitoring ended", timeout=LONG_MS)
    expect(panel).to_contain_text("by Olga Ladyzhenskaya", timeout=LONG_MS)


def test_a_time_that_cannot_be_is_said_at_its_field(visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    visit.forgive("status of 400")
    olga = visit("olga@example.com", "/live/")
    olga.get_by_role("button", name="Watch someone").first.click()
    olga.get_by_role("button", name="Watch", exact=True).click()
    expect(olga.locator("#watch-who-error")).to_have_text("Choose somebody first.")
    olga.get_by_label("Who").fill(bob)
    olga.get_by_label("Own").check(force=True)
    olga.get_by_label("Hours").fill("100000")
    olga.get_by_role("option", name=bob).click()
    olga.get_by_role("button", name="Watch", exact=True).click()
    expect(olga.locator("#watch-ttl-error")).not_to_be_empty()
    olga.get_by_label("Who").fill("nobody@nowhere.example")
    olga.get_by_label("1 h").check(force=True)
    olga.get_by_role("button", name="Watch", exact=True).click()
    expect(olga.locator("#watch-who-error")).not_to_be_empty()


def test_the_choice_is_in_the_url(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob, mira = someone("Bob Kahn"), someone("Mira Kovac")
    api.watch(bob)
    api.watch(mira)
    olga = visit("olga@example.com", "/live/")
    olga.locator(f'#people [data-user="{bob}"] button').click()
    olga.locator(f'#people [data-user="{mira}"] button').click()
    expect(olga.locator(".panel")).to_have_count(2)
    olga.reload()
    expect(olga.locator(".panel h2")).to_have_text(["Bob Kahn", "Mira Kovac"])
    panel_of(olga, bob).get_by_role("button", name="Close this panel").click()
    expect(olga.locator(".panel h2")).to_have_text(["Mira Kovac"])
    olga.go_back()
    expect(olga.locator(".panel h2")).to_have_text(["Mira Kovac", "Bob Kahn"])
    expect(panel_of(olga, bob).get_by_role("status")).to_have_text("Connected")


def test_what_happens_to_one_user_stays_in_his_panel(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob, mira = someone("Bob Kahn"), someone("Mira Kovac")
    api.watch(bob)
    api.watch(mira)
    olga = visit("olga@example.com", f"/live/?user={bob}&user={mira}")
    for user in (bob, mira):
        expect(panel_of(olga, user).get_by_role("status")).to_have_text("Connected")
    api.ask(bob, "script:error_500 only bob", web=1)
    api.ask(mira, "script:bad_sum only mira")
    expect(panel_of(olga, bob).locator('[data-outcome="failed"]')).to_contain_text("only bob", timeout=LONG_MS)
    expect(panel_of(olga, mira).locator('[data-outcome="completed"]')).to_contain_text("only mira", timeout=LONG_MS)
    expect(panel_of(olga, bob)).not_to_contain_text("only mira")
    expect(panel_of(olga, mira)).not_to_contain_text("only bob")
    # failure and refusal are said in words, not by colour alone
    expect(panel_of(olga, bob).locator('.row[data-state="failed"]').first).to_contain_text("Model failed")
    expect(panel_of(olga, mira).locator('.row[data-state="failed"]')).to_contain_text("calculator")


def test_hostile_text_is_text(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob <b>Kahn</b>")
    api.watch(bob, reason="<img src=x onerror=alert(3)>")
    for width in (1400, 390):
        olga = visit("olga@example.com", f"/live/?user={bob}", width=width)
        olga.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
        panel = panel_of(olga, bob)
        expect(panel.get_by_role("status")).to_have_text("Connected")
        answer = api.ask(bob, f"script:odd_text {HOSTILE}")
        turn = panel.locator(f'[data-turn-id="{answer["turn_id"]}"]')
        expect(turn).to_have_attribute("data-outcome", "completed", timeout=LONG_MS)
        expect(turn).to_contain_text("<script>alert(1)</script><img src=x onerror=alert(2)> {{ 7*7 }}")
        for row in turn.locator('[data-checkpoint="auth_check"], .row[data-checkpoint="llm_thinking"]').all():
            row.click()
        expect(turn.locator(".details")).to_have_count(2)
        turn.get_by_role("button", name="Raw JSON").first.click()
        assert olga.locator(".panels script, .panels img, .panels b:not(.row-label)").count() == 0
        assert overflowing(olga) == []
        olga.goto(f"/flows/{answer['session_id']}/")
        expect(olga.locator("[data-turn-id]")).to_contain_text("<script>alert(1)</script>")
        assert overflowing(olga) == []


def test_pause_holds_the_picture_and_nothing_is_lost(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}")
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    olga.keyboard.press("p")
    expect(panel.get_by_role("status")).to_have_text("Paused")
    api.ask(bob, "script:plain while you look away")
    olga.wait_for_timeout(700)
    assert shown_ids(olga) == []
    olga.keyboard.press("p")
    expect(panel.locator('[data-outcome="completed"]')).to_be_visible(timeout=LONG_MS)


def test_the_keyboard_does_everything(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}")
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    api.ask(bob, "script:parallel by keys alone")
    expect(panel.locator('[data-outcome="completed"]')).to_be_visible(timeout=LONG_MS)
    rows = panel.get_by_role("treeitem")
    for _ in range(3):
        olga.keyboard.press("j")
    expect(rows.nth(1)).to_be_focused()
    olga.keyboard.press("k")
    expect(rows.nth(0)).to_be_focused()
    olga.keyboard.press("ArrowLeft")
    expect(rows).to_have_count(1)
    expect(rows.nth(0)).to_have_attribute("aria-expanded", "false")
    olga.keyboard.press("ArrowRight")
    expect(rows).to_have_count(9)
    olga.keyboard.press("ArrowRight")
    expect(rows.nth(1)).to_be_focused()
    olga.keyboard.press("Enter")
    expect(rows.nth(1).locator(".details")).to_contain_text("block_check")
    olga.keyboard.press("Escape")
    expect(rows.nth(1).locator(".details")).to_have_count(0)
    olga.keyboard.press("End")
    expect(rows.last).to_be_focused()
    # an update takes the focus from nobody
    api.ask(bob, "script:plain one more")
    expect(panel.get_by_text("one more").first).to_be_visible(timeout=LONG_MS)
    expect(rows.nth(8)).to_be_focused()
    olga.keyboard.press("?")
    expect(olga.get_by_role("heading", name="Keys")).to_be_visible()


def test_a_link_to_nobody_and_a_watcher_who_signed_out_are_told(
    visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    visit.forgive("status of 401")
    olga = visit("olga@example.com", f"/live/?user=ghost@example.com&user={bob}")
    ghost = panel_of(olga, "ghost@example.com")
    expect(ghost.get_by_role("status")).to_have_text("Disconnected")
    expect(ghost).to_contain_text("There is no such user.")

    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Not monitored")
    expect(panel.get_by_role("button", name="Watch now")).to_be_visible()

    elsewhere = olga.context.new_page()
    elsewhere.goto("/flows/")
    elsewhere.locator(".account summary").click()
    elsewhere.get_by_role("button", name="Sign out").click()
    expect(panel).to_contain_text("You are not signed in any more.", timeout=LONG_MS)
    expect(panel.get_by_role("link", name="Sign in")).to_be_visible()


def test_a_right_that_is_taken_away_ends_the_watching(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob, watcher = someone("Bob Kahn"), someone("Wanda Watcher")
    visit.forgive("status of 403")

    def give(wanted: bool) -> None:
        from django.contrib.auth.models import Permission

        from omni2.accounts.models import User

        right = Permission.objects.get(codename="watch", content_type__app_label="flows")
        user = User.objects.get(email=watcher)
        (user.user_permissions.add if wanted else user.user_permissions.remove)(right)

    omni2.orm(give, True)
    api.watch(bob)
    page = visit(watcher, f"/live/?user={bob}")
    panel = panel_of(page, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    # who may only watch cannot enable, extend or stop
    expect(page.get_by_role("button", name="Watch someone")).to_have_count(0)
    expect(panel.get_by_role("button", name="Stop monitoring")).to_have_count(0)
    omni2.orm(give, False)
    expect(panel).to_contain_text("You may not watch this user.", timeout=LONG_MS)
