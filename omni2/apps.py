"""The project as an app: it owns the schema and the commands."""

from typing import Any

from django.apps import AppConfig
from django.contrib import admin
from django.contrib.admin.apps import SimpleAdminConfig
from django.contrib.admin.checks import check_admin_app, check_dependencies
from django.core import checks
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.models.signals import pre_migrate


def make_schema(sender: AppConfig, using: str = DEFAULT_DB_ALIAS, **_: Any) -> None:
    """Create schema omni2 before the first table: with a search_path alone, an empty
    database would get its first tables in `public`."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA IF NOT EXISTS omni2")


class Omni2AppConfig(AppConfig):
    name = "omni2"
    label = "omni2"
    verbose_name = "Omni2"

    def ready(self) -> None:
        # any sender: Django sends the signal only for apps that have models, which this one has not
        pre_migrate.connect(make_schema, dispatch_uid="omni2.make_schema")


def check_whole_admin(app_configs: Any, **options: Any) -> list[checks.CheckMessage]:
    """Django's check of the admin's pages, of all of them.

    Django runs its checks in no certain order: before the URLs are loaded no page is registered, or only those that a
    command happens to import, and these then miss the others.
    """
    admin.autodiscover()
    return check_admin_app(app_configs, **options)


class LateAdminConfig(SimpleAdminConfig):
    """The admin, whose pages are registered by omni2.urls: what they need is of no use to a persister."""

    def ready(self) -> None:  # instead of Django's own, which checks what happens to be registered
        checks.register(check_dependencies, checks.Tags.admin)
        checks.register(check_whole_admin, checks.Tags.admin)
