"""One's own conversations: the list and its pages, another title, deleting for good, taking along; and the budget of
what a session remembers, seen from outside."""

import json
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import Error, IntegrityError, connections
from django.test import AsyncClient, Client
from django.utils import timezone

from chat import conversations
from chat.conversation_export import without_html
from chat.models import Conversation, DailyUsage, LanguageModel, Message, TurnUsage
from chat.scripted_model import Chunk, Seen, ends, says, script, text_of, used
from chat.usage import Totals, admit, charge
from flows.models import Turn
from omni2.database import in_database
from tests.llm_server import KEY, MODEL
from tests.people import credential_of, issue_token

pytestmark = pytest.mark.django_db
LIST = "/api/v1/conversations"
EVIL = "<script>alert(1)</script>"


@pytest.fixture
def api_of() -> Callable[[Any], Client]:
    """A client with this user's token; with none for None."""

    def make(user: Any) -> Client:
        return Client(headers={"Authorization": f"Bearer {issue_token(user)}"} if user else {})

    return make


def make(user: Any, title: str = "t", *, minutes_ago: int = 0, said: tuple[tuple[str, str], ...] = ()) -> Conversation:
    at = timezone.now() - timedelta(minutes=minutes_ago)
    made = Conversation.objects.create(session_id=uuid.uuid4(), user=user, title=title, created_at=at, updated_at=at)
    for question, answer in said:
        turn_id = uuid.uuid4()
        Message.objects.create(conversation=made, role="user", content=question, turn_id=turn_id)
        if answer:
            Message.objects.create(conversation=made, role="assistant", content=answer, turn_id=turn_id)
    return made


def titles(answer: Any) -> list[str]:
    return [each["title"] for each in answer.json()["conversations"]]


# --- the list -----------------------------------------------------------------------------------------


def test_the_list_is_ones_own_the_last_continued_first(bob: Any, charlie: Any, api_of: Any) -> None:
    make(bob, "older", minutes_ago=5)
    newer = make(bob, "newer")
    make(charlie, "not his")
    answer = api_of(bob).get(LIST)
    assert titles(answer) == ["newer", "older"]
    assert answer.json()["next"] is None
    first = answer.json()["conversations"][0]
    assert first["session_id"] == str(newer.session_id)
    assert datetime.fromisoformat(first["updated_at"]) == newer.updated_at.astimezone(UTC)
    assert titles(api_of(charlie).get(LIST)) == ["not his"]
    assert api_of(None).get(LIST).status_code == 401


def test_its_pages_meet_and_a_cursor_is_good_for_its_own_list_only(bob: Any, charlie: Any, api_of: Any) -> None:
    at = timezone.now()
    Conversation.objects.bulk_create(
        Conversation(session_id=uuid.uuid4(), user=bob, title=f"{number}", updated_at=at) for number in range(7)
    )
    seen: list[str] = []
    cursor = ""
    for _ in range(3):
        answer = api_of(bob).get(LIST, {"limit": 3, "cursor": cursor})
        seen += titles(answer)
        cursor = answer.json()["next"]
    assert cursor is None
    assert sorted(seen) == [f"{number}" for number in range(7)]
    page = api_of(bob).get(LIST, {"limit": 3}).json()["next"]
    for user, more in ((charlie, {}), (bob, {"q": "1"}), (bob, {"cursor": page + "x"})):
        refused = api_of(user).get(LIST, {"cursor": page, **more})
        assert (refused.status_code, list(refused.json())) == (400, ["cursor"])


def test_it_finds_titles_as_plain_text(bob: Any, charlie: Any, api_of: Any) -> None:
    for title in ("Wages in May", "wages 100% up", "holidays_2026"):
        make(bob, title)
    make(charlie, "Charlie's wages")
    assert titles(api_of(bob).get(LIST, {"q": "WAGES"})) == ["wages 100% up", "Wages in May"]
    assert titles(api_of(bob).get(LIST, {"q": "0%"})) == ["wages 100% up"]
    assert titles(api_of(bob).get(LIST, {"q": "s_2"})) == ["holidays_2026"]
    assert titles(api_of(bob).get(LIST, {"q": ""})) == ["holidays_2026", "wages 100% up", "Wages in May"]


def test_a_page_is_one_query_along_the_index(bob: Any, django_assert_num_queries: Any) -> None:
    make(bob)
    with django_assert_num_queries(1):
        conversations.page_of(bob.pk, q="t")


# --- another title ------------------------------------------------------------------------------------


def rename(client: Client, session_id: Any, title: Any) -> Any:
    return client.patch(f"{LIST}/{session_id}", json.dumps({"title": title}), content_type="application/json")


