"""Redis and PostgreSQL are killed, stopped, frozen and filled up for a moment; `make faults` does it for longer."""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.faults import scenarios_postgres, scenarios_redis
from tests.faults.rig import Outcome, Plan, Rig, started

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with started(Plan(times=1), web=2) as rig:
        yield rig


@pytest.mark.parametrize(
    "play",
    [
        scenarios_redis.redis_killed,
        scenarios_redis.redis_hangs,
        scenarios_redis.redis_full,
        scenarios_redis.redis_disk_full,
        scenarios_postgres.postgres_killed,
        scenarios_postgres.postgres_hangs,
        scenarios_postgres.postgres_connections,
        scenarios_postgres.postgres_disk_full,
    ],
)
async def test_it_adds_up_after(rig: Rig, play: Callable[[Rig], Awaitable[Outcome]]) -> None:
    outcome = await play(rig)
    assert outcome.injections > 0
    assert outcome.problems == [], outcome.figures
