"""Stopping a turn, blocking a user: the API of both. What they do is in chat.stops and chat.models."""

from typing import Any, cast

from django.db import IntegrityError, transaction
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import APIException, NotFound, PermissionDenied, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from chat import stops
from chat.models import UserBlock
from flows.history import as_session_id, wire_time
from monitoring.serializers import TextField, UserField
from omni2.accounts.access import record_access
from omni2.accounts.models import User
from omni2.schema import ERROR, FIELD_ERRORS

ERRORS = {400: FIELD_ERRORS, 401: ERROR, 403: ERROR, 404: ERROR, 503: ERROR}
BLOCK, UNBLOCK, SEE_BLOCKS = "chat.add_userblock", "chat.delete_userblock", "chat.view_userblock"
TURN_ID = OpenApiParameter("turn_id", OpenApiTypes.UUID, OpenApiParameter.PATH)
USER_ID = OpenApiParameter("user_id", str, OpenApiParameter.PATH, description="e-mail address")


class Conflict(APIException):
    """409: what is asked for does not fit how things are."""

    status_code = 409

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail, code)


class StopSerializer(serializers.Serializer[Any]):
    """Why it is stopped, and what its user is told."""

    reason = TextField(required=False, allow_blank=True, max_length=500, help_text="for admins")
    message = TextField(
        required=False, allow_blank=True, max_length=500, help_text="shown to the user; needs the right chat.stop"
    )


class StoppingSerializer(serializers.Serializer[Any]):
    """The turn ends within a second."""

    turn_id = serializers.UUIDField()
    status = serializers.ChoiceField(["stopping"])


class StopTurn(APIView):
    """End a running turn."""

    permission_classes = (IsAuthenticated,)

    @extend_schema(
        parameters=[TURN_ID], request=StopSerializer, responses={202: StoppingSerializer, **ERRORS, 409: ERROR}
    )
    def post(self, request: Request, turn_id: str) -> Response:
        """Stop a turn that is being answered: one's own, or anybody's with the right chat.stop. The model and the tools
        are cancelled within a second, whichever process serves it. 409 `turn_ended` when it is over."""
        body = StopSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        by, asked = cast(User, request.user), body.validated_data
        if asked.get("message") and not by.has_perm(stops.STOP):
            raise ValidationError({"message": ["This needs the right chat.stop."]})
        # one spelling of UUIDs, as for sessions
        wanted = as_session_id(turn_id)
        if wanted is None:
            raise ValidationError({"turn_id": ["This is not a turn id (a UUID)."]})
        found = stops.ask_to_stop(wanted, by=by, reason=asked.get("reason", ""), message=asked.get("message", ""))
        if found is None:
            raise NotFound("There is no such turn.")
        if not found.runs:
            raise Conflict("turn_ended", "This turn has ended.")
        return Response({"turn_id": wanted, "status": "stopping"}, status=202)


class BlockSerializer(serializers.Serializer[Any]):
    """What the user is told, and why he is blocked."""

    message = TextField(required=False, allow_blank=True, max_length=2000, help_text="shown to the user")
    reason = TextField(required=False, allow_blank=True, max_length=2000, help_text="for admins")


class BlockedSerializer(serializers.Serializer[Any]):
    """The block that is now in force."""

    user_id = serializers.CharField()
    message = serializers.CharField()
    reason = serializers.CharField()
    blocked_by = serializers.CharField()
    blocked_by_name = serializers.CharField(allow_blank=True)
    blocked_at = serializers.DateTimeField()


class StandingSerializer(serializers.Serializer[Any]):
    """Whether a user is blocked, and by whom and why: null when he is not."""

    user_id = serializers.CharField()
    blocked = serializers.BooleanField()
    message = serializers.CharField(allow_null=True)
    reason = serializers.CharField(allow_null=True)
    blocked_by = serializers.CharField(allow_null=True)
    blocked_by_name = serializers.CharField(allow_null=True)
    blocked_at = serializers.DateTimeField(allow_null=True)


class UnblockedSerializer(serializers.Serializer[Any]):
    """Whether there was anything to end."""

    user_id = serializers.CharField()
    was_blocked = serializers.BooleanField()


class Block(APIView):
    """Block a user from the chat, and let him in again."""

    permission_classes = (IsAuthenticated,)

    @extend_schema(parameters=[USER_ID], responses={200: StandingSerializer, **ERRORS})
    def get(self, request: Request, user_id: str) -> Response:
        """Whether a user is blocked from the chat, since when, by whom and why. Needs chat.view_userblock or
        chat.add_userblock."""
        _allowed(request, SEE_BLOCKS, BLOCK)
        user = _user(user_id)
        block = UserBlock.objects.select_related("blocked_by").filter(user=user).first()
        facts = dict.fromkeys(("message", "reason", "blocked_by", "blocked_by_name", "blocked_at")) | _facts(block)
        return Response({"user_id": user.user_id, "blocked": block is not None, **facts})

    @extend_schema(
        parameters=[USER_ID], request=BlockSerializer, responses={201: BlockedSerializer, **ERRORS, 409: ERROR}
    )
    def post(self, request: Request, user_id: str) -> Response:
        """Block a user at once: his running turns are stopped, new ones are refused. Needs chat.add_userblock; 409
        `already_blocked` when he is."""
        by = _allowed(request, BLOCK)
        body = BlockSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        user = _user(user_id)
        asked = {"message": body.validated_data.get("message", ""), "reason": body.validated_data.get("reason", "")}
        try:
            with transaction.atomic():
                block = UserBlock.objects.create(user=user, blocked_by=by, **asked)
                record_access(actor=by, action="user_blocked", subject_user_id=user.user_id, detail=asked)
        except IntegrityError:
            raise Conflict("already_blocked", "This user is blocked already.") from None
        block.refresh_from_db(fields=["blocked_at"])
        return Response({"user_id": user.user_id, **_facts(block)}, status=201)

    @extend_schema(parameters=[USER_ID], responses={200: UnblockedSerializer, **ERRORS})
    def delete(self, request: Request, user_id: str) -> Response:
        """End a user's block. Needs chat.delete_userblock; saying it again changes nothing."""
        by = _allowed(request, UNBLOCK)
        user = _user(user_id)
        with transaction.atomic():
            ended, _ = UserBlock.objects.filter(user=user).delete()
            if ended:
                record_access(actor=by, action="user_unblocked", subject_user_id=user.user_id)
        return Response({"user_id": user.user_id, "was_blocked": bool(ended)})


def _facts(block: UserBlock | None) -> dict[str, Any]:
    if block is None:
        return {}
    by = block.blocked_by
    return {
        "message": block.message,
        "reason": block.reason,
        "blocked_by": by and by.user_id,
        "blocked_by_name": by and by.name,
        "blocked_at": wire_time(block.blocked_at),
    }


def _allowed(request: Request, *rights: str) -> User:
    """Who asks, if he has one of these rights."""
    if not any(map(request.user.has_perm, rights)):
        raise PermissionDenied(f"This needs the right {' or '.join(rights)}.")
    return cast(User, request.user)


def _user(user_id: str) -> User:
    try:
        wanted = UserField().run_validation(user_id)
    except ValidationError as problem:
        raise ValidationError({"user_id": problem.detail}) from None
    found = User.objects.filter(email=wanted).first()
    if found is None:
        raise NotFound("There is no such user.")
    return found
