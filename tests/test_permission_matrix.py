"""Who may what: every address, page and socket × anonymous, plain user, auditor, operator, superuser.

The URL conf is walked: an address without a line here fails the test. Everything is about Bob, who
is none of the five.
"""

import asyncio
import json
import uuid
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.apps import apps
from django.contrib import admin
from django.contrib.auth.models import Group
from django.test import Client
from django.urls import get_resolver

from chat.endpoint import ask_application
from chat.openai_routes import is_openai_path, openai_application
from flows.saved_views import SavedView
from flows.tests.rows import StoredTurn
from monitoring.routing import websocket_application
from omni2.accounts.models import ApiToken, User
from tests.openapi import BELOW_DJANGO, addresses
from tests.people import issue_token

PEOPLE = ("anonymous", "plain user", "auditor", "operator", "superuser")
# {user_id} is Bob's, {session_id} and {token_id} are his; {self} is the asker's own.
MATRIX = """
                                                             anonymous  plain  auditor  operator  superuser
GET    /healthz                                                    200    200      200       200        200
GET    /readyz                                                 200|503 200|503  200|503   200|503    200|503
GET    /                                                           302    302      302       302        302
GET    /login/                                                     200    302      302       302        302
POST   /logout/                                                    302    302      302       302        302
GET    /account/password/                                          302    200      200       200        200
GET    /account/tokens/                                            302    200      200       200        200
POST   /account/tokens/{token_id}/revoke/                          302    404      404       404        404
GET    /chat/                                                      302    200      200       200        200
POST   /chat/render                                                401    400      400       400        400
GET    /chat/{session_id}/                                         302    404      404       404        404
GET    /chat/{session_id}/exchanges                                401    404      404       404        404
GET    /usage/                                                     302    200      200       200        200
GET    /flows/                                                     302    200      200       200        200
GET    /flows/news                                                 401    403      403       403        403
GET    /flows/people                                               401    403      200       200        200
GET    /flows/export                                               302    200      200       200        200
GET    /flows/export?user_id={user_id}                             302    403      200       200        200
POST   /flows/views                                                302    302      302       302        302
POST   /flows/views/{view_id}/rename                               302    404      404       404        404
POST   /flows/views/{view_id}/delete                               302    404      404       404        404
GET    /flows/{session_id}/                                        302    404      200       200        200
GET    /flows/compare/                                             302    200      200       200        200
GET    /flows/compare/?a={turn_id}                                 302    404      200       200        200
GET    /flows/{session_id}/growth                                  401    403      403       403        403
GET    /flows/{session_id}/export                                  302    404      200       200        200
GET    /analytics/                                                 302    403      200       200        200
GET    /analytics/?user_id={user_id}                               302    403      200       200        200
GET    /ledger/                                                    302    403      403       200        200
GET    /live/                                                      302    403      403       200        200
GET    /live/people                                                401    403      403       200        200
GET    /live/search                                                401    403      403       200        200
GET    /live/usual                                                 401    403      403       200        200
GET    /api/schema/                                                200    200      200       200        200
GET    /api/docs/                                                  200    200      200       200        200
POST   /api/v1/auth/token                                          400    400      400       400        400
GET    /api/v1/auth/tokens                                         401    200      200       200        200
POST   /api/v1/auth/tokens                                         401    201      201       201        201
DELETE /api/v1/auth/tokens/{token_id}                              401    404      404       404        404
POST   /api/v1/ask                                                 401    400      400       400        400
POST   /api/v1/ask/stream                                          401    400      400       400        400
POST   /v1/chat/completions                                        401    400      400       400        400
GET    /v1/models                                                  401    200      200       200        200
GET    /v1/models/{model}                                          401    404      404       404        404
GET    /api/v1/models                                              401    200      200       200        200
GET    /api/v1/conversations                                       401    200      200       200        200
PATCH  /api/v1/conversations/{session_id}                          401    400      400       400        400
DELETE /api/v1/conversations/{session_id}                          401    404      404       404        404
GET    /api/v1/conversations/{session_id}/export                   401    404      404       404        404
GET    /api/v1/flows/user/{user_id}                                401    403      200       200        200
GET    /api/v1/flows/user/{self}                                   401    200      200       200        200
GET    /api/v1/flows/user/nobody@example.com                       401    403      404       404        404
GET    /api/v1/flows/session/{session_id}                          401    404      200       200        200
GET    /api/v1/turns                                               401    200      200       200        200
GET    /api/v1/turns?user_id={user_id}                             401    403      200       200        200
GET    /api/v1/approvals                                           401    200      200       200        200
POST   /api/v1/turns/{turn_id}/approvals/{call_id}                 401    400      400       400        400
GET    /api/v1/turns/export                                        401    200      200       200        200
GET    /api/v1/turns/export?user_id={user_id}                      401    403      200       200        200
POST   /api/v1/turns/{turn_id}/stop                                401    404      404       409        409
GET    /api/v1/users/{user_id}/block                               401    403      403       403        200
POST   /api/v1/users/{user_id}/block                               401    403      403       403        201
DELETE /api/v1/users/{user_id}/block                               401    403      403       403        200
GET    /api/v1/usage                                               401    200      200       200        200
GET    /api/v1/usage?user_id={user_id}                             401    403      403       403        200
GET    /api/v1/usage?user_id={self}                                401    200      200       200        200
GET    /api/v1/usage?user_id=nobody@example.com                    401    403      403       403        404
GET    /api/v1/usage/users                                         401    403      403       403        200
GET    /api/v1/ledger                                              401    403      403       200        200
POST   /api/v1/monitoring/enable                                   401    403      403       400        400
POST   /api/v1/monitoring/disable                                  401    403      403       400        400
GET    /api/v1/monitoring/users                                    401    403      403       200        200
GET    /api/v1/monitoring/flows/user/{user_id}                     401    403      200       200        200
GET    /api/v1/monitoring/flows/user/{self}                        401    200      200       200        200
GET    /api/v1/monitoring/flows/session/{session_id}               401    404      200       200        200
WS     /ws/flows/{user_id}                                        4401   4403     4403        OK         OK
WS     /ws/flows/{self}                                           4401   4403     4403        OK         OK
WS     /ws/flows/nobody@example.com                               4401   4403     4403      4404       4404
"""
# In the admin the auditor and the operator are staff; the plain user is not, and is sent to sign in.
ADMIN_MATRIX = """
                                                             anonymous  plain  auditor  operator  superuser
GET    /admin/                                                     302    302      200       200        200
GET    /admin/login/                                               302    403      302       302        302
POST   /admin/logout/                                              302    302      302       302        302
GET    /admin/search/                                              302    302      200       200        200
GET    /admin/password_change/                                     302    302      302       302        302
GET    /admin/password_change/done/                                302    302      200       200        200
GET    /admin/autocomplete/                                        302    302      403       403        403
GET    /admin/jsi18n/                                              302    302      200       200        200
GET    /admin/r/{content_type_id}/{object_id}/                     302    302      404       404        404
GET    /admin/nothing/there/                                       302    302      404       404        404
GET    /admin/accounts/user/{id}/password/                         302    302      403       403        200
GET    /admin/monitoring/monitoreduser/people/                     302    302      403       200        200
"""
# The five addresses of each model: what the list, a row, a new row and a deletion answer to staff.
# Letters: a auditor, o operator, s superuser; who is not named is refused.
MODELS = """
                            list   change  add   delete
accounts.user               s      s       s     -
auth.group                  s      s       s     s
accounts.apitoken           s      s       -     -
accounts.accesslog          s      s       -     -
flows.turn                  aos    aos     -     -
flows.interactionflow       aos    aos     -     -
monitoring.monitoreduser    os     os      os    -
monitoring.omni2config      s      s       -     -
chat.userblock              s      s       s     s
chat.userlimits             s      s       s     s
chat.grouplimits            s      s       s     s
chat.dailyusage             s      s       -     -
chat.turnusage              s      s       -     -
chat.conversation           s      s       -     -
chat.languagemodel          s      s       s     s
chat.groupprompt            s      s       s     s
chat.toolserver             s      s       s     s
"""
DJANGOS_OWN = {  # patterns of the admin that stand for many addresses: /admin/<app>/ and whatever is left
    "/admin/^(?P{app_label}",
    "/admin/(?P{url}",
}


