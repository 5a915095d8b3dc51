"""The monitoring API: who is monitored now, begin it, end it. For the right monitoring.manage.

The two history routes of the original's addresses are the views of `flows.api` themselves.
"""

from datetime import timedelta
from typing import Any, cast

from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from monitoring.models import MANAGE, MonitoredUser, UnknownUser, iso
from monitoring.serializers import (
    DisabledSerializer,
    DisableSerializer,
    EnabledSerializer,
    EnableSerializer,
    MonitoredUsersSerializer,
)
from omni2.accounts.models import User
from omni2.schema import ERROR, FIELD_ERRORS

ERRORS = {400: FIELD_ERRORS, 401: ERROR, 403: ERROR, 503: ERROR}
UNKNOWN = {"user_id": ["There is no user with this e-mail address."]}


class MayManage(BasePermission):
    """The right monitoring.manage."""

    message = "This needs the right monitoring.manage."

    def has_permission(self, request: Request, view: APIView) -> bool:
        return request.user.has_perm(MANAGE)


class MonitoringView(APIView):
    """What the three calls share: whom they let in."""

    permission_classes = (IsAuthenticated, MayManage)


class Enable(MonitoringView):
    """Begin monitoring a user, or go on with it."""

    @extend_schema(request=EnableSerializer, responses={200: EnabledSerializer, **ERRORS})
    def post(self, request: Request) -> Response:
        """Monitor a user for some hours. Who is monitored already goes on in his period: its expiry is
        replaced (it may also come nearer), and its reason if one is given."""
        body = EnableSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        asked, hours = body.validated_data, body.hours()
        try:
            period = MonitoredUser.enable(
                asked["user_id"],
                by=cast(User, request.user),
                ttl=timedelta(hours=hours),
                reason=asked.get("reason"),
            )
        except UnknownUser:
            raise ValidationError(UNKNOWN) from None
        return Response(
            {
                "user_id": period.user_id,
                "ttl_hours": hours,
                "enabled_at": iso(period.enabled_at),
                "enabled_by": period.enabled_by,
                "expires_at": iso(period.expires_at),
                "reason": period.reason,
            }
        )


class Disable(MonitoringView):
    """End monitoring a user."""

    @extend_schema(request=DisableSerializer, responses={200: DisabledSerializer, **ERRORS})
    def post(self, request: Request) -> Response:
        """End a user's monitoring now. Saying it again changes nothing."""
        body = DisableSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        user_id = body.validated_data["user_id"]
        was_monitored = MonitoredUser.stop(user_id, by=cast(User, request.user))
        if not was_monitored and not User.objects.filter(email=user_id).exists():
            raise ValidationError(UNKNOWN)
        return Response({"user_id": user_id, "was_monitored": was_monitored})


class MonitoredUsers(MonitoringView):
    """Who is monitored now."""

    @extend_schema(responses={200: MonitoredUsersSerializer, **ERRORS})
    def get(self, request: Request) -> Response:
        """All users who are monitored now, by user_id. One query."""
        results = [_monitored(period) for period in MonitoredUser.objects.active().with_state().order_by("user_id")]
        return Response({"count": len(results), "results": results})


def _monitored(period: Any) -> dict[str, Any]:
    return {
        "user_id": period.user_id,
        "enabled_by": period.enabled_by,
        "enabled_at": iso(period.enabled_at),
        "expires_at": iso(period.expires_at),
        "remaining_seconds": period.remaining.total_seconds(),
        "reason": period.reason,
    }
