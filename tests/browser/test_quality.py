"""Every page in both themes, wide and at 390 px: accessible, steady, inside its window, readable, and quiet.

Each page is visited once for a theme and a width, and looked at in all ways at once. What is found is
collected, so that one run tells everything.
"""

import json
import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from chat.scripted_model import Chunk, Seen, calls, ends, says, script, used
from flows import keys
from tests.browser.conftest import NARROW, WIDE, Api, Visits
from tests.browser.test_the_road import LONG_MS, outcome_of
from tests.people import PASSWORD
from tests.running import Running, eventually

HERE = Path(__file__).parent
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
CONTRAST = (HERE / "contrast.js").read_text()
QUALITY = (HERE / "quality.js").read_text()
MOST_SHIFT = 0.05  # what Core Web Vitals call good is 0.1

# Counts what moves by itself: not what follows a click or a key within half a second.
WATCH_SHIFTS = """
window.shifts = [];
new PerformanceObserver((list) => {
  for (const one of list.getEntries()) {
    if (one.hadRecentInput) continue;
    const moved = one.sources.map(({ node }) => node?.parentElement?.closest("[class]")?.className ?? "").join(", ");
    window.shifts.push([one.value, moved]);
  }
}).observe({ type: "layout-shift", buffered: true });
"""
SETTLED = """() => document.fonts.ready.then(() => new Promise((done) => {
  let last = document.body.innerHTML.length, same = 0;
  const look = () => {
    const now = document.body.innerHTML.length;
    same = now === last ? same + 1 : 0;
    last = now;
    if (same >= 4 || performance.now() > 8000) done(); else setTimeout(look, 50);
  };
  look();
}))"""

SCRIPT_TAG = "<script>alert('x')</script><img src=x onerror=alert(1)><b x-init=alert(2) style=position:fixed>bold</b>"
LONG_WORD = "W" * 5000
BIDI = "\u202egnirts desrever\u202c \u2067עברית\u2069 العربية \u200f\u200e\u2066"
EMOJI = "👩‍👩‍👧‍👦🏳️‍🌈👍🏿" * 20
ZALGO = "Z̸̡̛̛͉̼̩̦͙̏̐̈́̈́͆͝a̵̢̨̛͍̩̟̽͗̏̈́̓l̶̡̛̛͇̦̈́̈́̓̓g̷̢̛̼̩͙̏̐̈́͆͝o̸̡̨͍̩̟̽͗̏̓" * 8
HOSTILE = [SCRIPT_TAG, LONG_WORD, BIDI, EMOJI, ZALGO]
HOSTILE_NAME = f"<script>alert(3)</script>\u202e{'N' * 90}"
HOSTILE_TOOL = f"<img src=x onerror=alert(4)>\u202e{'tool' * 60}"
HOSTILE_MODEL = f"<b onmouseover=alert(5)>\u2067{'model' * 40}"


@script("hostile")
async def hostile(seen: Seen) -> AsyncIterator[Chunk]:
    """Uses a tool nobody has, and answers with all that is hostile."""
    if not seen.results:
        yield calls((HOSTILE_TOOL[:64], {"query": SCRIPT_TAG + BIDI}), ("calculator", {"expression": LONG_WORD[:600]}))
        yield ends("tool_calls")
        yield used(5, 5)
        return
    yield says(
        "\n\n".join([*HOSTILE, f"```\n{LONG_WORD}\n```", f"| {LONG_WORD[:300]} | b |\n|---|---|\n| {BIDI} | 2 |"])
    )
    yield ends()
    yield used(5, 50)


# --- what the pages show ------------------------------------------------------------------------------


@dataclass
class Stage:
    """People and what they did: completed, failed, refused and running turns, and all that is hostile."""

    bob: str = ""  # monitored, with turns of each kind
    ed: str = ""  # was monitored
    mallory: str = ""  # her name, her questions, her tools and what a program stored of her are hostile
    session: str = ""
    mallorys_session: str = ""
    mallorys_turns: list[str] = field(default_factory=list)
    turns: list[str] = field(default_factory=list)  # of Bob
    pk: dict[str, int] = field(default_factory=dict)


