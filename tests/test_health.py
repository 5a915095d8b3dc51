"""/healthz and /readyz of a really started product: what is missing is named, and seen again when it is back."""

import json

import pytest

from tests.running import Running, eventually, get

pytestmark = pytest.mark.slow


def ready(omni2: Running) -> tuple[int, dict]:
    status, body = get(omni2.url + "/readyz")
    return status, json.loads(body)


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
    eventually(lambda: ready(omni2)[0] == 200, "ready when PostgreSQL is back", limit_s=40)

    omni2.persisters[0].stop()
    # silent for 15 s is what counts as gone
    eventually(lambda: "persister" in ready(omni2)[1]["not_ready"], "a frozen persister is seen", limit_s=40)
    omni2.persisters[0].cont()
    eventually(lambda: ready(omni2)[0] == 200, "ready when the persister goes on")


def test_it_is_ready_without_redis_and_says_that_it_is_off(start_omni2) -> None:
    omni2 = start_omni2(persisters=0, REDIS_ENABLED="false")
    status, body = ready(omni2)
    assert (status, body["status"]) == (200, "ready")
    assert body["checks"]["redis"]["status"] == "off"
    assert body["checks"]["relay"]["status"] == "off"


def test_it_tells_nobody_where_its_servers_are(start_omni2) -> None:
    omni2 = start_omni2(persisters=0)
    omni2.valkey.kill()
    eventually(lambda: "redis" in ready(omni2)[1]["not_ready"])
    text = json.dumps(ready(omni2)[1])
    assert str(omni2.folder) not in text
    assert omni2.redis_url not in text
