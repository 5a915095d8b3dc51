"""What was said before: the memory a continued session gives the model, within its budget of tokens.

How many tokens a text is, only the model knows; what it reported of the session's earlier turns says how many
characters it takes for one (docs/conversations.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from chat.models import Role

MEMORY_MESSAGES = 200
"""Messages looked at, whatever the budget: what a model is reminded of is not a whole archive."""

USUAL_TOKENS_PER_CHARACTER = 0.25
LEAST_TOKENS_PER_CHARACTER, MOST_TOKENS_PER_CHARACTER = 0.125, 2.0
COMPARED_CHARACTERS = 1_000
"""Two readings that differ by less say nothing about characters: what came with them weighs more."""


class Said(NamedTuple):
    """One message."""

    turn_id: str
    role: str
    content: str


class Reading(NamedTuple):
    """What the first round of an earlier turn gave the model of its session, and how many tokens that was."""

    characters: int
    tokens: int
    """with all that is no part of the session: the system prompt, the tools"""


@dataclass(frozen=True, slots=True)
class Earlier:
    """What PostgreSQL knows of a session that goes on."""

    said: Sequence[Said] = ()
    """the newest first"""
    readings: Sequence[Reading] = ()

    @classmethod
    def of(cls, found: dict[str, Any] | None) -> "Earlier":
        """From what EARLIER answered."""
        if found is None:
            return cls()
        said = [Said(*each) for each in found["said"] or ()]
        return cls(said, [Reading(*each) for each in found["readings"] or ()])


@dataclass(frozen=True, slots=True)
class Exchange:
    """One earlier turn: what was asked and what was answered."""

    question: str
    answer: str

    @property
    def characters(self) -> int:
        return len(self.question) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Memory:
    """The exchanges a model is reminded of, oldest first, and how many there was no room for."""

    exchanges: Sequence[Exchange] = field(default_factory=list)
    left_out: int = 0
    tokens: int = 0
    """what was kept, as counted"""

    def __iter__(self) -> Iterator[Exchange]:
        return iter(self.exchanges)

    @property
    def characters(self) -> int:
        return sum(each.characters for each in self.exchanges)

    def facts(self) -> dict[str, Any]:
        """What llm_thinking says of it: nothing, when nothing was left out."""
        if not self.left_out:
            return {}
        return {"history": {"exchanges": len(self.exchanges), "left_out": self.left_out, "tokens": self.tokens}}


NOTHING = Memory()

# What was said in a session, the newest first, and what its turns read: one JSON value, for the statement that lets
# a turn in. Its very first turn is always among the readings: it read least.
EARLIER = f"""
WITH said AS (
    SELECT id, turn_id, role, content FROM messages WHERE conversation_id = %(session)s::uuid
    ORDER BY id DESC LIMIT {MEMORY_MESSAGES}
),
first AS (SELECT turn_id FROM messages WHERE conversation_id = %(session)s::uuid ORDER BY id LIMIT 1)
SELECT json_build_object(
    'said', (SELECT json_agg(json_build_array(turn_id, role, content) ORDER BY id DESC) FROM said),
    'readings', (SELECT json_agg(json_build_array(u.read_characters, u.read_tokens)) FROM turn_usage AS u
                 WHERE u.read_tokens > 0 AND u.turn_id IN (SELECT turn_id FROM said UNION SELECT turn_id FROM first)))
"""  # noqa: S608 - a constant


def memory(earlier: Earlier, *, tokens: int) -> Memory:
    """The newest exchanges of a session that fit into `tokens`. No query.

    Whole turns only, the oldest are left out first; turns without an answer are no help and left
    out as well, without being counted.
    """
    return _that_fit(_pair(earlier.said), tokens, tokens_per_character(earlier.readings))


def tokens_per_character(readings: Sequence[Reading]) -> float:
    """How the model counts this session's text. Of the turns that read least and most, so many more characters were
    so many more tokens: what came with both (system prompt, tools) cancels out."""
    if not readings:
        return USUAL_TOKENS_PER_CHARACTER
    least, most = min(readings), max(readings)
    characters = most.characters - least.characters
    if characters < COMPARED_CHARACTERS:
        return USUAL_TOKENS_PER_CHARACTER
    counted = (most.tokens - least.tokens) / characters
    return min(max(counted, LEAST_TOKENS_PER_CHARACTER), MOST_TOKENS_PER_CHARACTER)


def _pair(newest_first: Sequence[Said]) -> list[Exchange]:
    """Turns at once in one session lie mixed in the table: their ids put them together."""
    questions = {turn_id: content for turn_id, role, content in newest_first if role == Role.USER}
    return [
        Exchange(questions[turn_id], content)
        for turn_id, role, content in newest_first
        if role == Role.ASSISTANT and turn_id in questions
    ]


def _that_fit(newest_first: list[Exchange], budget: int, per_character: float) -> Memory:
    kept: list[Exchange] = []
    used = 0
    for exchange in newest_first:
        counted = math.ceil(exchange.characters * per_character)
        if used + counted > budget:
            break
        used += counted
        kept.append(exchange)
    return Memory(kept[::-1], len(newest_first) - len(kept), used)
