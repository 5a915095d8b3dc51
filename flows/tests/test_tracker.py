"""Recording never waits; what the log acknowledged is told; Redis away hurts no chat."""

import asyncio
import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import OperationalError

from flows import flusher as flusher_module
from flows import heartbeat, keys, log
from flows import tracker as tracker_module
from flows.models import InteractionFlow, Turn
from flows.persister import Persister
from flows.preroll import preroll
from flows.redis import get_redis, sync_client
from flows.tracker import FlowTracker, TurnTrack
from omni2 import embedded
from omni2.database import in_database

pytestmark = pytest.mark.django_db(transaction=True)

BOB = "bob@example.com"


def begin(tracker: FlowTracker, user_id: str = BOB) -> tuple[TurnTrack, object]:
    turn = tracker.begin(user_id=user_id, session_id="8a2a6d3e-0000-4000-8000-000000000001")
    return turn, turn.record("auth_check", None, status="passed", question="hi", process=tracker.process_id)


async def names(user_id: str = BOB) -> list[str]:
    return [json.loads(entry.document)["checkpoint"] for entry in await log.read_recent(user_id, count=10_000)]


async def test_it_records_without_any_io(tracker: FlowTracker) -> None:
    turn, root = begin(tracker)
    for _ in range(100):
        turn.record("step", root)
    # nothing ran in between: the flusher's task has not had its turn yet
    assert turn.durable == 0
    assert len(tracker.queue) == turn.recorded == 101


async def test_it_acknowledges_what_was_recorded(tracker: FlowTracker) -> None:
    turn, root = begin(tracker)
    turn.record("block_check", root, status="passed")
    assert await turn.acknowledged(5) == 2
    assert await names() == ["auth_check", "block_check"]


async def test_it_shares_a_trip_between_turns(tracker: FlowTracker) -> None:
    turns = [begin(tracker, f"user{n}@example.com")[0] for n in range(50)]
    await asyncio.gather(*(turn.acknowledged(5) for turn in turns))
    assert all(turn.durable == 1 for turn in turns)
    assert tracker.flusher.batches < 5


async def test_it_keeps_the_order_of_turns_that_record_by_turns(tracker: FlowTracker) -> None:
    """One batch, in which neither the turns nor the users stand together."""
    first, second = begin(tracker)[0], begin(tracker)[0]
    other = begin(tracker, "charlie@example.com")[0]
    for number in range(3):
        for turn in (first, other, second):
            turn.record(f"step {number}", turn.checkpoints[0])
    await asyncio.gather(*(turn.acknowledged(5) for turn in (first, second, other)))
    assert tracker.flusher.batches == 1
    both = sorted(first.checkpoints + second.checkpoints, key=lambda made: made.moment_us)
    for user_id, made in ((BOB, both), ("charlie@example.com", other.checkpoints)):
        entries = await log.read_recent(user_id, count=100)
        assert [entry.document for entry in entries] == [checkpoint.document for checkpoint in made]
    for turn in (first, second, other):
        handed = await get_redis().xrange(keys.LOG_SHARDS[log.shard_of(turn.turn_id)])
        documents = [fields[b"d"] for _, fields in handed if turn.turn_id.encode() in fields[b"d"]]
        assert documents == [checkpoint.document for checkpoint in turn.checkpoints]


async def test_it_closes_open_steps_before_the_end(tracker: FlowTracker) -> None:
    turn, root = begin(tracker)
    thinking = turn.record("llm_thinking", root, status="started")
    call = turn.record("tool_call", thinking, status="started")
    done = turn.record("tool_call", thinking, status="started")
    turn.record("tool_result", done, status="ok")
    turn.end("disconnected")
    made = [(c.checkpoint, c.parent, c.metadata.get("status")) for c in turn.checkpoints[5:]]
    assert made == [
        ("tool_result", call, "cancelled"),
        ("llm_complete", thinking, "cancelled"),
        ("flow_end", root, None),
    ]
    assert turn not in tracker.running


