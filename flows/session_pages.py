"""The session pages: `/flows/{session_id}/`, one conversation with the tree of each turn.

Server-rendered, and readable so; static/js/session.js then draws the same rows as the live page and
lets a running session grow. Who may read what, and the note that he did, is `flows.reader`'s.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import history, lines, tree, words
from flows.history import Session
from flows.models import Turn
from flows.reader import Reader
from flows.serializers import SessionQuery, TurnQuery
from omni2.accounts.models import User

PASS_S = 12 * 3600  # how long a page may stay open and grow before it is loaded (and noted) again
PASSES = "flows.pages.growing"


@require_safe
@never_cache
@login_required
def session(request: HttpRequest, session_id: str) -> HttpResponse:
    """A conversation: its turns in order, each with its tree."""
    user = cast(User, request.user)
    reader = Reader(user)
    found = reader.session(_session_id(session_id), user_id=_owner(request))
    rows = [reader.as_wire(row) for row in found.rows]
    names = lines.names([found.user_id])
    page = {
        "title": found.turns[0].question if found.turns and found.turns[0].question else "Session",
        "session": found,
        "name": names.get(found.user_id) or found.user_id,
        "is_own": found.user_id == user.user_id,
        "turns": [lines.line(turn, names) for turn in found.turns],
        "totals": _totals(found.turns),
        "plain": list(_plain(rows, found.turns)),
        "data": {
            "session_id": found.session_id,
            "user_id": found.user_id,
            "flows": rows,
            "may_watch": settings.REDIS_ENABLED and user.has_perm("flows.watch"),
            "grow": f"/flows/{found.session_id}/growth?" + urlencode({"pass": _pass(user, found)}),
        },
    }
    return render(request, "flows/session.html", page)


@require_safe
@never_cache
def growth(request: HttpRequest, session_id: str) -> HttpResponse:
    """The session's checkpoints from `?since=` on, for a page that is open and grows.

    The page brings a pass that says its opening was noted; without one this is not answered.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    user = request.user
    owner = _passed(request.GET.get("pass", ""), user, session_id)
    reader = Reader(user)
    if owner is None or (owner != user.user_id and not reader.sees_all):
        return JsonResponse({"detail": "Load the page again.", "code": "permission_denied"}, status=403)
    found = history.session(session_id, owner, since=_since(request))
    return JsonResponse({"flows": [reader.as_wire(row) for row in found.rows] if found else []})


def _session_id(text: str) -> str:
    session_id = history.as_session_id(text)
    if session_id is None:
        raise Http404("There is no such session.")
    return session_id


def _owner(request: HttpRequest) -> str | None:
    query = SessionQuery(data=request.GET)
    return (query.validated_data.get("user_id") or None) if query.is_valid() else None


def _since(request: HttpRequest) -> datetime | None:
    query = TurnQuery(data={"since": request.GET.get("since", "")})
    return query.validated_data.get("since") if query.is_valid() else None


def _pass(user: User, found: Session) -> str:
    return signing.dumps([user.pk, found.session_id, found.user_id], salt=PASSES)


def _passed(text: str, user: User, session_id: str) -> str | None:
    """Whose session the pass is for; None when it is not this user's, not this session's, or old."""
    try:
        pk, session, owner = signing.loads(text, salt=PASSES, max_age=PASS_S)
    except signing.BadSignature:
        return None
    return str(owner) if pk == user.pk and session == session_id else None


def _totals(found: list[Turn]) -> dict[str, Any]:
    costs = [turn.cost_usd for turn in found if turn.cost_usd is not None]
    return {
        "tokens": sum(turn.input_tokens + turn.output_tokens for turn in found),
        "cost": words.money(sum(costs)) if costs else "",
        "tools": sum(turn.tool_calls for turn in found),
        "began": history.wire_time(found[0].started_at) if found else "",
    }


def _plain(rows: list[dict[str, Any]], found: list[Turn]) -> Iterator[dict[str, Any]]:
    """The rows as nested lists need them: what to close before each, what it is called and says."""
    ended_turns = {str(turn.turn_id) for turn in found if turn.outcome}
    ends = tree.ends(rows)
    merged = {row["flow_id"] for row in ends.values()}
    before = -1
    for depth, row in tree.walk(tree.nest(rows)):
        if row["flow_id"] in merged and not row["children"]:
            continue
        end = ends.get(row["flow_id"])
        said = words.describe(row, end, over=row["turn_id"] in ended_turns)
        shown = min(depth, before + 1)
        yield {
            "row": row,
            "end": end,
            "said": said,
            "took": words.duration((end or row)["metadata"].get("duration_ms")) if end else "",
            "opens": shown > before,
            "closes": range(before - shown),
        }
        before = shown


session_urls: list[URLPattern | URLResolver] = [
    path("flows/<str:session_id>/", session, name="session-page"),
    path("flows/<str:session_id>/growth", growth, name="session-growth"),
]
