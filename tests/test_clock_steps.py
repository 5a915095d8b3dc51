"""The clock of one process jumps while it serves: nothing is lost, and no time is wrong."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.ledger import Ledger
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow

HOUR_S = 3600


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """What is written here, the second web process and the persister are ahead by, in seconds."""
    return tmp_path / "steps"


@pytest.fixture
def omni2(_llm_server: LlmServer, steps: Path) -> Iterator[Running]:
    with running(llm_base_url=_llm_server.url, web=2) as started:
        for process in (started.web[1], started.persisters[0]):
            process.end()
            python, *words = process.words
            process.words = [python, "-m", "tests.clocked", str(steps), *words]
            process.start()
        started.wait_until_ready()
        yield started


async def test_a_clock_that_jumps_moves_no_checkpoint_and_loses_none(omni2: Running, steps: Path) -> None:
    ledger = Ledger(omni2, [omni2.create_token(f"user{number}@example.com") for number in range(3)])
    for ahead_s in (0, HOUR_S, -HOUR_S, 30 * 24 * HOUR_S, 0):
        await asyncio.to_thread(steps.write_text, str(ahead_s))
        await asyncio.gather(*(ledger.chat("script:parallel", url=url) for url in omni2.urls for _ in range(2)))
    await asyncio.to_thread(eventually, lambda: ledger.pending() == 0, "the log is drained")
    await asyncio.to_thread(eventually, lambda: not ledger.problems(), "it adds up")
    assert len(ledger.finished) == 20
    # by PostgreSQL's clock: no checkpoint is from another time, and the turns follow each other as they were asked
    ((first, last, now),) = omni2.sql(
        "SELECT min(created_at), max(created_at), clock_timestamp() FROM interaction_flows"
    )
    assert now - timedelta(minutes=5) < first < last < now + timedelta(seconds=2)
    order = omni2.sql("SELECT turn_id::text FROM turns ORDER BY started_at")
    rounds = {told.turn_id: number // 4 for number, told in enumerate(ledger.told)}
    assert [rounds[turn_id] for (turn_id,) in order] == sorted(rounds.values())
    # nobody was taken for dead, and the persister is not said to be silent
    assert omni2.sql("SELECT count(*) FROM turns WHERE outcome <> 'completed'") == [(0,)]
    checks = omni2.sql("SELECT count(*) FROM serving_processes WHERE ended_at IS NULL")
    assert checks == [(2,)]
