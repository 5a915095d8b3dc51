"""What may be asked of the history API and what it answers: read by the views and by OpenAPI.

Every problem names its field. Nothing a client can put into a URL passes as something else:
no spaces, signs or foreign digits in a limit, no guessing at times.
"""

import re
from datetime import UTC, datetime
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from flows.history import DEFAULT_LIMIT, DEFAULT_SORT, MAX_LIMIT, RUNNING, SORT_NAMES, as_session_id
from flows.models import STAGES, Outcome

_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
_DURATION = re.compile(r"\s*([0-9]{1,9}(?:[.,][0-9]{1,6})?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)
_UNITS_MS = {"": 1, "ms": 1, "s": 1000, "sec": 1000, "min": 60_000, "m": 60_000, "h": 3_600_000}


@extend_schema_field({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT})
class LimitField(serializers.Field[int, str, int, Any]):
    """How many rows a page may have."""

    default_error_messages = {"invalid": f"A whole number from 1 to {MAX_LIMIT} is needed."}

    def to_internal_value(self, data: str) -> int:
        if not _WHOLE_NUMBER.fullmatch(str(data)) or not 1 <= int(data) <= MAX_LIMIT:
            self.fail("invalid")
        return int(data)

    def to_representation(self, value: int) -> int:
        return value


@extend_schema_field(OpenApiTypes.DATETIME)
class TimeField(serializers.Field[datetime, str, str, Any]):
    """ISO 8601, a date or a time; without a zone it is UTC."""

    default_error_messages = {
        "invalid": "A time in ISO 8601 is needed, such as 2026-11-22T06:00:00Z (a + in a URL is written %2B)."
    }

    def to_internal_value(self, data: str) -> datetime:
        try:
            at = datetime.fromisoformat(data)
            return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail("invalid")

    def to_representation(self, value: datetime) -> str:
        return value.isoformat()


@extend_schema_field({"type": "number", "minimum": 0})
class DurationField(serializers.Field[float, str, float, Any]):
    """Milliseconds; people may also write `1.5 s`, `800 ms`, `2 min`."""

    default_error_messages = {"invalid": "A duration is needed, such as 1.5 s, 800 ms or 2 min."}

    def to_internal_value(self, data: str) -> float:
        said = _DURATION.fullmatch(str(data))
        unit = _UNITS_MS.get(said[2].lower()) if said else None
        if said is None or unit is None:
            self.fail("invalid")
        return float(said[1].replace(",", ".")) * unit

    def to_representation(self, value: float) -> float:
        return value


@extend_schema_field(OpenApiTypes.UUID)
class SessionIdField(serializers.CharField):
    """A session id in its one spelling, lower-case with hyphens."""

    default_error_messages = {"malformed": "This is not a session id (a UUID)."}

    def to_internal_value(self, data: Any) -> str:
        session_id = as_session_id(super().to_internal_value(data))
        if session_id is None:
            self.fail("malformed")
        return session_id


class UserIdField(serializers.CharField):
    """A user_id: the e-mail address, lower-cased on the way in."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(max_length=255, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        return super().to_internal_value(data).strip().lower()


def _text(max_length: int, **kwargs: Any) -> serializers.CharField:
    return serializers.CharField(required=False, max_length=max_length, trim_whitespace=False, **kwargs)


# parameters that are no filters
PAGING = ("limit", "cursor", "sort", "format")


class _Query(serializers.Serializer[Any]):
    """Query parameters. An empty one counts as not given, except `limit`, which must be a number."""

    since = TimeField(required=False, help_text="from then on, ISO 8601, UTC unless it says otherwise")
    until = TimeField(required=False, help_text="before then, ISO 8601, UTC unless it says otherwise")

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        given = {key: data.get(key) for key in data if key == "limit" or data.get(key) != ""}
        found: dict[str, Any] = super().to_internal_value(given)
        return found

    def filters(self) -> dict[str, Any]:
        """The filters alone, by name."""
        return {key: value for key, value in self.validated_data.items() if key not in PAGING}

    def paging(self) -> dict[str, Any]:
        """`limit`, `cursor`, `sort`, `format`: those of them that there are."""
        return {key: value for key, value in self.validated_data.items() if key in PAGING}


class _PageQuery(_Query):
    """A page of a list."""

    limit = LimitField(required=False, default=DEFAULT_LIMIT)
    cursor = _text(200, help_text="`next` of the page before; good for the same filters and order only")


class FlowQuery(_PageQuery):
    """Query parameters of `GET /api/v1/flows/user/{user_id}`."""

    checkpoint = _text(50, help_text="the name of a checkpoint, such as tool_call")
    outcome = serializers.ChoiceField(
        required=False, choices=Outcome.choices, help_text="of the turn a checkpoint belongs to"
    )


class TurnFilterQuery(_Query):
    """Which turns: query parameters of whatever lists them."""

    user_id = UserIdField(required=False)
    session_id = SessionIdField(required=False)
    outcome = serializers.ChoiceField(
        required=False, choices=[*Outcome.choices, (RUNNING, "Running")], help_text="`running`: not ended yet"
    )
    model = _text(200)
    tool = _text(200, help_text="turns with a tool_call of this tool")
    checkpoint = _text(50, help_text="turns with a checkpoint of this name")
    status = _text(50, help_text="with this status, of `checkpoint` or, without that, of any checkpoint")
    error = _text(100, help_text="the code that says why a turn was refused or failed")
    stage = serializers.ChoiceField(
        required=False, choices=list(STAGES.values()), help_text="how far it came: it ended there, or stands there"
    )
    reached = serializers.ChoiceField(
        required=False, choices=list(STAGES.values()), help_text="it came at least so far"
    )
    slower_ms = DurationField(required=False, help_text="ended turns that took longer than so many milliseconds")
    q = _text(200, help_text="text to find in the question, upper and lower case alike")
    sort = serializers.ChoiceField(
        required=False,
        choices=SORT_NAMES,
        default=DEFAULT_SORT,
        help_text="a minus begins with the largest; by anything but `started`, only ended turns that have the value",
    )


class TurnQuery(TurnFilterQuery, _PageQuery):
    """Query parameters of `GET /api/v1/turns`."""


class ExportQuery(TurnFilterQuery):
    """Query parameters of `GET /api/v1/turns/export`."""

    format = serializers.ChoiceField(required=False, choices=("csv", "json"), default="csv")


class SessionQuery(serializers.Serializer[Any]):
    """Query parameters of `GET /api/v1/flows/session/{session_id}`."""

    user_id = UserIdField(required=False, allow_blank=True, help_text="whose part, when two users' turns carry the id")


class CheckpointSerializer(serializers.Serializer[Any]):
    """One checkpoint: a fact about a turn, written once."""

    flow_id = serializers.UUIDField()
    user_id = serializers.CharField(max_length=255)
    session_id = serializers.CharField(max_length=255)
    turn_id = serializers.UUIDField(allow_null=True)
    checkpoint = serializers.CharField(max_length=50)
    parent_id = serializers.UUIDField(allow_null=True)
    metadata = serializers.DictField(child=serializers.JSONField())
    created_at = serializers.DateTimeField()


@extend_schema_field({"type": "array", "items": {"$ref": "#/components/schemas/Tree"}})
class _ChildrenField(serializers.ListField):
    """More of the same, to any depth (which a serializer cannot say of itself)."""


class TreeSerializer(CheckpointSerializer):
    """A checkpoint with those that it led to."""

    children = _ChildrenField()


class TurnSerializer(serializers.Serializer[Any]):
    """One turn, summed up."""

    turn_id = serializers.UUIDField()
    session_id = serializers.CharField()
    user_id = serializers.CharField()
    started_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    duration_ms = serializers.FloatField(allow_null=True)
    outcome = serializers.ChoiceField(choices=Outcome.choices, allow_null=True)
    model = serializers.CharField(allow_null=True)
    checkpoints = serializers.IntegerField()
    tool_calls = serializers.IntegerField()
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    cost_usd = serializers.FloatField(allow_null=True)
    ttft_ms = serializers.FloatField(allow_null=True)
    error = serializers.CharField(allow_null=True)


class ExportedTurnSerializer(TurnSerializer):
    """One turn, summed up, with what is kept of its question."""

    question = serializers.CharField()


class ExportSerializer(serializers.Serializer[Any]):
    """An export, whole only if it ends with `count`."""

    turns = ExportedTurnSerializer(many=True)
    count = serializers.IntegerField()


class UserFlowsSerializer(serializers.Serializer[Any]):
    """A page of a user's checkpoints, newest first."""

    user_id = serializers.CharField()
    flows = CheckpointSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="the cursor of the next page")


class SessionFlowsSerializer(serializers.Serializer[Any]):
    """A session: its turns, its checkpoints in order, and the same as a tree."""

    session_id = serializers.UUIDField()
    user_id = serializers.CharField()
    turns = TurnSerializer(many=True)
    flows = CheckpointSerializer(many=True)
    tree = TreeSerializer(many=True)


class TurnsSerializer(serializers.Serializer[Any]):
    """A page of turns."""

    turns = TurnSerializer(many=True)
    next = serializers.CharField(
        allow_null=True, help_text="the cursor of the next page, which there may be after a page that is not full"
    )
