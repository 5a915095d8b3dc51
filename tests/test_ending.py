"""A process that is asked to end hears its clients out: also those whose turn is over but who have not heard so."""

import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

from tests.llm_server import LlmServer
from tests.running import Running, eventually, get, running

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


@pytest.mark.parametrize("server", ["daphne", "uvicorn"])
def test_whoever_has_just_connected_is_answered(monkeypatch: pytest.MonkeyPatch, server: str) -> None:
    """His request comes when the process has been asked to end already, and nothing else keeps it."""
    monkeypatch.setenv("OMNI2_TEST_SERVER", server)
    with running() as omni2:
        # what is drained is set up by the first request below Django
        assert httpx2.post(f"{omni2.url}/api/v1/ask", json={"message": "Hello"}).status_code == 401
        where = urlsplit(omni2.url)
        with socket.create_connection((where.hostname, where.port), timeout=30) as client:
            # so that it is accepted, as the one before it must have been
            assert get(omni2.url + "/healthz")[0] == 200
            omni2.web[0].ask_to_end()
            time.sleep(0.1)
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 "), omni2.web[0].output
        eventually(lambda: not omni2.web[0].alive, "it ends")


def ended(omni2: Running) -> Any:
    return omni2.sql("SELECT count(*) FROM turns WHERE outcome IS NOT NULL")[0][0]
