"""Stopping and blocking from the pages: the button, the sheet, and the end as it comes."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Api, Visits
from tests.browser.test_live_wall import panel_of
from tests.browser.test_looks import CONTRAST, overflowing
from tests.browser.test_the_road import LONG_MS
from tests.running import Running, eventually


def test_an_operator_stops_a_turn_in_the_live_tree(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    """By keyboard; through the other process than the one that answers."""
    bob = someone("Bob Kahn")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}", web=0)
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    with api.asking(bob, "script:hang_in_middle and on", web=1) as answers:
        turn = panel.locator('.turn[data-state="running"]')
        stop = panel.get_by_role("button", name="Stop “script:hang_in_middle and on”")
        expect(stop).to_be_visible(timeout=LONG_MS)
        before = turn.locator(".turn-head").bounding_box()
        stop.focus()
        olga.keyboard.press("Enter")
        sheet = olga.get_by_role("dialog", name="Stop this turn")
        expect(sheet.get_by_label("Reason")).to_be_focused()
        olga.keyboard.press("Escape")
        expect(stop).to_be_focused()
        olga.keyboard.press("Enter")
        sheet.get_by_label("Reason").fill("it goes in circles <b>")
        sheet.get_by_label("Message").fill("We are looking into it.")
        olga.keyboard.press("Enter")
        ended = panel.locator('.turn[data-outcome="stopped"]')
        expect(ended).to_be_visible(timeout=LONG_MS)
        expect(sheet).to_have_count(0)
    assert answers[0]["code"] == "stopped"
    assert answers[0]["detail"] == "We are looking into it."
    expect(stop).to_have_count(0)
    assert ended.locator(".turn-head").bounding_box() == before
    expect(ended.locator(".turn-meta")).to_contain_text("stopped by Olga Ladyzhenskaya after")
    error = ended.locator('[data-checkpoint="error"]')
    expect(error).to_contain_text("Stopped by Olga Ladyzhenskaya")
    expect(error).to_contain_text("it goes in circles <b>")
    expect(error).to_have_attribute("data-state", "refused")
    expect(ended.locator(".turn-head")).to_be_focused()
    assert olga.evaluate(CONTRAST) == []
    # the same in the session's page, with JavaScript and without
    session_id, turn_id = answers[0]["session_id"], answers[0]["turn_id"]
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE turn_id = %s AND outcome = 'stopped'", turn_id))
    for page in (
        visit("olga@example.com", f"/flows/{session_id}/"),
        visit("olga@example.com", f"/flows/{session_id}/", java_script_enabled=False),
    ):
        expect(page.get_by_text("Stopped by Olga Ladyzhenskaya").first).to_be_visible()
        expect(page.get_by_text("it goes in circles <b>").first).to_be_visible()
    # its user reads what he was told, and neither why nor by whom
    his = visit(bob, f"/flows/{session_id}/")
    expect(his.get_by_text("We are looking into it.").first).to_be_visible()
    assert "Olga" not in his.content()
    assert "circles" not in his.content()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_sheet_and_the_button_can_be_read(
    visit: Visits, api: Api, someone: Callable[[str], str], theme: str
) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    pages = [visit("ada@example.com", f"/live/?user={bob}", theme=theme, width=width) for width in (1400, 390)]
    with api.asking(bob, "script:hang_in_middle " + "a long question " * 20) as answers:
        for page in pages:
            stop = page.get_by_role("button", name="Stop “")
            expect(stop).to_be_visible(timeout=LONG_MS)
            expect(page.get_by_role("button", name="Block", exact=True)).to_be_visible()
            assert page.evaluate(CONTRAST) == []
            assert overflowing(page) == []
            overlap(page)
            stop.click()
            assert page.evaluate(CONTRAST) == []
            page.keyboard.press("Escape")
        pages[1].get_by_role("button", name="Stop “").click()
        pages[1].get_by_role("button", name="Stop it").click()
        for page in pages:
            expect(page.locator('[data-outcome="stopped"]')).to_be_visible(timeout=LONG_MS)
    assert answers[0]["code"] == "stopped"


def overlap(page: Page) -> None:
    """The button covers no word of the turn's line."""
    stop = page.locator(".turn-stop").bounding_box()
    assert stop is not None
    for part in (".turn-title", ".turn-meta"):
        box = page.locator(f".turn.can-stop {part}").bounding_box()
        assert box is not None
        beside = box["x"] + box["width"] <= stop["x"] or stop["x"] + stop["width"] <= box["x"]
        assert beside or box["y"] >= stop["y"] + stop["height"] or box["y"] + box["height"] <= stop["y"], part


