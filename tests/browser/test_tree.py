"""The tree component by itself: any order, no doubles, one row for a step, thousands of rows, the words."""

import json
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
    const tree = (window.tree = new FlowTree(place, { order/* options */ }));
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
    page.evaluate("list => { for (const one of list) tree.add(one); tree.flush(); }", [*big, end])
    # what follows comes in two halves a turn, so that each is drawn while it runs
    page.evaluate(
        """list => list.forEach((one, at) => {
            tree.add(one);
            if (at % 11 === 5 || one.checkpoint === "flow_end") tree.flush();
        })""",
        many,
    )
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


def test_a_folded_step_says_what_is_below_it_and_the_turn_its_totals(page: Page) -> None:
    auth = checkpoint(None, "auth_check", None, 0, status="passed", question="sums")
    first = checkpoint(None, "llm_thinking", auth, 1, status="started", model="m", round=1)
    answered = checkpoint(
        None, "llm_complete", first, 400, status="ok", input_tokens=1000, output_tokens=204, cost_usd=0.003
    )
    call = checkpoint(None, "tool_call", first, 401, status="started", tool="search")
    result = checkpoint(None, "tool_result", call, 2000, status="error", error="away")
    second = checkpoint(None, "llm_thinking", auth, 2001, status="started", model="m", round=2)
    last = checkpoint(None, "llm_complete", second, 3000, status="ok", input_tokens=10, output_tokens=6, cost_usd=0.001)
    page.evaluate(FEED, [[[auth, first, answered, call, result, second, last]], "oldest"])
    expect(page.locator(".turn-meta")).to_contain_text("1 tool · 1,220 tok · $0.004")
    row = page.locator(f'[data-flow-id="{auth["flow_id"]}"]')
    row.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".row")).to_have_count(1)
    expect(row.locator(".row-sum")).to_have_text("3 steps, 1 failed · 1,220 tok · $0.004")
    expect(row.locator(".row-time")).to_have_text("3.0 s")
    # what comes below it meanwhile is counted
    third = checkpoint(None, "tool_call", second, 3001, status="started", tool="search")
    page.evaluate("one => { tree.add(one); tree.flush(); }", third)
    expect(row.locator(".row-sum")).to_contain_text("4 steps, 1 failed")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".row")).to_have_count(5)
    expect(row.locator(".row-sum")).to_have_count(0)
    # opened, a parent says it in its details, and its bar shows how long all below it took
    rounds = page.locator('.row[data-checkpoint="llm_thinking"]')
    expect(rounds.first.locator(".row-bar .is-below")).to_be_attached()
    rounds.first.click()
    expect(rounds.first.locator(".details-sum")).to_contain_text("1 step, 1 failed · 2.0 s · 1,204 tok · $0.003")


def test_an_open_turn_has_an_axis_and_says_where_its_first_token_came(page: Page) -> None:
    auth = checkpoint(None, "auth_check", None, 0, status="passed", question="when")
    thinking = checkpoint(None, "llm_thinking", auth, 100, status="started", model="m")
    answered = checkpoint(None, "llm_complete", thinking, 3900, status="ok", ttft_ms=900)
    page.evaluate(FEED, [[[auth, thinking, answered]], "oldest"])
    expect(page.locator(".axis-words")).to_have_text("first token 1.0 s")
    expect(page.locator(".turn")).to_have_class(re.compile("has-first"))
    end = checkpoint(None, "flow_end", auth, 4000, outcome="completed", duration_ms=4000, ttft_ms=1200)
    page.evaluate("one => { tree.add(one); tree.flush(); }", end)
    # flow_end knows when the first word of the answer came
    expect(page.locator(".axis-words")).to_have_text("first token 1.2 s")
    expect(page.locator(".axis-scale span")).to_have_text(["0", "1 s", "2 s", "3 s", "4 s"])
    # ticks and bars are on one scale: the model's bar begins at 0.1 of 4 seconds and ends at 3.9
    places = page.evaluate(
        """() => {
            const box = (one) => one.getBoundingClientRect();
            const scale = box(document.querySelector(".axis-scale"));
            const tick = box(document.querySelectorAll(".axis-scale span")[2]);
            const bar = box(document.querySelector('.row[data-checkpoint="llm_thinking"] .row-bar i'));
            const share = (x) => (x - scale.left) / scale.width;
            return [share(tick.left + tick.width / 2), share(bar.left), share(bar.right)];
        }"""
    )
    assert places == pytest.approx([0.5, 0.025, 0.975], abs=0.01)