def lines(table: str) -> list[tuple[str, str, list[str]]]:
    words = [line.split() for line in table.strip().splitlines()[1:]]
    return [(method, address, expected) for method, address, *expected in words]


def either(statuses: str) -> set[int]:
    """`200|503` → both: /readyz is open to all, and says how it is."""
    return set(map(int, statuses.split("|")))


def models() -> dict[str, dict[str, str]]:
    head, *rows = [line.split() for line in MODELS.strip().splitlines()]
    return {model: dict(zip(head, letters, strict=True)) for model, *letters in rows}


def model_addresses(model: str) -> dict[str, str]:
    root = f"/admin/{model.replace('.', '/')}/"
    row = root + "{object_id}/"
    return {
        "list": root,
        "add": root + "add/",
        "change": row + "change/",
        "delete": row + "delete/",
        "history": row + "history/",
        "row": row,
    }


def test_every_address_has_a_line() -> None:
    known = {address.partition("?")[0] for _, address, _ in lines(MATRIX) + lines(ADMIN_MATRIX)}
    for model in models():
        known |= set(model_addresses(model).values())
    served = set(addresses(get_resolver().url_patterns)) | BELOW_DJANGO
    without = {address for address in served - known if not address.startswith(tuple(DJANGOS_OWN))}
    assert without == set()


