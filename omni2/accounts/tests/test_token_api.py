"""Tokens over HTTP."""

import json
import re
from datetime import datetime

import pytest
from django.test import Client

from omni2.accounts.authenticate import authenticate_token
from omni2.accounts.models import ApiToken
from tests.people import PASSWORD

pytestmark = pytest.mark.django_db

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def post(client: Client, path: str, body: object, *, token: str | None = None, content_type: str = "application/json"):
    headers = {"authorization": f"Bearer {token}"} if token else {}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post(path, data, content_type=content_type, headers=headers)


def sign_in(client: Client, email: object = "bob@example.com", password: object = PASSWORD, **options):
    return post(client, "/api/v1/auth/token", {"email": email, "password": password}, **options)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_it_gives_a_token_for_a_password(client, bob, content_type: str) -> None:
    answer = sign_in(client, " Bob@Example.com ", content_type=content_type)
    assert answer.status_code == 200
    assert set(answer.json()) == {"token", "expires_at"}
    assert TIME.fullmatch(answer.json()["expires_at"])
    assert "no-store" in answer["Cache-Control"]
    identity = authenticate_token(answer.json()["token"])
    assert identity.user == bob
    assert datetime.fromisoformat(answer.json()["expires_at"]) == identity.expires_at


def test_it_ignores_a_stale_token_when_a_new_one_is_fetched(client, bob, token_of) -> None:
    assert sign_in(client, token=token_of(bob, days=-1)).status_code == 200


def test_unknown_wrong_and_inactive_are_answered_alike(client, bob, charlie) -> None:
    charlie.is_active = False
    charlie.save()
    answers = [
        sign_in(client, "nobody@example.com"),
        sign_in(client, "not an address"),
        sign_in(client, "bob@example.com", "wrong"),
        sign_in(client, "charlie@example.com"),
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer["WWW-Authenticate"] for answer in answers} == {'Bearer realm="omni2"'}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json() == {"detail": "Wrong e-mail address or password.", "code": "invalid_credentials"}
    assert not ApiToken.objects.exists()


def test_a_stranger_costs_a_hash_like_everybody(client, bob, monkeypatch) -> None:
    from tests.people import CheapPasswords

    hashed = []
    encode = CheapPasswords.encode
    monkeypatch.setattr(
        CheapPasswords, "encode", lambda self, *args, **kwargs: hashed.append(1) or encode(self, *args, **kwargs)
    )
    sign_in(client, "nobody@example.com")
    assert len(hashed) == 1


HUGE = "x" * 300_000
BAD_TEXTS = [None, True, 5, 1.5, [], {}, ["a"], {"a": 1}, "a\0b", "\ud800", HUGE, ""]


@pytest.mark.parametrize("value", BAD_TEXTS, ids=lambda value: ascii(value)[:12])
@pytest.mark.parametrize("field", ["email", "password"])
def test_bad_fields_are_named(client, bob, field: str, value: object) -> None:
    answer = sign_in(client, **{field: value})
    assert answer.status_code == 400
    assert list(answer.json()) == [field]


@pytest.mark.parametrize("field", ["email", "password"])
def test_missing_fields_are_named(client, field: str) -> None:
    body = {"email": "bob@example.com", "password": PASSWORD}
    del body[field]
    answer = post(client, "/api/v1/auth/token", body)
    assert answer.status_code == 400
    assert list(answer.json()) == [field]


BROKEN = [b"{", b"null", b"[]", b'"x"', b"1", b"\xff\xfe", b"[" * 100_000, b'{"email":NaN}', b"\0"]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: ascii(body)[:12])
@pytest.mark.parametrize("path", ["/api/v1/auth/token", "/api/v1/auth/tokens"])
def test_broken_bodies_are_400(client, bob, token_of, path: str, body: bytes) -> None:
    answer = post(client, path, body, token=token_of(bob))
    assert answer.status_code == 400, answer.content
    assert answer["Content-Type"] == "application/json"
    assert answer.json()


def test_a_token_may_be_made_without_any_wish(client, bob, token_of) -> None:
    assert post(client, "/api/v1/auth/tokens", {}, token=token_of(bob)).status_code == 201


def test_it_lists_only_ones_own_tokens_and_never_their_text(client, bob, charlie, token_of) -> None:
    mine, _ = token_of(bob, name="laptop"), token_of(charlie)
    answer = client.get("/api/v1/auth/tokens", headers={"authorization": f"Bearer {mine}"})
    assert answer.status_code == 200
    assert answer.json()["count"] == 1
    (row,) = answer.json()["results"]
    assert set(row) == {"id", "name", "prefix", "created_at", "expires_at", "revoked_at", "last_used_at"}
    assert (row["name"], row["prefix"], row["revoked_at"]) == ("laptop", mine[:10], None)
    assert TIME.fullmatch(row["created_at"])
    assert TIME.fullmatch(row["last_used_at"])
    assert mine not in answer.content.decode()


def test_it_makes_a_named_token_in_a_session(client, bob) -> None:
    client.force_login(bob)
    answer = post(client, "/api/v1/auth/tokens", {"name": "laptop", "expires_in_days": 7})
    assert answer.status_code == 201
    token = bob.tokens.get()
    assert (token.name, (token.expires_at - token.created_at).days) == ("laptop", 7)
    assert authenticate_token(answer.json()["token"]).token_id == token.pk == answer.json()["id"]
    assert "no-store" in answer["Cache-Control"]


def test_a_token_made_with_a_token_does_not_outlive_it(client, bob, token_of) -> None:
    answer = post(client, "/api/v1/auth/tokens", {"expires_in_days": 300}, token=token_of(bob, days=3))
    assert answer.status_code == 201
    old, new = bob.tokens.order_by("pk")
    assert new.expires_at == old.expires_at


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", value) for value in BAD_TEXTS if value != ""]
    + [("expires_in_days", value) for value in [None, True, "5", "x", 0, -1, 1.5, 3651, 10**30, [], {}]],
    ids=lambda value: ascii(value)[:12],
)
def test_bad_wishes_are_named(client, bob, token_of, field: str, value: object) -> None:
    answer = post(client, "/api/v1/auth/tokens", {field: value}, token=token_of(bob))
    assert answer.status_code == 400
    assert list(answer.json()) == [field]
    assert bob.tokens.count() == 1


def test_revoking_stops_a_token_at_once(client, bob, token_of) -> None:
    token = token_of(bob)
    mine = {"authorization": f"Bearer {token_of(bob)}"}
    path = f"/api/v1/auth/tokens/{authenticate_token(token).token_id}"
    assert client.delete(path, headers=mine).status_code == 204
    assert authenticate_token(token).problem == "revoked"
    assert client.delete(path, headers=mine).status_code == 204


def test_anothers_token_is_not_found(client, ada, bob, token_of) -> None:
    token_of(bob)
    for token_id in (bob.tokens.get().pk, 999_999, 10**30):
        answer = client.delete(f"/api/v1/auth/tokens/{token_id}", headers={"authorization": f"Bearer {token_of(ada)}"})
        assert answer.status_code == 404
        assert answer.json()["code"] == "not_found"
    assert bob.tokens.usable().count() == 1
