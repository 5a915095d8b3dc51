"""The chat page `/chat/`: one's conversations, what was said, and a place to ask.

Asking itself is the public API's (static/js/chat.js talks to POST /api/v1/ask/stream).
"""

import json
import re
from typing import Any, cast
from uuid import UUID

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.utils.safestring import mark_safe
from django.utils.text import capfirst
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from chat import conversations, exchanges, markdown
from chat.exchanges import Asked, Step, Talk
from chat.scripted_model import SCRIPTED
from chat.wanted import wanted_model
from flows import words
from flows.cursor import BadCursor
from flows.history import as_session_id, wire_time
from omni2.accounts.models import User

MOST_STEP_CHARACTERS = 80
STOPPED = "This answer was stopped."
"""what the turn's user is told where nobody left him other words"""

_NUMBER = re.compile(r"[0-9]{1,18}")

# A turn that is not completed, in words.
ENDED = {
    "disconnected": "You stopped it, or left before its end",
    "stopped": "It was stopped",
    "abandoned": "The server went away before its end",
    "refused": "It was refused",
}


@require_safe
@never_cache
@login_required
def chat(request: HttpRequest, session_id: str | None = None) -> HttpResponse:
    """A new conversation, or the newest questions of one of one's own. Seven queries at most, and the shell's."""
    user = cast(User, request.user)
    talk = _talk(request, user, session_id) if session_id is not None else Talk([], None)
    listed = _listed(request, user)
    page = {
        "title": "Chat",
        "conversations": [
            (str(each.session_id), each.title, wire_time(each.updated_at)) for each in listed.conversations
        ],
        "next": listed.next,
        "last_model": next((each.turn.model for each in reversed(talk.asked) if each.turn and each.turn.model), ""),
        "is_older": "before" in request.GET,
        "notice": settings.NOTICE,
        **_shown(talk, as_session_id(session_id or "") or ""),
        **_model(user),
    }
    return render(request, "chat/chat.html", page)


@require_safe
@never_cache
def some(request: HttpRequest, session_id: str) -> HttpResponse:
    """A piece of a conversation for a page that is open: older questions (`?before=`), or one (`?turn=`) again."""
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    talk = _talk(request, request.user, session_id)
    return render(request, "chat/_exchanges.html", _shown(talk, session_id.lower()))


def _talk(request: HttpRequest, user: User, text: str) -> Talk:
    """What the address asks for. Raises Http404 when there is none of it, or when it is not his."""
    session_id = as_session_id(text)
    if session_id is None:
        raise Http404("There is no such conversation.")
    if turn := request.GET.get("turn"):
        wanted = as_session_id(turn)  # turn ids are spelled like session ids
        asked = exchanges.asked_in(user.pk, session_id, UUID(wanted)) if wanted else None
        talk = Talk([asked] if asked else [], None)
    else:
        talk = exchanges.talk(user.pk, session_id, before=_before(request))
    if not talk.asked:
        raise Http404("There is no such conversation.")
    return talk


def _listed(request: HttpRequest, user: User) -> conversations.ConversationPage:
    """The newest conversations, or those after a cursor (`?older=`, for whom no script reads on)."""
    try:
        return conversations.page_of(user.pk, cursor=request.GET.get("older"))
    except BadCursor:
        raise Http404("There is no such place in the list.") from None


def _before(request: HttpRequest) -> int | None:
    text = request.GET.get("before")
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise Http404("There is no such place in a conversation.")
    return int(text)


def _model(user: User) -> dict[str, Any]:
    """Who answers, and whether he is to be taken seriously."""
    wanted = wanted_model(user.user_id)
    return {"model": wanted.name, "is_local": wanted.provider == "local", "is_scripted": wanted.provider == SCRIPTED}


def _shown(talk: Talk, session_id: str) -> dict[str, Any]:
    """Questions and what became of them as the templates need them."""
    return {"session_id": session_id, "earlier": talk.earlier, "exchanges": [_exchange(each) for each in talk.asked]}


def _exchange(asked: Asked) -> dict[str, Any]:
    turn = asked.turn
    outcome = turn.outcome if turn else None
    return {
        "turn_id": str(asked.turn_id),
        "question": asked.question,
        # sanitized by chat.markdown: the one place where text becomes markup
        "answer": mark_safe(markdown.render(asked.answer)) if asked.answer else "",  # noqa: S308
        "at": wire_time(asked.at),
        "asked_at": asked.at,
        "is_running": asked.is_running and outcome is None,
        "outcome": outcome,
        "failure": capfirst(words.reason(turn.error)) if turn and outcome == "failed" and turn.error else "",
        "ended": _ended(asked, outcome or ""),
        "steps": [_step(step, is_over=not asked.is_running) for step in asked.steps],
        "facts": _facts(asked) if outcome == "completed" else [],
    }


def _ended(asked: Asked, outcome: str) -> str:
    """How a turn that is not completed is told to the one who asked."""
    if asked.stop is None:
        return ENDED.get(outcome, "")
    if asked.stop.by_himself:
        return "You stopped it"
    return f"{ENDED['stopped']}: {asked.stop.message}" if asked.stop.message != STOPPED else ENDED["stopped"]


def _facts(asked: Asked) -> list[str]:
    turn = asked.turn
    assert turn is not None
    tokens = turn.input_tokens + turn.output_tokens
    facts = (
        turn.model,
        words.duration(turn.duration_ms),
        f"{tokens:,} tok" if tokens else "",
        words.money(turn.cost_usd),
    )
    return [fact for fact in facts if fact]


def _step(step: Step, *, is_over: bool) -> dict[str, str]:
    """A use of a tool in words: how long it took, or what went wrong."""
    took = words.duration(step.duration_ms)
    match step.status:
        case "ok":
            said = took
        case "error":
            said = f"failed: {step.error}" if step.error else "failed"
        case "cancelled":
            said = "cancelled"
        case _:
            said = "not finished" if is_over else "running"
    return {"tool": step.tool[:MOST_STEP_CHARACTERS], "status": step.status, "said": said, "error": step.error}


@require_POST
@never_cache
def rendered(request: HttpRequest) -> HttpResponse:
    """`{"text"}` → `{"html"}`: an answer as safe HTML.

    With `"growing": true` it is an answer in the making, line by line: `{"html", "growing", "lines"}`.
    `html` are the blocks that are finished, made of the first `lines` lines of the text, which need
    not be sent again; `growing` is the last block as far as it goes.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    try:
        asked = json.loads(request.body)
        text, growing = asked["text"], asked.get("growing", False)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = growing = None
    if not isinstance(text, str) or not isinstance(growing, bool):
        return JsonResponse({"text": ["A text is needed."]}, status=400)
    text = text.encode("utf-8", "replace").decode()
    if not growing:
        return JsonResponse({"html": markdown.render(text)})
    part = markdown.render_growing(text)
    return JsonResponse({"html": part.finished, "growing": part.growing, "lines": part.lines})


page_urls: list[URLPattern | URLResolver] = [
    path("chat/", chat, name="chat"),
    path("chat/render", rendered, name="chat-render"),
    path("chat/<str:session_id>/", chat, name="conversation"),
    path("chat/<str:session_id>/exchanges", some, name="conversation-exchanges"),
]
