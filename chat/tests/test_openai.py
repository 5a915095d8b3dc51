"""/v1 from inside: who is let in, what the catalogue and an admin's prompts change, and what a client's headers tell.
The official client's view of it is in tests/test_openai_client.py."""

import itertools
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import Group

from chat import endpoint, threads
from chat.catalogue import catalogue
from chat.client_side import client_side
from chat.models import GroupPrompt, LanguageModel
from chat.openai_dialect import retry_headers
from chat.tests.conftest import Call, Client
from chat.threads import REMEMBERED, Thread, Threads
from omni2.database import in_database
from tests.llm_server import KEY, LlmServer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]
PATH = "/v1/chat/completions"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TOOL = {"type": "function", "function": {"name": "look"}}


def asked(content: Any = "Hello", *, headers: Any = (), token: Client | None = None, **fields: Any) -> Call:
    body = {"model": "scripted-model", "messages": [{"role": "user", "content": content}], **fields}
    return (token or Client()).call(path=PATH, body=json.dumps(body).encode(), headers=list(headers))


async def complete(client: Client, content: Any = "Hello", **more: Any) -> Call:
    return await asked(content, token=client, **more).start().over()


def error(call: Call) -> tuple[int | None, str]:
    return call.status, call.json["error"]["code"]


@pytest.fixture
def offer(llm: LlmServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """offer("quick", to=(bob,)): a model of the catalogue that the scripted server answers, known to this process."""
    monkeypatch.setenv("KEY_OF_THE_TESTS", KEY)

    def offered(name: str, *, to: tuple[Any, ...] = (), **fields: Any) -> None:
        fields = {"model": name, "base_url": llm.url, "key_variable": "KEY_OF_THE_TESTS", **fields}
        LanguageModel.objects.create(name=name, **fields).users.set(to)
        catalogue.read()

    return offered


# --- who is let in -------------------------------------------------------------------------------


async def test_a_browser_session_needs_its_csrf_token(bob: Any, browser_of: Any) -> None:
    cookies, token = await in_database(browser_of, bob)
    assert error(await asked(headers=cookies).start().over()) == (403, "csrf_failed")
    assert (await asked(headers=[*cookies, (b"x-csrftoken", token)]).start().over()).status == 200
    listed = await Call("/v1/models", b"", cookies, method="GET").start().over()
    assert [model["id"] for model in listed.json["data"]] == ["scripted-model"]


async def test_nobody_is_told_anything(bob: Any) -> None:
    for path, method in ((PATH, "POST"), ("/v1/models", "GET"), ("/v1/models/scripted-model", "GET")):
        for headers in ([], [(b"authorization", b"Bearer nonsense")], [(b"cookie", b"sessionid=x")]):
            call = await Call(path, b"{}", headers, method=method).start().over()
            assert call.status == 401
            assert call.json["error"]["type"] == "authentication_error"
            assert call.answer_headers["www-authenticate"].startswith("Bearer")


async def test_a_full_server_and_a_flood_of_refusals_are_told_in_openais_words(
    bob: Any, client_of: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = client_of(bob)
    settings.MAX_TURNS = 0
    busy = await complete(client)
    assert error(busy) == (503, "server_busy")
    assert "x-should-retry" not in busy.answer_headers
    settings.MAX_TURNS = 10
    monkeypatch.setattr(endpoint.refusals, "PER_MINUTE", 0)
    monkeypatch.setattr(endpoint.refusals, "is_too_much", lambda user_id: True)
    flood = await complete(client, model="nobody")
    assert error(flood) == (429, "too_many_refusals")
    assert flood.answer_headers["x-should-retry"] == "false"


def test_only_what_may_pass_soon_is_tried_again() -> None:
    never = [(b"x-should-retry", b"false")]
    assert retry_headers(429, "too_many_turns", 1) == []
    assert retry_headers(429, "usage_limit", 40) == []
    assert retry_headers(429, "usage_limit", 4000) == never
    assert retry_headers(502, "llm_failed", None) == never
    assert retry_headers(409, "stopped", None) == never
    assert retry_headers(503, "database_unavailable", 5) == []
    assert retry_headers(400, "invalid_value", None) == []


# --- models and prompts --------------------------------------------------------------------------


async def test_it_lists_and_asks_what_the_caller_may_use(
    bob: Any,
    charlie: Any,
    client_of: Any,
    offer: Any,
) -> None:
    await in_database(offer, "for all")
    await in_database(offer, "for bob/fast", to=(bob,))
    await in_database(offer, "off", enabled=False)
    for user, names in ((bob, {"scripted-model", "for all", "for bob/fast"}), (charlie, {"scripted-model", "for all"})):
        client = client_of(user)
        listed = await client.call(path="/v1/models", body=b"", method="GET").start().over()
        assert {model["id"] for model in listed.json["data"]} == names
        one = await client.call(path="/v1/models/for bob/fast", body=b"", method="GET").start().over()
        answer = await complete(client, model="for bob/fast")
        if "for bob/fast" in names:
            assert (one.status, one.json["id"], answer.json["model"]) == (200, "for bob/fast", "for bob/fast")
        else:
            assert error(one) == error(answer) == (404, "model_not_found")


async def test_an_admins_prompts_are_told_and_omni2s_own_words_are_not(
    bob: Any,
    client_of: Any,
    offer: Any,
    llm: Any,
) -> None:
    client = client_of(bob)
    system = {"role": "system", "content": "Be a pirate."}
    question = {"role": "user", "content": "Hi"}
    await complete(client, messages=[system, question])
    assert llm.requests[-1].messages == [system, question]

    def prompts() -> None:
        group = Group.objects.create(name="cooks")
        bob.groups.add(group)
        GroupPrompt.objects.create(group=group, prompt="Cook.")
        offer("strict", system_prompt="Never swear.", settings={"max_tokens": 50, "temperature": 0.1})

    await in_database(prompts)
    await complete(client, messages=[system, question], model="strict", max_tokens=500, temperature=1)
    seen = llm.requests[-1]
    said = [message["content"] for message in seen.messages]
    assert said == ["Be a pirate.", "Never swear.\n\nCook.", "Hi"]
    assert (seen.body.get("max_completion_tokens") or seen.body.get("max_tokens")) == 50
    assert seen.body["temperature"] == 1


async def test_what_a_model_cannot_do_is_refused_by_the_name_of_the_field(
    bob: Any,
    client_of: Any,
    offer: Any,
    tree_of: Any,
) -> None:
    await in_database(offer, "simple", takes_tools=False)
    this = {"type": "function", "function": {"name": TOOL["function"]["name"]}}
    for stream, choice in itertools.product((False, True), ("required", this)):
        call = await complete(client_of(bob), model="simple", tools=[TOOL], tool_choice=choice, stream=stream)
        assert error(call) == (400, "tools_not_supported")
        assert call.json["error"]["param"] == "tool_choice"
        (await tree_of(bob, call.turn_id)).assert_complete("failed")


@pytest.mark.parametrize(
    "choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"parallel_tool_calls": True}]
)
async def test_a_model_without_tools_answers_a_client_that_has_some(
    bob: Any, client_of: Any, offer: Any, tree_of: Any, llm: Any, choice: dict[str, Any]
) -> None:
    """Open WebUI brings its own along with every question."""
    await in_database(offer, "simple", takes_tools=False)
    call = await complete(client_of(bob), model="simple", tools=[TOOL], **choice)
    assert call.status == 200
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & llm.requests[-1].body.keys()
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert tree.one("llm_thinking")["metadata"]["tools_withheld"] == [TOOL["function"]["name"]]


# --- what is said --------------------------------------------------------------------------------


async def test_neither_memory_nor_anothers_words_are_added(bob: Any, client_of: Any, llm: Any) -> None:
    client = client_of(bob)
    session_id = str(uuid.uuid4())
    await client.whole("Remember the number 7", session_id=session_id)
    call = await complete(client, "What number?", metadata={"session_id": session_id})
    assert call.answer_headers["x-omni2-session-id"] == session_id
    assert [message["content"] for message in llm.requests[-1].messages] == ["What number?"]
    await client.whole("And now?", session_id=session_id)
    assert "What number?" in str(llm.requests[-1].messages), "but Omni2's own chat goes on from it"


async def test_odd_text_is_made_harmless(bob: Any, client_of: Any, llm: Any) -> None:
    call = await complete(client_of(bob), "a\x00b\ud800c")
    assert call.status == 200
    assert llm.requests[-1].question == "a\ufffdb\ufffdc"


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        ([7], "messages[0]"),
        ([{"role": "robot", "content": "x"}], "messages[0].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "function", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": []}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        *(
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}],
                "messages[0].content[0]",
            )
            for url in (
                "http://127.0.0.1/",
                "file:///etc/passwd",
                "data:text/html;base64,AA==",
                "data:image/png;base64,%",
            )
        ),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "messages"),
        ([{"role": "tool", "tool_call_id": "c", "content": "x"}], "messages[0].tool_call_id"),
        (
            [
                {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "user", "content": "x"},
            ],
            "messages[0].tool_calls",
        ),
        ([{"role": "assistant", "tool_calls": [{"id": 3, "function": {"name": "f"}}]}], "messages[0].tool_calls[0].id"),
    ],
)
async def test_a_message_that_cannot_be_is_named(bob: Any, client_of: Any, messages: Any, param: str) -> None:
    call = await complete(client_of(bob), messages=messages)
    assert call.status == 400
    assert call.json["error"]["param"].startswith(param)
    assert call.json["error"]["type"] == "invalid_request_error"


