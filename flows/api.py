"""The history API: what was stored of a user, of a session, and all turns. Reading only.

The same three views answer below /api/v1/flows/ and, for the original's addresses, below
/api/v1/monitoring/flows/.
"""

from typing import Any, cast

from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from flows import exports, history, tree
from flows.cursor import BadCursor
from flows.history import FlowFilters, TurnFilters
from flows.reader import Reader
from flows.serializers import (
    ExportQuery,
    ExportSerializer,
    FlowQuery,
    SessionFlowsSerializer,
    SessionIdField,
    SessionQuery,
    TurnQuery,
    TurnsSerializer,
    UserFlowsSerializer,
    UserIdField,
)
from omni2.accounts.models import User
from omni2.schema import ERROR, FIELD_ERRORS

ERRORS = {400: FIELD_ERRORS, 401: ERROR, 403: ERROR, 503: ERROR}


def _reader(request: Request) -> Reader:
    return Reader(cast(User, request.user))


class BadCursorIs400(APIView):
    """A cursor that is no good is a problem of the field `cursor`."""

    def handle_exception(self, exc: Exception) -> Response:
        if isinstance(exc, BadCursor):
            exc = ValidationError({"cursor": ["Not a cursor that was given out for these filters."]})
        return super().handle_exception(exc)


class UserFlows(BadCursorIs400):
    """A user's checkpoints, newest first, a page at a time."""

    @extend_schema(
        parameters=[OpenApiParameter("user_id", str, OpenApiParameter.PATH, description="e-mail address"), FlowQuery],
        responses={200: UserFlowsSerializer, **ERRORS, 404: ERROR},
    )
    def get(self, request: Request, user_id: str) -> Response:
        """Checkpoints of one user, newest first. One's own, or anybody's with the right flows.view."""
        wanted = _checked("user_id", UserIdField(), user_id)
        query = FlowQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        reader = _reader(request)
        page = reader.flows_of(wanted, FlowFilters(**query.filters()), **query.paging())
        return Response({"user_id": wanted, "flows": [reader.as_wire(row) for row in page.rows], "next": page.next})


class SessionFlows(APIView):
    """A session, whole."""

    @extend_schema(
        parameters=[OpenApiParameter("session_id", str, OpenApiParameter.PATH, description="a UUID"), SessionQuery],
        responses={200: SessionFlowsSerializer, **ERRORS, 404: ERROR},
    )
    def get(self, request: Request, session_id: str) -> Response:
        """One session: its turns, its checkpoints in order, and the same as a tree."""
        wanted = _checked("session_id", SessionIdField(), session_id)
        query = SessionQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        reader = _reader(request)
        found = reader.session(wanted, user_id=query.validated_data.get("user_id") or None)
        flows = [reader.as_wire(row) for row in found.rows]
        return Response(
            {
                "session_id": found.session_id,
                "user_id": found.user_id,
                "turns": [history.summary(turn) for turn in found.turns],
                "flows": flows,
                "tree": tree.nest(flows),
            }
        )


class Turns(BadCursorIs400):
    """Turn summaries, sorted, a page at a time."""

    @extend_schema(parameters=[TurnQuery], responses={200: TurnsSerializer, **ERRORS})
    def get(self, request: Request) -> Response:
        """Turn summaries, sorted. One's own, or everybody's with the right flows.view."""
        query = TurnQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        page = _reader(request).turns(TurnFilters(**query.filters()), **query.paging())
        return Response({"turns": [history.summary(turn) for turn in page.rows], "next": page.next})


class TurnsExport(APIView):
    """The same turns, all of them, as a stream."""

    @extend_schema(
        parameters=[ExportQuery],
        responses={(200, "text/csv"): OpenApiTypes.STR, (200, "application/json"): ExportSerializer, **ERRORS},
    )
    def get(self, request: Request) -> HttpResponseBase:
        """All turns of the filters, with their questions, as CSV or JSON. One's own, or everybody's with flows.view."""
        query = ExportQuery(data=request.query_params)
        query.is_valid(raise_exception=True)
        return exports.answer(cast(User, request.user), TurnFilters(**query.filters()), **query.paging())


def _checked(name: str, field: Any, text: str) -> str:
    """A part of the path, read like a field; what is wrong with it is said under its name."""
    try:
        return str(field.run_validation(text))
    except ValidationError as problem:
        raise ValidationError({name: problem.detail}) from None
