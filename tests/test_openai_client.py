"""The official openai package, unchanged, against a started Omni2: what it asks is answered, limited, shown and kept
like any other request."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.llm_server import MODEL, LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIDE: Any = {"type": "function", "function": {"name": "get_tide", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture(scope="module")
def omni2(llm: LlmServer) -> Iterator[Running]:
    with running(**llm.environment) as started:
        yield started


@pytest.fixture(scope="module")
def token(omni2: Running) -> str:
    return omni2.create_token("bob@example.com")


@pytest.fixture
def client(omni2: Running, token: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=omni2.url + "/v1", api_key=token, max_retries=0) as made:
        yield made


def words(content: str, **more: Any) -> Any:
    return {"role": "user", "content": content, **more}


def turn_of(completion: Any) -> str:
    return str(completion.id.removeprefix("chatcmpl-"))


def stored(omni2: Running, turn_id: str) -> list[dict[str, Any]]:
    """The turn's checkpoints as history has them, once it has its end."""

    def rows() -> list[dict[str, Any]]:
        found = omni2.sql(
            "SELECT checkpoint, metadata, session_id, user_id, flow_id, parent_id FROM interaction_flows"
            " WHERE turn_id = %s ORDER BY created_at, flow_id",
            turn_id,
        )
        keys = ("checkpoint", "metadata", "session_id", "user_id", "flow_id", "parent_id")
        read = [dict(zip(keys, row, strict=True)) for row in found]
        return read if read and read[-1]["checkpoint"] == "flow_end" else []

    found: list[dict[str, Any]] = eventually(rows, "the turn is stored")
    return found


def facts(tree: list[dict[str, Any]], checkpoint: str) -> dict[str, Any]:
    (found,) = [each["metadata"] for each in tree if each["checkpoint"] == checkpoint]
    return dict(found)


CHECKS = ["auth_check", "block_check", "usage_check"]


# --- answers -------------------------------------------------------------------------------------


def test_it_answers_whole_and_is_in_history_like_any_other(omni2: Running, client: OpenAI, llm: LlmServer) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=[words("Hello there")], user="customer 7")
    (choice,) = completion.choices
    assert choice.message.content == "You said: Hello there (scripted)"
    assert choice.message.role == "assistant"
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert completion.usage is not None
    assert completion.usage.prompt_tokens > 0
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    tree = stored(omni2, turn_of(completion))
    assert [each["checkpoint"] for each in tree] == [*CHECKS, "llm_thinking", "llm_complete", "flow_end"]
    assert facts(tree, "flow_end")["outcome"] == "completed"
    asked = facts(tree, "auth_check")
    assert (asked["client"], asked["end_user"], asked["question"]) == ("openai", "customer 7", "Hello there")
    assert asked["user_agent"].startswith("OpenAI/Python")
    kept = omni2.sql("SELECT role, content FROM messages WHERE turn_id = %s ORDER BY id", turn_of(completion))
    assert kept == [("user", "Hello there"), ("assistant", "You said: Hello there (scripted)")]
    (used,) = omni2.sql("SELECT input_tokens, output_tokens FROM turn_usage WHERE turn_id = %s", turn_of(completion))
    assert used == (completion.usage.prompt_tokens, completion.usage.completion_tokens)


def test_it_streams_chunks_with_the_role_first_the_reason_last_and_usage_when_asked(
    omni2: Running, client: OpenAI
) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=[words("Hello there")], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(each.delta.content or "" for each in told) == "You said: Hello there (scripted)"
    assert len([each for each in told if each.delta.content]) > 3
    assert [each.finish_reason for each in told if each.finish_reason] == ["stop"]
    assert told[-1].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 5
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert facts(stored(omni2, turn_of(chunks[0])), "flow_end")["outcome"] == "completed"


def test_without_being_asked_it_streams_no_usage(client: OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=[words("Hi")], stream=True))
    assert all(chunk.choices for chunk in chunks)