async def test_a_filter_in_the_middle_is_an_answer_with_that_reason(bob: Any, client_of: Any, tree_of: Any) -> None:
    for stream in (False, True):
        call = await complete(client_of(bob), "script:filtered", stream=stream)
        assert call.status == 200
        assert b'"finish_reason":"content_filter"' in call.content
        assert call.content.endswith(b"data: [DONE]\n\n" if stream else b"}")


async def test_a_heartbeat_comes_while_the_model_is_silent(
    bob: Any, client_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.openai_dialect.HEARTBEAT_S", 0.05)
    call = asked("script:hang", token=client_of(bob), stream=True).start()
    await call.until(lambda call: call.content.count(b": still here\n\n") >= 2)
    assert call.status == 200
    call.leave()
    await call.over()


async def test_tools_of_the_client_are_closed_steps_in_the_tree(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await complete(client_of(bob), "script:client_tools", tools=[TOOL])
    (message,) = [choice["message"] for choice in call.json["choices"]]
    assert message["content"] is None
    assert [each["function"]["name"] for each in message["tool_calls"]] == ["look"]
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert tree.facts("tool_result")["status"] == "handed_over"


async def test_too_many_calls_for_the_client_end_the_turn(
    bob: Any, client_of: Any, tree_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chat.turn.HANDED_OVER_AT_ONCE", 1)
    tools = [TOOL, {"type": "function", "function": {"name": "hear"}}]
    call = await complete(client_of(bob), "script:client_tools", tools=tools)
    assert error(call) == (502, "too_many_tool_calls")
    (await tree_of(bob, call.turn_id)).assert_complete("failed")


# --- what the headers tell -----------------------------------------------------------------------


def told(*headers: tuple[bytes, bytes]) -> Any:
    return client_side({"headers": headers})


@pytest.mark.parametrize(
    "value",
    [
        TRACE.upper(),
        TRACE[:-1],
        TRACE + "-00",
        "01" + TRACE[2:],
        "ff" + TRACE[2:],
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        TRACE.replace("-", "_"),
        TRACE + "\n",
        "٠٠" + TRACE[2:],
        "",
    ],
)
def test_a_malformed_trace_is_ignored(value: str) -> None:
    # the server strips white space around a value; a line break never gets so far
    side = told((b"traceparent", value.encode().replace(b"\n", b"\x0b.")))
    assert (side.traceparent, "traceparent" in side.facts) == ("", False)


def test_a_trace_is_taken_once_only() -> None:
    assert told((b"Traceparent", TRACE.encode())).traceparent == TRACE
    assert told((b"traceparent", TRACE.encode()), (b"traceparent", TRACE.encode())).traceparent == ""


def test_the_session_is_a_uuid_of_whichever_header() -> None:
    own, chat = str(uuid.uuid4()), str(uuid.uuid4())
    assert told((b"x-session-id", own.upper().encode())).session_id == own
    assert told((b"x-openwebui-chat-id", chat.encode())).session_id == chat
    assert told((b"x-openwebui-chat-id", chat.encode()), (b"x-session-id", own.encode())).session_id == own
    assert told((b"x-openwebui-chat-id", b"local:1"), (b"x-session-id", b"")).session_id is None


@pytest.mark.parametrize("path", ["/api/v1/ask", "/api/v1/ask/stream"])
async def test_the_ask_routes_take_the_headers_too(
    bob: Any, client_of: Any, tree_of: Callable[..., Any], llm: Any, path: str
) -> None:
    session_id, other = str(uuid.uuid4()), str(uuid.uuid4())
    headers = [(b"x-session-id", session_id.encode()), (b"traceparent", TRACE.encode()), (b"user-agent", b"x" * 500)]
    client = client_of(bob)
    call = await client.call("Hello", path=path, headers=headers).start().over()
    assert call.answer_headers["x-omni2-session-id"] == session_id
    facts = (await tree_of(bob, call.turn_id)).facts("auth_check")
    assert (facts["traceparent"], facts["user_agent"], "client" in facts) == (TRACE, "x" * 120, False)
    assert llm.requests[-1].headers["traceparent"] == TRACE
    call = await client.call("Hello", path=path, headers=headers, session_id=other).start().over()
    assert call.answer_headers["x-omni2-session-id"] == other, "the body goes before the header"
    call = await client.call("Hello", path=path, headers=[(b"x-session-id", b"mine")]).start().over()
    assert (call.status, call.json) == (400, {"X-Session-Id": ["Must be a valid UUID."]})


async def test_every_answer_of_a_turn_names_it(bob: Any, client_of: Any, limits: Callable[..., None]) -> None:
    client = client_of(bob)
    for content, status in (("Hello", 200), ("script:error_500", 502)):
        call = await complete(client, content)
        assert (call.status, "x-omni2-session-id" in call.answer_headers) == (status, True)
        assert call.answer_headers["x-request-id"] == call.turn_id
    limits(requests_per_day=0)
    for call in (await complete(client), await client.stream("Hello"), await client.whole("Hello")):
        assert call.status == 429
        body = call.json.get("error", call.json)
        assert (call.turn_id, call.answer_headers["x-omni2-session-id"]) == (body["turn_id"], body["session_id"])


# --- conversations known again -------------------------------------------------------------------


def test_what_is_remembered_of_dialogues_is_bounded() -> None:
    known = Threads(threads.threads.known.__class__())
    for number in range(REMEMBERED + 10):
        thread = Thread(b"key")
        thread.hear([str(number)])
        known.remember(thread.key, str(number))
    assert len(known.known) == REMEMBERED
    first = Thread(b"key")
    first.hear(["0"])
    assert known.find(first) is None


def test_two_dialogues_with_the_same_letters_are_two() -> None:
    keys = set()
    for said in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""]):
        thread = Thread(b"key")
        thread.hear(said)
        keys.add(thread.key)
    assert len(keys) == 4
