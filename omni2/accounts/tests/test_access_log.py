"""The access log only grows."""

import pytest
from django.db import DatabaseError, connection, transaction

from omni2.accounts.access import record_access
from omni2.accounts.models import AccessLog, AppendOnly

pytestmark = pytest.mark.django_db


def test_it_writes_one_line_with_one_statement(olga, django_assert_num_queries) -> None:
    with django_assert_num_queries(1):
        record_access(
            actor=olga, action="watch_started", subject_user_id="bob@example.com", detail={"since": "2026-11-22"}
        )
    line = AccessLog.objects.get()
    assert (line.actor, line.action, line.subject_user_id) == ("olga@example.com", "watch_started", "bob@example.com")
    assert line.detail == {"since": "2026-11-22"}
    assert line.created_at is not None


def test_it_records_whatever_was_typed(db) -> None:
    record_access(
        actor="a\0@example.com",
        action="history_opened",
        subject_user_id=None,
        detail={"reason": "x\0\ud800\ud83d\ude00", "n": float("nan"), "\0": [1, True, None, {"deep": float("inf")}]},
    )
    line = AccessLog.objects.get()
    assert line.actor == "a\ufffd@example.com"
    assert line.detail == {"reason": "x\ufffd\ufffd😀", "n": None, "\ufffd": [1, True, None, {"deep": None}]}


def test_a_line_cannot_be_changed_or_deleted(olga) -> None:
    line = record_access(actor=olga, action="history_opened", subject_user_id="bob@example.com")
    line.action = "nothing"
    with pytest.raises(AppendOnly):
        line.save()
    with pytest.raises(AppendOnly):
        line.delete()


@pytest.mark.parametrize(
    "sql", ["UPDATE omni2.access_log SET action = 'nothing'", "DELETE FROM omni2.access_log WHERE true"]
)
def test_postgresql_refuses_as_well(olga, sql: str) -> None:
    record_access(actor=olga, action="history_opened", subject_user_id="bob@example.com")
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql)
    assert AccessLog.objects.get().action == "history_opened"


def test_an_e_mail_address_is_not_changed_once_made(bob) -> None:
    bob.email = "robert@example.com"
    with pytest.raises(DatabaseError, match="not changed"), transaction.atomic():
        bob.save()
    bob.refresh_from_db()
    bob.name = "Robert"
    bob.save()
    assert bob.user_id == "bob@example.com"
