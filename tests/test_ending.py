"""A process that is asked to end hears its clients out: also those whose turn is over but who have not heard so."""

import threading
from typing import Any

import httpx2
import psycopg
import pytest

from tests.llm_server import LlmServer
from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow

BOB = "bob@example.com"


def ask(omni2: Running, token: str, heard: list[str]) -> None:
    """A slow answer, to its end."""
    with httpx2.stream(
        "POST",
        f"{omni2.url}/api/v1/ask/stream",
        json={"message": "script:slow"},
        headers={"Authorization": f"Bearer {token}"},
        timeout=60,
    ) as answer:
        heard.extend(line for line in answer.iter_lines() if line.startswith("event:"))


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_it_ends_only_when_a_client_has_heard_that_its_turn_is_done(
    monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    """The charge of a turn comes after its flow_end and before `done`; here it waits for a lock of somebody else's."""
    monkeypatch.setenv("OMNI2_TEST_SERVER", server)
    with LlmServer() as llm, running(llm_base_url=llm.url) as omni2:
        token = omni2.create_token(BOB)
        heard: list[str] = []
        client = threading.Thread(target=ask, args=(omni2, token, heard))
        with psycopg.connect(omni2.database_url, options="-c search_path=omni2") as lock:
            client.start()
            eventually(lambda: llm.requests, "it was let in")
            lock.execute("LOCK TABLE daily_usage IN SHARE MODE")
            eventually(lambda: ended(omni2), "its flow_end is stored")
            assert "event: done" not in heard
            omni2.web[0].ask_to_end()
            client.join(30)
        assert heard[-1:] == ["event: done"], omni2.web[0].output


def ended(omni2: Running) -> Any:
    return omni2.sql("SELECT count(*) FROM turns WHERE outcome IS NOT NULL")[0][0]
