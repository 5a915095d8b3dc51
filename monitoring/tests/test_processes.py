"""Monitoring in really started web processes: in force on all, right in every time zone, Redis or not.

Three web processes stand in three time zones, and so does their database. Whether a user is
monitored in a process shows in what it publishes of a turn that it serves.
"""

import json
import urllib.request
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from redis import RedisError

from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

ZONES = ("UTC", "Pacific/Auckland", "America/St_Johns")
BOB, CHARLIE = "bob@example.com", "charlie@example.com"

pytestmark = pytest.mark.slow


class Office:
    """The started product, with an operator and two chat users."""

    def __init__(self, omni2: Running) -> None:
        self.omni2 = omni2
        omni2.create_user("olga@example.com", "Olga Ladyzhenskaya", "operators")
        self.tokens = {user: omni2.create_token(user) for user in ("olga@example.com", BOB, CHARLIE)}

    def call(self, process: int, path: str, body: dict[str, Any] | None = None, *, by: str = "olga@example.com") -> Any:
        request = urllib.request.Request(
            f"{self.omni2.urls[process]}/api/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.tokens[by]}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def enable(self, process: int, hours: float, user_id: str = BOB) -> dict[str, Any]:
        answer: dict[str, Any] = self.call(process, "monitoring/enable", {"user_id": user_id, "ttl_hours": hours})
        return answer

    def disable(self, process: int) -> dict[str, Any]:
        answer: dict[str, Any] = self.call(process, "monitoring/disable", {"user_id": BOB})
        return answer

    def users(self, process: int) -> list[str]:
        return [row["user_id"] for row in self.call(process, "monitoring/users")["results"]]

    def publishes(self, process: int, user_id: str = BOB) -> bool:
        """Whether the process publishes a turn that it serves: all of its checkpoints, or none. In the moment of a
        change it may be a part; the next turn is not."""
        seen, made = self.published(process, user_id)
        if seen not in (0, made):
            seen, made = self.published(process, user_id)
        assert seen in (0, made)
        return seen > 0

    def published(self, process: int, user_id: str) -> tuple[int, int]:
        """How many checkpoints of a turn that the process serves are published, and how many there are."""
        with self.omni2.redis.pubsub(ignore_subscribe_messages=True) as subscription:
            subscription.subscribe(f"flow_events:{user_id}")
            subscription.get_message(timeout=5)
            done = self.call(process, "ask", {"message": "hello"}, by=user_id)
            assert done["tracked"]["durable"] == done["tracked"]["checkpoints"], "appended, so published if at all"
            self.omni2.redis.publish(f"flow_events:{user_id}", "end")
            seen = 0
            while (message := subscription.get_message(timeout=30)) is None or message["data"] != b"end":
                seen += message is not None
        return seen, done["tracked"]["checkpoints"]


@pytest.fixture(scope="module")
def office() -> Iterator[Office]:
    with LlmServer() as llm, running(web=0, persisters=0, llm_base_url=llm.url) as omni2:
        omni2.sql(f"ALTER DATABASE {omni2.sql('SELECT current_database()')[0][0]} SET timezone TO 'Asia/Kathmandu'")
        for zone in ZONES:
            omni2.start_web(TZ=zone)
        omni2.wait_until_ready()
        yield Office(omni2)


@pytest.fixture(autouse=True)
def nobody_is_monitored(office: Office) -> Iterator[None]:
    yield
    office.disable(0)
    for process in range(len(ZONES)):
        eventually(lambda process=process: not office.publishes(process), "monitoring is over")


def test_it_is_in_force_on_every_process(office: Office) -> None:
    assert [office.publishes(process) for process in range(3)] == [False, False, False]
    office.enable(0, 1)
    for process in range(3):
        eventually(lambda process=process: office.publishes(process), f"in force on process {process}")
    assert [office.publishes(process, CHARLIE) for process in range(3)] == [False, False, False]
    assert office.disable(1) == {"user_id": BOB, "was_monitored": True}
    for process in range(3):
        eventually(lambda process=process: not office.publishes(process), f"over on process {process}")


def test_it_expires_by_one_clock_in_three_time_zones(office: Office) -> None:
    for process in range(3):
        answer = office.enable(process, 1.5)
        lasts = datetime.fromisoformat(answer["expires_at"]) - datetime.fromisoformat(answer["enabled_at"])
        assert answer["expires_at"].endswith("Z")
        assert timedelta(hours=1.5) <= lasts < timedelta(hours=1.5, minutes=5), "again: the expiry is replaced"
        assert (
            len({json.dumps(office.call(other, "monitoring/users")["results"][0]["expires_at"]) for other in range(3)})
            == 1
        )
    office.enable(0, 2 / 3600)
    eventually(lambda: office.users(0) == [], "expired by PostgreSQL's clock")
    assert [office.users(process) for process in range(3)] == [[], [], []]
    assert [office.publishes(process) for process in range(3)] == [False, False, False], "and so in every process"
    assert office.disable(2) == {"user_id": BOB, "was_monitored": False}


def test_it_goes_on_after_redis_was_flushed_and_restarted(office: Office) -> None:
    office.enable(0, 1)
    for process in range(3):
        eventually(lambda process=process: office.publishes(process), f"in force on process {process}")
    office.omni2.redis.flushall()
    assert [office.publishes(process) for process in range(3)] == [True, True, True]
    valkey = office.omni2.valkey
    assert valkey is not None
    valkey.kill()
    assert office.users(0) == [BOB]
    assert office.disable(0) == {"user_id": BOB, "was_monitored": True}, "without Redis, too"
    office.enable(1, 1)
    valkey.start()
    for process in range(3):
        eventually(lambda process=process: _publishes_again(office, process), f"published again by process {process}")


def _publishes_again(office: Office, process: int) -> bool:
    try:
        return office.publishes(process)
    except (RedisError, AssertionError):
        # Redis is not yet back, or what was asked went to PostgreSQL directly
        return False
