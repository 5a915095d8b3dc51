"""The sweep ends the turns of dead processes, and of no others, once."""

import asyncio
import json
import threading
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
import redis
from django.db import connection
from django.db.models.functions import Now

from flows import heartbeat, keys, log, sweep
from flows.models import InteractionFlow, ServingProcess, Turn
from flows.persister import Persister
from flows.redis import sync_client
from flows.store import store
from flows.sweep import Sweep
from flows.tests.test_persister import _quick, document
from flows.tracker import FlowTracker
from omni2.database import in_database

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("empty_log")]

__all__ = ["_quick"]


@pytest.fixture(autouse=True)
def _no_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    # the test's PostgreSQL has just started, and would not be trusted yet
    monkeypatch.setattr(sweep, "RECOVERY_S", 0)
    monkeypatch.setattr(sweep, "LATER_S", 0)


class Settled:
    """Remembers what it was told of abandoned turns."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[dict]]] = []

    def __call__(self, turn_id: str, rounds: list[dict]) -> None:
        self.calls.append((turn_id, rounds))


def running_turn(process_id: str, number: int = 1) -> str:
    turn = f"0199aaaa-0000-7000-8000-{number:08d}0001"
    auth = {"question": "q", "process": process_id}
    rounds = {"status": "ok", "input_tokens": 3}
    store(
        [
            document(1, turn=turn, checkpoint="auth_check", metadata=auth),
            document(2, turn=turn, parent=1, checkpoint="llm_complete", metadata=rounds),
        ]
    )
    return turn


def process(*, silent_s: float = 0, ended: bool = False) -> str:
    process_id = str(uuid.uuid4())
    seen = Now() - timedelta(seconds=silent_s)
    ServingProcess.objects.create(process_id=process_id, name="host:1", seen_at=seen, ended_at=Now() if ended else None)
    return process_id


def swept(*, monitored: bool = False) -> tuple[Sweep, Settled]:
    settled = Settled()
    made = Sweep(is_monitored=lambda user_id: monitored, on_abandoned=settled)
    made.once()  # claims
    made.once()  # ends what was claimed before
    worker = Persister()
    for _ in range(3):
        worker.step()
    worker.stop()
    worker.run()
    return made, settled


def test_it_ends_the_turns_of_a_silent_process() -> None:
    turn = running_turn(process(silent_s=40))
    _, settled = swept()
    ended = InteractionFlow.objects.get(checkpoint="flow_end")
    assert (str(ended.turn_id), str(ended.parent_id)) == (turn, turn)
    assert ended.metadata["outcome"] == "abandoned"
    assert Turn.objects.get().outcome == "abandoned"
    assert settled.calls == [(turn, [{"status": "ok", "input_tokens": 3}])]


def test_it_leaves_a_living_process_alone_however_long_its_turn_takes() -> None:
    running_turn(process(silent_s=10))
    swept()
    assert Turn.objects.get().outcome is None


def test_it_ends_what_a_process_left_that_ended_in_order() -> None:
    running_turn(process(ended=True))
    swept()
    assert Turn.objects.get().outcome == "abandoned"


def test_it_ends_a_turn_once_even_if_it_looks_again() -> None:
    running_turn(process(silent_s=40))
    made, settled = swept()
    made.once()
    swept()
    assert InteractionFlow.objects.filter(checkpoint="flow_end").count() == 1
    assert len(settled.calls) == 1


def test_it_waits_while_something_of_the_turn_is_in_the_log() -> None:
    turn = running_turn(process(silent_s=40))
    shard = keys.log_shard(log.shard_of(turn))
    client = sync_client()
    client.xadd(shard, {"d": document(3, turn=turn, parent=1)})
    made = Sweep(is_monitored=lambda user_id: False, on_abandoned=Settled())
    assert [made.once(), made.once()] == [0, 0]
    client.delete(shard)
    assert made.once() == 1
    client.close()


def test_it_waits_while_the_turns_shard_is_too_full_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LOOK_ENTRIES", 2)
    turn = running_turn(process(silent_s=40))
    shard = keys.log_shard(log.shard_of(turn))
    client = sync_client()
    for _ in range(2):
        client.xadd(shard, {"d": b"{}"})
    made = Sweep(is_monitored=lambda user_id: False, on_abandoned=Settled())
    assert [made.once(), made.once()] == [0, 0]
    client.delete(shard)
    assert made.once() == 1
    client.close()


def test_it_does_not_wait_for_what_is_none_of_the_turns() -> None:
    """An orphan of another turn may wait in the log for minutes."""
    turn = running_turn(process(silent_s=40))
    client = sync_client()
    client.xadd(keys.log_shard(log.shard_of(turn)), {"d": document(3, parent=2, turn="0199dddd" + turn[8:])})
    made = Sweep(is_monitored=lambda user_id: False, on_abandoned=Settled())
    assert [made.once(), made.once()] == [0, 1]
    client.close()


def test_it_waits_for_the_last_words_of_a_process_that_ended_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flow_end is in the log and not in PostgreSQL yet, and the log looks drained."""
    monkeypatch.setattr(sweep, "LATER_S", 2.0)
    turn = running_turn(process(ended=True))
    client = sync_client()
    last = document(3, turn=turn, parent=1, checkpoint="flow_end", metadata={"outcome": "completed"})
    client.xadd(keys.log_shard(log.shard_of(turn)), {"d": last})
    made, settled = swept()
    assert (made.abandoned, settled.calls) == (0, [])
    assert client.xlen(keys.user_stream("bob@example.com")) == 0
    assert Turn.objects.get().outcome == "completed"
    client.close()