def add_stored(omni2: Running, user_id: str, session_id: str, steps: list[tuple[str, dict[str, Any]]]) -> None:
    """A turn as a program may have stored it: each step below the one before; in the user's log as well."""
    from flows.store import store

    documents: list[bytes] = []
    turn_id = parent = None
    for checkpoint, metadata in steps:
        flow_id = str(uuid.uuid4())
        turn_id = turn_id or flow_id
        one = {
            "flow_id": flow_id,
            "user_id": user_id,
            "session_id": session_id,
            "turn_id": turn_id,
            "checkpoint": checkpoint,
            "parent_id": parent,
            "metadata": metadata,
            "created_at": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        }
        parent = flow_id
        documents.append(json.dumps(one, ensure_ascii=False).encode())
    omni2.orm(store, documents)
    for document in documents:
        omni2.redis.xadd(keys.user_stream(user_id), {"d": document})


def hostile_steps() -> list[tuple[str, dict[str, Any]]]:
    big = {f"{SCRIPT_TAG[:30]} {number}": text[:1500] for number, text in enumerate(HOSTILE)}
    return [
        ("auth_check", {"status": "passed", "method": "token", "question": ZALGO + BIDI + LONG_WORD[:200]}),
        ("llm_thinking", {"status": "started", "model": HOSTILE_MODEL, "round": 1, "input": SCRIPT_TAG}),
        ("tool_call", {"status": "started", "tool": HOSTILE_TOOL, "arguments": LONG_WORD}),
        ("tool_result", {"status": "error", "tool": HOSTILE_TOOL, "error": SCRIPT_TAG + BIDI, "duration_ms": 5}),
        (SCRIPT_TAG[:50], {**big, "nested": {"deeper": [BIDI, {"deepest": LONG_WORD[:800]}]}}),
        ("W" * 50, {"status": BIDI}),
    ]


@pytest.fixture(scope="module")
def stage(omni2: Running) -> Stage:
    """Made once for all pages, through the real API."""
    api = Api(omni2)
    made = Stage()

    def user(name: str, shown: str = "") -> str:
        address = f"{name}.{uuid.uuid4().hex[:8]}@example.com"
        made.pk[name] = omni2.create_user(address, shown or name.title()).pk
        return address

    made.bob, made.ed, made.mallory = user("bob", "Bob Kahn"), user("ed"), user("mallory", HOSTILE_NAME)
    api.watch(made.bob, reason="Ticket 4711")
    api.watch(made.ed, hours=1)
    api.watch(made.mallory, reason=SCRIPT_TAG + LONG_WORD[:150])
    first = api.ask(made.bob, "script:parallel Which invoices of the Oslo office are overdue?")
    made.session = first["session_id"]
    made.turns = [first["turn_id"]]
    for question in ("script:bad_sum how much is it", "script:error_500 and now fail"):
        made.turns.append(api.ask(made.bob, question, session_id=made.session)["turn_id"])
    omni2.orm(_block, made.bob)
    made.turns.append(api.ask(made.bob, "script:plain may I?", session_id=made.session)["turn_id"])
    omni2.orm(_unblock, made.bob)
    ended = [*made.turns]
    api.ask(made.ed, "script:plain before it ended")
    api("olga@example.com", "/api/v1/monitoring/disable", {"user_id": made.ed})

    worst = api.ask(made.mallory, f"script:hostile {SCRIPT_TAG}")
    made.mallorys_session = worst["session_id"]
    made.mallorys_turns = [worst["turn_id"]]
    for text in HOSTILE[1:]:
        made.mallorys_turns.append(api.ask(made.mallory, text, session_id=made.mallorys_session)["turn_id"])
    ended += made.mallorys_turns
    add_stored(omni2, made.mallory, made.mallorys_session, hostile_steps())
    for turn_id in ended:
        eventually(lambda turn_id=turn_id: outcome_of(omni2, turn_id), "stored")
    return made


def _block(user_id: str) -> None:
    from chat.models import UserBlock
    from omni2.accounts.models import User

    UserBlock.objects.create(user=User.objects.get(email=user_id), message="Enough for today.")


