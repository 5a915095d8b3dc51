"""With sentinels, every connection to Redis goes to whoever is the primary."""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from flows import redis as connections
from flows import sentinel
from omni2.env import BASE_DIR
from tests.running import eventually
from tests.sentinels import MASTER, Guarded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    found = Guarded(Path(tempfile.mkdtemp(prefix="gd-", dir=os.environ["OMNI2_TEST_FOLDER"])))
    yield found
    for process in found.processes:
        process.end()


@pytest.fixture(autouse=True)
def with_sentinels(guarded: Guarded, settings: Any) -> Iterator[None]:
    settings.REDIS_SENTINELS = [("127.0.0.1", guarded.port_of(each)) for each in guarded.sentinels]
    settings.REDIS_SENTINEL_MASTER = MASTER
    settings.REDIS_SENTINEL_PASSWORD = guarded.sentinel_password
    settings.REDIS_PASSWORD = guarded.password
    settings.REDIS_DB = 0
    sentinel._sentinels.cache_clear()
    yield
    sentinel._sentinels.cache_clear()


async def port_behind(connection: Any) -> int:
    """Where a connection of one's own has come to; asked of the server."""
    await connection.send_command("CONFIG", "GET", "port")
    answer = await connection.read_response()
    return int(answer[b"port"] if isinstance(answer, dict) else answer[1])


def fail_over(guarded: Guarded) -> None:
    """As an operator does it: the primary lives, and is made a replica."""
    before = guarded.primary()
    eventually(guarded.all_in_sync, "all replicas follow")
    # refused for a while after the last one
    eventually(lambda: guarded.ask(guarded.sentinels[0], "SENTINEL", "FAILOVER", MASTER), "a sentinel begins")
    eventually(lambda: guarded.primary() is not before, "another primary is there")
    eventually(lambda: guarded.is_replica(before), "the old one is a replica")


async def test_every_kind_of_connection_follows_a_primary_that_was_demoted(guarded: Guarded) -> None:
    client, own, sync = connections.get_redis(), connections.new_connection(), connections.sync_client()
    await own.connect()
    before = guarded.port_of(guarded.primary())
    assert await port_behind(own) == before
    assert int(sync.config_get("port")["port"]) == before
    # more than one idle connection to what will be a replica
    assert all(await asyncio.gather(*(client.set(f"before{number}", "x") for number in range(5))))

    await asyncio.to_thread(fail_over, guarded)

    after = guarded.port_of(guarded.primary())
    with pytest.raises((RedisError, OSError)):
        await port_behind(own)
    await own.disconnect()
    await own.connect()
    assert await port_behind(own) == after
    assert all(await asyncio.gather(*(client.set(f"after{number}", "x") for number in range(5))))
    assert sync.set("sync", "x")
    assert int(sync.config_get("port")["port"]) == after
    await own.disconnect()
    await client.aclose()
    sync.close()


@pytest.mark.parametrize("hurt", ["frozen", "gone"])
async def test_one_sentinel_that_does_not_answer_keeps_nobody_from_the_primary(guarded: Guarded, hurt: str) -> None:
    """Whichever it is: an append gives up after a second, and the question comes before it."""
    expected = await asyncio.to_thread(lambda: guarded.port_of(guarded.primary()))
    for victim in guarded.sentinels:
        await asyncio.to_thread(victim.stop if hurt == "frozen" else victim.kill)
        try:
            own = connections.new_connection()
            async with asyncio.timeout(1.0):
                await own.connect()
                assert await port_behind(own) == expected
            await own.disconnect()
            with connections.sync_client() as client:
                assert int((await asyncio.to_thread(client.config_get, "port"))["port"]) == expected
        finally:
            if hurt == "frozen":
                victim.cont()
            else:
                victim.start()
                await asyncio.to_thread(
                    eventually, lambda victim=victim: guarded.ask(victim, "PING"), "it answers again"
                )


def test_the_newest_configuration_counts() -> None:
    """A sentinel that was cut off from the others names the old primary, and says that all is well with it."""

    def state(port: int, epoch: int, **more: bool) -> dict[str, Any]:
        up = {"is_master": True, "is_sdown": False, "is_odown": False}
        return {"m": {"ip": "127.0.0.1", "port": port, "config-epoch": epoch, **up, **more}}

    assert sentinel._newest("m", [state(1, 4), OSError(), state(2, 5), state(1, 4)]) == ("127.0.0.1", 2)
    assert sentinel._newest("m", [state(1, 5, is_sdown=True), state(1, 5)]) == ("127.0.0.1", 1)
    for answers in ([], [OSError()], [state(1, 4), state(2, 5, is_odown=True)], [{"another": {}}]):
        with pytest.raises(sentinel.MasterNotFoundError):
            sentinel._newest("m", answers)


def run(guarded: Guarded, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python of its own that knows Redis by its sentinels alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("REDIS_")}
    return subprocess.run(
        [sys.executable, *words],
        env={**kept, **guarded.environment, "DJANGO_SETTINGS_MODULE": "omni2.settings"},
        cwd=BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


LAYER = """
import asyncio, django; django.setup()
from channels.layers import get_channel_layer
async def main():
    layer = get_channel_layer()
    mine = await layer.new_channel()
    await layer.send(mine, {"type": "word"})
    print((await asyncio.wait_for(layer.receive(mine), 10))["type"])
asyncio.run(main())
"""


def test_the_channel_layer_is_told_of_the_sentinels(guarded: Guarded) -> None:
    done = run(guarded, "-c", LAYER)
    assert done.stdout.strip() == "word", done.stderr


def test_the_health_check_of_the_persisters_container_asks_the_sentinels(guarded: Guarded) -> None:
    done = run(guarded, "-m", "omni2.supervisor.alive")
    assert done.stderr.strip() == "no persister has spoken"
    with guarded.client() as client:
        seconds, microseconds = client.time()
        client.hset("omni2:persister", "at", f"{seconds}.{microseconds:06d}")
    assert run(guarded, "-m", "omni2.supervisor.alive").returncode == 0
