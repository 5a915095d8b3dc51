"""Slots of dead processes are charged and freed, and of no others; the ledger knows who was let in."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now

from chat.models import DailyUsage, TurnUsage
from chat.slots import LEFT_BEHIND_S, admitted, free_left_behind
from chat.usage import admit
from flows.checkpoints import next_moment_us, uuid7
from flows.counts import hour_of
from flows.models import ServingProcess, Turn
from flows.store import store
from flows.tests.test_persister import document

pytestmark = pytest.mark.django_db(transaction=True)


def process(*, ended_s: int | None = None) -> str:
    process_id = str(uuid.uuid4())
    ended = None if ended_s is None else Now() - timedelta(seconds=ended_s)
    ServingProcess.objects.create(process_id=process_id, name="host:1", ended_at=ended)
    return process_id


def let_in(bob: Any, process_id: str) -> str:
    turn_id = uuid7(next_moment_us())
    verdict = admit(
        user_pk=bob.pk,
        user_id=bob.user_id,
        session_id=str(uuid.uuid4()),
        continued=False,
        turn_id=turn_id,
        process_id=process_id,
        message="hi",
        reserve=True,
    )
    assert verdict.admitted
    return turn_id


def begin(turn_id: str, process_id: str, *, ended: bool) -> None:
    rounds = {"status": "ok", "input_tokens": 3, "output_tokens": 5}
    rows = [
        document(1, turn=turn_id, checkpoint="auth_check", metadata={"status": "passed", "process": process_id}),
        document(2, turn=turn_id, parent=1, checkpoint="llm_complete", metadata=rounds),
        document(3, turn=turn_id, parent=1, checkpoint="flow_end", metadata={"outcome": "completed"}),
    ]
    store(rows if ended else rows[:2])


def open_slots() -> set[str]:
    return {str(row.turn_id) for row in TurnUsage.objects.filter(ended_at=None)}


def test_it_frees_what_a_dead_process_left_and_charges_what_was_used(bob: Any) -> None:
    dead, alive, just_dead = process(ended_s=LEFT_BEHIND_S + 5), process(), process(ended_s=5)
    ended, never_begun = let_in(bob, dead), let_in(bob, dead)
    begin(ended, dead, ended=True)
    left_alone = {let_in(bob, alive), let_in(bob, just_dead), let_in(bob, str(uuid.uuid4()))}
    is_the_sweeps = let_in(bob, dead)
    begin(is_the_sweeps, dead, ended=False)
    assert free_left_behind() == 2
    assert open_slots() == left_alone | {is_the_sweeps}
    assert TurnUsage.objects.get(turn_id=ended).output_tokens == 5
    assert DailyUsage.objects.get().output_tokens == 5
    assert free_left_behind() == 0
    assert TurnUsage.objects.get(turn_id=never_begun).output_tokens == 0


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
