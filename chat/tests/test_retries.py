"""What happens when a model fails before its first token: it is asked again, then its fallback, and each request
is one pair of checkpoints."""

import asyncio
import gc
from typing import Any

import pytest

from chat import llm as door
from chat.catalogue import catalogue
from chat.models import DailyUsage, LanguageModel
from omni2.database import in_database
from tests.llm_server import KEY, LlmServer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(door, "FIRST_TOKEN_TIMEOUT_S", 0.4)


@pytest.fixture
def offer(llm: LlmServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """await offer(name, …): a model of the catalogue that the scripted server answers."""
    monkeypatch.setenv("KEY_OF_THE_TESTS", KEY)

    def make(name: str, **fields: Any) -> LanguageModel:
        fields = {"model": name, "base_url": llm.url, "key_variable": "KEY_OF_THE_TESTS", **fields}
        made = LanguageModel.objects.create(name=name, **fields)
        catalogue.read()
        return made

    async def offered(name: str, **fields: Any) -> LanguageModel:
        return await in_database(lambda: make(name, **fields))

    return offered


def requests_in(tree: Any) -> list[tuple[Any, ...]]:
    """(model, attempt, status, code) of each request, in order."""
    ends = {each["parent_id"]: each["metadata"] for each in tree.every("llm_complete")}
    found = []
    for each in tree.every("llm_thinking"):
        asked, end = each["metadata"], ends[each["flow_id"]]
        found.append((asked["model"], asked["attempt"], end["status"], end.get("code")))
    return found


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("error_429_once", "llm_rate_limited"),
        ("error_500_once", "llm_failed"),
        ("cut_at_once", "llm_failed"),
        ("hang_once", "llm_timeout"),
    ],
)
async def test_it_is_asked_again_before_the_first_token(
    script: str, code: str, bob: Any, client_of: Any, tree_of: Any, llm: Any, offer: Any, request: Any
) -> None:
    await offer("twice", is_default=True, first_token_timeout_s=1)
    call = await client_of(bob).stream(f"script:{script} of {request.node.name}")
    assert call.last.name == "done"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    assert requests_in(tree) == [("twice", 1, "error", code), ("twice", 2, "ok", None)]
    first, second = tree.every("llm_complete")
    if script not in ("cut_at_once", "hang_once"):
        assert first["metadata"]["provider_request_id"] == llm.requests[0].request_id
    assert second["metadata"]["provider_request_id"] == llm.requests[1].request_id
    assert second["metadata"]["provider_response_id"] == "chatcmpl-scripted"
    usage = call.last.data["usage"]
    assert usage["input_tokens"] == second["metadata"]["input_tokens"], "what failed cost nothing"
    assert await in_database(lambda: DailyUsage.objects.get().requests) == 1


async def test_the_model_of_the_environment_is_asked_again_too(
    bob: Any, client_of: Any, tree_of: Any, settings: Any
) -> None:
    settings.LLM_ATTEMPTS = 3
    call = await client_of(bob).stream("script:error_503")
    assert call.last.data["code"] == "llm_unavailable"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("failed")
    assert [each[1:3] for each in requests_in(tree)] == [(1, "error"), (2, "error"), (3, "error")]
    assert tree.one("error")["parent_id"] == tree.every("llm_thinking")[-1]["flow_id"]


@pytest.mark.parametrize(
    "script", ["too_long", "policy", "filtered_at_once", "error_401", "hang_in_middle", "cut", "error_in_middle"]
)
async def test_what_cannot_get_better_is_asked_once(
    script: str, bob: Any, client_of: Any, llm: Any, offer: Any
) -> None:
    await offer("often", is_default=True, attempts=5, next_token_timeout_s=1)
    call = await client_of(bob).stream(f"script:{script}")
    assert call.last.name == "error"
    assert len(llm.requests) == 1


@pytest.mark.parametrize("script", ["error_500", "error_401", "hang", "error_429"])
async def test_the_fallback_answers_when_it_failed_for_good(
    script: str, bob: Any, client_of: Any, tree_of: Any, llm: Any, offer: Any
) -> None:
    other = await offer("scripted-plain", model="scripted-plain", description="answers always")
    # the question of this test names no script, so the model's name does
    await offer(
        "first", model=f"scripted-{script}", is_default=True, fallback=other, attempts=2, first_token_timeout_s=1
    )
    call = await client_of(bob).stream("Hello")
    assert call.last.name == "done"
    assert call.last.data["model"] == "scripted-plain"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    asked = requests_in(tree)
    assert asked[-1][0] == "scripted-plain"
    assert asked[-1][2] == "ok"
    assert {each[0] for each in asked[:-1]} == {"first"}
    assert len(asked) == (2 if script == "error_401" else 3)
    assert tree.every("llm_thinking")[-1]["metadata"]["instead_of"] == "first"
    assert "instead_of" not in tree.every("llm_thinking")[0]["metadata"]


@pytest.mark.parametrize("script", ["too_long", "policy", "cut"])
async def test_no_fallback_answers_what_it_could_not_mend(
    script: str, bob: Any, client_of: Any, llm: Any, offer: Any
) -> None:
    other = await offer("scripted-plain")
    await offer("first", model=f"scripted-{script}", is_default=True, fallback=other)
    call = await client_of(bob).stream("Hello")
    assert call.last.name == "error"
    assert len(llm.requests) == 1


