"""`/usage/`: what one may use and has used; for whoever may see others' usage, everybody's below it.

Readable without a script. What is searched, which time and which page of the list are in the address.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from chat.allowances import VIEW, Allowance, Person, allowances_of, everybody, note_look
from chat.limits import LIMITS
from flows.words import count, money
from omni2.accounts.models import User
from omni2.zone import zone_of

PAGE = 50
MOST_CHARACTERS = 100
SECTIONS = (
    ("minute", "The last minute"),
    ("day", "Today"),
    ("month", "This month"),
    ("now", "At this moment"),
)
WINDOWS: dict[str, str] = {"day": "Today", "month": "This month"}
UNITS = {"requests": "requests", "tokens": "tokens", "cost": "", "turns": "turns at once"}
STATES = {"ok": ("check_circle", ""), "near": ("warning", "nearly used"), "over": ("block", "used up")}
SOURCES = {"own": "set for you", "default": "for everybody"}


@dataclass(frozen=True, slots=True)
class Line:
    """One limit as the page draws it."""

    said: str
    """`48 of 500 requests`"""
    state: str
    icon: str
    standing: str
    percent: float | None
    """of the bar; None: there is no limit"""
    until: datetime | None
    until_text: str
    source: str

    @classmethod
    def of(cls, allowance: Allowance, zone: ZoneInfo) -> "Line":
        used, most = allowance.limit.used, allowance.limit.limit
        kind = allowance.name.partition("_")[0]
        amount, unit = money if kind == "cost" else count, UNITS[kind]
        numbers = amount(used) if most is None else f"{amount(used)} of {amount(most)}"
        icon, standing = STATES[allowance.state]
        # a limit of nothing is always used up
        percent = None if most is None else min(100.0, 100 * used / most) if most else 100.0
        until = allowance.limit.resets_at if used and most is not None else None
        return cls(
            f"{numbers} {unit}".strip() if kind != "cost" else f"{numbers} spent",
            allowance.state,
            icon,
            standing,
            None if percent is None else round(percent, 1),
            until,
            _when(until, zone) if until else "",
            SOURCES.get(allowance.source, allowance.source),
        )


def _when(moment: datetime, zone: ZoneInfo) -> str:
    """14:02, or 1 Dec 00:00 when that is another day."""
    at, now = moment.astimezone(zone), datetime.now(UTC).astimezone(zone)
    if at.date() == now.date() or at - now < timedelta(hours=1):
        return f"{at:%H:%M:%S}" if at - now < timedelta(minutes=2) else f"{at:%H:%M}"
    return f"{at.day} {at:%b %H:%M}"


@require_safe
@never_cache
@login_required
def usage(request: HttpRequest) -> HttpResponse:
    """One's own usage: three queries, and those of the shell; with the right to see everybody's two more and a line of
    the access log."""
    user, zone = cast(User, request.user), zone_of(request)
    own = allowances_of(user)
    sees_all = user.has_perm(VIEW)
    page = {
        "title": "Usage" if sees_all else "My usage",
        "zone": zone.key,
        "usage_zone": settings.USAGE_TZ,
        "sections": [
            (heading, [Line.of(each, zone) for each in own if LIMITS[each.name].window == window])
            for window, heading in SECTIONS
        ],
        "sees_all": sees_all,
        **(_everybody(request, zone) if sees_all else {}),
    }
    return render(request, "chat/usage.html", page)


def _everybody(request: HttpRequest, zone: ZoneInfo) -> dict[str, Any]:
    asked = request.GET.get("window", "day")
    window = cast(Literal["day", "month"], asked if asked in WINDOWS else "day")
    words = request.GET.get("q", "").replace("\0", "").strip()[:MOST_CHARACTERS]
    only_near = request.GET.get("near") == "1"
    after = request.GET.get("after", "").replace("\0", "")[:255]
    people, more = everybody(window, after=after, words=words, only_near=only_near, most=PAGE)
    note_look(cast(User, request.user), window=window, q=words, near=only_near, after=after)
    chosen = {"window": window, "q": words, "near": "1" if only_near else ""}
    return {
        "window": window,
        "words": words,
        "only_near": only_near,
        "is_further": bool(after),
        "first_href": _address(chosen),
        "people": [_person(each, zone) for each in people],
        "windows": [(label, _address({**chosen, "window": name}), name == window) for name, label in WINDOWS.items()],
        "next_href": _address({**chosen, "after": people[-1].user_id}) if more else "",
    }


def _person(person: Person, zone: ZoneInfo) -> dict[str, Any]:
    icon, standing = STATES[person.state]
    return {
        "name": person.name or person.user_id,
        "user_id": person.user_id,
        "state": person.state,
        "icon": icon,
        "standing": standing,
        "lines": [Line.of(each, zone) for each in person.allowances],
    }


def _address(query: dict[str, str]) -> str:
    return "?" + urlencode({name: value for name, value in query.items() if value}) + "#everybody"


page_urls: list[URLPattern | URLResolver] = [path("usage/", usage, name="usage")]