def test_what_is_usual_is_said_and_what_is_slower_is_marked(page: Page) -> None:
    auth = checkpoint(None, "auth_check", None, 0, status="passed", question="slow")
    thinking = checkpoint(None, "llm_thinking", auth, 1, status="started", model="m")
    calls = [
        checkpoint(None, "tool_call", thinking, 2 + at, status="started", tool=tool)
        for at, tool in enumerate(["quick", "constructor", "search"])
    ]
    usual = {"llm_thinking": {"m": [1000, 2000]}, "tool_call": {"search": [800, 1000], "quick": [1, 3]}}
    options = "{ usual: " + json.dumps(usual) + ", now: () => tree_now }"
    page.evaluate("window.tree_now = 0")
    page.evaluate(FEED.replace("/* options */", f", ...{options}"), [[[auth, thinking, *calls]], "oldest"])
    begun = page.evaluate("[...tree.turns.values()][0].at")
    paces = "() => [...document.querySelectorAll('.row')].map((row) => row.dataset.pace)"

    def at(ms: int) -> list[str]:
        page.evaluate("now => { tree_now = now; tree.tick(); }", begun + ms)
        return page.evaluate(paces)

    # auth_check, the model, quick, constructor, search
    assert at(400) == ["", "", "", "", ""]
    assert at(1200) == ["", "", "far", "", "slow"]
    assert at(2400) == ["", "slow", "far", "", "slow"]
    assert at(3200) == ["", "slow", "far", "", "far"]
    assert at(6500) == ["", "far", "far", "", "far"]
    rows = page.locator(".row")
    expect(rows.nth(1).locator(".row-pace")).to_have_text("far slower than usual (1.0 s)")
    # nothing is claimed of what too little is known
    expect(rows.nth(3).locator(".row-pace")).to_have_count(0)
    # a page learns later what is usual, and less than half a second is never called slow
    done = checkpoint(None, "tool_result", calls[0], 300, status="ok")
    page.evaluate("one => { tree.add(one); tree.flush(); }", done)
    expect(rows.nth(2).locator(".row-pace")).to_have_count(0)
    page.evaluate("tree.usual = { llm_thinking: {}, tool_call: {} }")
    assert set(page.evaluate(paces)) == {""}
    expect(page.locator(".row-pace")).to_have_count(0)


def test_a_page_follows_the_reader_and_leads_him(page: Page) -> None:
    one, other = whole_turn(0, "first"), whole_turn(4000, "second")
    page.evaluate("window.gone = []")
    page.evaluate(
        FEED.replace("/* options */", ", onselect: (id) => gone.push(id)"),
        [[one, other], "oldest"],
    )
    page.locator(".row").nth(3).click()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("gone") == [one[3]["flow_id"], one[5]["flow_id"]]
    # leading him says nothing back; the end of a step leads to its row
    assert page.evaluate("id => tree.select(id)", other[7]["flow_id"]) is True
    chosen = page.locator('.row[aria-selected="true"]')
    expect(chosen).to_have_attribute("data-flow-id", other[5]["flow_id"])
    expect(chosen).to_be_in_viewport()
    assert page.evaluate("gone.length") == 2
    assert page.evaluate("tree.select('nobody')") is False
    page.evaluate("id => tree.remove(id)", one[0]["flow_id"])
    expect(page.locator(".turn-title")).to_have_text(["second"])
    page.evaluate("list => { for (const one of list) tree.add(one); tree.flush(); }", one)
    expect(page.locator(".turn-title")).to_have_text(["first", "second"])


ODD_NAMES = ("constructor", "toString", "__proto__", "hasOwnProperty", "<b>bold</b>", "\u202eevil", "n" * 50)
ODD_METADATA = (
    None,
    [],
    [1, {"a": None}],
    "text",
    5,
    {"status": {"a": 1}, "tool": ["x"], "model": 3, "ttft_ms": "soon"},
)


def test_any_name_and_any_metadata_is_drawn(page: Page) -> None:
    auth = checkpoint(
        None,
        "auth_check",
        None,
        0,
        status="passed",
        question="\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \U0001f9d1\u200d\U0001f680 " + "W" * 300,
    )
    odd = [checkpoint(None, name, auth, 1 + at, **{name: name}) for at, name in enumerate(ODD_NAMES)]
    known = [name for name in words.CHECKPOINTS if name not in {"flow_end", "llm_complete", "tool_result"}]
    bare = [
        {**checkpoint(None, name, auth, 20 + at + len(known) * more), "metadata": metadata}
        for more, metadata in enumerate(ODD_METADATA)
        for at, name in enumerate(known)
    ]
    big = checkpoint(
        None, "tool_call", auth, 900, tool="t" * 400, arguments=json.dumps({"q": "<img src=x>" + "\u5b57" * 2600})
    )
    page.evaluate(FEED, [[[auth, *odd, *bare, big]], "oldest"])
    labels = page.locator(".row .row-label").all_inner_texts()
    assert labels[1 : 1 + len(ODD_NAMES)] == list(ODD_NAMES)
    assert page.locator(".row").count() == len(odd) + len(bare) + 2
    assert page.locator(".row img, .row b:not(.row-label)").count() == 0
    # all it has, in its details, and nothing of it stands out of the page
    page.locator(".row").last.click()
    page.get_by_role("button", name="Raw JSON").click()
    expect(page.locator(".details > section > pre")).to_contain_text("<img src=x>")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Raw JSON").click()
    expect(page.locator(".details > section > pre")).to_be_hidden()


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
        for code in re.findall(
            r'"(llm_\w+|tool_failed|too_many_\w+|context_too_long|content_refused)"', Path(file).read_text()
        )
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
