"""What was said before: the memory a continued session gives the model, and the chat page's list of conversations."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from django.db.models import QuerySet

from chat.models import Conversation, Role

MEMORY_MESSAGES = 200
"""Messages looked at, whatever the budget: what a model is reminded of is not a whole archive."""


class Said(NamedTuple):
    """One message."""

    turn_id: str
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Exchange:
    """One earlier turn: what was asked and what was answered."""

    question: str
    answer: str

    @property
    def characters(self) -> int:
        return len(self.question) + len(self.answer)


# What was said in a session, the newest first: one JSON value, for the statement that lets a turn in.
EARLIER = f"""
SELECT json_agg(json_build_array(said.turn_id, said.role, said.content) ORDER BY said.id DESC)
FROM (SELECT id, turn_id, role, content FROM messages WHERE conversation_id = %(session)s::uuid
      ORDER BY id DESC LIMIT {MEMORY_MESSAGES}) AS said"""  # noqa: S608 - a constant


def memory(newest_first: Sequence[Said], *, characters: int) -> list[Exchange]:
    """The newest exchanges of a session that fit into `characters`, oldest first. No query.

    Whole turns only, the oldest are left out first; turns without an answer are no help and left
    out as well.
    """
    return _that_fit(_pair(newest_first), characters)


def _pair(newest_first: Sequence[Said]) -> list[Exchange]:
    """Turns at once in one session lie mixed in the table: their ids put them together."""
    questions = {turn_id: content for turn_id, role, content in newest_first if role == Role.USER}
    return [
        Exchange(questions[turn_id], content)
        for turn_id, role, content in newest_first
        if role == Role.ASSISTANT and turn_id in questions
    ]


def _that_fit(newest_first: list[Exchange], characters: int) -> list[Exchange]:
    kept: list[Exchange] = []
    for exchange in newest_first:
        characters -= exchange.characters
        if characters < 0:
            break
        kept.append(exchange)
    return kept[::-1]


def conversations_of(user_pk: int) -> QuerySet[Conversation]:
    """A user's conversations, the one that was last continued first. Slice it: one query."""
    return Conversation.objects.filter(user_id=user_pk).order_by("-updated_at", "-session_id")
