"""A stored session: what was said beside the tree, links, growing, comparing, playing; small screens, no script."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from flows import transcript, words
from tests.browser.conftest import NARROW, Api, Visits
from tests.browser.test_looks import overflowing
from tests.browser.test_the_road import LONG_MS, outcome_of, stored_ids
from tests.browser.test_tree import checkpoint, whole_turn
from tests.running import Running, eventually

AUGUST, OLGA = "august@example.com", "olga@example.com"
OPEN_TURN = ".turn.is-open:visible"
# what a tree shows, row by row
PICTURE = """article => [...article.querySelectorAll(".row")].map((row) => [
    row.getAttribute("aria-level"), row.dataset.flowId, row.dataset.kind, row.dataset.state, row.innerText,
    row.querySelector(".row-bar i").style.cssText])"""


class Talk:
    """A session of Bob's with three turns: tools, a failing tool, a failing model; all stored."""

    def __init__(self, omni2: Running, api: Api, bob: str) -> None:
        self.user_id = bob
        first = api.ask(bob, "script:parallel Which invoices are overdue?")
        self.session_id = first["session_id"]
        others = [
            api.ask(bob, f"script:{script} {text}", session_id=self.session_id)
            for script, text in (("bad_sum", "how much is it"), ("error_500", "and now fail"))
        ]
        self.turns = [one["turn_id"] for one in (first, *others)]
        for turn_id in self.turns:
            eventually(lambda turn_id=turn_id: outcome_of(omni2, turn_id), "stored")

    @property
    def path(self) -> str:
        return f"/flows/{self.session_id}/"


@pytest.fixture(scope="module")
def talk(omni2: Running) -> Talk:
    bob = omni2.create_user("bob.talks@example.com", "Bob Kahn").user_id
    return Talk(omni2, Api(omni2), str(bob))


def turn_of(page: Page, turn_id: str) -> Any:
    return page.locator(f'#session .turn[data-turn-id="{turn_id}"]:not([hidden])')


# --- what was said ------------------------------------------------------------------------------------


