"""A user's own conversations over HTTP: list, rename, delete, take along."""

from typing import Any, cast

from django.http.response import HttpResponseBase
from django.urls import URLPattern, URLResolver, path
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from chat import conversation_export, conversations
from chat.conversation_export import described
from chat.models import TITLE_CHARACTERS
from flows.api import BadCursorIs400
from flows.serializers import LimitField, SessionIdField
from omni2.accounts.models import User
from omni2.schema import ERROR, FIELD_ERRORS

ERRORS = {400: FIELD_ERRORS, 401: ERROR, 503: ERROR}
SESSION = OpenApiParameter("session_id", str, OpenApiParameter.PATH, description="a UUID")


class ConversationQuery(serializers.Serializer[Any]):
    """Query parameters of `GET /api/v1/conversations`."""

    q = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="text to find in the title, upper and lower case alike",
    )
    limit = LimitField(required=False, default=50)
    cursor = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="`next` of the page before; good for the same `q` only",
    )


class TitleField(serializers.CharField):
    """On one line, without spaces around it."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(" ".join(data.split()))


class NewTitleSerializer(serializers.Serializer[Any]):
    """`{"title"}`"""

    title = TitleField(max_length=TITLE_CHARACTERS)


class ConversationSerializer(serializers.Serializer[Any]):
    """One conversation."""

    session_id = serializers.UUIDField()
    title = serializers.CharField(help_text="the beginning of its first message, or what its owner called it")
    created_at = serializers.DateTimeField()
    updated_at = serializers.DateTimeField(help_text="when something was last asked in it")


class ConversationsSerializer(serializers.Serializer[Any]):
    """A page of conversations, the one that was last continued first."""

    conversations = ConversationSerializer(many=True)
    next = serializers.CharField(allow_null=True, help_text="cursor of the next page; null: there is none")


class ExportFormatQuery(serializers.Serializer[Any]):
    """Query parameters of an export."""

    format = serializers.ChoiceField(required=False, choices=("json", "markdown"), default="json")


class MessageSerializer(serializers.Serializer[Any]):
    """What was said once."""

    turn_id = serializers.UUIDField()
    role = serializers.ChoiceField(choices=("user", "assistant"))
    content = serializers.CharField()
    created_at = serializers.DateTimeField()
    model = serializers.CharField(required=False, allow_null=True, help_text="of an answer")
    outcome = serializers.CharField(required=False, allow_null=True, help_text="of an answer: how its turn ended")


class ConversationExportSerializer(ConversationSerializer):
    """A conversation with all that was said in it."""

    messages = MessageSerializer(many=True)
    count = serializers.IntegerField(help_text="of messages")


class Conversations(BadCursorIs400):
    """One's own conversations, a page at a time."""

    @extend_schema(
        operation_id="conversations_list",
        parameters=[ConversationQuery],
        responses={200: ConversationsSerializer, **ERRORS},
    )
    def get(self, request: Request) -> Response:
        """One's own conversations, the one that was last continued first."""
        query = ConversationQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        page = conversations.page_of(_pk(request), **query.validated_data)
        return Response({"conversations": [described(each) for each in page.conversations], "next": page.next})


class OneConversation(APIView):
    """One of one's own conversations."""

    @extend_schema(
        operation_id="conversations_rename",
        parameters=[SESSION],
        request=NewTitleSerializer,
        responses={200: ConversationSerializer, **ERRORS, 404: ERROR},
    )
    def patch(self, request: Request, session_id: str) -> Response:
        """Give it another title."""
        asked = NewTitleSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        found = conversations.rename(_pk(request), _session(session_id), asked.validated_data["title"])
        if found is None:
            raise _no_such_conversation()
        return Response(described(found))

    @extend_schema(
        operation_id="conversations_delete",
        parameters=[SESSION],
        request=None,
        responses={204: None, **ERRORS, 404: ERROR},
    )
    def delete(self, request: Request, session_id: str) -> Response:
        """Delete it with all that was said in it. The checkpoints of its turns stay: they are the admins' record."""
        if not conversations.delete(_pk(request), _session(session_id)):
            raise _no_such_conversation()
        return Response(status=204)


class ConversationExport(APIView):
    """One of one's own conversations, whole."""

    @extend_schema(
        operation_id="conversations_export",
        parameters=[SESSION, ExportFormatQuery],
        responses={
            (200, "application/json"): ConversationExportSerializer,
            (200, "text/markdown"): OpenApiTypes.STR,
            **ERRORS,
            404: ERROR,
        },
    )
    def get(self, request: Request, session_id: str) -> HttpResponseBase:
        """All that was said in it, as JSON or Markdown."""
        wanted = _session(session_id)
        query = ExportFormatQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        found = conversations.one_of(_pk(request), wanted)
        if found is None:
            raise _no_such_conversation()
        return conversation_export.answer(found, format=query.validated_data["format"])


def _pk(request: Request) -> int:
    return int(cast(User, request.user).pk)


def _session(text: str) -> str:
    try:
        return str(SessionIdField().run_validation(text))
    except ValidationError as problem:
        raise ValidationError({"session_id": problem.detail}) from None


def _no_such_conversation() -> NotFound:
    return NotFound("There is no such conversation.")


conversation_urls: list[URLPattern | URLResolver] = [
    path("api/v1/conversations", Conversations.as_view(), name="conversations"),
    path("api/v1/conversations/<str:session_id>", OneConversation.as_view(), name="one-conversation"),
    path("api/v1/conversations/<str:session_id>/export", ConversationExport.as_view(), name="conversation-export"),
]
