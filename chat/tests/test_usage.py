"""Counting: exact with many at once, idempotent for the abandoned, never lost."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connections
from django.utils import timezone

from chat.models import Conversation, DailyUsage, Message, TurnUsage
from chat.usage import Totals, Verdict, admit, charge, left_unsettled, settle_abandoned, usage_of, withdraw
from flows.models import ServingProcess, Turn
from tests.people import credential_of

pytestmark = pytest.mark.django_db(transaction=True)


def let_in(user: Any, *, reserve: bool = True, session_id: str = "") -> tuple[str, Verdict]:
    turn_id = str(uuid.uuid4())
    said = admit(
        credential_of(user),
        session_id=session_id or str(uuid.uuid4()),
        continued=bool(session_id),
        turn_id=turn_id,
        process_id=str(uuid.uuid4()),
        message="Hello",
        reserve=reserve,
    )
    assert said is not None
    assert said.verdict is not None
    return turn_id, said.verdict


def test_it_finds_the_slots_of_dead_processes_that_no_turn_will_close(bob: Any, limits: Any) -> None:
    limits(turns_at_once=None)
    turns = [let_in(bob)[0] for _ in range(5)]
    process_of = {turn: str(uuid.UUID(int=number + 1)) for number, turn in enumerate(turns)}
    ended, unknown, running, alive, settled = turns
    now = timezone.now()
    for turn, process_id in process_of.items():
        TurnUsage.objects.filter(turn_id=turn).update(process_id=process_id)
        gone = None if turn == alive else now - timedelta(seconds=10)
        ServingProcess.objects.create(process_id=process_id, name="host:1", ended_at=gone)
    for turn, outcome in ((ended, "completed"), (running, None)):
        Turn.objects.create(turn_id=turn, session_id="s", user_id=bob.user_id, started_at=now, outcome=outcome)
    charge(settled, Totals(), ended=True)
    assert {str(turn) for turn, _ in left_unsettled(now, 2)} == {ended, unknown}
    assert left_unsettled(now, 20) == []
    assert [str(process_id) for _, process_id in left_unsettled(now, 2)] == [process_of[ended], process_of[unknown]]


def test_it_undoes_an_admission_whose_turn_never_began(bob: Any, limits: Any) -> None:
    limits(turns_at_once=None)
    first, verdict = let_in(bob)
    assert verdict.admitted
    session = str(TurnUsage.objects.get().session_id)
    charge(first, Totals(1, 2), ended=True, answer="Hi")
    second, _ = let_in(bob, session_id=session)
    third, _ = let_in(bob)
    assert DailyUsage.objects.get().requests == 3
    assert [withdraw(turn) for turn in (second, third, third, first)] == [True, True, False, False]
    assert (DailyUsage.objects.get().requests, DailyUsage.objects.get().output_tokens) == (1, 2)
    assert [str(row.session_id) for row in Conversation.objects.all()] == [session], "it has an older question"
    assert set(Message.objects.values_list("content", flat=True)) == {"Hello", "Hi"}
    assert str(TurnUsage.objects.get().turn_id) == first


def in_threads(count: int, work: Any) -> list[Any]:
    """`work` in so many threads that start at the same moment, each on a connection of its own."""
    together = threading.Barrier(count)

    def run() -> Any:
        together.wait()
        try:
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(count) as threads:
        return [each.result() for each in [threads.submit(run) for _ in range(count)]]


@pytest.mark.parametrize("already", [0, 3])
def test_it_never_lets_in_more_requests_than_the_limit(already: int, bob: Any, limits: Any) -> None:
    limits(requests_per_day=10, turns_at_once=None)
    for _ in range(already):
        let_in(bob)
    words = [verdict.word for _, verdict in in_threads(8, lambda: let_in(bob))]
    more = [verdict.word for _, verdict in in_threads(8, lambda: let_in(bob))]
    said = words + more
    assert said.count("admitted") == 10 - already
    assert said.count("requests_per_day") == 16 - (10 - already)
    assert DailyUsage.objects.get(user=bob).requests == 10
    assert TurnUsage.objects.count() == Conversation.objects.count() == Message.objects.count() == 10


def test_it_never_lets_in_more_turns_at_once_than_the_limit(bob: Any, limits: Any) -> None:
    limits(turns_at_once=3)
    words = [verdict.word for _, verdict in in_threads(8, lambda: let_in(bob))]
    assert sorted(words) == ["admitted"] * 3 + ["turns_at_once"] * 5
    assert DailyUsage.objects.get(user=bob).requests == 3


def test_users_do_not_share_their_limits(bob: Any, charlie: Any, limits: Any) -> None:
    limits(requests_per_day=1)
    assert let_in(bob)[1].admitted
    assert let_in(charlie)[1].admitted
    assert not let_in(bob)[1].admitted


def test_judging_without_reserving_writes_nothing(bob: Any, limits: Any) -> None:
    assert let_in(bob, reserve=False)[1].word == "not_now"
    assert not DailyUsage.objects.exists()
    assert not Conversation.objects.exists()


def numbers(row: Any) -> tuple[int, int, Decimal]:
    row.refresh_from_db()
    return row.input_tokens, row.output_tokens, row.cost_usd


def test_charging_totals_twice_adds_nothing(bob: Any, limits: Any) -> None:
    first, _ = let_in(bob)
    second, _ = let_in(bob)
    today = DailyUsage.objects.get(user=bob)
    charge(first, Totals(10, 5, Decimal("0.001")))
    charge(first, Totals(10, 5, Decimal("0.001")))
    charge(second, Totals(1, 1))
    assert numbers(today) == (11, 6, Decimal("0.001"))
    charge(first, Totals(30, 9, Decimal("0.004")), ended=True, answer="Hi")
    charge(first, Totals(30, 9, Decimal("0.004")), ended=True, answer="Hi")
    charge(first, Totals(99, 99, Decimal(9)))
    assert numbers(today) == (31, 10, Decimal("0.004"))
    assert Message.objects.filter(role="assistant").count() == 1
    assert TurnUsage.objects.get(turn_id=first).ended_at is not None
    assert TurnUsage.objects.get(turn_id=second).ended_at is None


def test_an_abandoned_turn_is_charged_what_was_missing_once(bob: Any, limits: Any) -> None:
    limits(turns_at_once=1)
    turn_id, _ = let_in(bob)
    charge(turn_id, Totals(10, 5, Decimal("0.001")))
    assert let_in(bob)[1].word == "turns_at_once"
    rounds = [
        {"status": "ok", "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.001},
        {"status": "ok", "input_tokens": 20, "output_tokens": 7, "cost_usd": 0.002},
        {"status": "error", "input_tokens": None, "output_tokens": None, "cost_usd": None},
        {"status": "ok", "input_tokens": "nonsense", "output_tokens": -5, "cost_usd": "NaN"},
    ]
    for _ in range(3):
        settle_abandoned(turn_id, rounds)
    today = DailyUsage.objects.get(user=bob)
    assert numbers(today) == (30, 12, Decimal("0.003"))
    assert let_in(bob)[1].admitted


def test_settling_a_turn_that_was_charged_whole_changes_nothing(bob: Any, limits: Any) -> None:
    turn_id, _ = let_in(bob)
    charge(turn_id, Totals(10, 5), ended=True)
    settle_abandoned(turn_id, [{"input_tokens": 500, "output_tokens": 500}])
    assert numbers(DailyUsage.objects.get(user=bob)) == (10, 5, Decimal(0))


def test_settling_an_unknown_or_refused_turn_does_nothing(limits: Any) -> None:
    settle_abandoned(str(uuid.uuid4()), [])
    settle_abandoned(str(uuid.uuid4()), [{"input_tokens": 5}])
    assert not DailyUsage.objects.exists()


def test_the_sweep_may_settle_inside_a_transaction_of_its_own(bob: Any, limits: Any) -> None:
    from django.db import transaction

    turn_id, _ = let_in(bob)
    with transaction.atomic():
        settle_abandoned(turn_id, [{"input_tokens": 5, "output_tokens": 1}])
    assert TurnUsage.objects.get(turn_id=turn_id).ended_at is not None


def test_one_can_look_at_ones_usage(bob: Any, limits: Any, django_assert_num_queries: Any) -> None:
    limits(requests_per_day=10, tokens_per_day=None)
    with django_assert_num_queries(1):
        before = usage_of(bob.pk)
    assert before["requests_per_day"][:2] == (0, 10)
    assert before["tokens_per_day"][:2] == (0, None)
    turn_id, _ = let_in(bob)
    charge(turn_id, Totals(10, 5, Decimal("0.25")))
    now = usage_of(bob.pk)
    assert now["requests_per_day"][:2] == (1, 10)
    assert now["tokens_per_day"][:2] == (15, None)
    assert now["cost_usd_per_day"][:2] == (0.25, None)
    assert now["turns_at_once"][:2] == (1, 8)
    assert now["requests_per_day"].resets_at is not None
    assert now["requests_per_day"].resets_at.tzinfo is not None


def test_the_title_is_the_beginning_on_one_line(bob: Any, limits: Any) -> None:
    admit(
        credential_of(bob),
        session_id=str(uuid.uuid4()),
        continued=False,
        turn_id=str(uuid.uuid4()),
        process_id=str(uuid.uuid4()),
        message="  first line\nand 50% of the second; -- 'quoted' %s\n" + "x" * 500,
        reserve=True,
    )
    title = Conversation.objects.get().title
    assert title.startswith("first line and 50% of the second; -- 'quoted' %s xxx")
    assert len(title) == 120
