"""The API of tool calls that wait for their user's yes: his own, and nobody else's."""

from typing import Any, cast

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from chat import approvals
from flows.history import as_session_id
from omni2.accounts.models import User
from omni2.schema import ERROR, FIELD_ERRORS

ERRORS = {401: ERROR, 403: ERROR, 503: ERROR}


class ApprovalSerializer(serializers.Serializer[Any]):
    """`{"approve": true}` lets the tool be called, false does not."""

    approve = serializers.BooleanField()

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        # DRF takes "yes" and 1 as well; what lets a program act for somebody should be said plainly
        if not isinstance(self.initial_data.get("approve"), bool):
            raise serializers.ValidationError({"approve": ["Must be true or false."]})
        return attrs


class ApprovedSerializer(serializers.Serializer[Any]):
    call_id = serializers.CharField()
    approved = serializers.BooleanField()


class OpenApprovalSerializer(serializers.Serializer[Any]):
    """A tool call that waits. `arguments` is the JSON text the model wrote."""

    turn_id = serializers.UUIDField()
    session_id = serializers.UUIDField()
    call_id = serializers.CharField()
    server = serializers.CharField()
    tool = serializers.CharField()
    arguments = serializers.CharField()
    expires_in_s = serializers.IntegerField()


class OpenApprovalsSerializer(serializers.Serializer[Any]):
    approvals = OpenApprovalSerializer(many=True)


class OpenApprovals(APIView):
    """What waits for the caller's yes."""

    permission_classes = (IsAuthenticated,)

    @extend_schema(responses={200: OpenApprovalsSerializer, **ERRORS})
    def get(self, request: Request) -> Response:
        """The caller's own tool calls that wait for his yes, the oldest first."""
        return Response({"approvals": approvals.open_questions(cast(User, request.user).pk)})


class Approve(APIView):
    """The user's answer to one tool call."""

    permission_classes = (IsAuthenticated,)

    @extend_schema(
        parameters=[
            OpenApiParameter("turn_id", str, OpenApiParameter.PATH, description="a UUID"),
            OpenApiParameter("call_id", str, OpenApiParameter.PATH, description="as the event `approval` said it"),
        ],
        request=ApprovalSerializer,
        responses={200: ApprovedSerializer, 400: FIELD_ERRORS, **ERRORS, 404: ERROR, 409: ERROR},
    )
    def post(self, request: Request, turn_id: str, call_id: str) -> Response:
        """Say yes or no to a tool call of one's own turn. 404: there is none that waits; 409 `already_decided`:
        it was answered, or nobody waits for the answer any more."""
        body = ApprovalSerializer(data=request.data)
        body.is_valid(raise_exception=True)
        approve = body.validated_data["approve"]
        answered = "unknown"
        if (wanted := as_session_id(turn_id)) is not None and "\x00" not in call_id:
            answered = approvals.decide(cast(User, request.user).pk, wanted, call_id, approve=approve)
        if answered == "unknown":
            return Response({"detail": "No such tool call waits for you.", "code": "not_found"}, status=404)
        if answered == "already_decided":
            return Response({"detail": "This was decided already.", "code": "already_decided"}, status=409)
        return Response({"call_id": call_id, "approved": approve})
