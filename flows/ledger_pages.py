"""`/ledger/`: whether all that was started is stored, for those who run it. Nobody's words stand on it.

One account (flows.ledger, flows.judging) is drawn; readable without a script. The hour whose numbers are shown by
process is in the address, as the time range is.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.conf import settings
from django.contrib.auth.decorators import login_required, permission_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import URLPattern, URLResolver, path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from flows import ledger_words as words
from flows.history import wire_time
from flows.judging import Account, Hour, Part, Problem, Sums, judge
from flows.ledger import HOUR, Process, read, whole_hours
from flows.reader import OPERATE, VIEW
from flows.retention import days_kept, last_pruning
from flows.status import LAG_LIMIT_S, PERSISTER_SILENT_S, tracking_status
from flows.waiting import Road
from omni2.zone import zone_of

RANGES = {"24": "24 hours", "168": "7 days", "720": "30 days"}
DEFAULT_RANGE = "24"
ENDED_SHOWN = 10
"""Processes that have ended and counted nothing in this time have nothing to say: of the others, so many."""

# name in Sums, heading, what it is (also the legend), whether nothing is the only good number
TURNS = (
    ("started", "Started", "began, as their process counted them; PostgreSQL was asked for none of it"),
    ("stored", "Stored", "have their end in PostgreSQL"),
    ("running", "Running", "have no end yet: being answered, or on their way"),
    ("turns_given_up", "Given up", "began, and nothing of them can ever be stored"),
    ("turns_missing", "Missing", "began and are nowhere: started without all of the others"),
)
CHECKPOINTS = (
    ("made", "Made", "recorded by the turns of this hour, as their process counted them"),
    ("rows", "Stored", "rows in interaction_flows, counted one by one"),
    ("on_the_way", "On the way", "in the process's memory or in Redis, not in PostgreSQL yet"),
    ("set_aside", "Set aside", "dead letters: PostgreSQL refuses them, somebody has to look"),
    ("given_up", "Given up", "could be kept nowhere, or died in the memory of their process"),
    ("missing", "Missing", "made and nowhere: made without all of the others"),
)


@require_safe
@never_cache
@login_required
@permission_required(OPERATE, raise_exception=True)
def ledger(request: HttpRequest) -> HttpResponse:
    """The account of the last hours, days or weeks. Five queries and one trip to Redis, whatever the range."""
    asked = request.GET.get("hours", DEFAULT_RANGE)
    chosen = asked if asked in RANGES else DEFAULT_RANGE
    now, zone = datetime.now(UTC), zone_of(request)
    until = whole_hours(now, now + timedelta(seconds=1))[1]
    account = judge(read(until - int(chosen) * HOUR, until))
    shown = Shown(account, zone, chosen, opened=request.GET.get("open", ""), links=request.user.has_perm(VIEW))
    page = {"title": "Ledger", "zone": zone.key, "wrong_range": asked not in RANGES and asked}
    return render(request, "flows/ledger.html", page | shown.page(now))


class Shown:
    """An account as the page says it, to somebody in this zone."""

    def __init__(self, account: Account, zone: ZoneInfo, chosen: str, *, opened: str, links: bool) -> None:
        self.account = account
        self.zone = zone
        self.chosen = chosen
        self.opened = opened
        self.links = links

    def page(self, now: datetime) -> dict[str, Any]:
        account = self.account
        state, icon = ("bad", "error") if account.problems else ("ok", "check_circle")
        if not account.problems and not account.is_certain:
            state, icon = "warning", "help"
        return {
            "ranges": [
                {"label": label, "href": self.here(hours=key), "chosen": key == self.chosen}
                for key, label in RANGES.items()
            ],
            "state": state,
            "icon": icon,
            "verdict": words.verdict(account),
            "sums": words.sums(account.total, f"in the last {RANGES[self.chosen]}"),
            "checkpoint_sums": words.checkpoints(account.total),
            "cautions": list(words.cautions(account)),
            "problems": [self.problem(one) for one in account.problems],
            "facts": [*facts(account.road), kept()],
            "letters": [self.letter(one) for one in account.road.reasons()],
            "processes": [self.process(one, now) for one in self._worth_showing()],
            "turns": TURNS,
            "checkpoints": CHECKPOINTS,
            "hours": [self.hour(one) for one in account.hours],
            "total": cells(account.total),
            "reasons": list(account.reasons.items()),
        }

    def here(self, **changed: str) -> str:
        asked = {"hours": self.chosen, **changed}
        return "/ledger/?" + urlencode({name: value for name, value in asked.items() if value})

    def time(self, at: datetime) -> dict[str, str]:
        """`Wed 25 Nov 14:02`, by the viewer's clock, and exactly."""
        local = at.astimezone(self.zone)
        return {"text": f"{local:%a} {local.day} {local:%b %H:%M}", "iso": wire_time(at), "title": f"{local:%F %T %Z}"}

    def hour(self, one: Hour) -> dict[str, Any]:
        local, key = one.start.astimezone(self.zone), f"{one.start:%Y-%m-%dT%H}"
        is_open = key == self.opened
        return {
            "key": key,
            "day": f"{local:%a} {local.day} {local:%b}",
            "time": f"{local:%H:%M}",
            "iso": wire_time(one.start),
            "cells": cells(one.sums, stored_href=self._history(one.start)),
            "is_bad": bool(one.problems),
            "is_open": is_open,
            "href": self.here(open="" if is_open else key) + f"#hour-{key}",
            "parts": [part(each) for each in one.parts] if is_open else [],
            "reasons": list(one.reasons.items()) if is_open else [],
            "problems": [self.problem(each) for each in one.problems] if is_open else [],
        }

    def _history(self, start: datetime) -> str:
        if not self.links:
            return ""
        return "/flows/?" + urlencode({"since": wire_time(start), "until": wire_time(start + HOUR)})

    def problem(self, one: Problem) -> dict[str, Any]:
        return {
            "kind": one.kind,
            "at": self.time(one.hour),
            "who": words.whose(one),
            "sentence": words.problem(one),
            "turn_ids": one.turn_ids,
            "more": max(0, one.count - len(one.turn_ids)) if one.turn_ids else 0,
        }

    def letter(self, one: dict[str, Any]) -> dict[str, Any]:
        return {
            "reason": one["reason"],
            "count": f"{one['count']:,}",
            "last": self.time(one["last"]),
            "what": ", ".join(f"{name} {number}" for name, number in one["checkpoints"]),
            "shards": ", ".join(map(str, one["shards"])),
        }

    def _worth_showing(self) -> list[Process]:
        """Those that run, and the last of those that ended and counted something in this time."""
        counted = {part.process_id for hour in self.account.hours for part in hour.parts}
        running = [one for one in self.account.processes if one.ended_at is None]
        ended = [one for one in self.account.processes if one.ended_at is not None and one.process_id in counted]
        return running + ended[:ENDED_SHOWN]

    def process(self, one: Process, now: datetime) -> dict[str, Any]:
        mine = [part.sums for hour in self.account.hours for part in hour.parts if part.process_id == one.process_id]
        if one.ended_at is not None:
            state, icon, said = "idle", "stop_circle", "Ended"
        elif one.is_alive:
            state, icon, said = "ok", "check_circle", "Alive"
        else:
            state, icon, said = "warning", "hourglass_top", "Silent"
        return {
            "name": one.name,
            "state": state,
            "icon": icon,
            "said": said,
            "started": self.time(one.started_at),
            "seen": self.time(one.ended_at or one.seen_at),
            "seen_ago": ago((now - (one.ended_at or one.seen_at)).total_seconds()),
            "turns": f"{sum(sums.started for sums in mine):,}",
            "given_up": one.given_up,
            "keeps_ledger": one.as_of is not None,
        }