async def test_the_asynchronous_client_is_answered_too_whole_and_streamed(omni2: Running, token: str) -> None:
    async with AsyncOpenAI(base_url=omni2.url + "/v1", api_key=token) as client:
        whole = await client.chat.completions.create(model=MODEL, messages=[words("Hello")])
        assert whole.choices[0].message.content == "You said: Hello (scripted)"
        stream = await client.chat.completions.create(model=MODEL, messages=[words("Hello")], stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(said) == "You said: Hello (scripted)"
        together = [client.chat.completions.create(model=MODEL, messages=[words(f"Number {n}")]) for n in range(5)]
        answers = await asyncio.gather(*together)
        assert [a.choices[0].message.content for a in answers] == [f"You said: Number {n} (scripted)" for n in range(5)]


def test_the_clients_helper_for_streams_puts_the_answer_together(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=[words("script:client_tools")], tools=[WEATHER]
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.name == "get_weather"


def test_every_letter_arrives_as_the_model_wrote_it(client: OpenAI) -> None:
    text = "Grüße 世界 🧑‍🚀\u2028\u0085\n\ndata: [DONE]\n\nעוד"
    asked = [words("script:unicode Ünïcödé")]
    assert client.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content == text
    stream = client.chat.completions.create(model=MODEL, messages=asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text


def test_a_long_answer_arrives_whole(client: OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=[words("script:long_answer")], stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said.split() == [f"word{number}" for number in range(2000)]


def test_an_answer_without_an_end_is_cut_and_says_so(client: OpenAI) -> None:
    completion = client.chat.completions.create(model=MODEL, messages=[words("script:long")])
    assert completion.choices[0].finish_reason == "length"
    assert len(completion.choices[0].message.content or "") == 512 * 1024


@pytest.mark.parametrize(("script", "reason"), [("cut_short", "length"), ("filtered", "content_filter")])
def test_why_the_model_stopped_is_said_in_openais_words(client: OpenAI, script: str, reason: str) -> None:
    asked = [words(f"script:{script}")]
    assert client.chat.completions.create(model=MODEL, messages=asked).choices[0].finish_reason == reason
    chunks = list(client.chat.completions.create(model=MODEL, messages=asked, stream=True))
    assert chunks[-1].choices[0].finish_reason == reason


# --- what reaches the model ----------------------------------------------------------------------


def test_the_clients_messages_are_the_whole_dialogue(client: OpenAI, llm: LlmServer) -> None:
    pixel = "data:image/png;base64,iVBORw0KGgo="
    said: list[Any] = [
        {"role": "system", "content": "Be a pirate."},
        words("First"),
        {"role": "assistant", "content": "Arr"},
        words(
            [  # type: ignore[arg-type]
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": pixel, "detail": "low"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            ]
        ),
    ]
    client.chat.completions.create(model=MODEL, messages=said)
    assert llm.requests[-1].messages == said


def test_the_way_to_answer_is_handed_on(client: OpenAI, llm: LlmServer) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=[words("Hi")],
        temperature=0.3,
        top_p=0.9,
        max_tokens=77,
        stop=["END"],
        seed=42,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"50256": -100},
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
    )
    body = llm.requests[-1].body
    told = {"temperature": 0.3, "top_p": 0.9, "stop": ["END"], "seed": 42, "presence_penalty": 0.5}
    assert {name: body[name] for name in told} == told
    assert body["frequency_penalty"] == -0.5
    assert body["logit_bias"] == {"50256": -100}
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 77
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
    assert [tool["function"] for tool in body["tools"]] == [WEATHER["function"]]
    client.chat.completions.create(
        model=MODEL,
        messages=[words("Hi")],
        tools=[WEATHER, TIDE],
        tool_choice={"type": "function", "function": {"name": "get_tide"}},
        max_completion_tokens=5,
    )
    body = llm.requests[-1].body
    assert body["tool_choice"] == {"type": "function", "function": {"name": "get_tide"}}
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 5


def test_the_format_of_the_answer_is_handed_on(client: OpenAI, llm: LlmServer) -> None:
    asked = [words("Give me JSON")]
    client.chat.completions.create(model=MODEL, messages=asked, response_format={"type": "json_object"})
    assert llm.requests[-1].body["response_format"] == {"type": "json_object"}
    assert llm.requests[-1].messages == asked
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
    client.chat.completions.create(model=MODEL, messages=asked, response_format=wanted)
    assert llm.requests[-1].body["response_format"] == wanted


def test_without_tools_of_its_own_a_client_has_those_of_the_server_and_sees_only_text(
    omni2: Running, client: OpenAI
) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=[words("script:calculator 6 * 7")], stream=True))
    assert "42" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert all(chunk.choices[0].delta.tool_calls is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "stop"
    tree = stored(omni2, turn_of(chunks[0]))
    assert facts(tree, "tool_call")["server"] == "builtin"


def test_a_client_that_wants_no_tools_gets_none(client: OpenAI, llm: LlmServer) -> None:
    client.chat.completions.create(model=MODEL, messages=[words("Hi")], tool_choice="none")
    assert "tools" not in llm.requests[-1].body


# --- tools ---------------------------------------------------------------------------------------


def ask(client: OpenAI, stream: bool, messages: list[Any], tools: list[Any]) -> tuple[dict[str, Any], str, str]:
    """The assistant's message as a client would send it back, why it ended, and its turn."""
    if not stream:
        completion = client.chat.completions.create(model=MODEL, messages=messages, tools=tools)
        (choice,) = completion.choices
        return choice.message.model_dump(exclude_none=True), choice.finish_reason, turn_of(completion)
    text, calls, reason, turn_id = "", {}, "", ""
    for chunk in client.chat.completions.create(model=MODEL, messages=messages, tools=tools, stream=True):
        turn_id = turn_of(chunk)
        (told,) = chunk.choices
        text += told.delta.content or ""
        reason = told.finish_reason or reason
        for piece in told.delta.tool_calls or ():
            call = calls.setdefault(piece.index, {"type": "function", "function": {"arguments": ""}})
            assert piece.function is not None
            if piece.id:
                call["id"] = piece.id
            if piece.function.name:
                call["function"]["name"] = piece.function.name
            call["function"]["arguments"] += piece.function.arguments or ""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    return (message | {"tool_calls": list(calls.values())} if calls else message), reason, turn_id


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_round_with_tools_of_the_client(omni2: Running, client: OpenAI, llm: LlmServer, stream: bool) -> None:
    messages: list[Any] = [words(f"script:client_tools {uuid.uuid4()}")]
    asked, reason, first_turn = ask(client, stream, messages, [WEATHER, TIDE])
    assert reason == "tool_calls"
    assert [call["function"]["name"] for call in asked["tool_calls"]] == ["get_weather", "get_tide"]
    assert [json.loads(call["function"]["arguments"]) for call in asked["tool_calls"]] == [{"city": "Tromsø"}] * 2
    assert [tool["function"]["name"] for tool in llm.requests[-1].body["tools"]] == ["get_weather", "get_tide"]

    tree = stored(omni2, first_turn)
    names = [each["checkpoint"] for each in tree]
    assert names == [
        *CHECKS,
        "llm_thinking",
        "llm_complete",
        *["tool_call", "tool_result"] * 2,
        "flow_end",
    ]
    assert facts(tree, "flow_end")["outcome"] == "completed"
    called = [each for each in tree if each["checkpoint"] == "tool_call"]
    assert [(each["metadata"]["tool"], each["metadata"]["server"]) for each in called] == [
        ("get_weather", "client"),
        ("get_tide", "client"),
    ]
    ends = [each for each in tree if each["checkpoint"] == "tool_result"]
    assert [each["parent_id"] for each in ends] == [each["flow_id"] for each in called]
    assert [each["metadata"]["status"] for each in ends] == ["handed_over"] * 2

    ids = [call["id"] for call in asked["tool_calls"]]
    assert [each["metadata"]["call_id"] for each in called] == ids
    messages += [asked, *({"role": "tool", "tool_call_id": i, "content": f"result {n}"} for n, i in enumerate(ids))]
    answer, reason, second_turn = ask(client, stream, messages, [WEATHER, TIDE])
    assert reason == "stop"
    assert answer["content"] == "The tools say: result 0 and result 1 (scripted)"
    assert llm.requests[-1].results == ["result 0", "result 1"]

    tree = stored(omni2, second_turn)
    results = [each["metadata"] for each in tree if each["checkpoint"] == "client_result"]
    assert [(each["tool"], each["call_id"], each["result"]) for each in results] == [
        ("get_weather", ids[0], "result 0"),
        ("get_tide", ids[1], "result 1"),
    ]
    assert facts(tree, "llm_thinking")["input"] == "result 0\nresult 1"
    # and it is one conversation, though the client named none
    sessions = omni2.sql(
        "SELECT DISTINCT session_id FROM turns WHERE turn_id = ANY(%s::uuid[])", [first_turn, second_turn]
    )
    assert len(sessions) == 1


# --- conversations -------------------------------------------------------------------------------


def session_of(omni2: Running, completion: Any) -> str:
    return str(stored(omni2, turn_of(completion))[0]["session_id"])


def test_a_dialogue_that_goes_on_is_one_conversation_and_another_is_another(omni2: Running, client: OpenAI) -> None:
    first_words = f"Hello {uuid.uuid4()}"
    one = client.chat.completions.create(model=MODEL, messages=[words(first_words)])
    said: Any = {"role": "assistant", "content": one.choices[0].message.content}
    going_on: list[Any] = [{"role": "system", "content": "It is noon."}, words(first_words), said, words("And then?")]
    two = client.chat.completions.create(model=MODEL, messages=going_on)
    assert session_of(omni2, two) == session_of(omni2, one)
    three = client.chat.completions.create(
        model=MODEL,
        messages=[*going_on, {"role": "assistant", "content": two.choices[0].message.content}, words("Go on")],
    )
    assert session_of(omni2, three) == session_of(omni2, one)
    again = client.chat.completions.create(model=MODEL, messages=[words(first_words)])
    assert session_of(omni2, again) != session_of(omni2, one)
    other: Any = {"role": "assistant", "content": "Something that was never answered"}
    changed = client.chat.completions.create(model=MODEL, messages=[words(first_words), other, words("And then?")])
    assert session_of(omni2, changed) != session_of(omni2, one)


def test_the_same_words_of_another_user_are_another_conversation(omni2: Running, client: OpenAI) -> None:
    one = client.chat.completions.create(model=MODEL, messages=[words("Hello")])
    going_on: Any = [words("Hello"), {"role": "assistant", "content": one.choices[0].message.content}, words("More")]
    with OpenAI(base_url=omni2.url + "/v1", api_key=omni2.create_token("charlie@example.com")) as charlie:
        two = charlie.chat.completions.create(model=MODEL, messages=going_on)
    assert session_of(omni2, two) != session_of(omni2, one)


def test_a_session_can_be_named_in_the_metadata_or_the_header(omni2: Running, client: OpenAI) -> None:
    named, other = str(uuid.uuid4()), str(uuid.uuid4())
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[words("Hi")], extra_headers={"X-Session-Id": named}
    )
    assert answer.headers["x-omni2-session-id"] == named
    assert session_of(omni2, answer.parse()) == named
    answer = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=[words("Hi")], metadata={"session_id": other}, extra_headers={"X-Session-Id": named}
    )
    assert answer.headers["x-omni2-session-id"] == other
    assert answer.headers["x-omni2-turn-id"] == turn_of(answer.parse()) == answer.headers["x-request-id"]


