"""Parts are killed, frozen and restarted while chats run; afterwards what the product said is
compared with what PostgreSQL holds."""

import asyncio
import random
from collections.abc import Iterator

import psycopg
import pytest

from chat.models import UserLimits
from tests.ledger import Ledger, summary
from tests.llm_server import LlmServer
from tests.running import Running, eventually, get, running

pytestmark = pytest.mark.slow

PEOPLE = 6
TALK = ("script:plain", "script:clock", "script:parallel", "script:slow")


@pytest.fixture(scope="module")
def omni2(_llm_server: LlmServer) -> Iterator[Running]:
    with running(llm_base_url=_llm_server.url, web=2, OMNI2_DRAIN_S="5") as started:
        yield started


def lift_limits(emails: list[str]) -> None:
    from omni2.accounts.models import User

    for user in User.objects.filter(email__in=emails):
        UserLimits.objects.update_or_create(
            user=user,
            defaults={"requests_per_day": 1_000_000, "tokens_per_day": 10**9, "turns_at_once": 1000},
        )


@pytest.fixture
def ledger(omni2: Running) -> Ledger:
    emails = [f"user{number}@example.com" for number in range(PEOPLE)]
    tokens = [omni2.create_token(email) for email in emails]
    omni2.orm(lift_limits, emails)
    return Ledger(omni2, tokens)


def drained(ledger: Ledger) -> bool:
    return ledger.pending() == 0


def assert_it_adds_up(ledger: Ledger) -> None:
    eventually(lambda: drained(ledger), "the log is drained")
    eventually(lambda: not ledger.problems(), f"it adds up: {summary(ledger)} {ledger.problems()[:3]}")


async def under_load(ledger: Ledger, faults: object, *, at_once: int = 8, url: str = "") -> None:
    """Run `faults` while chats are in flight."""
    stop = asyncio.Event()
    load = asyncio.create_task(ledger.load(stop, at_once=at_once, messages=TALK, url=url))
    await asyncio.sleep(1)
    try:
        await faults
    finally:
        stop.set()
        await load


async def test_a_killed_web_process_loses_nothing_it_acknowledged(omni2: Running, ledger: Ledger) -> None:
    async def kill() -> None:
        long = [asyncio.create_task(ledger.chat("script:hang_in_middle")) for _ in range(4)]
        await asyncio.sleep(2)
        await asyncio.to_thread(omni2.web[0].kill)
        await asyncio.gather(*long)
        omni2.web[0].start()
        await asyncio.to_thread(omni2.wait_until_ready)

    elsewhere = Ledger(omni2, ledger.tokens)
    stop = asyncio.Event()
    other_process = asyncio.create_task(elsewhere.load(stop, at_once=3, messages=("script:plain",), url=omni2.urls[1]))
    await under_load(ledger, kill())
    stop.set()
    await other_process
    assert elsewhere.told
    assert all(told.end == "done" for told in elsewhere.told), "the other process noticed"
    cut = [told for told in ledger.told if told.cut and told.turn_id]
    assert len(cut) >= 4
    open_turns = "SELECT count(*) FROM turns WHERE outcome IS NULL"
    # 30 s of patience, a round of the sweep, and the machine's own slowness
    await asyncio.to_thread(eventually, lambda: omni2.sql(open_turns)[0][0] == 0, "cut turns are abandoned", limit_s=60)
    outcomes = dict(omni2.sql("SELECT turn_id::text, outcome FROM turns"))
    assert {outcomes[told.turn_id] for told in cut if told.turn_id in outcomes} == {"abandoned"}
    for told in cut:
        # the client had the first token, so what led to it was acknowledged: four checkpoints
        assert told.tokens == 0 or ledger.rows()[told.turn_id] >= 5
    assert omni2.sql("SELECT count(*) FROM turn_usage WHERE ended_at IS NULL") == [(0,)]
    assert_it_adds_up(ledger)


async def test_a_persister_killed_before_it_inserts_stores_each_checkpoint_once(omni2: Running, ledger: Ledger) -> None:
    with psycopg.connect(omni2.database_url) as lock:
        lock.execute("LOCK TABLE omni2.interaction_flows IN EXCLUSIVE MODE")
        await asyncio.gather(*(ledger.chat(message) for message in TALK))
        # its statement begins with the data, so it is known by what it waits for
        waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'interaction_flows'::regclass"
        await asyncio.to_thread(eventually, lambda: omni2.sql(waits), "the persister waits to insert")
        await asyncio.to_thread(omni2.persisters[0].kill)
        assert ledger.pending() > 0
    omni2.persisters[0].start()
    assert len(ledger.finished) == len(TALK)
    await asyncio.to_thread(assert_it_adds_up, ledger)


