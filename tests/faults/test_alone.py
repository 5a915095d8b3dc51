"""Products of their own for what a shared one cannot show: without Redis, and told to end in mid-answer."""

import asyncio

import pytest

from tests.faults import arithmetic
from tests.faults.load import Told, ask
from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow

BOB = "bob@example.com"


def problems(omni2: Running, told: Told) -> list[str]:
    return arithmetic.waiting_or_wrong(omni2, [told], [BOB])


async def test_without_redis_chat_and_history_work(llm: LlmServer) -> None:
    with running(llm_base_url=llm.url, REDIS_ENABLED="false") as alone:
        told = await ask(Told("script:clock", BOB, alone.url), alone.create_token(BOB))
        assert (told.end, told.durable) == ("done", told.checkpoints)
        assert problems(alone, told) == []


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
