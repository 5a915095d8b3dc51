"""A cursor is good for the question it was given out for, and for nothing else."""

import uuid
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from flows.cursor import BadCursor, Place, decode, encode

PLACE = Place(datetime(2026, 11, 22, 6, 0, 0, 123456, tzinfo=UTC), uuid.uuid4())
QUESTION: dict[str, str | None] = {"list": "flows", "user_id": "bob@example.com", "checkpoint": None}


@given(some.datetimes(timezones=some.just(UTC)), some.uuids(allow_nil=True))
def test_it_keeps_any_place_to_the_microsecond(at: datetime, row_id: uuid.UUID) -> None:
    place = Place(at, row_id)
    assert decode(encode(place, QUESTION), QUESTION) == place


@pytest.mark.parametrize("other", [{"user_id": "eve@example.com"}, {"checkpoint": "error"}, {"list": "turns"}])
def test_it_refuses_a_cursor_of_another_question(other: dict[str, str]) -> None:
    with pytest.raises(BadCursor):
        decode(encode(PLACE, QUESTION), {**QUESTION, **other})


def test_it_refuses_any_single_changed_character() -> None:
    good = encode(PLACE, QUESTION)
    for place, character in enumerate(good):
        for instead in "AZaz09-_+/=":
            if instead == character:
                continue
            with pytest.raises(BadCursor):
                decode(good[:place] + instead + good[place + 1 :], QUESTION)


@given(some.text(max_size=80))
def test_it_refuses_anything_made_up(text: str) -> None:
    with pytest.raises(BadCursor):
        decode(text, QUESTION)


def test_it_refuses_a_piece_of_a_cursor_and_more_than_one() -> None:
    good = encode(PLACE, QUESTION)
    for bad in ("", good[:-1], good[:32], good + "A", good + good, " " + good, good + "\n"):
        with pytest.raises(BadCursor):
            decode(bad, QUESTION)
