"""The pre-roll: the union of stream and PostgreSQL, whatever of it is where."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError

from flows import keys, log, preroll
from flows.models import InteractionFlow
from flows.persister import Persister
from flows.redis import get_redis, sync_client
from flows.store import store
from flows.tests.rows import StoredTurn
from flows.tracker import FlowTracker, TurnTrack
from omni2.database import in_database

pytestmark = pytest.mark.django_db(transaction=True)

BOB = "bob@example.com"


def ids(found: preroll.Preroll) -> list[str]:
    return [json.loads(document)["flow_id"] for document in found.documents]


async def turn(tracker: FlowTracker, *, notes: int = 2, ended: bool = True, user_id: str = BOB) -> TurnTrack:
    """A turn of `notes` + 1 (+ 1) checkpoints, acknowledged."""
    made = tracker.begin(user_id=user_id, session_id="s")
    root = made.record("auth_check", status="passed")
    for n in range(notes):
        made.record("note", root, n=n, text='ä "quoted" \\', number=1e3, nothing=None)
    if ended:
        made.end("completed")
    await made.acknowledged(20)
    assert made.durable == made.recorded
    return made


def flow_ids(*turns: TurnTrack) -> list[str]:
    return [checkpoint.flow_id for each in turns for checkpoint in each.checkpoints]


async def persist() -> None:
    def work() -> None:
        persister = Persister()
        with sync_client() as client:
            while any(client.xlen(shard) for shard in keys.LOG_SHARDS):
                persister.step()
        persister.stop()
        persister.run()  # gives its shards back

    await in_database(work)


async def test_it_is_empty_for_a_user_without_checkpoints(tracker: FlowTracker) -> None:
    found = await preroll.preroll(BOB)
    assert found.documents == []
    assert found.whole is True
    assert found.position is not None
    position = await log.position(BOB)
    assert log.reaches_back(position, found.position[1])


async def test_it_has_what_is_only_in_the_stream(tracker: FlowTracker) -> None:
    turns = [await turn(tracker), await turn(tracker, ended=False)]
    found = await preroll.preroll(BOB)
    assert ids(found) == flow_ids(*turns)
    assert found.documents == [checkpoint.document for each in turns for checkpoint in each.checkpoints]
    assert found.position == (
        (await log.position(BOB)).epoch,
        (await log.position(BOB)).last_id,
    )


async def test_it_has_what_is_only_in_postgresql_in_the_same_shape(tracker: FlowTracker) -> None:
    turns = [await turn(tracker), await turn(tracker, ended=False)]
    await persist()
    await get_redis().flushall()
    found = await preroll.preroll(BOB)
    assert [json.loads(document) for document in found.documents] == [
        checkpoint.as_dict() for each in turns for checkpoint in each.checkpoints
    ]
    for document in found.documents:
        assert preroll.flow_id_of(document).decode() == json.loads(document)["flow_id"]
        assert preroll.created_at_of(document) == json.loads(document)["created_at"]


async def test_it_joins_a_turn_that_is_partly_in_each(tracker: FlowTracker) -> None:
    """The stream was trimmed in the middle of a turn, and the persister is behind."""
    first = await turn(tracker, notes=5, ended=False)
    await persist()
    await get_redis().xtrim(keys.user_stream(BOB), maxlen=2, approximate=False)
    first.record("note", first.checkpoints[0])
    await first.acknowledged(20)
    found = await preroll.preroll(BOB)
    assert ids(found) == flow_ids(first)


async def test_it_has_each_checkpoint_once(tracker: FlowTracker) -> None:
    made = await turn(tracker)
    await get_redis().execute_command(*log.pack_append(made.checkpoints, lambda user_id: False))
    await persist()
    assert await get_redis().xlen(keys.user_stream(BOB)) == 8
    assert ids(await preroll.preroll(BOB)) == flow_ids(made)


async def test_it_has_the_newest_turns_up_to_a_thousand_checkpoints(tracker: FlowTracker) -> None:
    """Whole turns only, the newest first; each of them has twelve checkpoints."""
    turns = [await turn(tracker, notes=10) for _ in range(90)]
    expected = flow_ids(*turns[-83:])
    assert ids(await preroll.preroll(BOB)) == expected
    await persist()
    assert ids(await preroll.preroll(BOB)) == expected
    await get_redis().xtrim(keys.user_stream(BOB), maxlen=500, approximate=False)
    assert ids(await preroll.preroll(BOB)) == expected
    await get_redis().flushall()
    assert ids(await preroll.preroll(BOB)) == expected


@pytest.mark.parametrize("persisted", [True, False])
async def test_it_has_running_turns_whole_however_old_and_long(persisted: bool, tracker: FlowTracker) -> None:
    running = await turn(tracker, notes=1200, ended=False)
    late = await turn(tracker, notes=10, ended=False)
    for _ in range(30):
        await turn(tracker, notes=40)
    if persisted:
        await persist()
        await get_redis().xtrim(keys.user_stream(BOB), maxlen=1100, approximate=False)
    assert ids(await preroll.preroll(BOB)) == flow_ids(running, late)


async def test_it_reads_as_far_back_as_the_persister_is_behind(tracker: FlowTracker) -> None:
    """More in the stream than a pre-roll has, and nothing of it in PostgreSQL."""
    running = await turn(tracker, notes=3, ended=False)
    newer = [await turn(tracker, notes=97) for _ in range(30)]
    found = await preroll.preroll(BOB)
    assert ids(found) == flow_ids(running, *newer[-10:])


async def test_it_shows_nothing_from_before(tracker: FlowTracker) -> None:
    before = await turn(tracker)
    across = await turn(tracker, notes=2, ended=False)
    since = datetime.fromisoformat(across.checkpoints[1].created_at)
    after = await turn(tracker)
    expected = flow_ids(across)[1:] + flow_ids(after)
    assert ids(await preroll.preroll(BOB, since=since)) == expected
    await persist()
    assert ids(await preroll.preroll(BOB, since=since)) == expected
    await get_redis().flushall()
    assert ids(await preroll.preroll(BOB, since=since)) == expected
    assert ids(await preroll.preroll(BOB)) == flow_ids(before, across, after)
    assert ids(await preroll.preroll(BOB, since=datetime.now(UTC) + timedelta(hours=1))) == []


async def test_it_has_only_this_user(tracker: FlowTracker) -> None:
    await turn(tracker, user_id="ada@example.com")
    made = await turn(tracker)
    assert ids(await preroll.preroll(BOB)) == flow_ids(made)
    await persist()
    await get_redis().flushall()
    assert ids(await preroll.preroll(BOB)) == flow_ids(made)


async def test_it_goes_without_postgresql(tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stream has, and it says that this is not all."""
    made = await turn(tracker)

    def away(*_: Any) -> None:
        raise OperationalError("the server closed the connection")

    monkeypatch.setattr(preroll, "_summaries", away)
    found = await preroll.preroll(BOB)
    assert ids(found) == flow_ids(made)
    assert found.whole is False


