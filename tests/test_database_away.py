"""PostgreSQL is gone: 503 with a code and a time to wait, pages in plain words, no trace; then it is back."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.running import Running, eventually, running

pytestmark = pytest.mark.slow


@pytest.fixture
def omni2() -> Iterator[Running]:
    with running(persisters=0, own_postgres=True) as started:
        yield started


def ask(url: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, Any, str]:
    """Status, headers and text."""
    request = urllib.request.Request(url, method=method, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as answer:
        return answer.code, answer.headers, answer.read().decode()


def test_it_says_that_the_database_is_away_and_comes_back_by_itself(omni2: Running) -> None:
    token = {"Authorization": f"Bearer {omni2.create_token('bob@example.com')}"}
    cookie = {"Cookie": "; ".join(f"{name}={value}" for name, value in omni2.sign_in("bob@example.com").items())}
    assert ask(f"{omni2.url}/api/v1/turns", **token)[0] == 200
    assert omni2.postgres is not None
    omni2.postgres.kill()

    calls = [
        ("GET", "/api/v1/turns", token),
        ("GET", "/api/v1/turns", cookie),
        ("GET", "/api/v1/flows/user/bob@example.com", token),
        ("POST", "/api/v1/monitoring/enable", token),
        ("POST", "/api/v1/auth/token", {}),
        ("POST", "/api/v1/ask", token),
        ("POST", "/api/v1/ask/stream", token),
    ]
    body = b'{"message": "x", "user_id": "bob@example.com", "email": "bob@example.com", "password": "x"}'

    def call(method: str, path: str, headers: dict[str, str]) -> tuple[int, Any, str]:
        return ask(omni2.url + path, method=method, body=body if method == "POST" else None, **headers)

    pages = [("GET", path, cookie) for path in ("/flows/", "/admin/")]
    # all at once: each waits seconds for the pool before it gives up
    with ThreadPoolExecutor(len(calls) + len(pages)) as at_once:
        answers = list(at_once.map(lambda each: call(*each), [*calls, *pages]))

    for (_, path, _), (status, answered, text) in zip(calls, answers[: len(calls)], strict=True):
        assert (status, json.loads(text)["code"]) == (503, "database_unavailable"), path
        assert int(answered["Retry-After"]) > 0
        assert set(json.loads(text)) == {"detail", "code"}

    for (_, path, _), (status, answered, text) in zip(pages, answers[len(calls) :], strict=True):
        assert status == 503, path
        assert answered["Content-Type"].startswith("text/html")
        assert "Traceback" not in text
        assert "psycopg" not in text
        assert int(answered["Retry-After"]) > 0

    # what needs no database goes on
    for path, wanted in [("/healthz", 200), ("/api/schema/", 200), ("/api/docs/", 200), ("/api/nothing", 404)]:
        assert ask(omni2.url + path, **token)[0] == wanted, path

    omni2.postgres.start()
    eventually(lambda: ask(f"{omni2.url}/api/v1/turns", **token)[0] == 200, "it answers again")
    output = omni2.web[0].output
    assert token["Authorization"].removeprefix("Bearer ") not in output
