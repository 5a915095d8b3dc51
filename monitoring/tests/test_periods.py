"""Periods: begun, gone on with, ended; one open at a time, none ever deleted."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, connections, transaction
from django.db.models.functions import Now

from monitoring.models import MonitoredUser, UnknownUser
from omni2.accounts.models import AccessLog

HOUR = timedelta(hours=1)


def expire(period: MonitoredUser) -> None:
    """Let the period have run out a minute ago, as if its time had passed."""
    MonitoredUser.objects.filter(pk=period.pk).update(
        enabled_at=Now() - timedelta(hours=2), expires_at=Now() - timedelta(minutes=1)
    )


def logged() -> list[tuple[str, str, str | None]]:
    return list(AccessLog.objects.order_by("pk").values_list("action", "actor", "subject_user_id"))


def test_it_begins_a_period_by_postgresqls_clock(bob: Any, olga: Any) -> None:
    period = MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR, reason="ticket 7")
    assert (period.user_id, period.enabled_by, period.reason) == ("bob@example.com", "olga@example.com", "ticket 7")
    assert period.expires_at - period.enabled_at == HOUR
    with connection.cursor() as cursor:
        cursor.execute("SELECT abs(extract(epoch FROM clock_timestamp() - %s)) < 60", [period.enabled_at])
        assert cursor.fetchone() == (True,)


def test_it_refuses_somebody_unknown(olga: Any) -> None:
    with pytest.raises(UnknownUser):
        MonitoredUser.enable("nobody@example.com", by=olga, ttl=HOUR)
    assert logged() == []


def test_it_goes_on_with_the_period_when_enabled_again_and_replaces_the_expiry(bob: Any, olga: Any, ada: Any) -> None:
    first = MonitoredUser.enable("bob@example.com", by=olga, ttl=10 * HOUR, reason="ticket 7")
    again = MonitoredUser.enable("bob@example.com", by=ada, ttl=HOUR)
    assert again.pk == first.pk
    assert (again.enabled_at, again.enabled_by, again.reason) == (first.enabled_at, "olga@example.com", "ticket 7")
    assert again.expires_at < first.expires_at, "replaced, also by a nearer one"


def test_it_takes_a_new_reason_when_enabled_again_with_one(bob: Any, olga: Any) -> None:
    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR, reason="ticket 7")
    assert MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR, reason="ticket 8").reason == "ticket 8"


def test_it_begins_a_new_period_after_one_has_expired_and_keeps_the_old(bob: Any, olga: Any) -> None:
    first = MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    expire(first)
    second = MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    first.refresh_from_db()
    assert second.pk != first.pk
    assert (first.ended_at, first.ended_by) == (first.expires_at, None)


def test_it_begins_a_new_period_after_one_was_ended(bob: Any, olga: Any) -> None:
    first = MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    assert MonitoredUser.stop("bob@example.com", by=olga) is True
    second = MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    assert second.pk != first.pk
    assert MonitoredUser.objects.count() == 2


def test_it_ends_a_period_once(bob: Any, olga: Any, ada: Any) -> None:
    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    assert MonitoredUser.stop("bob@example.com", by=ada) is True
    assert MonitoredUser.stop("bob@example.com", by=olga) is False
    period = MonitoredUser.objects.get()
    assert period.ended_by == "ada@example.com"
    assert period.ended_at is not None
    assert period.ended_at < period.expires_at


def test_it_says_that_an_expired_user_was_not_monitored(bob: Any, olga: Any) -> None:
    expire(MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR))
    assert MonitoredUser.stop("bob@example.com", by=olga) is False


def test_it_puts_the_expiry_off_to_the_longest_time_at_most(bob: Any, olga: Any) -> None:
    period = MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    extended = MonitoredUser.extend("bob@example.com", by=olga, ttl=8 * HOUR, longest=24 * HOUR)
    assert extended is not None
    assert extended.expires_at - period.expires_at == 8 * HOUR
    bounded = MonitoredUser.extend("bob@example.com", by=olga, ttl=100 * HOUR, longest=24 * HOUR)
    assert bounded is not None
    assert 23 * HOUR < bounded.expires_at - period.enabled_at < 25 * HOUR


def test_it_never_brings_the_expiry_nearer_when_extending(bob: Any, olga: Any) -> None:
    """The longest time may have been lowered since."""
    period = MonitoredUser.enable("bob@example.com", by=olga, ttl=100 * HOUR)
    extended = MonitoredUser.extend("bob@example.com", by=olga, ttl=HOUR, longest=HOUR)
    assert extended is not None
    assert extended.expires_at == period.expires_at


def test_it_does_not_extend_what_is_over(bob: Any, olga: Any) -> None:
    expire(MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR))
    assert MonitoredUser.extend("bob@example.com", by=olga, ttl=HOUR, longest=24 * HOUR) is None


def test_it_writes_every_change_into_the_access_log_and_nothing_that_did_not_happen(bob: Any, olga: Any) -> None:
    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR, reason="ticket 7")
    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    MonitoredUser.extend("bob@example.com", by=olga, ttl=HOUR, longest=24 * HOUR)
    MonitoredUser.stop("bob@example.com", by=olga)
    MonitoredUser.stop("bob@example.com", by=olga)
    MonitoredUser.extend("bob@example.com", by=olga, ttl=HOUR, longest=24 * HOUR)
    assert logged() == [
        (f"monitoring_{change}", "olga@example.com", "bob@example.com")
        for change in ("enabled", "extended", "extended", "disabled")
    ]
    assert AccessLog.objects.order_by("pk")[0].detail["reason"] == "ticket 7"


def test_it_undoes_the_change_with_the_log_line(bob: Any, olga: Any) -> None:
    """One transaction: nobody is monitored without a line that says so."""
    with transaction.atomic():
        MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
        transaction.set_rollback(True)
    assert MonitoredUser.objects.count() == 0
    assert logged() == []


def test_it_lets_the_database_refuse_a_second_open_period(bob: Any, olga: Any) -> None:
    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    with pytest.raises(IntegrityError), transaction.atomic():
        MonitoredUser.objects.create(user_id="bob@example.com", enabled_by="x", expires_at=Now() + HOUR)


def test_it_tells_the_states_apart(bob: Any, charlie: Any, august: Any, olga: Any) -> None:
    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    expire(MonitoredUser.enable("charlie@example.com", by=olga, ttl=HOUR))
    MonitoredUser.enable("august@example.com", by=olga, ttl=HOUR)
    MonitoredUser.stop("august@example.com", by=olga)
    states = dict(MonitoredUser.objects.with_state().values_list("user_id", "state"))
    assert states == {"bob@example.com": "active", "charlie@example.com": "expired", "august@example.com": "ended"}


@pytest.mark.django_db(transaction=True)
def test_it_makes_one_open_period_when_two_enable_at_once(bob: Any, olga: Any) -> None:
    together = threading.Barrier(4)

    def enable() -> int:
        try:
            together.wait()
            return MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR).pk
        finally:
            connections.close_all()

    for _ in range(10):
        with ThreadPoolExecutor(4) as executor:
            made = {future.result() for future in [executor.submit(enable) for _ in range(4)]}
        assert len(made) == 1
        assert MonitoredUser.objects.filter(ended_at=None).count() == 1
        MonitoredUser.stop("bob@example.com", by=olga)


@pytest.mark.django_db(transaction=True)
def test_it_lets_one_of_many_end_it(bob: Any, olga: Any) -> None:
    together = threading.Barrier(4)

    def stop() -> bool:
        try:
            together.wait()
            return MonitoredUser.stop("bob@example.com", by=olga)
        finally:
            connections.close_all()

    MonitoredUser.enable("bob@example.com", by=olga, ttl=HOUR)
    with ThreadPoolExecutor(4) as executor:
        answers = [future.result() for future in [executor.submit(stop) for _ in range(4)]]
    assert sorted(answers) == [False, False, False, True]
    assert [action for action, _, _ in logged()] == ["monitoring_enabled", "monitoring_disabled"]
