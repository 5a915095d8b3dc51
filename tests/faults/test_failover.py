"""The primary of a guarded Redis is killed once, ahead of its replicas; `make faults` does it again and again."""

import pytest

from tests.faults.rig import Plan, started
from tests.faults.scenarios_failover import redis_failover_behind

pytestmark = pytest.mark.slow


async def test_a_replica_that_lacks_what_was_acknowledged_takes_over_and_it_adds_up() -> None:
    with started(Plan(times=1), web=2, persisters=2, sentinels=True, own_postgres=False) as rig:
        outcome = await redis_failover_behind(rig)
    assert outcome.injections == 1
    assert outcome.problems == [], outcome.figures
