"""The database before the parts start: migrated, with an admin in it. In the supervisor's own process."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from django.conf import settings
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.executor import MigrationExecutor

from omni2.accounts.models import User
from omni2.settings import database_from_url

DATABASE_LIMIT_S = 10.0
LOOK_AGAIN_S = 0.5


class DatabaseAway(RuntimeError):
    """PostgreSQL cannot be reached; the message has its reason and no password."""


def use_database(url: str) -> None:
    """Point Django of this process at the embedded server, whose address was not known when it was set up."""
    settings.DATABASES["default"].update(database_from_url(url))


def wait_for_database(say: Callable[[str], None]) -> None:
    """Return when PostgreSQL takes connections; raises DatabaseAway, with its own words, after a while."""
    deadline = time.monotonic() + DATABASE_LIMIT_S
    values = connection.settings_dict
    parts = {"host": values["HOST"], "port": values["PORT"], "user": values["USER"], "password": values["PASSWORD"]}
    known = {name: value for name, value in {**values["OPTIONS"], **parts}.items() if value and name != "pool"}
    said = False
    while True:
        try:
            # not through the pool, which would hide the reason behind its own time-out
            psycopg.connect(dbname=values["NAME"], **known).close()
            return
        except psycopg.OperationalError as problem:
            reason = str(problem).strip().replace("\n", " ")
            if time.monotonic() > deadline:
                raise DatabaseAway(f"PostgreSQL does not answer: {reason}") from None
            if not said:
                say(f"waiting for PostgreSQL: {reason}")
                said = True
            time.sleep(LOOK_AGAIN_S)


@dataclass(frozen=True, slots=True)
class Admin:
    """The account to sign in with: whether it was made just now, and whether the given password opens it."""

    email: str
    made: bool
    password_fits: bool


def migrate(say: Callable[[str], None]) -> None:
    """Bring the schema up to date; two queries when it is."""
    executor = MigrationExecutor(connection)
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if plan:
        say(f"preparing the database: {len(plan)} migrations")
        call_command("migrate", interactive=False, verbosity=0)


def admin(email: str, password: Callable[[], str]) -> Admin:
    """Make the account if there is none; an existing one is left as it is, its password too."""
    existing = User.objects.filter(email=email.strip().lower()).first()
    if existing is not None:
        return Admin(existing.email, made=False, password_fits=existing.check_password(password()))
    made = User.objects.create_superuser(email, password())
    return Admin(made.email, made=True, password_fits=True)


def done() -> None:
    """Give up the connections of this thread and their pool: the supervisor needs no database afterwards."""
    for each in connections.all(initialized_only=True):
        each.close()
        if hasattr(each, "close_pool"):
            each.close_pool()
