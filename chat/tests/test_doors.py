"""What is answered without asking: more turns than this process takes, a database that answers nobody, a
body that does not come."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.db import OperationalError, connection
from django.db.backends.postgresql.base import DatabaseWrapper

from chat import doors, endpoint, turn
from chat.models import TurnUsage
from chat.tests.conftest import Call
from omni2.database import in_database
from tests.running import eventually

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]


def refused(call: Call) -> tuple[int | None, str, bool]:
    """Status, code, and whether it says when to come back."""
    return call.status, call.json["code"], int(call.answer_headers.get("retry-after", 0)) > 0


# --- too many at once --------------------------------------------------------------------------------


async def test_it_takes_no_more_turns_at_once_than_it_may(
    bob: Any, charlie: Any, client_of: Any, settings: Any
) -> None:
    settings.MAX_TURNS = 2
    running = [client_of(bob).call("script:hang_in_middle").start() for _ in range(2)]
    for call in running:
        await call.until(lambda call: b"event: token" in call.content)
    for path in ("/api/v1/ask", "/api/v1/ask/stream"):
        beyond = await client_of(charlie).call("Hello", path=path).start().over()
        assert refused(beyond) == (503, "server_busy", True)
        assert "turn_id" not in beyond.json
    assert endpoint.counted["server_busy"] == 2
    running[0].leave()
    await running[0].over()
    assert (await client_of(charlie).stream("Hello")).status == 200
    running[1].leave()
    await running[1].over()
    assert doors.turnstile.inside == 0
    assert await in_database(TurnUsage.objects.count) == 3


async def test_whoever_is_refused_makes_room_again(bob: Any, client_of: Any, limits: Any, settings: Any) -> None:
    settings.MAX_TURNS = 1
    limits(requests_per_day=0)
    for _ in range(3):
        assert (await client_of(bob).whole("Hello")).json["code"] == "usage_limit"
        assert (await client_of(bob).whole({"message": 1})).status == 400
    assert doors.turnstile.inside == 0


# --- a database that answers nobody -----------------------------------------------------------------


@contextmanager
def postgres_away() -> Iterator[list[int]]:
    """Inside, PostgreSQL is away; how often it was tried."""
    made: list[int] = []

    def away(self: Any) -> None:
        made.append(1)
        raise OperationalError("connection refused")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseWrapper, "ensure_connection", away)
        yield made


async def test_it_asks_a_database_that_is_away_once_a_second_and_refuses_the_others_at_once(
    bob: Any, client_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doors, "PROBE_EVERY_S", 3600.0)
    monkeypatch.setattr(turn, "GIVE_BACK_AFTER_S", (3600.0,))  # these tries do not count
    client = client_of(bob)
    with postgres_away() as tries:
        for _ in range(10):
            assert refused(await client.stream("Hello")) == (503, "database_unavailable", True)
        assert len(tries) == 1
        assert endpoint.counted["database_unavailable"] == 10
        doors.database._next_probe_s = 0.0  # the second is over
        calls = [client.call("Hello").start() for _ in range(10)]
        assert {refused(await call.over()) for call in calls} == {(503, "database_unavailable", True)}
        assert len(tries) == 2


async def test_the_first_answer_opens_the_door_again(bob: Any, client_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    doors.database.failed()
    assert (await client_of(bob).stream("Hello")).status == 503
    doors.database._next_probe_s = 0.0
    assert (await client_of(bob).stream("Hello")).status == 200
    monkeypatch.setattr(doors, "PROBE_EVERY_S", 3600.0)
    assert (await client_of(bob).stream("Hello")).status == 200
    doors.database.failed()
    doors.database._next_probe_s = 0.0
    # what the database says of a request is an answer of the database
    assert (await client_of(bob).stream({"message": 1})).status == 400
    assert doors.database.closed is False


@pytest.fixture
def holding(db: None) -> Iterator[Callable[[Any], None]]:
    """holding(bob): whatever admits Bob waits, as if PostgreSQL hung."""
    database = connection.settings_dict
    with psycopg.connect(
        dbname=database["NAME"], user=database["USER"], host=database["HOST"], autocommit=True
    ) as session:
        yield lambda user: session.execute(
            "SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"omni2 usage of {user.pk}"]
        )
        # whoever waited goes on now, and must not meet the TRUNCATE after the test
        session.execute("SELECT pg_advisory_unlock_all()")
        busy = (
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND state IN ('active', 'idle in transaction') AND backend_type = 'client backend'"
        )
        eventually(lambda: session.execute(busy).fetchone() is None, "the held admissions are over")


async def test_a_database_that_answers_nobody_is_not_waited_for_long(
    bob: Any, client_of: Any, holding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole time-out is 90 s here."""
    monkeypatch.setattr(endpoint, "SILENT_S", 0.1)
    await in_database(holding, bob)
    assert refused(await client_of(bob).stream("Hello")) == (503, "database_unavailable", True)


async def test_a_database_that_answers_others_is_waited_for(
    bob: Any, charlie: Any, client_of: Any, holding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "SILENT_S", 1.0)
    await in_database(holding, bob)
    waiting = client_of(bob).call("Hello").start()
    await asyncio.sleep(0.1)
    assert (await client_of(charlie).stream("Hello")).status == 200
    await asyncio.sleep(1.5)
    assert waiting.status is None
    assert doors.database.closed is False
    waiting.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting.task


async def test_a_process_that_stood_still_does_not_blame_the_database(
    bob: Any, client_of: Any, holding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped with a request half-way, for longer than a database may be silent."""
    monkeypatch.setattr(endpoint, "SILENT_S", 0.3)
    await in_database(holding, bob)
    call = client_of(bob).call("Hello").start()
    await asyncio.sleep(0.1)
    time.sleep(1.5)  # noqa: ASYNC251 - the whole process
    await asyncio.sleep(0.1)
    assert call.status is None
    assert doors.database.closed is False
    assert refused(await call.over()) == (503, "database_unavailable", True), "it gets the usual time from now on"


# --- a body that does not come ------------------------------------------------------------------------


async def test_a_body_that_does_not_come_is_not_waited_for(
    bob: Any, client_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "BODY_TIMEOUT_S", 0.1)
    call = client_of(bob).call("Hello")
    call._asked = True  # nothing comes
    await call.start().over()
    assert refused(call)[:2] == (408, "request_timeout")
