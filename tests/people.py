"""The same cast for all tests, as a pytest plugin (`-p tests.people`).

Ada may everything, Olga operates, August audits, Bob is the one who is watched, Charlie has no
rights. All of them sign in with PASSWORD. The fixtures bring the database along; a test that
reads from other threads marks itself `django_db(transaction=True)`.
"""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

PASSWORD = "correct horse battery staple"
RIGHTS = {
    "operators": [
        ("monitoring", "manage"),
        ("flows", "view"),
        ("flows", "watch"),
        ("flows", "operate"),
        ("chat", "stop"),
    ],
    "auditors": [("flows", "view")],
}
# where a right lives, and what it is called until the migration that makes it has run
HOMES = {"monitoring": "monitoreduser", "flows": "interactionflow", "chat": "turnstop"}


class CheapPasswords(PBKDF2PasswordHasher):
    """The product's hash with next to no work: the real one costs a third of a second each."""

    iterations = 1


@pytest.fixture(autouse=True, scope="session")
def cheap_passwords(django_test_environment: None) -> Iterator[None]:
    """In this process; servers that a test starts hash as in life (and rehash at the first sign-in)."""
    from django.test import override_settings

    with override_settings(PASSWORD_HASHERS=["tests.people.CheapPasswords"]):
        yield


def make_group(name: str) -> Any:
    """The group with its rights, also in a database that a test has just emptied."""
    from django.contrib.auth.models import Group, Permission
    from django.contrib.contenttypes.models import ContentType

    group, _ = Group.objects.get_or_create(name=name)
    for app_label, codename in RIGHTS[name]:
        home, _ = ContentType.objects.get_or_create(app_label=app_label, model=HOMES[app_label])
        right, _ = Permission.objects.get_or_create(
            content_type=home, codename=codename, defaults={"name": f"{app_label}.{codename}"}
        )
        group.permissions.add(right)
    return group


def make_person(email: str, name: str, *groups: str, **fields: Any) -> Any:
    """A person of one's own, able to sign in with PASSWORD."""
    from omni2.accounts.models import User

    user = User.objects.create_user(email, PASSWORD, name=name, **fields)
    user.groups.set([make_group(group) for group in groups])
    return user


@pytest.fixture
def ada(db: None) -> Any:
    """Superuser."""
    return make_person("ada@example.com", "Ada Lovelace", is_staff=True, is_superuser=True)


@pytest.fixture
def olga(db: None) -> Any:
    """Operator: monitoring.manage, flows.view, flows.watch, flows.operate, chat.stop."""
    return make_person("olga@example.com", "Olga Ladyzhenskaya", "operators")


@pytest.fixture
def august(db: None) -> Any:
    """Auditor: flows.view."""
    return make_person("august@example.com", "August Ferdinand Möbius", "auditors")


@pytest.fixture
def bob(db: None) -> Any:
    """The one who is watched; no rights."""
    return make_person("bob@example.com", "Bob Kahn")


@pytest.fixture
def charlie(db: None) -> Any:
    """No rights; every door has a test with him before it."""
    return make_person("charlie@example.com", "Charlie Babbage")


def issue_token(user: Any, *, name: str = "test", days: float = 90) -> str:
    """A new token's text; days below zero: one that has expired. Also works inside an event loop."""
    from omni2.accounts.models import ApiToken

    def issue() -> str:
        return ApiToken.objects.issue(user, name=name, days=days)[1]

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return issue()
    return _in_a_thread(issue)


def credential_of(user: Any) -> Any:
    """A new token of this user as the ask routes read it from a request."""
    from omni2.accounts.credentials import token_of

    return token_of({"headers": [(b"authorization", b"Bearer " + issue_token(user).encode())]})


def _in_a_thread(work: Callable[[], str]) -> str:
    from django.db import connections

    def run() -> str:
        try:
            return work()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


@pytest.fixture
def token_of(db: None) -> Callable[..., str]:
    """token_of(user) → a token that works."""
    return issue_token
