"""/healthz and /readyz of a really started product: what is missing is named, and seen again when it is back."""

import json
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import redis

from flows import keys
from flows.redis import sync_client
from flows.tracker import tracker
from omni2 import health
from tests.running import Running, eventually, get


def ready(omni2: Running) -> tuple[int, dict]:
    status, body = get(omni2.url + "/readyz")
    return status, json.loads(body)


@pytest.mark.slow
def test_it_names_what_is_not_ready_and_recovers(start_omni2) -> None:
    omni2 = start_omni2(own_postgres=True)
    eventually(lambda: ready(omni2)[0] == 200, "ready at first")
    assert ready(omni2)[1]["status"] == "ready"

    omni2.valkey.stop()
    eventually(lambda: "redis" in ready(omni2)[1]["not_ready"], "a frozen Redis is seen")
    assert ready(omni2)[0] == 503
    assert get(omni2.url + "/healthz")[0] == 200
    omni2.valkey.cont()
    eventually(lambda: ready(omni2)[0] == 200, "ready when Redis goes on")

    omni2.postgres.kill()
    eventually(lambda: "postgresql" in ready(omni2)[1]["not_ready"], "PostgreSQL is gone")
    omni2.postgres.start()
    eventually(lambda: ready(omni2)[0] == 200, "ready when PostgreSQL is back")

    omni2.persisters[0].stop()
    # silent for 15 s is what counts as gone
    eventually(lambda: "persister" in ready(omni2)[1]["not_ready"], "a frozen persister is seen")
    omni2.persisters[0].cont()
    eventually(lambda: ready(omni2)[0] == 200, "ready when the persister goes on")


@pytest.mark.slow
def test_it_is_ready_without_redis_and_says_that_it_is_off(start_omni2) -> None:
    omni2 = start_omni2(persisters=0, REDIS_ENABLED="false")
    status, body = ready(omni2)
    assert (status, body["status"]) == (200, "ready")
    assert body["checks"]["redis"]["status"] == "off"
    assert body["checks"]["relay"]["status"] == "off"


@pytest.mark.slow
def test_it_tells_nobody_where_its_servers_are(start_omni2) -> None:
    omni2 = start_omni2(persisters=0)
    omni2.valkey.kill()
    eventually(lambda: "redis" in ready(omni2)[1]["not_ready"])
    text = json.dumps(ready(omni2)[1])
    assert str(omni2.folder) not in text
    assert omni2.redis_url not in text


# --- what one process knows of itself --------------------------------------------------------------


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    made = sync_client()
    made.flushall()
    yield made
    made.flushall()
    made.close()


async def test_it_says_what_it_had_to_give_up_and_what_goes_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker, "flusher", SimpleNamespace(redis_away=False, postgres_away=False))
    monkeypatch.setattr(tracker, "given_up", 0)
    assert (await health.tracking())["status"] == "ok"
    monkeypatch.setattr(tracker, "given_up", 3)
    said = await health.tracking()
    assert (said["status"], said["given_up"]) == ("degraded", 3)
    monkeypatch.setattr(tracker, "given_up", 0)
    tracker.flusher.redis_away = True
    assert (await health.tracking())["status"] == "degraded"
    tracker.flusher.postgres_away = True
    assert (await health.tracking())["status"] == "failed"


async def test_it_says_how_far_the_persister_is_behind(client: redis.Redis) -> None:
    assert (await health.persister())["status"] == "failed", "none runs"
    client.hset(keys.PERSISTER, "at", time.time())
    said = await health.persister()
    assert (said["status"], said["waiting"], said["lag_s"], said["dead_letters"]) == ("ok", 0, 0.0, 0)
    client.xadd(keys.DEAD_LETTERS, {"d": b"{}"})
    assert (await health.persister())["status"] == "degraded", "somebody has to look at it"
    now_ms = client.time()[0] * 1000
    client.xadd(keys.log_shard(5), {"d": b"{}"}, id=f"{now_ms - 60_000}-0")
    said = await health.persister()
    assert (said["status"], said["waiting"]) == ("failed", 1)
    assert said["lag_s"] >= 59
    client.hset(keys.PERSISTER, "at", time.time() - 60)
    assert "no persister runs" in (await health.persister())["reason"]