def cells(of: Sums, *, stored_href: str = "") -> list[dict[str, Any]]:
    """The numbers of a row, both equations one after the other."""
    made = []
    for name, label, meaning in (*TURNS, *CHECKPOINTS):
        number = getattr(of, name)
        too_many = {"turns_missing": of.turns_too_many, "missing": of.too_many}.get(name, 0)
        made.append(
            {
                "name": name,
                "label": label,
                "title": meaning,
                "text": f"{number:,}" if number or not too_many else f"−{too_many:,}",
                "is_none": not number and not too_many,
                "is_bad": name in ("turns_missing", "missing") and bool(number or too_many),
                "is_warn": name in ("set_aside", "given_up", "turns_given_up") and bool(number),
                "is_first": name in ("started", "made"),
                "href": stored_href if name == "stored" and number else "",
            }
        )
    return made


def part(one: Part) -> dict[str, Any]:
    """One process's share in an hour, and how far it can be judged."""
    notes = []
    if one.process is None:
        notes.append("no process that is known")
    elif not one.has_spoken:
        notes.append("it keeps no ledger, or ended before its first word")
    elif one.sums.unsaid or one.sums.turns_unsaid:
        later = words.counted(one.sums.unsaid, "checkpoint", "checkpoints")
        notes.append(f"{later} since it last spoke: not judged yet")
    if one.sums.abandoned:
        notes.append(words.counted(one.sums.abandoned, "turn abandoned", "turns abandoned"))
    if one.sums.admitted:
        notes.append(f"{one.sums.admitted:,} let in, as the usage has it")
    name = one.process.name if one.process else "Stored by others"
    return {"name": name, "notes": "; ".join(notes), "cells": cells(one.sums)}


