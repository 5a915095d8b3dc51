"""The session pages: `/flows/{session_id}/`, one conversation with tree and transcript of each turn.

Server-rendered, and readable so; static/js/session.js then draws the same rows as the live page and
lets a running session grow. Who may read what, and the note that he did, is `flows.reader`'s.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core import signing
from django.db.models import Exists, OuterRef, Q
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import history, lines, session_export, transcript, tree, words
from flows.history import Session
from flows.models import InteractionFlow, Turn
from flows.reader import EXPORTED, Reader
from flows.serializers import SessionQuery, TurnQuery
from flows.usual import usual
from omni2.accounts.models import User

PASS_S = 12 * 3600  # how long a page may stay open and grow before it is loaded (and noted) again
PASSES = "flows.pages.growing"
# With the page come the newest turns up to so many checkpoints (as many rows as a page can draw
# whole); the turns before them are a line each, and bring their checkpoints when they are opened.
FIRST_CHECKPOINTS = 560
# Of a turn of thousands, the lists for readers without JavaScript show so many.
PLAIN_CHECKPOINTS = 500

Wire = dict[str, Any]


@require_safe
@never_cache
@login_required
def session(request: HttpRequest, session_id: str) -> HttpResponse:
    """A conversation: its turns in order, each with its tree and what was said.

    Seven queries, whatever its length: the checkpoints of old turns of a long one stay behind.
    """
    user = cast(User, request.user)
    reader = Reader(user)
    wanted = {request.GET.get(name, "").lower() for name in ("turn", "play")}
    shown: set[UUID] = set()

    def choose(turns: list[Turn]) -> Collection[UUID]:
        shown.update(_first_shown(turns, wanted))
        return shown

    found = reader.session(_session_id(session_id), user_id=_owner(request), shown=choose)
    rows = [reader.as_wire(row) for row in found.rows]
    name = lines.names([found.user_id]).get(found.user_id) or found.user_id
    page = {
        "title": found.turns[0].question if found.turns and found.turns[0].question else "Session",
        "session": found,
        "name": name,
        "is_own": found.user_id == user.user_id,
        "totals": _totals(found.turns),
        "newest": found.turns[-1] if found.turns else None,
        "beside": _beside(found),
        "compare": _compare(request, found),
        "plain": _plain(found, rows, shown),
        "data": {
            "session_id": found.session_id,
            "user_id": found.user_id,
            "flows": rows,
            "lines": [_line(turn) for turn in found.turns if turn.turn_id not in shown],
            "compare": _compare(request, found).get("turn_id"),
            "usual": usual() if reader.sees_all else None,
            "is_own": found.user_id == user.user_id,
            "may_stop": user.has_perm("chat.stop"),
            "may_watch": settings.REDIS_ENABLED and user.has_perm("flows.watch"),
            "grow": f"/flows/{found.session_id}/growth?" + urlencode({"pass": _pass(user, found)}),
        },
    }
    return render(request, "flows/session.html", page)


@require_safe
@never_cache
def growth(request: HttpRequest, session_id: str) -> HttpResponse:
    """The session's checkpoints from `?since=` on, or all of the turn that `?of=` is one of, for an open page.

    The page brings a pass that says its opening was noted; without one this is not answered.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    user = request.user
    owner = _passed(request.GET.get("pass", ""), user, session_id)
    reader = Reader(user)
    if owner is None or (owner != user.user_id and not reader.sees_all):
        return JsonResponse({"detail": "Load the page again.", "code": "permission_denied"}, status=403)
    if flow_id := _uuid(request.GET.get("of", "")):
        found = history.session(session_id, owner, shown=lambda _: _turn_of(flow_id))
    else:
        found = history.session(session_id, owner, since=_since(request))
    return JsonResponse({"flows": [reader.as_wire(row) for row in found.rows] if found else []})


@require_safe
@never_cache
@login_required
def export(request: HttpRequest, session_id: str) -> HttpResponse:
    """The session as a file: JSON in the API's shape, or its checkpoints as CSV; noted as taken along."""
    reader = Reader(cast(User, request.user))
    found = reader.session(_session_id(session_id), user_id=_owner(request), action=EXPORTED)
    rows = [reader.as_wire(row) for row in found.rows]
    if request.GET.get("format") == "csv":
        return _file(session_export.as_csv(rows), f"session-{found.session_id}.csv", "text/csv; charset=utf-8")
    whole = {
        "session_id": found.session_id,
        "user_id": found.user_id,
        "turns": [history.summary(turn) for turn in found.turns],
        "flows": rows,
    }
    text = json.dumps(whole, ensure_ascii=False)
    return _file(text, f"session-{found.session_id}.json", "application/json")


def _file(text: str, name: str, content_type: str) -> HttpResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return HttpResponse(text, content_type=content_type, headers=headers)


# --- what was asked for ------------------------------------------------------------------------------


def _session_id(text: str) -> str:
    session_id = history.as_session_id(text)
    if session_id is None:
        raise Http404("There is no such session.")
    return session_id


