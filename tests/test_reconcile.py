"""`manage.py reconcile` against real processes: it adds up whatever is killed, and not when something is lost."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from omni2.env import BASE_DIR
from tests.ledger import Ledger, summary
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running
from tests.test_faults import TALK, lift_limits, under_load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def omni2(_llm_server: LlmServer) -> Iterator[Running]:
    with running(llm_base_url=_llm_server.url, web=2, OMNI2_DRAIN_S="5") as started:
        yield started


@pytest.fixture
def ledger(omni2: Running) -> Ledger:
    emails = [f"user{number}@example.com" for number in range(6)]
    tokens = [omni2.create_token(email) for email in emails]
    omni2.orm(lift_limits, emails)
    return Ledger(omni2, tokens)


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
    status, said = await asyncio.to_thread(reconcile, omni2, "--json", *words)
    assert status == 0, said
    answer: dict[str, Any] = json.loads(said)
    return answer


async def test_it_adds_up_while_the_persister_and_redis_are_killed_under_load(omni2: Running, ledger: Ledger) -> None:
    looked = []

    async def faults() -> None:
        for part in (omni2.persisters[0], omni2.valkey, omni2.persisters[0]):
            await asyncio.to_thread(part.kill)
            await asyncio.sleep(1)
            part.start()
            await asyncio.sleep(2)
            # in the middle of everything: nothing may be called missing
            looked.append(await account(omni2, "--wait", "20"))

    await under_load(ledger, faults(), at_once=4)
    assert [answer["problems"] for answer in looked] == [[], [], []]
    last = await account(omni2, "--wait", "60")
    turns, checkpoints = last["total"]["turns"], last["total"]["checkpoints"]
    told = {told.turn_id for told in ledger.told if told.turn_id}
    assert turns["started"] == turns["stored"] == len(told), summary(ledger)
    assert checkpoints["made"] == checkpoints["stored"] == sum(ledger.rows().values())
    assert (turns["not_reported_yet"], checkpoints["on_the_way"]) == (0, 0)


async def test_a_process_killed_under_load_raises_no_alarm(omni2: Running, ledger: Ledger) -> None:
    async def kill() -> None:
        long = [asyncio.create_task(ledger.chat("script:hang_in_middle")) for _ in range(3)]
        await asyncio.sleep(2)
        await asyncio.to_thread(omni2.web[0].kill)
        await asyncio.gather(*long)
        omni2.web[0].start()
        await asyncio.to_thread(omni2.wait_until_ready)

    await under_load(ledger, kill(), at_once=4)
    await account(omni2, "--wait", "20")
    still_open = "SELECT count(*) FROM turns WHERE outcome IS NULL"
    await asyncio.to_thread(eventually, lambda: omni2.sql(still_open) == [(0,)], "cut turns are abandoned", limit_s=90)
    last = await account(omni2, "--wait", "60")
    assert last["total"]["turns"]["abandoned"] >= 3
    assert last["total"]["turns"]["started"] >= len(ledger.finished)


async def test_a_process_that_ends_in_order_is_exact(omni2: Running, ledger: Ledger) -> None:
    await asyncio.gather(*(ledger.chat(message) for message in TALK))
    ((process_id,),) = omni2.sql("SELECT process_id::text FROM turns WHERE turn_id = %s", ledger.told[0].turn_id)
    await asyncio.to_thread(omni2.web[0].end)
    omni2.web[0].start()
    await asyncio.to_thread(omni2.wait_until_ready)
    last = await account(omni2, "--wait", "60")
    shares = [share for hour in last["hours"] for share in hour["processes"] if share["process_id"] == process_id]
    assert shares
    assert [share["turns"]["not_reported_yet"] for share in shares] == [0] * len(shares)


async def test_it_exits_1_when_a_row_is_lost(omni2: Running, ledger: Ledger) -> None:
    told = await ledger.chat("script:clock")
    await account(omni2, "--wait", "60")
    lost = "DELETE FROM interaction_flows WHERE turn_id = %s AND checkpoint = 'tool_result' RETURNING flow_id"
    assert len(omni2.sql(lost, told.turn_id)) == 1
    status, said = await asyncio.to_thread(reconcile, omni2, "--wait", "10")
    assert status == 1
    assert "1 checkpoint is missing" in said
    assert told.turn_id in said
    assert "It does not add up" in said


async def test_it_exits_2_for_a_bad_argument(omni2: Running) -> None:
    status, said = await asyncio.to_thread(reconcile, omni2, "--since", "yesterday")
    assert status == 2
    assert "--since: 'yesterday' is no time" in said
    status, said = await asyncio.to_thread(reconcile, omni2, "--sinc", "1h", "--nonsense")
    assert status == 2


async def test_it_works_without_redis(llm: LlmServer) -> None:
    with running(llm_base_url=llm.url, REDIS_ENABLED="false") as alone:
        ledger = Ledger(alone, [alone.create_token("bob@example.com")])
        told = await ledger.chat("script:clock")
        last = await account(alone, "--wait", "30")
        assert last["total"]["checkpoints"]["stored"] == told.checkpoints
        assert (last["road"]["redis"], last["total"]["turns"]["started"]) == ("off", 1)
