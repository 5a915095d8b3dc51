"""The chat page: streaming, tools, Markdown, stop, refusals, and what is there when one comes back."""

import asyncio
import re
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from chat.scripted_model import Chunk, Seen, ends, says, script, used
from tests.browser.conftest import NARROW, Api, Visits
from tests.browser.test_the_road import LONG_MS, outcome_of
from tests.running import Running, eventually

GO_ON_S = 20  # a script that is held goes on after this by itself: no test leaves one behind

go_on = threading.Event()
BEGINNING = "# A title\n\nSome **bold** text.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nprint('copy me')\n"
END = "print('and me')\n```\n\nThe [end](https://example.com/)."


async def held() -> None:
    for _ in range(GO_ON_S * 50):
        if go_on.is_set():
            return
        await asyncio.sleep(0.02)


@script("held")
async def hold_in_the_middle(seen: Seen) -> AsyncIterator[Chunk]:
    """A Markdown answer that comes in small pieces and waits in the middle for the test."""
    for piece in re.findall(r".{1,7}", BEGINNING, re.DOTALL):
        yield says(piece)
    await held()
    for piece in re.findall(r".{1,7}", END, re.DOTALL):
        yield says(piece)
    yield ends()
    yield used(10, 50)


@script("held_lines")
async def many_lines(seen: Seen) -> AsyncIterator[Chunk]:
    """More lines than a window has, and more after the test lets it go on."""
    yield says("".join(f"Line {number}\n\n" for number in range(80)))
    await held()
    yield says("".join(f"Further line {number}\n\n" for number in range(40)))
    yield ends()
    yield used(10, 50)


@pytest.fixture(autouse=True)
def _held_again() -> Iterator[None]:
    go_on.clear()
    yield
    go_on.set()


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def answered(page: Page) -> Locator:
    """The link below an answer that is complete."""
    return page.get_by_role("link", name="How it was answered")


def conversation_of(omni2: Running, user_id: str) -> str:
    """The user's only conversation."""
    query = "SELECT session_id FROM conversations JOIN users ON users.id = user_id WHERE email = %s"
    return str(eventually(lambda: omni2.sql(query, user_id), "the conversation is there")[0][0])


