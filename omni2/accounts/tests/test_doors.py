"""Every door of the accounts, for everybody who may stand before it."""

import pytest
from django.test import Client

from omni2.accounts.models import ApiToken
from tests.people import PASSWORD, issue_token

pytestmark = pytest.mark.django_db

NOBODY = {"authorization": "Bearer nonsense"}


def header(user, **options) -> dict[str, str]:
    return {"authorization": f"Bearer {issue_token(user, **options)}"}


@pytest.fixture
def callers(ada, bob, charlie) -> dict[str, dict[str, str]]:
    """What each kind of program sends."""
    expired, revoked, plain = header(bob, days=-1), header(bob), header(bob)
    ApiToken.objects.filter(digest=ApiToken.digest_of(revoked["authorization"].split()[1])).revoke()
    inactive = header(charlie)
    charlie.is_active = False
    charlie.save()
    return {
        "anonymous": {},
        "bad token": NOBODY,
        "empty": {"authorization": ""},
        "not ascii": {"authorization": "Bearer ü\xff"},
        "nul": {"authorization": "Bearer a\0b"},
        "endless": {"authorization": "Bearer " + "a" * 100_000},
        "wrong scheme": {"authorization": "Basic Ym9iOmJvYg=="},
        "twice": {"authorization": f"{plain['authorization']},{plain['authorization']}"},
        "expired": expired,
        "revoked": revoked,
        "inactive": inactive,
        "plain": plain,
        "staff": header(ada),
    }


REFUSED = {
    "anonymous": (401, "not_authenticated"),
    "bad token": (401, "token_unknown"),
    "empty": (401, "token_unknown"),
    "not ascii": (401, "token_unknown"),
    "nul": (401, "token_unknown"),
    "endless": (401, "token_unknown"),
    "wrong scheme": (401, "token_unknown"),
    "twice": (401, "token_unknown"),
    "expired": (401, "token_expired"),
    "revoked": (401, "token_revoked"),
    "inactive": (403, "inactive"),
}
API_DOORS = [
    ("get", "/api/v1/auth/tokens", 200),
    ("post", "/api/v1/auth/tokens", 201),
    ("delete", "/api/v1/auth/tokens/0", 404),
]


@pytest.mark.parametrize(("method", "path", "welcome"), API_DOORS)
@pytest.mark.parametrize("caller", [*REFUSED, "plain", "staff"])
@pytest.mark.parametrize("with_session", [False, True], ids=["alone", "beside a good session"])
def test_the_api_lets_in_whom_it_should(callers, bob, caller, method, path, welcome, with_session) -> None:
    client = Client()
    if with_session:
        if caller == "anonymous":
            return
        client.force_login(bob)
    answer = client.generic(method.upper(), path, b"{}", headers=callers[caller])
    if caller not in REFUSED:
        assert answer.status_code == welcome
        return
    status, code = REFUSED[caller]
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert set(answer.json()) == {"detail", "code"}
    assert answer.has_header("WWW-Authenticate") == (status == 401)


def test_a_session_needs_csrf_and_a_token_does_not(bob) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(bob)
    path = "/api/v1/auth/tokens"
    answer = browser.post(path, b"{}", content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf_failed")
    assert browser.get(path).status_code == 200
    browser.cookies["csrftoken"] = secret = "a" * 32
    for content_type in ("application/json", "multipart/form-data; boundary=x", "text/plain"):
        answer = browser.generic("POST", path, b"{}", content_type=content_type, headers={"x-csrftoken": secret})
        assert answer.status_code == 201, answer.content
    answer = browser.post(path, b"{}", content_type="application/json", headers=header(bob))
    assert answer.status_code == 201


def test_a_session_of_a_deactivated_person_is_told_so(bob) -> None:
    browser = Client()
    browser.force_login(bob)
    bob.is_active = False
    bob.save()
    answer = browser.get("/api/v1/auth/tokens")
    assert (answer.status_code, answer.json()["code"]) == (403, "inactive")


def test_everything_stops_when_a_person_is_deactivated(bob) -> None:
    browser, token = Client(), header(bob)
    browser.force_login(bob)
    bob.is_active = False
    bob.save()
    assert Client().get("/api/v1/auth/tokens", headers=token).status_code == 403
    answer = Client().post(
        "/api/v1/auth/token", {"email": bob.email, "password": PASSWORD}, content_type="application/json"
    )
    assert answer.status_code == 401


@pytest.mark.parametrize("path", ["/login/", "/account/tokens/", "/api/v1/auth/tokens", "/admin/"])
@pytest.mark.parametrize(
    "cookie",
    [
        'sessionid="aaaaaaaa\\000aaaaaaaa"',
        'sessionid="\\355\\240\\200aaaaaaaaaaaa"',
        "sessionid=" + "a" * 5000,
        'csrftoken="\\000"',
        'messages="\\000"',
    ],
    ids=lambda cookie: cookie[:24],
)
def test_a_strange_cookie_is_no_cookie(client, cookie: str, path: str) -> None:
    assert client.get(path, headers={"cookie": cookie}).status_code in (200, 302, 401)
    assert client.post(path, headers={"cookie": cookie}).status_code < 500
