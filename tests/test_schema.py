"""The tables are where the contract says, and the original's own INSERT works."""

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection

pytestmark = pytest.mark.django_db


def rows(sql: str) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_it_puts_nothing_in_public() -> None:
    assert rows("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []
    assert rows("SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace") == []
    assert rows("SELECT typname FROM pg_type WHERE typnamespace = 'public'::regnamespace") == []


def test_all_its_tables_are_in_schema_omni2() -> None:
    ours = {model._meta.db_table for model in apps.get_models(include_auto_created=True)}
    assert {"interaction_flows", "omni2_config", "monitored_users", "turns", "users", "access_log"} <= ours
    assert ours <= {name for (name,) in rows("SELECT tablename FROM pg_tables WHERE schemaname = 'omni2'")}


def test_its_columns_are_those_of_the_original() -> None:
    columns = rows(
        "SELECT column_name, data_type, character_maximum_length, is_nullable, column_default"
        " FROM information_schema.columns WHERE table_schema = 'omni2' AND table_name = 'interaction_flows'"
        " ORDER BY column_name"
    )
    assert columns == [
        ("checkpoint", "character varying", 50, "NO", None),
        ("created_at", "timestamp with time zone", None, "NO", "CURRENT_TIMESTAMP"),
        ("flow_id", "uuid", None, "NO", "gen_random_uuid()"),
        ("metadata", "jsonb", None, "YES", None),
        ("parent_id", "uuid", None, "YES", None),
        ("session_id", "character varying", 255, "NO", None),
        ("turn_id", "uuid", None, "YES", None),
        ("user_id", "character varying", 255, "NO", None),
    ]


def test_its_indexes_are_those_of_the_original_and_one_for_parents() -> None:
    indexes = dict(rows("SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'interaction_flows'"))
    assert indexes["idx_flows_user"].endswith("btree (user_id, created_at DESC)")
    assert indexes["idx_flows_session"].endswith("btree (session_id, created_at)")
    assert "btree (parent_id)" in indexes["idx_flows_parent"]
    assert any("UNIQUE" in index and "(flow_id)" in index for index in indexes.values())


def test_its_settings_table_has_the_columns_of_the_contract() -> None:
    columns = rows(
        "SELECT column_name, data_type FROM information_schema.columns"
        " WHERE table_schema = 'omni2' AND table_name = 'omni2_config' ORDER BY column_name"
    )
    assert columns == [
        ("config_key", "character varying"),
        ("config_value", "jsonb"),
        ("description", "text"),
        ("is_active", "boolean"),
        ("updated_at", "timestamp with time zone"),
    ]


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
    keys = rows(
        "SELECT pg_get_constraintdef(oid), condeferrable FROM pg_constraint"
        " WHERE conrelid = 'omni2.interaction_flows'::regclass AND contype = 'f'"
    )
    assert keys == [("FOREIGN KEY (parent_id) REFERENCES interaction_flows(flow_id)", False)]


def test_it_needs_no_further_migration() -> None:
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
