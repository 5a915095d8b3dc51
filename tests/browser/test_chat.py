"""The chat page: streaming, tools, Markdown, stop, refusals, and the one who may not."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.browser.conftest import Api, Visits
from tests.browser.test_the_road import LONG_MS, outcome_of
from tests.running import Running, eventually


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.keyboard.press("Enter")


def test_a_conversation_streams_shows_its_tools_and_is_there_again(
    visit: Visits, someone: Callable[[str], str]
) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    expect(page.get_by_text("A scripted model answers here.")).to_be_visible()
    say(page, "script:parallel what is 19 * 23, and the time?")
    expect(page.locator(".tool-step")).to_have_count(3, timeout=LONG_MS)
    expect(page.locator(".answer")).to_contain_text("437", timeout=LONG_MS)
    expect(page.get_by_role("link", name="How it was answered")).to_be_visible(timeout=LONG_MS)
    say(page, "script:memory do you remember?")
    expect(page.locator(".answer").nth(1)).to_contain_text("the first: script:parallel what", timeout=LONG_MS)
    address = page.url
    assert address.rstrip("/").split("/")[-2] == "chat"
    page.goto("/chat/")
    page.locator("#conversations li a").first.click()
    expect(page).to_have_url(address)
    expect(page.locator(".answer")).to_have_count(2)
    page.get_by_role("link", name="How it was answered").first.click()
    expect(page.locator("[data-turn-id]")).to_have_count(2)


def test_markup_in_an_answer_is_rendered_safely(visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    page.on("dialog", lambda dialog: visit.problems.append(f"dialog: {dialog.message}"))
    evil = (
        "**bold** [good](https://example.com) [bad](javascript:alert(1)) ![p](https://example.com/p.png) "
        "<img src=x onerror=alert(2)> <b x-init=alert(3)>x</b>"
    )
    say(page, f"script:plain {evil}")
    expect(page.get_by_role("link", name="How it was answered")).to_be_visible(timeout=LONG_MS)
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


def test_stop_ends_the_turn(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    say(page, "script:slow tell me a long story")
    expect(page.locator(".answer")).to_contain_text("takes its time", timeout=LONG_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("You stopped it")).to_be_visible()
    turn_id = str(page.locator("[data-turn-id]").get_attribute("data-turn-id"))
    eventually(lambda: outcome_of(omni2, turn_id) == "disconnected", "the turn ended with its client")
    page.reload()
    expect(page.get_by_text("Left", exact=True)).to_be_visible()


def test_a_failure_is_said_and_can_be_tried_again(visit: Visits, someone: Callable[[str], str]) -> None:
    bob = someone("Bob Kahn")
    page = visit(bob, "/chat/")
    say(page, "script:cut then nothing")
    expect(page.get_by_role("alert")).to_contain_text("The model", timeout=LONG_MS)
    expect(page.locator(".answer")).to_contain_text("This answer breaks off")
    page.get_by_role("button", name="Ask again").click()
    expect(page.get_by_role("alert")).to_have_count(2, timeout=LONG_MS)


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
    link = page.get_by_role("link", name="How it was refused")
    eventually(lambda: omni2.sql("SELECT 1 FROM turns WHERE user_id = %s AND outcome = 'refused'", poor))
    link.click()
    expect(page.locator('[data-outcome="refused"]')).to_contain_text("Over limit")
