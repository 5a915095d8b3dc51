"""The chat page around the talk: its list of conversations, the model, Stop, tools that wait for a yes, limits."""

import json
import re
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import Api, Visits
from tests.browser.test_chat import answered, conversation_of, say
from tests.browser.test_quality import QUALITY, accessible
from tests.browser.test_the_road import LONG_MS
from tests.running import Running, eventually

EVIL = "<img src=x onerror=alert(1)>"


def make_conversations(omni2: Running, user_id: str, *titles: str) -> list[str]:
    """The first is the newest; each with a question and its answer."""
    ids = [str(uuid.uuid4()) for _ in titles]

    def make() -> None:
        from django.utils import timezone

        from chat.models import Conversation, Message
        from omni2.accounts.models import User

        user, now = User.objects.get(email=user_id), timezone.now()
        Conversation.objects.bulk_create(
            Conversation(session_id=session_id, user=user, title=title, updated_at=now - timedelta(minutes=number))
            for number, (session_id, title) in enumerate(zip(ids, titles, strict=True))
        )
        Message.objects.bulk_create(
            Message(conversation_id=session_id, role=role, content=f"{role} of {title}", turn_id=session_id)
            for session_id, title in zip(ids[:5], titles[:5], strict=True)
            for role in ("user", "assistant")
        )

    omni2.orm(make)
    return ids


def open_menu(page: Page, title: str) -> None:
    page.locator("#conversations li", has_text=title).hover()
    page.get_by_role("button", name=f"Rename, take along or delete: {title}").click()
    expect(page.locator("#conversation-menu")).to_be_visible()


def titles(page: Page) -> list[str]:
    return page.locator("#conversations li b").all_inner_texts()


def look(page: Page) -> None:
    """No finding of axe, nothing out of the window or cut off."""
    assert [*accessible(page), *page.evaluate(QUALITY)] == []


# --- the list -----------------------------------------------------------------------------------------


