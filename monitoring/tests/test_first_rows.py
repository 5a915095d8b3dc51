"""What the migrations put into an empty database: three settings, two groups."""

from importlib import import_module
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth.models import Group
from django.db import connection

from monitoring import config
from monitoring.models import Omni2Config

settings_migration = import_module("monitoring.migrations.0002_settings")
groups_migration = import_module("monitoring.migrations.0003_groups")
retention_migration = import_module("monitoring.migrations.0005_retention")
operate_migration = import_module("monitoring.migrations.0004_operators_operate")
stop_migration = import_module("chat.migrations.0003_stop")

pytestmark = pytest.mark.django_db


class Editor:
    connection = connection


@pytest.fixture
def migrated() -> None:
    """As after `migrate`: another test may have emptied the tables, and running twice is harmless."""
    for _ in range(2):
        settings_migration.add_settings(apps, Editor)
        groups_migration.add_groups(apps, Editor)
        operate_migration.let_operators(apps, Editor)
        stop_migration.let_operators(apps, Editor)
        retention_migration.add_retention(apps, Editor)


def rights_of(group: str) -> set[str]:
    rights = Group.objects.get(name=group).permissions.values_list("content_type__app_label", "codename")
    return {f"{app}.{codename}" for app, codename in rights}


def test_it_has_the_three_settings(migrated: None) -> None:
    values = dict(Omni2Config.objects.filter(is_active=True).values_list("config_key", "config_value"))
    assert values == {key: config.default_value(key) for key in config.RULES}
    assert all(Omni2Config.objects.values_list("description", flat=True))


def test_it_has_operators_and_auditors(migrated: None) -> None:
    assert rights_of("operators") == {
        "monitoring.manage",
        "flows.view",
        "flows.watch",
        "flows.operate",
        "chat.stop",
    }
    assert rights_of("auditors") == {"flows.view"}


def test_it_gives_the_rights_to_whom_is_in_the_group(migrated: None, olga: Any, august: Any, charlie: Any) -> None:
    rights = ["monitoring.manage", "flows.view", "flows.watch", "flows.operate"]
    assert [olga.has_perm(right) for right in rights] == [True, True, True, True]
    assert [august.has_perm(right) for right in rights] == [False, True, False, False]
    assert [charlie.has_perm(right) for right in rights] == [False, False, False, False]


def test_it_leaves_what_an_admin_changed(migrated: None) -> None:
    row = Omni2Config.objects.get(pk="flow_monitoring")
    row.config_value = {"default_ttl_hours": 1, "max_ttl_hours": 2}
    row.save()
    settings_migration.add_settings(apps, Editor)
    row.refresh_from_db()
    assert row.config_value == {"default_ttl_hours": 1, "max_ttl_hours": 2}


def test_it_leaves_a_retention_that_an_admin_chose(migrated: None) -> None:
    Omni2Config(config_key="retention", config_value={"days": 0}).save()
    retention_migration.add_retention(apps, Editor)
    assert Omni2Config.objects.get(pk="retention").config_value == {"days": 0}
