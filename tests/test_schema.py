"""The tables are where the contract says, and the original's own INSERT works."""

import pytest
from django.core.management import call_command
from django.db import connection

pytestmark = pytest.mark.django_db


def rows(sql: str) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_it_puts_nothing_in_public() -> None:
    assert rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


def test_it_takes_an_insert_in_the_original_columns_alone() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO omni2.interaction_flows (user_id, session_id, checkpoint, parent_id, metadata) "
            "VALUES ('test@example.com', 's', 'auth_check', NULL, '{\"a\": 1}') RETURNING flow_id, created_at, turn_id"
        )
        flow_id, created_at, turn_id = cursor.fetchone()
    assert flow_id is not None
    assert created_at is not None
    assert turn_id is None


def test_its_parent_key_is_immediate() -> None:
    assert rows("SELECT condeferrable FROM pg_constraint WHERE conname = 'interaction_flows_parent_id_fkey'") == [
        (False,)
    ]


def test_it_needs_no_further_migration() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
