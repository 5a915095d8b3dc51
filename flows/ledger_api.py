"""`GET /api/v1/ledger`: the figures of the ledger page, for programs that watch over Omni2."""

from datetime import UTC, datetime, timedelta
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from flows import ledger_words as words
from flows.judging import judge
from flows.ledger import read
from flows.reader import OPERATE
from flows.serializers import TimeField
from omni2.schema import ERROR, FIELD_ERRORS

LONGEST = timedelta(days=31)
DEFAULT = timedelta(hours=24)


class LedgerQuery(serializers.Serializer[Any]):
    """Which hours: those (UTC) that hold this time. Without both, the last 24 hours."""

    since = TimeField(required=False, help_text="the first moment; without it 24 hours before the last")
    until = TimeField(required=False, help_text="the last moment; without it now")

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """The time asked for, with both its ends."""
        until = given.get("until") or datetime.now(UTC)
        try:
            since = given.get("since") or until - DEFAULT
            longest = until - since > LONGEST
            until + timedelta(hours=1)
        except OverflowError:
            raise serializers.ValidationError({"until": ["A time of these days is needed."]}) from None
        if since >= until:
            name = "until" if "until" in given else "since"
            raise serializers.ValidationError({name: ["The end must be after the beginning."]})
        if longest:
            raise serializers.ValidationError({"since": [f"At most {LONGEST.days} days at once."]})
        return {"since": since, "until": until}


class LedgerTurnsSerializer(serializers.Serializer[Any]):
    """started = stored + running + given_up + missing."""

    started = serializers.IntegerField(help_text="as their processes counted them")
    stored = serializers.IntegerField(help_text="with their end in PostgreSQL")
    running = serializers.IntegerField(help_text="without an end yet, or on their way")
    given_up = serializers.IntegerField(help_text="of which nothing can ever be stored")
    missing = serializers.IntegerField(help_text="0 when it adds up; below it: stored, and begun by nobody")
    admitted = serializers.IntegerField(help_text="let in, as the usage has it; refused turns are not among them")
    abandoned = serializers.IntegerField(help_text="ended by the sweep, since their process had died")
    not_reported_yet = serializers.IntegerField(help_text="known from PostgreSQL alone: judged with the next report")


class LedgerCheckpointsSerializer(serializers.Serializer[Any]):
    """made = stored + on_the_way + set_aside + given_up + missing. What the sweep wrote is in none of them."""

    made = serializers.IntegerField(help_text="as their processes counted them")
    stored = serializers.IntegerField(help_text="rows of interaction_flows")
    on_the_way = serializers.IntegerField(help_text="in a process's memory or in Redis")
    set_aside = serializers.IntegerField(help_text="dead letters")
    given_up = serializers.IntegerField()
    given_up_because = serializers.DictField(child=serializers.IntegerField(), help_text="how many for which reason")
    missing = serializers.IntegerField(help_text="0 when it adds up; below it: stored, and made by nobody")
    late = serializers.IntegerField(help_text="recorded after the turn's end: not made, not kept")
    not_reported_yet = serializers.IntegerField()


class LedgerSumsSerializer(serializers.Serializer[Any]):
    """Both equations."""

    turns = LedgerTurnsSerializer()
    checkpoints = LedgerCheckpointsSerializer()


class LedgerProcessSerializer(LedgerSumsSerializer):
    """One process's share in an hour."""

    process_id = serializers.UUIDField(allow_null=True)
    process = serializers.CharField(allow_null=True, help_text="host and process number")


class LedgerHourSerializer(LedgerSumsSerializer):
    """One hour in which turns began."""

    hour = serializers.DateTimeField()
    processes = LedgerProcessSerializer(many=True)


class LedgerProblemSerializer(serializers.Serializer[Any]):
    """Something that does not add up."""

    kind = serializers.ChoiceField(choices=words.KINDS)
    hour = serializers.DateTimeField()
    process = serializers.CharField(allow_null=True)
    process_id = serializers.UUIDField(allow_null=True)
    count = serializers.IntegerField()
    turn_ids = serializers.ListField(child=serializers.UUIDField(), help_text="at most ten of them")
    detail = serializers.CharField(help_text="for people")


class LedgerRoadSerializer(serializers.Serializer[Any]):
    """The way from the processes to PostgreSQL, now."""

    redis = serializers.ChoiceField(choices=("answers", "away", "off"))
    waiting = serializers.IntegerField(help_text="checkpoints in the hand-off log")
    lag_s = serializers.FloatField(help_text="how old the oldest of them is")
    persister_silent_s = serializers.FloatField(allow_null=True)
    dead_letters = serializers.IntegerField()


class LedgerSerializer(serializers.Serializer[Any]):
    """Whether all that was started is stored, and the numbers behind it."""

    since = serializers.DateTimeField()
    until = serializers.DateTimeField()
    adds_up = serializers.BooleanField()
    certain = serializers.BooleanField(help_text="false: Redis is away or too full to look through")
    problems = LedgerProblemSerializer(many=True)
    notes = serializers.ListField(child=serializers.CharField(), help_text="for people: what it cannot say")
    total = LedgerSumsSerializer()
    hours = LedgerHourSerializer(many=True, help_text="the newest first; those in which nothing began are left out")
    road = LedgerRoadSerializer()


class MayOperate(BasePermission):
    """The right flows.operate."""

    message = "This needs the right flows.operate."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return request.user.has_perm(OPERATE)


class LedgerOfHours(APIView):
    """The ledger of some hours."""

    permission_classes = [IsAuthenticated, MayOperate]

    @extend_schema(
        operation_id="ledger",
        parameters=[LedgerQuery],
        responses={200: LedgerSerializer, 400: FIELD_ERRORS, 401: ERROR, 403: ERROR, 503: ERROR},
    )
    def get(self, request: Request) -> Response:
        """Whether all that was started is stored, by the hour, and what does not add up. Needs flows.operate."""
        query = LedgerQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        return Response(words.as_json(judge(read(**query.validated_data))))