def test_another_users_session_is_none(omni2: Running, client: OpenAI) -> None:
    named = str(uuid.uuid4())
    client.chat.completions.create(model=MODEL, messages=[words("Hi")], metadata={"session_id": named})
    with (
        OpenAI(base_url=omni2.url + "/v1", api_key=omni2.create_token("charlie@example.com")) as charlie,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        charlie.chat.completions.create(model=MODEL, messages=[words("Hi")], metadata={"session_id": named})
    assert caught.value.code == "not_found"


def test_a_trace_is_kept_and_handed_on(omni2: Running, client: OpenAI, llm: LlmServer) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    completion = client.chat.completions.create(
        model=MODEL, messages=[words("Hi")], extra_headers={"traceparent": trace}
    )
    assert facts(stored(omni2, turn_of(completion)), "auth_check")["traceparent"] == trace
    assert llm.requests[-1].headers["traceparent"] == trace


# --- leaving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["slow", "hang_in_middle"])
def test_closing_the_stream_cancels_the_model(omni2: Running, client: OpenAI, llm: LlmServer, script: str) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=[words(f"script:{script}")], stream=True)
    for chunk in stream:
        if chunk.choices[0].delta.content:
            break
    seen = llm.requests[-1]
    assert not seen.over.is_set()
    stream.close()
    llm.wait_until(seen.over.is_set)
    assert seen.aborted
    assert facts(stored(omni2, turn_of(chunk)), "flow_end")["outcome"] == "disconnected"


