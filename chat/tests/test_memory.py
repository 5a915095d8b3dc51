"""What a session remembers, and what the chat page may show of it."""

import uuid
from typing import Any

import pytest
from django.db import connection

from chat.history import EARLIER, Exchange, Said, conversations_of
from chat.history import memory as that_fits
from chat.models import Conversation, Message

pytestmark = pytest.mark.django_db


def memory(session_id: str, *, characters: int) -> list[Exchange]:
    """As a turn in this session is given it."""
    with connection.cursor() as cursor:
        cursor.execute(EARLIER, {"session": session_id})
        (rows,) = cursor.fetchone()
    return that_fits([Said(*each) for each in rows or ()], characters=characters)


@pytest.fixture
def session(bob: Any) -> str:
    return str(Conversation.objects.create(session_id=uuid.uuid4(), user=bob, title="t").session_id)


def say(session_id: str, *said: tuple[str, str, str | None]) -> None:
    """(turn, question, answer), the questions first where turns ran at once."""
    for turn, question, _ in said:
        Message.objects.create(conversation_id=session_id, role="user", content=question, turn_id=turn)
    for turn, _, answer in said:
        if answer is not None:
            Message.objects.create(conversation_id=session_id, role="assistant", content=answer, turn_id=turn)


def turn_ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def test_it_remembers_whole_turns_oldest_first(session: str) -> None:
    a, b = turn_ids(2)
    say(session, (a, "one", "eins"))
    say(session, (b, "two", "zwei"))
    assert memory(session, characters=1000) == [Exchange("one", "eins"), Exchange("two", "zwei")]


def test_the_oldest_go_first_when_the_budget_is_small(session: str) -> None:
    a, b, c = turn_ids(3)
    for turn, word in ((a, "a"), (b, "b"), (c, "c")):
        say(session, (turn, word * 5, word * 5))
    assert [each.question for each in memory(session, characters=20)] == ["bbbbb", "ccccc"]
    assert [each.question for each in memory(session, characters=19)] == ["ccccc"]
    assert memory(session, characters=9) == []


def test_a_turn_without_an_answer_is_no_help(session: str) -> None:
    a, b = turn_ids(2)
    say(session, (a, "one", None))
    say(session, (b, "two", "zwei"))
    assert memory(session, characters=1000) == [Exchange("two", "zwei")]


def test_turns_at_once_keep_their_own_answers(session: str) -> None:
    a, b = turn_ids(2)
    say(session, (a, "one", "eins"), (b, "two", "zwei"))
    assert memory(session, characters=1000) == [Exchange("one", "eins"), Exchange("two", "zwei")]


def test_conversations_are_ones_own_the_newest_first(bob: Any, charlie: Any, session: str) -> None:
    newer = Conversation.objects.create(session_id=uuid.uuid4(), user=bob, title="newer")
    Conversation.objects.create(session_id=uuid.uuid4(), user=charlie, title="not his")
    assert [each.title for each in conversations_of(bob.pk)] == [newer.title, "t"]
