"""A connection is asked one thing at a time, and no answer is ever taken for another's."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from flows.deadlines import Deadlines
from flows.redis import get_redis, new_connection
from flows.wire import Wire

AWAY = (RedisConnectionError, OSError)


@pytest.fixture
async def wire(empty_log: None) -> AsyncIterator[Wire]:
    connection = new_connection()
    await connection.connect()
    made = Wire(connection, Deadlines(asyncio.get_running_loop()))
    yield made
    await made.close()
    await get_redis().aclose()


async def test_it_answers_each_in_turn(wire: Wire) -> None:
    for number in range(20):
        assert await wire.ask(("ECHO", f"{number}"), 5) == b"%d" % number


async def test_it_takes_what_comes_in_many_pieces(wire: Wire) -> None:
    long = bytes(range(256)) * 20_000
    assert await wire.ask((b"ECHO", long), 10) == long


async def test_it_can_be_asked_again_after_a_refusal(wire: Wire) -> None:
    with pytest.raises(NoScriptError):
        await wire.ask(("EVALSHA", "0" * 40, "0"), 5)
    with pytest.raises(ResponseError, match="unknown command"):
        await wire.ask(("NONSENSE",), 5)
    assert await wire.ask(("PING",), 5) == b"PONG"


async def test_it_is_closed_after_no_answer_in_time(wire: Wire) -> None:
    with pytest.raises(TimeoutError):
        await wire.ask(("BLPOP", "nothing", "0"), 0.05)
    assert not wire.is_open
    with pytest.raises(RedisConnectionError):
        await wire.ask(("PING",), 5)


async def test_it_is_closed_after_a_cancellation(wire: Wire) -> None:
    """The fate of what was asked is unknown, and its answer may still come."""
    asking = asyncio.create_task(wire.ask(("BLPOP", "list", "0"), 5))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await get_redis().rpush("list", "late")
    with pytest.raises(RedisConnectionError):
        await wire.ask(("PING",), 5)


async def test_it_says_at_once_that_redis_closed_the_connection(wire: Wire) -> None:
    number = await wire.ask(("CLIENT", "ID"), 5)
    asking = asyncio.create_task(wire.ask(("BLPOP", "nothing", "0"), 60))
    while not any(each["cmd"] == "blpop" for each in await get_redis().client_list()):
        await asyncio.sleep(0.01)
    await get_redis().client_kill_filter(_id=str(number))
    with pytest.raises(AWAY):
        await asyncio.wait_for(asking, 10)
    assert not wire.is_open


async def test_it_notices_while_nobody_asks_that_redis_closed_the_connection(wire: Wire) -> None:
    await get_redis().client_kill_filter(_id=str(await wire.ask(("CLIENT", "ID"), 5)))
    async with asyncio.timeout(10):
        while wire.is_open:
            await asyncio.sleep(0.01)


async def test_it_takes_no_word_of_redis_own_for_an_answer(wire: Wire) -> None:
    assert await wire.ask(("CLIENT", "TRACKING", "ON", "BCAST"), 5) == b"OK"
    asking = asyncio.create_task(wire.ask(("BLPOP", "list", "0"), 60))
    while not any(each["cmd"] == "blpop" for each in await get_redis().client_list()):
        await asyncio.sleep(0.01)
    await get_redis().set("watched", "changed")
    await get_redis().rpush("list", "answer")
    assert await asyncio.wait_for(asking, 10) == [b"list", b"answer"]
