"""Tool calls that wait for their user's yes: in the stream, in the API, and across processes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from rest_framework.test import APIClient

from chat import approvals, tool_servers, turn
from chat.catalogue import catalogue
from chat.models import ToolApproval, ToolServer
from chat.tests.conftest import Call
from chat.tests.test_tool_servers import until_known, using
from monitoring.watchlist import watchlist
from omni2.database import in_database
from tests.tool_server import run_http

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting", "asking")]

ADD = using(("things__add", {"a": 40, "b": 2}))


@pytest.fixture(scope="module")
def things() -> Iterator[str]:
    with run_http() as (url, _):
        yield url


@pytest.fixture
async def asking(things: str) -> AsyncIterator[None]:
    """A tool that waits for a yes, and a watch list that hears it."""
    await in_database(ToolServer.objects.create, name="things", url=things, approved_tools=["add"])
    await in_database(catalogue.read)
    row = await in_database(ToolServer.objects.get)
    await until_known(row)
    watchlist.follow("approvals", approvals.FOLLOWED, approvals.approvals.hear)
    await watchlist.start()
    yield
    await watchlist.stop()
    await tool_servers.tool_servers().close()


@pytest.fixture
def say(api_of: Callable[[Any], APIClient]) -> Any:
    """Answer by the API: (status, body)."""

    async def said(user: Any, turn_id: str, call_id: str, approve: Any) -> tuple[int, Any]:
        def post() -> tuple[int, Any]:
            path = f"/api/v1/turns/{turn_id}/approvals/{call_id}"
            answer = api_of(user).post(path, {"approve": approve}, format="json")
            return answer.status_code, answer.json()

        return await in_database(post)

    return said


@pytest.fixture
def api_of(token_of: Any) -> Callable[[Any], APIClient]:
    def client(user: Any) -> APIClient:
        made = APIClient()
        made.credentials(HTTP_AUTHORIZATION=f"Bearer {token_of(user)}")
        return made

    return client


async def asked(call: Call) -> dict[str, Any]:
    await call.until(lambda call: "approval" in call.names)
    return next(event.data for event in call.events if event.name == "approval")


@pytest.mark.parametrize(("yes", "decision"), [(True, "approved"), (False, "declined")])
async def test_the_tool_waits_for_the_users_word(
    yes: bool, decision: str, bob: Any, client_of: Any, say: Any, tree_of: Any, llm: Any
) -> None:
    call = client_of(bob).call(ADD).start()
    question = await asked(call)
    assert question["arguments"] == {"a": 40, "b": 2}
    assert (question["tool"], question["server"], question["turn_id"]) == ("add", "things", call.turn_id)
    assert 0 < question["expires_in_s"] <= 300
    before = await tree_of(bob, call.turn_id)
    assert before.facts("tool_approval")["status"] == "started", "it can be seen that it waits"
    assert "tool_result" not in before.names
    assert await say(bob, call.turn_id, question["call_id"], yes) == (
        200,
        {"call_id": question["call_id"], "approved": yes},
    )
    await call.over()
    assert call.last.name == "done"
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("completed")
    waiting, answered = tree.every("tool_approval")
    assert {tree.parent_of(each) for each in (waiting, answered)} == {"tool_call"}
    assert answered["metadata"]["status"] == decision
    assert answered["metadata"]["duration_ms"] > 0
    result = tree.facts("tool_result")
    if yes:
        assert result["status"] == "ok"
        assert "42" in call.text
    else:
        assert (result["status"], result["code"]) == ("error", "declined")
        assert "The user declined this call." in llm.requests[1].results[0]
    status_now, body = await say(bob, call.turn_id, question["call_id"], True)
    assert (status_now, body["code"]) == (409, "already_decided")
    row = await in_database(ToolApproval.objects.get)
    assert row.arguments == "", "what the model wrote is not kept"


async def test_it_ends_when_nobody_answers_in_time(
    bob: Any, client_of: Any, say: Any, tree_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turn, "WAIT_S", 1.0)
    call = await client_of(bob).stream(ADD)
    assert call.last.name == "done"
    tree = await tree_of(bob, call.turn_id)
    assert tree.facts("tool_result")["code"] == "expired"
    assert tree.every("tool_approval")[1]["metadata"]["status"] == "expired"
    question = await asked(call)
    assert (await say(bob, call.turn_id, question["call_id"], True))[0] == 409


async def test_leaving_ends_the_wait(bob: Any, client_of: Any, say: Any, tree_of: Any, api_of: Any) -> None:
    call = client_of(bob).call(ADD).start()
    question = await asked(call)
    call.leave()
    await call.over()
    tree = await tree_of(bob, call.turn_id)
    tree.assert_complete("disconnected")
    assert tree.every("tool_approval")[1]["metadata"]["status"] == "cancelled"
    async with asyncio.timeout(20):
        while (await say(bob, call.turn_id, question["call_id"], True))[0] != 409:
            await asyncio.sleep(0.02)


async def test_a_client_without_a_stream_finds_the_call_by_the_api(
    bob: Any, ada: Any, client_of: Any, say: Any, api_of: Any
) -> None:
    call = client_of(bob).call(ADD, path="/api/v1/ask").start()

    def waiting(user: Any) -> Any:
        return api_of(user).get("/api/v1/approvals").json()["approvals"]

    async with asyncio.timeout(20):
        while not (found := await in_database(waiting, bob)):
            await asyncio.sleep(0.02)
    assert (found[0]["server"], found[0]["tool"]) == ("things", "add")
    assert found[0]["arguments"] == '{"a": 40, "b": 2}'
    assert await in_database(waiting, ada) == [], "nobody sees another's"
    assert (await say(bob, found[0]["turn_id"], found[0]["call_id"], True))[0] == 200
    await call.over()
    assert "42" in call.json["answer"]
    assert await in_database(waiting, bob) == []


async def test_only_the_turns_own_user_may_answer(bob: Any, charlie: Any, ada: Any, client_of: Any, say: Any) -> None:
    call = client_of(bob).call(ADD).start()
    question = await asked(call)
    for other in (charlie, ada):
        assert (await say(other, call.turn_id, question["call_id"], True))[0] == 404
    assert (await say(bob, "no-uuid", question["call_id"], True))[0] == 404
    assert (await say(bob, call.turn_id, "another", True))[0] == 404
    for wrong in ("yes", 1, None):
        status, body = await say(bob, call.turn_id, question["call_id"], wrong)
        assert status == 400
        assert "approve" in body
    assert not call.ended
    assert (await say(bob, call.turn_id, question["call_id"], False))[0] == 200
    await call.over()
