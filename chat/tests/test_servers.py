"""The same on really started servers: Daphne and uvicorn, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import httpx2
import pytest

from chat.models import UserLimits
from chat.scripted_model import SCRIPTS, Chunk, Seen, speak
from tests.faults.footprint import at_rest, grown
from tests.faults.leavers import CASES, Leaver, counter
from tests.faults.leavers import problems as leaving_problems
from tests.faults.leavers import wave as leave_in_a_wave
from tests.faults.load import Person
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow
AT_ONCE = 300


@pytest.fixture(scope="module", params=["daphne", "uvicorn"])
def omni2(request: Any, _llm_server: LlmServer) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI2_TEST_SERVER", request.param)
        with running(llm_base_url=_llm_server.url, DATABASE_POOL_SIZE="10") as started:
            yield started


@pytest.fixture
def asked(_llm_server: LlmServer) -> LlmServer:
    _llm_server.requests.clear()
    return _llm_server


@pytest.fixture
def token(omni2: Running) -> str:
    return omni2.create_token("bob@example.com")


def open_client(omni2: Running, token: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        base_url=omni2.url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
        limits=httpx2.Limits(max_connections=None),
    )


async def events(answer: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def outcome(omni2: Running, turn_id: str) -> Any:
    return eventually(
        lambda: [row[0] for row in omni2.sql("SELECT outcome FROM turns WHERE turn_id = %s", turn_id) if row[0]],
        f"turn {turn_id} is stored with its outcome",
    )[0]


async def test_tokens_arrive_one_by_one(omni2: Running, token: str, asked: LlmServer) -> None:
    going_on = asyncio.Event()

    async def two_halves(seen: Seen) -> AsyncIterator[Chunk]:
        async for number, chunk in _numbered(speak(seen, "first second")):
            if number == 1:
                # goes on only when the client has read the first half
                while not going_on.is_set():
                    await asyncio.sleep(0.01)
            yield chunk

    SCRIPTS["two_halves"] = two_halves
    async with open_client(omni2, token) as client:
        async with client.stream("POST", "/api/v1/ask/stream", json={"message": "script:two_halves"}) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            said = []
            async for name, data in events(answer):
                said.append((name, data))
                if name == "token":
                    going_on.set()
        names, done = [name for name, _ in said], said[-1][1]
        assert names == ["session", "token", "token", "token", "done"]
        assert done["tracked"]["durable"] == done["tracked"]["checkpoints"] == 6
    assert outcome(omni2, done["turn_id"]) == "completed"


async def _numbered(chunks: AsyncIterator[Chunk]) -> AsyncIterator[tuple[int, Chunk]]:
    number = 0
    async for chunk in chunks:
        yield number, chunk
        number += 1


async def test_whoever_leaves_at_any_moment_in_any_way_leaves_nothing_behind(omni2: Running, asked: LlmServer) -> None:
    """The model is let go, the turn says so, and nothing is held any more that was not held before."""
    emails = [f"leaver{number}@example.com" for number in range(4)]
    people = [Person(email, omni2.create_token(email)) for email in emails]
    omni2.orm(_lift_limits, emails)
    random, numbers = Random(9), counter()

    async def wave(tag: str) -> list[Leaver]:
        return await leave_in_a_wave(people, omni2.urls, random, count=len(CASES), tag=tag, numbers=numbers)

    # pools and caches are filled first
    await wave("warm-up")
    before = await asyncio.to_thread(at_rest, omni2)
    asked.requests.clear()
    leavers = await wave("")
    await asyncio.to_thread(asked.wait_until, lambda: all(seen.aborted or seen.finished for seen in asked.requests))
    hung = [seen for seen in asked.requests if seen.script.startswith("hang")]
    assert hung
    assert all(seen.aborted for seen in hung)
    assert await asyncio.to_thread(grown, omni2, before) == []
    outcomes = dict(omni2.sql("SELECT turn_id::text, outcome FROM turns WHERE user_id = ANY(%s)", emails))
    assert leaving_problems(leavers, outcomes) == []
    assert set(outcomes.values()) <= {"disconnected", "completed"}


async def test_refusals_are_plain_http(omni2: Running, token: str) -> None:
    async with open_client(omni2, token) as client:
        nobody = await client.post("/api/v1/ask", json={"message": "x"}, headers={"Authorization": "Bearer nope"})
        assert (nobody.status_code, nobody.json()["code"]) == (401, "token_unknown")
        bad = await client.post("/api/v1/ask", content=b"{")
        assert (bad.status_code, bad.json()["code"]) == (400, "parse_error")
        large = await client.post("/api/v1/ask/stream", content=b"x" * 2_000_000)
        assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
        get = await client.get("/api/v1/ask")
        assert (get.status_code, get.headers["allow"]) == (405, "POST")


async def test_300_answers_stream_at_once_on_ten_connections(omni2: Running, asked: LlmServer) -> None:
    emails = [f"user{number}@example.com" for number in range(20)]
    tokens = [omni2.create_token(email) for email in emails]
    omni2.orm(_lift_limits, emails)

    async def gate(seen: Seen) -> AsyncIterator[Chunk]:
        # nobody gets his answer before all of them have asked
        while sum(each.script == "gate" for each in asked.requests) < AT_ONCE:
            await asyncio.sleep(0.05)
        async for chunk in speak(seen, "one two three"):
            yield chunk

    SCRIPTS["gate"] = gate

    async def ask(client: httpx2.AsyncClient, token: str) -> str:
        headers = {"Authorization": f"Bearer {token}"}
        body = {"message": "script:gate"}
        async with client.stream("POST", "/api/v1/ask/stream", json=body, headers=headers) as answer:
            said = [(name, data) async for name, data in events(answer)]
        assert "".join(data["text"] for name, data in said if name == "token") == "one two three (scripted)"
        return said[-1][0]

    async with open_client(omni2, "") as client:
        last = await asyncio.gather(*(ask(client, tokens[number % len(tokens)]) for number in range(AT_ONCE)))
    assert last == ["done"] * AT_ONCE
    completed = "SELECT count(*) FROM turns WHERE outcome = 'completed' AND user_id LIKE 'user%%'"
    eventually(lambda: omni2.sql(completed) == [(AT_ONCE,)], "all turns are stored")
    mine = "user_id IN (SELECT id FROM users WHERE email LIKE 'user%%@example.com')"
    assert omni2.sql(f"SELECT sum(requests)::int FROM daily_usage WHERE {mine} AND requests = 15") == [(AT_ONCE,)]


def _lift_limits(emails: list[str]) -> None:
    from omni2.accounts.models import User

    UserLimits.objects.bulk_create(
        UserLimits(user=user, turns_unlimited=True) for user in User.objects.filter(email__in=emails)
    )
