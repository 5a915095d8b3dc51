"""Settings: checked on save, by field; a new database has the contract's values."""

from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import connection
from django.db.models.functions import Now

from monitoring import config
from monitoring.models import Omni2Config

MONITORING = {"default_ttl_hours": 24, "max_ttl_hours": 720}
LIMITS = {"requests_per_day": 500, "tokens_per_day": 500000, "cost_usd_per_day": None, "turns_at_once": 8}


def test_it_starts_with_the_contracts_values() -> None:
    assert config.default_value("flow_monitoring") == MONITORING
    assert config.default_value("usage_limits") == LIMITS
    assert config.default_value("retention") == {"days": 90}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("flow_monitoring", MONITORING),
        ("flow_monitoring", {"default_ttl_hours": 0.5, "max_ttl_hours": 0.5}),
        ("usage_limits", LIMITS),
        ("usage_limits", dict.fromkeys(LIMITS)),
        ("retention", {"days": 0}),
        ("retention", {"days": 36_500}),
        ("usage_limits", LIMITS | {"requests_per_day": 0, "cost_usd_per_day": 0.01}),
    ],
)
def test_it_takes_good_values(key: str, value: dict[str, Any]) -> None:
    assert config.problems_of(key, value) == {}


@pytest.mark.parametrize(
    "bad",
    [0, -1, 1e9, float("nan"), float("inf"), 10**400, True, "x", "24", None, [], {}],
    ids=lambda bad: str(bad)[:9],
)
def test_it_refuses_bad_hours(bad: Any) -> None:
    assert config.problems_of("flow_monitoring", MONITORING | {"default_ttl_hours": bad}).keys() == {
        "default_ttl_hours"
    }
    assert "max_ttl_hours" in config.problems_of("flow_monitoring", MONITORING | {"max_ttl_hours": bad})


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "bad", [-1, 1e300, float("nan"), float("-inf"), 10**400, False, "x", [1]], ids=lambda bad: str(bad)[:9]
)
def test_it_refuses_bad_limits(name: str, bad: Any) -> None:
    assert config.problems_of("usage_limits", LIMITS | {name: bad}).keys() == {name}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("flow_monitoring", MONITORING | {"colour": 1}, {"colour"}),
        ("flow_monitoring", {"default_ttl_hours": 24}, {"max_ttl_hours"}),
        ("flow_monitoring", {"default_ttl_hours": 721, "max_ttl_hours": 720}, {"default_ttl_hours"}),
        ("usage_limits", LIMITS | {"requests_per_day": 1.5}, {"requests_per_day"}),
        ("usage_limits", LIMITS | {"turns_at_once": 0}, {"turns_at_once"}),
        ("usage_limits", [], {""}),
        ("retention", {"days": -1}, {"days"}),
        ("retention", {"days": 0.5}, {"days"}),
        ("retention", {"days": None}, {"days"}),
        ("retention", {"days": "90"}, {"days"}),
        ("retention", {"days": 36_501}, {"days"}),
        ("retention", {"day": 90}, {"day", "days"}),
        ("usage_limits", None, {""}),
        ("colours", {}, {""}),
    ],
)
def test_it_names_what_is_wrong(key: str, value: Any, named: set[str]) -> None:
    assert config.problems_of(key, value).keys() == named


@pytest.mark.django_db
def test_it_checks_on_save() -> None:
    row = Omni2Config(config_key="usage_limits", config_value=LIMITS | {"turns_at_once": "many"})
    with pytest.raises(ValidationError) as refused:
        row.save()
    assert refused.value.message_dict == {"config_value": ["turns_at_once: Must be a number."]}
    with pytest.raises(ValidationError):
        Omni2Config(config_key="colours", config_value={}).save()
    assert not Omni2Config.objects.filter(config_key="colours").exists()


@pytest.mark.django_db
def test_it_keeps_null_and_numbers_as_they_were_written() -> None:
    Omni2Config(config_key="usage_limits", config_value=LIMITS | {"cost_usd_per_day": 1.25}).save()
    assert Omni2Config.objects.get(pk="usage_limits").config_value == LIMITS | {"cost_usd_per_day": 1.25}
    Omni2Config(config_key="usage_limits", config_value=LIMITS).save()
    assert Omni2Config.objects.get(pk="usage_limits").config_value == LIMITS


@pytest.mark.django_db
def test_it_notes_when_it_was_changed() -> None:
    Omni2Config(config_key="flow_monitoring", config_value=MONITORING).save()
    assert Omni2Config.objects.filter(updated_at__lte=Now()).exists()


@pytest.mark.django_db
def test_it_decides_by_what_postgresql_has() -> None:
    Omni2Config(config_key="flow_monitoring", config_value={"default_ttl_hours": 2, "max_ttl_hours": 3}).save()
    assert Omni2Config.flow_monitoring_now() == config.FlowMonitoring(2, 3)
    Omni2Config.objects.update(config_value={"default_ttl_hours": "long"})
    assert Omni2Config.flow_monitoring_now() == config.FlowMonitoring(24, 720)
    Omni2Config.objects.all().delete()
    assert Omni2Config.flow_monitoring_now() == config.FlowMonitoring(24, 720)


@pytest.mark.django_db
def test_its_table_takes_a_row_from_sql_alone() -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM omni2.omni2_config")
        cursor.execute(
            "INSERT INTO omni2.omni2_config (config_key, config_value) VALUES ('flow_monitoring', '{}') "
            "RETURNING description, is_active, updated_at IS NOT NULL"
        )
        assert cursor.fetchone() == ("", True, True)


def test_it_reads_how_long_turns_are_kept_as_postgresql_has_it(db: None) -> None:
    assert Omni2Config.retention_now() == config.Retention(90)
    Omni2Config(config_key="retention", config_value={"days": 7}).save()
    assert Omni2Config.retention_now() == config.Retention(7)
    Omni2Config.objects.filter(pk="retention").update(config_value={"days": "many"})
    assert Omni2Config.retention_now() == config.Retention(90), "what this process last knew to be right"
