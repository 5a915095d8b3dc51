"""What a session remembers, and what the chat page may show of it."""

import json
import uuid
from datetime import date
from typing import Any

import pytest
from django.db import connection

from chat.history import EARLIER, Earlier, Exchange, Memory, Reading, tokens_per_character
from chat.history import memory as that_fits
from chat.models import Conversation, Message, TurnUsage

pytestmark = pytest.mark.django_db


def remembered(session_id: str, *, tokens: int) -> Memory:
    """As a turn in this session is given it."""
    with connection.cursor() as cursor:
        cursor.execute(EARLIER, {"session": session_id})
        (found,) = cursor.fetchone()
    return that_fits(Earlier.of(json.loads(found) if isinstance(found, str) else found), tokens=tokens)


def memory(session_id: str, *, characters: int) -> list[Exchange]:
    """The same, where nothing was reported: four characters a token."""
    return list(remembered(session_id, tokens=characters // 4))


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
        say(session, (turn, word * 20, word * 20))
    assert [each.question[0] for each in memory(session, characters=80)] == ["b", "c"]
    assert [each.question[0] for each in memory(session, characters=76)] == ["c"]
    assert memory(session, characters=36) == []


def test_it_says_what_was_left_out_and_nothing_otherwise(session: str) -> None:
    a, b, c = turn_ids(3)
    for turn, word in ((a, "a"), (b, "b"), (c, "c")):
        say(session, (turn, word * 20, word * 20))
    assert remembered(session, tokens=20).facts() == {"history": {"exchanges": 2, "left_out": 1, "tokens": 20}}
    assert remembered(session, tokens=30).facts() == {}
    assert remembered(str(uuid.uuid4()), tokens=30) == Memory([])


def test_a_turn_without_an_answer_is_no_help(session: str) -> None:
    a, b = turn_ids(2)
    say(session, (a, "one", None))
    say(session, (b, "two", "zwei"))
    assert memory(session, characters=1000) == [Exchange("two", "zwei")]


def test_turns_at_once_keep_their_own_answers(session: str) -> None:
    a, b = turn_ids(2)
    say(session, (a, "one", "eins"), (b, "two", "zwei"))
    assert memory(session, characters=1000) == [Exchange("one", "eins"), Exchange("two", "zwei")]


# --- how much a token is ----------------------------------------------------------------------------


def used(user: Any, session_id: str, turn: str, *, characters: int, tokens: int) -> None:
    """What the first round of a turn read, as its charge wrote it down."""
    TurnUsage.objects.create(
        turn_id=turn,
        user=user,
        session_id=session_id,
        day=date(2026, 11, 25),
        process_id=uuid.uuid4(),
        read_characters=characters,
        read_tokens=tokens,
    )


def test_tokens_are_counted_as_the_model_counted_the_session_so_far(bob: Any, session: str) -> None:
    a, b, c = turn_ids(3)
    for turn in (a, b, c):
        say(session, (turn, "x" * 500, "y" * 500))
    assert len(remembered(session, tokens=500).exchanges) == 2, "four characters a token"
    # 1,500 characters more were 1,500 tokens more: a token a character, whatever the tools and the prompt take
    used(bob, session, a, characters=500, tokens=3500)
    assert len(remembered(session, tokens=500).exchanges) == 2, "one reading says nothing"
    used(bob, session, b, characters=2000, tokens=5000)
    assert len(remembered(session, tokens=500).exchanges) == 0
    assert len(remembered(session, tokens=2999).exchanges) == 2
    assert remembered(session, tokens=3000).tokens == 3000


def test_another_sessions_readings_do_not_count(bob: Any, session: str) -> None:
    (turn,) = turn_ids(1)
    say(session, (turn, "x" * 500, "y" * 500))
    other = str(Conversation.objects.create(session_id=uuid.uuid4(), user=bob, title="t").session_id)
    for elsewhere, characters in zip(turn_ids(2), (10, 5000), strict=True):
        say(other, (elsewhere, "a", "b"))
        used(bob, other, elsewhere, characters=characters, tokens=characters * 2)
    assert remembered(session, tokens=250).tokens == 250


@pytest.mark.parametrize(
    ("readings", "rate"),
    [
        ([], 0.25),
        ([(10, 5000)], 0.25),
        ([(10, 100), (900, 5000)], 0.25),  # too alike
        ([(10, 1000), (2010, 1800)], 0.4),
        ([(2010, 1800), (1000, 1), (10, 1000)], 0.4),  # the least and the most, in whatever order
        ([(10, 100), (20010, 100)], 0.125),  # counted by another model, or not at all
        ([(10, 2000), (20010, 100)], 0.125),
        ([(10, 0), (1010, 99_999)], 2.0),
    ],
)
def test_the_rate_is_between_the_least_and_the_most_that_was_read(readings: list[tuple[int, int]], rate: float) -> None:
    assert tokens_per_character([Reading(*each) for each in readings]) == pytest.approx(rate)
