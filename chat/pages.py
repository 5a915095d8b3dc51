"""The chat page `/chat/`: one's conversations, what was said, and a place to ask.

Asking itself is the public API's (static/js/chat.js talks to POST /api/v1/ask/stream).
"""

import json
from collections.abc import Iterator
from typing import Any, cast

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.utils.safestring import mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe

from chat import markdown
from chat.history import Said, conversations_of, messages_of
from chat.models import Role
from chat.scripted_model import SCRIPTED
from chat.wanted import wanted_model
from flows import words
from flows.history import as_session_id, wire_time
from flows.models import Turn
from omni2.accounts.models import User

MOST_CONVERSATIONS = 100


@require_safe
@never_cache
@login_required
def chat(request: HttpRequest, session_id: str | None = None) -> HttpResponse:
    """A new conversation, or one of one's own. Three queries and those of the shell."""
    user = cast(User, request.user)
    said: list[Said] = []
    if session_id is not None:
        wanted = as_session_id(session_id)
        said = messages_of(user.pk, wanted) if wanted else []
        if not said:
            raise Http404("There is no such conversation.")
        session_id = wanted
    conversations = list(conversations_of(user.pk)[:MOST_CONVERSATIONS])
    page = {
        "title": "Chat",
        "session_id": session_id or "",
        "conversations": [(str(each.session_id), each.title, wire_time(each.updated_at)) for each in conversations],
        "exchanges": list(_exchanges(said)),
        "notice": settings.NOTICE,
        **_model(user),
    }
    return render(request, "chat/chat.html", page)


def _model(user: User) -> dict[str, Any]:
    """Who answers, and whether he is to be taken seriously."""
    wanted = wanted_model(user.user_id)
    return {"model": wanted.name, "is_local": wanted.provider == "local", "is_scripted": wanted.provider == SCRIPTED}


def _exchanges(said: list[Said]) -> Iterator[dict[str, Any]]:
    """Question by question, each with its answer, or with why there is none."""
    answers = {each.turn_id: each.content for each in said if each.role == Role.ASSISTANT}
    asked = [each for each in said if each.role == Role.USER]
    ended = dict(Turn.objects.filter(turn_id__in=[each.turn_id for each in asked]).values_list("turn_id", "outcome"))
    outcomes = {str(turn_id): outcome for turn_id, outcome in ended.items()}
    for each in asked:
        answer = answers.get(each.turn_id, "")
        outcome = outcomes.get(each.turn_id)
        yield {
            "turn_id": each.turn_id,
            "question": each.content,
            # sanitized by chat.markdown: the one place where text becomes markup
            "answer": mark_safe(markdown.render(answer)) if answer else "",  # noqa: S308
            "at": wire_time(each.created_at),
            "ended": words.outcome(outcome)["label"] if outcome not in (None, "completed") else "",
        }


@require_POST
@never_cache
def rendered(request: HttpRequest) -> HttpResponse:
    """`{"text"}` → `{"html"}`: an answer that has just been streamed, as safe HTML."""
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    try:
        text = json.loads(request.body)["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        return JsonResponse({"text": ["A text is needed."]}, status=400)
    return JsonResponse({"html": markdown.render(text.encode("utf-8", "replace").decode())})


page_urls: list[URLPattern | URLResolver] = [
    path("chat/", chat, name="chat"),
    path("chat/render", rendered, name="chat-render"),
    path("chat/<str:session_id>/", chat, name="conversation"),
]
