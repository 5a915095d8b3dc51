"""The client goes away: the model is let go at once, the tree closes, the slot is free."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from chat import endpoint, tools
from chat.models import Message, TurnUsage
from omni2.database import in_database

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]


async def left_in_order(call: Any, user: Any, tree_of: Any) -> Any:
    """The turn ended as disconnected, complete, and holds no slot."""
    tree = await tree_of(user, call.turn_id)
    tree.assert_complete("disconnected")
    turn = await in_database(TurnUsage.objects.get, turn_id=call.turn_id)
    assert turn.ended_at is not None
    assert "error" not in tree.names
    assert not [event for event in call.events if event.name in ("done", "error")]
    return tree


@pytest.mark.parametrize("script", ["hang", "hang_in_middle", "slow"])
async def test_the_model_call_is_cancelled_at_once(
    script: str, bob: Any, client_of: Any, tree_of: Any, llm: Any
) -> None:
    call = client_of(bob).call(f"script:{script}").start()
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests)
    if script != "hang":
        await call.until(lambda call: call.text)
    call.leave()
    await call.over()
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests[0].aborted)
    tree = await left_in_order(call, bob, tree_of)
    complete = tree.facts("llm_complete")
    assert complete["status"] == "cancelled"
    assert complete.get("answer", "") == call.text


async def test_what_was_seen_is_kept(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = client_of(bob).call("script:slow").start()
    await call.until(lambda call: call.text.count(" ") > 2)
    call.leave()
    await call.over()
    await left_in_order(call, bob, tree_of)
    kept = await in_database(lambda: Message.objects.get(role="assistant").content)
    assert kept == call.text


@pytest.mark.parametrize("path", ["/api/v1/ask", "/api/v1/ask/stream"])
async def test_running_tools_are_cancelled(
    path: str, bob: Any, client_of: Any, tree_of: Any, llm: Any, monkeypatch: Any
) -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def hangs(arguments: dict[str, Any]) -> str:
        running.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return ""

    monkeypatch.setattr(tools, "TOOLS", {**tools.TOOLS, "clock": replace(tools.TOOLS["clock"], call=hangs)})
    call = client_of(bob).call("script:parallel", path=path).start()
    await running.wait()
    call.leave()
    await call.over()
    assert cancelled.is_set()
    assert len(llm.requests) == 1
    if path.endswith("stream"):
        tree = await left_in_order(call, bob, tree_of)
        assert "cancelled" in [each["metadata"]["status"] for each in tree.every("tool_result")]
    else:
        assert call.sends == 0


async def test_it_may_leave_at_any_moment(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    """Leaves after the first thing that is sent, after the second, and so on through a turn with tools."""
    whole = await client_of(bob).stream("script:talk_and_call")
    for moment in range(1, whole.sends + 1):

        def leave(call: Any, _: Any, moment: int = moment) -> None:
            if call.sends == moment:
                call.leave()

        call = await client_of(bob).call("script:talk_and_call", on_send=leave).start().over()
        tree = await tree_of(bob, call.turn_id)
        outcome = tree.facts("flow_end")["outcome"]
        tree.assert_complete(outcome)
        assert outcome in ("disconnected", "completed"), moment
        if outcome == "completed":
            assert moment > 4, "it went on although nobody listened"
    assert not await in_database(TurnUsage.objects.filter(ended_at=None).exists)


async def test_it_may_leave_before_anything_was_sent(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    call = client_of(bob).call("script:hang")
    call.leave()
    await call.start().over()
    assert call.ended is False
    await left_in_order(call, bob, tree_of)
    # it may have been asked already; then it was let go
    await asyncio.to_thread(llm.wait_until, lambda: all(seen.aborted for seen in llm.requests))


async def test_a_server_that_cancels_the_request_leaves_a_whole_tree(
    bob: Any, client_of: Any, tree_of: Any, llm: Any
) -> None:
    """Daphne does so ten seconds after a disconnect, and with all requests when it stops."""
    call = client_of(bob).call("script:hang_in_middle").start()
    await call.until(lambda call: call.text)
    call.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.task
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests[0].aborted)
    for _ in range(500):
        if not await in_database(TurnUsage.objects.filter(ended_at=None).exists):
            break
        await asyncio.sleep(0.01)
    await left_in_order(call, bob, tree_of)


async def test_silence_is_filled_with_comments(bob: Any, client_of: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(endpoint, "HEARTBEAT_S", 0.05)
    call = client_of(bob).call("script:hang_in_middle").start()
    await call.until(lambda call: call.content.count(b"\n\n: ") >= 3)
    call.leave()
    await call.over()
    assert call.text == "This answer stops here "
    assert b": still here\n\n" in call.content


async def test_no_comment_is_sent_while_tokens_come(bob: Any, client_of: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(endpoint, "HEARTBEAT_S", 5.0)
    call = await client_of(bob).stream("script:slow")
    assert b"\n\n: " not in call.content


@pytest.mark.parametrize("breaks_with", [ConnectionResetError, RuntimeError])
@pytest.mark.parametrize("broken_after", [0, 1, 2, 4])
async def test_a_server_that_says_so_by_an_exception_is_understood(
    broken_after: int, breaks_with: type[Exception], bob: Any, client_of: Any, tree_of: Any, llm: Any
) -> None:
    call = await client_of(bob).call("script:slow", broken_after=broken_after, breaks_with=breaks_with).start().over()
    assert call.sends == broken_after
    turn_id = await in_database(lambda: str(TurnUsage.objects.get().turn_id))
    (await tree_of(bob, turn_id)).assert_complete("disconnected")
    await asyncio.to_thread(llm.wait_until, lambda: all(seen.aborted for seen in llm.requests))
    ended = await in_database(lambda: list(TurnUsage.objects.values_list("ended_at", flat=True)))
    assert len(ended) == 1
    assert ended[0] is not None
