"""Being monitored costs a turn no query, and who is not monitored is heard of by nobody."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.db.backends.utils import CursorWrapper

from flows.redis import get_redis
from flows.tracker import tracker
from monitoring.models import MonitoredUser
from monitoring.watchlist import Watchlist
from omni2.database import in_database

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement of every thread, whole."""
    seen: list[str] = []
    real = CursorWrapper.execute

    def execute(self: Any, sql: str, params: Any = None) -> Any:
        seen.append(sql)
        return real(self, sql, params)

    monkeypatch.setattr(CursorWrapper, "execute", execute)
    return seen


async def published_of(user: Any, ask: Any) -> tuple[list[str], list[str], list[str]]:
    """The names of the checkpoints of one turn: heard on Pub/Sub, in the user's stream, and all it made."""
    redis = get_redis()
    async with redis.pubsub(ignore_subscribe_messages=True) as subscription:
        await subscription.psubscribe("flow_events:*")
        await subscription.get_message(timeout=5)
        call = await ask.stream("script:tool hello")
        assert tracker.flusher is not None
        assert await tracker.flusher.drain(10)
        await redis.publish("flow_events:end", "end")
        heard = []
        while (message := await subscription.get_message(timeout=10)) is None or message["data"] != b"end":
            if message is not None:
                heard.append(json.loads(message["data"])["checkpoint"])
    assert all(each["user_id"] == user.user_id for each in heard)
    entries = await redis.xrange(f"interaction_flows:{user.user_id}")
    stored = [json.loads(next(iter(fields.values()))) for _, fields in entries]
    assert call.last.data["tracked"]["checkpoints"] == len(stored)
    return [each["checkpoint"] for each in heard], [each["checkpoint"] for each in stored], call.names


async def test_it_asks_nothing_of_the_database_to_know_it(
    bob: Any, charlie: Any, olga: Any, client_of: Any, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watchlist = Watchlist()
    monkeypatch.setattr(tracker, "is_monitored", watchlist.is_monitored)
    await in_database(MonitoredUser.enable, bob.user_id, by=olga, ttl=timedelta(hours=1))
    await watchlist.refresh()
    asking = {user.user_id: client_of(user) for user in (bob, charlie)}
    statements.clear()

    heard, stored, events = await published_of(charlie, asking[charlie.user_id])
    assert events[-1] == "done"
    assert heard == []
    assert stored[0] == "auth_check"
    assert stored[-1] == "flow_end"

    heard, stored, events = await published_of(bob, asking[bob.user_id])
    assert events[-1] == "done"
    assert heard == stored, "published whole and in the order of the stream"

    assert statements, "the turns did use the database"
    assert [sql for sql in statements if "monitored_users" in sql or "omni2_config" in sql] == []
