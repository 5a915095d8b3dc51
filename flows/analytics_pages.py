"""`/analytics/`: where turns end and why, how long steps take, what models, tools and people cost.

One question (flows.analytics_query) is answered once (flows.analytics.analyse), and every figure
leads to the turns it counts (flows.analytics_links). Readable without a script.
"""

from typing import Any, cast
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required, permission_required
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import analytics_figures as figures
from flows import analytics_links, charts, history, lines, saved_view_pages
from flows.analytics import Analysis, Question, analyse
from flows.analytics_links import Links
from flows.analytics_query import DEFAULT_RANGE, OWN, RANGE_LENGTHS, RANGES, Asked, Filters, address, asked
from flows.asked import people_like
from flows.history import RUNNING, TurnFilters
from flows.pruning import last_border
from flows.reader import VIEW
from omni2.accounts.access import record_access
from omni2.accounts.models import User
from omni2.zone import zone_of

FIELDS = ("range", "since", "until", "user_id", "model", "tool")


@require_safe
@never_cache
@login_required
@permission_required(VIEW, raise_exception=True)
def analytics(request: HttpRequest) -> HttpResponse:
    """The figures of the URL's filters; the looking is noted before anything is shown."""
    zone = zone_of(request)
    given = {name: request.GET.get(name, "").strip() for name in FIELDS}
    filters = Filters(given, zone)
    page: dict[str, Any] = {"title": "Analytics", "given": given, "zone": zone.key}
    page["views"] = saved_view_pages.shown(cast(User, request.user), "/analytics/", urlencode(_filled(given)))
    user_id, people = _whom(filters.cleaned_data["user_id"]) if filters.is_valid() else (None, [])
    if user_id is None:
        return render(request, "flows/analytics.html", page | _unclear(filters, given, people))
    spelled = address(filters, user_id=user_id or None)
    if spelled != {name: value for name, value in request.GET.items() if name in FIELDS}:
        return HttpResponseRedirect(analytics_links.here(spelled))
    question = asked(filters, zone, user_id=user_id or None, now=timezone.now())
    _note(cast(User, request.user), question.question)
    return render(request, "flows/analytics.html", page | _answered(question, spelled))


def _filled(given: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in given.items() if value}


def _unclear(filters: Filters, given: dict[str, str], people: list[dict[str, str]]) -> dict[str, Any]:
    """What the page says when it has no figures yet: what is wrong with a field, or whom a name may mean."""
    errors = {name: " ".join(map(str, problems)) for name, problems in filters.errors.items()}
    if not errors and not people:
        errors = {"user_id": "Nobody is called that, and nothing is stored of such an address."}
    may_mean = [(person, analytics_links.here(given, user_id=person["user_id"])) for person in people]
    return {"ranges": _ranges(given, given["range"]), "errors": errors, "people": may_mean}


def _whom(typed: str) -> tuple[str | None, list[dict[str, str]]]:
    """Whose turns: "" for everybody's, an address, or None with those a name may mean. At most two queries."""
    typed = typed.strip()
    if not typed:
        return "", []
    by_address = typed.lower()
    if "@" in typed:
        is_known = User.objects.filter(email=by_address).exists() or history.is_known(by_address)
        return (by_address if is_known else None), []
    people = people_like(typed)
    return (people[0]["user_id"], []) if len(people) == 1 else (None, people)


def _note(reader: User, question: Question) -> None:
    """One line of the access log, as flows.reader writes it; nothing for one's own figures."""
    if question.user_id == reader.user_id:
        return
    filters = {name: getattr(question, name) for name in ("user_id", "model", "tool")}
    times = {"since": history.wire_time(question.since), "until": history.wire_time(question.until)}
    detail = {"opened": "analytics", **{name: value for name, value in filters.items() if value}, **times}
    record_access(actor=reader, action="history_opened", subject_user_id=question.user_id, detail=detail)


def _ranges(spelled: dict[str, str], chosen: str) -> list[dict[str, Any]]:
    """The ranges to choose from, each with its address: the other filters stay."""
    kept = {**spelled, "since": "", "until": ""}
    return [
        {
            "label": label,
            "href": analytics_links.here(kept, range="" if key == DEFAULT_RANGE else key),
            "chosen": key == chosen,
        }
        for key, label in RANGES.items()
    ]


