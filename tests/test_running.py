"""The end-to-end harness starts the real product, and each has data of its own."""

import json

import pytest

from tests.running import eventually, get, running

pytestmark = pytest.mark.slow


def test_it_starts_a_product_with_two_web_processes_on_data_of_its_own() -> None:
    with running(web=2) as omni2:
        for url in omni2.urls:
            status, body = get(url + "/readyz")
            assert (status, json.loads(body)["not_ready"]) == (200, [])
        token = omni2.create_token("bob@example.com")
        assert token
        assert omni2.sql("SELECT email FROM users") == [("bob@example.com",)]
        assert omni2.redis.ping()

        first = omni2.web[0]
        first.kill()
        assert get(omni2.urls[0] + "/healthz")[0] == 0
        first.start()
        omni2.wait_until_ready()

        omni2.valkey.kill()
        eventually(lambda: json.loads(get(omni2.url + "/readyz")[1])["not_ready"], "/readyz sees that Redis is away")
        assert "redis" in json.loads(get(omni2.url + "/readyz")[1])["not_ready"]
        omni2.valkey.start()
        eventually(lambda: get(omni2.url + "/readyz")[0] == 200, "ready again")
        processes = omni2.processes
    assert [process.name for process in processes if process.alive] == []


async def test_it_gives_people_and_sessions_from_async_tests_too(start_omni2) -> None:
    omni2 = start_omni2(web=0, persisters=0)
    omni2.create_user("olga@example.com", "Olga", "operators")
    assert omni2.sign_in("olga@example.com").keys() == {"sessionid"}
