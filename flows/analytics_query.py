"""What the analytics page is asked by its URL: filters, the viewer's hours or days, and the question they make.

Every problem names its field. Times without a zone are the viewer's, and are put into UTC before
anything is linked, so that a link means the same to a colleague elsewhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django import forms

from flows import history
from flows.analytics import Question

RANGES = {
    "1h": "1 hour",
    "24h": "24 hours",
    "7d": "7 days",
    "30d": "30 days",
    "90d": "90 days",
}
RANGE_LENGTHS = {
    "1h": timedelta(hours=1),
    "24h": timedelta(hours=24),
    **{f"{n}d": timedelta(days=n) for n in (7, 30, 90)},
}
DEFAULT_RANGE = "24h"
OWN = "own"
HOURLY_UNTIL = timedelta(hours=48)
LONGEST = timedelta(days=366)
MINUTES = 5  # a slot of the last hour


class TimeField(forms.CharField):
    """ISO 8601, a date or a time; without a zone it is the viewer's."""

    def __init__(self) -> None:
        super().__init__(required=False, max_length=40)
        self.zone: ZoneInfo | None = None

    def clean(self, value: Any) -> datetime | None:
        text = super().clean(value)
        try:
            at = datetime.fromisoformat(text) if text else None
            if at is not None and at.tzinfo is None:
                at = at.replace(tzinfo=self.zone)
            return at and at.astimezone(UTC)
        except (ValueError, OverflowError):
            raise forms.ValidationError("A time is needed, such as 2026-11-22T06:00.") from None


class Filters(forms.Form):
    """The filters of the URL. An empty one counts as not given."""

    range = forms.ChoiceField(
        required=False,
        choices=RANGES.items(),
        error_messages={"invalid_choice": f"One of {', '.join(RANGES)} is needed."},
    )
    since, until = TimeField(), TimeField()
    user_id = forms.CharField(required=False, max_length=255)
    model = forms.CharField(required=False, max_length=200, strip=False)
    tool = forms.CharField(required=False, max_length=200, strip=False)

    def __init__(self, given: Any, zone: ZoneInfo) -> None:
        super().__init__(given)
        for name in ("since", "until"):
            field = self.fields[name]
            assert isinstance(field, TimeField)
            field.zone = zone

    def clean(self) -> dict[str, Any]:
        found = self.cleaned_data
        since, until = found.get("since"), found.get("until")
        if self.errors:
            return found
        if until and not since:
            self.add_error("since", "From when? A time is needed here too.")
        elif since and since >= (until or datetime.now(UTC)):
            self.add_error("until" if until else "since", "The end must be after the beginning.")
        elif since and (until or datetime.now(UTC)) - since > LONGEST:
            self.add_error("since", f"At most {LONGEST.days} days at once.")
        return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked: `range` is a key of RANGES or OWN, `slots` the borders of the hours or days in between."""

    question: Question
    range: str
    slots: list[datetime]
    zone: ZoneInfo

    @property
    def slot(self) -> timedelta:
        """About how long a slot is: five minutes, an hour or a day."""
        return _slot(self.range, self.question.until - self.question.since)


def asked(filters: Filters, zone: ZoneInfo, *, user_id: str | None, now: datetime) -> Asked:
    """The question of valid filters. The last hours and days end now and begin with a whole slot."""
    found = filters.cleaned_data
    name = OWN if found["since"] else found["range"] or DEFAULT_RANGE
    since = found["since"] or began(name, now, zone)
    until = found["until"] or now
    question = Question(
        since=since, until=until, user_id=user_id, model=found["model"] or None, tool=found["tool"] or None
    )
    slot = _slot(name, until - since)
    return Asked(question, name, list(borders(since, until, slot, zone)), zone)


def address(filters: Filters, *, user_id: str | None) -> dict[str, str]:
    """The URL's parameters in their one spelling: nothing empty, times in UTC, the range only if it counts."""
    found = filters.cleaned_data
    spelled = {name: found[name] for name in ("range", "model", "tool") if found[name]}
    for name in ("since", "until"):
        if found[name]:
            spelled[name] = history.wire_time(found[name])
            spelled.pop("range", None)
    return spelled | ({"user_id": user_id} if user_id else {})


# --- hours and days -----------------------------------------------------------------------------------


def began(name: str, now: datetime, zone: ZoneInfo) -> datetime:
    """The start of a range that ends now: of its first whole slot, so that all slots but the last are whole."""
    number, letter = int(name[:-1]), name[-1]
    slot = _slot(name, timedelta(**{"hours" if letter == "h" else "days": number}))
    last = floor(now, slot, zone)
    if slot >= timedelta(days=1):
        return _days_later(last, 1 - number, zone)
    return last + slot - timedelta(hours=number)


def floor(at: datetime, slot: timedelta, zone: ZoneInfo) -> datetime:
    """The start of the slot that holds `at`, by the zone's clock."""
    local = at.astimezone(zone)
    if slot >= timedelta(days=1):
        return local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0).astimezone(UTC)
    past = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    return (at - past % slot).astimezone(UTC)


def borders(since: datetime, until: datetime, slot: timedelta, zone: ZoneInfo) -> Iterator[datetime]:
    """Ascending: `since`, each start of a slot between, `until`. An hour that is shown twice in autumn is two."""
    at = since
    while at < until:
        yield at
        at = _next(floor(at, slot, zone), slot, zone)
    yield until


def _slot(name: str, span: timedelta) -> timedelta:
    if name == "1h":
        return timedelta(minutes=MINUTES)
    return timedelta(hours=1) if span <= HOURLY_UNTIL else timedelta(days=1)


def _next(start: datetime, slot: timedelta, zone: ZoneInfo) -> datetime:
    return _days_later(start, 1, zone) if slot >= timedelta(days=1) else start + slot


def _days_later(start: datetime, days: int, zone: ZoneInfo) -> datetime:
    """The midnight that many days on, which is not always that many times 24 hours."""
    noon = start.astimezone(zone).replace(hour=12) + timedelta(days=days)
    return floor(noon, timedelta(days=1), zone)