def test_a_conversation_streams_shows_its_tools_and_is_there_again(
    visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    expect(page.get_by_text("A scripted model answers here.")).to_be_visible()
    say(page, "script:parallel what is 19 * 23, and the time?")
    expect(page.locator(".tool-step")).to_have_count(3, timeout=LONG_MS)
    expect(page.locator(".answer")).to_contain_text("437", timeout=LONG_MS)
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    say(page, "script:memory do you remember?")
    expect(page.locator(".answer").nth(1)).to_contain_text("the first: script:parallel what", timeout=LONG_MS)
    address = page.url
    assert address.rstrip("/").split("/")[-2] == "chat"
    page.goto("/chat/")
    page.locator("#conversations li a").first.click()
    expect(page).to_have_url(address)
    expect(page.locator(".answer")).to_have_count(2)
    expect(page.locator('.tool-step[data-step="ok"]')).to_have_count(3)
    answered(page).first.click()
    expect(page.locator("[data-turn-id]")).to_have_count(2)


def test_markdown_is_drawn_while_it_comes(visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    asked: list[str] = []
    page.on("request", lambda request: request.url.endswith("/chat/render") and asked.append(request.url))
    say(page, "script:held")
    answer = page.locator(".answer")
    expect(answer.locator("h1")).to_have_text("A title", timeout=LONG_MS)
    expect(answer.locator("strong")).to_have_text("bold")
    expect(answer.locator("pre")).to_contain_text("copy me")
    expect(answer.locator(".wide td")).to_have_text(["1", "2"])
    expect(page.get_by_role("link", name="See how it goes")).to_be_visible()
    answer.locator("h1").evaluate("one => one.dataset.kept = 'yes'")
    go_on.set()
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    expect(answer.locator("h1")).to_have_attribute("data-kept", "yes")  # what is finished is not drawn again
    expect(answer.locator("pre")).to_have_text("print('copy me')\nprint('and me')\n")
    expect(answer.locator("a")).to_have_attribute("href", "https://example.com/")
    assert answer.evaluate("one => one.querySelectorAll('.tail').length") == 0
    assert len(asked) < 12, "a question to the server for a few lines, not for each piece"
    live = answer.inner_text()
    answer.get_by_role("button", name="Copy the code").click()
    expect(page.locator("#announcements")).to_have_text(re.compile("Copied|Selected"))
    page.reload()
    expect(page.locator(".answer .framed pre")).to_be_visible()
    assert page.locator(".answer").inner_text() == live


def test_markup_in_an_answer_is_rendered_safely(visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    evil = (
        "**bold** [good](https://example.com) [bad](javascript:alert(1)) ![p](https://example.com/p.png) "
        "<img src=x onerror=alert(2)> <b x-init=alert(3)>x</b>"
    )
    say(page, f"script:plain {evil}")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    answer = page.locator(".answer")
    expect(answer.locator("strong")).to_have_text("bold")
    assert answer.locator("img, script, [x-init], [onerror]").count() == 0
    assert answer.locator("a").evaluate_all("all => all.map(a => a.href)") == [
        "https://example.com/",
        "https://example.com/p.png",
    ]
    page.reload()
    expect(page.locator(".answer strong")).to_have_text("bold")
    assert page.locator(".answer").locator("img, script, [x-init], [onerror]").count() == 0


def test_stop_ends_the_turn_and_keeps_what_came(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    say(page, "script:slow tell me a long story")
    expect(page.locator(".answer")).to_contain_text("takes its time", timeout=LONG_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".line-foot")).to_contain_text("You stopped it")
    expect(page.locator(".answer")).to_contain_text("takes its time")
    turn_id = str(page.locator("[data-turn-id]").get_attribute("data-turn-id"))
    ended = eventually(lambda: outcome_of(omni2, turn_id), "the turn ended")
    assert ended == "stopped"
    page.reload()
    expect(page.get_by_text(re.compile("^You stopped it"))).to_be_visible()
    expect(page.locator(".answer")).to_contain_text("takes its time")
    page.get_by_role("button", name="Ask again").click()
    expect(page.locator(".answer").nth(1)).to_contain_text("takes its time", timeout=LONG_MS)
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    expect(page.get_by_role("button", name="Ask again")).to_have_count(0)


def test_a_failure_is_said_and_can_be_tried_again(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    say(page, "script:cut then nothing")
    expect(page.get_by_role("alert")).to_contain_text("The model", timeout=LONG_MS)
    expect(page.locator(".answer")).to_contain_text("This answer breaks off")
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("alert")).to_have_count(2, timeout=LONG_MS)
    turn_ids = page.locator("[data-turn-id]").evaluate_all("all => all.map(one => one.dataset.turnId)")
    eventually(lambda: all(outcome_of(omni2, turn_id) == "failed" for turn_id in turn_ids), "both are stored")
    page.reload()
    expect(page.get_by_text("The model failed.")).to_have_count(2)
    expect(page.get_by_text("The answer is not complete.")).to_have_count(2)


def test_a_tool_that_fails_says_so_then_and_later(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    say(page, "script:bad_sum+plain how much is it?")
    step = page.locator(".tool-step")
    expect(step).to_have_attribute("data-step", "error", timeout=LONG_MS)
    expect(step).to_contain_text("calculator")
    expect(step).to_contain_text("failed after")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    turn_id = str(page.locator("[data-turn-id]").get_attribute("data-turn-id"))
    eventually(lambda: outcome_of(omni2, turn_id), "the turn is stored")
    page.reload()
    expect(step).to_contain_text("failed: Division by zero.")


def test_refusals_are_said_in_plain_words(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    visit.forgive("status of 403")
    visit.forgive("status of 429")
    blocked, poor = someone("Blanche Locked"), someone("Otto Over")

    def limit() -> None:
        from chat.models import UserBlock, UserLimits
        from omni2.accounts.models import User

        UserBlock.objects.create(user=User.objects.get(email=blocked), message="Talk to Olga first.", reason="secret")
        UserLimits.objects.create(user=User.objects.get(email=poor), requests_per_day=1)

    omni2.orm(limit)
    page = visit(blocked, "/chat/")
    say(page, "script:plain let me in")
    expect(page.get_by_role("alert")).to_contain_text("Talk to Olga first.", timeout=LONG_MS)
    assert "secret" not in page.content()

    api.ask(poor, "script:plain the only one")
    page = visit(poor, "/chat/")
    say(page, "script:plain one too many")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("You have used all your requests of today.", timeout=LONG_MS)
    expect(alert).to_contain_text("1 of 1 used.")
    expect(alert).to_contain_text("Free again")
    expect(alert).to_contain_text("You can ask again in")
    expect(alert.get_by_role("button", name="Ask again")).to_be_disabled()
    link = page.get_by_role("link", name="How it was refused")
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE user_id = %s AND outcome = 'refused'", poor))
    link.click()
    expect(page.locator('[data-outcome="refused"]')).to_contain_text("Over limit")


def test_one_can_ask_again_when_the_wait_is_over(visit: Visits, someone: Callable[[str], str]) -> None:
    """The wait comes from the server; here the browser is given one, and a clock that runs."""
    visit.forgive("status of 503")
    page = visit(someone("Bob Kahn"), "/chat/")
    page.clock.install()
    away = {"detail": "The model cannot be reached.", "code": "llm_unavailable"}
    page.route("**/ask/stream", lambda route: route.fulfill(status=503, json=away, headers={"Retry-After": "30"}))
    say(page, "script:plain are you there?")
    alert = page.get_by_role("alert")
    again = alert.get_by_role("button", name="Ask again")
    expect(alert).to_contain_text("You can ask again in 0:30.")
    expect(again).to_be_disabled()
    page.clock.run_for(29_000)
    expect(alert).to_contain_text("You can ask again in 0:01.")
    page.clock.run_for(2_000)
    expect(alert).to_contain_text("You can ask again now.")
    page.unroute("**/ask/stream")
    again.click()
    page.clock.resume()
    expect(answered(page)).to_be_visible(timeout=LONG_MS)


def test_who_was_signed_out_finds_his_question_again(
    omni2: Running, visit: Visits, someone: Callable[[str], str]
) -> None:
    visit.forgive("status of 401")
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    cookies = page.context.cookies()
    page.context.clear_cookies()
    say(page, "script:plain a long question one does not want to write again")
    expect(page.get_by_role("alert")).to_contain_text("You are signed out.")
    page.context.add_cookies(cookies)  # type: ignore[arg-type]
    page.goto("/chat/")
    expect(page.get_by_label("Message")).to_have_value(re.compile("a long question one does not want to write again"))


def test_an_answer_that_is_being_made_elsewhere_comes_by_itself(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    with api.asking(bob, "script:parallel+held from a program"):
        page = visit(bob, f"/chat/{conversation_of(omni2, bob)}/")
        expect(page.locator(".question")).to_have_text("script:parallel+held from a program")
        expect(page.get_by_text("The answer is being made.")).to_be_visible()
        expect(page.locator(".tool-step")).to_have_count(3, timeout=LONG_MS)
        go_on.set()
        expect(page.locator(".answer h1")).to_have_text("A title", timeout=LONG_MS)
    expect(page.get_by_text("The answer is being made.")).to_have_count(0)
    expect(page.locator("#announcements")).to_contain_text("Answered: A title")


def test_loaded_again_in_the_middle_it_says_what_became_of_the_question(
    visit: Visits, someone: Callable[[str], str]
) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    say(page, "script:held how does it go on?")
    expect(page.locator(".answer h1")).to_be_visible(timeout=LONG_MS)
    page.reload()
    expect(page.locator(".question")).to_have_text("script:held how does it go on?")
    expect(page.get_by_text("You stopped it, or left before its end")).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".answer h1")).to_have_text("A title")


def test_it_follows_the_answer_only_while_one_is_at_its_end(visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    say(page, "script:held_lines")
    expect(page.get_by_text("Line 79")).to_be_in_viewport(timeout=LONG_MS)
    newest = page.get_by_role("button", name="To the newest")
    expect(newest).to_be_hidden()
    page.locator("#lines").evaluate("one => one.scrollTop = 500")
    expect(newest).to_be_visible()
    go_on.set()
    expect(answered(page)).to_be_attached(timeout=LONG_MS)
    expect(page.get_by_text("Further line 39")).to_be_attached()
    assert page.locator("#lines").evaluate("one => one.scrollTop") == 500
    newest.click()
    expect(answered(page)).to_be_in_viewport()
    expect(newest).to_be_hidden()


def test_a_long_conversation_opens_at_its_end(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob, session_id = someone("Bob Kahn"), str(uuid.uuid4())

    def make() -> None:
        from chat.models import Conversation, Message, Role
        from omni2.accounts.models import User

        user = User.objects.get(email=bob)
        conversation = Conversation.objects.create(session_id=session_id, user=user, title="long")
        Message.objects.bulk_create(
            Message(conversation=conversation, role=role, content=f"{role.label} {number}", turn_id=turn_id)
            for number, turn_id in ((number, uuid.uuid4()) for number in range(200))
            for role in (Role.USER, Role.ASSISTANT)
        )

    omni2.orm(make)
    page = visit(bob, f"/chat/{session_id}/")
    expect(page.get_by_text("Assistant 199")).to_be_in_viewport()
    expect(page.locator(".exchange")).to_have_count(30)
    first = page.locator(".exchange").first
    first.scroll_into_view_if_needed()
    page.locator("#lines").evaluate("one => one.scrollTop = 0")
    before = first.bounding_box()
    seen = page.locator(".exchange", has_text="Assistant 170")
    page.get_by_role("link", name="Earlier").click()
    expect(page.locator(".exchange")).to_have_count(60)
    after = seen.bounding_box()
    assert before
    assert after
    assert abs(after["y"] - before["y"]) < 60, "what one reads stays where it was, but for the button above it"


def test_enter_that_ends_a_composition_sends_nothing(visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    page.get_by_label("Message").fill("にほん")
    page.get_by_label("Message").evaluate(
        """one => {
            for (const more of [{ isComposing: true }, { keyCode: 229 }]) {
                const enter = { key: "Enter", bubbles: true, cancelable: true, ...more };
                one.dispatchEvent(new KeyboardEvent("keydown", enter));
            }
        }"""
    )
    expect(page.locator(".exchange")).to_have_count(0)
    expect(page.get_by_label("Message")).to_have_value("にほん")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange")).to_have_count(1)


def test_a_screen_reader_hears_the_answer_once_when_it_is_complete(
    visit: Visits, someone: Callable[[str], str]
) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    page.evaluate(
        """() => {
            window.heard = [];
            const place = document.getElementById("announcements");
            new MutationObserver(() => window.heard.push(place.textContent)).observe(place, { childList: true });
        }"""
    )
    say(page, "script:slow a story")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    expect(page.locator("#announcements")).to_contain_text("walk away in the middle")
    heard = page.evaluate("heard")
    assert len(heard) == 1
    assert heard[0].startswith("Answered: This answer takes its time")
    assert page.locator(".answer").evaluate("one => one.closest('[aria-live], [role=log], [role=status]')") is None


def test_a_question_can_be_edited_and_asked_again(visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/", width=NARROW)
    say(page, "script:plain how much?\nand why?")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    page.get_by_role("button", name="Edit the question").click()
    message = page.get_by_label("Message")
    expect(message).to_be_focused()
    expect(message).to_have_value("script:plain how much?\nand why?")
    page.keyboard.press("End")
    page.keyboard.type(" and when?")
    page.keyboard.press("Enter")
    expect(page.locator(".question").nth(1)).to_have_text("script:plain how much?\nand why? and when?")
    expect(answered(page).nth(1)).to_be_visible(timeout=LONG_MS)