def test_a_title_can_be_changed_by_its_owner_alone(bob: Any, charlie: Any, ada: Any, api_of: Any) -> None:
    made = make(bob, "before", minutes_ago=5)
    for stranger, status in ((charlie, 404), (ada, 404), (None, 401)):
        assert rename(api_of(stranger), made.session_id, "theirs").status_code == status
    answer = rename(api_of(bob), str(made.session_id).upper(), "  after\n all ")
    assert (answer.status_code, answer.json()["title"]) == (200, "after all")
    made.refresh_from_db()
    assert made.title == "after all"
    assert timezone.now() - made.updated_at > timedelta(minutes=4), "its place in the list is that of its questions"
    assert rename(api_of(bob), uuid.uuid4(), "x").status_code == 404


@pytest.mark.parametrize("title", ["", "  ", "x" * 121, None, 5, ["x"], "a\0b", "\ud800"])
def test_a_title_that_is_none_is_refused_by_its_name(bob: Any, api_of: Any, title: Any) -> None:
    made = make(bob, "before")
    answer = rename(api_of(bob), made.session_id, title)
    assert (answer.status_code, list(answer.json())) == (400, ["title"])
    made.refresh_from_db()
    assert made.title == "before"


@pytest.mark.django_db(transaction=True)
async def test_a_question_more_does_not_take_the_new_title_away(bob: Any, client_of: Any, chatting: None) -> None:
    session_id = (await client_of(bob).stream("Hello")).last.data["session_id"]
    await in_database(conversations.rename, bob.pk, session_id, "Mine")
    await client_of(bob).stream("Hello again", session_id=session_id)
    assert (await in_database(Conversation.objects.get)).title == "Mine"


# --- deleting -----------------------------------------------------------------------------------------


