"""One answer to "who is this?", for tokens and for browser sessions."""

import pytest
from django.contrib.auth import SESSION_KEY
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from omni2.accounts.authenticate import (
    NOT_AUTHENTICATED,
    authenticate_header,
    authenticate_scope,
    authenticate_token,
    passes_csrf,
)
from omni2.accounts.models import ApiToken
from tests.people import PASSWORD, issue_token

pytestmark = pytest.mark.django_db


def scope_of(*headers: tuple[str, str | bytes], **fields) -> dict:
    """An ASGI scope as a server makes it."""
    return {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/ask",
        "scheme": "http",
        "headers": [
            (name.encode(), value if isinstance(value, bytes) else value.encode("latin-1")) for name, value in headers
        ],
        **fields,
    }


def cookie_of(client: Client) -> tuple[str, str]:
    return ("cookie", "; ".join(f"{name}={morsel.value}" for name, morsel in client.cookies.items()))


@pytest.fixture
def at_home(client: Client, bob) -> Client:
    """A browser in which Bob is signed in."""
    client.force_login(bob)
    return client


def test_it_knows_whose_token_it_is_with_one_query(bob, token_of) -> None:
    token = token_of(bob, name="laptop")
    authenticate_token(token)  # notes its use
    with CaptureQueriesContext(connection) as queries:
        identity = authenticate_token(token)
    assert len(queries) == 1
    assert (identity.user, identity.problem, identity.method) == (bob, None, "token")
    assert identity.token_name == "laptop"
    assert identity.token_id == bob.tokens.get().pk
    assert identity.expires_at == bob.tokens.get().expires_at
    assert identity.refusal is None


def test_it_notes_the_use_of_a_token_once_a_minute(bob, token_of) -> None:
    token = token_of(bob)
    assert bob.tokens.get().last_used_at is None
    authenticate_token(token)
    first = bob.tokens.get().last_used_at
    assert first is not None
    authenticate_token(token)
    assert bob.tokens.get().last_used_at == first
    with connection.cursor() as cursor:
        cursor.execute("UPDATE api_tokens SET last_used_at = last_used_at - interval '61 seconds'")
    authenticate_token(token)
    assert bob.tokens.get().last_used_at >= first


def test_it_keeps_no_token_that_could_be_stolen(bob, token_of) -> None:
    token = token_of(bob)
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_jsonb(t)::text FROM api_tokens t")
        (row,) = cursor.fetchone()
    assert token not in row
    assert token[10:] not in row
    assert token not in repr(authenticate_token(token))


def test_a_token_lives_ninety_days(bob, token_of) -> None:
    token_of(bob)
    token = bob.tokens.get()
    assert (token.expires_at - token.created_at).days == 90


def test_it_names_the_user_of_an_expired_token(bob, token_of) -> None:
    identity = authenticate_token(token_of(bob, days=-1))
    assert (identity.user, identity.problem) == (bob, "expired")
    assert identity.refusal.status == 401
    assert bob.tokens.get().last_used_at is None


def test_it_names_the_user_of_a_revoked_token(bob, token_of) -> None:
    token = token_of(bob)
    assert bob.tokens.revoke() == 1
    assert bob.tokens.revoke() == 0
    identity = authenticate_token(token)
    assert (identity.user, identity.problem) == (bob, "revoked")
    assert identity.refusal.status == 401


def test_it_names_an_inactive_user(bob, token_of) -> None:
    token = token_of(bob)
    bob.is_active = False
    bob.save()
    identity = authenticate_token(token)
    assert (identity.user, identity.problem) == (bob, "inactive")
    assert identity.refusal[:2] == (403, "inactive")


@pytest.mark.parametrize(
    "token",
    ["", "x", "omni2_", "ü", "日本", "a\0b", "\ud800", "a b", "a,b", "a" * 201, "a" * 1_000_000, "%00", "'; --"],
    ids=lambda token: ascii(token)[:20],
)
def test_it_does_not_know_a_token_it_never_made(bob, token_of, token: str) -> None:
    token_of(bob)
    identity = authenticate_token(token)
    assert (identity.user, identity.problem) == (None, "unknown")
    assert identity.refusal.status == 401


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic {0}",
        "{0}",
        "Token {0}",
        "Bearer {0} {0}",
        "Bearer {0},Bearer {0}",
        "Bearer\t{0}",
    ],
)
def test_it_reads_no_other_header_than_bearer(bob, token_of, value: str) -> None:
    assert authenticate_header(value.format(token_of(bob))).problem == "unknown"


@pytest.mark.parametrize("value", ["Bearer {0}", "bearer {0}", "BEARER   {0}", " Bearer {0} "])
def test_it_reads_bearer_in_any_case(bob, token_of, value: str) -> None:
    assert authenticate_header(value.format(token_of(bob))).user == bob


