"""What is kept is what the turns say, whatever changes them and whenever."""

import itertools
import random
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from flows import keeping, tallies
from flows.keeping import keep
from flows.models import InteractionFlow, KeptSpan, KeptTally, Turn
from flows.store import store
from flows.tallies import Chosen, Tally
from flows.tests.samples import MODELS, TOOLS, USERS, Sample

HOUR = timedelta(hours=1)
EVERYBODY = Chosen()


def three_days_ago() -> datetime:
    return datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=3)


def sampled(seed: int, turns: int, hours: float = 50) -> Sample:
    """So many turns of the hours from three days ago on."""
    made = Sample(seed)
    for _ in range(turns):
        made.turn(three_days_ago() + timedelta(hours=made.chance.uniform(0, hours)))
    return made


def comparable(rows: list[Tally]) -> dict[Any, Any]:
    return {
        (row.figure, row.key, row.key2, row.key3): (
            row.count,
            row.input_tokens,
            row.output_tokens,
            row.cost_usd,
            row.times,
        )
        for row in rows
    }


def times() -> Iterator[tuple[datetime, datetime]]:
    began = three_days_ago()
    yield began - HOUR, began + timedelta(days=4)
    yield began + timedelta(minutes=25), began + timedelta(hours=49, minutes=3)
    yield began + timedelta(hours=3), began + timedelta(hours=24)
    yield began + timedelta(hours=5, minutes=59), began + timedelta(hours=6, minutes=1)


SOME = (
    Chosen(model=MODELS[0]),
    Chosen(tool=TOOLS[1]),
    Chosen(user_id=USERS[2]),
    Chosen(user_id=USERS[0], model=MODELS[1]),
)


def agrees(*choices: Chosen) -> None:
    """Put together of what is kept, every answer is that of the turns themselves."""
    for since, until in times():
        for chosen in choices or (EVERYBODY, *SOME):
            assert comparable(tallies.of_turns(since, until, chosen)) == comparable(tallies.read(since, until, chosen))


def kept(hours: int) -> int:
    return KeptSpan.objects.filter(hours=hours, scope="", state=KeptSpan.KEPT).count()


@pytest.fixture(autouse=True)
def _few_turns_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LEAST_TURNS", 5)


@pytest.mark.parametrize("chosen", [EVERYBODY, *SOME[:3]])
def test_a_scope_stands_for_what_was_chosen(chosen: Chosen) -> None:
    assert Chosen.of(chosen.scope or "") == chosen
    assert SOME[3].scope is None


@pytest.mark.django_db
def test_it_keeps_whole_days_of_a_model_a_tool_and_a_person_with_many_turns() -> None:
    store(sampled(1, 300).documents())
    while keep():
        pass
    scopes = set(KeptSpan.objects.filter(hours=24, state=KeptSpan.KEPT).values_list("scope", flat=True))
    assert scopes == {
        "",
        *(f"m{name}" for name in MODELS),
        *(f"t{name}" for name in TOOLS),
        *(f"p{name}" for name in USERS),
    }
    assert not KeptSpan.objects.filter(hours=1).exclude(scope="").exists()
    KeptTally.objects.filter(figure="end", span__scope=f"m{MODELS[0]}").update(count=0)
    began = three_days_ago()
    found = tallies.of_turns(began, began + timedelta(days=2), SOME[0])
    assert sum(row.count for row in found if row.figure == tallies.END) == 0


@pytest.mark.django_db
def test_it_keeps_hours_and_the_days_they_complete() -> None:
    store(sampled(1, 300).documents())
    while keep():
        pass
    assert kept(24) >= 2
    assert kept(1) >= 50
    agrees()
    assert keep() == 0


@pytest.mark.django_db
def test_it_answers_from_what_is_kept() -> None:
    store(sampled(1, 60).documents())
    while keep():
        pass
    began = three_days_ago()
    KeptTally.objects.filter(figure="end").update(count=0)
    found = tallies.of_turns(began, began + timedelta(days=2), EVERYBODY)
    assert sum(row.count for row in found if row.figure == tallies.END) == 0
    # of two choices at once nothing is kept
    found = tallies.of_turns(began, began + timedelta(days=2), Chosen(user_id=USERS[0], model=MODELS[0]))
    assert sum(row.count for row in found if row.figure == tallies.END) > 0


@pytest.mark.django_db
def test_it_takes_days_before_hours_and_reads_the_rest_from_the_turns() -> None:
    store(sampled(1, 60).documents())
    while keep():
        pass
    began = three_days_ago()
    spans = tallies._kept_within(began - timedelta(minutes=30), began + timedelta(hours=26, minutes=30), EVERYBODY)
    lengths = [(span.end - span.start) // HOUR for span in spans]
    assert lengths[-3:] == [24, 1, 1]
    assert all(first.end <= second.start for first, second in itertools.pairwise(spans))


@pytest.mark.django_db
def test_it_leaves_an_hour_alone_that_is_hardly_over() -> None:
    made = Sample(1)
    for minutes in (1, 30, 65):
        made.turn(datetime.now(UTC) - timedelta(minutes=minutes))
    store(made.documents())
    while keep():
        pass
    rest = datetime.now(UTC) - keeping.REST
    assert all(span.start + HOUR <= rest for span in KeptSpan.objects.all())


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=some.randoms(use_true_random=False))
@pytest.mark.django_db
def test_it_stays_true_through_late_changes(chance: random.Random) -> None:
    for model in (KeptTally, KeptSpan, Turn, InteractionFlow):
        model.objects.all().delete()
    rows = sampled(chance.randint(0, 10**6), 30, hours=26).documents()
    left = rows
    while left:
        portion = chance.randint(1, 120)
        store(left[:portion])
        left = left[portion:]
        if chance.random() < 0.7:
            keep(most=chance.choice([5, 80]))
        if chance.random() < 0.3:
            # whole turns go that had all come, and what is gone is sent once more
            coming = b"".join(left)
            ids = list(Turn.objects.values_list("turn_id", flat=True))
            gone = [turn_id for turn_id in ids if str(turn_id).encode() not in coming and chance.random() < 0.3]
            InteractionFlow.objects.filter(turn_id__in=gone).delete()
            Turn.objects.filter(turn_id__in=gone).delete()
            agrees(chance.choice([EVERYBODY, *SOME]))
            store(rows[: chance.randint(0, len(rows) - len(left))])
        agrees(chance.choice([EVERYBODY, *SOME]))
    store(rows)
    agrees()
    while keep():
        pass
    agrees()