def test_every_line_has_an_address() -> None:
    """A line about an address that is gone says nothing; what it says about strangers is kept."""
    served = set(addresses(get_resolver().url_patterns)) | BELOW_DJANGO
    about = {address.partition("?")[0] for method, address, _ in lines(MATRIX) if method != "WS"}
    gone = {
        address for address in about if address not in served and "{self}" not in address and "nobody" not in address
    }
    assert gone == set()
    assert set(models()) == {model._meta.label_lower for model in admin.site._registry}


@pytest.fixture
def cast(charlie: User, august: User, olga: User, ada: User) -> dict[str, User | None]:
    return dict(zip(PEOPLE, (None, charlie, august, olga, ada), strict=True))


class About:
    """Bob, and what is his."""

    def __init__(self, bob: User) -> None:
        self.turn = StoredTurn(bob.user_id).end()
        issue_token(bob)
        self.values = {
            "{user_id}": bob.user_id,
            "{session_id}": self.turn.session_id,
            "{turn_id}": self.turn.turn_id,
            "{view_id}": str(SavedView.keep(bob, "His own", "/flows/", "outcome=failed")[0].pk),
            "{token_id}": str(ApiToken.objects.get(user=bob).pk),
            "{call_id}": "call_1",
            "{id}": str(bob.pk),
            "{content_type_id}": "1",
            "{object_id}": "1",
        }

    def url(self, address: str, who: User | None) -> str:
        for name, value in {**self.values, "{self}": who.user_id if who else "bob@example.com"}.items():
            address = address.replace(name, value)
        return address


@pytest.fixture
def about(bob: User) -> About:
    return About(bob)


def client_of(who: User | None) -> Client:
    client = Client()
    if who is not None:
        client.force_login(who)
    return client


def asked(client: Client, method: str, url: str) -> int:
    status: int = client.generic(method, url, b"{}", content_type="application/json").status_code
    return status


HTTP = [line for line in lines(MATRIX) if line[0] != "WS" and line[1] not in BELOW_DJANGO]


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "address", "expected"), HTTP, ids=str)
def test_it_lets_in_exactly_whom_it_should(
    cast: dict[str, User | None], about: About, method: str, address: str, expected: list[str]
) -> None:
    for (name, who), wanted in zip(cast.items(), expected, strict=True):
        assert asked(client_of(who), method, about.url(address, who)) in either(wanted), name


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "address", "expected"), HTTP, ids=str)
def test_a_token_is_as_good_as_a_session_for_the_api_and_for_no_page(
    cast: dict[str, User | None], about: About, method: str, address: str, expected: list[str]
) -> None:
    for (name, who), status in zip(cast.items(), expected, strict=True):
        if who is None:
            continue
        client = Client(headers={"Authorization": f"Bearer {issue_token(who)}"})
        wanted = status if address.startswith("/api/") else expected[0]
        assert asked(client, method, about.url(address, who)) in either(wanted), name


# --- the admin ------------------------------------------------------------------------------------


@pytest.fixture
def staff(cast: dict[str, User | None]) -> dict[str, User | None]:
    for name in ("auditor", "operator"):
        person = cast[name]
        assert person is not None
        person.is_staff = True
        person.save()
    return cast


@pytest.mark.django_db
@pytest.mark.parametrize(("method", "address", "expected"), lines(ADMIN_MATRIX), ids=str)
def test_the_admin_lets_in_exactly_whom_it_should(
    staff: dict[str, User | None], about: About, method: str, address: str, expected: list[str]
) -> None:
    got = [asked(client_of(who), method, about.url(address, who)) for who in staff.values()]
    assert dict(zip(PEOPLE, got, strict=True)) == dict(zip(PEOPLE, map(int, expected), strict=True))


