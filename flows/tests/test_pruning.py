"""What is older than the border goes, whole turns and nothing else, whoever writes meanwhile."""

import json
import threading
import uuid
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import Any

import pytest
from django.db import connection, connections, transaction
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from flows import pruning, tallies
from flows.keeping import keep
from flows.models import InteractionFlow, KeptSpan, KeptTally, Pruning, Turn
from flows.pruning import Pruner, count_old, is_gone
from flows.store import store
from flows.tallies import Chosen
from flows.tests.rows import bare_row
from flows.tests.samples import Sample
from flows.tests.test_tallies import comparable

pytestmark = pytest.mark.django_db(transaction=True)

BORDER = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=10)
OLD, YOUNG = BORDER - timedelta(hours=5), BORDER + timedelta(hours=5)
SECOND = timedelta(seconds=1)


def document(at: datetime, turn: str, parent: str | None = None, name: str = "tool_call", **metadata: Any) -> bytes:
    flow_id = turn if parent is None else str(uuid.uuid4())
    row = {"flow_id": flow_id, "user_id": "bob@example.com", "session_id": turn, "turn_id": turn, "checkpoint": name}
    return json.dumps(row | {"parent_id": parent, "metadata": metadata, "created_at": at.isoformat()}).encode()


def turn(began: datetime, ended: datetime | None = None, turn_id: str | None = None) -> str:
    """Root, one step and, if it ended, its end."""
    turn_id = turn_id or str(uuid.uuid4())
    rows = [document(began, turn_id, name="auth_check"), document(began + SECOND / 2, turn_id, turn_id)]
    if ended is not None:
        rows.append(document(ended, turn_id, turn_id, "flow_end", outcome="completed"))
    store(rows)
    return turn_id


def prune(border: datetime = BORDER, **options: Any) -> Pruner:
    pruner = Pruner(border, "command", **options)
    for _ in pruner.batches():
        pass
    return pruner


def stored_turns() -> set[str]:
    """Those with a summary; and their rows are exactly as many as it says."""
    found = dict(Turn.objects.values_list("turn_id", "checkpoints"))
    rows = list(InteractionFlow.objects.exclude(turn_id=None).values_list("turn_id", flat=True))
    assert {one: rows.count(one) for one in set(rows)} == found
    return {str(one) for one in found}


def test_it_deletes_turns_that_ended_before_the_border_and_no_others() -> None:
    gone = turn(OLD, BORDER - timedelta(microseconds=1))
    stay = {
        turn(OLD, BORDER),  # ended at the border
        turn(OLD, YOUNG),  # began before it
        turn(OLD),  # still running, however long
        turn(BORDER, BORDER + SECOND),
        turn(YOUNG, YOUNG + SECOND),
    }
    assert count_old(BORDER) == pruning.Old(turns=1, checkpoints=3)
    pruner = prune()
    assert stored_turns() == stay
    assert gone not in stay
    assert (pruner.total.turns, pruner.total.checkpoints) == (1, 3)


def test_it_takes_all_of_a_turn_even_what_came_after_its_end() -> None:
    old = turn(OLD, OLD + SECOND)
    store([document(YOUNG, old, old, "tool_result")])
    prune()
    assert not InteractionFlow.objects.exists()


def test_it_goes_in_batches_of_whole_turns() -> None:
    for number in range(10):
        turn(OLD + number * SECOND, OLD + number * SECOND + SECOND)
    done = [batch.turns for batch in Pruner(BORDER, "command", batch=7).batches() if batch.turns]
    assert done == [2, 2, 2, 2, 2]
    turn(OLD, OLD + SECOND)
    assert [batch.checkpoints for batch in Pruner(BORDER, "command", batch=1).batches() if batch.turns] == [3]


def test_what_was_broken_off_left_whole_turns_and_the_next_run_goes_on() -> None:
    for number in range(6):
        turn(OLD + number * SECOND, OLD + number * SECOND + SECOND)
    pruner = Pruner(BORDER, "command", batch=6)
    next(pruner.batches())
    assert len(stored_turns()) == 4
    run = Pruning.objects.get()
    assert (run.border, run.turns, run.checkpoints, run.ended_at) == (BORDER, 2, 6, None)
    prune()
    assert stored_turns() == set()
    run.refresh_from_db()
    assert (run.turns, run.checkpoints) == (6, 18)
    assert run.ended_at is not None


def test_a_batch_that_fails_deletes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    turn(OLD, OLD + SECOND)
    monkeypatch.setattr(pruning, "_DELETE_TURNS", "SELECT 1 / 0")
    with pytest.raises(Exception, match="division by zero"):
        prune()
    assert len(stored_turns()) == 1


# --- what points from one turn to another, and rows of no turn ---------------------------------------------------


