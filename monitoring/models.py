"""Who is watched until when, and by whom; and the settings an admin may change.

The truth about monitoring: PostgreSQL. Redis may be flushed and processes may come and go; what
each process needs of it in memory is kept by `monitoring.watchlist`.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import Case, CharField, F, Q, Value, When
from django.db.models.functions import Greatest, Least, Now

from monitoring import config
from monitoring.control import announce
from monitoring.watchlist import watchlist
from omni2.accounts.access import record_access
from omni2.accounts.models import User

MANAGE = "monitoring.manage"
"""The right to enable, extend and end monitoring."""

ACTIVE = "active"
ENDED = "ended"
EXPIRED = "expired"


class UnknownUser(ValueError):
    """There is nobody with this user_id."""


class Omni2Config(models.Model):
    """One setting: a JSON object whose shape and bounds stand in `monitoring.config`.

    Saving checks it (ValidationError, by field); a saved value is in force in every process within
    a second. An inactive row counts as absent: then the built-in default is in force.
    """

    config_key = models.CharField("setting", max_length=100, primary_key=True)
    config_value = models.JSONField("value")
    description = models.TextField(blank=True, default="", db_default="")
    is_active = models.BooleanField(
        "active", default=True, db_default=True, help_text="if not, the built-in default is in force"
    )
    updated_at = models.DateTimeField("changed", db_default=Now(), editable=False)

    class Meta:
        db_table = "omni2_config"
        default_permissions = ()  # superusers only
        verbose_name = "setting"
        verbose_name_plural = "settings"
        ordering = ["config_key"]

    def __str__(self) -> str:
        return self.config_key

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Checks, then writes; every process hears of it after the commit."""
        self.full_clean(validate_unique=False, validate_constraints=False)
        self.updated_at = Now()
        super().save(*args, **kwargs)
        transaction.on_commit(_announce, robust=True)

    def clean(self) -> None:
        problems = config.problems_of(self.config_key, self.config_value)
        if problems:
            raise ValidationError({"config_value": [f"{name}: {text}".lstrip(": ") for name, text in problems.items()]})

    @classmethod
    def flow_monitoring_now(cls) -> config.FlowMonitoring:
        """The monitoring times as PostgreSQL has them, for the transaction that decides by them. One query."""
        return cls._now(config.FlowMonitoring, "flow_monitoring", config.flow_monitoring())

    @classmethod
    def retention_now(cls) -> config.Retention:
        """How long turns are kept, as PostgreSQL has it, for whoever is about to delete some. One query."""
        return cls._now(config.Retention, "retention", config.retention())

    @classmethod
    def _now(cls, shape: type[config.Shape], key: str, known: config.Shape) -> config.Shape:
        value = cls.objects.filter(config_key=key, is_active=True).values_list("config_value", flat=True)
        try:
            return config.read(shape, key, value[0])
        except (IndexError, config.BadConfig):
            # no row, or one written past the checks: what this process last knew to be right
            return known


class PeriodQuerySet(models.QuerySet["MonitoredUser"]):
    """Periods, judged by PostgreSQL's clock at the moment of the statement."""

    def active(self) -> "PeriodQuerySet":
        """Neither ended by somebody nor expired."""
        return self.filter(ended_at__isnull=True, expires_at__gt=Now())

    def with_state(self) -> "PeriodQuerySet":
        """Adds `state` (active, ended, expired) and `remaining` (a timedelta, negative once expired)."""
        return self.annotate(
            state=Case(
                When(ended_by__isnull=False, then=Value(ENDED)),
                When(Q(ended_at__isnull=False) | Q(expires_at__lte=Now()), then=Value(EXPIRED)),
                default=Value(ACTIVE),
                output_field=CharField(),
            ),
            remaining=models.ExpressionWrapper(F("expires_at") - Now(), output_field=models.DurationField()),
        )