def some_row(model: str, bob: User, ada: User, turn: StoredTurn) -> str:
    """The key of a row of this model; made, where there is none."""

    from chat import models as chat
    from monitoring.models import MonitoredUser, Omni2Config

    day = "2026-11-22"
    session, process = uuid.UUID(turn.session_id), uuid.uuid4()
    make = {
        "monitoring.monitoreduser": lambda: MonitoredUser.enable(bob.user_id, by=ada, ttl=_an_hour()),
        "monitoring.omni2config": lambda: Omni2Config.objects.get_or_create(
            config_key="flow_monitoring", defaults={"config_value": {"default_ttl_hours": 24, "max_ttl_hours": 720}}
        ),
        "chat.userblock": lambda: chat.UserBlock.objects.create(user=bob, blocked_by=ada),
        "chat.userlimits": lambda: chat.UserLimits.objects.create(user=bob),
        "chat.languagemodel": lambda: chat.LanguageModel.objects.create(name="quick", model="openai:gpt-5.2"),
        "chat.groupprompt": lambda: chat.GroupPrompt.objects.create(
            group=Group.objects.create(name="writers"), prompt="Answer in verse."
        ),
        "chat.grouplimits": lambda: chat.GroupLimits.objects.create(group=Group.objects.create(name="Some")),
        "chat.dailyusage": lambda: chat.DailyUsage.objects.create(user=bob, day=day),
        "chat.turnusage": lambda: chat.TurnUsage.objects.create(
            turn_id=turn.turn_id, user=bob, session_id=session, day=day, process_id=process
        ),
        "chat.toolserver": lambda: chat.ToolServer.objects.create(name="tools", url="http://127.0.0.1:1/mcp"),
        "chat.conversation": lambda: chat.Conversation.objects.create(session_id=session, user=bob, title="?"),
        "accounts.accesslog": lambda: apps.get_model("accounts.accesslog").objects.create(actor="x", action="y"),
    }
    make.get(model, lambda: None)()
    found = apps.get_model(model).objects.order_by("pk").last()
    assert found is not None
    return str(found.pk)


def _an_hour() -> Any:
    from datetime import timedelta

    return timedelta(hours=1)


@pytest.mark.django_db
@pytest.mark.parametrize("model", models())
def test_the_admin_shows_each_model_to_exactly_whom_it_should(
    staff: dict[str, User | None], bob: User, ada: User, about: About, model: str
) -> None:
    key = some_row(model, bob, ada, about.turn)
    for name, who in staff.items():
        client = client_of(who)
        is_staff = name not in ("anonymous", "plain user")
        for what, address in model_addresses(model).items():
            if what in ("history", "row"):
                continue  # below, for those who are kept out
            allowed = is_staff and name[0] in models()[model][what]
            wanted = 200 if allowed else 403 if is_staff else 302
            status = asked(client, "GET", address.replace("{object_id}", key))
            assert status == wanted, (name, what)


@pytest.mark.django_db
@pytest.mark.parametrize("model", models())
def test_the_admin_sends_everybody_else_to_sign_in(
    staff: dict[str, User | None], bob: User, ada: User, about: About, model: str
) -> None:
    key = some_row(model, bob, ada, about.turn)
    for name in ("anonymous", "plain user"):
        for address in model_addresses(model).values():
            for method in ("GET", "POST"):
                answer = client_of(staff[name]).generic(method, address.replace("{object_id}", key))
                assert answer.status_code == 302
                assert "/login/" in answer["Location"]
    history = model_addresses(model)["history"].replace("{object_id}", key)
    assert asked(client_of(staff["auditor"]), "GET", history) == (200 if "a" in models()[model]["list"] else 403)


# --- below Django: the ask routes, OpenAI's and the sockets -------------------------------------------------


async def asked_below_django(method: str, path: str, token: str | None) -> int:
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    body: list[dict[str, Any]] = [{"type": "http.request", "body": b"{}", "more_body": False}]
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return body.pop(0) if body else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    application = openai_application if is_openai_path(path) else ask_application
    await asyncio.wait_for(application(scope, receive, send), 20)
    return int(sent[0]["status"])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", sorted(BELOW_DJANGO))
async def test_the_routes_below_django_let_in_exactly_whom_they_should(cast: dict[str, User | None], path: str) -> None:
    ((method, expected),) = [(method, expected) for method, address, expected in lines(MATRIX) if address == path]
    got = [await asked_below_django(method, path, issue_token(who) if who else None) for who in cast.values()]
    assert got == list(map(int, expected))


async def opened(path: str, token: str | None) -> str:
    """OK, or the code the socket was closed with."""
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    socket = WebsocketCommunicator(websocket_application, path, headers=headers)
    connected, code = await socket.connect(timeout=20)
    if not connected:
        return str(code)
    first = await socket.receive_output(timeout=20)
    if first["type"] == "websocket.close":
        return str(first["code"])
    assert json.loads(first.get("text") or first["bytes"])["type"] == "hello"
    await socket.disconnect()
    return "OK"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("address", "expected"), [line[1:] for line in lines(MATRIX) if line[0] == "WS"], ids=str)
async def test_the_sockets_let_in_exactly_whom_they_should(
    cast: dict[str, User | None], bob: User, address: str, expected: list[str]
) -> None:
    got = []
    for who in cast.values():
        path = address.replace("{user_id}", bob.user_id).replace("{self}", who.user_id if who else bob.user_id)
        got.append(await opened(path, issue_token(who) if who else None))
    assert dict(zip(PEOPLE, got, strict=True)) == dict(zip(PEOPLE, expected, strict=True))
