"""What the monitoring API takes and answers: read by the views and by OpenAPI.

Every problem names its field; names that are not known are left unread.
"""

from datetime import timedelta
from typing import Any

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from flows.serializers import UserIdField
from monitoring.models import Omni2Config

SHORTEST = timedelta(seconds=1)


class TextField(serializers.CharField):
    """Text; DRF's own field would also take a number."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class UserField(UserIdField):
    """A user_id: text, trimmed and lower-cased."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


@extend_schema_field({"type": "number", "minimum": 0.00027778, "example": 1.5})
class HoursField(serializers.Field[float, object, float, Any]):
    """Hours: a JSON number, fractions allowed, a second at least and the configured maximum at most. One query."""

    default_error_messages = {
        "invalid": "A number of hours is needed.",
        "short": "At least one second is needed.",
        "long": "At most {longest:.10g} hours are allowed.",
    }

    def to_internal_value(self, data: object) -> float:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        longest = Omni2Config.flow_monitoring_now().max_ttl_hours
        # written so that NaN fails too, and before timedelta() meets a number it cannot hold
        if not data <= longest:
            self.fail("long", longest=longest)
        if data <= 0 or timedelta(hours=data) < SHORTEST:
            self.fail("short")
        return data

    def to_representation(self, value: float) -> float:
        return value


class EnableSerializer(serializers.Serializer[Any]):
    """Whom to monitor, how long and why."""

    user_id = UserField(help_text="e-mail address of a known user, in any case")
    ttl_hours = HoursField(required=False, help_text="hours, fractions allowed; default and maximum are settings")
    reason = TextField(required=False, allow_blank=True, max_length=500)

    def hours(self) -> float:
        """What was asked for, or the configured default."""
        given: float | None = self.validated_data.get("ttl_hours")
        return Omni2Config.flow_monitoring_now().default_ttl_hours if given is None else given


class EnabledSerializer(serializers.Serializer[Any]):
    """The period that is now in force."""

    user_id = serializers.CharField()
    ttl_hours = serializers.FloatField()
    enabled_at = serializers.DateTimeField(help_text="when the period began; enabling again goes on with it")
    enabled_by = serializers.CharField(help_text="who began it")
    expires_at = serializers.DateTimeField()
    reason = serializers.CharField()


class DisableSerializer(serializers.Serializer[Any]):
    """Whose monitoring to end."""

    user_id = UserField(help_text="e-mail address of a known user, in any case")


class DisabledSerializer(serializers.Serializer[Any]):
    """Whether there was anything to end."""

    user_id = serializers.CharField()
    was_monitored = serializers.BooleanField()


class MonitoredSerializer(serializers.Serializer[Any]):
    """One user who is monitored now."""

    user_id = serializers.CharField()
    enabled_by = serializers.CharField()
    enabled_at = serializers.DateTimeField()
    expires_at = serializers.DateTimeField()
    remaining_seconds = serializers.FloatField()
    reason = serializers.CharField()


class MonitoredUsersSerializer(serializers.Serializer[Any]):
    """All users who are monitored now, by user_id."""

    count = serializers.IntegerField()
    results = MonitoredSerializer(many=True)
