"""The ledger adds up whatever turns do, and says of what it cannot know that it does not know it."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from django.db.models.functions import Now

from flows import heartbeat, sweep
from flows import tracker as tracker_module
from flows import waiting as waiting_module
from flows.checkpoints import next_moment_us, uuid7
from flows.counts import HourCounts, hour_of
from flows.judging import DIED_WITH_IT, SWEEP_WAS_FIRST
from flows.models import InteractionFlow, LedgerEntry, ServingProcess, Turn
from flows.redis import get_redis, sync_client
from flows.store import store
from flows.sweep import Sweep
from flows.tests.ledger_cast import Served, account, admit, found, persist, settle
from flows.tests.rows import StoredTurn
from flows.tests.test_persister import _quick, document
from flows.tracker import FlowTracker
from omni2.database import in_database

pytestmark = pytest.mark.django_db(transaction=True)

__all__ = ["_quick"]


@pytest.fixture
async def served(tracker: FlowTracker) -> AsyncIterator[Served]:
    made = Served(tracker)
    yield made
    await made.pulse.lane.close()


async def test_it_adds_up_after_turns_of_every_kind(served: Served) -> None:
    for outcome in ("completed", "failed", "disconnected"):
        await served.chat(outcome)
    await served.refuse()
    running = await served.begin()
    await running.acknowledged(5)
    await served.tell()
    await in_database(persist)
    seen = await in_database(account)
    assert found(seen) == []
    total = seen.total
    assert (total.started, total.stored, total.running, total.turns_given_up) == (5, 4, 1, 0)
    assert (total.made, total.rows, total.on_the_way) == (16, 16, 0)
    assert (total.admitted, total.turns_unsaid) == (4, 0)


async def test_it_knows_what_is_on_its_way(served: Served) -> None:
    await served.chat()
    await served.tell()
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.stored, seen.total.running) == (1, 0, 1)
    assert (seen.total.made, seen.total.rows, seen.total.on_the_way) == (4, 0, 4)
    await in_database(persist)
    seen = await in_database(account)
    assert (seen.total.stored, seen.total.running, seen.total.rows, seen.total.on_the_way) == (1, 0, 4, 0)


async def test_it_counts_what_is_still_in_memory_as_on_its_way(served: Served) -> None:
    turn = await served.begin()
    report = served.tracker.report()
    assert [(said.turns, said.made, said.durable, said.held) for _, said in report.entries] == [(1, 1, 0, 1)]
    await in_database(heartbeat.beat, served.tracker.process_id, 0, report)
    # the report is of before the acknowledgement, as it always may be
    await turn.acknowledged(5)
    await in_database(lambda: sync_client().flushall())
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.running, seen.total.on_the_way) == (1, 1)


async def test_it_calls_nothing_wrong_that_came_after_the_report(served: Served) -> None:
    first = await served.begin()
    await first.acknowledged(5)
    await served.tell()
    first.record("llm_thinking", first.checkpoints[0], status="started")
    await served.chat()
    await first.acknowledged(5)
    await in_database(persist)
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.turns_unsaid) == (2, 1)
    assert (seen.total.made, seen.total.unsaid, seen.total.rows) == (6, 5, 6)


async def test_it_counts_what_was_given_up_by_reason(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "QUEUE_LIMIT", 2)
    turn = await served.begin()
    for _ in range(4):
        turn.record("step", turn.checkpoints[0])
    turn.end("completed")
    await turn.acknowledged(5)
    await served.tell()
    await in_database(persist)
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.made, seen.total.rows, seen.total.given_up) == (6, 3, 3)
    assert seen.reasons == {tracker_module.QUEUE_IS_FULL: 3}


async def test_it_counts_a_turn_of_which_nothing_could_be_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "QUEUE_LIMIT", 0)
    turn = served.tracker.begin(user_id="bob@example.com", session_id="s")
    root = turn.record("auth_check", None, status="passed")
    turn.record("llm_thinking", root, status="started")
    turn.end("completed")
    await served.tell()
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.turns_given_up, seen.total.given_up) == (1, 1, 2)


async def test_it_counts_what_postgresql_refuses_after_the_end_of_its_turn(served: Served) -> None:
    turn = await served.chat()
    # as the flusher does with a batch that can be kept nowhere
    turn.settle(-3)
    turn.lose(3, "PostgreSQL refuses them")
    assert turn.recorded == 4
    assert await turn.acknowledged(5) == 1
    await in_database(lambda: sync_client().flushall())
    await in_database(store, [turn.checkpoints[0].document])
    await served.tell()
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.made, seen.total.rows, seen.total.given_up) == (4, 1, 3)


async def test_a_lost_turn_is_counted_as_given_up_once(tracker: FlowTracker) -> None:
    turn = tracker.begin(user_id="bob@example.com", session_id="s")
    turn.record("auth_check", None)
    turn.end("completed")
    turn.lose(1, "PostgreSQL refuses them")
    turn.lose(1, "PostgreSQL refuses them")
    ((_, said),) = tracker.report().entries
    assert (said.turns, said.ended, said.turns_given_up, said.made, said.held) == (1, 1, 1, 2, 0)


async def test_it_says_only_what_changed(served: Served) -> None:
    turn = await served.begin()
    assert len(served.tracker.report().entries) == 1
    # not heard by anybody yet, so said again
    assert len(served.tracker.report().entries) == 1
    await turn.acknowledged(5)
    await served.tell()
    assert served.tracker.report().entries == []
    turn.record("step", turn.checkpoints[0])
    assert len(served.tracker.report().entries) == 1


async def test_it_counts_by_the_hour_in_which_the_turn_began(served: Served) -> None:
    turn = await served.begin()
    assert turn.count.hour == hour_of(turn.turn_id)
    for turn_id in ("", str(uuid.uuid4()), "not-an-id-at-all-7-whatever", "0199aaaa-zzzz-7000-8000-000000000001"):
        other = served.tracker.begin(user_id="bob@example.com", session_id="s", turn_id=turn_id)
        other.record("auth_check", None)
        assert other.count.hour in (turn.count.hour, turn.count.hour + 1)


async def test_a_process_that_ends_in_order_says_its_last_figures_exactly(served: Served) -> None:
    await served.tell()
    await served.chat()
    await in_database(persist)
    await in_database(heartbeat.end, served.tracker.process_id, served.tracker.report())
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.turns_unsaid, seen.total.made, seen.total.unsaid) == (1, 0, 4, 0)


# --- processes that die ------------------------------------------------------------------------------


async def test_a_process_that_died_with_an_old_report_is_no_false_alarm(served: Served) -> None:
    await served.chat()
    await served.tell()
    await served.chat()
    await in_database(persist)
    await served.die()
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.stored, seen.total.turns_unsaid) == (2, 2, 1)


async def test_a_process_that_died_before_it_said_anything_is_no_false_alarm(served: Served) -> None:
    await in_database(heartbeat.beat, served.tracker.process_id, 0)
    await served.chat()
    await in_database(persist)
    await served.die()
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.stored) == (1, 1)


async def test_what_died_with_its_process_before_it_was_acknowledged_is_given_up(served: Served) -> None:
    whole = await served.chat()
    turn = await served.begin()
    turn.record("llm_thinking", turn.checkpoints[0], status="started")
    report = served.tracker.report()
    await in_database(heartbeat.beat, served.tracker.process_id, 0, report)
    # it never came to be written: the process is gone, and the log has only the turn before
    await in_database(lambda: sync_client().flushall())
    await in_database(store, [made.document for made in whole.checkpoints])
    await served.die()
    await in_database(settle, turn.turn_id)
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.stored, seen.total.turns_given_up) == (2, 1, 1)
    assert seen.reasons == {DIED_WITH_IT: 2}


async def test_a_turn_that_was_let_in_and_died_before_anything_was_acknowledged_is_given_up(served: Served) -> None:
    await served.tell()
    await in_database(admit, uuid7(next_moment_us()), served.tracker.process_id)
    await served.die()
    seen = await in_database(account)
    assert (seen.total.started, seen.total.turns_given_up) == (1, 1)
    assert found(seen) == [("slot_open", 1)]


async def test_an_abandoned_turn_adds_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RECOVERY_S", 0)
    turn = await served.begin()
    await turn.acknowledged(5)
    await served.tell()
    turn.record("llm_thinking", turn.checkpoints[0], status="started")
    await turn.acknowledged(5)
    await in_database(persist)
    await served.die()

    def swept() -> None:
        Sweep(is_monitored=lambda user_id: False, on_abandoned=_freed).once()
        persist()

    await in_database(swept)
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.started, seen.total.stored, seen.total.abandoned) == (1, 1, 1)
    # the sweep's flow_end is a row, and no checkpoint of the process
    assert (seen.total.made, seen.total.rows) == (2, 2)
    assert await in_database(InteractionFlow.objects.count) == 3


def _freed(turn_id: str, rounds: list) -> None:
    settle(turn_id)


async def test_a_turn_that_was_ended_by_the_sweep_and_by_its_process_adds_up(served: Served) -> None:
    turn = await served.begin()
    await turn.acknowledged(5)
    await in_database(persist)
    made = Sweep(is_monitored=lambda user_id: False, on_abandoned=_freed)
    await in_database(_abandon, made, turn.turn_id)
    await in_database(persist)
    turn.end("completed")
    await turn.acknowledged(5)
    await in_database(persist)
    await served.tell()
    seen = await in_database(account)
    assert found(seen) == []
    assert seen.reasons == {SWEEP_WAS_FIRST: 1}
    assert await in_database(lambda: Turn.objects.get().outcome) == "abandoned"


def _abandon(made: Sweep, turn_id: str) -> None:
    turn = Turn.objects.get(turn_id=turn_id)
    made._abandon(turn.turn_id, turn.process_id, turn.user_id, turn.session_id, turn.started_at, turn.started_at)


async def test_a_process_that_was_declared_dead_goes_on_under_another_name(served: Served) -> None:
    await served.chat()
    await served.tell()
    await served.die(seconds_ago=1)
    await served.chat()
    await served.tell()
    await served.chat()
    await served.tell()
    await in_database(persist)
    seen = await in_database(account)
    assert found(seen) == []
    assert sorted(part.sums.started for part in seen.hours[0].parts) == [1, 2]
    assert await in_database(ServingProcess.objects.count) == 2


# --- what cannot be known --------------------------------------------------------------------------------


async def test_it_adds_up_while_chats_run_and_the_persister_works(served: Served) -> None:
    """At every moment: with turns in memory, in the log, in the tables, and reports of any age."""
    stop = asyncio.Event()
    seen = []

    async def chats() -> None:
        while not stop.is_set():
            await served.chat()
            if len(seen) % 3 == 0:
                await served.tell()

    async def works() -> None:
        while not stop.is_set():
            await in_database(persist, 1)

    tasks = [asyncio.create_task(work()) for work in (chats, chats, chats, works)]
    while len(seen) < 25:
        seen.append(await in_database(account))
    stop.set()
    await asyncio.gather(*tasks)
    assert [found(one) for one in seen if one.problems] == []
    await served.tell()
    await in_database(persist, 10)
    last = await in_database(account)
    assert found(last) == []
    assert last.total.started == last.total.stored > 3
    assert last.total.made == last.total.rows


async def test_it_calls_nothing_missing_while_redis_is_away(served: Served, settings: object) -> None:
    await served.chat()
    await served.tell()
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    seen = await in_database(account)
    assert found(seen) == []
    assert not seen.road.answers
    assert (seen.total.running, seen.total.on_the_way) == (1, 4)


async def test_it_calls_nothing_missing_while_the_log_is_too_long_to_read(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "READ_ENTRIES", 2)
    await served.chat()
    await served.tell()
    seen = await in_database(account)
    assert found(seen) == []
    assert not seen.is_certain
    assert seen.total.on_the_way == 4


def test_it_adds_up_without_redis(empty_log: None, settings: object) -> None:
    settings.REDIS_ENABLED = False

    async def one() -> None:
        tracker = FlowTracker()
        served = Served(tracker)
        await served.chat()
        await served.tell()
        await served.pulse.lane.close()
        await tracker.flusher.stop()

    asyncio.run(one())
    seen = account()
    assert found(seen) == []
    assert (seen.total.started, seen.total.stored, seen.total.made, seen.total.rows) == (1, 1, 4, 4)
    assert not seen.road.enabled


async def test_it_counts_what_is_set_aside(served: Served) -> None:
    await served.chat()
    await served.tell()
    client = get_redis()
    for number in range(8):
        for entry_id, fields in await client.xrange(f"omni2:log:{number}"):
            await client.xadd("omni2:dead", {**fields, "reason": "strange", "shard": number})
            await client.xdel(f"omni2:log:{number}", entry_id)
    await client.xadd("omni2:dead", {"d": "no checkpoint", "reason": "no JSON", "shard": 1})
    seen = await in_database(account)
    assert found(seen) == []
    assert (seen.total.set_aside, seen.total.on_the_way, seen.total.rows) == (4, 0, 0)
    assert seen.total.running == 1
    reasons = list(seen.road.reasons())
    assert [(one["reason"], one["count"]) for one in reasons] == [("no JSON", 1), ("strange", 4)]
    now = datetime.now(UTC)
    assert all(now - timedelta(minutes=5) < one["first"] <= one["last"] < now + timedelta(seconds=1) for one in reasons)


def test_it_compares_what_it_can_of_turns_no_process_counted(empty_log: None) -> None:
    """From before the ledger was kept, or stored by another program: a UUIDv7 of this hour, without a process."""
    turn = uuid7(next_moment_us())
    ended = {"outcome": "completed", "duration_ms": 1}
    store(
        [
            document(1, turn=turn, checkpoint="auth_check", metadata={"status": "passed"}),
            document(2, turn=turn, parent=1, checkpoint="flow_end", metadata=ended),
        ]
    )
    StoredTurn("bob@example.com").end()
    seen = account()
    assert found(seen) == []
    assert (seen.total.started, seen.total.turns_unsaid, seen.total.stored) == (1, 1, 1)


def test_it_forgets_what_was_counted_long_ago_and_then_the_process() -> None:
    old, young = uuid.uuid4(), uuid.uuid4()
    for process, days in ((old, 91), (young, 30)):
        ServingProcess.objects.create(process_id=process, name="h:1", ended_at=Now() - timedelta(days=days))
        LedgerEntry.objects.create(process_id=process, hour=Now() - timedelta(days=days), reported_at=Now())
    assert heartbeat.forget_ended() == 1
    assert [row.process_id for row in ServingProcess.objects.all()] == [young]
    assert [row.process_id for row in LedgerEntry.objects.all()] == [young]


def test_it_finds_the_hour_of_each_turn_also_around_its_border() -> None:
    counts = HourCounts()
    border_us = hour_of(uuid7(next_moment_us())) * 3_600_000_000
    for offset_s in (-90, -60, -30, -0.001, 0, 0.001, 30, 60, 90, -0.001, 3599.999, 3600):
        for process in ("a", "b"):
            moment_us = border_us + int(offset_s * 1e6)
            found = counts.of(process, uuid7(moment_us))
            assert (found.process_id, found.hour) == (process, moment_us // 3_600_000_000)
