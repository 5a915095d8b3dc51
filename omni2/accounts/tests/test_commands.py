"""create_user and create_token, as one types them."""

import io
import sys

import pytest
from django.core.management import CommandError, call_command

from omni2.accounts.authenticate import authenticate_token
from omni2.accounts.models import User
from tests.people import make_group

pytestmark = pytest.mark.django_db


def run(*words: str) -> list[str]:
    """The lines a command prints."""
    out = io.StringIO()
    call_command(*words, stdout=out)
    return out.getvalue().splitlines()


def test_it_makes_a_person_without_password() -> None:
    run("create_user", "Test@Example.com")
    user = User.objects.get()
    assert (user.user_id, user.has_usable_password(), user.is_staff) == ("test@example.com", False, False)


def test_it_makes_a_person_with_everything(monkeypatch) -> None:
    make_group("operators"), make_group("auditors")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a good long secret \nnext line\n"))
    run(
        "create_user",
        "o@example.com",
        "--name",
        "Olga",
        "--group",
        "operators",
        "--group",
        "auditors",
        "--password-stdin",
    )
    user = User.objects.get()
    assert user.name == "Olga"
    assert user.check_password("a good long secret ")
    assert user.has_perms(["monitoring.manage", "flows.view", "flows.watch"])


@pytest.mark.parametrize(
    "email", ["", "x", "a@", "a b@example.com", "a\0@example.com", "ü@example.com", "a" * 250 + "@example.com"]
)
def test_a_bad_address_is_said(email: str) -> None:
    with pytest.raises(CommandError, match="email: "):
        run("create_user", email)
    assert not User.objects.exists()


def test_a_known_address_is_said(bob) -> None:
    with pytest.raises(CommandError, match="exists already"):
        run("create_user", "Bob@Example.com")


def test_an_unknown_group_is_said_with_the_known_ones() -> None:
    make_group("operators")
    with pytest.raises(CommandError, match=r"no group 'admins'.*operators"):
        run("create_user", "o@example.com", "--group", "admins")
    assert not User.objects.exists()


@pytest.mark.parametrize("typed", ["", "\n", "short\n", "1234567890\n"])
def test_a_weak_password_is_said(monkeypatch, typed: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    with pytest.raises(CommandError, match="password: "):
        run("create_user", "o@example.com", "--password-stdin")
    assert not User.objects.exists()


def test_a_name_that_is_too_long_is_said() -> None:
    with pytest.raises(CommandError, match="name: "):
        run("create_user", "o@example.com", "--name", "x" * 151)


def test_it_prints_the_token_alone_on_its_last_line(bob) -> None:
    *before, token = run("create_token", " Bob@Example.com", "--expires", "0.5", "--name", "cron")
    identity = authenticate_token(token)
    assert (identity.user, identity.problem, identity.token_name) == (bob, None, "cron")
    assert not any(token in line for line in before)
    lifetime = identity.expires_at - bob.tokens.get().created_at
    assert lifetime.total_seconds() == 12 * 3600


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "3651", "x", ""])
def test_a_silly_lifetime_is_said(bob, days: str) -> None:
    with pytest.raises(CommandError, match="number of days"):
        run("create_token", bob.email, f"--expires={days}")
    assert not bob.tokens.exists()


def test_a_stranger_gets_no_token() -> None:
    with pytest.raises(CommandError, match="There is no x@"):
        run("create_token", "x@example.com")


def test_an_inactive_person_gets_no_token(bob) -> None:
    bob.is_active = False
    bob.save()
    with pytest.raises(CommandError, match="not active"):
        run("create_token", bob.email)
