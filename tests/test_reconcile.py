"""`manage.py reconcile` against real processes: it adds up whatever is killed, and not when something is lost."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from omni2.env import BASE_DIR
from tests.faults import scenarios_persister, scenarios_redis, scenarios_web
from tests.faults.load import Told, ask
from tests.faults.rig import Outcome, Plan, Rig, started
from tests.llm_server import LlmServer
from tests.running import Running, running

pytestmark = pytest.mark.slow

BOB = "bob@example.com"


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with started(Plan(times=1), web=2) as rig:
        yield rig


def reconcile(omni2: Running, *words: str) -> tuple[int, str]:
    """How the command exits and what it prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "manage.py", "reconcile", *words],
        cwd=BASE_DIR,
        env=omni2.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def account(omni2: Running, *words: str) -> dict[str, Any]:
    """All of it, when it adds up."""
    status, said = await asyncio.to_thread(reconcile, omni2, "--json", *words)
    assert status == 0, said
    answer: dict[str, Any] = json.loads(said)
    return answer


@pytest.mark.parametrize(
    "play",
    [
        scenarios_web.web_killed,
        scenarios_persister.persister_moments,
        scenarios_redis.redis_killed,
        scenarios_redis.redis_hangs,
    ],
)
async def test_it_adds_up_after(rig: Rig, play: Callable[[Rig], Awaitable[Outcome]]) -> None:
    outcome = await play(rig)
    assert outcome.problems == [], outcome.figures
    last = await account(rig.omni2, "--wait", "60")
    turns, checkpoints = last["total"]["turns"], last["total"]["checkpoints"]
    swept = rig.omni2.sql("SELECT count(*) FROM turns WHERE outcome = 'abandoned'")[0][0]
    assert turns["abandoned"] == swept
    assert [(turns["stored"],)] == rig.omni2.sql("SELECT count(*) FROM turns")
    assert [(checkpoints["stored"] + swept,)] == rig.omni2.sql("SELECT count(*) FROM interaction_flows")
    # what clients were told of, somebody has counted
    assert turns["started"] >= len({told.turn_id for told in rig.latest.told if told.end})


async def test_it_adds_up_in_the_middle_of_everything(rig: Rig) -> None:
    async with rig.round() as round_:
        looked = []
        for part in (rig.omni2.persisters[0], rig.omni2.valkey):
            await round_.kill(part)
            part.start()
            looked += [await account(rig.omni2, "--wait", "10") for _ in range(2)]
    assert [answer["problems"] for answer in looked] == [[]] * 4
    await round_.reckon()


async def test_a_process_that_ends_in_order_is_exact(rig: Rig) -> None:
    omni2 = rig.omni2
    told = await ask(Told("script:clock", BOB, omni2.urls[1]), omni2.create_token(BOB))
    await asyncio.to_thread(omni2.web[1].end)
    omni2.web[1].start()
    await asyncio.to_thread(omni2.wait_until_ready)
    last = await account(omni2, "--wait", "60")
    ((process_id,),) = omni2.sql("SELECT process_id::text FROM turns WHERE turn_id = %s", told.turn_id)
    shares = [share for hour in last["hours"] for share in hour["processes"] if share["process_id"] == process_id]
    assert shares
    assert [share["turns"]["not_reported_yet"] for share in shares] == [0] * len(shares)


async def test_it_exits_1_when_a_row_is_lost(rig: Rig) -> None:
    told = await ask(Told("script:clock", BOB, rig.omni2.url), rig.omni2.create_token(BOB))
    await account(rig.omni2, "--wait", "60")
    lost = "DELETE FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'tool_result' RETURNING flow_id"
    assert len(rig.omni2.sql(lost, told.turn_id)) == 1
    status, said = await asyncio.to_thread(reconcile, rig.omni2, "--wait", "10")
    assert status == 1
    assert "1 checkpoint is missing" in said
    assert told.turn_id in said
    assert "It does not add up" in said


async def test_it_exits_2_for_a_bad_argument(rig: Rig) -> None:
    status, said = await asyncio.to_thread(reconcile, rig.omni2, "--since", "yesterday")
    assert status == 2
    assert "--since: 'yesterday' is no time" in said
    status, said = await asyncio.to_thread(reconcile, rig.omni2, "--nonsense")
    assert status == 2


async def test_it_works_without_redis(llm: LlmServer) -> None:
    with running(llm_base_url=llm.url, REDIS_ENABLED="false") as alone:
        told = await ask(Told("script:clock", BOB, alone.url), alone.create_token(BOB))
        last = await account(alone, "--wait", "30")
        assert last["total"]["checkpoints"]["stored"] == told.checkpoints
        assert (last["road"]["redis"], last["total"]["turns"]["started"]) == ("off", 1)