async def test_it_ends_a_turn_once(tracker: FlowTracker) -> None:
    turn, root = begin(tracker)
    assert turn.end("completed") is not None
    assert turn.end("failed") is None
    turn.record("late", root)
    assert await turn.acknowledged(5) == 2
    assert tracker.late == 1


async def test_it_gives_up_beyond_the_bound_and_counts(tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "QUEUE_LIMIT", 3)
    turn, root = begin(tracker)
    made = [turn.record("step", root) for _ in range(4)]
    child_of_dropped = turn.record("step", made[-1])
    assert [c.dropped for c in made] == [False, False, True, True]
    assert child_of_dropped.dropped
    assert await turn.acknowledged(5) == 3
    assert turn.recorded == 6
    assert tracker.given_up == turn.given_up == 3


async def test_it_always_takes_the_end_of_a_turn(tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the turn would stay open for as long as its process lives."""
    monkeypatch.setattr(tracker_module, "QUEUE_LIMIT", 2)
    turn, root = begin(tracker)
    thinking = turn.record("llm_thinking", root, status="started")
    turn.record("llm_complete", thinking, status="ok")
    flow_end = turn.end("completed")
    assert not flow_end.dropped
    assert flow_end.metadata["checkpoints"] == turn.recorded == 4
    assert flow_end.metadata["given_up"] == 1
    await turn.acknowledged(5)
    assert await names() == ["auth_check", "llm_thinking", "flow_end"]


async def test_the_end_says_how_many_checkpoints_the_turn_made(tracker: FlowTracker) -> None:
    turn, root = begin(tracker)
    turn.record("llm_thinking", root, status="started")
    flow_end = turn.end("disconnected")
    assert flow_end.metadata["checkpoints"] == len(turn.checkpoints) == 4
    assert "given_up" not in flow_end.metadata


async def test_it_publishes_only_for_the_monitored(tracker: FlowTracker) -> None:
    tracker.is_monitored = lambda user_id: user_id == BOB
    pubsub = get_redis().pubsub()
    await pubsub.psubscribe("flow_events:*")
    await pubsub.get_message(timeout=5)
    alone, _ = begin(tracker, "charlie@example.com")
    await alone.acknowledged(5)
    turn, root = begin(tracker)
    turn.record("block_check", root)
    await turn.acknowledged(5)
    first, second = [json.loads((await pubsub.get_message(timeout=5))["data"]) for _ in range(2)]
    await pubsub.aclose()
    position = await log.position(BOB)
    assert [first["prev"], second["prev"]] == [None, first["cursor"]]
    assert second["cursor"] == log.cursor(position.epoch, position.last_id)
    assert first["checkpoint"] == turn.checkpoints[0].as_dict()
    assert await names("charlie@example.com") == ["auth_check"]


async def test_it_survives_a_flush_and_a_forgotten_script(tracker: FlowTracker) -> None:
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    before = await log.position(BOB)
    await get_redis().flushall()
    await get_redis().script_flush()
    turn.record("block_check", root)
    assert await turn.acknowledged(5) == 2
    after = await log.position(BOB)
    assert after.epoch != before.epoch
    assert await names() == ["block_check", "auth_check", "block_check"], "the turn is appended again, from its first"
    assert tracker.flusher.redis_away is False
    turn.record("usage_check", root)
    await turn.acknowledged(5)
    assert await names() == ["block_check", "auth_check", "block_check", "usage_check"], "once"


class OwnValkey:
    """A Valkey of this test's own, to be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "v.sock"
        self.process = embedded.start_valkey(folder / "data", self.socket)

    def restart(self) -> None:
        self.process = embedded.start_valkey(self.folder / "data", self.socket)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def file(self) -> Path:
        """What it has written to disk, which grows."""
        return next((self.folder / "data" / "appendonlydir").glob("*.incr.aof"))

    def send(self, number: int) -> None:
        os.kill(self.process.pid, number)


@pytest.fixture
def valkey(settings: object) -> Iterator[OwnValkey]:
    with tempfile.TemporaryDirectory(prefix="o2v-") as folder:
        own = OwnValkey(Path(folder))
        settings.REDIS_URL = f"unix://{own.socket}"
        yield own
        own.send(signal.SIGCONT)
        own.kill()


async def until(condition: object, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.05)


async def came_back(tracker: FlowTracker) -> None:
    async def closed() -> bool:
        return not tracker.flusher.redis_away

    await until(closed)


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_it_stores_whole_turns_while_redis_is_away(valkey: OwnValkey, how: str) -> None:
    tracker = FlowTracker()
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    epoch = (await log.position(BOB)).epoch
    valkey.kill() if how == "killed" else valkey.send(signal.SIGSTOP)
    checked = turn.record("block_check", root, status="passed")
    assert await turn.acknowledged(10) == 2
    assert tracker.flusher.redis_away is True
    # its parent was only in the log that is away now, and is stored with it
    stored = await in_database(lambda: sorted(map(str, InteractionFlow.objects.values_list("flow_id", flat=True))))
    assert stored == sorted([root.flow_id, checked.flow_id])

    valkey.restart() if how == "killed" else valkey.send(signal.SIGCONT)
    await came_back(tracker)
    assert (await log.position(BOB)).epoch != epoch
    assert set(await names()) == {"auth_check", "block_check"}
    turn.end("completed")
    assert await turn.acknowledged(5) == 3
    await tracker.flusher.stop()


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "is silent"])
async def test_it_appends_again_what_redis_acknowledged_and_lost(valkey: OwnValkey, goes_on: bool) -> None:
    """A loss of power: the last seconds had not reached the disk. Turns that ran, and one that had just ended;
    also when nothing more is to be written."""
    tracker = FlowTracker()
    first, _ = begin(tracker)
    await first.acknowledged(5)
    on_disk = valkey.file.stat().st_size
    first.end("completed")
    running, root = begin(tracker)
    running.record("block_check", root)
    await asyncio.gather(first.acknowledged(5), running.acknowledged(5))
    valkey.kill()
    os.truncate(valkey.file, on_disk)
    valkey.restart()
    assert await names() == ["auth_check"]

    if goes_on:
        running.end("completed")
        assert await running.acknowledged(10) == 3

    async def again() -> bool:
        return {first.turn_id, running.turn_id} <= {
            json.loads(entry.document)["turn_id"] for entry in await log.read_recent(BOB, count=100)
        }

    await until(again)
    worker = Persister()
    for _ in range(4):
        await in_database(worker.step)
    summaries = await in_database(lambda: list(Turn.objects.values_list("turn_id", "outcome", "checkpoints")))
    assert {(str(turn_id), outcome, count) for turn_id, outcome, count in summaries} == {
        (first.turn_id, "completed", 2),
        (running.turn_id, "completed", 3) if goes_on else (running.turn_id, None, 2),
    }
    await tracker.flusher.stop()