def test_a_scope_without_any_credential_is_nobody() -> None:
    identity = authenticate_scope(scope_of())
    assert (identity.user, identity.method, identity.problem) == (None, None, "unknown")
    assert identity.refusal == NOT_AUTHENTICATED


def test_a_scope_with_a_session_is_its_user_with_two_queries(at_home, bob) -> None:
    with CaptureQueriesContext(connection) as queries:
        identity = authenticate_scope(scope_of(cookie_of(at_home)))
    assert len(queries) == 2
    assert (identity.user, identity.method, identity.problem) == (bob, "session", None)
    assert identity.session_key == at_home.session.session_key


def test_the_header_wins_over_the_cookie(at_home, charlie, token_of) -> None:
    identity = authenticate_scope(scope_of(cookie_of(at_home), ("authorization", f"Bearer {token_of(charlie)}")))
    assert (identity.user, identity.method) == (charlie, "token")


@pytest.mark.parametrize("value", [b"", b"Bearer nonsense", b"Bearer \xff\xfe", b"Bearer a\x00b", b"Basic Zm9v"])
def test_a_bad_header_wins_over_a_good_cookie(at_home, value: bytes) -> None:
    identity = authenticate_scope(scope_of(cookie_of(at_home), ("authorization", value)))
    assert (identity.user, identity.method, identity.problem) == (None, "token", "unknown")


def test_two_headers_are_none(bob, token_of) -> None:
    header = ("authorization", f"Bearer {token_of(bob)}")
    assert authenticate_scope(scope_of(header, header)).problem == "unknown"


@pytest.mark.parametrize(
    "value", [b"", b"x", b"a\x00b" * 8, b'"aaaaaaaa\\000aaaa"', b"\xff" * 32, b"a" * 100_000, b"'; --" * 4]
)
def test_a_cookie_nobody_made_is_nobody(value: bytes) -> None:
    assert authenticate_scope(scope_of(("cookie", b"sessionid=" + value))).user is None


def test_a_session_ends_when_its_owner_signs_out(at_home) -> None:
    cookie = cookie_of(at_home)
    at_home.logout()
    assert authenticate_scope(scope_of(cookie)).user is None


def test_a_session_ends_when_the_password_changes(at_home, bob) -> None:
    bob.change_password("another battery staple")
    assert authenticate_scope(scope_of(cookie_of(at_home))).user is None


def test_a_session_of_a_deactivated_user_names_him(at_home, bob) -> None:
    bob.is_active = False
    bob.save()
    identity = authenticate_scope(scope_of(cookie_of(at_home)))
    assert (identity.user, identity.problem, identity.method) == (bob, "inactive", "session")


def test_a_session_that_is_over_is_nobody(at_home) -> None:
    Session.objects.update(expire_date="2020-01-01T00:00:00Z")
    assert authenticate_scope(scope_of(cookie_of(at_home))).user is None


def test_a_session_of_a_user_who_is_gone_is_nobody(at_home, bob) -> None:
    session = at_home.session
    assert session[SESSION_KEY] == str(bob.pk)
    session[SESSION_KEY] = "999999"
    session.save()
    assert authenticate_scope(scope_of(cookie_of(at_home))).user is None


def test_tokens_end_with_the_password_unless_they_are_kept(bob, token_of) -> None:
    token = token_of(bob)
    bob.change_password("another battery staple", keep_tokens=True)
    assert authenticate_token(token).problem is None
    bob.change_password("yet another battery staple")
    assert authenticate_token(token).problem == "revoked"
    assert not bob.check_password(PASSWORD)


def test_csrf_wants_the_cookies_token_in_the_header() -> None:
    secret = "a" * 32
    cookie = ("cookie", f"csrftoken={secret}")
    host = ("host", "testserver")
    assert passes_csrf(scope_of(host, cookie, ("x-csrftoken", secret)))
    assert not passes_csrf(scope_of(host, cookie))
    assert not passes_csrf(scope_of(host, ("x-csrftoken", secret)))
    assert not passes_csrf(scope_of(host, cookie, ("x-csrftoken", "b" * 32)))
    assert not passes_csrf(scope_of(host, cookie, ("x-csrftoken", "\xff\0")))
    assert not passes_csrf(scope_of(host, cookie, ("x-csrftoken", secret), ("origin", "https://evil.example")))
    assert passes_csrf(scope_of(host, cookie, ("x-csrftoken", secret), ("origin", "http://testserver")))
    assert passes_csrf(scope_of(host, method="GET"))
    assert not passes_csrf(scope_of(host, query_string=b"\xff"))


async def test_the_cast_can_make_tokens_inside_an_event_loop(transactional_db, bob, token_of) -> None:
    from omni2.database import in_database

    identity = await in_database(authenticate_token, token_of(bob))
    assert identity.user == bob
    assert await in_database(ApiToken.objects.usable().count) == 1
    assert (await in_database(authenticate_token, issue_token(bob, days=-1))).problem == "expired"
