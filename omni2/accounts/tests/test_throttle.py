"""Signing in is counted for all processes together."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.conf import settings
from django.db import connection, connections

from omni2.accounts import throttle
from omni2.accounts.models import SignInCount
from omni2.accounts.throttle import TRIES_PER_ADDRESS, TRIES_PER_EMAIL, TooManyTries, count_attempt
from tests.people import PASSWORD

ADDRESS = "192.0.2.1"


def attempt(email: str = "bob@example.com", address: str | None = ADDRESS) -> bool:
    """Whether one more attempt is let through."""
    try:
        count_attempt(email=email, address=address)
    except TooManyTries:
        return False
    return True


def let_pass(seconds: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE sign_in_counts SET started_at = started_at - make_interval(secs => %s)", [seconds])


@pytest.mark.django_db
def test_an_address_has_so_many_tries_per_person() -> None:
    assert [attempt() for _ in range(TRIES_PER_EMAIL + 2)] == [True] * TRIES_PER_EMAIL + [False] * 2
    assert attempt("charlie@example.com")
    assert not attempt(address="192.0.2.2")


@pytest.mark.django_db
def test_one_address_has_so_many_tries_in_all() -> None:
    tries = [attempt(f"{number}@example.com") for number in range(TRIES_PER_ADDRESS + 2)]
    assert tries == [True] * TRIES_PER_ADDRESS + [False] * 2
    assert not attempt("bob@example.com")
    assert attempt("bob@example.com", "192.0.2.2")
    # what is refused by its address fills no table
    assert SignInCount.objects.count() == TRIES_PER_ADDRESS + 3


@pytest.mark.django_db
def test_it_is_forgotten_after_a_while() -> None:
    while attempt():
        pass
    let_pass(throttle.WINDOW_S - 60)
    assert not attempt()
    let_pass(61)
    assert attempt()
    assert SignInCount.objects.get(key=throttle._key("email", "bob@example.com")).count == 1


@pytest.mark.django_db
def test_success_forgets_the_persons_mistakes_but_not_the_addresss() -> None:
    for number in range(TRIES_PER_ADDRESS - 1):
        count_attempt(email=f"{number}@example.com", address=ADDRESS)
    count_attempt(email="bob@example.com", address=ADDRESS).succeeded()
    assert attempt("bob@example.com")
    assert not attempt("bob@example.com")


@pytest.mark.django_db
def test_an_ipv6_household_is_one_address() -> None:
    for number in range(TRIES_PER_ADDRESS):
        assert attempt(f"{number}@example.com", f"2001:db8:1:2::{number:x}")
    assert not attempt("bob@example.com", "2001:db8:1:2:ffff::1")
    assert attempt("bob@example.com", "2001:db8:1:3::1")


@pytest.mark.django_db
def test_an_ipv4_address_in_ipv6_dress_is_itself() -> None:
    for number in range(TRIES_PER_ADDRESS):
        assert attempt(f"{number}@example.com", f"::ffff:{ADDRESS}")
    assert not attempt("bob@example.com", ADDRESS)
    assert attempt("bob@example.com", "::ffff:192.0.2.2")


@pytest.mark.django_db
def test_it_counts_persons_where_no_address_is_known() -> None:
    assert [attempt(address=None) for _ in range(TRIES_PER_EMAIL + 1)][-2:] == [True, False]


@pytest.mark.django_db
def test_old_counts_are_cleared_away() -> None:
    attempt()
    let_pass(throttle.FORGET_AFTER_S + 1)
    attempt("charlie@example.com", "192.0.2.2")
    assert not SignInCount.objects.filter(key=throttle._key("email", "bob@example.com")).exists()


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_exactly_so_many_are_let_through() -> None:
    def one(_: int) -> bool:
        try:
            return attempt()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as executor:
        tries = list(executor.map(one, range(TRIES_PER_EMAIL * 3)))
    assert sum(tries) == TRIES_PER_EMAIL


ANOTHER_PROCESS = """
import django
django.setup()
from django.db import connection
from omni2.accounts.throttle import TooManyTries, count_attempt
let_in = 0
for _ in range(6):
    try:
        count_attempt(email="bob@example.com", address=None)
        let_in += 1
    except TooManyTries:
        pass
print(let_in)
"""


@pytest.mark.django_db(transaction=True)
def test_processes_count_together() -> None:
    database = settings.DATABASES["default"]
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "omni2.settings",
        "DATABASE_URL": f"postgresql://{database['USER']}@/{connection.settings_dict['NAME']}?host={database['HOST']}",
    }
    let_in = []
    for _ in range(2):
        process = subprocess.run(
            [sys.executable, "-c", ANOTHER_PROCESS],
            check=False,
            env=environment,
            cwd=settings.BASE_DIR,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        let_in.append(int(process.stdout))
    assert let_in == [6, TRIES_PER_EMAIL - 6]
    assert not attempt()


@pytest.mark.django_db
def test_the_token_endpoint_says_when_to_come_back(client, bob) -> None:
    body = {"email": "BOB@example.com", "password": "wrong"}
    for _ in range(TRIES_PER_EMAIL):
        answer = client.post("/api/v1/auth/token", body, content_type="application/json")
        assert answer.status_code == 401
    # the right password does not help any more, and neither does the page
    answer = client.post("/api/v1/auth/token", {**body, "password": PASSWORD}, content_type="application/json")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_tries")
    assert 0 < int(answer["Retry-After"]) <= throttle.WINDOW_S
    page = client.post("/login/", {"username": "bob@example.com", "password": PASSWORD})
    assert page.status_code == 429
    assert page["Retry-After"]
    assert "_auth_user_id" not in client.session
