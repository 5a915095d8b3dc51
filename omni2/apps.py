"""The project as an app: it owns the schema and the commands."""

from typing import Any

from django.apps import AppConfig
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