async def test_a_turn_fails_when_all_have_failed(bob: Any, client_of: Any, tree_of: Any, llm: Any, offer: Any) -> None:
    last = await offer("third", model="scripted-error_429", attempts=1)
    other = await offer("second", model="scripted-error_503", attempts=2, fallback=last)
    first = await offer("first", model="scripted-error_500", is_default=True, attempts=1, fallback=other)
    # a circle that came about behind the admin's back
    await in_database(LanguageModel.objects.filter(pk=last.pk).update, fallback=first)
    await in_database(catalogue.read)
    call = await client_of(bob).stream("Hello")
    assert call.last.data["code"] == "llm_rate_limited"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("failed")
    assert [each[0] for each in requests_in(tree)] == ["first", "second", "second", "third"]
    assert len(llm.requests) == 4


async def test_a_fallback_that_is_the_same_model_of_the_same_server_is_not_asked(
    bob: Any, client_of: Any, llm: Any, offer: Any
) -> None:
    same = await offer("same", model="scripted-error_500")
    await offer("first", model="scripted-error_500", is_default=True, attempts=1, fallback=same)
    call = await client_of(bob).stream("Hello")
    assert call.last.data["code"] == "llm_failed"
    assert len(llm.requests) == 1


async def test_a_disabled_fallback_is_not_asked(bob: Any, client_of: Any, llm: Any, offer: Any) -> None:
    off = await offer("off", model="scripted-plain", enabled=False)
    await offer("first", model="scripted-error_500", is_default=True, attempts=1, fallback=off)
    call = await client_of(bob).stream("Hello")
    assert call.last.data["code"] == "llm_failed"
    assert len(llm.requests) == 1


async def test_what_the_server_asks_for_is_waited_for_within_reason(
    bob: Any, client_of: Any, llm: Any, offer: Any
) -> None:
    await offer("patient", is_default=True)
    call = await client_of(bob).stream("script:error_429_once retry-after:0 please")
    assert call.last.name == "done"
    assert len(llm.requests) == 2
    call = await client_of(bob).stream("script:error_429_once retry-after:600 please")
    assert call.last.data["code"] == "llm_rate_limited"
    assert len(llm.requests) == 3


def test_the_pause_grows_and_is_never_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BACK_OFF_S", (1.0, 2.0))
    for attempt, least in ((1, 1.0), (2, 2.0), (9, 2.0)):
        pause_s = door._pause_s(attempt, None)
        assert pause_s is not None
        assert least <= pause_s <= least * 1.5
    assert door._pause_s(1, 3.0) == 3.0
    assert door._pause_s(1, door.RETRY_AFTER_AT_MOST_S + 1) is None


async def test_a_later_round_is_asked_again_by_itself(
    bob: Any, client_of: Any, tree_of: Any, llm: Any, offer: Any
) -> None:
    await offer("twice", is_default=True)
    call = await client_of(bob).stream("script:talk_and_call+error_500_once and on")
    assert call.last.name == "done"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    rounds = [(each["metadata"]["round"], each["metadata"]["attempt"]) for each in tree.every("llm_thinking")]
    assert rounds == [(1, 1), (2, 1), (2, 2)]
    assert call.text.count("Let me look.") == 1


async def test_who_leaves_during_the_pause_is_not_asked_for_again(
    bob: Any, client_of: Any, tree_of: Any, llm: Any, offer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(door, "BACK_OFF_S", (60.0,))
    await offer("twice", is_default=True)
    call = client_of(bob).call("script:error_500").start()
    await asyncio.to_thread(llm.wait_until, lambda: llm.requests and llm.requests[0].over.is_set())
    await asyncio.sleep(0.2)
    call.leave()
    await call.over()
    assert len(llm.requests) == 1
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("disconnected")


async def test_tokens_of_a_request_that_failed_are_charged(bob: Any, client_of: Any, tree_of: Any, offer: Any) -> None:
    await offer("dear", is_default=True, input_usd_per_million=500_000, output_usd_per_million=250_000)
    call = await client_of(bob).stream("script:filtered")
    assert call.last.data["code"] == "content_refused"
    tree = await tree_of(bob, call.turn_id)
    assert tree.facts("llm_complete")["cost_usd"] == 12 * 0.5 + 5 * 0.25
    used = await in_database(lambda: DailyUsage.objects.values_list("input_tokens", "output_tokens", "cost_usd").get())
    assert used == (12, 5, 7.25)


async def test_a_failed_attempt_leaves_the_cost_of_the_turn_known(bob: Any, client_of: Any, offer: Any) -> None:
    await offer("dear", is_default=True, input_usd_per_million=500_000, output_usd_per_million=0)
    call = await client_of(bob).stream("script:error_500_once with its price")
    usage = call.last.data["usage"]
    assert usage["cost_usd"] == usage["input_tokens"] / 2


async def test_the_connections_of_an_old_version_are_closed_when_no_turn_has_it(
    bob: Any, client_of: Any, llm: Any, offer: Any
) -> None:
    row = await offer("quick", is_default=True)
    models = door.models()
    call = client_of(bob).call("script:slow").start()
    await call.until(lambda call: b"event: token" in call.content)
    (old,) = [model for model in models._made.values() if model.name == "quick"]
    client = old.model.client._client  # type: ignore[attr-defined]
    await in_database(LanguageModel.objects.filter(pk=row.pk).update, description="changed")
    assert (await client_of(bob).stream("Hello")).last.name == "done"
    assert [model is old for model in models._made.values() if model.name == "quick"] == [False]
    assert not client.is_closed, "a turn has it still"
    del old
    await call.over()
    assert call.last.name == "done"
    del call
    for _ in range(500):
        gc.collect()
        if client.is_closed:
            break
        await asyncio.sleep(0.01)
    assert client.is_closed