def test_deleting_takes_all_that_was_said_and_leaves_the_rest(
    bob: Any, charlie: Any, ada: Any, api_of: Any, django_assert_num_queries: Any
) -> None:
    gone = make(bob, "gone", said=(("one", "eins"), ("two", "")))
    kept = make(bob, "kept", said=(("three", "drei"),))
    Turn.objects.create(
        turn_id=uuid.uuid4(), session_id=str(gone.session_id), user_id=bob.user_id, started_at=timezone.now()
    )
    for stranger, status in ((charlie, 404), (ada, 404), (None, 401)):
        assert api_of(stranger).delete(f"{LIST}/{gone.session_id}").status_code == status
    assert Message.objects.count() == 5
    answer = api_of(bob).delete(f"{LIST}/{gone.session_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    assert [each.title for each in Conversation.objects.all()] == ["kept"]
    assert list(Message.objects.values_list("content", flat=True)) == ["three", "drei"]
    assert Turn.objects.filter(session_id=str(gone.session_id)).exists(), "the record of its turns stays"
    assert api_of(bob).delete(f"{LIST}/{gone.session_id}").status_code == 404
    assert api_of(bob).delete(f"{LIST}/nonsense").json() == {"session_id": ["This is not a session id (a UUID)."]}
    with django_assert_num_queries(1):
        assert conversations.delete(bob.pk, str(kept.session_id))


def ask(user: Any, session_id: str) -> str:
    """A turn of this session that was let in and runs."""
    turn_id = str(uuid.uuid4())
    admit(
        credential_of(user),
        session_id=session_id,
        continued=True,
        turn_id=turn_id,
        process_id=str(uuid.uuid4()),
        message=f"question of {turn_id}",
        reserve=True,
    )
    return turn_id


@pytest.mark.django_db(transaction=True)
def test_a_running_turn_brings_nothing_back_and_is_paid_for(bob: Any) -> None:
    session_id = str(uuid.uuid4())
    turn_id = ask(bob, session_id)
    assert conversations.delete(bob.pk, session_id)
    charge(turn_id, Totals(10, 5), ended=True, answer="half a conversation")
    assert not Conversation.objects.exists()
    assert not Message.objects.exists()
    assert TurnUsage.objects.get().ended_at is not None
    assert DailyUsage.objects.get().output_tokens == 5


@pytest.mark.django_db(transaction=True)
def test_a_session_that_begins_anew_does_not_get_the_old_answer(bob: Any) -> None:
    session_id = str(uuid.uuid4())
    old = ask(bob, session_id)
    conversations.delete(bob.pk, session_id)
    new = ask(bob, session_id)
    charge(old, Totals(), ended=True, answer="of the old question")
    charge(new, Totals(), ended=True, answer="of the new question")
    said = list(Message.objects.order_by("id").values_list("content", flat=True))
    assert said == [f"question of {new}", "of the new question"]


@pytest.mark.django_db(transaction=True)
def test_deleting_and_asking_at_once_neither_wait_for_each_other_for_ever_nor_leave_half(bob: Any, limits: Any) -> None:
    limits(requests_per_day=None, turns_at_once=None)
    session_id, rounds = str(uuid.uuid4()), 25

    def in_a_thread(work: Callable[[], Any]) -> list[str]:
        problems = []
        try:
            for _ in range(rounds):
                try:
                    work()
                except Error as problem:
                    problems.append(str(problem))
        finally:
            connections.close_all()
        return problems

    def turn() -> None:
        turn_id = ask(bob, session_id)
        for more in range(3):
            try:
                charge(turn_id, Totals(1, 1), ended=True, answer=f"answer to {turn_id}")
                return
            except IntegrityError:
                # the conversation went away before the commit: as in chat.turn, it is tried again
                assert more < 2

    with ThreadPoolExecutor(5) as threads:
        works = [turn, turn, turn, lambda: conversations.delete(bob.pk, session_id)]
        assert [problem for found in threads.map(in_a_thread, works) for problem in found] == []
    said = list(Message.objects.order_by("id").values_list("role", "turn_id"))
    asked = {turn_id for role, turn_id in said if role == "user"}
    assert {turn_id for role, turn_id in said if role == "assistant"} == asked
    assert not TurnUsage.objects.filter(ended_at=None).exists()
    assert DailyUsage.objects.get().output_tokens == 3 * rounds
    assert Conversation.objects.filter(session_id=session_id).exists() is bool(asked)


@pytest.mark.usefixtures("chatting")
@pytest.mark.django_db(transaction=True)
async def test_deleted_in_the_middle_of_an_answer_the_client_hears_it_to_its_end(
    bob: Any, client_of: Any, tree_of: Any
) -> None:
    call = client_of(bob).call("script:slow a story").start()
    await call.until(lambda call: b"event: token" in call.content)
    session_id = call.events[0].data["session_id"]
    assert await in_database(conversations.delete, bob.pk, session_id)
    await call.over()
    assert call.last.name == "done"
    assert "walk away in the middle" in call.text
    assert not await in_database(Message.objects.exists)
    assert not await in_database(Conversation.objects.exists)
    assert (await in_database(TurnUsage.objects.get)).ended_at is not None
    (await tree_of(bob, call.turn_id)).assert_complete("completed")


# --- taking along -------------------------------------------------------------------------------------


async def taken(user: Any, session_id: Any, format: str) -> tuple[Any, str]:
    client = AsyncClient()
    await in_database(client.force_login, user)
    answer = await client.get(f"{LIST}/{session_id}/export", {"format": format} if format else {})
    return answer, b"".join([part async for part in answer.streaming_content]).decode()


@pytest.mark.django_db(transaction=True)
async def test_it_can_be_taken_along_as_json(bob: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("chat.conversation_export.PAGE_MESSAGES", 2)
    made = await in_database(make, bob, 'The "title"', said=(("one", "eins"), ("two", ""), ("three", EVIL)))
    answer, text = await taken(bob, made.session_id, "")
    assert answer["Content-Type"] == "application/json"
    assert answer["Content-Disposition"].startswith('attachment; filename="omni2-conversation-')
    document = json.loads(text)
    assert (document["session_id"], document["title"], document["count"]) == (str(made.session_id), 'The "title"', 5)
    assert [(each["role"], each["content"]) for each in document["messages"]] == [
        ("user", "one"),
        ("assistant", "eins"),
        ("user", "two"),
        ("user", "three"),
        ("assistant", EVIL),
    ]
    assert document["messages"][0]["turn_id"] == document["messages"][1]["turn_id"]


@pytest.mark.django_db(transaction=True)
async def test_it_can_be_taken_along_as_markdown_that_holds_no_html(bob: Any) -> None:
    said = (
        (f"First\n# no heading\n{EVIL}", f"**Bold** {EVIL} and `<b>`\n\n```html\n<i>code</i>"),
        ("=1+1", "fine"),
    )
    made = await in_database(make, bob, f"# [title]({EVIL}", said=said)
    turn_id = await in_database(lambda: Message.objects.filter(role="assistant").order_by("id")[0].turn_id)
    await in_database(
        lambda: Turn.objects.create(
            turn_id=turn_id,
            session_id=str(made.session_id),
            user_id=bob.user_id,
            started_at=timezone.now(),
            model="a_model<b>",
            outcome="disconnected",
        )
    )
    answer, text = await taken(bob, made.session_id, "markdown")
    assert answer["Content-Type"] == "text/markdown; charset=utf-8"
    assert answer["Content-Disposition"].endswith('.md"')
    assert text.startswith("# \\# \\[title\\](\\<script\\>alert(1)\\</script\\>\n")
    assert "> First\n> # no heading\n> &lt;script>alert(1)&lt;/script>\n" in text
    assert "## Answered by a\\_model\\<b\\>\n" in text
    assert "```html\n<i>code</i>\n```\n\n*The answer is not complete (disconnected).*" in text, "its code is ended"
    assert text.endswith("> =1+1\n\n## Answered\n\nfine\n")
    assert without_html(text) == text


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("plain *text* & 1 < 2", None),
        ("a `<b>` in code", None),
        ("```\n<script>\n```", None),
        ("    <script>", None),
        ("<b>x</b>", "&lt;b>x&lt;/b>"),
        ("a <img src=x onerror=alert(1)> b", "a &lt;img src=x onerror=alert(1)> b"),
        ("<!-- x -->", "&lt;!-- x -->"),
        ("| <b> |\n|---|\n| <i> |", "| &lt;b> |\n|---|\n| &lt;i> |"),
    ],
)
def test_html_becomes_text_and_code_stays_as_it_is(text: str, without: str | None) -> None:
    assert without_html(text) == (text if without is None else without)


