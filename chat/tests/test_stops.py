"""Stopping a turn within its process: at any moment, whatever it is doing."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection, connections, transaction

from chat import stops, tools
from chat.models import Message, TurnStop, TurnUsage, UserBlock
from chat.running import Running, Stop, running
from chat.turn import Story
from chat.usage import admit
from flows.checkpoints import next_moment_us, uuid7
from omni2.database import in_database
from tests.people import credential_of

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]

WHY = Stop("Enough for today.", "olga@example.com", "Olga Ladyzhenskaya", "it ran wild")


@pytest.fixture(autouse=True)
def nothing_must_end() -> Iterator[None]:
    yield
    running.hear({})


async def stopped_in_order(call: Any, user: Any, tree_of: Any) -> Any:
    """The turn ended as stopped, complete, said so to its client, and holds no slot."""
    assert call.last.name == "error"
    assert call.last.data == {"code": "stopped", "message": WHY.message, "turn_id": call.turn_id}
    tree = await tree_of(user, call.turn_id)
    tree.assert_complete("stopped")
    error = tree.facts("error")
    assert error == {"code": "stopped", "message": WHY.message, **stops.facts_of(WHY)}
    assert tree.facts("flow_end")["stopped_by"] == WHY.stopped_by
    assert (await in_database(TurnUsage.objects.get, turn_id=call.turn_id)).ended_at is not None
    return tree


async def test_a_stop_that_comes_before_the_story_counts(
    bob: Any, client_of: Any, tree_of: Any, llm: Any, monkeypatch: Any
) -> None:
    """Read from PostgreSQL after the turn was let in, but before its process knew that it has it."""
    heard: list[str] = []

    def begin(self: Running, story: Any, begin: Any = Running.begin) -> None:
        self.hear({story.turn.turn_id: WHY})
        heard.append(story.turn.turn_id)
        begin(self, story)

    monkeypatch.setattr(Running, "begin", begin)
    call = await client_of(bob).stream("script:hang")
    assert heard == [call.turn_id]
    tree = await stopped_in_order(call, bob, tree_of)
    assert tree.parent_of(tree.one("error")) == "usage_check"
    assert llm.requests == []


async def test_tools_that_run_are_cancelled(bob: Any, client_of: Any, tree_of: Any, llm: Any, monkeypatch: Any) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hangs(arguments: dict[str, Any]) -> str:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return ""

    monkeypatch.setattr(tools, "TOOLS", {**tools.TOOLS, "clock": replace(tools.TOOLS["clock"], call=hangs)})
    call = client_of(bob).call("script:parallel").start()
    await begun.wait()
    running.hear({call.turn_id: WHY})
    await call.over()
    assert cancelled.is_set()
    assert len(llm.requests) == 1
    tree = await stopped_in_order(call, bob, tree_of)
    assert "cancelled" in [each["metadata"]["status"] for each in tree.every("tool_result")]
    # the round that asked for the tools is paid for
    assert (await in_database(TurnUsage.objects.get)).output_tokens > 0


async def test_what_was_said_is_kept(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    call = client_of(bob).call("script:slow").start()
    await call.until(lambda call: call.text.count(" ") > 2)
    running.hear({call.turn_id: WHY})
    await call.over()
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests[0].aborted)
    tree = await stopped_in_order(call, bob, tree_of)
    assert tree.parent_of(tree.one("error")) == "llm_thinking"
    assert await in_database(lambda: Message.objects.get(role="assistant").content) == call.text


async def test_it_may_be_stopped_at_any_moment(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    """After the first thing that is sent, after the second, and so on through a turn with tools."""
    whole = await client_of(bob).stream("script:talk_and_call")
    outcomes = set()
    for moment in range(1, whole.sends + 1):

        def stop(call: Any, _: Any, moment: int = moment) -> None:
            if call.sends == moment:
                running.hear({call.turn_id: WHY})

        call = await client_of(bob).call("script:talk_and_call", on_send=stop).start().over()
        tree = await tree_of(bob, call.turn_id)
        outcome = tree.facts("flow_end")["outcome"]
        tree.assert_complete(outcome)
        assert call.last.name == ("error" if outcome == "stopped" else "done")
        outcomes.add(outcome)
        if outcome == "completed":
            assert moment > 4, "it went on although it was stopped"
    assert outcomes == {"stopped", "completed"}
    assert not await in_database(TurnUsage.objects.filter(ended_at=None).exists)


@pytest.mark.parametrize("first", ["stop", "leave"])
async def test_the_first_cause_is_the_outcome(
    first: str, bob: Any, client_of: Any, tree_of: Any, monkeypatch: Any
) -> None:
    def leave(self: Story, leave: Any = Story.leave) -> None:
        leave(self)
        running.hear({self.turn.turn_id: WHY})

    monkeypatch.setattr(Story, "leave", leave)
    call = client_of(bob).call("script:hang_in_middle").start()
    await call.until(lambda call: call.text)
    if first == "stop":
        running.hear({call.turn_id: WHY})
    call.leave()
    await call.over()
    (await tree_of(bob, call.turn_id)).assert_complete("stopped" if first == "stop" else "disconnected")


async def test_a_second_stop_changes_nothing(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = client_of(bob).call("script:hang_in_middle").start()
    await call.until(lambda call: call.text)
    running.hear({call.turn_id: WHY})
    running.hear({call.turn_id: Stop("Another.")})
    await call.over()
    await stopped_in_order(call, bob, tree_of)


# --- which turns must end -------------------------------------------------------------------------


def must_end() -> dict[str, list[str]]:
    with connection.cursor() as cursor:
        cursor.execute(stops.FOLLOWED)
        (found,) = cursor.fetchone()

    return json.loads(found) if isinstance(found, str) else found


def let_in(user: Any) -> str:
    turn_id = uuid7(next_moment_us())
    admitted = admit(
        credential_of(user),
        session_id=uuid7(next_moment_us()),
        continued=False,
        turn_id=turn_id,
        process_id=uuid7(next_moment_us()),
        message="?",
        reserve=True,
    )
    assert admitted is not None
    assert admitted.verdict is not None
    assert admitted.verdict.admitted
    return turn_id


async def test_only_running_turns_must_end(bob: Any, charlie: Any, ada: Any) -> None:
    def look() -> None:
        over, runs, others = let_in(bob), let_in(bob), let_in(charlie)
        TurnUsage.objects.filter(turn_id=over).update(ended_at=TurnUsage.objects.get(turn_id=over).started_at)
        assert must_end() == {}
        assert stops.ask_to_stop(runs, by=bob) == stops.Asked(bob.user_id, True)
        assert stops.ask_to_stop(over, by=bob) == stops.Asked(bob.user_id, False)
        assert stops.ask_to_stop(others, by=bob) is None
        assert must_end() == {runs: ["own", bob.user_id, bob.name, "", ""]}
        assert [str(each.turn_id) for each in TurnStop.objects.all()] == [runs]
        # what somebody asked counts before a block, a block before the account
        assert stops.ask_to_stop(others, by=ada, reason="why") == stops.Asked(charlie.user_id, True)
        UserBlock.objects.create(user=charlie, blocked_by=ada, message="No.", reason="because")
        another = "UPDATE users SET is_active = false WHERE email = 'bob@example.com'"
        with connection.cursor() as cursor:
            cursor.execute(another)
        assert must_end() == {
            runs: ["own", bob.user_id, bob.name, "", ""],
            others: ["stop", ada.user_id, ada.name, "", "why"],
        }
        TurnStop.objects.all().delete()
        assert must_end() == {
            runs: ["inactive", None, None, "", ""],
            others: ["block", ada.user_id, ada.name, "No.", "because"],
        }
        TurnUsage.objects.filter(turn_id=others).delete()
        UserBlock.objects.all().delete()
        assert list(must_end()) == [runs]

    await in_database(look)


async def test_an_admission_that_was_under_way_is_seen_once_it_is_committed(bob: Any, ada: Any) -> None:
    """The block is committed between the admission's look at the blocks and its commit."""

    def slip_in() -> str:
        with transaction.atomic():
            turn_id = let_in(bob)
            block_elsewhere()
            assert must_end(), "the block is not seen"
        return turn_id

    def block_elsewhere() -> None:
        def block() -> None:
            try:
                UserBlock.objects.create(user=bob, blocked_by=ada)
                assert must_end() == {}, "what is not committed is nobody's turn yet"
            finally:
                connections.close_all()

        with ThreadPoolExecutor(1) as executor:
            executor.submit(block).result()

    turn_id = await in_database(slip_in)
    assert list(await in_database(must_end)) == [turn_id]


async def test_stops_of_yesterday_are_forgotten(bob: Any) -> None:
    def forget() -> None:
        old, new = uuid7(next_moment_us()), uuid7(next_moment_us())
        for turn_id in (old, new):
            TurnStop.objects.create(turn_id=turn_id, stopped_by=bob.user_id)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE turn_stops SET stopped_at = now() - interval '25 hours' WHERE turn_id = %s", [old])
        stops.forget_old()
        assert [str(each.turn_id) for each in TurnStop.objects.all()] == [new]

    await in_database(forget)
