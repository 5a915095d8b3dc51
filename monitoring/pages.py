"""The live page `/live/`, and the two small lists it asks for: who is monitored, and who could be.

Everything that moves comes over the socket and the public API; this only says who is who.
"""

from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_required, permission_required
from django.core.exceptions import ValidationError
from django.core.validators import ProhibitNullCharactersValidator
from django.db.models import Q
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows.usual import usual
from monitoring.config import flow_monitoring
from monitoring.models import MonitoredUser, iso
from omni2.accounts.models import User

WATCH, MANAGE = "flows.watch", "monitoring.manage"
MOST_PANELS = 8
MOST_FOUND = 8
View = Callable[[HttpRequest], HttpResponse]


def may(permission: str) -> Callable[[View], View]:
    """For the page's own requests: 401 and 403 in JSON, never a redirect to a page."""

    def decorate(view: View) -> View:
        @wraps(view)
        def guarded(request: HttpRequest) -> HttpResponse:
            if not request.user.is_authenticated:
                return JsonResponse({"detail": "You are not signed in.", "code": "not_authenticated"}, status=401)
            if not request.user.has_perm(permission):
                return JsonResponse({"detail": "You may not do this.", "code": "permission_denied"}, status=403)
            return view(request)

        return guarded

    return decorate


@require_safe
@never_cache
@login_required
@permission_required(WATCH, raise_exception=True)
def live(request: HttpRequest) -> HttpResponse:
    """The wall: chips of the monitored, a panel for each `?user=` (8 at most)."""
    user = request.user
    watched = _user_ids(request)
    times = flow_monitoring()
    page = {
        "may_manage": user.has_perm(MANAGE),
        "may_view": user.has_perm("flows.view"),
        "may_stop": user.has_perm("chat.stop"),
        "may_block": user.has_perm("chat.add_userblock"),
        "may_unblock": user.has_perm("chat.delete_userblock"),
        "live": "on" if settings.REDIS_ENABLED else "off",
        "most_panels": MOST_PANELS,
        "max_ttl_hours": times.max_ttl_hours,
        "default_ttl_hours": times.default_ttl_hours,
        "usual": usual(),
        **_people(watched),
    }
    return render(request, "monitoring/live.html", {"title": "Live", "page": page})


@require_safe
@never_cache
@may(WATCH)
def people(request: HttpRequest) -> HttpResponse:
    """Who is monitored now, by name; for each `?user=` also who he is and how his last period ended."""
    return JsonResponse(_people(_user_ids(request)))


@require_safe
@never_cache
@may(WATCH)
def usual_times(request: HttpRequest) -> HttpResponse:
    """What is usual for each model and tool (flows.usual): `{"llm_thinking": {model: [p50_ms, p95_ms]}, …}`.
    At most a minute old; nothing of any user is in it."""
    return JsonResponse(usual())


@require_safe
@never_cache
@may(MANAGE)
def search(request: HttpRequest) -> HttpResponse:
    """At most 8 active users whose name or address holds `?q=`. One query."""
    words = request.GET.get("q", "").strip()[:100]
    if not words or not _storable(words):
        return JsonResponse({"people": []})
    found = User.objects.filter(Q(name__icontains=words) | Q(email__icontains=words), is_active=True)
    return JsonResponse({"people": [_person(user) for user in found.order_by("name", "email")[:MOST_FOUND]]})


def _user_ids(request: HttpRequest) -> list[str]:
    """The users of the URL in their order, each once, as far as they can be anybody's address."""
    wanted = dict.fromkeys(each.strip().lower()[:255] for each in request.GET.getlist("user"))
    return [each for each in wanted if each and _storable(each)][:MOST_PANELS]


def _storable(text: str) -> bool:
    """Whether PostgreSQL could hold it: what it cannot hold, it does not have."""
    try:
        ProhibitNullCharactersValidator()(text)
        text.encode()
    except (ValidationError, UnicodeEncodeError):
        return False
    return True


def _people(watched: Iterable[str]) -> dict[str, Any]:
    """Two or three queries. `now` is PostgreSQL's clock, by which the periods expire."""
    watched = list(watched)
    periods = list(MonitoredUser.objects.all().active().annotate(now=Now()).order_by("enabled_at", "id"))
    monitored = {period.user_id for period in periods}
    names = _names({*watched, *monitored, *(period.enabled_by for period in periods)})
    others = [user_id for user_id in watched if user_id not in monitored]
    return {
        "people": [_monitored(period, names) for period in periods],
        "others": _not_monitored(others, names) if others else [],
    }


def _monitored(period: MonitoredUser, names: dict[str, str]) -> dict[str, Any]:
    now = period.now  # type: ignore[attr-defined]
    return {
        "user_id": period.user_id,
        "name": names.get(period.user_id, ""),
        "enabled_by": names.get(period.enabled_by) or period.enabled_by,
        "enabled_at": iso(period.enabled_at),
        "expires_at": iso(period.expires_at),
        "remaining_ms": round((period.expires_at - now).total_seconds() * 1000),
        "reason": period.reason,
    }


def _not_monitored(user_ids: list[str], names: dict[str, str]) -> list[dict[str, Any]]:
    last = {
        period.user_id: period
        for period in MonitoredUser.objects.filter(user_id__in=user_ids)
        .order_by("user_id", "-enabled_at", "-id")
        .distinct("user_id")
    }
    enders = _names({period.ended_by for period in last.values() if period.ended_by})
    return [
        {
            "user_id": user_id,
            "name": names.get(user_id, ""),
            "known": user_id in names,
            "ended_at": iso(last[user_id].ended_at or last[user_id].expires_at) if user_id in last else None,
            "ended_by": (enders.get(last[user_id].ended_by or "") or last[user_id].ended_by)
            if user_id in last
            else None,
        }
        for user_id in user_ids
    ]


def _names(user_ids: set[str]) -> dict[str, str]:
    return dict(User.objects.filter(email__in=user_ids).values_list("email", "name"))


def _person(user: User) -> dict[str, str]:
    return {"user_id": user.user_id, "name": user.name}


page_urls: list[URLPattern | URLResolver] = [
    path("live/", live, name="live"),
    path("live/people", people, name="live-people"),
    path("live/search", search, name="live-search"),
    path("live/usual", usual_times, name="live-usual"),
]