def test_what_only_becomes_html_by_that_is_found_as_well() -> None:
    """The comment hides a fence: with the comment gone, what was code is no longer any."""
    tricky = f"<!--\n```\n-->\n```\n{EVIL}\n```\n"
    made = without_html(tricky)
    assert without_html(made) == made
    from chat.conversation_export import _finder

    assert EVIL not in _finder.render(made)
    long = "x" * 100_001 + EVIL
    assert EVIL not in without_html(long)


def test_nobody_else_takes_it_along(bob: Any, charlie: Any, ada: Any, api_of: Any) -> None:
    made = make(bob, said=(("one", "eins"),))
    for stranger, status in ((charlie, 404), (ada, 404), (None, 401)):
        assert api_of(stranger).get(f"{LIST}/{made.session_id}/export").status_code == status
    refused = api_of(bob).get(f"{LIST}/{made.session_id}/export", {"format": "csv"})
    assert (refused.status_code, list(refused.json())) == (400, ["format"])
    assert api_of(bob).get(f"{LIST}/x/export").status_code == 400


# --- the budget, from outside -------------------------------------------------------------------------


@script("two_characters_a_token")
async def two_characters_a_token(seen: Seen) -> AsyncIterator[Chunk]:
    """Counts as a model of another language would, with a system prompt of 300 tokens."""
    yield says("y" * 1000)
    yield ends()
    yield used(300 + sum(len(text_of(each)) for each in seen.messages if each["role"] != "system") // 2, 100)


@pytest.mark.usefixtures("chatting")
@pytest.mark.django_db(transaction=True)
async def test_a_session_is_remembered_within_the_models_budget_by_the_models_own_count(
    bob: Any, client_of: Any, llm: Any, tree_of: Any, monkeypatch: Any
) -> None:
    await in_database(
        LanguageModel.objects.create,
        name="small",
        model=MODEL,
        base_url=llm.url,
        key_variable="KEY",
        history_tokens=1200,
    )
    monkeypatch.setenv("KEY", KEY)
    client = client_of(bob)
    session_id = str(uuid.uuid4())
    facts = []
    for number in range(5):
        question = f"script:two_characters_a_token {number} ".ljust(100, "x")
        call = await client.stream(question, session_id=session_id, model="small")
        assert call.last.name == "done", call.last
        facts.append((await tree_of(bob, call.turn_id)).facts("llm_thinking").get("history"))
    # an exchange of 1,100 characters: 275 tokens as long as nothing is known, then 550 by the model's own count
    assert facts[:3] == [None, None, None]
    assert facts[3] == {"exchanges": 2, "left_out": 1, "tokens": 1100}
    assert facts[4] == {"exchanges": 2, "left_out": 2, "tokens": 1100}
    asked = [text_of(each).rstrip("x") for each in llm.requests[-1].messages if each["role"] == "user"]
    assert [text.split()[-1] for text in asked] == ["2", "3", "4"]


# --- the page ------------------------------------------------------------------------------------------


def test_the_page_reads_on_in_ones_own_list_alone(bob: Any, charlie: Any) -> None:
    at = timezone.now()
    Conversation.objects.bulk_create(
        Conversation(session_id=uuid.uuid4(), user=bob, title=f"Talk {number:03}", updated_at=at - timedelta(number))
        for number in range(101)
    )
    cursor = conversations.page_of(bob.pk).next
    client = Client()
    assert client.get("/chat/", {"older": cursor}).status_code == 302
    client.force_login(charlie)
    assert client.get("/chat/", {"older": cursor}).status_code == 404
    client.force_login(bob)
    page = client.get("/chat/", {"older": cursor}).content.decode()
    assert "Talk 100" in page
    assert "Talk 099" not in page
    assert client.get("/chat/", {"older": "x"}).status_code == 404
    assert "data-cursor" in client.get("/chat/").content.decode()