def test_it_fences_a_process_off_before_it_ends_its_turns() -> None:
    """It may only have stood still, and be about to go on."""
    dead, ended = process(silent_s=40), process(ended=True)
    running_turn(dead)
    swept()
    with sync_client() as client:
        assert client.exists(keys.fence(dead)) == 1
        assert client.exists(keys.fence(ended)) == 0, "it left nothing"


def test_it_settles_what_a_dead_process_left_unsettled_once_nothing_of_it_is_on_the_way() -> None:
    """Killed between a turn's end and its charge, or before anything of a turn was acknowledged."""
    dead = process(silent_s=40)
    turn = running_turn(dead)
    store([document(3, turn=turn, parent=1, checkpoint="flow_end", metadata={"outcome": "completed"})])
    unknown, coming = (f"0199aaaa-0000-7000-8000-{number:08d}0001" for number in (8, 9))
    settled = Settled()
    made = Sweep(
        is_monitored=lambda user_id: False,
        on_abandoned=settled,
        left_unsettled=lambda before, later_s: [(each, dead) for each in (turn, unknown, coming)],
    )
    with sync_client() as client:
        client.xadd(keys.log_shard(log.shard_of(coming)), {"d": document(1, turn=coming)})
        assert made.once() == 0
        assert sorted(settled.calls) == sorted([(turn, [{"status": "ok", "input_tokens": 3}]), (unknown, [])])
        assert client.exists(keys.fence(dead)) == 1


def test_two_sweeps_at_once_end_a_turn_once_for_everybody() -> None:
    """Each persister has one. The second entry repeats the first one's id, so every reader drops it."""
    turn = running_turn(process(silent_s=40))
    sweeps = [Sweep(is_monitored=lambda user_id: True, on_abandoned=Settled()) for _ in range(2)]
    sweeps[0].once()  # claims
    # both look before either has written
    before = sweeps[0]._postgres_now()
    found = [each._nowhere_on_the_way(lambda: Sweep._left_open(before)) for each in sweeps]
    assert [len(turns) for turns in found] == [1, 1]
    for each, (open_turn,) in zip(sweeps, found, strict=True):
        each._abandon(*open_turn)
    client = sync_client()
    entries = client.xrange(keys.user_stream("bob@example.com"))
    ids = [json.loads(fields[b"d"])["flow_id"] for _, fields in entries]
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert uuid.UUID(ids[0]).version == 7
    assert ids[0] != turn
    client.close()
    swept()
    assert str(InteractionFlow.objects.get(checkpoint="flow_end").flow_id) == ids[0]


def test_it_tells_the_watchers() -> None:
    running_turn(process(silent_s=40))
    client: redis.Redis = sync_client()
    pubsub = client.pubsub()
    pubsub.subscribe(keys.user_channel("bob@example.com"))
    pubsub.get_message(timeout=5)
    swept(monitored=True)
    message = json.loads(pubsub.get_message(timeout=5)["data"])
    assert message["checkpoint"]["metadata"]["outcome"] == "abandoned"
    assert client.xlen(keys.user_stream("bob@example.com")) == 1
    pubsub.close()
    client.close()


def test_it_does_not_judge_right_after_postgresql_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RECOVERY_S", 3600)
    running_turn(process(silent_s=40))
    swept()
    assert Turn.objects.get().outcome is None