def test_a_turn_at_whose_rows_one_that_stays_points_stays_too() -> None:
    """Only an INSERT from outside can do that; it must not stop the others from going."""
    pointed_at, goes = turn(OLD, OLD + SECOND), turn(OLD, OLD + SECOND)
    in_between = turn(OLD, OLD + SECOND)
    bare_row("x@example.com", parent_id=in_between, created_at=YOUNG)
    bare_row("x@example.com", parent_id=pointed_at, created_at=YOUNG, turn_id=in_between)
    Turn.objects.filter(turn_id=in_between).update(checkpoints=4)
    pruner = prune()
    assert stored_turns() == {pointed_at, in_between}
    assert (pruner.total.turns, pruner.total.in_use) == (1, 2)
    assert goes not in stored_turns()


def test_turns_that_point_at_one_another_go_together() -> None:
    first, second = turn(OLD, OLD + SECOND), turn(OLD, OLD + SECOND)
    bare_row("x@example.com", parent_id=first, turn_id=second, created_at=OLD)
    bare_row("x@example.com", parent_id=second, turn_id=first, created_at=OLD)
    prune()
    assert not InteractionFlow.objects.exists()
    assert not Turn.objects.exists()


def test_rows_of_no_turn_go_by_their_own_time_children_first() -> None:
    def chain(*times: datetime) -> list[InteractionFlow]:
        rows: list[InteractionFlow] = []
        for at in times:
            rows.append(bare_row("x@example.com", parent=rows[-1] if rows else None, created_at=at))
        return rows

    chain(*[OLD + number * SECOND for number in range(25)])
    stays = chain(OLD, OLD + SECOND, YOUNG)
    chain(OLD + SECOND, OLD)  # a child that is older than its parent
    lone, young = bare_row("x@example.com", created_at=OLD), bare_row("x@example.com", created_at=BORDER)
    assert count_old(BORDER).checkpoints == 25 + 2 + 2 + 1
    pruner = prune(batch=7)
    left = set(InteractionFlow.objects.values_list("flow_id", flat=True))
    assert left == {*(row.flow_id for row in stays), young.flow_id}
    assert lone.flow_id not in left
    assert pruner.total.checkpoints == 25 + 2 + 1


# --- beside writers --------------------------------------------------------------------------------------------


def in_thread(work: Any) -> threading.Thread:
    def run() -> None:
        try:
            work()
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_no_writer_waits_for_it() -> None:
    """Each store gives up if it has to wait for a lock at all; none does. New turns, and steps of old ones that run."""
    for number in range(400):
        turn(OLD + number * SECOND, OLD + number * SECOND + SECOND)
    running = [turn(OLD) for _ in range(3)]
    stop, problems, written = threading.Event(), [], []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                with transaction.atomic(), connection.cursor() as cursor:
                    cursor.execute("SET LOCAL lock_timeout = '1ms'")
                    at = YOUNG + number * SECOND
                    new = str(uuid.uuid4())
                    store(
                        [
                            document(at, new, name="auth_check"),
                            document(at, new, new, "flow_end", outcome="completed"),
                            *(document(at, one, one) for one in running),
                        ]
                    )
                    written.append(new)
            except Exception as problem:
                problems.append(problem)

    writer = in_thread(write)
    try:
        while len(written) < 3:
            assert writer.is_alive()
        pruner = prune(batch=30)
        count = len(written)
        while len(written) < count + 3 and writer.is_alive():
            pass
    finally:
        stop.set()
        writer.join()
    assert problems == []
    assert pruner.total.turns == 400
    assert stored_turns() == {*written, *running}


def test_it_leaves_a_turn_that_somebody_holds_for_another_day() -> None:
    held, free = turn(OLD, OLD + SECOND), turn(OLD, OLD + SECOND)
    holds, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            Turn.objects.select_for_update().get(turn_id=held)
            holds.set()
            let_go.wait(30)

    holder = in_thread(hold)
    assert holds.wait(30)
    try:
        assert prune().total.in_use == 1
        assert stored_turns() == {held}
        assert free not in stored_turns()
    finally:
        let_go.set()
        holder.join()
    prune()
    assert stored_turns() == set()


def test_it_waits_for_nobody_who_holds_a_row_for_long() -> None:
    held = turn(OLD, OLD + SECOND)
    holds, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            InteractionFlow.objects.select_for_update().get(flow_id=held)
            holds.set()
            let_go.wait(30)

    holder = in_thread(hold)
    assert holds.wait(30)
    try:
        assert prune().total.in_use == 1, "the holder still holds it"
    finally:
        let_go.set()
        holder.join()
    assert stored_turns() == {held}


def test_two_at_once_delete_everything_once() -> None:
    for number in range(60):
        turn(OLD + number * SECOND, OLD + number * SECOND + SECOND)
    totals: list[Pruner] = []
    threads = [in_thread(lambda: totals.append(prune(batch=6))) for _ in range(2)]
    for thread in threads:
        thread.join()
    assert sum(each.total.turns for each in totals) == 60
    assert sum(each.total.checkpoints for each in totals) == 180
    assert stored_turns() == set()
    run = Pruning.objects.get()
    assert (run.turns, run.checkpoints) == (60, 180)


