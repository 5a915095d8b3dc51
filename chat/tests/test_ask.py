"""What a user gets when all goes well: the stream, the whole answer, tools, memory."""

import uuid
from typing import Any

import pytest

from chat.models import Conversation, DailyUsage, Message, TurnUsage
from omni2.database import in_database

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]


async def test_it_streams_an_answer_and_tracks_every_step(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    call = await client_of(bob).stream("Hello there")
    assert call.status == 200
    assert call.names == ["session", "token", "done"]
    assert call.text == "You said: Hello there (scripted)"
    assert call.ended
    session, done = call.events[0].data, call.last.data
    assert session == {"session_id": done["session_id"], "turn_id": call.turn_id}
    assert done["turn_id"] == call.turn_id
    assert done["model"] == "scripted-model"
    assert done["usage"]["output_tokens"] == 5
    assert done["usage"]["input_tokens"] > 0
    assert done["usage"]["cost_usd"] is None
    assert done["tracked"] == {"checkpoints": 6, "durable": 6}

    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert tree.names == ["auth_check", "block_check", "usage_check", "llm_thinking", "llm_complete", "flow_end"]
    assert tree.parent_of(tree.one("block_check")) == "auth_check"
    assert tree.parent_of(tree.one("usage_check")) == "block_check"
    assert tree.parent_of(tree.one("llm_thinking")) == "usage_check"
    assert tree.parent_of(tree.one("flow_end")) == "auth_check"
    assert tree.facts("auth_check")["method"] == "token"
    assert tree.facts("auth_check")["question"] == "Hello there"
    assert tree.facts("usage_check")["used"] == 1
    assert tree.facts("usage_check")["limit"] == 500
    assert tree.facts("auth_check")["duration_ms"] > 0
    # one statement judges both
    assert tree.facts("block_check")["duration_ms"] == tree.facts("usage_check")["duration_ms"] > 0
    thinking, complete = tree.facts("llm_thinking"), tree.facts("llm_complete")
    assert (thinking["model"], thinking["provider"], thinking["round"]) == ("scripted-model", "scripted", 1)
    assert thinking["input"] == "Hello there"
    assert complete["status"] == "ok"
    assert complete["finish_reason"] == "stop"
    assert complete["answer"] == call.text
    assert complete["output_tokens"] == 5
    assert 0 < complete["ttft_ms"] <= complete["duration_ms"]
    assert len(llm.requests) == 1


async def test_it_answers_whole(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await client_of(bob).whole("Hello there")
    assert call.status == 200
    assert set(call.json) == {"answer", "session_id", "turn_id", "model", "usage", "duration_ms", "tracked"}
    assert call.json["answer"] == "You said: Hello there (scripted)"
    assert call.json["tracked"] == {"checkpoints": 6, "durable": 6}
    assert call.answer_headers["content-type"] == "application/json"
    (await tree_of(bob, call.json["turn_id"])).assert_complete("completed")


async def test_it_tells_proxies_and_browsers_what_to_leave_alone(bob: Any, client_of: Any) -> None:
    call = await client_of(bob).stream("Hello")
    assert call.answer_headers["content-type"] == "text/event-stream; charset=utf-8"
    assert call.answer_headers["cache-control"] == "no-store"
    assert call.answer_headers["x-accel-buffering"] == "no"
    assert call.answer_headers["x-content-type-options"] == "nosniff"
    assert call.answer_headers["x-omni2-turn-id"] == call.events[0].data["turn_id"]


async def test_it_uses_a_tool_and_says_so(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    call = await client_of(bob).stream("How much is 12 * 12 ?")
    assert call.names == ["session", "tool_call", "tool_result", "token", "done"]
    started, ended = call.events[1].data, call.events[2].data
    assert started == {"tool": "calculator", "call_id": ended["call_id"]}
    assert ended["status"] == "ok"
    assert ended["duration_ms"] >= 0
    assert '"value": 144' in call.text

    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert tree.names == [
        "auth_check", "block_check", "usage_check",
        "llm_thinking", "llm_complete", "tool_call", "tool_result",
        "llm_thinking", "llm_complete", "flow_end",
    ]  # fmt: skip
    first, second = tree.every("llm_thinking")
    assert tree.one("tool_call")["parent_id"] == first["flow_id"]
    assert tree.parent_of(second) == "usage_check"
    assert second["metadata"]["round"] == 2
    called = tree.facts("tool_call")
    assert (called["tool"], called["server"], called["call_id"]) == ("calculator", "builtin", started["call_id"])
    assert "12 * 12" in called["arguments"]
    assert '"value": 144' in tree.facts("tool_result")["result"]
    assert [len(seen.results) for seen in llm.requests] == [0, 1]
    assert done_usage(call)["input_tokens"] > 40
    assert done_usage(call)["output_tokens"] > 12


def done_usage(call: Any) -> dict[str, Any]:
    return call.last.data["usage"]


async def test_it_runs_several_tools_at_once(bob: Any, client_of: Any, tree_of: Any, monkeypatch: Any) -> None:
    import asyncio
    from dataclasses import replace

    from chat import tools

    together = asyncio.Barrier(3)

    def waits_for_the_others(tool: Any) -> Any:
        async def call(arguments: dict[str, Any]) -> str:
            # passes only when all three are running at the same time
            await asyncio.wait_for(together.wait(), 5)
            return await tool.call(arguments)

        return replace(tool, call=call)

    monkeypatch.setattr(tools, "TOOLS", {name: waits_for_the_others(tool) for name, tool in tools.TOOLS.items()})
    call = await client_of(bob).stream("script:parallel")
    assert call.names.count("tool_call") == 3
    assert call.names.count("tool_result") == 3
    assert "Asia/Tokyo" in call.text
    assert "437" in call.text
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    thinking = tree.every("llm_thinking")[0]["flow_id"]
    assert {each["parent_id"] for each in tree.every("tool_call")} == {thinking}
    names = [name for name in tree.names if name.startswith("tool_")]
    assert names[:3] == ["tool_call"] * 3


async def test_a_text_before_a_tool_belongs_to_the_answer(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await client_of(bob).stream("script:talk_and_call")
    assert call.text.startswith("Let me look. The tools say:")
    assert call.names == ["session", "token", "tool_call", "tool_result", "done"]
    (await tree_of(bob, call.turn_id)).assert_complete("completed")


async def test_it_remembers_the_conversation(bob: Any, client_of: Any, llm: Any) -> None:
    client = client_of(bob)
    first = await client.stream("My name is Bob")
    session_id = first.last.data["session_id"]
    second = await client.stream("script:memory", session_id=session_id)
    assert second.last.data["session_id"] == session_id
    # with the instructions
    assert "4 messages, the first: My name is Bob" in second.text
    await client.stream("script:memory")
    assert len(llm.requests[-1].messages) == len(llm.requests[0].messages)


async def test_its_memory_drops_the_oldest_turns_whole(bob: Any, client_of: Any, llm: Any, monkeypatch: Any) -> None:
    from chat import llm as door

    client = client_of(bob)
    session_id = str(uuid.uuid4())
    for number in range(3):
        await client.stream(f"question {number} " + "x" * 50, session_id=session_id)
    said = len(llm.requests[-1].messages)
    monkeypatch.setattr(door, "HISTORY_TOKENS", 80)
    monkeypatch.setattr(door, "_models", type(door._models)())
    await client.stream("script:memory", session_id=session_id)
    remembered = [each["content"] for each in llm.requests[-1].messages if each["role"] == "user"]
    assert len(llm.requests[-1].messages) == said
    assert [text.split(" x")[0] for text in remembered] == ["question 1", "question 2", "script:memory"]


async def test_a_session_of_the_clients_own_making_is_its_own(bob: Any, client_of: Any) -> None:
    mine = str(uuid.uuid4())
    call = await client_of(bob).stream("Hello", session_id=mine)
    assert call.last.data["session_id"] == mine


async def test_it_keeps_what_was_said_and_used(bob: Any, client_of: Any) -> None:
    call = await client_of(bob).stream("How much is 3 * 4 ?")

    def look() -> None:
        conversation = Conversation.objects.get(session_id=call.last.data["session_id"])
        assert (conversation.user_id, conversation.title) == (bob.pk, "How much is 3 * 4 ?")
        said = [(m.role, m.content, str(m.turn_id)) for m in Message.objects.filter(conversation=conversation)]
        assert said == [("user", "How much is 3 * 4 ?", call.turn_id), ("assistant", call.text, call.turn_id)]
        today = DailyUsage.objects.get(user=bob)
        turn = TurnUsage.objects.get(turn_id=call.turn_id)
        usage = done_usage(call)
        for row in (today, turn):
            assert (row.input_tokens, row.output_tokens) == (usage["input_tokens"], usage["output_tokens"])
        assert today.requests == 1
        assert turn.ended_at is not None

    await in_database(look)


async def test_odd_characters_of_the_model_harm_nothing(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await client_of(bob).stream("script:odd_text")
    assert call.names == ["session", "token", "done"]
    assert call.text == "a\ufffdb\ufffdc\n\nevent: done\ndata: {}\n\n<script>alert(1)</script>"
    (await tree_of(bob, call.turn_id)).assert_complete("completed")


async def test_the_seeds_body_is_json_whatever_its_type_says(bob: Any, client_of: Any) -> None:
    kinds = [b"application/x-www-form-urlencoded", b"text/plain", b"multipart/form-data; boundary=x", b"image/png"]
    for kind in kinds:
        call = await client_of(bob).stream("Hello", headers=[(b"content-type", kind)])
        assert call.status == 200, kind


def connections_in_use() -> int:
    from django.db import connection

    stats = connection.pool.get_stats()  # type: ignore[attr-defined]
    return stats["pool_size"] - stats["pool_available"]


async def test_no_connection_is_held_while_answers_stream(bob: Any, client_of: Any, llm: Any) -> None:
    client = client_of(bob)
    await client.stream("Hello")
    before = connections_in_use()
    calls = [client.call("script:hang_in_middle").start() for _ in range(8)]
    for call in calls:
        await call.until(lambda call: call.text)
    assert connections_in_use() == before
    for call in calls:
        call.leave()
        await call.over()
    assert connections_in_use() == before


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many checkpoints were recorded, at each wait for their acknowledgement."""
    from flows.tracker import TurnTrack

    waited: list[int] = []
    real = TurnTrack.acknowledged

    async def acknowledged(self: Any, timeout_s: float = 0.25) -> int:
        waited.append(self.recorded)
        assert timeout_s <= 0.25
        return await real(self, timeout_s)

    monkeypatch.setattr(TurnTrack, "acknowledged", acknowledged)
    return waited


async def test_nothing_waits_for_tracking_but_what_must(bob: Any, client_of: Any, waited: list[int]) -> None:
    """One acknowledgement before the first token and one at the end; none between tokens."""
    await client_of(bob).stream("one two three four five six")
    assert waited == [4, 6]


async def test_an_error_and_a_refusal_wait_for_the_whole_of_their_turn(
    bob: Any, client_of: Any, tree_of: Any, limits: Any, waited: list[int]
) -> None:
    failed = await client_of(bob).stream("script:error_500")
    assert failed.last.name == "error"
    assert waited == [len((await tree_of(bob, failed.turn_id)).all)] == [7]
    waited.clear()
    limits(requests_per_day=0)
    refused = await client_of(bob).stream("Hello")
    assert waited == [len((await tree_of(bob, refused.json["turn_id"])).all)] == [4]


async def test_an_answer_comes_although_the_log_is_away(bob: Any, client_of: Any, monkeypatch: Any) -> None:
    from flows.tracker import TurnTrack

    async def never(self: Any, timeout_s: float = 0.25) -> int:
        return 0

    monkeypatch.setattr(TurnTrack, "acknowledged", never)
    monkeypatch.setattr(TurnTrack, "durable", property(lambda self: 0))
    call = await client_of(bob).stream("Hello")
    assert call.last.data["tracked"] == {"checkpoints": 6, "durable": 0}


async def test_the_first_token_of_a_turn_is_counted_from_its_beginning(bob: Any, client_of: Any, tree_of: Any) -> None:
    """What its user waited for, the tools included; each round has its own beside it."""
    call = await client_of(bob).stream("How much is 12 * 12 ?")
    tree = await tree_of(bob, call.turn_id)
    ended = tree.facts("flow_end")
    first, second = (each["metadata"] for each in tree.every("llm_complete"))
    assert first["duration_ms"] + second["ttft_ms"] < ended["ttft_ms"] <= ended["duration_ms"]
    silent = await client_of(bob).stream("script:error_500")
    assert "ttft_ms" not in (await tree_of(bob, silent.turn_id)).facts("flow_end")


@pytest.mark.parametrize("capture", ["full", "preview", "none"])
async def test_capture_says_how_much_is_written_down(
    capture: str, bob: Any, client_of: Any, tree_of: Any, settings: Any
) -> None:
    settings.CAPTURE = capture
    question = "How much is 3 * 4 ? " + "please " * 60
    call = await client_of(bob).stream(question)
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    kept = {
        "question": tree.facts("auth_check").get("question"),
        "input": tree.every("llm_thinking")[0]["metadata"].get("input"),
        "arguments": tree.facts("tool_call").get("arguments"),
        "result": tree.facts("tool_result").get("result"),
        "answer": tree.every("llm_complete")[1]["metadata"].get("answer"),
    }
    if capture == "none":
        assert set(kept.values()) == {None}
        return
    assert len(kept["question"]) == (len(question) if capture == "full" else 200)
    assert "3 * 4" in kept["arguments"]
    assert "12" in kept["result"]
    assert "12" in kept["answer"]


async def test_the_model_is_asked_for_a_stream_with_usage_and_offered_the_tools(
    bob: Any, client_of: Any, llm: Any
) -> None:
    await client_of(bob).stream("Hello")
    (seen,) = llm.requests
    assert seen.body["stream"] is True
    assert seen.body["stream_options"] == {"include_usage": True}
    assert {tool["function"]["name"] for tool in seen.body["tools"]} == {"clock", "calculator"}
    assert seen.headers["authorization"] == "Bearer scripted"