def test_a_client_that_loses_its_patience_cancels_the_model(client: OpenAI, llm: LlmServer) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=MODEL, messages=[words("script:hang")], timeout=2)
    seen = llm.requests[-1]
    llm.wait_until(seen.over.is_set)
    assert seen.aborted


# --- errors --------------------------------------------------------------------------------------


def test_a_wrong_key_is_an_authentication_error(omni2: Running) -> None:
    with OpenAI(base_url=omni2.url + "/v1", api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model=MODEL, messages=[words("Hi")])
        assert (caught.value.code, caught.value.type) == ("token_unknown", "authentication_error")
        with pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_an_unknown_model_is_not_found(omni2: Running, client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-nobody", messages=[words("Hi")])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    turn_id = caught.value.response.headers["x-omni2-turn-id"]
    assert facts(stored(omni2, turn_id), "flow_end")["outcome"] == "refused"


@pytest.mark.parametrize(
    ("more", "param", "code"),
    [
        ({"n": 2}, "n", "unsupported_parameter"),
        ({"logprobs": True}, "logprobs", "unsupported_parameter"),
        ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
        ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
        ({"temperature": 7}, "temperature", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "unsupported_parameter"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].function.name", "invalid_value"),
        ({"metadata": {"session_id": "mine"}}, "metadata.session_id", "invalid_value"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"extra_headers": {"X-Session-Id": "mine"}}, "X-Session-Id", "invalid_value"),
    ],
)
def test_a_field_that_is_wrong_is_named(client: OpenAI, more: Any, param: str, code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[words("Hi")], **more)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert param in caught.value.message