def _unblock(user_id: str) -> None:
    from chat.models import UserBlock

    UserBlock.objects.filter(user__email=user_id).delete()


# --- the pages ------------------------------------------------------------------------------------------

ADA = "ada@example.com"


@dataclass(frozen=True)
class Place:
    """A page: who opens it, what must be there before it is looked at, what is done with it first."""

    path: str
    ready: str
    who: str | None = ADA
    act: Callable[[Page], None] | None = None
    status: int = 200


def open_rows(page: Page) -> None:
    """The checkpoints with the most to say, opened."""
    for row in page.locator(".row:not([data-checkpoint=auth_check])").all()[-3:]:
        row.click()


def ask_for_a_person(page: Page) -> None:
    page.keyboard.press("/")
    page.get_by_label("Who").fill("bob")
    expect(page.get_by_role("option").first).to_be_visible()


def open_an_hour(page: Page) -> None:
    """The numbers of each process, and what the columns mean."""
    page.locator(".opens").first.click()
    expect(page.locator("#hours .part").first).to_be_visible()
    page.get_by_text("What the columns mean").click()


def ordinary(stage: Stage) -> list[Place]:
    session = f"/flows/{stage.session}/"
    return [
        Place("/login/", "form", who=None),
        Place("/nothing-here/", "h1", status=404),
        Place("/live/", "h1", who="charlie@example.com", status=403),
        Place("/live/", "#people", act=ask_for_a_person),
        Place(f"/live/?user={stage.bob}", ".row", act=open_rows),
        Place(f"/live/?user={stage.ed}", ".panel"),
        Place("/flows/", "#turns"),
        Place("/flows/?q=nothing+holds+this", ".empty"),
        Place("/flows/?outcome=nonsense", ".notice, .field-error, [role=alert]"),
        Place(session, ".row", act=open_rows),
        Place(f"/flows/compare/?a={stage.turns[0]}&b={stage.turns[1]}", "h1"),
        Place("/analytics/", "h1"),
        Place("/analytics/?user_id=nobody@example.com", "h1"),
        Place("/ledger/", "#hours", act=open_an_hour),
        Place("/ledger/?hours=168", "#hours"),
        Place("/ledger/", "h1", who="charlie@example.com", status=403),
        Place("/chat/", "#nothing-said"),
        Place("/usage/", "#users"),
        Place("/usage/?window=month&near=1&q=nobody", "#everybody"),
        Place("/admin/chat/grouplimits/add/", "#grouplimits_form"),
        Place("/account/tokens/", "h1"),
        Place("/account/password/", "h1"),
        Place("/admin/", "h1"),
        Place("/admin/accounts/user/", "#result_list"),
        Place("/admin/flows/turn/", "#result_list"),
        Place(f"/admin/accounts/user/{stage.pk['bob']}/change/", "#user_form"),
    ]


def of_bob(stage: Stage) -> list[Place]:
    return [
        Place(f"/chat/{stage.session}/", ".answer", who=stage.bob),
        Place("/flows/", "#turns", who=stage.bob),
        Place("/usage/", "#own", who=stage.bob),
    ]


def with_hostile_text(stage: Stage) -> list[Place]:
    return [
        Place(f"/live/?user={stage.mallory}", ".row", act=open_rows),
        Place(f"/flows/?user_id={stage.mallory}", "#turns"),
        Place(f"/flows/{stage.mallorys_session}/", ".row", act=open_rows),
        Place(f"/flows/compare/?a={stage.mallorys_turns[0]}&b={stage.mallorys_turns[1]}", "h1"),
        Place("/analytics/", "h1"),
        Place(f"/chat/{stage.mallorys_session}/", ".answer", who=stage.mallory),
        Place("/admin/accounts/user/", "#result_list"),
        Place("/admin/flows/turn/", "#result_list"),
        Place("/admin/flows/interactionflow/", "#result_list"),
        Place("/admin/monitoring/monitoreduser/", "#result_list"),
        Place("/admin/accounts/accesslog/", "#result_list"),
    ]


