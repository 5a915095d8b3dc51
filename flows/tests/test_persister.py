"""The persister stores each checkpoint exactly once, whatever happens between its steps."""

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection

from flows import keys, persister
from flows.models import InteractionFlow, Turn
from flows.persister import Persister, replay_dead_letters
from flows.pruning import Pruner
from flows.redis import sync_client
from flows.status import persister_status
from flows.store import store
from tests.running import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("empty_log")]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persister, "BLOCK_MS", 10)


TURN = "0199aaaa-0000-7000-8000-000000000001"
OTHER = "0199bbbb-0000-7000-8000-000000000001"


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    made = sync_client()
    yield made
    made.close()


def document(number: int, *, parent: int | None = None, turn: str = TURN, **fields: object) -> bytes:
    flow_id = f"{turn[:-4]}{number:04d}"
    return json.dumps(
        {
            "flow_id": flow_id,
            "user_id": "bob@example.com",
            "session_id": "s",
            "turn_id": turn,
            "checkpoint": "step",
            "parent_id": f"{turn[:-4]}{parent:04d}" if parent is not None else None,
            "metadata": {},
            "created_at": f"2026-11-22T06:00:00.{number:06d}Z",
            **fields,
        }
    ).encode()


def append(client: redis.Redis, *documents: bytes, shard: int = 0) -> None:
    for one in documents:
        client.xadd(keys.log_shard(shard), {"d": one})


def worker() -> Persister:
    made = Persister()
    made.step()  # takes the leases and makes the groups
    return made


def steps(made: Persister, count: int = 3) -> None:
    for _ in range(count):
        made.step()


def time_passes(client: redis.Redis) -> None:
    """All leases run out, and nobody has said that he is alive."""
    client.delete(*map(keys.shard_lease, range(keys.SHARDS)), keys.PERSISTERS)


def left(client: redis.Redis) -> int:
    return sum(client.xlen(name) for name in keys.LOG_SHARDS)


def test_it_stores_acknowledges_and_deletes(client: redis.Redis) -> None:
    append(client, document(1), document(2, parent=1), document(3, parent=2))
    steps(worker())
    assert InteractionFlow.objects.count() == 3
    assert left(client) == 0
    assert client.xpending(keys.log_shard(0), keys.GROUP)["pending"] == 0


def test_it_stores_a_repeated_delivery_once(client: redis.Redis) -> None:
    append(client, document(1), document(1), document(2, parent=1))
    made = worker()
    steps(made)
    append(client, document(2, parent=1))
    steps(made)
    assert InteractionFlow.objects.count() == 2
    assert Turn.objects.get().checkpoints == 2
    assert made.counts.repeated == 2


