"""Signing in and out, the password and the tokens, as pages."""

import logging
import re

import pytest
from django.contrib.auth import SESSION_KEY
from django.test import Client

from omni2.accounts.authenticate import authenticate_token
from omni2.accounts.models import ApiToken
from omni2.accounts.throttle import TRIES_PER_EMAIL
from tests.people import PASSWORD

pytestmark = pytest.mark.django_db

NEW = "another battery staple"
TOKEN_TEXT = re.compile(r"omni2_[A-Za-z0-9_-]{43}")


def sign_in(client: Client, email: str = "bob@example.com", password: str = PASSWORD, **fields):
    return client.post("/login/", {"username": email, "password": password, **fields})


def change(client: Client, old: str = PASSWORD, new: str = NEW, **fields):
    return client.post(
        "/account/password/", {"old_password": old, "new_password1": new, "new_password2": new, **fields}
    )


@pytest.fixture
def at_home(client: Client, bob) -> Client:
    """A browser in which Bob is signed in."""
    client.force_login(bob)
    return client


def test_it_signs_in_with_any_case_and_leads_on(client, bob) -> None:
    answer = sign_in(client, " BOB@example.com ", next="/flows/?user=a@example.com")
    assert (answer.status_code, answer["Location"]) == (302, "/flows/?user=a@example.com")
    assert client.session[SESSION_KEY] == str(bob.pk)


@pytest.mark.parametrize("foreign", ["https://evil.example/", "//evil.example/", "javascript:alert(1)", "\\\\evil"])
def test_it_leads_nowhere_else(client, bob, foreign: str) -> None:
    assert sign_in(client, next=foreign)["Location"] == "/"


def test_wrong_unknown_and_inactive_look_alike(client, bob, charlie) -> None:
    charlie.is_active = False
    charlie.save()
    pages = [
        re.sub(r'value="[^"]*"', "", sign_in(client, email, password).content.decode())
        for email, password in [
            ("bob@example.com", "wrong"),
            ("nobody@example.com", PASSWORD),
            ("charlie@example.com", PASSWORD),
        ]
    ]
    assert pages[0] == pages[1] == pages[2]
    assert "Wrong e-mail address or password." in pages[0]
    assert SESSION_KEY not in client.session


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 100_000, "<script>alert(1)</script>", "ü\ud83d\ude00"])
@pytest.mark.parametrize("field", ["username", "password"])
def test_it_stands_any_text(client, bob, field: str, text: str) -> None:
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    answer = client.post("/login/", {"username": "bob@example.com", "password": PASSWORD, field: text})
    assert answer.status_code == 200
    assert b"<script>alert" not in answer.content


def test_it_tells_a_signed_in_person_nothing_new(at_home) -> None:
    assert at_home.get("/login/")["Location"] == "/"


def test_the_form_wants_its_csrf_token(bob) -> None:
    browser = Client(enforce_csrf_checks=True)
    assert sign_in(browser).status_code == 403
    browser.get("/login/")
    assert sign_in(browser, csrfmiddlewaretoken=browser.cookies["csrftoken"].value).status_code == 302


def test_signing_out_needs_a_post(at_home) -> None:
    assert at_home.get("/logout/").status_code == 405
    assert SESSION_KEY in at_home.session
    answer = at_home.post("/logout/")
    assert (answer.status_code, answer["Location"]) == (302, "/login/")
    assert SESSION_KEY not in at_home.session


@pytest.mark.parametrize("path", ["/account/password/", "/account/tokens/"])
def test_a_stranger_is_sent_to_sign_in(client, path: str) -> None:
    assert client.get(path)["Location"] == f"/login/?next={path}"
    assert client.post(path)["Location"] == f"/login/?next={path}"


def test_a_stranger_revokes_nothing(client, bob, token_of) -> None:
    token_of(bob)
    path = f"/account/tokens/{bob.tokens.get().pk}/revoke/"
    assert client.post(path)["Location"] == f"/login/?next={path}"
    assert bob.tokens.usable().exists()


@pytest.mark.parametrize("path", ["/login/", "/account/password/", "/account/tokens/"])
def test_no_page_is_kept_or_runs_a_script_of_its_own(client, bob, path: str) -> None:
    if path != "/login/":
        client.force_login(bob)
    answer = client.get(path)
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    assert "'unsafe-inline'" not in answer["Content-Security-Policy"].split("style-src")[0]
    scripts = re.findall(r"<script\b[^>]*>", answer.content.decode())
    assert all("src=" in script for script in scripts)
    assert not re.search(r"\son\w+=", answer.content.decode())


# --- the password ----------------------------------------------------------------------------------