def test_it_does_not_judge_right_after_it_stood_still_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """At its own start, after a pause of its own, and after a PostgreSQL that hung: the others may have
    stood still as well, and need the time to renew their heartbeats."""
    clock = [1000.0]
    monkeypatch.setattr(sweep, "RECOVERY_S", 20.0)
    started_long_ago = sweep._CLAIM.replace("pg_postmaster_start_time()", "'-infinity'::timestamptz")
    monkeypatch.setattr(sweep, "_CLAIM", started_long_ago)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    made = Sweep(is_monitored=lambda user_id: False, on_abandoned=Settled())

    def judged(after_s: float) -> bool:
        """Whether it declares a silent process dead when it is called so much later."""
        silent = process(silent_s=40)
        clock[0] += after_s
        made()
        died = ServingProcess.objects.exclude(ended_at=None).filter(pk=silent).exists()
        ServingProcess.objects.all().delete()
        return died

    assert [judged(0), judged(19), judged(2), judged(1), judged(3)] == [False, False, True, False, True]
    assert [judged(60), judged(10), judged(11)] == [False, False, True], "it slept for a minute"

    def hangs() -> None:
        clock[0] += 4

    monkeypatch.setattr(made, "_postgres_now", hangs)
    assert judged(3) is False


@pytest.fixture
async def pulse(tracker: FlowTracker) -> AsyncIterator[heartbeat.Heartbeat]:
    made = heartbeat.Heartbeat(tracker)
    yield made
    await made.lane.close()


async def test_a_process_that_was_declared_dead_ends_its_turns_and_begins_anew(
    tracker: FlowTracker, pulse: heartbeat.Heartbeat
) -> None:
    await pulse.once()
    before = tracker.process_id
    turn = tracker.begin(user_id="bob@example.com", session_id="s")
    root = turn.record("auth_check", None)
    cancelled = []
    turn.cancel = lambda: cancelled.append(True)
    await in_database(lambda: ServingProcess.objects.update(seen_at=Now() - timedelta(seconds=60)))
    await in_database(Sweep._claim)

    await pulse.once()
    assert tracker.process_id != before
    assert cancelled == [True]
    turn.record("late", root)
    assert turn.recorded == 1
    assert turn.end("completed") is None
    alive = await in_database(lambda: list(ServingProcess.objects.filter(ended_at=None)))
    assert [str(row.process_id) for row in alive] == [tracker.process_id]


async def test_a_busy_process_beats_all_the_same(tracker: FlowTracker, pulse: heartbeat.Heartbeat) -> None:
    """All of its threads, and so all connections they may have, are taken by something that takes long."""
    release = threading.Event()
    busy = [asyncio.ensure_future(in_database(release.wait, 20)) for _ in range(50)]
    try:
        await asyncio.wait_for(pulse.once(), 10)
    finally:
        release.set()
    await asyncio.gather(*busy)
    assert await in_database(lambda: str(ServingProcess.objects.get().process_id)) == tracker.process_id


async def test_a_beat_goes_on_after_its_connection_was_cut(tracker: FlowTracker, pulse: heartbeat.Heartbeat) -> None:
    def cut() -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'omni2 heartbeat'"
            )
            return cursor.fetchone()[0]

    await pulse.once()
    before = await in_database(lambda: ServingProcess.objects.get().seen_at)
    assert await in_database(cut) >= 1
    await pulse.once()
    await pulse.once()
    assert await in_database(lambda: ServingProcess.objects.get().seen_at) > before


async def test_a_process_that_was_late_but_not_declared_dead_goes_on(
    tracker: FlowTracker, pulse: heartbeat.Heartbeat
) -> None:
    await pulse.once()
    before = tracker.process_id
    await pulse.once()
    assert tracker.process_id == before


def test_it_does_not_judge_right_after_the_clock_of_postgresql_was_set_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All heartbeats are an hour old by then."""
    made = Sweep(is_monitored=lambda user_id: False, on_abandoned=Settled())
    made.once()
    alive = process(silent_s=3600)
    real = made._postgres_now()
    monkeypatch.setattr(made, "_postgres_now", lambda: real + timedelta(hours=1))
    made.once()
    assert ServingProcess.objects.get(pk=alive).ended_at is None
    made.once()  # no further step: what is silent now is dead
    assert ServingProcess.objects.get(pk=alive).ended_at is not None


def test_it_forgets_processes_that_ended_long_ago_and_left_nothing_open() -> None:
    gone, busy, living = process(ended=True), process(ended=True), process()
    running_turn(busy)
    ServingProcess.objects.exclude(process_id=living).update(ended_at=Now() - timedelta(days=8))
    assert heartbeat.forget_ended() == 1
    left = {str(row) for row in ServingProcess.objects.values_list("process_id", flat=True)}
    assert left == {busy, living}
    assert gone not in left
