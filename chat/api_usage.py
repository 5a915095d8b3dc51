"""What one may use and has used: one's own for everybody, others' for whoever has chat.view_dailyusage."""

from typing import Any, cast

from django.conf import settings
from django.core import signing
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound, PermissionDenied, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from chat.allowances import VIEW, Person, allowances_of, everybody, note_look
from flows.serializers import UserIdField
from omni2.accounts.models import User
from omni2.schema import ERROR, FIELD_ERRORS

ERRORS = {400: FIELD_ERRORS, 401: ERROR, 403: ERROR, 503: ERROR}
PAGE = 100


class LimitSerializer(serializers.Serializer[Any]):
    """One limit and how much of it is used."""

    limit_name = serializers.CharField()
    window = serializers.ChoiceField(choices=["minute", "day", "month", "now"])
    used = serializers.FloatField()
    limit = serializers.FloatField(allow_null=True, help_text="null: no limit")
    remaining = serializers.FloatField(allow_null=True)
    resets_at = serializers.DateTimeField(
        allow_null=True, help_text="when something of it is free again; null: as soon as a turn ends"
    )


class OwnLimitSerializer(LimitSerializer):
    set_by = serializers.CharField(help_text="`own`, `group` and its name, or `default`")


class UsageSerializer(serializers.Serializer[Any]):
    """All limits of one user."""

    user_id = serializers.CharField()
    timezone = serializers.CharField(help_text="in which days and months begin")
    limits = OwnLimitSerializer(many=True)


class UsageQuery(serializers.Serializer[Any]):
    """Whose."""

    user_id = UserIdField(required=False, help_text="somebody else's, with the right chat.view_dailyusage")


class UserUsageSerializer(serializers.Serializer[Any]):
    user_id = serializers.CharField()
    name = serializers.CharField(allow_blank=True)
    state = serializers.ChoiceField(
        choices=["ok", "near", "over"], help_text="near: four fifths of a limit are used; over: all of it"
    )
    limits = LimitSerializer(many=True)


class UsersUsageSerializer(serializers.Serializer[Any]):
    """A page of users, by user_id."""

    window = serializers.CharField()
    users = UserUsageSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="the cursor of the next page")


class UsersUsageQuery(serializers.Serializer[Any]):
    """Which users, and over which time."""

    window = serializers.ChoiceField(choices=["day", "month"], default="day")
    near = serializers.BooleanField(default=False, help_text="only who is near a limit, or over it")
    q = serializers.CharField(
        required=False, default="", allow_blank=True, max_length=100, help_text="a part of the name or the address"
    )
    cursor = serializers.CharField(required=False, default="", allow_blank=True, max_length=1000)


class Usage(APIView):
    """One user's limits and usage."""

    @extend_schema(parameters=[UsageQuery], responses={200: UsageSerializer, **ERRORS, 404: ERROR})
    def get(self, request: Request) -> Response:
        """What one may use in a minute, a day, a month and at once, and what is used of it. One's own, or anybody's
        with the right chat.view_dailyusage."""
        query = UsageQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        user = _whose(cast(User, request.user), query.validated_data.get("user_id"))
        note_look(cast(User, request.user), user)
        limits = [{**each.as_wire(), "set_by": each.source} for each in allowances_of(user)]
        return Response({"user_id": user.user_id, "timezone": settings.USAGE_TZ, "limits": limits})


def _whose(reader: User, user_id: str | None) -> User:
    if user_id is None or user_id == reader.user_id:
        return reader
    if not reader.has_perm(VIEW):
        raise PermissionDenied("You may see only your own usage.")
    found = User.objects.filter(email=user_id).first()
    if found is None:
        raise NotFound("There is no such user.")
    return found


class UsersUsage(APIView):
    """Everybody's usage."""

    @extend_schema(parameters=[UsersUsageQuery], responses={200: UsersUsageSerializer, **ERRORS})
    def get(self, request: Request) -> Response:
        """What each user has used of a day or a month, by user_id, a page at a time."""
        if not request.user.has_perm(VIEW):
            raise PermissionDenied("You may see only your own usage.")
        query = UsersUsageQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        asked = query.validated_data
        people, more = everybody(
            asked["window"], after=_place(asked["cursor"]), words=asked["q"], only_near=asked["near"], most=PAGE
        )
        note_look(cast(User, request.user), **asked)
        following = place_after(people[-1]) if more else None
        users = [{**_person(each), "limits": [limit.as_wire() for limit in each.allowances]} for each in people]
        return Response({"window": asked["window"], "users": users, "next": following})


def _person(person: Person) -> dict[str, Any]:
    return {"user_id": person.user_id, "name": person.name, "state": person.state}


_signer = signing.Signer(salt="chat.usage")


def place_after(person: Person) -> str:
    """The cursor of the page that begins after this person."""
    return _signer.sign_object(person.user_id)


def _place(cursor: str) -> str:
    try:
        return str(_signer.unsign_object(cursor)) if cursor else ""
    except (signing.BadSignature, ValueError):
        raise ValidationError({"cursor": ["Not a cursor that was given out here."]}) from None
