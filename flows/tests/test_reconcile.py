"""`manage.py reconcile` finds every kind of loss that is made by hand, names it, and exits with it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command

from flows import keys, log
from flows.models import ServingProcess, Turn
from flows.pruning import Pruner
from flows.redis import sync_client
from flows.store import store
from flows.tests.ledger_cast import Served, as_json, persist, reconcile, sql
from flows.tests.test_persister import _quick
from flows.tracker import FlowTracker, TurnTrack
from omni2.database import in_database

pytestmark = pytest.mark.django_db(transaction=True)

__all__ = ["_quick"]


@pytest.fixture
async def served(tracker: FlowTracker) -> AsyncIterator[Served]:
    made = Served(tracker)
    yield made
    await made.pulse.lane.close()


async def three_turns(served: Served) -> list[TurnTrack]:
    """Stored, counted and told: it adds up."""
    turns = [await served.chat() for _ in range(3)]
    await served.tell()
    await in_database(persist)
    return turns


async def printed(*words: str) -> tuple[int, str]:
    return await in_database(reconcile, *words)


async def name_of(served: Served) -> str:
    return await in_database(lambda: ServingProcess.objects.get(process_id=served.tracker.process_id).name)


async def test_it_prints_the_sums_by_the_hour_and_exits_0(served: Served) -> None:
    await three_turns(served)
    status, said = await printed()
    assert status == 0
    assert "All adds up: 3 turns started in this time: 3 stored, 0 running, 0 given up." in said
    (line,) = [line for line in said.splitlines() if line.startswith("all ")]
    assert line.replace("|", "").split()[1:] == ["3", "3", "0", "0", "0", "12", "12", "0", "0", "0", "0"]


async def test_it_finds_a_lost_checkpoint(served: Served) -> None:
    turns = await three_turns(served)
    leaf = next(row for row in turns[1].checkpoints if row.checkpoint == "llm_complete")
    assert await in_database(sql, "DELETE FROM interaction_flows WHERE flow_id = %s", leaf.flow_id) == 1
    status, said = await printed()
    assert status == 1
    assert "1 checkpoint is missing (12 made, 11 stored, 0 given up)." in said
    assert f"Turns: {turns[1].turn_id}" in said
    assert "The summary of 1 turn counts other checkpoints than it has" in said
    assert await name_of(served) in said
    assert "It does not add up" in said


async def test_it_finds_a_lost_checkpoint_whose_summary_was_adjusted(served: Served) -> None:
    turns = await three_turns(served)
    leaf = next(row for row in turns[1].checkpoints if row.checkpoint == "llm_complete")
    await in_database(sql, "DELETE FROM interaction_flows WHERE flow_id = %s", leaf.flow_id)
    await in_database(sql, "UPDATE turns SET checkpoints = 3 WHERE turn_id = %s", turns[1].turn_id)
    status, said = await printed()
    assert status == 1
    assert "1 turn has other checkpoints than its end says (3 stored, 3 in the summary, 4 said by the end)." in said
    assert turns[1].turn_id in said


async def test_it_finds_a_lost_end(served: Served) -> None:
    turns = await three_turns(served)
    gone = "DELETE FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'flow_end'"
    await in_database(sql, gone, turns[2].turn_id)
    await in_database(sql, "UPDATE turns SET checkpoints = 3 WHERE turn_id = %s", turns[2].turn_id)
    status, said = await printed()
    assert status == 1
    assert (
        f"1 turn has ended, but its flow_end is not stored (3 stored, 3 in the summary). Turns: {turns[2].turn_id}"
        in said
    )


async def test_it_finds_a_lost_turn_and_names_it_by_its_admission(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(sql, "DELETE FROM interaction_flows WHERE turn_id = %s", turns[0].turn_id)
    await in_database(sql, "DELETE FROM turns WHERE turn_id = %s", turns[0].turn_id)
    status, said = await printed()
    assert status == 1
    assert f"1 turn is missing (3 started, 2 stored, 0 running). Turns: {turns[0].turn_id}" in said
    assert "4 checkpoints are missing" in said
    assert "3 turns started in this time: 2 stored, 0 running, 0 given up, 1 missing" in said


async def test_it_finds_a_turn_that_lost_its_summary(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(sql, "DELETE FROM turns WHERE turn_id = %s", turns[0].turn_id)
    status, said = await printed()
    assert status == 1
    assert "1 turn has checkpoints but no summary" in said
    assert turns[0].turn_id in said
    assert "is missing" not in said


async def test_it_finds_a_lost_entry_of_the_log(served: Served) -> None:
    turn = await served.chat()
    await served.tell()

    def lose() -> int:
        client = sync_client()
        shard = keys.log_shard(log.shard_of(turn.turn_id))
        entries = [entry_id for entry_id, fields in client.xrange(shard) if b"llm_complete" in fields[b"d"]]
        return client.xdel(shard, *entries)

    assert await in_database(lose) == 1
    status, said = await printed()
    assert status == 1
    assert "1 checkpoint is missing (4 made, 0 stored, 0 given up)." in said
    await in_database(persist)
    status, said = await printed()
    assert status == 1
    assert (
        "1 turn has other checkpoints than its end says (3 stored, 3 in the summary, 4 said by the end)."
        f" Turns: {turn.turn_id}" in said
    )


async def test_it_finds_that_the_log_was_flushed(served: Served) -> None:
    await served.chat()
    await served.tell()
    await in_database(lambda: sync_client().flushall())
    status, said = await printed()
    assert status == 1
    assert "1 turn is missing" in said
    assert "4 checkpoints are missing" in said


async def test_it_finds_a_wrong_number_in_a_summary(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(sql, "UPDATE turns SET checkpoints = 7 WHERE turn_id = %s", turns[1].turn_id)
    status, said = await printed()
    assert status == 1
    assert f"(4 stored, 7 in the summary, 4 said by the end). Turns: {turns[1].turn_id}" in said


async def test_it_finds_a_checkpoint_nobody_made(served: Served) -> None:
    turns = await three_turns(served)
    strange = turns[0].tracker.begin(user_id="bob@example.com", session_id="s", turn_id=turns[0].turn_id)
    made = strange.record("step", turns[0].checkpoints[0])
    await in_database(store, [made.document])
    await in_database(
        sql, "UPDATE interaction_flows SET created_at = now() - interval '1 hour' WHERE flow_id = %s", made.flow_id
    )
    strange.tracker.running.clear()
    status, said = await printed()
    assert status == 1
    assert "1 checkpoint is stored that its process did not make" in said
    assert "1 turn has other checkpoints than its end says" in said


async def test_it_finds_a_turn_its_process_did_not_count(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(
        sql,
        "UPDATE ledger_entries SET turns = 2, turns_ended = 2, checkpoints = 8, durable = 8",
    )
    status, said = await printed()
    assert status == 1
    assert "1 turn is stored that its process did not begin" in said
    assert "4 checkpoints are stored that their process did not make" in said
    # and when nothing of it is stored either, the usage knows
    await in_database(sql, "DELETE FROM interaction_flows WHERE turn_id = %s", turns[0].turn_id)
    await in_database(sql, "DELETE FROM turns WHERE turn_id = %s", turns[0].turn_id)
    later = "UPDATE serving_processes SET reported_at = reported_at + interval '20 minutes'"
    await in_database(sql, later)
    status, said = await printed()
    assert status == 1
    assert (
        "1 turn was answered and charged, but its process did not count it and nothing of it is stored."
        f" Turns: {turns[0].turn_id}" in said
    )


async def test_it_finds_a_slot_that_was_left_open(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(sql, "UPDATE turn_usage SET ended_at = NULL WHERE turn_id = %s", turns[0].turn_id)
    status, said = await printed()
    assert status == 0, "its process may still be about to charge it"
    await in_database(
        sql, "UPDATE turns SET ended_at = ended_at - interval '10 minutes' WHERE turn_id = %s", turns[0].turn_id
    )
    status, said = await printed()
    assert status == 1
    assert (
        f"1 slot of the usage is still taken, though its turn or its process has ended. Turns: {turns[0].turn_id}"
        in said
    )


async def test_it_finds_a_turn_the_sweep_left_open(served: Served) -> None:
    turn = await served.begin()
    await turn.acknowledged(5)
    await served.tell()
    await in_database(persist)
    status, _ = await printed()
    assert status == 0
    await served.die(seconds_ago=90)
    status, said = await printed()
    assert status == 1
    assert "1 turn is still open, though its process has ended" in said
    assert turn.turn_id in said


async def test_it_finds_two_ends_where_the_index_did_not_forbid_them(served: Served) -> None:
    turns = await three_turns(served)
    try:
        await in_database(sql, "DROP INDEX one_flow_end_per_turn")
        columns = "user_id, session_id, checkpoint, parent_id, metadata, created_at, turn_id"
        copy = f"INSERT INTO interaction_flows (flow_id, {columns}) SELECT gen_random_uuid(), {columns}"
        ends = "FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'flow_end'"
        await in_database(sql, f"{copy} {ends}", turns[0].turn_id)
        status, said = await printed()
        assert status == 1
        assert "1 turn has more than one end" in said
        assert turns[0].turn_id in said
    finally:
        await in_database(sql, "TRUNCATE interaction_flows CASCADE")
        await in_database(
            sql,
            "CREATE UNIQUE INDEX one_flow_end_per_turn ON interaction_flows (turn_id) WHERE checkpoint = 'flow_end'",
        )


async def test_it_names_ten_turns_and_counts_the_others(served: Served) -> None:
    for _ in range(12):
        await served.chat()
    await served.tell()
    await in_database(persist)
    await in_database(sql, "UPDATE turns SET checkpoints = 9")
    status, said = await printed()
    assert status == 1
    (line,) = [line for line in said.splitlines() if "summaries of 12 turns" in line]
    assert line.count("-7") >= 10
    assert line.endswith("and 2 more")


async def test_it_answers_as_json(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(sql, "UPDATE turns SET checkpoints = 7 WHERE turn_id = %s", turns[1].turn_id)
    answer = await in_database(as_json)
    assert answer["adds_up"] is False
    (problem,) = answer["problems"]
    assert (problem["kind"], problem["turn_ids"]) == ("summary_differs", [turns[1].turn_id])
    assert answer["total"]["turns"]["started"] == 3
    assert answer["total"]["checkpoints"] | {"made": 12, "stored": 12, "missing": 0} == answer["total"]["checkpoints"]
    assert answer["hours"][0]["processes"][0]["process"] == problem["process"] == await name_of(served)


async def test_it_waits_for_what_is_on_its_way(served: Served) -> None:
    await served.chat()
    await served.tell()
    status, said = await printed()
    assert (status, "1 running" in said) == (0, True)
    task = asyncio.create_task(in_database(reconcile, "--wait", "20"))
    await asyncio.sleep(0.2)
    await in_database(persist)
    await served.tell()
    status, said = await task
    assert status == 0
    assert "1 stored, 0 running" in said


async def test_it_waits_for_the_word_of_every_living_process(served: Served) -> None:
    await served.chat()
    await in_database(persist)
    await served.tell()
    await served.chat()
    await in_database(persist)
    task = asyncio.create_task(in_database(reconcile, "--json", "--wait", "20"))
    await asyncio.sleep(0.2)
    await served.tell()
    _, said = await task
    assert json.loads(said)["total"]["turns"]["not_reported_yet"] == 0


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--since", "yesterday"), "--since"),
        (("--since", "9999-99-99"), "--since"),
        (("--until", "tomorrow"), "--until"),
        (("--since", "1h", "--until", "2h"), "--since"),
        (("--since", "120d"), "--since"),
        (("--wait", "soon"), "--wait"),
        (("--wait", "-1"), "--wait"),
        (("--wait", "99999"), "--wait"),
    ],
)
def test_it_names_a_bad_argument(words: tuple[str, ...], named: str) -> None:
    with pytest.raises(CommandError) as said:
        call_command("reconcile", *words, stdout=io.StringIO())
    assert str(said.value).startswith(named)
    assert said.value.returncode == 2


def test_it_says_when_redis_cannot_be_asked(settings: object) -> None:
    settings.REDIS_URL = "unix:///nowhere/valkey.sock"
    with pytest.raises(CommandError, match="Redis does not answer") as said:
        call_command("reconcile", "--wait", "0", stdout=io.StringIO())
    assert said.value.returncode == 2


def test_it_takes_a_time_in_iso_8601() -> None:
    since = (datetime.now(UTC) - timedelta(hours=3)).isoformat()
    out = io.StringIO()
    call_command("reconcile", "--since", since, "--wait", "0", stdout=out)
    assert "All adds up: 0 turns started in this time" in out.getvalue()


async def test_it_adds_up_after_a_prune_and_says_what_is_left_out(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(lambda: list(Pruner(datetime.now(UTC), "command").batches()))
    assert await in_database(Turn.objects.count) == 0
    status, said = await printed()
    assert status == 0
    assert "are no longer kept: they are not in this account." in said
    assert turns[0].turn_id not in said
    assert "0 turns started in this time" in said


async def test_it_still_finds_a_defect_after_a_prune_of_earlier_hours(served: Served) -> None:
    turns = await three_turns(served)
    await in_database(lambda: list(Pruner(datetime.now(UTC) - timedelta(hours=3), "command").batches()))
    assert (await printed())[0] == 0
    await in_database(
        sql, "DELETE FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'flow_end'", turns[0].turn_id
    )
    status, said = await printed("--since", "6h")
    assert status == 1
    assert turns[0].turn_id in said
    assert "are no longer kept" in said