async def test_a_persister_killed_again_and_again_at_any_moment(omni2: Running, ledger: Ledger) -> None:
    random.seed(7)

    async def kill() -> None:
        for _ in range(4):
            await asyncio.sleep(random.uniform(0.5, 3))
            await asyncio.to_thread(omni2.persisters[0].kill)
            omni2.persisters[0].start()

    await under_load(ledger, kill())
    assert all(told.end == "done" for told in ledger.told), summary(ledger)
    await asyncio.to_thread(assert_it_adds_up, ledger)


async def test_two_persisters_share_the_work(omni2: Running, ledger: Ledger) -> None:
    second = omni2.start_persister()
    await under_load(ledger, asyncio.sleep(4))
    await asyncio.to_thread(second.kill)
    omni2.persisters.remove(second)
    assert all(told.end == "done" for told in ledger.told), summary(ledger)
    await asyncio.to_thread(assert_it_adds_up, ledger)


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_chats_go_on_while_redis_is_away(omni2: Running, ledger: Ledger, how: str) -> None:
    degraded: list[object] = []

    async def away() -> None:
        assert omni2.valkey is not None
        if how == "frozen":
            omni2.valkey.stop()
        else:
            await asyncio.to_thread(omni2.valkey.kill)
        await asyncio.sleep(5)
        degraded.append(await asyncio.to_thread(get, omni2.url + "/readyz", timeout_s=20))
        if how == "frozen":
            omni2.valkey.cont()
        else:
            omni2.valkey.start()
        await asyncio.sleep(3)

    await under_load(ledger, away())
    assert degraded[0][0] == 503
    assert all(told.end == "done" for told in ledger.told), summary(ledger)
    assert all(told.durable == told.checkpoints for told in ledger.told[-8:]), "tracking did not recover"
    await asyncio.to_thread(eventually, lambda: get(omni2.url + "/readyz", timeout_s=20)[0] == 200, "ready again")
    await asyncio.to_thread(assert_it_adds_up, ledger)


async def test_without_redis_chat_and_history_work(llm: LlmServer) -> None:
    with running(llm_base_url=llm.url, REDIS_ENABLED="false") as alone:
        ledger = Ledger(alone, [alone.create_token("bob@example.com")])
        told = await ledger.chat("script:clock")
        assert (told.end, told.durable) == ("done", told.checkpoints)
        assert ledger.rows()[told.turn_id] == told.checkpoints
        assert ledger.problems() == []


async def test_running_answers_finish_when_the_server_is_told_to_end(omni2: Running, ledger: Ledger) -> None:
    async def restart() -> None:
        await asyncio.to_thread(omni2.web[0].end)
        omni2.web[0].start()
        await asyncio.to_thread(omni2.wait_until_ready)

    answer = asyncio.create_task(ledger.chat("script:slow"))
    while not (ledger.told and ledger.told[0].tokens):
        await asyncio.sleep(0.02)
    await restart()
    told = await answer
    assert told.end == "done"
    assert told.durable == told.checkpoints
    await asyncio.to_thread(assert_it_adds_up, ledger)


async def test_an_answer_that_takes_too_long_to_end_is_ended_with_a_word(llm: LlmServer) -> None:
    with running(llm_base_url=llm.url, OMNI2_DRAIN_S="1") as ending:
        ledger = Ledger(ending, [ending.create_token("bob@example.com")])
        answer = asyncio.create_task(ledger.chat("script:hang_in_middle"))
        while not (ledger.told and ledger.told[0].tokens):
            await asyncio.sleep(0.05)
        await asyncio.to_thread(ending.web[0].end)
        told = await answer
        assert told.end == "error"
        await asyncio.to_thread(assert_it_adds_up, ledger)
        assert ending.sql("SELECT outcome, error FROM turns") == [("failed", "server_stopping")]
        assert ending.sql("SELECT count(*) FROM serving_processes WHERE ended_at IS NOT NULL") == [(1,)]