@pytest.mark.django_db
@pytest.mark.parametrize(
    "change",
    [
        lambda turns: turns.delete(),
        lambda turns: turns.update(outcome="stopped"),
        lambda turns: turns.update(started_at=three_days_ago() + timedelta(hours=30)),
        lambda turns: Turn.objects.create(
            turn_id="0199aaaa-0000-7000-8000-000000000001", session_id="s", user_id="x", started_at=three_days_ago()
        ),
    ],
    ids=["delete", "update", "move", "insert"],
)
def test_it_is_stale_after_any_change_of_the_turns(change: Any) -> None:
    store(sampled(3, 60).documents())
    while keep():
        pass
    days = kept(24)
    first = Turn.objects.order_by("started_at").first()
    assert first is not None
    change(Turn.objects.filter(turn_id=first.turn_id))
    assert kept(24) < days
    agrees()
    while keep():
        pass
    assert kept(24) == days
    agrees()


@pytest.mark.django_db
def test_it_does_not_touch_what_is_kept_for_a_turn_of_now() -> None:
    store(sampled(3, 60).documents())
    while keep():
        pass
    before = kept(1), kept(24)
    made = Sample(9)
    made.turn(datetime.now(UTC))
    store(made.documents())
    assert (kept(1), kept(24)) == before


@pytest.mark.django_db
def test_it_takes_moments_no_calendar_of_ours_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "LONGEST_KEPT", timedelta(days=5))
    store(sampled(3, 5).documents())
    with connection.cursor() as cursor:
        for moment in ("infinity", "-infinity", "12000-01-01", "0044-03-15 BC"):
            cursor.execute(
                "INSERT INTO turns (turn_id, session_id, user_id, started_at, question, checkpoints, tool_calls,"
                " input_tokens, output_tokens) VALUES (gen_random_uuid(), 's', 'x', %s, '', 1, 0, 0, 0)",
                [moment],
            )
    while keep(most=2000):
        pass
    agrees()


@pytest.mark.django_db
def test_it_forgets_old_hours_of_kept_days_and_does_not_keep_them_again() -> None:
    made = Sample(4)
    began = three_days_ago() - keeping.HOURS_KEPT
    for hours in range(0, 24, 3):
        made.turn(began + timedelta(hours=hours))
    store(made.documents())
    while keep(most=2000):
        pass
    old = KeptSpan.objects.filter(hours=1, start__lt=began + timedelta(days=1))
    assert old.count() == 24
    assert keeping.forget_old_hours() >= 24
    assert old.count() == 0
    assert keep(most=2000) == 0
    since, until = began, began + timedelta(days=1)
    day = comparable(tallies.of_turns(since, until, EVERYBODY))
    assert day == comparable(tallies.read(since, until, EVERYBODY))
    Turn.objects.filter(started_at__lt=until).update(outcome="stopped")
    assert keep(most=2000) >= 25


@pytest.mark.django_db
def test_it_costs_two_queries() -> None:
    store(sampled(3, 60).documents())
    while keep():
        pass
    with CaptureQueriesContext(connection) as asked:
        tallies.of_turns(*next(times()), EVERYBODY)
    assert len(asked) == 2


@pytest.mark.django_db(transaction=True)
def test_what_is_kept_is_true_with_two_writers_and_two_keepers_at_once() -> None:
    """Whatever is marked as kept at any time, and at the end, is what the turns say."""
    writing = threading.Event()
    problems: list[BaseException] = []

    def in_thread(work: Any, *args: Any) -> threading.Thread:
        def run() -> None:
            try:
                work(*args)
            except BaseException as problem:
                problems.append(problem)
            finally:
                connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def write(seed: int) -> None:
        rows = sampled(seed, 60, hours=26).documents()
        chance = random.Random(seed)
        while rows:
            portion = chance.randint(1, 40)
            store(rows[:portion])
            rows = rows[portion:]

    def keep_on() -> None:
        while not writing.is_set():
            keep(most=100)

    keepers = [in_thread(keep_on) for _ in range(2)]
    writers = [in_thread(write, seed) for seed in (1, 2)]
    for thread in writers:
        thread.join(120)
    writing.set()
    for thread in keepers:
        thread.join(120)
    assert problems == []
    for span in KeptSpan.objects.filter(state=KeptSpan.KEPT):
        since, until = span.start, span.start + span.hours * HOUR
        mine = tallies._asked(tallies._KEPT, [[span.id]])
        assert comparable(mine) == comparable(tallies.read(since, until, Chosen.of(span.scope)))
    while keep(most=100):
        pass
    assert kept(24) >= 1
    agrees()