def test_changing_the_password_ends_other_sessions_and_tokens(at_home, bob, token_of) -> None:
    other, token = Client(), token_of(bob)
    other.force_login(bob)
    assert change(at_home)["Location"] == "/account/password/"
    assert at_home.get("/account/password/").status_code == 200
    assert other.get("/account/password/").status_code == 302
    assert authenticate_token(token).problem == "revoked"
    assert sign_in(Client(), password=NEW).status_code == 302
    assert sign_in(Client()).status_code == 200


def test_tokens_stay_when_one_asks_for_it(at_home, bob, token_of) -> None:
    token = token_of(bob)
    assert change(at_home, keep_tokens="on").status_code == 302
    assert authenticate_token(token).problem is None


@pytest.mark.parametrize("new", ["short", "1234567890", "bob@example.com", "password1234", "", "a\0" * 6])
def test_a_weak_password_is_refused(at_home, bob, new: str) -> None:
    assert change(at_home, new=new).status_code == 200
    bob.refresh_from_db()
    assert bob.check_password(PASSWORD)


def test_the_old_password_cannot_be_guessed_here(at_home, bob) -> None:
    for _ in range(TRIES_PER_EMAIL):
        answer = change(at_home, old="wrong")
        assert answer.status_code == 200
        assert b"This is not your password." in answer.content
    answer = change(at_home)
    assert answer.status_code == 429
    assert answer["Retry-After"]
    bob.refresh_from_db()
    assert bob.check_password(PASSWORD)


# --- the tokens ------------------------------------------------------------------------------------


def test_a_new_token_is_shown_once_and_logged_never(at_home, bob, caplog) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = at_home.post("/account/tokens/", {"name": "laptop", "days": "30"})
    (text,) = set(TOKEN_TEXT.findall(answer.content.decode()))
    token = bob.tokens.get()
    assert authenticate_token(text).token_id == token.pk
    assert (token.name, (token.expires_at - token.created_at).days) == ("laptop", 30)
    assert "no-store" in answer["Cache-Control"]
    assert "Location" not in answer
    again = at_home.get("/account/tokens/").content.decode()
    assert "laptop" in again
    assert not TOKEN_TEXT.search(again)
    assert text not in caplog.text
    assert text not in str(dict(at_home.session))


@pytest.mark.parametrize(
    "fields",
    [{}, {"name": ""}, {"name": "a\0"}, {"name": "x" * 101}, {"days": "0"}, {"days": "x"}, {"days": "99999"}],
    ids=str,
)
def test_a_bad_wish_makes_no_token(at_home, fields: dict[str, str]) -> None:
    complete = {"name": "laptop", "days": "30", **fields} if fields else {}
    answer = at_home.post("/account/tokens/", complete)
    assert answer.status_code == 400
    assert b"field-error" in answer.content
    assert not ApiToken.objects.exists()


def test_a_name_is_text(at_home) -> None:
    answer = at_home.post("/account/tokens/", {"name": "<b x-init=alert(1)>'\"", "days": "30"})
    assert b"<b x-init" not in answer.content


def test_revoking_is_said_and_done(at_home, bob, token_of) -> None:
    text = token_of(bob, name="laptop")
    answer = at_home.post(f"/account/tokens/{bob.tokens.get().pk}/revoke/", follow=True)
    assert "laptop is revoked" in answer.content.decode()
    assert "1 expired or revoked" in answer.content.decode()
    assert authenticate_token(text).problem == "revoked"


def test_revoking_needs_a_post_and_ones_own_token(at_home, charlie, bob, token_of) -> None:
    text = token_of(charlie)
    path = f"/account/tokens/{charlie.tokens.get().pk}/revoke/"
    assert at_home.get(path).status_code == 405
    assert at_home.post(path).status_code == 404
    assert authenticate_token(text).problem is None
    assert at_home.get("/account/tokens/").content.count(text[:10].encode()) == 0


# --- where the Django admin had pages of its own ---------------------------------------------------


def test_the_admin_lets_in_through_the_same_door(client, ada) -> None:
    answer = client.get("/admin/accounts/user/", follow=True)
    assert answer.redirect_chain[-1] == ("/login/?next=%2Fadmin%2Faccounts%2Fuser%2F", 302)
    assert sign_in(client, ada.email, next="/admin/accounts/user/")["Location"] == "/admin/accounts/user/"
    assert client.get("/admin/accounts/user/").status_code == 200
    assert client.get("/admin/login/")["Location"] == "/admin/"
    assert client.get("/admin/password_change/")["Location"] == "/account/password/"
    assert client.post("/admin/logout/")["Location"] == "/login/"


def test_a_plain_person_hears_that_the_admin_is_not_for_him(at_home) -> None:
    assert at_home.get("/admin/", follow=True).status_code == 403
