"""From signing in to history, as people do it: the main job of Omni2 in a real browser."""

import json
from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import Api, Visits
from tests.people import PASSWORD
from tests.running import Running, eventually

LONG_MS = 60_000


def shown_ids(page: Page) -> list[str]:
    """Every checkpoint that is drawn, in the order of the page."""
    return page.locator("[data-flow-id]").evaluate_all("all => all.map(one => one.dataset.flowId)")


def stored_ids(omni2: Running, turn_id: str) -> set[str]:
    return {str(row[0]) for row in omni2.sql("SELECT flow_id FROM interaction_flows WHERE turn_id = %s", turn_id)}


def outcome_of(omni2: Running, turn_id: str) -> str | None:
    rows = omni2.sql("SELECT outcome FROM turns WHERE turn_id = %s", turn_id)
    return rows[0][0] if rows else None


def test_it_leads_from_sign_in_over_the_growing_tree_to_the_same_tree_in_history(
    omni2: Running, visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Robert Kahn")  # nobody else in these tests is called so: the search shows the first few

    # Olga signs in; there is no panel on her wall yet
    olga = visit(None, "/login/?next=/live/")
    olga.get_by_label("E-mail").fill("olga@example.com")
    olga.get_by_label("Password").fill(PASSWORD)
    olga.get_by_role("button", name="Sign in").click()
    expect(olga.get_by_role("heading", name="Live")).to_be_visible()
    expect(olga.locator("#nobody h2")).to_be_visible()

    # she looks Bob up by his name and watches him for eight hours
    olga.keyboard.press("/")
    olga.get_by_label("Who").fill("Robert Kahn")
    olga.get_by_role("option", name=bob).click()
    olga.get_by_label("8 h").check(force=True)
    olga.get_by_label("Reason").fill("Ticket 4711")
    olga.get_by_role("button", name="Watch", exact=True).click()
    panel = olga.locator(f'.panel[data-user="{bob}"]')
    expect(panel.get_by_role("status")).to_have_text("Connected")
    expect(olga.locator(f'#people [data-user="{bob}"]')).to_contain_text("Robert Kahn")

    # Bob chats; the tree grows while he waits
    chat = visit(bob, "/chat/")
    chat.get_by_label("Message").fill("script:parallel+slow What time is it, here and in Tokyo?")
    chat.keyboard.press("Enter")
    running = panel.locator("[data-turn-id]")
    expect(running).to_contain_text("What time is it, here and in Tokyo?", timeout=LONG_MS)
    expect(panel.locator('[data-checkpoint="llm_thinking"][data-state="running"]')).to_be_visible(timeout=LONG_MS)
    expect(running).not_to_have_attribute("data-outcome", "completed")
    expect(panel.locator('[data-checkpoint="tool_call"]')).to_have_count(3)

    # it ends, on both pages
    expect(running).to_have_attribute("data-outcome", "completed", timeout=LONG_MS)
    expect(panel.locator('[data-state="running"].row')).to_have_count(0)
    expect(chat.locator(".answer")).to_contain_text("walk away in the middle")
    expect(olga.locator("#delay")).to_contain_text("checkpoint to screen", timeout=LONG_MS)

    # what was drawn is what is stored, each once; and history draws the same
    turn_id = str(running.get_attribute("data-turn-id"))
    eventually(lambda: outcome_of(omni2, turn_id) == "completed", "the turn is stored")
    drawn = shown_ids(olga)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == stored_ids(omni2, turn_id)
    panel.locator('[data-checkpoint="tool_call"]').first.click()
    panel.get_by_role("link", name="In history").first.click()
    expect(olga.locator(f'[data-turn-id="{turn_id}"]')).to_have_attribute("data-outcome", "completed")
    expect(olga.locator(".details")).to_be_visible()
    assert set(shown_ids(olga)) == set(drawn)


def test_a_web_server_that_goes_away_in_mid_turn_loses_nothing_on_screen(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    visit.forgive("WebSocket connection to")
    visit.forgive("ERR_CONNECTION_REFUSED")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}", web=0)
    panel = olga.locator(".panel")
    state = panel.get_by_role("status")
    expect(state).to_have_text("Connected")
    with api.asking(bob, "script:parallel+slow and the server goes away", web=1) as answers:
        expect(panel.locator('[data-checkpoint="usage_check"]')).to_be_visible(timeout=LONG_MS)
        omni2.web[0].kill()
        expect(state).to_have_text("Reconnecting (1)", timeout=LONG_MS)
        expect(panel.locator('[data-checkpoint="usage_check"]')).to_be_visible()
        omni2.web[0].start()
        omni2.wait_until_ready()
    expect(state).to_have_text("Connected", timeout=40_000)
    turn_id = answers[0]["turn_id"]
    expect(panel.locator(f'[data-turn-id="{turn_id}"]')).to_have_attribute("data-outcome", "completed", timeout=LONG_MS)
    eventually(lambda: outcome_of(omni2, turn_id) == "completed", "the turn is stored")
    drawn = shown_ids(olga)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == stored_ids(omni2, turn_id)


def test_an_open_session_grows(omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    """For August, who may only read, by asking again; for Olga, who may watch, over the socket."""
    bob = someone("Bob Kahn")
    session_id = api.ask(bob, "script:plain first")["session_id"]
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE session_id = %s AND outcome = 'completed'", session_id))
    api.watch(bob)
    pages = [visit(who, f"/flows/{session_id}/") for who in ("august@example.com", "olga@example.com")]
    for page in pages:
        expect(page.locator("[data-turn-id]")).to_have_count(1)
    with api.asking(bob, "script:slow second", session_id=session_id):
        for page in pages:
            expect(page.locator("[data-turn-id]")).to_have_count(2, timeout=LONG_MS)
    for page in pages:
        expect(page.locator("[data-turn-id]").nth(1)).to_have_attribute("data-outcome", "completed", timeout=LONG_MS)
    assert set(shown_ids(pages[0])) == set(shown_ids(pages[1]))
    # the pages that grew noted one look each, not one for every question
    looks = omni2.sql(
        "SELECT actor, count(*) FROM access_log WHERE subject_user_id = %s AND action = 'history_opened' GROUP BY 1",
        bob,
    )
    assert sorted(looks) == [("august@example.com", 1), ("olga@example.com", 1)]


def test_a_plain_user_has_his_chat_and_his_own_history_and_no_live_page(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    charlie, bob = someone("Charlie Roe"), someone("Bob Kahn")
    others = api.ask(bob, "script:plain not for charlie")["session_id"]
    own = api.ask(charlie, "script:clock what time is it")["session_id"]
    eventually(lambda: len(omni2.sql("SELECT 1 FROM turns WHERE session_id IN (%s, %s)", own, others)) == 2)
    visit.forgive("status of 403")
    visit.forgive("status of 404")
    page = visit(charlie, "/")
    expect(page).to_have_url(f"{omni2.url}/chat/")
    own = ["history\nMy history", "chat\nChat", "data_usage\nMy usage"]
    assert page.locator("#nav-sidebar .shell-groups a").all_inner_texts() == own
    assert page.goto("/live/").status == 403
    assert page.goto(f"/flows/{others}/").status == 404
    page.goto("/flows/")
    expect(page.locator("[data-turn-id]")).to_have_count(1)
    page.locator("#turns .what a").click()
    expect(page.locator('[data-checkpoint="tool_call"]')).to_be_visible()
    socket = page.evaluate(
        """user => new Promise(done => {
            const socket = new WebSocket(`ws://${location.host}/ws/flows/${user}`);
            socket.onmessage = () => done("message");
            socket.onclose = ({ code }) => done(code);
        })""",
        bob,
    )
    assert socket == 4403


def test_history_is_readable_without_javascript(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    answer = api.ask(bob, "script:parallel no script here")
    eventually(lambda: outcome_of(omni2, answer["turn_id"]) == "completed")
    page = visit("olga@example.com", f"/flows/?user_id={bob}", java_script_enabled=False)
    expect(page.get_by_role("cell", name="Bob Kahn")).to_be_visible()
    page.get_by_role("link", name="script:parallel no script here").click()
    expect(page.get_by_text("Within limits")).to_be_visible()
    assert set(shown_ids(page)) == stored_ids(omni2, answer["turn_id"])
    depth = page.locator('[data-checkpoint="tool_call"]').first.evaluate(
        "one => { let depth = 0; for (; one; one = one.parentElement.closest('li')) depth += 1; return depth; }"
    )
    assert depth == 5
    assert json.loads(page.locator("#session-data").inner_text() or "null") is not None
