"""The history page `/flows/`, the turns as a table; what a session looks like is `flows.session_pages`'s.

Server-rendered, and readable so. What its address asks for is `flows.asked`'s; who may read what,
and the note that he did, is `flows.reader`'s.
"""

import time
from dataclasses import replace
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core import signing
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import exports, history, lines, saved_view_pages, words
from flows.asked import FURTHER, RANGES, STAGE_WORDS, Asked, as_typed, asked, chips, people_like
from flows.cursor import BadCursor
from flows.history import COUNTED_AT_MOST, DEFAULT_SORT, RUNNING, Occurring, TurnFilters
from flows.models import Outcome, Turn
from flows.reader import Reader
from flows.retention import days_kept
from flows.serializers import TurnQuery
from omni2.accounts.models import User

# Heads of the table: what they sort by ("" for nothing), what they say, what they hold.
COLUMNS = (
    ("", "Who", "who"),
    ("started", "When", "when"),
    ("", "Question", "what"),
    ("", "Outcome", "how"),
    ("duration", "Duration", "number"),
    ("first_token", "First token", "number"),
    ("tokens", "Tokens", "number"),
    ("cost", "Cost", "number"),
    ("tools", "Tools", "number"),
)
SORTED_BY = {
    "started": "by time",
    "duration": "by duration",
    "first_token": "by time to the first token",
    "tokens": "by tokens",
    "cost": "by cost",
    "tools": "by tools called",
}
OUTCOME_ORDER = (RUNNING, *(outcome.value for outcome in Outcome))
OCCURRING_S = 60
PASS_S = 12 * 3600  # how long a page may stay open and ask for news before it is loaded (and noted) again
PASSES = "flows.pages.news"


@require_safe
@never_cache
@login_required
def turns(request: HttpRequest) -> HttpResponse:
    """Turns, the last begun first or sorted otherwise, a page at a time; the question is the URL's."""
    user = cast(User, request.user)
    reader = Reader(user)
    question = asked(request, reader)
    page: dict[str, Any] = {
        "title": "History" if reader.sees_all else "My history",
        "sees_all": reader.sees_all,
        "given": as_typed(question.given),
        "sort": question.parameters().get("sort", ""),
        "errors": question.errors,
        "people": [{**one, "address": question.address(user_id=one["user_id"])} for one in question.people],
        "is_narrowed": question.narrowed,
        "is_open": not question.errors.keys().isdisjoint(FURTHER),
        "ranges": [(key, label) for key, (label, _) in RANGES.items()],
        "stages": STAGE_WORDS.items(),
        "occurring": (offered := _occurring(reader)),
        "occurring_errors": [(code, words.reason(code)) for code in offered.errors],
        "days_kept": days_kept(),
        "views": saved_view_pages.shown(user, "/flows/", question.address().removeprefix("?")),
    }
    if question.is_clear:
        page |= _found(user, reader, question)
    return render(request, "flows/turns.html", page)


def _found(user: User, reader: Reader, question: Asked) -> dict[str, Any]:
    now = timezone.now()
    try:
        page = reader.turns(question.filters, **question.query.paging())
    except BadCursor:
        return {"errors": {"cursor": "This address belongs to other filters. Start again from the first page."}}
    names = lines.names([*(turn.user_id for turn in page.rows), question.given["user_id"].lower()])
    is_first = not question.query.validated_data.get("cursor") or page.previous is None
    newest = page.rows[0].started_at if page.rows and is_first and question.sort == DEFAULT_SORT else now
    return {
        "turns": [_row(turn, names) for turn in page.rows],
        "next": question.page_address(page.next),
        "previous": None if is_first else question.page_address(page.previous),
        "first": None if is_first else question.address(),
        "looked_until": page.looked_until,
        "looked_backwards": page.backwards,
        "looked_at": f"{history.LOOKED_AT:,}",
        "chips": list(chips(question, names)),
        "outcomes": _outcomes(reader, question),
        "heads": _heads(question),
        "sorted_by": SORTED_BY[question.sort.removeprefix("-")],
        "is_by_time": question.sort.removeprefix("-") == "started",
        "by_time": question.address(sort=""),
        "exports": {each: "/flows/export" + question.address(format=each) for each in exports.CONTENT_TYPES},
        "may_watch": settings.REDIS_ENABLED and user.has_perm("flows.watch"),
        "news": "/flows/news?" + urlencode({"pass": _pass(user, question, page.rows, newest)}),
    }


def _row(turn: Turn, names: dict[str, str]) -> dict[str, Any]:
    told = lines.line(turn, names)
    return {
        **told,
        "tokens": f"{told['tokens']:,}" if told["tokens"] else "",
        "initials": initials(names, turn.user_id),
    }


def initials(names: dict[str, str], user_id: str) -> str:
    """The first letters of the first and the last word of a name, or of the address."""
    found = names.get(user_id) or user_id.partition("@")[0].replace(".", " ").replace("_", " ").replace("-", " ")
    parts = [word for word in found.split() if word[0].isalnum()]
    return "".join(word[0] for word in {0: parts[:1], 1: [*parts[:1], *parts[-1:]]}[len(parts) > 1]).upper() or "?"


def _heads(question: Asked) -> list[dict[str, str | None]]:
    """The heads of the table; what can be sorted by has an address: largest first, and then the other way."""
    current, descending = question.sort.removeprefix("-"), question.sort.startswith("-")
    heads: list[dict[str, str | None]] = []
    for name, label, kind in COLUMNS:
        turned = name if name == current and descending else f"-{name}"
        heads.append(
            {
                "name": name,
                "label": label,
                "kind": kind,
                "direction": ("descending" if descending else "ascending") if name == current else "",
                "address": question.address(sort="" if turned == DEFAULT_SORT else turned) if name else None,
            }
        )
    return heads