def test_it_takes_over_what_was_read_and_not_stored(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    first = worker()
    append(client, document(1), document(2, parent=1))
    with monkeypatch.context() as patch:
        patch.setattr(persister, "store", _raise(OperationalError("killed before the insert")))
        with pytest.raises(OperationalError):
            steps(first)
    time_passes(client)
    steps(worker())
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0


def test_it_reads_again_what_it_could_not_store(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    made = worker()
    append(client, document(1), document(2, parent=1))
    with monkeypatch.context() as patch:
        patch.setattr(persister, "store", _raise(OperationalError("PostgreSQL is away")))
        with pytest.raises(OperationalError):
            steps(made)
    steps(made)
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0


def test_it_finds_what_redis_delivered_and_it_never_got(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer was lost with the connection: for Redis the entries are delivered."""
    monkeypatch.setattr(persister, "LOOK_BACK_EVERY_S", 0.0)
    made = worker()
    append(client, document(1), document(2, parent=1))
    client.xreadgroup(keys.GROUP, keys.CONSUMER, {keys.log_shard(0): ">"})
    steps(made)
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0


def test_it_stores_nothing_twice_after_a_commit_without_acknowledgement(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = worker()
    append(client, document(1), document(2, parent=1), document(3, parent=1, checkpoint="flow_end"))
    with monkeypatch.context() as patch:
        patch.setattr(Persister, "_acknowledge", _raise(redis.ConnectionError("killed after the commit")))
        with pytest.raises(redis.ConnectionError):
            steps(first)
    assert InteractionFlow.objects.count() == 3
    time_passes(client)
    second = worker()
    steps(second)
    assert InteractionFlow.objects.count() == 3
    assert Turn.objects.get().checkpoints == 3
    assert left(client) == 0


def _raise(problem: Exception) -> Callable[..., None]:
    def raising(*_: object) -> None:
        raise problem

    return raising


def test_it_leaves_a_shard_to_its_holder(client: redis.Redis) -> None:
    first, second = worker(), worker()
    assert len(first.shards) == keys.SHARDS
    assert second.shards == {}
    append(client, document(1))
    second.step()
    assert InteractionFlow.objects.count() == 0
    steps(first)
    assert InteractionFlow.objects.count() == 1


def test_it_gives_a_shard_up_when_it_overslept(client: redis.Redis) -> None:
    first = worker()
    time_passes(client)
    second = worker()
    first._renewed = 0.0
    first._hold_shards()
    assert first.shards == {}
    assert len(second.shards) == keys.SHARDS


def looks_again(*workers: Persister) -> None:
    """Each looks after its leases, as it does every few seconds."""
    for made in workers:
        made._renewed = 0.0
        made._hold_shards()


def test_those_that_are_alive_share_the_shards_evenly(client: redis.Redis) -> None:
    first, second, third = worker(), worker(), worker()
    looks_again(first, second, third)
    assert sorted(len(made.shards) for made in (first, second, third)) == [2, 3, 3]
    assert set().union(first.shards, second.shards, third.shards) == set(range(keys.SHARDS))
    second.stop()
    second.run()
    looks_again(first, third)
    assert [len(first.shards), len(third.shards)] == [4, 4]
    append(client, *(document(number) for number in range(8)))
    for shard in range(1, keys.SHARDS):
        append(client, document(1, turn=f"0199{shard:04d}-0000-7000-8000-000000000001"), shard=shard)
    steps(first)
    steps(third)
    assert InteractionFlow.objects.count() == 15
    assert left(client) == 0


def test_what_it_left_pending_is_read_first_by_whoever_gets_the_shard(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child waits for its parent, and then its shard goes to another one."""
    monkeypatch.setattr(persister, "WITHHELD_EVERY_S", 0.0)
    first = worker()
    append(client, document(2, parent=1), shard=7)
    steps(first)
    second = worker()
    looks_again(first, second)
    assert (7 in first.shards, 7 in second.shards) == (False, True)
    append(client, document(1), shard=7)
    steps(second, 4)
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0


def test_one_that_runs_alongside_works_and_ends_with_it(client: redis.Redis) -> None:
    first, second = Persister(), Persister()
    first.alongside(second)
    running = threading.Thread(target=first.run)
    running.start()
    try:
        eventually(lambda: len(first.shards) == len(second.shards) == keys.SHARDS // 2, "both have their share")
        for shard in range(keys.SHARDS):
            append(client, document(1, turn=f"0199{shard:04d}-0000-7000-8000-000000000001"), shard=shard)
        eventually(lambda: left(client) == 0, "all of it is stored")
    finally:
        first.stop()
        running.join(30)
    assert not running.is_alive()
    assert InteractionFlow.objects.count() == first.counts.stored + second.counts.stored == keys.SHARDS
    assert second.counts.stored == keys.SHARDS // 2
    assert not client.exists(*map(keys.shard_lease, range(keys.SHARDS)), keys.PERSISTERS)


def test_it_hands_its_shards_over_when_it_stops(client: redis.Redis) -> None:
    first = worker()
    first.stop()
    first.run()
    assert len(worker().shards) == keys.SHARDS


def test_it_makes_lost_groups_again_and_skips_nothing(client: redis.Redis) -> None:
    made = worker()
    client.flushall()
    append(client, document(1), document(2, parent=1))
    steps(made)
    assert InteractionFlow.objects.count() == 2


def test_the_beginning_of_a_turn_waits_for_more_and_its_end_does_not(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = worker()
    monkeypatch.setattr(persister, "GATHER_S", 4.0)
    append(client, document(1))
    coming = threading.Timer(0.3, append, [client, document(2, parent=1), document(3, parent=1, checkpoint="flow_end")])
    coming.start()
    assert made.step() >= 2, "both came in one portion"
    steps(made, 1)
    assert InteractionFlow.objects.count() == 3
    assert left(client) == 0


class Late(Persister):
    """Another persister, which reads the same shard for a moment, stores the parent after PostgreSQL refused the
    child here, and before this one has judged it."""

    def _judge(self, entry: Any, problem: Exception) -> Any:
        store([document(1)])
        return super()._judge(entry, problem)


def test_a_parent_that_comes_a_moment_too_late_makes_no_dead_letter(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persister, "WITHHELD_EVERY_S", 0.0)
    append(client, document(2, parent=1))
    steps(Late())
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0
    assert client.xlen(keys.DEAD_LETTERS) == 0


def test_it_waits_for_a_parent_and_stores_the_others(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persister, "WITHHELD_EVERY_S", 0.0)
    other = "0199bbbb-0000-7000-8000-000000000001"
    append(client, document(2, parent=1), document(1, turn=other), document(3, parent=2))
    made = worker()
    steps(made)
    assert [row.turn_id for row in InteractionFlow.objects.all()] == [uuid.UUID(other)]
    assert left(client) == 2
    append(client, document(1))
    steps(made, 4)
    assert InteractionFlow.objects.count() == 4
    assert left(client) == 0
    assert client.xlen(keys.DEAD_LETTERS) == 0


def test_it_sets_an_orphan_aside_after_minutes(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persister, "WITHHELD_EVERY_S", 0.0)
    monkeypatch.setattr(persister, "PARENT_PATIENCE_S", 0.0)
    append(client, document(2, parent=1))
    made = worker()
    steps(made, 4)
    assert client.xlen(keys.DEAD_LETTERS) == 1
    assert left(client) == 0
    still = replay_dead_letters(client)
    assert (still.stored, [each["document"] for each in still.refused]) == (0, [document(2, parent=1).decode()])
    store([document(1)])
    now = replay_dead_letters(client)
    assert (now.stored, now.refused) == (1, [])
    assert client.xlen(keys.DEAD_LETTERS) == 0
    assert InteractionFlow.objects.count() == 2


def test_what_comes_late_of_a_pruned_turn_is_neither_stored_nor_set_aside(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persister, "WITHHELD_EVERY_S", 0.0)
    monkeypatch.setattr(persister, "PARENT_PATIENCE_S", 0.0)
    store([document(1), document(2, parent=1, checkpoint="flow_end", metadata={"outcome": "completed"})])
    client.xadd(keys.DEAD_LETTERS, {"d": document(3, parent=1), "shard": 0, "entry": "1-1", "reason": "x"})
    list(Pruner(datetime(2026, 11, 23, tzinfo=UTC), "command").batches())
    append(client, document(2, parent=1), document(4, parent=2), document(1, turn=OTHER))
    made = worker()
    steps(made, 4)
    assert (left(client), made.counts.gone, made.counts.dead) == (0, 2, 0)
    replayed = replay_dead_letters(client)
    assert (replayed.stored, replayed.gone, replayed.refused) == (0, 1, [])
    assert client.xlen(keys.DEAD_LETTERS) == 0
    assert [str(one.turn_id) for one in InteractionFlow.objects.all()] == [OTHER], "a turn that waited long is stored"


@pytest.mark.parametrize(
    "poison",
    [
        b"not json",
        b"",
        b"1",
        b"[]",
        b"{}",
        b"\xff\xfe",
        document(7, metadata={"x": "nul"}).replace(b"nul", b"\\u0000"),
        document(7).replace(b'"step"', b'"\\ud800"'),
        document(7, created_at="not a time"),
        document(7, flow_id="x"),
        document(7, user_id=None),
        document(7, user_id="x" * 256),
        document(7, checkpoint="x" * 51),
        b'{"flow_id":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
    ids=range(14),
)
def test_it_sets_poison_aside_and_stores_the_rest(client: redis.Redis, poison: bytes) -> None:
    append(client, document(1), poison, document(2, parent=1))
    steps(worker())
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0
    assert client.xlen(keys.DEAD_LETTERS) == (0 if poison == b"" else 1)


def test_it_keeps_the_summary_equal_to_the_rows(client: redis.Redis) -> None:
    answered = {"status": "ok", "input_tokens": 10, "output_tokens": 5, "cost_usd": 0.25, "ttft_ms": 120.5}
    append(
        client,
        document(1, checkpoint="auth_check", metadata={"question": "why?", "process": str(uuid.uuid4())}),
        document(2, parent=1, checkpoint="llm_thinking", metadata={"model": "m1"}),
        document(3, parent=2, checkpoint="tool_call", metadata={"tool": "clock"}),
        document(4, parent=2, checkpoint="llm_complete", metadata=answered),
        document(5, parent=1, checkpoint="llm_thinking", metadata={"model": "m2"}),
        document(6, parent=5, checkpoint="llm_complete", metadata=answered),
        document(7, parent=5, checkpoint="error", metadata={"code": "llm_failed"}),
        document(8, parent=1, checkpoint="flow_end", metadata={"outcome": "failed", "duration_ms": 12.5}),
    )
    steps(worker())
    turn = Turn.objects.get()
    assert (turn.question, turn.model, turn.outcome, turn.duration_ms) == ("why?", "m2", "failed", 12.5)
    assert (turn.checkpoints, turn.tool_calls, turn.input_tokens, turn.output_tokens) == (8, 1, 20, 10)
    assert (float(turn.cost_usd), turn.ttft_ms, turn.error) == (0.5, 120.5, "llm_failed")
    assert turn.ended_at.microsecond == 8


def summary() -> dict[str, object]:
    """The one turn's columns; its tags are a set."""
    turn = Turn.objects.values().get()
    return {**turn, "tags": set(turn["tags"])}


def test_it_gives_the_same_summary_however_the_rows_are_split() -> None:
    rows = [
        document(1, checkpoint="auth_check", metadata={"question": "q"}),
        document(2, parent=1, checkpoint="usage_check", metadata={"status": "failed", "reason": "usage_limit"}),
        document(3, parent=1, checkpoint="flow_end", metadata={"outcome": "refused", "duration_ms": 1}),
    ]
    store(rows)
    whole = summary()
    InteractionFlow.objects.all().delete()
    Turn.objects.all().delete()
    for row in rows:
        store([row])
        store(rows[:1])
    assert summary() == whole
    assert whole["error"] == "usage_limit"


def test_it_ends_a_turn_once(client: redis.Redis) -> None:
    end = {"checkpoint": "flow_end", "parent": 1}
    append(client, document(1), document(2, **end, metadata={"outcome": "completed"}))
    append(client, document(3, **end, metadata={"outcome": "abandoned"}))
    steps(worker())
    assert InteractionFlow.objects.filter(checkpoint="flow_end").count() == 1
    assert Turn.objects.get().outcome == "completed"


def test_two_writers_of_the_same_rows_store_them_once() -> None:
    batches = [[document(n, turn=f"0199cccc-0000-7000-8000-{t:08d}0000") for n in range(20)] for t in range(20)]
    together = threading.Barrier(2)

    def write(order: list[list[bytes]]) -> None:
        together.wait()
        for batch in order:
            store(batch)
        connection.close()

    threads = [threading.Thread(target=write, args=(order,)) for order in (batches, batches[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert InteractionFlow.objects.count() == 400
    assert set(Turn.objects.values_list("checkpoints", flat=True)) == {20}


def test_a_command_replays_what_was_set_aside(client: redis.Redis, capsys: pytest.CaptureFixture[str]) -> None:
    client.xadd(keys.DEAD_LETTERS, {"d": document(1), "reason": "x"})
    client.xadd(keys.DEAD_LETTERS, {"d": b"not json", "reason": "x"})
    call_command("replay_dead_letters")
    assert "1 stored or known already, 1 still refused" in capsys.readouterr().out
    assert client.xlen(keys.DEAD_LETTERS) == 1


def test_a_command_moves_what_is_refused_for_good_into_a_file(client: redis.Redis, tmp_path: Path) -> None:
    file = tmp_path / "letters.jsonl"
    for _ in range(3):
        client.xadd(keys.DEAD_LETTERS, {"d": b"not json \xff", "shard": 3, "entry": b"1-1", "reason": "x"})
    call_command("replay_dead_letters", "--limit", "2", "--move-to", str(file))
    moved = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(each["shard"], each["entry"], each["document"]) for each in moved] == [(3, "1-1", "not json \\xff")] * 2
    assert file.stat().st_mode & 0o777 == 0o600
    assert client.xlen(keys.DEAD_LETTERS) == 1
    with pytest.raises(CommandError, match="--move-to"):
        call_command("replay_dead_letters", "--move-to", str(file))
    assert client.xlen(keys.DEAD_LETTERS) == 1


def test_it_sets_a_strangers_entry_aside(client: redis.Redis) -> None:
    client.xadd(keys.log_shard(0), {"x": "1"})
    append(client, document(1))
    steps(worker())
    assert InteractionFlow.objects.count() == 1
    [(_, letter)] = client.xrange(keys.DEAD_LETTERS)
    assert json.loads(letter[b"d"]) == {"x": "1"}
    assert left(client) == 0


# --- a flood of what cannot be stored -----------------------------------------------------------------


@pytest.fixture
def flooded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persister, "FLOOD_LETTERS", 5)
    monkeypatch.setattr(persister, "REFUSED_AGAIN_S", 0.0)


@pytest.mark.usefixtures("flooded")
def test_a_flood_of_poison_stays_in_the_log_and_alarms_while_the_rest_is_stored(client: redis.Redis) -> None:
    append(client, *[b"poison"] * 20, document(1), document(2, parent=1))
    made = worker()
    steps(made, 6)
    assert InteractionFlow.objects.count() == 2
    assert client.xlen(keys.DEAD_LETTERS) == 5
    assert left(client) == 15
    made._tell()
    assert persister_status()["held_back"] == 15
    # as good as new for whoever takes over
    made.stop()
    made.run()
    assert left(client) == 15


@pytest.mark.usefixtures("flooded")
def test_a_flood_ends_by_itself_when_its_cause_is_mended(client: redis.Redis) -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE interaction_flows ADD CONSTRAINT broken CHECK (checkpoint <> 'step')")
    try:
        append(client, *(document(n) for n in range(20)))
        made = worker()
        steps(made, 4)
        assert (InteractionFlow.objects.count(), left(client)) == (0, 15)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE interaction_flows DROP CONSTRAINT broken")
    steps(made, 6)
    assert (InteractionFlow.objects.count(), left(client)) == (15, 0)
    assert made._held_back == set()
    assert replay_dead_letters(client).stored == 5
    assert Turn.objects.get().checkpoints == 20


@pytest.mark.usefixtures("flooded")
def test_letters_that_are_taken_away_make_room_for_more(client: redis.Redis, tmp_path: Path) -> None:
    append(client, *[b"poison"] * 8)
    made = worker()
    steps(made, 4)
    assert (client.xlen(keys.DEAD_LETTERS), left(client)) == (5, 3)
    call_command("replay_dead_letters", "--move-to", str(tmp_path / "letters"))
    steps(made, 4)
    assert (client.xlen(keys.DEAD_LETTERS), left(client)) == (3, 0)


def test_it_reads_past_what_has_to_wait(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pending orphans, more than a batch of them, stand before pending checkpoints that can be stored."""
    monkeypatch.setattr(persister, "BATCH_ENTRIES", 16)
    orphan = "0199dddd-0000-7000-8000-000000000001"
    append(client, *(document(n, turn=orphan, parent=999) for n in range(40)), *(document(n) for n in range(1, 6)))
    first = worker()
    for number in range(keys.SHARDS):
        client.xreadgroup(keys.GROUP, keys.CONSUMER, {keys.log_shard(number): ">"})  # delivered, and lost on the way
    first.stop()
    first.run()
    steps(worker(), 40)
    assert InteractionFlow.objects.count() == 5
    assert left(client) == 40


# --- a full Redis ---------------------------------------------------------------------------------------


@pytest.fixture
def full(client: redis.Redis) -> Iterator[Callable[[], None]]:
    """From when it is called, Redis takes nothing more."""
    yield lambda: client.config_set("maxmemory", 1)
    client.config_set("maxmemory", 0)


def test_it_makes_room_in_a_full_redis(client: redis.Redis, full: Callable[[], None]) -> None:
    """It was not there when it filled up: no lease, no group, and poison in between."""
    append(client, document(1), b"poison", document(2, parent=1))
    full()
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("x", 1)
    steps(worker())
    assert InteractionFlow.objects.count() == 2
    assert left(client) == 0
    assert client.xlen(keys.DEAD_LETTERS) == 1
    assert persister_status()["silent_s"] < 60
