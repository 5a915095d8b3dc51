"""The live wall: who is watched, every state in words, hostile text, keys, and the choice in the URL."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from playwright.sync_api import Locator, Page, expect

from flows.checkpoints import iso_time, uuid7
from flows.store import store
from tests.browser.conftest import Api, Visits
from tests.browser.test_looks import CONTRAST, overflowing
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
    olga.get_by_role("option", name=bob).click()
    olga.get_by_label("Own").check(force=True)
    olga.get_by_label("Hours").fill("100000")
    olga.get_by_role("button", name="Watch", exact=True).click()
    expect(olga.locator("#watch-ttl-error")).not_to_be_empty()
    olga.get_by_label("1 h").check(force=True)  # before the list of those who are found lies over it
    olga.get_by_label("Who").fill("nobody@nowhere.example")
    olga.get_by_role("button", name="Watch", exact=True).click()
    expect(olga.locator("#watch-who-error")).not_to_be_empty()


def test_the_sheet_stands_still_while_one_types(visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    olga = visit("olga@example.com", "/live/")
    olga.get_by_role("button", name="Watch someone").first.click()
    sheet, who = olga.locator("#watch-sheet"), olga.get_by_label("Who")
    before = sheet.bounding_box()
    who.fill(bob)
    expect(olga.get_by_role("option", name=bob)).to_be_visible()
    assert sheet.bounding_box() == before
    # and the list is gone with the words' focus, since it lies over the fields below
    expect(who).to_have_attribute("aria-expanded", "true")
    who.press("Tab")
    expect(olga.get_by_role("option", name=bob)).to_be_hidden()
    expect(who).to_have_attribute("aria-expanded", "false")


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


# --- slow now ---------------------------------------------------------------------------------------


def store_usual_times(model_ms: int, turns: int = 400) -> None:
    """So many turns of two hours ago, in which the scripted model took so long."""
    begun_us = int((datetime.now(UTC) - timedelta(hours=2)).timestamp() * 1e6)
    steps: list[tuple[str, int | None, int, dict]] = [
        ("auth_check", None, 0, {"status": "passed"}),
        ("llm_thinking", 0, 1, {"status": "started", "model": "scripted"}),
        ("llm_complete", 1, 1 + model_ms, {"status": "ok", "model": "scripted", "duration_ms": model_ms}),
        ("flow_end", 0, 2 + model_ms, {"outcome": "completed", "duration_ms": 2 + model_ms}),
    ]
    documents = []
    for number in range(turns):
        moments = [begun_us + number * 1_000_000 + ms * 1000 for _, _, ms, _ in steps]
        ids = [uuid7(moment) for moment in moments]
        documents += [
            {
                "flow_id": flow_id,
                "user_id": "usual@example.com",
                "session_id": "usual",
                "turn_id": ids[0],
                "checkpoint": name,
                "parent_id": None if parent is None else ids[parent],
                "metadata": metadata,
                "created_at": iso_time(moment),
            }
            for (name, parent, _, metadata), flow_id, moment in zip(steps, ids, moments, strict=True)
        ]
    store([json.dumps(document).encode() for document in documents])


def test_a_step_that_takes_longer_than_usual_says_so(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    omni2.orm(store_usual_times, 600)
    # what is usual is kept for a minute: a process that was just started has not asked yet
    omni2.web[1].end()
    omni2.web[1].start()
    omni2.wait_until_ready()
    olga = visit("olga@example.com", f"/live/?user={bob}", web=1)
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    with api.asking(bob, "script:slow hurry up"):
        row = panel.locator('.row[data-checkpoint="llm_thinking"]')
        expect(row.locator(".row-pace")).to_contain_text(re.compile(r"usual \d+ ms"), timeout=LONG_MS)
        expect(row.locator(".row-bar .is-usual")).to_be_attached()
        # past 95 of 100 it is amber, past three times that red; both in words and by icon
        expect(row).to_have_attribute("data-pace", "slow", timeout=LONG_MS)
        expect(row).to_contain_text("slower than usual")
        expect(row.locator(".row-icon")).to_have_text("hourglass_top")
        expect(olga.locator("#announcements")).to_contain_text("Model thinking is slower than usual", timeout=LONG_MS)
        expect(row).to_have_attribute("data-pace", "far", timeout=LONG_MS)
        expect(row.locator(".row-icon")).to_have_text("warning")
        expect(panel.locator(".turn-meta")).to_contain_text("far slower than usual")
    # when it is over, a quiet mark stays
    expect(panel.locator("[data-outcome]")).to_have_attribute("data-outcome", "completed", timeout=LONG_MS)
    expect(row).to_have_attribute("data-pace", "")
    expect(row.locator(".row-pace.is-slow")).to_contain_text("usual")
    row.click()
    expect(row.locator(".details-sum")).to_contain_text("95 of 100 within")


# --- what is shown: filter, fold, clear ------------------------------------------------------------


def shown_turns(panel: Locator) -> list[str]:
    return [title.removeprefix("script:") for title in panel.locator(".turn:visible .turn-title").all_inner_texts()]


def test_the_filter_shows_what_was_asked_for_and_says_how_much_it_hides(
    visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}")
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    for question in ("script:plain Oslo", "script:clock Bergen", "script:error_500 Narvik"):
        api.ask(bob, question)
    expect(panel.locator("[data-outcome]")).to_have_count(3, timeout=LONG_MS)
    olga.get_by_role("button", name="Failed", exact=True).click()
    expect(panel.locator(".turn:visible .turn-title")).to_have_text(["script:error_500 Narvik"])
    expect(panel.locator(".panel-counts")).to_contain_text("2 hidden by the filter")
    assert olga.url.endswith("&state=failed")
    # one may look for a question, and for a tool or a step that is in no title
    olga.go_back()
    expect(panel.locator(".turn:visible")).to_have_count(3)
    field = olga.get_by_label("Show only turns with")
    field.fill("oslo")
    expect(panel.locator(".turn:visible .turn-title")).to_have_text(["script:plain Oslo"])
    field.fill("CLOCK")
    expect(panel.locator(".turn:visible .turn-title")).to_have_text(["script:clock Bergen"])
    expect(olga).to_have_url(re.compile("filter=CLOCK"))
    # the address shows the same to whoever gets it
    olga.reload()
    expect(field).to_have_value("CLOCK")
    expect(panel.locator(".turn:visible .turn-title")).to_have_text(["script:clock Bergen"], timeout=LONG_MS)
    # what comes and does not match is counted, never silently gone
    api.ask(bob, "script:plain Tromsø")
    expect(panel.locator(".panel-counts")).to_contain_text("3 hidden by the filter", timeout=LONG_MS)
    assert shown_turns(panel) == ["clock Bergen"]
    panel.get_by_role("button", name="Show all turns").click()
    expect(panel.locator(".turn:visible")).to_have_count(4)
    expect(panel.locator(".panel-counts")).to_be_hidden()


def test_a_turn_that_ends_under_the_filter_is_seen_to_end(
    visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}&state=running")
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    with api.asking(bob, "script:slow the running one"):
        expect(panel.locator(".turn:visible")).to_contain_text("the running one", timeout=LONG_MS)
    expect(panel.locator('.turn:visible[data-outcome="completed"]')).to_contain_text("the running one", timeout=LONG_MS)
    # when the next begins it becomes a line among the others, and the filter takes those
    with api.asking(bob, "script:slow the next"):
        expect(panel.locator(".turn:visible")).to_contain_text("the next", timeout=LONG_MS)
        expect(panel.locator(".panel-counts")).to_contain_text("1 hidden by the filter")


def test_turns_are_folded_opened_and_cleared_together(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    olga = visit("olga@example.com", f"/live/?user={bob}")
    panel = panel_of(olga, bob)
    expect(panel.get_by_role("status")).to_have_text("Connected")
    for number in range(3):
        api.ask(bob, f"script:plain question {number}")
    expect(panel.locator("[data-outcome]")).to_have_count(3, timeout=LONG_MS)
    olga.get_by_role("button", name="Expand all").click()
    expect(panel.locator(".turn.is-open")).to_have_count(3)
    olga.get_by_role("button", name="Collapse all").click()
    expect(panel.locator(".turn.is-open")).to_have_count(0)
    expect(panel.locator(".row")).to_have_count(0)
    olga.keyboard.press("e")
    expect(panel.locator(".turn.is-open")).to_have_count(3)

    olga.get_by_role("button", name="Clear ended").click()
    expect(panel.locator(".turn")).to_have_count(0)
    expect(panel.locator(".panel-counts")).to_contain_text("3 turns cleared")
    expect(panel.get_by_role("link", name="in history")).to_have_attribute(
        "href", f"/flows/?user_id={bob.replace('@', '%40')}"
    )
    # they stay away when the connection comes back, and what is new is shown
    olga.context.set_offline(True)
    olga.context.set_offline(False)
    olga.evaluate("dispatchEvent(new Event('online'))")
    api.ask(bob, "script:plain afterwards")
    expect(panel.locator(".turn")).to_have_count(1, timeout=LONG_MS)
    # here only: a page that is opened anew shows them all
    olga.reload()
    expect(panel.locator(".turn")).to_have_count(4, timeout=LONG_MS)


def test_a_chip_extends_and_stops_without_a_panel(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob, hours=0.2)
    olga = visit("olga@example.com", "/live/")
    chip = olga.locator(f'#people [data-user="{bob}"]')
    chip.get_by_label("Extend or stop: Bob Kahn").click()
    chip.get_by_role("button", name="24 h").click()
    expect(chip).to_contain_text("24 h 00", timeout=LONG_MS)
    # any other time has the same sheet as the first one
    chip.get_by_label("Extend or stop: Bob Kahn").click()
    chip.get_by_role("button", name="Another time").click()
    expect(olga.get_by_label("Who")).to_have_value(bob)
    olga.get_by_role("button", name="Cancel").click()
    chip.get_by_label("Extend or stop: Bob Kahn").focus()
    olga.keyboard.press("Enter")
    olga.keyboard.press("Escape")
    expect(chip.get_by_role("button", name="Stop monitoring")).to_have_count(0)
    expect(chip.get_by_label("Extend or stop: Bob Kahn")).to_be_focused()
    olga.keyboard.press("Enter")
    chip.get_by_role("button", name="Stop monitoring").click()
    expect(chip).to_have_count(0, timeout=LONG_MS)


def test_the_legend_names_every_state(visit: Visits) -> None:
    olga = visit("olga@example.com", "/live/")
    legend = olga.get_by_role("group", name="Legend")
    expect(legend).to_be_visible()
    said = legend.evaluate("one => [...one.children].map((entry) => entry.lastChild.textContent.trim())")
    assert {"check", "model", "tool", "anything else", "running", "slower than usual", "far slower"} <= set(said)
    assert {"completed", "refused or stopped", "failed", "left or abandoned", "first token"} <= set(said)
    assert legend.locator(".material-symbols-outlined, .legend-bar, .legend-mark").count() == len(said)


def test_eight_panels_fit_a_wide_and_a_narrow_window(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    people = [someone(f"Person{number} Long-Name von und zu Hohenlohe-Langenburg") for number in range(8)]
    for person in people:
        api.watch(person)
    api.ask(people[0], "script:parallel " + "W" * 300)
    path = "/live/?" + "&".join(f"user={person}" for person in people)
    for width in (1400, 390):
        olga = visit("olga@example.com", path, width=width)
        expect(olga.locator(".panel")).to_have_count(8)
        expect(panel_of(olga, people[0]).locator('[data-outcome="completed"]')).to_be_visible(timeout=LONG_MS)
        assert overflowing(olga) == []
        assert olga.evaluate(CONTRAST) == []
    # a ninth is refused in words
    ninth = someone("Nina Nine")
    api.watch(ninth)
    olga.locator(f'#people [data-user="{ninth}"] .chip').click()
    expect(olga.get_by_role("alert").filter(has_text="At most 8 panels")).to_be_visible()
    expect(olga.locator(".panel")).to_have_count(8)