def _uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _turn_of(flow_id: UUID) -> list[UUID]:
    """The turn of a checkpoint, if it has one. One query."""
    found = InteractionFlow.objects.filter(flow_id=flow_id).values_list("turn_id", flat=True).first()
    return [found] if found else []


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


def _compare(request: HttpRequest, found: Session) -> dict[str, Any]:
    """The turn chosen to be compared, so that a second may be chosen here; its question only if it is
    of this session, whose opening was noted."""
    turn_id = _uuid(request.GET.get("compare", ""))
    if turn_id is None:
        return {}
    here = next((turn for turn in found.turns if turn.turn_id == turn_id), None)
    return {"turn_id": str(turn_id), "query": f"?compare={turn_id}", "here": here}


# --- what is shown -----------------------------------------------------------------------------------


def _first_shown(turns: Sequence[Turn], wanted: Collection[str]) -> set[UUID]:
    """The turns that come with their checkpoints: what is asked for or runs, and the newest."""
    shown = {turn.turn_id for turn in turns if str(turn.turn_id) in wanted or turn.outcome is None}
    room = FIRST_CHECKPOINTS
    for turn in reversed(turns):
        room -= turn.checkpoints
        if room < 0 and shown:
            break
        shown.add(turn.turn_id)
    return shown


def _line(turn: Turn) -> dict[str, Any]:
    return {**history.summary(turn), "question": turn.question}


def _totals(found: list[Turn]) -> dict[str, Any]:
    costs = [turn.cost_usd for turn in found if turn.cost_usd is not None]
    ways = Counter(turn.outcome for turn in found)
    return {
        "tokens": words.count(sum(turn.input_tokens + turn.output_tokens for turn in found)),
        "cost": words.money(sum(costs)) if costs else "",
        "tools": sum(turn.tool_calls for turn in found),
        "began": history.wire_time(found[0].started_at) if found else "",
        "outcomes": [(words.outcome(way), number) for way, number in ways.most_common()],
    }


def _beside(found: Session) -> dict[str, Turn | None]:
    """The first turns of the sessions of the same user that began before and after this one. Two
    queries; each walks his turns until one is the first of its session."""
    if not found.turns:
        return {}
    at, turn_id = found.turns[0].started_at, found.turns[0].turn_id
    in_session = Turn.objects.filter(session_id=OuterRef("session_id"), user_id=found.user_id)
    earlier_there = in_session.filter(
        Q(started_at__lt=OuterRef("started_at")) | Q(started_at=OuterRef("started_at"), turn_id__lt=OuterRef("turn_id"))
    )
    firsts = Turn.objects.filter(~Exists(earlier_there), user_id=found.user_id).exclude(session_id=found.session_id)
    before = firsts.filter(started_at__lte=at).exclude(started_at=at, turn_id__gt=turn_id)
    after = firsts.filter(started_at__gte=at).exclude(started_at=at, turn_id__lt=turn_id)
    return {
        "earlier": before.order_by("-started_at", "-turn_id").first(),
        "later": after.order_by("started_at", "turn_id").first(),
    }


# --- for readers without JavaScript ------------------------------------------------------------------


def _plain(found: Session, rows: list[Wire], shown: Collection[UUID]) -> Iterator[dict[str, Any]]:
    """Each turn with what was said and its rows; one that did not come along has its line alone."""
    of_turn: dict[str | None, list[Wire]] = {}
    for row in rows:
        of_turn.setdefault(row["turn_id"], []).append(row)
    room = PLAIN_CHECKPOINTS
    for turn in found.turns:
        its = of_turn.pop(str(turn.turn_id), [])
        yield {
            **lines.line(turn, {}),
            "is_shown": turn.turn_id in shown,
            "said": transcript.lines_of(its[:room]),
            "rows": list(_rows(its[:room], over=turn.outcome is not None)),
            "left_out": max(0, len(its) - max(0, room)),
        }
        room = max(0, room - len(its))
    rest = [row for its in of_turn.values() for row in its]
    if rest:
        yield {"turn": None, "is_shown": True, "rows": list(_rows(rest, over=True))}


def _rows(rows: list[Wire], *, over: bool) -> Iterator[dict[str, Any]]:
    """The rows as nested lists need them: what to close before each, what it is called and says."""
    ends = tree.ends(rows)
    merged = {row["flow_id"] for row in ends.values()}
    before = -1
    for depth, row in tree.walk(tree.nest(rows)):
        if row["flow_id"] in merged and not row["children"]:
            continue
        end = ends.get(row["flow_id"])
        shown = min(depth, before + 1)
        yield {
            "row": row,
            "end": end,
            "said": words.describe(row, end, over=over),
            "took": words.duration((end or row)["metadata"].get("duration_ms")) if end else "",
            "opens": shown > before,
            "closes": range(before - shown),
        }
        before = shown


session_urls: list[URLPattern | URLResolver] = [
    path("flows/<str:session_id>/", session, name="session-page"),
    path("flows/<str:session_id>/growth", growth, name="session-growth"),
    path("flows/<str:session_id>/export", export, name="session-export"),
]