@pytest.mark.parametrize(
    ("script", "kind", "status", "code"),
    [
        ("error_500", openai.InternalServerError, 502, "llm_failed"),
        ("error_503", openai.InternalServerError, 503, "llm_unavailable"),
        ("error_429", openai.RateLimitError, 429, "llm_rate_limited"),
        ("too_long", openai.BadRequestError, 400, "context_too_long"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_fails_before_its_first_word_is_an_error_of_its_class(
    omni2: Running, client: OpenAI, *, stream: bool, script: str, kind: Any, status: int, code: str
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(model=MODEL, messages=[words(f"script:{script}")], stream=stream)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert "secret" not in str(caught.value.body)
    tree = stored(omni2, caught.value.response.headers["x-omni2-turn-id"])
    assert facts(tree, "error")["code"] == code


def test_a_model_that_fails_in_the_middle_of_a_stream_raises_there(omni2: Running, client: OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=[words("script:cut")], stream=True)
    chunks: list[Any] = []
    with pytest.raises(openai.APIError) as caught:
        chunks.extend(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "This answer breaks off "
    assert caught.value.code == "llm_failed"
    assert facts(stored(omni2, turn_of(chunks[0])), "flow_end")["outcome"] == "failed"


def test_who_is_blocked_or_inactive_has_no_permission(omni2: Running) -> None:
    token = omni2.create_token("blocked@example.com")

    def block() -> None:
        from chat.models import UserBlock
        from omni2.accounts.models import User

        UserBlock.objects.create(user=User.objects.get(email="blocked@example.com"), message="Call the office.")

    omni2.orm(block)
    with OpenAI(base_url=omni2.url + "/v1", api_key=token) as client:
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model=MODEL, messages=[words("Hi")])
        assert (caught.value.code, "Call the office." in caught.value.message) == ("user_blocked", True)
        tree = stored(omni2, caught.value.response.headers["x-omni2-turn-id"])
        assert [each["checkpoint"] for each in tree] == ["auth_check", "block_check", "flow_end"]
        omni2.sql("UPDATE users SET is_active = false WHERE email = 'blocked@example.com'")
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.models.list()
        assert caught.value.code == "inactive"


def test_who_is_at_his_limit_is_told_when_it_ends_and_is_not_tried_again(omni2: Running) -> None:
    token = omni2.create_token("limited@example.com")

    def limit() -> None:
        from chat.models import UserLimits
        from omni2.accounts.models import User

        UserLimits.objects.create(user=User.objects.get(email="limited@example.com"), requests_per_day=1)

    omni2.orm(limit)
    with OpenAI(base_url=omni2.url + "/v1", api_key=token, max_retries=5) as client:
        client.chat.completions.create(model=MODEL, messages=[words("Hi")])
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model=MODEL, messages=[words("Hi")])
    assert caught.value.code == "usage_limit"
    assert int(caught.value.response.headers["retry-after"]) > 0
    assert isinstance(caught.value.body, dict)
    assert (caught.value.body["used"], caught.value.body["limit"]) == (1, 1)
    stored(omni2, caught.value.response.headers["x-omni2-turn-id"])
    refused = omni2.sql("SELECT count(*) FROM turns WHERE user_id = 'limited@example.com' AND outcome = 'refused'")
    assert refused == [(1,)]


def test_an_address_omni2_does_not_have_is_refused_in_openais_words(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model=MODEL, input="Hi")
    assert caught.value.code == "unknown_url"


def test_a_body_that_is_too_large_or_no_json_is_refused_in_openais_words(omni2: Running, token: str) -> None:
    url, headers = omni2.url + "/v1/chat/completions", {"Authorization": f"Bearer {token}"}
    answer = httpx2.post(url, headers=headers, content=b"{")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "parse_error")
    answer = httpx2.post(url, headers=headers, content=b"[]")
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    answer = httpx2.post(url, headers=headers, content=b" " * (1024 * 1024 + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    answer = httpx2.get(url, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
    answer = httpx2.post(omni2.url + "/v1/models", headers=headers)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert httpx2.post(url, content=b"{}").json()["error"]["code"] == "not_authenticated"


# --- models --------------------------------------------------------------------------------------


def test_the_models_are_listed_and_can_be_looked_up(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "omni2"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-nobody")
    assert caught.value.code == "model_not_found"