def test_an_admin_blocks_a_user_from_his_panel(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    ada = visit("ada@example.com", f"/live/?user={bob}")
    panel = panel_of(ada, bob)
    with api.asking(bob, "script:hang_in_middle and on", web=1) as answers:
        expect(panel.locator('.turn[data-state="running"]')).to_be_visible(timeout=LONG_MS)
        panel.get_by_role("button", name="Block", exact=True).click()
        sheet = ada.get_by_role("dialog", name="Block Bob Kahn")
        sheet.get_by_label("Message").fill("Please see the help desk.")
        sheet.get_by_label("Reason").fill("Ticket 7")
        sheet.get_by_role("button", name="Block", exact=True).click()
        ended = panel.locator('.turn[data-outcome="stopped"]')
        expect(ended).to_be_visible(timeout=LONG_MS)
    assert (answers[0]["code"], answers[0]["detail"]) == ("stopped", "Please see the help desk.")
    expect(ended).to_contain_text("Stopped by Ada Lovelace")
    expect(panel.get_by_role("button", name="Blocked: let in again")).to_be_focused()

    # it is known to whoever opens the panel later, and is ended there
    ada.reload()
    blocked = panel.get_by_role("button", name="Blocked: let in again")
    expect(blocked).to_have_attribute("title", re.compile("^Blocked .+ by Ada Lovelace: “Ticket 7”.$"))
    blocked.click()
    sheet = ada.get_by_role("dialog", name="Let Bob Kahn in again")
    expect(sheet).to_contain_text("Ticket 7")
    sheet.get_by_role("button", name="End the block").click()
    expect(panel.get_by_role("button", name="Block", exact=True)).to_be_focused()
    assert api.ask(bob, "script:plain and now?")["answer"]


def test_who_may_not_stop_has_no_button(omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    """An operator without chat.stop; an auditor in the session; Charlie stops his own turn there, and tells nobody."""
    bob, charlie, watcher = someone("Bob Kahn"), someone("Charlie Roe"), someone("Wanda Watcher")
    omni2.sql(
        "INSERT INTO users_user_permissions (user_id, permission_id) SELECT u.id, p.id FROM users u, auth_permission p"
        " WHERE u.email = %s AND p.codename = 'watch'",
        watcher,
    )
    api.watch(bob)
    wanda = visit(watcher, f"/live/?user={bob}")
    with api.asking(bob, "script:hang_in_middle and on") as answers:
        expect(wanda.locator('.turn[data-state="running"]')).to_be_visible(timeout=LONG_MS)
        expect(wanda.locator(".turn-stop, .user-block")).to_have_count(0)
        turn_id = str(wanda.locator(".turn").get_attribute("data-turn-id"))
        ((session_id,),) = omni2.sql("SELECT session_id FROM turn_usage WHERE turn_id = %s", turn_id)
        eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE turn_id = %s", turn_id), "it is stored")
        august = visit("august@example.com", f"/flows/{session_id}/")
        expect(august.locator('.turn[data-state="running"]')).to_be_visible()
        expect(august.get_by_role("button", name="Stop “")).to_have_count(0)
        his = visit(bob, f"/flows/{session_id}/")
        his.get_by_role("button", name="Stop “").click()
        expect(his.get_by_label("Message")).to_have_count(0)
        his.get_by_role("button", name="Stop it").click()
        expect(his.locator('.turn[data-outcome="stopped"]')).to_be_visible(timeout=LONG_MS)
    assert answers[0]["detail"] == "You stopped this answer."
    status, _ = api(charlie, f"/api/v1/turns/{turn_id}/stop", {})
    assert status == 404
