"""One turn with a tool, looked at in every place it goes: the same checkpoints everywhere."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import redis.asyncio
import websockets

from tests.faults.load import Told, ask
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow

BOB = "bob@example.com"


@pytest.fixture(scope="module")
def omni2(_llm_server: LlmServer) -> Iterator[Running]:
    with running(llm_base_url=_llm_server.url, web=2) as started:
        yield started


async def published(omni2: Running, heard: list[dict[str, Any]], ready: asyncio.Event) -> None:
    """What an outside subscriber gets on the user's channel."""
    async with redis.asyncio.Redis.from_url(omni2.redis_url) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(f"flow_events:{BOB}")
        async for message in pubsub.listen():
            if message["type"] == "subscribe":
                ready.set()
            else:
                heard.append(json.loads(message["data"]))


async def watched(omni2: Running, token: str, heard: list[dict[str, Any]], ready: asyncio.Event) -> None:
    """What a watcher's socket gets; he is connected to another process than the one that serves the turn."""
    url = omni2.urls[1].replace("http", "ws") + f"/ws/flows/{BOB}"
    async with websockets.connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
        async for text in socket:
            message = json.loads(text)
            if message["type"] == "checkpoint":
                heard.append(message["checkpoint"])
            elif message["type"] == "snapshot" and not message["more"]:
                heard.extend(message["checkpoints"])
                ready.set()


async def test_a_turn_is_the_same_in_every_place(omni2: Running) -> None:
    token = omni2.create_token(BOB)
    omni2.create_user("ada@example.com", "Ada Lovelace", is_superuser=True, is_staff=True)
    ada = omni2.create_token("ada@example.com")
    headers = {"Authorization": f"Bearer {ada}"}
    async with httpx2.AsyncClient(base_url=omni2.url, headers=headers, timeout=30) as client:
        enabled = await client.post("/api/v1/monitoring/enable", json={"user_id": BOB, "ttl_hours": 1})
        assert enabled.status_code == 200, enabled.text
        messages: list[dict[str, Any]] = []
        frames: list[dict[str, Any]] = []
        ready = [asyncio.Event(), asyncio.Event()]
        listening = [
            asyncio.create_task(published(omni2, messages, ready[0])),
            asyncio.create_task(watched(omni2, ada, frames, ready[1])),
        ]
        await asyncio.wait_for(asyncio.gather(*(each.wait() for each in ready)), 20)

        told = await ask(Told("script:clock", BOB, omni2.url), token)
        assert told.end == "done"
        count = told.checkpoints
        assert told.durable == count

        async def all_heard() -> None:
            while len(frames) < count or len(messages) < count:
                await asyncio.sleep(0.02)

        await asyncio.wait_for(all_heard(), 20)
        for task in listening:
            task.cancel()
        eventually(lambda: stored(omni2, told.turn_id) == count, "the turn is stored")
        rest = await client.get(f"/api/v1/flows/user/{BOB}", params={"limit": 500})
        session_id = frames[0]["session_id"]
        session = (await client.get(f"/api/v1/flows/session/{session_id}")).json()

    entries = omni2.redis.xrange(f"interaction_flows:{BOB}")
    stream = [json.loads(fields[b"d"]) for _, fields in entries]
    assert [checkpoint["checkpoint"] for checkpoint in stream] == [
        "auth_check", "block_check", "usage_check", "llm_thinking", "llm_complete", "tool_call", "tool_result",
        "llm_thinking", "llm_complete", "flow_end",
    ]  # fmt: skip
    assert [message["checkpoint"] for message in messages] == stream
    assert frames == stream
    assert list(reversed(rest.json()["flows"])) == stream
    assert session["flows"] == stream
    assert table(omni2, told.turn_id) == stream
    cursors = [message["cursor"] for message in messages]
    assert [cursor.partition(".")[2] for cursor in cursors] == [entry_id.decode() for entry_id, _ in entries]
    assert [message["prev"] for message in messages] == [None, *cursors[:-1]]
    assert flat(session["tree"]) == {row["flow_id"]: row["parent_id"] for row in stream}


def stored(omni2: Running, turn_id: str) -> int:
    return omni2.sql("SELECT count(*) FROM interaction_flows WHERE turn_id = %s", turn_id)[0][0]


def table(omni2: Running, turn_id: str) -> list[dict[str, Any]]:
    """The rows as PostgreSQL itself writes them, in the order of a turn."""
    rows = omni2.sql(
        "SELECT jsonb_build_object('flow_id', flow_id, 'user_id', user_id, 'session_id', session_id,"
        " 'turn_id', turn_id, 'checkpoint', checkpoint, 'parent_id', parent_id, 'metadata', metadata, 'created_at',"
        """ to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))"""
        " FROM interaction_flows WHERE turn_id = %s ORDER BY created_at, flow_id",
        turn_id,
    )
    return [row[0] for row in rows]


def flat(tree: list[dict[str, Any]], parent_id: str | None = None) -> dict[str, str | None]:
    """flow_id → the parent under which the tree shows it."""
    found: dict[str, str | None] = {}
    for branch in tree:
        found[branch["flow_id"]] = parent_id
        found |= flat(branch["children"], branch["flow_id"])
    return found