def test_one_that_finds_another_at_work_says_so_and_tries_again() -> None:
    turn(OLD, OLD + SECOND)
    works, let_go = threading.Event(), threading.Event()

    def other() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(pruning._LIMITS)
            works.set()
            let_go.wait(30)

    working = in_thread(other)
    assert works.wait(30)
    batches = Pruner(BORDER, "command").batches()
    assert [next(batches).busy, next(batches).busy] == [True, True]
    assert len(stored_turns()) == 1
    let_go.set()
    working.join()
    assert next(batches).turns == 1
    assert not list(takewhile(lambda batch: batch.busy, batches))


# --- what is kept beside the turns -------------------------------------------------------------------------------


def test_figures_of_pruned_days_are_gone_and_those_of_others_stay() -> None:
    for day in (-3, -2, 1):
        turn(BORDER + timedelta(days=day, hours=3), BORDER + timedelta(days=day, hours=3, seconds=1))
    while keep(most=500):
        pass
    assert KeptSpan.objects.filter(hours=24, start__lt=BORDER).exists()
    prune()
    assert not KeptSpan.objects.filter(start__lt=BORDER).exists()
    assert KeptSpan.objects.filter(start__gte=BORDER, state=KeptSpan.KEPT).exists()
    assert not KeptTally.objects.exclude(span__in=KeptSpan.objects.all()).exists()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=some.integers(0, 10**6), cut=some.floats(-40, 60), batch=some.integers(1, 60), anew=some.booleans())
def test_figures_are_what_the_rows_say_whatever_was_pruned(seed: int, cut: float, batch: int, anew: bool) -> None:
    for model in (InteractionFlow, Turn, KeptTally, KeptSpan, Pruning):
        model.objects.all().delete() if model is not InteractionFlow else _truncate()
    made = Sample(seed)
    for _ in range(60):
        made.turn(BORDER + timedelta(hours=made.chance.uniform(-48, 48)))
    store(made.documents())
    while keep(most=500):
        pass
    border = BORDER + timedelta(hours=cut)
    kept = {str(one.turn_id) for one in Turn.objects.all() if one.ended_at is None or one.ended_at >= border}
    prune(border, batch=batch)
    assert stored_turns() == kept
    while anew and keep(most=500):
        pass
    for since, until in ((-60, 60), (-48, 0), (0, 48), (cut, 60), (-48, cut)):
        times = BORDER + timedelta(hours=since), BORDER + timedelta(hours=until)
        assert comparable(tallies.of_turns(*times, Chosen())) == comparable(tallies.read(*times, Chosen()))
    assert not KeptSpan.objects.filter(start__lt=BORDER - timedelta(days=3)).exists()


def _truncate() -> None:
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE interaction_flows")


def test_what_others_keep_beside_the_turns_goes_last() -> None:
    turn(OLD, OLD + SECOND)
    asked: list[tuple[datetime, int, int]] = []

    def forget(border: datetime, most: int) -> int:
        asked.append((border, most, Turn.objects.count()))
        return 2 if len(asked) < 3 else 0

    pruner = prune(batch=50, also=[forget])
    assert asked == [(BORDER, 50, 0)] * 3
    assert pruner.total.more == 4


# --- late checkpoints --------------------------------------------------------------------------------------------


def test_a_late_checkpoint_of_a_pruned_turn_is_known_as_such() -> None:
    old = turn(OLD, OLD + SECOND)
    late = document(OLD + SECOND, old, old, "tool_result")
    assert not is_gone(late), "nothing was pruned yet"
    prune()
    assert is_gone(late)
    assert not is_gone(document(YOUNG, str(uuid.uuid4()), old)), "younger than all that was pruned"
    running = turn(OLD)
    assert not is_gone(document(OLD, running, str(uuid.uuid4()))), "its turn is stored"


def test_half_a_turn_that_a_late_checkpoint_made_goes_as_well() -> None:
    """Without a root the sweep never ends it."""
    half, growing = str(uuid.uuid4()), str(uuid.uuid4())
    for one, at in ((half, OLD), (growing, OLD), (growing, YOUNG)):
        row = json.loads(document(at, one, one))
        store([json.dumps(row | {"parent_id": None}).encode()])
    assert stored_turns() == {half, growing}
    prune()
    assert stored_turns() == {growing}


def test_postgresql_refuses_the_one_end_of_a_turn_on_a_partitioned_table() -> None:
    """Why old turns go in batches and not with their partition: docs/decisions/retention.md."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE TABLE parted (LIKE interaction_flows) PARTITION BY RANGE (flow_id)")
        cursor.execute("ALTER TABLE parted ADD PRIMARY KEY (flow_id)")
        cursor.execute("ALTER TABLE parted ADD FOREIGN KEY (parent_id) REFERENCES parted (flow_id)")
        with pytest.raises(Exception, match="must include all partitioning columns"), transaction.atomic():
            cursor.execute("CREATE UNIQUE INDEX ON parted (turn_id) WHERE checkpoint = 'flow_end'")
        transaction.set_rollback(True)
