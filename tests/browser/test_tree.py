"""The tree component by itself: any order, no doubles, one row for a step, thousands of rows, the words."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from chat.endpoint import STATUS_OF
from flows import words
from flows.checkpoints import uuid7
from omni2.env import BASE_DIR
from tests.browser.conftest import Visits

START_US = 1_795_000_000_000_000


def checkpoint(turn: str | None, name: str, parent: dict | None, at_ms: float, **metadata: object) -> dict:
    moment = START_US + int(at_ms * 1000)
    flow_id = uuid7(moment)
    return {
        "flow_id": flow_id,
        "user_id": "bob@example.com",
        "session_id": "s",
        "turn_id": turn or (parent or {}).get("turn_id") or flow_id,
        "checkpoint": name,
        "parent_id": parent and parent["flow_id"],
        "metadata": metadata,
        "created_at": f"2026-11-18T12:26:{40 + at_ms / 1000:09.6f}Z",
    }


def whole_turn(at_ms: float = 0, question: str = "How much?") -> list[dict]:
    auth = checkpoint(None, "auth_check", None, at_ms, status="passed", method="session", question=question)
    block = checkpoint(None, "block_check", auth, at_ms + 1, status="passed")
    usage = checkpoint(None, "usage_check", block, at_ms + 2, status="passed", used=3, limit=500)
    thinking = checkpoint(None, "llm_thinking", usage, at_ms + 3, status="started", model="m", round=1)
    answered = checkpoint(None, "llm_complete", thinking, at_ms + 900, status="ok", finish_reason="tool_call")
    one = checkpoint(None, "tool_call", thinking, at_ms + 901, status="started", tool="search")
    two = checkpoint(None, "tool_call", thinking, at_ms + 902, status="started", tool="convert")
    result = checkpoint(None, "tool_result", one, at_ms + 1500, status="ok")
    failed = checkpoint(None, "tool_result", two, at_ms + 1600, status="error", error="timed out")
    odd = checkpoint(None, "cache_lookup", usage, at_ms + 1610, hit=False)
    end = checkpoint(None, "flow_end", auth, at_ms + 1700, outcome="completed", duration_ms=1700)
    return [auth, block, usage, thinking, answered, one, two, result, failed, odd, end]


EXPECTED = [
    (1, "auth_check", "Signed in"),
    (2, "block_check", "Not blocked"),
    (3, "usage_check", "Within limits"),
    (4, "llm_thinking", "Model chose tools"),
    (5, "tool_call", "search"),
    (5, "tool_call", "convert"),
    (4, "cache_lookup", "cache_lookup"),
    (2, "flow_end", "Completed"),
]
DRAWN = """() => [...document.querySelectorAll(".row")].map((one) =>
    [Number(one.getAttribute("aria-level")), one.dataset.checkpoint, one.querySelector(".row-label").textContent])"""
FEED = """async ([lists, order]) => {
    const { FlowTree } = await import("/static/js/flow_tree.js");
    const place = document.getElementById("content");
    place.replaceChildren();
    const tree = (window.tree = new FlowTree(place, { order }));
    for (const list of lists) { for (const one of list) tree.add(one); tree.flush(); }
}"""


@pytest.fixture
def page(visit: Visits) -> Page:
    """A page of the product with nothing on it but the tree."""
    return visit("charlie@example.com", "/account/password/")


def test_it_draws_a_turn_in_rows_where_start_and_end_are_one(page: Page) -> None:
    turn = whole_turn()
    page.evaluate(FEED, [[turn], "oldest"])
    assert page.evaluate(DRAWN) == [list(row) for row in EXPECTED]
    ids = page.locator("[data-flow-id]").evaluate_all("all => all.map((one) => one.dataset.flowId)")
    assert sorted(ids) == sorted(one["flow_id"] for one in turn)
    expect(page.locator("[data-turn-id]")).to_have_attribute("data-outcome", "completed")
    expect(page.locator('.row[data-state="failed"]')).to_contain_text("timed out")


@pytest.mark.parametrize(
    "shuffle", [lambda list_: list_[::-1], lambda list_: list_[5:] + list_[:5], lambda list_: list_ * 2]
)
def test_the_order_of_arrival_changes_nothing(page: Page, shuffle: Callable[[list], list]) -> None:
    one, other = whole_turn(0, "first"), whole_turn(400, "second")
    mixed = [each for pair in zip(one, other, strict=True) for each in pair]
    page.evaluate(FEED, [[[each] for each in shuffle(mixed)], "oldest"])
    assert page.evaluate(DRAWN) == [list(row) for row in EXPECTED] * 2
    expect(page.locator(".turn-title")).to_have_text(["first", "second"])
    assert page.locator("[data-flow-id]").count() == 22


def test_each_moment_of_a_turn_can_be_drawn_and_grows_into_the_whole(page: Page) -> None:
    turn = whole_turn()
    for seen in range(1, len(turn)):
        page.evaluate(FEED, [[turn[:seen], turn[seen - 1 :]], "newest"])
        assert page.evaluate(DRAWN) == [list(row) for row in EXPECTED], seen


def test_a_fresh_snapshot_replaces_what_is_shown(page: Page) -> None:
    kept, gone, new = whole_turn(0, "kept"), whole_turn(2000, "gone"), whole_turn(4000, "new")
    page.evaluate(FEED, [[kept[:4], gone], "oldest"])
    page.locator(".row").first.click()
    page.evaluate("list => { tree.replace(list); tree.flush(); }", kept + new)
    expect(page.locator(".turn-title")).to_have_text(["kept", "new"])
    # what was open stays open: the rows were not drawn anew
    expect(page.locator(".turn").first.locator(".details")).to_be_visible()
    assert page.locator("[data-flow-id]").count() == 22


def test_parents_in_a_circle_and_without_a_turn_are_drawn_once_each(page: Page) -> None:
    a = checkpoint("t", "one", None, 0)
    b = checkpoint("t", "two", a, 1)
    a["parent_id"] = b["flow_id"]
    bare = {**checkpoint(None, "bare", None, 5), "turn_id": None, "metadata": None}
    page.evaluate(FEED, [[[a, b, bare]], "oldest"])
    assert page.locator("[data-flow-id]").count() == 3
    expect(page.locator("[data-turn-id]")).to_have_count(2)


def big_turn(rows: int = 5000) -> list[dict]:
    auth = checkpoint("big", "auth_check", None, 0, status="passed", question="big")
    return [auth, *(checkpoint("big", "tool_call", auth, 1 + i / 100, tool=f"t{i}") for i in range(rows))]


SCROLLING = """() => { const place = document.getElementById("content");
    place.style.cssText = "height: 600px; overflow: auto; position: relative"; }"""
IN_VIEW = """() => { const box = document.getElementById("content").getBoundingClientRect();
    return [...document.querySelectorAll(".row")].filter((one) => {
        const { top, bottom } = one.getBoundingClientRect();
        return bottom > box.top + 40 && top < Math.min(box.bottom, innerHeight);
    }).map((one) => one.querySelector(".row-label").textContent); }"""


def test_of_a_big_turn_the_rows_near_the_view_are_drawn_and_every_row_can_be_reached(page: Page) -> None:
    page.evaluate(SCROLLING)
    turn = big_turn()
    page.evaluate(FEED, [[turn], "newest"])
    page.evaluate("tree.follow = false")
    rows = page.locator(".row")
    expect(page.locator(".rows")).to_have_attribute("aria-label", "Steps of “big”")
    assert 20 < rows.count() < 150
    # what is not drawn keeps its room: the page is as long as if it were
    assert page.evaluate("document.querySelector('.rows').offsetHeight") == 5001 * 27
    # anywhere one scrolls to, there are the rows that belong there, without a hole
    for top in (0, 60_000, 134_000, 27_000):
        page.evaluate("top => { document.getElementById('content').scrollTop = top; }", top)
        page.wait_for_function(f"({IN_VIEW})().length > 15")
        seen = [int(label[1:]) for label in page.evaluate(IN_VIEW) if label.startswith("t")]
        assert seen == list(range(seen[0], seen[-1] + 1)), top
        assert rows.count() < 150
    # the keyboard reaches the last, which says where it stands among those that are not drawn
    page.locator(".turn-head").focus()
    page.evaluate("tree.moveFocus(1)")
    page.keyboard.press("End")
    expect(page.locator(".row:focus .row-label")).to_have_text("t4999")
    expect(page.locator(".row:focus")).to_have_attribute("aria-posinset", "5000")
    expect(page.locator(".row:focus")).to_have_attribute("aria-setsize", "5000")
    # focus and open details stay, however far one looks elsewhere and whatever comes
    page.keyboard.press("Enter")
    page.evaluate("document.getElementById('content').scrollTop = 0")
    page.wait_for_function(f"({IN_VIEW})().includes('t3')")
    page.evaluate("one => { tree.add(one); tree.flush(); }", checkpoint("big", "tool_call", turn[0], 99, tool="late"))
    expect(page.locator(".row:focus .row-label")).to_have_text("t4999")
    expect(page.locator(".details")).to_have_count(1)
    # and a link leads to any of them
    page.evaluate("id => tree.reveal(id)", turn[2501]["flow_id"])
    expect(page.locator(".row:focus .row-label")).to_have_text("t2500")
    expect(page.locator(".row:focus .details")).to_be_in_viewport()


def test_old_turns_free_their_checkpoints_and_then_their_line(page: Page) -> None:
    page.evaluate(FEED, [[[]], "newest"])
    big = big_turn()
    end = checkpoint("big", "flow_end", big[0], 100, outcome="completed")
    many = [each for number in range(360) for each in whole_turn(200 + number, f"turn {number}")]
    page.evaluate("list => { for (const one of list) { tree.add(one); tree.flush(); } }", [*big, end])
    page.evaluate("list => { for (const one of list) { tree.add(one); tree.flush(); } }", many)
    assert page.locator(".row").count() < 30
    held = page.evaluate("[...tree.turns.values()].filter((turn) => turn.steps.size).length")
    assert 20 < held < 45
    assert page.evaluate("tree.turnOf.size") < 45 * 11
    # what was dropped is counted: it is in history, not here
    assert page.evaluate("[tree.turns.size, tree.older]") == [301, 60]
    expect(page.locator("[data-turn-id]")).to_have_count(301)
    # one that lost its checkpoints is brought from history when it is opened, with the same sums
    line = page.locator(".turn-head", has_text="turn 100")
    before = line.inner_text()
    page.evaluate("list => { tree.load = async (_, id) => list.filter((one) => one.turn_id === id); }", many)
    line.click()
    expect(page.locator(".turn", has_text="turn 100").locator(".row")).to_have_count(8)
    assert line.inner_text() == before


def test_a_new_turn_pushes_nothing_that_is_being_read(page: Page) -> None:
    page.evaluate(FEED, [[whole_turn(0, "read me"), whole_turn(2000, "newest")], "newest"])
    page.locator(".turn-head", has_text="read me").click()
    page.locator(".turns-earlier .row").nth(2).click()
    where = page.locator(".turns-earlier .row").nth(2).bounding_box()
    page.evaluate("list => { for (const one of list) tree.add(one); tree.flush(); }", whole_turn(4000, "later"))
    assert page.locator(".turns-earlier .row").nth(2).bounding_box() == where
    page.get_by_role("button", name="1 new turn: show").click()
    expect(page.locator(".turns-now .turn-title")).to_have_text("later")


def test_the_words_are_the_same_with_and_without_javascript(page: Page) -> None:
    tables = page.evaluate(
        """import("/static/js/words.js").then(({ CHECKPOINTS, UNKNOWN, OUTCOMES, REASONS }) =>
            ({ CHECKPOINTS, UNKNOWN, OUTCOMES, REASONS }))"""
    )
    assert tables["CHECKPOINTS"] == {name: dict(row) for name, row in words.CHECKPOINTS.items()}
    assert tables["UNKNOWN"] == dict(words.UNKNOWN)
    assert tables["OUTCOMES"] == {name: dict(row) for name, row in words.OUTCOMES.items()}
    assert tables["REASONS"] == dict(words.REASONS)


def test_every_reason_the_chat_gives_has_words() -> None:
    said = (BASE_DIR / "chat").glob("*.py")
    codes = {
        code
        for file in said
        for code in re.findall(r'"(llm_\w+|tool_failed|too_many_\w+|context_too_long)"', Path(file).read_text())
    }
    codes -= {"llm_thinking", "llm_complete"}
    assert codes
    assert codes | STATUS_OF.keys() <= set(words.REASONS)


def test_numbers_read_the_same_on_both_sides(page: Page) -> None:
    times = [0.2, 3, 999.4, 1400, 59_949, 59_950, 125_000, 4_320_000]
    prices = [0, 0.004, 0.000021, 0.0113, 0.5, 12.4]
    read = page.evaluate(
        """([times, prices]) => import("/static/js/format.js").then(({ duration, money }) =>
            [times.map(duration), prices.map(money)])""",
        [times, prices],
    )
    assert read == [[words.duration(ms) for ms in times], [words.money(usd) for usd in prices]]
    assert read[0] == ["<1 ms", "3 ms", "999 ms", "1.4 s", "59.9 s", "1 min 00 s", "2 min 05 s", "1 h 12 min"]
    assert read[1] == ["$0", "$0.004", "$0.000021", "$0.011", "$0.50", "$12.40"]
