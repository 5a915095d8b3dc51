"""Monitored users and settings in the Django admin: the same verbs, the same bounds, the same log."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.db.models.functions import Now
from django.test import Client

from monitoring import config
from monitoring.admin import in_words
from monitoring.models import MonitoredUser, Omni2Config
from omni2.accounts.models import AccessLog
from tests.people import make_person

BOB = "bob@example.com"
HOUR = timedelta(hours=1)
PERIODS = "/admin/monitoring/monitoreduser/"
SETTINGS = "/admin/monitoring/omni2config/"

pytestmark = pytest.mark.django_db


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> Client:
    """An operator who may use the admin pages."""
    return signed_in(make_person("omar@example.com", "Omar Khayyam", "operators", is_staff=True))


@pytest.fixture
def times() -> None:
    Omni2Config(config_key="flow_monitoring", config_value={"default_ttl_hours": 24, "max_ttl_hours": 720}).save()


def text_of(answer: Any) -> str:
    """What a person reads, without tags."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", answer.content.decode()))


def act(client: Client, action: str, *periods: MonitoredUser) -> Any:
    chosen = {"action": action, "_selected_action": [period.pk for period in periods]}
    return client.post(PERIODS, chosen, follow=True)


def actions() -> list[tuple[str, str, str | None]]:
    return list(AccessLog.objects.order_by("pk").values_list("action", "actor", "subject_user_id"))


def test_it_lists_the_periods_with_what_remains(operator: Client, bob: Any, charlie: Any, olga: Any) -> None:
    MonitoredUser.enable(BOB, by=olga, ttl=5 * HOUR, reason="ticket 7")
    MonitoredUser.enable("charlie@example.com", by=olga, ttl=HOUR)
    MonitoredUser.stop("charlie@example.com", by=olga)
    page = text_of(operator.get(PERIODS))
    for words in ("Bob Kahn", BOB, "olga@example.com", "ticket 7", "4 h 59 min", "active", "ended"):
        assert words in page
    assert BOB in text_of(operator.get(PERIODS + "?state=active"))
    assert "charlie@example.com" not in text_of(operator.get(PERIODS + "?state=active"))
    assert "charlie@example.com" in text_of(operator.get(PERIODS + "?state=ended"))
    assert BOB not in text_of(operator.get(PERIODS + "?state=expired"))
    assert "charlie@example.com" not in text_of(operator.get(PERIODS + "?q=bob"))


def test_it_enables_somebody(operator: Client, times: None, bob: Any) -> None:
    assert operator.get(PERIODS + "add/").status_code == 200
    answer = operator.post(PERIODS + "add/", {"person": BOB, "hours": "1.5", "reason": "ticket 7"}, follow=True)
    assert answer.status_code == 200
    period = MonitoredUser.objects.get()
    assert (period.user_id, period.enabled_by, period.reason) == (BOB, "omar@example.com", "ticket 7")
    assert period.expires_at - period.enabled_at == 1.5 * HOUR
    assert actions() == [("monitoring_enabled", "omar@example.com", BOB)]
    assert BOB in text_of(operator.get(f"{PERIODS}{period.pk}/change/"))


def test_it_goes_on_with_a_period_when_somebody_is_enabled_again(operator: Client, times: None, bob: Any) -> None:
    for hours in ("5", "1"):
        operator.post(PERIODS + "add/", {"person": BOB, "hours": hours, "reason": ""})
    assert MonitoredUser.objects.count() == 1
    assert [action for action, _, _ in actions()] == ["monitoring_enabled", "monitoring_extended"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("hours", value) for value in ("", "0", "-1", "1e9", "nan", "inf", "x", "720.1", "0.0001")]
    + [("person", value) for value in ("", "nobody@example.com", "bob\0@example.com", "b" * 300)]
    + [("reason", value) for value in ("r" * 501, "a\0b")],
)
def test_it_says_what_is_wrong_by_the_field(operator: Client, times: None, bob: Any, field: str, value: str) -> None:
    given = {"person": BOB, "hours": "1", "reason": ""} | {field: value}
    answer = operator.post(PERIODS + "add/", given)
    assert answer.status_code == 200
    assert list(answer.context["adminform"].form.errors) == [field]
    assert not MonitoredUser.objects.exists()


def test_it_finds_people_by_name_and_address(operator: Client, bob: Any, charlie: Any) -> None:
    def found(query: str) -> list[str]:
        return [each["id"] for each in operator.get(f"{PERIODS}people/?{query}").json()["results"]]

    assert found("term=bAbb") == ["charlie@example.com"]
    assert found("term=bob@") == [BOB]
    for page in ("0", "-1", "x", "9" * 50, "99999", "²"):
        assert isinstance(found(f"term=&page={page}"), list)


