"""A program of somebody else's may listen to monitored users, by the Redis user that the documents name."""

import json
import re
import uuid
from collections.abc import Iterator

import pytest
import redis
from django.conf import settings

from flows import keys, log
from flows.log import Line
from flows.redis import sync_client
from omni2.env import BASE_DIR

BOB, CHARLIE = "bob@example.com", "charlie@example.com"


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    made = sync_client()
    made.flushall()
    yield made
    made.close()


def append(client: redis.Redis, *users: str) -> None:
    """One batch of one checkpoint for each; Bob alone is monitored."""
    lines = []
    for user in users:
        flow_id = str(uuid.uuid4())
        document = f'{{"flow_id":"{flow_id}","user_id":"{user}"}}'.encode()
        lines.append(Line(user, flow_id, document))
    client.script_load(log.APPEND.source)
    client.execute_command(*log.pack_append(lines, lambda user: user == BOB))


@pytest.fixture
def reader(client: redis.Redis) -> Iterator[redis.Redis]:
    """The user of docs/architecture.md, made by the very command that stands there."""
    text = (BASE_DIR / "docs" / "architecture.md").read_text()
    command = re.search(r"`(ACL SETUSER reader .+?)`", text)
    assert command is not None
    client.execute_command(*command.group(1).split())
    made = redis.Redis.from_url(settings.REDIS_URL, username="reader", password="password")
    yield made
    made.close()
    client.acl_deluser("reader")


def test_it_hears_the_monitored_and_may_do_nothing_else(client: redis.Redis, reader: redis.Redis) -> None:
    pubsub = reader.pubsub(ignore_subscribe_messages=True)
    pubsub.psubscribe("flow_events:*")
    pubsub.get_message(timeout=5)
    append(client, CHARLIE, BOB)
    message = pubsub.get_message(timeout=5)
    assert message["channel"] == keys.user_channel(BOB).encode()
    assert list(json.loads(message["data"])) == ["cursor", "prev", "checkpoint"]
    pubsub.close()
    for words in (
        ("XRANGE", keys.user_stream(BOB), "-", "+"),
        ("PUBLISH", keys.user_channel(BOB), "x"),
        ("SUBSCRIBE", keys.CONTROL_CHANNEL),
        ("XREAD", "STREAMS", keys.log_shard(0), "0"),
        ("GET", "x"),
        ("FLUSHALL",),
        ("ACL", "LIST"),
        ("CONFIG", "GET", "requirepass"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            reader.execute_command(*words)


def test_a_users_stream_is_always_written_and_bounded_in_length_and_time(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "RECENT_ENTRIES", 200)
    for _ in range(10):
        append(client, *[CHARLIE] * 100)
    kept = client.xlen(keys.user_stream(CHARLIE))
    # trimmed by whole nodes of Redis, of a hundred entries
    assert 200 <= kept <= 400
    assert 0 < client.ttl(keys.user_stream(CHARLIE)) <= log.RECENT_SECONDS
    assert sum(client.xlen(name) for name in keys.LOG_SHARDS) == 1000, "the hand-off log is never trimmed"
    assert all(client.ttl(name) == -1 for name in keys.LOG_SHARDS if client.exists(name))