def facts(road: Road) -> Iterator[dict[str, str]]:
    """How the road is now, one fact after the other, each with its state."""
    here = tracking_status()
    if not road.enabled:
        yield fact("ok", "sync_disabled", "Redis is switched off", "Checkpoints go straight to PostgreSQL.")
    elif not road.answers:
        yield fact("bad", "cloud_off", "Redis does not answer", "Checkpoints go straight to PostgreSQL.")
    else:
        behind = road.lag_s > LAG_LIMIT_S
        said = f"The oldest came {ago(road.lag_s)} ago." if road.waiting else "All that came is stored."
        waiting = words.counted(road.waiting, "checkpoint waits", "checkpoints wait")
        yield fact("bad" if behind else "ok", "inbox", f"{waiting} in Redis", said)
        yield _persister(road)
        if road.held_back:
            held = words.counted(road.held_back, "checkpoint is", "checkpoints are")
            yield fact("bad", "front_hand", f"{held} refused", "They stay in Redis until the cause is mended.")
        letters = words.counted(road.dead_letters, "checkpoint is", "checkpoints are")
        advice = "Below, by reason." if road.dead_letters else "Nothing was refused."
        yield fact("warning" if road.dead_letters else "ok", "mark_email_unread", f"{letters} set aside", advice)
    if settings.REDIS_ENABLED and here["redis_away"]:
        yield fact("warning", "alt_route", "They go around Redis", "This process sends them straight to PostgreSQL.")
    if here["postgres_away"]:
        yield fact("bad", "memory", f"{here['queue']:,} wait in memory", "Neither Redis nor PostgreSQL takes them.")


def _persister(road: Road) -> dict[str, str]:
    if road.silent_s is None:
        return fact("bad", "sync_problem", "No persister was ever seen", "What waits in Redis stays there.")
    if road.silent_s > PERSISTER_SILENT_S:
        return fact("bad", "sync_problem", "No persister works", f"The last one spoke {ago(road.silent_s)} ago.")
    return fact("ok", "sync", "The persister works", f"It spoke {ago(road.silent_s)} ago.")


def kept() -> dict[str, str]:
    """How long turns are kept, and how far the last run is that deletes older ones."""
    days, last = days_kept(), last_pruning()
    head = f"Turns are kept for {words.counted(days, 'day', 'days')}" if days else "Turns are kept for ever"
    if last is None:
        return fact("ok", "auto_delete", head, "None was deleted yet.")
    gone = f"{words.counted(last.turns, 'turn', 'turns')} from before {last.border:%-d %b %H:%M} UTC"
    if last.ended_at is None:
        return fact("ok", "auto_delete", head, f"Deleting: {gone} so far.")
    return fact("ok", "auto_delete", head, f"The last time {gone} were deleted.")


def fact(state: str, icon: str, head: str, said: str) -> dict[str, str]:
    return {"state": state, "icon": icon, "head": head, "said": said}


def ago(seconds: float) -> str:
    """`3 s`, `4 min`, `2 h`, `3 d`."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


ledger_urls: list[URLPattern | URLResolver] = [path("ledger/", ledger, name="ledger-page")]
