"""The chat page against what it shows: models of the catalogue, a stopped turn, a tool that waits for its user."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Api, Visits
from tests.browser.test_chat import answered, conversation_of, say
from tests.browser.test_chat_conversations import look
from tests.browser.test_the_road import LONG_MS, outcome_of
from tests.running import Running, eventually

APPROVED_TOOL = "May add of things be used?"


@pytest.fixture
def catalogue(omni2: Running) -> Iterator[Callable[..., None]]:
    """`catalogue(user_id, "Quick", "Thorough")`: models for this user alone, gone afterwards."""

    def add(user_id: str, *names: str) -> None:
        from chat.models import LanguageModel
        from omni2.accounts.models import User

        for name in names:
            made = LanguageModel.objects.create(
                name=name,
                model="scripted-model",
                base_url=omni2.environment["LLM_BASE_URL"],
                key_variable="LLM_API_KEY",
                description=f"{name} answers",
            )
            made.users.set([User.objects.get(email=user_id)])

    def clear() -> None:
        from chat.models import LanguageModel

        LanguageModel.objects.all().delete()

    yield lambda *given: omni2.orm(add, *given)
    omni2.orm(clear)


def test_the_chosen_model_answers_and_stays_chosen(
    omni2: Running, visit: Visits, someone: Callable[[str], str], catalogue: Callable[..., None]
) -> None:
    bob = someone("Bob Kahn")
    catalogue(bob, "Quick", "Thorough")
    page = visit(bob, "/chat/")
    choice = page.get_by_label("Model")
    notice = page.get_by_text("A scripted model answers here.")
    choice.select_option("scripted")
    expect(notice).to_be_visible()
    choice.select_option("Thorough")
    expect(notice).to_be_hidden()
    say(page, "script:plain hello")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".line-foot")).to_contain_text("Thorough")
    turn_id = str(page.locator("[data-turn-id]").get_attribute("data-turn-id"))
    eventually(lambda: outcome_of(omni2, turn_id), "it is stored")
    page.reload()
    expect(choice).to_have_value("Thorough")
    look(page)
    other = visit(someone("Otto Other"), "/chat/")
    say(other, "script:plain hello")
    expect(answered(other)).to_be_visible(timeout=LONG_MS)
    expect(other.get_by_label("Model")).to_be_hidden()


def test_a_model_that_is_gone_is_told_and_another_can_be_chosen(
    visit: Visits, someone: Callable[[str], str], catalogue: Callable[..., None], omni2: Running
) -> None:
    visit.forgive("status of 404")
    bob = someone("Bob Kahn")
    catalogue(bob, "Quick", "Thorough", "Third")
    page = visit(bob, "/chat/")
    choice = page.get_by_label("Model")
    choice.select_option("Third")

    def withdraw() -> None:
        from chat.models import LanguageModel

        LanguageModel.objects.filter(name="Third").delete()

    omni2.orm(withdraw)
    say(page, "script:plain hello")
    expect(page.get_by_role("alert")).to_contain_text("There is no such model", timeout=LONG_MS)
    expect(choice.locator("option")).to_have_text(["Quick", "Thorough", "scripted"])
    say(page, "script:plain hello")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)


def test_stop_ends_the_turn_as_stopped(omni2: Running, visit: Visits, someone: Callable[[str], str]) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    say(page, "script:hang_in_middle and wait")
    expect(page.locator(".answer")).to_contain_text("This answer stops here", timeout=LONG_MS)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".line-foot")).to_contain_text("You stopped it")
    turn_id = str(page.locator("[data-turn-id]").get_attribute("data-turn-id"))
    eventually(lambda: outcome_of(omni2, turn_id) == "stopped", "it ended as stopped")
    expect(page.get_by_role("alert")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("You stopped it", exact=True)).to_be_visible()


def test_somebody_else_stops_it_and_says_why(
    omni2: Running, visit: Visits, api: Api, someone: Callable[[str], str]
) -> None:
    page = visit(someone("Bob Kahn"), "/chat/")
    say(page, "script:hang_in_middle and wait")
    expect(page.locator(".answer")).to_contain_text("This answer stops here", timeout=LONG_MS)
    turn_id = str(page.locator("[data-turn-id]").get_attribute("data-turn-id"))
    body = {"message": "Please call me. <b>Ada</b>", "reason": "secret"}
    assert api("ada@example.com", f"/api/v1/turns/{turn_id}/stop", body, web=1)[0] == 202
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("This answer was stopped.", timeout=LONG_MS)
    expect(alert).to_contain_text("Please call me. <b>Ada</b>")
    look(page)
    eventually(lambda: outcome_of(omni2, turn_id) == "stopped", "it ended as stopped")
    page.reload()
    expect(page.get_by_text("It was stopped: Please call me. <b>Ada</b>")).to_be_visible()
    assert "secret" not in page.content()


# --- a tool that waits ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def things() -> Iterator[str]:
    from tests.tool_server import run_http

    with run_http() as (url, _):
        yield url


@pytest.fixture
def bob(omni2: Running, someone: Callable[[str], str], things: str) -> Iterator[str]:
    """He may use a tool that waits for his yes."""
    user_id = someone("Bob Kahn")

    def add() -> None:
        from chat.models import ToolServer
        from omni2.accounts.models import User

        made = ToolServer.objects.create(name="things", url=things, approved_tools=["add"])
        made.users.set([User.objects.get(email=user_id)])

    def clear() -> None:
        from chat.models import ToolServer

        ToolServer.objects.all().delete()

    omni2.orm(add)
    yield user_id
    omni2.orm(clear)


ADD = f"script:use\nthings__add {json.dumps({'a': 40, 'b': 2})}"


def asked(page: Page) -> Any:
    card = page.get_by_role("group", name=APPROVED_TOOL)
    expect(card).to_be_visible(timeout=LONG_MS)
    return card


def until_offered(api: Api, user_id: str) -> None:
    """A server of tools that was just added is asked for them by each process; until then it is not offered."""
    for web in (0, 1):
        eventually(
            lambda web=web: "42" in _answer_to_open(api, user_id, web),  # type: ignore[misc]
            "the tools are offered",
        )


def _answer_to_open(api: Api, user_id: str, web: int) -> str:
    """The answer to a question whose tool is approved by a program."""
    with api.asking(user_id, ADD, web=web) as answers:
        for _ in range(40):
            waiting = api(user_id, "/api/v1/approvals", web=web)[1]["approvals"]
            for one in waiting:
                path = f"/api/v1/turns/{one['turn_id']}/approvals/{one['call_id']}"
                api(user_id, path, {"approve": True}, web=web)
            if answers:
                break
            import time

            time.sleep(0.1)
    return str(answers[0].get("answer", ""))


@pytest.mark.parametrize("yes", [True, False])
def test_a_real_tool_waits_for_its_users_yes(visit: Visits, api: Api, bob: str, yes: bool) -> None:
    until_offered(api, bob)
    page = visit(bob, "/chat/")
    say(page, ADD)
    card = asked(page)
    expect(card.locator("dd")).to_have_text(["40", "2"])
    look(page)
    card.get_by_role("button", name="Approve" if yes else "Decline").click()
    expect(card).to_contain_text("You approved it" if yes else "You declined it")
    expect(answered(page)).to_be_visible(timeout=LONG_MS)
    expect(page.locator(".tool-step").last).to_have_attribute("data-step", "ok" if yes else "error")
    if yes:
        expect(page.locator(".answer")).to_contain_text("42")


def test_it_is_approved_from_a_page_that_was_loaded_meanwhile(
    omni2: Running, visit: Visits, api: Api, bob: str
) -> None:
    until_offered(api, bob)
    omni2.sql("DELETE FROM messages RETURNING id")
    omni2.sql("DELETE FROM conversations RETURNING session_id")
    with api.asking(bob, ADD) as answers:
        page = visit(bob, f"/chat/{conversation_of(omni2, bob)}/")
        card = asked(page)
        expect(card.locator("dd")).to_have_text(["40", "2"])
        card.get_by_role("button", name="Approve").click()
        expect(card).to_contain_text("You approved it")
        expect(page.locator(".answer")).to_contain_text("42", timeout=LONG_MS)
    assert "42" in answers[0]["answer"]
