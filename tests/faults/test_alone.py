"""Products of their own for what a shared one cannot show: without Redis, and told to end in mid-answer."""

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from tests.faults import arithmetic
from tests.faults.load import Told, ask
from tests.faults.watchers import Watcher
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow

BOB = "bob@example.com"


def problems(omni2: Running, told: Told) -> list[str]:
    return arithmetic.waiting_or_wrong(omni2, [told], [BOB])


@pytest.fixture(scope="module")
def alone(_llm_server: LlmServer) -> Iterator[Running]:
    with running(llm_base_url=_llm_server.url, REDIS_ENABLED="false") as started:
        yield started


@pytest.fixture
async def told(alone: Running) -> Told:
    """An answer after a tool."""
    for table in ("interaction_flows", "turns", "turn_usage", "daily_usage"):
        alone.sql(f"DELETE FROM {table}")
    return await ask(Told("script:clock", BOB, alone.url), alone.create_token(BOB))


async def test_without_redis_chat_and_history_work(alone: Running, told: Told) -> None:
    assert (told.end, told.durable) == ("done", told.checkpoints)
    assert problems(alone, told) == []


@pytest.mark.parametrize(
    ("wrong", "noticed"),
    [
        ("DELETE FROM interaction_flows WHERE checkpoint = 'tool_result'", "were durable"),
        ("DELETE FROM interaction_flows WHERE checkpoint = 'flow_end'", "0 ends"),
        ("UPDATE turns SET checkpoints = checkpoints + 1", "its summary says"),
        ("UPDATE turns SET outcome = 'abandoned'", "no process died"),
        ("UPDATE turn_usage SET ended_at = NULL", "its slot"),
        ("UPDATE daily_usage SET requests = requests + 1", "are charged"),
        ("UPDATE serving_processes SET given_up = 1", "given up"),
    ],
)
async def test_the_account_notices(alone: Running, told: Told, wrong: str, noticed: str) -> None:
    alone.sql(wrong)
    found = problems(alone, told)
    alone.sql("UPDATE serving_processes SET given_up = 0")
    assert noticed in " ".join(found)


async def test_the_account_notices_a_turn_nobody_was_told_of(alone: Running, told: Told) -> None:
    told.turn_id = str(uuid.uuid4())
    assert "nobody was told of" in " ".join(problems(alone, told))


async def test_an_answer_that_takes_too_long_to_end_is_ended_with_a_word(llm: LlmServer) -> None:
    with running(llm_base_url=llm.url, OMNI2_DRAIN_S="1") as ending:
        told = Told("script:hang_in_middle", BOB, ending.url)
        answer = asyncio.create_task(ask(told, ending.create_token(BOB)))
        while not told.tokens:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(ending.web[0].end)
        await answer
        assert (told.end, told.code) == ("error", "server_stopping")
        await asyncio.to_thread(eventually, lambda: not problems(ending, told), "it adds up")
        assert ending.sql("SELECT outcome, error FROM turns") == [("failed", "server_stopping")]
        assert ending.sql("SELECT count(*) FROM serving_processes WHERE ended_at IS NOT NULL") == [(1,)]


def test_a_watcher_is_told_from_what_is_stored() -> None:
    turn = str(uuid.uuid4())
    stored = [
        {"flow_id": turn, "turn_id": turn, "checkpoint": "auth_check", "created_at": "2026-01-01T00:00:00.000001Z"},
        {"flow_id": "2", "turn_id": turn, "checkpoint": "block_check", "created_at": "2026-01-01T00:00:00.000002Z"},
        {"flow_id": "3", "turn_id": turn, "checkpoint": "flow_end", "created_at": "2026-01-01T00:00:00.000003Z"},
    ]
    second_end = {**stored[2], "flow_id": "4", "created_at": "2026-01-01T00:00:00.000004Z"}

    def problems(*shown: dict[str, str]) -> str:
        watcher = Watcher("", BOB, [], 0)
        watcher.page.shown = {row["flow_id"]: row for row in shown}
        return " ".join(watcher.problems(stored))

    assert problems(*stored) == ""
    assert "misses block_check" in problems(stored[0], stored[2])
    assert "out of order" in problems(stored[1], stored[0], stored[2])
    assert "not stored" in problems(*stored, second_end)
    assert "2 ends" in problems(*stored, second_end)