# What hostile text would have made if it had been taken for markup.
PLANTED = """() => [...document.querySelectorAll("img[src=x], [onerror], [onmouseover], [x-init^=alert]")]
    .concat([...document.querySelectorAll("script:not([src], [type='application/json'])")]
        .filter((one) => one.textContent.includes("alert(")))
    .map((one) => `became markup: ${one.outerHTML.slice(0, 160)}`)"""


# --- looking --------------------------------------------------------------------------------------------


def accessible(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    page.evaluate(AXE)
    violations = page.evaluate("axe.run(document, { resultTypes: ['violations'] }).then((result) => result.violations)")
    return [
        f"axe {one['id']} ({one['impact']}): {[node['html'][:140] for node in one['nodes'][:3]]} of {len(one['nodes'])}"
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]


def shifted(page: Page) -> list[str]:
    shifts = page.evaluate("window.shifts")
    total = sum(value for value, _ in shifts)
    return [f"moved by {total:.3f}: {shifts}"] if total >= MOST_SHIFT else []


def look(page: Page, *, hostile: bool, contrast: bool) -> list[str]:
    """All that is wrong with the page as it stands now. Hostile text says nothing of names and of
    steadiness: a word of 5,000 letters moves when its font comes."""
    problems = [*page.evaluate(QUALITY), *page.evaluate(PLANTED)]
    if contrast:
        problems += page.evaluate(CONTRAST)
    return problems if hostile else [*shifted(page), *problems, *accessible(page)]


def visit_all(visit: Visits, places: list[Place], *, theme: str, width: int, hostile: bool = False) -> list[str]:
    pages: dict[str | None, Page] = {}
    problems: list[str] = []
    for place in places:
        if place.who not in pages:
            pages[place.who] = visit(place.who, "about:blank", theme=theme, width=width)
            pages[place.who].add_init_script(WATCH_SHIFTS)
            pages[place.who].on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
        page = pages[place.who]
        answer = page.goto(place.path)
        assert answer is not None
        assert answer.status == place.status, place.path
        expect(page.locator(place.ready).first).to_be_visible(timeout=LONG_MS)
        assert page.locator("html.dark").count() == (theme == "dark"), place.path
        page.evaluate(SETTLED)
        if place.act is not None:
            place.act(page)
            page.evaluate(SETTLED)
        is_ours = not place.path.startswith("/admin/")  # the admin's widgets are unfold's own
        problems += [f"{place.path}: {one}" for one in look(page, hostile=hostile, contrast=is_ours)]
    return problems


COMBINATIONS = [(theme, width) for theme in ("light", "dark") for width in (WIDE, NARROW)]


@pytest.mark.parametrize(("theme", "width"), COMBINATIONS)
def test_every_page_is_accessible_steady_and_readable(visit: Visits, stage: Stage, theme: str, width: int) -> None:
    visit.forgive("status of 404")
    visit.forgive("status of 403")
    places = [*ordinary(stage), *of_bob(stage)]
    assert visit_all(visit, places, theme=theme, width=width) == []


@pytest.mark.parametrize(("theme", "width"), [("light", WIDE), ("dark", NARROW)])
def test_hostile_text_is_drawn_as_text_and_breaks_no_page(visit: Visits, stage: Stage, theme: str, width: int) -> None:
    assert visit_all(visit, with_hostile_text(stage), theme=theme, width=width, hostile=True) == []


@pytest.mark.parametrize(("theme", "width"), [("light", WIDE), ("dark", NARROW)])
def test_nothing_moves_while_a_turn_grows(
    visit: Visits, api: Api, someone: Callable[[str], str], theme: str, width: int
) -> None:
    bob = someone("Bob Kahn")
    api.watch(bob)
    # without an earlier turn: the newest stands first, so what is below it goes down by as much as it grows
    live = visit("olga@example.com", "about:blank", theme=theme, width=width)
    chat = visit(bob, "about:blank", theme=theme, width=width)
    for page, path in ((live, f"/live/?user={bob}"), (chat, "/chat/")):
        page.add_init_script(WATCH_SHIFTS)
        page.goto(path)
    expect(live.locator(".panel")).to_be_visible(timeout=LONG_MS)
    for page in (live, chat):
        page.evaluate(SETTLED)
        page.evaluate("window.shifts = []")
    chat.get_by_label("Message").fill("script:parallel+talk_and_call+slow watch me grow")
    chat.keyboard.press("Enter")
    expect(chat.get_by_role("link", name="How it was answered")).to_be_visible(timeout=LONG_MS)
    expect(live.locator("[data-outcome=completed]")).to_be_visible(timeout=LONG_MS)
    assert {"live": shifted(live), "chat": shifted(chat)} == {"live": [], "chat": []}


# --- without a mouse --------------------------------------------------------------------------------------

# Whether one sees where the keyboard is: an outline or a ring around what has the focus, or around what holds it.
SEES_FOCUS = """() => {
  const one = document.activeElement;
  if (!one || one === document.body) return true;
  for (let at = one, up = 0; at && up < 3; at = at.parentElement, up += 1) {
    const style = getComputedStyle(at);
    if (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) return true;
    if (style.boxShadow !== "none" && at === one) return true;
  }
  return `no visible focus on ${one.outerHTML.slice(0, 140)}`;
}"""
MOST_STOPS = 150


def tab_to(page: Page, there: Locator) -> None:
    """Press Tab until the keyboard is there; each stop on the way can be seen."""
    for _ in range(MOST_STOPS):
        page.keyboard.press("Tab")
        assert page.evaluate(SEES_FOCUS) is True
        if there.count() and there.first.evaluate("one => one === document.activeElement"):
            return
    raise AssertionError(f"no way with the keyboard to {there}")


def test_the_whole_road_without_a_mouse(visit: Visits, api: Api, someone: Callable[[str], str]) -> None:
    name = f"Keyes {uuid.uuid4().hex[:6]}"
    bob = someone(name)
    page = visit(None, "/login/?next=/live/")
    expect(page.get_by_label("E-mail")).to_be_focused()
    page.keyboard.type("olga@example.com")
    tab_to(page, page.get_by_label("Password"))
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Live")).to_be_visible(timeout=LONG_MS)

    # watch somebody
    tab_to(page, page.locator("#watch-someone"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Who")).to_be_focused()
    page.keyboard.type(name)
    expect(page.get_by_role("option", name=bob)).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    tab_to(page, page.get_by_role("button", name="Watch", exact=True))
    page.keyboard.press("Enter")
    panel = page.locator(f'.panel[data-user="{bob}"]')
    expect(panel.get_by_role("status")).to_have_text("Connected", timeout=LONG_MS)

    # open a turn, and a checkpoint of it
    session_id = api.ask(bob, "script:clock what time is it")["session_id"]
    expect(panel.locator("[data-outcome=completed]")).to_be_visible(timeout=LONG_MS)
    if not panel.locator(".row").count():
        tab_to(page, panel.locator(".turn-head"))
        page.keyboard.press("Enter")
    tab_to(page, panel.locator(".row[tabindex='0'], .row:focus"))
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(panel.locator(".details")).to_be_visible()

    # history, filtered
    tab_to(page, page.locator("#nav-sidebar").get_by_role("link", name="History"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="History")).to_be_visible(timeout=LONG_MS)
    tab_to(page, page.locator("input[name=user_id]"))
    page.keyboard.type(bob)
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("user_id="))
    expect(page.locator("#turns [data-turn-id]")).to_have_count(1, timeout=LONG_MS)

    # the session
    tab_to(page, page.locator("#turns .what a"))
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(session_id), timeout=LONG_MS)
    expect(page.locator(".row").first).to_be_visible()
    tab_to(page, page.locator(".row[tabindex='0'], .row:focus"))

    # one's own question, and its end
    tab_to(page, page.locator("#nav-sidebar").get_by_role("link", name="Chat"))
    page.keyboard.press("Enter")
    expect(page.get_by_label("Message")).to_be_focused(timeout=LONG_MS)
    page.keyboard.type("script:slow tell me a story")
    page.keyboard.press("Enter")
    expect(page.locator(".answer")).to_contain_text("takes its time", timeout=LONG_MS)
    tab_to(page, page.get_by_role("button", name="Stop"))
    page.keyboard.press("Enter")
    expect(page.locator(".line-foot")).to_contain_text("You stopped it")
    assert page.evaluate(SEES_FOCUS) is True
