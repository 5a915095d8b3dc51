"""Who may open a watcher's socket, who may keep it, and what the access log says of it."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import Permission
from django.contrib.sessions.backends.db import SessionStore
from django.contrib.sessions.models import Session
from django.db.models.functions import Now

from flows.tracker import FlowTracker, tracker
from monitoring.tests.watching import BOB, Closed, Page, Script, Socket, enable, settle
from omni2.accounts.models import AccessLog, ApiToken
from omni2.database import in_database
from tests.people import make_group, make_person

pytestmark = pytest.mark.django_db(transaction=True)

HOST = {"host": "localhost:8090"}
OUR_PAGE = {**HOST, "origin": "http://localhost:8090"}


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights are looked at more often than in earnest, to spare the tests the waiting."""
    monkeypatch.setattr("monitoring.relay.RIGHTS_EVERY_S", 0.2)


async def opened(**options: Any) -> int | None:
    """The code a socket is closed with instead of being served; None when it is served."""
    try:
        async with Socket(**options) as socket:
            assert (await socket.receive())["type"] == "hello"
    except Closed as closed:
        return closed.code
    return None


def session_of(user: Any) -> str:
    """The Cookie header of a browser in which this user is signed in."""
    store = SessionStore()
    store[SESSION_KEY] = str(user.pk)
    store[BACKEND_SESSION_KEY] = django_settings.AUTHENTICATION_BACKENDS[0]
    store[HASH_SESSION_KEY] = user.get_session_auth_hash()
    store.create()
    return f"{django_settings.SESSION_COOKIE_NAME}={store.session_key}"


# --- the doors -------------------------------------------------------------------------------------


async def test_it_lets_operators_and_superusers_in(
    live: FlowTracker, bob: Any, olga: Any, ada: Any, token_of: Any
) -> None:
    assert await opened(token=token_of(olga)) is None
    assert await opened(token=token_of(ada)) is None


async def test_it_lets_nobody_else_in(live: FlowTracker, bob: Any, charlie: Any, august: Any, token_of: Any) -> None:
    """Charlie may nothing, August only read history, Bob not even watch himself."""
    for person in (charlie, august, bob):
        assert await opened(token=token_of(person)) == 4403


async def test_it_knows_who_is_nobody(live: FlowTracker, bob: Any, olga: Any, token_of: Any) -> None:
    assert await opened() == 4401
    assert await opened(token="omni2_nobody") == 4401
    assert await opened(token="nicht-ä-\xff") == 4401
    assert await opened(headers={"authorization": "Basic b2xnYTp4"}) == 4401
    expired = await in_database(ApiToken.objects.issue, olga, days=-1)
    assert await opened(token=expired[1]) == 4401


