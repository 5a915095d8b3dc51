"""The monitoring API: what it answers, what it refuses and how it says so, whom it lets in."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test import Client
from django.test.utils import CaptureQueriesContext

from monitoring.models import MonitoredUser, Omni2Config
from omni2.accounts.models import AccessLog

BOB = "bob@example.com"
ENABLE, DISABLE, USERS = (f"/api/v1/monitoring/{call}" for call in ("enable", "disable", "users"))

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(olga: Any, token_of: Callable[..., str]) -> Client:
    return Client(headers={"Authorization": f"Bearer {token_of(olga)}"})


def post(client: Client, path: str, body: Any, content_type: str = "application/json") -> Any:
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return client.post(path, data=text, content_type=content_type)


def test_it_enables_for_the_hours_asked_for(operator: Client, bob: Any) -> None:
    answer = post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 1.5, "reason": "ticket 7"})
    assert answer.status_code == 200
    body = answer.json()
    assert list(body) == ["user_id", "ttl_hours", "enabled_at", "enabled_by", "expires_at", "reason"]
    assert (body["user_id"], body["ttl_hours"]) == (BOB, 1.5)
    assert (body["enabled_by"], body["reason"]) == ("olga@example.com", "ticket 7")
    assert all(len(body[moment]) == 27 and body[moment].endswith("Z") for moment in ("enabled_at", "expires_at"))
    lasts = datetime.fromisoformat(body["expires_at"]) - datetime.fromisoformat(body["enabled_at"])
    assert lasts == timedelta(hours=1.5)


def test_it_takes_the_default_from_the_settings(operator: Client, bob: Any) -> None:
    Omni2Config(config_key="flow_monitoring", config_value={"default_ttl_hours": 3, "max_ttl_hours": 4}).save()
    answer = post(operator, ENABLE, {"user_id": BOB})
    assert (answer.json()["ttl_hours"], answer.json()["reason"]) == (3, "")


def test_it_holds_to_the_configured_maximum(operator: Client, bob: Any) -> None:
    Omni2Config(config_key="flow_monitoring", config_value={"default_ttl_hours": 3, "max_ttl_hours": 4}).save()
    assert post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 4}).status_code == 200
    answer = post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 4.01})
    assert (answer.status_code, answer.json()) == (400, {"ttl_hours": ["At most 4 hours are allowed."]})


def test_it_enables_for_one_second_at_least(operator: Client, bob: Any) -> None:
    assert post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 1 / 3600}).status_code == 200
    answer = post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 0.9 / 3600})
    assert (answer.status_code, answer.json()) == (400, {"ttl_hours": ["At least one second is needed."]})


def test_it_replaces_the_expiry_when_enabled_again(operator: Client, bob: Any) -> None:
    first = post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 10, "reason": "ticket 7"}).json()
    again = post(operator, ENABLE, {"user_id": BOB, "ttl_hours": 1}).json()
    assert again["enabled_at"] == first["enabled_at"]
    assert again["expires_at"] < first["expires_at"]
    assert again["reason"] == "ticket 7"
    assert list(AccessLog.objects.order_by("pk").values_list("action", "actor", "subject_user_id")) == [
        ("monitoring_enabled", "olga@example.com", BOB),
        ("monitoring_extended", "olga@example.com", BOB),
    ]


def test_it_knows_a_user_in_any_case_and_between_spaces(operator: Client, bob: Any) -> None:
    assert post(operator, ENABLE, {"user_id": "  BOB@Example.com "}).json()["user_id"] == BOB
    assert post(operator, DISABLE, {"user_id": "Bob@EXAMPLE.com"}).json() == {"user_id": BOB, "was_monitored": True}


def test_it_ends_monitoring_once_and_may_be_told_again(operator: Client, bob: Any) -> None:
    post(operator, ENABLE, {"user_id": BOB})
    for was_monitored in (True, False, False):
        answer = post(operator, DISABLE, {"user_id": BOB})
        assert (answer.status_code, answer.json()) == (200, {"user_id": BOB, "was_monitored": was_monitored})
    assert AccessLog.objects.filter(action="monitoring_disabled").count() == 1


def test_it_says_that_an_expired_user_was_not_monitored(operator: Client, bob: Any) -> None:
    post(operator, ENABLE, {"user_id": BOB})
    MonitoredUser.objects.update(enabled_at=Now() - timedelta(hours=2), expires_at=Now() - timedelta(hours=1))
    assert operator.get(USERS).json() == {"count": 0, "results": []}
    assert post(operator, DISABLE, {"user_id": BOB}).json() == {"user_id": BOB, "was_monitored": False}


def test_it_lists_who_is_monitored_now_in_one_query(operator: Client, bob: Any, charlie: Any, august: Any) -> None:
    for user in (charlie, bob, august):
        post(operator, ENABLE, {"user_id": user.user_id, "ttl_hours": 2, "reason": "why"})
    post(operator, DISABLE, {"user_id": august.user_id})
    with CaptureQueriesContext(
        connection,
    ) as queries:
        answer = operator.get(USERS)
    body = answer.json()
    assert body["count"] == 2
    assert [row["user_id"] for row in body["results"]] == [BOB, "charlie@example.com"]
    row = body["results"][0]
    assert list(row) == ["user_id", "enabled_by", "enabled_at", "expires_at", "remaining_seconds", "reason"]
    assert (row["enabled_by"], row["reason"]) == ("olga@example.com", "why")
    assert 0 < row["remaining_seconds"] <= 7200
    assert len([query for query in queries if "monitored_users" in query["sql"]]) == 1


def test_it_reads_json_whatever_the_content_type_says(operator: Client, bob: Any) -> None:
    body = json.dumps({"user_id": BOB, "ttl_hours": 1})
    for content_type in ("application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"):
        assert post(operator, ENABLE, body, content_type).status_code == 200


def test_it_does_not_read_names_it_does_not_know(operator: Client, bob: Any) -> None:
    assert post(operator, ENABLE, {"user_id": BOB, "colour": "red", "enabled_by": "x"}).status_code == 200
    assert MonitoredUser.objects.get().enabled_by == "olga@example.com"


@pytest.mark.parametrize(
    "hours",
    [
        "0",
        "-1",
        "1e9",
        "1e400",
        "NaN",
        "Infinity",
        "-Infinity",
        "true",
        "false",
        '"x"',
        '"1"',
        "null",
        "[]",
        "{}",
        "[1]",
        "1e-9",
        "9" * 400,
        "-" + "9" * 5000,
        "720.0001",
    ],
    ids=lambda text: text[:9],
)
def test_it_refuses_hours_that_are_none_and_names_the_field(operator: Client, bob: Any, hours: str) -> None:
    answer = post(operator, ENABLE, f'{{"user_id": "{BOB}", "ttl_hours": {hours}}}')
    assert answer.status_code == 400
    assert list(answer.json()) == ["ttl_hours"]
    assert not MonitoredUser.objects.exists()


@pytest.mark.parametrize("path", [ENABLE, DISABLE])
@pytest.mark.parametrize(
    "user_id",
    [
        '"nobody@example.com"',
        '""',
        '"  "',
        "null",
        "5",
        "true",
        "[]",
        "{}",
        '"bob@example.com\\u0000"',
        '"\\ud800"',
        f'"{"b" * 256}"',
        f'"{"b" * 100000}@example.com"',
        '"bob"',
        '"\'; DROP TABLE users; --"',
    ],
    ids=lambda text: text[:12],
)
def test_it_refuses_a_user_nobody_knows_and_names_the_field(
    operator: Client, bob: Any, path: str, user_id: str
) -> None:
    answer = post(operator, path, f'{{"user_id": {user_id}}}')
    assert answer.status_code == 400
    assert list(answer.json()) == ["user_id"]


@pytest.mark.parametrize("path", [ENABLE, DISABLE])
def test_it_refuses_a_body_without_a_user(operator: Client, path: str) -> None:
    for body in ("{}", "", b""):
        answer = post(operator, path, body)
        assert (answer.status_code, list(answer.json())) == (400, ["user_id"])


@pytest.mark.parametrize("path", [ENABLE, DISABLE])
@pytest.mark.parametrize(
    "body", ["{", "[]", '"x"', "5", "null", b"\xff\xfe", "[" * 100_000, '{"user_id"'], ids=lambda body: str(body)[:9]
)
def test_it_refuses_a_body_that_is_no_object(operator: Client, path: str, body: Any) -> None:
    answer = post(operator, path, body)
    assert answer.status_code == 400
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == {"detail", "code"}


@pytest.mark.parametrize(
    "reason", ["null", "5", "true", "[]", '"a\\u0000b"', '"\\udfff"', f'"{"r" * 501}"'], ids=lambda text: text[:9]
)
def test_it_refuses_a_bad_reason_and_names_the_field(operator: Client, bob: Any, reason: str) -> None:
    answer = post(operator, ENABLE, f'{{"user_id": "{BOB}", "reason": {reason}}}')
    assert (answer.status_code, list(answer.json())) == (400, ["reason"])


def test_it_keeps_a_reason_of_five_hundred_characters(operator: Client, bob: Any) -> None:
    reason = "ü" * 499 + "😀"
    assert post(operator, ENABLE, {"user_id": BOB, "reason": reason}).json()["reason"] == reason


def calls(client: Client) -> list[Any]:
    return [
        post(client, ENABLE, {"user_id": BOB}),
        post(client, DISABLE, {"user_id": BOB}),
        client.get(USERS),
    ]


def test_it_lets_nobody_in_without_a_token(bob: Any) -> None:
    for answer in calls(Client()):
        assert answer.status_code == 401
        assert answer.json()["code"] == "not_authenticated"


def test_it_keeps_charlie_and_the_auditor_out(
    bob: Any, charlie: Any, august: Any, token_of: Callable[..., str]
) -> None:
    for user in (charlie, august, bob):
        for answer in calls(Client(headers={"Authorization": f"Bearer {token_of(user)}"})):
            assert answer.status_code == 403
            assert answer.json()["code"] == "permission_denied"
    assert not MonitoredUser.objects.exists()
    assert not AccessLog.objects.exists()


def test_it_lets_the_superuser_in(bob: Any, ada: Any, token_of: Callable[..., str]) -> None:
    answers = calls(Client(headers={"Authorization": f"Bearer {token_of(ada)}"}))
    assert [answer.status_code for answer in answers] == [200, 200, 200]


def test_it_asks_a_browser_session_for_csrf(bob: Any, olga: Any) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(olga)
    answer = post(client, ENABLE, {"user_id": BOB})
    assert (answer.status_code, answer.json()["code"]) == (403, "csrf_failed")
    assert client.get(USERS).status_code == 200


@pytest.mark.parametrize("path", [ENABLE, DISABLE, USERS])
def test_it_answers_other_methods_in_json(operator: Client, path: str) -> None:
    for method in ("put", "patch", "delete", "get" if path != USERS else "post"):
        answer = getattr(operator, method)(path)
        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")


def test_it_answers_history_at_the_originals_addresses(operator: Client, bob: Any) -> None:
    session_id = "0199a000-0000-7000-8000-000000000001"
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO omni2.interaction_flows (user_id, session_id, checkpoint) VALUES (%s, %s, 'auth_check')",
            [BOB, session_id],
        )
    for tail in (f"user/{BOB}", f"session/{session_id}"):
        here = operator.get(f"/api/v1/monitoring/flows/{tail}")
        there = operator.get(f"/api/v1/flows/{tail}")
        assert (here.status_code, here.json()) == (200, there.json())
        assert here.json()["flows"]


def test_it_keeps_charlie_out_of_bobs_history_at_the_originals_addresses(
    bob: Any, charlie: Any, token_of: Callable[..., str]
) -> None:
    client = Client(headers={"Authorization": f"Bearer {token_of(charlie)}"})
    assert client.get(f"/api/v1/monitoring/flows/user/{BOB}").status_code == 403
    assert client.get("/api/v1/monitoring/flows/session/0199a000-0000-7000-8000-000000000001").status_code == 404
    assert Client().get(f"/api/v1/monitoring/flows/user/{BOB}").status_code == 401