@pytest.mark.parametrize("keeps", [100, 1], ids=["all", "not all"])
async def test_it_appends_again_what_is_not_stored_however_long_ago_it_was_acknowledged(
    valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch, keeps: int
) -> None:
    """A replica that took over may have lagged by more than the seconds an append-only file may lack."""
    monkeypatch.setattr(flusher_module, "AGAIN_WITHIN_S", 0.0)
    monkeypatch.setattr(flusher_module, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(flusher_module, "AGAIN_CHECKPOINTS", keeps)
    tracker = FlowTracker()
    stored, _ = begin(tracker)
    stored.end("completed")
    await stored.acknowledged(5)
    worker = Persister()
    for _ in range(2):
        await in_database(worker.step)
    waiting, _ = begin(tracker)
    waiting.end("completed")
    await waiting.acknowledged(5)
    # several looks at the log
    await asyncio.sleep(0.5)
    await get_redis().flushall()
    last, _ = begin(tracker)
    await last.acknowledged(5)

    # it was acknowledged: so the others are there before it, or never
    again = {json.loads(entry.document)["turn_id"] for entry in await log.read_recent(BOB, count=100)}
    assert again == ({waiting.turn_id, last.turn_id} if keeps > 1 else {last.turn_id})
    last.end("completed")
    await tracker.flusher.stop()


async def test_a_stream_has_no_gap_where_more_went_around_redis_than_is_kept(
    valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pre-roll that finds a turn's first checkpoint in the stream relies on finding the others there."""
    monkeypatch.setattr(flusher_module, "KEPT_FOR_REDIS", 3)
    tracker = FlowTracker()
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    valkey.kill()
    for _ in range(5):
        turn.record("step", root)
        await turn.acknowledged(10)
    valkey.restart()
    await came_back(tracker)
    turn.end("completed")
    await turn.acknowledged(5)
    documents = [json.loads(entry.document) for entry in await log.read_recent(BOB, count=100)]
    assert [each["checkpoint"] for each in documents][:3] == ["step"] * 3
    shown = [json.loads(document)["flow_id"] for document in (await preroll(BOB)).documents]
    assert shown == [checkpoint.flow_id for checkpoint in turn.checkpoints]
    await tracker.flusher.stop()


async def test_it_stores_directly_while_redis_is_full(valkey: OwnValkey) -> None:
    tracker = FlowTracker()
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    await get_redis().config_set("maxmemory", 1)
    turn.record("block_check", root)
    assert await turn.acknowledged(10) == 2
    assert tracker.flusher.redis_away is True
    assert await in_database(InteractionFlow.objects.count) == 2
    await get_redis().config_set("maxmemory", 0)
    await came_back(tracker)
    assert await names() == ["auth_check", "auth_check", "block_check"]  # the first twice: readers know it
    await tracker.flusher.stop()


async def test_it_loses_no_more_than_what_postgresql_refuses(settings: object, caplog: object) -> None:
    """Without Redis there is nowhere to set it aside; the rest of its turn, and other turns, are stored."""
    settings.REDIS_ENABLED = False
    tracker = FlowTracker()
    turn, root = begin(tracker)
    bad = turn.record("step", root)
    bad._document = bad.document.replace(b'"step"', b'"\\ud800"')
    turn.end("completed")
    other, _ = begin(tracker, "charlie@example.com")
    other.end("completed")
    await other.acknowledged(10)
    assert await turn.acknowledged(10) == 2
    assert (turn.recorded, turn.given_up, tracker.given_up) == (3, 1, 1)
    stored = await in_database(lambda: set(InteractionFlow.objects.values_list("checkpoint", "user_id")))
    assert stored == {(name, user) for name in ("auth_check", "flow_end") for user in (BOB, "charlie@example.com")}
    await tracker.flusher.stop()


async def test_a_process_that_was_declared_dead_writes_nothing_more_of_its_turns(tracker: FlowTracker) -> None:
    """The sweep has ended them: no turn may be seen to end twice. What it begins now is another matter."""
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    before = tracker.process_id
    left = asyncio.Event()
    turn.cancel = left.set
    await get_redis().set(keys.fence(before), 1)
    turn.record("block_check", root)
    assert await turn.acknowledged(5) == 1
    assert left.is_set()
    assert tracker.process_id != before
    assert (turn.end("completed"), turn.given_up, tracker.given_up) == (None, 1, 1)
    fresh, _ = begin(tracker)
    assert await fresh.acknowledged(5) == 1
    assert await names() == ["auth_check", "auth_check"]


async def test_it_is_not_fooled_about_its_death_while_redis_is_away(settings: object) -> None:
    settings.REDIS_ENABLED = False
    tracker = FlowTracker()
    turn, root = begin(tracker)
    await turn.acknowledged(10)
    await in_database(heartbeat.beat, tracker.process_id, 0)
    await in_database(heartbeat.end, tracker.process_id)
    turn.record("block_check", root)
    assert await turn.acknowledged(10) == 1
    assert turn.given_up == 1
    fresh, _ = begin(tracker)
    assert await fresh.acknowledged(10) == 1
    assert await in_database(InteractionFlow.objects.count) == 2
    await tracker.flusher.stop()


async def test_a_redis_that_hangs_keeps_nothing_waiting(valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked again and again whether it is back, and does not even say no."""
    monkeypatch.setattr(flusher_module, "APPEND_TIMEOUT_S", 30.0)
    monkeypatch.setattr(flusher_module, "PROBE_EVERY_S", 0.01)
    tracker = FlowTracker()
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    valkey.send(signal.SIGSTOP)
    tracker.flusher.redis_away = True  # it was noticed
    for count in range(2, 12):
        turn.record("step", root)
        # each within a time that one question to Redis alone would exceed by far
        assert await turn.acknowledged(10) == count
    valkey.send(signal.SIGCONT)
    await came_back(tracker)
    await tracker.flusher.stop()


async def test_it_ends_although_its_cancellation_was_swallowed(
    tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As redis-py may do on Python 3.11; a loop that ends cancels once, and waits for ever."""
    turn, root = begin(tracker)
    await turn.acknowledged(5)
    flusher = tracker.flusher
    began = asyncio.Event()

    async def swallow(batch: object) -> bytes:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return flusher._origin

    monkeypatch.setattr(flusher, "_append", swallow)
    turn.record("step", root)
    await began.wait()
    flusher._task.cancel()
    await asyncio.wait({flusher._task}, timeout=20)
    assert flusher._task.done()


async def test_it_waits_in_memory_while_both_are_away(valkey: OwnValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = FlowTracker()
    valkey.kill()

    def away(documents: object) -> int:
        raise OperationalError("away")

    with monkeypatch.context() as patch:
        patch.setattr(flusher_module, "store", away)
        turn, root = begin(tracker)
        turn.record("block_check", root)
        assert await turn.acknowledged(1) == 0
        assert tracker.flusher.postgres_away is True
    valkey.restart()
    assert await turn.acknowledged(15) == 2
    assert tracker.given_up == 0
    await tracker.flusher.stop()


async def test_it_goes_straight_to_postgresql_without_redis(settings: object) -> None:
    settings.REDIS_ENABLED = False
    tracker = FlowTracker()
    turn, _ = begin(tracker)
    turn.end("completed")
    assert await turn.acknowledged(10) == 2
    assert await in_database(lambda: Turn.objects.get().outcome) == "completed"
    await tracker.flusher.stop()


async def test_it_keeps_the_hand_off_log_for_the_persister(tracker: FlowTracker) -> None:
    turn, _ = begin(tracker)
    turn.end("completed")
    await turn.acknowledged(5)
    shard = keys.LOG_SHARDS[log.shard_of(turn.turn_id)]
    client = sync_client()
    assert [json.loads(fields[b"d"]) for _, fields in client.xrange(shard)] == [c.as_dict() for c in turn.checkpoints]
    client.close()


async def test_it_asks_postgresql_nothing_while_redis_is_there(
    tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(flusher_module, "in_database", lambda *work: asked.append(work))
    turn, _ = begin(tracker)
    turn.end("completed")
    assert await turn.acknowledged(5) == 2
    assert asked == []


@pytest.mark.parametrize(
    "text",
    ["", "x", "e", "e.", ".1-1", "e.1", "e.1-", "e.-1", "e.1-1-1", "é.1-1", "e.1-x", "e.١-1", "e" * 41 + ".1-1",
     "e.99999999999999999999-1", "e.1-1\n", " e.1-1", "e.+1-1"],
)  # fmt: skip
def test_it_refuses_a_malformed_cursor(text: str) -> None:
    with pytest.raises(ValueError, match="not a cursor"):
        log.split_cursor(text)


def test_it_reads_its_own_cursor() -> None:
    assert log.split_cursor(log.cursor("abc123", "1763791-12")) == ("abc123", "1763791-12")
