"""Everything that can go wrong with a model or a tool: an `error` event in plain words, a complete
tree that says failed, and no trace of internals."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from chat import endpoint, tools, turn
from chat import llm as door
from chat.llm import WORDS
from chat.models import Conversation, DailyUsage, Message, TurnUsage
from omni2.database import in_database

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]

INTERNALS = ("Traceback", "secret", "sk-", "scripted model", "/srv", "line ", "127.0.0.1", "httpx", "pydantic")

FAILING = [
    ("error_500", "llm_failed", 502),
    ("error_503", "llm_unavailable", 503),
    ("error_429", "llm_rate_limited", 503),
    ("error_401", "llm_failed", 502),
    ("too_long", "context_too_long", 400),
    ("policy", "content_refused", 400),
    ("filtered", "content_refused", 400),
    ("filtered_at_once", "content_refused", 400),
    ("silent", "llm_failed", 502),
    ("cut", "llm_failed", 502),
    ("error_in_middle", "llm_failed", 502),
    ("bad_json", "llm_failed", 502),
    ("strange_shape", None, None),
    ("hang", "llm_timeout", 504),
    ("hang_in_middle", "llm_timeout", 504),
]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "FIRST_TOKEN_TIMEOUT_S", 0.3)
    monkeypatch.setattr(door, "BETWEEN_TOKENS_TIMEOUT_S", 0.3)


async def settled(user: Any, turn_id: str) -> None:
    """The slot is free again, and the request was counted."""

    def look() -> None:
        assert TurnUsage.objects.get(turn_id=turn_id).ended_at is not None
        assert DailyUsage.objects.get(user=user).requests == 1

    await in_database(look)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("script", "code", "status"), FAILING)
async def test_a_failing_model_ends_in_an_error_event(
    script: str, code: str | None, status: int | None, bob: Any, client_of: Any, tree_of: Any, llm: Any
) -> None:
    call = await client_of(bob).stream(f"script:{script}")
    assert call.status == 200
    assert call.ended
    assert call.names[0] == "session"
    assert call.names[-1] == "error"
    assert "done" not in call.names
    error = call.last.data
    assert error["turn_id"] == call.turn_id
    if code:
        assert error["code"] == code
        assert error["message"] in (*WORDS.values(), "The model said nothing.")
    assert not any(word in call.content.decode() for word in INTERNALS)

    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("failed")
    assert tree.facts("llm_complete")["status"] == "error"
    assert tree.parent_of(tree.one("error")) == "llm_thinking"
    # a server that hangs has not said what it calls the request
    called = {"provider_request_id": llm.requests[0].request_id} if script != "hang" else {}
    assert tree.facts("llm_complete").get("provider_request_id") == called.get("provider_request_id")
    if code:
        assert tree.facts("error") == {"code": code, "message": error["message"], **called}
        assert tree.facts("llm_complete")["code"] == code
    assert tree.facts("flow_end")["outcome"] == "failed"
    assert len(llm.requests) == 1, "it asked again behind the turn's back"
    await settled(bob, call.turn_id)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("script", "code", "status"), [each for each in FAILING if each[1]])
async def test_without_streaming_it_is_a_status(
    script: str, code: str, status: int, bob: Any, client_of: Any, tree_of: Any
) -> None:
    call = await client_of(bob).whole(f"script:{script}")
    assert (call.status, call.json["code"]) == (status, code)
    assert call.json["turn_id"] == call.turn_id
    assert call.json["session_id"]
    assert not any(word in call.content.decode() for word in INTERNALS)
    (await tree_of(bob, call.turn_id)).assert_complete("failed")
    await settled(bob, call.turn_id)


@pytest.mark.usefixtures("impatient")
async def test_an_answer_that_breaks_off_is_kept_as_far_as_it_was_seen(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await client_of(bob).stream("script:cut")
    assert call.names == ["session", "token", "error"]
    assert call.text == "This answer breaks off "
    assert (await tree_of(bob, call.turn_id)).facts("llm_complete")["answer"] == call.text
    kept = await in_database(lambda: list(Message.objects.values_list("role", "content")))
    assert kept == [("user", "script:cut"), ("assistant", "This answer breaks off ")]


async def test_a_hanging_model_is_let_go(bob: Any, client_of: Any, llm: Any, impatient: None) -> None:
    await client_of(bob).stream("script:hang_in_middle")
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests[0].aborted)


async def test_a_turn_as_a_whole_takes_only_so_long(
    bob: Any, client_of: Any, tree_of: Any, llm: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(turn, "TURN_TIMEOUT_S", 0.8)
    call = await client_of(bob).stream("script:slow")
    assert call.last.data["code"] == "llm_timeout"
    assert call.text
    (await tree_of(bob, call.turn_id)).assert_complete("failed")
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests[0].aborted)


async def test_an_answer_is_bounded_and_the_model_is_stopped(
    bob: Any, client_of: Any, tree_of: Any, llm: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(turn, "ANSWER_BYTES", 100_000)
    call = await client_of(bob).stream("script:long")
    assert call.last.name == "done"
    assert len(call.text.encode()) == 100_000
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert tree.facts("llm_complete")["finish_reason"] == "length"
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests[0].aborted)


# --- tools ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("bad_sum", "Division by zero."),
        ("unknown_tool", "There is no tool named teleport."),
        ("bad_arguments", "The arguments are not a JSON object."),
    ],
)
async def test_the_model_is_told_what_was_wrong_with_its_call(
    script: str, said: str, bob: Any, client_of: Any, tree_of: Any
) -> None:
    call = await client_of(bob).stream(f"script:{script}")
    assert call.names == ["session", "tool_call", "tool_result", "token", "done"]
    assert call.events[2].data["status"] == "error"
    assert said in call.text
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    result = tree.facts("tool_result")
    assert (result["status"], result["error"]) == ("error", said)
    assert tree.parent_of(tree.one("tool_result")) == "tool_call"


@pytest.mark.parametrize(
    ("capture", "kept"), [("full", 300), ("preview", 200), ("none", len("The tool could not do that."))]
)
async def test_what_a_tool_complains_about_is_kept_as_configured(
    capture: str, kept: int, bob: Any, client_of: Any, tree_of: Any, settings: Any, monkeypatch: Any
) -> None:
    """A complaint repeats what the model was told: with OMNI2_CAPTURE=none nothing of it is written down."""
    settings.CAPTURE = capture
    said = "hush " * 60

    async def complains(arguments: dict[str, Any]) -> str:
        raise tools.ToolProblem(said)

    with_tool(monkeypatch, "clock", complains)
    call = await client_of(bob).stream("script:clock")
    assert "hush" in call.text, "the model is told all of it"
    error = (await tree_of(bob, call.turn_id)).facts("tool_result")["error"]
    assert (len(error), "hush" in error) == (kept, capture != "none")


def with_tool(monkeypatch: Any, name: str, work: Any) -> None:
    monkeypatch.setattr(tools, "TOOLS", {**tools.TOOLS, name: replace(tools.TOOLS[name], call=work)})


async def test_a_tool_that_breaks_ends_the_turn(
    bob: Any, client_of: Any, tree_of: Any, llm: Any, monkeypatch: Any
) -> None:
    async def breaks(arguments: dict[str, Any]) -> str:
        raise RuntimeError("secret path /srv/omni2")

    with_tool(monkeypatch, "clock", breaks)
    call = await client_of(bob).stream("script:clock")
    assert call.names == ["session", "tool_call", "error"]
    assert call.last.data["code"] == "tool_failed"
    assert call.last.data["message"] == "The tool clock failed."
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("failed")
    assert tree.facts("tool_result")["status"] == "error"
    assert tree.parent_of(tree.one("error")) == "tool_call"
    assert "secret" not in str(tree.all)
    assert len(llm.requests) == 1


async def test_a_tool_that_breaks_takes_the_others_along(
    bob: Any, client_of: Any, tree_of: Any, monkeypatch: Any
) -> None:
    ended = asyncio.Event()

    async def breaks(arguments: dict[str, Any]) -> str:
        raise RuntimeError

    async def waits(arguments: dict[str, Any]) -> str:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return ""

    with_tool(monkeypatch, "calculator", breaks)
    with_tool(monkeypatch, "clock", waits)
    call = await client_of(bob).stream("script:parallel")
    assert call.last.data["code"] == "tool_failed"
    assert ended.is_set()
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("failed")
    assert sorted(each["metadata"]["status"] for each in tree.every("tool_result")) == [
        "cancelled",
        "cancelled",
        "error",
    ]


async def test_a_tool_that_hangs_is_given_up(bob: Any, client_of: Any, tree_of: Any, monkeypatch: Any) -> None:
    async def hangs(arguments: dict[str, Any]) -> str:
        await asyncio.sleep(60)
        return ""

    with_tool(monkeypatch, "clock", hangs)
    monkeypatch.setitem(tools.TOOLS, "clock", replace(tools.TOOLS["clock"], timeout_s=0.2))
    call = await client_of(bob).stream("script:clock")
    assert call.last.name == "done"
    assert "did not answer within 0.2 seconds" in call.text
    (await tree_of(bob, call.turn_id)).assert_complete("completed")


async def test_a_tool_cannot_flood_the_model(bob: Any, client_of: Any, llm: Any, monkeypatch: Any) -> None:
    async def floods(arguments: dict[str, Any]) -> str:
        return "x" * 1_000_000

    with_tool(monkeypatch, "clock", floods)
    await client_of(bob).stream("script:clock")
    (result,) = llm.requests[1].results
    assert len(result) < tools.RESULT_CHARACTERS + 100
    assert result.endswith("characters more]")


async def test_a_model_that_never_stops_calling_is_stopped(bob: Any, client_of: Any, tree_of: Any, llm: Any) -> None:
    call = await client_of(bob).stream("script:endless")
    assert call.last.data["code"] == "too_many_rounds"
    assert len(llm.requests) == turn.ROUNDS
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("failed")
    assert [each["metadata"]["round"] for each in tree.every("llm_thinking")] == list(range(1, turn.ROUNDS + 1))
    await settled(bob, call.turn_id)


async def test_a_model_that_calls_too_much_at_once_is_stopped(bob: Any, client_of: Any, tree_of: Any) -> None:
    call = await client_of(bob).stream("script:many_calls")
    assert call.last.data["code"] == "too_many_tool_calls"
    (await tree_of(bob, call.turn_id)).assert_complete("failed")


# --- ourselves -----------------------------------------------------------------------------------


async def test_a_defect_of_our_own_ends_in_order_too(bob: Any, client_of: Any, tree_of: Any, monkeypatch: Any) -> None:
    def breaks(*_: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(door.Dialogue, "add_results", breaks)
    call = await client_of(bob).stream("script:clock")
    assert call.last.data["code"] == "internal_error"
    assert "secret" not in call.content.decode()
    (await tree_of(bob, call.turn_id)).assert_complete("failed")
    await settled(bob, call.turn_id)
    whole = await client_of(bob).whole("script:clock")
    assert (whole.status, whole.json["code"]) == (500, "internal_error")


async def test_postgres_away_in_mid_turn_costs_the_user_nothing(
    bob: Any, client_of: Any, tree_of: Any, monkeypatch: Any
) -> None:
    from django.db import OperationalError

    real = turn.charge
    failing = 2

    def charge(*args: Any, **more: Any) -> None:
        nonlocal failing
        if failing:
            failing -= 1
            raise OperationalError("gone")
        real(*args, **more)

    monkeypatch.setattr(turn, "charge", charge)
    monkeypatch.setattr(turn, "CHARGE_AGAIN_AFTER_S", (0.05, 0.05))
    call = await client_of(bob).stream("script:clock")
    assert call.last.name == "done"
    (await tree_of(bob, call.turn_id)).assert_complete("completed")

    def look() -> Any:
        turn_usage = TurnUsage.objects.get(turn_id=call.turn_id)
        return turn_usage.ended_at is not None and turn_usage.input_tokens

    for _ in range(200):
        if tokens := await in_database(look):
            break
        await asyncio.sleep(0.02)
    assert tokens == call.last.data["usage"]["input_tokens"]


async def test_what_nobody_foresaw_is_still_json(bob: Any, client_of: Any, settings: Any, llm: Any) -> None:
    settings.USAGE_TZ = "Mars/Olympus"  # as if PostgreSQL did not know the zone
    for path in ("/api/v1/ask", "/api/v1/ask/stream"):
        call = await client_of(bob).call("Hello", path=path).start().over()
        assert (call.status, call.json) == (500, {"detail": "Something went wrong.", "code": "internal_error"})
    assert llm.requests == []


@pytest.fixture
def somebody_else(db: None) -> Any:
    """Another session of the same database."""
    import psycopg
    from django.db import connection

    database = connection.settings_dict
    with psycopg.connect(
        dbname=database["NAME"], user=database["USER"], host=database["HOST"], autocommit=True
    ) as session:
        yield session


@pytest.mark.parametrize("impatient_one", ["omni2", "server"])
async def test_an_admission_that_comes_too_late_is_given_back(
    impatient_one: str, bob: Any, client_of: Any, somebody_else: Any, llm: Any, monkeypatch: Any
) -> None:
    client = client_of(bob)
    # what bob's admission has to wait for
    somebody_else.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"omni2 usage of {bob.pk}"])
    try:
        call = client.call("Hello")
        if impatient_one == "omni2":
            monkeypatch.setattr(endpoint, "ADMIT_TIMEOUT_S", 0.2)
            await call.start().over()
            assert (call.status, call.json["code"]) == (503, "database_unavailable")
        else:
            call.start()
            await asyncio.sleep(0.2)
            call.task.cancel()  # type: ignore[union-attr]
            with pytest.raises(asyncio.CancelledError):
                await call.task  # type: ignore[misc]
        assert not await in_database(TurnUsage.objects.exists)
    finally:
        somebody_else.execute("SELECT pg_advisory_unlock_all()")
    for _ in range(500):
        if await in_database(lambda: DailyUsage.objects.filter(requests=0).exists()):
            break
        await asyncio.sleep(0.01)
    # as if it had never been asked
    assert await in_database(lambda: [kind.objects.count() for kind in (TurnUsage, Conversation, Message)]) == [0, 0, 0]
    assert await in_database(lambda: DailyUsage.objects.get().requests) == 0
    assert llm.requests == []