def test_a_conversation_is_renamed_from_its_menu(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    visit.forgive("status of 400")
    make_conversations(omni2, bob, "Wages", "Holidays")
    page = visit(bob, "/chat/")
    page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    open_menu(page, "Holidays")
    look(page)
    page.keyboard.press("Escape")
    expect(page.locator("#conversation-menu")).to_be_hidden()
    expect(page.get_by_role("button", name="Rename, take along or delete: Holidays")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Rename", exact=True)).to_be_focused()
    page.keyboard.press("Enter")
    field = page.get_by_role("textbox", name="Title")
    expect(field).to_have_value("Holidays")
    expect(field).to_be_focused()
    look(page)
    field.fill("  ")
    page.keyboard.press("Enter")
    expect(page.locator("#rename-sheet").get_by_role("alert")).to_have_text("This field may not be blank.")
    field.fill(EVIL)
    page.keyboard.press("Enter")
    expect(page.locator("#rename-sheet")).to_be_hidden()
    assert titles(page) == ["Wages", EVIL]
    page.reload()
    assert titles(page) == ["Wages", EVIL]


def test_a_conversation_is_deleted_once_one_has_read_what_stays(
    omni2: Running, visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    wages, holidays, _ = make_conversations(omni2, bob, "Wages", "Holidays", "Third")
    page = visit(bob, f"/chat/{wages}/")
    open_menu(page, "Holidays")
    page.get_by_role("button", name="Delete", exact=True).click()
    sheet = page.get_by_role("dialog", name="Delete the conversation?")
    expect(sheet).to_contain_text("The record of how each was answered stays")
    expect(sheet.get_by_role("button", name="Keep it")).to_be_focused()
    look(page)
    sheet.get_by_role("button", name="Keep it").click()
    assert titles(page) == ["Wages", "Holidays", "Third"]
    open_menu(page, "Holidays")
    page.get_by_role("button", name="Delete", exact=True).click()
    sheet.get_by_role("button", name="Delete").click()
    expect(page.locator("#conversations li")).to_have_count(2)
    assert titles(page) == ["Wages", "Third"]
    assert omni2.sql("SELECT 1 FROM messages WHERE conversation_id = %s", holidays) == []
    open_menu(page, "Wages")  # the one that is open
    page.get_by_role("button", name="Delete", exact=True).click()
    sheet.get_by_role("button", name="Delete").click()
    page.wait_for_url("**/chat/")
    assert titles(page) == ["Third"]


def test_a_conversation_is_taken_along(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    (session_id,) = make_conversations(omni2, bob, "Wages")
    page = visit(bob, "/chat/")
    texts = {}
    for name in ("Take along as Markdown", "Take along as JSON"):
        open_menu(page, "Wages")
        with page.expect_download() as downloading:
            page.get_by_role("link", name=name).click()
        texts[downloading.value.suggested_filename.rsplit(".", 1)[1]] = downloading.value.path().read_text()
    assert "> user of Wages" in texts["md"]
    assert json.loads(texts["json"])["session_id"] == session_id


def test_the_list_goes_on_and_can_be_searched(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    make_conversations(omni2, bob, *(f"Talk {number}" for number in range(130)))
    page = visit(bob, "/chat/")
    entries = page.locator("#conversations li")
    expect(entries).to_have_count(100)
    page.get_by_role("link", name="More").click()
    expect(entries).to_have_count(130)
    expect(entries.nth(100).locator("a")).to_be_focused()
    expect(page.get_by_role("link", name="More")).to_be_hidden()
    search = page.get_by_role("searchbox", name="Find a conversation")
    search.fill("talk 12")
    expect(entries).to_have_count(11)  # 12, 120 to 129
    expect(page.locator("#announcements")).to_have_text("11 conversations found")
    search.fill("nothing like that")
    expect(page.locator("#conversations-found")).to_have_text("No title has that in it.")
    search.fill("")
    expect(entries).to_have_count(50)
    page.get_by_role("link", name="More").click()
    expect(entries).to_have_count(100)


def test_without_scripts_the_list_goes_on_as_well(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    make_conversations(omni2, bob, *(f"Talk {number}" for number in range(130)))
    page = visit(bob, "/chat/", java_script_enabled=False)
    page.get_by_role("link", name="More").click()
    assert titles(page)[0] == "Talk 100"
    expect(page.locator("#conversations li")).to_have_count(30)


# --- asking -------------------------------------------------------------------------------------------


def hold(held: list[Route], route: Route) -> None:
    held.append(route)


@pytest.mark.parametrize("way", ["Enter", "Send"])
def test_what_is_sent_before_the_page_is_ready_is_asked_once_it_is(
    visit: Visits, someone: Callable[[str], str], way: str
) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/account/tokens/")
    held: list[Route] = []
    # its name has its content's hash in it; chat_enter.js comes with the form
    page.route(re.compile(r"/js/chat\.[^/]*js"), lambda route: hold(held, route))
    page.goto("/chat/", wait_until="commit")
    message = page.get_by_label("Message")
    message.fill("script:plain early")
    if way == "Enter":
        message.press("Enter")
    else:
        page.get_by_role("button", name="Send").click()
    expect(message).to_have_value("script:plain early")
    assert page.url.endswith("/chat/")
    (route,) = held
    route.continue_()
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".question")).to_have_text(["script:plain early"])
    expect(message).to_have_value("")


MODELS = [
    {"name": "Quick", "description": "for short questions", "is_default": False, "takes_tools": True},
    {"name": "Thorough", "description": "takes its time", "is_default": True, "takes_tools": True},
]


def offer(page: Page, *models: Any) -> None:
    page.route("**/api/v1/models", lambda route: route.fulfill(json={"models": list(models)}))


def test_the_model_of_the_last_answer_stays_chosen(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    turn_id = api.ask(bob, "script:plain hello")["turn_id"]
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE turn_id = %s AND model IS NOT NULL", turn_id))
    ((model,),) = omni2.sql("SELECT model FROM turns WHERE turn_id = %s", turn_id)
    page = visit(bob, "/account/tokens/")
    offer(page, *MODELS, {**MODELS[0], "name": model})
    page.goto(f"/chat/{conversation_of(omni2, bob)}/")
    expect(page.get_by_label("Model")).to_have_value(model)
    page.goto("/chat/")
    expect(page.get_by_label("Model")).to_have_value("Thorough")


# --- what the server says of a turn: scripted here, the real ones are built elsewhere --------------------


def stream(*events: tuple[str, Any]) -> str:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)


def scripted(page: Page, *events: tuple[str, Any]) -> tuple[str, str]:
    """The next answer is this one. Returns its session and turn."""
    session_id, turn_id = str(uuid.uuid4()), str(uuid.uuid4())
    begin = ("session", {"session_id": session_id, "turn_id": turn_id})
    page.route(
        "**/api/v1/ask/stream",
        lambda route: route.fulfill(body=stream(begin, *events), content_type="text/event-stream"),
    )
    return session_id, turn_id


DONE = (
    "done",
    {"model": "Quick", "usage": {"input_tokens": 5, "output_tokens": 5, "cost_usd": None}, "duration_ms": 5},
)


@pytest.mark.parametrize(
    ("error", "said", "offers"),
    [
        (
            {"code": "stopped", "message": "Please call me. Olga"},
            ["This answer was stopped.", "Please call me. Olga"],
            ["Ask again"],
        ),
        ({"code": "content_refused", "message": "The model declined."}, ["The model declined.", "in other words"], []),
        ({"code": "context_too_long", "message": "Too long."}, ["Too long."], ["New conversation"]),
        ({"code": "model_not_found", "message": "There is no such model."}, ["There is no such model."], []),
        (
            {"code": "llm_rate_limited", "message": "Too much to do.", "retry_after_s": 30},
            ["Too much to do.", "You can ask again in 0:"],
            ["Ask again"],
        ),
        ({"code": "llm_timeout", "message": "Not in time."}, ["Not in time."], ["Ask again"]),
    ],
    ids=lambda value: value["code"] if isinstance(value, dict) else "",
)
def test_each_error_says_what_can_be_done(
    visit: Visits, someone: Callable[[str], str], error: dict[str, Any], said: list[str], offers: list[str]
) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    scripted(page, ("token", {"text": "So far"}), ("error", error))
    say(page, "anything")
    alert = page.get_by_role("alert")
    for words in said:
        expect(alert).to_contain_text(words)
    assert [text.split("\n")[-1] for text in alert.locator("button, a").all_inner_texts()] == offers
    expect(page.locator(".answer")).to_have_text("So far")


def test_it_says_when_a_limit_is_near(visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    limits = [
        {"limit_name": "requests_per_day", "used": 45, "limit": 50, "resets_at": "2030-01-01T00:00:00.000000Z"},
        {"limit_name": "cost_usd_per_month", "used": 9.5, "limit": 10, "resets_at": None},
    ]
    scripted(page, ("token", {"text": "Hello"}), (DONE[0], {**DONE[1], "limits": limits}))
    say(page, "anything")
    notes = page.locator(".line-note")
    expect(notes).to_have_count(2)
    expect(notes.nth(0)).to_contain_text("Near your limit: 45 of 50 requests of today used. Free again")
    expect(notes.nth(1)).to_contain_text("Near your limit: $9.50 of $10.00 of this month used.")
    look(page)


APPROVAL = {
    "tool": "files.delete",
    "call_id": "call/1",
    "arguments": {"path": f"/tmp/{EVIL}", "options": {"recursive": True}, "why": "x" * 300},
    "expires_in_s": 120,
}


class Held:
    """An answer whose tool waits for its user: the stream goes on when the test lets it."""

    def __init__(self, page: Page) -> None:
        self.turn_id = str(uuid.uuid4())
        self.session_id = str(uuid.uuid4())
        begin = stream(
            ("session", {"session_id": self.session_id, "turn_id": self.turn_id}),
            ("tool_call", {"tool": APPROVAL["tool"], "call_id": APPROVAL["call_id"]}),
            ("approval", {**APPROVAL, "turn_id": self.turn_id}),
        )
        # Playwright answers whole: the page's own fetch is replaced by one that can wait
        page.evaluate(
            """begin => {
                const real = window.fetch;
                window.goOn = null;
                window.fetch = (address, options) => {
                    if (!String(address).endsWith("/ask/stream")) return real(address, options);
                    const bytes = new TextEncoder();
                    const body = new ReadableStream({
                        start(controller) {
                            controller.enqueue(bytes.encode(begin));
                            window.goOn = (text) => { controller.enqueue(bytes.encode(text)); controller.close(); };
                        },
                    });
                    return Promise.resolve(new Response(body, { headers: { "Content-Type": "text/event-stream" } }));
                };
            }""",
            begin,
        )
        self.page = page

    def go_on(self, *events: tuple[str, Any]) -> None:
        self.page.evaluate("text => goOn(text)", stream(*events))


@pytest.mark.parametrize(
    ("status", "words"),
    [(409, "It is decided already"), (404, "It does not wait any more"), (503, "That did not work. Please try again.")],
)
def test_a_yes_that_comes_too_late_is_told(
    visit: Visits, someone: Callable[[str], str], status: int, words: str
) -> None:
    visit.forgive(f"status of {status}")
    page = visit(someone("Bob Kahn"), "/chat/")
    Held(page)
    page.route("**/api/v1/turns/*/approvals/*", lambda route: route.fulfill(status=status, json={"detail": "x"}))
    say(page, "delete it")
    card = page.get_by_role("group", name="May files.delete be used?")
    card.get_by_role("button", name="Approve").click()
    expect(card).to_contain_text(words)
    assert card.get_by_role("button", name="Approve").count() == (1 if status == 503 else 0)


def test_nobody_decides_in_time(visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    page.clock.install()
    Held(page)
    say(page, "delete it")
    card = page.get_by_role("group", name="May files.delete be used?")
    expect(card).to_contain_text("2:00 left")
    page.clock.run_for(121_000)
    expect(card).to_contain_text("Nobody decided in time")
    expect(card.get_by_role("button")).to_have_count(0)


def test_a_tool_of_another_page_or_program_can_be_approved_as_well(
    visit: Visits, someone: Callable[[str], str]
) -> None:
    page = visit(someone("Bob Kahn"), "/account/tokens/")
    one = {**APPROVAL, "turn_id": str(uuid.uuid4())}
    page.route("**/api/v1/approvals", lambda route: route.fulfill(json={"approvals": [one]}))
    page.route("**/approvals/call%2F1", lambda route: route.fulfill(json={"call_id": "call/1", "approved": True}))
    page.goto("/chat/")
    place = page.get_by_role("region", name="What waits for your yes")
    place.get_by_role("button", name="Approve").click()
    expect(place).to_contain_text("You approved it")
    look(page)