def test_what_was_said_stands_beside_the_tree(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    first, second, third = (turn_of(page, turn_id) for turn_id in talk.turns)
    said = first.locator(".said > li")
    expect(said.first).to_contain_text("Which invoices are overdue?")
    expect(first.locator('.said > li[data-part="tool"]')).to_have_count(3)
    expect(first.locator('.said > li[data-part="answer"]')).to_have_count(1)
    expect(second.locator('.said > li[data-part="tool"][data-state="failed"]')).to_contain_text("failed: ")
    expect(third.locator('.said > li[data-part="problem"]')).to_be_visible()
    beside = first.evaluate(
        """turn => turn.querySelector(".transcript").getBoundingClientRect().left
            >= turn.querySelector(".rows").getBoundingClientRect().right - 1"""
    )
    assert beside
    expect(page.locator('[data-fact="turns"]')).to_have_text("3")
    expect(page.locator('[data-fact="outcomes"]')).to_contain_text("2 completed")


def test_a_row_marks_its_line_and_a_line_its_row(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    turn = turn_of(page, talk.turns[0])
    row = turn.locator('.row[data-checkpoint="tool_call"]').nth(1)
    flow_id = row.get_attribute("data-flow-id")
    row.click()
    expect(turn.locator(".said > li[aria-current]")).to_have_attribute("data-of", str(flow_id))
    assert page.url.endswith(f"#{flow_id}")

    turn.locator('.said > li[data-part="answer"]').click()
    answered = turn.locator('.row[aria-selected="true"]')
    expect(answered).to_have_attribute("data-checkpoint", "llm_thinking")
    expect(answered).to_contain_text("Model answered")
    expect(turn.locator(".said > li[aria-current]")).to_have_attribute("data-part", "answer")


def test_the_lines_can_be_walked_with_the_keys_alone(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    turn = turn_of(page, talk.turns[0])
    turn.locator(".said-step").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(turn.locator('.row[aria-selected="true"]')).to_have_attribute("data-checkpoint", "tool_call")
    assert turn.locator('.said-step[tabindex="0"]').count() == 1


SAID = """list => import("/static/js/transcript.js").then(({ linesOf }) => linesOf(list))"""


def test_the_lines_are_the_ones_the_server_writes(visit: Visits, api: Api, talk: Talk) -> None:
    page = visit(AUGUST, "/account/password/")
    flows = api(OLGA, f"/api/v1/flows/session/{talk.session_id}")[1]["flows"]
    made = [
        checkpoint(None, "auth_check", None, 0, status="passed"),
        checkpoint(None, "usage_check", None, 1, status="failed", limit_name="turns_at_once", used=9, limit=8),
        checkpoint(None, "llm_complete", None, 2, status="ok", finish_reason="stop"),
        checkpoint(None, "llm_complete", None, 3, status="ok", answer="x" * 199 + "…"),
        checkpoint(None, "tool_call", None, 4, tool=None, arguments='{"a": [1, 2.0, null, true]}'),
        checkpoint(None, "tool_result", None, 5, status="ok", result={"a": {"b": "c"}}),
        checkpoint(None, "flow_end", None, 6, outcome="disconnected", duration_ms=1250),
    ]
    for rows in (flows, whole_turn(), made):
        lines = transcript.lines_of(rows)
        here = [{field: getattr(line, field) for field in line.__slots__} for line in lines]
        assert page.evaluate(SAID, rows) == here


DESCRIBE = """pairs => import("/static/js/words.js").then(({ describe }) => pairs.map(([start, end, over]) => {
    const { icon, kind, state, label, facts } = describe({ start, end, over });
    return [icon, kind, state, label, facts];
}))"""


def described() -> list[tuple[dict, dict | None, bool]]:
    """Rows of every kind in every state, as turns make them."""

    def row(name: str, **metadata: object) -> dict:
        return {"checkpoint": name, "metadata": metadata}

    thinking = row("llm_thinking", model="m-1", round=2, status="started")
    call = row("tool_call", tool="search", arguments='{"office": "Oslo", "years": [2025, 2026], "paid": false}')
    alone = [
        row("auth_check", status="passed", method="token", token="laptop"),
        row("auth_check", status="passed", method="session"),
        row("auth_check", status="failed", method="token", reason="revoked"),
        row("block_check", status="failed", message="Enough\n for  today."),
        row("block_check", status="failed", reason="spam"),
        row("usage_check", status="passed", used=1234, limit=5000),
        row("usage_check", status="failed", used=2, limit=1, limit_name="cost_usd_per_day"),
        row(
            "usage_check",
            status="failed",
            used=8,
            limit=8,
            limit_name="turns_at_once",
            resets_at="2026-11-22T06:00:00Z",
        ),
        row("usage_check", status="failed", reason="unknown"),
        row("tool_filter", status="passed", offered=["a", "b"], withheld=[{"tool": "c", "reason": "no right"}, "d"]),
        row("mcp_permission_check", status="failed", offered=1, reason="none allowed"),
        row("mcp_permission_check", status="passed", offered=2, total=5),
        row("mcp_permission_check", status="passed", offered=1, withheld=[{"server": "s", "reason": "switched off"}]),
        row("tool_approval", status="started", tool="pay", server="bank", expires_in_s=300),
        *(row("tool_approval", status=each, tool="pay", duration_ms=5) for each in ("approved", "declined", "expired")),
        row("tool_approval", status="cancelled"),
        row("llm_complete", status="ok", finish_reason="stop", input_tokens=1000, output_tokens=234, ttft_ms=12.5),
        row("tool_result", status="error", tool="search", error="timed out"),
        row("error", code="llm_timeout", message="The model took too long."),
        row("error", code="odd", message="x" * 300),
        row("error", code="stopped", message="Please wait.", stopped_by="a@x", stopped_by_name="Ada", reason="why"),
        row("error", code="stopped", message="You stopped this answer.", stopped_by="a@x", stopped_by_name=""),
        row("error", code="stopped", message="For its user.", reason=7),
        row("flow_end", outcome="completed", duration_ms=3149),
        row("flow_end", outcome="refused", duration_ms=3),
        row("flow_end", outcome="stopped", stopped_by="Ada", duration_ms=125_000),
        row("flow_end", outcome="stopped", stopped_by="a@x", stopped_by_name="Ada"),
        row("flow_end", outcome="stopped", stopped_by=1, stopped_by_name=" "),
        row("flow_end", outcome="abandoned"),
        row("flow_end", outcome="odd"),
        row("sentiment_scan", mood="good", score=1.0, sure=True, parts=[1], nothing=None),
    ]
    ends = [
        (thinking, row("llm_complete", status="ok", finish_reason="tool_call", input_tokens=5, cost_usd=0.0123)),
        (thinking, row("llm_complete", status="error", error="llm_failed", duration_ms=5)),
        (thinking, row("llm_complete", status="cancelled")),
        (thinking, None),
        (call, row("tool_result", status="ok", result="4")),
        (call, row("tool_result", status="error", error='{"why": "timed out"}')),
        (call, row("tool_result", status="cancelled")),
        (call, None),
        (row("tool_call", arguments="not json"), None),
    ]
    return [(start, None, True) for start in alone] + [(*pair, over) for pair in ends for over in (True, False)]


def test_each_row_says_the_same_with_and_without_a_script(visit: Visits) -> None:
    page = visit(AUGUST, "/account/password/")
    pairs = described()
    here = [list(words.describe(start, end, over=over)) for start, end, over in pairs]
    for pair, told, drawn in zip(pairs, here, page.evaluate(DESCRIBE, [list(pair) for pair in pairs]), strict=True):
        assert told == drawn, pair


# --- links --------------------------------------------------------------------------------------------


def test_a_link_leads_to_any_checkpoint_and_brackets_to_the_turns_beside(visit: Visits, api: Api, talk: Talk) -> None:
    flows = api(OLGA, f"/api/v1/flows/session/{talk.session_id}")[1]["flows"]
    result = next(one for one in flows if one["checkpoint"] == "tool_result" and one["turn_id"] == talk.turns[1])
    page = visit(AUGUST, f"{talk.path}#{result['flow_id']}")
    expect(turn_of(page, talk.turns[1]).locator(".row .details")).to_be_visible()
    expect(turn_of(page, talk.turns[1]).locator(".said > li[aria-current]")).to_have_attribute("data-part", "tool")

    page.keyboard.press("]")
    expect(turn_of(page, talk.turns[2]).locator(".turn-head")).to_be_focused()
    assert page.url.endswith(talk.turns[2])
    page.keyboard.press("[")
    page.keyboard.press("[")
    expect(turn_of(page, talk.turns[0]).locator(".turn-head")).to_be_focused()
    turn_of(page, talk.turns[0]).get_by_role("link", name="Turn after").click()
    expect(turn_of(page, talk.turns[1]).locator(".turn-head")).to_be_focused()
    expect(turn_of(page, talk.turns[2]).get_by_role("link", name="Turn after")).to_be_disabled()


def test_the_sessions_of_one_person_lead_to_each_other(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    one, two = api.ask(bob, "script:plain first"), api.ask(bob, "script:plain second")
    eventually(lambda: outcome_of(omni2, two["turn_id"]) and outcome_of(omni2, one["turn_id"]))
    page = visit(AUGUST, f"/flows/{one['session_id']}/")
    page.get_by_role("link", name="Session after this one").click()
    expect(page.locator(".shell-head h1")).to_have_text("script:plain second")
    assert page.get_by_role("link", name="Session after this one").count() == 0
    page.get_by_role("link", name="Session before this one").click()
    expect(page.locator(".shell-head h1")).to_have_text("script:plain first")


def test_a_session_is_taken_along(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    for name, begins in (("Session as JSON", '{"session_id"'), ("Checkpoints as CSV", "turn_id,flow_id")):
        page.locator(".menu:not(.legend-menu) > summary").click()
        with page.expect_download() as download:
            page.get_by_role("link", name=name).click()
        assert download.value.path().read_text().startswith(begins)
        page.keyboard.press("Escape")
        page.reload()


def test_its_legend_says_what_colours_and_marks_mean(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    legend = page.get_by_role("group", name="Legend")
    expect(legend).to_be_hidden()
    page.locator(".legend-menu > summary").click()
    expect(legend).to_contain_text("first token")


# --- long and growing sessions ------------------------------------------------------------------------


def stored_session(omni2: Running, user_id: str, turns: list[list[dict]]) -> str:
    """These turns as one session of this user, stored as the persister stores them."""
    import uuid

    from flows.store import store

    session_id = str(uuid.uuid4())
    rows = [{**row, "user_id": user_id, "session_id": session_id} for turn in turns for row in turn]
    omni2.orm(store, [json.dumps(row).encode() for row in rows])
    return session_id


def test_of_a_long_session_older_turns_are_lines_that_open(
    omni2: Running, visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    many = [whole_turn(number * 20, f"question {number}") for number in range(150)]
    session_id = stored_session(omni2, bob, many)
    page = visit(AUGUST, f"/flows/{session_id}/")
    turns = page.locator("#session .turn")
    expect(turns).to_have_count(150)
    first = turns.first
    expect(first.locator(".turn-title")).to_have_text("question 0")
    expect(first.locator(".turn-meta")).to_contain_text("2 tools")
    expect(first.locator(".row")).to_have_count(0)
    expect(turns.last.locator(".row").first).to_be_attached()
    facts = page.locator('[data-fact="tools"]')
    expect(facts).to_have_text("300")
    page.get_by_role("link", name="to the newest").click()
    expect(turns.last.locator(".turn-head")).to_be_focused()
    first.locator(".turn-head").click()
    expect(first.locator(".row")).to_have_count(8)
    expect(first.locator('.said > li[data-part="asked"]')).to_contain_text("question 0")
    expect(first.locator(".turn-meta")).to_contain_text("2 tools")

    # a link into a turn that did not come along brings it
    call = next(one for one in many[3] if one["checkpoint"] == "tool_call")
    page.goto("about:blank")
    page.goto(f"/flows/{session_id}/#{call['flow_id']}")
    expect(turns.nth(3).locator(".details")).to_be_visible()
    expect(turns.nth(3).locator(".said > li[aria-current]")).to_have_attribute("data-of", call["flow_id"])


def test_of_thousands_of_lines_the_one_of_a_row_is_shown(
    omni2: Running, visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    auth, *checks, end = whole_turn(0, "a big turn")
    calls = [checkpoint(None, "tool_call", checks[2], 910 + i / 10, tool=f"t{i}") for i in range(1500)]
    session_id = stored_session(omni2, bob, [[auth, *checks, *calls, end]])
    page = visit(AUGUST, f"/flows/{session_id}/")
    lines = page.locator(".said > li")
    expect(lines).to_have_count(300)
    page.goto(f"/flows/{session_id}/#{calls[900]['flow_id']}")
    expect(page.locator(".said > li[aria-current]")).to_contain_text("t900")
    more = page.locator(".transcript > .link-button")
    expect(more).to_have_text("Show 300 more")
    more.click()
    expect(lines).to_have_count(1503)


def test_what_was_said_grows_with_the_turn(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    session_id = api.ask(bob, "script:plain first")["session_id"]
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE session_id = %s AND outcome = 'completed'", session_id))
    api.watch(bob)
    page = visit(OLGA, f"/flows/{session_id}/")
    expect(page.locator("#session .turn")).to_have_count(1)
    with api.asking(bob, "script:parallel+slow second", session_id=session_id):
        grown = page.locator("#session .turn").nth(1)
        expect(grown.locator(".said > li").first).to_contain_text("second", timeout=LONG_MS)
        expect(grown.locator('.said > li[data-part="tool"]')).to_have_count(3, timeout=LONG_MS)
        expect(grown.get_by_role("button", name="Play")).to_be_hidden()
    expect(grown.locator('.said > li[data-part="answer"]')).to_be_visible(timeout=LONG_MS)
    expect(grown.get_by_role("button", name="Play")).to_be_visible()
    expect(page.locator('[data-fact="turns"]')).to_have_text("2")


# --- compare ------------------------------------------------------------------------------------------


def test_two_turns_are_chosen_and_compared(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    turn_of(page, talk.turns[0]).get_by_role("link", name="Compare", exact=True).click()
    expect(page.locator("#comparing")).to_contain_text("is chosen to be compared")
    expect(turn_of(page, talk.turns[0]).get_by_text("Chosen")).to_be_visible()
    turn_of(page, talk.turns[2]).get_by_role("link", name="Compare with this").click()
    expect(page.locator(".compare-card")).to_have_count(2)
    assert f"a={talk.turns[0]}" in page.url
    assert f"b={talk.turns[2]}" in page.url
    only = page.locator('.pairs tr[data-only="a"][data-kind="tool"]')
    expect(only).to_have_count(3)
    expect(only.first.locator(".only")).to_contain_text("only in A")
    expect(page.locator(".compare-totals tr", has_text="Outcome")).to_contain_text("differs")

    page.get_by_role("link", name="Swap A and B").click()
    expect(page.locator('.pairs tr[data-only="b"][data-kind="tool"]')).to_have_count(3)
    expect(page.locator('.pairs tr[data-only="a"]')).to_have_count(
        page.locator('.pairs tr[data-kind="error"][data-only="a"]').count()
    )
    page.locator('.pairs tr[data-kind="tool"] td a').first.click()
    expect(page.locator(".details")).to_be_visible()


def test_the_second_turn_is_found_among_those_like_it(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, f"{talk.path}?compare={talk.turns[0]}")
    page.get_by_role("link", name="among turns like it").click()
    expect(page.locator(".compare-candidates tr[data-turn-id]")).to_have_count(2)
    page.get_by_label("Turn B: its link or its id").fill(f"http://anywhere{talk.path}#{talk.turns[1]}")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator(".compare-card").nth(1)).to_contain_text("how much is it")


# --- play ---------------------------------------------------------------------------------------------


def test_at_16x_a_played_turn_ends_as_the_stored_one(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path)
    stored = turn_of(page, talk.turns[0])
    expect(stored.locator('.row[data-checkpoint="flow_end"]')).to_be_attached()
    picture, said = stored.evaluate(PICTURE), stored.locator(".said").inner_text()
    stored.get_by_role("button", name="Play").click()
    player = page.locator(".player")
    player.get_by_role("button", name="16 times the speed").click()
    assert f"play={talk.turns[0]}&speed=16" in page.url
    expect(player).to_have_attribute("data-state", "ended", timeout=LONG_MS)
    played = player.locator(".turn")
    expect(played).to_have_attribute("data-outcome", "completed")
    assert played.evaluate(PICTURE) == picture
    assert played.locator(".said").inner_text() == said
    player.get_by_role("button", name="End playing").click()
    expect(player).to_have_count(0)
    expect(stored.locator(".turn-head")).to_be_focused()
    assert "play=" not in page.url


def test_it_plays_at_any_speed_and_place_and_the_url_restores_it(
    omni2: Running, visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    turn = whole_turn(0, "a minute of waiting")
    minute = [{**one, "created_at": one["created_at"].replace("12:26", "12:27")} for one in turn[6:]]
    turn_id = turn[0]["flow_id"]
    session_id = stored_session(omni2, bob, [turn[:6] + minute])
    page = visit(AUGUST, f"/flows/{session_id}/?play={turn_id}&speed=4")
    player = page.locator(".player")
    expect(player.locator('.player-speed[aria-pressed="true"]')).to_have_text("4x")
    expect(player.locator(".player-clock")).to_contain_text("/ 1 min 02 s")
    player.get_by_role("button", name="Pause").click()
    scrubber = player.get_by_role("slider")
    scrubber.focus()
    page.keyboard.press("Home")
    expect(scrubber).to_have_attribute("aria-valuetext", "0 s of 1 min 02 s")
    expect(player.locator(".row")).to_have_count(1)
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    expect(player.locator('.row[data-state="running"]')).to_have_count(1)
    expect(player.locator(".turn")).not_to_have_attribute("data-outcome", "completed")
    page.keyboard.press("End")
    expect(player.locator(".turn")).to_have_attribute("data-outcome", "completed")
    # and back again: what came later is gone
    page.keyboard.press("Home")
    expect(player.locator(".row")).to_have_count(1)
    expect(player.locator(".said > li")).to_have_count(1)

    # a minute of silence is cut short
    player.get_by_label("Skip silences").check()
    player.get_by_role("button", name="16 times the speed").click()
    player.get_by_role("button", name="Play", exact=True).click()
    expect(player).to_have_attribute("data-state", "ended", timeout=LONG_MS)


def test_with_little_motion_nothing_plays_by_itself(visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, f"{talk.path}?play={talk.turns[0]}&speed=16", reduced_motion="reduce")
    player = page.locator(".player")
    expect(player).to_have_attribute("data-state", "paused")
    player.get_by_role("button", name="Play", exact=True).press("Enter")
    expect(player).to_have_attribute("data-state", "ended", timeout=LONG_MS)
    expect(player.locator(".turn")).to_have_attribute("data-outcome", "completed")


# --- small screens, no script -------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_fits_a_small_screen(visit: Visits, talk: Talk, theme: str) -> None:
    page = visit(AUGUST, f"{talk.path}?play={talk.turns[0]}&speed=16", width=NARROW, theme=theme)
    expect(page.locator(".player .row").first).to_be_visible()
    assert overflowing(page) == []
    turn = turn_of(page, talk.turns[1])
    below = turn.evaluate(
        """turn => turn.querySelector(".transcript").getBoundingClientRect().top
            >= turn.querySelector(".rows").getBoundingClientRect().bottom - 1"""
    )
    assert below
    for query in (f"a={talk.turns[0]}&b={talk.turns[1]}", f"a={talk.turns[0]}", ""):
        page.goto(f"/flows/compare/?{query}")
        assert overflowing(page) == [], query


def test_hostile_text_is_said_as_text(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    turn = whole_turn(0, "<img src=/x onerror=alert(1)> " + "w" * 5000 + " שלום עולם 🦊")
    turn[5]["metadata"] = {"tool": "<b>search</b>", "arguments": json.dumps({"<i>": "v" * 3000})}
    session_id = stored_session(omni2, bob, [turn])
    for width in (1400, NARROW):
        page = visit(AUGUST, f"/flows/{session_id}/", width=width)
        expect(page.locator(".said > li").first).to_contain_text("<img src=/x")
        expect(page.locator('.said > li[data-part="tool"]').first).to_contain_text("<b>search</b>")
        assert page.locator("#session img").count() == 0
        assert overflowing(page) == []
        page.goto(f"/flows/compare/?a={turn[0]['flow_id']}&b={turn[0]['flow_id']}")
        assert overflowing(page) == []


def test_without_a_script_it_is_lists(omni2: Running, visit: Visits, talk: Talk) -> None:
    page = visit(AUGUST, talk.path, java_script_enabled=False)
    drawn = page.locator("[data-flow-id]").evaluate_all("all => all.map(one => one.dataset.flowId)")
    assert set(drawn) == set().union(*(stored_ids(omni2, turn_id) for turn_id in talk.turns))
    assert len(drawn) == len(set(drawn))
    first = page.locator(f'[data-turn-id="{talk.turns[0]}"]')
    expect(first.locator('.said > [data-part="tool"]')).to_have_count(3)
    expect(first.locator(".plain-tree")).to_contain_text("Within limits")
    first.get_by_role("link", name="Compare").click()
    page.locator(f'[data-turn-id="{talk.turns[1]}"]').get_by_role("link", name="Compare with the chosen one").click()
    expect(page.locator(".pairs")).to_be_visible()
