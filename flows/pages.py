"""The history page: `/flows/`, the turns as a table; what a session looks like is `flows.session_pages`'s.

Server-rendered, and readable so. Who may read what, and the note that he did, is `flows.reader`'s.
"""

from datetime import datetime, timedelta
from typing import Any, cast

from django.contrib.auth.decorators import login_required
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import history, lines
from flows.cursor import BadCursor
from flows.history import TurnFilters
from flows.models import Outcome
from flows.reader import Reader
from flows.serializers import TurnQuery
from omni2.accounts.models import User

RANGES = {
    "1h": ("Last hour", 1),
    "24h": ("Last 24 hours", 24),
    "7d": ("Last 7 days", 168),
    "30d": ("Last 30 days", 720),
}
FILTERS = ("user_id", "session_id", "outcome", "model", "tool", "range", "since", "until", "q")
MOST_PEOPLE = 8


@require_safe
@never_cache
@login_required
def turns(request: HttpRequest) -> HttpResponse:
    """Turns, the last begun first, a page at a time; the filters are the URL's."""
    reader = Reader(cast(User, request.user))
    given = {name: request.GET.get(name, "").strip() for name in FILTERS}
    page: dict[str, Any] = {
        "title": "History" if reader.sees_all else "My history",
        "sees_all": reader.sees_all,
        "given": given,
        "is_filtered": any(given.values()),
        "ranges": [(key, label) for key, (label, _) in RANGES.items()],
        "outcomes": [*Outcome.choices, (history.RUNNING, "Running")],
    }
    query, page["people"] = _query(request, reader, given)
    page["errors"] = {} if query.is_valid() else {name: " ".join(problem) for name, problem in query.errors.items()}
    if not page["errors"] and not page["people"]:
        page |= _found(request, reader, query)
    return render(request, "flows/turns.html", page)


def _query(request: HttpRequest, reader: Reader, given: dict[str, str]) -> tuple[TurnQuery, list[dict[str, str]]]:
    """The filters as the API reads them, and whom a typed name may mean when it is not clear."""
    asked = QueryDict(mutable=True)
    asked.update({name: value for name, value in given.items() if value and name != "range"})
    if cursor := request.GET.get("cursor"):
        asked["cursor"] = cursor
    if given["range"] in RANGES and not given["since"]:
        asked["since"] = _began(request, given["range"])
    people: list[dict[str, str]] = []
    if reader.sees_all and given["user_id"] and "@" not in given["user_id"]:
        people = _people_like(given["user_id"])
        if len(people) == 1:
            asked["user_id"], people = people[0]["user_id"], []
    return TurnQuery(data=asked), people


def _began(request: HttpRequest, name: str) -> str:
    """The start of "the last 24 hours". Further pages keep the first one's: their cursor is bound to it."""
    kept = request.GET.get("from", "")
    began = timezone.now() - timedelta(hours=RANGES[name][1])
    return kept or history.wire_time(began)


def _people_like(typed: str) -> list[dict[str, str]]:
    if not typed.isprintable():
        return []
    found = User.objects.filter(Q(name__icontains=typed) | Q(email__icontains=typed))[:MOST_PEOPLE]
    return [{"user_id": user.user_id, "name": user.get_full_name()} for user in found]


def _found(request: HttpRequest, reader: Reader, query: TurnQuery) -> dict[str, Any]:
    try:
        page = reader.turns(TurnFilters(**query.filters()), **query.paging())
    except BadCursor:
        return {"errors": {"cursor": "This address belongs to other filters. Start again from the first page."}}
    further = None
    if page.next:
        address = request.GET.copy()
        address["cursor"] = page.next
        if request.GET.get("range") in RANGES and not request.GET.get("since"):
            address["from"] = history.wire_time(cast(datetime, query.filters()["since"]))
        further = "?" + address.urlencode()
    names = lines.names(turn.user_id for turn in page.rows)
    return {
        "turns": [lines.line(turn, names) for turn in page.rows],
        "next": further,
        "first": _without(request.GET, "cursor", "from") if request.GET.get("cursor") else None,
    }


def _without(query: QueryDict, *names: str) -> str:
    kept = query.copy()
    for name in names:
        kept.pop(name, None)
    return "?" + kept.urlencode()


page_urls: list[URLPattern | URLResolver] = [
    path("flows/", turns, name="turns-page"),
]