async def test_it_lets_no_inactive_person_in(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    olga.is_active = False
    await in_database(olga.save)
    assert await opened(token=olga_token) == 4401


async def test_it_says_that_there_is_no_such_user(
    live: FlowTracker, charlie: Any, olga_token: str, token_of: Any
) -> None:
    assert await opened(token=olga_token, user_id="nobody@example.com") == 4404
    # and to those who may not watch it does not say who exists
    assert await opened(token=token_of(charlie), user_id="nobody@example.com") == 4403


async def test_it_reads_the_user_id_as_it_is_typed(live: FlowTracker, olga_token: str) -> None:
    await in_database(make_person, "slash/and+plus@example.com", "Slash")
    assert await opened(token=olga_token, user_id="Slash/And+Plus@Example.COM") is None


@pytest.mark.parametrize(
    "query", ["after=", "after=x", "after=a.b-c", "after=a.1-1&after=a.1-2", "after=a.1-%EF%BC%91"]
)
async def test_it_refuses_a_malformed_cursor(query: str, live: FlowTracker, bob: Any, olga_token: str) -> None:
    assert await opened(token=olga_token, query=query) == 4400


async def test_it_takes_no_token_from_the_address(live: FlowTracker, bob: Any, olga_token: str) -> None:
    assert await opened(query=f"token={olga_token}") == 4401


async def test_it_takes_the_token_as_a_subprotocol(live: FlowTracker, bob: Any, olga_token: str) -> None:
    async with Socket(subprotocols=["bearer", olga_token], headers={**HOST, "origin": "https://elsewhere.test"}) as one:
        assert one.subprotocol == "bearer"
        assert (await one.receive())["type"] == "hello"
    assert await opened(subprotocols=["bearer", "omni2_wrong"]) == 4401
    assert await opened(subprotocols=["bearer"]) == 4401


async def test_a_header_wins_over_everything_else(
    live: FlowTracker, bob: Any, olga: Any, charlie: Any, olga_token: str, token_of: Any
) -> None:
    cookie = await in_database(session_of, olga)
    wrong = {**OUR_PAGE, "cookie": cookie, "authorization": "Bearer omni2_wrong"}
    assert await opened(headers=wrong) == 4401
    assert await opened(token=token_of(charlie), subprotocols=["bearer", olga_token]) == 4403
    # a program's Origin says nothing
    assert await opened(token=olga_token, headers={**HOST, "origin": "https://elsewhere.test"}) is None


async def test_it_serves_a_browser_session_from_our_page_only(live: FlowTracker, bob: Any, olga: Any) -> None:
    cookie = await in_database(session_of, olga)
    assert await opened(headers={**OUR_PAGE, "cookie": cookie}) is None
    for origin in (
        "https://evil.test",
        "http://localhost:9999",
        "http://localhost.evil.test:8090",
        "http://evil.test@localhost:8090",
        "null",
        "http://localhost:99999999",
        "file://localhost:8090",
    ):
        assert await opened(headers={**HOST, "origin": origin, "cookie": cookie}) == 403, origin
    assert await opened(headers={**HOST, "cookie": cookie}) == 403
    assert await opened(headers={"host": "evil.test", "origin": "http://evil.test", "cookie": cookie}) == 403
    # nobody is signed in there, but another site's page gets no answer either
    assert await opened(headers={**HOST, "origin": "https://evil.test"}) == 403
    assert await opened(headers=OUR_PAGE) == 4401


async def test_it_trusts_the_origins_it_is_told_to(live: FlowTracker, bob: Any, olga: Any, settings: Any) -> None:
    settings.CSRF_TRUSTED_ORIGINS = ["https://*.example.com", "https://omni2.test:8443"]
    cookie = await in_database(session_of, olga)
    for origin, served in (
        ("https://pages.example.com", True),
        ("https://omni2.test:8443", True),
        ("http://pages.example.com", False),
        ("https://pagesexample.com", False),
        ("https://omni2.test", False),
    ):
        expected = None if served else 403
        assert await opened(headers={**HOST, "origin": origin, "cookie": cookie}) == expected, origin


async def test_it_refuses_other_paths(live: FlowTracker, olga_token: str) -> None:
    socket = Socket(token=olga_token)
    for path in ("/ws/flows/", "/ws/flows", "/ws/other", "/"):
        socket.scope["path"] = path
        with pytest.raises(Closed):
            await socket.open()


async def test_it_sends_those_beyond_its_limit_away(
    live: FlowTracker, bob: Any, olga_token: str, settings: Any
) -> None:
    settings.MAX_WATCHERS = 1
    async with Socket(token=olga_token) as socket:
        await socket.receive()
        assert await opened(token=olga_token) == 4503
    assert await opened(token=olga_token) is None


# --- who may stay -----------------------------------------------------------------------------------


async def test_it_closes_when_the_right_is_withdrawn(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    await enable(olga)
    async with Socket(token=olga_token) as socket:
        await in_database(olga.groups.clear)
        assert await socket.until_closed() == 4403


async def test_it_closes_when_the_group_loses_the_right(
    live: FlowTracker, bob: Any, olga: Any, olga_token: str
) -> None:
    async with Socket(token=olga_token) as socket:
        await socket.receive()
        await in_database(lambda: make_group("operators").permissions.remove(Permission.objects.get(codename="watch")))
        assert await socket.until_closed() == 4403


async def test_it_stays_open_for_those_who_keep_their_right(
    live: FlowTracker, bob: Any, olga: Any, ada: Any, token_of: Any
) -> None:
    """Ada by being a superuser, Vera by a permission of her own; the one who lost it is closed meanwhile."""
    vera = await in_database(make_person, "vera@example.com", "Vera")
    watch = await in_database(Permission.objects.get, codename="watch")
    await in_database(vera.user_permissions.add, watch)
    sockets = [Socket(token=token_of(person)) for person in (ada, vera, olga)]
    for socket in sockets:
        await socket.open()
    await in_database(olga.groups.clear)
    assert await sockets[2].until_closed() == 4403
    for socket in sockets[:2]:
        assert socket.task is not None
        assert not socket.task.done()
        said = [socket.inbox.get_nowait()["type"] for _ in range(socket.inbox.qsize())]
        assert set(said) == {"websocket.send"}
        await socket.close()


async def test_it_closes_when_the_token_is_revoked(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    async with Socket(token=olga_token) as socket:
        await in_database(olga.tokens.revoke)
        assert await socket.until_closed() == 4401


async def test_it_closes_when_the_token_expires(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    async with Socket(token=olga_token) as socket:
        await in_database(olga.tokens.update, expires_at=Now() + timedelta(seconds=1))
        assert await socket.until_closed() == 4401


async def test_it_closes_when_the_user_is_deactivated(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    async with Socket(token=olga_token) as socket:
        olga.is_active = False
        await in_database(olga.save)
        assert await socket.until_closed() == 4401


async def test_it_closes_when_the_session_ends(live: FlowTracker, bob: Any, olga: Any, ada: Any) -> None:
    cookies = [await in_database(session_of, person) for person in (olga, ada)]
    async with (
        Socket(headers={**OUR_PAGE, "cookie": cookies[0]}) as signed_out,
        Socket(headers={**OUR_PAGE, "cookie": cookies[1]}) as new_password,
    ):
        await in_database(Session.objects.filter(session_key=cookies[0].partition("=")[2]).delete)
        await in_database(ada.change_password, "another battery staple")
        assert await signed_out.until_closed() == 4401
        assert await new_password.until_closed() == 4401


# --- the access log ----------------------------------------------------------------------------------


def lines() -> list[AccessLog]:
    return list(AccessLog.objects.filter(action__startswith="watch_").order_by("id"))


async def test_it_writes_down_who_watched_whom_from_when_to_when(
    live: FlowTracker, bob: Any, olga: Any, charlie: Any, olga_token: str, token_of: Any
) -> None:
    await opened(token=token_of(charlie))
    await opened(token=olga_token, query="after=x")
    async with Socket(token=olga_token) as socket:
        await socket.receive()
        (begun,) = await in_database(lines)
        assert (begun.actor, begun.action, begun.subject_user_id) == (olga.user_id, "watch_started", BOB)
    async with asyncio.timeout(10):
        while len(written := await in_database(lines)) < 2:
            await asyncio.sleep(0.02)
    ended = written[1]
    assert (ended.actor, ended.action, ended.subject_user_id) == (olga.user_id, "watch_ended", BOB)
    assert ended.detail["from"] <= ended.detail["to"]


async def test_it_writes_down_the_end_of_a_socket_the_server_gives_up(
    live: FlowTracker, bob: Any, olga_token: str
) -> None:
    socket = Socket(token=olga_token)
    await socket.open()
    assert socket.task is not None
    socket.task.cancel()
    async with asyncio.timeout(10):
        while [line.action for line in await in_database(lines)] != ["watch_started", "watch_ended"]:
            await asyncio.sleep(0.02)


# --- what a client may send ----------------------------------------------------------------------------


NONSENSE = (
    *("", "x", "[]", "{}", "null", "[" * 4000, "\ud800"),
    *('{"type":"ack"}', '{"type":"ack","cursor":[]}', '{"type":"ack","cursor":"x"}'),
    '{"type":"subscribe","user_id":"ada@example.com"}',
)


async def test_it_ignores_whatever_it_does_not_know(live: FlowTracker, bob: Any, olga: Any, olga_token: str) -> None:
    await enable(olga)
    script = Script(live)
    async with Page(olga_token) as page:
        assert page.socket is not None
        for nonsense in NONSENSE:
            page.socket.outbox.put_nowait({"type": "websocket.receive", "text": nonsense})
        page.socket.outbox.put_nowait({"type": "websocket.receive", "bytes": b"\xff\x00"})
        page.socket.outbox.put_nowait({"type": "websocket.receive"})
        await script.run()
        await page.until_shown(script.flow_ids)


async def test_it_closes_at_an_oversized_message(live: FlowTracker, bob: Any, olga_token: str) -> None:
    async with Socket(token=olga_token) as socket:
        socket.say("x" * 5000)
        assert await socket.until_closed() == 4413


async def test_it_pings(live: FlowTracker, bob: Any, olga_token: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("monitoring.relay.PING_EVERY_S", 0.1)
    async with Socket(token=olga_token) as socket:
        assert (await socket.receive())["type"] == "hello"
        assert (await socket.receive())["type"] == "snapshot"
        ping = await socket.receive()
        assert (ping["type"], ping["live"]) == ("ping", "on")
        assert ping["server_time"].endswith("Z")
        await settle(lambda: not socket.inbox.empty())


async def test_it_says_at_once_that_checkpoints_go_around_redis(
    live: FlowTracker, bob: Any, olga_token: str, monkeypatch: Any
) -> None:
    """Redis may answer the relay and still take nothing, when it is full: then live is late."""
    monkeypatch.setattr("monitoring.relay.TICK_S", 0.05)
    monkeypatch.setattr(tracker, "flusher", SimpleNamespace(redis_away=False, postgres_away=False))
    async with Socket(token=olga_token) as socket:
        assert (await socket.receive())["live"] == "on"
        assert (await socket.receive())["type"] == "snapshot"
        for redis_away, said in ((True, "degraded"), (False, "on")):
            tracker.flusher.redis_away = redis_away
            ping = await socket.receive()
            assert (ping["type"], ping["live"]) == ("ping", said)
