"""The ledger knows who was let in, and whose slot is still taken."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from chat.slots import FREED_S, admitted
from chat.usage import admit
from flows.checkpoints import next_moment_us, uuid7
from flows.counts import hour_of
from flows.models import ServingProcess, Turn
from flows.store import store
from flows.tests.test_persister import document
from tests.people import credential_of

pytestmark = pytest.mark.django_db(transaction=True)


def process() -> str:
    process_id = str(uuid.uuid4())
    ServingProcess.objects.create(process_id=process_id, name="host:1")
    return process_id


def let_in(bob: Any, process_id: str) -> str:
    turn_id = uuid7(next_moment_us())
    said = admit(
        credential_of(bob),
        session_id=str(uuid.uuid4()),
        continued=False,
        turn_id=turn_id,
        process_id=process_id,
        message="hi",
        reserve=True,
    )
    assert said is not None
    assert said.verdict is not None
    assert said.verdict.admitted
    return turn_id


def begin(turn_id: str, process_id: str, *, ended: bool) -> None:
    rounds = {"status": "ok", "input_tokens": 3, "output_tokens": 5}
    rows = [
        document(1, turn=turn_id, checkpoint="auth_check", metadata={"status": "passed", "process": process_id}),
        document(2, turn=turn_id, parent=1, checkpoint="llm_complete", metadata=rounds),
        document(3, turn=turn_id, parent=1, checkpoint="flow_end", metadata={"outcome": "completed"}),
    ]
    store(rows if ended else rows[:2])


def test_it_tells_who_was_let_in_and_of_whom_nothing_is_stored(bob: Any) -> None:
    serving = process()
    stored, missing = let_in(bob, serving), let_in(bob, serving)
    begin(stored, serving, ended=False)
    hour = hour_of(stored)
    first, last = (uuid.UUID(int=(hour + more) * 3_600_000 << 80) for more in (0, 2))
    (found,) = admitted(first, last)
    assert (str(found.process_id), found.hour, found.count) == (serving, hour, 2)
    assert [str(one) for one in found.missing_open] == [missing]
    assert found.missing_charged == found.left_open == []
    assert admitted(last, uuid.UUID(int=last.int + (3_600_000 << 80))) == []


def test_it_says_whose_slot_is_still_taken(bob: Any) -> None:
    serving = process()
    turn = let_in(bob, serving)
    begin(turn, serving, ended=True)  # in November 2026, long enough ago to have been charged
    Turn.objects.update(ended_at=Now() - timedelta(hours=1))
    everything = (uuid.UUID(int=0), uuid.UUID(int=(1 << 128) - 1))
    assert [str(one) for found in admitted(*everything) for one in found.left_open] == [turn]
    Turn.objects.update(ended_at=Now())
    assert [found.left_open for found in admitted(*everything)] == [[]]
    ServingProcess.objects.update(ended_at=Now() - timedelta(seconds=FREED_S + 5))
    assert [str(one) for found in admitted(*everything) for one in found.left_open] == [turn]