def test_it_finds_people_a_page_at_a_time(operator: Client) -> None:
    for number in range(25):
        make_person(f"person{number:02d}@example.com", f"Person {number:02d}")
    first = operator.get(f"{PERIODS}people/?term=person").json()
    second = operator.get(f"{PERIODS}people/?term=person&page=2").json()
    assert (len(first["results"]), first["pagination"]) == (20, {"more": True})
    assert (len(second["results"]), second["pagination"]) == (5, {"more": False})


def test_it_stops_and_says_how_many(operator: Client, bob: Any, charlie: Any, olga: Any) -> None:
    running = MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
    over = MonitoredUser.enable("charlie@example.com", by=olga, ttl=HOUR)
    MonitoredUser.stop("charlie@example.com", by=olga)
    page = text_of(act(operator, "stop", running, over))
    assert "Stopped the monitoring of 1 of 2 users. The others are not monitored now." in page
    running.refresh_from_db()
    assert running.ended_by == "omar@example.com"
    assert actions()[-1] == ("monitoring_disabled", "omar@example.com", BOB)


def test_it_stops_what_is_chosen_in_a_filtered_list(operator: Client, bob: Any, olga: Any) -> None:
    period = MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
    chosen = {"action": "stop", "_selected_action": [period.pk]}
    answer = operator.post(PERIODS + "?state=active", chosen, follow=True)
    assert "Stopped the monitoring of 1 of 1 user." in text_of(answer)


@pytest.mark.parametrize(("action", "hours"), [("extend_1_hour", 1), ("extend_8_hours", 8)])
def test_it_extends(operator: Client, times: None, bob: Any, olga: Any, action: str, hours: int) -> None:
    period = MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
    assert "Extended the monitoring of 1 of 1 user." in text_of(act(operator, action, period))
    later = MonitoredUser.objects.get()
    assert later.expires_at - period.expires_at == hours * HOUR


def test_it_enables_again_who_has_expired(operator: Client, times: None, bob: Any, olga: Any) -> None:
    period = MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
    MonitoredUser.objects.update(enabled_at=Now() - 2 * HOUR, expires_at=Now() - HOUR)
    assert "Enabled the monitoring of 1 of 1 user." in text_of(act(operator, "enable_again", period))
    again = MonitoredUser.objects.get(ended_at=None)
    assert again.pk != period.pk
    assert again.expires_at - again.enabled_at == 24 * HOUR


def test_it_neither_edits_nor_deletes(operator: Client, ada: Any, bob: Any, olga: Any) -> None:
    period = MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
    for client in (operator, signed_in(ada)):
        assert client.get(f"{PERIODS}{period.pk}/delete/").status_code == 403
        assert client.post(f"{PERIODS}{period.pk}/change/", {"reason": "other"}).status_code == 403
        act(client, "delete_selected", period)
    period.refresh_from_db()
    assert (period.reason, period.ended_at) == ("", None)


def test_it_keeps_out_who_may_not_manage(bob: Any, charlie: Any, olga: Any) -> None:
    period = MonitoredUser.enable(BOB, by=olga, ttl=HOUR)
    staff = make_person("stan@example.com", "Stan", "auditors", is_staff=True)
    pages = (PERIODS, PERIODS + "add/", PERIODS + "people/?term=b", f"{PERIODS}{period.pk}/change/", SETTINGS)
    assert [signed_in(staff).get(page).status_code for page in pages] == [403] * 5
    for client in (Client(), signed_in(charlie)):
        assert [client.get(page).status_code for page in pages] == [302] * 5
    assert act(signed_in(staff), "stop", period).status_code == 403
    period.refresh_from_db()
    assert period.ended_at is None


def test_it_keeps_operators_out_of_the_settings(operator: Client) -> None:
    Omni2Config(config_key="usage_limits", config_value=config.default_value("usage_limits")).save()
    assert operator.get(SETTINGS).status_code == 403
    assert operator.post(f"{SETTINGS}usage_limits/change/", {"turns_at_once": "1"}).status_code == 403