async def test_it_goes_without_redis(tracker: FlowTracker, settings: Any) -> None:
    made = await turn(tracker)
    await persist()
    settings.REDIS_ENABLED = False
    found = await preroll.stored_preroll(BOB)
    assert ids(found) == flow_ids(made)
    assert (found.whole, found.position) == (False, None)
    with pytest.raises(ConnectionError):
        await preroll.preroll(BOB)


@pytest.mark.parametrize("moment", ["stream", "postgresql", "end"])
async def test_it_ends_where_live_goes_on(moment: str, tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints appended and persisted while it is read: what is in it is not after its position, and
    nothing is in neither."""
    running = await turn(tracker, ended=False)
    added: list[str] = []

    async def more() -> None:
        for _ in range(3):
            running.record("note", running.checkpoints[0])
        added.extend(flow_ids(running, await turn(tracker)))
        await persist()

    def before(name: str, module: Any) -> None:
        real: Callable[..., Any] = getattr(module, name)

        async def with_more(*args: Any, **kwargs: Any) -> Any:
            if not added:
                await more()
            return await real(*args, **kwargs)

        monkeypatch.setattr(module, name, with_more)

    before({"stream": "_recent", "postgresql": "_add_stored", "end": "_rest"}[moment], preroll)
    found = await preroll.preroll(BOB)
    monkeypatch.undo()
    assert found.position is not None
    rest = await log.read_after(BOB, found.position[1])
    seen = ids(found) + [json.loads(entry.document)["flow_id"] for entry in rest]
    assert sorted(seen) == sorted(added)


async def test_it_begins_again_when_the_log_restarts_meanwhile(
    tracker: FlowTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await turn(tracker)
    await persist()
    real = preroll._add_stored
    flushed = False

    async def flush_first(*args: Any) -> bool:
        nonlocal flushed
        if not flushed:
            flushed = True
            await get_redis().flushall()
        return await real(*args)

    monkeypatch.setattr(preroll, "_add_stored", flush_first)
    found = await preroll.preroll(BOB)
    assert flushed
    assert found.position is not None
    assert found.position[0] == (await log.position(BOB)).epoch
    assert ids(found) == flow_ids(made)


def test_it_reads_rows_that_an_insert_from_outside_left(db: None) -> None:
    """Metadata that is no object, or none at all; a row without a turn is in no turn."""
    stored = StoredTurn(BOB).end()
    for metadata in (None, [1, 2], "word", 10**400):
        InteractionFlow.objects.create(
            user_id=BOB, session_id="s", checkpoint="note", metadata=metadata, turn_id=stored.turn_id
        )
    InteractionFlow.objects.create(user_id=BOB, session_id="s", checkpoint="auth_check", metadata={})
    turns: dict[str, preroll.Found] = {}
    preroll._add_rows(BOB, turns, None)
    documents = [json.loads(document) for document in preroll._documents(turns.values())]
    assert len(documents) == 6
    found = [document["metadata"] for document in documents if document["checkpoint"] == "note"]
    assert sorted(map(str, found)) == sorted(map(str, [{}, {"value": [1, 2]}, {"value": "word"}, {"value": 10**400}]))


def test_it_costs_three_queries(db: None, django_assert_num_queries: Any) -> None:
    for _ in range(5):
        StoredTurn(BOB).with_tool("clock").end()
    with django_assert_num_queries(3):  # running turns, newest turns, rows
        preroll._add_rows(BOB, {}, None)


def test_storing_is_what_it_reads(db: None) -> None:
    """A document goes into PostgreSQL and comes out equal."""
    document = {
        "flow_id": "01999999-0000-7000-8000-000000000001",
        "user_id": BOB,
        "session_id": 'a "session"',
        "turn_id": "01999999-0000-7000-8000-000000000001",
        "checkpoint": "auth_check",
        "parent_id": None,
        "metadata": {"a": [1, 2.5, None, True, {"ä": "\\n"}], "n": 0.1},
        "created_at": "2026-11-22T06:00:00.000000Z",
    }
    store([json.dumps(document).encode()])
    turns: dict[str, preroll.Found] = {}
    preroll._add_rows(BOB, turns, None)
    assert [json.loads(each) for each in preroll._documents(turns.values())] == [document]