def _outcomes(reader: Reader, question: Asked) -> list[dict[str, Any]]:
    """A chip for each outcome and for all, with how many turns of the other filters there are."""
    filters = reader.limited(question.filters)
    since = history.counted_since(filters)
    counts = history.outcomes(replace(filters, since=since) if since else filters)
    current = question.given["outcome"]
    every = sum(counts.values())
    capped = any(count > COUNTED_AT_MOST for count in counts.values())
    more = "+" if since else ""
    chosen: list[dict[str, Any]] = [
        {
            "value": "",
            "label": "All",
            "state": "",
            "count": f"{min(every, COUNTED_AT_MOST) if capped else every:,}{'+' if capped else more}",
        }
    ]
    for value in OUTCOME_ORDER:
        about = words.outcome(None if value == RUNNING else value)
        count = counts[value]
        said = f"{COUNTED_AT_MOST:,}+" if count > COUNTED_AT_MOST else f"{count:,}{more if count else ''}"
        chosen.append({**about, "value": value, "count": said, "is_none": not count and not since})
    hint = f"Counted in the newest {history.LOOKED_AT:,} turns of the other filters" if since else ""
    for chip in chosen:
        chip |= {
            "hint": hint,
            "address": question.address(outcome=chip["value"]),
            "is_current": chip["value"] == current,
        }
    return chosen


_occurring_of_all: tuple[float, Occurring] | None = None


def _occurring(reader: Reader) -> Occurring:
    """What the form offers: what occurred lately in the turns he may read. Everybody's is read once a minute."""
    global _occurring_of_all
    if not reader.sees_all:
        return history.occurring(reader.user_id)
    kept, now = _occurring_of_all, time.monotonic()
    if kept is None or kept[0] < now - OCCURRING_S:
        kept = _occurring_of_all = now, history.occurring()
    return kept[1]


# --- what an open page asks for -----------------------------------------------------------------------


@require_safe
@never_cache
def news(request: HttpRequest) -> HttpResponse:
    """For an open page: how many turns of its filters have begun since, and how those that ran have ended.

    The page brings a pass that says what it shows and that its opening was noted; without one this
    is not answered.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    user = request.user
    passed = _passed(request.GET.get("pass", ""), user)
    reader = Reader(user)
    query = TurnQuery(data=passed["asked"] if passed else {})
    if passed is None or reader.sees_all != passed["all"] or not query.is_valid():
        return JsonResponse({"detail": "Load the page again.", "code": "permission_denied"}, status=403)
    filters = reader.limited(TurnFilters(**query.filters()))
    ended = Turn.objects.filter(turn_id__in=passed["running"], outcome__isnull=False).defer("tags", "steps", "step_ms")
    return JsonResponse(
        {
            "new": history.later(filters, datetime.fromisoformat(passed["than"])),
            "ended": [_ended(turn) for turn in ended],
        }
    )


def _ended(turn: Turn) -> dict[str, Any]:
    told = _row(turn, {})
    facts = {name: told[name] for name in ("took", "first_token", "tokens", "cost", "why")}
    return {
        **facts,
        "turn_id": str(turn.turn_id),
        "code": turn.outcome,
        "outcome": dict(told["outcome"]),
        "tools": turn.tool_calls,
    }


def _pass(user: User, question: Asked, shown: list[Turn], newest: datetime) -> str:
    known = {
        "user": user.pk,
        "all": user.has_perm("flows.view"),
        "asked": {name: value for name, value in question.query.data.items() if value and name != "cursor"},
        "than": history.wire_time(newest),
        "running": [str(turn.turn_id) for turn in shown if turn.outcome is None],
    }
    return signing.dumps(known, salt=PASSES, compress=True)


def _passed(text: str, user: User) -> dict[str, Any] | None:
    """What the pass says; None when it is not this user's, or old."""
    try:
        known: dict[str, Any] = signing.loads(text, salt=PASSES, max_age=PASS_S)
    except signing.BadSignature:
        return None
    return known if known["user"] == user.pk else None


@require_safe
@never_cache
def people(request: HttpRequest) -> HttpResponse:
    """Those whose name or address holds `?q=`, for the field "User"; for those who see everybody's turns."""
    if not request.user.is_authenticated:
        return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
    if not Reader(request.user).sees_all:
        return JsonResponse({"detail": "You may not do this.", "code": "permission_denied"}, status=403)
    words_ = request.GET.get("q", "").strip()[:100]
    return JsonResponse({"people": people_like(words_) if words_ else []})


@require_safe
@never_cache
@login_required
def export(request: HttpRequest) -> StreamingHttpResponse:
    """The turns of the table, all of them, as a download. Bad filters are a 400: the table says which."""
    user = cast(User, request.user)
    question = asked(request, Reader(user))
    wanted = request.GET.get("format", "csv")
    if not question.is_clear or wanted not in exports.CONTENT_TYPES:
        raise BadRequest("There is no such export.")
    return exports.answer(user, question.filters, sort=question.sort, format=wanted)


page_urls: list[URLPattern | URLResolver] = [
    path("flows/", turns, name="turns-page"),
    path("flows/news", news, name="turns-news"),
    path("flows/people", people, name="turns-people"),
    path("flows/export", export, name="turns-export-page"),
    *saved_view_pages.view_urls,
]