def _answered(question: Asked, spelled: dict[str, str]) -> dict[str, Any]:
    """All the page says of the figures: a few queries, whatever the number of turns."""
    wanted = question.question
    found = analyse(wanted, question.slots)
    page = _heading(question, spelled) | {"found": found}
    if not found.turns:
        return page | {"try": list(_to_try(question, spelled)), "nothing_at_all": not _anything()}
    links = Links(wanted)
    times = figures.times(found.slots, question)
    shown = [name for name in figures.in_order(found.outcomes, figures.STACK) if found.outcomes.get(name)][::-1]
    called = lines.names({each.name for each in found.users} | {turn.user_id for turn in found.slowest})
    return page | {
        "tiles": list(figures.tiles(found, _before(question), links, _period(question))),
        "sums": list(figures.sums(found, links)),
        "textures": charts.textures(),
        "over_time": figures.over_time(times, links, description=_in_words(found, times)),
        "outcomes": [figures.outcome(name) for name in shown],
        "slots": figures.table(times, shown, links),
        "problems": list(figures.problems(found, links)),
        "funnel": list(figures.funnel(found, links)),
        **figures.durations(found, links),
        "tools": list(figures.tools(found, links)),
        "models": list(figures.spent(found.models, links, "model", {}, "model")),
        "users": list(figures.spent(found.users, links, "user_id", called, "check")),
        "slowest": [lines.line(turn, called) | {"href": analytics_links.of_turn(turn)} for turn in found.slowest],
        "slowest_href": links.turns(sort="-duration"),
        "known": {"models": [model.name for model in found.models], "tools": [tool.tool for tool in found.tools]},
    }


def _heading(question: Asked, spelled: dict[str, str]) -> dict[str, Any]:
    """What was asked, as the form and the line under it say it."""
    wanted, border = question.question, last_border()
    name = wanted.user_id and (lines.names([wanted.user_id]).get(wanted.user_id) or wanted.user_id)
    local = {name: getattr(wanted, name).astimezone(question.zone) for name in ("since", "until")}
    return {
        "ranges": _ranges(spelled, question.range),
        "given": spelled,
        "local": {name: f"{at:%Y-%m-%dT%H:%M:%S}" for name, at in local.items()} if question.range == OWN else {},
        "is_own": question.range == OWN,
        "from": figures.said_time(wanted.since, question),
        "to": figures.said_time(wanted.until, question),
        "who": name,
        "clear": analytics_links.here(spelled, user_id="", model="", tool="") if _narrowed(spelled) else "",
        "kept_from": figures.said_time(border, question) if border and border > wanted.since else "",
    }


def _narrowed(spelled: dict[str, str]) -> bool:
    return any(spelled.get(name) for name in ("user_id", "model", "tool"))


def _before(question: Asked) -> dict[str, int]:
    """Turns by outcome in the period before, as long and ending where this one began (or its like). One query."""
    wanted = question.question
    back = RANGE_LENGTHS.get(question.range, wanted.until - wanted.since)
    filters = TurnFilters(
        user_id=wanted.user_id,
        model=wanted.model,
        tool=wanted.tool,
        since=wanted.since - back,
        until=wanted.until - back,
    )
    counts = history.matching(filters).order_by().values_list("outcome").annotate(Count("pk"))
    return {outcome or RUNNING: number for outcome, number in counts}


def _period(question: Asked) -> str:
    return RANGES.get(question.range, "same time")


def _in_words(found: Analysis, times: list[figures.Time]) -> str:
    """The chart for those who do not see it, in a sentence; the numbers are in the table below it."""
    most = max(times, key=lambda time: time.total)
    each = (f"{figures.label_of(name).lower()} {number:,}" for name, number in found.outcomes.items() if number)
    return f"{found.turns:,} turns: {', '.join(each)}. The most, {most.total:,}: {most.title}."


def _to_try(question: Asked, spelled: dict[str, str]) -> list[dict[str, str]]:
    """What may hold turns where these filters hold none."""
    span = question.question.until - question.question.since
    further = [key for key, length in RANGE_LENGTHS.items() if length > RANGE_LENGTHS.get(question.range, span)]
    kept = {**spelled, "since": "", "until": ""}
    ways = [{"label": f"The last {RANGES[key]}", "href": analytics_links.here(kept, range=key)} for key in further]
    if _narrowed(spelled):
        ways.append(
            {
                "label": "Everybody, every model and tool",
                "href": analytics_links.here(spelled, user_id="", model="", tool=""),
            }
        )
    return ways


def _anything() -> bool:
    return history.matching(TurnFilters()).exists()


analytics_urls: list[URLPattern | URLResolver] = [path("analytics/", analytics, name="analytics-page")]
