"""Three web processes, Daphne and uvicorn mixed, and two persisters behind a real nginx with TLS."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from monitoring.tests.watching import Page, WireSocket
from tests.llm_server import LlmServer
from tests.nginx import Nginx, needs_nginx
from tests.people import PASSWORD
from tests.running import Running, eventually, get, running

pytestmark = [pytest.mark.slow, needs_nginx]

OLGA, BOB = "olga@example.com", "bob@example.com"
CLIENT = "127.0.0.9"
"""Where clients come from, so that they can be told from nginx, which comes from 127.0.0.1."""


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmServer]:
    with LlmServer() as server:
        yield server


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    nginx = Nginx(tmp_path_factory.mktemp("nginx") / "nginx")
    yield nginx
    nginx.end()


@pytest.fixture(scope="module")
def omni2(llm: LlmServer, nginx: Nginx) -> Iterator[Running]:
    environment = {
        "OMNI2_HTTPS": "true",
        "OMNI2_TRUSTED_PROXIES": "127.0.0.1",
        "CSRF_TRUSTED_ORIGINS": nginx.url,
        "OMNI2_DRAIN_S": "20",
    }
    started = running(llm_base_url=llm.url, web=2, persisters=2, **environment)
    with pytest.MonkeyPatch.context() as patch, started as omni2:
        patch.setenv("OMNI2_TEST_SERVER", "uvicorn")
        omni2.start_web()
        omni2.wait_until_ready()
        omni2.create_user(OLGA, "Olga", "operators")
        omni2.create_user(BOB, "Bob")
        nginx.start(omni2.urls)
        yield omni2


@pytest.fixture
def client(nginx: Nginx, omni2: Running) -> Iterator[httpx2.Client]:
    transport = httpx2.HTTPTransport(
        verify=ssl.create_default_context(cafile=str(nginx.certificate)), local_address=CLIENT
    )
    with httpx2.Client(base_url=nginx.url, transport=transport, timeout=30) as client:
        yield client


@pytest.fixture
async def async_client(nginx: Nginx, omni2: Running) -> AsyncIterator[httpx2.AsyncClient]:
    verify = ssl.create_default_context(cafile=str(nginx.certificate))
    limits = httpx2.Limits(max_connections=50, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=nginx.url, verify=verify, timeout=60, limits=limits) as client:
        yield client


@pytest.fixture
def bearer(omni2: Running) -> dict[str, str]:
    return {"Authorization": f"Bearer {omni2.create_token(BOB)}"}


def ask(message: str, headers: dict[str, str]) -> dict[str, Any]:
    return {"method": "POST", "url": "/api/v1/ask/stream", "json": {"message": message}, "headers": headers}


def test_a_token_comes_while_the_model_still_speaks_and_a_client_that_leaves_is_noticed(
    client: httpx2.Client, llm: LlmServer, bearer: dict[str, str]
) -> None:
    """The model says a few words and hangs: what nginx gathers would never come."""
    with client.stream(**ask("script:hang_in_middle", bearer)) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines()  # kept: when it goes, the connection goes
        assert any(line == "event: token" for line in lines)
        seen = llm.requests[-1]
        assert not seen.over.is_set()
    eventually(lambda: seen.aborted, "the model is let go when the client has gone")


async def test_watchers_at_every_process_see_the_same_turn(
    nginx: Nginx, omni2: Running, client: httpx2.Client, bearer: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(nginx.certificate))
    omni2.sql(
        "INSERT INTO monitored_users (user_id, enabled_by, expires_at) VALUES (%s, %s, now() + interval '1 hour')",
        *(BOB, OLGA),
    )
    token = omni2.create_token(OLGA)
    pages = [Page(token, user_id=BOB, connect=partial(WireSocket, nginx.url)) for _ in range(3)]
    for page in pages:
        await page.open()
        await page.until(lambda page=page: page.cursor is not None)

    def watchers_at(url: str) -> int:
        return json.loads(get(url + "/readyz")[1])["checks"]["relay"]["watchers"]

    # nginx gives the next to who has the fewest
    assert [await asyncio.to_thread(watchers_at, url) for url in omni2.urls] == [1, 1, 1]
    answer = await asyncio.to_thread(client.request, **ask("script:clock", bearer))
    turn_id = answer.headers["x-omni2-turn-id"]
    ended = "SELECT outcome FROM turns WHERE turn_id = %s AND outcome IS NOT NULL"
    for page in pages:
        await page.until(
            lambda page=page: any(
                row["turn_id"] == turn_id and row["checkpoint"] == "flow_end" for row in page.shown.values()
            )
        )
        await page.leave()
    await asyncio.to_thread(eventually, lambda: omni2.sql(ended, turn_id), "the turn is stored")
    stored = {row[0] for row in omni2.sql("SELECT flow_id::text FROM interaction_flows WHERE turn_id = %s", turn_id)}
    for page in pages:
        assert {id_ for id_, row in page.shown.items() if row["turn_id"] == turn_id} == stored


def test_a_sign_in_counts_for_the_clients_own_address_whatever_he_says_and_its_cookies_are_secure(
    client: httpx2.Client, nginx: Nginx, omni2: Running
) -> None:
    from omni2.accounts.throttle import _key

    page = client.get("/login/")
    form = {"username": BOB, "password": "wrong", "csrfmiddlewaretoken": page.cookies["csrftoken"]}
    headers = {"Origin": nginx.url, "X-Forwarded-For": "192.0.2.66"}
    assert client.post("/login/", data=form, headers=headers).status_code == 200
    counted = {key for (key,) in omni2.sql("SELECT key FROM sign_in_counts")}
    assert _key("address", CLIENT) in counted
    assert counted.isdisjoint({_key("address", "192.0.2.66"), _key("address", "127.0.0.1")})

    done = client.post("/login/", data=form | {"password": PASSWORD}, headers=headers)
    assert done.status_code == 302, done.text
    cookies = [value for value in done.headers.get_list("set-cookie") if "sessionid" in value]
    assert cookies
    assert all("; Secure" in cookie for cookie in cookies)


def test_a_form_of_another_origin_is_refused(client: httpx2.Client) -> None:
    page = client.get("/login/")
    form = {"username": BOB, "password": PASSWORD, "csrfmiddlewaretoken": page.cookies["csrftoken"]}
    assert client.post("/login/", data=form, headers={"Origin": "https://elsewhere.example"}).status_code == 403


def test_what_is_too_large_is_refused_by_omni2_itself_and_plain_http_is_led_to_tls(
    client: httpx2.Client, nginx: Nginx, bearer: dict[str, str]
) -> None:
    answer = client.post("/api/v1/ask", json={"message": "x" * 1_200_000}, headers=bearer)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert client.post("/api/v1/ask", content=b"x" * 3_000_000, headers=bearer).status_code == 413
    assert client.get("/readyz").status_code == 404
    plain = httpx2.get(f"http://localhost:{nginx.plain_port}/chat/", follow_redirects=False)
    assert plain.headers["location"] == "https://localhost/chat/"


async def test_a_rolling_restart_loses_no_answer_and_turns_nobody_away(
    async_client: httpx2.AsyncClient, omni2: Running, bearer: dict[str, str]
) -> None:
    """Every process is ended and started again while answers run; nginx asks those that take connections."""
    ends: list[tuple[int, str]] = []
    stop = asyncio.Event()

    async def chat() -> None:
        while not stop.is_set():
            last, status = "", 0
            with contextlib.suppress(httpx2.HTTPError):
                async with async_client.stream(**ask("script:slow", bearer)) as answer:
                    status = answer.status_code
                    async for line in answer.aiter_lines():
                        last = line if line.startswith("event:") else last
            ends.append((status, last))

    chats = [asyncio.create_task(chat()) for _ in range(6)]
    for process in omni2.web:
        await asyncio.to_thread(process.end, limit_s=60)
        process.start()
        await asyncio.to_thread(omni2.wait_until_ready)
    stop.set()
    await asyncio.gather(*chats)
    assert set(ends) == {(200, "event: done")}