def test_only_superusers_say_how_long_turns_are_kept(operator: Client, ada: Any, charlie: Any) -> None:
    Omni2Config(config_key="retention", config_value={"days": 90}).save()
    page = f"{SETTINGS}retention/change/"
    given = {"days": "30", "is_active": "on"}
    assert operator.post(page, given).status_code == 403
    assert signed_in(charlie).post(page, given).status_code == 302, "to the sign-in"
    assert Omni2Config.objects.get(pk="retention").config_value == {"days": 90}
    wrong = signed_in(ada).post(page, given | {"days": "-1"})
    assert list(wrong.context["adminform"].form.errors) == ["days"]
    assert signed_in(ada).post(page, given).status_code == 302
    assert Omni2Config.objects.get(pk="retention").config_value == {"days": 30}


@pytest.fixture
def limits(ada: Any) -> Client:
    Omni2Config(config_key="usage_limits", config_value=config.default_value("usage_limits")).save()
    return signed_in(ada)


GIVEN = {"requests_per_day": "500", "tokens_per_day": "1000", "cost_usd_per_day": "", "turns_at_once": "8"}


def test_it_shows_a_field_for_each_value(limits: Client) -> None:
    assert "cost_usd_per_day no limit" in text_of(limits.get(SETTINGS))
    form = limits.get(f"{SETTINGS}usage_limits/change/").context["adminform"].form
    assert {name: form[name].value() for name in GIVEN} == config.default_value("usage_limits")


def test_it_saves_the_settings_as_numbers(limits: Client) -> None:
    given = GIVEN | {"requests_per_day": "", "cost_usd_per_day": "2.50", "is_active": "on"}
    assert limits.post(f"{SETTINGS}usage_limits/change/", given).status_code == 302
    row = Omni2Config.objects.get(pk="usage_limits")
    assert row.config_value == {
        "requests_per_day": None,
        "tokens_per_day": 1000,
        "cost_usd_per_day": 2.5,
        "turns_at_once": 8,
    }
    assert row.is_active


@pytest.mark.parametrize(
    ("field", "value"),
    [("requests_per_day", value) for value in ("-1", "1.5", "x", "nan", "9" * 5000)]
    + [("cost_usd_per_day", value) for value in ("-0.01", "nan", "inf", "1e99", "x")]
    + [("turns_at_once", "0")],
)
def test_it_says_which_setting_is_wrong_by_its_field(limits: Client, field: str, value: str) -> None:
    answer = limits.post(f"{SETTINGS}usage_limits/change/", GIVEN | {field: value, "is_active": "on"})
    assert answer.status_code == 200
    assert list(answer.context["adminform"].form.errors) == [field]
    assert Omni2Config.objects.get(pk="usage_limits").config_value == config.default_value("usage_limits")


def test_it_wants_the_default_within_the_maximum(ada: Any, times: None) -> None:
    given = {"default_ttl_hours": "48", "max_ttl_hours": "24", "is_active": "on"}
    answer = signed_in(ada).post(f"{SETTINGS}flow_monitoring/change/", given)
    assert list(answer.context["adminform"].form.errors) == ["default_ttl_hours"]
    assert signed_in(ada).post(f"{SETTINGS}flow_monitoring/change/", given | {"max_ttl_hours": "48"}).status_code == 302
    value = Omni2Config.objects.get(pk="flow_monitoring").config_value
    assert str(value) == "{'max_ttl_hours': 48, 'default_ttl_hours': 48}"


def test_it_repairs_a_row_that_sql_has_spoilt(limits: Client) -> None:
    Omni2Config.objects.filter(pk="usage_limits").update(config_value=["spoilt"])
    assert limits.get(SETTINGS).status_code == 200
    assert limits.get(f"{SETTINGS}usage_limits/change/").status_code == 200
    wrong = limits.post(f"{SETTINGS}usage_limits/change/", GIVEN | {"turns_at_once": "0", "is_active": "on"})
    assert list(wrong.context["adminform"].form.errors) == ["turns_at_once"]
    assert limits.post(f"{SETTINGS}usage_limits/change/", GIVEN | {"is_active": "on"}).status_code == 302
    assert Omni2Config.objects.get(pk="usage_limits").config_value["tokens_per_day"] == 1000


def test_it_neither_adds_nor_deletes_settings(limits: Client) -> None:
    assert limits.get(SETTINGS + "add/").status_code == 403
    assert limits.post(f"{SETTINGS}usage_limits/delete/", {"post": "yes"}).status_code == 403


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "less than a minute"),
        (59, "less than a minute"),
        (60, "1 min"),
        (3600, "1 h 00 min"),
        (47 * 3600 + 59 * 60, "47 h 59 min"),
        (49 * 3600, "2 d 1 h"),
    ],
)
def test_it_says_what_remains_in_words(seconds: int, words: str) -> None:
    assert in_words(timedelta(seconds=seconds)) == words