class MonitoredUser(models.Model):
    """A period in which somebody is monitored: from `enabled_at` until it expires or is ended.

    Periods are never deleted. At most one period of a user is open (`ended_at` empty), by a unique
    index; an open one past its `expires_at` has expired all the same, and is closed when the next
    begins. Enabling a monitored user again goes on with his period and replaces its expiry.
    """

    user_id = models.CharField("user", max_length=255)
    enabled_by = models.CharField(max_length=255)
    enabled_at = models.DateTimeField(db_default=Now())
    expires_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True, blank=True)
    ended_by = models.CharField(max_length=255, null=True, blank=True, help_text="empty when the time ran out")
    reason = models.CharField(max_length=500, blank=True, default="", db_default="")

    objects: ClassVar[models.Manager["MonitoredUser"]] = PeriodQuerySet.as_manager()

    class Meta:
        db_table = "monitored_users"
        default_permissions = ()
        permissions = [("manage", "Can enable, extend and end the monitoring of users")]
        verbose_name = "monitored user"
        ordering = ["-enabled_at", "-id"]
        constraints = [
            models.UniqueConstraint(
                "user_id", name="one_open_period_per_user", condition=models.Q(ended_at__isnull=True)
            ),
            models.CheckConstraint(name="period_expires_after_it_began", condition=Q(expires_at__gt=F("enabled_at"))),
            models.CheckConstraint(
                name="period_ends_after_it_began", condition=Q(ended_at__isnull=True) | Q(ended_at__gte=F("enabled_at"))
            ),
        ]
        indexes = [models.Index("user_id", models.F("enabled_at").desc(), name="idx_monitored_user")]

    def __str__(self) -> str:
        return f"{self.user_id} until {self.expires_at:%Y-%m-%d %H:%M} UTC"

    # --- the three verbs; each is recorded in the access log, in the same transaction -------------

    @classmethod
    def enable(cls, user_id: str, *, by: User, ttl: timedelta, reason: str | None = None) -> "MonitoredUser":
        """Monitor the user from now on for `ttl`; who is monitored already goes on in his period,
        whose expiry is replaced (it may also come nearer) and whose reason is, if one is given.

        Raises UnknownUser. Concurrent calls for one user wait for each other on his row of the
        users table, so the second extends what the first began.
        """
        with transaction.atomic():
            _lock_user(user_id)
            cls._close_expired(user_id)
            changes = {"reason": reason} if reason is not None else {}
            extended = cls.objects.filter(user_id=user_id, ended_at__isnull=True).update(
                expires_at=Now() + ttl, **changes
            )
            if not extended:
                cls._begin(user_id, by=by, ttl=ttl, reason=reason or "")
            period = cls.objects.get(user_id=user_id, ended_at__isnull=True)
            period._record(by, "monitoring_extended" if extended else "monitoring_enabled")
        return period

    @classmethod
    def extend(cls, user_id: str, *, by: User, ttl: timedelta, longest: timedelta) -> "MonitoredUser | None":
        """Put the expiry off by `ttl`, to `longest` from now at most. None when he is not (or no
        longer) monitored: the conditional update decides, by PostgreSQL's clock."""
        with transaction.atomic():
            later = Greatest(F("expires_at"), Least(F("expires_at") + ttl, Now() + longest))
            if not cls.objects.filter(user_id=user_id).active().update(expires_at=later):
                return None
            period = cls.objects.get(user_id=user_id, ended_at__isnull=True)
            period._record(by, "monitoring_extended")
        return period

    @classmethod
    def stop(cls, user_id: str, *, by: User) -> bool:
        """End his monitoring now. False when he was not monitored; of two callers one gets True."""
        with transaction.atomic():
            open_period = cls.objects.filter(user_id=user_id).active()
            ended = open_period.update(ended_at=Greatest(Now(), F("enabled_at")), ended_by=by.user_id)
            if not ended:
                return False
            period = cls.objects.filter(user_id=user_id, ended_by=by.user_id).latest("ended_at")
            period._record(by, "monitoring_disabled")
        return True

    @classmethod
    def _close_expired(cls, user_id: str) -> None:
        """Write down the end of a period that expired, so that another may be open."""
        expired = cls.objects.filter(user_id=user_id, ended_at__isnull=True, expires_at__lte=Now())
        expired.update(ended_at=F("expires_at"))

    @classmethod
    def _begin(cls, user_id: str, *, by: User, ttl: timedelta, reason: str) -> None:
        cls.objects.create(
            user_id=user_id, enabled_by=by.user_id, enabled_at=Now(), expires_at=Now() + ttl, reason=reason
        )

    def _record(self, by: User, action: str) -> None:
        detail = {"period": self.pk, "expires_at": iso(self.expires_at), "reason": self.reason}
        record_access(actor=by, action=action, subject_user_id=self.user_id, detail=detail)
        transaction.on_commit(_announce, robust=True)


def _lock_user(user_id: str) -> None:
    """Make sure the user is known, and let others who would monitor him wait until our commit."""
    if not User.objects.select_for_update(no_key=True).filter(email=user_id).exists():
        raise UnknownUser(user_id)


def iso(moment: datetime) -> str:
    """`2026-11-22T06:00:00.123456Z`, as every time in our JSON."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _announce() -> None:
    watchlist.wake()
    announce("monitoring")
